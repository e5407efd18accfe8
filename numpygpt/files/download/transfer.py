"""Fetching a file so that a half one is never mistaken for a whole one, and checking it.

Sources: RFC 9110 (Range, If-Range, Retry-After); github.com/openai/gpt-2, `download_model.py`.
"""

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from numpygpt.files import atomic
from numpygpt.files.download import facts, places
from numpygpt.files.download.places import DownloadError


class Unavailable(DownloadError):
    """This source does not give the file; another one may."""


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
    name = facts.known(name)
    folder = places.weights_folder() / name if folder is None else Path(folder)
    mirror = mirror or os.environ.get("NUMPYGPT_MIRROR") or None
    offers = facts.offers(name, source, mirror, trust_mirror)
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    for files in offers.values():
        if all(places.is_recorded(folder, file) for file in files):
            return folder  # not even the lock is taken: the folder may be read-only
    with places.writing(folder), places.locked(folder):
        order = sorted(offers, key=lambda origin: -places.bytes_here(folder, offers[origin]))
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


def _complete(folder, files, offline, progress, say, patience):
    """All files of one source: those that are here are checked, the others fetched."""
    missing = [file for file in files if not (folder / file.name).exists()]
    if missing and offline:
        raise Unavailable(
            f"{', '.join(file.name for file in missing)} not in {folder}, and offline is asked for "
            "(--offline or HF_HUB_OFFLINE)"
        )
    places.check_space(
        folder, sum(f.size - places.size(places.part(folder, f)) for f in missing if f.size)
    )
    if missing:
        say(_announcement(folder, missing))
    with _session() as session:
        for file in files:
            if places.is_recorded(folder, file):
                continue
            if (folder / file.name).exists():
                checked = _check_present(folder / file.name, file)
            else:
                checked = _fetch(folder, file, session, progress, say, patience)
            if file.name == facts.DATA:  # the index stands before it in the table
                checked += f"; {_check_bundle(folder)}"
            places.record(folder, file, checked)
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
    part = places.part(folder, file)
    for path in (part, places.memo_path(part)):
        if path.is_symlink():  # somebody else's, who wants a file of ours elsewhere
            path.unlink()
    failures = damaged = tries = 0
    while True:
        tries += 1
        before = places.size(part)
        try:
            if not before or before != (file.size or places.memo(part, file).get("size")):
                _receive(part, file, session, progress, patience)
            checked = _check_part(part, file)
            break
        except _Again as fault:
            damaged += fault.damaged
            failures = 1 if places.size(part) > before else failures + 1
            if tries >= patience.tries_in_all:
                raise Unavailable(
                    f"{file.url} {fault} ({tries} times); {places.kept(part)}"
                ) from None
            if failures >= patience.tries or damaged > 1:
                times = f"{max(failures, damaged)} times in a row"
                raise Unavailable(f"{file.url} {fault} ({times}); {places.kept(part)}") from None
            wait = 2.0 ** (failures - 1) if fault.wait is None else fault.wait
            say(f"{file.name} {fault}; trying again in {wait:.0f} s")
            patience.sleep(wait)
    os.replace(part, folder / file.name)
    atomic.sync_folder(folder)
    places.memo_path(part).unlink(missing_ok=True)
    return checked


# ---- one connection ------------------------------------------------------------------------------


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
                places.discard(part)
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
                    f"{places.kept(part)}"
                )
            start, arrived = patience.clock(), 0


def _fault(error, part, file):
    import requests

    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return _Again("stopped sending")
    if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
        return Unavailable(
            f"{file.url} has a certificate that does not hold: a proxy or a hotel's login page may "
            f"stand in between; {places.kept(part)}"
        )
    if isinstance(error, requests.exceptions.ChunkedEncodingError | requests.exceptions.SSLError):
        return _Again(f"broke off after {places.size(part):,} bytes")
    if isinstance(error, requests.ConnectionError):
        return _Again("cannot be reached (is there a network, or a firewall in between?)")
    return Unavailable(f"{file.url} cannot be fetched ({_without_login(error)})")


def _request(part, file):
    """-> headers, and how many bytes of the file we have and can go on from."""
    # Compressed on the way, neither the size nor the place to go on from would be the file's.
    headers = {"Accept-Encoding": "identity"}
    memo, offset = places.memo(part, file), places.size(part)
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
        places.discard(part)
        raise _Again("is shorter than what we have of it (416): it has changed, so from the start")
    if status in (408, 425, 429) or status >= 500:
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > patience.longest_wait:
            raise Unavailable(
                f"{file.url} answers {status} and asks to come back in {wait:.0f} s: do so; "
                f"{places.kept(part)}"
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
    }.get(status, "which does not answer the question")
    raise Unavailable(f"{file.url} answers {status}: {reason}; {places.kept(part)}")


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
            f"file; {places.kept(part)}"
        )
    return total


def _check_piece(response, part, file, offset):
    """Does it go on where we stopped, in the same version? -> the size of the whole file."""
    memo, validator = places.memo(part, file), _announced(response)["validator"]
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != offset:
        places.discard(part)
        raise _Again("sends a different piece from the one that was asked for, so from the start")
    total = int(match[2])
    known = memo.get("validator")
    if total != memo.get("size", total) or (validator and known and validator != known):
        places.discard(part)
        raise _Again("has changed since its first half arrived, so from the start")
    return total


def _page(part, file):
    return (
        f"{file.url} is answered with a web page: a proxy or a hotel's login page stands in "
        f"between, so open a page in the browser first; {places.kept(part)}"
    )


def _save(response, chunks, part, file, offset, total, progress):
    whole = response.status_code == 200
    here = 0 if whole else offset
    places.check_space(part.parent, total - places.size(part))
    with open(part, "wb" if whole else "ab", buffering=0, opener=_never_through_a_link) as out:
        if whole:
            # In this order: the old bytes are gone before the memo speaks of a new version.
            os.fsync(out.fileno())
            announced = {**_announced(response), "size": total}
            places.write_json(places.memo_path(part), {"url": file.url, **announced})
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
    if places.size(part) != total:
        places.discard(part)
        raise _Again(f"left another size than its {total:,} bytes, so from the start")


def _never_through_a_link(path, flags):
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _check_beginning(chunk, part, file):
    if chunk.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise Unavailable(_page(part, file))
    if chunk.startswith(b"version https://git-lfs"):
        raise Unavailable(
            f"{file.url} is a Git LFS pointer, not the file itself; {places.kept(part)}"
        )


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
    memo = places.memo(part, file)
    tests = {}  # (algorithm, what it should give) -> who says so
    if memo.get("md5"):
        tests["md5", _hex(memo["md5"])] = "as the server sends it"
    if memo.get("sha256"):
        tests["sha256", memo["sha256"]] = "as the server sends it"
    if file.digest:
        tests[tuple(file.digest.split(":"))] = "as published"
    for (algorithm, expected), words in tests.items():
        if _digest(part, algorithm) != expected:
            places.discard(part)
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
        return "not base64"


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
                f"{path} does not have the published {algorithm}: it is damaged or another file; "
                "move it away or delete it, then run this again"
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


def _write(out, chunk):
    view = memoryview(chunk)
    while view:  # an unbuffered write may take only a piece
        view = view[out.write(view) :]
