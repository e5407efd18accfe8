"""Files of other libraries as plain dicts of arrays, without those libraries."""

import os
import stat


class CheckpointError(ValueError):
    """A checkpoint file is damaged, incomplete, or not the kind of file it should be."""


def size_of(path) -> int:
    """The bytes of a file. Raises CheckpointError for a pipe, which would be waited for, and for a
    device, which may have no end; OSError for what is not there."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a file but a folder, pipe or device: name a file")
    return status.st_size


# Below the class, because both rooms import it from here.
from numpygpt.formats import safetensors, tensorflow  # noqa: E402

__all__ = ["CheckpointError", "safetensors", "tensorflow"]
