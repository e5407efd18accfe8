"""The loop. Pre-training and fine-tuning differ only in the mask they are given.

`train` is a generator: whoever iterates draws the bar, saves, prints and stops. A run is its
parameters, its optimizer state and the number of steps taken; the batches come from a seed, so a
stopped run that makes them again and skips those already used goes on bit for bit as if it had not
been stopped.
"""

import dataclasses
import itertools
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import optim
from .formats import CheckpointError, safetensors


@dataclass(frozen=True)
class Settings:
    """What fixes a run, apart from the model and the text."""

    steps: int
    batch: int = 8
    lr: float = 1e-3
    floor: float = 0.0
    warmup: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One step: its number (the first is 1), loss before the update in nats per token, learning
    rate, global gradient norm before clipping, and tokens per second."""

    number: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient is NaN or infinite; the parameters are those before the step."""


def train(model, batches, settings: Settings, state: optim.AdamState, workers: int = 1):
    """Train `model` in place from step `state.step` on, yielding a `Step` after each update.

    batches: an iterable of (tokens, targets, mask) from `data`; it must stand at the batch of step
    `state.step` (see `skip`). state: from `optim.adam_state`, or loaded. workers: threads that
    share each batch's rows; NumPy lets them run at once, which also spreads the elementwise work
    that BLAS does not. Give BLAS one thread each then (OPENBLAS_NUM_THREADS=1).

    Raises NonFiniteLoss before such a step would spoil the parameters.
    """
    s = settings
    with ThreadPoolExecutor(workers) as pool:
        for batch in itertools.islice(batches, max(0, s.steps - state.step)):
            start = time.perf_counter()
            loss, grads = _loss_and_grads(model, batch, workers, pool)
            lr = optim.warmup_cosine(state.step, s.lr, s.floor, s.warmup, s.steps)
            norm = optim.clip(grads, s.clip)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLoss(
                    f"step {state.step + 1}: the loss is {loss} and the gradient norm {norm}: "
                    "lower the learning rate and go on from the last checkpoint"
                )
            optim.adamw(
                model.params, grads, state, lr, s.beta1, s.beta2, weight_decay=s.weight_decay
            )
            seconds = time.perf_counter() - start
            yield Step(state.step, float(loss), lr, norm, batch[0].size / seconds)


def _loss_and_grads(model, batch, workers, pool):
    """`model.loss_and_grads` of a batch whose rows are shared among threads.

    The mean over all is the mean of the parts weighted by the tokens each counts.
    """
    if workers == 1:
        return model.loss_and_grads(*batch)
    counted = batch[2].sum()
    parts = zip(*(np.array_split(array, workers) for array in batch), strict=True)
    parts = [part for part in parts if part[2].any()]
    results = list(pool.map(lambda part: model.loss_and_grads(*part), parts))
    shares = [float(mask.sum() / counted) for _, _, mask in parts]
    total = {}
    for share, (_, grads) in zip(shares, results, strict=True):
        for name, g in grads.items():
            g *= share
            total[name] = total[name] + g if name in total else g
    return sum(share * float(loss) for share, (loss, _) in zip(shares, results, strict=True)), total


def skip(batches, steps: int):
    """The same batches without those that `steps` steps have used."""
    return itertools.islice(batches, steps, None)


def open_log(path, step: int):
    """The log of a run, a JSON object a line, opened to append.

    Rows after `step` are dropped: a run that was killed goes on from its last checkpoint and writes
    them again.
    """
    path = Path(path)
    rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [row for row in rows if row.endswith("}") and json.loads(row)["number"] <= step]
    partial = path.with_name(path.name + ".part")
    partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
    os.replace(partial, path)
    return open(path, "a", encoding="utf-8")


def save_run(path, model, state: optim.AdamState, settings: Settings) -> None:
    """Everything a run needs to go on, in one safetensors file, replaced whole or not at all."""
    arrays = {}
    for kind, values in (("param", model.params), ("m", state.m), ("v", state.v)):
        arrays |= {f"{kind}.{name}": value for name, value in values.items()}
    run = {"step": state.step, "settings": dataclasses.asdict(settings)}
    safetensors.write(path, arrays, {"run": json.dumps(run)})


def load_run(path, model, settings: Settings) -> optim.AdamState:
    """Put a saved run's parameters into `model` and return its optimizer state.

    Raises CheckpointError if the file is damaged or holds another model, and ValueError naming the
    settings that differ from those the run was begun with.
    """
    arrays = safetensors.read(path)
    try:
        run = json.loads(safetensors.read_metadata(path)["run"])
        step, begun = run["step"], run["settings"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint of numpygpt") from error
    now = dataclasses.asdict(settings)
    differ = [
        f"{key} was {begun.get(key)!r}, now {now[key]!r}"
        for key in now
        if begun.get(key) != now[key]
    ]
    if differ:
        raise ValueError(
            f"{Path(path).parent} holds a run with other settings ({'; '.join(differ)}): "
            "repeat them, or train into another folder"
        )
    parts = {"param": {}, "m": {}, "v": {}}
    for name, value in arrays.items():
        kind, _, name = name.partition(".")
        if kind not in parts or name not in model.params or value.shape != model.params[name].shape:
            raise CheckpointError(f"{path} holds {kind}.{name}, which this model has not")
        parts[kind][name] = value
    for kind, values in parts.items():
        if len(values) != len(model.params):
            raise CheckpointError(f"{path} lacks some of the model's arrays ({kind})")
    for name, value in parts["param"].items():
        model.params[name][...] = value
    return optim.AdamState(step, *({n: np.array(parts[k][n]) for n in model.params} for k in "mv"))
