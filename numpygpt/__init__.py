"""GPT-2 in plain NumPy, to read and to check against.

    import numpygpt
    model, tokenizer = numpygpt.load("tales")
    logits, _ = model.forward(tokenizer.encode("Once upon a time"))

`import numpygpt` loads nothing, not even NumPy: each name below is fetched when it is first used.
"""

import importlib

__version__ = "0.1.0"

# name -> the file it is in
PUBLIC = {
    "load": "pretrained",
    "save": "checkpoint",
    "generate": "sample",
    "Tokenizer": "bpe",
    "GPT2": "model",
    "Config": "model",
    "init": "model",
    "CheckpointError": "formats",
}
FILES = (
    "ops model bpe sample data optim train evaluate trace mistakes diagnose grade analyze measure plot"
    " formats checkpoint download pretrained published cli"
).split()

__all__ = list(PUBLIC)


def __getattr__(name):
    if name in PUBLIC:
        return getattr(importlib.import_module(f"numpygpt.{PUBLIC[name]}"), name)
    if name in FILES:
        return importlib.import_module(f"numpygpt.{name}")
    raise AttributeError(f"numpygpt has no {name!r}: it has {', '.join(__dir__())}")


def __dir__():
    return [*PUBLIC, *FILES, "__version__"]
