"""Safetensors: the official writer's file, our own round trip, and every way a file can lie."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from numpygpt.formats import CheckpointError, safetensors

GOLDEN = Path(__file__).parent / "golden" / "safetensors_tiny.safetensors"


def raw_file(folder, header, data=b"", length=None):
    """A file with any header: an object to dump as JSON, or the bytes themselves."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    path = folder / "raw.safetensors"
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def entry(dtype="F32", shape=(3,), offsets=(0, 12)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def assert_same(got, expected):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, expected)


# ---- what is right -------------------------------------------------------------------------------


def test_the_official_writers_file():
    arrays = safetensors.read(GOLDEN)
    with np.load(GOLDEN.with_suffix(".npz")) as expected:
        assert sorted(arrays) == sorted(expected)
        for name in expected:
            assert_same(arrays[name], expected[name])
    assert np.signbit(arrays["brain"][1]) and np.signbit(arrays["half"][1])  # -0.0 keeps its sign
    assert safetensors.read_metadata(GOLDEN) == {"format": "pt", "ünï": "cödé \U0001f600"}


def test_round_trip_keeps_order_values_and_shapes(tmp_path):
    rng = np.random.default_rng(5)
    arrays = {
        "z": rng.normal(size=(3, 5)).astype(np.float32),
        "transposed": rng.normal(size=(2, 7)).T,
        "big-endian": np.arange(4, dtype=">f4"),
        "strided": np.arange(20, dtype=np.int16)[::3],
        "odd": np.arange(5, dtype=np.uint8),
        "behind odd": rng.normal(size=(2, 1, 3)),
        "scalar": np.float32(0.3),
        "empty": np.zeros((4, 0, 2)),
        "mask": np.array([True, False]),
        'quote" \\ \n ħ': np.arange(2),
    }
    path = tmp_path / "file.safetensors"
    safetensors.write(path, arrays, {"step": "12"})
    got = safetensors.read(path)
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert_same(got[name], np.asarray(array, np.asarray(array).dtype.newbyteorder("=")))
        assert got[name].flags.aligned and got[name].flags.writeable
    assert safetensors.read_metadata(path) == {"step": "12"}
    assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 64 == 0


def test_float16_is_stored_in_two_bytes_and_read_as_float32(tmp_path):
    path = tmp_path / "half.safetensors"
    halves = np.arange(-1000, 1000, dtype=np.float16).reshape(50, 40) / 7
    safetensors.write(path, {"w": halves})
    assert path.stat().st_size < 2 * halves.size + 200
    assert_same(safetensors.read(path)["w"], halves.astype(np.float32))


def test_every_changed_byte_is_seen_where_the_file_has_its_sha256(tmp_path):
    path = tmp_path / "w.safetensors"
    rng = np.random.default_rng(2)
    arrays = {"w": rng.normal(size=(3, 5)).astype(np.float32), "n": np.arange(4), "e": np.ones(0)}
    safetensors.write(path, arrays, {"step": "12"}, digest=True)
    assert safetensors.check(path)
    assert safetensors.read_metadata(path).keys() == {"sha256", "step"}
    data = path.read_bytes()
    at = data.index(b"sha256")  # another name of it is another text, and the arrays are the same
    for i in set(range(len(data))) - set(range(at, at + 6)):
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << int(rng.integers(8)))]) + data[i + 1 :])
        with pytest.raises(CheckpointError):
            assert not safetensors.check(path)
    safetensors.write(path, arrays)
    assert not safetensors.check(path)


def test_no_arrays_and_no_metadata(tmp_path):
    path = tmp_path / "empty.safetensors"
    safetensors.write(path, {})
    assert safetensors.read(path) == {}
    assert safetensors.read_metadata(path) == {}


def test_writing_into_an_array_leaves_the_file_alone(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.write(path, {"w": np.ones(1000, np.float32)})
    before = path.read_bytes()
    array = safetensors.read(path)["w"]
    assert array.base is not None, "a copy was made"
    array += 1
    assert array[7] == 2 and path.read_bytes() == before


@pytest.mark.parametrize("pad", range(9))
def test_data_at_any_address(tmp_path, pad):
    header = json.dumps({"w": entry("F64", (2,), (0, 16))}).encode() + b" " * pad
    path = raw_file(tmp_path, header, np.array([0.1, -3.0]).tobytes())
    assert_same(safetensors.read(path)["w"], np.array([0.1, -3.0]))
    assert safetensors.read(path)["w"].flags.aligned


def test_a_bool_is_zero_or_one_whatever_the_byte(tmp_path):
    path = raw_file(tmp_path, {"m": entry("BOOL", (3,), (0, 3))}, b"\x00\x02\xff")
    assert safetensors.read(path)["m"].view(np.uint8).tolist() == [0, 1, 1]


def test_every_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    bits = np.arange(65536, dtype=np.uint16)
    path = raw_file(tmp_path, {"b": entry("BF16", (65536,), (0, 131072))}, bits.tobytes())
    upper = np.stack([np.zeros_like(bits), bits], axis=1).view(np.float32)[:, 0]
    assert safetensors.read(path)["b"].tobytes() == upper.tobytes()


# ---- writing: all or nothing ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arrays, metadata, message",
    [
        ({"w": np.array([None])}, None, "dtype object"),
        ({"w": np.array(["text"])}, None, "dtype <U4"),
        ({"w": np.ones(2, np.complex64)}, None, "dtype complex64"),
        ({"w": np.zeros(2, [("a", "f4")])}, None, "dtype"),
        ({3: np.ones(2)}, None, "a text as its name"),
        ({"__metadata__": np.ones(2)}, None, "a text as its name"),
        ({"w": np.ones(2)}, {"step": 3}, "text to text"),
        ({"w": np.ones(2)}, {3: "step"}, "text to text"),
        ({"\ud800": np.ones(2)}, None, "surrogate"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_file_is_touched(
    tmp_path, arrays, metadata, message
):
    path = tmp_path / "old.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=message):
        safetensors.write(path, arrays, metadata)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["old.safetensors"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_while_writing_keeps_the_old_file(tmp_path, monkeypatch, failure, function):
    def fail(*_):
        raise failure

    path = tmp_path / "w.safetensors"
    safetensors.write(path, {"w": np.zeros(3)})
    monkeypatch.setattr(os, function, fail)
    with pytest.raises(type(failure)):
        safetensors.write(path, {"w": np.ones(3)})
    assert safetensors.read(path)["w"].tolist() == [0, 0, 0]
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_a_model_can_be_saved_over_the_file_it_was_read_from(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.write(path, {"w": np.arange(5000.0)})
    arrays = safetensors.read(path)
    arrays["w"] *= 2
    safetensors.write(path, arrays)
    assert_same(safetensors.read(path)["w"], np.arange(5000.0) * 2)


# ---- files that are not what they claim ----------------------------------------------------------


def test_a_missing_file_is_an_ordinary_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        safetensors.read(tmp_path / "none.safetensors")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        safetensors.read(tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "only 0 bytes"),
        (b"1234567", "only 7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:6", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"<html>\r\n<head><title>302 Found</title>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code>", "a web page"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00archive/data.pkl", "pickle"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9", "pickle"),
        (b"\x89HDF\r\n\x1a\n" * 9, "not a safetensors file"),
        (b"\xff" * 8, "not a safetensors file"),
        ((100_000_001).to_bytes(8, "little"), "not a safetensors file"),
        ((3).to_bytes(8, "little") + b"{}", "cut short"),
        ((0).to_bytes(8, "little"), "damaged header"),
    ],
)
def test_foreign_files_are_recognised(tmp_path, content, message):
    path = tmp_path / "f.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        safetensors.read(path)


def test_a_header_of_100_megabytes_is_the_last_that_is_looked_at(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with open(path, "wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(100_000_100)
    with pytest.raises(CheckpointError, match="is allowed"):
        safetensors.read(path)


ONE = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'


def test_metadata_of_null_is_none(tmp_path):
    path = tmp_path / "a.safetensors"
    header = ONE.replace(b"{", b'{"__metadata__":null,', 1) + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert safetensors.read_metadata(path) == {}
    assert list(safetensors.read(path)) == ["w"]


@pytest.mark.parametrize(
    "header, message",
    [
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'"\xff"', "damaged header"),
        (b"{", "damaged header"),
        (b"{}{}", "damaged header"),
        (b"[" * 200_000, "damaged header"),
        (b'{"a":' * 200_000, "damaged header"),
        (b'{"__metadata__":{"a":NaN}}', "NaN"),
        (b'{"__metadata__":{"a":-Infinity}}', "Infinity"),
        (b'{"__metadata__":{"a":"1","a":"2"}}', "the same key twice"),
        (b'{"__metadata__":{"a":1}}', "text to text"),
        (b'{"__metadata__":["a"]}', "text to text"),
        (ONE + b"," + ONE[1:] + b"}", "the same key twice"),
        (
            b'{"w":{"dtype":"U8","shape":[1],"shape":[2],"data_offsets":[0,1]}}',
            "the same key twice",
        ),
        (b'{"w":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}' % (b"9" * 5000), "get"),
    ],
)
def test_headers_that_are_not_sound_json(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        safetensors.read(raw_file(tmp_path, header, b"\x01"))


@pytest.mark.parametrize(
    "line, message",
    [
        (None, "lacks"),
        ([], "lacks"),
        ({"dtype": "F32", "shape": [3]}, "lacks"),
        (entry() | {"extra": 1}, "lacks"),
        (entry("F8_E4M3", (12,)), "'F8_E4M3'; numpygpt reads F64, F32"),
        (entry("f32"), "dtype 'f32'"),
        (entry(["F32"]), "dtype"),
        (entry(None), "dtype None"),
        (entry("F" * 10_000), "dtype"),
        (entry(shape=(4,)), "takes 16"),
        (entry("F64"), "takes 24"),
        (entry(shape=(-3,)), "impossible"),
        (entry(shape=(-3, -1)), "impossible"),
        (entry(shape=(3.0,)), "impossible"),
        (entry(shape=(True, 3)), "impossible"),
        (entry(shape=("3",)), "impossible"),
        (entry(shape=([3],)), "impossible"),
        (entry() | {"shape": 3}, "impossible"),
        (entry() | {"shape": {"0": 3}}, "impossible"),
        (entry() | {"data_offsets": None}, "impossible"),
        (entry(offsets=(0,)), "impossible"),
        (entry(offsets=(0, 12, 12)), "impossible"),
        (entry(offsets=(-12, 0)), "impossible"),
        (entry(offsets=(0.0, 12)), "impossible"),
        (entry(offsets=(False, 12)), "impossible"),
        (entry(offsets=(12, 0)), "has -12 bytes"),
        (entry(offsets=(10**30, 10**30 + 12)), "overlap or leave a hole"),
        (entry(offsets=(4, 16)), "overlap or leave a hole"),
        (entry(shape=(2**62, 4)), "no array can have"),  # 2**64 elements: 0 in 64-bit arithmetic
        (entry(shape=(0, 2**62, 2**62), offsets=(0, 0)), "no array can have"),
        (entry(shape=(10**40, 0), offsets=(0, 0)), "no array can have"),
        (entry(shape=(1,) * 70 + (3,)), "no array can have"),
        (entry(shape=(0,), offsets=(0, 0)), "speaks of 0"),
        (entry(shape=(2,), offsets=(0, 8)), "speaks of 8"),
        (entry(shape=(4,), offsets=(0, 16)), "speaks of 16"),
    ],
)
def test_every_number_of_an_entry_is_checked(tmp_path, line, message):
    with pytest.raises(CheckpointError, match=message):
        safetensors.read(raw_file(tmp_path, {"w": line}, bytes(12)))


@pytest.mark.parametrize(
    "first, second, message",
    [
        ((0, 8), (4, 12), "overlap"),
        ((0, 12), (0, 12), "overlap"),
        ((0, 4), (8, 12), "hole"),
        ((4, 12), (0, 4), None),
        ((0, 12), (12, 12), None),
        ((0, 12), (4, 4), "overlap"),
    ],
)
def test_tensors_cover_the_data_exactly_once(tmp_path, first, second, message):
    lines = {
        name: entry("U8", (end - begin,), (begin, end))
        for name, (begin, end) in {"a": first, "b": second}.items()
    }
    path = raw_file(tmp_path, lines, bytes(range(12)))
    if message is None:
        assert safetensors.read(path)["b"].tolist() == list(range(*second))
    else:
        with pytest.raises(CheckpointError, match=message):
            safetensors.read(path)


def test_damage_anywhere_is_a_checkpoint_error_or_harmless(tmp_path):
    """Seeded: flipped bits, overwritten bytes, cuts, insertions; nothing but CheckpointError."""
    rng = np.random.default_rng(2019)
    whole = GOLDEN.read_bytes()
    path = tmp_path / "damaged.safetensors"
    refused = 0
    for trial in range(600):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(damaged)))
            kind = rng.integers(4)
            if kind == 0:
                damaged[at] ^= 1 << int(rng.integers(8))
            elif kind == 1:
                damaged[at] = rng.choice(list(b'0123456789{}[]",:-.eE \x00\xff'))
            elif kind == 2:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 4)))
            elif at > 0:
                del damaged[at:]
        path.write_bytes(damaged)
        try:
            arrays = safetensors.read(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(array.dtype.kind in "fiub" for array in arrays.values()), trial
    assert 400 < refused < 600
