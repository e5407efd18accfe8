"""Losses over a long text: every token counted once, with the context the protocol promises."""

import math

import numpy as np
import pytest

from numpygpt import evaluate, model

CONFIG = model.Config(n_vocab=31, n_ctx=8, n_embd=12, n_head=2, n_layer=2)


@pytest.fixture(scope="module")
def gpt():
    return model.GPT2(CONFIG, model.init(CONFIG, np.random.default_rng(0), np.float64))


def one_by_one(gpt, ids, stride):
    """-log p of each token, computed singly: windows by their definition, one token at a time."""
    total, covered, start = 0.0, 0, 0
    while covered < len(ids) - 1:
        window = ids[start : start + CONFIG.n_ctx + 1]
        for t in range(max(1, covered - start + 1), len(window)):
            logits = gpt.forward(window[:t])[0][0, -1]
            total += math.log(np.exp(logits).sum()) - logits[window[t]]
        covered = start + len(window) - 1
        start = min(start + stride, max(0, len(ids) - 1 - CONFIG.n_ctx))
    return total


@pytest.mark.parametrize("length", [2, 5, 9, 10, 17, 30])
@pytest.mark.parametrize("stride", [1, 3, 8, None])
def test_stream_nats_counts_every_token_once(gpt, length, stride):
    ids = np.random.default_rng(length).integers(0, 31, length)
    nats, counted = evaluate.stream_nats(gpt, ids, stride, batch=3)
    assert counted == length - 1
    np.testing.assert_allclose(nats, one_by_one(gpt, ids, stride or 8), rtol=1e-12)


def test_an_untrained_model_costs_ln_v_per_token(gpt):
    ids = np.random.default_rng(1).integers(0, 31, 200)
    nats, counted = evaluate.stream_nats(gpt, ids)
    assert abs(nats / counted - math.log(31)) < 0.02 * math.log(31)


def test_refusals(gpt):
    for stride in (0, 9):
        with pytest.raises(ValueError, match="stride must be between 1 and n_ctx = 8"):
            evaluate.stream_nats(gpt, [1, 2, 3], stride)
    for ids in ([], [4]):
        with pytest.raises(ValueError, match="two tokens"):
            evaluate.stream_nats(gpt, ids)


def test_bits_per_byte_of_a_fair_coin_per_bit():
    assert evaluate.bits_per_byte(8 * math.log(2) * 10, n_bytes=10) == pytest.approx(8)
