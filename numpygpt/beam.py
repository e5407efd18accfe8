"""Beam search: the likeliest continuation as a whole, not id by id."""

import itertools
from collections.abc import Callable, Collection

import numpy as np

from . import ops
from .sample import (
    check_count,
    check_logits,
    check_memory,
    check_number,
    check_prompts,
    check_stop,
    prefill,
    read,
    select,
)


def beam_search(
    model,
    prompt,
    max_new_tokens: int,
    num_beams: int,
    length_penalty=1.0,
    eos: int | Collection[int] | None = None,
    *,
    log_p: Callable | None = None,
    early_stopping: bool = False,
) -> list[tuple[list[int], float]]:
    """The likeliest continuations found by keeping the num_beams likeliest beginnings at each step.

    Returns num_beams times (new ids, score), the best first, where
    score = log p(new ids) / (their number) ** length_penalty. A beam ends with `eos`, an id or one
    of several, or after max_new_tokens; the search ends when no running beam, scored as it stands,
    beats the worst of num_beams ended ones, or, with early_stopping, as soon as num_beams have
    ended (transformers' `early_stopping`).

    log_p: (the ids of each beam so far, with the prompt; logits (beams, V)) -> log p (beams, V), to
        forbid or favour ids; log softmax if None.
    Raises as `generate` does.
    """
    max_new_tokens = check_count("max_new_tokens", max_new_tokens, 1)
    num_beams = check_count("num_beams", num_beams, 1)
    length_penalty = check_number("length_penalty", length_penalty)
    if not abs(length_penalty) <= 10:
        raise ValueError(f"length_penalty must lie between -10 and 10, not {length_penalty}")
    (prompt,) = check_prompts(model.config, [prompt], "stop")
    check_memory(model.config, num_beams, len(prompt) + max_new_tokens)
    if len(prompt) + max_new_tokens - 1 > model.config.n_ctx:
        raise ValueError(
            f"{len(prompt)} ids and {max_new_tokens} new ones do not fit n_ctx = "
            f"{model.config.n_ctx}: ask for at most {model.config.n_ctx - len(prompt) + 1}"
        )
    if early_stopping not in (True, False):  # as "never", the opposite of what it would do
        raise TypeError(f"early_stopping must be True or False, not {early_stopping!r}")
    eos = set(check_stop([] if eos is None else eos, model.config.n_vocab))
    if texts := [s for s in eos if isinstance(s, str)]:
        raise TypeError(f"eos must be ids, not {texts[0]!r}")
    cache, logits = prefill(model, [prompt])
    beams, scores, ended = [[]], [0.0], []
    for length in itertools.count(1):
        check_logits(logits)
        if log_p is None:
            steps = ops.log_softmax(logits)
        else:
            steps = log_p([prompt + ids for ids in beams], logits)
        totals = np.array(scores, steps.dtype)[:, None] + steps  # (beams, V)
        running, ending = _extended(beams, totals, num_beams, eos, length == max_new_tokens)
        ended += [(ids, score / length**length_penalty) for ids, score in ending]
        ended = sorted(ended, key=lambda found: -found[1])[:num_beams]
        if not running:  # as after the last id
            break
        origin, beams, scores = zip(*running, strict=True)
        if len(ended) == num_beams:
            best_running, worst_ended = scores[0] / length**length_penalty, ended[-1][1]
            if early_stopping or best_running <= worst_ended:
                break
        cache = select(model, cache, list(origin))
        logits = read(model, np.array([ids[-1:] for ids in beams]), cache)
    return ended


def _extended(beams, totals, num_beams, eos, last):
    """The likeliest ways to add an id to a beam: those that run on, and those that end with it.

    totals (beams, V): log p of each beam with each id behind it. Returns at most num_beams of
    (number of the beam, ids, log p), and (ids, log p) of those that end among the num_beams
    likeliest; after the last id all end.
    """
    # Enough candidates for num_beams of them to run on, even if every beam could end in every way.
    candidates = num_beams + num_beams * len(eos)
    running, ending = [], []
    for rank, at in enumerate(_largest(totals.ravel(), candidates)):
        beam, token = divmod(int(at), totals.shape[1])
        ids, log_p = [*beams[beam], token], float(totals[beam, token])
        if last or token in eos:
            if rank < num_beams:
                ending.append((ids, log_p))
        elif len(running) < num_beams:
            running.append((beam, ids, log_p))
    return running, ending


def _largest(x, k):
    """Where the k largest of x (N,) stand, the largest first, the first among equals first."""
    k = min(k, x.size)
    places = np.flatnonzero(x >= np.partition(x, -k)[-k])
    return places[np.argsort(-x[places], kind="stable")][:k]
