"""The assignment: the functions of GPT-2 that a student writes, each with numbers to try it on.

Every function is called with numbers that the right functions computed before it, so that an early
mistake costs its own points only. The right answer takes the operations as an argument: with one of
them replaced it gives the answer that a known mistake, or a student's own function, would.

The numbers are drawn anew from a seed at each run, and so are the sizes, so that a table of answers
is worth nothing; what makes mistakes show is always among them: sizes that are all different, a row
that hardly varies, very large numbers, a cache.
"""

import dataclasses
import functools
import types
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from numpygpt import ops, optim, sample
from numpygpt.bpe import Tokenizer, byte_symbols
from numpygpt.check import mistakes
from numpygpt.model import GPT2, Config, parameter_shapes, with_ops

# ---- the right answers ---------------------------------------------------------------------------


def part(ops, name):
    """One of the functions below made of `ops`, or what stands in its place under its name."""
    return getattr(ops, name, None) or functools.partial(globals()[name], ops)


def causal_attention(ops, q, k, v):
    """softmax(q k^T / sqrt(D) + mask) v: (B, H, T, D), (B, H, S, D) twice -> (B, H, T, D)."""
    return ops.attention_values(ops.softmax(ops.attention_scores(q, k)), v)


def causal_attention_backward(ops, dy, q, k, v):
    """-> dq, dk, dv, in the shapes of q, k and v."""
    scores = ops.attention_scores(q, k)
    pattern = ops.softmax(scores)
    dpattern, dv = ops.attention_values_backward(dy, pattern, v)
    dscores = ops.softmax_backward(dpattern, scores, pattern)
    return *ops.attention_scores_backward(dscores, q, k), dv


def _linear(ops, x, params, name):
    return ops.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])


def _norm(ops, x, params, name):
    return ops.layer_norm(x, params[f"{name}.weight"], params[f"{name}.bias"], 1e-5)


def multi_head_attention(ops, x, params, n_head):
    """c_attn, the heads' attention side by side, c_proj: (B, T, C) -> (B, T, C)."""
    parts = ops.split_qkv(_linear(ops, x, params, "c_attn"))
    q, k, v = (ops.split_heads(part, n_head) for part in parts)
    z = part(ops, "causal_attention")(q, k, v)
    return _linear(ops, ops.merge_heads(z), params, "c_proj")


def mlp(ops, x, params):
    """y = c_proj(gelu(c_fc(x))): (B, T, C) -> (B, T, C)."""
    return _linear(ops, ops.gelu(_linear(ops, x, params, "c_fc")), params, "c_proj")


def block(ops, x, params, n_head):
    """x + attention(ln_1(x)), then the same with the MLP and ln_2: (B, T, C) -> (B, T, C)."""
    attention = part(ops, "multi_head_attention")
    y = attention(_norm(ops, x, params, "ln_1"), below("attn.", params), n_head)
    x = ops.residual(x, y)
    y = part(ops, "mlp")(_norm(ops, x, params, "ln_2"), below("mlp.", params))
    return ops.residual(x, y)


def gpt2(ops, tokens, params, n_head):
    """The logits of every position: ids (B, T) -> (B, T, V)."""
    places = ops.positions(0, tokens.shape[1])
    x = ops.embedding(tokens, params["wte.weight"])
    x = ops.residual(x, ops.embedding(places, params["wpe.weight"]))
    for i in range(sum(name.endswith("ln_1.weight") for name in params)):
        x = part(ops, "block")(x, below(f"h.{i}.", params), n_head)
    return ops.unembed(_norm(ops, x, params, "ln_f"), params["wte.weight"])


def adamw_step(adamw, params, grads, m, v, step, *numbers):
    """One step of `optim.adamw` on copies: new params, m and v."""
    params, m, v = ({name: p.copy() for name, p in d.items()} for d in (params, m, v))
    adamw(params, grads, optim.AdamState(step - 1, m, v), *numbers)
    return params, m, v


def below(prefix, params):
    """The parameters under a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): p for n, p in params.items() if n.startswith(prefix)}


# ---- the numbers they are asked for --------------------------------------------------------------


@dataclass(frozen=True)
class Fixture:
    """What the checks take their arguments from, in float64: a small model of random weights, what
    it computes (`acts`) for tokens (B, T), the tokens that follow, and a tokenizer."""

    model: GPT2
    tokenizer: Tokenizer
    tokens: np.ndarray
    targets: np.ndarray
    acts: dict
    seed: int

    def params(self, prefix=""):
        """The model's parameters under a prefix, by the rest of their names."""
        return below(prefix, self.model.params)

    def rng(self, name):
        """The same numbers for the same name in the same run, and others in another run."""
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])

    def normal(self, name, *shape):
        """Normal numbers of this shape, always the same for the same name in a run."""
        return self.rng(name).standard_normal(shape)

    def sizes(self, name, count, least=3, most=9):
        """`count` different sizes, so that two axes that are mixed up show."""
        return [int(n) for n in self.rng(name).permutation(np.arange(least, most + 1))[:count]]


def fixture(seed: int, tokenizer: Tokenizer) -> Fixture:
    """Fresh sizes, weights and tokens for a run; `tokenizer` is for encode and decode."""
    rng = np.random.default_rng(seed)
    n_head, width, batch, length = (int(n) for n in rng.permutation(np.arange(2, 8))[:4])
    length += 2
    n_embd = n_head * (width + 4)
    n_inner = int(rng.integers(3 * n_embd, 5 * n_embd)) | 1
    n_vocab, n_ctx = int(rng.integers(60, 90)), length + int(rng.integers(2, 6))
    n_layer = int(np.random.default_rng([seed, 1]).integers(2, 4))
    config = Config(n_vocab, n_ctx, n_embd, n_head, n_layer, n_inner)
    params = {}
    for name, shape in parameter_shapes(config).items():
        x = rng.standard_normal(shape)
        if name.endswith(".bias"):
            x *= 0.2
        elif "ln_" in name:
            x = 1 + 0.3 * x
        else:
            x *= 1.5 / shape[0] ** 0.5 if name.startswith("h.") else 0.3
        params[name] = x
    # As in GPT-2: the first position has a very large number; and one token's row hardly varies.
    params["wpe.weight"][0, rng.integers(n_embd)] = 60 * rng.choice([-1, 1])
    params["wte.weight"][1] *= 0.01
    params["wpe.weight"][1] *= 0.01
    model = GPT2(config, params)
    ids = rng.integers(2, n_vocab, (batch, length + 1))
    ids[0, 1] = 1  # at the position of small numbers
    tokens, targets = ids[:, :-1], ids[:, 1:].copy()
    acts = model.forward(tokens, keep="everything")[1]
    return Fixture(model, tokenizer, tokens, targets, acts, seed)


def _large(f):
    """Rows of very different size: without the maximum taken off, exp overflows."""
    rows, columns = f.sizes("large", 2)
    scale = np.ones((rows, 1))
    scale[:2] = [[9.0], [3000.0]]
    return f.normal("large", rows, columns) * scale


def _flat(f):
    """x, g, b; the second row of x hardly varies: there eps counts."""
    rows, columns = f.sizes("flat", 2, 6, 12)
    scale = np.ones((rows, 1))
    scale[1] = 0.01
    g, b = f.normal("g", columns), f.normal("b", columns)
    return f.normal("flat", rows, columns) * scale + 0.4, g, b


def _flat_twice(f):
    """The same with an axis before: x (2, T, C)."""
    x, g, b = _flat(f)
    return np.stack([x, x[::-1]]), g, b


def _qkv(f):
    shape = f.sizes("qkv", 4, 2, 6)
    return tuple(f.normal(x, *shape) for x in "qkv")


def _cached(f):
    """The queries are the last few of the keys."""
    q, k, v = _qkv(f)
    return q[:, :, -(q.shape[2] - 1) :], k, v


def _logits(f):
    return f.normal("logits", *f.sizes("logits", 3, 3, 11)) * 3


def _targets(f):
    b, t, v = _logits(f).shape
    targets = f.rng("targets").integers(0, v, (b, t))
    targets[0, :2] = 0, v - 1
    return targets


def _mask(f):
    """Some count, and not equally many in each row."""
    mask = f.rng("mask").random(_targets(f).shape) < 0.6
    mask[0], mask[1:3, 0] = True, False
    return mask


def _ignored(f):
    """Targets that are anything where the mask hides them: an id, or -100."""
    targets, drawn = _targets(f), f.rng("ignored").random(_targets(f).shape) < 0.5
    drawn[1:3, 0] = True, False
    return np.where(_mask(f) | ~drawn, targets, -100)


def _high(f):
    """Logits of which one row is so high that exp overflows; softmax does not see it."""
    logits = _logits(f)
    logits[0, 0] += 800
    return logits


def _texts(f):
    """Sentences with what trips up an encoder; names, numbers and white space are drawn."""
    rng = f.rng("texts")
    name, thing = rng.choice(["king", "wolf", "girl", "miller"]), rng.choice(["gold", "hay", "tea"])
    number, gap = int(rng.integers(1000, 99999)), " " * int(rng.integers(2, 5))
    letter, sign = rng.choice(list("éčñöß")), rng.choice(list("🙂🐺🎉"))
    return (
        f"Once upon a time, there lived a {name} with {number // 7} bags of {thing}.",
        f"It's the {name.title()}'S {number} pieces\tof_{thing};{gap}I'LL say{gap}no\n\n more  ",
        f"na{letter}ve {letter}apelo: 你好 {sign}! <|endoftext|>",
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
    rng = f.rng("words")
    drawn = [str(word) for word in rng.permutation(words[-200:])[:12]]
    texts = *_texts(f), "  ".join(drawn), "'".join(str(w) for w in rng.permutation(on_st)[:12])
    return [(text, vocab, f.tokenizer.merges) for text in texts]


def _decode_arguments(f):
    vocab, texts = _spellings(f), _texts(f)
    ids = f.tokenizer.encode(texts[2])
    return [(f.tokenizer.encode(texts[1]), vocab), ([*ids, vocab[HALF]], vocab)]


def _adamw_arguments(f):
    rows, columns, inner = f.sizes("adamw", 3)
    shapes = {
        "wte.weight": (rows, columns),
        "ln_f.weight": (columns,),
        "h.0.mlp.c_fc.bias": (inner,),
    }
    params, grads, m, v, zeros = (
        {name: size * f.normal(f"adamw {i} {name}", *shape) for name, shape in shapes.items()}
        for i, size in enumerate((1.0, 0.01, 0.01, 0.01, 0.0))
    )
    v = {name: np.square(x) for name, x in v.items()}
    rng = f.rng("adamw")
    # lr, beta1, beta2, eps, weight_decay
    numbers = [float(rng.uniform(*ends)) for ends in ((0.005, 0.02), (0.85, 0.95), (0.9, 0.97))]
    numbers += [float(rng.uniform(5e-4, 2e-3)), float(rng.uniform(0.05, 0.2))]
    step = int(rng.integers(2, 6))
    return [(params, grads, m, v, step, *numbers), (params, grads, zeros, zeros, 1, *numbers)]


# ---- the checks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One function to be graded.

    `cases`: Fixture -> tuples of arguments, and `aspects` a name for each, in the same order: each
    has its share of the points, but without the first there are none. `right(way, *arguments)`: the
    right result, `way` being what a mistake replaces, the operations or a function: that of
    `way(fixture)`. `places`: where the mistakes of `mistakes.OTHERS` stand that are tried; none:
    those of the forward pass are.
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
    aspects: tuple = ("right",)
    parts: tuple = ()  # functions of the assignment that this one is made of


def _call(way, *arguments):
    return way(*arguments)


def _encode(way, text, vocab, merges):
    return way(text)


def _two(f, size):
    """dy and x."""
    shape = f.sizes("two", 3, 2, 6)
    return f.normal("dy", *shape), size * f.normal("x", *shape)


def _linear_arguments(f, rows=False):
    """dy, x, w and b; x (B, T, N), or its first (T, N)."""
    b, t, n, m = f.sizes("linear", 4, 2, 6)
    dy, x = f.normal("dy", b, t, m), f.normal("x", b, t, n)
    return *((dy[0], x[0]) if rows else (dy, x)), f.normal("w", n, m), f.normal("b", m)


CHECKS = (
    Check(
        "softmax", 4, "x",
        lambda f: [(f.acts["h.0.attn.scores"],), (_large(f),)],
        lambda ops, x: ops.softmax(x),
        "the last axis, and the maximum that is subtracted before exp",
        aspects=("scores with -inf", "large numbers"),
    ),
    Check(
        "gelu", 4, "x",
        lambda f: [(f.acts["h.0.mlp.c_fc"],), (_large(f) / 300,)],
        lambda ops, x: ops.gelu(x),
        "the tanh form and its constants sqrt(2/pi) and 0.044715",
        aspects=("(B, T, F)", "(rows, columns)"),
    ),
    Check(
        "layer_norm", 5, "x, g, b, eps",
        lambda f: [
            (f.acts["h.0.resid_pre"], *f.params("h.0.ln_1.").values()),
            _flat(f),
            (*_flat(f), 1e-3),
        ],
        lambda ops, x, g, b, eps=1e-5: ops.layer_norm(x, g, b, eps),
        "the biased variance, and eps = 1e-5 inside the root",
        aspects=("(B, T, C)", "a row that hardly varies", "another eps"),
    ),
    Check(
        "linear", 3, "x, w, b",
        lambda f: [
            (f.acts["h.0.ln_1"], *f.params("h.0.attn.c_attn.").values()),
            (f.acts["h.0.attn.z"][0], *f.params("h.0.attn.c_proj.").values()),
        ],
        lambda ops, x, w, b: ops.linear(x, w, b),
        "x w + b with w (in, out), no transpose",
        aspects=("(B, T, N)", "(T, N)"),
    ),
    Check(
        "causal_attention", 8, "q, k, v",
        lambda f: [
            tuple(f.acts[f"h.0.attn.{x}"] for x in "qkv"),
            _cached(f),
        ],
        causal_attention,
        "1/sqrt(D), the mask counted from the lower right corner, softmax over the keys",
        aspects=("whole sequences", "with a cache"),
        parts=("softmax",),
    ),
    Check(
        "multi_head_attention", 7, "x, params, n_head",
        lambda f: [(f.acts["h.0.ln_1"], f.params("h.0.attn."), f.model.config.n_head)],
        multi_head_attention,
        "the order q, k, v in c_attn, the swap of T and H on the way in and out",
        parts=("linear", "causal_attention"),
    ),
    Check(
        "mlp", 3, "x, params",
        lambda f: [(f.acts["h.0.ln_2"], f.params("h.0.mlp."))],
        mlp,
        "c_fc, gelu, c_proj",
        parts=("linear", "gelu"),
    ),
    Check(
        "block", 5, "x, params, n_head",
        lambda f: [(f.acts["h.0.resid_pre"], f.params("h.0."), f.model.config.n_head)],
        block,
        "norms before attention and mlp, and both sums around norm and branch",
        parts=("layer_norm", "multi_head_attention", "mlp"),
    ),
    Check(
        "gpt2", 8, "tokens, params, n_head",
        lambda f: [(f.tokens, f.params(), f.model.config.n_head)],
        gpt2,
        "wte + wpe from position 0, every block in order, ln_f, and wte again for the logits",
        parts=("layer_norm", "block"),
    ),
    Check(
        "cross_entropy", 5, "logits, targets, mask",
        lambda f: [(f.acts["logits"], f.targets), (_high(f), _ignored(f), _mask(f))],
        _call,
        "the mean over the tokens that the mask counts; targets are not shifted here",
        aspects=("all tokens", "with a mask"),
        way=lambda f: ops.cross_entropy,
        places=("ops.cross_entropy",),
    ),
    Check(
        "softmax_backward", 4, "dy, x",
        lambda f: [_two(f, 1)],
        lambda ops, dy, x: ops.softmax_backward(dy, x),
        "every y depends on every x of its row: dx = y (dy - sum(y dy))",
        backward_of="softmax",
        returns=("dx",),
    ),
    Check(
        "gelu_backward", 4, "dy, x",
        lambda f: [_two(f, 2)],
        lambda ops, dy, x: ops.gelu_backward(dy, x),
        "the product rule: x stands before the bracket and inside tanh",
        backward_of="gelu",
        returns=("dx",),
    ),
    Check(
        "layer_norm_backward", 6, "dy, x, g, b, eps",
        lambda f: [
            (f.normal("dy", *_flat(f)[0].shape), *_flat(f)),
            (f.normal("other dy", 2, *_flat(f)[0].shape), *_flat_twice(f), 1e-3),
        ],
        lambda ops, dy, x, g, b, eps=1e-5: ops.layer_norm_backward(dy, x, g, b, eps),
        "mean and variance depend on x too; dg and db are summed over all rows",
        backward_of="layer_norm",
        returns=("dx", "dg", "db"),
        aspects=("(rows, columns)", "(B, T, C) and another eps"),
    ),
    Check(
        "linear_backward", 4, "dy, x, w, b",
        lambda f: [_linear_arguments(f), _linear_arguments(f, rows=True)],
        lambda ops, dy, x, w, b: ops.linear_backward(dy, x, w, b),
        "dx = dy w^T, dw = x^T dy over all rows, db = the sum of dy",
        backward_of="linear",
        returns=("dx", "dw", "db"),
        aspects=("(B, T, N)", "(T, N)"),
    ),
    Check(
        "causal_attention_backward", 8, "dy, q, k, v",
        lambda f: [(f.normal("dz", *_qkv(f)[0].shape), *_qkv(f))],
        causal_attention_backward,
        "1/sqrt(D) in dq and in dk, and softmax's backward between pattern and scores",
        backward_of="causal_attention",
        returns=("dq", "dk", "dv"),
    ),
    Check(
        "cross_entropy_backward", 4, "dy, logits, targets, mask",
        lambda f: [
            (0.7, _logits(f), _targets(f)),
            (0.7, _high(f), _ignored(f), _mask(f)),
        ],
        lambda ops, dy, *rest: ops.cross_entropy_backward(dy, *rest),
        "dy (softmax - onehot) divided by the number of tokens that count, 0 for the others",
        backward_of="cross_entropy",
        returns=("dlogits",),
        aspects=("all tokens", "with a mask"),
    ),
    Check(
        "adamw_step", 6, "params, grads, m, v, step, lr, beta1, beta2, eps, weight_decay",
        _adamw_arguments,
        adamw_step,
        "m, v, their correction by 1 - beta^step, eps outside the root, decay on matrices only",
        way=lambda f: optim.adamw,
        places=("optim.adamw", "optim.decays"),
        returns=("params", "m", "v"),
        aspects=("a later step", "the first step"),
    ),
    Check(
        "encode", 6, "text, vocab, merges",
        _encode_arguments,
        _encode,
        "GPT-2's pattern first, then inside each piece always the merge of lowest rank",
        way=lambda f: f.tokenizer.encode,
        places=("bpe.Tokenizer.encode", "bpe.pre_tokens"),
        aspects=(
            "a sentence", "contractions, numbers and blanks", "other scripts", "no text",
            "long words", "words after an apostrophe",
        ),
    ),
    Check(
        "decode", 2, "ids, vocab",
        _decode_arguments,
        lambda decode, ids, vocab: decode(ids),
        "symbols to bytes, all bytes joined, then UTF-8 with errors='replace'",
        way=lambda f: f.tokenizer.decode,
        places=("bpe.Tokenizer.decode",),
        aspects=("a sentence", "characters of several tokens"),
    ),
    Check(
        "top_k", 2, "logits, k",
        lambda f: [(_logits(f)[0], 2), (_logits(f)[0], 99)],
        _call,
        "the k largest stay as they are, all others become -inf; k may be larger than V",
        way=lambda f: sample.keep_top_k,
        places=("sample.keep_top_k",),
        aspects=("k below V", "k above V"),
    ),
    Check(
        "top_p", 2, "logits, p",
        lambda f: [(_logits(f)[0], 0.8), (_logits(f)[0] * 4, 0.2)],
        _call,
        "the token with which the sum crosses p stays; all others become -inf",
        way=lambda f: sample.keep_top_p,
        places=("sample.keep_top_p",),
        aspects=("p = 0.8", "p below the likeliest"),
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
    "multi_head_attention": [
        ("heads-not-swapped", "T and H change places nowhere: (B, T, C) becomes (B, T, H, D), "
         "and then (B, H, T, D); a reshape alone gives each head the numbers of other tokens.",
         lambda x, params, n_head: multi_head_attention(_reshaped(), x, params, n_head)),
    ],
    "block": [
        ("residual-from-the-norm", "The sum takes what came out of the norm; it must take the "
         "stream that went in, which passes unchanged.",
         lambda x, params, n_head: _normed_residual(x, params, n_head)),
    ],
    "cross_entropy": [
        ("no-maximum", "exp overflows, as the row's maximum is not subtracted first.",
         lambda logits, targets, mask=None: _loss_without_maximum(logits, targets, mask)),
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


def _reshaped():
    """Operations that cut the heads by reshaping alone, and put them together so too."""
    table = {name: op for name, op in vars(ops).items() if not name.startswith("_")}

    def split_heads(x, n_head):
        return x.reshape(x.shape[0], n_head, x.shape[1], -1)

    def merge_heads(x):
        return x.reshape(x.shape[0], x.shape[2], -1)

    return types.SimpleNamespace(**table | {"split_heads": split_heads, "merge_heads": merge_heads})


def _loss_without_maximum(logits, targets, mask):
    counted = np.ones(targets.shape, bool) if mask is None else mask != 0
    rows, ids = logits[counted], targets[counted]
    return (np.log(np.exp(rows).sum(-1)) - rows[np.arange(len(ids)), ids]).mean()


def _normed_residual(x, params, n_head):
    x = _norm(ops, x, params, "ln_1")
    x = x + multi_head_attention(ops, x, below("attn.", params), n_head)
    x = _norm(ops, x, params, "ln_2")
    return x + mlp(ops, x, below("mlp.", params))


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


def with_their_own(f: Fixture, check: Check, own: dict) -> Callable:
    """The right answer of a check, made of a student's own functions: name -> function."""
    table = {name: op for name, op in vars(f.model.ops).items() if not name.startswith("_")}
    return _as_function(check, types.SimpleNamespace(**table | own))


def _as_function(check, way):
    return lambda *arguments: check.right(way, *arguments)


def right_answer(check, f):
    """The function that gives the right answers of a check."""
    return _as_function(check, check.way(f))


def _without_dy(check):
    return lambda dy, *rest: check.right(ops, np.ones_like(dy), *rest)


def _way(mistake, f, merged):
    """What stands in place of the right way; merged: a piece of text, merged as one word."""
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
        y = wrong(*arguments)
        if np.array_equal(y, right(*arguments), equal_nan=True) or not np.isfinite(y).all():
            return ()  # the mistake does not show, or has no gradient: save the time
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
