"""family/gpt3.py: the band, golden and against a plain mask; the table of the paper."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import family_models as models  # noqa: E402

import numpygpt  # noqa: E402
from numpygpt import ops, plain  # noqa: E402
from numpygpt.family import gpt3  # noqa: E402
from numpygpt.look import analyze  # noqa: E402
from numpygpt.model import GPT2, parameter_shapes  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "gpt3.npz")
TOKENS = models.gpt3_tokens()


def model(band, dtype=np.float64):
    params = {name: value.astype(dtype) for name, value in models.gpt3_params().items()}
    return gpt3.GPT3(models.GPT3, params, band)


def gap(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("band", models.BANDS)
def test_logits_are_those_of_transformers_gpt_neo(band, dtype):
    logits, _ = model(band, dtype).forward(TOKENS)
    assert logits.dtype == dtype
    assert gap(logits, GOLDEN[f"band {band}"]) < 3e-6  # its patterns are float32 in both


def test_the_bands_differ_and_the_widest_hides_nothing():
    assert gap(GOLDEN["band 1"], GOLDEN["band 3"]) > 1e-2
    dense, _ = GPT2(models.GPT3, models.gpt3_params()).forward(TOKENS)
    assert gap(model(20, np.float32).forward(TOKENS)[0], dense) == 0
    assert gap(model(3, np.float32).forward(TOKENS)[0], dense) > 1e-2


def plain_logits(tokens, params, config, band):
    """One row, block by block, with the mask written out as a matrix of what may be seen."""
    t = len(tokens)
    query, key = np.arange(t)[:, None], np.arange(t)
    x = params["wte.weight"][tokens] + params["wpe.weight"][:t]
    for i in range(config.n_layer):
        seen = (key <= query) & ((query - key < band) if i % 2 else True)

        def weights(name, i=i):
            return params[f"h.{i}.{name}.weight"], params[f"h.{i}.{name}.bias"]

        y = plain.layer_norm(x, *weights("ln_1"), config.layer_norm_epsilon)
        w, b = weights("attn.c_attn")
        q, k, v = np.split(y @ w + b, 3, axis=-1)
        d = config.n_embd // config.n_head
        z = []
        for h in range(config.n_head):
            columns = slice(h * d, (h + 1) * d)
            scores = q[:, columns] @ k[:, columns].T / np.sqrt(d)
            e = np.where(seen, np.exp(scores), 0)
            z.append(e / e.sum(-1, keepdims=True) @ v[:, columns])
        w, b = weights("attn.c_proj")
        x = x + np.concatenate(z, axis=-1) @ w + b
        y = plain.layer_norm(x, *weights("ln_2"), config.layer_norm_epsilon)
        (w1, b1), (w2, b2) = weights("mlp.c_fc"), weights("mlp.c_proj")
        x = x + plain.gelu(y @ w1 + b1) @ w2 + b2
    x = plain.layer_norm(x, params["ln_f.weight"], params["ln_f.bias"], config.layer_norm_epsilon)
    return x @ params["wte.weight"].T


@pytest.mark.parametrize("band", [1, 2, 5, 13, 14])
@pytest.mark.parametrize("pieces", [(14,), (1,) * 14, (6, 1, 4, 3)])
def test_forward_and_cached_decode_are_a_plain_mask(band, pieces):
    ours = model(band)
    # with biases: the golden file has none
    params = {n: a + 0.1 if n.endswith("c_attn.bias") else a for n, a in ours.params.items()}
    ours = gpt3.GPT3(ours.config, params, band)
    cache, logits, start = ours.cache(2), [], 0
    for length in pieces:
        logits.append(ours.forward(TOKENS[:, start : start + length], cache)[0])
        start += length
    expected = np.stack([plain_logits(row, params, ours.config, band) for row in TOKENS])
    assert gap(np.concatenate(logits, axis=1), expected) < 1e-12


def test_rows_with_padding_at_the_left_are_the_rows_alone():
    ours, pads = model(3), np.array([0, 5])
    tokens = TOKENS.copy()
    logits, _ = ours.forward(tokens, pads=pads)
    alone, _ = ours.forward(tokens[1:, 5:])
    assert np.isfinite(logits).all() and gap(logits[1:, 5:], alone) < 1e-12


def test_a_long_prompt_goes_through_the_pieces_of_queries():
    config = models.GPT3.__class__(11, 150, 6, 2, 2)
    params = numpygpt.init(config, np.random.default_rng(0), np.float64)
    params = {n: a * 20 if a.ndim == 2 else a for n, a in params.items()}
    tokens = np.random.default_rng(1).integers(11, size=150)
    logits, _ = gpt3.GPT3(config, params, 70).forward(tokens)
    assert gap(logits[0], plain_logits(tokens, params, config, 70)) < 1e-12


def test_generate_works_on_it_and_the_record_is_as_gpt2s():
    ours = model(3, np.float32)
    steps = numpygpt.generate(ours, [[1, 2, 3]], 5, temperature=0)
    ids = [1, 2, 3]
    for (new,) in steps:
        ids += new
    for i in range(3, 8):
        assert ours.forward(ids[:i])[0][0, -1].argmax() == ids[i]
    pads = np.zeros(len(TOKENS), int)
    _, acts = ours.forward(TOKENS, pads=pads, keep="everything")
    dense = GPT2(models.GPT3, ours.params).forward(TOKENS, pads=pads, keep="everything")[1]
    assert set(acts) == set(dense)
    assert all((acts[name] == dense[name]).all() for name in ("tokens", "positions", "pads"))
    hidden = acts["h.1.attn.pattern"][0, 0, 9]
    assert (hidden[:7] == 0).all() and (hidden[7:10] > 0).all()
    assert (acts["h.2.attn.pattern"][0, 0, 9, :10] > 0).all()


def test_an_unembedding_of_its_own_is_used():
    """With a band that hides nothing it is GPT-2, tied or not."""
    params = models.gpt3_params()
    head = np.random.default_rng(0).normal(size=params["wte.weight"].shape)
    params |= {"lm_head.weight": head.astype(params["wte.weight"].dtype)}
    logits, _ = gpt3.GPT3(models.GPT3, params, models.GPT3.n_ctx).forward(TOKENS)
    assert gap(logits, GPT2(models.GPT3, params).forward(TOKENS)[0]) == 0
    assert gap(logits, GPT2(models.GPT3, models.gpt3_params()).forward(TOKENS)[0]) > 0.1


def test_what_is_refused():
    for band, error in ((0, ValueError), (-1, ValueError), (True, TypeError), (2.5, TypeError)):
        with pytest.raises(error, match="band must be"):
            gpt3.GPT3(models.GPT3, models.gpt3_params(), band)
    for kind in (np.int64, np.uint8):
        np.testing.assert_array_equal(
            model(kind(3)).forward(TOKENS)[0], model(3).forward(TOKENS)[0]
        )
    with pytest.raises(ValueError, match="no backward pass"):
        model(3).forward(TOKENS, keep="backward")
    with pytest.raises(ValueError, match="n_ctx = 14"):
        model(3).forward(np.zeros((1, 15), int))


def test_the_band_has_the_gradient_of_the_scores_without_it():
    rng = np.random.default_rng(2)
    q, k = rng.standard_normal((2, 1, 2, 5, 4))
    dpattern = rng.standard_normal((1, 2, 5, 5))

    def loss(q, k):
        return (ops.softmax(gpt3.banded_scores(q, k, band=2)) * dpattern).sum()

    scores = gpt3.banded_scores(q, k, band=2)
    dscores = ops.softmax_backward(dpattern, scores)
    step = np.zeros_like(q)
    step[0, 1, 3, 2] = 1e-6
    for i, grad in enumerate(ops.attention_scores_backward(dscores, q, k)):
        up, down = [q, k], [q, k]
        up[i], down[i] = up[i] + step, down[i] - step
        assert (loss(*up) - loss(*down)) / 2e-6 == pytest.approx(grad[0, 1, 3, 2], rel=1e-7)


def test_the_eight_sizes_of_the_paper():
    counted = {
        row.name: sum(np.prod(s) for s in parameter_shapes(gpt3.config(row)).values())
        for row in gpt3.TABLE
    }
    # by hand, 12 L C^2 + 13 L C + (V + n_ctx) C + 2 C
    for row in gpt3.TABLE:
        layers, c = row.n_layer, 5120 if row.name == "13B" else row.n_embd
        by_hand = 12 * layers * c**2 + 13 * layers * c + (50257 + 2048) * c + 2 * c
        assert counted[row.name] == by_hand
    heads = {row.name: (row.n_head, gpt3.config(row).n_head) for row in gpt3.TABLE}
    assert {name for name, (printed, built) in heads.items() if printed != built} == {"XL"}
    assert heads["XL"] == (24, 16)
    widths = {gpt3.config(r).n_embd for r in gpt3.TABLE if gpt3.config(r).n_embd != r.n_embd}
    assert widths == {5120}
    assert all(gpt3.config(r).n_embd // gpt3.config(r).n_head == r.d_head for r in gpt3.TABLE)
    assert [row.name for row in gpt3.TABLE if gpt3.notes(row)] == ["XL", "13B"]


def test_training_flops_are_the_papers():
    flops = analyze.training_flops(gpt3.config(gpt3.TABLE[-1]), gpt3.TRAINING_TOKENS)
    assert f"{flops:.2e}" == f"{gpt3.FLOPS_PRINTED:.2e}" == "3.14e+23"
    with_attention = analyze.training_flops(gpt3.config(gpt3.TABLE[-1]), 300e9, keys=1024)
    assert 1.01 < with_attention / flops < 1.02
