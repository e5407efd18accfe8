"""Downloads: a real HTTP server on loopback commits every fault, and the next run completes."""

import base64
import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from numpygpt import cli
from numpygpt.cli import main
from numpygpt.files import download
from numpygpt.files.download import DownloadError, File, Patience, facts, places, transfer

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[1]
DEAD = "http://127.0.0.1:9"  # nobody listens there: whoever contacts it fails
BIG = np.random.default_rng(5).bytes(100_003)
SMALL = b'{"n": 3}\n'


# ---- the server ----------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.files`; each fault in `server.faults` spoils one answer for a file."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        name = self.path.rsplit("/", 1)[1]
        server.log.append((name, dict(self.headers)))
        faults = server.faults.get(name, [])
        answer = faults.pop(0) if faults else good
        with contextlib.suppress(ConnectionError):
            if name in server.files:
                answer(self, server.files[name])
            else:
                status(404)(self, b"")
        self.close_connection = True


def head(handler, code, headers):
    handler.send_response(code)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.end_headers()


def tag(data):
    return f'"{hashlib.sha1(data).hexdigest()}"'


def good(handler, data, count=None, extra=(), pause=0.0):
    """An honest answer, Range and If-Range included; `count` bytes of it, then the end."""
    begin, headers = 0, {"ETag": tag(data), **dict(extra)}
    asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    if asked and handler.headers.get("If-Range", tag(data)) == tag(data):
        begin = int(asked[1])
        if begin >= len(data):
            return head(handler, 416, {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
    code = 206 if "Content-Range" in headers else 200
    head(handler, code, {"Content-Length": str(len(data) - begin), **headers})
    end = len(data) if count is None else begin + count
    for start in range(begin, end, 4096):
        handler.wfile.write(data[start : min(start + 4096, end)])
        time.sleep(pause)
    return None


def cut(count):
    return functools.partial(good, count=count)


def trickle(handler, data):
    good(handler, data, pause=0.01)


def stall(handler, data):
    good(handler, data, count=40_000)
    handler.server.awake.wait(5)


def status(code, **headers):
    def answer(handler, data):
        head(handler, code, {key.replace("_", "-"): text for key, text in headers.items()})
        handler.wfile.write(b"<html>no</html>")

    return answer


def body(data, code=200, **headers):
    """Whatever was asked for, this."""

    def answer(handler, _):
        fields = {key.replace("_", "-"): text for key, text in headers.items()}
        head(handler, code, {"Content-Length": str(len(data)), **fields})
        handler.wfile.write(data)

    return answer


def ignores_range(handler, data):
    body(data, ETag=tag(data))(handler, data)


def without_length(handler, data):
    head(handler, 200, {})
    handler.wfile.write(data)


def chunked(extra=b"", count=None, end=b"0\r\n\r\n"):
    def answer(handler, data):
        handler.protocol_version = "HTTP/1.1"
        head(handler, 200, {"Transfer-Encoding": "chunked"})
        data = data[:count] + extra
        for i in range(0, len(data), 5000):
            piece = data[i : i + 5000]
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        handler.wfile.write(end)

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NUMPYGPT_MIRROR", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files = {"big.bin": BIG, "small.json": SMALL}
        server.faults, server.log, server.awake = {}, [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.awake.set()
        server.shutdown()
        thread.join()


# ---- two small files in place of the official ones -----------------------------------------------


def file(name, data, **facts):
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    facts = {"size": len(data), "digest": digest, **facts}
    return File(name, f"https://somewhere.invalid/x/{name}", **facts)


@pytest.fixture
def offer(monkeypatch):
    """Replace what one name stands for; by default one model of two files."""

    def put(*files, name="gpt-nano-sort", **sources):
        sources = sources or {"github": files}
        monkeypatch.setitem(download.OFFERS, name, sources)

    put(file("small.json", SMALL), file("big.bin", BIG))
    return put


@pytest.fixture
def get(server, offer, tmp_path):
    """Run the download; -> what was said, and how long it waited between tries."""

    def run(name="gpt-nano-sort", **options):
        said, waits = [], []
        patience = Patience(3, connect=1, read=0.25, sleep=waits.append)
        options = {"folder": tmp_path, "mirror": server.url, **options}
        download.download(name, say=said.append, patience=patience, **options)
        return said, waits

    return run


def arrived(folder):
    return (folder / "big.bin.part").stat().st_size if (folder / "big.bin.part").exists() else 0


def assert_complete(folder):
    assert (folder / "big.bin").read_bytes() == BIG
    assert (folder / "small.json").read_bytes() == SMALL
    assert sorted(os.listdir(folder)) == ["big.bin", "downloaded.json", "small.json"]


def ranges(server):
    return [headers.get("Range") for name, headers in server.log if name == "big.bin"]


# ---- when all is well ----------------------------------------------------------------------------


def test_files_arrive_and_say_what_was_checked(get, tmp_path):
    said, waits = get()
    assert_complete(tmp_path)
    assert said[0].startswith("fetching 2 files, 0.1 MB, from 127.0.0.1:")
    assert said[1:] == [
        f"{n}: size as published, sha256 as published" for n in ("small.json", "big.bin")
    ]
    assert waits == []


def test_what_is_there_is_not_asked_for_again(get, server, tmp_path):
    get()
    count = len(server.log)
    assert get() == ([], [])
    get(mirror=DEAD)
    get(mirror=DEAD, offline=True)
    assert len(server.log) == count


def test_a_file_that_was_touched_is_checked_again(get, server, tmp_path):
    get()
    (tmp_path / "big.bin").write_bytes(BIG[:-1] + b"!")
    with pytest.raises(DownloadError, match="does not have the published sha256"):
        get()
    (tmp_path / "big.bin").unlink()
    get()
    assert_complete(tmp_path)
    assert [name for name, _ in server.log] == ["small.json", "big.bin", "big.bin"]


def test_progress_counts_every_byte(get, server):
    seen = []
    get(progress=lambda *event: seen.append(event))
    assert seen[0] == ("small.json", 0, len(SMALL))
    assert seen[-1] == ("big.bin", len(BIG), len(BIG))
    assert {headers["Accept-Encoding"] for _, headers in server.log} == {"identity"}
    big = [here for name, here, _ in seen if name == "big.bin"]
    assert big == sorted(big) and len(big) > 5


def test_files_placed_by_hand_are_checked_without_the_network(get, server, tmp_path):
    (tmp_path / "big.bin").write_bytes(BIG)
    (tmp_path / "small.json").write_bytes(SMALL)
    (tmp_path / "big.bin.part").write_bytes(BIG[:7])  # left from an earlier try
    said, _ = get(mirror=DEAD, offline=True)
    assert said[0] == "small.json: was here, size as published, sha256 as published"
    assert_complete(tmp_path)
    assert server.log == []


def test_a_wrong_file_is_named_and_not_overwritten(get, tmp_path):
    (tmp_path / "big.bin").write_bytes(b"my own work")
    with pytest.raises(DownloadError, match="has 11 bytes, but the official file 100,003"):
        get()
    assert (tmp_path / "big.bin").read_bytes() == b"my own work"


def test_offline_names_what_is_missing(get, server, tmp_path):
    with pytest.raises(DownloadError, match=r"small.json, big.bin not in .* offline"):
        get(offline=True)
    assert server.log == []


def test_the_mirror_can_stand_in_the_environment(get, server, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPYGPT_MIRROR", server.url + "/")
    get(mirror=None)
    assert_complete(tmp_path)


# ---- resuming ------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_arrived_and_the_next_run_asks_for_the_rest(get, server, tmp_path):
    def impatient(name, here, total):
        if here > 30_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get(progress=impatient)
    kept = arrived(tmp_path)
    assert 30_000 < kept < len(BIG)
    get()
    assert ranges(server) == [None, f"bytes={kept}-"]
    assert server.log[-1][1]["If-Range"] == tag(BIG)
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (cut(40_000), "broke off after"),
        (stall, "stopped sending"),
        (chunked(count=50_000, end=b""), "broke off after"),
        (chunked(count=50_000), "broke off after 50,000 of 100,003 bytes"),
        (status(503), "answers 503, the server has a problem"),
        (status(500), "answers 500"),
        (status(429), "answers 429, too many requests"),
        (status(408), "answers 408"),
    ],
)
def test_passing_faults_are_tried_again(get, server, tmp_path, fault, words):
    server.faults["big.bin"] = [fault, fault]
    said, waits = get()
    assert words in said[2] and "trying again in 1 s" in said[2]
    assert len(waits) == 2 and waits[0] == 1.0
    assert_complete(tmp_path)


def test_a_server_that_always_breaks_off_costs_nothing_but_time(get, server, tmp_path):
    server.faults["big.bin"] = [cut(20_000)] * 10  # more than the tries: each one brings more
    _, waits = get()
    assert set(waits) == {1.0} and 4 <= len(waits) <= 6
    assert len(set(ranges(server))) == len(ranges(server))
    assert_complete(tmp_path)


def unasked(begin, end):
    """A broken proxy: a piece that nobody asked for, whatever was asked for."""

    def answer(handler, data):
        piece = f"bytes {begin}-{end - 1}/{len(data)}"
        body(data[begin:end], 206, ETag=tag(data), Content_Range=piece)(handler, data)

    return answer


@pytest.mark.parametrize("begin, end", [(0, len(BIG)), (0, 50_000), (50_000, len(BIG))])
@pytest.mark.parametrize("stale", [b"", b"stale bytes" * 100])
def test_a_206_that_was_not_asked_for_starts_afresh(get, server, tmp_path, begin, end, stale):
    if stale:
        (tmp_path / "big.bin.part").write_bytes(stale)  # without a memo: nobody knows whose
    server.faults["big.bin"] = [unasked(begin, end)] * 2
    get()
    assert_complete(tmp_path)


def test_a_206_that_always_comes_unasked_ends_and_fills_nothing(get, server, offer, tmp_path):
    offer(file("big.bin", BIG, digest=None))
    server.faults["big.bin"] = [unasked(0, 50_000)] * 50
    with pytest.raises(DownloadError, match="a piece that was not asked for"):
        get()
    assert len(server.log) == 3 and arrived(tmp_path) == 0


def test_tries_are_bounded_in_all_and_a_trickle_is_given_up(get, server, tmp_path):
    server.faults["big.bin"] = [cut(17_000)] * 50
    patience = Patience(3, tries_in_all=4, sleep=lambda _: None)
    with pytest.raises(DownloadError, match=r"\(4 times\); the [\d,]+ bytes that arrived are kept"):
        download.download("gpt-nano-sort", tmp_path, mirror=server.url, patience=patience)
    server.faults["big.bin"] = []
    minutes = iter(range(0, 10_000, 61))
    patience = Patience(3, least_speed=1e6, clock=lambda: next(minutes))
    with pytest.raises(DownloadError, match="bytes a second, too few to wait for"):
        download.download("gpt-nano-sort", tmp_path, mirror=server.url, patience=patience)
    get()
    assert_complete(tmp_path)


def test_the_password_of_a_mirror_is_sent_but_neither_said_nor_stored(get, server, tmp_path):
    mirror = server.url.replace("//", "//ann:s%40cret@")
    server.faults["big.bin"] = [cut(30_000), status(503)]
    said, _ = get(mirror=mirror)
    assert_complete(tmp_path)
    expected = "Basic " + base64.b64encode(b"ann:s@cret").decode()
    assert {headers["Authorization"] for _, headers in server.log} == {expected}
    said += [path.read_text() for path in tmp_path.glob("*.json")]
    (tmp_path / "big.bin").unlink()
    server.files = {}
    with pytest.raises(DownloadError) as raised:
        get(mirror=mirror)
    for text in (*said, str(raised.value)):
        assert not re.search("cret|ann:", text), text


@pytest.mark.parametrize(
    "mirror", ["http://[", "http://ann:secret@[::1", "http://ann:secret@127.0.0.1:99999", "gopher://x",
               "http://" + "a" * 70 + ".invalid", "http://\u2028", "nonsense"]
)  # fmt: skip
def test_addresses_that_are_none_are_download_errors(get, mirror):
    with pytest.raises(DownloadError) as raised:
        get(mirror=mirror)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("error", [ValueError("x" * 9), RuntimeError("http://a:secret@b/ fell")])
def test_whatever_the_library_raises_is_a_download_error(get, monkeypatch, error):
    import requests

    def broken(*args, **options):
        raise error

    monkeypatch.setattr(requests.Session, "get", broken)
    with pytest.raises(DownloadError, match="cannot be fetched") as raised:
        get()
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["big.bin.part", "big.bin.part.json", "downloaded.json"])
def test_a_planted_link_is_not_followed(get, tmp_path, tmp_path_factory, name):
    target = tmp_path_factory.mktemp("elsewhere") / "mine"
    target.write_text("mine")
    (tmp_path / name).symlink_to(target)
    get()
    assert target.read_text() == "mine"
    assert_complete(tmp_path)


def test_tries_are_bounded_and_wait_longer_each_time(get, server, tmp_path):
    server.faults["big.bin"] = [cut(40_000)] + [status(502)] * 3
    with pytest.raises(DownloadError, match=r"502, the server has a problem \(3 times in a row\)"):
        get()
    assert arrived(tmp_path) > 30_000
    get()
    assert_complete(tmp_path)


def test_retry_after_is_honoured(get, server, tmp_path):
    server.faults["big.bin"] = [status(429, Retry_After="7"), status(503, Retry_After="junk")]
    _, waits = get()
    assert waits == [7.0, 2.0]


def test_retry_after_can_be_a_date():
    now = time.time()
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now + 50))
    assert 48 < transfer._retry_after(date) <= 51
    assert transfer._retry_after("Mon, 01 Jan 2001 00:00:00 GMT") == 0
    assert transfer._retry_after(None) is None


def test_a_long_retry_after_is_handed_to_the_user(get, server, tmp_path):
    server.faults["big.bin"] = [cut(40_000), status(429, Retry_After="3600")]
    with pytest.raises(DownloadError, match="429 and asks to come back in 3600 s.* are kept"):
        get()
    assert arrived(tmp_path) > 30_000


@pytest.mark.parametrize("digest", [None, "published"])
def test_a_file_that_changed_half_way_starts_anew(get, server, offer, tmp_path, digest):
    new = BIG[::-1]
    facts = {} if digest else {"digest": None}
    offer(file("small.json", SMALL), file("big.bin", new, **facts))
    server.faults["big.bin"] = [cut(40_000)]
    server.files["big.bin"] = BIG

    def change(name, here, total):
        if here > 30_000:
            server.files["big.bin"] = new

    get(progress=change)
    assert (tmp_path / "big.bin").read_bytes() == new


def test_a_server_without_if_range_is_found_out(get, server, offer, tmp_path):
    offer(file("small.json", SMALL), file("big.bin", BIG, digest=None))
    other = BIG[::-1]

    def blind(handler, data):
        rest = other[40_000:]
        headers = {"Content_Range": f"bytes {arrived(tmp_path)}-100002/100003", "ETag": tag(other)}
        body(rest, 206, **headers)(handler, data)

    server.faults["big.bin"] = [cut(40_000), blind]
    said, _ = get()
    assert "has changed since its first half arrived, so from the start" in said[3]
    assert_complete(tmp_path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(416), "shorter than what we have of it (416)"),
        (body(BIG[9:], 206), "sends a different piece from the one that was asked for"),
        (body(BIG[9:], 206, Content_Range="bytes 9-100002/100003"), "sends a different piece"),
    ],
)
def test_answers_that_do_not_fit_the_question_start_anew(get, server, tmp_path, fault, words):
    server.faults["big.bin"] = [cut(40_000), fault]
    said, _ = get()
    assert words in said[3]
    assert ranges(server)[0] is ranges(server)[2] is None and ranges(server)[1] is not None
    assert_complete(tmp_path)


def test_a_server_that_does_not_know_ranges(get, server, tmp_path):
    server.faults["big.bin"] = [cut(40_000), ignores_range]
    get()
    assert len(ranges(server)) == 2
    assert_complete(tmp_path)


def test_bytes_of_another_address_are_not_glued(get, server, offer, tmp_path):
    offer(file("small.json", SMALL), file("big.bin", BIG, digest=None))
    server.faults["big.bin"] = [cut(40_000), status(404)]
    with pytest.raises(DownloadError):
        get()
    get(mirror=f"{server.url}/elsewhere")
    assert ranges(server)[2] is None
    assert_complete(tmp_path)


def test_without_validator_or_hash_two_halves_are_not_glued(get, server, offer, tmp_path):
    offer(file("small.json", SMALL), file("big.bin", BIG, digest=None))
    server.faults["big.bin"] = [functools.partial(good, count=40_000, extra=[("ETag", 'W/"weak"')])]
    get()
    assert ranges(server) == [None, None]
    assert_complete(tmp_path)


def test_a_part_longer_than_the_file_is_thrown_away(get, server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(BIG + b"more")
    get()
    assert ranges(server) == [None]
    assert_complete(tmp_path)


def test_a_whole_part_needs_no_request(get, server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(BIG)
    get()
    assert ranges(server) == []
    assert_complete(tmp_path)


def test_a_damaged_part_is_found_and_fetched_anew(get, server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(BIG[:50_000][::-1])
    said, _ = get()
    assert "big.bin came with another sha256 than published" in said[2]
    assert ranges(server) == ["bytes=50000-", None]
    assert_complete(tmp_path)


# ---- what is not the file ------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><title>Hotel Wi-Fi</title>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 100003\n"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (body(PAGE, Content_Type="text/html; charset=utf-8"), "web page: a proxy or a hotel's"),
        (body(PAGE.ljust(len(BIG)), Content_Type="application/octet-stream"), "web page"),
        (body(LFS.ljust(len(BIG))), "Git LFS pointer"),
        (body(LFS), "Git LFS pointer"),
        (body(SMALL), "has 9 bytes, but the official file 100,003"),
        (body(BIG, Content_Encoding="gzip"), "compressed"),
        (body(BIG + b"!"), "has 100,004 bytes, but the official file 100,003"),
        (chunked(extra=b"!"), "sends more than the 100,003 bytes"),
        (status(401), "401: a login is asked for"),
        (status(403), "403: forbidden"),
        (status(404), "404: not there"),
        (status(407), "407: the proxy asks"),
        (status(410), "410: gone"),
        (status(204), "204: which does not answer"),
    ],
)
def test_other_answers_are_one_sentence_and_cost_nothing(get, server, tmp_path, fault, words):
    server.faults["big.bin"] = [cut(40_000), fault]
    with pytest.raises(DownloadError, match=re.escape(words)) as caught:
        get()
    assert "\n" not in str(caught.value)
    kept = arrived(tmp_path)
    # Only a body that went wrong after it had begun anew takes the old part with it.
    assert kept == 0 if words.startswith("sends more") else kept > 30_000
    get()
    assert ranges(server)[2] == (f"bytes={kept}-" if kept else None)
    assert_complete(tmp_path)


def test_a_damaged_body_is_tried_once_more_and_then_refused(get, server, tmp_path):
    bad = body(BIG[:-1] + bytes([BIG[-1] ^ 1]))
    server.faults["big.bin"] = [bad]
    assert "trying again" in get()[0][2]
    assert_complete(tmp_path)
    (tmp_path / "big.bin").unlink()
    server.faults["big.bin"] = [bad, bad]
    with pytest.raises(DownloadError, match=r"another sha256 than published.*\(2 times in a row\)"):
        get()
    assert not (tmp_path / "big.bin").exists() and arrived(tmp_path) == 0


def test_an_unknown_length_is_refused(get, server, offer, tmp_path):
    offer(file("big.bin", BIG, size=None, digest=None))
    server.faults["big.bin"] = [without_length]
    with pytest.raises(DownloadError, match="does not say how long it is"):
        get()


def test_an_unencrypted_redirect_of_an_encrypted_address_is_refused(tmp_path):
    hops = [SimpleNamespace(url=url, headers={}) for url in ("https://a/x", "http://b/x")]
    answer = SimpleNamespace(url="https://c/x", headers={}, history=hops, status_code=200)
    with pytest.raises(DownloadError, match="leads to an unencrypted address"):
        transfer._check_kind(answer, tmp_path / "x.part", file("x", b"x"))


def test_redirects_keep_the_range(get, server, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(BIG[:777])
    server.files["elsewhere"] = BIG
    server.faults["big.bin"] = [status(302, Location="/cdn/elsewhere")]
    get()
    assert server.log[-1][0] == "elsewhere" and server.log[-1][1]["Range"] == "bytes=777-"
    assert_complete(tmp_path)


# ---- checksums that the server sends -------------------------------------------------------------


def md5(data):
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


@pytest.mark.parametrize("header", ["Content-MD5", "x-ms-blob-content-md5"])
def test_content_md5_is_checked(get, server, offer, tmp_path, header):
    offer(file("big.bin", BIG, digest=None))
    said = functools.partial(good, extra=[(header, md5(BIG))])
    server.faults["big.bin"] = [functools.partial(said, count=40_000), said]  # kept for the resume
    assert get()[0][2] == "big.bin: size as published, md5 as the server sends it"
    (tmp_path / "big.bin").unlink()
    server.faults["big.bin"] = [functools.partial(good, extra=[(header, md5(SMALL))])] * 2
    with pytest.raises(DownloadError, match="another md5 than the server sends it"):
        get()


def test_hugging_face_sends_the_sha256_before_it_redirects(get, server, offer, tmp_path):
    offer(file("big.bin", BIG, size=None, digest=None))
    server.files["elsewhere"] = BIG
    sha256 = hashlib.sha256(BIG).hexdigest()
    first = {"Location": "/cdn/elsewhere", "X_Linked_Size": str(len(BIG))}
    server.faults["big.bin"] = [status(302, X_Linked_ETag=f'"{sha256}"', **first)]
    assert get()[0][1] == "big.bin: size as announced, sha256 as the server sends it"
    (tmp_path / "big.bin").unlink()
    server.faults["big.bin"] = [status(302, X_Linked_ETag='"' + "0" * 64 + '"', **first)] * 2
    with pytest.raises(DownloadError, match="another sha256 than the server sends"):
        get()


def test_nothing_to_check_by_is_said(get, offer):
    offer(file("big.bin", BIG, size=None, digest=None))
    assert get()[0][1] == "big.bin: size as announced, no hash published or sent"


def test_trust_mirror_takes_other_files_of_the_same_names(get, server, tmp_path):
    server.files["big.bin"] = b"other weights"
    get(trust_mirror=True)
    assert (tmp_path / "big.bin").read_bytes() == b"other weights"
    with pytest.raises(DownloadError, match="has 13 bytes, but the official file"):
        get()  # the record says that it was not checked against the published facts


# ---- OpenAI's layout, and Hugging Face as the second source --------------------------------------


@pytest.fixture
def two_sources(server, offer):
    bundle = GOLDEN / "tensorflow_tiny"
    names = ("hparams.json", facts.INDEX, facts.DATA)
    server.files.update({name: (bundle / name).read_bytes() for name in names})
    first = [file(name, server.files[name], digest=None) for name in names]
    second = [file("small.json", SMALL), file("big.bin", BIG)]
    offer(name="124M", openai=first, huggingface=second)


def test_the_checksums_in_the_bundle_are_checked(get, server, two_sources, tmp_path):
    said, _ = get("gpt2", source="openai")
    assert re.search(r"no hash published or sent; CRC-32C of all \d+ tensors$", said[-1])
    (tmp_path / facts.DATA).unlink()
    data = bytearray(server.files[facts.DATA])
    data[100] ^= 1
    server.files[facts.DATA] = bytes(data)
    with pytest.raises(DownloadError, match="tensor 'model/.*' does not match its checksum"):
        get("gpt2", source="openai")
    with pytest.raises(DownloadError, match="does not match its checksum"):
        get("gpt2", source="openai")  # still not recorded as good


def test_the_second_source_is_taken_when_the_first_does_not_answer(
    get, server, two_sources, tmp_path
):
    server.faults["hparams.json"] = [status(403)]
    said, _ = get("124M")
    assert said[1].endswith("Trying huggingface")
    assert (tmp_path / "big.bin").read_bytes() == BIG
    server.faults["hparams.json"] = [status(403)]
    with pytest.raises(DownloadError, match="403"):
        get("124M", source="openai")


def test_the_source_of_which_more_is_here_goes_first(get, server, two_sources, tmp_path):
    (tmp_path / "big.bin.part").write_bytes(BIG[:50_000])
    get("124M")
    assert {name for name, _ in server.log} == {"small.json", "big.bin"}


def test_both_faults_are_told(get, server, two_sources):
    server.faults = {"hparams.json": [status(403)], "small.json": [status(404)]}
    with pytest.raises(DownloadError, match=r"hparams.json answers 403.*; and .*small.json .* 404"):
        get("124M")


def test_no_network_at_all(get, tmp_path):
    with pytest.raises(DownloadError, match=r"cannot be reached .*\(3 times in a row\); nothing"):
        get(mirror=DEAD)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "gpt3"}, "nothing to download under the name 'gpt3': choose one of 124M, 355M"),
        ({"name": "distilgpt2", "source": "openai"}, "not at 'openai': choose any or huggingface"),
        ({"name": "124M", "trust_mirror": True, "mirror": None}, "trust_mirror needs a mirror"),
    ],
)
def test_misuse(tmp_path, monkeypatch, options, words):
    monkeypatch.delenv("NUMPYGPT_MIRROR", raising=False)
    with pytest.raises(ValueError, match=words):
        download.download(folder=tmp_path, **options)


# ---- the disk ------------------------------------------------------------------------------------


def test_free_space_is_checked_first(get, server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    with pytest.raises(DownloadError, match="needs 100,012 more bytes, .* has 100,000 free"):
        get()
    assert server.log == []
    (tmp_path / "big.bin.part").write_bytes(BIG[:50])  # what is here needs no room any more
    get()
    assert_complete(tmp_path)


def test_a_full_disk_keeps_what_arrived(get, tmp_path, monkeypatch):
    def full(out, chunk):
        if out.tell() > 30_000:
            raise OSError(28, "No space left on device")
        write(out, chunk)

    write = transfer._write
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_write", full)
        with pytest.raises(DownloadError, match="No space left on device.*make room.*is kept"):
            get()
    assert arrived(tmp_path) > 30_000
    get()
    assert_complete(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no resource limits")
def test_a_real_limit_of_the_system(get, server, tmp_path):
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        "from numpygpt.files import download;"
        f"download.download('gpt-nano-sort', {str(tmp_path)!r},"
        f"mirror={server.url!r}, trust_mirror=True)"
    )
    server.files |= {"gpt-nano-sort-model.json": BIG, "gpt-nano-sort-t0-partials.json": SMALL}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "DownloadError: cannot write to" in done.stderr and "File too large" in done.stderr
    assert (tmp_path / "gpt-nano-sort-model.json.part").stat().st_size == 50_000


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_forbidden_folder(get, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DownloadError, match="Permission denied.*name another folder"):
        get()
    tmp_path.chmod(0o700)


def test_two_at_once(get, server, tmp_path):
    with places.locked(tmp_path):
        with pytest.raises(DownloadError, match="another process is downloading into"):
            get()
    assert server.log == []
    get()
    assert_complete(tmp_path)


# ---- SIGKILL -------------------------------------------------------------------------------------

needs_sigkill = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")


@needs_sigkill
def test_killed_while_bytes_trickle_in(get, server, tmp_path):
    script = (
        "from numpygpt.files import download;"
        f"download.download('gpt-nano-sort', {str(tmp_path)!r},"
        f"mirror={server.url!r}, trust_mirror=True)"
    )
    model = "gpt-nano-sort-model.json"
    server.files |= {model: BIG, "gpt-nano-sort-t0-partials.json": SMALL}
    server.faults[model] = [trickle] * 2
    part, sizes = tmp_path / f"{model}.part", []
    for wanted in (1, 40_000):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
        while process.poll() is None and not (part.exists() and part.stat().st_size >= wanted):
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        sizes.append(part.stat().st_size)
        assert part.read_bytes() == BIG[: sizes[-1]]
    assert sizes == sorted(sizes) and sizes[-1] < len(BIG)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert done.returncode == 0
    assert (tmp_path / model).read_bytes() == BIG and not part.exists()
    asked = [headers.get("Range") for name, headers in server.log if name == model]
    assert asked == [None, *(f"bytes={size}-" for size in sizes)]


# Kills itself before the n-th time that Python opens, renames or deletes a file under the folder,
# or before the n-th piece of data, for every n there is; a second run must complete.
EVERY_STEP = """
import os, shutil, signal, sys
import requests
from numpygpt.files import download
from numpygpt.files.download import transfer
from numpygpt.formats import tensorflow
folder, url = sys.argv[1:]
names = ("a.json", "b.bin")
download.OFFERS["124M"] = {"openai": [
    download.File("a.json", "https://x.invalid/a.json", 9),
    download.File("b.bin", "https://x.invalid/b.bin", 40_003),
]}
watching = False
def run():
    download.download("124M", folder, mirror=url)
def step(*_):
    global left
    left -= 1
    if watching and left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
def watch(event, args):
    if event in ("open", "os.rename", "os.remove") and folder in str(args[0]):
        step()
sys.addaudithook(watch)
for n in range(1000):
    child = os.fork()
    if not child:
        watching, left = True, n
        write = transfer._write
        transfer._write = lambda *a: (step(), write(*a))
        run()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    left = 10**9
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):  # no name without its whole content
        assert name not in names or os.path.getsize(f"{folder}/{name}") in (9, 40_003), name
    run()
    print(n, status, *(open(f"{folder}/{name}", "rb").read().hex()[-16:] for name in names))
    if status == 0:
        break
    shutil.rmtree(folder)
"""


@needs_sigkill
def test_killed_at_every_step(server, tmp_path):
    server.files = {"a.json": SMALL, "b.bin": BIG[:40_003]}
    command = [sys.executable, "-c", EVERY_STEP, str(tmp_path / "weights"), server.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) > 20 and [row[1] for row in rows] == ["9"] * (len(rows) - 1) + ["0"]
    assert all(row[2:] == [SMALL.hex()[-16:], BIG[:40_003].hex()[-16:]] for row in rows)


# ---- the command ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_command_says_what_it_did(server, offer, tmp_path, capsys):
    command = ["download", "gpt-nano-sort", "--folder", str(tmp_path), "--mirror", server.url]
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "small.json: size as published, sha256 as published",
        "big.bin: size as published, sha256 as published",
        f"gpt-nano-sort is here, whole and checked: {tmp_path}",
    ]
    assert main(["download", "gpt-nano-sort", "--folder", str(tmp_path), "--offline"]) == 0


def test_the_last_line_of_a_failure_tells_how_to_do_it_by_hand(server, offer, tmp_path, capsys):
    server.faults["big.bin"] = [status(403)]
    command = ["download", "gpt-nano-sort", "--folder", str(tmp_path), "--mirror", server.url]
    assert main(command) == 1
    *_, fault, by_hand = capsys.readouterr().err.splitlines()
    assert fault.startswith("numpygpt: ") and "answers 403: forbidden" in fault
    assert by_hand.startswith("From a mirror: --mirror URL takes the place of https://HOST")
    assert "By hand: put small.json, big.bin from https://somewhere.invalid/x/" in by_hand
    assert main(["download", "gpt3"]) == 2


def test_a_bar_on_a_terminal_and_ctrl_c(server, offer, tmp_path, monkeypatch):
    def impatient(out, chunk):
        if out.tell() > 30_000:
            raise KeyboardInterrupt
        write(out, chunk)

    write = transfer._write
    command = ["download", "gpt-nano-sort", "--folder", str(tmp_path), "--mirror", server.url]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Terminal())
        patch.setattr(transfer, "_write", impatient)
        assert main(command) == 130
        assert sys.stderr.getvalue().endswith("the same command goes on from there\n")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(command) == 0
    shown = sys.stderr.getvalue()
    assert re.search(r"big.bin: +33%", shown) and re.search(r"big.bin: 100%.*B/s\]", shown)
    assert_complete(tmp_path)


def test_a_model_that_is_not_here_is_fetched_if_somebody_watches(empty_home, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(cli.models, "fetch", lambda name: asked.append(name) or GOLDEN)
    assert main(["generate", "A", "--model", "gpt2"]) != 0
    assert "run `numpygpt download gpt2`" in capsys.readouterr().err and asked == []
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["generate", "A", "--model", "gpt2"]) != 0  # what was fetched here is no model
    assert asked == ["124M"]


# ---- where files are -----------------------------------------------------------------------------


def test_the_folder_of_the_weights(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMPYGPT_WEIGHTS", raising=False)
    assert download.weights_folder() == ROOT / "weights"
    installed = tmp_path / "site-packages" / "numpygpt/files/download/places.py"
    monkeypatch.setattr(places, "__file__", str(installed))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert download.weights_folder() == tmp_path / "numpygpt"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert download.weights_folder() == Path.home() / "Library" / "Caches" / "numpygpt"
    monkeypatch.setenv("NUMPYGPT_WEIGHTS", str(tmp_path / "mine"))
    assert download.weights_folder() == tmp_path / "mine"


@pytest.fixture
def empty_home(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMPYGPT_WEIGHTS", str(tmp_path / "weights"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_find(empty_home):
    assert download.find("gpt2") is None and download.find("no such model") is None
    touch(empty_home / "weights/124M", "hparams.json", facts.INDEX, f"{facts.DATA}.part")
    assert download.find("gpt2") is None  # a half file is not a whole one
    folder = touch(empty_home / "weights/124M", facts.DATA)
    assert download.find("gpt2") == download.find("124M") == folder


PLACES = {  # variable -> its value, the folder of repositories that it means
    "XDG_CACHE_HOME": ("{home}/cache", "cache/huggingface/hub"),
    "HF_HOME": ("{home}/a b", "a b/hub"),
    "HF_HUB_CACHE": ("~/hub", "hub"),
    "HUGGINGFACE_HUB_CACHE": ("$HOME/old", "old"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bare", [False, True])
def test_find_in_the_cache_of_hugging_face(empty_home, monkeypatch, place, bare):
    value, hub = PLACES[place]
    monkeypatch.setenv("HOME", str(empty_home))
    monkeypatch.setenv("USERPROFILE", str(empty_home))
    monkeypatch.setenv(place, value.format(home=empty_home))
    repository = empty_home / hub / ("models--gpt2" if bare else "models--openai-community--gpt2")
    snapshots = repository / "snapshots"
    only = touch(snapshots / "1111", "config.json")
    assert download.find("gpt2") is None  # a snapshot without weights
    touch(only, "model.safetensors")
    assert download.find("gpt2") == only
    second = touch(snapshots / "0000", "config.json", "model.safetensors")
    assert download.find("gpt2") is None  # nothing says which
    pinned = download.HUGGING_FACE_FILES["124M"][1]
    folder = touch(snapshots / pinned, "config.json", "model.safetensors")
    assert download.find("gpt2") == folder
    touch(repository / "refs")
    for name, meant in (("1111", only), ("0000\n", second), ("../../x", folder), ("gone", folder)):
        (repository / "refs" / "main").write_text(name)
        assert download.find("gpt2") == meant
    assert download.find("gpt2-medium") is None


def test_an_empty_variable_is_none(empty_home, monkeypatch):
    for name in PLACES:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HOME", str(empty_home))
    monkeypatch.setenv("USERPROFILE", str(empty_home))
    assert download.cached_repository("a/b") == empty_home / ".cache/huggingface/hub/models--a--b"


def test_hugging_faces_own_words_for_mirror_and_offline(get, server, tmp_path, monkeypatch):
    offers = facts.offers("distilgpt2", "any", None, False)
    assert {f.url.split("/")[2] for f in offers["huggingface"]} == {"huggingface.co"}
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.invalid/hf/")
    offers = facts.offers("124M", "any", None, False)
    repository = "/openai-community/gpt2/resolve/"
    assert all(
        f.url.startswith(f"http://mirror.invalid/hf{repository}") for f in offers["huggingface"]
    )
    assert all(f.url.startswith(facts.OPENAI) for f in offers["openai"])
    assert [f.digest for f in offers["huggingface"]] == (
        [f.digest for f in download.OFFERS["124M"]["huggingface"]]
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"offline is asked for .*HF_HUB_OFFLINE"):
        get()
    assert server.log == []


def test_checked_is_said_only_of_what_was_checked_against_something(tmp_path):
    def record(*facts):
        entries = {f"{i}.bin": {"facts": [5, 6, *fact]} for i, fact in enumerate(facts)}
        (tmp_path / places.RECORD).write_text(json.dumps(entries | {"x": 1}), encoding="utf-8")
        return download.verdict(tmp_path)

    assert record((5, None), (None, "md5:0")) == "whole and checked"
    assert record((None, None), (None, None)) == "whole; nothing was published to check it by"
    assert record((5, None), (None, None)).startswith("whole; 1 of 2 files")
    assert download.verdict(tmp_path / "none") == "whole; nothing was published to check it by"


def test_by_hand_names_every_file_and_address():
    line = download.by_hand("gpt2", "weights/124M")
    assert "\n" not in line
    assert f"{facts.DATA} from {facts.OPENAI}/124M/; or config.json, vocab.json" in line
    assert "/openai-community/gpt2/resolve/607a30d783dfa663caf39e06633721c8d4cfcd7e/ into" in line
    assert "input.txt as tinyshakespeare_input.txt" in download.by_hand("published")


def test_the_table_is_complete():
    assert list(download.OFFERS) == [
        "124M", "355M", "774M", "1558M", "distilgpt2", "gpt-nano-sort", "published",
    ]  # fmt: skip
    files = [f for offer in download.OFFERS.values() for source in offer.values() for f in source]
    assert len(files) == 4 * (7 + 4) + 4 + 2 + 8
    assert all(f.url.startswith("https://") and " " not in f.url for f in files)
    assert all(f.digest is None or re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", f.digest)
               for f in files)  # fmt: skip
    parameters = {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080,
                  "1558M": 1_557_611_200}  # fmt: skip
    for name, count in parameters.items():
        assert download.OFFERS[name]["openai"][-1].size == 4 * count


def test_the_vocabulary_in_the_package_is_the_published_one():
    vocabulary = next((ROOT / "numpygpt").rglob("vocab.bpe")).read_bytes()
    size, digest = facts.MERGES
    assert len(vocabulary) == size
    assert f"sha256:{hashlib.sha256(vocabulary).hexdigest()}" == digest


def test_the_record_says_from_where_and_what(get, server, tmp_path):
    get()
    record = json.loads((tmp_path / "downloaded.json").read_text(encoding="utf-8"))
    assert record["big.bin"]["from"] == f"{server.url}/x/big.bin"
    assert record["big.bin"]["checked"] == "size as published, sha256 as published"


def test_importing_numpygpt_does_not_load_requests():
    script = "import sys, numpygpt, numpygpt.files.download; sys.exit('requests' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0
