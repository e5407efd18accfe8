"""A student's solution of the assignment: plain, complete, and written without numpygpt."""

import math

import numpy as np
import regex

PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, g, b, eps=1e-5):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return g * (x - mean) / np.sqrt(var + eps) + b


def linear(x, w, b):
    return x @ w + b


def attention_pattern(q, k):
    t, s = q.shape[-2], k.shape[-2]
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    scores[..., np.arange(s) > np.arange(s - t, s)[:, None]] = -np.inf
    return softmax(scores)


def causal_attention(q, k, v):
    return attention_pattern(q, k) @ v


def multi_head_attention(x, params, n_head):
    B, T, C = x.shape
    qkv = linear(x, params["c_attn.weight"], params["c_attn.bias"])
    q, k, v = np.split(qkv, 3, axis=-1)
    q, k, v = (a.reshape(B, T, n_head, -1).transpose(0, 2, 1, 3) for a in (q, k, v))
    z = causal_attention(q, k, v).transpose(0, 2, 1, 3).reshape(B, T, C)
    return linear(z, params["c_proj.weight"], params["c_proj.bias"])


def mlp(x, params):
    h = gelu(linear(x, params["c_fc.weight"], params["c_fc.bias"]))
    return linear(h, params["c_proj.weight"], params["c_proj.bias"])


def under(prefix, params):
    return {k[len(prefix) :]: p for k, p in params.items() if k.startswith(prefix)}


def block(x, params, n_head):
    normed = layer_norm(x, params["ln_1.weight"], params["ln_1.bias"])
    x = x + multi_head_attention(normed, under("attn.", params), n_head)
    normed = layer_norm(x, params["ln_2.weight"], params["ln_2.bias"])
    return x + mlp(normed, under("mlp.", params))


def gpt2(tokens, params, n_head):
    wte, wpe = params["wte.weight"], params["wpe.weight"]
    x = wte[tokens] + wpe[: tokens.shape[1]]
    layer = 0
    while f"h.{layer}.ln_1.weight" in params:
        x = block(x, under(f"h.{layer}.", params), n_head)
        layer += 1
    x = layer_norm(x, params["ln_f.weight"], params["ln_f.bias"])
    return x @ wte.T


def cross_entropy(logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    logits, targets = logits[mask], targets[mask]
    z = logits - logits.max(-1, keepdims=True)
    nll = np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), targets]
    return nll.mean()


def softmax_backward(dy, x):
    y = softmax(x)
    return y * (dy - (y * dy).sum(-1, keepdims=True))


def gelu_backward(dy, x):
    a = math.sqrt(2 / math.pi)
    t = np.tanh(a * (x + 0.044715 * x**3))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * 0.044715 * x * x))


def layer_norm_backward(dy, x, g, b, eps=1e-5):
    std = np.sqrt(x.var(-1, keepdims=True) + eps)
    n = (x - x.mean(-1, keepdims=True)) / std
    d = dy * g
    dx = (d - d.mean(-1, keepdims=True) - n * (d * n).mean(-1, keepdims=True)) / std
    rows = tuple(range(x.ndim - 1))
    return dx, (dy * n).sum(rows), dy.sum(rows)


def linear_backward(dy, x, w, b):
    rows = tuple(range(x.ndim - 1))
    return dy @ w.T, np.tensordot(x, dy, (rows, rows)), dy.sum(rows)


def causal_attention_backward(dy, q, k, v):
    scale = 1 / math.sqrt(q.shape[-1])
    p = attention_pattern(q, k)
    dp = dy @ v.swapaxes(-1, -2)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dy


def cross_entropy_backward(dy, logits, targets, mask=None):
    mask = np.ones(targets.shape, bool) if mask is None else mask
    d = np.zeros_like(logits)
    rows = softmax(logits[mask])
    rows[np.arange(len(rows)), targets[mask]] -= 1
    d[mask] = rows * dy / len(rows)
    return d


def adamw_step(params, grads, m, v, step, lr, beta1, beta2, eps, weight_decay):
    new_params, new_m, new_v = {}, {}, {}
    for name, p in params.items():
        g = grads[name]
        new_m[name] = beta1 * m[name] + (1 - beta1) * g
        new_v[name] = beta2 * v[name] + (1 - beta2) * g * g
        mean = new_m[name] / (1 - beta1**step)
        square = new_v[name] / (1 - beta2**step)
        decay = weight_decay if p.ndim > 1 else 0.0
        new_params[name] = p - lr * (mean / (np.sqrt(square) + eps) + decay * p)
    return new_params, new_m, new_v


def byte_to_symbol():
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + n) for n, b in enumerate(hidden)}


def encode(text, vocab, merges):
    symbols, ranks, ids = byte_to_symbol(), {m: i for i, m in enumerate(merges)}, []
    for word in PATTERN.findall(text):
        parts = [symbols[b] for b in word.encode("utf-8")]
        while True:
            pairs = [p for p in zip(parts, parts[1:], strict=False) if p in ranks]
            if not pairs:
                break
            i = list(zip(parts, parts[1:], strict=False)).index(min(pairs, key=ranks.get))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [vocab[p] for p in parts]
    return ids


def decode(ids, vocab):
    spelling = {i: token for token, i in vocab.items()}
    byte = {s: b for b, s in byte_to_symbol().items()}
    data = bytes(byte[s] for i in ids for s in spelling[i])
    return data.decode("utf-8", errors="replace")


def top_k(logits, k):
    smallest = np.sort(logits, -1)[..., -min(k, logits.shape[-1]), None]
    return np.where(logits >= smallest, logits, -np.inf).astype(logits.dtype)


def top_p(logits, p):
    order = np.argsort(-logits, -1)
    ranked = np.take_along_axis(softmax(logits), order, -1)
    before = np.cumsum(ranked, -1) - ranked
    out = np.full_like(logits, -np.inf)
    kept = np.where(before < p, np.take_along_axis(logits, order, -1), -np.inf)
    np.put_along_axis(out, order, kept, -1)
    return out
