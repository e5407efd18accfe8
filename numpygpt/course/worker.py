"""Outside: starting the process in which a student's functions run, `sandbox.py`, and asking it."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np

from numpygpt.course import sandbox

PATIENCE = 6  # a busy machine is not the student's fault
IMPORT_SECONDS = 60
ROOM = 2**20  # bytes that a result may be longer than the right one


class GraderError(ValueError):
    """The grader itself could not work; no student is to blame."""


class Worker:
    """A process that runs a student's functions; `with Worker(...) as worker`.

    student, adapters: paths. seconds: of computing that each call gets, and PATIENCE times as many
    to wait. memory: in MiB. Raises ValueError for limits that make no sense or files that are not
    Python source, and GraderError where the process fails before the student's code.
    """

    def __init__(self, student: Path, adapters: Path | None, seconds: float, memory: int):
        if not (math.isfinite(seconds) and 0 < seconds <= 86400):
            raise ValueError(f"seconds must be more than 0 and at most a day, not {seconds:g}")
        if not 256 <= memory <= 2**20:
            raise ValueError(f"memory must be 256 MiB to 1 TiB, not {memory} MiB")
        self.seconds = seconds
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        root = Path(self.folder.name)
        os.chmod(root, 0o755)
        (root / "work").mkdir()
        (root / "packages").mkdir()
        readable = [_linked(root / "packages", name) for name in ("numpy", "regex")]
        readable += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
        readable += [str(root / "packages")]
        user = _another_user(readable)
        if user:
            os.chown(root / "work", sandbox.NOBODY, sandbox.NOBODY)
        self.settings = {
            "student": _source(student),
            "adapters": adapters and _source(adapters),
            "memory": memory,
            "work": os.path.realpath(root / "work"),
            "readable": [os.path.realpath(folder) + os.sep for folder in readable]
            + [os.devnull, "/dev/urandom"],
            "user": user,
        }
        self.process = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop()
        self.folder.cleanup()

    def limits(self) -> str:
        """One sentence on what a submission can and cannot do here."""
        memory = self.settings["memory"]
        if not sandbox.FORK:
            return (
                f"Limits: {self.seconds:g} s of computing for each function. This system has no "
                "way to confine a submission: grade only what you trust, or in a container."
            )
        who = "as another user, " if self.settings["user"] else ""
        return (
            f"Limits: {who}{self.seconds:g} s of computing and {memory:,} MiB for each function; "
            "no other process, no network, no file but its own. Python's audit hooks hold it to "
            "that: they are a fence and not a jail, so grade in a container what you do not trust."
        )

    def import_error(self) -> str:
        """What goes wrong when the student's file is imported, or nothing."""
        outcome = self._ask(None, [], IMPORT_SECONDS, ROOM)
        return outcome.get("import_error") or outcome.get("error", "")

    def call(self, name: str, cases: list[tuple], expected_bytes: int) -> dict:
        """What the student's function returns for tuples of arguments, see `sandbox.call`.

        More than twice `expected_bytes` and a MiB are not read.
        """
        return self._ask(name, cases, self.seconds, 3 * expected_bytes + ROOM)

    def _ask(self, name, cases, seconds, most):
        if self.process is None or not sandbox.FORK:
            self._start()
        wait = PATIENCE * seconds + IMPORT_SECONDS * (name is not None)
        job = {"name": name, "cases": cases, "seconds": seconds, "wait": wait, "bytes": most}
        try:
            sandbox._send(self.process.stdin.fileno(), pickle.dumps(job))
            message = sandbox._receive(self.process.stdout.fileno())
        except OSError:
            message = None
        if message is None:
            self.process.wait()
            self.process = None
            return {"error": "ended the process that grades it; this function was not judged"}
        return opened(json.loads(message))

    def _start(self):
        self._stop()
        packages = os.path.join(self.folder.name, "packages")
        code = (
            f"import runpy, sys; sys.path.append({packages!r}); "
            f"runpy.run_path({sandbox.__file__!r}, None, '__main__')"
        )
        kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
        kept += ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # the first without the second can crash
        work = self.settings["work"]
        home = {"HOME": work, "TMPDIR": work, "TEMP": work}
        threads = {f"{blas}_NUM_THREADS": "1" for blas in ("OPENBLAS", "OMP", "MKL")}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", code],
            cwd=work,
            env={name: os.environ[name] for name in kept if name in os.environ} | home | threads,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            bufsize=0,
        )
        try:
            sandbox._send(self.process.stdin.fileno(), pickle.dumps(self.settings))
        except OSError:
            raise GraderError("the process that runs submissions could not be started") from None

    def _stop(self):
        """End the process and all that it started."""
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except AttributeError:  # Windows
            self.process.kill()
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None


def opened(outcome: dict) -> dict:
    """An outcome with what the student's process sent put in, whatever it may be."""
    if "result" not in outcome:
        return outcome
    try:
        result = dict(json.loads(outcome.pop("result")))
    except (ValueError, TypeError, RecursionError):
        result = {"error": "left something that is not a result"}
    result["tried"] = [str(x)[:200] for x in result.get("tried", []) if isinstance(x, str)][:5]
    return outcome | result


def _source(path):
    """(path as shown, source) of a Python file."""
    try:
        return path.name, path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text, so it is not a Python file") from None


def _linked(folder, name):
    """Link to an installed package, so that the process finds it and no other; its real folder."""
    package = Path(__import__(name).__file__).resolve().parent
    (folder / name).symlink_to(package)
    libraries = package.with_name(f"{name}.libs")
    if libraries.is_dir():
        (folder / libraries.name).symlink_to(libraries)
    return str(package)


def _another_user(readable):
    """Whether functions can run as a user without rights: we are root, and it may read Python."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    folders = {parent for path in readable for parent in (Path(path), *Path(path).parents)}
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in folders if folder.exists())


def size_of(value) -> int:
    """Bytes of all the numbers in a value, as a message holds them."""
    parts = (part for _, part in sandbox.flatten(value))
    return sum(2 * part.nbytes if isinstance(part, np.ndarray) else len(part) for part in parts)
