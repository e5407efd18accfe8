"""The loop. Pre-training and fine-tuning differ only in the mask they are given.

`train` is a generator: whoever iterates draws the bar, saves, prints and stops. A run is its
parameters, its optimizer state and the number of steps taken. The batches come from a seed: a
stopped run that makes them again and skips those already used goes on as if it had not been
stopped, bit for bit if on as many threads (`fast.threads`), as the order of additions changes
rounding.
"""

import itertools
import math
import time
from dataclasses import dataclass

import numpy as np

from . import fast, optim
from .sample import check_count, check_number


@dataclass(frozen=True)
class Settings:
    """What fixes a run, apart from the model and the text.

    batch: rows of a batch. lr: the peak of the schedule, floor: its end, warmup: steps to the peak.
    clip: the largest global gradient norm. Raises ValueError for numbers that make no sense, and
    TypeError for what is not a number, or not an integer where one is meant.
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

    def __post_init__(self):
        for name, value in dict(vars(self)).items():
            is_count = name in ("steps", "batch", "warmup", "seed")
            if type(value) is not int:  # which may stand for a float as well
                value = (check_count if is_count else check_number)(name, value)
            object.__setattr__(self, name, value)
        for name in ("steps", "batch"):
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
    rate, global gradient norm before clipping, tokens of the batch (padding included), and tokens
    per second."""

    number: int
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_second: float


class NonFiniteLoss(ArithmeticError):
    """The loss or a gradient is NaN or infinite; the parameters are those before the step."""


def train(model, batches, settings: Settings, state: optim.AdamState):
    """Train `model` in place from step `state.step` on, yielding a `Step` after each update.

    batches: an iterable of (tokens, targets, mask) from `data`; it must stand at the batch of step
    `state.step` (see `skip`). state: from `optim.adam_state`, or loaded.

    Raises NonFiniteLoss, before the update, where the loss or the gradient norm is not finite.
    """
    s = settings
    with fast.kept_memory():
        for tokens, targets, mask in itertools.islice(batches, max(0, s.steps - state.step)):
            start = time.perf_counter()
            with np.errstate(all="ignore"):  # an overflow shows in the loss or the norm, see below
                loss, grads = model.loss_and_grads(tokens, targets, mask)
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
            seconds = max(time.perf_counter() - start, 1e-6)  # a clock may stand still
            count = np.size(tokens)
            yield Step(state.step, float(loss), lr, norm, count, count / seconds)


def skip(batches, steps: int):
    """The same batches without the first `steps` of them, which are used already."""
    return itertools.islice(batches, steps, None)
