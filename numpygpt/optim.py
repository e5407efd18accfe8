"""From gradients to new parameters: clipping, schedule, averaging, AdamW.

Parameters, gradients and the optimizer's state are flat dicts under the same official names.
`clip` and `adamw` work in place, tile by tile (`fast.tiles`): at 124M parameters a copy of any of
these dicts is half a gigabyte.

Sources: Kingma and Ba 2015 (Adam); Loshchilov and Hutter 2019 (AdamW) and 2017 (cosine schedule);
Pascanu et al. 2013 (clipping by the global norm).
"""

import math
from dataclasses import dataclass

import numpy as np

from . import fast


@dataclass
class AdamState:
    """Steps taken, and the running means of the gradients (m) and of their squares (v)."""

    step: int
    m: dict
    v: dict


def adam_state(params) -> AdamState:
    """The state before the first step: zeros."""
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    return AdamState(0, m, v)


def global_norm(grads) -> float:
    """sqrt of the sum of all squared gradients, as if they were one long vector.

    The squares of a tile are added in its own dtype, the sums of the tiles in float64: in float32
    throughout, the squares of GPT-2's `wte` alone give a norm wrong in the fifth digit.
    """
    total = 0.0
    for g in grads.values():
        flat = g.reshape(-1)

        def squares(tile, flat=flat):
            return float(np.square(flat[tile]).sum())  # NumPy adds pairwise, so this is precise

        total += sum(fast.share(squares, fast.tiles(g.size)))
    return math.sqrt(total)


def clip(grads, max_norm: float) -> float:
    """Scale all gradients in place by max_norm / (norm + 1e-6) if their global norm is larger than
    max_norm; return the norm.

    One factor for all of them keeps the direction; clipping each tensor by itself would not. Raises
    ValueError for a max_norm that is not positive, which would turn the direction round.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, not {max_norm}")
    norm = global_norm(grads)
    if norm > max_norm:
        for g in grads.values():
            g *= max_norm / (norm + 1e-6)
    return norm


def warmup_cosine(step: int, peak: float, floor: float, warmup: int, steps: int) -> float:
    """Learning rate of step 0 .. steps-1: up in a line for `warmup`, then down half a cosine.

        peak (step + 1) / warmup,   then   floor + (peak - floor) (1 + cos(pi progress)) / 2

    where progress goes from 0 to 1 over the steps after the warmup.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def decays(name: str, param) -> bool:
    """Weight decay is for matrices, the embeddings among them; not for biases and gains."""
    return param.ndim >= 2


def average(*params: dict) -> dict:
    """The mean of the parameters that one run had at several steps: a new dict, in their dtype.

    At a high learning rate the steps lie on all sides of one valley, and their mean may lie lower
    than any of them: it does at once some of what lowering the rate does in many steps. Raises
    ValueError for no parameters, and for other names or shapes than those of the first.
    Source: Izmailov et al. 2018 (stochastic weight averaging).
    """
    if not params:
        raise ValueError("an average needs the parameters of at least one step")
    shapes = [{name: p.shape for name, p in one.items()} for one in params]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("the parameters to average differ in names or shapes: are they one run's?")
    share = 1 / len(params)
    return {name: sum(share * one[name] for one in params) for name in params[0]}


def adamw(params, grads, state, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One step of AdamW, in place on params and state; returns nothing.

        m = beta1 m + (1 - beta1) g          p = p (1 - lr weight_decay)       (matrices only)
        v = beta2 v + (1 - beta2) g^2        p = p - lr m^ / (sqrt(v^) + eps)

    with m^ = m / (1 - beta1^t) and v^ = v / (1 - beta2^t): without that correction the first steps
    would be too small, as m and v start at 0. The decay does not pass through m and v; that is the
    W of AdamW. Raises ValueError for a parameter without a gradient, one that may not be written
    to, and one that is a view with gaps or turned axes.
    """
    # Python's own: NumPy's would change the dtype of what they are used on.
    lr, beta1, beta2, eps, weight_decay = map(float, (lr, beta1, beta2, eps, weight_decay))
    for name, param in params.items():
        if name not in grads:
            raise ValueError(f"{name} has no gradient: pass those of the same parameters")
        if not param.flags.writeable:
            raise ValueError(f"{name} is read-only, and a step changes it in place: pass a copy")
        if not param.flags.c_contiguous:  # reshaped below it would be a copy, and never change
            raise ValueError(f"{name} is not contiguous in memory: pass np.ascontiguousarray of it")
    state.step += 1
    rate = lr / (1 - beta1**state.step)
    root = math.sqrt(1 - beta2**state.step)
    for name, param in params.items():
        shrink = 1 - lr * weight_decay if decays(name, param) else 1.0
        flat = [x.reshape(-1) for x in (param, grads[name], state.m[name], state.v[name])]

        def update(tile, flat=flat, shrink=shrink):
            p, g, m, v = (x[tile] for x in flat)
            m *= beta1
            m += (1 - beta1) * g
            v *= beta2
            v += (1 - beta2) * g * g
            p *= shrink
            p -= rate * m / (np.sqrt(v) / root + eps)

        fast.share(update, fast.tiles(param.size))
