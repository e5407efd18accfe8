"""The model beside transformers' GPT2LMHeadModel, the cache beside no cache, and what is refused.

Measured relative gaps of correct code: small model, float32 9e-7, float64 2e-15; full size, float32
1.3e-6. The mistakes of `MISTAKES` change the logits by 1.6e-4 (erf GELU) and more.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
from golden import models
from golden.models import FULL, SMALL, gap
from signatures import defaults

from numpygpt import model as model_module
from numpygpt import ops
from numpygpt.model import GPT2, Config, as_dtype, init, parameter_shapes, with_ops

DTYPES = ("float32", "float64")
LINE = {"float32": 1e-5, "float64": 1e-12}
BLOCK = (
    "resid_pre ln_1 attn.c_attn attn.q attn.k attn.v attn.scores attn.pattern attn.z attn.c_proj"
    " resid_mid ln_2 mlp.c_fc mlp.act mlp.c_proj resid_post"
).split()
READ_BY_BACKWARD = (
    "resid_pre ln_1 attn.q attn.k attn.v attn.z resid_mid ln_2 mlp.c_fc mlp.act resid_post".split()
)
# n_ctx of several pieces of attention (model.PIECE = 64), and no two sizes alike.
LONG = Config(23, 200, 10, 2, 3, n_inner=13)
LONG_SCALES = {"wte": 0.5, "wpe": 0.4, "final_gain": 1.0}


@functools.cache
def golden(name):
    with np.load(models.GOLDEN / f"model_{name}.npz") as file:
        return dict(file)


@functools.cache
def small(dtype="float32", tied=True):
    return as_dtype(GPT2(SMALL, models.small(tied)), dtype)


@functools.cache
def long(dtype="float64"):
    return as_dtype(GPT2(LONG, models.weights(LONG, 77, LONG_SCALES)), dtype)


@pytest.fixture(scope="module")
def full():
    return GPT2(FULL, models.full())


def random_ids(seed, *shape, n_vocab=LONG.n_vocab):
    return np.random.default_rng(seed).integers(0, n_vocab, shape)


def names_of_record(n_layer, block, pads=False):
    start = ["tokens", "positions", *["pads"][:pads], "wte", "wpe"]
    return [*start, *(f"h.{i}.{x}" for i in range(n_layer) for x in block), "ln_f", "logits"]


def small_record():
    """The stored record, with the entries that are others under a second name."""
    stored = golden("small")
    record = {"tokens": stored["tokens"], "wte": stored["wte"], "wpe": stored["wpe"][0]}
    record["positions"] = np.broadcast_to(np.arange(9), (2, 9))
    for i in range(SMALL.n_layer):
        h, before = f"h.{i}.", f"h.{i - 1}.resid_post"
        record |= {h + x: stored[h + x] for x in BLOCK if h + x in stored}
        record[h + "resid_pre"] = stored["h.0.resid_pre" if i == 0 else before]
        parts = [stored[f"{h}attn.{x}"].swapaxes(1, 2).reshape(2, 9, 35) for x in "qkv"]
        record[h + "attn.c_attn"] = np.concatenate(parts, axis=-1)
    return record | {"ln_f": stored["ln_f"], "logits": stored["logits"]}


# ---- the small model, everything ----------------------------------------------------------------


def test_the_weights_are_those_of_the_golden_files():
    assert models.checksum(models.small()) == golden("small")["checksum"]
    assert models.checksum(models.small()) == golden("cases")["checksum"]
    assert models.checksum(models.small(tied=False)) == golden("cases")["untied/checksum"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_intermediate_equals_the_reference(dtype):
    reference = small_record()
    logits, acts = small(dtype).forward(reference["tokens"], keep="everything")
    assert acts["logits"] is logits
    assert acts.keys() == reference.keys()
    for name, value in acts.items():
        assert gap(value, reference[name]) < LINE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_every_gradient_equal_the_reference(dtype):
    stored, reference = golden("small"), golden("small_grads")
    model = small(dtype)
    loss, grads = model.loss_and_grads(stored["tokens"], stored["targets"], stored["mask"])
    assert loss.dtype == dtype
    assert gap(loss, stored["loss"]) < LINE[dtype]
    assert list(grads) == list(parameter_shapes(SMALL))
    assert len(grads) == len(reference)
    for name, grad in grads.items():
        assert grad.dtype == dtype, name
        assert gap(grad, reference[f"grad/{name}"]) < LINE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_rows_equal_the_reference_whole_and_through_the_cache(dtype):
    stored, model = golden("cases"), small(dtype)
    tokens, pads = stored["padded/tokens"], stored["padded/pads"]
    real = np.arange(tokens.shape[1]) >= pads[:, None]
    logits, _ = model.forward(tokens, pads=pads)
    assert gap(logits[real], stored["padded/logits"]) < LINE[dtype]
    cache = model.cache(len(tokens))
    parts = [model.forward(tokens[:, :5], cache, pads)[0]]
    parts += [model.forward(tokens[:, 5:6], cache)[0], model.forward(tokens[:, 6:], cache)[0]]
    logits = np.concatenate(parts, axis=1)
    assert gap(logits[real], stored["padded/logits"]) < LINE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_untied_unembedding_equals_the_reference(dtype):
    stored, case, model = golden("small"), golden("cases"), small(dtype, tied=False)
    logits, _ = model.forward(stored["tokens"])
    assert gap(logits, case["untied/logits"]) < LINE[dtype]
    _, grads = model.loss_and_grads(stored["tokens"], stored["targets"], stored["mask"])
    assert list(grads) == list(parameter_shapes(SMALL, tied=False))
    for name in ("wte", "wpe", "lm_head"):
        assert gap(grads[f"{name}.weight"], case[f"untied/grad/{name}"]) < LINE[dtype], name


def test_a_tied_table_collects_the_gradients_of_both_its_uses():
    stored, params = golden("small"), models.small()
    twice = GPT2(SMALL, params | {"lm_head.weight": params["wte.weight"]})
    inputs = stored["tokens"], stored["targets"], stored["mask"]
    (loss, tied), (same, untied) = small().loss_and_grads(*inputs), twice.loss_and_grads(*inputs)
    assert loss == same
    both = untied["wte.weight"] + untied["lm_head.weight"]
    assert gap(tied["wte.weight"], both) < 1e-6  # added up in another order


# ---- the full size ------------------------------------------------------------------------------


def test_the_full_weights_are_those_of_the_golden_file(full):
    assert models.checksum(full.params) == golden("124M")["checksum"]
    assert sum(p.size for p in full.params.values()) == 124_439_808  # the published model's


def test_full_size_hidden_states_and_logits(full):
    stored = golden("124M")
    logits, acts = full.forward(stored["tokens"][:, :-1], keep="everything")
    checked = 0
    for name, value in acts.items():
        if f"norm/{name}" in stored:
            checked += 1
            assert gap(norm(value), stored[f"norm/{name}"]) < 1e-5, name
        if name.endswith("resid_post") or name in ("wte", "ln_f"):
            at = value[0][models.TOKENS, models.CHANNELS]
            assert gap(at, stored[name]) < 1e-5, name
    assert checked == 4 + 12 * 12
    assert gap(logits[0][models.TOKENS, models.IDS], stored["logits"]) < 1e-5
    assert gap([norm(row) for row in logits[0]], stored["norm/rows"]) < 1e-5


def test_full_size_loss_and_gradients(full):
    stored = golden("124M")
    tokens = stored["tokens"]
    loss, grads = full.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
    assert gap(loss, stored["loss"]) < 1e-5
    for name, grad in grads.items():
        assert gap(norm(grad), stored[f"norm/grad/{name}"]) < 1e-5, name
        assert gap(models.sample(grad), stored[f"grad/{name}"]) < 1e-5, name


def test_full_size_at_the_last_positions_through_the_cache(full):
    """1020 tokens, then the last 4: positions 1020 to 1023, and not one more."""
    stored = golden("124M")
    tokens, cache = stored["long/tokens"], full.cache()
    full.forward(tokens[:, :1020], cache, only_last=True)
    logits, _ = full.forward(tokens[:, 1020:], cache)
    assert gap(logits[0][:, models.IDS], stored["long/logits"]) < 1e-5
    assert gap([norm(row) for row in logits[0]], stored["long/norm/rows"]) < 1e-5
    with pytest.raises(ValueError, match="1025 positions are asked for"):
        full.forward([0], cache)


def norm(x):
    """Euclidean length, the squares added in float64."""
    return np.linalg.norm(np.asarray(x, np.float64))


# ---- the line is narrow enough ------------------------------------------------------------------


def erf_gelu(x):
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return x * (1 + erf(x / 2**0.5)) / 2


def unbiased_layer_norm(x, g, b, eps):
    variance = x.var(-1, keepdims=True, ddof=1)
    return g * (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + eps) + b


def with_eps(model, eps):
    return GPT2(dataclasses.replace(model.config, layer_norm_epsilon=eps), model.params)


def half_precision(model):
    params = {n: p.astype(np.float16).astype(p.dtype) for n, p in model.params.items()}
    return GPT2(model.config, params)


MISTAKES = {
    "erf GELU": lambda model: with_ops(model, gelu=erf_gelu),
    "unbiased variance": lambda model: with_ops(model, layer_norm=unbiased_layer_norm),
    "float16 weights": half_precision,
    "eps 1e-6": lambda model: with_eps(model, 1e-6),
}


@pytest.mark.parametrize("mistake", [*MISTAKES, "eps 1e-5"])
def test_a_mistake_is_far_over_the_line(mistake):
    make = (MISTAKES | {"eps 1e-5": lambda model: with_eps(model, 1e-5)})[mistake]
    stored = golden("small")
    logits, _ = make(small()).forward(stored["tokens"])
    assert gap(logits, stored["logits"]) > 10 * LINE["float32"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_far_over_the_line_at_full_size(mistake, full):
    stored = golden("124M")
    logits, _ = MISTAKES[mistake](full).forward(stored["tokens"][:, :-1])
    assert gap(logits[0][models.TOKENS, models.IDS], stored["logits"]) > 10 * LINE["float32"]


# ---- the record ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pads", (None, [0, 4]))
def test_names_order_and_dtype_of_the_record(dtype, pads):
    tokens = random_ids(1, 2, 9, n_vocab=SMALL.n_vocab)
    logits, acts = small(dtype).forward(tokens, pads=pads, keep="everything")
    assert list(acts) == names_of_record(SMALL.n_layer, BLOCK, pads is not None)
    for name, value in acts.items():
        kind = "i" if name in ("tokens", "positions", "pads") else "f"
        assert value.dtype.kind == kind, name
        assert kind == "i" or value.dtype == dtype, name
    assert logits.dtype == dtype
    assert acts["positions"].shape == (2, 9)
    assert acts["h.1.attn.q"].shape == (2, 5, 9, 7)
    assert acts["h.1.attn.scores"].shape == acts["h.1.attn.pattern"].shape == (2, 5, 9, 9)
    assert acts["h.1.attn.z"].shape == (2, 9, 35)
    assert acts["h.1.mlp.act"].shape == (2, 9, 57)


def test_the_record_through_the_cache_holds_all_keys_and_the_new_queries():
    model, tokens = small(), random_ids(2, 2, 9, n_vocab=SMALL.n_vocab)
    cache = model.cache(2)
    model.forward(tokens[:, :6], cache)
    _, acts = model.forward(tokens[:, 6:], cache, keep="everything")
    assert list(acts) == names_of_record(SMALL.n_layer, BLOCK)
    assert acts["h.2.attn.q"].shape == (2, 5, 3, 7)
    assert acts["h.2.attn.k"].shape == acts["h.2.attn.v"].shape == (2, 5, 9, 7)
    assert acts["h.2.attn.pattern"].shape == (2, 5, 3, 9)
    np.testing.assert_array_equal(acts["positions"], [[6, 7, 8]] * 2)
    assert {v.dtype for n, v in acts.items() if n not in ("tokens", "positions")} == {small().dtype}


def test_the_record_holds_what_is_asked_for():
    tokens = random_ids(3, 2, 9, n_vocab=SMALL.n_vocab)
    plain, nothing = small().forward(tokens)
    kept, some = small().forward(tokens, keep="backward")
    whole, everything = small().forward(tokens, keep="everything")
    assert nothing == {}
    wanted = names_of_record(SMALL.n_layer, READ_BY_BACKWARD)
    assert list(some) == [n for n in wanted if n not in ("wte", "wpe", "logits")]
    for name, value in some.items():
        np.testing.assert_array_equal(value, everything[name])
    np.testing.assert_array_equal(plain, kept)
    np.testing.assert_array_equal(plain, whole)


@pytest.mark.parametrize("length", (9, 65, 129))
def test_backward_needs_no_more_than_its_own_record(length):
    model, tokens = long(), random_ids(4, 2, length)
    dlogits = np.random.default_rng(5).standard_normal((2, length, LONG.n_vocab))
    grads = model.backward(dlogits, model.forward(tokens, keep="backward")[1])
    others = model.backward(dlogits, model.forward(tokens, keep="everything")[1])
    for name, grad in grads.items():
        assert gap(grad, others[name]) < 1e-13, name


def test_the_record_holds_the_scores_of_all_queries_in_one_array():
    """Although attention takes 64 queries at a time where nobody asks for its scores."""
    tokens = random_ids(24, 1, 130)
    logits, acts = long().forward(tokens, keep="everything")
    scores, pattern = acts["h.2.attn.scores"][0], acts["h.2.attn.pattern"][0]
    assert scores.shape == pattern.shape == (2, 130, 130)
    np.testing.assert_allclose(pattern.sum(-1), 1)
    np.testing.assert_array_equal(np.isfinite(scores), np.tri(130, dtype=bool) & [[[True]]] * 2)
    taken = []
    spied = with_ops(long(), softmax=lambda x: taken.append(x.shape[2:]) or ops.softmax(x))
    assert gap(spied.forward(tokens)[0], logits) < 1e-14
    assert taken == [(64, 64), (64, 128), (2, 130)] * 3
    taken.clear()
    spied.backward(np.ones_like(logits), acts)
    assert taken == [(64, 64), (64, 128), (2, 130)] * 3
    taken.clear()
    spied.forward(tokens, given={})
    assert taken == [(130, 130)] * 3


def test_heads_go_together_where_scores_are_recorded_or_operations_are_not_ours(monkeypatch):
    together = []

    def heads(q, k, whole):
        together.append(whole)
        return [slice(0, q.shape[1])]

    monkeypatch.setattr(model_module.fast, "heads", heads)
    foreign = with_ops(small(), gelu=lambda x: ops.gelu(x))
    for model, keep, expected in (
        (small(), "backward", False), (small(), "everything", True), (foreign, "backward", True),
    ):  # fmt: skip
        together.clear()
        logits, acts = model.forward([[1, 2, 3]], keep=keep)
        assert together == [expected] * 3
        if keep == "backward":
            model.backward(np.ones_like(logits), acts)
            assert together == [expected] * 6


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_logits_alone(dtype):
    tokens = random_ids(6, 3, 70)
    whole, _ = long(dtype).forward(tokens)
    last, _ = long(dtype).forward(tokens, only_last=True)
    assert last.shape == (3, 1, LONG.n_vocab)
    assert gap(last, whole[:, -1:]) < LINE[dtype] / 10


def test_a_flat_list_is_a_batch_of_one():
    logits, _ = small().forward([3, 1, 4, 1, 5])
    np.testing.assert_array_equal(logits, small().forward(np.array([[3, 1, 4, 1, 5]]))[0])
    assert logits.shape == (1, 5, SMALL.n_vocab)


# ---- gradients of the whole model against central differences -----------------------------------

TINY = Config(5, 7, 6, 3, 2, n_inner=4, layer_norm_epsilon=1e-3)
TINY_SCALES = {"wte": 0.7, "wpe": 0.5, "final_gain": 1.0}


@pytest.mark.parametrize("tied", (True, False))
@pytest.mark.parametrize("pads", (None, [3, 0]))
def test_all_gradients_equal_central_differences(tied, pads, monkeypatch):
    monkeypatch.setattr(model_module, "PIECE", 2)  # attention in pieces of 2, 2 and 1
    params = models.weights(TINY, 9, TINY_SCALES, tied)
    model = as_dtype(GPT2(TINY, params), "float64")
    tokens = random_ids(7, 2, 5, n_vocab=TINY.n_vocab)
    weight = np.random.default_rng(8).standard_normal((2, 5, TINY.n_vocab))
    if pads:
        weight[0, :3] = 0  # nobody reads the logits of padding
    grads = model.backward(weight, model.forward(tokens, pads=pads, keep="backward")[1])
    for name, grad in grads.items():
        assert gap(grad, slope(model, name, tokens, pads, weight)) < 1e-8, name


def slope(model, name, tokens, pads, weight, h=1e-4):
    """d sum(weight logits) / d parameter, by central differences of fourth order."""
    p = model.params[name].copy()
    changed = GPT2(model.config, model.params | {name: p})
    result = np.empty_like(p)
    for at in np.ndindex(p.shape):
        value, sums = p[at], []
        for step in (-2, -1, 1, 2):
            p[at] = value + step * h
            sums.append((changed.forward(tokens, pads=pads)[0] * weight).sum())
        p[at] = value
        result[at] = (sums[0] - 8 * sums[1] + 8 * sums[2] - sums[3]) / (12 * h)
    return result


@pytest.mark.parametrize("length", (63, 64, 65, 128, 129, 200))
def test_attention_in_pieces_equals_attention_at_once(length, monkeypatch):
    model, tokens = long(), random_ids(9, 2, length)
    targets = random_ids(10, 2, length)
    loss, grads = model.loss_and_grads(tokens, targets)
    monkeypatch.setattr(model_module, "PIECE", 10**6)
    loss_at_once, grads_at_once = model.loss_and_grads(tokens, targets)
    assert gap(loss, loss_at_once) < 1e-14
    for name, grad in grads.items():
        assert gap(grad, grads_at_once[name]) < 1e-12, name


# ---- the cache ----------------------------------------------------------------------------------


def random_pieces(rng, length):
    """Slices that cut `length` tokens into pieces of 1, of a few, and of more than PIECE."""
    start = 0
    while start < length:
        stop = min(length, start + rng.choice([1, 1, 2, 5, 30, 63, 64, 65, 130]))
        yield slice(start, stop)
        start = stop


def through_cache(model, tokens, pieces, pads=None):
    cache = model.cache(len(tokens))
    parts = [model.forward(tokens[:, piece], cache, pads)[0] for piece in pieces]
    assert cache.length == tokens.shape[1]
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("length", (1, 2, 63, 64, 65, 128, 129, 200))
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_cutting_through_the_cache_gives_the_same_logits(length, dtype):
    model, tokens = long(dtype), random_ids(length, 2, length)
    whole, _ = model.forward(tokens)
    rng = np.random.default_rng(length)
    cuts = [[slice(0, length)], *(list(random_pieces(rng, length)) for _ in range(3))]
    for pieces in cuts:
        assert gap(through_cache(model, tokens, pieces), whole) < LINE[dtype], pieces


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_by_token_gives_the_same_logits(dtype):
    model, tokens = long(dtype), random_ids(11, 3, 66)
    pieces = [slice(i, i + 1) for i in range(66)]
    assert gap(through_cache(model, tokens, pieces), model.forward(tokens)[0]) < LINE[dtype]


@pytest.mark.parametrize("length", (63, 64, 65, 128, 129, 200))
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_rows_equal_the_rows_alone_however_they_are_cut(length, dtype):
    model, tokens = long(dtype), random_ids(12, 5, length)
    pads = np.array([0, 1, length // 2, length - 1, length - 2])
    rng = np.random.default_rng(length)
    results = [model.forward(tokens, pads=pads)[0]]
    results += [
        through_cache(model, tokens, random_pieces(rng, length), pads),
        through_cache(model, tokens, random_pieces(rng, length), pads),
    ]
    for row, pad in enumerate(pads):
        alone, _ = model.forward(tokens[row : row + 1, pad:])
        for logits in results:
            assert gap(logits[row, pad:], alone[0]) < LINE[dtype], (row, pad)


def test_what_stands_in_the_padding_does_not_matter():
    model, tokens, pads = long(), random_ids(13, 2, 70), np.array([66, 3])
    other = np.where(np.arange(70) < pads[:, None], random_ids(14, 2, 70), tokens)
    assert (other != tokens).any()
    logits, others = model.forward(tokens, pads=pads)[0], model.forward(other, pads=pads)[0]
    for row, pad in enumerate(pads):
        np.testing.assert_array_equal(logits[row, pad:], others[row, pad:])


def test_gradients_of_a_padded_batch_are_the_sums_of_its_rows():
    model, tokens, targets = long(), random_ids(15, 3, 70), random_ids(16, 3, 70)
    pads = np.array([0, 5, 66])
    mask = (np.arange(70) >= pads[:, None]).astype(float)
    logits, acts = model.forward(tokens, pads=pads, keep="backward")
    dlogits = ops.cross_entropy_backward(1.0, logits, targets, mask)
    grads = model.backward(dlogits, acts)
    rows = [
        model.loss_and_grads(tokens[i, pad:], targets[i, pad:])[1] for i, pad in enumerate(pads)
    ]
    share = mask.sum(1) / mask.sum()
    for name, grad in grads.items():
        expected = sum(s * row[name] for s, row in zip(share, rows, strict=True))
        assert gap(grad, expected) < 1e-12, name


def test_a_later_token_changes_nothing_before_it():
    model, tokens = long(), random_ids(17, 1, 80)
    other = tokens.copy()
    other[0, 50] = (tokens[0, 50] + 1) % LONG.n_vocab
    before, after = model.forward(tokens)[0], model.forward(other)[0]
    np.testing.assert_array_equal(before[0, :50], after[0, :50])
    assert (before[0, 50:] != after[0, 50:]).any(axis=-1).all()


def test_two_caches_do_not_know_each_other():
    model, tokens = long(), random_ids(18, 2, 20)
    first, second = model.cache(), model.cache()
    for t in range(20):
        a, _ = model.forward(tokens[:1, t : t + 1], first)
        b, _ = model.forward(tokens[1:, t : t + 1], second)
    whole, _ = model.forward(tokens)
    assert gap(np.stack([a[0, -1], b[0, -1]]), whole[:, -1]) < 1e-12


def test_pads_are_remembered_as_they_were_at_the_first_piece():
    model, tokens, pads = long(), random_ids(19, 2, 12), np.array([0, 4])
    expected, _ = model.forward(tokens, pads=pads)
    cache = model.cache(2)
    model.forward(tokens[:, :7], cache, pads)
    pads[:] = 2  # the caller's array is the caller's
    logits, _ = model.forward(tokens[:, 7:], cache)
    assert gap(logits, expected[:, 7:]) < 1e-12


def test_a_refused_piece_leaves_the_cache_as_it_was():
    model, tokens = long(), random_ids(20, 1, 30)
    cache = model.cache()
    model.forward(tokens[:, :10], cache)

    def broken(x):
        raise RuntimeError("out of order")

    for failing, piece, error in (
        (model, [LONG.n_vocab], ValueError),
        (model, [0.5], TypeError),
        (model, [0] * 191, ValueError),
        (model, [[1], [2]], ValueError),
        (with_ops(model, gelu=broken), [1, 2, 3], RuntimeError),  # in the middle of block 0
    ):
        with pytest.raises(error):
            failing.forward(piece, cache)
        assert cache.length == 10
    logits, _ = model.forward(tokens[:, 10:], cache)
    assert gap(logits, model.forward(tokens)[0][:, 10:]) < 1e-12


# ---- refusals -----------------------------------------------------------------------------------


@functools.cache
def narrow():
    """As many positions as GPT-2 has, and hardly anything else."""
    config = Config(7, 1024, 4, 2, 1, n_inner=3)
    return GPT2(config, models.weights(config, 3, LONG_SCALES))


@pytest.mark.parametrize("length", (1023, 1024))
def test_up_to_n_ctx_positions_are_taken(length):
    tokens = random_ids(21, 1, length, n_vocab=7)
    whole, _ = narrow().forward(tokens)
    assert whole.shape == (1, length, 7)
    cache = narrow().cache()
    narrow().forward(tokens[:, :1022], cache)
    logits, _ = narrow().forward(tokens[:, 1022:], cache)
    assert gap(logits, whole[:, 1022:]) < 1e-5


def test_one_position_more_is_refused_whole_and_through_the_cache():
    message = "1025 positions are asked for, but the model has n_ctx = 1024"
    with pytest.raises(ValueError, match=message):
        narrow().forward(np.zeros(1025, int))
    cache = narrow().cache()
    narrow().forward(np.zeros(1000, int), cache)
    with pytest.raises(ValueError, match=message):
        narrow().forward(np.zeros(25, int), cache)
    narrow().forward(np.zeros(24, int), cache)  # 1024: still usable
    with pytest.raises(ValueError, match=message):
        narrow().forward([0], cache)


@pytest.mark.parametrize(
    "tokens, error, words",
    (
        ([[0, 2], [3, 61]], ValueError, "id 61 in row 1, column 1: the vocabulary has ids 0 to 60"),
        ([[1, 2, -1]], ValueError, "id -1 in row 0, column 2"),
        ([1.0, 2.0], TypeError, "tokens must be integers, not float64"),
        ([True, False], TypeError, "tokens must be integers, not bool"),
        (["a"], TypeError, "tokens must be integers, not <U1"),
        ([], ValueError, "at least one token"),
        (np.zeros((2, 0), int), ValueError, "at least one token"),
        (np.zeros((1, 2, 3), int), ValueError, r"not of shape \(1, 2, 3\)"),
        (7, ValueError, r"not of shape \(\)"),
        ([[1, 2], [3]], ValueError, "tokens must be"),
    ),
)
def test_tokens_that_are_refused(tokens, error, words):
    with pytest.raises(error, match=words):
        small().forward(tokens)
    with pytest.raises(error, match=words):
        small().forward(tokens, small().cache(2))


@pytest.mark.parametrize("dtype", ("uint8", "int16", "uint64"))
def test_any_integers_are_tokens_and_pads(dtype):
    tokens, pads = random_ids(22, 2, 9, n_vocab=SMALL.n_vocab), np.array([0, 3])
    expected, _ = small().forward(tokens, pads=pads)
    logits, acts = small().forward(tokens.astype(dtype), pads=pads.astype(dtype), keep="backward")
    np.testing.assert_array_equal(logits, expected)
    small().backward(np.ones_like(logits), acts)


@pytest.mark.parametrize(
    "pads, words",
    (
        ([0.0, 1.0], "pads must be 2 integers, one a row, not float64"),
        ([True, False], "pads must be 2 integers"),
        ([1], r"pads must be 2 integers, one a row, not int\d\d of shape \(1,\)"),
        ([[0, 1]], r"of shape \(1, 2\)"),
        (3, r"of shape \(\)"),
        ([0, -1], "pads must lie between 0 and n_ctx - 1 = 12"),
        ([0, 13], "pads must lie between 0 and n_ctx - 1 = 12"),
    ),
)
def test_pads_that_are_refused(pads, words):
    with pytest.raises(ValueError, match=words):
        small().forward([[1, 2, 3], [4, 5, 6]], pads=pads)


def test_all_but_one_position_may_be_padding():
    tokens = random_ids(25, 2, 13, n_vocab=SMALL.n_vocab)
    logits, _ = small().forward(tokens, pads=[12, 0])
    assert gap(logits[0, 12], small().forward(tokens[:1, 12:])[0][0, 0]) < LINE["float32"]


def test_other_pads_than_the_cache_began_with_are_refused():
    cache = small().cache(2)
    small().forward([[1, 2], [3, 4]], cache, [0, 1])
    with pytest.raises(ValueError, match=r"begun with pads \[0, 1\], not \[0, 2\]"):
        small().forward([[5], [6]], cache, [0, 2])
    small().forward([[5], [6]], cache, [0, 1])
    bare = small().cache(2)
    small().forward([[1, 2], [3, 4]], bare)
    with pytest.raises(ValueError, match=r"begun with pads \[0, 0\], not \[0, 1\]"):
        small().forward([[5], [6]], bare, [0, 1])


def test_a_cache_of_another_batch_is_refused():
    with pytest.raises(ValueError, match="the cache holds 3 rows, but tokens have 2"):
        small().forward([[1], [2]], small().cache(3))


def test_a_cache_of_another_model_is_refused():
    for other in (long(), small("float64")):
        with pytest.raises(ValueError, match="the cache is another model's"):
            small().forward([[1, 2]], other.cache())


def test_a_misspelt_keep_is_refused():
    with pytest.raises(ValueError, match='keep must be "nothing", "backward" or "everything"'):
        small().forward([1], keep="all")


def test_records_that_backward_cannot_use_are_refused():
    model, tokens = small(), [[1, 2, 3]]
    dlogits = np.ones((1, 3, SMALL.n_vocab), "float32")
    with pytest.raises(ValueError, match='run forward with keep="backward"'):
        model.backward(dlogits, model.forward(tokens)[1])
    for name in ("ln_f", f"h.{SMALL.n_layer - 1}.attn.z"):
        _, acts = model.forward(tokens, keep="backward")
        del acts[name]
        with pytest.raises(ValueError, match='run forward with keep="backward"'):
            model.backward(dlogits, acts)
    with pytest.raises(ValueError, match="leave out cache"):
        model.forward(tokens, model.cache(), keep="backward")
    cache = model.cache()
    model.forward([[5, 6]], cache)
    with pytest.raises(ValueError, match="the record was made with a cache"):
        model.backward(dlogits, model.forward(tokens, cache, keep="everything")[1])
    _, acts = model.forward(tokens, keep="backward")
    with pytest.raises(
        ValueError, match=r"dlogits have shape \(1, 2, 61\) instead of \(1, 3, 61\)"
    ):
        model.backward(dlogits[:, :2], acts)


def test_a_record_of_the_last_logits_alone_is_refused():
    model = small()
    with pytest.raises(ValueError, match="only_last"):
        _, acts = model.forward([[1, 2, 3]], keep="backward", only_last=True)
        model.backward(np.ones((1, 3, SMALL.n_vocab), "float32"), acts)


@pytest.mark.parametrize(
    "targets, mask, error, words",
    (
        ([[1, 2]], None, ValueError, r"targets have shape \(1, 2\), but tokens have \(2, 3\)"),
        ([[1, 2, 3], [4, 5, 61]], None, ValueError, "targets hold the id 61 in row 1, column 2"),
        ([[1, 2, 3], [-100, 5, 6]], None, ValueError, "the id -100 in row 1, column 0"),
        (
            [[-100, 2, 3], [4, -1, 6]],
            [[0, 1, 1], [1, 1, 1]],
            ValueError,
            "the id -1 in row 1, column 1",
        ),
        (np.ones((2, 3)), None, TypeError, "targets must be integers, not float64"),
        ([[1, 2, 3], [4, 5, 6]], [[1, 1, 1]], ValueError, r"mask have shape \(1, 3\)"),
        ([[1, 2, 3], [4, 5, 6]], np.zeros((2, 3)), ValueError, "mask is 0 everywhere"),
    ),
)
def test_targets_and_masks_that_are_refused(targets, mask, error, words):
    with pytest.raises(error, match=words):
        small().loss_and_grads([[1, 2, 3], [4, 5, 6]], targets, mask)


def test_in_a_vocabulary_of_one_token_nothing_is_left_to_predict():
    one = Config(n_vocab=1, n_ctx=3, n_embd=4, n_head=2, n_layer=1)
    tiny = GPT2(one, init(one, np.random.default_rng(0)))
    loss, grads = tiny.loss_and_grads([0, 0, 0], [0, -100, 0], [1, 0, 1])
    assert loss == 0 and not any(grad.any() for grad in grads.values())


def test_where_the_mask_is_zero_the_target_may_be_anything():
    tokens, targets = [[1, 2, 3]], np.array([[-100, 5, 10**9]])
    loss, grads = small().loss_and_grads(tokens, targets, [[False, True, False]])
    same, expected = small().loss_and_grads(tokens, [[0, 5, 0]], [[0.0, 1.0, 0.0]])
    assert loss == same
    for name, grad in grads.items():
        np.testing.assert_array_equal(grad, expected[name])


# ---- parameters and configuration ---------------------------------------------------------------


def test_all_that_is_wrong_with_parameters_is_said_at_once():
    params = models.small()
    del params["h.1.ln_2.bias"], params["wpe.weight"]
    params["h.0.attn.bias"] = np.ones((1, 1, 13, 13), "float32")
    params["h.2.mlp.c_fc.weight"] = params["h.2.mlp.c_fc.weight"].T
    with pytest.raises(ValueError) as error:
        GPT2(SMALL, params)
    for words in (
        "h.1.ln_2.bias is missing",
        "wpe.weight is missing",
        "h.0.attn.bias is unknown",
        "h.2.mlp.c_fc.weight has shape (57, 35) instead of (35, 57)",
    ):
        assert words in str(error.value)


def test_parameters_of_other_dtypes_are_refused():
    params = models.small()
    params["ln_f.bias"] = params["ln_f.bias"].astype("float64")
    with pytest.raises(TypeError, match="all float32 or all float64, not float32, float64"):
        GPT2(SMALL, params)
    half = {name: p.astype("float16") for name, p in params.items()}
    with pytest.raises(TypeError, match="not float16"):
        GPT2(SMALL, half)


def test_parameters_are_used_as_they_are():
    params = models.small()
    model = GPT2(SMALL, params)
    assert all(model.params[name] is p for name, p in params.items())
    before, _ = model.forward([1, 2])
    params["ln_f.bias"] += 1
    assert (model.forward([1, 2])[0] != before).any()


@pytest.mark.parametrize("size", (0, -3, 1.5, True, "12", None))
@pytest.mark.parametrize("name", ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"))
def test_sizes_that_are_no_sizes_are_refused(name, size):
    sizes = {"n_vocab": 5, "n_ctx": 7, "n_embd": 6, "n_head": 3, "n_layer": 2} | {name: size}
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, not {size!r}"):
        Config(**sizes)


@pytest.mark.parametrize("n_inner", (0, -3, 1.5, True))
def test_n_inner_is_a_size_too(n_inner):
    with pytest.raises(ValueError, match="n_inner must be a positive integer"):
        Config(5, 7, 6, 3, 2, n_inner=n_inner)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="n_embd = 6 cannot be divided among n_head = 4 heads"):
        Config(5, 7, 6, 4, 2)


@pytest.mark.parametrize("eps", (-1e-5, 1, 1e5, float("nan"), "1e-5", None, True))
def test_an_epsilon_that_is_none_is_refused(eps):
    with pytest.raises(ValueError, match="layer_norm_epsilon must be"):
        Config(5, 7, 6, 3, 2, layer_norm_epsilon=eps)


def test_an_epsilon_of_nothing_is_allowed():
    assert Config(5, 7, 6, 3, 2, layer_norm_epsilon=0).layer_norm_epsilon == 0


@pytest.mark.parametrize("n_embd", (6, np.int64(6)))
def test_the_mlp_is_four_times_as_wide_unless_said_otherwise(n_embd):
    assert Config(5, 7, n_embd, 3, 2).n_inner == 24
    assert Config(5, 7, n_embd, 3, 2, n_inner=10).n_inner == 10


def test_a_configuration_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.n_ctx = 99


@pytest.mark.parametrize(
    "name, sizes, published",
    (
        ("124M", (12, 768, 12), 124_439_808),
        ("355M", (24, 1024, 16), 354_823_168),
        ("774M", (36, 1280, 20), 774_030_080),
        ("1558M", (48, 1600, 25), 1_557_611_200),
    ),
)
def test_sizes_and_parameter_counts_of_the_four_published_models(name, sizes, published):
    c = model_module.SIZES[name]
    assert (c.n_layer, c.n_embd, c.n_head) == sizes
    assert (c.n_vocab, c.n_ctx, c.n_inner) == (50_257, 1024, 4 * c.n_embd)
    assert sum(math.prod(shape) for shape in parameter_shapes(c).values()) == published


def test_what_a_model_is_unless_said_otherwise():
    assert len(model_module.SIZES) == 4
    assert defaults(Config) == {"n_inner": None, "layer_norm_epsilon": 1e-5}
    assert defaults(parameter_shapes) == {"tied": True}
    assert defaults(GPT2.cache) == {"batch": 1}
    assert defaults(GPT2.forward) == {
        "cache": None, "pads": None, "keep": "nothing", "only_last": False, "given": None,
    }  # fmt: skip
    assert defaults(model_module.Cache) == {"length": 0, "pads": None}


def test_names_and_shapes_of_one_block():
    shapes = parameter_shapes(Config(5, 7, 6, 3, 1, n_inner=4), tied=False)
    assert list(shapes.items()) == [
        ("wte.weight", (5, 6)),
        ("wpe.weight", (7, 6)),
        ("h.0.ln_1.weight", (6,)),
        ("h.0.ln_1.bias", (6,)),
        ("h.0.attn.c_attn.weight", (6, 18)),
        ("h.0.attn.c_attn.bias", (18,)),
        ("h.0.attn.c_proj.weight", (6, 6)),
        ("h.0.attn.c_proj.bias", (6,)),
        ("h.0.ln_2.weight", (6,)),
        ("h.0.ln_2.bias", (6,)),
        ("h.0.mlp.c_fc.weight", (6, 4)),
        ("h.0.mlp.c_fc.bias", (4,)),
        ("h.0.mlp.c_proj.weight", (4, 6)),
        ("h.0.mlp.c_proj.bias", (6,)),
        ("ln_f.weight", (6,)),
        ("ln_f.bias", (6,)),
        ("lm_head.weight", (5, 6)),
    ]


# ---- random parameters --------------------------------------------------------------------------

FRESH = Config(503, 250, 60, 3, 6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scales_of_random_parameters(dtype):
    params = init(FRESH, np.random.default_rng(1), dtype)
    assert {n: p.shape for n, p in params.items()} == parameter_shapes(FRESH)
    assert {p.dtype for p in params.values()} == {np.dtype(dtype)}
    expected = {
        "wte.weight": 0.02,
        "wpe.weight": 0.01,
        "attn.c_attn.weight": 0.02,
        "attn.c_proj.weight": 0.02 / 12**0.5,  # 6 blocks write twice each
        "mlp.c_fc.weight": 0.02,
        "mlp.c_proj.weight": 0.02 / 12**0.5,
    }
    rng = np.random.default_rng(1)
    for name, p in params.items():  # each is a standard normal number times its scale
        for ending, std in expected.items():
            if name.endswith(ending):
                assert gap(p, rng.standard_normal(p.shape, dtype) * std) < 1e-6, name
    for ending, std in expected.items():
        values = np.concatenate([p.ravel() for n, p in params.items() if n.endswith(ending)])
        assert values.std() == pytest.approx(std, rel=0.02), ending
        assert abs(values.mean()) < 5 * std / values.size**0.5, ending
    assert all((p == 0).all() for n, p in params.items() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in params.items() if "ln_" in n and n.endswith("weight"))


def test_the_same_seed_gives_the_same_parameters():
    first, again, other = (init(TINY, np.random.default_rng(seed)) for seed in (1, 1, 2))
    for name, p in first.items():
        np.testing.assert_array_equal(p, again[name])
    assert (first["wte.weight"] != other["wte.weight"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_knows_nothing_has_a_loss_of_ln_v(dtype):
    model = GPT2(FRESH, init(FRESH, np.random.default_rng(2), dtype))
    tokens = random_ids(23, 3, 101, n_vocab=FRESH.n_vocab)
    loss, _ = model.loss_and_grads(tokens[:, :-1], tokens[:, 1:])
    assert loss == pytest.approx(math.log(FRESH.n_vocab), rel=0.02)


# ---- replacing operations -----------------------------------------------------------------------


def test_one_operation_is_replaced_and_the_others_are_not():
    plain = small()
    doubled = with_ops(plain, gelu=lambda x: 2 * ops.gelu(x))
    _, acts = plain.forward([1, 2, 3], keep="everything")
    _, changed = doubled.forward([1, 2, 3], keep="everything")
    differ = [name for name in acts if not np.array_equal(acts[name], changed[name])]
    assert differ[0] == "h.0.mlp.act"  # where the two part
    np.testing.assert_array_equal(changed["h.0.mlp.act"], 2 * acts["h.0.mlp.act"])
    again = with_ops(doubled, gelu=ops.gelu)
    np.testing.assert_array_equal(again.forward([1, 2, 3])[0], acts["logits"])
    np.testing.assert_array_equal(plain.forward([1, 2, 3])[0], acts["logits"])


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="no such operation: gleu"):
        with_ops(small(), gleu=ops.gelu)


def test_another_dtype_is_another_model():
    double = as_dtype(small(), "float64")
    assert double.dtype == "float64"
    assert double.config == SMALL
    assert small().dtype == "float32"
    np.testing.assert_array_equal(double.params["wte.weight"], small().params["wte.weight"])


def test_given_entries_take_the_place_of_what_was_computed():
    model = GPT2(models.SMALL, models.small())
    tokens = models.token_ids(4, (2, 6), models.SMALL.n_vocab)
    _, acts = model.forward(tokens, keep="everything")
    for name in ("wpe", "h.1.resid_pre", "h.1.attn.k", "h.1.attn.pattern", "h.2.mlp.act", "ln_f"):
        logits, same = model.forward(tokens, keep="everything", given={name: acts[name]})
        np.testing.assert_array_equal(logits, acts["logits"])
        logits, other = model.forward(tokens, keep="everything", given={name: 2 * acts[name]})
        np.testing.assert_array_equal(other[name], acts[name])  # recorded is what was computed
        names = list(acts)
        before, after = names[: names.index(name)], names[-1]
        assert all(np.array_equal(other[n], acts[n]) for n in before)
        assert not np.allclose(other[after], acts[after])


def test_models_and_records_are_shown_in_words():
    config = Config(n_vocab=7, n_ctx=8, n_embd=6, n_head=3, n_layer=2)
    gpt = GPT2(config, {n: np.ones(s) for n, s in parameter_shapes(config).items()})
    assert repr(gpt) == (
        "GPT2(2 layers, 6 wide, 3 heads, 8 positions, 7 tokens: 1,122 parameters in float64)"
    )
    _, acts = gpt.forward([3, 5, 1], keep="everything")
    shown = repr(acts).splitlines()
    assert shown[0] == f"a record of {len(acts)} arrays, in the order of computation"
    assert [line.split()[0] for line in shown[1:]] == ["name", *acts]
    assert shown[2].split() == ["tokens", "(1,", "3)", "int64", "1", "3", "5"]
    assert max(map(len, shown)) < 100


def test_what_is_given_for_an_entry_that_does_not_exist_is_refused():
    """It would change nothing, and the run pass for one with a change."""
    gpt = small()
    for name in ("h.0.attn.Z", "h.99.attn.z", "wtee"):
        with pytest.raises(ValueError, match=f"there is no {name} to be given"):
            gpt.forward([1, 2], given={name: np.zeros(2)})
    acts = gpt.forward([1, 2], keep="everything")[1]
    cache = gpt.cache()
    with pytest.raises(ValueError):
        gpt.forward([1, 2], cache, given={"wtee": 1})
    assert cache.length == 0
    zeros = np.zeros_like(acts["h.0.attn.z"])
    changed = gpt.forward([1, 2], keep="everything", given={"h.0.attn.z": zeros})[1]
    bias = np.broadcast_to(gpt.params["h.0.attn.c_proj.bias"], zeros.shape)
    np.testing.assert_allclose(changed["h.0.attn.c_proj"], bias, rtol=1e-6)


def test_random_parameters_need_a_generator_and_a_dtype_that_is_computed_in():
    for rng in (0, None, np.random, np.random.RandomState(0)):
        with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
            init(SMALL, rng)
    for dtype in (np.float16, int):
        with pytest.raises(TypeError, match="parameters must be float32 or float64"):
            init(SMALL, np.random.default_rng(0), dtype)


def test_sizes_are_integers_of_every_kind():
    sizes = 23, 12, 100, 2, 3  # 4 * uint8(100) is 144
    for kind in (np.int8, np.uint8, np.int64):
        config = Config(*map(kind, sizes))
        assert config == Config(*sizes) and config.n_inner == 400
        assert {type(size) for size in dataclasses.astuple(config)} == {int, float}


def test_parameters_are_arrays():
    params = init(SMALL, np.random.default_rng(0))
    name = "h.0.ln_1.bias"
    with pytest.raises(TypeError, match=f"NumPy arrays, but {name} is a list"):
        GPT2(SMALL, params | {name: params[name].tolist()})
