"""Seeing inside with numbers: of a configuration, of a record, and of runs with something changed.

    configuration   parameters, FLOPs, bytes of the cache
    record          logit lens, what each part adds to a logit, where heads look
    changed runs    an entry taken from another run (patching), heads that write nothing (ablation)

What a record shows is what happened; that the model *needed* it, only a changed run can show.
"""

import math
import types
from typing import NamedTuple

import numpy as np

from numpygpt import evaluate, ops
from numpygpt.family import bert, gpt1, gpt3, transformer
from numpygpt.model import GPT2, SIZES, Config, check_ids, parameter_shapes
from numpygpt.sample import check_count, check_logits, check_rng

# ---- of a configuration -------------------------------------------------------------------------


def parameter_counts(config: Config, tied: bool = True) -> dict[str, int]:
    """Parameters by part: token and position embeddings, attention, MLP, layer norms, lm_head."""
    parts = dict.fromkeys(("wte", "wpe", "attn", "mlp", "ln", "lm_head"), 0)
    for name, shape in parameter_shapes(config, tied).items():
        part = next(part for part in parts if f".{part}" in f".{name}")
        parts[part] += int(np.prod(shape))
    return parts


def flops_per_token(config: Config, keys: int) -> dict[str, int]:
    """Floating-point operations of the forward pass for one token that sees `keys` positions.

    A matrix product costs 2 per weight: one multiplication, one addition.

        attn, mlp, unembed   2 x their matrices            C (4 C), 2 C F, C V
        scores and values    2 x 2 keys C, per layer       q k^T and pattern v

    Biases, layer norms, GELU and softmax, under 1 % at GPT-2's sizes, are left out. The backward
    pass costs twice as much again, so training costs three times this.
    """
    c, f = config.n_embd, config.n_inner
    keys = keys.item() if isinstance(keys, np.generic) else keys  # a small integer would overflow
    return {
        "attn": config.n_layer * 2 * 4 * c * c,
        "scores and values": config.n_layer * 4 * keys * c,
        "mlp": config.n_layer * 2 * 2 * c * f,
        "unembed": 2 * c * config.n_vocab,
    }


def attention_overtakes(config: Config, causal: bool = False) -> float:
    """The length n from which on attention's own products cost more than those of the matrices.

    For each token that sees n keys, in each layer (see `flops_per_token`):

        n² d    4 n C              q k^T and pattern v
        n d²    8 C² + 4 C F       c_attn, c_proj, c_fc, mlp.c_proj: 24 C² where F = 4 C

    So the first is the larger from n = 2 C + F on, which is 6 C, or 4,608 tokens for 124M: below
    that the often quoted O(n² d) leaves out the larger part. causal: where no product is made for
    keys that the mask hides, as here, a token sees n / 2 of them on average, and it is twice that.
    """
    flops = flops_per_token(config, 1)
    keys = (flops["attn"] + flops["mlp"]) / flops["scores and values"]
    return 2 * keys if causal else keys


def cache_bytes_per_token(config: Config, itemsize: int = 4) -> int:
    """Bytes that one position takes in the KV cache: a key and a value of width C per layer."""
    return 2 * config.n_layer * config.n_embd * itemsize


def training_flops(config: Config, tokens: float, keys: int = 0) -> float:
    """Of training on that many tokens: the forward pass three times, see `flops_per_token`.

    keys: how many positions a token sees on average. With 0, scores and values are left out, as
    the GPT-3 paper does (Brown et al. 2020, appendix D): 6 FLOPs for each weight and token.
    """
    return 3 * sum(flops_per_token(config, keys).values()) * tokens


# What the names of the whole family say of a parameter's part, the first that fits.
PARTS = {
    "heads": ("cls.", "bert.pooler", "lm_head"),
    "layer norms": (".ln", "ln_", "LayerNorm"),
    "attention": (".attn.", ".cross.", ".attention."),
    "MLP": (".mlp.", ".intermediate.", ".output.dense"),
    "embeddings": ("wte", "wpe", "_embeddings"),
}


def parts(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Parameters by part, of GPT-2 or a relative, from names and shapes.

    Raises KeyError for a name that fits no part.
    """
    counts = dict.fromkeys(reversed(PARTS), 0)
    for name, shape in shapes.items():
        part = next((p for p, signs in PARTS.items() if any(s in name for s in signs)), name)
        counts[part] += math.prod(shape)
    return counts


class Relative(NamedTuple):
    """A model of the family: `printed` is the number of parameters its authors gave, or None."""

    name: str
    config: Config
    parts: dict[str, int]
    printed: str | None
    flops: int  # of the forward pass, one token that sees a full context
    cache: int  # bytes at full context, float32
    notes: tuple[str, ...] = ()

    @property
    def count(self):
        """How many parameters there are, from names and shapes."""
        return sum(self.parts.values())

    @property
    def rounded(self):
        """The count in the unit and with the digits of `printed`."""
        digits = len(self.printed.partition(".")[2].rstrip("MB"))
        unit = {"M": 1e6, "B": 1e9}[self.printed[-1]]
        return f"{self.count / unit:.{digits}f}{self.printed[-1]}"

    @property
    def agrees(self):
        """Whether the authors' number is this one, rounded as they did; true if they gave none."""
        return self.printed is None or self.rounded == self.printed


GPT2_PRINTED = {"124M": "117M", "355M": "345M", "774M": "762M", "1558M": "1542M"}


def family() -> list[Relative]:
    """GPT-2 and its relatives in the sizes of their papers, the oldest first."""
    rows = []
    for name, width, n_head, printed in (("base", 512, 8, "65M"), ("big", 1024, 16, "213M")):
        # The paper gives no longest text; 37,000 is its English-German vocabulary.
        config = Config(37_000, 512, width, n_head, 6)
        shapes = transformer.parameter_shapes(config)
        flops = _transformer_flops(config)
        cache = 2 * config.n_ctx * cache_bytes_per_token(config)
        rows.append(Relative(f"Transformer {name}", config, parts(shapes), printed, flops, cache))
    config = Config(40_478, 512, 768, 12, 12)
    rows.append(_gpt("GPT-1", config, None, gpt1.parameter_shapes(config)))
    sizes = (("base", 768, 12, 12, "110M"), ("large", 1024, 16, 24, "340M"))
    for name, width, n_head, n_layer, printed in sizes:
        config = Config(30_522, 512, width, n_head, n_layer, layer_norm_epsilon=1e-12)
        flops = sum(flops_per_token(config, config.n_ctx).values()) + 2 * width**2  # of its head
        shapes = bert.parameter_shapes(config)
        rows.append(Relative(f"BERT {name}", config, parts(shapes), printed, flops, 0))
    for name, config in SIZES.items():
        rows.append(_gpt(f"GPT-2 {name}", config, GPT2_PRINTED[name], parameter_shapes(config)))
    for row in gpt3.TABLE:
        config = gpt3.config(row)
        built = _gpt(f"GPT-3 {row.name}", config, row.printed, parameter_shapes(config))
        rows.append(built._replace(notes=gpt3.notes(row)))
    return rows


def _gpt(name, config, printed, shapes):
    flops = sum(flops_per_token(config, config.n_ctx).values())
    cache = config.n_ctx * cache_bytes_per_token(config)
    return Relative(name, config, parts(shapes), printed, flops, cache)


def _transformer_flops(config):
    """One source token read and one target token written, both at the end of n_ctx.

    The encoder's block is a GPT-2's. The decoder's has a second attention, as costly as the first:
    its keys and values are made of the source token, its queries of the target token.
    """
    cost = flops_per_token(config, config.n_ctx)
    attention, mlp = cost["attn"] + cost["scores and values"], cost["mlp"]
    return (attention + mlp) + (2 * attention + mlp + cost["unembed"])


# ---- of a record --------------------------------------------------------------------------------


def logit_lens(model, acts) -> dict[str, np.ndarray]:
    """What the model would predict if it stopped at each entry of the residual stream.

    The final layer norm and the unembedding are applied to every `resid_pre` of the record and
    to the last `resid_post`: name -> logits (B, T, V). Source: nostalgebraist 2020, "interpreting
    GPT: the logit lens". Raises ValueError for a record that lacks them, and TypeError for a
    relative without a final layer norm.
    """
    _check_record(model, acts, "h.0.resid_pre")
    table = getattr(model, "ops", ops)  # GPT-3 has no table of its own
    p = model.params
    last = f"h.{model.config.n_layer - 1}.resid_post"
    lens = {}
    for name, x in acts.items():
        if name.endswith("resid_pre") or name == last:
            eps = model.config.layer_norm_epsilon
            x = table.layer_norm(x, p["ln_f.weight"], p["ln_f.bias"], eps)
            lens[name] = table.unembed(x, p.get("lm_head.weight", p["wte.weight"]))
    return lens


def _check_record(model, acts, name):
    if "ln_f.weight" not in model.params:
        raise TypeError(f"a {type(model).__name__} has no final layer norm to look through")
    if name not in acts:
        raise ValueError(f'the record has no {name}: run forward with keep="everything"')


def likeliest(logits, count: int = 1):
    """The `count` likeliest tokens, best first, and their probabilities: (..., V) -> (..., count).

    Of equals the lower id comes first. Probabilities are in float64. Raises FloatingPointError for
    logits that are NaN or infinite.
    """
    count = check_count("count", count, 1)
    check_logits(np.asarray(logits))
    log_p = ops.log_softmax(np.asarray(logits, np.float64))
    ids = np.argsort(-log_p, axis=-1, kind="stable")[..., :count]
    return ids, np.exp(np.take_along_axis(log_p, ids, -1))


def surprise(logits, tokens):
    """-ln p of each token that came, and the entropy of what was expected there, both in nats.

    logits (T, V) of ids (T,): what stands at t expects the token at t + 1 -> two of (T - 1,). The
    entropy, -sum p ln p, is the mean surprise if the model were right about the odds. Raises
    FloatingPointError for logits that are NaN or infinite.
    """
    logits, tokens = np.asarray(logits)[:-1], np.asarray(tokens)[1:]
    each = evaluate.nats(logits[None], tokens[None])[0]
    log_p = ops.log_softmax(logits.astype(np.float64))
    return each, -(np.exp(log_p) * log_p).sum(1)


def principal(vectors, count: int = 2):
    """Vectors (N, C) in the directions in which they differ most -> (N, count), and of each
    direction its share of the variance. The sign of each is such that its largest entry is > 0."""
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    directions = directions[:count]
    largest = np.take_along_axis(directions, np.abs(directions).argmax(1)[:, None], 1)
    squares = sizes**2
    shares = squares / squares.sum() if squares.any() else squares
    return centred @ (directions * np.sign(largest)).T, shares[:count]


def cosines(vectors):
    """The cosine of the angle between each two of the vectors (N, C) -> (N, N)."""
    x = np.asarray(vectors, np.float64)
    x = x / np.maximum(np.sqrt((x * x).sum(1, keepdims=True)), np.finfo(np.float64).tiny)
    return x @ x.T


def logit_attribution(model, acts, targets, against=None) -> dict[str, np.ndarray]:
    """What each part of the model adds to the logit of a target: name -> (B, T); the sum is exact.

    The residual stream is a sum, and after it come only the final layer norm and a product with the
    target's row u of the unembedding. With the norm's scale as it was in this run both are linear,
    so that each summand y has a share of its own:

        logit = sum_y ((y - mean y) g / sqrt(var + eps)) u  +  b u

    The summands: `wte`, `wpe`; of each layer `h.i.attn.0`, `h.i.attn.1`, ..., what each head wrote
    through its rows of c_proj, `h.i.attn.c_proj.bias` and `h.i.mlp`; and `ln_f.bias`, the b u. In
    float64. This is each part's *direct* share: what it does by way of later layers is theirs.

    targets: ids (B, T), or one for all. against: ids likewise; then what each part adds to
    logit(target) - logit(against), which leaves out all that makes both likelier.

    Raises ValueError or TypeError for what are not such ids, and as `logit_lens` does.
    """
    _check_record(model, acts, "wte")
    p, config = model.params, model.config
    table = p.get("lm_head.weight", p["wte.weight"])
    shape = acts["wte"].shape[:2]
    u = table[_check_targets(config, targets, shape)].astype(np.float64)
    if against is not None:
        u = u - table[_check_targets(config, against, shape)]
    last = acts[f"h.{config.n_layer - 1}.resid_post"].astype(np.float64)
    scale = np.sqrt(last.var(-1, keepdims=True) + config.layer_norm_epsilon)
    direction = u * p["ln_f.weight"] / scale  # (B, T, C)
    direction = direction - direction.mean(-1, keepdims=True)  # y - mean y, taken from this side

    def share(y):
        return (y * direction).sum(-1)

    shares = {name: share(acts[name]) for name in ("wte", "wpe")}
    for i in range(config.n_layer):
        h = f"h.{i}."
        back = direction @ p[h + "attn.c_proj.weight"].T  # (B, T, C): H heads side by side
        by_head = (acts[h + "attn.z"] * back).reshape(*back.shape[:2], config.n_head, -1).sum(-1)
        shares |= {f"{h}attn.{head}": by_head[..., head] for head in range(config.n_head)}
        shares[h + "attn.c_proj.bias"] = share(p[h + "attn.c_proj.bias"])
        shares[h + "mlp"] = share(acts[h + "mlp.c_proj"])
    shares["ln_f.bias"] = np.broadcast_to(u @ p["ln_f.bias"], last.shape[:2])
    return shares


def _check_targets(config, ids, shape):
    ids = np.asarray(ids)
    if ids.shape not in ((), shape[1:], shape):
        raise ValueError(f"the ids must be one, or of shape {shape}, not of {ids.shape}")
    return check_ids(np.broadcast_to(ids, shape), "targets", config.n_vocab)


def attention_statistics(pattern) -> dict[str, np.ndarray]:
    """Per head, averaged over batch and queries, of a pattern (B, H, T, S): each (H,).

    entropy: -sum p log p in nats; distance: how many tokens back it looks on average; first: the
    weight on position 0, where heads that have nothing to do put it; previous: on the token before
    (of queries that have one before); self: on the query's own.
    """
    if np.ndim(pattern) != 4:
        raise ValueError(f"a pattern is (B, H, T, S), not of shape {np.shape(pattern)}")
    t, s = pattern.shape[2:]
    query = np.arange(s - t, s)
    back = (query[:, None] - np.arange(s)).clip(0)
    log = np.log(pattern, out=np.zeros_like(pattern), where=pattern > 0)
    per_query = {
        "entropy": -(pattern * log).sum(-1),
        "distance": (pattern * back.astype(pattern.dtype)).sum(-1),
        "first": pattern[..., 0],
        "previous": pattern.diagonal(s - t - 1, 2, 3),
        "self": pattern.diagonal(s - t, 2, 3),
    }
    return {
        name: value.sum((0, 2)) / max(1, value.shape[0] * value.shape[2])
        for name, value in per_query.items()
    }


def induction(model, length: int = 50, rows: int = 4, *, rng: np.random.Generator, first=None):
    """Does the model continue what it has seen once? Scores of heads (L, H), and nats (2 length,).

    Random tokens are shown twice: r r. Nothing but the first showing helps with the second, and a
    head helps that looks from a token to what *followed* the same token, length - 1 before. The
    score of a head is its mean weight there, over the second showing: about 1 / T for a head that
    looks everywhere, 1 for one that does nothing else. nats: mean -ln p of each token but the
    first given those before it; NaN stands at 0. If induction works it falls where the second
    showing begins.

    first: an id to put in front, such as the end token. Positions still count without it. Source:
    Olsson et al. 2022, "In-context Learning and Induction Heads".
    """
    length, rows = check_count("length", length), check_count("rows", rows, 1)
    check_rng(rng)
    before = [] if first is None else [first]
    fits = (model.config.n_ctx - len(before)) // 2
    if not 1 < length <= fits:
        raise ValueError(
            f"length must be 2 to {fits}, not {length}: twice as many tokens go into the context "
            f"of {model.config.n_ctx}"
        )
    once = rng.integers(model.config.n_vocab, size=(rows, length))
    tokens = np.concatenate([np.tile(before, (rows, 1)), once, once], 1).astype(np.int64)
    with np.errstate(all="ignore"):  # of damaged weights; `nats` refuses what comes of them
        logits, acts = model.forward(tokens, keep="everything")
    scores = [
        acts[f"h.{i}.attn.pattern"].diagonal(1 - length, 2, 3)[..., -length:].mean((0, 2))
        for i in range(model.config.n_layer)
    ]
    each = evaluate.nats(logits[:, :-1], tokens[:, 1:]).mean(0)
    nats = np.concatenate([[np.nan], each])[-2 * length :]
    return np.stack(scores), nats


# ---- runs with something changed ----------------------------------------------------------------


def run_with(model, tokens, changes: dict, pads=None):
    """A forward pass in which some entries of the record are not what was computed.

    changes: name -> the array that takes the entry's place, or a function of what was computed that
    returns it. All that comes after is computed from it: this is how "does the model use this?" is
    asked. Returns logits and the record, in which the changed entries stand as changed.
    Raises ValueError for a name that the record does not have, and for another shape, and TypeError
    for a relative of GPT-2.
    """
    if not isinstance(model, GPT2):
        raise TypeError(f"a GPT-2 can be run with changes, and not a {type(model).__name__}")
    taken = {}

    def get(name, computed):
        if name not in changes:
            return computed
        change = changes[name]
        new = np.asarray(change(computed) if callable(change) else change, computed.dtype)
        if new.shape != computed.shape:
            raise ValueError(
                f"{name} has shape {computed.shape}, and what should replace it {new.shape}"
            )
        taken[name] = new
        return new

    given = types.SimpleNamespace(get=get)  # all that `forward` asks of it
    logits, acts = model.forward(tokens, pads=pads, keep="everything", given=given)
    if unknown := [name for name in changes if name not in taken or name in ("tokens", "pads")]:
        raise ValueError(
            f"the record has no {', '.join(unknown)} that can be changed: an entry is called like "
            "h.0.attn.z or ln_f"
        )
    acts.update(taken)
    return logits, acts


def patch(model, tokens, name, record, head=None, position=None, pads=None):
    """The run on `tokens` in which the entry `name` is taken from the record of another run.

    head, position: only that head's share of it (of q, k, v, scores, pattern or z), or only that
    position; both runs need the same shape. Returns logits and record. If the record's answer comes
    back, what decides it passes through this entry; if it does not, that shows little: the model
    may have it in a second place as well. Source: Vig et al. 2020, "causal mediation analysis".
    """
    part = _part(model, name, head, position)

    def taken(array):
        if np.shape(record[name]) != array.shape:
            raise ValueError(
                f"{name} has shape {array.shape} here and {np.shape(record[name])} in the record: "
                "the two runs need equally many tokens"
            )
        array = array.copy()
        try:
            array[part] = record[name][part]
        except IndexError:
            raise ValueError(f"{name}, {array.shape}, has no position {position!r}") from None
        return array

    if name not in record:
        raise ValueError(f'the record has no {name}: run forward with keep="everything"')
    return run_with(model, tokens, {name: taken}, pads)


def ablate_heads(model, tokens, heads, mean=False, pads=None):
    """The run in which some heads, pairs (layer, head), write nothing: logits and record.

    mean: instead of 0 a head's z is its mean over the tokens of this run, padding left out, which
    takes away what it tells one token from another by, but leaves what it adds everywhere. Either
    way the model meets a state that it never met in training: a loss that grows shows that the head
    was relied on, one that does not may mean that later heads stand in for it.
    """
    changes = {}
    if any(np.shape(pair) != (2,) for pair in heads):
        raise TypeError(f"heads must be pairs (layer, head), not {heads!r}")
    for layer, head in heads:
        name = f"h.{check_count('layer', layer)}.attn.z"
        changes.setdefault(name, []).append(_part(model, name, head, None))

    def ablated(parts):
        def change(z):
            z = z.copy()
            padding = 0 if pads is None else np.asarray(pads)[:, None]
            real = np.broadcast_to(np.arange(z.shape[1]) >= padding, z.shape[:2])
            for part in parts:
                z[part] = z[part][real].mean(0) if mean else 0
            return z

        return change

    return run_with(model, tokens, {name: ablated(p) for name, p in changes.items()}, pads)


def _part(model, name, head, position):
    """The index of one head's or one position's share of an entry."""
    config = model.config
    layer = name.split(".")[1] if name.startswith("h.") else "0"
    if not (layer.isdecimal() and int(layer) < config.n_layer):
        raise ValueError(f"there is no layer {layer}: the model has 0 to {config.n_layer - 1}")
    heads, queries, columns = (
        slice(None),
        slice(None) if position is None else position,
        slice(None),
    )
    by_head = name.rpartition(".")[2] in ("q", "k", "v", "scores", "pattern")
    if head is not None:
        head = check_count("head", head)
        if not 0 <= head < config.n_head:
            raise ValueError(f"there is no head {head}: the model has 0 to {config.n_head - 1}")
        if by_head:
            heads = head
        elif name.endswith("attn.z"):
            width = config.n_embd // config.n_head
            columns = slice(head * width, (head + 1) * width)
        else:
            raise ValueError(
                f"{name} is not divided into heads: q, k, v, scores, pattern and z are"
            )
    return (..., heads, queries, columns) if by_head else (..., queries, columns)
