"""Arrays that another program dumped: npz, npy, a folder of them, safetensors, raw float32."""

import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np

from numpygpt.files.atomic import writing
from numpygpt.formats import safetensors, size_of, unique, widened

MAX_JSON = 100_000_000  # bytes
MAX_UNPACKED = 200  # times its size in the file; attention that is half zeros packs to a third
MAX_DIMENSIONS = 8  # an array of a model has 4 at most
INDEX = "index.json"
ENDINGS = (".npz", ".npy", ".safetensors", ".json", ".bin")
BFLOAT16 = np.dtype("V2")  # what NumPy makes of an ml_dtypes.bfloat16 it does not know


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Name -> array. A single .npy file is called "logits".

    Raw float32, little-endian, is a folder as `write` makes it, or a .bin beside a .json of the
    same name that holds the shapes in the order of the file, {"ln_f": [1, 4, 768], ...}; either may
    be named. Pickles are refused: they can run any code.
    Raises ValueError for a file that cannot be read, FileNotFoundError for one that is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    try:
        arrays = _reader(path)(path)
    except Exception as error:  # whatever the libraries raise at a damaged file
        if isinstance(error, OSError) and error.filename:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:
            reason = "it holds Python objects; save plain arrays with np.savez(file, name=array)"
        raise ValueError(f"{path} cannot be read as arrays: {reason}") from None
    if not arrays:
        raise ValueError(f"{path} holds no arrays")
    for name, array in arrays.items():
        if array.ndim > MAX_DIMENSIONS:
            raise ValueError(
                f"{path}: {name!r:.99} has {array.ndim} dimensions, more than any array of a model"
            )
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
    packed = size_of(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("two arrays in it have one name: save it again with np.savez")
        if unpacked > max(MAX_UNPACKED * packed, 1_000_000):
            raise ValueError(
                f"its {packed:,} bytes unpack to {unpacked:,}: save it again with np.savez"
            )
    with open(path, "rb") as opened:  # np.load would leave a damaged file open
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, so its name should end in .npy")
        arrays = {name: file[name] for name in file}
    others = [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]
    if others:
        raise ValueError(f"{others[0]} in it is not an array")
    return arrays


def _npy(path):
    size_of(path)
    with open(path, "rb") as opened:
        array = np.load(opened, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, so its name should end in .npz")
    return array


def _folder(path):
    if (path / INDEX).is_file():
        return {name: _raw_file(path, entry) for name, entry in _index(path)["tensors"].items()}
    arrays = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = _npy(file)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file.name} in it: {error}") from None
    return arrays


def _index(path):
    index = _json(path / INDEX)
    if not isinstance(index, dict) or not isinstance(index.get("tensors"), dict):
        raise ValueError(f'{INDEX} should hold {{"tensors": {{name: {{"file", "shape"}}}}}}')
    return index


def _raw_file(folder, entry):
    if not isinstance(entry, dict) or not _is_shape(entry.get("shape")):
        raise ValueError(f"an entry of {INDEX} has no shape")
    file = folder / Path(str(entry.get("file"))).name  # in this folder, whatever it says
    size = file.stat().st_size if file.is_file() else None
    expected = 4 * math.prod(entry["shape"])
    if size != expected:
        there = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(f"{file.name} {there}, where its shape takes {expected}")
    return np.frombuffer(file.read_bytes(), "<f4").reshape(entry["shape"])


def _raw(path):
    shapes = _json(path.with_suffix(".json"))
    if not isinstance(shapes, dict) or not all(map(_is_shape, shapes.values())):
        raise ValueError('the .json should hold a shape for each name: {"ln_f": [1, 4, 768], ...}')
    size = size_of(path.with_suffix(".bin"))
    expected = 4 * sum(map(math.prod, shapes.values()))
    if size != expected:
        raise ValueError(f"the .bin has {size} bytes where the shapes take {expected}")
    data = np.fromfile(path.with_suffix(".bin"), np.uint8)
    arrays, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 4 * math.prod(shape)
        arrays[name] = data[start:stop].view("<f4").reshape(shape)
        start = stop
    return arrays


def _json(path):
    if (size := size_of(path)) > MAX_JSON:
        raise ValueError(f"{path.name} has {size:,} bytes, too many for a list of shapes")
    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)


def _is_shape(shape):
    return isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)


def _widened(array):
    if array.dtype != BFLOAT16:
        return array
    return widened(array.view(np.uint16))


def write(path: str | os.PathLike, arrays: dict[str, np.ndarray], model: str = ""):
    """Arrays as .npz or .safetensors, or as a folder of raw float32; with the model's name.

    The folder, for a path that ends in / or has no ending, holds a file of little-endian float32
    for each array, in C order, and index.json: {"model": ..., "tensors": {name: {"file",
    "shape"}}}, one array a line in the order of computation. Raises ValueError for another ending.
    """
    if str(path).endswith(".safetensors"):
        safetensors.write(path, arrays, {"model": model})
    elif str(path).endswith(".npz"):
        with writing(path, binary=True) as file:
            np.savez(file, **arrays, model=np.array(model))
    elif str(path).endswith(("/", os.sep)) or not Path(path).suffix:
        _write_raw(Path(path), arrays, model)
    else:
        raise ValueError(f"{path} should end in .npz or .safetensors, or in / for a folder")


def _write_raw(folder, arrays, model):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)  # of other arrays: a half folder is not taken for one
    lines = []
    for name, array in arrays.items():
        file = name.replace("/", "_") + ".f32"
        (folder / file).write_bytes(np.ascontiguousarray(array, "<f4").tobytes())
        lines.append(
            f"  {json.dumps(name)}: {json.dumps({'file': file, 'shape': list(array.shape)})}"
        )
    tensors = ",\n".join(lines)
    text = f'{{\n "model": {json.dumps(model)},\n "tensors": {{\n{tensors}\n }}\n}}\n'
    with writing(folder / INDEX) as file:  # last, so that what can be read is whole
        file.write(text)


def model_of(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> str:
    """The model that `write` was told, or ""."""
    if str(path).endswith(".safetensors"):
        return safetensors.read_metadata(path).get("model", "")
    if (Path(path) / INDEX).is_file():
        return str(_index(Path(path)).get("model", ""))
    return str(arrays.get("model", ""))
