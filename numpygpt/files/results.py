"""The results of an evaluation on disk, from which it goes on when it was interrupted."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from numpygpt.files import text
from numpygpt.files.atomic import writing


def resumed(path, settings: dict, results: Callable):
    """Yield the results of an evaluation, those first that are in the file from an earlier run.

    results(done) -> the results from number `done` on, as JSON can write them; each is written to
    the file when it comes. settings: what must be the same to go on, the first line of the file; a
    last line that is not whole is dropped. Raises ValueError for a file of other settings.
    """
    path = Path(path)
    first = json.dumps(settings)
    lines = text.read(path).split("\n") if path.exists() else []
    lines.pop() if lines else None  # what stands behind the last newline was being written
    if lines and lines[0] != first:
        raise ValueError(
            f"{path} is from another evaluation (model, file or options differ): name another "
            "file, or move it away"
        )
    try:
        before = [json.loads(line) for line in lines[1:]]
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: move it away, and begin anew") from None
    with writing(path) as file:
        file.writelines(line + "\n" for line in lines or [first])
    yield from before
    with open(path, "a", encoding="utf-8") as file:
        for result in results(len(before)):
            file.write(json.dumps(result) + "\n")
            file.flush()
            yield result


def digest_arrays(arrays: dict) -> str:
    """sha256 of arrays under their names: whose results are these?"""
    whole = hashlib.sha256()
    for name, array in arrays.items():
        whole.update(f"{name} {array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array))
    return whole.hexdigest()
