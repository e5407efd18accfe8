"""GPT-2 in three pages of code: every formula from a text to the next word and to a training step.

GPT-2 reads a text and says, of every piece of text that could come next, how likely it is:

    text --encode--> ids --gpt2--> logits --softmax--> probabilities --draw--> the next id

A *token* is such a piece: a word with the space before it, or a part of a word. An *id* is its
number. A *logit* is a score, the larger the likelier. What the model has learned is in `params`, a
dict of arrays under the names of the published files; training changes them and nothing else.

To see it write:    python -m numpygpt.plain "Once upon a time"

Read from top to bottom: each function uses those above it. "Pitfall" marks what many published
copies of GPT-2 get wrong. Nothing here is fast and nothing is checked; the rest of the package
computes the same numbers sooner, and `tests/test_plain.py` holds the two together.

Letters for the sizes of arrays, here and everywhere in the package:

    T  tokens that are read                  C  numbers by which the model describes each of them
    V  tokens that exist, the vocabulary     H  attention heads, each with D = C / H numbers

In formulas x^T is x transposed: its last two axes swapped.

Several texts of one length may be read at once: axes in front of those named here are carried
along. What comes in as float32 stays float32, and float64 stays float64.
"""

import math
from itertools import pairwise

import numpy as np
import regex

# ---- text to tokens, and back -------------------------------------------------------------------

# A text is first cut into words: letters, or digits, or other signs, each with the space before
# them; or white space. No token crosses such a border. (`bpe.py` explains the parts.)
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def byte_symbols():
    """A printable character for each of the 256 bytes: "a" for itself, "Ġ" for a space.

    Only a spelling, so that the vocabulary can be kept in a text file.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def encode(text, vocab, merges):
    """Text to ids, by byte-pair encoding.

    A word starts as its bytes. Then neighbours are joined, pair by pair, always the pair that comes
    first in `merges`, until no two neighbours are a pair in it.
    vocab: token -> id, {"Ġthe": 262, ...}. merges: [("Ġ", "t"), ("Ġ", "a"), ...], as learned.
    """
    symbols = byte_symbols()
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    ids = []
    for word in PATTERN.findall(text):
        parts = [symbols[byte] for byte in word.encode("utf-8")]
        while len(parts) > 1:
            pairs = list(pairwise(parts))
            first = min(pairs, key=lambda pair: ranks.get(pair, math.inf))
            if first not in ranks:
                break
            i = pairs.index(first)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [vocab[part] for part in parts]
    return ids


def decode(ids, vocab):
    """Ids to text. A character may be spread over tokens: join the bytes of all of them first."""
    token_of = {i: token for token, i in vocab.items()}
    byte_of = {symbol: byte for byte, symbol in byte_symbols().items()}
    data = bytes(byte_of[symbol] for i in ids for symbol in token_of[i])
    return data.decode("utf-8", errors="replace")


# ---- forward: tokens to logits ------------------------------------------------------------------
#
# The model is a stack of *blocks* (see `block`). Each `layer_norm` and each `linear` in it has two
# arrays, a weight and a bias. In params, those of block 3's first layer norm are "h.3.ln_1.weight"
# and "h.3.ln_1.bias"; the first block is 0. The names are OpenAI's: wte and wpe are the tables of
# *embeddings*, the C numbers that a token and a position begin with; c_attn makes queries, keys and
# values; c_fc and c_proj lead into the MLP and back out of it, and another c_proj out of attention;
# ln_1, ln_2 and ln_f, the final one, are layer norms.


def n_layer(params):
    """How many blocks there are."""
    return sum(name.endswith(".ln_1.weight") for name in params)


def layer(params, name):
    """The two arrays of a layer norm or a linear: its weight and its bias."""
    return params[f"{name}.weight"], params[f"{name}.bias"]


def under(params, prefix):
    """The parameters whose names begin with prefix, under the rest of their names."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


def softmax(x):
    """y_i = exp(x_i) / sum_j exp(x_j), along the last axis: any numbers become shares of 1.

    The largest x is subtracted first: the quotient stays the same, and exp cannot overflow.
    """
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): near 0 if x < 0, near x if x > 0.

    Without such a bend between them, two calls of `linear` could do no more than one.
    Pitfall: GPT-2 was trained with this formula. The "exact" GELU, with erf, is close but not the
    same: every logit is a little wrong then, and the generated text hardly ever shows it.
    """
    return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, g, b, eps=1e-5):
    """y = g (x - mean) / sqrt(variance + eps) + b: each token's C numbers, brought to one scale.

    g and b are learned: they stretch and shift what comes out. eps keeps it from dividing by 0.
    Pitfall: the variance is divided by C, not C - 1, and eps is 1e-5 and stands inside the root.
    """
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return g * (x - mean) / np.sqrt(variance + eps) + b


def linear(x, w, b):
    """y = x w + b: each of the new numbers is a weighted sum of the old ones.

    w and b are learned.
    Pitfall: w is (in, out), as OpenAI published it. PyTorch's `nn.Linear` has it the other way.
    """
    return x @ w + b


def attention_pattern(q, k):
    """softmax(q k^T / sqrt(D)): the share that each token (row) gives to each (column). (T, T)

    A token's query q says what it looks for, a token's key k what it has to offer; their product is
    large where the two fit. Pitfall: without 1/sqrt(D) the products grow with D, and softmax gives
    nearly all to one token. Pitfall: a token sees itself and those before it, never a later one, or
    it would be told what it is to predict. Hidden scores are -inf: exp(-inf) is 0, exp(0) is not.
    """
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    # 1 at and below the diagonal. If there are fewer queries than keys, they are the last ones.
    queries, keys = scores.shape[-2:]
    visible = np.tri(queries, keys, keys - queries, dtype=bool)
    return softmax(np.where(visible, scores, -np.inf))


def attention(q, k, v):
    """Each token collects the values v of those it sees, by its shares. q, k, v (T, D) -> (T, D)

    A token's value is what it hands to those that look at it.
    """
    return attention_pattern(q, k) @ v


def split_heads(x, n_head):
    """(T, C) -> (H, T, D): head h gets columns h D to (h + 1) D.

    Pitfall: cut C first, to (T, H, D), and then swap two axes; one reshape would mix the tokens.
    """
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)


def merge_heads(x):
    """(H, T, D) -> (T, C): the heads side by side again."""
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)


def multi_head_attention(x, params, n_head):
    """H attentions side by side, so that a token can look for H things at once. (T, C) -> (T, C)

    c_proj, at the end, mixes what the heads have found.
    Pitfall: c_attn gives all of q, then all of k, then all of v, and each is then cut into heads.
    """
    q, k, v = np.split(linear(x, *layer(params, "c_attn")), 3, axis=-1)  # (T, 3C) -> 3 x (T, C)
    q, k, v = split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)
    return linear(merge_heads(attention(q, k, v)), *layer(params, "c_proj"))


def mlp(x, params):
    """Multi-layer perceptron: each token by itself, to 4 C numbers, through GELU, back. (T, C)"""
    return linear(gelu(linear(x, *layer(params, "c_fc"))), *layer(params, "c_proj"))


def block(x, params, n_head):
    """Attention between tokens, then the MLP within each; what they find is added to x. (T, C)

    Pitfall: both read a normed copy of x, and x itself, the "residual stream", is never normed.
    """
    normed = layer_norm(x, *layer(params, "ln_1"))
    x = x + multi_head_attention(normed, under(params, "attn."), n_head)
    normed = layer_norm(x, *layer(params, "ln_2"))
    return x + mlp(normed, under(params, "mlp."))


def gpt2(tokens, params, n_head):
    """Ids (T,) to logits (T, V): for each token, a score for every token that could follow it.

    Pitfall: positions count from 0. Pitfall: the table `wte`, which turns an id into C numbers,
    turns C numbers into logits as well: there is no separate output layer.
    """
    wte, wpe = params["wte.weight"], params["wpe.weight"]
    x = wte[tokens] + wpe[: np.shape(tokens)[-1]]  # which token, and where it stands: (T, C)
    for i in range(n_layer(params)):
        x = block(x, under(params, f"h.{i}."), n_head)
    return layer_norm(x, *layer(params, "ln_f")) @ wte.T


# ---- loss ---------------------------------------------------------------------------------------


def cross_entropy(logits, targets):
    """loss = mean of -log softmax(logits)[target]: 0 if sure and right, log V if all seem alike.

    Pitfall: the target of a token is the token that follows: of ids (T + 1,), tokens = ids[:-1] and
    targets = ids[1:]. Shift there, once, and nowhere else.
    """
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(targets)[..., None], axis=-1).mean()


# ---- backward: the loss to gradients ------------------------------------------------------------
#
# The gradient dx of an array x has x's shape, and says of each number in x how fast the loss grows
# as that number grows. A backward is given dy, the gradient of what its function returned, and the
# function's arguments, and returns their gradients: the chain rule, applied from the function's
# last step to its first. What it needs of the forward it computes again.


def rows(x):
    """(..., N) -> (R, N): all tokens of all texts, one below the other; they share parameters."""
    return x.reshape(-1, x.shape[-1])


def cross_entropy_backward(dy, logits, targets):
    """dlogits = dy (softmax(logits) - onehot(target)) / tokens; onehot: 1 at the target, else 0."""
    onehot = np.arange(logits.shape[-1]) == np.asarray(targets)[..., None]
    return dy * (softmax(logits) - onehot) / np.size(targets)


def softmax_backward(dy, x):
    """dx_i = y_i (dy_i - sum_j y_j dy_j): a sum, since each y depends on every x of its row."""
    y = softmax(x)
    return y * (dy - (y * dy).sum(-1, keepdims=True))


def gelu_backward(dy, x):
    """dx = dy ((1 + t)/2 + x/2 t'): y = x/2 (1 + t) is a product, t' the slope of t = tanh(...)."""
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    slope = (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)
    return dy * ((1 + t) / 2 + x / 2 * slope)


def layer_norm_backward(dy, x, g, b, eps=1e-5):
    """dx = (d - mean(d) - n mean(d n)) / std, with n = (x - mean) / std and d = dy g.

    The two means are there because the mean and the variance depend on x as well. dg = sum of n dy
    and db = sum of dy, over all tokens.
    """
    std = np.sqrt(x.var(-1, keepdims=True) + eps)
    n = (x - x.mean(-1, keepdims=True)) / std
    d = dy * g
    dx = (d - d.mean(-1, keepdims=True) - n * (d * n).mean(-1, keepdims=True)) / std
    return dx, rows(dy * n).sum(0), rows(dy).sum(0)


def linear_backward(dy, x, w, b):
    """dx = dy w^T, dw = x^T dy, db = sum of dy."""
    return dy @ w.T, rows(x).T @ rows(dy), rows(dy).sum(0)


def attention_backward(dy, q, k, v):
    """dv = p^T dy; dp = dy v^T, ds from dp as in softmax; dq = ds k and dk = ds^T q, / sqrt(D).

    p is the pattern, and s are the scores that softmax made it from.
    """
    p = attention_pattern(q, k)
    dv = p.swapaxes(-1, -2) @ dy
    dp = dy @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))  # 0 where p is 0, that is under the mask
    ds = ds / math.sqrt(q.shape[-1])
    return ds @ k, ds.swapaxes(-1, -2) @ q, dv


def multi_head_attention_backward(dy, x, params, n_head):
    """Back through c_proj, attention and c_attn; split_heads and merge_heads undo each other."""
    q, k, v = np.split(linear(x, *layer(params, "c_attn")), 3, axis=-1)
    q, k, v = split_heads(q, n_head), split_heads(k, n_head), split_heads(v, n_head)
    z = merge_heads(attention(q, k, v))
    dz, dw_proj, db_proj = linear_backward(dy, z, *layer(params, "c_proj"))
    dq, dk, dv = attention_backward(split_heads(dz, n_head), q, k, v)
    dqkv = np.concatenate([merge_heads(dq), merge_heads(dk), merge_heads(dv)], axis=-1)
    dx, dw_attn, db_attn = linear_backward(dqkv, x, *layer(params, "c_attn"))
    return dx, {
        "c_attn.weight": dw_attn, "c_attn.bias": db_attn,
        "c_proj.weight": dw_proj, "c_proj.bias": db_proj,
    }  # fmt: skip


def mlp_backward(dy, x, params):
    """Back through c_proj, GELU and c_fc."""
    before = linear(x, *layer(params, "c_fc"))
    dafter, dw_proj, db_proj = linear_backward(dy, gelu(before), *layer(params, "c_proj"))
    dx, dw_fc, db_fc = linear_backward(gelu_backward(dafter, before), x, *layer(params, "c_fc"))
    return dx, {
        "c_fc.weight": dw_fc, "c_fc.bias": db_fc,
        "c_proj.weight": dw_proj, "c_proj.bias": db_proj,
    }  # fmt: skip


def block_backward(dy, x, params, n_head):
    """Of y = x + f(x): dx = dy + what comes back through f. Like x itself, dy also passes f by."""
    normed_1 = layer_norm(x, *layer(params, "ln_1"))
    middle = x + multi_head_attention(normed_1, under(params, "attn."), n_head)
    normed_2 = layer_norm(middle, *layer(params, "ln_2"))

    dnormed_2, dmlp = mlp_backward(dy, normed_2, under(params, "mlp."))
    dmiddle, dg_2, db_2 = layer_norm_backward(dnormed_2, middle, *layer(params, "ln_2"))
    dmiddle = dy + dmiddle
    dnormed_1, dattn = multi_head_attention_backward(
        dmiddle, normed_1, under(params, "attn."), n_head
    )
    dx, dg_1, db_1 = layer_norm_backward(dnormed_1, x, *layer(params, "ln_1"))
    dx = dmiddle + dx
    grads = {f"attn.{name}": g for name, g in dattn.items()}
    grads |= {f"mlp.{name}": g for name, g in dmlp.items()}
    grads |= {"ln_1.weight": dg_1, "ln_1.bias": db_1, "ln_2.weight": dg_2, "ln_2.bias": db_2}
    return dx, grads


def loss_and_grads(tokens, targets, params, n_head):
    """The loss, and a dict of the gradients of all parameters, under their names."""
    wte, wpe = params["wte.weight"], params["wpe.weight"]
    length = np.shape(tokens)[-1]
    x = [wte[tokens] + wpe[:length]]  # what goes into each block, and what comes out of the last
    for i in range(n_layer(params)):
        x.append(block(x[i], under(params, f"h.{i}."), n_head))
    normed = layer_norm(x[-1], *layer(params, "ln_f"))
    logits = normed @ wte.T

    dlogits = cross_entropy_backward(1.0, logits, targets)
    dwte = rows(dlogits).T @ rows(normed)
    dx, dg, db = layer_norm_backward(dlogits @ wte, x[-1], *layer(params, "ln_f"))
    grads = {"wte.weight": dwte, "ln_f.weight": dg, "ln_f.bias": db}
    for i in reversed(range(n_layer(params))):
        dx, dblock = block_backward(dx, x[i], under(params, f"h.{i}."), n_head)
        grads |= {f"h.{i}.{name}": g for name, g in dblock.items()}
    # wte was used at both ends, so its two gradients add up; add.at, as a token may occur twice.
    np.add.at(dwte, tokens, dx)
    grads["wpe.weight"] = np.zeros_like(wpe)
    grads["wpe.weight"][:length] = dx.reshape(-1, *dx.shape[-2:]).sum(0)  # over all texts
    return cross_entropy(logits, targets), {name: grads[name] for name in params}


# ---- update -------------------------------------------------------------------------------------


def adamw(params, grads, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One step of AdamW down the gradients: new params, m and v.

    m = beta1 m + (1 - beta1) g is a running mean of the gradients, v = beta2 v + (1 - beta2) g^2
    one of their squares. With p = p - lr m / (sqrt(v) + eps) all parameters take steps of about lr,
    the learning rate. As m and v start at 0 they are too small at first; dividing by 1 - beta^step,
    step = 1, 2, ..., corrects that. Decay pulls matrices, and only them, towards 0.
    """
    new_params, new_m, new_v = {}, {}, {}
    for name, p in params.items():
        new_m[name] = beta1 * m[name] + (1 - beta1) * grads[name]
        new_v[name] = beta2 * v[name] + (1 - beta2) * grads[name] ** 2
        mean, square = new_m[name] / (1 - beta1**step), new_v[name] / (1 - beta2**step)
        decay = weight_decay if p.ndim > 1 else 0.0
        new_params[name] = p - lr * (mean / (np.sqrt(square) + eps) + decay * p)
    return new_params, new_m, new_v


# ---- sampling: logits to the next token ---------------------------------------------------------


def top_k(logits, k):
    """Only the k largest stay (and what equals the last of them); -inf forbids the others."""
    smallest = np.sort(logits, axis=-1)[..., -k:].min(-1, keepdims=True)
    return np.where(logits >= smallest, logits, -np.inf)


def top_p(logits, p):
    """Only the likeliest stay that together have at least p: the others have at most 1 - p."""
    order = np.argsort(-logits, axis=-1, kind="stable")[..., ::-1]  # the least likely first
    shares = np.take_along_axis(softmax(logits.astype(np.float64)), order, axis=-1)
    keep = np.empty(logits.shape, bool)
    np.put_along_axis(keep, order, np.cumsum(shares, axis=-1) > 1 - p, axis=-1)
    return np.where(keep, logits, -np.inf)


def generate(ids, params, n_head, max_new_tokens, temperature=0.0, k=None, p=None, rng=None):
    """Yields the ids that follow `ids`, one after another. The model reads the whole text for each.

    temperature=0 always takes the likeliest. Otherwise the logits are divided by the temperature
    (below 1 the likely become likelier), all but the k largest are forbidden, then all but the
    likeliest that together have p, and the id is drawn at random from what is left.
    """
    ids, n_ctx = list(ids), len(params["wpe.weight"])  # n_ctx: the most tokens it can read
    rng = np.random.default_rng() if rng is None else rng
    for _ in range(max_new_tokens):
        logits = gpt2(ids[-n_ctx:], params, n_head)[-1]  # the last token's alone: (V,)
        if temperature == 0:
            ids.append(int(logits.argmax()))
        else:
            logits = logits / temperature
            if k is not None:
                logits = top_k(logits, k)
            if p is not None:
                logits = top_p(logits, p)
            ids.append(int(rng.choice(len(logits), p=softmax(logits))))
        yield ids[-1]


if __name__ == "__main__":
    import sys

    import numpygpt  # for the weights and the vocabulary of the model that comes with it

    prompt = sys.argv[1] if sys.argv[1:] else "Once upon a time"
    model, tokenizer = numpygpt.load("stories")
    vocab = {token: i for i, token in enumerate(tokenizer.tokens)}
    ids = encode(prompt, vocab, tokenizer.merges)
    settings = {"temperature": 0.8, "k": 40, "rng": np.random.default_rng(0)}
    with numpygpt.fast.one_blas_thread():  # several would wait for each other on a busy machine
        ids += generate(ids, model.params, model.config.n_head, 40, **settings)
    print(decode(ids, vocab))
