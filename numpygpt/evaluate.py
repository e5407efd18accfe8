"""How good is it: perplexity, LAMBADA, HellaSwag, each with its protocol spelled out."""

import math

import numpy as np


def stream_nats(model, ids, stride: int | None = None, batch: int = 8):
    """Total -log p, in nats, of all ids but the first, and how many tokens that is.

    Protocol: windows of n_ctx tokens, each `stride` further than the last (n_ctx if None). A token is
    counted once, in the first window that predicts it; so with stride < n_ctx every token outside
    the first window has at least n_ctx - stride tokens of context, and costs n_ctx / stride as much.
    """
    ids = np.asarray(ids)
    n_ctx = model.config.n_ctx
    stride = n_ctx if stride is None else stride
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"stride must be between 1 and n_ctx = {n_ctx}, not {stride}")
    starts, counted = [0], min(n_ctx, len(ids) - 1)
    new = [counted]  # of each window, how many of its last targets are new
    while counted < len(ids) - 1:
        end = min(counted + stride, len(ids) - 1)
        starts.append(end - n_ctx)
        new.append(end - counted)
        counted = end
    length = min(n_ctx, len(ids) - 1)
    total = 0.0
    for i in range(0, len(starts), batch):
        at = np.array(starts[i : i + batch])[:, None] + np.arange(length)
        mask = np.arange(length) >= length - np.array(new[i : i + batch])[:, None]
        logits, _ = model.forward(ids[at])
        mean = model.ops.cross_entropy(logits, ids[at + 1], mask)
        total += float(mean) * int(mask.sum())
    return total, counted


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """nats / ln 2 / bytes: unlike a loss per token, it compares models with other vocabularies."""
    return nats / math.log(2) / n_bytes
