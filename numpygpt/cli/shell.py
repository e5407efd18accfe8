"""What the commands share: lines on stderr, text from arguments, files and standard input."""

import argparse
import contextlib
import os
import re
import sys
import warnings

MODEL = {"default": "stories", "help": "name or folder of a model"}


# What a terminal takes for a command or turns around, and what no terminal can show.
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text):
    """A text with what a terminal would take for a command as JSON writes it: \\u001b."""
    return COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Shown:
    """Standard output, on which everything is `shown`."""

    def __init__(self, out):
        self.out = out

    def write(self, text):
        """Write the text as `shown` makes it."""
        return self.out.write(shown(text))

    def __getattr__(self, name):
        return getattr(self.out, name)


def say(text):
    """A line on stderr; the work goes on when it is closed, full, or nobody reads it any more."""
    try:
        print(shown(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        drop(sys.stderr)


def drop(stream):
    """What is still to be written goes nowhere: Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is not a file, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_streams():
    """Where a standard stream was closed by whoever started us: results fail, messages vanish.

    Otherwise the next file to be opened would be the stream, and be written into.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # takes the lowest free number
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)


@contextlib.contextmanager
def spoken_warnings():
    """What the library warns of, such as padding that it cuts off, as lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        # NumPy's, of what is not finite: each result is looked at before it is shown
        warnings.simplefilter("ignore", RuntimeWarning)
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
