"""Files of other libraries as plain dicts of arrays, without those libraries."""


class CheckpointError(ValueError):
    """A checkpoint file is damaged, incomplete, or not the kind of file it should be."""


# Below the class, because both rooms import it from here.
from numpygpt.formats import safetensors, tensorflow  # noqa: E402

__all__ = ["CheckpointError", "safetensors", "tensorflow"]
