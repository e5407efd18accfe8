"""GPT-2 in plain NumPy, to read and to check against.

    import numpygpt
    model, tokenizer = numpygpt.load("stories")
    logits, _ = model.forward(tokenizer.encode("Once upon a time"))

`import numpygpt` loads nothing, not even NumPy: each name below, and each file or folder as
`numpygpt.ops`, is fetched when it is used.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # never run: for editors, which complete names and find where they are defined
    from numpygpt.bpe import Tokenizer
    from numpygpt.check.compare import compare
    from numpygpt.completion import complete, stream
    from numpygpt.files.checkpoint import save
    from numpygpt.files.pretrained import load
    from numpygpt.formats import CheckpointError
    from numpygpt.model import GPT2, Config, init
    from numpygpt.sample import generate

__version__ = "0.1.0"

# name -> the file it is in
PUBLIC = {
    "load": "files.pretrained",
    "save": "files.checkpoint",
    "generate": "sample",
    "compare": "check.compare",
    "complete": "completion",
    "stream": "completion",
    "Tokenizer": "bpe",
    "GPT2": "model",
    "Config": "model",
    "init": "model",
    "CheckpointError": "formats",
}

__all__ = list(PUBLIC)


def __getattr__(name):
    if name in PUBLIC:
        return getattr(importlib.import_module(f"numpygpt.{PUBLIC[name]}"), name)
    try:
        return importlib.import_module(f"numpygpt.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"numpygpt.{name}":  # the file is there, but lacks a package
            raise
    raise AttributeError(f"numpygpt has no {name!r}: it has {', '.join(__dir__())}")


def __dir__():
    import pkgutil  # takes longer to import than all of the above

    files = [file.name for file in pkgutil.iter_modules(__path__) if file.name != "__main__"]
    return [*PUBLIC, *files, "__version__"]
