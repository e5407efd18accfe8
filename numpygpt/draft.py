"""Speculative decoding: several ids a step, distributed as if they were drawn one by one.

One forward over the next id and k guessed ones costs little more than over the next id alone, since
either reads all the weights once, and it says of every guess how likely the model would have been
to draw it. A draft holds a function

    propose(ids so far, room, distribution, rng) -> (at most `room` guessed ids, q)

where q (k, V) are the distributions that they were drawn from, or None if they were not drawn but
certain. `distribution` turns logits into what `generate` was asked to draw from: the filters, then
softmax.

    for step in numpygpt.generate(model, ids, 100, draft=numpygpt.draft.prompt_lookup()): ...

Sources: Leviathan et al. 2023 (speculative decoding); Saxena 2023 (prompt lookup).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .sample import check_count, draw, meet_context_end, prefill, read


def acceptance(p, q, x: int) -> float:
    """Probability of accepting x, drawn from q (V,), for a draw from p (V,): min(1, p/q)."""
    return min(1.0, float(p[x]) / float(q[x]))


def residual(p, q):
    """What to draw from when a guess was rejected: max(0, p - q), normalised.

    An id is guessed and accepted with probability q min(1, p/q) = min(p, q); what p has beyond that
    is max(0, p - q). So the outcome is distributed as p, whatever q is (Leviathan et al. 2023).
    """
    rest = np.maximum(p - q, 0)
    return rest / rest.sum() if rest.any() else p  # then p = q, up to rounding


def verify(p, guessed: list[int], q, rng) -> list[int]:
    """The guessed ids up to the first that is rejected, then one that is drawn: 1 to k + 1 ids.

    p (k + 1, V): the model's distribution at each guess and after the last. q (k, V), or None for
    certain guesses. With a greedy p these are the guesses for as long as they are the argmax, and
    then the argmax.
    """
    if q is None:
        q = np.zeros((len(guessed), p.shape[1]), p.dtype)
        q[np.arange(len(guessed)), guessed] = 1
    if np.shape(q) != (len(guessed), p.shape[1]):
        raise ValueError(
            f"a draft of {len(guessed)} ids came with q of shape {np.shape(q)}, "
            f"but the vocabulary has {p.shape[1]}: draft with a model of the same vocabulary"
        )
    for i, x in enumerate(guessed):
        if rng.random() >= acceptance(p[i], q[i], x):
            return [*guessed[:i], draw(residual(p[i], q[i]), rng.random())]
    return [*guessed, draw(p[len(guessed)], rng.random())]


@dataclass(frozen=True)
class Draft:
    """A way to guess the next ids, and the loop of `generate` that verifies the guesses."""

    propose: Callable

    def steps(self, model, row, distribution, ends, slide):
        """`sample.generate`'s loop for one row: verify the guesses, yield, make room, guess again.

        It differs from the plain loop in that a step takes one id or more, and that the cache then
        forgets the rejected ones: it is shortened, and what lies beyond its end is overwritten.
        """
        if not row.left:
            return ["length"]
        n_ctx = model.config.n_ctx
        cache, logits = prefill(model, [row.ids[row.start :]])
        guessed, q = [], None
        while True:
            accepted = verify(distribution(logits), guessed, q, row.rng)
            cache.length -= len(guessed) + 1 - len(accepted)
            row.new = []
            for i in accepted:
                row.take(i, ends)
                if row.reason:
                    break
            yield [row.new]

            slid = meet_context_end([row], n_ctx, slide)
            if row.reason:
                return [row.reason]
            if slid:
                cache, _ = prefill(model, [row.ids[row.start : -1]])
            guessed, q = [], None
            if room := min(row.left, n_ctx - cache.length) - 1:
                guessed, q = self.propose(row.ids, room, distribution, row.rng)
            logits, _ = model.forward(np.array([[row.ids[-1], *guessed]]), cache)
            logits = logits[0]  # (1, k + 1, V) -> (k + 1, V)


def prompt_lookup(n: int = 3, length: int = 8, reach: int = 1024) -> Draft:
    """A draft of up to `length` ids: as the text went on where its last n ids stood before.

    It takes the latest such place among the last `reach` ids, so that a step's cost does not grow
    (Saxena 2023).
    """
    n, length = check_count("n", n, 1), check_count("length", length, 1)
    reach = check_count("reach", reach, 1)

    def propose(ids, room, distribution, rng):
        text = ids[-reach:]
        if len(text) <= n:
            return [], None
        known = np.array(text)
        places = np.lib.stride_tricks.sliding_window_view(known[:-1], n)
        found = np.flatnonzero((places == known[-n:]).all(1))
        if not found.size:
            return [], None
        for i in range(min(length, room)):
            text.append(text[found[-1] + n + i])  # the copy may run on into itself
        return text[len(known) :], None

    return Draft(propose)


def draft_model(model, length: int = 4) -> Draft:
    """A draft of up to `length` ids, drawn from a smaller model with the same vocabulary.

    It keeps the smaller model's cache from step to step: make one for each `generate`.
    """
    length = check_count("length", length, 1)
    n_ctx = model.config.n_ctx
    cache, seen, start = model.cache(1), [], 0

    def propose(ids, room, distribution, rng):
        nonlocal seen, start
        count = min(length, room, n_ctx // 2)
        if not count:
            return [], None
        if not start < len(ids) <= start + n_ctx - count:  # its window is full, or a new text
            start = max(0, len(ids) - n_ctx // 2)
        window = ids[start:]
        # The cache keeps what it shares with the ids; the last is read again, for its logits.
        cache.length = _in_common(seen, window[:-1])
        logits = read(model, np.array([window[cache.length :]]), cache)
        guessed, q = [], []
        while len(guessed) < count:
            if guessed:
                logits = read(model, np.array([guessed[-1:]]), cache)
            q.append(distribution(logits)[0])
            guessed.append(draw(q[-1], rng.random()))
        seen = window + guessed[:-1]
        return guessed, np.array(q)

    return Draft(propose)


def _in_common(a, b):
    """How many ids two lists begin with in common."""
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n
