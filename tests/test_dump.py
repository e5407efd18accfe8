"""Dumps of other programs that are damaged, hostile, or no files at all."""

import io
import json
import os
import zipfile

import numpy as np
import pytest

from numpygpt.formats import dump


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def refused(path, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        dump.read(path)
    assert str(path.name) in str(raised.value) and "\n" not in str(raised.value)


def test_headers_that_are_not_python(tmp_path):
    data = saved(np.arange(6.0).reshape(2, 3))
    for broken in (
        b"{'descr: '<f8'",
        b"{'descr': (<f",
        b"(((((((((((((",
        b"\x00'''\x00((",
        b"\\\n",
    ):
        (tmp_path / "x.npy").write_bytes(data.replace(data[10 : 10 + len(broken)], broken, 1))
        refused(tmp_path / "x.npy", "cannot be read as arrays")


def test_of_a_folder_the_damaged_file_is_named(tmp_path):
    for name, data in (("a", saved(np.ones(3))), ("b", b""), ("c", saved(np.ones(3))[:-1])):
        (tmp_path / f"{name}.npy").write_bytes(data)
        if name != "a":
            refused(tmp_path, f"{name}.npy in it: ")
            (tmp_path / f"{name}.npy").unlink()
    assert list(dump.read(tmp_path)) == ["a"]


def test_two_arrays_of_one_name_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a.npy", saved(np.ones(3)))
        archive.writestr("a.npy", saved(np.zeros(3)))
    refused(tmp_path / "x.npz", "two arrays in it have one name")
    (tmp_path / "y.bin").write_bytes(bytes(12))
    (tmp_path / "y.json").write_text('{"a": [1], "a": [3]}')
    refused(tmp_path / "y.json", "the same key twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED])
def test_damaged_archives(tmp_path, method):
    path, rng = tmp_path / "x.npz", np.random.default_rng(3)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.npy", saved(rng.normal(size=(7, 5))))
    data, unread = path.read_bytes(), 0
    for _ in range(80):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(broken)
        try:
            dump.read(path)
        except ValueError as error:
            assert "x.npz" in str(error)
            unread += 1
    assert unread > 20


def test_what_unpacks_without_end_and_what_has_too_many_dimensions(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(3_000_000))
    refused(tmp_path / "bomb.npz", "unpack to 24,000,")
    np.savez(tmp_path / "deep.npz", a=np.ones((1,) * 32))
    refused(tmp_path / "deep.npz", "'a' has 32 dimensions")
    half = np.tril(np.random.default_rng(0).random((4, 200, 200), np.float32))  # as attention is
    np.savez_compressed(tmp_path / "fine.npz", a=half)
    np.testing.assert_array_equal(dump.read(tmp_path / "fine.npz")["a"], half)


def test_json_without_end(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"1234")
    for text in ("[" * 100_000, '{"a": [' + "9" * 5000 + "]}", '{"a": [1, 99999999999999999999]}'):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        refused(tmp_path / "x.json", "cannot be read as arrays")
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(3 * 10**9)  # takes no room
    refused(tmp_path / "x.bin", "3,000,000,000 bytes, too many")


@pytest.mark.parametrize("name", ["x.npz", "x.npy", "x.bin", "x.json", "x.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "x.json").write_text('{"a": [1]}')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    refused(tmp_path / name, "not a file")


def test_a_folder_that_was_not_written_to_the_end_is_not_taken_for_the_old_one(
    tmp_path, monkeypatch
):
    folder = tmp_path / "raw"
    dump.write(folder, {"a": np.ones(3), "b": np.ones(4)})

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(dump.Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            dump.write(folder, {"a": np.zeros(3), "b": np.zeros(4)})
    refused(folder, "holds no arrays")
    dump.write(folder, {"a": np.zeros(3)})
    assert dump.read(folder)["a"].tolist() == [0, 0, 0]
    assert json.loads((folder / dump.INDEX).read_text())["tensors"].keys() == {"a"}
