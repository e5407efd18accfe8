"""A TensorFlow checkpoint (`.index` + `.data`) as a dict of arrays.

    model.ckpt.data-00000-of-00001   the tensors' bytes one after another, nothing else
    model.ckpt.index                 a sorted table: tensor name -> dtype, shape, place, checksum

The index is a LevelDB table. Read it from the back: the last 48 bytes say where the index block is,
the index block says where the data blocks are, and each data block holds (name, entry) pairs.
Names and entries come back as they are in the file ("model/h0/attn/c_attn/w", shape (1, C, 3C)).

Sources: leveldb, doc/table_format.md; tensorflow, core/protobuf/tensor_bundle.proto and
core/util/tensor_bundle. The files are somebody else's bytes: every number in them is checked
before it is used, with Python integers, which cannot overflow.
"""

import itertools
import math
import os
import re
from pathlib import Path

import numpy as np

from numpygpt.formats import CheckpointError, widened

MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
MAX_INDEX_BYTES = 1_000_000  # that of GPT-2 1558M has 21 kB
MAX_NAME_BYTES = 512

# Numbers of the enum DataType. NumPy has no bfloat16: its bits are read as integers, and widened.
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 14: "<u2", 19: "<f2"}
HALF, BFLOAT16 = 19, 14


def read(folder: str | os.PathLike, verify: bool = True) -> dict[str, np.ndarray]:
    """The arrays of `model.ckpt`, or of the only checkpoint in the folder, in the index's order.

    float16 and bfloat16 come back as float32; everything else keeps its dtype and is a view of the
    memory-mapped file. `verify` compares every tensor with its CRC-32C, at about 0.8 GB/s.
    Raises CheckpointError, which names the file and the tensor, for what is damaged, incomplete or
    something else, and OSError if there is no such folder.
    """
    index = _find_index(Path(folder))
    entries = [_entry(index, name, value) for name, value in _read_index(index)]
    path = index.with_name(index.name.removesuffix("index") + "data-00000-of-00001")
    data = _map(path, index)
    _check_cover(path, entries, len(data))
    return {
        name: _decode(path, name, dtype, data[begin:end], crc if verify else None).reshape(shape)
        for name, dtype, shape, begin, end, crc in entries
    }


def _find_index(folder):
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder: name the one that holds model.ckpt.index")
    found = sorted(name for name in os.listdir(folder) if name.endswith(".index"))
    if "model.ckpt.index" in found:
        return folder / "model.ckpt.index"
    if len(found) > 1 and (folder / "checkpoint").is_file():  # a run's: this file names the last
        text = (folder / "checkpoint").read_bytes()[:10_000].decode("utf-8", "replace")
        last = re.match(r'model_checkpoint_path: "(?:.*[/\\])?([^"/\\]+)"', text)
        found = [name for name in found if last and name == f"{last[1]}.index"] or found
    if len(found) != 1:
        raise CheckpointError(
            f"{folder} should hold model.ckpt.index, or one other .index file, but has "
            f"{', '.join(found) or 'none'}: download the checkpoint again, or put the others away"
        )
    return folder / found[0]


def _map(path, index):
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: download it, {index.name} alone holds no weights"
        )
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.empty(0, np.uint8)
    # Mode "c" is copy-on-write: the arrays can be trained in place, the file never changes.
    return np.asarray(np.memmap(path, np.uint8, mode="c"))


def _decode(path, name, dtype, raw, crc):
    """Bytes (n,) -> numbers (m,). A view where possible."""
    if crc is not None and masked(crc32c(raw)) != crc:
        raise CheckpointError(
            f"{path}, tensor {name!r} does not match its checksum: the file is damaged; delete it "
            "and download it again"
        )
    numbers = raw.view(DTYPES[dtype])
    if dtype == BFLOAT16:
        return widened(numbers)
    if dtype == HALF:
        return numbers.astype(np.float32)
    return np.require(numbers, requirements="A")  # a copy where the data lies at an odd address


def _check_cover(path, entries, size):
    position = 0
    for name, _, _, begin, end, _ in sorted(entries, key=lambda entry: entry[3:5]):
        if begin < position:
            raise CheckpointError(f"{path}, tensor {name!r} overlaps the one before: get it again")
        position = end
    if position != size:
        raise CheckpointError(
            f"{path} has {size:,} bytes where its index expects {position:,}: it is cut short, or "
            "of another checkpoint; delete it and download it again"
        )


# ---- the index: a LevelDB table ------------------------------------------------------------------


def _read_index(path):
    """-> [(name, BundleEntryProto)], the header checked and taken off."""
    if not path.is_file() or path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(
            f"{path} is far too large for an index, or is not a file: download it again"
        )
    table = path.read_bytes()
    try:
        pairs = _pairs(table)
        _check_header(pairs)
        return [(_text(key), value) for key, value in pairs[1:]]
    except _Damage as damage:
        raise CheckpointError(f"{path} {damage}; download it again") from None


class _Damage(Exception):
    """What is wrong with an index; the one place that knows the file's name adds it."""


def _pairs(table):
    footer = table[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or int.from_bytes(footer[-8:], "little") != MAGIC:
        raise _Damage("is cut short or is not a TensorFlow index (a saved web page, perhaps)")
    # The footer begins with the place of the metaindex block, which TensorFlow leaves empty.
    _, position = _handle(footer, 0, len(table))
    handle, _ = _handle(footer, position, len(table))
    pairs, end = [], 0
    for _, value in _block(table, handle):
        (offset, size), _ = _handle(value, 0, len(table))
        if offset < end:  # a short file could list one large block a thousand times
            raise _Damage("has blocks that overlap")
        end = offset + size
        pairs += _block(table, (offset, size))
    keys = [key for key, _ in pairs]
    if any(after <= before for before, after in itertools.pairwise(keys)):
        raise _Damage("has names out of order")
    return pairs


def _handle(data, position, table_size):
    """A place in the file: (offset, size) of a block, without the 5 bytes that follow the block."""
    offset, position = _varint(data, position)
    size, position = _varint(data, position)
    if offset + size + 5 > table_size - FOOTER_BYTES:
        raise _Damage("points outside itself")
    return (offset, size), position


def _block(table, handle):
    """[(key, value)] of a block: `size` bytes, one byte of compression, four of checksum."""
    offset, size = handle
    end = offset + size
    if masked(crc32c(np.frombuffer(table[offset : end + 1], np.uint8))) != _uint32(table, end + 1):
        raise _Damage("does not match its own checksum")
    if table[end] != 0:
        kind = "with snappy" if table[end] == 1 else f"in an unknown way ({table[end]})"
        raise _Damage(
            f"is compressed {kind}, which TensorFlow does not do and numpygpt cannot read"
        )
    block = table[offset:end]
    entries_end, restarts = _restarts(block)
    pairs, starts, position, key = [], set(), 0, b""
    while position < entries_end:
        start = position
        shared, position = _varint(block, position)
        fresh, position = _varint(block, position)
        length, position = _varint(block, position)
        if shared > len(key) or position + fresh + length > entries_end:
            raise _Damage("has an entry that does not fit")
        if shared + fresh > MAX_NAME_BYTES:
            raise _Damage("has a name that is far too long")
        key = key[:shared] + block[position : position + fresh]
        position += fresh + length
        pairs.append((key, block[position - length : position]))
        if shared == 0:
            starts.add(start)
    # At a restart a name is spelled out, so that a reader could jump there; an empty block has one.
    if not restarts <= (starts or {0}):
        raise _Damage("has a restart in the middle of an entry")
    return pairs


def _restarts(block):
    """The list of offsets at the end of a block: uint32 each, and last their number."""
    count = _uint32(block, len(block) - 4) if len(block) >= 4 else 0
    entries_end = len(block) - 4 * (count + 1)
    if count < 1 or entries_end < 0:
        raise _Damage("has an impossible number of restarts")
    return entries_end, {_uint32(block, entries_end + 4 * i) for i in range(count)}


def _uint32(data, position):
    return int.from_bytes(data[position : position + 4], "little")


def _varint(data, position):
    """Seven bits a byte, lowest first, the top bit set on all bytes but the last; < 2**64."""
    number = 0
    for i, byte in enumerate(data[position : position + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            if number >= 2**64:
                break
            return number, position + i + 1
    raise _Damage("has a number that does not end")


# ---- the entries: protocol buffers ---------------------------------------------------------------

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def _fields(message):
    """{(field, wire type): [values]}. What nobody asks for is skipped, as protocol buffers want."""
    fields, position = {}, 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire = tag & 7
        if wire == VARINT:
            value, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64, BYTES):
            size = 4 if wire == FIXED32 else 8
            if wire == BYTES:
                size, position = _varint(message, position)
            value, position = message[position : position + size], position + size
        else:
            raise _Damage("has a field of an unknown kind")
        if position > len(message):
            raise _Damage("has a field that does not fit")
        fields.setdefault((tag >> 3, wire), []).append(value)
    return fields


def _last(fields, field, wire=VARINT, default=0):
    """Of a field that is given twice, the last counts; one that is left out is 0."""
    return fields.get((field, wire), [default])[-1]


def _text(key):
    try:
        return key.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damage("has a name that is not UTF-8") from None


def _check_header(pairs):
    """BundleHeaderProto: num_shards = 1, endianness = 2, version = 3 {min_consumer = 2}."""
    if not pairs or pairs[0][0] != b"":
        raise _Damage("has no header")
    header = _fields(pairs[0][1])
    if _last(header, 1) != 1:
        raise _Damage(f"speaks of {_last(header, 1)} data files, and numpygpt reads one")
    if _last(header, 2) != 0:
        raise _Damage("is of a big-endian machine, which numpygpt does not read")
    if _last(_fields(_last(header, 3, BYTES, b"")), 2) > 1:
        raise _Damage("is of a newer TensorFlow than numpygpt knows")


def _entry(path, name, value):
    """BundleEntryProto -> name, dtype, shape, begin, end, masked checksum."""
    where = f"{path}, tensor {name!r}"
    try:
        fields = _fields(value)
        shape = _shape(_last(fields, 2, BYTES, b""))
    except _Damage as damage:
        raise CheckpointError(f"{where} {damage}: download it again") from None
    dtype, shard, offset, size = (_last(fields, number) for number in (1, 3, 4, 5))
    if dtype not in DTYPES:
        raise CheckpointError(f"{where} has TensorFlow's dtype {dtype}; numpygpt reads {READABLE}")
    if (7, BYTES) in fields:
        raise CheckpointError(f"{where} is stored in slices, which GPT-2's never are")
    if shard != 0 or offset + size >= 2**63:
        raise CheckpointError(f"{where} lies in an impossible place: download it again")
    expected = math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
    if size != expected:
        raise CheckpointError(
            f"{where} has {size} bytes, but its shape {shape} takes {expected}: download it again"
        )
    crc = int.from_bytes(_last(fields, 6, FIXED32, bytes(4)), "little")
    return name, dtype, shape, offset, offset + size, crc


READABLE = "float32, float64, float16, bfloat16, int32 and int64"


def _shape(message):
    """TensorShapeProto: dim = 2 {size = 1}, unknown_rank = 3."""
    fields = _fields(message)
    shape = tuple(_last(_fields(dim), 1) for dim in fields.get((2, BYTES), []))
    # NumPy multiplies the dimensions that are not 0 even when one is 0: they have to fit, too.
    # A dimension of -1, "unknown", is 2**64 - 1 here.
    if _last(fields, 3) or len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**60:
        raise _Damage("has a shape that no array can have")
    return shape


# ---- CRC-32C -------------------------------------------------------------------------------------

POLYNOMIAL = 0x1EDC6F41  # Castagnoli's P(x), without x^32
TAPS = [t for t in range(32) if POLYNOMIAL >> t & 1]
BLOCKS = (32_768, 4_096, 512, 64)  # bytes, powers of 2; the first keeps the work in the L2 cache
STEP = 96 * BLOCKS[0]
# The checksum begins with a register of all ones. These four bytes take it there from 0, so that
# with them in front the rest is nothing but a remainder.
ALL_ONES = np.frombuffer(b"\x54\x64\x1f\x64", np.uint8)


def crc32c(data: np.ndarray) -> int:
    """The CRC-32C (RFC 3720, B.4) of bytes (n,), at about 1 GB/s with NumPy alone.

    A CRC is the remainder of the message, read as a polynomial over {0, 1}, divided by P(x). Byte
    by byte that is far too slow in Python; but over {0, 1} squaring a sum squares its terms, so
    P(x)^2 = P(x^2), and thus P(x^N) is a multiple of P(x) for every power of two N. Dividing by
    P(x^N) first does not change the remainder by P(x), and it moves whole blocks of N bits: each
    block at the front vanishes when it is XORed onto the 17 places behind it where P has a term.
    Smaller and smaller blocks leave 2 kB for the table.
    """
    first = len(data) % STEP
    message = np.concatenate([ALL_ONES, data[:first]])
    for begin in range(first, len(data), STEP):
        message = np.concatenate([_fold(message, BLOCKS[0]), data[begin : begin + STEP]])
    for block in BLOCKS:
        message = _fold(message, block)
    register = 0
    for byte in message.tobytes():
        register = TABLE[(register ^ byte) & 255] ^ register >> 8
    return register ^ 0xFFFFFFFF


def masked(crc: int) -> int:
    """LevelDB stores checksums rotated and shifted, because they may be checksummed again."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _fold(message, block):
    """Bytes (n,) -> at most (32 block,) bytes with the same remainder by P."""
    surplus = -(-len(message) // block) - 32
    if surplus <= 0:
        return message
    blocks = np.zeros((32 + surplus, block), np.uint8)
    blocks.reshape(-1)[-len(message) :] = message  # zeros in front change no remainder
    for i in range(0, surplus, 4):  # four at a time: P's second term is x^28
        front = blocks[i : min(i + 4, surplus)]
        for tap in TAPS:
            blocks[i + 32 - tap : i + 32 - tap + len(front)] ^= front
    return blocks[surplus:].reshape(-1)


def _table():
    """What eight steps of the division do to each byte; bits run backwards, lowest first."""
    reflected = int(f"{POLYNOMIAL:032b}"[::-1], 2)
    table = []
    for register in range(256):
        for _ in range(8):
            register = register >> 1 ^ (reflected if register & 1 else 0)
        table.append(register)
    return table


TABLE = _table()
