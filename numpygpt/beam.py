"""Beam search: the likeliest continuation as a whole, not id by id."""

import math

import numpy as np

from . import ops
from .sample import check_count, check_logits, check_prompts, prefill, read, select


def beam_search(
    model, prompt, max_new_tokens: int, num_beams: int, length_penalty=1.0, eos: int | None = None
) -> list[tuple[list[int], float]]:
    """The likeliest continuations found by keeping num_beams at every step.

    Returns num_beams times (new ids, score), the best first, where
    score = log p(new ids) / (their number) ** length_penalty. A beam ends with `eos`, or after
    max_new_tokens; the search ends when no running beam, scored as it stands, beats the worst of
    num_beams ended ones (transformers' `early_stopping=False`). Raises as `generate` does.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("num_beams", num_beams)):
        check_count(name, value, 1)
    (prompt,) = check_prompts(model.config, [prompt], "stop")
    if len(prompt) + max_new_tokens - 1 > model.config.n_ctx:
        raise ValueError(
            f"{len(prompt)} ids and {max_new_tokens} new ones do not fit n_ctx = "
            f"{model.config.n_ctx}: ask for at most {model.config.n_ctx - len(prompt) + 1}"
        )
    cache, logits = prefill(model, [prompt])
    beams, scores, ended = [[]], np.zeros((1, 1), logits.dtype), []
    for length in range(1, max_new_tokens + 1):
        # (beams, V). Twice num_beams candidates: even if half of them end, num_beams run on.
        check_logits(logits)
        totals = scores + ops.log_softmax(logits)
        last = length == max_new_tokens
        origin, running, scores = [], [], []
        for rank, at in enumerate(_largest(totals.ravel(), 2 * num_beams)):
            beam, token = divmod(int(at), totals.shape[1])
            ids, score = [*beams[beam], token], float(totals[beam, token])
            if last or token == eos:
                if rank < num_beams:
                    ended.append((ids, score / length**length_penalty))
            elif len(running) < num_beams:
                origin.append(beam), running.append(ids), scores.append(score)
        ended = sorted(ended, key=lambda one: -one[1])[:num_beams]
        worst = ended[-1][1] if len(ended) == num_beams else -math.inf
        if last or not running or scores[0] / length**length_penalty <= worst:
            return ended
        beams, scores = running, np.array(scores, logits.dtype)[:, None]
        cache = select(model, cache, origin)
        logits = read(model, np.array([ids[-1:] for ids in beams]), cache)
    return ended


def _largest(x, k):
    """Where the k largest of x stand, the largest first, the first among equals first."""
    k = min(k, x.size)
    places = np.flatnonzero(x >= np.partition(x, -k)[-k])
    return places[np.argsort(-x[places], kind="stable")][:k]
