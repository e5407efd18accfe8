"""The grader: full points for what is right, a name for what is wrong, and no trick that pays."""

import ast
import json
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from numpygpt import GPT2, Config, Tokenizer, init, ops, plain, save
from numpygpt.cli import main
from numpygpt.course import assignment, grade, sandbox
from numpygpt.course.assignment import BY_NAME, CHECKS

# plain.py is a solution, but for two names and the mask of the loss
SOLUTION = Path(plain.__file__)
ADAPTERS = """
causal_attention, causal_attention_backward, adamw_step = attention, attention_backward, adamw
mean_loss, mean_loss_backward = cross_entropy, cross_entropy_backward

def cross_entropy(logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    return mean_loss(logits[mask], targets[mask])

def cross_entropy_backward(dy, logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    dlogits = np.zeros_like(logits)
    dlogits[mask] = mean_loss_backward(dy, logits[mask], targets[mask])
    return dlogits
"""
TEXT = (
    "It's the last king; at first they stood on strong stone stairs, 12345 still. No, almost best "
)


def solution():
    return SOLUTION.read_text(encoding="utf-8") + ADAPTERS


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(25 * TEXT + solution(), 257 + 150)


@pytest.fixture(scope="module")
def fixture(tokenizer):
    return grade.fixture(5, tokenizer)


def judged(name, code, fixture):
    """The result of one function of a source, run in this process."""
    namespace = {}
    exec(compile(code, "student.py", "exec"), namespace)
    check = BY_NAME[name]
    cases = [sent for sent, _ in grade.calls(check, fixture)]
    cases = pickle.loads(pickle.dumps(cases))  # theirs to spoil
    with np.errstate(all="ignore"):
        outcome = sandbox.call(namespace.get(name), cases)
    return grade.judged(check, fixture, json.loads(json.dumps(outcome)))


def by_name(grading):
    return {result.check.name: result for result in grading.results}


# ---- what is right, and what is not there --------------------------------------------------------


@pytest.mark.parametrize("seed", [7, None])
def test_the_three_pages_get_every_point(seed, tokenizer, tmp_path):
    (tmp_path / "adapters.py").write_text("from student import *\n" + ADAPTERS, encoding="utf-8")
    grading = grade.grade(SOLUTION, tokenizer, tmp_path / "adapters.py", seed=seed)
    assert [(r.check.name, r.message()) for r in grading.results if r.message()] == []
    assert (grading.score, grading.points) == (100, 100)
    assert seed in (None, grading.seed)


def test_the_right_answers_are_right_under_any_seed(tokenizer):
    """In float32 too: no seed may draw numbers at which right code seems wrong."""
    for seed in range(20):
        f = grade.fixture(seed, tokenizer)
        for check in CHECKS:
            assert len(check.cases(f)) == len(check.aspects)
            if check.way(f) is f.model.ops:
                cases = [sent for sent, _ in grade.calls(check, f)]
                outcome = sandbox.call(assignment.right_answer(check, f), cases)
                result = grade.judged(check, f, outcome)
                assert (result.score, result.message()) == (check.points, ""), (seed, check.name)


def test_each_run_draws_other_numbers_and_sizes(tokenizer):
    one, other, again = (grade.fixture(seed, tokenizer) for seed in (1, 2, 1))
    for check in CHECKS:
        sent = [pickle.dumps(check.cases(f)[0]) for f in (one, other, again)]
        assert sent[0] == sent[2] != sent[1], check.name


FORMULAS_ALONE = """
class fast:
    by_rows = staticmethod(lambda formula: formula)
    matmul = staticmethod(lambda x, w, plus=0.0: x @ w + plus)
"""


def test_our_own_operations_behind_an_adapter_get_full_points(tokenizer, tmp_path):
    source = Path(ops.__file__).read_text(encoding="utf-8")
    source = source.replace("from . import fast", FORMULAS_ALONE)
    (tmp_path / "hand-in 3.py").write_text(source, encoding="utf-8")
    names = (
        "softmax gelu linear softmax_backward gelu_backward linear_backward cross_entropy".split()
    )
    adapters = tmp_path / "adapters.py"
    adapters.write_text(
        "import student\n"
        "class Norm:\n"
        "    def __call__(self, x, g, b, eps=1e-5): return student.layer_norm(x, g, b, eps)\n"
        "    def undo(self, dy, x, g, b, eps=1e-5):\n"
        "        return student.layer_norm_backward(dy, x, g, b, eps)\n"
        "layer_norm = Norm()\n"
        "layer_norm_backward = layer_norm.undo\n"
        "def causal_attention(q, k, v):\n"
        "    return student.softmax(student.attention_scores(q, k)) @ v\n"
    )
    names += "layer_norm layer_norm_backward causal_attention cross_entropy_backward".split()
    results = grade.grade(tmp_path / "hand-in 3.py", tokenizer, adapters, only=names).results
    assert [(r.check.name, r.message()) for r in results if r.message()] == []
    assert {r.check.name for r in results} == set(names)


def test_the_starter_gets_nothing_and_a_sentence_for_each(tokenizer, tmp_path):
    grade.write_starter(tmp_path / "student.py")
    results = grade.grade(tmp_path / "student.py", tokenizer).results
    assert [r.score for r in results] == [0] * len(CHECKS)
    assert {r.message() for r in results} == {
        f"{check.name} is not written yet (it raises NotImplementedError)." for check in CHECKS
    }
    with pytest.raises(ValueError, match="exists already"):
        grade.write_starter(tmp_path / "student.py")


def test_the_starter_has_each_function_with_the_arguments_it_is_called_with(fixture):
    starter = (Path(grade.__file__).parent / "starter.py.txt").read_text(encoding="utf-8")
    functions = {f.name: f.args for f in ast.parse(starter).body if isinstance(f, ast.FunctionDef)}
    assert list(functions) == [check.name for check in CHECKS]
    for check in CHECKS:
        assert [a.arg for a in functions[check.name].args] == check.arguments.split(", ")
        required = len(functions[check.name].args) - len(functions[check.name].defaults)
        numbers = {len(sent) for sent, _ in grade.calls(check, fixture)}
        assert min(numbers) == required and max(numbers) <= len(functions[check.name].args)


def test_the_stages_are_those_of_the_model(fixture):
    acts = fixture.acts
    outputs = {
        "softmax": "h.0.attn.pattern", "gelu": "h.0.mlp.act", "layer_norm": "h.0.ln_1",
        "linear": "h.0.attn.c_attn", "multi_head_attention": "h.0.attn.c_proj",
        "mlp": "h.0.mlp.c_proj", "block": "h.0.resid_post", "gpt2": "logits",
    }  # fmt: skip
    for name, output in outputs.items():
        right = assignment.right_answer(BY_NAME[name], fixture)
        np.testing.assert_allclose(right(*BY_NAME[name].cases(fixture)[0]), acts[output], 0, 1e-13)


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.backward_of])
def test_our_gradients_are_those_of_central_differences(name, fixture):
    check = BY_NAME[name]
    forward = assignment.right_answer(BY_NAME[check.backward_of], fixture)
    for dy, *arguments in check.cases(fixture):
        expected = grade._parts(assignment.right_answer(check, fixture)(dy, *arguments))
        for i, got in enumerate(expected.values()):
            difference = assignment._gradient(forward, dy, tuple(arguments), i)
            assert grade._errors(difference, got).max() < 1e-7


# ---- what is wrong -------------------------------------------------------------------------------

PLANTED = [  # function to grade, what is replaced in the solution, by what, and the name it gets
    ("softmax", "e / e.sum(-1, keepdims=True)", "e / e.sum()", "softmax-over-everything"),
    ("softmax", "np.exp(x - x.max(-1, keepdims=True))", "np.exp(x)", "no-maximum"),
    ("softmax", "(-1, keepdims=True)", "(-2, keepdims=True)", "softmax-axis"),
    ("gelu", "x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
     "0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))", "erf-gelu"),
    ("gelu", "0.044715", "0.44715", "gelu-typo"),
    ("layer_norm", "eps=1e-5", "eps=1e-6", "eps-1e-6"),
    ("layer_norm", "np.sqrt(variance + eps)", "(np.sqrt(variance) + eps)", "eps-outside-root"),
    ("layer_norm", "x.var(-1, k", "x.var(-1, ddof=1, k", "unbiased-variance"),
    ("linear", "x @ w + b", "x @ w", "no-bias"),
    ("linear", "x @ w + b", "x @ (w.T if w.shape[0] == w.shape[1] else w) + b",
     "square-weight-transposed"),
    ("causal_attention", "k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])", "k.swapaxes(-1, -2)",
     "no-scale"),
    ("causal_attention", "np.tri(queries, keys, keys - queries,", "np.tri(queries, keys,",
     "mask-corner"),
    ("causal_attention", "np.where(visible, scores, -np.inf)", "scores", "no-mask"),
    ("causal_attention", "np.where(visible, scores, -np.inf)", "np.where(visible, scores, 0)",
     "mask-with-zeros"),
    ("multi_head_attention", "q, k, v = np.split", "k, q, v = np.split", "qkv-order-kqv"),
    ("multi_head_attention", "x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)",
     "x.reshape(*x.shape[:-2], n_head, x.shape[-2], -1)", "heads-not-transposed"),
    ("multi_head_attention", "x = x.swapaxes(-3, -2)\n    return x.reshape(*x.shape[:-2], -1)",
     "return x.reshape(*x.shape[:-3], x.shape[-2], -1)", "merge-not-transposed"),
    ("mlp", "linear(gelu(", "linear(np.maximum(0, ", "relu"),
    ("block", "return x + mlp", "return mlp", "no-residual-mlp"),
    ("block", 'layer(params, "ln_2")', 'layer(params, "ln_1")', "same-norm-twice"),
    ("gpt2", "wpe[: np.shape(tokens)[-1]]", "wpe[1 : np.shape(tokens)[-1] + 1]",
     "positions-off-by-one"),
    ("gpt2", 'layer_norm(x, *layer(params, "ln_f")) @', "x @", "no-final-norm"),
    ("gpt2", "wte[tokens] +", "wte[tokens] * math.sqrt(wte.shape[1]) +", "embedding-scaled"),
    ("cross_entropy", "mean_loss(logits[mask], targets[mask])\n",
     "mean_loss(logits[mask], targets[mask]) * float(mask.mean())\n", "loss-divided-by-all"),
    ("softmax_backward", "y * (dy - (y * dy).sum(-1, keepdims=True))", "y * dy", "no-sum"),
    ("gelu_backward", "(1 + t) / 2 + x / 2 * slope",
     "0.5 * (1 + np.vectorize(math.erf)(x / 2**.5)) + x * np.exp(-x * x / 2) / (2 * math.pi)**.5",
     "erf-gelu"),
    ("layer_norm_backward", "d - d.mean(-1, keepdims=True) - n * (d * n).mean(-1, keepdims=True)",
     "d", "constant-mean-and-variance"),
    ("layer_norm_backward", "d = dy * g", "d, dy = g, np.ones_like(dy)", "dy-ignored"),
    ("causal_attention_backward", "/ math.sqrt(q.shape[-1])", "/ 1", "no-scale"),
    ("cross_entropy_backward", " / np.size(targets)", "", "sum-instead-of-mean"),
    ("adamw_step",
     "mean, square = new_m[name] / (1 - beta1**step), new_v[name] / (1 - beta2**step)",
     "mean, square = new_m[name], new_v[name]", "adam-without-bias-correction"),
    ("adamw_step", "if p.ndim > 1 else 0.0", "", "decay-everything"),
    ("adamw_step", "(np.sqrt(square) + eps)", "np.sqrt(square + eps)", "adam-eps-inside-root"),
    ("encode", "min(pairs, key=lambda pair: ranks.get(pair, math.inf))",
     "next((pair for pair in pairs if pair in ranks), None)", "merges-in-text-order"),
    ("encode", "PATTERN.findall(text)", "[text]", "merges-across-words"),
    ("encode", r"\s+(?!\S)|\s+", r"\s+", "pattern-without-lookahead"),
    ("decode", 'data.decode("utf-8", errors="replace")',
     '"".join(bytes(byte_of[s] for s in token_of[i]).decode("utf-8", "replace") for i in ids)',
     "token-by-token"),
    ("top_k", "[..., -k:]", "[..., -k - 1 :]", "one-too-many"),
    ("top_p", "np.cumsum(shares, axis=-1) > 1 - p",
     "(np.cumsum(shares, axis=-1) - shares >= 1 - p) | (shares == shares.max(-1, keepdims=True))",
     "top-p-drops-crossing-token"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong", "mistake"), PLANTED)
def test_a_planted_mistake_is_named(name, right, wrong, mistake, fixture):
    code = solution()
    assert right in code
    result = judged(name, code.replace(right, wrong), fixture)
    assert result.score < result.check.points
    assert f"the mistake {mistake}: " in result.message(), result.message()
    assert result.mistake[:2] == (mistake, name)
    assert f"This is the mistake {mistake}." in result.message("brief")
    assert mistake not in result.message("none") and result.cause not in result.message("brief")


def test_a_mistake_costs_its_points_once(tokenizer, tmp_path):
    code = solution()
    for right, wrong in (
        ("0.044715", "0.44715"),
        ("eps=1e-5", "eps=1e-6"),
        ("return e / e.sum(-1, keepdims=True)", "return e / e.sum()"),
        ("q, k, v = np.split", "q, v, k = np.split"),
        ("return x + mlp", "return mlp"),
        ('(x, *layer(params, "ln_f")) @ wte.T', '(x, *layer(params, "ln_f")) @ wte[::-1].T'),
    ):
        assert right in code
        code = code.replace(right, wrong)
    (tmp_path / "student.py").write_text(code, encoding="utf-8")
    forward = [check.name for check in CHECKS[:9]]
    results = by_name(grade.grade(tmp_path / "student.py", tokenizer, only=forward))
    lost = {name: r.mistake[0] if r.mistake else "" for name, r in results.items() if not r.score}
    assert lost == {
        "softmax": "softmax-over-everything",
        "gelu": "gelu-typo",
        "layer_norm": "eps-1e-6",
        "multi_head_attention": "qkv-order-qvk",
        "block": "no-residual-mlp",
        "gpt2": "",
    }
    said = {name: r.message().partition(",")[0] for name, r in results.items()}
    assert said["causal_attention"] == "Right but for softmax"
    assert said["mlp"] == "Right but for gelu"
    assert "the mistake no-residual-mlp: " in results["block"].message()


def test_what_is_built_on_a_wrong_function_of_ones_own_is_right(tokenizer, tmp_path):
    """Whatever is wrong with it, and whether or not it has a name."""
    code = solution().replace("return x + mlp", "return 0.7 * x + 1.1 * mlp")
    (tmp_path / "student.py").write_text(code, encoding="utf-8")
    results = by_name(grade.grade(tmp_path / "student.py", tokenizer, only=["block", "gpt2"]))
    assert results["block"].score == 0 and results["block"].mistake == ()
    assert results["gpt2"].message() == "Right but for block, which cost points already."
    assert results["gpt2"].score == results["gpt2"].check.points


@pytest.mark.parametrize(
    ("name", "changes", "mistake"),
    [
        (
            "multi_head_attention",
            {
                "x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)":
                    "x.reshape(*x.shape[:-2], n_head, x.shape[-2], -1)",
                "x = x.swapaxes(-3, -2)\n    return x.reshape(*x.shape[:-2], -1)":
                    "return x.reshape(*x.shape[:-3], x.shape[-2], -1)",
            },
            "heads-not-swapped",
        ),
    ],
)  # fmt: skip
def test_one_misunderstanding_at_two_places_is_one_mistake(name, changes, mistake, fixture):
    code = solution()
    for right, wrong in changes.items():
        assert right in code
        code = code.replace(right, wrong)
    assert judged(name, code, fixture).mistake[:2] == (mistake, name)


PARTLY = [  # function, its body, points, and what the message must say
    ("causal_attention", "b, h, t, d = q.shape; m = np.tri(t, k.shape[2], dtype=bool)\n"
     "    s = np.where(m, q @ k.swapaxes(2, 3) / d**0.5, -np.inf)\n"
     "    e = np.exp(s - s.max(-1, keepdims=True)); return e / e.sum(-1, keepdims=True) @ v",
     4, "Right: whole sequences in float64, whole sequences in float32. Wrong: with a cache in"),
    ("linear", "return np.einsum('btn,nm->btm', x, w) + b", 1.5, "Wrong: (T, N) in float64"),
    ("linear", "return x.astype(float) @ w + b.astype(float)", 2.25, "Wrong: (B, T, N) in float32"),
    ("layer_norm", "m = x.mean(-1, keepdims=True); v = x.var(-1, keepdims=True)\n"
     "    return g * (x - m) / np.sqrt(v + 1e-5) + b", 3.33, "another eps in float64"),
    ("cross_entropy", "m = np.ones(targets.shape, bool) if mask is None else mask\n"
     "    l, t = x[m], targets[m]\n"
     "    return (np.log(np.exp(l).sum(-1)) - l[np.arange(len(t)), t]).mean()",
     2.5, "the mistake no-maximum"),
    ("cross_entropy", "m = targets >= 0  # whatever the mask says\n"
     "    l, t = x[m], targets[m]; l = l - l.max(-1, keepdims=True)\n"
     "    return (np.log(np.exp(l).sum(-1)) - l[np.arange(len(t)), t]).mean()",
     2.5, "Wrong: with a mask in float64"),
    ("linear_backward", "return dy @ w.T, np.einsum('btn,btm->nm', x, dy), dy.sum((0, 1))",
     2, "Wrong: (T, N) in float64"),
    ("layer_norm_backward", "m = x.mean(-1, keepdims=True); c = x.shape[-1]\n"
     "    r = 1 / np.sqrt(x.var(-1, keepdims=True) + eps); n = (x - m) * r; d = dy * g\n"
     "    s = d.sum(-1, keepdims=True) + n * (d * n).sum(-1, keepdims=True)\n"
     "    return r * (d - s / c), (dy * n).sum(0), dy.sum(0)", 3, "dg has shape ("),
    ("top_k", "return x", 0, "values of the result"),  # what k above V asks for is not the work
    ("top_k", "return np.where(x >= np.sort(x, -1)[..., [-k]], x, -np.inf)", 1, "k above V"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "points", "words"), PARTLY)
def test_a_part_that_is_right_has_its_share(name, body, points, words, fixture):
    names = BY_NAME[name].arguments.replace("logits", "x").replace("eps", "eps=1e-5")
    names = names.replace("mask", "mask=None")
    result = judged(name, f"def {name}({names}):\n    {body}\nimport numpy as np", fixture)
    assert result.score == points
    assert words in result.message(), result.message()


WORDS = [  # function, its body, and what the message must say
    ("gelu", "return x[:, :-1]", "shape {short} instead of {shape}"),
    ("gelu", "return x", "first [0, 0, 0]: "),
    ("gelu", "return x", "{size:,} values of the result {shape} are wrong"),
    ("gelu", "return x * np.nan", "{size:,} are not finite"),
    ("gelu", "return x + 1j", "returned complex numbers"),
    ("gelu", "return x", "the mistake no-gelu"),
    ("gelu", "return 0 * x", "Look at the tanh form"),
    ("gelu", "pass", "returned nothing (None)"),
    ("gelu", "return {'a': x}", "returned a instead of the result"),
    ("gelu", "return 'text'", "is of type str"),
    ("gelu", "return 1 / 0", "raised ZeroDivisionError: division by zero (student.py, line 2)"),
    ("gelu", "return lambda: x", "returned no numbers"),
    ("cross_entropy", "return 'text'", "is of type str"),
    ("cross_entropy", "return 2.5", "the result is 2.5 instead of "),
    ("encode", "return [999999]", "token 0 is 999999, which is not an id instead of "),
    ("encode", "return [0.5]", "token 0 is 0.5, which is not an id instead of "),
    ("encode", "return (i for i in vocab)", "returned no numbers but generator"),
    ("encode", "return list(text)", "returned no numbers but texts"),
    ("decode", "return b'It'", "returned no numbers but bytes"),
    ("linear_backward", "return {'dx': dy, 'dw': w, 'db': b}",
     "returned a dict instead of the tuple dx, dw, db"),
    ("adamw_step", "return {'params': params, 'm': m, 'v': v}",
     "returned a dict instead of the tuple params, m, v"),
    ("encode", "return [[1]]", "the result has shape (1, 1) instead of "),
    ("linear", "y = x @ w; y += b; x *= 2; return y", "changed its argument x"),
    ("linear", "b -= 1; return x @ w + b + 1", "changed its argument b"),
    ("linear", "return x @ w + b.astype(float)", "the values are right, but they are float64"),
    ("linear", "return (x @ w + b).astype('f4')", "the values are right, but they are float32"),
    ("linear_backward", "return dy @ w.T, np.zeros_like(w), dy.sum((0, 1))", "dx, db right"),
    ("linear_backward", "return dy @ w.T", "returned dx instead of dx and dw and db"),
    ("decode", "return 'It*'", "from character 2 on the result is '*' instead of "),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "words"), WORDS)
def test_the_message_says_what_to_look_at(name, body, words, fixture):
    arguments = BY_NAME[name].arguments.replace("mask", "mask=None")
    result = judged(name, f"def {name}({arguments}):\n    {body}\nimport numpy as np", fixture)
    assert result.score < result.check.points
    shape = fixture.acts["h.0.mlp.c_fc"].shape
    short, size = (shape[0], shape[1] - 1, shape[2]), np.prod(shape)
    words = words.replace("{short}", str(short)).replace("{shape}", str(shape))
    words = words.replace("{size:,}", f"{size:,}")
    assert words in result.message(), result.message()


def test_a_wrong_sequence_is_shown_at_the_first_wrong_token_as_text(fixture):
    code = solution().replace("return ids\n", "return [*ids[:3], *ids[4:]]\n", 1)
    said = judged("encode", code, fixture).message("brief")
    text, vocab, merges = BY_NAME["encode"].cases(fixture)[0]
    tokens = [fixture.tokenizer.tokens[i] for i in fixture.tokenizer.encode(text)]
    assert f"is {tokens[4]!r} instead of {tokens[3]!r}" in said, said
    assert "token 3, after " in said


@pytest.mark.parametrize("form", ["tuple(ids)", "np.array(ids, int)", "np.array(ids, np.int16)"])
def test_ids_in_another_container_are_right(form, fixture):
    code = solution().replace("return ids\n", f"return {form}\n", 1)
    result = judged("encode", code, fixture)
    assert (result.score, result.message()) == (6, "")
    code = solution().replace("return ids\n", "return np.array(ids, float)\n", 1)
    result = judged("encode", code, fixture)
    assert result.score == 0 and "made of float64, where integers belong" in result.message()


def test_how_many_blocks_there_are_is_drawn(tokenizer):
    """A loop over two blocks, whatever the parameters say, is not right in every run."""
    fixtures = [grade.fixture(seed, tokenizer) for seed in range(8)]
    assert {f.model.config.n_layer for f in fixtures} == {2, 3}
    deep = next(f for f in fixtures if f.model.config.n_layer == 3)
    code = solution().replace("in range(n_layer(params))", "in range(2)")
    assert code != solution() and judged("gpt2", code, deep).score == 0


def test_not_defined_and_not_a_function(fixture):
    assert judged("gelu", "", fixture).message() == "gelu is not defined."
    assert judged("gelu", "gelu = 3", fixture).message() == "gelu is not a function."


# ---- what is out to deceive, or out of hand ------------------------------------------------------

HOSTILE = """
import os, sys, threading
import numpy as np

np.allclose = np.array_equal = lambda *a, **k: True
print('{"tests": [{"name": "mlp", "score": 3, "max_score": 3}]}')

def softmax(x):
    np.exp = None
    while True:
        pass

def gelu(x):
    exit()

def layer_norm(x, g, b, eps=1e-5):
    os._exit(0)

def linear(x, w, b):
    np.lib.stride_tricks.as_strided(np.zeros(1), (10**9,), (4096,)).sum()

def mlp(x, params):
    print('mlp 3 / 3', flush=True)
    os.write(2, b'\\x1b[2J passed')
    return 0 * x

def block(x, params, n_head):
    return block(x, params, n_head)

def gpt2(tokens, params, n_head):
    return np.ones(2**32)

def cross_entropy(logits, targets, mask=None):
    os.kill(os.getppid(), 9)  # the process that waits for this one
    os.system("true")

def softmax_backward(dy, x):
    assert sys.stdin.read() == '' and 'SECRET' not in os.environ and os.listdir('.') == []
    assert os.environ['OPENBLAS_L2_SIZE'] == '512'
    threading.Thread(target=input).start()
    y = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    return y * (dy - (y * dy).sum(-1, keepdims=True))
"""
# what a process could leave in place of a result, and none of it is one
FORGED = [
    {"cases": [{"parts": {"": ["|O", [1], "AAAAAAAAAAA="]}, "arguments": []}] * 4},
    {"cases": [{"parts": {"": ["<f8", [2**40], "AAAAAAAAAAA="]}, "arguments": []}] * 4},
    {"cases": [{"parts": {"": ["<f8", [1], 7]}, "arguments": []}] * 4},
    {"cases": [{"parts": {"": "text"}, "arguments": []}] * 4},
    {"cases": [{"parts": 3}]},
    {"cases": []},
    {"cases": None},
    {"cases": [{"parts": {"²": ["<f8", [0], ""]}, "arguments": [-1, {}]}] * 4},
    {"error": 3, "cases": [], "printed": ["x"]},
    {"score": 4},
    {},
]
SAYS = {
    "softmax": ": an endless loop?",
    "gelu": "gelu called exit(): it must return a value.",
    "layer_norm": "layer_norm ended the whole process with status 0: it must return a value.",
    "linear": "linear crashed the process (Segmentation fault).",
    "mlp": "values of the result",
    "block": "block raised RecursionError: maximum recursion depth exceeded",
    "gpt2": "gpt2 raised MemoryError",
    "cross_entropy": "raised PermissionError: a submission must not send a signal",
}


def test_tricks_and_accidents_cost_the_points_of_one_function(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")  # together with a core type of its own
    (tmp_path / "student.py").write_text(HOSTILE)
    names = [*SAYS, "softmax_backward"]
    grading = grade.grade(tmp_path / "student.py", tokenizer, only=names, seconds=1)
    results = by_name(grading)
    assert {n: r.score for n, r in results.items() if r.score} == {"softmax_backward": 4}
    for name, said in SAYS.items():  # each function's own words
        assert said in results[name].message()
    assert "mlp 3 / 3 ?[2J passed" in results["mlp"].message()
    assert "Note: it tried to send a signal." in results["cross_entropy"].message()
    assert list(tmp_path.iterdir()) == [tmp_path / "student.py"]  # nor is a cache left there


ROOT = str(Path(grade.__file__).parents[2])
ATTACKS = {  # the body of gelu, which returns the right answer if the attack works
    "imported": f"import sys; sys.path.insert(0, {ROOT!r})\n"
    "    from numpygpt.ops import gelu as answer; return answer(x)",
    "imported and hidden": f"import sys; sys.path.insert(0, {ROOT!r})\n"
    "    try:\n        import numpygpt.ops as o\n        return o.gelu(x)\n"
    "    finally:\n        sys.modules.pop('numpygpt', None)",
    "loaded by its path": f"import runpy; return runpy.run_path({ops.__file__!r})['gelu'](x)",
    "read and run": f"d = {{}}; exec(open({plain.__file__!r}).read(), d); return d['gelu'](x)",
    "read by a descriptor": f"import os; f = os.open({plain.__file__!r}, 0)\n"
    "    d = {}; exec(os.read(f, 10**6), d); return d['gelu'](x)",
    "asked in another process": "import subprocess, sys; return eval(subprocess.check_output("
    "[sys.executable, '-c', 'print(1)']))",
    "asked in a shell": "import os; return os.popen('echo 1').read()",
    "forked": "import os\n    if os.fork() == 0: os._exit(0)\n    return x",
    "multiprocessing": "import multiprocessing as m; return m.Pool(1).map(abs, [1])",
    "over the network": "import socket; socket.create_connection(('127.0.0.1', 9)); return x",
    "into memory": "from numpy._core import _internal as i; return i.ctypes.string_at(1)",
    "the parent's memory": "import os; return open(f'/proc/{os.getppid()}/mem', 'rb').read(9)",
    "a table of answers": "return np.array([0.8411919906082768])",
    "another folder": "import os; return str(os.listdir('/tmp'))",
    "a file for the grader": "open('/tmp/results.json', 'w').write('{}'); return x",
    "too much": "return np.zeros(10**7)",
    "its arguments": "x[:] = 0; return x",
}


@pytest.mark.skipif(not sandbox.FORK, reason="submissions are confined on Linux only")
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_gets_no_point_and_leaves_nothing(attack, tokenizer, tmp_path):
    code = f"import numpy as np\ndef gelu(x):\n    {ATTACKS[attack]}\n"
    (tmp_path / "student.py").write_text(code)
    before = set(os.listdir(tempfile.gettempdir()))
    grading = grade.grade(tmp_path / "student.py", tokenizer, only=["gelu"], seconds=2)
    assert grading.score == 0 and grading.results[0].message()
    assert list(tmp_path.iterdir()) == [tmp_path / "student.py"]
    left = set(os.listdir(tempfile.gettempdir())) - before
    assert "results.json" not in left


@pytest.mark.skipif(not sandbox.FORK, reason="submissions are confined on Linux only")
def test_what_a_submission_starts_is_ended_before_the_results_are_written(tmp_path):
    """Also where Python's audit hooks do not see it: here they are not there."""
    code = (
        "import os, sys, time\nfrom numpygpt.course import sandbox\n"
        "sandbox._watch = lambda settings, tried: lambda event, arguments: None\n"
        "sandbox.main()\n"
    )
    student = (
        "import os, time\ndef gelu(x):\n    if os.fork() == 0:\n        os.setsid()\n"
        "        if os.fork() == 0:\n            time.sleep(60)\n        os._exit(0)\n"
        "    return x\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    settings = {
        "student": ("student.py", student), "adapters": None, "memory": 2048, "user": False,
        "work": str(tmp_path), "readable": [],
    }  # fmt: skip
    sandbox._send(process.stdin.fileno(), pickle.dumps(settings))
    job = {"name": "gelu", "cases": [(1.0,)], "seconds": 5, "wait": 50, "bytes": 2**20}
    sandbox._send(process.stdin.fileno(), pickle.dumps(job))
    assert json.loads(sandbox._receive(process.stdout.fileno()))["result"]
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    )
    assert children.stdout.split() == []
    process.stdin.close()
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize("outcome", FORGED)
def test_forged_results_are_none(outcome, fixture):
    result = grade.judged(BY_NAME["gelu"], fixture, outcome)
    assert result.score == 0 and result.message()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def gelu(x)\n    return x", "raised SyntaxError: expected ':' (student.py, line 1)."),
        ("import nothing_such", "No module named 'nothing_such' (student.py, line 1)."),
        ("raise SystemExit", "importing the file called exit()"),
        ("import os; os._exit(3)", "importing the file ended the whole process with status 3"),
    ],
)
def test_a_file_that_cannot_be_imported(code, words, tokenizer, tmp_path):
    (tmp_path / "student.py").write_text(code)
    results = grade.grade(tmp_path / "student.py", tokenizer, only=["gelu", "linear"]).results
    assert [r.score for r in results] == [0, 0]
    assert words in results[0].message()
    assert results[1].message() == ""  # said once


# ---- the sheet and the command -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    config = Config(tokenizer.n_vocab, n_ctx=16, n_embd=15, n_head=3, n_layer=1)
    path = tmp_path_factory.mktemp("model")
    save(GPT2(config, init(config, np.random.default_rng(0))), tokenizer, path)
    return str(path)


TWO = "import numpy as np\ndef gelu(x): return x + 0\ndef linear(x, w, b): return x @ w + b\n"


def test_the_sheet_and_the_file_for_gradescope(folder, tmp_path, capsys):
    student, results = tmp_path / "student.py", tmp_path / "results.json"
    student.write_text(TWO)
    options = ["--model", folder, "--gradescope", str(results), "--seed", "4"]
    assert main(["grade", str(student), *options, "--only", "gelu", "linear", "mlp"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Limits: ") and "Numbers drawn with --seed 4." in lines
    assert "gelu 0 / 4".split() in [line.split() for line in lines]
    assert lines[-1].split() == ["total", "3", "/", "10"]
    assert max(map(len, lines)) <= 100
    written = json.loads(results.read_text(encoding="utf-8"))
    assert "Seed of the numbers: 4." in written["output"]
    tests = written["tests"]
    assert [(t["name"], t["score"], t["max_score"], t["status"]) for t in tests] == [
        ("gelu", 0, 4, "failed"),
        ("linear", 3, 3, "passed"),
        ("mlp", 0, 3, "failed"),
    ]
    assert "the mistake no-gelu: " in tests[0]["output"]
    assert tests[2]["output"] == "mlp is not defined."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "student.py"]


def test_the_same_seed_gives_the_same_sheet(folder, tmp_path, capsys):
    (tmp_path / "student.py").write_text(TWO)
    sheets = []
    for seed in (1, 1, 2):
        main(["grade", str(tmp_path / "student.py"), "--model", folder, "--seed", str(seed)])
        sheets.append(capsys.readouterr().out)
    assert sheets[0] == sheets[1] != sheets[2]


def test_hints(folder, tmp_path, capsys):
    (tmp_path / "student.py").write_text(TWO)
    shown = {}
    for hints in grade.HINTS:
        options = ["--only", "gelu", "--model", folder, "--hints", hints]
        main(["grade", str(tmp_path / "student.py"), *options])
        shown[hints] = " ".join(capsys.readouterr().out.split())
    assert "values" not in shown["none"] and "no-gelu" not in shown["none"]
    assert "values of the result" in shown["brief"] and "mistake no-gelu." in shown["brief"]
    assert len(shown["brief"]) < len(shown["full"])


def test_the_command_answers_misuse_with_one_line(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["grade", "--starter"]) == 0
    assert (tmp_path / "student.py").is_file()
    capsys.readouterr()
    for options, words in (
        (["--starter"], "student.py exists already"),
        (["none.py", "--model", folder], "there is no file none.py"),
        (["--adapters", "none.py", "--model", folder], "there is no file none.py"),
        (["--only", "relu", "--model", folder], "no check is called relu"),
        (["--seconds", "0", "--model", folder], "seconds must be more than 0 and at most a day"),
        (["--seconds", "inf", "--model", folder], "seconds must be more than 0"),
        (["--seconds", "nan", "--model", folder], "seconds must be more than 0"),
        (["--seconds", "1e300", "--model", folder], "at most a day"),
        (["--memory", "8796093022208", "--model", folder], "memory must be 256 MiB to 1 TiB"),
        (["--memory", "1", "--model", folder], "memory must be 256 MiB"),
        (["a.py", "b.py", "--model", folder], "name a --table"),
        (["--model", str(tmp_path / "none")], "none"),  # what is needed to grade is not there
    ):
        assert main(["grade", *options]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and words in err, err


# ---- a class and a course ------------------------------------------------------------------------


def test_a_class_is_graded_into_a_table_and_a_stopped_run_goes_on(folder, tmp_path, capsys):
    names = [str(tmp_path / f"{name}.py") for name in ("ann", "bob", "cy")]
    for name, code in zip(names, (TWO, "", TWO.replace("x + 0", "x / 0")), strict=True):
        Path(name).write_text(code)
    table = tmp_path / "class.csv"
    options = ["--table", str(table), "--model", folder, "--only", "gelu", "linear"]
    assert main(["grade", *names[:2], *options]) == 1
    first = table.read_text(encoding="utf-8")
    assert main(["grade", *names, *options, "--jobs", "2"]) == 1
    rows = table.read_text(encoding="utf-8").splitlines()
    assert rows[0] == "student,gelu,linear,total,of,seed"
    assert rows[:3] == first.splitlines()
    assert [row.split(",")[1:5] for row in rows[1:]] == [
        ["0", "3", "3", "7"], ["0", "0", "0", "7"], ["0", "3", "3", "7"],
    ]  # fmt: skip
    assert len({row.split(",")[5] for row in rows[1:]}) == 1
    assert "cy.py: 3 of 7" in capsys.readouterr().err
    assert main(["grade", *names, "--table", str(table), "--model", folder]) == 2
    assert "another --table" in capsys.readouterr().err


needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")


@pytest.fixture
def course(tmp_path, capsys):
    assert main(["course", "new", str(tmp_path / "course")]) == 0
    capsys.readouterr()
    return tmp_path / "course"


@needs_toml
def test_the_solution_of_a_new_course_gets_every_point(course, capsys):
    words = [str(course / "solution.py"), "--adapters", str(course / "solution_adapters.py")]
    status = main(["grade", *words, "--config", str(course / "points.toml")])
    out = capsys.readouterr().out
    assert status == 0, out
    assert out.splitlines()[-1].split() == ["total", "102", "/", "102"]
    assert any(line.split() == ["perplexity", "2", "/", "2"] for line in out.splitlines())


@needs_toml
def test_the_zip_does_what_gradescope_runs(course, tmp_path):
    root = tmp_path / "autograder"
    with zipfile.ZipFile(course / "gradescope.zip") as archive:
        archive.extractall(root / "source")
        assert archive.getinfo("run_autograder").external_attr >> 16 == 0o755
    (root / "submission").mkdir()
    (root / "submission" / "student.py").write_text(TWO)
    environment = os.environ | {"AUTOGRADER": str(root)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = ["bash", str(root / "source" / "run_autograder")]
    subprocess.run(run, env=environment | {"PATH": path}, check=True)
    tests = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))["tests"]
    assert {t["name"]: t["score"] for t in tests if t["score"]} == {"linear": 3}
    assert len(tests) == len(CHECKS) + 1
    (root / "submission" / "student.py").unlink()  # what cannot be graded is said, not left out
    subprocess.run(run, env=environment | {"PATH": path}, check=True)
    result = json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))
    assert result["score"] == 0 and "there is no file" in result["output"]


@needs_toml
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[points]\nrelu = 3", "no check is called relu"),
        ("[points]\ngelu = -3", "the points of gelu must be a positive number"),
        ("[points]\ngelu = true", "the points of gelu must be a positive number"),
        ('hints = "all"', "hints must be one of none, brief, full"),
        ('hidden = ["relu"]', "hidden must be a list of functions"),
        ("colour = 3", "colour is not known"),
        ('seconds = "ten"', "seconds must be a number"),
        ("seconds = 0", "seconds must be more than 0"),
        ("points = ", "is not TOML"),
    ],
)
def test_rules_that_make_no_sense(text, words, folder, tmp_path, capsys):
    (tmp_path / "student.py").write_text(TWO)
    (tmp_path / "points.toml").write_text(text)
    words_of = ["grade", str(tmp_path / "student.py"), "--model", folder]
    assert main([*words_of, "--config", str(tmp_path / "points.toml")]) == 2
    assert words in capsys.readouterr().err


def test_a_course_is_not_written_over_something(tmp_path, capsys):
    (tmp_path / "notes").write_text("mine")
    assert main(["course", "new", str(tmp_path)]) == 2
    assert "name a new folder" in capsys.readouterr().err
