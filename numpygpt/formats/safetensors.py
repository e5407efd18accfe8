"""A safetensors file as a dict of arrays, and back.

    8 bytes     n, the length of the header, little-endian
    n bytes     JSON: {"wpe.weight": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}, …}
    the rest    the arrays one after another, little-endian, C order; data_offsets count from here

Source: github.com/huggingface/safetensors, "Format". The file is somebody else's bytes, so every
number in it is checked before it is used, with Python integers, which cannot overflow.
"""

import hashlib
import json
import math
import os

import numpy as np

from numpygpt.files.atomic import writing
from numpygpt.formats import CheckpointError, unique, widened

# A tenth of the official reader's; a tensor takes about 100 bytes, and GPT-2's largest has 580.
MAX_HEADER_BYTES = 10_000_000
NO_DIGEST = "0" * 64

# NumPy has no bfloat16: its bits are read as integers and widened below.
DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
NAMES = {np.dtype(code): name for name, code in DTYPES.items() if name != "BF16"}


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file, in the order of its header.

    F16 and BF16 come back as float32; everything else keeps its dtype and is a view of the
    memory-mapped file, which costs no memory until it is looked at. Whoever cuts the file short in
    the meantime ends this process: replace it, as `write` does, instead.

    Raises CheckpointError for a file that is damaged or something else, OSError for one that is
    missing.
    """
    _, entries, data = _open(path)
    return {
        name: _decode(data[begin:end], dtype).reshape(shape)
        for name, (dtype, shape, begin, end) in entries.items()
    }


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The text that the writer put under `__metadata__`, or an empty dict. Raises as `read`."""
    metadata, _, _ = _open(path)
    return metadata


def check(path: str | os.PathLike) -> bool:
    """Whether the file has a sha256 of itself, as `write` puts it there; it holds if there is one.

    Raises CheckpointError where it does not hold, and as `read` does.
    """
    path = os.fspath(path)
    expected = read_metadata(path).get("sha256")
    if expected is None:
        return False
    with open(path, "rb") as file:
        start = file.read(8)
        start += file.read(int.from_bytes(start, "little"))
        found = hashlib.sha256(start.replace(expected.encode(), NO_DIGEST.encode(), 1))
        while piece := file.read(1 << 20):
            found.update(piece)
    if found.hexdigest() != expected:
        raise CheckpointError(
            f"{path} is damaged: its bytes no longer have the sha256 with which they were written"
        )
    return True


def write(
    path: str | os.PathLike,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, str] | None = None,
    digest: bool = False,
):
    """Write arrays in the given order; whoever looks finds the old file or the whole new one.

    digest: put the sha256 of the file into its metadata, computed with zeros in its own place, so
    that `check` can tell whether a bit has changed. Raises ValueError for a name, dtype or metadata
    that the format cannot hold.
    """
    arrays = {name: _little_endian(name, array) for name, array in arrays.items()}
    header = _header(arrays, {"sha256": NO_DIGEST} | (metadata or {}) if digest else metadata)
    if digest:
        found = hashlib.sha256(len(header).to_bytes(8, "little") + header)
        for array in arrays.values():
            found.update(array.reshape(-1).view(np.uint8))
        header = header.replace(NO_DIGEST.encode(), found.hexdigest().encode(), 1)
    with writing(path, binary=True) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.writelines(array.reshape(-1).view(np.uint8) for array in arrays.values())


# ---- reading -------------------------------------------------------------------------------------


def _open(path):
    """-> metadata, {name: (dtype, shape, begin, end)}, all bytes after the header."""
    path = os.fspath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        raise CheckpointError(f"{path} is not a file: name the .safetensors file itself")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(path, file.read(64), size)
        file.seek(8)
        header = _parse(path, file.read(length))
        # Mode "c" is copy-on-write: the arrays can be trained in place, the file never changes.
        data = np.asarray(np.memmap(file, np.uint8, mode="c"))[8 + length :]
    metadata = _metadata(path, header.pop("__metadata__", {}))
    entries = {name: _entry(path, name, entry) for name, entry in header.items()}
    _check_cover(path, entries, len(data))
    return metadata, entries, data


def _decode(raw, dtype):
    """Bytes (n,) -> numbers (m,). A view where possible, a copy where the file left no choice."""
    numbers = raw.view(DTYPES[dtype])
    if dtype == "BF16":
        return widened(numbers)
    if dtype == "F16":
        return numbers.astype(np.float32)
    if dtype == "BOOL":  # NumPy believes that a bool is 0 or 1; the file may hold any byte
        return raw != 0
    return np.require(numbers, requirements="A")  # some writers leave data at odd addresses


def _header_length(path, start, size):
    if size < 8:
        raise CheckpointError(f"{path} has only {size} bytes: it is not a safetensors file, or cut")
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{path} {_diagnosis(start, length)}")
    return length


def _diagnosis(start, length):
    """What the file probably is instead: text read as a length is always absurdly large."""
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page that was saved under this name: download the file again"
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return (
            "is a zip archive or a pickle, like PyTorch's .bin files; pickles can run any code, so "
            "convert it where you trust it: transformers' `model.save_pretrained(folder)`"
        )
    return (
        f"claims a header of {length:,} bytes, more than it has or than is allowed "
        f"({MAX_HEADER_BYTES:,}): it is cut short, or not a safetensors file"
    )


def _parse(path, header):
    try:
        # json would keep the last of two equal keys, and read NaN; both are signs of damage here.
        parsed = json.loads(
            header.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse
        )
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise CheckpointError(f"{path} has a damaged header ({error}): get it again") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path} has a header that is not a JSON object: get it again")
    return parsed


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _metadata(path, metadata):
    if metadata is None:  # as some writers put it
        return {}
    if not isinstance(metadata, dict) or not all(type(v) is str for v in metadata.values()):
        raise CheckpointError(f"{path} has a __metadata__ that is not text to text: get it again")
    return metadata


def _entry(path, name, entry):
    """One line of the header, checked as far as that is possible without its neighbours."""
    where = f"{path}, tensor {name!r:.99}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where} lacks its dtype, shape or data_offsets: get the file again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            f"{where} has dtype {dtype!r:.99}; numpygpt reads {', '.join(DTYPES)}"
        )
    if not _is_counts(shape) or not _is_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has an impossible shape or offsets: get the file again")
    itemsize = np.dtype(DTYPES[dtype]).itemsize
    # NumPy multiplies the dimensions that are not 0 even when one is 0: they have to fit, too.
    if len(shape) > 32 or math.prod(max(n, 1) for n in shape) * itemsize >= 2**63:
        raise CheckpointError(f"{where} has a shape that no array can have: get the file again")
    begin, end = offsets
    if end - begin != math.prod(shape) * itemsize:
        raise CheckpointError(
            f"{where} has {end - begin} bytes, but {dtype} of shape {tuple(shape)} takes "
            f"{math.prod(shape) * itemsize}: get the file again"
        )
    return dtype, tuple(shape), begin, end


def _is_counts(numbers):
    # type() and not isinstance(): True is an int, too.
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


def _check_cover(path, entries, size):
    """Sorted by place, each tensor begins where the one before ends, and the last ends the file."""
    position = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise CheckpointError(
                f"{path}, tensor {name!r:.99} begins at byte {begin} of the data, but {position} "
                "was expected, so tensors overlap or leave a hole: get the file again"
            )
        position = end
    if position != size:
        raise CheckpointError(
            f"{path} has {size} bytes of data, but its header speaks of {position}: it is cut "
            "short, or something was appended; get it again"
        )


# ---- writing -------------------------------------------------------------------------------------


def _little_endian(name, array):
    """The array as the file holds it. (np.ascontiguousarray would turn shape () into (1,).)"""
    if type(name) is not str or name == "__metadata__":
        raise ValueError(f"a tensor needs a text as its name, and not '__metadata__': got {name!r}")
    array = np.asarray(array)
    dtype = array.dtype.newbyteorder("<")
    if dtype not in NAMES:
        raise ValueError(f"{name!r} has dtype {array.dtype}; safetensors holds {', '.join(DTYPES)}")
    return np.asarray(array, dtype, order="C")


def _header(arrays, metadata):
    metadata = {} if metadata is None else dict(metadata)
    if not all(type(text) is str for pair in metadata.items() for text in pair):
        raise ValueError("the metadata of a safetensors file is text to text; convert it first")
    header = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        shape = list(array.shape)
        header[name] = {"dtype": NAMES[array.dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    # The data begins at a multiple of 64, a line of the processor's cache, as the weights of GPT-2
    # then all do: where rows straddled two lines, decoding four rows at once took a tenth longer.
    return text + b" " * (-(len(text) + 8) % 64)
