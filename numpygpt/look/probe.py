"""What a model prefers and what it repeats; and what such figures do not show.

Both probes are questions to `evaluate.score_questions`, so they run on any model, in batches, and
can be interrupted and go on. Their intervals come from the bootstrap (Efron 1979): the sentences
are drawn anew many times, with repetition, and 95 % of the means lie between the two bounds. With
fewer than some twenty sentences that is too narrow.
"""

import numpy as np

from numpygpt.data import check_pair, check_stream
from numpygpt.evaluate import Question, score_questions
from numpygpt.sample import check_count, check_rng

PREFERENCE_DOES_NOT_SHOW = (
    "A difference is one of log-probabilities of these sentences. It does not show what the model "
    "would write by itself, nor to whom harm is done; a word that is rarer, or cut into more "
    "tokens, is less likely whoever is spoken of; and sentences of another form may give another "
    "sign. No difference does not show that there is no bias, only that these pairs found none."
)
MEMORISATION_DOES_NOT_SHOW = (
    "Counted is what greedy decoding repeats word for word after one prefix. What is not counted "
    "may be known all the same: after another prefix, by sampling, or in other words. And what is "
    "counted need not have been learned from this text: common phrases are continued as well. So "
    "only the difference from held-out text of the same kind speaks, and of these windows alone."
)


def mean_and_interval(values, *, rng: np.random.Generator, resamples: int = 2000):
    """The mean, and the bounds of its 95 % bootstrap interval; ValueError for fewer than two."""
    check_rng(rng)
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, not {len(values)}")
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


# ---- what it prefers ----------------------------------------------------------------------------


def preference(model, tokenizer, pairs, *, rng: np.random.Generator) -> dict:
    """Which of two sentences a model prefers, over pairs (a, b) of texts: see `pair_result`."""
    return pair_result(list(score_questions(model, pair_questions(tokenizer, pairs))), rng=rng)


def pair_questions(tokenizer, pairs) -> list[Question]:
    """Pairs (a, b) of sentences that differ in one thing: who is spoken of, for instance.

    Each is scored after the end token, as the beginning of a document; in a vocabulary without one
    its first token is not counted. Raises ValueError naming a pair of which one has no tokens, and
    TypeError for what is not a pair of texts.
    """
    questions = []
    for number, pair in enumerate(pairs, 1):
        check_pair(number, pair)
        rows = []
        for text in pair:
            ids = tokenizer.encode(text, tokenizer.special)
            ids = ids if tokenizer.eot is None else [tokenizer.eot, *ids]
            if len(ids) < 2:
                raise ValueError(f"pair {number} holds the sentence {text!r}: it is too short")
            rows.append((ids[:1], ids[1:]))
        questions.append(Question(rows))
    return questions


def pair_result(scored, *, rng: np.random.Generator) -> dict:
    """Of ln p(a) - ln p(b), in nats: the mean, its interval, and how often a is the likelier.

    Above 0 the model prefers the first sentences. If the interval holds 0 the pairs do not tell.
    Returns also `differences`, one a pair. See PREFERENCE_DOES_NOT_SHOW.
    """
    differences = [b.nats - a.nats for a, b in scored]
    mean, low, high = mean_and_interval(differences, rng=rng)
    return {
        "mean difference": mean,
        "95 % from": low,
        "95 % to": high,
        "share that prefers the first": float(np.mean(np.array(differences) > 0)),
        "pairs": len(differences),
        "differences": differences,
    }


# ---- what it repeats ----------------------------------------------------------------------------


def memorisation(
    model, ids, held_out, *, rng, windows: int = 200, prefix: int = 32, length: int = 32, end=None
) -> dict:
    """Is a text that was trained on, as ids, continued verbatim? See `memorisation_result`."""
    scored = [
        list(score_questions(model, window_questions(x, windows, prefix, length, rng=rng, end=end)))
        for x in (ids, held_out)
    ]
    return memorisation_result(*scored, rng=rng)


def window_questions(ids, windows: int, prefix: int, length: int, *, rng, end=None):
    """Windows of `prefix` and then `length` tokens, drawn from a stream without overlap.

    end: the id between documents; a window lies inside one. Raises ValueError where none fits.
    """
    ids = check_stream(ids)
    check_rng(rng)
    windows, prefix = check_count("windows", windows, 1), check_count("prefix", prefix, 1)
    length = check_count("length", length, 1)
    whole = [
        ids[start : start + prefix + length].tolist()
        for start in range(0, len(ids) - prefix - length + 1, prefix + length)
    ]
    whole = [window for window in whole if end is None or end not in window]
    if not whole:
        raise ValueError(f"no document holds a window of {prefix} + {length} tokens")
    chosen = rng.permutation(len(whole))[:windows]
    return [Question([(whole[i][:prefix], whole[i][prefix:])]) for i in chosen]


def memorisation_result(scored, scored_held_out, *, rng: np.random.Generator) -> dict:
    """How much of the text is continued word for word, beside text that was not trained on.

    verbatim: the share of windows whose continuation greedy decoding writes, token for token
    (Carlini et al. 2022). nats: mean -ln p per token; `gain` is how much less unexpected the text
    is than the held-out one, with its interval. See MEMORISATION_DOES_NOT_SHOW.
    """
    result, each = {}, []
    for name, windows in (("", scored), (", held out", scored_held_out)):
        nats = np.array([one.nats / one.tokens for (one,) in windows])
        result["verbatim" + name] = float(np.mean([one.greedy for (one,) in windows]))
        result["nats per token" + name] = float(nats.mean())
        result["windows" + name] = len(nats)
        each.append(nats)
    ours, other = ([x[rng.integers(0, len(x), len(x))].mean() for _ in range(2000)] for x in each)
    low, high = np.quantile(np.subtract(other, ours), [0.025, 0.975])
    gain = result["nats per token, held out"] - result["nats per token"]
    return result | {"gain": gain, "95 % from": float(low), "95 % to": float(high)}
