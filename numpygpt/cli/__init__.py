"""The same things from a shell: each command one short function that calls one room."""

import argparse
import contextlib
import functools
import os
import re
import sys

from numpygpt import __version__
from numpygpt.cli import comparing, course, evaluating, looking, measuring, models, text, training
from numpygpt.cli.shell import Shown, drop, open_streams, say, spoken_warnings

# NumPy and the rooms are imported by the commands, inside `main`'s try: so Ctrl-C is quiet from the
# first moment, and `numpygpt --help` does not wait for them.


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 the work failed, 2 misuse."""
    open_streams()
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a character shows ?, and goes on
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            status = _run(sys.argv[1:] if argv is None else argv)
        except SystemExit as end:  # argparse's: a misuse that was said, or --help
            status = end.code or 0
        _finish_output()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head -1`: nobody reads on, so there is nobody to tell
        drop(sys.stdout)
        return 0
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, OSError):
            drop(sys.stdout)
        say(f"numpygpt: {' '.join(_sentence(error).split())}")
        return _status(error)


def _run(words):
    parser = _parser()
    _check_bytes(words)
    args = parser.parse_args(words)
    if args.run is None:
        parser.print_help()
        return 0
    # Of a text that is generated, only a terminal is spared what it would take for commands.
    raw = getattr(args, "raw", None)
    clean = sys.stdout.isatty() and not raw if raw is not None else True
    with contextlib.redirect_stdout(Shown(sys.stdout) if clean else sys.stdout), spoken_warnings():
        return args.run(args) or 0


def _check_bytes(words):
    """An argument that is not text in this locale would be read as other text, without a word."""
    for word in words:
        if re.search("[\udc80-\udcff]", word) and not os.path.lexists(word):
            raise ValueError(
                "an argument has bytes that are not text here: set PYTHONUTF8=1 if they are UTF-8, "
                "or give the text on standard input"
            )


def _finish_output():
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"standard output: {error.strerror}") from None


def _sentence(error):
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this: {error}"
    return str(error)


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
    known = {name for p in commands.choices.values() for name in p._option_string_actions}
    for p in (parser, *commands.choices.values()):
        p.error = functools.partial(_misuse, known)
        p._print_message = _print  # argparse's own passes a full disk over
        for option in p._actions:  # argparse has no public list of them
            if option.default not in (None, False, [], argparse.SUPPRESS):
                option.help = f"{option.help or ''} (default: %(default)s)".strip()
    return parser


def _print(message, file):
    file.write(message)


def _misuse(known, message):
    """argparse's error without the usage in front: one line. known: all options there are."""
    if "invalid choice: 'chat'" in message:
        message = (
            "there is no chat: GPT-2 continues a text and has not learned to converse; use "
            "`numpygpt generate`, or its --task answer"
        )
    if message.startswith("unrecognized arguments: --"):
        from numpygpt.elsewhere import COMMANDS, GENERATING

        def option(word):
            spelled = "--" + word[0].replace("_", "-")
            return spelled if spelled in known else word[0]

        for name in (word.split("=")[0] for word in message.split() if word.startswith("--")):
            plain = name.lstrip("-").replace("-", "_")
            meant = (GENERATING | COMMANDS).get(plain)
            if meant:  # with the names of Python's arguments, which are options with hyphens
                meant = re.sub(r"\w+_\w+|(?<=called )\w+", option, meant)
            elif name != (spelled := "--" + plain.replace("_", "-")) and spelled in known:
                meant = f"it is spelled {spelled}"
            if meant:
                message = f"there is no {name}: {meant}"
                break
    say(f"numpygpt: {' '.join(message.split())}")
    raise SystemExit(2)
