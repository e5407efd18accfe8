"""The operations GPT-2 is made of, each written twice: forward, then backward.

A forward takes arrays and returns one new array. Its backward stands under it, takes `dy` (the
gradient of the loss with respect to what the forward returned) and the same arrays, and returns one
gradient per array, undoing the forward's numbered steps in reverse. Nothing is changed in place for
the caller (but `into` of `embedding_backward`, where that is asked for) and nothing is remembered
between calls. Three have no backward: `positions`, which are integers, `split_qkv`, whose backward
is to lay three gradients side by side, and `log_softmax`, through which nothing is trained.

Letters, used everywhere in this package:

    B  sequences in the batch          C  width of the residual stream, n_embd
    T  tokens of this call, "queries"  H  heads          D  width of one head, C = H D
    S  tokens they can see, "keys"     F  width inside the MLP, n_inner
    V  tokens in the vocabulary

dtype is kept: float32 in, float32 out; float64 in, float64 out. Constants are Python floats, since
a NumPy scalar such as `np.sqrt(2 / np.pi)` is a float64 that would turn the whole model into one.

Sources: Radford et al. 2019 (GPT-2) and its released `src/model.py`; Vaswani et al. 2017
(attention); Ba et al. 2016 (layer norm); Hendrycks and Gimpel 2016 (GELU).
"""

import math

import numpy as np

# Elementwise work goes over an array several times. Doing all the passes on one tile of rows before
# the next keeps the tile in the processor's L2 cache: 2**17 float32 numbers are 512 kB.
TILE = 2**17
# Products of so few rows are taken row by row, see `_product` and `unembed`.
FEW_ROWS, FEW_LOGITS, BLOCK = 3, 8, 1024


def _tiles(rows: int, width: int):
    """Slices that cut `rows` rows of `width` numbers into tiles of at most TILE numbers."""
    step = max(1, TILE // width)
    return (slice(start, start + step) for start in range(0, rows, step))


def _rows(x):
    """x as a matrix whose rows are its last axis: (..., N) -> (R, N)."""
    return x.reshape(-1, x.shape[-1])


# ---- embedding ----------------------------------------------------------------------------------


def embedding(ids, table):
    """Row `ids[...]` of the table: (B, T) ids, (V, C) table -> (B, T, C)."""
    return table[ids]


def embedding_backward(dy, ids, table, into=None):
    """Each row of the table collects the gradients of all the places that used it.

    into: a gradient that the table has already; these are added to it, in place. GPT-2's table is
    used twice, and a second gradient of it would be 154 MB of zeros with a few rows in it.
    """
    order = np.argsort(ids, axis=None, kind="stable")  # equal ids become neighbours ...
    used, starts = np.unique(ids.reshape(-1)[order], return_index=True)
    dtable = np.zeros(table.shape, table.dtype) if into is None else into
    dtable[used] += np.add.reduceat(_rows(dy)[order], starts, axis=0)  # ... and are added in runs
    return dtable


def positions(past, t, pads=None):
    """Position of each of T tokens behind `past` cached ones: past, past + 1, ...: (T,).

    With pads (B,), padding tokens at the left, the first real token of every row is at position 0,
    and the padding is put there too: (B, T). Integers have no gradient, so there is no backward.
    """
    count = np.arange(past, past + t)
    return count if pads is None else np.maximum(count - np.asarray(pads)[:, None], 0)


# ---- residual stream ----------------------------------------------------------------------------


def residual(x, y):
    """x + y: what a block computed is *added* to the stream; the stream itself passes unchanged."""
    return x + y


def residual_backward(dy, x=None, y=None):
    return dy, dy  # whatever x and y were


# ---- linear -------------------------------------------------------------------------------------


def linear(x, w, b):
    """y = x w + b with x (..., N), w (N, M), b (M,) -> (..., M).

    The weights stand (in, out), as OpenAI published them ("Conv1D"): there is no transpose here,
    and a checkpoint from `torch.nn.Linear` would need one.
    """
    y = _product(_rows(x), w)  # (1) one product for all rows: a batch of small ones is slower
    y += b  # (2)
    return y.reshape(*x.shape[:-1], -1)


def _product(x, w):
    """x @ w, no more, for x (R, N), w (N, M); two or three rows one after the other."""
    if not 1 < len(x) <= FEW_ROWS:
        return x @ w
    # BLAS multiplies one row at the speed at which memory gives w. From two rows on it first copies
    # w into an order of its own, which costs more than the rows save; row by row, w is in the
    # processor's cache when the second needs it.
    return np.concatenate([x[i : i + 1] @ w for i in range(len(x))])


def linear_backward(dy, x, w, b):
    dy, x_rows = _rows(dy), _rows(x)
    db = dy.sum(0)  # undo (2)  y += b
    dw = x_rows.T @ dy  # undo (1)  y = x @ w
    dx = dy @ w.T
    return dx.reshape(x.shape), dw, db


# ---- layer norm ---------------------------------------------------------------------------------


def layer_norm(x, g, b, eps):
    """y = g (x - mean) / sqrt(var + eps) + b over the last axis: (..., C) -> (..., C).

    The variance is the biased one (divided by C, not C - 1) and eps stands inside the root.
    """
    y = np.empty_like(x, order="C")
    x_rows, y_rows = _rows(x), _rows(y)
    for tile in _tiles(*x_rows.shape):
        normed, _ = _normalise(x_rows[tile], eps)  # (1)
        normed *= g  # (2)
        normed += b  # (3)
        y_rows[tile] = normed
    return y


def _normalise(x, eps):
    """(x - mean) / sqrt(var + eps) and 1 / sqrt(var + eps), rows of x alone."""
    c = x.shape[-1]  # sum / c: `mean` is a slower call, and decoding makes 50 of them a token
    normed = x - x.sum(-1, keepdims=True) / c
    scale = 1 / np.sqrt(np.square(normed).sum(-1, keepdims=True) / c + eps)
    normed *= scale
    return normed, scale


def layer_norm_backward(dy, x, g, b, eps):
    dx = np.empty_like(x, order="C")
    dg, db = np.zeros_like(g), np.zeros_like(b)
    dy_rows, x_rows, dx_rows = _rows(dy), _rows(x), _rows(dx)
    for tile in _tiles(*x_rows.shape):
        d = dy_rows[tile]
        normed, scale = _normalise(x_rows[tile], eps)
        db += d.sum(0)  # undo (3)  normed += b
        dg += (d * normed).sum(0)  # undo (2)  normed *= g
        d = d * g
        # undo (1): the mean and the variance depend on every x of the row, hence the two means
        along = (d * normed).mean(-1, keepdims=True)
        d -= d.mean(-1, keepdims=True)
        normed *= along
        d -= normed
        d *= scale
        dx_rows[tile] = d
    return dx, dg, db


# ---- GELU ---------------------------------------------------------------------------------------

GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


def gelu(x):
    """y = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), elementwise.

    GPT-2 was trained with this tanh approximation. The exact x/2 (1 + erf(x / sqrt 2)) differs from
    it by up to 5e-4, which changes every logit of a released checkpoint and hardly ever an argmax.
    """
    y = np.empty_like(x, order="C")
    x_rows, y_rows = _rows(x), _rows(y)
    for tile in _tiles(*x_rows.shape):
        out = _gelu_tanh(x_rows[tile])  # (1) tanh(...)
        out += 1  # (2) x/2 (1 + ...)
        out *= 0.5
        np.multiply(out, x_rows[tile], out=y_rows[tile])
    return y


def _gelu_tanh(x):
    """tanh(sqrt(2/pi) x (1 + 0.044715 x^2)); x * x because NumPy's x**3 is a slow power."""
    t = x * x
    t *= GELU_SCALE * GELU_CUBIC
    t += GELU_SCALE
    t *= x
    return np.tanh(t, out=t)


def gelu_backward(dy, x):
    dx = np.empty_like(x, order="C")
    dy_rows, x_rows, dx_rows = _rows(dy), _rows(x), _rows(dx)
    for tile in _tiles(*x_rows.shape):
        x_tile = x_rows[tile]
        t = _gelu_tanh(x_tile)
        # undo (1): dt/dx = (1 - t^2) sqrt(2/pi) (1 + 3 0.044715 x^2), times x/2 from (2)
        slope = x_tile * x_tile
        slope *= 1.5 * GELU_SCALE * GELU_CUBIC
        slope += 0.5 * GELU_SCALE
        slope *= x_tile
        slope *= 1 - t * t
        # undo (2): the other factor, (1 + t) / 2
        t += 1
        t *= 0.5
        slope += t
        np.multiply(slope, dy_rows[tile], out=dx_rows[tile])
    return dx


# ---- softmax ------------------------------------------------------------------------------------


def softmax(x):
    """y_i = exp(x_i) / sum_j exp(x_j) over the last axis; -inf becomes exactly 0.

    The largest x of the row is subtracted first: it changes nothing in the quotient, and without it
    exp overflows at x > 88 in float32.
    """
    y = np.empty_like(x, order="C")
    x_rows, y_rows = _rows(x), _rows(y)
    for tile in _tiles(*x_rows.shape):
        out = y_rows[tile]
        np.subtract(x_rows[tile], x_rows[tile].max(-1, keepdims=True), out=out)
        np.exp(out, out=out)
        out /= out.sum(-1, keepdims=True)
    return y


def softmax_backward(dy, x, y=None):
    """dx = y (dy - sum_j y_j dy_j); `y`, what softmax(x) returned, spares computing it again."""
    y_rows = _rows(softmax(x) if y is None else y)
    dx = np.empty_like(x, order="C")
    dy_rows, dx_rows = _rows(dy), _rows(dx)
    for tile in _tiles(*y_rows.shape):
        out = np.multiply(y_rows[tile], dy_rows[tile], out=dx_rows[tile])
        out -= y_rows[tile] * out.sum(-1, keepdims=True)
    return dx


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
    return merge_heads(dy)


def merge_heads_backward(dy, x):
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
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (1) scaled while it is T x D
    if q.shape[2] > 1 or pads is not None:  # a single query is the last and sees every key
        hidden = _hidden(scores, pads)
        scores[..., -hidden.shape[-1] :] += hidden  # (2)
    return scores


def _hidden(scores, pads):
    """What masks the scores by addition: 0 where a query may look, -inf where it must not."""
    t, s = scores.shape[-2:]
    if pads is None:  # only the last T keys can lie in a query's future: (T, T) says it all
        return np.triu(np.full((t, t), -np.inf, scores.dtype), 1)
    query, key = np.arange(s - t, s)[:, None], np.arange(s)
    padding = (key < np.asarray(pads)[:, None, None]) & (key != query)  # (B, T, S)
    return np.where(padding | (key > query), -np.inf, 0.0).astype(scores.dtype)[:, None]


def attention_scores_backward(dy, q, k, pads=None):
    """`dy` is 0 where the mask is, since the softmax above gave those keys no weight."""
    scale = q.shape[-1] ** -0.5  # (2) adds a constant: nothing to undo
    dq = dy @ k  # undo (1)  scores = (q * scale) @ k.T
    dq *= scale
    dk = dy.swapaxes(-1, -2) @ (q * scale)
    return dq, dk


def attention_values(pattern, v):
    """z = pattern v: what each query collects. (B, H, T, S), (B, H, S, D) -> (B, H, T, D)."""
    return pattern @ v


def attention_values_backward(dy, pattern, v):
    return dy @ v.swapaxes(-1, -2), pattern.swapaxes(-1, -2) @ dy


# ---- from the last hidden state to the loss -----------------------------------------------------


def unembed(x, table):
    """logits = x table^T: (..., C), (V, C) -> (..., V). GPT-2's table is the embedding, `wte`."""
    x_rows = _rows(x)
    if not 1 < len(x_rows) <= FEW_LOGITS:
        return (x_rows @ table.T).reshape(*x.shape[:-1], -1)
    # Row by row for the same reason as in `_product`, and in blocks of the table: all of it is too
    # large to be still in cache when the second row needs it.
    y = np.empty((len(x_rows), len(table)), np.result_type(x, table))
    for start in range(0, len(table), BLOCK):
        block = slice(start, start + BLOCK)
        for i in range(len(x_rows)):
            np.matmul(x_rows[i : i + 1], table[block].T, out=y[i : i + 1, block])
    return y.reshape(*x.shape[:-1], -1)


def unembed_backward(dy, x, table):
    return (_rows(dy) @ table).reshape(x.shape), _rows(dy).T @ _rows(x)


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
    is 0 the target may be anything, -100 for instance. Raises ValueError if it is 0 everywhere.
    """
    weight, rows, targets = _weighted(logits, targets, mask)
    nll = np.empty(len(rows), logits.dtype)
    for tile in _tiles(*rows.shape):
        x = rows[tile]
        shifted = x - x.max(-1, keepdims=True)  # (1) log softmax
        chosen = np.take_along_axis(shifted, targets[tile], 1)[:, 0]  # (2)
        nll[tile] = np.log(np.exp(shifted, out=shifted).sum(-1)) - chosen
    return (nll * weight).sum()  # (3)


def _weighted(logits, targets, mask):
    """Weights that sum to 1 (R,), logits (R, V), targets (R, 1) with id 0 under the mask."""
    rows = _rows(logits)
    targets = np.asarray(targets).reshape(-1, 1)
    counts = np.ones(len(rows)) if mask is None else np.asarray(mask, np.float64).reshape(-1)
    if not counts.any():
        raise ValueError("the loss mask is 0 everywhere: no token is left to take the mean over")
    weight = (counts / counts.sum()).astype(logits.dtype)
    targets = np.where(counts[:, None] != 0, targets, 0)
    if targets.min() < 0 or targets.max() >= rows.shape[1]:
        raise ValueError(
            f"targets lie between {targets.min()} and {targets.max()}, but the logits are for ids "
            f"0 to {rows.shape[1] - 1}: mask the targets that do not count"
        )
    return weight, rows, targets


def cross_entropy_backward(dy, logits, targets, mask=None):
    """dlogits = dy weight (softmax(logits) - onehot(target)); the ids and the mask have none."""
    weight, rows, targets = _weighted(logits, targets, mask)
    dlogits = np.empty_like(rows, order="C")
    for tile in _tiles(*rows.shape):
        d = softmax(rows[tile])  # undo (1) and (2)
        d[np.arange(len(d)), targets[tile, 0]] -= 1
        np.multiply(d, (dy * weight[tile])[:, None], out=dlogits[tile])  # undo (3)
    return dlogits.reshape(logits.shape)
