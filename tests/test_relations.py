"""Mistakes that stand in no catalogue, one or more in each step of a block: each is described.

Each is made in the record itself: `get` below is asked for every entry and may answer with another
array, which is what the program of somebody else would have gone on with.
"""

from dataclasses import replace

import numpy as np
import pytest
from golden import models

import numpygpt
from numpygpt import ops
from numpygpt.check.diagnose import as_json, report
from numpygpt.check.relations import Step, find
from numpygpt.check.trace import gap, kind, replay
from numpygpt.model import GPT2, Config, as_dtype

SIZES = Config(47, 17, 24, 4, 2, n_inner=40)
SCALES = {"wte": 0.5, "wpe": 0.3, "final_gain": 1.0}
TOKENS = models.token_ids(3, (3, 9), SIZES.n_vocab)
D = SIZES.n_embd // SIZES.n_head


def weights():
    """A channel of the first token is far larger than the rest, as in GPT-2."""
    params = models.weights(SIZES, 11, SCALES)
    params["wpe.weight"][0, 7] = 60.0
    return params


MODEL = GPT2(SIZES, weights())
P = {name: a.astype(np.float64) for name, a in MODEL.params.items()}


class Spoilt:
    """Entries, or kinds of entries, that a program has wrong: name -> f(right, seen, block)."""

    def __init__(self, changes):
        self.changes, self.seen = changes, {"tokens": TOKENS}

    def get(self, name, computed):
        change = self.changes.get(name, self.changes.get(kind(name)))
        head = name.removesuffix(kind(name))
        value = change(computed, self.seen, head) if change else computed
        self.seen[name] = value
        return value


def dump_of(changes, model=MODEL):
    spoilt = Spoilt(changes)
    with np.errstate(all="ignore"):
        model.forward(TOKENS, given=spoilt)
    return {n: np.asarray(a, np.float32 if a.dtype.kind == "f" else None)
            for n, a in spoilt.seen.items()}  # fmt: skip


def normed(x, axis=-1, eps=1e-5):
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps)


def over_heads(scores):
    return np.nan_to_num(np.exp(scores) / np.exp(scores).sum(1, keepdims=True))


def raw_scores(seen, h):
    return seen[h + "attn.q"] @ seen[h + "attn.k"].swapaxes(2, 3) / D**0.5


def visible(seen):
    t = TOKENS.shape[1]
    query, key = np.arange(t)[:, None], np.arange(t)
    return query, key


def show(rule):
    def change(right, seen, h):
        query, key = visible(seen)
        return np.where(rule(query, key), raw_scores(seen, h), -np.inf)

    return change


def linear_with(change_weight=None, change_bias=None, source=None):
    """A linear layer with another weight, bias or input; `name` is found by its entry."""

    def make(name, inside):
        def change(right, seen, h):
            w, b = MODEL.params[f"{h}{name}.weight"], MODEL.params[f"{h}{name}.bias"]
            x = seen[h + (source or inside)]
            w = change_weight(w, h) if change_weight else w
            return x @ w + (change_bias(b, h) if change_bias else b)

        return change

    return make


def quantised(w, h):
    scale = np.abs(w).max(0, keepdims=True) / 127
    return np.round(w / scale) * scale


def rope(x, seen, h):
    t, d = x.shape[-2:]
    angle = np.arange(t)[:, None] / 10000 ** (np.arange(0, d, 2) / d)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def alibi(right, seen, h):
    query, key = visible(seen)
    slopes = 2.0 ** -(8 * np.arange(1, 5) / 4)
    return right + np.where(key <= query, slopes[:, None, None] * (key - query), 0)


def other_ids(right, seen, h):
    return MODEL.params["wte.weight"][np.minimum(TOKENS + 1, 46)]


def drop_rows(x, seen, h):
    rng = np.random.default_rng(5)
    return x * (rng.random(x.shape) > 0.25) / 0.75


NORM = {"ln_1": "resid_pre", "ln_2": "resid_mid"}


def norm_as(formula):
    def change(right, seen, h, what="ln_1"):
        x = seen[h + NORM[what]].astype(np.float64)
        g, b = P[f"{h}{what}.weight"], P[f"{h}{what}.bias"]
        return formula(x, g, b, h)

    return change


# name: what is done, the first entry that is wrong, kind, a part of the sentence
OUTSIDE = {
    # wte, wpe, resid_pre
    "ids one too large": ({"wte": other_ids}, "wte", "row", "of wte"),
    "embedding halved": ({"wte": lambda x, s, h: x / 2}, "wte", "factor", "0.5 times ours"),
    "positions reversed": (
        {"wpe": lambda x, s, h: x[..., ::-1, :]}, "wpe", "row", "[8, 7, 6, 5, 4, 3",
    ),
    "positions from 2": (
        {"wpe": lambda x, s, h: np.broadcast_to(MODEL.params["wpe.weight"][2:11], (3, 9, 24))},
        "wpe", "row", "row i+2 of wpe",
    ),
    "positions twice": (
        {"h.0.resid_pre": lambda x, s, h: x + s["wpe"]}, "h.0.resid_pre", "terms", "2 wpe",
    ),
    "positions missing": (
        {"h.0.resid_pre": lambda x, s, h: s["wte"].copy()}, "h.0.resid_pre", "equal", "wte",
    ),
    # ln_1
    "norm skipped": ({"ln_1": lambda x, s, h: s[h + "resid_pre"] * 1.0}, "h.0.ln_1", "equal",
                     "the step between them is missing"),
    "eps 1e-3": (
        {"ln_1": norm_as(lambda x, g, b, h: normed(x, eps=1e-3) * g + b)}, "h.0.ln_1", "eps",
        "eps = 0.001 in sqrt(var + eps)",
    ),
    "variance around zero": (
        {"ln_1": norm_as(lambda x, g, b, h: (x - x.mean(-1, keepdims=True))
                         / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * g + b)},
        "h.0.ln_1", "eps", "mean square",
    ),
    "divided by the variance": (
        {"ln_1": norm_as(lambda x, g, b, h: (x - x.mean(-1, keepdims=True))
                         / (x.var(-1, keepdims=True) + 1e-5) * g + b)},
        "h.0.ln_1", "function", "without the root",
    ),
    "norm over tokens": (
        {"ln_1": norm_as(lambda x, g, b, h: normed(x, 1) * g + b)}, "h.0.ln_1", "function",
        "normed over tokens",
    ),
    "1 + gain": (
        {"ln_1": norm_as(lambda x, g, b, h: normed(x) * (1 + g) + b)}, "h.0.ln_1", "parameter",
        "1 + h.0.ln_1.weight",
    ),
    "the other norm's gain": (
        {"ln_1": norm_as(lambda x, g, b, h: normed(x) * P[h + "ln_2.weight"] + b)},
        "h.0.ln_1", "parameter", "the gain of h.0.ln_2",
    ),
    "bias before gain": (
        {"ln_1": norm_as(lambda x, g, b, h: (normed(x) + b) * g)}, "h.0.ln_1", "order",
        "added before the gain",
    ),
    "norm twice": (
        {"ln_1": norm_as(lambda x, g, b, h: normed(normed(x) * g + b) * g + b)}, "h.0.ln_1",
        "twice", "twice",
    ),
    # c_attn
    "8-bit weights": (
        {"h.1.attn.c_attn": linear_with(quantised)("attn.c_attn", "ln_1")}, "h.1.attn.c_attn",
        "rounded", "8 bits, a scale for each column",
    ),
    "another block's weights": (
        {"h.1.attn.c_attn": linear_with(
            lambda w, h: MODEL.params["h.0.attn.c_attn.weight"],
            lambda b, h: MODEL.params["h.0.attn.c_attn.bias"])("attn.c_attn", "ln_1")},
        "h.1.attn.c_attn", "parameter", "h.0.attn.c_attn.weight and .bias in place",
    ),
    "the stream, not its norm": (
        {"attn.c_attn": linear_with(source="resid_pre")("attn.c_attn", "ln_1")},
        "h.0.attn.c_attn", "input", "from h.0.resid_pre where h.0.ln_1 belongs",
    ),
    "half the bias": (
        {"attn.c_attn": linear_with(None, lambda b, h: b / 2)("attn.c_attn", "ln_1")},
        "h.0.attn.c_attn", "added", "0.5 h.0.attn.c_attn.bias",
    ),
    # q, k, v
    "value is key": ({"attn.v": lambda x, s, h: s[h + "attn.k"] * 1.0}, "h.0.attn.v", "equal",
                     "h.0.attn.k"),
    "rotary": ({"attn.q": rope, "attn.k": rope}, "h.0.attn.q", "rotation", "RoPE"),
    "query scaled twice": ({"attn.q": lambda x, s, h: x * D**-0.5}, "h.0.attn.q", "factor",
                           "1/√d"),
    "keys normed": ({"attn.k": lambda x, s, h: normed(x)}, "h.0.attn.k", "function", "normed"),
    "heads reversed": ({"attn.v": lambda x, s, h: x[:, ::-1] * 1.0}, "h.0.attn.v", "order",
                       "heads"),
    "every third column": (
        {"attn.q": lambda x, s, h: s[h + "attn.c_attn"].reshape(3, 9, 4, D, 3)[..., 0]
         .swapaxes(1, 2)}, "h.0.attn.q", "order", "every third",
    ),
    # scores
    "factor 1/8": ({"attn.scores": lambda x, s, h: x / 8}, "h.0.attn.scores", "factor", "0.125"),
    "window of 4": (
        {"attn.scores": show(lambda q, k: (k <= q) & (k > q - 4))}, "h.0.attn.scores", "mask",
        "last 4 keys",
    ),
    "alibi": ({"attn.scores": alibi}, "h.0.attn.scores", "added", "ALiBi"),
    "soft cap": (
        {"attn.scores": lambda x, s, h: np.where(np.isneginf(x), x, 2 * np.tanh(x / 2))},
        "h.0.attn.scores", "function", "soft cap",
    ),
    "k k^T": (
        {"attn.scores": lambda x, s, h: np.where(np.isneginf(x), x, s[h + "attn.k"]
                                                 @ s[h + "attn.k"].swapaxes(2, 3) / D**0.5)},
        "h.0.attn.scores", "input", "k k^T",
    ),
    "two keys ahead": (
        {"attn.scores": show(lambda q, k: k <= q + 2)}, "h.0.attn.scores", "mask",
        "2 keys after the query",
    ),
    "a head's factor": (
        {"attn.scores": lambda x, s, h: x * np.array([1, 2, 3, 4])[:, None, None]},
        "h.0.attn.scores", "factor", "",
    ),
    # pattern
    "temperature": (
        {"attn.pattern": lambda x, s, h: ops.softmax(s[h + "attn.scores"] / 3)},
        "h.0.attn.pattern", "factor", "0.3333",
    ),
    "softmax + 1": (
        {"attn.pattern": lambda x, s, h: np.exp(s[h + "attn.scores"])
         / (1 + np.exp(s[h + "attn.scores"]).sum(-1, keepdims=True))},
        "h.0.attn.pattern", "function", "1 + sum",
    ),
    "sigmoid attention": (
        {"attn.pattern": lambda x, s, h: 1 / (1 + np.exp(-s[h + "attn.scores"]))},
        "h.0.attn.pattern", "function", "sigmoid(scores)",
    ),
    "base 2": (
        {"attn.pattern": lambda x, s, h: ops.softmax(s[h + "attn.scores"] * np.log(2))},
        "h.0.attn.pattern", "factor", "ln 2",
    ),
    "softmax twice": (
        {"attn.pattern": lambda x, s, h: ops.softmax(x)}, "h.0.attn.pattern", "twice", "softmax",
    ),
    "softmax over heads": (
        {"attn.pattern": lambda x, s, h: over_heads(s[h + "attn.scores"])},
        "h.0.attn.pattern", "function", "over heads",
    ),
    "uniform": (
        {"attn.pattern": lambda x, s, h: (x > 0) / (x > 0).sum(-1, keepdims=True)},
        "h.0.attn.pattern", "function", "uniform",
    ),
    # z
    "pattern transposed": (
        {"attn.z": lambda x, s, h: ops.merge_heads(s[h + "attn.pattern"].swapaxes(2, 3)
                                                   @ s[h + "attn.v"])},
        "h.0.attn.z", "input", "pattern^T v",
    ),
    "pattern k": (
        {"attn.z": lambda x, s, h: ops.merge_heads(s[h + "attn.pattern"] @ s[h + "attn.k"])},
        "h.0.attn.z", "input", "pattern k",
    ),
    "heads rolled": (
        {"attn.z": lambda x, s, h: np.roll(x, D, -1)}, "h.0.attn.z", "order", "heads shifted",
    ),
    # attn.c_proj
    "projection skipped": ({"attn.c_proj": lambda x, s, h: s[h + "attn.z"] * 1.0},
                           "h.0.attn.c_proj", "equal", "h.0.attn.z"),
    "projection twice": (
        {"attn.c_proj": lambda x, s, h: x @ MODEL.params[h + "attn.c_proj.weight"]
         + MODEL.params[h + "attn.c_proj.bias"]}, "h.0.attn.c_proj", "twice", "twice",
    ),
    "the mlp's bias": (
        {"attn.c_proj": linear_with(None, lambda b, h: MODEL.params[h + "mlp.c_proj.bias"])(
            "attn.c_proj", "attn.z")}, "h.0.attn.c_proj", "parameter", "mlp.c_proj.bias",
    ),
    # resid_mid
    "residual from the norm": (
        {"resid_mid": lambda x, s, h: s[h + "ln_1"] + s[h + "attn.c_proj"]}, "h.0.resid_mid",
        "terms", "h.0.ln_1",
    ),
    "stream counted twice": (
        {"resid_mid": lambda x, s, h: x + s[h + "resid_pre"]}, "h.0.resid_mid", "terms",
        "2 h.0.resid_pre",
    ),
    "averaged": ({"resid_mid": lambda x, s, h: x / 2}, "h.0.resid_mid", "factor", "0.5"),
    "subtracted": (
        {"resid_mid": lambda x, s, h: s[h + "resid_pre"] - s[h + "attn.c_proj"]}, "h.0.resid_mid",
        "terms", "-1 h.0.attn.c_proj",
    ),
    # ln_2
    "norm of the block's input": (
        {"ln_2": lambda x, s, h: ops.layer_norm(s[h + "resid_pre"], MODEL.params[h + "ln_2.weight"],
                                                MODEL.params[h + "ln_2.bias"], 1e-5)},
        "h.0.ln_2", "input", "norm of h.0.resid_pre",
    ),
    # c_fc
    "columns reversed": (
        {"mlp.c_fc": lambda x, s, h: x[..., ::-1] * 1.0}, "h.0.mlp.c_fc", "order", "reversed",
    ),
    "bias twice": (
        {"mlp.c_fc": lambda x, s, h: x + MODEL.params[h + "mlp.c_fc.bias"]}, "h.0.mlp.c_fc",
        "added", "it is added twice",
    ),
    "ln_1 for ln_2": (
        {"mlp.c_fc": linear_with(source="ln_1")("mlp.c_fc", "ln_2")}, "h.0.mlp.c_fc", "input",
        "from h.0.ln_1",
    ),
    # act
    "silu": ({"mlp.act": lambda x, s, h: s[h + "mlp.c_fc"] / (1 + np.exp(-s[h + "mlp.c_fc"]))},
             "h.0.mlp.act", "function", "SiLU"),
    "gelu twice": ({"mlp.act": lambda x, s, h: ops.gelu(x)}, "h.0.mlp.act", "twice", "twice"),
    "leaky relu": (
        {"mlp.act": lambda x, s, h: np.maximum(s[h + "mlp.c_fc"], 0.05 * s[h + "mlp.c_fc"])},
        "h.0.mlp.act", "function", "0.05 x",
    ),
    "sqrt(2/pi) as 0.8": (
        {"mlp.act": lambda x, s, h: s[h + "mlp.c_fc"] / 2 * (1 + np.tanh(
            0.8 * (s[h + "mlp.c_fc"] + 0.044715 * s[h + "mlp.c_fc"] ** 3)))},
        "h.0.mlp.act", "function", "tanh(0.8 (x + 0.044715 x^3))",
    ),
    "square for cube": (
        {"mlp.act": lambda x, s, h: s[h + "mlp.c_fc"] / 2 * (1 + np.tanh(
            0.79788456 * (s[h + "mlp.c_fc"] + 0.044715 * s[h + "mlp.c_fc"] ** 2)))},
        "h.0.mlp.act", "function", "a square where the cube belongs",
    ),
    "one of a kind": (
        {"mlp.act": lambda x, s, h: np.arctan(s[h + "mlp.c_fc"]) * 1.7 + 0.2}, "h.0.mlp.act",
        "function", "another function of x",
    ),
    # mlp.c_proj
    "output shifted": (
        {"mlp.c_proj": lambda x, s, h: np.roll(x, 1, 1)}, "h.0.mlp.c_proj", "order", "shifted by 1",
    ),
    "scaled by depth": (
        {"mlp.c_proj": lambda x, s, h: x / 2}, "h.0.mlp.c_proj", "factor", "1/√(2 L)",
    ),
    "bf16 weights here": (
        {"h.1.mlp.c_proj": linear_with(lambda w, h: (w.view(np.uint32) + 0x7FFF
                                                     + (w.view(np.uint32) >> 16 & 1) & 0xFFFF0000)
                                       .view(np.float32))("mlp.c_proj", "mlp.act")},
        "h.1.mlp.c_proj", "rounded", "bfloat16",
    ),
    # resid_post
    "attention's output again": (
        {"resid_post": lambda x, s, h: x + s[h + "attn.c_proj"]}, "h.0.resid_post", "terms",
        "attn.c_proj",
    ),
    "from the block's input": (
        {"resid_post": lambda x, s, h: s[h + "resid_pre"] + s[h + "mlp.c_proj"]}, "h.0.resid_post",
        "terms", "h.0.resid_pre",
    ),
    "dropped": ({"resid_post": drop_rows}, "h.0.resid_post", "dropout", "dropout"),
    # ln_f, logits
    "final norm of the middle": (
        {"ln_f": lambda x, s, h: ops.layer_norm(s["h.1.resid_mid"], MODEL.params["ln_f.weight"],
                                                MODEL.params["ln_f.bias"], 1e-5)},
        "ln_f", "input", "norm of h.1.resid_mid",
    ),
    "tempered logits": ({"logits": lambda x, s, h: x / 0.7}, "logits", "factor", "1.429"),
    "logits without the norm": (
        {"logits": lambda x, s, h: s["h.1.resid_post"] @ MODEL.params["wte.weight"].T}, "logits",
        "input", "ln_f is missing",
    ),
    "ids shifted": (
        {"logits": lambda x, s, h: np.roll(x, 1, -1)}, "logits", "order", "shifted by 1",
    ),
    "tokens shifted": ({"logits": lambda x, s, h: np.roll(x, 1, 1)}, "logits", "order", "token"),
}  # fmt: skip
STEPS = (
    "resid_pre ln_1 attn.c_attn attn.q attn.k attn.v attn.scores attn.pattern attn.z attn.c_proj"
    " resid_mid ln_2 mlp.c_fc mlp.act mlp.c_proj resid_post"
).split()


def found_in(changes, keep=None):
    dump = dump_of(changes)
    return numpygpt.compare(
        {n: a for n, a in dump.items() if keep is None or keep(n)}, MODEL, TOKENS
    )


def test_without_a_mistake_it_agrees():
    found = found_in({})
    assert found.verdict == "agrees" and max(row.max_rel for row in found.rows) < 2e-6


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_mistake_outside_the_catalogue_is_described(name):
    changes, tensor, relation_kind, words = OUTSIDE[name]
    found = found_in(changes)
    assert found.verdict == "differs" and found.exit_status == 1
    assert found.first == tensor, report(found)
    first = found.relations[0]
    assert (first.tensor, first.kind) == (tensor, relation_kind), first.text
    assert words in first.text and first.gap < 1e-5
    assert as_json(found)["relation"] == first.text


def test_every_step_of_a_block_is_among_them():
    assert len(OUTSIDE) >= 40
    assert {kind(tensor) for _, tensor, _, _ in OUTSIDE.values()} >= set(STEPS) - {"attn.k"}


# ---- where, and how many ------------------------------------------------------------------------


def erf_gelu(x):
    from math import erf

    return x / 2 * (1 + np.vectorize(erf)(x / 2**0.5))


def test_a_mistake_at_one_place_is_said_to_be_there_alone():
    """In the catalogue, but in one block: it would spoil the other, so it is not claimed there."""
    found = found_in({"h.1.mlp.act": lambda x, s, h: erf_gelu(s[h + "mlp.c_fc"])})
    assert [(c.mistake, c.only) for c in found.causes] == [("erf-gelu", ("h.1.mlp.act",))]
    assert "It is made only at h.1.mlp.act" in report(found)
    both = found_in({"mlp.act": lambda x, s, h: erf_gelu(s[h + "mlp.c_fc"])})
    assert [(c.mistake, c.only) for c in both.causes] == [("erf-gelu", ())]
    assert both.relations[0].also == ("h.1.mlp.act",)


def test_a_mistake_at_one_place_is_found_from_the_logits_alone():
    for changes, place in (
        ({"h.1.mlp.act": lambda x, s, h: np.maximum(s[h + "mlp.c_fc"], 0)}, "h.1.mlp.act"),
        ({"h.0.mlp.act": lambda x, s, h: erf_gelu(s[h + "mlp.c_fc"])}, "h.0.mlp.act"),
    ):
        found = found_in(changes, lambda name: name == "logits")
        assert [c.only for c in found.causes] == [(place,)]
        assert found.causes[0].mistake in ("relu", "erf-gelu")


def test_where_it_is_wrong_is_said_even_if_nobody_knows_why():
    def leak(x, s, h):  # the first row's stream comes into the last
        return x + np.array([0, 0, 1])[:, None, None] * s["h.0.resid_pre"][:1]

    found = found_in({"h.0.resid_mid": leak})
    assert not found.relations and found.note.endswith("it is wrong in batch row 2 alone")


def test_a_relation_in_one_head_or_token_alone_says_so():
    def one_head(x, s, h):
        y = x.copy()
        y[:, 2] *= 3
        return y

    found = found_in({"attn.v": one_head})
    assert "3 times ours, in head 2 alone" in found.relations[0].text
    assert found.relations[0].also == ("h.1.attn.v",)

    def one_token(x, s, h):
        y = x.copy()
        y[:, 4] = 0
        return y

    found = found_in({"h.1.mlp.c_proj": one_token})
    assert "are all 0, in token 4 alone" in found.relations[0].text


def test_two_relations_one_after_the_other():
    found = found_in({
        "h.0.attn.scores": lambda x, s, h: x / 5,
        "h.1.resid_post": lambda x, s, h: x + s[h + "resid_pre"],
    })  # fmt: skip
    assert [r.tensor for r in found.relations] == ["h.0.attn.scores", "h.1.resid_post"]
    assert found.unexplained == ()


# ---- no false comfort, no false accusation ------------------------------------------------------


def test_nan_is_its_own_verdict():
    found = found_in({"h.1.ln_1": lambda x, s, h: x * np.nan})
    assert found.verdict == "nan" and found.cause == "nan" and found.exit_status == 1
    assert found.first == "h.1.ln_1"
    found = numpygpt.compare({"logits": np.full((3, 9, 47), np.nan)}, MODEL, TOKENS)
    assert found.verdict == "nan" and found.exit_status == 1


def test_some_nan_or_infinity_says_where():
    def spoilt(value, *at):
        def change(x, seen, head):
            x = x.copy()
            x[at] = value
            return x

        return change

    relation = found_in({"h.1.mlp.c_fc": spoilt(np.nan, 1)}).relations[0]
    assert relation.kind == "nan" and "NaN at 360 of 1080 numbers" in relation.text
    assert relation.text.endswith("in batch row 1 alone")
    relation = found_in({"logits": spoilt(np.inf, 0, 3, 5)}).relations[0]
    assert relation.text == "their logits are infinite at 1 of 1269 numbers, in 1 of 27 rows"


def test_numbers_in_the_other_byte_order_are_said():
    dump = {n: a.byteswap() if a.dtype.kind == "f" else a for n, a in dump_of({}).items()}
    for keep in ({"logits"}, set(dump)):
        found = numpygpt.compare({n: dump[n] for n in keep}, MODEL, TOKENS)
        assert found.exit_status == 1 and found.relations[0].kind == "bytes"
        assert "little-endian float32 is wanted" in found.relations[0].text


@pytest.mark.parametrize("name", ["h.0.resid_mid", "h.1.resid_post", "h.0.mlp.act", "ln_f"])
@pytest.mark.parametrize("value", [1e30, 3e38, np.inf, np.nan])
def test_what_has_overflown_is_a_difference_and_no_error(name, value):
    found = found_in({name: lambda x, s, h: x * value}, lambda n: n != "logits")
    assert found.exit_status == 1 and found.first == name and found.relations


def test_blocks_that_were_left_out_show_in_the_logits_alone():
    one = replace(SIZES, n_layer=1)
    params = {n: a for n, a in MODEL.params.items() if n[:4] != "h.1."}
    logits = GPT2(one, params).forward(TOKENS)[0]
    found = numpygpt.compare({"logits": logits}, MODEL, TOKENS)
    assert "those of a model that ends with block 0" in found.relations[0].text


def test_another_model_is_asked_for():
    other = GPT2(SIZES, models.weights(SIZES, 12, SCALES))
    dump = replay(other, TOKENS)
    note = numpygpt.compare(dump, MODEL, TOKENS).note
    assert "is it the model that was run, with the same weights?" in note
    note = numpygpt.compare({"logits": dump["logits"]}, MODEL, TOKENS).note
    assert "have the same weights and were given the same tokens" in note
    wider = replace(SIZES, n_embd=28)
    dump = replay(GPT2(wider, models.weights(wider, 12, SCALES)), TOKENS)
    note = numpygpt.compare({n: dump[n] for n in ("wte", "ln_f")}, MODEL, TOKENS).note
    assert note == "their wte has shape (3, 9, 28), ours (3, 9, 24): is it the model that was run?"


def test_the_right_sum_is_no_relation():
    """Judged under a mistake that was made before, a sum may be right as it stands."""
    changes = {"h.0.resid_mid": lambda x, s, h: s[h + "ln_1"] + s[h + "attn.c_proj"]}
    found = found_in(changes)
    assert [r.tensor for r in found.relations] == ["h.0.resid_mid"]
    seen = {name: np.asarray(a, float) for name, a in replay(MODEL, TOKENS).items()}
    right = seen["h.0.resid_post"]
    step = Step("h.0.resid_post", right, right + 1, seen, as_dtype(MODEL, np.float64))
    assert find(step).kind != "terms"


def test_buffers_that_were_never_filled_have_no_list_of_causes():
    dump = {n: np.zeros_like(a) for n, a in dump_of({}).items() if n not in ("tokens", "positions")}
    found = numpygpt.compare(dump, MODEL, TOKENS)
    assert found.exit_status == 1 and found.cause == "all-zero" and not found.causes
    assert "all their numbers are 0" in found.note


def test_other_tokens_and_padding_are_said_by_their_ids():
    other = TOKENS.copy()
    other[1, 4] = 46
    dump = {n: a for n, a in replay(MODEL, other).items() if n != "tokens"}
    text = numpygpt.compare(dump, MODEL, TOKENS).relations[0].text
    assert f"have the rows {other[1].tolist()} of wte in batch row 1" in text
    assert text.endswith("other tokens were given to their program")
    padded = replay(MODEL, TOKENS, np.array([0, 2, 4]))
    dump = {n: a for n, a in padded.items() if n != "positions"}
    text = numpygpt.compare(dump, MODEL, TOKENS).relations[0].text
    assert "[0, 0, 0, 1, 2, 3, 4, 5, 6] of wpe in batch row 1" in text
    assert text.endswith("padding at the left of [0, 2, 4] tokens, which --pads says")


def test_a_lost_bias_of_the_values_is_no_processing():
    def without(x, seen, head):
        return x - np.split(MODEL.params[head + "attn.c_attn.bias"], 3)[2].reshape(4, 1, D)

    for keep in (lambda n: True, lambda n: not n.endswith("c_proj")):
        found = found_in({"attn.v": without}, keep)
        assert found.first == "h.0.attn.v" and not found.remarks
        assert [r.also for r in found.relations] == [("h.1.attn.v",)]


def test_a_mask_of_minus_1000_does_what_it_should():
    def filled(value):
        return {"attn.scores": lambda x, s, h: np.where(np.isneginf(x), value, x)}

    found = found_in(filled(-1000.0))
    assert found.exit_status == 0 and "exp" not in found.relations[0].text
    found = found_in(filled(-3.0))
    assert found.exit_status == 1 and "which exp does not turn into 0" in found.relations[0].text


def test_massive_activations_do_not_hide_exact_gelu():
    """The first token's channel is 60 where others are 1, which would hide it in a tensor's gap."""
    changes = {"mlp.act": lambda x, s, h: erf_gelu(s[h + "mlp.c_fc"])}
    whole = dump_of(changes)["h.0.resid_post"]
    assert np.abs(whole).max() > 50
    for keep in (lambda n: "resid" in n, lambda n: n == "logits", lambda n: n.endswith("act")):
        found = found_in(changes, keep)
        assert found.verdict == "differs" and found.cause == "erf-gelu"


@pytest.mark.parametrize("keep", ["logits", "resid", ""])
def test_half_precision_is_no_excuse_for_a_mistake(keep):
    """Exact GELU is smaller than the noise of bfloat16, in numbers that have no such noise."""
    changes = {"mlp.act": lambda x, s, h: erf_gelu(s[h + "mlp.c_fc"])}
    found = found_in(changes, lambda name: keep in name)
    assert found.verdict == "differs" and found.precision is None and found.cause == "erf-gelu"
    unknown = {"mlp.act": lambda x, s, h: x * (1 + 4e-4 * np.sin(9 * x))}
    found = found_in(unknown, lambda name: keep in name)
    assert found.verdict == "differs" and found.exit_status == 1


def test_a_small_eps_shows_where_the_variance_is_large():
    """eps 1e-6 at a variance of 1 moves each norm by 5e-6, less than the line: still no noise."""
    big = GPT2(SIZES, weights() | {"wte.weight": 4 * weights()["wte.weight"]})
    dump = dump_of({n: lambda x, s, h, n=n: ops.layer_norm(
        s[h + NORM[n]], big.params[f"{h}{n}.weight"], big.params[f"{h}{n}.bias"], 1e-6)
        for n in NORM}, big)  # fmt: skip
    found = numpygpt.compare(dump, big, TOKENS)
    assert found.verdict in ("agrees", "differs")
    if found.first is not None:  # the difference has grown above the line: then its cause is named
        assert found.verdict == "differs" and "eps" in (found.relations[0].text + str(found.cause))


@pytest.mark.parametrize("seed", range(6))
def test_a_right_program_in_float32_is_never_accused(seed):
    """Other sizes and weights each time, and massive activations in half of them."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(2, 6))
    sizes = Config(61, 19, heads * int(rng.integers(4, 9)), heads, int(rng.integers(1, 5)))
    params = models.weights(sizes, seed, SCALES)
    if seed % 2:
        params["wpe.weight"][0, 3] = 10.0 ** rng.integers(2, 4)
    model = GPT2(sizes, params)
    tokens = rng.integers(0, 61, (int(rng.integers(1, 4)), int(rng.integers(1, 19))))
    record = replay(model, tokens)
    names = list(record)[2:]
    for _ in range(3):
        kept = [n for n in names if rng.random() < 0.5] or names
        found = numpygpt.compare({n: record[n] for n in kept}, model, tokens)
        assert found.exit_status == 0 and found.causes == () and found.relations == ()


def test_written_before_the_mask_is_another_place_and_no_mistake():
    dump = dump_of({})
    dump["h.1.attn.scores"] = np.where(
        np.isneginf(dump["h.1.attn.scores"]), 0.5, dump["h.1.attn.scores"]
    )
    found = numpygpt.compare(dump, MODEL, TOKENS)
    assert found.verdict == "elsewhere" and found.exit_status == 0
    assert "logits agree, so nothing was computed wrongly" in found.note
    assert as_json(found)["cause"] == "written-elsewhere"


def test_a_constant_in_the_scores_does_no_harm():
    found = found_in({"attn.scores": lambda x, s, h: x + 3})
    assert found.verdict == "harmless" and found.exit_status == 0 and found.cause


def test_the_last_token_alone_does_not_acquit_the_others():
    dump = dump_of({"ln_f": lambda x, s, h: np.concatenate([x[:, :-1] * 2, x[:, -1:]], 1)})
    dump["logits"] = dump["logits"][:, -1:]
    found = numpygpt.compare(dump, MODEL, TOKENS)
    assert found.verdict == "differs" and found.exit_status == 1


def test_the_repr_is_worth_reading():
    found = found_in({"attn.scores": lambda x, s, h: x / 8})
    lines = repr(found).splitlines()
    assert lines[0].split() == ["verdict", "differs"]
    assert "their h.0.attn.scores are 0.125 times ours" in repr(found) and len(lines) < 20


def test_gaps_of_the_right_model_stay_far_below_the_line():
    right, single = replay(as_dtype(MODEL, np.float64), TOKENS), replay(MODEL, TOKENS)
    assert max(gap(single[n], right[n]) for n in right) < 3e-6
