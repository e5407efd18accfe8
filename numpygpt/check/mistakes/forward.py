"""The mistakes of the forward pass, each as a function that makes it.

It takes a model and returns the operations to replace in it, so that the one forward pass of
`model.py` makes the mistake: `apply(model, MISTAKES["erf-gelu"])`.

Replaced operations call those they replace, so several mistakes can be made at once. They are
applied in the order of FORWARD: those that change an argument stand before those that recognise a
parameter by being the same array.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from numpygpt import ops as right
from numpygpt.model import GPT2, with_ops


@dataclass(frozen=True)
class Mistake:
    """One mistake. `place`: the entry of the record in which it shows first, or the function it
    stands in for. `why`: why it is wrong, and how to fix it. `seen`: where it was met. `make`: for
    the forward pass, model -> {operation: replacement}; otherwise the wrong function.
    """

    name: str
    place: str
    why: str
    seen: str
    make: Callable


def apply(model: GPT2, *mistakes: Mistake) -> GPT2:
    """The model with these mistakes of the forward pass, whatever order they are given in."""
    for mistake in sorted(mistakes, key=FORWARD.index):
        model = with_ops(model, **mistake.make(model))
    return model


def _site(model):
    """A function that tells which parameter an array is: "h.0.ln_1.weight", or ""."""
    names = {id(array): name for name, array in model.params.items()}
    return lambda array: names.get(id(array), "")


# ---- rounding -----------------------------------------------------------------------------------


def to_float16(x):
    """x with every number rounded to the nearest float16; the dtype stays."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(x.dtype)


def to_bfloat16(x):
    """x with every number rounded to the nearest bfloat16, the upper half of a float32."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000  # to nearest, ties to even
    rounded = bits.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), rounded, x).astype(x.dtype)


def rounded_weights(model, to_half):
    """Operations whose parameters are rounded to half precision, as a file of them holds them."""
    ops = model.ops
    return {
        "embedding": lambda ids, table: ops.embedding(ids, to_half(table)),
        "layer_norm": lambda x, g, b, eps: ops.layer_norm(x, to_half(g), to_half(b), eps),
        "linear": lambda x, w, b: ops.linear(x, to_half(w), to_half(b)),
        "unembed": lambda x, table: ops.unembed(x, to_half(table)),
    }


def rounded_results(model, to_half):
    """Operations that also round what they return: a simulation of computing in half precision."""

    def rounding(op):
        return lambda *args: to_half(op(*args))

    whole = {name: getattr(model.ops, name) for name in ROUNDED} | rounded_weights(model, to_half)
    return {name: rounding(op) for name, op in whole.items()}


ROUNDED = "residual gelu attention_scores softmax attention_values".split()


def _float16_accumulation(model):
    def linear(x, w, b):
        total = np.zeros((*x.shape[:-1], w.shape[1]), np.float16)
        single, w = x.astype(np.float32), w.astype(np.float32)
        for i in range(w.shape[0]):
            total += (single[..., i, None] * w[i]).astype(np.float16)
        return total.astype(x.dtype) + b

    return {"linear": linear}


# ---- GELU ---------------------------------------------------------------------------------------


def _gelu(y):
    return lambda model: {"gelu": lambda x: y(x).astype(x.dtype)}


def _erf_gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf, otypes=[float])(x / 2**0.5))


def _sigmoid_gelu(x):
    return x / 2 * (1 + np.tanh(1.702 / 2 * x))  # x sigmoid(1.702 x), without overflow


def _gelu_with_typo(x):
    return x / 2 * (1 + np.tanh(right.GELU_SCALE * (x + 0.44715 * x**3)))


# ---- layer norm ---------------------------------------------------------------------------------


def _eps(value):
    return lambda model: {
        "layer_norm": lambda x, g, b, eps: model.ops.layer_norm(x, g, b, value),
    }


def _norm_arguments(change):
    return lambda model: {
        "layer_norm": lambda x, g, b, eps: model.ops.layer_norm(x, *change(g, b), eps),
    }


def _norm(normed):
    """A layer norm that has `normed(x, eps)` in place of (x - mean) / sqrt(var + eps)."""
    return lambda model: {"layer_norm": lambda x, g, b, eps: normed(x, eps) * g + b}


def _centred(x):
    return x - x.mean(-1, keepdims=True)


def _unbiased(x):
    return x.var(-1, ddof=1, keepdims=True)


def _over_tokens(x, eps):
    axes = (-2, -1)
    centred = x - x.mean(axes, keepdims=True)
    return centred / np.sqrt(np.square(centred).mean(axes, keepdims=True) + eps)


def _post_norm(model):
    """Leave out the norm at the start of a branch and take it after the sum at its end."""
    site, pending = _site(model), []

    def layer_norm(x, g, b, eps):
        if site(g) == "ln_f.weight":
            return model.ops.layer_norm(x, g, b, eps)
        pending.append((g, b, eps))
        return x

    def residual(x, y):
        x = model.ops.residual(x, y)
        return model.ops.layer_norm(x, *pending.pop()) if pending else x

    return {"layer_norm": layer_norm, "residual": residual}


def _no_final_norm(model):
    site = _site(model)

    def layer_norm(x, g, b, eps):
        return x.copy() if site(g) == "ln_f.weight" else model.ops.layer_norm(x, g, b, eps)

    return {"layer_norm": layer_norm}


def _second_norm(change):
    """Change the arguments of ln_2 to `change(those of ln_1, its own)`."""

    def make(model):
        site, first = _site(model), []

        def layer_norm(*args):
            if site(args[1]).endswith("ln_1.weight"):
                first[:] = args
            elif site(args[1]).endswith("ln_2.weight"):
                args = change(first, args)
            return model.ops.layer_norm(*args)

        return {"layer_norm": layer_norm}

    return make


# ---- residual stream ----------------------------------------------------------------------------


def _branches(residual):
    """Tell `residual` which branch it ends ("ln_1", "ln_2"; "" at the embeddings) and its norm."""

    def make(model):
        site, last = _site(model), ["", None]

        def layer_norm(x, g, b, eps):
            y = model.ops.layer_norm(x, g, b, eps)
            name = site(g).removesuffix(".weight").split(".")[-1]
            last[:] = ("", None) if name == "ln_f" else (name, y)  # embeddings follow the last norm
            return y

        return {"layer_norm": layer_norm, "residual": lambda x, y: residual(model, *last, x, y)}

    return make


def _no_residual(branch):
    return _branches(lambda model, name, normed, x, y: y if name == branch else x + y)


def _after_norm(model, name, normed, x, y):
    return model.ops.residual(x if normed is None else normed, y)


DROPPED = 0.1  # the rate at which GPT-2 was trained


def _dropout(model):
    rng = np.random.default_rng(0)

    def drop(x):
        return np.where(rng.random(x.shape) < DROPPED, 0, x / (1 - DROPPED)).astype(x.dtype)

    def residual(model, name, normed, x, y):
        return model.ops.residual(x, drop(y)) if name else drop(model.ops.residual(x, y))

    return _branches(residual)(model) | {"softmax": lambda x: drop(model.ops.softmax(x))}


# ---- attention ----------------------------------------------------------------------------------


def _scaled(factor):
    """Scores multiplied by `factor(n_head, D)`."""

    def make(model):
        def attention_scores(q, k, pads=None):
            return model.ops.attention_scores(q * factor(q.shape[1], q.shape[3]), k, pads)

        return {"attention_scores": attention_scores}

    return make


def _unmasked(ops, q, k):
    """Scores of every query with every key: asked one by one, as the last, each sees them all."""
    return np.concatenate(
        [ops.attention_scores(q[:, :, t : t + 1], k) for t in range(q.shape[2])], axis=2
    )


def _masked(hidden, fill=-np.inf):
    """Scores with another mask: `fill` where `hidden(query, key, past)` and where padding is."""

    def make(model):
        def attention_scores(q, k, pads=None):
            scores = _unmasked(model.ops, q, k)
            t, s = scores.shape[-2:]
            query, key = np.arange(s - t, s)[:, None], np.arange(s)
            mask = hidden(query, key, s - t) & np.ones((t, s), bool)
            if pads is not None:
                mask = mask | ((key < np.asarray(pads)[:, None, None]) & (key != query))[:, None]
            return np.where(mask, fill, scores).astype(scores.dtype)

        return {"attention_scores": attention_scores}

    return make


def _mask_after_softmax(model):
    return {
        "attention_scores": lambda q, k, pads=None: _unmasked(model.ops, q, k),
        "softmax": lambda x: np.tril(model.ops.softmax(x), x.shape[-1] - x.shape[-2]),
    }


def _softmax_axis(model):
    swap = np.swapaxes
    return {"softmax": lambda x: swap(model.ops.softmax(swap(x, -1, -2).copy()), -1, -2)}


def _qkv_order(order):
    """The columns of c_attn taken for q, k and v in another order, "kqv" for instance."""
    at = ["qkv".index(letter) for letter in order]  # "kqv": the first third is taken for k

    def make(model):
        def split_qkv(x):
            parts = model.ops.split_qkv(x)
            return [parts[at.index(i)] for i in range(3)]

        return {"split_qkv": split_qkv}

    return make


def _qkv_per_head(model):
    n_head = model.config.n_head

    def split_qkv(x):
        heads = x.reshape(*x.shape[:2], n_head, 3, -1)
        return [heads[:, :, :, i].reshape(*x.shape[:2], -1) for i in range(3)]

    return {"split_qkv": split_qkv}


def _heads_interleaved(model):
    return {
        "split_heads": lambda x, n: x.reshape(*x.shape[:2], -1, n).transpose(0, 3, 1, 2),
        "merge_heads": lambda x: x.transpose(0, 2, 3, 1).reshape(x.shape[0], x.shape[2], -1),
    }


# ---- weights and embeddings ---------------------------------------------------------------------


def _weight(change):
    return lambda model: {"linear": lambda x, w, b: model.ops.linear(x, change(w), b)}


def _bias(factor, module=""):
    """The bias multiplied by `factor`, in every linear layer or in those of one name."""

    def make(model):
        site = _site(model)

        def linear(x, w, b):
            return model.ops.linear(x, w, b * factor if module in site(w) else b)

        return {"linear": linear}

    return make


def _table(name, change):
    """`change(operations, ids, table)` in place of the embedding of this name."""

    def make(model):
        site = _site(model)

        def embedding(ids, table):
            if site(table) == name:
                return change(model.ops, ids, table)
            return model.ops.embedding(ids, table)

        return {"embedding": embedding}

    return make


def _positions(change):
    """`change(operations, past, T, pads)` in place of the positions, none above n_ctx - 1."""

    def make(model):
        last = model.config.n_ctx - 1
        return {
            "positions": lambda past, t, pads=None: np.minimum(
                change(model.ops, past, t, pads), last
            )
        }

    return make


def _sinusoids(table):
    """Vaswani et al. 2017, 3.5: sin and cos in alternating columns, in the table's place."""
    position, column = np.arange(table.shape[0])[:, None], np.arange(table.shape[1])
    angle = position / 10000 ** (column // 2 * 2 / table.shape[1])
    return np.where(column % 2, np.cos(angle), np.sin(angle)).astype(table.dtype)


def _unembedding(change):
    """Another table for the logits: `change(model, table)`."""
    return lambda model: {
        "unembed": lambda x, table: model.ops.unembed(x, change(model, table).astype(x.dtype))
    }


def _other_table(model, table):
    if "lm_head.weight" in model.params:
        return model.params["wte.weight"]
    return np.random.default_rng(0).normal(0, 0.02, table.shape)


def _padded(model, table):
    return np.pad(table, ((0, -len(table) % 64), (0, 0)))


def _centred_stream(model):
    ops, site = model.ops, _site(model)

    def linear(x, w, b):
        y = ops.linear(x, w, b)
        return _centred(y) if "c_proj" in site(w) and w.shape[1] == model.config.n_embd else y

    return {
        "embedding": lambda ids, table: _centred(ops.embedding(ids, table)),
        "linear": linear,
        "unembed": lambda x, table: _centred(ops.unembed(x, table)),
    }


# ---- the table ----------------------------------------------------------------------------------

M = Mistake
FORWARD = (
    M("float16-weights", "wte",
      "The weights were rounded to float16: not a mistake, but not what float32 gives; compare "
      "with a float32 file.",
      "checkpoints saved in half precision", lambda model: rounded_weights(model, to_float16)),
    M("bfloat16-weights", "wte",
      "The weights were rounded to bfloat16: not a mistake, but not what float32 gives; compare "
      "with a float32 file.",
      "checkpoints saved in half precision", lambda model: rounded_weights(model, to_bfloat16)),
    M("float16-accumulation", "attn.c_attn",
      "Products are summed in float16, so small ones are lost as the sum grows; sum in float32 "
      "even if the factors are float16.",
      "GPU kernels, FPGA designs", _float16_accumulation),
    M("erf-gelu", "mlp.act",
      "The weights were trained with the tanh approximation of GELU, and exact erf differs by "
      "up to 5e-4; use gelu_new, x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).",
      "nanoGPT since 2023, transformer-explainer", _gelu(_erf_gelu)),
    M("sigmoid-gelu", "mlp.act",
      "x sigmoid(1.702 x) is a coarser approximation of GELU (OpenAI's CLIP has it); use the "
      "tanh form.",
      "ports that share code with CLIP", _gelu(_sigmoid_gelu)),
    M("relu", "mlp.act",
      "GPT-2's activation is GELU; ReLU cuts the small negative values off.",
      "first versions, from the original Transformer", _gelu(lambda x: np.maximum(x, 0))),
    M("no-gelu", "mlp.act",
      "There is no activation, so the two layers of the MLP are one linear map; put GELU "
      "between them.",
      "first versions", _gelu(lambda x: x.copy())),
    M("gelu-typo", "mlp.act",
      "The cubic constant is 0.44715 instead of 0.044715; add the zero.",
      "hand-copied constants", _gelu(_gelu_with_typo)),
    M("eps-1e-6", "ln_1",
      "The layer norms' eps is 1e-6; GPT-2's is 1e-5.",
      "defaults of Flax and the Annotated Transformer", _eps(1e-6)),
    M("eps-1e-10", "ln_1",
      "The layer norms' eps is 1e-10; GPT-2's is 1e-5.",
      "numpy-gpt2", _eps(1e-10)),
    M("eps-1e-12", "ln_1",
      "The layer norms' eps is 1e-12, which is BERT's; GPT-2's is 1e-5.",
      "code adapted from BERT", _eps(1e-12)),
    M("eps-zero", "ln_1",
      "The layer norms have no eps; add 1e-5 to the variance, inside the root.",
      "gpt-numpy", _eps(0.0)),
    M("eps-outside-root", "ln_1",
      "eps is added to the standard deviation; add it to the variance, inside the root.",
      "many from-scratch ports",
      _norm(lambda x, eps: _centred(x) / (x.std(-1, keepdims=True) + eps))),
    M("unbiased-variance", "ln_1",
      "The variance is divided by C - 1, as torch.var and torch.std do by default; divide by C.",
      "torch ports", _norm(lambda x, eps: _centred(x) / np.sqrt(_unbiased(x) + eps))),
    M("unbiased-eps-outside", "ln_1",
      "The norm is (x - mean) / (std + eps) with the unbiased std; divide by sqrt(var + eps) "
      "with the biased variance.",
      "The Annotated Transformer, and its many copies",
      _norm(lambda x, eps: _centred(x) / (np.sqrt(_unbiased(x)) + eps))),
    M("rms-norm", "ln_1",
      "The mean is not subtracted (that is RMSNorm, LLaMA's); subtract it.",
      "code adapted from LLaMA",
      _norm(lambda x, eps: x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps))),
    M("norm-over-tokens", "ln_1",
      "Mean and variance are taken over tokens and channels together; take them over each "
      "token's channels alone.",
      "layer_norm given x.shape[1:]", _norm(_over_tokens)),
    M("norm-without-gain", "ln_1",
      "The layer norms do not multiply by their weight; load and use ln_*.weight.",
      "ports that load only matrices",
      _norm_arguments(lambda g, b: (np.ones_like(g), b))),
    M("norm-without-bias", "ln_1",
      "The layer norms do not add their bias; load and use ln_*.bias.",
      "LayerNorm(bias=False), nanoGPT's option",
      _norm_arguments(lambda g, b: (g, 0 * b))),
    M("weights-out-in", "attn.c_attn",
      "The memory of the weights is read as (out, in); GPT-2's files hold (in, out), so y_o = "
      "sum_i x_i w[i * out + o].",
      "C and Rust ports", _weight(lambda w: w.reshape(w.shape[::-1]).T)),
    M("square-weight-transposed", "attn.c_proj",
      "The square matrix attn.c_proj.weight is transposed, which no shape can reveal; it is "
      "(in, out) as published.",
      "loaders for torch.nn.Linear", _weight(lambda w: w.T if w.shape[0] == w.shape[1] else w)),
    M("no-scale", "attn.scores",
      "The scores are not divided by sqrt(D), D being the width of a head.",
      "first versions", _scaled(lambda h, d: d**0.5)),
    M("scale-by-width", "attn.scores",
      "The scores are divided by sqrt(C), the width of the model; divide by sqrt(D), that of a "
      "head.",
      "single-head code made multi-head", _scaled(lambda h, d: h**-0.5)),
    M("scale-not-rooted", "attn.scores",
      "The scores are divided by D, or twice by sqrt(D); divide once by sqrt(D).",
      "scaling q and the scores", _scaled(lambda h, d: d**-0.5)),
    M("pads-not-masked", "attn.scores",
      "Tokens attend to the padding at their left; mask it for every query.",
      "batched generation",
      lambda model: {"attention_scores": lambda q, k, pads=None: model.ops.attention_scores(q, k)}),
    M("no-mask", "attn.scores",
      "There is no causal mask; hide every key after the query.",
      "encoder code", _masked(lambda query, key, past: False)),
    M("strict-triangle", "attn.scores",
      "The diagonal is masked too, so that a token cannot see itself (and the first sees "
      "everything); mask only keys after the query.",
      "tril(-1), triu(0)", _masked(lambda query, key, past: key >= query, -1e10)),
    M("strict-triangle-nan", "attn.scores",
      "The diagonal is masked too, with -inf, so that the first token sees nothing and becomes "
      "NaN; mask only keys after the query.",
      "tril(-1), triu(0)", _masked(lambda query, key, past: key >= query)),
    M("mask-off-by-one", "attn.scores",
      "Each token sees the next one, the very token it must predict; mask from the first key "
      "after the query on.",
      "triu(2)", _masked(lambda query, key, past: key > query + 1)),
    M("mask-transposed", "attn.scores",
      "The mask hides the past and shows the future; hide keys after the query.",
      "triu for tril", _masked(lambda query, key, past: key < query)),
    M("mask-corner", "attn.scores",
      "With a cache the mask is cut from the upper left corner; the queries are the last of the "
      "keys: count it from the lower right.",
      "LLMs-from-scratch", _masked(lambda query, key, past: key > query - past)),
    M("mask-with-zeros", "attn.scores",
      "The scores are multiplied by the mask, and exp(0) is 1, not 0; put -inf where the mask "
      "is.",
      "scores * tril", _masked(lambda query, key, past: key > query, 0.0)),
    M("mask-minus-1e4", "attn.pattern",
      "Masked scores are -1e4, which leaks where real scores are as low; use -inf or the "
      "dtype's minimum.",
      "transformers before 4.22", _masked(lambda query, key, past: key > query, -1e4)),
    M("mask-after-softmax", "attn.scores",
      "The mask is applied after the softmax, so rows do not sum to 1; mask the scores before "
      "it.",
      "softmax(scores) * tril", _mask_after_softmax),
    M("softmax-axis", "attn.pattern",
      "The softmax runs over the queries; it must run over the keys, the last axis.",
      "softmax(dim=-2), dim=2", _softmax_axis),
    *(
      M(f"qkv-order-{order}", "attn.q",
        f"The columns of c_attn are taken in the order {', '.join(order)}; they are q, k, v.",
        "hand-written splits", _qkv_order(order))
      for order in ("kqv", "qvk", "vkq", "kvq", "vqk")
    ),
    M("qkv-per-head", "attn.q",
      "c_attn's columns are read head by head, each with its q, k and v; they are all of q, "
      "then all of k, then all of v.",
      "code adapted from GPT-NeoX or Megatron", _qkv_per_head),
    M("heads-not-transposed", "attn.q",
      "(B, T, C) is reshaped to (B, H, T, D) at once, which mixes tokens; reshape to (B, T, H, "
      "D) and swap T and H.",
      "NumPy and C ports",
      lambda model: {"split_heads": lambda x, n: x.reshape(len(x), n, x.shape[1], -1)}),
    M("heads-interleaved", "attn.q",
      "Head h takes columns h, h + H, ...; it takes the D columns from h D on.",
      "rearrange('(d h)')", _heads_interleaved),
    M("merge-not-transposed", "attn.z",
      "(B, H, T, D) is reshaped to (B, T, C) without swapping H and T first, which mixes tokens.",
      "NumPy and C ports",
      lambda model: {"merge_heads": lambda x: x.reshape(len(x), x.shape[2], -1)}),
    *(
      M(f"no-bias-{module.replace('.', '-').replace('_', '-')}", module,
        f"The bias of {module} is not added.",
        "ports that load only matrices", _bias(0, module))
      for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ),
    M("no-bias", "attn.c_attn",
      "The linear layers do not add their biases; GPT-2 has one in each of them.",
      "Linear(bias=False), nanoGPT's option", _bias(0)),
    M("double-bias", "attn.c_attn",
      "The biases of the linear layers are added twice.",
      "a bias in the product and after it", _bias(2)),
    M("no-final-norm", "ln_f",
      "ln_f, the layer norm after the last block, is missing.",
      "code of post-norm Transformers", _no_final_norm),
    M("same-norm-twice", "ln_2",
      "ln_1's weight and bias are used for ln_2, too; each norm has its own.",
      "copied lines", _second_norm(lambda first, args: (args[0], *first[1:]))),
    M("parallel-block", "ln_2",
      "The MLP reads what attention read (as in GPT-J); it must read the stream after attention "
      "was added.",
      "code adapted from GPT-J or NeoX", _second_norm(lambda first, args: (first[0], *args[1:]))),
    M("no-residual-attention", "resid_mid",
      "Attention's output replaces the stream; add it to the stream.",
      "x = attn(ln(x))", _no_residual("ln_1")),
    M("no-residual-mlp", "resid_post",
      "The MLP's output replaces the stream; add it to the stream.",
      "x = mlp(ln(x))", _no_residual("ln_2")),
    M("residual-after-norm", "resid_mid",
      "The sum takes the normed stream; it must take the stream as it was before the norm.",
      "x = ln(x); x = x + attn(x)", _branches(_after_norm)),
    M("post-norm", "ln_1",
      "The norms stand after the sums, as in the original Transformer; GPT-2 norms the input of "
      "attention and MLP.",
      "code adapted from BERT or GPT-1", _post_norm),
    M("positions-off-by-one", "positions",
      "Positions begin at 1; the first token is at 0.",
      "ids of OPT, XGLM", _positions(lambda ops, past, t, pads: ops.positions(past + 1, t, pads))),
    M("positions-restart", "positions",
      "With a cache, positions begin at 0 again; they go on after the cached tokens.",
      "incremental decoding", _positions(lambda ops, past, t, pads: ops.positions(0, t, pads))),
    M("positions-ignore-padding", "positions",
      "Padding at the left shifts the positions; the first real token of a row is at 0.",
      "batched generation", _positions(lambda ops, past, t, pads: ops.positions(past, t))),
    M("no-positions", "wpe",
      "No positions are added, so that word order is invisible; add wpe to wte.",
      "first versions",
      _table("wpe.weight", lambda ops, ids, table: 0 * ops.embedding(ids, table))),
    M("sinusoidal-positions", "wpe",
      "The positions are sines and cosines; GPT-2 has learned them: wpe.weight.",
      "code of the original Transformer",
      _table("wpe.weight", lambda ops, ids, table: ops.embedding(ids, _sinusoids(table)))),
    M("embedding-scaled", "wte",
      "The token embeddings are multiplied by sqrt(C), as in the original Transformer; GPT-2 "
      "takes them as they are.",
      "code of the original Transformer",
      _table("wte.weight", lambda ops, ids, t: ops.embedding(ids, t) * t.shape[1] ** 0.5)),
    M("unembedding-reshaped", "logits",
      "wte (V, C) is read as (C, V) without a transpose; logits = x wte^T.",
      "C ports, reshape for transpose",
      _unembedding(lambda model, table: table.reshape(table.shape[::-1]).T)),
    M("untied-unembedding", "logits",
      "The logits come from another matrix than the token embedding (a new one, perhaps); GPT-2 "
      "has one for both, unless the file has lm_head.weight.",
      "lm_head left as initialised", _unembedding(_other_table)),
    M("padded-vocabulary", "logits",
      "The vocabulary is padded to a multiple of 64 and the logits of ids that do not exist are "
      "left in; cut them off, or set them to -inf, before softmax or argmax.",
      "nanoGPT, llm.c before its softmax", _unembedding(_padded)),
    M("centred-stream", "wte",
      "The stream's mean is subtracted: harmless, TransformerLens does so by default; load without "
      "processing to compare (in version 2 from_pretrained_no_processing, later boot_transformers, "
      "with enable_compatibility_mode(no_processing=True) for the old names).",
      "TransformerLens, center_writing_weights", _centred_stream),
    M("dropout-left-on", "resid_pre",
      "Dropout is active; call model.eval(), or leave it out for anything but training.",
      "torch ports without eval()", _dropout),
)  # fmt: skip
