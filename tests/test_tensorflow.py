"""TensorFlow checkpoints: TensorFlow's own files, the checksum, and every way a file can lie."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from numpygpt.formats import CheckpointError, tensorflow

GOLDEN = Path(__file__).parent / "golden"
DATA = "model.ckpt.data-00000-of-00001"
INDEX = "model.ckpt.index"


# ---- a small writer, so that files can be wrong in one place and right everywhere else -----------


def varint(number):
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number, value, wire=None):
    """A protocol buffer field: an int as varint, bytes with their length, or any wire type raw."""
    if wire is not None:
        return varint(number << 3 | wire) + value
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def shape_proto(*sizes):
    return b"".join(field(2, field(1, size)) for size in sizes)


def crc_of(data):
    return tensorflow.masked(tensorflow.crc32c(np.frombuffer(data, np.uint8)))


def fixed32(number):
    return number.to_bytes(4, "little")


def line(raw, shape, dtype=1, offset=0, **change):
    """A BundleEntryProto, its fields replaceable: line(..., size=7, crc=0, shard=1, extra=b"…")."""
    size, crc = change.get("size", len(raw)), change.get("crc", crc_of(raw))
    proto = field(1, dtype) + field(2, change.get("shape_proto", shape_proto(*shape)))
    proto += field(3, change.get("shard", 0)) + field(4, offset) + field(5, size)
    return proto + field(6, fixed32(crc), wire=5) + change.get("extra", b"")


def sealed(contents, kind=0):
    """A block's contents with the compression byte and the checksum behind them."""
    contents += bytes([kind])
    return contents + fixed32(crc_of(contents))


def block(pairs, interval=3):
    """Block contents: prefix-compressed, every `interval`-th key spelled out."""
    out, restarts, last = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    restarts = restarts or [0]
    return out + b"".join(map(fixed32, restarts)) + fixed32(len(restarts))


def footer(meta, index, magic=0xDB4775248B80FB57):
    handles = varint(meta[0]) + varint(meta[1]) + varint(index[0]) + varint(index[1])
    return handles.ljust(40, b"\x00") + magic.to_bytes(8, "little")


def table(blocks, kind=0):
    """An index file of data blocks, each a list of pairs or the raw contents."""
    out, handles = b"", []
    for contents in blocks:
        key = b"%08d" % len(handles)  # any key that sorts will do
        if not isinstance(contents, bytes):
            key, contents = contents[-1][0], block(contents)
        handles.append((key, varint(len(out)) + varint(len(contents))))
        out += sealed(contents, kind)
    meta = (len(out), len(block([])))
    out += sealed(block([]))
    contents = block(handles)
    index = (len(out), len(contents))
    return out + sealed(contents) + footer(meta, index)


HEADER = (b"", field(1, 1) + field(2, 0) + field(3, field(1, 1)))
ONES = np.arange(1, 4, dtype="<f4").tobytes()  # the tensor of most tests: [1, 2, 3]


def bundle(folder, index, data=ONES):
    (folder / INDEX).write_bytes(index)
    (folder / DATA).write_bytes(data)
    return folder


def one(folder, *args, **change):
    """A checkpoint with the single tensor "w"."""
    return bundle(folder, table([[HEADER, (b"w", line(ONES, (3,), *args, **change))]]))


def copy(name, folder):
    for file in (INDEX, DATA):
        shutil.copy(GOLDEN / name / file, folder / file)
    return folder


# ---- what is right -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorflow_tiny", "tensorflow_dtypes"])
@pytest.mark.parametrize("verify", [True, False])
def test_what_tensorflow_wrote(name, verify):
    arrays = tensorflow.read(GOLDEN / name, verify=verify)
    with np.load(GOLDEN / name / "expected.npz") as expected:
        assert list(arrays) == sorted(expected)
        for key in expected:
            assert type(arrays[key]) is np.ndarray
            assert arrays[key].dtype == expected[key].dtype, key
            assert arrays[key].shape == expected[key].shape, key
            assert arrays[key].tobytes() == expected[key].tobytes(), key


def test_names_and_shapes_come_as_openai_wrote_them():
    arrays = tensorflow.read(GOLDEN / "tensorflow_tiny")
    assert arrays["model/h10/attn/c_attn/w"].shape == (1, 6, 18)
    assert arrays["model/wte"].shape == (29, 6)
    assert len(arrays) == 4 + 11 * 12


def test_another_prefix_is_found_when_it_is_the_only_one(tmp_path):
    shutil.copy(GOLDEN / "tensorflow_tiny" / INDEX, tmp_path / "model-1000.index")
    shutil.copy(GOLDEN / "tensorflow_tiny" / DATA, tmp_path / "model-1000.data-00000-of-00001")
    assert len(tensorflow.read(tmp_path)) == 136
    copy("tensorflow_dtypes", tmp_path)  # model.ckpt goes first
    assert len(tensorflow.read(str(tmp_path))) == 7


def test_writing_into_an_array_leaves_the_file_alone(tmp_path):
    folder = copy("tensorflow_tiny", tmp_path)
    before = (folder / DATA).read_bytes()
    tensorflow.read(folder)["model/wte"][:] = 7
    assert (folder / DATA).read_bytes() == before


def test_many_blocks_and_restarts(tmp_path):
    rng = np.random.default_rng(3)
    names = sorted(f"model/h{i}/{part}".encode() for i in range(40) for part in ("b", "weight"))
    pairs, data = [HEADER], b""
    for i, name in enumerate(names):
        raw = rng.normal(size=i).astype("<f4").tobytes()
        pairs.append((name, line(raw, (i,), offset=len(data))))
        data += raw
    blocks = [pairs[:1], pairs[1:2], pairs[2:9], pairs[9:50], pairs[50:]]
    arrays = tensorflow.read(bundle(tmp_path, table(blocks), data))
    assert [name.encode() for name in arrays] == names
    assert np.concatenate(list(arrays.values())).tobytes() == data


def test_unknown_fields_are_skipped_and_of_two_the_last_counts(tmp_path):
    extra = field(99, 5) + field(98, b"text") + field(97, b"12345678", 1) + field(96, b"1234", 5)
    extra += field(4, b"1234", wire=5)  # offset's number, but not an offset
    folder = one(tmp_path, offset=77, extra=extra + field(4, 0))
    assert tensorflow.read(folder)["w"].tolist() == [1, 2, 3]


def test_data_at_an_odd_address(tmp_path):
    pairs = [HEADER, (b"w", line(ONES, (3,), offset=5))]
    array = tensorflow.read(bundle(tmp_path, table([pairs]), b"hole!" + ONES))["w"]
    assert array.tolist() == [1, 2, 3] and array.flags.aligned and array.flags.writeable


def test_every_bfloat16_is_the_upper_half_of_a_float32(tmp_path):
    bits = np.arange(65536, dtype="<u2")
    pairs = [HEADER, (b"b", line(bits.tobytes(), (256, 256), dtype=14))]
    array = tensorflow.read(bundle(tmp_path, table([pairs]), bits.tobytes()))["b"]
    upper = np.stack([np.zeros_like(bits), bits], axis=1)
    assert array.shape == (256, 256) and array.tobytes() == upper.tobytes()


# ---- the checksum --------------------------------------------------------------------------------


def crc_by_bits(data):
    """The definition, a bit at a time."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    "data, crc",
    [
        (b"", 0x00000000),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc_of_rfc_3720(data, crc):
    assert tensorflow.crc32c(np.frombuffer(data, np.uint8)) == crc == crc_by_bits(data)


def test_crc_of_every_short_length_and_of_those_around_a_block():
    noise = np.frombuffer(np.random.default_rng(4).bytes(20_000), np.uint8)
    sizes = [*range(70), 2043, 2044, 2045, 2048, 2107, 2108, 2109, 16_380, 16_384, 16_385, 19_999]
    for n in sizes:
        assert tensorflow.crc32c(noise[:n]) == crc_by_bits(noise[:n].tobytes()), n
    assert tensorflow.crc32c(noise[3:5003]) == crc_by_bits(noise[3:5003].tobytes())


@pytest.mark.parametrize("more", [-3, 0, 5, 70_001])
def test_crc_of_several_steps_tells_where_a_bit_was(more):
    """CRC is linear: a flipped bit changes it by what that bit, alone among zeros, makes of it."""
    data = np.frombuffer(np.random.default_rng(5).bytes(2 * tensorflow.STEP + more), np.uint8)
    zeros = np.zeros_like(data)
    whole, nothing = tensorflow.crc32c(data), tensorflow.crc32c(zeros)
    for distance in (0, 1, 100, 1900):
        flipped = data.copy()
        flipped[-1 - distance] ^= 16
        # Zeros in front of the bit change nothing, so the slow loop need not see them.
        change = crc_by_bits(b"\x10" + bytes(distance)) ^ crc_by_bits(bytes(1 + distance))
        assert tensorflow.crc32c(flipped) ^ whole == change
    flipped = data.copy()
    flipped[tensorflow.STEP // 3] ^= 1
    zeros[tensorflow.STEP // 3] ^= 1
    assert tensorflow.crc32c(flipped) ^ whole == tensorflow.crc32c(zeros) ^ nothing != 0


def test_the_first_division_is_by_a_multiple_of_the_polynomial():
    """P(x^N) = P(x)^N, checked as integers whose bits are coefficients, for a small N."""

    def times(a, b):
        product = 0
        for i in range(b.bit_length()):
            product ^= a << i if b >> i & 1 else 0
        return product

    p = 1 << 32 | tensorflow.POLYNOMIAL
    power = p
    for _ in range(3):  # to the 8th
        power = times(power, power)
    assert power == sum(1 << 8 * t for t in [*tensorflow.TAPS, 32])


@pytest.mark.parametrize("seed", range(40))
def test_a_flipped_bit_is_found_and_its_tensor_named(tmp_path, seed):
    rng = np.random.default_rng(seed)
    folder = copy("tensorflow_tiny", tmp_path)
    right = tensorflow.read(GOLDEN / "tensorflow_tiny")  # not mapped from the file changed below
    data = bytearray((folder / DATA).read_bytes())
    at = int(rng.integers(len(data)))
    data[at] ^= 1 << int(rng.integers(8))
    (folder / DATA).write_bytes(data)
    wrong = tensorflow.read(folder, verify=False)
    (name,) = [n for n in right if right[n].tobytes() != wrong[n].tobytes()]
    with pytest.raises(CheckpointError, match=f"tensor '{name}' does not match.*download it again"):
        tensorflow.read(folder)


# ---- what is missing, cut, or something else -----------------------------------------------------


def test_missing_things(tmp_path):
    with pytest.raises(FileNotFoundError):
        tensorflow.read(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"should hold model\.ckpt\.index.* but has none"):
        tensorflow.read(tmp_path)
    copy("tensorflow_tiny", tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        tensorflow.read(tmp_path / INDEX)
    os.remove(tmp_path / DATA)
    with pytest.raises(CheckpointError, match=f"{DATA} is missing"):
        tensorflow.read(tmp_path)
    for name in ("a.index", "b.index"):
        os.rename(tmp_path / INDEX, tmp_path / name)
        (tmp_path / INDEX).write_bytes(b"")
    os.remove(tmp_path / INDEX)
    with pytest.raises(CheckpointError, match=r"but has a\.index, b\.index"):
        tensorflow.read(tmp_path)


def test_an_index_that_is_a_folder(tmp_path):
    (tmp_path / INDEX).mkdir()
    with pytest.raises(CheckpointError, match="not a file"):
        tensorflow.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(47),
        bytes(48),
        b"<!DOCTYPE html><html><head><title>404 Not Found</title></head></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789\nsize 5215\n",
        footer((0, 8), (0, 8), magic=0xDB4775248B80FB58),
    ],
)
def test_what_is_no_index(tmp_path, content):
    with pytest.raises(CheckpointError, match="not a TensorFlow index"):
        tensorflow.read(bundle(tmp_path, content))


def test_an_absurdly_large_index(tmp_path):
    with pytest.raises(CheckpointError, match="far too large"):
        tensorflow.read(bundle(tmp_path, bytes(1_000_001)))


@pytest.mark.parametrize("change", [-23_352, -1, 1, 4096])
def test_data_of_another_size(tmp_path, change):
    folder = copy("tensorflow_tiny", tmp_path)
    os.truncate(folder / DATA, 23_352 + change)
    with pytest.raises(
        CheckpointError, match=f"{DATA} has .* bytes where its index expects 23,352"
    ):
        tensorflow.read(folder, verify=False)


def test_snappy_is_refused(tmp_path):
    index = table([[HEADER, (b"w", line(ONES, (3,)))]], kind=1)
    with pytest.raises(CheckpointError, match="compressed with snappy"):
        tensorflow.read(bundle(tmp_path, index))
    index = table([[HEADER]], kind=4)
    with pytest.raises(CheckpointError, match=r"in an unknown way \(4\)"):
        tensorflow.read(bundle(tmp_path, index))


# ---- an index whose checksums are right and whose numbers are not --------------------------------


@pytest.mark.parametrize(
    "change, message",
    [
        ({"dtype": 7}, "dtype 7; numpygpt reads float32"),
        ({"dtype": 0}, "dtype 0"),
        ({"dtype": 101}, "dtype 101"),
        ({"dtype": 2}, "12 bytes, but its shape .3,. takes 24"),
        ({"size": 11}, "has 11 bytes"),
        ({"size": 2**64 - 4}, "impossible place"),
        ({"offset": 2**64 - 12}, "impossible place"),
        ({"offset": 1}, "index expects 13"),
        ({"offset": 2**62}, "index expects 4,611"),
        ({"shard": 1}, "impossible place"),
        ({"crc": 0}, "tensor 'w' does not match its checksum"),
        ({"shape_proto": shape_proto(4)}, "takes 16"),
        ({"shape_proto": b""}, r"its shape \(\) takes 4"),
        ({"shape_proto": shape_proto(2**64 - 1)}, "no array can have"),  # -1: unknown
        ({"shape_proto": shape_proto(2**62, 4)}, "no array can have"),
        ({"shape_proto": shape_proto(0, 2**60), "size": 0}, "no array can have"),
        ({"shape_proto": shape_proto(*[1] * 70, 3)}, "no array can have"),
        ({"shape_proto": shape_proto(3) + field(3, 1)}, "no array can have"),
        ({"extra": field(7, b"")}, "slices"),
        ({"extra": b"\x80"}, "does not end"),
        ({"extra": b"\x08" + b"\xff" * 10}, "does not end"),
        ({"extra": b"\x08" + b"\xff" * 9 + b"\x02"}, "does not end"),
        ({"extra": field(8, b"", wire=3)}, "unknown kind"),
        ({"extra": field(8, b"", wire=7)}, "unknown kind"),
        ({"extra": field(8, b"123", wire=5)}, "does not fit"),
        ({"extra": field(8, b"1234567", wire=1)}, "does not fit"),
        ({"extra": varint(8 << 3 | 2) + varint(2**63) + b"x"}, "does not fit"),
    ],
)
def test_every_number_of_an_entry_is_checked(tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        tensorflow.read(one(tmp_path, **change))


@pytest.mark.parametrize(
    "first, second, message",
    [((0, 2), (4, 2), "'b' overlaps"), ((0, 3), (0, 3), "overlaps"), ((4, 2), (0, 2), "'a' overl")],
)
def test_tensors_that_overlap(tmp_path, first, second, message):
    pairs = [HEADER]
    for name, (begin, count) in ((b"a", first), (b"b", second)):
        pairs.append((name, line(ONES[begin : begin + 4 * count], (count,), offset=begin)))
    with pytest.raises(CheckpointError, match=message):
        tensorflow.read(bundle(tmp_path, table([pairs])))


@pytest.mark.parametrize(
    "header, message",
    [
        (field(1, 2), "speaks of 2 data files"),
        (b"", "speaks of 0 data files"),
        (field(1, 1) + field(2, 1), "big-endian"),
        (field(1, 1) + field(3, field(2, 2)), "newer TensorFlow"),
        (field(1, 1) + b"\xff", "does not end"),
    ],
)
def test_the_header_is_checked(tmp_path, header, message):
    with pytest.raises(CheckpointError, match=message):
        tensorflow.read(bundle(tmp_path, table([[(b"", header)]])))


W = (b"w", line(ONES, (3,)))
PLAIN = block([HEADER, W])


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([], "no header"),
        ([[W]], "no header"),
        ([[HEADER, W, W]], "out of order"),
        ([[HEADER, W, (b"a", W[1])]], "out of order"),
        ([[HEADER, W], [W]], "out of order"),
        ([[HEADER, (b"\xff\xfe", W[1])]], "not UTF-8"),
        ([[HEADER, (b"n" * 513, W[1])]], "far too long"),
        ([b""], "number of restarts"),
        ([b"\x01\x00\x00"], "number of restarts"),
        ([bytes(4)], "number of restarts"),
        ([fixed32(1)], "number of restarts"),
        ([fixed32(2**32 - 1)], "number of restarts"),
        ([PLAIN[:-8] + fixed32(1) + fixed32(1)], "restart in the middle"),
        ([PLAIN[:-8] + fixed32(2**31) + fixed32(1)], "restart in the middle"),
        ([b"\x01\x00\x00" + PLAIN], "entry that does not fit"),  # shares a byte with nothing
        ([b"\x00\x05\x00" + fixed32(0) + fixed32(1)], "entry that does not fit"),
        ([b"\x00\x00\x05" + fixed32(0) + fixed32(1)], "entry that does not fit"),
        ([b"\x00\x00" + varint(2**63) + fixed32(0) + fixed32(1)], "entry that does not fit"),
        ([b"\xff" * 12 + fixed32(0) + fixed32(1)], "does not end"),
    ],
)
def test_every_number_of_a_block_is_checked(tmp_path, blocks, message):
    with pytest.raises(CheckpointError, match=message):
        tensorflow.read(bundle(tmp_path, table(blocks)))


@pytest.mark.parametrize(
    "index, message",
    [
        ((10**6, 10), "points outside itself"),
        ((2**64 - 1, 2**64 - 1), "points outside itself"),
        ((0, 10**6), "points outside itself"),
        ((1, 20), "its own checksum"),
    ],
)
def test_the_footer_is_checked(tmp_path, index, message):
    contents = table([[HEADER, W]])[:-48]
    with pytest.raises(CheckpointError, match=message):
        tensorflow.read(bundle(tmp_path, contents + footer((0, 8), index)))
    with pytest.raises(CheckpointError, match="points outside itself"):
        tensorflow.read(bundle(tmp_path, contents + footer((2**40, 8), (0, 8))))


def test_a_block_that_is_listed_twice(tmp_path):
    data = sealed(PLAIN)
    handle = varint(0) + varint(len(PLAIN))
    contents = block([(b"v", handle), (b"w", handle)])
    index = data + sealed(contents) + footer((0, 8), (len(data), len(contents)))
    with pytest.raises(CheckpointError, match="blocks that overlap"):
        tensorflow.read(bundle(tmp_path, index))


# ---- seeded damage -------------------------------------------------------------------------------


def damage(rng, whole):
    damaged = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(max(len(damaged), 1)))
        kind = rng.integers(4)
        if kind == 0 and damaged:
            damaged[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and damaged:
            damaged[at] = rng.choice([0, 1, 127, 128, 255])
        elif kind == 2:
            damaged[at:at] = rng.bytes(int(rng.integers(1, 4)))
        elif rng.integers(4) == 0:
            del damaged[at:]
    return bytes(damaged)


@pytest.mark.parametrize("file", [INDEX, DATA])
def test_damage_anywhere_is_found_or_harmless(tmp_path, file):
    rng = np.random.default_rng(1999)
    folder = copy("tensorflow_dtypes", tmp_path)
    right = tensorflow.read(GOLDEN / "tensorflow_dtypes")
    whole = (folder / file).read_bytes()
    refused = 0
    for trial in range(300):
        (folder / file).write_bytes(damage(rng, whole))
        try:
            arrays = tensorflow.read(folder)
        except CheckpointError:
            refused += 1
        else:
            assert list(arrays) == list(right)
            for name in right:
                assert arrays[name].tobytes() == right[name].tobytes(), (trial, name)
    assert refused > 200


def test_lies_with_right_checksums_raise_nothing_but_checkpoint_error(tmp_path):
    rng = np.random.default_rng(42)
    data = np.arange(30, dtype="<f4").tobytes()
    parts = {b"model/wpe": (0, 3, 2), b"model/wpf": (24, 5, 1), b"model/wte": (44, 19, 1)}
    pairs = [HEADER]
    for name, (begin, *shape) in parts.items():
        raw = data[begin : begin + 4 * shape[0] * shape[1]]
        pairs.append((name, line(raw, shape, offset=begin)))
    contents = block(pairs)
    assert len(tensorflow.read(bundle(tmp_path, table([contents]), data))) == 3
    refused = 0
    for _ in range(500):
        (tmp_path / INDEX).write_bytes(table([damage(rng, contents)]))
        try:
            arrays = tensorflow.read(tmp_path, verify=False)
        except CheckpointError:
            refused += 1
        else:
            assert all(isinstance(name, str) and array.size <= 30 for name, array in arrays.items())
    assert 250 < refused < 500
