"""Writing a file so that whoever looks finds the old one or the whole new one, and one writer at a
time in a folder."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

if os.name == "nt":
    import msvcrt
else:
    import fcntl


@contextlib.contextmanager
def writing(path: str | os.PathLike, binary: bool = False):
    """A new file, open for writing, that takes the place of `path` when the block ends.

        with writing("results.json") as file:
            json.dump(results, file)

    Until then it has a name that no other process has thought of, beside `path`, as a rename is
    whole only within one file system. When the block fails (a full disk, Ctrl-C) the new file goes
    and the old one stays. What a killed process left behind is removed by the next one. Text is
    UTF-8 with newlines as they are. Raises OSError as opening and writing do, and ValueError for a
    path that is something other than a file, such as a folder or a device.
    """
    path = Path(os.path.realpath(path))  # a link goes on pointing to where it points
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a file: name a file to write to")
    _remove_abandoned(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(partial, flags, 0o666)  # O_EXCL: never through a link that lies there
    try:
        text = {} if binary else {"encoding": "utf-8", "newline": "\n"}
        with open(descriptor, "wb" if binary else "w", **text) as file:
            _lock(file)  # so that nobody takes it for abandoned
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError) and error.filename is None:  # of a full disk: which file's?
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def _remove_abandoned(path):
    """Unfinished files of this name whose writer is gone: a writer holds a lock while it lives."""
    for old in path.parent.glob(f".{_literal(path.name)}.*.part"):
        with contextlib.suppress(OSError):  # its writer lives, or another process was faster
            with open(old, "r+b") as file:
                _lock(file)
            os.remove(old)


def _literal(name):
    """A name as a pattern that matches itself alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


@contextlib.contextmanager
def locked(folder: str | os.PathLike):
    """Make the folder, and hold it for this process alone until the block ends.

    The system lets go of the lock when its process ends, however that happens. Raises
    BlockingIOError with a sentence when another process, or another block, holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
            try:
                _lock(file)
            except (BlockingIOError, PermissionError):
                raise BlockingIOError(
                    f"another run is writing in {folder}: wait for it, stop it, or name another "
                    "folder"
                ) from None
            if not _is_at(file, path):  # whoever held it has just removed it: lock the new one
                continue
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows keeps what is open
                    os.remove(path)
            return


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(file):
    if os.name == "nt":
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # let go of when the file is closed
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sync_folder(folder):
    """Make the new name survive a power cut. Windows cannot open a folder, and need not."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
