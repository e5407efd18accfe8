"""Inside: the process that runs a student's functions, each job in a copy of itself.

It reads jobs from standard input and writes what came of them to standard output. For a job it
forks; the copy gives up what it could do harm with, imports the student's file, calls one function,
and sends plain numbers back through a pipe. Whatever the copy has started is ended before the next
job. There is no right answer in here and no numpygpt, so that nothing found, patched or printed in
here earns points.

What the copy gives up is asked of the operating system where it has a way (another user, limits),
and else of Python's audit hooks, which see every file, process and connection that Python code
opens. They are a fence, not a jail: code that corrupts the interpreter's memory gets over it. Where
students are not trusted, grade in a container.
"""

import base64
import builtins
import hashlib
import json
import math
import os
import pickle
import select
import signal
import sys
import time
import traceback
import types

import numpy as np

# Where fork is safe, each job runs in a copy of this process; elsewhere the process is started anew
# for each. (macOS has fork, but its BLAS does not survive one.)
FORK = sys.platform == "linux"
NOBODY = 65534
FILE_LIMIT = 2**24  # bytes of each file that is written
PRINTED = 200  # characters that are shown of what is printed

# Names of audit events (sys.audit), by what the sheet calls them.
FORBIDDEN = {
    "start another process": (
        "os.exec os.fork os.forkpty os.posix_spawn os.spawn os.startfile os.system pty.spawn"
        " subprocess.Popen _posixsubprocess.fork_exec"
    ),
    "send a signal": "os.kill os.killpg signal.pthread_kill",
    "use the network": "socket.",
    "reach into memory": "ctypes. mmap.__new__",
    "change files": (
        "os.chmod os.chown os.link os.mkdir os.remove os.rename os.rmdir os.symlink os.truncate"
        " os.utime shutil. tempfile.mkdtemp"
    ),
    "change the process": "os.putenv os.unsetenv os.chroot",
}
MODULES = ("numpygpt", "torch", "tensorflow", "jax", "transformers", "ctypes", "_posixsubprocess")


# ---- one job after the other ---------------------------------------------------------------------


def main():
    """Answer jobs from standard input, one after the other, until there are no more."""
    settings = pickle.loads(_receive(0))
    if FORK:
        _adopt_orphans()
    while (message := _receive(0)) is not None:
        job = pickle.loads(message)
        outcome = _in_a_copy(settings, job) if FORK else _here(settings, job)
        _send(1, json.dumps(outcome).encode())


def _receive(descriptor):
    """The next message, its length in 8 bytes before it, or None where there are no more."""
    head = _read(descriptor, 8)
    return _read(descriptor, int.from_bytes(head, "little")) if len(head) == 8 else None


def _read(descriptor, count):
    data = b""
    while len(data) < count and (piece := os.read(descriptor, min(count - len(data), 2**20))):
        data += piece
    return data


def _send(descriptor, data):
    view = memoryview(len(data).to_bytes(8, "little") + data)
    while view:
        view = view[os.write(descriptor, view) :]


def _adopt_orphans():
    """Processes whose parent ends become children of this one, which can then end them."""
    import ctypes

    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _in_a_copy(settings, job):
    result, result_in = os.pipe()
    printed, printed_in = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.dup2(printed_in, 1)
            os.dup2(printed_in, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(result_in, 3)
            os.closerange(4, 256)
            _work(settings, job, lambda data: _send(3, data))
        finally:
            os._exit(1)
    os.close(result_in)
    os.close(printed_in)
    data, text, late = _listen(result, printed, job["wait"], job["bytes"])
    os.kill(child, signal.SIGKILL) if late or len(data) > job["bytes"] else None
    status = _end_all(child)
    os.close(result)
    os.close(printed)
    outcome = {"printed": " ".join(text.decode("utf-8", "replace").split())[:PRINTED]}
    if late:
        return outcome | {"error": f"did not end within {job['wait']:g} s: an endless loop?"}
    if len(data) > job["bytes"]:
        most = job["bytes"] // 2**20
        return outcome | {"error": f"returned more than {most} MiB: is an axis too long?"}
    length = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if length != len(data) - 8:  # killed, or ended by itself, before or while it answered
        return outcome | {"error": _death(status)}
    return outcome | {"result": data[8:].decode("utf-8", "replace")}


def _listen(result, printed, seconds, most):
    """What comes out of the two pipes until the message in the first is whole, the pipe is closed,
    time is up, or it is too much. (What the copy started may hold the pipe open for long.)"""
    data, text, end = b"", b"", time.monotonic() + seconds
    open_ = {result, printed}
    while result in open_ and len(data) <= most and not _whole(data):
        left = end - time.monotonic()
        ready, _, _ = select.select(list(open_), [], [], max(0, left))
        if not ready:
            return data, text, True
        for pipe in ready:
            piece = os.read(pipe, 2**16)
            if not piece:
                open_.discard(pipe)
            elif pipe == result:
                data += piece
            else:
                text = (text + piece)[: 4 * PRINTED]
    return data, text, False


def _whole(data):
    return len(data) >= 8 and len(data) - 8 >= int.from_bytes(data[:8], "little")


def _end_all(child):
    """End the copy and all that it started, and return how the copy ended."""
    status, end = None, time.monotonic() + 5
    while (left := _children()) and time.monotonic() < end:
        for pid in left - {child}:
            _kill(pid)
        if child in left and status is None:
            for _ in range(200):  # it has answered and is about to exit: let it
                done, status_now = os.waitpid(child, os.WNOHANG)
                if done:
                    status = status_now
                    break
                time.sleep(0.005)
            else:
                _kill(child)
        for pid in left:
            try:
                done, status_now = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if done == child:
                status = status_now
        time.sleep(0.001)
    return status or 0


def _kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _children():
    """The numbers of this process's children, orphans that it adopted among them."""
    me, found = os.getpid(), set()
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == me:
                        found.add(int(name))
            except OSError:
                pass
    return found


def _death(status):
    if os.WIFEXITED(status):
        return (
            f"ended the whole process with status {os.WEXITSTATUS(status)}: it must return a value"
        )
    number = os.WTERMSIG(status)
    if number == signal.SIGXCPU:
        return "computed for too long: an endless loop?"
    killed = ": out of memory?" if number == signal.SIGKILL else ""
    return f"crashed the process ({signal.strsignal(number)}){killed}"


def _here(settings, job):
    """Where there is no fork: in this process, which ends after it."""
    answer = []
    _work(settings, job, answer.append)
    return {"printed": "", "result": answer[0].decode()}


# ---- the job -------------------------------------------------------------------------------------


def _work(settings, job, answer):
    """Import the student's files, call one function, and answer with what it returned as JSON."""
    tried = []
    _give_up(settings, job, tried)
    try:
        functions = _functions(settings["student"], settings["adapters"])
    except BaseException as error:  # a SystemExit, too, is a file that cannot be imported
        outcome = {"import_error": describe(error)}
    else:
        _limit("CPU", math.ceil(time.process_time() + job["seconds"]))
        outcome = {} if job["name"] is None else call(functions.get(job["name"]), job["cases"])
    answer(json.dumps(outcome | {"tried": sorted(set(tried))[:5]}).encode())
    if FORK:
        os._exit(0)


def _give_up(settings, job, tried):
    """Limits first, then the user's rights, then what Python alone can watch."""
    _limit("CPU", math.ceil(job["wait"]))
    _limit("AS", settings["memory"] * 2**20)
    _limit("FSIZE", FILE_LIMIT)
    _limit("NOFILE", 64)
    _limit("CORE", 0)
    os.chdir(settings["work"])
    if settings["user"]:
        _limit("NPROC", 64)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    sys.path[:] = [p for p in sys.path if p] + [settings["work"]]
    sys.addaudithook(_watch(settings, tried))


def _limit(what, most):
    """Set a resource limit where there is one: not on Windows, not all on macOS."""
    try:
        import resource

        which = getattr(resource, f"RLIMIT_{what}")
        _, hard = resource.getrlimit(which)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(which, (most, hard if what == "CPU" else most))
    except (ImportError, AttributeError, ValueError, OSError):
        pass


def _watch(settings, tried):
    """An audit hook that refuses what a function of GPT-2 does not need, and notes the attempt."""
    exact = {e: what for what, events in FORBIDDEN.items() for e in events.split() if e[-1] != "."}
    begins = {e: what for what, events in FORBIDDEN.items() for e in events.split() if e[-1] == "."}
    readable, work = tuple(settings["readable"]), settings["work"] + os.sep
    realpath, fspath, fsdecode = os.path.realpath, os.fspath, os.fsdecode
    writing = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC

    def refuse(what):
        tried.append(what)
        raise PermissionError(f"a submission must not {what}")

    def watch(event, arguments):
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or path is None:
                return
            whole = realpath(fsdecode(fspath(path)))
            if flags & writing and not whole.startswith(work):
                refuse(f"write the file {whole}")
            if not whole.startswith((work, *readable)) or "-packages" in _below(whole, readable):
                refuse(f"read the file {whole}")
        elif event in ("os.listdir", "os.scandir"):
            whole = realpath(fsdecode(fspath(arguments[0] or ".")))
            if not (whole + os.sep).startswith((work, *readable)):
                refuse(f"list the folder {whole}")
        elif event == "import":
            if arguments[0].partition(".")[0] in MODULES:
                refuse(f"import {arguments[0].partition('.')[0]}")
        elif event in exact:
            refuse(exact[event])
        else:
            for beginning, what in begins.items():
                if event.startswith(beginning):
                    refuse(what)

    return watch


def _below(whole, readable):
    """The part of a path below the longest of the readable folders that it lies in."""
    inside = [folder for folder in readable if whole.startswith(folder)]
    return whole[len(max(inside, key=len)) :] if inside else ""


def _functions(student, adapters):
    """Name -> object of the student's file, overlaid with those of the adapters file.

    The adapters find the student's file as `student`, whatever its name is.
    """
    builtins.exit = builtins.quit = sys.exit  # which Python has only where `site` is imported
    module = _imported("student", *student)
    if adapters is None:
        return vars(module)
    return vars(module) | vars(_imported("adapters", *adapters))


def _imported(name, path, source):
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(builtins.compile(source, path, "exec"), vars(module))
    return module


def call(function, cases) -> dict:
    """For each tuple of arguments what a function returns, with fingerprints of the arguments as
    they are afterwards, or the error it raises."""
    outcome = {"cases": []}
    if not callable(function):
        return outcome | {"error": "is not defined" if function is None else "is not a function"}
    for arguments in cases:
        try:
            parts = {label: _packed(value) for label, value in flatten(function(*arguments))}
        except BaseException as error:
            outcome["cases"].append({"error": describe(error)})
            continue
        after = [fingerprint(argument) for argument in arguments]
        outcome["cases"].append({"parts": parts, "arguments": after})
    return outcome


def flatten(value, label: str = ""):
    """(label, array or str) of everything in tuples and dicts: "0", "0.wte.weight", "1", ..."""
    inside = None
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, tuple | list):  # of arrays; one of numbers is an array itself
        arrays = (np.ndarray, dict) if isinstance(value, list) else (np.ndarray, dict, list, str)
        inside = enumerate(value) if any(isinstance(v, arrays) for v in value) else None
    if inside is None:
        yield label, value if isinstance(value, str) else np.asarray(value)
        return
    for key, part in inside:
        yield from flatten(part, f"{label}.{key}".removeprefix("."))


def _packed(value):
    """As JSON: a text, or [dtype, shape, bytes in base64]."""
    if isinstance(value, str):
        return value
    if value.dtype.kind == "c":
        raise TypeError(
            "it returned complex numbers: what should be real came out of a root or log"
        )
    if value.dtype.kind not in "fiub":
        found = {"S": "bytes", "U": "texts"}.get(value.dtype.kind, "objects")
        if value.shape == ():
            found = type(value.item()).__name__
        what = "nothing (None)" if found == "NoneType" else f"no numbers but {found}"
        raise TypeError(f"it returned {what}: is a return statement missing or wrong?")
    return [value.dtype.str, value.shape, base64.b64encode(value.tobytes()).decode()]


def unpacked(part):
    """The text or array again. Raises ValueError, TypeError or MemoryError for anything else."""
    if isinstance(part, str):
        return part
    dtype, shape, data = part
    if np.dtype(dtype).kind not in "fiub":
        raise ValueError(f"the dtype {dtype} does not hold numbers")
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)


def fingerprint(argument) -> str:
    """sha256 of an argument's numbers, shapes and dtypes."""
    digest = hashlib.sha256()
    for label, value in flatten(argument):
        if isinstance(value, str):
            digest.update(f"{label} {value}".encode())
        else:
            digest.update(f"{label} {value.dtype.str} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def describe(error: BaseException) -> str:
    """One sentence on an exception, with the student's line in which it arose."""
    if isinstance(error, NotImplementedError):
        return "is not written yet (it raises NotImplementedError)"
    if isinstance(error, SystemExit):
        return "called exit(): it must return a value"
    places = [(f.f_code.co_filename, line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = [place for place in places if os.sep not in place[0] and place[0][:1] != "<"]
    at = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    text = " ".join(str(error).split())[:300]
    return f"raised {type(error).__name__}{': ' * bool(text)}{text}{at}"


if __name__ == "__main__":
    main()
