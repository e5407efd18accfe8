"""Where the files are, and what a download leaves beside them.

    weights/124M/model.ckpt.index               whole and checked: only a rename gives this name
    weights/124M/model.ckpt.data-….part         what has arrived; the next run goes on from there
    weights/124M/model.ckpt.data-….part.json    the memo: of which address and version those are
    weights/124M/downloaded.json                what was checked, so that it is not checked again
    weights/124M/.lock                          held while a download runs; a dead one holds nothing

Every step can be cut off at any byte: the next run finds either the state before it or after it.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from pathlib import Path

from numpygpt.files import atomic
from numpygpt.files.download.facts import (
    DATA,
    HUGGING_FACE_FILES,
    INDEX,
    OFFERS,
    known,
    official_name,
)


class DownloadError(OSError):
    """A file could not be fetched, or what is there is not the official file."""


# ---- models on this machine ----------------------------------------------------------------------


def weights_folder() -> Path:
    """$NUMPYGPT_WEIGHTS, else `weights/` of the clone this file is in, else the user's cache."""
    if os.environ.get("NUMPYGPT_WEIGHTS"):
        return Path(os.environ["NUMPYGPT_WEIGHTS"])
    clone = Path(__file__).resolve().parents[3]
    if (clone / "setup.cfg").is_file() and (clone / "weights").is_dir():
        return clone / "weights"
    return _user_cache() / "numpygpt"


def _user_cache():
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


# What a model cannot be loaded without; the vocabulary ships with the package.
NEEDED = ("config.json", "model.safetensors", "hparams.json", INDEX, DATA)


def find(name: str) -> Path | None:
    """A folder with this model on this machine: downloaded, placed by hand, or Hugging Face's."""
    name = official_name(name)
    for offer in OFFERS.get(name, {}).values():
        needed = [file.name for file in offer if file.name in NEEDED] or [f.name for f in offer]
        for folder in (weights_folder() / name, *_hugging_face_snapshots(name)):
            if all((folder / file).is_file() for file in needed):
                return folder
    return None


def _hugging_face_snapshots(name):
    """Folders of Hugging Face's own cache that may hold the model, the best first."""
    if name not in HUGGING_FACE_FILES:
        return []
    repository, revision, _ = HUGGING_FACE_FILES[name]
    bare = repository.split("/")[1]  # as older versions called it
    return [
        folder
        for spelled in (repository, bare)
        if (folder := cached_snapshot(cached_repository(spelled), revision)) is not None
    ]


def cached_repository(repository: str) -> Path:
    """The folder of "organisation/name" in Hugging Face's cache, wherever that has been put.

    $HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else `hub` in $HF_HOME, else in `huggingface` in
    $XDG_CACHE_HOME, else in ~/.cache; with ~ and $VARIABLES in them.
    Source: huggingface_hub, `constants.py`.
    """

    def place(name, default):
        return Path(os.path.expandvars(os.path.expanduser(os.environ.get(name) or default)))

    home = place("HF_HOME", place("XDG_CACHE_HOME", "~/.cache") / "huggingface")
    cache = place("HF_HUB_CACHE", place("HUGGINGFACE_HUB_CACHE", home / "hub"))
    return cache / f"models--{repository.replace('/', '--')}"


def cached_snapshot(folder: Path, revision: str = "") -> Path | None:
    """Which of a cached repository's snapshots is meant, or None.

    The one that refs/main names, else the `revision`, else the only one.
    """
    snapshots = folder / "snapshots"
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        main = ""
    for name in (main, revision):
        if re.fullmatch(r"[\w-]+", name) and (snapshots / name).is_dir():
            return snapshots / name
    found = sorted(snapshots.iterdir()) if snapshots.is_dir() else []
    return found[0] if len(found) == 1 and not main else None


def by_hand(name: str, folder: str | os.PathLike | None = None) -> str:
    """One line for whoever fetches the files in another way: which ones, from where, into what."""
    name = known(name)
    ways = []
    for files in OFFERS[name].values():
        addresses = {file.url.removesuffix(file.name) for file in files}
        if len(addresses) == 1:
            ways.append(f"{', '.join(f.name for f in files)} from {addresses.pop()}")
        else:
            ways.append(", ".join(f"{file.url} as {file.name}" for file in files))
    folder = weights_folder() / name if folder is None else folder
    return (
        "From a mirror: --mirror URL takes the place of https://HOST in every address. "
        f"By hand: put {'; or '.join(ways)} into {folder}, then run "
        f"`numpygpt download {name}` again, which checks them."
    )


# ---- in the folder of a model --------------------------------------------------------------------


def part(folder, file):
    """Where the bytes of a file go until all of them are here."""
    return folder / f"{file.name}.part"


def memo_path(part):
    """Where the memo on a part is kept: what was announced of its bytes."""
    return part.with_name(f"{part.name}.json")


def memo(part, file):
    """What was announced of the bytes in the part; nothing if they are of another address."""
    announced = read_json(memo_path(part))
    return announced if announced.get("url") == file.url else {}


def discard(part):
    """Throw the bytes of a part away, and its memo."""
    part.unlink(missing_ok=True)
    memo_path(part).unlink(missing_ok=True)


def kept(part) -> str:
    """What a message about a failure says of the bytes that arrived before it."""
    if not size(part):
        return "nothing has arrived yet"
    return f"the {size(part):,} bytes that arrived are kept, and the next run goes on from there"


def size(path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def bytes_here(folder, files) -> int:
    """Bytes of these files that are in the folder, whole or in part."""
    return sum(size(folder / file.name) + size(part(folder, file)) for file in files)


RECORD = "downloaded.json"


def is_recorded(folder, file):
    """Was this very file checked, against the same facts, and not touched since?"""
    entry = read_json(folder / RECORD).get(file.name)
    try:
        return entry is not None and entry["facts"] == _facts(folder / file.name, file)
    except (OSError, TypeError, KeyError):
        return False


def record(folder, file, checked):
    """Note that a file was checked, and by what, so that it need not be checked again."""
    entry = {"checked": checked, "from": file.url, "facts": _facts(folder / file.name, file)}
    entries = read_json(folder / RECORD)
    write_json(folder / RECORD, {**entries, file.name: entry})
    discard(part(folder, file))  # left from before the file was placed by hand


def verdict(folder: str | os.PathLike) -> str:
    """What the files in a folder were checked by, in words."""
    entries = [e for e in read_json(Path(folder) / RECORD).values() if isinstance(e, dict)]
    published = [e for e in entries if isinstance(e.get("facts"), list) and any(e["facts"][2:])]
    if entries and len(published) == len(entries):
        return "whole and checked"
    if not published:
        return "whole; nothing was published to check it by"
    return f"whole; {len(published)} of {len(entries)} files were published with something to check"


def _facts(path, file):
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, file.size, file.digest]


def read_json(path) -> dict:
    """{} for what is missing or damaged: then it is found out anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def write_json(path, data):
    """Replace a JSON file of the folder whole; a link in its place is not followed."""
    if path.is_symlink():
        path.unlink()
    with atomic.writing(path) as file:
        json.dump(data, file, indent=1)


# ---- the disk ------------------------------------------------------------------------------------


def check_space(folder, needed):
    """Raises DownloadError where the disk does not have that many bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} needs {needed:,} more bytes, but the disk has {free:,} free: make room, or "
            "name another folder"
        )


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: FAT32 ends at 4 GB
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def writing(folder):
    """A full disk or a forbidden folder as a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*FULL, *FORBIDDEN):
            raise
        what = "make room, then run this again" if error.errno in FULL else "name another folder"
        raise DownloadError(
            f"cannot write to {folder} ({error.strerror}): {what}; what has arrived is kept"
        ) from None


@contextlib.contextmanager
def locked(folder):
    """One download per folder."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(atomic.locked(folder))
        except BlockingIOError:
            raise DownloadError(
                f"another process is downloading into {folder}: wait for it, or stop it"
            ) from None
        yield
