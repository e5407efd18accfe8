"""Files are written whole or not at all, by one writer at a time."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from numpygpt.files import atomic
from numpygpt.files.atomic import locked, writing


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "notes.txt"
    with writing(path) as file:
        file.write("one\nzwei: ä\n")
        assert not path.exists()
    assert path.read_bytes() == "one\nzwei: ä\n".encode()
    with writing(path, binary=True) as file:
        file.write(b"\x00\r\n")
        assert path.read_bytes() == "one\nzwei: ä\n".encode()
    assert path.read_bytes() == b"\x00\r\n"
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "notes.txt"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, writing(path) as file:
        file.write("half")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["notes.txt"]
    assert isinstance(error, KeyboardInterrupt) or caught.value.filename == str(path)


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "notes.txt"
    with writing(path) as first:
        first.write("first, ")
        with writing(path) as second:  # does not take the first one's file for abandoned
            second.write("second")
        first.write("whole")
        assert path.read_text() == "second"
    assert path.read_text() == "first, whole"
    assert names(tmp_path) == ["notes.txt"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    path = tmp_path / "no[te]s*.txt"
    code = (
        "import sys\nfrom numpygpt.files.atomic import writing\n"
        "with writing(sys.argv[1]) as file:\n    print('here', flush=True)\n    input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip() == b"here"
    other = tmp_path / ".other.txt.0123.part"
    other.write_text("somebody else's")
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert len(names(tmp_path)) == 2
    with writing(path) as file:
        file.write("whole")
    assert names(tmp_path) == [other.name, path.name]


def test_a_link_goes_on_pointing_and_a_planted_one_is_not_followed(tmp_path):
    target = tmp_path / "target.txt"
    target.write_text("old")
    (tmp_path / "link.txt").symlink_to(target)
    with writing(tmp_path / "link.txt") as file:
        file.write("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert target.read_text() == "new"


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_not_a_file_is_refused(tmp_path, kind):
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{kind} is not a file: name a file"), writing(path):
        pass
    assert names(tmp_path) == [kind]


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        with writing(tmp_path / "notes.txt"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "notes.txt").stat().st_mode & 0o777 == 0o640


def hold(folder, held, release):
    with locked(folder):
        held.set()
        release.wait(30)


def test_a_folder_has_one_writer(tmp_path):
    folder = tmp_path / "new" / "run"
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(folder, held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(BlockingIOError, match="another run is writing in .*run: wait for it"):
        with locked(folder):
            pass
    process.kill()  # however it ends, the lock is free again
    process.join()
    with locked(folder):
        with pytest.raises(BlockingIOError), locked(folder):
            pass
    assert names(folder) == []


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_taken(tmp_path, monkeypatch):
    """Its holder removes it before letting go: what was opened meanwhile is no longer the lock."""
    real, opened = atomic._lock, []

    def slow(file):
        opened.append(file)
        if len(opened) == 1:  # the holder ends, and another process comes, before this one locks
            os.remove(tmp_path / ".lock")
            (tmp_path / ".lock").touch()
        real(file)

    monkeypatch.setattr(atomic, "_lock", slow)
    with locked(tmp_path):
        monkeypatch.undo()
        assert len(opened) == 2
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass


def test_a_lock_is_not_made_through_a_planted_link(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError), locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
