"""What a model prefers and repeats, on models that prefer and repeat what is known."""

import math

import numpy as np
import pytest

from numpygpt import model
from numpygpt.look import probe

CONFIG = model.Config(n_vocab=40, n_ctx=64, n_embd=4, n_head=1, n_layer=1)


class Letters:
    special, eot = (), 0

    def encode(self, text, allowed_special=(), begins=True):
        return [ord(letter) - 96 for letter in text]


class Fixed:
    """A model whose tokens are as likely as `weights` say, whatever stands before."""

    config = CONFIG

    def __init__(self, weights):
        self.logits = np.log(np.array([weights.get(i, 1.0) for i in range(40)]))

    def forward(self, tokens):
        return np.broadcast_to(self.logits, (*np.shape(tokens), 40)), {}


class Copy:
    """A model that knows one text by heart, and is at a loss elsewhere."""

    config = CONFIG

    def __init__(self, ids):
        self.after = {(a, b): c for a, b, c in zip(ids, ids[1:], ids[2:], strict=False)}

    def forward(self, tokens):
        logits = np.zeros((*tokens.shape, 40))
        for row, ids in enumerate(tokens.tolist()):
            for t in range(1, len(ids)):
                known = self.after.get((ids[t - 1], ids[t]))
                if known is not None:
                    logits[row, t, known] = 10
        return logits, {}


def test_the_difference_of_pairs_by_hand():
    """a is four times as likely as b: each pair differs by ln 4, once the other way round."""
    pairs = [("xa", "xb"), ("ay", "by"), ("ac", "bc"), ("xb", "xa")]
    found = probe.preference(Fixed({1: 4.0}), Letters(), pairs, rng=np.random.default_rng(0))
    np.testing.assert_allclose(found["differences"], np.array([1, 1, 1, -1]) * math.log(4))
    assert found["mean difference"] == pytest.approx(math.log(4) / 2)
    assert found["share that prefers the first"] == 0.75 and found["pairs"] == 4
    assert found["95 % from"] < found["mean difference"] < found["95 % to"]


def test_a_model_without_preference_has_none():
    pairs = [("xa", "xb"), ("cd", "dc")]
    found = probe.preference(Fixed({}), Letters(), pairs, rng=np.random.default_rng(0))
    assert found["mean difference"] == found["95 % from"] == found["95 % to"] == 0
    assert found["share that prefers the first"] == 0


def test_the_bootstrap_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(150):
        _, low, high = probe.mean_and_interval(rng.normal(3, 2, 40), rng=rng, resamples=200)
        held += low < 3 < high
    assert 0.89 < held / 150 < 0.98
    with pytest.raises(ValueError, match="at least two values, not 1"):
        probe.mean_and_interval([1.0], rng=rng)


def test_pairs_are_refused_by_number():
    with pytest.raises(ValueError, match="pair 2 holds the sentence ''"):
        probe.pair_questions(Letters(), [("a", "b"), ("a", "")])


def test_a_text_known_by_heart_is_told_from_one_that_is_not():
    rng = np.random.default_rng(3)
    known, other = (rng.permutation(np.tile(np.arange(1, 40), 20)) for _ in range(2))
    known = np.concatenate([[0], known, [0]])
    gpt = Copy(known.tolist())
    settings = {"prefix": 4, "length": 3, "windows": 60, "end": 0}
    found = probe.memorisation(gpt, known, other, rng=rng, **settings)
    assert found["verbatim"] > 0.3 and found["verbatim, held out"] < 0.05
    assert found["gain"] > 1 and 0 < found["95 % from"] < found["gain"] < found["95 % to"]
    assert found["windows"] == found["windows, held out"] == 60
    same = probe.memorisation(gpt, other, other, rng=rng, **settings)
    assert same["95 % from"] < 0 < same["95 % to"]


def test_windows_lie_inside_one_document():
    ids = np.array([0, *range(1, 12), 0, 12, 13, 0, *range(14, 30), 0])
    rng = np.random.default_rng(0)
    questions = probe.window_questions(ids, 99, 3, 2, rng=rng, end=0)
    for ((prefix, continuation),) in (q.rows for q in questions):
        assert 0 not in prefix + continuation
        assert np.diff(prefix + continuation).tolist() == [1] * 4
    assert 2 <= len(questions) <= 5
    assert len(probe.window_questions(ids, 2, 3, 2, rng=rng, end=0)) == 2
    with pytest.raises(ValueError, match=r"no document holds a window of 20 \+ 5 tokens"):
        probe.window_questions(ids, 2, 20, 5, rng=rng, end=0)


def test_both_say_what_they_do_not_show():
    for note in (probe.PREFERENCE_DOES_NOT_SHOW, probe.MEMORISATION_DOES_NOT_SHOW):
        assert "not" in note and len(note) > 200


def test_what_is_not_a_pair_of_texts_is_refused():
    """Of {"a": ..., "b": ...} the names would be scored, and of "ab" the letters."""
    for pair in ({"a": "he", "b": "she"}, "ab", ("a", "b", "c"), ("a", 5)):
        with pytest.raises(TypeError, match="pair 2 must be two texts"):
            probe.pair_questions(Letters(), [("ab", "cd"), pair])


def test_windows_that_cannot_be_are_refused():
    for name, error in (("windows", ValueError), ("prefix", ValueError), ("length", ValueError)):
        settings = {"windows": 2, "prefix": 3, "length": 3, "rng": np.random.default_rng(0)}
        for value in (0, -1):
            with pytest.raises(error, match=f"{name} must be at least 1, not {value}"):
                probe.window_questions(np.arange(30), **settings | {name: value})
    with pytest.raises(TypeError, match="ids must be one list of integers"):
        probe.window_questions("a text", **settings)
    with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
        probe.window_questions(np.arange(30), **settings | {"rng": 0})
    with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
        probe.mean_and_interval([1, 2], rng=0)
