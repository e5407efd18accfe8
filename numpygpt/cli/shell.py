"""What the commands share: lines on stderr, text from arguments, files and standard input."""

import argparse
import contextlib
import sys
import warnings

MODEL = {"default": "stories", "help": "name or folder of a model"}


def say(text):
    """A line on stderr; a training run goes on when nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def spoken_warnings():
    """What the library warns of, such as padding that it cuts off, as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_: say(f"numpygpt: {message}")
        yield


def text_or_stdin(argument, what):
    """A text given as an argument, or on standard input where there is none or it is `-`."""
    if argument not in (None, "-"):
        return argument
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise ValueError(f"give {what} as an argument or on standard input")
    from numpygpt.files import text

    return text.decode(sys.stdin.buffer.read(), "standard input")


def positive(text):
    """An argparse type: an integer that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number
