"""The process in which a student's functions run, first from outside, then from inside.

Arguments go in through files in a folder, and results come back so, as plain numbers that are
judged outside (`grade.py`). Inside there is no right answer: what is patched, printed or written
there earns no points. It is no jail, though. A program that wants to read or break things on this
machine can; where students are not trusted, grade in a container. One that imports numpygpt can
return its answers, and the sheet says so.
"""

import base64
import importlib.machinery
import importlib.util
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

# Where fork is safe, each function runs in a copy of the process that has imported the student's
# file: what one function breaks stays broken for that function alone. (macOS: BLAS and fork clash.)
FORK = sys.platform == "linux"
PATIENCE = 6  # a busy machine is no fault of the student's
IMPORT_SECONDS = 60
FILE_LIMIT = 2**28  # bytes, for each file the student writes, what is printed among them


# ---- outside -------------------------------------------------------------------------------------


def run(student: Path, adapters: Path | None, jobs: list, seconds: float, memory: int):
    """One outcome, a dict, for each job (name, list of argument tuples): see `call`.

    The worker is started again behind every job at which it died or was stopped. `seconds` of
    computing are given to each job, and PATIENCE times as many to wait; `memory` is in MiB.
    """
    outcomes = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        (folder / "work").mkdir()
        for i, job in enumerate(jobs):
            (folder / f"{i}.pickle").write_bytes(pickle.dumps(job))
        settings = {"memory": memory, "jobs": len(jobs), "seconds": seconds}
        for what, path in (("student", student), ("adapters", adapters)):
            settings[what] = path and str(path.resolve())
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        while len(outcomes) < len(jobs):
            outcomes += _outcomes(folder, len(outcomes), len(jobs), seconds)
    return outcomes


def _outcomes(folder, first, end, seconds):
    """The outcomes of jobs first .. end-1, or up to the one at which the worker dies."""
    worker = _start(folder, first)
    try:
        ready = _wait(worker, folder / f"{first}.ready", IMPORT_SECONDS)
        if "error" in ready:
            untried = {"error": f"could not be tried, as importing the file {ready['error']}"}
            yield from [untried] * (end - first)
            return
        for number in range(first, end):
            outcome = _wait(worker, folder / f"{number}.json", PATIENCE * seconds)
            begun = _is_file(folder / f"{number}.txt")
            if "died" in outcome and not begun and number > first:
                return  # the one before it did something to the worker: it gets another
            yield outcome | {"printed": _printed(folder / f"{number}.txt") if begun else ""}
            if "died" in outcome:
                return
    finally:
        _stop(worker)


def _start(folder, first):
    """A fresh Python that sees this one's packages, but not its folder, environment or input."""
    packages = [p for p in sys.path if p.endswith("-packages")]
    run_this = f"runpy.run_path({__file__!r}, None, '__main__')"
    code = f"import runpy, sys; sys.path += {packages!r}; {run_this}"
    kept = ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    home = {"HOME": str(folder), "TMPDIR": str(folder), "TEMP": str(folder)}
    threads = {f"{blas}_NUM_THREADS": "1" for blas in ("OPENBLAS", "OMP", "MKL")}
    with open(folder / "import.txt", "wb") as printed:
        return subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", "-c", code, str(folder), str(first)],
            cwd=folder / "work",
            env={name: os.environ[name] for name in kept if name in os.environ} | home | threads,
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=printed,
            start_new_session=True,
        )


def _stop(worker):
    """End the worker and the processes it started."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except AttributeError:  # Windows
        worker.kill()
    except ProcessLookupError:
        pass
    worker.wait()


def _wait(worker, path, seconds):
    """What the worker writes to `path`, or how it failed to."""
    end = time.monotonic() + seconds
    while not _is_file(path):
        ended = worker.poll() is not None
        if _is_file(path):  # written between the two questions
            break
        if ended:
            return {"died": True, "error": _death(worker.returncode)}
        if time.monotonic() > end:
            return {"died": True, "error": f"did not end within {seconds:g} s: an endless loop?"}
        time.sleep(0.003)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError):
        return {"error": "left something that is no result"}


def _is_file(path):
    """Whether it is there, and no pipe or link that a student put there to keep us reading."""
    return path.is_file() and not path.is_symlink()


def _death(status):
    if status >= 0:
        return f"ended the whole process with status {status}: it must return a value"
    if -status == signal.SIGXCPU:
        return "computed for too long: an endless loop?"
    killed = ": out of memory?" if -status == signal.SIGKILL else ""
    return f"crashed the process ({signal.strsignal(-status)}){killed}"


def _printed(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return " ".join(file.read(200).split())


# ---- inside --------------------------------------------------------------------------------------


def main(folder: Path, first: int):
    """Run the jobs from number `first` on: `folder/3.pickle` in, `folder/3.json` out."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    _limit("AS", settings["memory"] * 2**20)
    _limit("FSIZE", FILE_LIMIT)
    try:
        functions = _functions(Path(settings["student"]), settings["adapters"])
    except BaseException as error:  # a SystemExit, too, is a file that cannot be imported
        _write(folder / f"{first}.ready", {"error": describe(error)})
        return
    _write(folder / f"{first}.ready", {})
    for number in range(first, settings["jobs"]):
        child = os.fork() if FORK else 0
        if child:
            _, status = os.waitpid(child, 0)
            if not (folder / f"{number}.json").exists():
                _end_like(status)
            continue
        _limit("CPU", math.ceil(time.process_time() + settings["seconds"]))
        _print_to(folder / f"{number}.txt")
        name, cases = pickle.loads((folder / f"{number}.pickle").read_bytes())
        _write(folder / f"{number}.json", call(functions.get(name), cases))
        if FORK:
            os._exit(0)


def call(function, cases) -> dict:
    """What a function returns for each tuple of arguments, up to the first that it fails at."""
    outcome = {"cases": []}
    if not callable(function):
        return outcome | {"error": "is not defined" if function is None else "is not a function"}
    for arguments in cases:
        before = [_fingerprint(a) for a in arguments]
        try:
            parts = {label: _packed(value) for label, value in flatten(function(*arguments))}
        except BaseException as error:
            return outcome | {"error": describe(error)}
        changed = [i for i, a in enumerate(arguments) if _fingerprint(a) != before[i]]
        outcome["cases"].append({"parts": parts, "changed": changed})
    return outcome | {"uses_reference": "numpygpt" in sys.modules}


def flatten(value, label: str = ""):
    """(label, array or str) of everything in tuples and dicts: "0", "0.wte.weight", "1", ..."""
    inside = None
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, tuple) or (
        isinstance(value, list) and any(isinstance(v, np.ndarray | dict) for v in value)
    ):
        inside = enumerate(value)
    if inside is None:
        yield label, value if isinstance(value, str) else np.asarray(value)
        return
    for key, part in inside:
        yield from flatten(part, f"{label}.{key}".removeprefix("."))


def _packed(value):
    """As JSON: a text, or [dtype, shape, bytes in base64]."""
    if isinstance(value, str):
        return value
    if value.dtype.kind not in "fiub":
        what = "nothing (None)" if value.shape == () and value.item() is None else "no numbers"
        raise TypeError(f"it returned {what}: is a return statement missing or wrong?")
    return [value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()]


def unpacked(part):
    """The text or array again. Raises ValueError, TypeError or MemoryError for anything else."""
    if isinstance(part, str):
        return part
    dtype, shape, data = part
    if np.dtype(dtype).kind not in "fiub":
        raise ValueError(f"the dtype {dtype} is none of numbers")
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)


def _fingerprint(argument):
    return [
        value if isinstance(value, str) else (label, value.dtype.str, value.shape, value.tobytes())
        for label, value in flatten(argument)
    ]


def describe(error: BaseException) -> str:
    """One sentence on an exception, with the student's line in which it arose."""
    if isinstance(error, NotImplementedError):
        return "is not written yet (it raises NotImplementedError)"
    if isinstance(error, SystemExit):
        return "called exit(): it must return a value"
    lines = traceback.extract_tb(error.__traceback__)
    own = [f for f in lines if not any(x in f.filename for x in ("<", "-packages", __file__))]
    at = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    text = " ".join(str(error).split())[:300]
    return f"raised {type(error).__name__}{': ' * bool(text)}{text}{at}"


def _functions(student, adapters):
    """Name -> object of the student's file, overlaid with those of the adapters file.

    The adapters find the student's file as `student`, whatever its name is.
    """
    sys.path.insert(0, str(student.parent))
    module = _imported("student", student)
    if adapters is None:
        return vars(module)
    return vars(module) | vars(_imported("adapters", Path(adapters)))


def _imported(name, path):
    loader = importlib.machinery.SourceFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def _limit(what, most):
    """Set a resource limit where there is one: not on Windows, not all on macOS."""
    try:
        import resource

        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{what}"))
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, hard))
    except (ImportError, ValueError, OSError):
        pass


def _print_to(path):
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8", closefd=False)


def _write(path, outcome):
    part = path.with_suffix(".part")
    part.write_text(json.dumps(outcome), encoding="utf-8")
    os.replace(part, path)


def _end_like(status):
    """End as the child did, so that grade.py sees how."""
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL:  # which nobody can handle
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
