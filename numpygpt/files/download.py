"""The official files: where they are, how large, which sha256, fetched so that a half file is never
mistaken for a whole one.

    weights/124M/model.ckpt.index               whole and checked: only a rename gives this name
    weights/124M/model.ckpt.data-….part         what has arrived; the next run goes on from there
    weights/124M/model.ckpt.data-….part.json    of which address and which version those bytes are
    weights/124M/downloaded.json                what was checked, so that it is not checked again
    weights/124M/.lock                          held while a download runs; a dead one holds nothing

Every step can be cut off at any byte: the next run finds either the state before it or after it.
Sources: RFC 9110 (Range, If-Range, Retry-After); github.com/openai/gpt-2, `download_model.py`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numpygpt.files import atomic


class DownloadError(OSError):
    """A file could not be fetched, or what is there is not the official file."""


class Unavailable(DownloadError):
    """This source does not give the file; another one may."""


# ---- the facts -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file as published: its address, bytes and "sha256:…" or "md5:…"; None: nobody says.

    login: the name and password in a mirror's address. They are no part of `url`, which is printed
    and stored.
    """

    name: str
    url: str
    size: int | None = None
    digest: str | None = None
    login: tuple[str, str] | None = dataclasses.field(default=None, repr=False)


ALIASES = {"gpt2": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}

VOCAB = (1_042_301, "sha256:196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783")
MERGES = (456_318, "sha256:1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")
CONFIG = (665, "sha256:0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4")
WEIGHTS = (548_105_171, "sha256:248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707")
XL_CONFIG = (None, "sha256:be48115d52314bc27327e160bf10197760db02ea689d10adb24db4102edf7a8a")
XL_WEIGHTS = (None, "sha256:0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a")

# The address is in openai/gpt-2 download_model.py, the sizes are in rasbt/LLMs-from-scratch ch05,
# the hashes of the vocabulary in openai/tiktoken openai_public.py; the MD5 is the Content-MD5 that
# the bucket sent to others. Data files are 4 bytes per parameter and nothing else.
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2/models"
INDEX, DATA = "model.ckpt.index", "model.ckpt.data-00000-of-00001"
OPENAI_NAMES = ("checkpoint", "hparams.json", INDEX, "model.ckpt.meta", DATA)
OPENAI_FACTS = {
    "124M": ((77,), (90,), (5_215,), (471_155,),
             (497_759_232, "md5:f48b9cf1a525a603be52258f69bf9162")),
    "355M": ((77,), (91,), (10_399,), (926_519,), (1_419_292_672,)),
    "774M": ((), (), (), (), (3_096_120_320,)),
    "1558M": ((77,), (91,), (), (), (6_230_444_800,)),
}  # fmt: skip

# Repository, revision, and what lists of its files say. No list has the revision of distilgpt2.
HUGGING_FACE = "https://huggingface.co"
HUGGING_FACE_NAMES = ("config.json", "vocab.json", "merges.txt", "model.safetensors")
HUGGING_FACE_FILES = {
    "124M": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e",
             (CONFIG, VOCAB, MERGES, WEIGHTS)),
    "355M": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
             ((), (), (), ())),
    "774M": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519",
             ((), (), (), ())),
    "1558M": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2",
              (XL_CONFIG, (), (), XL_WEIGHTS)),
    "distilgpt2": ("distilbert/distilgpt2", "main", ((), (), (), ())),
}  # fmt: skip

# Single files at a commit, after which nothing there changes. Nobody published a hash of the last.
GITHUB = "https://raw.githubusercontent.com"
LLM_VIZ = f"{GITHUB}/bbycroft/llm-viz/9da93742382f1bf36c020c38a1ace454e82c4490/public"
EXPLAINER = f"{GITHUB}/poloclub/transformer-explainer/6e2ec372b1d7c73d3cf82704ec0b878522fc4085"
CHAR_RNN = f"{GITHUB}/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
RASBT = f"{GITHUB}/rasbt/LLMs-from-scratch/28c65cdfbc3338e2e040016eea4b7fdf556e4d57"
GITHUB_FILES = {
    "gpt-nano-sort": (
        File("gpt-nano-sort-t0-partials.json", f"{LLM_VIZ}/gpt-nano-sort-t0-partials.json", 247_846,
             "sha256:642b29b966fc4d90e4672a54c7cfda72b5249427b2b1561c83cd536b857195e9"),
        File("gpt-nano-sort-model.json", f"{LLM_VIZ}/gpt-nano-sort-model.json", 466_124,
             "sha256:a38d5f450e0c808305973c587cdd389ca4de92bbf60fa6a4482bf9a03f0a6051"),
    ),
    "published": (
        File("tinyshakespeare_input.txt", f"{CHAR_RNN}/data/tinyshakespeare/input.txt", 1_115_394,
             "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        File("the-verdict.txt", f"{RASBT}/ch02/01_main-chapter-code/the-verdict.txt", 20_479,
             "sha256:b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"),
        File("instruction-data.json", f"{RASBT}/ch07/01_main-chapter-code/instruction-data.json",
             203_524, "sha256:7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944"),
        *(File(f"ex{i}.js", f"{EXPLAINER}/src/constants/examples/ex{i}.js") for i in range(5)),
    ),
}  # fmt: skip


def _openai(size):
    # Small files first: what is wrong with a connection shows at once.
    names = ("encoder.json", "vocab.bpe", *OPENAI_NAMES)
    facts = (VOCAB, MERGES, *OPENAI_FACTS[size])
    return tuple(File(n, f"{OPENAI}/{size}/{n}", *f) for n, f in zip(names, facts, strict=True))


def _hugging_face(name):
    repository, revision, facts = HUGGING_FACE_FILES[name]
    address = f"{HUGGING_FACE}/{repository}/resolve/{revision}"
    pairs = zip(HUGGING_FACE_NAMES, facts, strict=True)
    return tuple(File(n, f"{address}/{n}", *f) for n, f in pairs)


OFFERS = {  # name -> source -> files
    **{n: {"openai": _openai(n), "huggingface": _hugging_face(n)} for n in OPENAI_FACTS},
    "distilgpt2": {"huggingface": _hugging_face("distilgpt2")},
    **{name: {"github": files} for name, files in GITHUB_FILES.items()},
}


# ---- where they are ------------------------------------------------------------------------------


def official_name(name: str) -> str | None:
    """The name of the folder: "1558M" for "gpt2-xl"; None where there is nothing to download."""
    name = ALIASES.get(name, name)
    return name if name in OFFERS else None


def weights_folder() -> Path:
    """$NUMPYGPT_WEIGHTS, else `weights/` of the clone this file is in, else the user's cache."""
    if os.environ.get("NUMPYGPT_WEIGHTS"):
        return Path(os.environ["NUMPYGPT_WEIGHTS"])
    clone = Path(__file__).resolve().parents[2]
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
    name = _known(name)
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


# ---- the download --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patience:
    """How long to wait (seconds), how often to try while nothing at all arrives, how often in all,
    and at least how many bytes a second, counted each minute, are worth waiting for."""

    tries: int = 4
    tries_in_all: int = 200
    least_speed: float = 500.0
    connect: float = 10.0
    read: float = 30.0
    longest_wait: float = 120.0
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic


PATIENCE = Patience()


def _ignore(*_):
    pass


def download(
    name: str,
    folder: str | os.PathLike | None = None,
    source: str = "any",
    *,
    offline: bool = False,
    mirror: str | None = None,
    trust_mirror: bool = False,
    progress: Callable[[str, int, int], None] = _ignore,
    say: Callable[[str], None] = _ignore,
    patience: Patience = PATIENCE,
) -> Path:
    """Fetch what is missing of a model, check it, and return its folder.

    `source` is "openai", "huggingface" or "any": the one of which more is already here, and the
    other if that does not answer. `offline` only checks what is there. `mirror` (or
    $NUMPYGPT_MIRROR) takes the place of "https://host" in every address; with `trust_mirror` the
    published sizes and hashes are not asked for, because it holds other files of the same names.
    $HF_ENDPOINT is a mirror of Hugging Face alone, and $HF_HUB_OFFLINE=1 is `offline`.
    `progress(file, bytes here, bytes in all)` is called as they arrive, `say` with each sentence.

    Raises ValueError for an unknown name or source, DownloadError for everything that goes wrong.
    """
    name = _known(name)
    folder = weights_folder() / name if folder is None else Path(folder)
    mirror = mirror or os.environ.get("NUMPYGPT_MIRROR") or None
    offers = _offers(name, source, mirror, trust_mirror)
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    for files in offers.values():
        if all(_is_recorded(folder, file) for file in files):
            return folder  # not even the lock is taken: the folder may be read-only
    with _writing(folder), _locked(folder):
        order = sorted(offers, key=lambda origin: -_bytes_here(folder, offers[origin]))
        faults = []
        for origin in order:
            try:
                _complete(folder, offers[origin], offline, progress, say, patience)
                return folder
            except Unavailable as fault:
                faults.append(str(fault))
                if origin != order[-1]:
                    say(f"{fault}. Trying {order[order.index(origin) + 1]}")
        raise DownloadError("; and ".join(faults))


def _known(name):
    if official_name(name) is None:
        raise ValueError(
            f"there is nothing to download under the name {name!r}: choose one of "
            f"{', '.join([*OFFERS, *ALIASES])}"
        )
    return official_name(name)


def _offers(name, source, mirror, trust_mirror):
    offers = OFFERS[name]
    if source != "any":
        if source not in offers:
            raise ValueError(f"{name} is not at {source!r}: choose any or {', '.join(offers)}")
        offers = {source: offers[source]}
    if mirror is None:
        if trust_mirror:
            raise ValueError(
                "trust_mirror needs a mirror: give its address, or set NUMPYGPT_MIRROR"
            )
        endpoint = os.environ.get("HF_ENDPOINT")  # Hugging Face's own word for a mirror of it
        if not endpoint:
            return offers
        return {
            origin: [
                _mirrored(file, endpoint, False) if file.url.startswith(HUGGING_FACE) else file
                for file in files
            ]
            for origin, files in offers.items()
        }
    return {
        origin: [_mirrored(file, mirror, trust_mirror) for file in files]
        for origin, files in offers.items()
    }


def _mirrored(file, mirror, trust):
    from urllib.parse import unquote

    login = None
    if secret := re.match(r"(\w[\w+.-]*://)([^/]*)@", mirror):
        name, _, password = secret[2].partition(":")
        login = unquote(name), unquote(password)
        mirror = secret[1] + mirror[secret.end() :]
    url = re.sub("^https://[^/]+", lambda _: mirror.rstrip("/"), file.url)
    file = dataclasses.replace(file, url=url, login=login)
    return dataclasses.replace(file, size=None, digest=None) if trust else file


def _complete(folder, files, offline, progress, say, patience):
    """All files of one source: those that are here are checked, the others fetched."""
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing and offline:
        raise Unavailable(
            f"{', '.join(file.name for file in missing)} not in {folder}, and offline is asked for "
            "(--offline or HF_HUB_OFFLINE)"
        )
    _check_space(folder, sum(f.size - _size(_part(folder, f)) for f in missing if f.size))
    if missing:
        say(_announcement(folder, missing))
    with _session() as session:
        for file in files:
            if _is_recorded(folder, file):
                continue
            if (folder / file.name).exists():
                checked = _check_present(folder / file.name, file)
            else:
                checked = _fetch(folder, file, session, progress, say, patience)
            if file.name == DATA:  # the index stands before it in the table
                checked += f"; {_check_bundle(folder)}"
            _record(folder, file, checked)
            say(f"{file.name}: {checked}")


def _announcement(folder, missing):
    known = sum(file.size or 0 for file in missing) / 1e6
    size = f"{known:,.1f} MB" if known else "of unpublished size"
    if known and not all(file.size for file in missing):
        size += " or more"
    host = missing[0].url.split("/")[2]
    names = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    return f"fetching {names}, {size}, from {host} into {folder}"


def _fetch(folder, file, session, progress, say, patience):
    """One file, with as many connections as it takes; -> what was checked."""
    part = _part(folder, file)
    for path in (part, _memo_path(part)):
        if path.is_symlink():  # somebody else's, who wants a file of ours elsewhere
            path.unlink()
    failures = damaged = tries = 0
    while True:
        tries += 1
        before = _size(part)
        try:
            if not before or before != (file.size or _memo(part, file).get("size")):
                _receive(part, file, session, progress, patience)
            checked = _check_part(part, file)
            break
        except _Again as fault:
            damaged += fault.damaged
            failures = 1 if _size(part) > before else failures + 1
            if tries >= patience.tries_in_all:
                raise Unavailable(f"{file.url} {fault} ({tries} times); {_kept(part)}") from None
            if failures >= patience.tries or damaged > 1:
                times = f"{max(failures, damaged)} times in a row"
                raise Unavailable(f"{file.url} {fault} ({times}); {_kept(part)}") from None
            wait = 2.0 ** (failures - 1) if fault.wait is None else fault.wait
            say(f"{file.name} {fault}; trying again in {wait:.0f} s")
            patience.sleep(wait)
    os.replace(part, folder / file.name)
    atomic.sync_folder(folder)
    _memo_path(part).unlink(missing_ok=True)
    return checked


class _Again(Exception):
    """Worth another try, after `wait` seconds if the server says so."""

    def __init__(self, fault, wait=None, damaged=False):
        super().__init__(fault)
        self.wait, self.damaged = wait, damaged


CHUNK = 16_384  # bytes; at most this much of what has arrived is lost when a connection breaks


def _session():
    import requests

    return requests.Session()


def _receive(part, file, session, progress, patience):
    """One connection: append what comes. Raises _Again if it ends early."""
    import requests

    headers, offset = _request(part, file)
    timeout = (patience.connect, patience.read)
    try:
        with session.get(
            file.url, headers=headers, stream=True, timeout=timeout, auth=file.login
        ) as response:
            _check_status(response, part, file, patience)
            if response.status_code == 206 and "Range" not in headers:
                _discard(part)
                raise _Again("sends a piece that was not asked for, so from the start")
            _check_kind(response, part, file)
            chunks = response.iter_content(CHUNK)
            first = next(chunks, b"")
            # Nothing is written before this: a login page must not cost what has arrived already.
            total = _check_answer(response, first, part, file, offset)
            chunks = _fast_enough(itertools.chain([first], chunks), part, file, patience)
            _save(response, chunks, part, file, offset, total, progress)
    except requests.RequestException as error:
        raise _fault(error, part, file) from None
    except (OSError, _Again):  # our own, and the disk's
        raise
    except Exception as error:  # whatever the libraries of the library raise at an answer
        raise Unavailable(f"{file.url} cannot be fetched ({_without_login(error)})") from None


def _without_login(error):
    """What a library says, without the names and passwords in the addresses it quotes."""
    return re.sub(r"//[^/\s]*@", "//", " ".join(str(error).split())) or type(error).__name__


def _fast_enough(chunks, part, file, patience):
    """The chunks; Unavailable where a minute brings next to nothing."""
    start, arrived = patience.clock(), 0
    for chunk in chunks:
        yield chunk
        arrived += len(chunk)
        if (passed := patience.clock() - start) >= 60:
            if arrived < patience.least_speed * passed:
                raise Unavailable(
                    f"{file.url} sends {arrived / passed:.0f} bytes a second, too few to wait for; "
                    f"{_kept(part)}"
                )
            start, arrived = patience.clock(), 0


def _fault(error, part, file):
    import requests

    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return _Again("stopped sending")
    if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
        return Unavailable(
            f"{file.url} has a certificate that does not hold: a proxy or a hotel's login page may "
            f"stand in between; {_kept(part)}"
        )
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.SSLError):
        return _Again(f"broke off after {_size(part):,} bytes")
    if isinstance(error, requests.ConnectionError):
        return _Again("cannot be reached (is there a network, or a firewall in between?)")
    return Unavailable(f"{file.url} cannot be fetched ({_without_login(error)})")


def _request(part, file):
    """-> headers, and how many bytes of the file we have and can go on from."""
    # Compressed on the way, neither the size nor the place to go on from would be the file's.
    headers = {"Accept-Encoding": "identity"}
    memo, offset = _memo(part, file), _size(part)
    validator = memo.get("validator")
    # Without a validator only a published hash can tell whether the two halves belong together.
    if not offset or not (validator or file.digest) or offset > (file.size or offset):
        return headers, 0
    headers["Range"] = f"bytes={offset}-"
    if validator:
        headers["If-Range"] = validator  # a changed file comes whole, from its beginning
    return headers, offset


def _check_status(response, part, file, patience):
    status = response.status_code
    if status in (200, 206):
        return
    if status == 416:
        _discard(part)
        raise _Again("is shorter than what we have of it (416): it has changed, so from the start")
    if status in (408, 425, 429) or status >= 500:
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > patience.longest_wait:
            raise Unavailable(
                f"{file.url} answers {status} and asks to come back in {wait:.0f} s: do so; "
                f"{_kept(part)}"
            )
        what = {408: "it took too long", 425: "too early", 429: "too many requests"}.get(status)
        what = what or "the server has a problem"
        raise _Again(f"answers {status}, {what}", wait)
    reason = {
        401: "a login is asked for",
        403: "forbidden, perhaps by a proxy or for your country",
        404: "not there; it may have moved",
        407: "the proxy asks for a login",
        410: "gone",
    }.get(status, "which is no answer to this question")
    raise Unavailable(f"{file.url} answers {status}: {reason}; {_kept(part)}")


def _retry_after(text):
    """Seconds, or a date; -> seconds from now, or None."""
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    import email.utils  # here, because it takes longer to import than all the rest

    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _check_kind(response, part, file):
    headers = response.headers
    hops = [hop.url for hop in (*response.history, response)]
    if hops[0].startswith("https:") and not all(hop.startswith("https:") for hop in hops):
        where = _without_login(hops[-1]).partition("?")[0]
        raise Unavailable(f"{file.url} leads to an unencrypted address, {where}: not followed")
    if headers.get("Content-Type", "").lower().startswith("text/html"):
        raise Unavailable(_page(part, file))
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Unavailable(f"{file.url} is sent compressed, though that was not asked for")


def _check_answer(response, first, part, file, offset):
    """Is it the file, and the piece of it that was asked for? -> the size of the whole file."""
    headers = response.headers
    if response.status_code == 200:
        _check_beginning(first, part, file)
    length = headers.get("Content-Length", "")
    total = int(length) if length.isdecimal() else None
    if response.status_code == 206:
        total = _check_piece(response, part, file, offset)
    total = total or _announced(response)["size"] or file.size
    if total is None:
        raise Unavailable(f"{file.url} does not say how long it is, so a cut would not show")
    if file.size is not None and total != file.size:
        raise Unavailable(
            f"{file.url} has {total:,} bytes, but the official file {file.size:,}: it is another "
            f"file; {_kept(part)}"
        )
    return total


def _check_piece(response, part, file, offset):
    """Does it go on where we stopped, in the same version? -> the size of the whole file."""
    memo, validator = _memo(part, file), _announced(response)["validator"]
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != offset:
        _discard(part)
        raise _Again("sends another piece than was asked for, so from the start")
    total = int(match[2])
    known = memo.get("validator")
    if total != memo.get("size", total) or (validator and known and validator != known):
        _discard(part)
        raise _Again("has changed since its first half arrived, so from the start")
    return total


def _page(part, file):
    return (
        f"{file.url} is answered with a web page: a proxy or a hotel's login page stands in "
        f"between, so open a page in the browser first; {_kept(part)}"
    )


def _save(response, chunks, part, file, offset, total, progress):
    whole = response.status_code == 200
    here = 0 if whole else offset
    _check_space(part.parent, total - _size(part))
    with open(part, "wb" if whole else "ab", buffering=0, opener=_never_through_a_link) as out:
        if whole:
            # In this order: the old bytes are gone before the memo speaks of a new version.
            os.fsync(out.fileno())
            announced = {**_announced(response), "size": total}
            _write_json(_memo_path(part), {"url": file.url, **announced})
        progress(file.name, here, total)
        for chunk in chunks:
            if here + len(chunk) > total:
                out.truncate(0)
                raise Unavailable(f"{file.url} sends more than the {total:,} bytes it speaks of")
            _write(out, chunk)
            here += len(chunk)
            progress(file.name, here, total)
        os.fsync(out.fileno())
    if here < total:
        raise _Again(f"broke off after {here:,} of {total:,} bytes")
    if _size(part) != total:
        _discard(part)
        raise _Again(f"left another size than its {total:,} bytes, so from the start")


def _never_through_a_link(path, flags):
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _check_beginning(chunk, part, file):
    if chunk.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Unavailable(_page(part, file))
    if chunk.startswith(b"version https://git-lfs"):
        raise Unavailable(f"{file.url} is a Git LFS pointer, not the file itself; {_kept(part)}")


def _announced(response):
    """What the server says of the whole file: its version, and checksums where it sends any."""
    headers = response.headers
    tag = headers.get("ETag", "")
    if tag.startswith("W/"):  # weak: about the same, which is not enough to glue halves together
        tag = ""
    # Content-MD5 is of the body, thus of the file only if the body is all of it. Azure names that
    # of the file apart. Hugging Face sends size and sha256 along before it redirects.
    md5 = headers.get("x-ms-blob-content-md5")
    if response.status_code == 200:
        md5 = md5 or headers.get("Content-MD5")
    linked = [hop.headers for hop in response.history if "X-Linked-Size" in hop.headers]
    size = linked[0]["X-Linked-Size"] if linked else ""
    sha256 = linked[0].get("X-Linked-ETag", "").strip('"') if linked else ""
    return {
        "validator": tag or headers.get("Last-Modified"),
        "size": int(size) if size.isdecimal() else None,
        "md5": md5,
        "sha256": sha256 if re.fullmatch("[0-9a-f]{64}", sha256) else None,
    }


# ---- the checks ----------------------------------------------------------------------------------


def _check_part(part, file):
    """All bytes are here: are they the right ones? -> what was checked. Raises _Again if not."""
    memo = _memo(part, file)
    tests = {}  # (algorithm, what it should give) -> who says so
    if memo.get("md5"):
        tests["md5", _hex(memo["md5"])] = "as the server sends it"
    if memo.get("sha256"):
        tests["sha256", memo["sha256"]] = "as the server sends it"
    if file.digest:
        tests[tuple(file.digest.split(":"))] = "as published"
    for (algorithm, expected), words in tests.items():
        if _digest(part, algorithm) != expected:
            _discard(part)
            fault = f"came with another {algorithm} than {words[3:]}: damaged or not the official "
            raise _Again(f"{fault}file, so it is thrown away", damaged=True)
    hashes = [f"{algorithm} {words}" for (algorithm, _), words in tests.items()]
    size = "size as published" if file.size else "size as announced"
    return ", ".join([size, *(hashes or ["no hash published or sent"])])


def _hex(base64_text):
    import base64

    try:
        return base64.b64decode(base64_text, validate=True).hex()
    except ValueError:
        return "no base64"


def _check_present(path, file):
    """A file without a record, placed by hand for instance. It is never overwritten."""
    size = path.stat().st_size
    checked = []
    if file.size is not None:
        if size != file.size:
            raise DownloadError(
                f"{path} has {size:,} bytes, but the official file {file.size:,}: move it away or "
                "delete it, then run this again"
            )
        checked.append("size as published")
    if file.digest:
        algorithm, expected = file.digest.split(":")
        if _digest(path, algorithm) != expected:
            raise DownloadError(
                f"{path} has not the published {algorithm}: it is damaged or another file; move it "
                "away or delete it, then run this again"
            )
        checked.append(f"{algorithm} as published")
    return "was here, " + (", ".join(checked) or "nothing is published to check it by")


def _check_bundle(folder):
    """The CRC-32C of every tensor, which TensorFlow wrote into the index."""
    from numpygpt.formats import CheckpointError, tensorflow

    try:
        return f"CRC-32C of all {len(tensorflow.read(folder))} tensors"
    except CheckpointError as error:
        raise DownloadError(str(error)) from None


def _digest(path, algorithm):
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _check_space(folder, needed):
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"{folder} needs {needed:,} more bytes, but the disk has {free:,} free: make room, or "
            "name another folder"
        )


# ---- files and locks -----------------------------------------------------------------------------


def _part(folder, file):
    return folder / f"{file.name}.part"


def _memo_path(part):
    return part.with_name(f"{part.name}.json")


def _memo(part, file):
    """What was announced of the bytes in the part; nothing if they are of another address."""
    memo = _read_json(_memo_path(part))
    return memo if memo.get("url") == file.url else {}


def _discard(part):
    part.unlink(missing_ok=True)
    _memo_path(part).unlink(missing_ok=True)


def _kept(part):
    if not _size(part):
        return "nothing has arrived yet"
    return f"the {_size(part):,} bytes that arrived are kept, and the next run goes on from there"


def _size(path):
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _bytes_here(folder, files):
    return sum(_size(folder / file.name) + _size(_part(folder, file)) for file in files)


RECORD = "downloaded.json"


def _is_recorded(folder, file):
    """Was this very file checked, against the same facts, and not touched since?"""
    entry = _read_json(folder / RECORD).get(file.name)
    try:
        return entry is not None and entry["facts"] == _facts(folder / file.name, file)
    except (OSError, TypeError, KeyError):
        return False


def _record(folder, file, checked):
    entry = {"checked": checked, "from": file.url, "facts": _facts(folder / file.name, file)}
    record = _read_json(folder / RECORD)
    _write_json(folder / RECORD, {**record, file.name: entry})
    _discard(_part(folder, file))  # left from before the file was placed by hand


def verdict(folder: str | os.PathLike) -> str:
    """What the files in a folder were checked by, in words."""
    entries = [e for e in _read_json(Path(folder) / RECORD).values() if isinstance(e, dict)]
    published = [e for e in entries if isinstance(e.get("facts"), list) and any(e["facts"][2:])]
    if entries and len(published) == len(entries):
        return "whole and checked"
    if not published:
        return "whole; nothing was published to check it by"
    return f"whole; {len(published)} of {len(entries)} files were published with something to check"


def _facts(path, file):
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, file.size, file.digest]


def _read_json(path):
    """{} for what is missing or damaged: then it is found out anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _write_json(path, data):
    if path.is_symlink():  # planted: it is to be a file of this folder
        path.unlink()
    with atomic.writing(path) as file:
        json.dump(data, file, indent=1)


def _write(out, chunk):
    view = memoryview(chunk)
    while view:  # an unbuffered write may take only a piece
        view = view[out.write(view) :]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: FAT32 ends at 4 GB
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def _writing(folder):
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
def _locked(folder):
    """One download per folder."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(atomic.locked(folder))
        except BlockingIOError:
            raise DownloadError(
                f"another process is downloading into {folder}: wait for it, or stop it"
            ) from None
        yield
