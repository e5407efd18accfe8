"""Files of other libraries as plain dicts of arrays, without those libraries."""

import os
import stat

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint file is damaged, incomplete, or not the kind of file it should be."""


def size_of(path) -> int:
    """The bytes of a file. Raises CheckpointError for a pipe, which would be waited for, and for a
    device, which may have no end; OSError for what is not there."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a file but a folder, pipe or device: name a file")
    return status.st_size


def widened(bits):
    """float32 from the bits of a bfloat16, uint16 as NumPy has none: they are the upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def unique(pairs) -> dict:
    """A dict of a JSON object's pairs; ValueError for a key that is there twice, of which JSON
    readers keep the last without a word. For `json.loads(..., object_pairs_hook=unique)`."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("it has the same key twice")
    return content


# Below, because both rooms import from here what stands above.
from numpygpt.formats import safetensors, tensorflow  # noqa: E402

__all__ = ["CheckpointError", "safetensors", "tensorflow"]
