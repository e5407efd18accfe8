"""Beam search is that of transformers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from sampling import PROMPTS, stored_model

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
