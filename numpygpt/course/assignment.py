"""The assignment: the functions of GPT-2 that a student writes, each with numbers to try it on.

Every function is called with numbers that the right functions computed before it, so that an early
mistake costs its own points only. The right answer takes the operations as an argument: with one of
them replaced it gives the answer that a known mistake would.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from numpygpt import ops, optim, sample
from numpygpt.bpe import Tokenizer, byte_symbols
from numpygpt.check import mistakes
from numpygpt.model import GPT2, Config, parameter_shapes, with_ops

# ---- the right answers ---------------------------------------------------------------------------


def causal_attention(ops, q, k, v):
    return ops.attention_values(ops.softmax(ops.attention_scores(q, k)), v)


def causal_attention_backward(ops, dy, q, k, v):
    scores = ops.attention_scores(q, k)
    pattern = ops.softmax(scores)
    dpattern, dv = ops.attention_values_backward(dy, pattern, v)
    dscores = ops.softmax_backward(dpattern, scores, pattern)
    return *ops.attention_scores_backward(dscores, q, k), dv


def _linear(ops, x, params, name):
    return ops.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def multi_head_attention(ops, x, params, n_head):
    parts = ops.split_qkv(_linear(ops, x, params, "c_attn"))
    z = causal_attention(ops, *(ops.split_heads(part, n_head) for part in parts))
    return _linear(ops, ops.merge_heads(z), params, "c_proj")


def mlp(ops, x, params):
    return _linear(ops, ops.gelu(_linear(ops, x, params, "c_fc")), params, "c_proj")


def block(ops, x, params, n_head):
    def norm(x, name):
        return ops.layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"], 1e-5)

    y = multi_head_attention(ops, norm(x, "ln_1"), below("attn.", params), n_head)
    x = ops.residual(x, y)
    return ops.residual(x, mlp(ops, norm(x, "ln_2"), below("mlp.", params)))


def gpt2(ops, tokens, params, n_head):
    (v, c), (n_ctx, _) = params["wte.weight"].shape, params["wpe.weight"].shape
    n_layer = sum(name.endswith("ln_1.weight") for name in params)
    n_inner = len(params["h.0.mlp.c_fc.bias"])
    config = Config(v, n_ctx, c, n_head, n_layer, n_inner)
    return GPT2(config, params, ops).forward(tokens)[0]


def adamw_step(adamw, params, grads, m, v, step, *numbers):
    params, m, v = ({name: p.copy() for name, p in d.items()} for d in (params, m, v))
    adamw(params, grads, optim.AdamState(step - 1, m, v), *numbers)
    return params, m, v


def below(prefix, params):
    """The parameters under a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): p for n, p in params.items() if n.startswith(prefix)}


# ---- the numbers they are asked for --------------------------------------------------------------


@dataclass(frozen=True)
class Fixture:
    """What the checks take their arguments from, in float64: at most two layers of a model, what
    they compute (`acts`) for tokens (2, 7), the tokens that follow, and a tokenizer."""

    model: GPT2
    tokenizer: Tokenizer
    tokens: np.ndarray
    targets: np.ndarray
    acts: dict

    def params(self, prefix=""):
        return below(prefix, self.model.params)


def fixture(model: GPT2, tokenizer: Tokenizer) -> Fixture:
    config = dataclasses.replace(
        model.config, n_layer=min(2, model.config.n_layer), layer_norm_epsilon=1e-5
    )
    params = {n: model.params[n].astype(np.float64) for n in parameter_shapes(config)}
    model = GPT2(config, params)
    ids = np.random.default_rng(4).integers(0, config.n_vocab, (2, min(8, config.n_ctx)))
    tokens, targets = ids[:, :-1], ids[:, 1:].copy()
    return Fixture(model, tokenizer, tokens, targets, model.forward(tokens, keep="everything")[1])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


# Rows of very different size: without the maximum taken off, exp overflows.
LARGE = normal(1, 3, 6) * np.array([[1.0], [9.0], [3000.0]])
# The second row hardly varies: there eps counts.
FLAT = (normal(2, 3, 7) * np.array([[1.0], [0.01], [2.0]]) + 0.4, normal(3, 7), normal(4, 7))
QKV = normal(5, 2, 3, 4, 5), normal(6, 2, 3, 4, 5), normal(7, 2, 3, 4, 5)
LOGITS = normal(8, 2, 4, 11) * 3
TARGETS = np.array([[3, 0, 10, 5], [7, 10, 2, 9]])
MASK = np.array([[True, True, False, True], [False, True, False, False]])
IGNORED = np.where(MASK, TARGETS, -100)
TEXTS = (
    "Once upon a time, there lived a king.",
    "It's the King'S 12345 pieces\tof_gold;  I'LL say   no\n\n more  ",
    "naïve čapelo: 你好 🙂! <|endoftext|>",
    "",
)
HALF = "Ã"  # how GPT-2 spells the byte 0xC3, the first half of é


def _spellings(f):
    return {token: i for i, token in enumerate(f.tokenizer.tokens)}


def _encode_arguments(f):
    """TEXTS and long words of the vocabulary, two spaces between them or 's, which is split off."""
    vocab = _spellings(f)
    words = [t[1:] for t in vocab if t[0] == "Ġ" and t[1:].isascii() and t[1:].isalpha()]
    words.sort(key=len)
    on_st = [word for word in words if word.startswith("st")]
    texts = *TEXTS, "  ".join(words[-12:]), "'".join(on_st[-12:])
    return [(text, vocab, f.tokenizer.merges) for text in texts]


def _decode_arguments(f):
    vocab, ids = _spellings(f), f.tokenizer.encode(TEXTS[2])
    return [(f.tokenizer.encode(TEXTS[1]), vocab), ([*ids, vocab[HALF]], vocab)]


def _adamw_arguments(f):
    shapes = {"wte.weight": (5, 3), "ln_f.weight": (3,), "h.0.mlp.c_fc.bias": (4,)}
    params, grads, m, v, zeros = (
        {name: size * normal(20 + i, *shape) for name, shape in shapes.items()}
        for i, size in enumerate((1.0, 0.01, 0.01, 0.01, 0.0))
    )
    v = {name: np.square(x) for name, x in v.items()}
    numbers = (0.01, 0.9, 0.95, 1e-3, 0.1)  # lr, beta1, beta2, eps, weight_decay
    return [(params, grads, zeros, zeros, 1, *numbers), (params, grads, m, v, 3, *numbers)]


# ---- the checks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One function to be graded.

    `cases`: Fixture -> tuples of arguments. `right(way, *arguments)`: the right result, `way` being
    what a mistake replaces, the operations or a function: that of `way(fixture)`. `places`: where
    the mistakes of `mistakes.OTHERS` stand that are tried; none: those of the forward pass are.
    `backward_of`: the forward function, whose arguments follow `dy`.
    """

    name: str
    points: int
    arguments: str
    cases: Callable
    right: Callable
    look: str
    way: Callable = lambda f: f.model.ops
    places: tuple = ()
    backward_of: str = ""
    returns: tuple = ()


def _call(way, *arguments):
    return way(*arguments)


def _encode(way, text, vocab, merges):
    return way(text)


CHECKS = (
    Check(
        "softmax", 4, "x",
        lambda f: [(f.acts["h.0.attn.scores"],), (LARGE,)],
        lambda ops, x: ops.softmax(x),
        "the last axis, and the maximum that is subtracted before exp",
    ),
    Check(
        "gelu", 4, "x",
        lambda f: [(f.acts["h.0.mlp.c_fc"],), (LARGE / 300,)],
        lambda ops, x: ops.gelu(x),
        "the tanh form and its constants sqrt(2/pi) and 0.044715",
    ),
    Check(
        "layer_norm", 5, "x, g, b, eps",
        lambda f: [
            (f.acts["h.0.resid_pre"], *f.params("h.0.ln_1.").values()),
            FLAT,
            (*FLAT, 1e-3),
        ],
        lambda ops, x, g, b, eps=1e-5: ops.layer_norm(x, g, b, eps),
        "the biased variance, and eps = 1e-5 inside the root",
    ),
    Check(
        "linear", 3, "x, w, b",
        lambda f: [
            (f.acts["h.0.ln_1"], *f.params("h.0.attn.c_attn.").values()),
            (f.acts["h.0.attn.z"], *f.params("h.0.attn.c_proj.").values()),
        ],
        lambda ops, x, w, b: ops.linear(x, w, b),
        "x w + b with w (in, out), no transpose",
    ),
    Check(
        "causal_attention", 8, "q, k, v",
        lambda f: [
            tuple(f.acts[f"h.0.attn.{x}"] for x in "qkv"),
            (QKV[0][:, :, -2:], *QKV[1:]),
        ],
        causal_attention,
        "1/sqrt(D), the mask counted from the lower right corner, softmax over the keys",
    ),
    Check(
        "multi_head_attention", 7, "x, params, n_head",
        lambda f: [(f.acts["h.0.ln_1"], f.params("h.0.attn."), f.model.config.n_head)],
        multi_head_attention,
        "the order q, k, v in c_attn, the swap of T and H on the way in and out",
    ),
    Check(
        "mlp", 3, "x, params",
        lambda f: [(f.acts["h.0.ln_2"], f.params("h.0.mlp."))],
        mlp,
        "c_fc, gelu, c_proj",
    ),
    Check(
        "block", 5, "x, params, n_head",
        lambda f: [(f.acts["h.0.resid_pre"], f.params("h.0."), f.model.config.n_head)],
        block,
        "norms before attention and mlp, and both sums around norm and branch",
    ),
    Check(
        "gpt2", 8, "tokens, params, n_head",
        lambda f: [(f.tokens, f.params(), f.model.config.n_head)],
        gpt2,
        "wte + wpe from position 0, every block in order, ln_f, and wte again for the logits",
    ),
    Check(
        "cross_entropy", 5, "logits, targets, mask",
        lambda f: [(f.acts["logits"], f.targets), (LOGITS, IGNORED, MASK)],
        _call,
        "the mean over the tokens that the mask counts; targets are not shifted here",
        way=lambda f: ops.cross_entropy,
        places=("ops.cross_entropy",),
    ),
    Check(
        "softmax_backward", 4, "dy, x",
        lambda f: [(normal(9, 2, 3, 5), normal(10, 2, 3, 5))],
        lambda ops, dy, x: ops.softmax_backward(dy, x),
        "every y depends on every x of its row: dx = y (dy - sum(y dy))",
        backward_of="softmax",
        returns=("dx",),
    ),
    Check(
        "gelu_backward", 4, "dy, x",
        lambda f: [(normal(11, 2, 3, 5), 2 * normal(12, 2, 3, 5))],
        lambda ops, dy, x: ops.gelu_backward(dy, x),
        "the product rule: x stands before the bracket and inside tanh",
        backward_of="gelu",
        returns=("dx",),
    ),
    Check(
        "layer_norm_backward", 6, "dy, x, g, b, eps",
        lambda f: [(normal(13, 3, 7), *FLAT), (normal(14, 3, 7), *FLAT, 1e-3)],
        lambda ops, dy, x, g, b, eps=1e-5: ops.layer_norm_backward(dy, x, g, b, eps),
        "mean and variance depend on x too; dg and db are summed over all rows",
        backward_of="layer_norm",
        returns=("dx", "dg", "db"),
    ),
    Check(
        "linear_backward", 4, "dy, x, w, b",
        lambda f: [(normal(15, 2, 3, 4), normal(16, 2, 3, 5), normal(17, 5, 4), normal(18, 4))],
        lambda ops, dy, x, w, b: ops.linear_backward(dy, x, w, b),
        "dx = dy w^T, dw = x^T dy over all rows, db = the sum of dy",
        backward_of="linear",
        returns=("dx", "dw", "db"),
    ),
    Check(
        "causal_attention_backward", 8, "dy, q, k, v",
        lambda f: [(normal(19, 2, 3, 4, 5), *QKV)],
        causal_attention_backward,
        "1/sqrt(D) in dq and in dk, and softmax's backward between pattern and scores",
        backward_of="causal_attention",
        returns=("dq", "dk", "dv"),
    ),
    Check(
        "cross_entropy_backward", 4, "dy, logits, targets, mask",
        lambda f: [(0.7, LOGITS, TARGETS), (0.7, LOGITS, IGNORED, MASK)],
        lambda ops, dy, *rest: ops.cross_entropy_backward(dy, *rest),
        "dy (softmax - onehot) divided by the number of tokens that count, 0 for the others",
        backward_of="cross_entropy",
        returns=("dlogits",),
    ),
    Check(
        "adamw_step", 6, "params, grads, m, v, step, lr, beta1, beta2, eps, weight_decay",
        _adamw_arguments,
        adamw_step,
        "m, v, their correction by 1 - beta^step, eps outside the root, decay on matrices only",
        way=lambda f: optim.adamw,
        places=("optim.adamw", "optim.decays"),
        returns=("params", "m", "v"),
    ),
    Check(
        "encode", 6, "text, vocab, merges",
        _encode_arguments,
        _encode,
        "GPT-2's pattern first, then inside each piece always the merge of lowest rank",
        way=lambda f: f.tokenizer.encode,
        places=("bpe.Tokenizer.encode", "bpe.pre_tokens"),
    ),
    Check(
        "decode", 2, "ids, vocab",
        _decode_arguments,
        lambda decode, ids, vocab: decode(ids),
        "symbols to bytes, all bytes joined, then UTF-8 with errors='replace'",
        way=lambda f: f.tokenizer.decode,
        places=("bpe.Tokenizer.decode",),
    ),
    Check(
        "top_k", 2, "logits, k",
        lambda f: [(LOGITS[0], 4), (LOGITS[0], 99)],
        _call,
        "the k largest stay as they are, all others become -inf; k may be larger than V",
        way=lambda f: sample.keep_top_k,
        places=("sample.keep_top_k",),
    ),
    Check(
        "top_p", 2, "logits, p",
        lambda f: [(LOGITS[0], 0.8), (LOGITS[0] * 4, 0.2)],
        _call,
        "the token with which the sum crosses p stays; all others become -inf",
        way=lambda f: sample.keep_top_p,
        places=("sample.keep_top_p",),
    ),
)  # fmt: skip
BY_NAME = {check.name: check for check in CHECKS}


# ---- what may have gone wrong --------------------------------------------------------------------


def _decode(ids, vocab):
    spellings, byte = list(vocab), {symbol: b for b, symbol in byte_symbols().items()}
    data = bytes(byte[symbol] for i in ids for symbol in spellings[i])
    return data.decode("utf-8", errors="replace")


# Mistakes that nobody makes but in an exercise: check -> name, explanation, wrong function.
IN_EXERCISES = {
    "softmax": [
        ("no-maximum", "exp overflows, as the row's maximum is not subtracted first.",
         lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
        ("softmax-over-everything", "The sum runs over all axes; it must run over the last alone.",
         lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum()),
        ("softmax-over-everything", "The sum runs over all axes; it must run over the last alone.",
         lambda x: (e := np.exp(x - x.max(-1, keepdims=True))) / e.sum()),
    ],
    "softmax_backward": [
        ("diagonal-only", "Only dy_i/dx_i is there; every y_i depends on all x_j of its row.",
         lambda dy, x: dy * ops.softmax(x) * (1 - ops.softmax(x))),
        ("no-sum", "The sum over the row is missing: dx = y (dy - sum(y dy)).",
         lambda dy, x: dy * ops.softmax(x)),
    ],
    "layer_norm_backward": [
        ("constant-mean-and-variance", "Mean and variance are held constant; both depend on x.",
         lambda dy, x, g, b, eps=1e-5: (
             dy * g / np.sqrt(x.var(-1, keepdims=True) + eps),
             *ops.layer_norm_backward(dy, x, g, b, eps)[1:])),
    ],
    "cross_entropy_backward": [
        ("sum-instead-of-mean", "It is the gradient of the sum; divide by the tokens that count.",
         lambda dy, logits, targets, mask=None: ops.cross_entropy_backward(
             dy * float(targets.size if mask is None else mask.sum()), logits, targets, mask)),
    ],
    "decode": [
        ("token-by-token", "A character may be spread over several tokens; join all bytes first.",
         lambda ids, vocab: "".join(_decode([i], vocab) for i in ids)),
    ],
    "top_k": [
        ("one-too-many", "k + 1 tokens stay.", lambda x, k: sample.keep_top_k(x, k + 1)),
        ("zero-for-forbidden", "A logit of 0 is not forbidden: exp(0) is 1; put -inf.",
         lambda x, k: np.where(np.isinf(sample.keep_top_k(x, k)), 0, x)),
    ],
    "top_p": [
        ("zero-for-forbidden", "A logit of 0 is not forbidden: exp(0) is 1; put -inf.",
         lambda x, p: np.where(np.isinf(sample.keep_top_p(x, p)), 0, x)),
    ],
}  # fmt: skip


def mistaken(f: Fixture, made: list) -> Fixture:
    """The fixture whose model makes the mistakes `made`, each (name, name of a check, function)."""
    names = [name for name, *_ in made]
    model = mistakes.apply(f.model, *(m for m in mistakes.FORWARD if m.name in names))
    own = {n: wrong for name, n, wrong in made if n == "softmax" and _in_exercises(name, n)}
    return dataclasses.replace(f, model=with_ops(model, **own))


def _in_exercises(mistake, check):
    return mistake in [name for name, *_ in IN_EXERCISES[check]]


def hypotheses(check: Check, f: Fixture) -> Iterable[tuple[str, str, Callable]]:
    """Name, explanation and function of every known mistake that `check` could meet."""
    yield from IN_EXERCISES.get(check.name, ())
    if check.backward_of:
        forward = BY_NAME[check.backward_of]
        for name, why, wrong in hypotheses(forward, f):
            yield name, why, _differences(right_answer(forward, f), wrong, len(check.returns))
        yield "dy-ignored", "The gradient that comes in, dy, is not used.", _without_dy(check)
    elif check.places:
        merged = functools.cache(
            lambda word: mistakes.others.merges_across_words(f.tokenizer, word)
        )
        for mistake in mistakes.OTHERS:
            if mistake.place in check.places:
                yield mistake.name, mistake.why, _as_function(check, _way(mistake, f, merged))
    else:
        for mistake in mistakes.FORWARD:
            wrong_ops = with_ops(f.model, **mistake.make(f.model)).ops
            yield mistake.name, mistake.why, _as_function(check, wrong_ops)


def _as_function(check, way):
    return lambda *arguments: check.right(way, *arguments)


def right_answer(check, f):
    return _as_function(check, check.way(f))


def _without_dy(check):
    return lambda dy, *rest: check.right(ops, np.ones_like(dy), *rest)


def _way(mistake, f, merged):
    """What stands in the place of the right way; merged: a piece of text, merged as one word."""
    make = mistake.make
    if mistake.place == "bpe.Tokenizer.encode":
        return lambda text: make(f.tokenizer, text)
    if mistake.place == "bpe.pre_tokens":
        return lambda text: [i for word in make(text) for i in merged(word)]
    if mistake.place == "optim.decays":  # every array as a matrix: then all of them decay
        return lambda *dicts_and_numbers: optim.adamw(*_as_matrices(dicts_and_numbers))
    return make


def _as_matrices(arguments):
    params, grads, state, *numbers = arguments
    flat = [{n: x[None] for n, x in d.items()} for d in (params, grads, state.m, state.v)]
    return *flat[:2], optim.AdamState(state.step, *flat[2:]), *numbers


STEP = 1e-5
# Central differences to the fourth order: (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12 h.
STENCIL = {1: 8, -1: -8, 2: -1, -2: 1}


def _differences(right, wrong, count):
    """Gradients of a mistaken forward function for its first arguments, by central differences."""

    def gradients(dy, *arguments):
        if np.array_equal(wrong(*arguments), right(*arguments), equal_nan=True):
            return ()  # the mistake does not show: save the time
        found = tuple(_gradient(wrong, dy, arguments, i) for i in range(count))
        return found if count > 1 else found[0]

    return gradients


def _gradient(function, dy, arguments, i):
    before, x, after = arguments[:i], arguments[i].copy(), arguments[i + 1 :]
    gradient = np.empty_like(x)
    for at in np.ndindex(x.shape):
        here, slope = x[at], 0.0
        for steps, weight in STENCIL.items():
            x[at] = here + steps * STEP
            slope = slope + weight * function(*before, x, *after)
        x[at] = here
        gradient[at] = (dy * slope).sum() / (12 * STEP)
    return gradient
