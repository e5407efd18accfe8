"""Beam search is that of transformers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sampling import PROMPTS, stored_model
from signatures import defaults

from numpygpt import fast, ops
from numpygpt.beam import beam_search
from numpygpt.model import GPT2
from numpygpt.sample import probabilities

GOLDEN = Path(__file__).parent / "golden"
BEAMS = json.loads((GOLDEN / "sample_beams.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model():
    return stored_model()


@pytest.mark.parametrize("case", BEAMS, ids=lambda case: f"{case['num_beams']}-{case['eos']}")
def test_beams_are_those_of_transformers(model, case):
    names = ("prompt", "max_new_tokens", "num_beams", "length_penalty", "eos")
    found = beam_search(model, *(case[name] for name in names))
    assert [ids for ids, _ in found] == case["ids"]
    if case["scores"]:  # which transformers computes in float32
        np.testing.assert_allclose([score for _, score in found], case["scores"], rtol=1e-6)


def test_enough_beams_find_the_likeliest_pair(model):
    pairs = np.array([[*PROMPTS[0], i] for i in range(31)])
    p = probabilities(model.forward(pairs)[0])
    joint = np.log(p[0, -2])[:, None] + np.log(p[:, -1])  # (first id, second id)
    (best, score), *_ = beam_search(model, PROMPTS[0], 2, 31)
    assert tuple(best) == np.unravel_index(joint.argmax(), joint.shape)
    assert math.isclose(score, joint.max() / 2, rel_tol=1e-12)


def test_ids_can_be_forbidden_and_favoured(model):
    seen = []

    def log_p(rows, logits):
        seen.extend(map(tuple, rows))
        out = ops.log_softmax(logits)
        out[:, ::2] = -np.inf  # odd ids alone
        return out

    found = beam_search(model, PROMPTS[0], 4, 3, log_p=log_p)
    assert len(found) == 3 and all(i % 2 for ids, _ in found for i in ids)
    assert {len(row) for row in seen} == {3, 4, 5, 6}  # the prompt, then with the new ids
    for ids, score in found:
        rows = ops.log_softmax(model.forward([[*PROMPTS[0], *ids]])[0])[0]
        assert math.isclose(score, sum(rows[2 + n, i] for n, i in enumerate(ids)) / 4)


def test_early_stopping_ends_with_the_first_ended_beams(model):
    """One beam may end at once, with an id of log p = -9; all others are better for longer."""

    def log_p(rows, logits):
        out = np.full(logits.shape, -30.0)
        out[:, 5] = -1.0
        out[:, 7] = -2.0 if len(rows[0]) > 3 else -9.0
        return out

    settings = {"eos": 7, "log_p": log_p}
    first = beam_search(model, PROMPTS[0], 5, 1, **settings, early_stopping=True)
    assert first == [([5, 5, 5, 5, 5], -1.0)]  # rank 1 is no end: the likelier id runs on
    wide = beam_search(model, PROMPTS[0], 5, 2, **settings, early_stopping=True)
    assert [ids for ids, _ in wide] == [[5, 7], [7]]
    late = beam_search(model, PROMPTS[0], 5, 2, **settings)
    assert [ids for ids, _ in late] == [[5, 5, 5, 5, 5], [5, 5, 5, 5, 7]]


def test_a_running_beam_that_is_as_good_as_the_worst_ended_one_is_given_up(model):
    """As in transformers, although the running one would end better: -2.5 / 2 is more than -2."""
    asked = []

    def log_p(rows, logits):
        asked.append(len(rows[0]) - 3)
        out = np.full(logits.shape, -64.0)
        out[:, 5], out[:, 7] = (-2.0, -2.0) if len(rows[0]) == 3 else (-0.5, -9.0)
        return out

    assert beam_search(model, PROMPTS[0], 5, 1, eos=5, log_p=log_p) == [([5], -2.0)]
    assert asked == [0]


def test_beams_past_the_context_are_refused(model):
    assert len(beam_search(model, [2, 5, 8], 15, 2)[0][0]) == 15
    with pytest.raises(ValueError, match="n_ctx = 17: ask for at most 15"):
        beam_search(model, [2, 5, 8], 16, 2)
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        beam_search(model, [2, 5, 8], 16, 0)


def test_a_broken_model_is_not_searched(model):
    broken = GPT2(model.config, model.params | {"ln_f.bias": np.full(12, np.nan)})
    with np.errstate(invalid="ignore"):
        with pytest.raises(FloatingPointError, match="logits that are not numbers"):
            beam_search(broken, [5], 2, 2)


def test_three_beams_run_on_although_each_could_end_in_ten_ways(model):
    """In the second step 30 ends and one other id are likelier than the second that runs on; as one
    of the three likeliest runs on, only two have ended, and the search goes on."""
    asked = []

    def log_p(rows, logits):
        asked.append(len(rows))
        out = np.full(logits.shape, -50.0)
        if len(rows) == 1:
            out[0, 20:23] = 0, -0.1, -0.2
        else:
            out[:, :10] = -0.001 * np.arange(10)
            out[0, 25] = -0.0015
        return out

    beam_search(model, PROMPTS[0], 3, 3, eos=range(10), log_p=log_p)
    assert asked == [1, 3, 3]


def test_where_every_id_is_an_end_all_texts_are_one_id_long(model):
    log_p = ops.log_softmax(model.forward([PROMPTS[0]])[0])[0, -1]
    found = beam_search(model, PROMPTS[0], 3, 2, eos=range(31))
    assert [ids for ids, _ in found] == [[i] for i in np.argsort(-log_p)[:2]]


def test_what_is_searched_unless_said_otherwise():
    assert defaults(beam_search) == {
        "length_penalty": 1.0, "eos": None, "log_p": None, "early_stopping": False,
    }  # fmt: skip


def test_beams_that_do_not_fit_the_machine_are_refused(model, monkeypatch):
    """Keys and values of 3 + 4 positions, 4 bytes each, and two numbers for each logit."""
    one = 2 * 4 * (2 * 12 * 7) + 2 * 4 * 31
    monkeypatch.setattr(fast, "machine_memory", lambda: 3 * one)
    assert len(beam_search(model, PROMPTS[0], 4, 3)) == 3
    with pytest.raises(ValueError, match="4 texts at once take"):
        beam_search(model, PROMPTS[0], 4, 4)
    with pytest.raises(ValueError, match="3 texts at once take"):
        beam_search(model, PROMPTS[0], 5, 3)


def test_integers_of_every_kind_are_integers(model):
    for kind in (np.int8, np.uint8):
        assert beam_search(model, PROMPTS[0], kind(3), kind(100), eos=kind(7)) == beam_search(
            model, PROMPTS[0], 3, 100, eos=7
        )


@pytest.mark.parametrize(
    "error, words, changed",
    [
        (ValueError, "stop holds the id 31, which never comes", {"eos": 31}),
        (TypeError, "stop must hold ids", {"eos": 5.0}),
        (TypeError, "eos must be ids, not 'a'", {"eos": "a"}),
        (ValueError, "length_penalty must lie between", {"length_penalty": math.nan}),
        (ValueError, "length_penalty must lie between", {"length_penalty": math.inf}),
        (TypeError, "length_penalty must be a number", {"length_penalty": "1"}),
        (TypeError, "early_stopping must be True or False", {"early_stopping": "never"}),
        (TypeError, "prompts must be a list of ids", {"prompt": [[1, 2], [3]]}),
    ],
)
def test_what_makes_no_sense_is_refused(model, error, words, changed):
    settings = {"prompt": [5, 17], "max_new_tokens": 3, "num_beams": 2} | changed
    with pytest.raises(error, match=words):
        beam_search(model, **settings)
