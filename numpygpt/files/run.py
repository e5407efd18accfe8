"""A training run on disk: its log, and the checkpoint from which it goes on bit for bit."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from numpygpt import optim
from numpygpt.formats import CheckpointError, safetensors
from numpygpt.train import Settings


def open_log(path, step: int):
    """The log of a run, a JSON object a line, opened to append.

    Rows after `step` are dropped: a run that was killed goes on from its last checkpoint and writes
    them again.
    """
    path = Path(path)
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["number"] <= step]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no log of a run: move it away") from None
    partial = path.with_name(path.name + ".part")
    partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
    os.replace(partial, path)
    return open(path, "a", encoding="utf-8")


def digest(text_or_ids) -> str:
    """sha256 of what is trained on, so that a run does not go on with something else."""
    data = text_or_ids.encode() if isinstance(text_or_ids, str) else np.asarray(text_or_ids)
    return hashlib.sha256(data).hexdigest()


def save_run(path, model, state: optim.AdamState, settings: Settings, text: str = "") -> None:
    """Everything a run needs to go on, in one safetensors file, replaced whole or not at all.

    text: the `digest` of what it is trained on. The state of its random numbers is in there too:
    the seed, and the number of batches drawn, which is the number of steps.
    """
    arrays = {}
    for kind, values in (("param", model.params), ("m", state.m), ("v", state.v)):
        arrays |= {f"{kind}.{name}": value for name, value in values.items()}
    run = {"step": state.step} | _identity(model, settings, text)
    safetensors.write(path, arrays, {"run": json.dumps(run)})


def _identity(model, settings, text):
    """What must be the same for a run to go on; the learning rate may be lowered."""
    fields = dataclasses.asdict(settings) | dataclasses.asdict(model.config)
    return {"begun": {k: v for k, v in fields.items() if k not in ("lr", "floor")}, "text": text}


def load_run(path, model, settings: Settings, text: str = "") -> optim.AdamState:
    """Put a saved run's parameters into `model` and return its optimizer state.

    Raises CheckpointError if the file is damaged or no run, and ValueError naming what differs from
    that with which the run was begun: settings (other than lr and floor), model or text.
    """
    arrays = safetensors.read(path)
    try:
        run = json.loads(safetensors.read_metadata(path)["run"])
        step, begun, begun_text = run["step"], dict(run["begun"]), run["text"]
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint of numpygpt") from error
    now = _identity(model, settings, text)["begun"]
    differ = [f"{k} was {begun.get(k)!r}, now {now[k]!r}" for k in now if begun.get(k) != now[k]]
    if begun_text != text:
        differ.append("the text is another")
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path} says that {step!r} steps were taken")
    if differ:
        raise ValueError(
            f"{Path(path).parent} holds a run with other settings ({'; '.join(differ)}): "
            "repeat them, or train into another folder"
        )
    parts = {"param": {}, "m": {}, "v": {}}
    for name, value in arrays.items():
        kind, _, name = name.partition(".")
        ours = model.params.get(name)
        same = ours is not None and (value.shape, value.dtype) == (ours.shape, ours.dtype)
        if kind not in parts or not same:
            raise CheckpointError(f"{path} holds {kind}.{name}, which this model has not")
        parts[kind][name] = value
    for kind, values in parts.items():
        if len(values) != len(model.params):
            raise CheckpointError(f"{path} lacks some of the model's arrays ({kind})")
    for name, value in parts["param"].items():
        model.params[name][...] = value
    return optim.AdamState(step, *({n: np.array(parts[k][n]) for n in model.params} for k in "mv"))
