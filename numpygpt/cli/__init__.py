"""The same things from a shell: each command one short function that calls one room."""

import argparse
import contextlib
import os
import sys

from numpygpt import __version__
from numpygpt.cli import comparing, course, evaluating, looking, measuring, models, text, training
from numpygpt.cli.shell import say, spoken_warnings

# NumPy and the rooms are imported by the commands, inside `main`'s try: so Ctrl-C is quiet from the
# first moment, and `numpygpt --help` does not wait for them.


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 the work failed, 2 misuse."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help()
        return 0
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a character shows ?, and goes on
        sys.stdout.reconfigure(errors="replace")
    try:
        with spoken_warnings():
            status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head -1`: nobody reads on, so there is nobody to tell
        _drop_output()
        return 0
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, OSError):
            _drop_output()
        say(f"numpygpt: {_sentence(error)}")
        return _status(error)


def _drop_output():
    """What is still to be written goes nowhere: Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error):
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this: {error}"
    return " ".join(str(error).split())


def _status(error):
    from numpygpt.formats import CheckpointError

    paths = FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError
    misuse = isinstance(error, (ValueError, TypeError, *paths))
    return 2 if misuse and not isinstance(error, CheckpointError) else 1


def _parser():
    parser = argparse.ArgumentParser(
        prog="numpygpt",
        description="GPT-2 in plain NumPy. `numpygpt COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"numpygpt {__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")

    def command(run):
        name = run.__name__.removesuffix("_command")
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    for group in (text, training, evaluating, models, looking, measuring, comparing, course):
        group.add(command)
    for p in (parser, *commands.choices.values()):
        p.error = _misuse
        for option in p._actions:  # argparse has no public list of them
            if option.default not in (None, False, [], argparse.SUPPRESS):
                option.help = f"{option.help or ''} (default: %(default)s)".strip()
    return parser


def _misuse(message):
    """argparse's error without the usage in front: one line."""
    if "invalid choice: 'chat'" in message:
        message = (
            "there is no chat: GPT-2 continues a text and has not learned to converse; use "
            "`numpygpt generate`, or its --task answer"
        )
    if message.startswith("unrecognized arguments: --"):
        from numpygpt.sample import FROM_TRANSFORMERS

        for name in message.split():
            meant = FROM_TRANSFORMERS.get(name.split("=")[0].lstrip("-").replace("-", "_"))
            if name.startswith("--") and meant:
                message = f"there is no {name.split('=')[0]}: {meant}"
                break
    say(f"numpygpt: {message}")
    raise SystemExit(2)
