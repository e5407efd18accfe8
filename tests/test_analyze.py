"""Numbers that can be checked by hand or against the published sizes."""

import math

import numpy as np

from numpygpt import model
from numpygpt.look import analyze

SMALL = model.Config(n_vocab=29, n_ctx=11, n_embd=12, n_head=3, n_layer=2, n_inner=20)


def test_parameters_of_the_four_official_sizes():
    """The counts published with the checkpoints: 124M, 355M, 774M and 1558M."""
    sizes = [(768, 12, 12), (1024, 16, 24), (1280, 20, 36), (1600, 25, 48)]
    totals = [
        sum(analyze.parameter_counts(model.Config(50257, 1024, c, h, n)).values())
        for c, h, n in sizes
    ]
    assert totals == [124439808, 354823168, 774030080, 1557611200]


def test_parts_sum_to_what_init_makes():
    params = model.init(SMALL, np.random.default_rng(0))
    counts = analyze.parameter_counts(SMALL)
    assert sum(counts.values()) == sum(p.size for p in params.values())
    assert counts["lm_head"] == 0
    assert analyze.parameter_counts(SMALL, tied=False)["lm_head"] == 29 * 12


def test_flops_count_the_products_that_the_forward_makes():
    """Twice the sizes of all matrix products of one step over a cache of 6 tokens."""
    products = []

    class Counting(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
            plain = [np.asarray(x) for x in inputs]
            if "out" in kwargs:
                kwargs["out"] = tuple(np.asarray(x) for x in kwargs["out"])
            if ufunc is np.matmul:
                a, b = plain
                products.append(2 * a.size * b.shape[-1])
            result = getattr(ufunc, method)(*plain, **kwargs)
            return result.view(Counting) if isinstance(result, np.ndarray) else result

    params = model.init(SMALL, np.random.default_rng(0))
    gpt = model.GPT2(SMALL, {name: p.view(Counting) for name, p in params.items()})
    cache = gpt.cache()
    gpt.forward(np.arange(6), cache)
    products.clear()
    gpt.forward(np.arange(1), cache)
    assert sum(products) == sum(analyze.flops_per_token(SMALL, 7).values())


def test_cache_bytes_are_those_of_the_cache():
    gpt = model.GPT2(SMALL, model.init(SMALL, np.random.default_rng(0)))
    cache = gpt.cache()
    total = sum(x.nbytes for x in cache.k + cache.v)
    assert total == SMALL.n_ctx * analyze.cache_bytes_per_token(SMALL)


def test_the_last_entry_of_the_logit_lens_is_the_model():
    gpt = model.GPT2(SMALL, model.init(SMALL, np.random.default_rng(0)))
    logits, acts = gpt.forward(np.arange(7), keep="everything")
    lens = analyze.logit_lens(gpt, acts)
    assert list(lens) == ["h.0.resid_pre", "h.1.resid_pre", "h.1.resid_post"]
    np.testing.assert_array_equal(lens["h.1.resid_post"], logits)
    assert np.abs(lens["h.0.resid_pre"] - logits).max() > 1e-3


def test_attention_statistics_of_patterns_known_by_hand():
    t = 5
    uniform = np.tril(np.ones((t, t))) / np.arange(1, t + 1)[:, None]
    own = np.eye(t)
    first = np.zeros((t, t))
    first[:, 0] = 1
    pattern = np.stack([uniform, own, first])[None]  # (1, 3, T, T)
    found = analyze.attention_statistics(pattern)
    entropy = np.mean([math.log(n) for n in range(1, t + 1)])
    np.testing.assert_allclose(found["entropy"], [entropy, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found["distance"], [1, 0, 2])  # means of 0, .5, 1, 1.5, 2
    np.testing.assert_allclose(found["self"], [np.mean(1 / np.arange(1, 6)), 1, 0.2])
    np.testing.assert_allclose(found["first"], [np.mean(1 / np.arange(1, 6)), 0.2, 1])
