"""The Transformer of 2017: an encoder reads one text, a decoder writes another. Unlike in GPT-2,

*  there are two stacks of blocks. The encoder's see the whole source: no position is hidden. The
   decoder's are GPT-2's, with a second attention in between ("cross-attention") whose queries are
   the decoder's and whose keys and values come from what the encoder made of the source;
*  the layer norm stands *behind* each sum ("post-norm"), x = LN(x + f(x)), so none stands at the
   end, and the stream itself is normalised 2 or 3 times a block;
*  positions are sinusoids, computed and not learned, and embeddings are multiplied by sqrt(C);
*  the MLP has ReLU where GPT-2 has GELU;
*  training smooths its targets, and the learning rate follows the paper's own schedule.

One table is used three times: for the source, for the target, and for the logits.

    source -> encoder -> memory              logits
                           |                   |
                           +-> k, v -> decoder blocks <- target, from its start token on

Names, shapes (in, out) and letters are GPT-2's, see `ops.py`. Dropout, which the paper trains with,
is left out. Source: Vaswani et al. 2017, "Attention Is All You Need".
"""

import math

import numpy as np

from numpygpt import ops, optim
from numpygpt.beam import beam_search
from numpygpt.model import (
    Cache,
    Config,
    append,
    check_ids,
    check_init,
    check_params,
    check_targets,
    described,
    new_cache,
)
from numpygpt.sample import check_count, check_stop

# ---- operations that GPT-2 does not have --------------------------------------------------------


def attention(q, k, v, hidden=None):
    """z = softmax(q k^T / sqrt(D) + hidden) v: (B, H, T, D), (B, H, S, D) twice -> (B, H, T, D).

    `hidden` is what a query must not see: -inf there and 0 elsewhere, of a shape that fits
    (B, H, T, S); None hides nothing. GPT-2's mask is one value of it, `later`; BERT and this
    encoder hide padding alone, `padding`.
    """
    return ops.attention_values(ops.softmax(_scores(q, k, hidden)), v)


def _scores(q, k, hidden):
    scores = (q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2)  # (B, H, T, S)
    return scores if hidden is None else scores + hidden


def attention_backward(dz, q, k, v, hidden=None):
    """(dq, dk, dv). The mask is a constant that is added: it acts through the pattern alone."""
    scores = _scores(q, k, hidden)
    pattern = ops.softmax(scores)
    dpattern, dv = ops.attention_values_backward(dz, pattern, v)
    dscores = ops.softmax_backward(dpattern, scores, pattern)
    return *ops.attention_scores_backward(dscores, q, k), dv


def later(t, s, dtype):
    """Hides from each of the last t of s positions those behind it: -inf or 0, (T, S)."""
    return np.triu(np.full((t, s), -np.inf, dtype), s - t + 1)


def padding(real, dtype):
    """Hides the keys where `real` (B, S) is 0: -inf or 0, (B, 1, 1, S). None hides nothing."""
    return None if real is None else np.where(real, 0.0, -np.inf).astype(dtype)[:, None, None]


def relu(x):
    """y = max(0, x), elementwise."""
    return np.maximum(x, 0)


def relu_backward(dy, x):
    """dx = dy where x > 0, and 0 elsewhere."""
    return dy * (x > 0)


def sinusoids(positions, width, dtype):
    """PE(pos, 2i) = sin(pos / 10000^(2i/C)), PE(pos, 2i+1) = cos of the same: (T,) -> (T, C).

    Each pair of columns turns at its own speed, so PE(pos + k) is PE(pos) turned by angles that
    depend on k alone: so, the paper supposes, a head easily learns to look k places back.
    """
    speeds = 10000.0 ** (-np.arange(0, width, 2) / width)  # (C/2,)
    angles = positions[:, None] * speeds
    table = np.stack([np.sin(angles), np.cos(angles)], axis=-1)  # (T, C/2, 2): side by side
    return table.reshape(len(positions), -1)[:, :width].astype(dtype)


def smoothed_cross_entropy(logits, targets, mask=None, smoothing=0.1):
    """Cross-entropy to a target that is worth 1 - e, and every id (the target too) e / V besides.

        loss = mean over mask of  log sum_j exp(x_j) - (1 - e) x_target - e mean(x)
             = cross_entropy + e mean over mask of (x_target - mean(x))

    e = smoothing, and x are the V logits of a position. The least loss is not 0, and exp(loss) is
    not a perplexity: the model is kept from being certain, which the paper found to cost perplexity
    and to help its translations. Raises ValueError as `ops.cross_entropy`, and for an e outside
    [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must lie between 0 and 1, not {smoothing}")
    loss = ops.cross_entropy(logits, targets, mask)  # which refuses what does not fit
    weight, chosen = _weight_and_chosen(logits, targets, mask)
    margin = np.take_along_axis(logits, chosen, -1)[..., 0] - logits.mean(-1)
    return loss + smoothing * (weight * margin).sum()


def smoothed_cross_entropy_backward(dy, logits, targets, mask=None, smoothing=0.1):
    """dlogits = that of cross_entropy + dy e weight (onehot(target) - 1/V), weight = mask / sum."""
    weight, chosen = _weight_and_chosen(logits, targets, mask)
    d = np.full_like(logits, -1 / logits.shape[-1])  # of (x_target - mean(x))
    np.put_along_axis(d, chosen, 1 - 1 / logits.shape[-1], -1)
    d *= (dy * smoothing * weight)[..., None]
    return d + ops.cross_entropy_backward(dy, logits, targets, mask)


def _weight_and_chosen(logits, targets, mask):
    """Weights (B, T) that sum to 1, and targets (B, T, 1), 0 where the weight is 0."""
    counts = np.ones(targets.shape) if mask is None else np.asarray(mask, np.float64)
    weight = (counts / counts.sum()).astype(logits.dtype)
    return weight, np.where(counts != 0, targets, 0)[..., None]


# ---- the model ----------------------------------------------------------------------------------


def parameter_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter. n_layer is the number of blocks in each stack.

    The three projections of a query, a key and a value are W^Q, W^K and W^V of the paper, for all
    heads; keys and values stand side by side, as both are made of the same input.
    """
    c, f = config.n_embd, config.n_inner
    attention = {"c_q": (c, c), "c_kv": (c, 2 * c), "c_proj": (c, c), "ln": (c,)}
    mlp = {"c_fc": (c, f), "c_proj": (f, c), "ln": (c,)}
    parts = {"encoder": [("attn", attention), ("mlp", mlp)]}
    parts["decoder"] = [("attn", attention), ("cross", attention), ("mlp", mlp)]
    shapes = {"wte.weight": (config.n_vocab, c)}
    for stack, sublayers in parts.items():
        for i in range(config.n_layer):
            for sublayer, modules in sublayers:
                for name, shape in modules.items():
                    shapes[f"{stack}.h.{i}.{sublayer}.{name}.weight"] = shape
                    shapes[f"{stack}.h.{i}.{sublayer}.{name}.bias"] = shape[-1:]
    return shapes


def init(config: Config, rng: np.random.Generator, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random parameters: matrices of variance 2 / (in + out), as in Glorot and Bengio 2010.

    The table has variance 1 / C: times sqrt(C) an embedding is then of the size of a sinusoid, and
    unembedded, a normalised row gives logits of the size of 1. The paper does not say.
    """
    check_init(rng, dtype)
    params = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            params[name] = np.full(shape, name.endswith("ln.weight"), dtype)
        else:
            variance = 1 / config.n_embd if name == "wte.weight" else 2 / sum(shape)
            params[name] = rng.standard_normal(shape, dtype) * math.sqrt(variance)
    return params


class Transformer:
    """The encoder-decoder with the given configuration and parameters (used, not copied).

    n_ctx of the configuration is the longest source or target. Raises ValueError or TypeError
    naming every parameter that does not fit.
    """

    def __init__(self, config: Config, params: dict[str, np.ndarray]):
        self.config, self.params = config, params
        self.dtype = check_params(params, parameter_shapes(config))

    def __repr__(self):
        return described(self)

    def forward(self, source, target, real=None):
        """Logits of the token after each target token, and the record that `backward` reads.

        source (B, S), target (B, T): ids; the target begins with a start token. real (B, S): 0 at
        the padding of the source. Returns logits (B, T, V) and acts.
        """
        acts = {}
        memory = self.encode(source, real, acts)
        logits, _ = Reader(self, memory, real).forward(target, acts=acts)
        return logits, acts

    def encode(self, source, real=None, acts=None):
        """What the encoder makes of the source: (B, S) -> (B, S, C)."""
        acts = {} if acts is None else acts
        source = _checked(source, "source", self.config)
        if real is not None:
            if np.shape(real) != source.shape or not np.any(real, axis=1).all():
                raise ValueError(
                    f"real must have the shape of the source, {source.shape}, and a token that is "
                    "real in every row"
                )
            acts["real"] = real
        hidden = padding(real, self.dtype)
        acts["source"] = source
        x = self.embed(source, 0)
        for i in range(self.config.n_layer):
            h = f"encoder.h.{i}."
            x = self.sublayer(x, *self.keys_values(x, h + "attn.", acts), hidden, h + "attn.", acts)
            x = self.mlp(x, h + "mlp.", acts)
        return x

    def embed(self, tokens, past):
        """sqrt(C) wte + sinusoids of the positions past, past + 1, ..."""
        c = self.config.n_embd
        x = ops.embedding(tokens, self.params["wte.weight"]) * math.sqrt(c)
        return x + sinusoids(ops.positions(past, tokens.shape[1]), c, self.dtype)

    def keys_values(self, memory, name, acts):
        """k and v, (B, H, S, D) each, of an attention that looks at `memory` (B, S, C)."""
        acts[name + "memory"] = memory
        kv = ops.linear(memory, *self._weights(name + "c_kv"))
        return (ops.split_heads(part, self.config.n_head) for part in np.split(kv, 2, axis=-1))

    def sublayer(self, x, k, v, hidden, name, acts):
        """LN(x + attention): x asks, k and v answer. Of x itself, or of another text."""
        q = ops.split_heads(ops.linear(x, *self._weights(name + "c_q")), self.config.n_head)
        z = ops.merge_heads(attention(q, k, v, hidden))
        y = ops.linear(z, *self._weights(name + "c_proj"))
        new = {"x": x, "q": q, "k": k, "v": v, "hidden": hidden, "z": z}
        acts.update({name + key: value for key, value in new.items()})
        return self._add_norm(x, y, name, acts)

    def mlp(self, x, name, acts):
        """LN(x + relu(x W1 + b1) W2 + b2)."""
        fc = ops.linear(x, *self._weights(name + "c_fc"))
        act = relu(fc)
        acts.update({name + "x": x, name + "c_fc": fc, name + "act": act})
        return self._add_norm(x, ops.linear(act, *self._weights(name + "c_proj")), name, acts)

    def _add_norm(self, x, y, name, acts):
        acts[name + "sum"] = ops.residual(x, y)
        eps = self.config.layer_norm_epsilon
        return ops.layer_norm(acts[name + "sum"], *self._weights(name + "ln"), eps)

    def _weights(self, name):
        return self.params[name + ".weight"], self.params[name + ".bias"]

    def backward(self, dlogits, acts) -> dict[str, np.ndarray]:
        """Gradients under the parameters' names, in their order; `acts` from `forward`."""
        grads = {}
        wte = self.params["wte.weight"]
        dx, dtable = ops.unembed_backward(dlogits, acts["x"], wte)
        dmemory = 0  # every block of the decoder has looked at it
        for i in reversed(range(self.config.n_layer)):
            h = f"decoder.h.{i}."
            dx = self._mlp_backward(dx, h + "mlp.", acts, grads)
            dx, dseen = self._sublayer_backward(dx, h + "cross.", acts, grads)
            dmemory = dmemory + dseen
            dx, dseen = self._sublayer_backward(dx, h + "attn.", acts, grads)
            dx = dx + dseen  # x asked and answered
        scale = math.sqrt(self.config.n_embd)
        dtable = ops.embedding_backward(dx * scale, acts["target"], wte, dtable)
        dx = dmemory
        for i in reversed(range(self.config.n_layer)):
            h = f"encoder.h.{i}."
            dx = self._mlp_backward(dx, h + "mlp.", acts, grads)
            dx, dseen = self._sublayer_backward(dx, h + "attn.", acts, grads)
            dx = dx + dseen
        grads["wte.weight"] = ops.embedding_backward(dx * scale, acts["source"], wte, dtable)
        return {name: grads[name] for name in self.params}

    def _undo(self, op, dy, name, x, grads, *extra):
        w, b = self._weights(name)
        dx, grads[name + ".weight"], grads[name + ".bias"] = op(dy, x, w, b, *extra)
        return dx

    def _sublayer_backward(self, dx, name, acts, grads):
        """`sublayer` and `keys_values` from their last line to their first: dx, and the gradient of
        what k and v were made from."""
        eps = self.config.layer_norm_epsilon
        dx = self._undo(ops.layer_norm_backward, dx, name + "ln", acts[name + "sum"], grads, eps)
        dz = self._undo(ops.linear_backward, dx, name + "c_proj", acts[name + "z"], grads)
        dz = ops.split_heads(dz, self.config.n_head)
        q, k, v = acts[name + "q"], acts[name + "k"], acts[name + "v"]
        dqkv = attention_backward(dz, q, k, v, acts[name + "hidden"])
        dq, dk, dv = (ops.merge_heads(part) for part in dqkv)
        dkv = np.concatenate([dk, dv], axis=-1)
        dseen = self._undo(ops.linear_backward, dkv, name + "c_kv", acts[name + "memory"], grads)
        dx = dx + self._undo(ops.linear_backward, dq, name + "c_q", acts[name + "x"], grads)
        return dx, dseen

    def _mlp_backward(self, dx, name, acts, grads):
        eps = self.config.layer_norm_epsilon
        dx = self._undo(ops.layer_norm_backward, dx, name + "ln", acts[name + "sum"], grads, eps)
        dy = self._undo(ops.linear_backward, dx, name + "c_proj", acts[name + "act"], grads)
        dy = relu_backward(dy, acts[name + "c_fc"])
        return dx + self._undo(ops.linear_backward, dy, name + "c_fc", acts[name + "x"], grads)

    def loss_and_grads(self, source, real, target, targets, mask=None, smoothing=0.1):
        """The smoothed loss, mean over the targets where mask (B, T) is 1, and its gradients."""
        target, targets, mask = check_targets(self.config, target, targets, mask)
        logits, acts = self.forward(source, target, real)
        loss = smoothed_cross_entropy(logits, targets, mask, smoothing)
        one = self.dtype.type(1)
        dlogits = smoothed_cross_entropy_backward(one, logits, targets, mask, smoothing)
        return loss, self.backward(dlogits, acts)

    def read(self, source, real=None) -> "Reader":
        """The decoder once it has read a source (B, S): encoded, keys and values made, once."""
        return Reader(self, self.encode(source, real), real)


class Reader:
    """A decoder that has read its source. To whoever samples, it is a GPT: `cache`, `forward`.

    What it looks at in the source never changes while it writes, so the keys and values of its
    cross-attention are computed once, here: the second cache, beside that of its own words.
    """

    def __init__(self, model: Transformer, memory, real=None):
        self.model, self.config, self.dtype = model, model.config, model.dtype
        self.hidden = padding(real, self.dtype)
        self.acts = {}  # of the projection of the memory, for a backward pass
        self.crossing = [
            tuple(model.keys_values(memory, f"decoder.h.{i}.cross.", self.acts))
            for i in range(self.config.n_layer)
        ]

    def cache(self, batch: int = 1) -> Cache:
        """An empty cache of the words it writes itself."""
        return new_cache(self.config, batch, self.dtype)

    def forward(self, tokens, cache=None, pads=None, only_last=False, acts=None):
        """Logits (B, T, V) after each of its own tokens (B, T), or the last, and the record.

        A source of one row serves any number of rows. Raises ValueError for padding at the left:
        all rows begin at their start token.
        """
        model, acts = self.model, {} if acts is None else acts
        if pads is not None:
            raise ValueError("a Transformer's targets have no padding at the left: leave out pads")
        past = cache.length if cache else 0
        tokens = _checked(tokens, "target", self.config, past)
        acts.update(self.acts, target=tokens)
        end = past + tokens.shape[1]
        future = later(tokens.shape[1], end, self.dtype)
        x = model.embed(tokens, past)
        for i, crossing in enumerate(self.crossing):
            h = f"decoder.h.{i}."
            k, v = model.keys_values(x, h + "attn.", acts)
            if cache:
                k, v = append(cache.k[i], k, past), append(cache.v[i], v, past)
            x = model.sublayer(x, k, v, future, h + "attn.", acts)
            x = model.sublayer(x, *crossing, self.hidden, h + "cross.", acts)
            x = model.mlp(x, h + "mlp.", acts)
        if cache:
            cache.length = end
        x = acts["x"] = x[:, -1:] if only_last else x
        return ops.unembed(x, model.params["wte.weight"]), acts


def _checked(tokens, what, config, past=0):
    tokens = check_ids(tokens, what, config.n_vocab)
    if past + tokens.shape[1] > config.n_ctx:
        raise ValueError(
            f"the {what} is {past + tokens.shape[1]} tokens long, but n_ctx = {config.n_ctx}"
        )
    return tokens


# ---- writing ------------------------------------------------------------------------------------


def greedy(model: Transformer, source, start: int, end: int, max_new_tokens: int, real=None):
    """At each step the likeliest id: a list of ids for each source (B, S), without `end`."""
    max_new_tokens = check_count("max_new_tokens", max_new_tokens, 0)
    (end,) = check_stop(check_count("end", end), model.config.n_vocab)
    reader = model.read(source, real)
    rows = len(np.atleast_2d(source))
    cache, tokens = reader.cache(rows), np.full((rows, 1), start)
    ids = np.zeros((rows, 0), int)
    while ids.shape[1] < max_new_tokens and not (ids == end).any(1).all():
        logits, _ = reader.forward(tokens, cache, only_last=True)
        tokens = logits[:, -1].argmax(-1)[:, None]
        ids = np.concatenate([ids, tokens], axis=1)
    return [row[: row.index(end)] if end in row else row for row in ids.tolist()]


def beam(model, source, start: int, end: int, max_new_tokens: int, num_beams=4, length_penalty=0.6):
    """The best of `beam_search` for one source (S,): its ids without `end`, and its score.

    The paper uses 4 beams and divides log p by ((5 + length) / 6)^0.6; here it is length^0.6.
    """
    if len(np.atleast_2d(source)) != 1:
        raise ValueError(f"beams write for one source, not for {len(source)}: one after another")
    found = beam_search(model.read(source), [start], max_new_tokens, num_beams, length_penalty, end)
    ids, score = found[0]
    return ids[:-1] if ids[-1] == end else ids, score


# ---- training -----------------------------------------------------------------------------------


def learning_rate(step: int, width: int, warmup: int = 4000) -> float:
    """C^-0.5 min(step^-0.5, step warmup^-1.5) for step 1, 2, ...: up in a line, then down slowly.

    Its peak, (C warmup)^-0.5, is at step = warmup. With post-norm the first steps must be small;
    GPT-2's pre-norm forgives more.
    """
    return width**-0.5 * min(step**-0.5, step * warmup**-1.5)


def train(model: Transformer, batches, steps: int, warmup: int, smoothing=0.1):
    """Train in place by the paper's recipe, yielding the loss of each step.

    batches of (source, real, target, targets, mask), see `pair_batch`. Adam with beta 0.9 and 0.98
    and eps 1e-9, no weight decay. At the end the paper averages the parameters of the last
    checkpoints: `optim.average`.
    """
    state = optim.adam_state(model.params)
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        loss, grads = model.loss_and_grads(*batch, smoothing)
        lr = learning_rate(step, model.config.n_embd, warmup)
        optim.adamw(model.params, grads, state, lr, beta1=0.9, beta2=0.98, eps=1e-9)
        yield float(loss)


def pair_batch(pairs, start: int, end: int):
    """(source ids, target ids) pairs -> source, real, target, targets, mask for `loss_and_grads`.

    The decoder is given start, y1, y2, ... and is to say y1, y2, ..., end. Padding, at the right,
    may be any id: `real` hides it in the source, and in the target nothing looks ahead to it.
    """
    s, t = (max(map(len, texts)) for texts in zip(*pairs, strict=True))
    source, real = np.full((len(pairs), s), end), np.zeros((len(pairs), s), bool)
    target = np.full((len(pairs), t + 1), end)
    targets, mask = target.copy(), np.zeros(target.shape, bool)
    for row, (x, y) in enumerate(pairs):
        source[row, : len(x)], real[row, : len(x)] = x, True
        target[row, : len(y) + 1] = [start, *y]
        targets[row, : len(y) + 1], mask[row, : len(y) + 1] = [*y, end], True
    return source, real, target, targets, mask
