"""The order in which GPT-2 performs its operations, forwards and backwards; its record; its cache.

    tokens -> x = wte + wpe
           -> x = x + attention(layer norm x), then x = x + mlp(layer norm x)    (n_layer times)
           -> layer norm -> logits = x wte^T

x, the residual stream, runs through the whole model; the blocks, h.0 to h.11 in the smallest GPT-2,
only add to it. The layer norm stands *before* attention and MLP and the sum bypasses both
("pre-norm"), unlike in the original Transformer; nothing attends to a later position and there is
no encoder.

`forward` can return its record, `acts`: a flat dict, name -> array, in the order of computation. An
entry named like parameters (`h.3.mlp.c_fc` like `h.3.mlp.c_fc.weight`) is what the operation with
those parameters returned; `resid_pre`, `resid_mid` and `resid_post` are the residual stream before,
between and after a block's two additions. `backward` reads the same record from its end to its
beginning.

What comes from `fast`, above a method or around a loop over heads, shares the work among threads
and changes numbers by rounding alone.
"""

import types
from dataclasses import dataclass

import numpy as np

from . import fast
from . import ops as reference_ops

# The entries that `backward` reads, without the block's prefix: keep="backward" keeps these.
READ_BACKWARD = frozenset(
    "tokens positions pads resid_pre ln_1 attn.q attn.k attn.v attn.z resid_mid ln_2 mlp.c_fc"
    " mlp.act resid_post ln_f".split()
)
# Queries are taken in pieces, and a piece computes no score for keys that none of its queries sees:
# for 256 tokens in pieces of 64 that saves 3/8 of the attention, and a piece fits in the
# processor's cache.
PIECE = 64  # any value is right


@dataclass(frozen=True)
class Config:
    """The numbers that fix a GPT-2's shape; `n_inner` is 4 n_embd unless given.

    Raises ValueError for sizes that are not positive integers or heads that do not divide n_embd.
    """

    n_vocab: int  # V: how many tokens there are
    n_ctx: int  # the most tokens that can be read at once
    n_embd: int  # C: width of the residual stream
    n_head: int  # H
    n_layer: int  # how many blocks there are
    n_inner: int | None = None  # F: width inside the MLP
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self):
        for name, value in check_config(self).items():
            object.__setattr__(self, name, value)


def parameter_shapes(config: Config, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every parameter, in the order of computation.

    Weights are (in, out). `tied=False` adds `lm_head.weight` (V, C), which GPT-2 itself does
    not have: its unembedding is `wte.weight`.
    """
    c, f = config.n_embd, config.n_inner
    shapes = {"wte.weight": (config.n_vocab, c), "wpe.weight": (config.n_ctx, c)}
    block = {
        "ln_1": (c,),
        "attn.c_attn": (c, 3 * c),
        "attn.c_proj": (c, c),
        "ln_2": (c,),
        "mlp.c_fc": (c, f),
        "mlp.c_proj": (f, c),
    }
    for i in range(config.n_layer):
        for name, shape in block.items():
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[-1:]
    shapes |= {"ln_f.weight": (c,), "ln_f.bias": (c,)}
    return shapes if tied else shapes | {"lm_head.weight": (config.n_vocab, c)}


def init(config: Config, rng: np.random.Generator, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random parameters as GPT-2's were before training.

    Weights are normal with standard deviation 0.02 (positions 0.01); that of the 2 n_layer
    projections that write into the residual stream is divided by sqrt(2 n_layer) (Radford et al.
    2019, 2.3). Biases are 0 and layer-norm gains 1. So the first loss is close to ln V: the model
    knows nothing. Raises TypeError for an rng that is not a NumPy Generator, and for another dtype
    than float32 and float64.
    """
    check_init(rng, dtype)
    params = {}
    for name, shape in parameter_shapes(config).items():
        if name.endswith(".bias"):
            params[name] = np.zeros(shape, dtype)
        elif ".ln_" in name or name.startswith("ln_"):
            params[name] = np.ones(shape, dtype)
        else:
            std = 0.01 if name == "wpe.weight" else 0.02
            if name.endswith("c_proj.weight"):
                std /= (2 * config.n_layer) ** 0.5
            params[name] = rng.standard_normal(shape, dtype) * std
    return params


@dataclass
class Cache:
    """The keys and values of the tokens already seen: per layer (B, H, n_ctx, D), `length` filled.

    A token sees only what is before it, so its keys and values stay as they are whatever follows.
    With them kept, one more token costs one row of work instead of the whole text again.
    `pads` (B,) is what the first piece was given; later pieces need not repeat it.
    """

    k: list
    v: list
    length: int = 0
    pads: np.ndarray | None = None


class GPT2:
    """GPT-2 with the given configuration and parameters; `ops` is the table of its operations.

    config: Config. params: dict, official name -> array, all float32 or all float64; they are used
    as they are, not copied. ops: any object with the functions of `numpygpt.ops`, so that one of
    them can be replaced. Raises ValueError or TypeError naming every parameter that does not fit.
    """

    def __init__(self, config: Config, params: dict[str, np.ndarray], ops=reference_ops):
        self.config, self.params, self.ops = config, params, ops
        self.dtype = check_params(params, parameter_shapes(config, "lm_head.weight" not in params))

    def __repr__(self):
        return described(self)

    def cache(self, batch: int = 1) -> Cache:
        """An empty KV cache for `batch` sequences; `forward(tokens, cache)` fills it."""
        return new_cache(self.config, batch, self.dtype)

    @fast.one_blas_thread()
    def forward(self, tokens, cache=None, pads=None, keep="nothing", only_last=False, given=None):
        """Logits of the next token after each token, and the record of the computation.

        tokens: integers (B, T), or (T,) for a batch of one.
        cache: from `cache(batch)`; the tokens then continue those already in it.
        pads: (B,) integers, the number of padding tokens at the left of each row. A row's logits
            after its padding equal those of the row alone.
        keep: "nothing", "backward" (what `backward` reads) or "everything".
        only_last: compute the logits of the last position alone, as sampling needs.
        given: entries of the record, name -> array, that take the place of what was computed (which
            is recorded first): somebody else's, another run's ("patched") or zeros ("ablated").
            Only its `get(name, computed)` is called, so it may use what was computed. A dict must
            have no other names.

        Returns logits (B, T, V), or (B, 1, V) with only_last, and the dict acts.
        Raises TypeError for tokens that are not integers, and ValueError for ids outside the
        vocabulary, positions past n_ctx and shapes that do not fit.
        """
        p, ops, eps = self.params, self.ops, self.config.layer_norm_epsilon
        tokens, pads = check_input(self, tokens, cache, pads, keep)
        past = cache.length if cache else 0
        positions = ops.positions(past, tokens.shape[1], pads)
        acts = Record()
        whole = keep == "everything" or given is not None  # all scores of a block in one array
        given = given or {}
        unused = set(given) if isinstance(given, dict) else set()

        def save(name, array, prefix=""):
            """Record the array if asked to; return it, or what `given` has in its place."""
            if keep == "everything" or (keep == "backward" and name in READ_BACKWARD):
                acts[prefix + name] = array
            unused.discard(prefix + name)
            return given.get(prefix + name, array)

        save("tokens", tokens)
        save("positions", np.broadcast_to(positions, tokens.shape))
        positions = given.get("positions", positions)
        if pads is not None:
            save("pads", pads)
        x = save("wte", ops.embedding(tokens, p["wte.weight"]))
        y = save("wpe", ops.embedding(positions, p["wpe.weight"]))
        x = ops.residual(x, y)
        for i in range(self.config.n_layer):
            x = self.block(x, i, cache, pads, save, whole)
        if only_last:
            x = x[:, -1:]
        x = save("ln_f", ops.layer_norm(x, p["ln_f.weight"], p["ln_f.bias"], eps))
        logits = save("logits", ops.unembed(x, self._unembedding()))
        if unused:
            raise ValueError(f"there is no {', '.join(sorted(unused))} to be given")
        if cache:
            cache.length, cache.pads = past + tokens.shape[1], pads
        return logits, acts

    def block(self, x, i, cache, pads, save, whole):
        """resid_mid = x + attention(ln_1(x)); resid_post = resid_mid + mlp(ln_2(resid_mid)).

        Block i, (B, T, C) -> (B, T, C). cache, pads, save and whole are those of `forward`.
        """
        ops, eps, h = self.ops, self.config.layer_norm_epsilon, f"h.{i}."

        def weights(name):
            return self.params[f"{h}{name}.weight"], self.params[f"{h}{name}.bias"]

        x = save("resid_pre", x, h)
        y = save("ln_1", ops.layer_norm(x, *weights("ln_1"), eps), h)
        y = save("attn.c_attn", ops.linear(y, *weights("attn.c_attn")), h)
        # (B, T, 3C) -> 3 x (B, H, T, D): all of q, then all of k, then all of v
        q, k, v = (ops.split_heads(part, self.config.n_head) for part in ops.split_qkv(y))
        if cache:
            k, v = (
                append(store[i], new, cache.length) for store, new in ((cache.k, k), (cache.v, v))
            )
        q, k, v = save("attn.q", q, h), save("attn.k", k, h), save("attn.v", v, h)
        z = self._attention(q, k, v, pads, save, h, whole)
        z = save("attn.z", z, h)
        y = save("attn.c_proj", ops.linear(z, *weights("attn.c_proj")), h)
        x = save("resid_mid", ops.residual(x, y), h)
        y = save("ln_2", ops.layer_norm(x, *weights("ln_2"), eps), h)
        y = save("mlp.c_fc", ops.linear(y, *weights("mlp.c_fc")), h)
        y = save("mlp.act", ops.gelu(y), h)
        y = save("mlp.c_proj", ops.linear(y, *weights("mlp.c_proj")), h)
        return save("resid_post", ops.residual(x, y), h)

    def _attention(self, q, k, v, pads, save, h, whole):
        """z = softmax(q k^T / sqrt(D) + mask) v, with the heads merged: -> (B, T, C)."""
        ops = self.ops
        b, n_head, t, d = q.shape
        # Seen as (B, H, T, D), but a token's heads lie side by side: merging them copies nothing.
        z = np.empty((b, t, n_head, d), q.dtype).swapaxes(1, 2)

        def attend(heads):
            for queries, keys in _pieces(t, k.shape[2], whole):
                scores = ops.attention_scores(q[:, heads, queries], k[:, heads, :keys], pads)
                scores = save("attn.scores", scores, h)
                pattern = save("attn.pattern", ops.softmax(scores), h)
                z[:, heads, queries] = ops.attention_values(pattern, v[:, heads, :keys])

        fast.share(attend, self._heads(q, k, whole))
        return ops.merge_heads(z)

    def _heads(self, q, k, whole=False):
        """Slices of heads, for threads to share. Operations that are not ours get all at once."""
        return fast.heads(q, k, whole or self.ops is not reference_ops)

    def _unembedding(self):
        return self.params.get("lm_head.weight", self.params["wte.weight"])

    @fast.one_blas_thread()
    def backward(self, dlogits, acts, only=None) -> dict[str, np.ndarray]:
        """Gradients of the loss with respect to every parameter, given that to the logits.

        dlogits (B, T, V). acts: the record of `forward(tokens, pads=..., keep="backward")`, without
        a cache. only: names of the parameters whose gradients are wanted; the others are not kept
        in memory. Returns a dict under the parameters' names, in their order. Raises ValueError
        when the record lacks what is read here, and for names that no parameter has.
        """
        p, ops, eps = self.params, self.ops, self.config.layer_norm_epsilon
        _check_record(self.config, acts, dlogits)
        wanted = _check_wanted(p, only)
        grads = {}

        def undo(op, dy, name, x, *extra):
            """Run a backward that has weight and bias: keep their gradients, return that of x."""
            w, b = p[f"{name}.weight"], p[f"{name}.bias"]
            dx, dw, db = op(dy, x, w, b, *extra)
            grads.update(_among(wanted, {f"{name}.weight": dw, f"{name}.bias": db}))
            return dx

        table = self._unembedding()
        if wanted.isdisjoint(("wte.weight", "lm_head.weight")):
            dx = ops.unembed(dlogits, table.T)  # dlogits table, without making dtable (V, C)
        else:
            dx, dtable = ops.unembed_backward(dlogits, acts["ln_f"], table)
        last = f"h.{self.config.n_layer - 1}.resid_post"
        dx = undo(ops.layer_norm_backward, dx, "ln_f", acts[last], eps)
        for i in reversed(range(self.config.n_layer)):
            dx = self._block_backward(dx, acts, f"h.{i}.", undo)
        if "wpe.weight" in wanted:
            grads["wpe.weight"] = ops.embedding_backward(dx, acts["positions"], p["wpe.weight"])
        if "wte.weight" in wanted:
            into = None if "lm_head.weight" in p else dtable  # used twice, its gradients add up
            grads["wte.weight"] = ops.embedding_backward(dx, acts["tokens"], p["wte.weight"], into)
        if "lm_head.weight" in wanted:
            grads["lm_head.weight"] = dtable
        return {name: grads[name] for name in p if name in wanted}

    def _block_backward(self, dx, acts, h, undo):
        """`block` from its last line to its first; dx is the gradient of the residual stream."""
        ops, eps = self.ops, self.config.layer_norm_epsilon
        linear, norm = ops.linear_backward, ops.layer_norm_backward
        dx, dy = ops.residual_backward(dx)
        dy = undo(linear, dy, h + "mlp.c_proj", acts[h + "mlp.act"])
        dy = ops.gelu_backward(dy, acts[h + "mlp.c_fc"])
        dy = undo(linear, dy, h + "mlp.c_fc", acts[h + "ln_2"])
        dx = dx + undo(norm, dy, h + "ln_2", acts[h + "resid_mid"], eps)
        dx, dy = ops.residual_backward(dx)
        dy = undo(linear, dy, h + "attn.c_proj", acts[h + "attn.z"])
        q, k, v = acts[h + "attn.q"], acts[h + "attn.k"], acts[h + "attn.v"]
        dy = self._attention_backward(dy, q, k, v, acts.get("pads"))
        dy = undo(linear, dy, h + "attn.c_attn", acts[h + "ln_1"])
        return dx + undo(norm, dy, h + "ln_1", acts[h + "resid_pre"], eps)

    def _attention_backward(self, dz, q, k, v, pads):
        """Gradient of c_attn's output, (B, T, 3C). The pattern of a piece is computed again here:
        kept, it would be the largest part of the record, (B, H, T, S) in every block."""
        ops = self.ops
        dz = ops.split_heads(dz, self.config.n_head)
        b, n_head, t, d = q.shape
        dqkv = np.zeros((b, t, 3 * n_head * d), q.dtype)
        dq, dk, dv = (ops.split_heads(part, n_head) for part in np.split(dqkv, 3, axis=-1))  # views

        def attend_backward(heads):
            for queries, keys in _pieces(t, k.shape[2]):
                q_, k_, v_ = q[:, heads, queries], k[:, heads, :keys], v[:, heads, :keys]
                scores = ops.attention_scores(q_, k_, pads)
                pattern = ops.softmax(scores)
                dpattern, dv_ = ops.attention_values_backward(dz[:, heads, queries], pattern, v_)
                dscores = ops.softmax_backward(dpattern, scores, pattern)
                dq[:, heads, queries], dk_ = ops.attention_scores_backward(dscores, q_, k_, pads)
                dk[:, heads, :keys] += dk_
                dv[:, heads, :keys] += dv_

        fast.share(attend_backward, self._heads(q, k))
        return dqkv

    @fast.one_blas_thread()
    def loss_and_grads(self, tokens, targets, mask=None, only=None):
        """Mean cross-entropy in nats over the tokens where mask is 1, and its gradients.

        tokens, targets (B, T): the target of a position is the token that follows it. mask (B, T)
        or None for all. only: as in `backward`. Raises what `forward` raises, and ValueError for
        targets that do not fit.
        """
        tokens, targets, mask = check_targets(self.config, tokens, targets, mask)
        logits, acts = self.forward(tokens, keep="backward")
        loss = self.ops.cross_entropy(logits, targets, mask)
        dloss = self.dtype.type(1)  # where backward starts: the loss grows with itself one to one
        dlogits = self.ops.cross_entropy_backward(dloss, logits, targets, mask)
        del logits  # (B, T, V) is the largest array there is
        return loss, self.backward(dlogits, acts, only)


def _pieces(t, s, whole=False):
    """(slice of queries, number of keys the last of them sees) for t queries, the last of s.

    whole: one piece, so that the record gets all scores in one array.
    """
    step = t if whole else PIECE
    for start in range(0, t, step):
        stop = min(start + step, t)
        yield slice(start, stop), s - t + stop


# ---- the record and the cache -------------------------------------------------------------------


class Record(dict):
    """What a forward pass computed: name -> array, in the order of computation. Shown as a table of
    names, shapes and ranges, as the numbers themselves would fill the screen for minutes."""

    def __repr__(self):
        rows = [("name", "shape", "dtype", "smallest", "mean", "largest")]
        for name, array in self.items():
            array = np.asarray(array)
            numbers = [f"{of(array):.4g}" for of in (np.min, np.mean, np.max)]
            rows.append((name, str(array.shape), str(array.dtype), *numbers))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"a record of {len(self)} arrays, in the order of computation"]
        for row in rows:
            words = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(words + numbers))
        return "\n".join(lines)


def _cache_shapes(config, batch):
    """(B, H, n_ctx, D) for every layer."""
    shape = batch, config.n_head, config.n_ctx, config.n_embd // config.n_head
    return [shape] * config.n_layer


def described(model) -> str:
    """What a notebook shows of a model: its class, sizes and number of parameters."""
    c, size = model.config, sum(p.size for p in model.params.values())
    return (
        f"{type(model).__name__}({c.n_layer} layers, {c.n_embd} wide, {c.n_head} heads, "
        f"{c.n_ctx} positions, {c.n_vocab:,} tokens: {size:,} parameters in {model.dtype})"
    )


def new_cache(config, batch, dtype) -> Cache:
    """A cache without a token in it."""
    shapes = _cache_shapes(config, batch)
    # np.empty: the operating system gives memory only as positions are written
    k = [np.empty(shape, dtype) for shape in shapes]
    v = [np.empty(shape, dtype) for shape in shapes]
    return Cache(k, v)


def append(store, new, length):
    """Write new keys or values (B, H, T, D) behind `length` older ones; return all, as a view."""
    end = length + new.shape[2]
    store[:, :, length:end] = new
    return store[:, :, :end]


def with_ops(model: GPT2, **replaced) -> GPT2:
    """The same model with some operations replaced: `with_ops(model, gelu=mine)`.

    Raises ValueError for a name that is not an operation.
    """
    unknown = [name for name in replaced if not hasattr(model.ops, name)]
    if unknown:
        raise ValueError(f"no such operation: {', '.join(unknown)}")
    table = {name: op for name, op in vars(model.ops).items() if not name.startswith("_")}
    return GPT2(model.config, model.params, types.SimpleNamespace(**table | replaced))


def as_dtype(model: GPT2, dtype) -> GPT2:
    """The same model with its parameters as float32 or float64."""
    params = {name: value.astype(dtype) for name, value in model.params.items()}
    return GPT2(model.config, params, model.ops)


# ---- what is refused, and in which words --------------------------------------------------------


def check_init(rng, dtype):
    """Raises TypeError for what random parameters cannot be drawn with."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"rng must be a NumPy Generator such as np.random.default_rng(7), not {rng!r}"
        )
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"parameters must be float32 or float64, not {np.dtype(dtype)}")


def check_config(config) -> dict:
    """What a configuration says as Python numbers, or an error with what is wrong."""
    values = dict(vars(config))
    for name in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "n_inner"):
        if name == "n_inner" and values[name] is None:
            values[name] = 4 * values["n_embd"]
        size = values[name]
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"{name} must be a positive integer, not {size!r}")
        values[name] = int(size)
    if values["n_embd"] % values["n_head"]:
        raise ValueError(
            f"n_embd = {config.n_embd} cannot be divided among n_head = {config.n_head} heads"
        )
    eps = config.layer_norm_epsilon
    is_number = isinstance(eps, int | float | np.floating) and not isinstance(eps, bool)
    if not is_number or not 0 <= eps < 1:
        raise ValueError(f"layer_norm_epsilon must be a number in [0, 1), not {eps!r}")
    return values | {"layer_norm_epsilon": float(eps)}


def check_params(params, shapes):
    """The common dtype of the parameters, or an error that lists every name and shape at fault."""
    faults = [f"{name} is missing" for name in shapes if name not in params]
    faults += [f"{name} is unknown" for name in params if name not in shapes]
    faults += [
        f"{name} has shape {tuple(np.shape(params[name]))} instead of {shape}"
        for name, shape in shapes.items()
        if name in params and np.shape(params[name]) != shape
    ]
    if faults:
        raise ValueError("parameters do not fit the configuration: " + "; ".join(faults))
    others = [name for name, value in params.items() if not isinstance(value, np.ndarray)]
    if others:
        kind = type(params[others[0]]).__name__
        raise TypeError(f"parameters must be NumPy arrays, but {others[0]} is a {kind}")
    dtypes = sorted(map(str, {np.asarray(value).dtype for value in params.values()}))
    if dtypes not in (["float32"], ["float64"]):
        raise TypeError(f"parameters must be all float32 or all float64, not {', '.join(dtypes)}")
    return np.dtype(dtypes[0])


def check_ids(ids, what, n_vocab):
    """ids as an array (B, T), or an error that says what is not an id of the vocabulary."""
    try:
        ids = np.asarray(ids)
    except ValueError:
        raise ValueError(
            f"{what} must be rows of one length: fill up at the left and give pads"
        ) from None
    if ids.ndim == 1:
        ids = ids[None]
    if ids.ndim != 2 or ids.size == 0:
        raise ValueError(f"{what} must be (B, T) with at least one token, not of shape {ids.shape}")
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{what} must be integers, not {ids.dtype}")
    if ids.min() < 0 or ids.max() >= n_vocab:
        row, column = np.argwhere((ids < 0) | (ids >= n_vocab))[0]
        raise ValueError(
            f"{what} hold the id {ids[row, column]} in row {row}, column {column}: "
            f"the vocabulary has ids 0 to {n_vocab - 1}"
        )
    return ids


def check_input(model, tokens, cache, pads, keep):
    """tokens (B, T) and pads (B,) or None as arrays, or an error with what `forward` refuses."""
    config = model.config
    if keep not in ("nothing", "backward", "everything"):
        raise ValueError(f'keep must be "nothing", "backward" or "everything", not {keep!r}')
    tokens = check_ids(tokens, "tokens", config.n_vocab)
    rows, length = tokens.shape
    past = 0
    if cache:
        past = cache.length
        if cache.k[0].shape[0] != rows:
            raise ValueError(f"the cache holds {cache.k[0].shape[0]} rows, but tokens have {rows}")
        same = [k.shape for k in cache.k] == _cache_shapes(config, rows)
        if not same or cache.k[0].dtype != model.dtype:
            raise ValueError("the cache is another model's: make it with this one's cache()")
        if keep == "backward":
            raise ValueError(
                "a backward pass needs the whole sequence in one forward: leave out cache"
            )
    if past + length > config.n_ctx:
        raise ValueError(
            f"{past + length} positions are asked for, but the model has n_ctx = {config.n_ctx}: "
            "shorten the text or slide the window"
        )
    return tokens, _check_pads(config, pads, cache, past, rows)


def _check_pads(config, pads, cache, past, rows):
    if pads is None:
        return cache.pads if cache else None
    pads = np.asarray(pads)
    if not np.issubdtype(pads.dtype, np.integer) or pads.shape != (rows,):
        raise ValueError(
            f"pads must be {rows} integers, one a row, not {pads.dtype} of shape {pads.shape}"
        )
    if pads.min() < 0 or pads.max() >= config.n_ctx:
        raise ValueError(f"pads must lie between 0 and n_ctx - 1 = {config.n_ctx - 1}")
    before = None if not past else np.zeros(rows, int) if cache.pads is None else cache.pads
    if before is not None and not np.array_equal(before, pads):
        raise ValueError(f"the cache was begun with pads {before.tolist()}, not {pads.tolist()}")
    return pads.astype(np.int64)  # a copy, as the cache remembers it


def check_targets(config, tokens, targets, mask):
    """All three as (B, T), or an error with what `loss_and_grads` refuses."""
    tokens = np.atleast_2d(tokens)
    targets = np.atleast_2d(targets)
    mask = None if mask is None else np.atleast_2d(mask)
    for what, array in (("targets", targets), ("mask", mask)):
        if array is not None and array.shape != tokens.shape:
            raise ValueError(f"{what} have shape {array.shape}, but tokens have {tokens.shape}")
    counted = targets if mask is None else np.where(mask != 0, targets, 0)
    check_ids(counted, "targets", config.n_vocab)
    return tokens, targets, mask


def _check_wanted(params, only):
    """The names whose gradients are wanted, as a set."""
    if only is None:
        return set(params)
    if unknown := sorted(set(only) - params.keys()):
        raise ValueError(f"this model has no parameters {', '.join(unknown)}")
    return set(only)


def _among(wanted, grads):
    return {name: gradient for name, gradient in grads.items() if name in wanted}


def _check_record(config, acts, dlogits):
    if "ln_f" not in acts or f"h.{config.n_layer - 1}.attn.z" not in acts:
        raise ValueError('the record is incomplete: run forward with keep="backward"')
    if acts["h.0.attn.k"].shape[2] != acts["tokens"].shape[1]:
        raise ValueError(
            "the record was made with a cache: backward needs the whole sequence in one"
        )
    if acts["ln_f"].shape[1] != acts["tokens"].shape[1]:
        raise ValueError("the record was made with only_last: backward needs every position")
    expected = (*acts["tokens"].shape, config.n_vocab)
    if np.shape(dlogits) != expected:
        raise ValueError(f"dlogits have shape {np.shape(dlogits)} instead of {expected}")


# ---- the released sizes --------------------------------------------------------------------------

# By the name that counts their parameters. At the end, as making one calls check_config above.
SIZES = {
    "124M": Config(50257, 1024, 768, 12, 12),
    "355M": Config(50257, 1024, 1024, 16, 24),
    "774M": Config(50257, 1024, 1280, 20, 36),
    "1558M": Config(50257, 1024, 1600, 25, 48),
}
