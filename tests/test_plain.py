"""The three pages beside the package: the same numbers, gradients, ids and draws."""

import ast
import dataclasses
import functools
import gzip
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from golden import models
from golden.models import gap
from signatures import defaults

import numpygpt
from numpygpt import ops, optim, plain, sample
from numpygpt.bpe import Tokenizer
from numpygpt.model import GPT2, as_dtype

ROOT = Path(__file__).parent.parent
LINE = {"float32": 1e-5, "float64": 1e-12}  # measured: float32 9e-7, float64 2e-15
DTYPES = list(LINE)
CONFIG = dataclasses.replace(models.SMALL, layer_norm_epsilon=1e-5)
N_HEAD = CONFIG.n_head


@functools.cache
def model(dtype):
    return as_dtype(GPT2(CONFIG, models.small()), dtype)


@functools.cache
def gpt2():
    """GPT-2's vocabulary: (tokenizer, token -> id)."""
    tokenizer = Tokenizer.gpt2()
    return tokenizer, {token: i for i, token in enumerate(tokenizer.tokens)}


def normal(seed, *shape, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(13,), (1,), (3, 7), (2, 13)])
def test_logits_are_those_of_the_model(dtype, shape):
    tokens = np.resize(models.token_ids(4, (26,), CONFIG.n_vocab), shape)
    logits = plain.gpt2(tokens, model(dtype).params, N_HEAD)
    expected = model(dtype).forward(tokens)[0].reshape(*shape, CONFIG.n_vocab)
    assert logits.dtype == dtype
    assert gap(logits, expected) < LINE[dtype]
    if len(shape) == 1:
        np.testing.assert_array_equal(
            plain.gpt2(tokens.tolist(), model(dtype).params, N_HEAD), logits
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(12,), (3, 7), (2, 13)])
def test_loss_and_gradients_are_those_of_the_model(dtype, shape):
    tokens, targets = (
        np.resize(models.token_ids(seed, (26,), CONFIG.n_vocab), shape) for seed in (5, 6)
    )
    loss, grads = plain.loss_and_grads(tokens, targets, model(dtype).params, N_HEAD)
    expected_loss, expected = model(dtype).loss_and_grads(tokens, targets)
    assert loss.dtype == dtype and abs(loss - expected_loss) < LINE[dtype] * expected_loss
    assert list(grads) == list(expected) == list(model(dtype).params)
    for name, g in grads.items():
        assert g.dtype == dtype
        if not name.endswith("c_attn.bias"):  # see the next test
            assert gap(g, expected[name]) < LINE[dtype], name


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_the_attention_biases_but_for_those_of_the_keys(dtype):
    """softmax does not see what all keys have in common: that third of the gradient is noise."""
    tokens = models.token_ids(5, (2, 13), CONFIG.n_vocab)
    _, grads = plain.loss_and_grads(tokens, tokens, model(dtype).params, N_HEAD)
    _, expected = model(dtype).loss_and_grads(tokens, tokens)
    c = CONFIG.n_embd
    for i in range(CONFIG.n_layer):
        name = f"h.{i}.attn.c_attn.bias"
        for part in (slice(c), slice(2 * c, None)):
            assert gap(grads[name][part], expected[name][part]) < LINE[dtype]
        noise = np.abs(grads[name][c : 2 * c]).max()
        assert noise < LINE[dtype] * np.abs(expected[name]).max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_operation_is_the_one_in_ops(dtype):
    x, dy = normal(1, 2, 3, 5, dtype=dtype) * 3, normal(2, 2, 3, 5, dtype=dtype)
    w, b, g = (normal(n, *shape, dtype=dtype) for n, shape in ((3, (5, 5)), (4, (5,)), (5, (5,))))
    for name, arguments in {
        "softmax": (x,), "gelu": (x,), "layer_norm": (x, g, b, 1e-5), "linear": (x, w, b),
    }.items():  # fmt: skip
        got = getattr(plain, name)(*arguments)
        assert got.dtype == dtype and gap(got, getattr(ops, name)(*arguments)) < LINE[dtype], name
        got = getattr(plain, f"{name}_backward")(dy, *arguments)
        expected = getattr(ops, f"{name}_backward")(dy, *arguments)
        pairs = (
            [(got, expected)] if name in ("softmax", "gelu") else zip(got, expected, strict=True)
        )
        for ours, theirs in pairs:
            assert ours.dtype == dtype and gap(ours, theirs) < LINE[dtype], name
    assert plain.layer_norm(x, g, b) == pytest.approx(plain.layer_norm(x, g, b, 1e-5), rel=0, abs=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_logits_do_not_overflow(dtype):
    logits = np.array([[1e4, 0], [0, 1e4]], dtype)
    np.testing.assert_array_equal(plain.softmax(logits), [[1, 0], [0, 1]])
    assert plain.cross_entropy(logits, [0, 0]) == 5000
    np.testing.assert_array_equal(
        plain.cross_entropy_backward(1.0, logits, [0, 0]), [[0, 0], [-0.5, 0.5]]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t, s", [(4, 4), (1, 4), (2, 5)])
def test_attention_is_that_of_the_ops_with_fewer_queries_than_keys_as_well(dtype, t, s):
    q, k, v = (normal(n, 2, 3, length, 5, dtype=dtype) for n, length in ((6, t), (7, s), (8, s)))
    scores = ops.attention_scores(q, k)
    got = plain.attention_pattern(q, k)
    assert got.dtype == dtype and gap(got, ops.softmax(scores)) < LINE[dtype]
    assert gap(plain.attention(q, k, v), ops.softmax(scores) @ v) < LINE[dtype]
    dy = normal(9, 2, 3, t, 5, dtype=dtype)
    dpattern, dv = ops.attention_values_backward(dy, ops.softmax(scores), v)
    dq, dk = ops.attention_scores_backward(ops.softmax_backward(dpattern, scores), q, k)
    for ours, theirs in zip(plain.attention_backward(dy, q, k, v), (dq, dk, dv), strict=True):
        assert ours.dtype == dtype and gap(ours, theirs) < LINE[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_of_adamw_is_that_of_optim(dtype):
    params = model(dtype).params
    tokens = models.token_ids(5, (2, 13), CONFIG.n_vocab)
    _, grads = plain.loss_and_grads(tokens, tokens, params, N_HEAD)
    zeros = {name: np.zeros_like(p) for name, p in params.items()}
    ours, m, v = params, zeros, zeros
    theirs, state = {name: p.copy() for name, p in params.items()}, optim.adam_state(params)
    settings = {"lr": 3e-3, "beta1": 0.8, "beta2": 0.95, "eps": 1e-7, "weight_decay": 0.3}
    for step in (1, 2, 3):
        ours, m, v = plain.adamw(ours, grads, m, v, step, **settings)
        optim.adamw(theirs, grads, state, **settings)
    for got, expected in ((ours, theirs), (m, state.m), (v, state.v)):
        for name in params:
            assert got[name].dtype == dtype and gap(got[name], expected[name]) < LINE[dtype], name
    assert all(not z.any() for z in zeros.values())  # nothing is changed in place


def test_what_is_done_unless_said_otherwise():
    adamw = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    assert defaults(plain.adamw) == defaults(optim.adamw) == adamw
    assert defaults(plain.generate) == {"temperature": 0.0, "k": None, "p": None, "rng": None}
    assert defaults(plain.layer_norm) == defaults(plain.layer_norm_backward) == {"eps": 1e-5}


def test_training_on_one_batch_lowers_its_loss():
    params = model("float32").params
    tokens = models.token_ids(7, (2, 13), CONFIG.n_vocab)
    m = v = {name: np.zeros_like(p) for name, p in params.items()}
    losses = []
    for step in range(1, 21):
        loss, grads = plain.loss_and_grads(tokens[:, :-1], tokens[:, 1:], params, N_HEAD)
        params, m, v = plain.adamw(params, grads, m, v, step, lr=3e-3)
        losses.append(loss)
    assert losses[-1] < 0.3 * losses[0]


# ---- sampling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_filters_are_those_of_sample(dtype):
    for seed in range(20):
        logits = normal(seed, 3, 97, dtype=dtype) * (1 + seed)
        for k in (1, 2, 50, 97, 200):
            np.testing.assert_array_equal(plain.top_k(logits, k), sample.keep_top_k(logits, k))
        for p in (1e-9, 0.1, 0.5, 0.9, 0.999, 1.0):
            got = plain.top_p(logits, p)
            assert got.dtype == dtype
            if p < 1:
                np.testing.assert_array_equal(got, sample.keep_top_p(logits, p))
            np.testing.assert_array_equal(got[1], plain.top_p(logits[1], p))
    ties = np.array([2.0, 7.0, 5.0, 7.0, 5.0], dtype)
    for k, p in ((1, 0.3), (3, 0.9), (4, 0.5)):
        np.testing.assert_array_equal(plain.top_k(ties, k), sample.keep_top_k(ties, k))
        np.testing.assert_array_equal(plain.top_p(ties, p), sample.keep_top_p(ties, p))


def test_filters_worked_by_hand():
    logits = np.log(np.array([1, 8, 3, 4]) / 16)
    hidden = -np.inf
    np.testing.assert_array_equal(plain.top_k(logits, 2) > hidden, [0, 1, 0, 1])
    # 8 alone is not 0.6; with 4 it is 0.75: the token with which the sum crosses p stays
    np.testing.assert_array_equal(plain.top_p(logits, 0.6) > hidden, [0, 1, 0, 1])
    np.testing.assert_array_equal(plain.top_p(logits, 1e-9) > hidden, [0, 1, 0, 0])
    np.testing.assert_array_equal(plain.top_p(logits, 1.0), logits)
    # two of four equals hold exactly 0.5: a third is not needed
    np.testing.assert_array_equal(plain.top_p(np.ones(4), 0.5) > hidden, [1, 1, 0, 0])


SETTINGS = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "k": 9},
    {"temperature": 2.5, "p": 0.8},
    {"temperature": 1.5, "k": 30, "p": 0.6},
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_what_is_generated_is_what_the_package_generates(dtype, settings):
    prompt = [60, 3, 17]
    count = CONFIG.n_ctx + 1 - len(prompt)  # up to the last position, where nothing slides
    expected = sample.generate(
        model(dtype), prompt, count, temperature=settings["temperature"],
        top_k=settings.get("k"), top_p=settings.get("p"), rng=np.random.default_rng(8),
    )  # fmt: skip
    expected = [i for ((i,),) in expected]
    rng = np.random.default_rng(8).spawn(1)[0]  # the package gives each row a child
    got = list(plain.generate(prompt, model(dtype).params, N_HEAD, count, rng=rng, **settings))
    assert got == expected and len(got) == 11
    more = plain.generate(prompt, model(dtype).params, N_HEAD, 20, **settings)
    assert len(list(more)) == 20  # past the context the beginning is cut off


# ---- text ---------------------------------------------------------------------------------------


def test_ids_of_nasty_texts_are_those_of_the_package():
    """In one text, as a dict of 50,000 ranks is made at each call; and some by themselves."""
    file = ROOT / "tests" / "golden" / "bpe_nasty.json.gz"
    texts = [text for text, *_ in json.loads(gzip.decompress(file.read_bytes()))]
    # half a character is no text, and refused here; the package puts U+FFFD in its place
    texts = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]
    tokenizer, vocab = gpt2()
    whole = "\n".join(texts)
    ids = plain.encode(whole, vocab, tokenizer.merges)
    assert ids == tokenizer.encode(whole)
    assert plain.decode(ids, vocab) == whole
    for text in texts[:: len(texts) // 20]:
        ids = plain.encode(text, vocab, tokenizer.merges)
        assert ids == tokenizer.encode(text)
        assert plain.decode(ids, vocab) == text


def test_bytes_that_are_not_utf8_are_shown_as_the_package_shows_them():
    tokenizer, vocab = gpt2()
    for seed in range(50):
        ids = np.random.default_rng(seed).integers(0, 300, 9).tolist()
        assert plain.decode(ids, vocab) == tokenizer.decode(ids)


def test_the_spelling_of_bytes_is_that_of_bpe():
    from numpygpt.bpe import byte_symbols

    assert list(plain.byte_symbols().items()) == list(byte_symbols().items())


# ---- the page -----------------------------------------------------------------------------------


def test_it_imports_numpy_and_regex_and_nothing_of_ours():
    tree = ast.parse(Path(plain.__file__).read_text(encoding="utf-8"))
    names = set()
    for node in tree.body:  # what stands under `if __name__ == "__main__"` is deeper
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or ""))
    assert names == {"math", "itertools", "numpy", "regex"}


def test_it_has_about_three_pages_of_code():
    """200 lines that are neither empty nor text, at 66 lines a page."""
    tree = ast.parse(source := Path(plain.__file__).read_text(encoding="utf-8"))
    text = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            text |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = [
        line for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#") and number not in text
    ]  # fmt: skip
    assert len(lines) <= 3.2 * 66


@pytest.mark.parametrize("prompt", [["The old king was"], []])
def test_it_runs_on_the_bundled_model(prompt):
    ran = subprocess.run(
        [sys.executable, "-m", "numpygpt.plain", *prompt],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    begin = prompt[0] if prompt else "Once upon a time"
    assert ran.stdout.startswith(begin) and len(ran.stdout) > len(begin) + 40
    assert ran.stderr == ""
    # 40 tokens more, as the package draws them at temperature 0.8 from the 40 likeliest
    model, tokenizer = numpygpt.load("stories")
    ids, rng = tokenizer.encode(begin), np.random.default_rng(0)
    itself = types.SimpleNamespace(random=rng.random, spawn=lambda rows: [rng])
    for ((i,),) in sample.generate(model, ids, 40, temperature=0.8, top_k=40, rng=itself):
        ids.append(i)
    assert ran.stdout == tokenizer.decode(ids) + "\n"


def test_the_pitfalls_are_told():
    told = plain.__doc__ + "".join(f.__doc__ or "" for f in vars(plain).values() if callable(f))
    assert told.count("Pitfall: ") >= 5
    assert math.isclose(float(plain.gelu(np.float64(1.0))), 0.8411919906082768)  # erf: 0.84134
