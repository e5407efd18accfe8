"""The operations GPT-2 is made of, each written twice: forward, then backward.

A forward takes arrays and returns one (`split_qkv` three). Its backward stands under it, takes `dy`
(the gradient of the loss with respect to what the forward returned) and the same arrays, and
returns a gradient for each that has one (ids have none), undoing the forward's numbered steps in
reverse. No argument is changed (but `into` of `embedding_backward`, whose purpose that is) and
nothing is remembered between calls. Three have no backward: `positions`, which are integers,
`split_qkv`, whose backward is to put three gradients side by side, and `log_softmax`, which nothing
is trained through.

Letters, used everywhere in this package:

    B  sequences in the batch          C  width of the residual stream, n_embd
    T  tokens of this call, "queries"  H  heads          D  width of one head, C = H D
    S  tokens they can see, "keys"     F  width inside the MLP, n_inner
    V  tokens in the vocabulary        R  rows: all tokens of all sequences

dtype is kept: float32 in, float32 out; float64 in, float64 out. Constants are Python floats, since
a NumPy scalar such as `np.sqrt(2 / np.pi)` is a float64 that would make the whole model float64.

What stands above a function (`@fast.by_rows`) and `fast.matmul`, which is `@`, make it fast and
change numbers by rounding alone; `fast.py` tells how, and nobody needs it to read on.

Sources: Radford et al. 2019 (GPT-2) and its released `src/model.py`; Vaswani et al. 2017
(attention); Ba et al. 2016 (layer norm); Hendrycks and Gimpel 2016 (GELU).
"""

import math

import numpy as np

from . import fast


def _rows(x):
    """All of x's rows, one below the other: (..., N) -> (R, N)."""
    return x.reshape(-1, x.shape[-1])


# ---- embedding ----------------------------------------------------------------------------------


def embedding(ids, table):
    """Row `ids[...]` of the table: (B, T) ids, (V, C) table -> (B, T, C)."""
    return table[ids]


def embedding_backward(dy, ids, table, into=None):
    """dtable[i] = sum of dy over all places where the id is i: (B, T, C) -> (V, C).

    into: a gradient that the table has already; the sums are added to it, in place. GPT-2's table
    is used twice, and a second gradient of it would be 154 MB, nearly all of it zeros.
    """
    dtable = np.zeros(table.shape, table.dtype) if into is None else into
    np.add.at(dtable, ids, dy)  # `dtable[ids] += dy` would count a repeated id once
    return dtable


def positions(past, t, pads=None):
    """Position of each of T tokens behind `past` cached ones: past, past + 1, ...: (T,).

    pads (B,) is the number of padding tokens that fill each row at the left, so that all have one
    length. The first real token is at position 0, and the padding is put there too: (B, T).
    Integers have no gradient, so there is no backward.
    """
    count = np.arange(past, past + t)
    return count if pads is None else np.maximum(count - np.asarray(pads)[:, None], 0)


# ---- residual stream ----------------------------------------------------------------------------


def residual(x, y):
    """x + y: what a block computed is *added* to the stream; the stream itself passes unchanged."""
    return x + y


def residual_backward(dy, x=None, y=None):
    """Both gradients are dy, whatever x and y were: this is what lets many blocks be trained."""
    return dy, dy


# ---- linear -------------------------------------------------------------------------------------


def linear(x, w, b):
    """y = x w + b with x (..., N), w (N, M), b (M,) -> (..., M).

    The weights stand (in, out), as OpenAI published them ("Conv1D"): there is no transpose here,
    and a checkpoint from `torch.nn.Linear` would need one.
    """
    return fast.matmul(x, w, plus=b)  # x @ w + b


def linear_backward(dy, x, w, b):
    """dx = dy w^T, dw = x^T dy, db = sum of dy; the sums of dw and db run over all rows (B, T)."""
    dy_rows, x_rows = _rows(dy), _rows(x)
    dx = fast.matmul(dy, w.T)
    dw = fast.matmul(x_rows.T, dy_rows)
    db = dy_rows.sum(0)
    return dx, dw, db


# ---- layer norm ---------------------------------------------------------------------------------


@fast.by_rows
def layer_norm(x, g, b, eps):
    """y = g (x - mean) / sqrt(variance + eps) + b over the last axis: (..., C) -> (..., C).

    The variance is the biased one (divided by C, not C - 1) and eps stands inside the root.
    """
    c = x.shape[-1]
    mean = x.sum(-1, keepdims=True) / c
    variance = np.square(x - mean).sum(-1, keepdims=True) / c
    normed = (x - mean) / np.sqrt(variance + eps)  # (1)
    return g * normed + b  # (2), (3)


@fast.by_rows
def layer_norm_backward(dy, x, g, b, eps):
    """With n = (x - mean) / std, std = sqrt(variance + eps) and dn = g dy:

        dx = (dn - mean(dn) - n mean(n dn)) / std,   dg = sum of n dy,   db = sum of dy

    The mean and the variance depend on every x of the row: hence the two means, over the row, that
    take from dn what would shift all of it or stretch it. The sums run over all rows.
    """
    c = x.shape[-1]
    centred = x - x.sum(-1, keepdims=True) / c
    std = np.sqrt(np.square(centred).sum(-1, keepdims=True) / c + eps)
    normed = centred / std
    db = _rows(dy).sum(0)  # undo (3)
    dg = _rows(normed * dy).sum(0)  # undo (2)
    dnormed = g * dy
    shift = dnormed.sum(-1, keepdims=True) / c  # undo (1)
    stretch = (normed * dnormed).sum(-1, keepdims=True) / c
    dx = (dnormed - shift - normed * stretch) / std
    return dx, dg, db


# ---- GELU ---------------------------------------------------------------------------------------

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


@fast.by_rows
def gelu(x):
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), elementwise.

    GPT-2 was trained with this tanh approximation. The exact x/2 (1 + erf(x / sqrt 2)) differs from
    it by up to 5e-4, which changes every logit of a released checkpoint and hardly ever an argmax.
    """
    cube = x * x * x  # NumPy's x**3 is a power like any other, and takes many times as long
    return 0.5 * x * (1 + np.tanh(GELU_SCALE * (x + GELU_CUBIC * cube)))


@fast.by_rows
def gelu_backward(dy, x):
    """dx = dy (1/2 (1 + t) + x/2 (1 - t^2) z'), with t = tanh(z), z = sqrt(2/pi) (x + 0.044715 x^3)
    and its slope z' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)."""
    square = x * x
    t = np.tanh(GELU_SCALE * (x + GELU_CUBIC * square * x))
    slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * square)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


# ---- softmax ------------------------------------------------------------------------------------


@fast.by_rows
def softmax(x):
    """y_i = exp(x_i) / sum_j exp(x_j) over the last axis; -inf becomes exactly 0.

    The largest x of the row is subtracted first: it changes nothing in the quotient, and without it
    exp overflows at x > 88 in float32.
    """
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@fast.by_rows
def softmax_backward(dy, x, y=None):
    """dx = y (dy - sum_j y_j dy_j); `y`, what softmax(x) returned, spares computing it again."""
    y = softmax(x) if y is None else y
    return y * (dy - (y * dy).sum(-1, keepdims=True))


# ---- attention ----------------------------------------------------------------------------------


def split_qkv(x):
    """(B, T, 3C) -> three (B, T, C), views: the columns of all q, then all k, then all v."""
    c = x.shape[-1] // 3
    return x[..., :c], x[..., c : 2 * c], x[..., 2 * c :]


def split_heads(x, n_head):
    """(B, T, C) -> (B, H, T, D): head h takes columns h D to (h+1) D. A view, nothing is copied."""
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(1, 2)


def merge_heads(x):
    """(B, H, T, D) -> (B, T, C): the heads side by side again."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


# Each of the two is a rearrangement, so its backward is the other one.
def split_heads_backward(dy, x, n_head):
    """dx = dy with its heads side by side again: (B, H, T, D) -> (B, T, C)."""
    return merge_heads(dy)


def merge_heads_backward(dy, x):
    """dx = dy cut into heads again: (B, T, C) -> (B, H, T, D)."""
    return split_heads(dy, x.shape[1])


def attention_scores(q, k, pads=None):
    """scores = q k^T / sqrt(D), and -inf where a query must not look: -> (B, H, T, S).

    q (B, H, T, D), k (B, H, S, D). The T queries are the *last* T of the S positions, so the causal
    mask is counted from the lower right corner: query t sees keys 0 .. S-T+t. With a KV cache
    (S > T) a mask counted from the upper left corner is wrong.

    pads (B,) is the number of padding tokens at the left of each row. No real query sees them. A
    padding position sees itself alone: nobody reads its result, but a softmax over nothing would be
    NaN, and 0 * NaN is NaN in the rows that do count.
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(2, 3)  # (1) q is scaled, not T x S scores
    if q.shape[2] > 1 or pads is not None:  # a single query is the last and sees every key
        hidden = _hidden(scores, pads)
        scores[..., -hidden.shape[-1] :] += hidden  # (2)
    return scores


def _hidden(scores, pads):
    """What masks the scores by addition: 0 where a query may look, -inf where it must not."""
    t, s = scores.shape[2:]
    if pads is None:  # only the last T keys can lie in a query's future: (T, T) says it all
        return np.triu(np.full((t, t), -np.inf, scores.dtype), 1)
    query, key = np.arange(s - t, s)[:, None], np.arange(s)
    padding = (key < np.asarray(pads)[:, None, None]) & (key != query)  # (B, T, S)
    return np.where(padding | (key > query), -np.inf, 0.0).astype(scores.dtype)[:, None]


def attention_scores_backward(dy, q, k, pads=None):
    """dq = dy k / sqrt(D), dk = dy^T q / sqrt(D).

    The mask adds a constant: nothing to undo. Where it hides a key, dy is 0, since the softmax
    above gave that key no weight.
    """
    scale = q.shape[-1] ** -0.5
    dq = dy @ k * scale
    dk = dy.swapaxes(2, 3) @ (q * scale)
    return dq, dk


def attention_values(pattern, v):
    """z = pattern v: what each query collects. (B, H, T, S), (B, H, S, D) -> (B, H, T, D)."""
    return pattern @ v


def attention_values_backward(dy, pattern, v):
    """dpattern = dy v^T, dv = pattern^T dy."""
    return dy @ v.swapaxes(2, 3), pattern.swapaxes(2, 3) @ dy


# ---- from the last hidden state to the loss -----------------------------------------------------


def unembed(x, table):
    """logits = x table^T: (..., C), (V, C) -> (..., V). GPT-2's table is the embedding, `wte`."""
    return fast.matmul(x, table.T)


def unembed_backward(dy, x, table):
    """dx = dy table, dtable = dy^T x, where the sum runs over all rows (B, T)."""
    return fast.matmul(dy, table), fast.matmul(_rows(dy).T, _rows(x))


@fast.by_rows
def log_softmax(x):
    """y_i = x_i - log sum_j exp(x_j) over the last axis: finite where softmax itself rounds to 0.

    For scores that are only compared or summed; the loss has its own backward below.
    """
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def cross_entropy(logits, targets, mask=None):
    """loss = sum(mask nll) / sum(mask), nll = -log softmax(logits)[target], in nats per token.

    logits (B, T, V), targets (B, T) ids. The targets are the *next* tokens: shifting is done where
    the batch is made (`data.py`). mask (B, T), 1 where a target counts; None counts all. Where it
    is 0 the target may be anything, -100 for instance. Nats: log is the natural logarithm. Raises
    ValueError if the mask is 0 everywhere or holds a negative number, if a target that counts is
    not an id, and for shapes that do not fit.
    """
    weight, rows, targets = _weighted(logits, targets, mask)
    return (weight * _nll(rows, targets)).sum()


@fast.by_rows
def _nll(x, target):
    """log sum_j exp(x_j) - x_target, with the largest x subtracted: (R, V), (R, 1) -> (R, 1)."""
    shifted = x - x.max(1, keepdims=True)
    chosen = np.take_along_axis(shifted, target, 1)
    return np.log(np.exp(shifted).sum(1, keepdims=True)) - chosen


def _weighted(logits, targets, mask):
    """Weights that sum to 1 (R, 1), logits (R, V), targets (R, 1), with 0 for those masked out."""
    rows = _rows(logits)
    for name, array in (("targets", targets), ("mask", mask)):
        if array is not None and np.shape(array) != logits.shape[:-1]:
            raise ValueError(f"logits {logits.shape} do not fit {name} {np.shape(array)}")
    targets = np.asarray(targets).reshape(-1, 1)
    counts = np.ones(len(rows)) if mask is None else np.asarray(mask, np.float64).reshape(-1)
    if not (counts >= 0).all():  # NaN fails as well
        raise ValueError("the loss mask holds negative numbers or NaN: 1 counts a target, 0 not")
    if not counts.any():
        raise ValueError("the loss mask is 0 everywhere: no token is left to take the mean over")
    weight = (counts / counts.sum()).astype(logits.dtype)[:, None]
    targets = np.where(counts[:, None] != 0, targets, 0)
    if not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integers, not {targets.dtype}")
    if targets.min() < 0 or targets.max() >= rows.shape[1]:
        raise ValueError(
            f"targets lie between {targets.min()} and {targets.max()}, but the logits are for ids "
            f"0 to {rows.shape[1] - 1}: mask the targets that do not count"
        )
    return weight, rows, targets


def cross_entropy_backward(dy, logits, targets, mask=None):
    """dlogits = dy weight (softmax(logits) - onehot(target)), with weight = mask / sum(mask)."""
    weight, rows, targets = _weighted(logits, targets, mask)
    dnll = np.asarray(dy * weight, logits.dtype)
    return _nll_backward(rows, targets, dnll).reshape(logits.shape)


@fast.by_rows
def _nll_backward(x, target, dy):
    """dx = dy (softmax(x) - onehot(target)): (R, V), (R, 1), (R, 1) -> (R, V)."""
    dx = softmax(x)
    dx[np.arange(len(x)), target[:, 0]] -= 1
    return dy * dx
