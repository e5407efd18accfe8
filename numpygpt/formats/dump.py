"""Arrays that another program dumped: npz, npy, a folder of them, safetensors, raw float32."""

import json
import math
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from numpygpt.files.atomic import writing
from numpygpt.formats import safetensors

UNREADABLE = (
    ValueError, TypeError, EOFError, KeyError, SyntaxError, OverflowError, MemoryError,
    RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
ENDINGS = (".npz", ".npy", ".safetensors", ".json", ".bin")
BFLOAT16 = np.dtype("V2")  # what NumPy makes of an ml_dtypes.bfloat16 it does not know


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array. A single .npy file is called "logits".

    Raw float32, little-endian, is a .bin beside a .json of the same name that holds the shapes in
    the order of the file, {"ln_f": [1, 4, 768], ...}; either may be named. Pickles are refused:
    they can run any code.
    Raises ValueError for a file that cannot be read, FileNotFoundError for one that is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    try:
        arrays = _reader(path)(path)
    except UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects; save plain arrays with np.savez(file, name=array)"
        raise ValueError(f"{path} cannot be read as arrays: {reason}") from None
    if not arrays:
        raise ValueError(f"{path} holds no arrays")
    return {name: _widened(array) for name, array in arrays.items()}


def _reader(path):
    if path.is_dir():
        return _folder
    readers = {
        ".npz": _npz, ".npy": lambda path: {"logits": _npy(path)}, ".safetensors": safetensors.read,
        ".json": _raw, ".bin": _raw,
    }  # fmt: skip
    if path.suffix not in readers:
        raise ValueError(f"the file's name should end in {', '.join(readers)}, or be a folder")
    return readers[path.suffix]


def _npz(path):
    with open(path, "rb") as opened:  # np.load would leave a damaged file open
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, so its name should end in .npy")
        arrays = {name: file[name] for name in file}
    others = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]} in it is no array")
    return arrays


def _npy(path):
    with open(path, "rb") as opened:
        array = np.load(opened, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, so its name should end in .npz")
    return array


def _folder(path):
    return {file.stem: _npy(file) for file in sorted(path.glob("*.npy"))}


def _raw(path):
    shapes = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise ValueError('the .json should hold a shape for each name: {"ln_f": [1, 4, 768], ...}')
    data = np.fromfile(path.with_suffix(".bin"), np.uint8)
    expected = 4 * sum(map(math.prod, shapes.values()))
    if len(data) != expected:
        raise ValueError(f"the .bin has {len(data)} bytes where the shapes take {expected}")
    arrays, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        arrays[name] = data[start:stop].view("<f4").reshape(shape)
        start = stop
    return arrays


def _is_shape(shape):
    return isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)


def _widened(array):
    if array.dtype != BFLOAT16:
        return array
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], model: str = ""):
    """Arrays as .npz or .safetensors; `model`, the name of what computed them, is written along.

    Raises ValueError for another ending of the file's name.
    """
    if str(path).endswith(".safetensors"):
        safetensors.write(path, arrays, {"model": model})
    elif str(path).endswith(".npz"):
        with writing(path, binary=True) as file:
            np.savez(file, **arrays, model=np.array(model))
    else:
        raise ValueError(f"{path} should end in .npz or .safetensors")


def model_of(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> str:
    """The model that `write` was told, or ""."""
    if str(path).endswith(".safetensors"):
        return safetensors.read_metadata(path).get("model", "")
    return str(arrays.get("model", ""))
