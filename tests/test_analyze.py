"""Numbers that can be checked by hand or against the published sizes."""

import math

import numpy as np
import pytest
from signatures import defaults

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


@pytest.mark.parametrize(("c", "f"), [(768, None), (1600, None), (12, 20)])
def test_attention_overtakes_the_matrices_where_both_cost_the_same(c, f):
    config = model.Config(50257, 1024, c, 4, 3, n_inner=f)
    n = analyze.attention_overtakes(config)
    assert n == (6 * c if f is None else 2 * c + f)

    def costs(keys):
        flops = analyze.flops_per_token(config, keys)
        return flops["scores and values"], flops["attn"] + flops["mlp"]

    square, linear = costs(int(n))
    assert square == linear
    square, linear = costs(int(n) - 1)
    assert square < linear
    # where each token sees only those before it, the sums over all n of them meet at twice that
    n = int(analyze.attention_overtakes(config, causal=True))
    seen = sum(costs(s)[0] for s in range(1, n + 1))
    assert seen == pytest.approx(n * linear, rel=2 / n)


def test_cache_bytes_are_those_of_the_cache():
    gpt = model.GPT2(SMALL, model.init(SMALL, np.random.default_rng(0)))
    cache = gpt.cache()
    total = sum(x.nbytes for x in cache.k + cache.v)
    assert total == SMALL.n_ctx * analyze.cache_bytes_per_token(SMALL)
    gpt = model.as_dtype(gpt, np.float64)
    total = sum(x.nbytes for x in gpt.cache().k + gpt.cache().v)
    assert total == SMALL.n_ctx * analyze.cache_bytes_per_token(SMALL, 8)


def test_flops_of_training_are_six_for_each_weight_and_token():
    """As the GPT-3 paper counts them; with keys, three times the forward pass."""
    matrices = 2 * (12 * 36 + 12 * 12 + 2 * 12 * 20) + 29 * 12
    assert analyze.training_flops(SMALL, 1000) == 6 * matrices * 1000
    scores = 2 * 4 * 5 * 12  # of 5 keys in 2 layers
    assert analyze.training_flops(SMALL, 1000, 5) == (6 * matrices + 3 * scores) * 1000


def test_parts_by_hand():
    assert analyze.parts(model.parameter_shapes(SMALL, tied=False)) == {
        "embeddings": (29 + 11) * 12,
        "MLP": 2 * (12 * 20 + 20 + 20 * 12 + 12),
        "attention": 2 * (12 * 36 + 36 + 12 * 12 + 12),
        "layer norms": 5 * (12 + 12),
        "heads": 29 * 12,
    }
    with pytest.raises(KeyError, match="what"):
        analyze.parts({"what.is.this": (2,)})


@pytest.mark.parametrize(
    ("count", "printed", "rounded"),
    [
        (117_499_999, "117M", "117M"),
        (117_500_001, "117M", "118M"),
        (1_549_999_999, "1.5B", "1.5B"),
        (1_550_000_001, "1.5B", "1.6B"),
        (12_853_386_240, "13.0B", "12.9B"),
    ],
)
def test_a_count_is_rounded_as_the_printed_one(count, printed, rounded):
    row = analyze.Relative("name", SMALL, {"a": count - 7, "b": 7}, printed, 0, 0)
    assert (row.count, row.rounded, row.agrees) == (count, rounded, printed == rounded)
    assert row._replace(printed=None).agrees


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


# ---- looking at a record ------------------------------------------------------------------------


def small(seed=0, dtype=np.float64):
    """A model whose biases and gains are not those of the start."""
    params = model.init(SMALL, np.random.default_rng(seed), dtype)
    rng = np.random.default_rng(seed + 100)
    return model.GPT2(SMALL, {n: p + 0.3 * rng.standard_normal(p.shape) for n, p in params.items()})


def test_previous_of_a_pattern_known_by_hand():
    before = np.diag(np.ones(3), -1)
    before[0, 0] = 1
    pattern = np.stack([before, np.eye(4)])[None]
    np.testing.assert_allclose(analyze.attention_statistics(pattern)["previous"], [1, 0])
    one = analyze.attention_statistics(np.ones((1, 3, 1, 1)))
    np.testing.assert_array_equal(one["previous"], 0)
    np.testing.assert_array_equal(one["first"], 1)
    cached = analyze.attention_statistics(pattern[:, :, 2:])  # two queries of four keys
    np.testing.assert_allclose(cached["previous"], [1, 0])
    np.testing.assert_allclose(cached["self"], [0, 1])
    np.testing.assert_allclose(cached["distance"], [1, 0])
    even = analyze.attention_statistics(np.full((1, 1, 2, 4), 0.25))
    np.testing.assert_allclose(even["entropy"], math.log(4))
    np.testing.assert_allclose(even["distance"], [(0.75 + 1.5) / 2])  # of (2, 1, 0) and (3, 2, 1)


@pytest.mark.parametrize("untied", [False, True])
def test_the_shares_of_a_logit_sum_to_it(untied):
    gpt = small()
    if untied:
        head = np.random.default_rng(5).standard_normal((29, 12))
        gpt = model.GPT2(SMALL, gpt.params | {"lm_head.weight": head})
    tokens = np.random.default_rng(1).integers(0, 29, (2, 7))
    targets = np.random.default_rng(2).integers(0, 29, (2, 7))
    logits, acts = gpt.forward(tokens, keep="everything")
    shares = analyze.logit_attribution(gpt, acts, targets)
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(sum(shares.values()), chosen, rtol=1e-12)
    assert len(shares) == 2 + SMALL.n_layer * (SMALL.n_head + 2) + 1
    difference = analyze.logit_attribution(gpt, acts, targets, against=3)
    np.testing.assert_allclose(
        sum(difference.values()), chosen - logits[..., 3], rtol=1e-11, atol=1e-12
    )


def test_a_share_is_what_the_logit_loses_without_it_at_the_same_scale():
    gpt = small()
    _, acts = gpt.forward(np.arange(6), keep="everything")
    share = analyze.logit_attribution(gpt, acts, 4)["h.1.attn.2"][0]
    last, p = acts["h.1.resid_post"], gpt.params
    wrote = acts["h.1.attn.z"][..., 8:] @ p["h.1.attn.c_proj.weight"][8:]
    scale = np.sqrt(last.var(-1, keepdims=True) + SMALL.layer_norm_epsilon)

    def logit(x):
        normed = (x - x.mean(-1, keepdims=True)) / scale
        return ((normed * p["ln_f.weight"] + p["ln_f.bias"]) @ p["wte.weight"][4])[0]

    np.testing.assert_allclose(share, logit(last) - logit(last - wrote), rtol=1e-11)


class Copier:
    """Expects after a token what followed it the first time; its only head looks there."""

    config = model.Config(n_vocab=50, n_ctx=21, n_embd=4, n_head=1, n_layer=1)

    def forward(self, tokens, keep):
        logits = np.zeros((*tokens.shape, 50))
        pattern = np.zeros((len(tokens), 1, tokens.shape[1], tokens.shape[1]))
        for row, ids in enumerate(tokens.tolist()):
            for t, i in enumerate(ids):
                if i in ids[:t]:
                    after = len(ids) - 1 - ids[::-1].index(i, len(ids) - t) + 1
                    logits[row, t, ids[after]] = 20
                    pattern[row, 0, t, after] = 1
                else:
                    pattern[row, 0, t, 0] = 1
        return logits, {"h.0.attn.pattern": pattern}


def test_induction_of_a_model_that_only_copies():
    rng = np.random.default_rng(4)
    scores, nats = analyze.induction(Copier(), 6, 2, rng=rng, first=49)
    assert scores.shape == (1, 1) and nats.shape == (12,)
    assert scores[0, 0] > 0.8  # a token that is drawn twice in one showing misleads it
    assert nats[:6].mean() > 3 and np.median(nats[7:]) < 0.01
    _, nats = analyze.induction(Copier(), 6, 2, rng=rng)
    assert np.isnan(nats[0]) and not np.isnan(nats[1:]).any()
    with pytest.raises(ValueError, match="length must be 2 to 10, not 11"):
        analyze.induction(Copier(), 11, rng=rng)
    with pytest.raises(ValueError, match="length must be 2 to 10, not 11"):
        analyze.induction(Copier(), 11, rng=rng, first=49)  # 1 + 2 x 10 = 21
    with pytest.raises(ValueError, match="length must be 2 to 10, not 1:"):
        analyze.induction(Copier(), 1, rng=rng)
    for length in (2, 10):
        assert analyze.induction(Copier(), length, rng=rng, first=49)[1].shape == (2 * length,)


def test_induction_shows_the_same_random_tokens_twice():
    shown = []

    class Noting(Copier):
        def forward(self, tokens, keep):
            shown.append(tokens)
            return super().forward(tokens, keep)

    for first, start in ((None, 0), (49, 1)):
        shown.clear()
        analyze.induction(Noting(), 6, 300, rng=np.random.default_rng(4), first=first)
        (tokens,) = shown
        assert tokens.shape == (300, start + 12) and (tokens[:, :start] == 49).all()
        np.testing.assert_array_equal(tokens[:, start : start + 6], tokens[:, start + 6 :])
        assert set(tokens[:, start:].ravel()) == set(range(50))  # every id may come


def test_an_untrained_model_has_no_induction():
    gpt = model.GPT2(SMALL, model.init(SMALL, np.random.default_rng(0), np.float64))
    scores, nats = analyze.induction(gpt, 5, 50, rng=np.random.default_rng(1))
    np.testing.assert_allclose(scores, np.mean([1 / t for t in range(6, 11)]), rtol=0.02)
    np.testing.assert_allclose(nats[1:], math.log(29), rtol=0.05)


# ---- runs with something changed ----------------------------------------------------------------


def test_every_entry_can_be_taken_from_another_run():
    """Put in its own value nothing changes; another's stands in the record, and decides the end."""
    gpt = small()
    here, there = np.random.default_rng(0).integers(0, 29, (2, 1, 7))
    logits, acts = gpt.forward(here, keep="everything")
    _, others = gpt.forward(there, keep="everything")
    for name in acts:
        if name in ("tokens", "positions"):
            continue
        same, _ = analyze.run_with(gpt, here, {name: acts[name]})
        np.testing.assert_array_equal(same, logits, err_msg=name)
        changed, record = analyze.patch(gpt, here, name, others)
        np.testing.assert_array_equal(record[name], others[name], err_msg=name)
        assert list(record) == list(acts)
        if name != "wpe":  # the same positions
            assert np.abs(changed - logits).max() > 1e-6, name
    whole, _ = analyze.patch(gpt, here, "h.1.resid_post", others)
    np.testing.assert_array_equal(whole, gpt.forward(there)[0])


def test_several_entries_at_once_and_by_functions():
    gpt = small()
    zero = {f"h.{i}.{x}.c_proj": np.zeros_like for i in range(2) for x in ("attn", "mlp")}
    logits, acts = analyze.run_with(gpt, np.arange(5), zero)
    np.testing.assert_array_equal(acts["h.1.resid_post"], acts["h.0.resid_pre"])
    p = gpt.params
    x = gpt.ops.layer_norm(p["wte.weight"][:5] + p["wpe.weight"][:5],
                           p["ln_f.weight"], p["ln_f.bias"], 1e-5)  # fmt: skip
    np.testing.assert_allclose(logits[0], x @ p["wte.weight"].T, rtol=1e-12)


def test_patching_one_head_or_one_position_leaves_the_others():
    gpt = small()
    here, there = np.random.default_rng(3).integers(0, 29, (2, 1, 6))
    _, acts = gpt.forward(here, keep="everything")
    _, others = gpt.forward(there, keep="everything")
    _, record = analyze.patch(gpt, here, "h.1.attn.z", others, head=1, position=4)
    taken = record["h.1.attn.z"] == others["h.1.attn.z"]
    assert taken[0, 4, 4:8].all() and taken.sum() == 4
    rest = np.ones(taken.shape, bool)
    rest[0, 4, 4:8] = False
    np.testing.assert_array_equal(record["h.1.attn.z"][rest], acts["h.1.attn.z"][rest])
    _, record = analyze.patch(gpt, here, "h.0.attn.pattern", others, head=2)
    np.testing.assert_array_equal(
        record["h.0.attn.pattern"][:, 2], others["h.0.attn.pattern"][:, 2]
    )
    np.testing.assert_array_equal(
        record["h.0.attn.pattern"][:, :2], acts["h.0.attn.pattern"][:, :2]
    )


def test_ablated_heads_write_nothing():
    gpt = small()
    _, acts = analyze.ablate_heads(gpt, np.arange(6), [(0, 1), (0, 2), (1, 0)])
    assert not acts["h.0.attn.z"][..., 4:].any() and acts["h.0.attn.z"][..., :4].all()
    assert not acts["h.1.attn.z"][..., :4].any() and acts["h.1.attn.z"][..., 4:].all()
    every = [(i, head) for i in range(2) for head in range(3)]
    logits, acts = analyze.ablate_heads(gpt, np.arange(6), every)
    bias = np.broadcast_to(gpt.params["h.1.attn.c_proj.bias"], (1, 6, 12))
    np.testing.assert_allclose(acts["h.1.attn.c_proj"], bias)
    _, acts = analyze.ablate_heads(gpt, np.arange(6), [(0, 1)], mean=True)
    part = acts["h.0.attn.z"][0, :, 4:8]
    np.testing.assert_array_equal(part, np.tile(part[0], (6, 1)))
    _, whole = gpt.forward(np.arange(6), keep="everything")
    np.testing.assert_allclose(part[0], whole["h.0.attn.z"][0, :, 4:8].mean(0))


def test_what_cannot_be_changed_is_said():
    gpt = small()
    _, acts = gpt.forward(np.arange(6), keep="everything")
    _, short = gpt.forward(np.arange(5), keep="everything")
    for name in ("h.0.attn.w", "tokens", "h.2.mlp.act"):
        with pytest.raises(ValueError, match=f"the record has no {name}"):
            analyze.run_with(gpt, np.arange(6), {name: np.zeros_like})
    with pytest.raises(ValueError, match="equally many tokens"):
        analyze.patch(gpt, np.arange(6), "h.0.ln_1", short)
    with pytest.raises(ValueError, match=r"ln_f has shape \(1, 6, 12\)"):
        analyze.run_with(gpt, np.arange(6), {"ln_f": np.zeros(3)})
    with pytest.raises(ValueError, match="there is no head 3: the model has 0 to 2"):
        analyze.patch(gpt, np.arange(6), "h.0.attn.z", acts, head=3)
    with pytest.raises(ValueError, match="there is no head -1: the model has 0 to 2"):
        analyze.patch(gpt, np.arange(6), "h.0.attn.z", acts, head=-1)
    with pytest.raises(ValueError, match="not divided into heads"):
        analyze.patch(gpt, np.arange(6), "h.0.mlp.act", acts, head=1)
    with pytest.raises(ValueError, match="there is no layer 2: the model has 0 to 1"):
        analyze.ablate_heads(gpt, np.arange(6), [(2, 0)])
    with pytest.raises(ValueError, match='keep="everything"'):
        analyze.patch(gpt, np.arange(6), "h.0.ln_1", gpt.forward([1])[1])


def test_likeliest_and_surprise():
    logits = np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    ids, p = analyze.likeliest(logits, 2)
    np.testing.assert_array_equal(ids, [[0, 1], [2, 1], [0, 1]])  # of equals the lower id
    np.testing.assert_allclose(p, [[0.5, 0.25], [0.7, 0.2], [1 / 3, 1 / 3]])
    ids, p = analyze.likeliest(np.stack([logits, logits[::-1]]))  # (2, 3, V)
    np.testing.assert_array_equal(ids[..., 0], [[0, 2, 0], [0, 2, 0]])
    np.testing.assert_allclose(p[..., 0], [[0.5, 0.7, 1 / 3], [1 / 3, 0.7, 0.5]])
    nats, entropy = analyze.surprise(logits, [0, 1, 2])
    np.testing.assert_allclose(nats, [math.log(4), -math.log(0.7)])
    np.testing.assert_allclose(entropy[0], 1.5 * math.log(2))


def test_shares_of_two_directions_by_hand():
    found, shares = analyze.principal([[3, 0], [-3, 0], [0, 1], [0, -1]])
    np.testing.assert_allclose(shares, [0.9, 0.1])  # 18 and 2 of 20
    np.testing.assert_allclose(found, [[3, 0], [-3, 0], [0, 1], [0, -1]], atol=1e-12)


def test_principal_directions_of_points_on_a_line():
    points = np.outer([0, 1, 2, 5], [3.0, -4.0, 0.0]) + 7
    found, shares = analyze.principal(points)
    np.testing.assert_allclose(np.diff(found[:, 0]), [-5, -5, -15])  # -4 is the largest entry
    np.testing.assert_allclose(shares, [1, 0], atol=1e-12)
    np.testing.assert_allclose(analyze.principal(np.ones((3, 4)))[1], 0)
    found, shares = analyze.principal(points[:2], 3)  # two points differ in no more directions
    assert (found.shape, shares.shape) == ((2, 2), (2,))


def test_cosines():
    found = analyze.cosines([[1, 0], [1, 1], [-2, 0], [0, 0]])
    half = math.sqrt(0.5)
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_sizes_of_the_relatives_are_those_of_their_papers():
    """Layers, width, heads, context and vocabulary; and the parameters of the published weights."""
    rows = {row.name: row for row in analyze.family()}
    assert len(rows) == 17
    for name, sizes, count in (
        ("Transformer base", (6, 512, 8, 512, 37_000), None),
        ("Transformer big", (6, 1024, 16, 512, 37_000), None),
        ("GPT-1", (12, 768, 12, 512, 40_478), 116_534_784),
        ("BERT base", (12, 768, 12, 512, 30_522), 110_106_428),
        ("BERT large", (24, 1024, 16, 512, 30_522), 336_226_108),
        ("GPT-2 124M", (12, 768, 12, 1024, 50_257), 124_439_808),
        ("GPT-2 355M", (24, 1024, 16, 1024, 50_257), 354_823_168),
        ("GPT-2 774M", (36, 1280, 20, 1024, 50_257), 774_030_080),
        ("GPT-2 1558M", (48, 1600, 25, 1024, 50_257), 1_557_611_200),
        ("GPT-3 175B", (96, 12_288, 96, 2048, 50_257), None),
    ):
        c = rows[name].config
        assert (c.n_layer, c.n_embd, c.n_head, c.n_ctx, c.n_vocab) == sizes, name
        assert c.layer_norm_epsilon == (1e-12 if "BERT" in name else 1e-5), name
        assert count in (None, rows[name].count), name


def test_heads_work_and_caches_of_the_relatives_by_hand():
    rows = {row.name: row for row in analyze.family()}
    heads = {
        "Transformer base": 8, "Transformer big": 16, "GPT-1": 12, "BERT base": 12,
        "BERT large": 16, "GPT-2 124M": 12, "GPT-2 1558M": 25, "GPT-3 Small": 12, "GPT-3 175B": 96,
    }  # fmt: skip
    assert {name: rows[name].config.n_head for name in heads} == heads
    # Two FLOPs a weight: 4 d^2 in an attention, 8 d^2 in an MLP; and 4 d for each key that is seen.
    d, n, v = 512, 512, 37_000
    encoder, decoder = 6 * (2 * 12 * d * d + 4 * d * n), 6 * (2 * 16 * d * d + 2 * 4 * d * n)
    assert rows["Transformer base"].flops == encoder + decoder + 2 * d * v
    assert rows["Transformer base"].cache == n * 6 * 2 * (2 * d) * 4  # of both attentions
    d, v = 768, 30_522
    block = 2 * 12 * d * d + 4 * d * 512
    assert rows["BERT base"].flops == 12 * block + 2 * d * d + 2 * d * v
    assert rows["BERT base"].cache == 0
    assert rows["GPT-1"].flops == 12 * block + 2 * d * 40_478
    assert rows["GPT-1"].cache == 512 * 12 * (2 * d) * 4


def test_what_is_looked_at_unless_said_otherwise():
    for function, expected in {
        analyze.parameter_counts: {"tied": True},
        analyze.attention_overtakes: {"causal": False},
        analyze.cache_bytes_per_token: {"itemsize": 4},
        analyze.training_flops: {"keys": 0},
        analyze.likeliest: {"count": 1},
        analyze.principal: {"count": 2},
        analyze.induction: {"length": 50, "rows": 4, "first": None},
        analyze.ablate_heads: {"mean": False, "pads": None},
    }.items():
        assert defaults(function) == expected, function


def random_gpt(ids=(3, 1, 4, 1, 5)):
    params = model.init(SMALL, np.random.default_rng(0), np.float64)
    rng = np.random.default_rng(1)
    params = {name: p + 0.3 * rng.standard_normal(p.shape) for name, p in params.items()}
    gpt = model.GPT2(SMALL, params)
    return gpt, *gpt.forward(list(ids), keep="everything")


@pytest.mark.parametrize(
    "error, words, targets",
    [
        (ValueError, "targets hold the id -1", -1),  # would be the last of the vocabulary
        (ValueError, "targets hold the id 29", [0, 1, 2, 3, 29]),
        (ValueError, r"of shape \(1, 5\), not of \(2,\)", [7, 8]),
        (TypeError, "targets must be integers", 1.5),
        (TypeError, "targets must be integers", None),
    ],
)
def test_only_ids_have_an_attribution(error, words, targets):
    gpt, _, acts = random_gpt()
    with pytest.raises(error, match=words):
        analyze.logit_attribution(gpt, acts, targets)
    if targets is not None:
        with pytest.raises(error, match=words):
            analyze.logit_attribution(gpt, acts, 3, against=targets)


def test_a_record_that_is_incomplete_is_not_looked_through():
    gpt, _, _ = random_gpt()
    acts = gpt.forward([1, 2, 3], keep="backward")[1]
    assert list(analyze.logit_lens(gpt, acts)) == ["h.0.resid_pre", "h.1.resid_pre",
                                                   "h.1.resid_post"]  # fmt: skip
    with pytest.raises(ValueError, match="the record has no wte: run forward with keep"):
        analyze.logit_attribution(gpt, acts, 3)
    with pytest.raises(ValueError, match="the record has no h.0.resid_pre: run forward with keep"):
        analyze.logit_lens(gpt, {})


def test_relatives_are_looked_through_or_refused():
    from numpygpt.family import bert, gpt1, gpt3

    gpt, _, _ = random_gpt()
    third = gpt3.GPT3(SMALL, gpt.params, 2)
    logits, acts = third.forward([3, 1, 4, 1], keep="everything")
    np.testing.assert_array_equal(analyze.logit_lens(third, acts)["h.1.resid_post"], logits)
    shares = sum(analyze.logit_attribution(third, acts, 7).values())
    np.testing.assert_allclose(shares, logits[..., 7], atol=1e-13)
    shapes = gpt1.parameter_shapes(SMALL)
    first = gpt1.GPT1(SMALL, {name: np.ones(shape) for name, shape in shapes.items()})
    second = bert.Bert(SMALL, bert.init(SMALL, np.random.default_rng(0)))
    for relative, name in ((first, "GPT1"), (second, "Bert")):
        with pytest.raises(TypeError, match=f"a {name} has no final layer norm"):
            analyze.logit_lens(relative, {})
        with pytest.raises(TypeError, match=f"a {name} has no final layer norm"):
            analyze.logit_attribution(relative, {}, 3)
    for relative, name in ((first, "GPT1"), (second, "Bert"), (third, "GPT3")):
        with pytest.raises(TypeError, match=f"not a {name}"):
            analyze.run_with(relative, [1, 2], {})


def test_counts_of_analyses_are_integers_of_every_kind():
    gpt, logits, acts = random_gpt()
    best, p = analyze.likeliest(logits[0, -1], np.uint8(3))
    np.testing.assert_array_equal(best, np.argsort(-logits[0, -1])[:3])
    for count, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="count must be"):
            analyze.likeliest(logits, count)
    with pytest.raises(FloatingPointError):
        analyze.likeliest(logits * np.nan)
    with pytest.raises(ValueError, match="logits must be"):
        analyze.surprise(logits, [3, 1, 4, 1, 5])  # of one text, not of a batch
    with pytest.raises(ValueError, match="logits must be"):
        analyze.surprise(logits[0], [3, 1, 4])
    plain = analyze.induction(gpt, 4, rng=np.random.default_rng(0))
    small = analyze.induction(gpt, np.uint8(4), np.int8(4), rng=np.random.default_rng(0))
    for a, b in zip(plain, small, strict=True):
        np.testing.assert_array_equal(a, b)
    for wrong in ({"length": 4.0}, {"rows": 1.5}, {"rng": 3}):
        with pytest.raises(TypeError):
            analyze.induction(gpt, **{"length": 4, "rng": np.random.default_rng(0)} | wrong)
    name, other = "h.0.attn.z", gpt.forward([9, 8, 7, 6, 5], keep="everything")[1]
    for settings in ({"head": np.uint8(1)}, {"position": np.uint8(2)}):
        as_ints = {key: int(value) for key, value in settings.items()}
        np.testing.assert_array_equal(
            analyze.patch(gpt, [3, 1, 4, 1, 5], name, other, **settings)[0],
            analyze.patch(gpt, [3, 1, 4, 1, 5], name, other, **as_ints)[0],
        )


@pytest.mark.parametrize(
    "error, words, changed",
    [
        (ValueError, "has no position 5", {"position": 5}),
        (ValueError, "has no position -6", {"position": -6}),
        (ValueError, "has no position 1.5", {"position": 1.5}),
        (TypeError, "head must be an integer", {"head": True}),
        (TypeError, "head must be an integer", {"head": 1.0}),
    ],
)
def test_a_place_that_is_not_there_is_not_patched(error, words, changed):
    gpt, _, acts = random_gpt()
    with pytest.raises(error, match=words):
        analyze.patch(gpt, [3, 1, 4, 1, 5], "h.0.attn.z", acts, **changed)


def test_heads_are_named_by_pairs():
    gpt, _, _ = random_gpt()
    for heads in ((0, 1), [(0,)], [0], [(0, 1, 2)]):
        with pytest.raises(TypeError, match="heads must be pairs"):
            analyze.ablate_heads(gpt, [1, 2], heads)
    for heads in ([("0", 1)], [(0.0, 1)], [(0, 1.0)]):
        with pytest.raises(TypeError, match="must be an integer"):
            analyze.ablate_heads(gpt, [1, 2], heads)
    np.testing.assert_array_equal(
        analyze.ablate_heads(gpt, [1, 2], [(np.uint8(1), np.int64(2))])[0],
        analyze.ablate_heads(gpt, [1, 2], [(1, 2)])[0],
    )


def test_padding_is_neither_changed_nor_part_of_a_mean():
    gpt, _, _ = random_gpt()
    tokens, pads = [[0, 0, 1, 2, 3], [3, 1, 4, 1, 5]], [2, 0]
    _, acts = gpt.forward(tokens, pads=pads, keep="everything")
    z = acts["h.0.attn.z"][..., 4:8]
    mean = np.concatenate([z[0, 2:], z[1]]).mean(0)
    _, changed = analyze.ablate_heads(gpt, tokens, [(0, 1)], mean=True, pads=pads)
    np.testing.assert_allclose(changed["h.0.attn.z"][1, :, 4:8], np.tile(mean, (5, 1)), atol=1e-15)
    with pytest.raises(ValueError, match="no pads that can be changed"):
        analyze.run_with(gpt, tokens, {"pads": np.array([0, 0])}, pads=pads)


def test_statistics_are_of_the_heads_of_a_layer():
    with pytest.raises(ValueError, match=r"a pattern is \(B, H, T, S\), not of shape \(2, 3, 3\)"):
        analyze.attention_statistics(np.ones((2, 3, 3)) / 3)


def test_a_small_integer_of_keys_does_not_overflow():
    assert analyze.flops_per_token(SMALL, np.uint8(200)) == analyze.flops_per_token(SMALL, 200)
