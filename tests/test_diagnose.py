"""Ports with planted bugs, pairs of mistakes, half precision, and honest answers.

The ports in trace_ports.npz were written in torch (make_trace.py); the models of the pairs have
other sizes, weights and prompts than those of test_mistakes.py.
"""

import json

import numpy as np
import pytest
from golden import models

from numpygpt import ops
from numpygpt.check.align import align
from numpygpt.check.diagnose import Case, as_json, diagnose, report
from numpygpt.check.mistakes import MISTAKES, apply
from numpygpt.check.mistakes.forward import rounded_results, to_bfloat16, to_float16
from numpygpt.check.trace import replay
from numpygpt.model import GPT2, Config, with_ops

with np.load(models.GOLDEN / "trace_ports.npz") as _file:
    PORTS = dict(_file)


def port(label):
    theirs = {n.split("/")[1]: a for n, a in PORTS.items() if n.split("/")[0] == label}
    model = GPT2(models.SMALL, models.small())
    aligned = align(theirs, replay(model, PORTS["tokens"]), model)
    assert aligned.unknown == []
    return diagnose(Case(model, PORTS["tokens"], aligned.arrays))


# label: first tensor that differs, mistakes. What the port dumps is in make_trace.py.
PLANTED = {
    "erf": ("h.0.resid_post", ["erf-gelu"]),
    "annotated": ("h.0.ln_1", ["unbiased-eps-outside"]),
    "unbiased": ("logits", ["unbiased-variance"]),
    "post": ("h.0.ln_1", ["post-norm"]),
    "strict": ("h.0.attn.scores", ["strict-triangle"]),
    "per head": ("h.0.attn.q", ["qkv-per-head"]),
    "width": ("h.0.attn.pattern", ["scale-by-width"]),
    "merge": ("h.0.resid_post", ["merge-not-transposed"]),
    "square": ("logits", ["square-weight-transposed"]),
    "final": ("ln_f", ["no-final-norm"]),
    "one": ("logits", ["positions-off-by-one"]),
    "embedding": ("h.0.resid_pre", ["embedding-scaled"]),
    "queries and eps": ("h.0.ln_1", ["eps-1e-6", "softmax-axis"]),
    "per head and erf": ("h.0.attn.pattern", ["qkv-per-head", "erf-gelu"]),
}


@pytest.mark.parametrize("label", PLANTED)
def test_a_port_in_torch_with_a_planted_bug(label):
    found = port(label)
    assert (found.first, [cause.mistake for cause in found.causes]) == PLANTED[label]
    assert all(cause.ties == [] for cause in found.causes)
    assert MISTAKES[PLANTED[label][1][0]].why in report(found)


def test_a_right_port_agrees():
    found = port("right")
    assert found.first is None and max(row.max_rel for row in found.rows) < 1e-6
    assert "all 36 tensors agree" in report(found)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_is_no_mistake(half):
    found = port(half)
    assert found.causes == () and found.precision == half and found.unexplained == ()
    assert f"this is what {half} does, not a mistake" in report(found)
    assert as_json(found)["cause"] == half


# ---- pairs, on other sizes, weights and prompts --------------------------------------------------

OTHER = Config(97, 19, 30, 5, 2, n_inner=44)
PAIRS = [
    "erf-gelu no-final-norm",
    "no-scale strict-triangle",  # in one step
    "eps-1e-6 unbiased-variance",  # in one step
    "mask-with-zeros merge-not-transposed",
    "qkv-order-kqv no-bias-mlp-c-fc",
    "embedding-scaled sigmoid-gelu",
    "no-bias rms-norm",
    "residual-after-norm erf-gelu",
    "heads-not-transposed unembedding-reshaped",
    "positions-off-by-one softmax-axis",
    "norm-without-gain weights-out-in",
    "parallel-block mask-off-by-one",
]


def wrong_run(seed, names, keep):
    model = GPT2(OTHER, models.weights(OTHER, seed, {"wte": 0.4, "wpe": 0.5, "final_gain": 1.5}))
    tokens = models.token_ids(seed, (1, 7), OTHER.n_vocab)
    dump = replay(apply(model, *(MISTAKES[name] for name in names)), tokens)
    dump = {name: array for name, array in dump.items() if keep(name)}
    return Case(model, tokens, align(dump, replay(model, tokens)).arrays)


def named(seed, pair, keep):
    names = pair.split()
    found = diagnose(wrong_run(seed, names, keep))
    return sorted(cause.mistake for cause in found.causes) == sorted(names)


def test_two_mistakes_at_once():
    """At least 11 of 12 pairs (measured: all)."""
    right = [named(seed, pair, lambda name: True) for seed, pair in enumerate(PAIRS)]
    assert sum(right) >= 11, right


def test_two_mistakes_at_once_in_the_residual_stream_alone():
    """At least 3 of 3 pairs."""
    pairs = [PAIRS[i] for i in (3, 5, 9)]
    assert all(named(seed, pair, lambda n: "resid" in n) for seed, pair in enumerate(pairs))


# ---- honest answers -----------------------------------------------------------------------------


def small_case(change=None, **replaced):
    """The small model with other operations; `change` is applied to the dump."""
    model, tokens = GPT2(models.SMALL, models.small()), PORTS["tokens"]
    dump = replay(with_ops(model, **replaced), tokens)
    if change:
        change(dump)
    return Case(model, tokens, align(dump, replay(model, tokens)).arrays)


def test_a_mistake_that_nobody_knows():
    found = diagnose(small_case(gelu=lambda x: np.sin(x)))
    assert found.first == "h.0.mlp.act" and found.last == "h.0.mlp.c_fc" and found.causes == ()
    assert as_json(found)["cause"] is None
    assert as_json(found)["relation"] == "their h.0.mlp.act are sin(x)"


def test_what_comes_closest_is_said():
    found = diagnose(small_case(gelu=lambda x: x / (1 + np.exp(-1.7 * x))))
    assert found.causes == () and found.closest[0][0] == "sigmoid-gelu"
    assert "what comes closest: sigmoid-gelu" in report(found)
    assert not as_json(found)["candidates"][0]["reproduces"]


def test_ties_are_listed():
    """Without padding, 1e-10 and 1e-12 are one: no row of this dump has so little variance."""
    found = diagnose(wrong_run(3, ["eps-1e-10"], lambda name: "ln" in name or "resid" in name))
    assert {found.causes[0].mistake, *found.causes[0].ties} == {
        "eps-1e-10",
        "eps-1e-12",
        "eps-zero",
    }
    assert "do not tell it from" in report(found)
    names = {c["name"] for c in as_json(found)["candidates"]}
    assert names == {"eps-1e-10", "eps-1e-12", "eps-zero"}


def test_a_tensor_dumped_elsewhere_is_no_mistake():
    def before_the_mask(dump):
        q, k = dump["h.1.attn.q"], dump["h.1.attn.k"]
        dump["h.1.attn.scores"] = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5

    found = diagnose(small_case(before_the_mask))
    assert found.first == "h.1.attn.scores" and found.causes == ()
    assert "logits agree, so nothing was computed wrongly" in found.note
    assert found.verdict == "elsewhere" and found.exit_status == 0 and found.cause
    assert found.closest[0][0] == "no-mask"


def test_weights_in_half_precision_are_named_exactly():
    for name in ("float16-weights", "bfloat16-weights"):
        found = diagnose(wrong_run(5, [name], lambda name: "." not in name))
        assert [cause.mistake for cause in found.causes] == [name]
        assert "not a mistake" in report(found)


@pytest.mark.parametrize("rounding", [to_float16, to_bfloat16])
def test_half_precision_inside_and_a_bug(rounding):
    """The line is raised to the noise of the precision, and the mistake still stands out."""
    model, tokens = GPT2(models.SMALL, models.small()), PORTS["tokens"]
    wrong = apply(model, MISTAKES["qkv-per-head"])
    wrong = with_ops(wrong, **rounded_results(wrong, rounding))
    dump = {name: rounding(a) for name, a in replay(wrong, tokens).items() if a.dtype.kind == "f"}
    found = diagnose(Case(model, tokens, align(dump, replay(model, tokens)).arrays))
    assert [cause.mistake for cause in found.causes] == ["qkv-per-head"]


def test_other_tokens_are_said():
    case = small_case()
    theirs = case.theirs | {"tokens": case.tokens + 1}
    found = diagnose(Case(case.model, case.tokens, theirs))
    assert found.first == "tokens" and "their tokens are not ours" in found.note


def test_nan_is_a_difference_with_a_place():
    def divide(dump):
        dump["h.0.ln_2"][0, 2, 3] = np.nan

    found = diagnose(small_case(divide))
    assert found.first == "h.0.ln_2"
    row = next(row for row in found.rows if row.name == "h.0.ln_2")
    assert row.worst == (0, 2, 3) and np.isnan(row.theirs)
    json.dumps(as_json(found), allow_nan=False)


def test_dropout_is_recognised_with_another_rate():
    rng = np.random.default_rng(11)

    def softmax(x):
        return ops.softmax(x) * (rng.random(x.shape) > 0.2) / 0.8

    found = diagnose(small_case(softmax=softmax))
    assert [cause.mistake for cause in found.causes] == ["dropout-left-on"]


def test_padding_is_not_compared():
    model, pads = GPT2(models.SMALL, models.small()), np.array([2, 0, 1])
    tokens = models.token_ids(9, (3, 6), models.SMALL.n_vocab)
    right = replay(model, tokens, pads)
    theirs = {name: array.copy() for name, array in right.items() if array.dtype.kind == "f"}
    for array in theirs.values():
        if array.ndim == 3:
            array[0, :2], array[2, :1] = np.nan, 1e9
    case = Case(model, tokens, align(theirs, right).arrays, pads)
    assert diagnose(case).first is None
    theirs["h.1.ln_1"][2, 1] += 0.1
    assert diagnose(case).first == "h.1.ln_1"
