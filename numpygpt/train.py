"""The loop. Pre-training and fine-tuning differ only in the mask they are given.

`train` is a generator: whoever iterates draws the bar, saves, prints and stops. A run is its
parameters, its optimizer state and the number of steps taken; the batches come from a seed, so a
stopped run that makes them again and skips those already used goes on bit for bit as if it had not
been stopped.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import memory, optim
from .formats import CheckpointError, safetensors


@dataclass(frozen=True)
class Settings:
    """What fixes a run, apart from the model and the text.

    lr is the peak of the schedule, floor its end; `workers` threads share each batch, and since the
    order of additions changes rounding, they too are part of what makes a run repeatable. Raises
    ValueError for numbers that make no sense.
    """

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
    workers: int = 1

    def __post_init__(self):
        for name in ("steps", "batch", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a positive number, not {getattr(self, name)}")
        for name in ("floor", "warmup", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), not {getattr(self, name)}")


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


def train(model, batches, settings: Settings, state: optim.AdamState):
    """Train `model` in place from step `state.step` on, yielding a `Step` after each update.

    batches: an iterable of (tokens, targets, mask) from `data`; it must stand at the batch of step
    `state.step` (see `skip`). state: from `optim.adam_state`, or loaded. With several workers,
    threads share each batch's rows; NumPy lets them run at once, which also spreads the elementwise
    work that BLAS does not. Give BLAS one thread each then (OPENBLAS_NUM_THREADS=1).

    Raises NonFiniteLoss before such a step would spoil the parameters.
    """
    s = settings
    with memory.kept(), ThreadPoolExecutor(s.workers) as pool:
        for batch in itertools.islice(batches, max(0, s.steps - state.step)):
            start = time.perf_counter()
            loss, grads = _loss_and_grads(model, batch, s.workers, pool)
            lr = optim.warmup_cosine(state.step, s.lr, s.floor, s.warmup, s.steps)
            norm = optim.clip(grads, s.clip)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise NonFiniteLoss(
                    f"step {state.step + 1}: the loss is {loss} and the gradient norm {norm}: "
                    "lower the learning rate (lr) and go on from the last checkpoint"
                )
            optim.adamw(
                model.params, grads, state, lr, s.beta1, s.beta2, weight_decay=s.weight_decay
            )
            del grads  # not to be kept beside those of the next step
            seconds = time.perf_counter() - start
            yield Step(state.step, float(loss), lr, norm, batch[0].size / seconds)


def _loss_and_grads(model, batch, workers, pool):
    """`model.loss_and_grads` of a batch whose rows are shared among threads.

    The mean over all is the mean of the parts weighted by the tokens each counts.
    """

    def work(part):
        with np.errstate(all="ignore"):  # what overflows makes the loss or the norm no number
            return model.loss_and_grads(*part)

    counted = batch[2].sum()
    if workers == 1 or not counted:
        return work(batch)
    parts = zip(*(np.array_split(array, workers) for array in batch), strict=True)
    parts = [part for part in parts if part[2].any()]
    results = list(pool.map(work, parts))
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
