"""`python -m numpygpt` is the same as `numpygpt`."""

import signal
import sys


def run() -> int:
    """`cli.main`, where Ctrl-C is quiet from here on, also in the middle of an import.

    NumPy's import answers KeyboardInterrupt with an ImportError of its own, and Python prints what
    is raised where nobody can catch it: so whatever comes after the key was pressed is the end.
    """
    pressed, complain = [], sys.unraisablehook

    def interrupt(*_):
        pressed.append(True)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = lambda fault: None if pressed else complain(fault)
    try:
        from numpygpt.cli import main

        return main()
    except BaseException:
        if not pressed:
            raise
        return 130


if __name__ == "__main__":
    sys.exit(run())
