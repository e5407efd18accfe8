"""What a forward pass computed, by name, and where two forward passes part.

The catalogue lists what `forward` records. `replay` runs the same forward pass on somebody else's
numbers, each step on what *they* had before it, so that a step is judged by itself. `align` brings
the names and layouts of other programs to ours.
"""

import contextlib
import functools
import inspect
import re
from dataclasses import dataclass, replace

import numpy as np

from numpygpt import model as forward
from numpygpt import ops
from numpygpt.model import GPT2, with_ops

CLOSE = 1e-5  # relative gap of a tensor; correct float32 code stays below 1e-6
HIDDEN = -5e3  # a score below this is masked, whatever number the mask is made of


# ---- the catalogue ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One entry of the record: its letters (see `ops.py`), its formula, the operation that returns
    it, and its names elsewhere, where {i} is the block, and [i] an index into a stacked array."""

    name: str
    shape: str
    formula: str
    operation: str
    transformers: str = ""
    transformer_lens: str = ""
    llm_c: str = ""

    @property
    def source(self) -> str:
        """The line of model.py that saves it."""
        key = f'save("{self.name.removeprefix("h.{i}.")}"'
        lines, start = inspect.getsourcelines(forward)
        at = next(n for n, line in enumerate(lines) if key in line)
        return f"model.py:{at + 1}: {lines[at].strip()}"


E = Entry
EMBEDDINGS = (
    E("tokens", "B T", "ids of the tokens", "", "input_ids", "tokens", "inputs"),
    E("positions", "B T", "0, 1, 2, ...", "positions", "position_ids"),
    E("pads", "B", "padding tokens at the left", ""),
    E("wte", "B T C", "wte[tokens]", "embedding", "wte", "hook_embed"),
    E("wpe", "T C", "wpe[positions]", "embedding", "wpe", "hook_pos_embed"),
)
BLOCK = (
    E("h.{i}.resid_pre", "B T C", "wte + wpe, or resid_post of the block before", "residual",
      "hidden_states.{i}", "blocks.{i}.hook_resid_pre"),
    E("h.{i}.ln_1", "B T C", "layer_norm(resid_pre)", "layer_norm",
      "h.{i}.ln_1", "blocks.{i}.ln1.hook_normalized", "ln1"),
    E("h.{i}.attn.c_attn", "B T 3C", "ln_1 w + b", "linear", "h.{i}.attn.c_attn", "", "qkv"),
    E("h.{i}.attn.q", "B H T D", "columns 0 .. C of c_attn, by heads", "split_heads",
      "", "blocks.{i}.attn.hook_q"),
    E("h.{i}.attn.k", "B H S D", "columns C .. 2C of c_attn, by heads", "split_heads",
      "", "blocks.{i}.attn.hook_k"),
    E("h.{i}.attn.v", "B H S D", "columns 2C .. 3C of c_attn, by heads", "split_heads",
      "", "blocks.{i}.attn.hook_v"),
    E("h.{i}.attn.scores", "B H T S", "q k^T / sqrt(D), -inf where masked", "attention_scores",
      "", "blocks.{i}.attn.hook_attn_scores", "preatt"),
    E("h.{i}.attn.pattern", "B H T S", "softmax(scores)", "softmax",
      "attentions.{i}", "blocks.{i}.attn.hook_pattern", "att"),
    E("h.{i}.attn.z", "B T C", "pattern v, heads merged", "merge_heads",
      "", "blocks.{i}.attn.hook_z", "atty"),
    E("h.{i}.attn.c_proj", "B T C", "z w + b", "linear",
      "h.{i}.attn.c_proj", "blocks.{i}.hook_attn_out", "attproj"),
    E("h.{i}.resid_mid", "B T C", "resid_pre + c_proj", "residual",
      "", "blocks.{i}.hook_resid_mid", "residual2"),
    E("h.{i}.ln_2", "B T C", "layer_norm(resid_mid)", "layer_norm",
      "h.{i}.ln_2", "blocks.{i}.ln2.hook_normalized", "ln2"),
    E("h.{i}.mlp.c_fc", "B T F", "ln_2 w + b", "linear",
      "h.{i}.mlp.c_fc", "blocks.{i}.mlp.hook_pre", "fch"),
    E("h.{i}.mlp.act", "B T F", "gelu(c_fc)", "gelu",
      "h.{i}.mlp.act", "blocks.{i}.mlp.hook_post", "fch_gelu"),
    E("h.{i}.mlp.c_proj", "B T C", "act w + b", "linear",
      "h.{i}.mlp.c_proj", "blocks.{i}.hook_mlp_out", "fcproj"),
    E("h.{i}.resid_post", "B T C", "resid_mid + mlp.c_proj", "residual",
      "h.{i}", "blocks.{i}.hook_resid_post", "residual3"),
)  # fmt: skip
END = (
    E("ln_f", "B T C", "layer_norm(resid_post)", "layer_norm",
      "ln_f", "ln_final.hook_normalized", "lnf"),
    E("logits", "B T V", "ln_f wte^T", "unembed", "logits", "logits", "logits"),
)  # fmt: skip
CATALOGUE = EMBEDDINGS + BLOCK + END
# Second names: modules whose output is an entry under another name.
SYNONYMS = {
    "drop": "h.0.resid_pre",
    "encoded": "h.0.resid_pre",
    "lm_head": "logits",
    "unembed": "logits",
    "h.{i}.attn": "h.{i}.attn.c_proj",
    "h.{i}.mlp": "h.{i}.mlp.c_proj",
    "blocks.{i}.attn.hook_attn_out": "h.{i}.attn.c_proj",
}


def catalogue() -> str:
    """The catalogue as text, an entry a paragraph."""
    lines = []
    for e in CATALOGUE:
        lines += [f"{e.name:18} ({', '.join(e.shape.split())})  {e.formula}", f"    {e.source}"]
        others = ("transformers", "transformer_lens", "llm_c")
        lines += [f"    {other}: {getattr(e, other)}" for other in others if getattr(e, other)]
    return "\n".join(lines)


def is_entry(name: str) -> bool:
    """Is this one of our names?"""
    return _template(name) in LETTERS


def _template(name):
    return re.sub(r"^h\.\d+\.", "h.{i}.", name)


@functools.cache
def entries(n_layer: int) -> dict[str, Entry]:
    """The whole record of a model, in the order of computation: name -> entry, blocks filled in."""
    blocks = [replace(e, name=e.name.format(i=i)) for i in range(n_layer) for e in BLOCK]
    return {entry.name: entry for entry in (*EMBEDDINGS, *blocks, *END)}


def other_names(n_layer: int) -> dict[str, str]:
    """Any library's name of an entry -> our name. llm.c's arrays are stacked: "ln1.0" is ln1[0]."""
    names = {f"hidden_states.{n_layer}": "ln_f"}  # transformers' last one has passed the norm
    for i in range(n_layer):
        for entry in CATALOGUE:
            llm_c = f"{entry.llm_c}.{i}" if entry.llm_c in STACKED else entry.llm_c
            for name in (entry.name, entry.transformers, entry.transformer_lens, llm_c):
                names.setdefault(name.format(i=i), entry.name.format(i=i))
        names |= {a.format(i=i): b.format(i=i) for a, b in SYNONYMS.items()}
    return {name: ours for name, ours in names.items() if name}


STACKED = {entry.llm_c for entry in BLOCK if entry.llm_c} | {"hidden_states", "attentions"}
MADE_BY = {entry.operation for entry in CATALOGUE if entry.operation}


# ---- the record, whole or from given numbers ----------------------------------------------------


class _Enough(Exception):
    """Raised in a replay when the last tensor that was asked for is there."""


def replay(model: GPT2, tokens, pads=None, chunks=None, theirs=None, fit=None, until=None):
    """The record of a forward pass in which each step works on *their* numbers where there are any.

    tokens (B, T), pads (B,) as in `forward`. chunks: lengths of the pieces that go through a KV
    cache, or None for all at once; the record is joined to that of the whole. theirs: entries that
    take the place of what was computed, *after* that has been recorded. fit: see `Mistake`. until:
    the entry after which to stop. Without `theirs` this is the record of `forward` itself.
    """
    chunks = chunks or [tokens.shape[1]]
    if min(chunks) < 1 or sum(chunks) != tokens.shape[1]:
        raise ValueError(f"the chunks {chunks} do not add up to the {tokens.shape[1]} tokens")
    cache = model.cache(len(tokens)) if len(chunks) > 1 else None
    until = until if cache is None else None  # a cache is only good after a whole forward pass
    parts, start = [], 0
    for length in chunks:
        piece = slice(start, start + length)
        given = {n: _piece(n, a, piece) for n, a in (theirs or {}).items() if _has_axes(n, a)}
        parts.append({"tokens": tokens[:, piece]})
        watched = _watched(model, parts[-1], given, fit, until)
        with np.errstate(all="ignore"), contextlib.suppress(_Enough):  # mistakes overflow
            watched.forward(tokens[:, piece], cache, pads, keep="everything")
        start += length
    record = {name: _joined(name, [part[name] for part in parts], start) for name in parts[-1]}
    record |= {_next_pre(name): array for name, array in record.items() if _next_pre(name)}
    return {name: record[name] for name in entries(model.config.n_layer) if name in record}


def _watched(model, record, given, fit, until):
    """The model with operations that record what they return and hand on what is given instead.

    The operations come in the order of the catalogue, so the next entry is the next result's name.
    """
    made = iter(_made(model.config.n_layer))

    def watching(operation):
        op = getattr(model.ops, operation)

        def watched(*args):
            result, (name, expected) = op(*args), next(made)
            assert operation == expected, (name, operation)
            if name == "positions":  # one row for all, or with padding one for each
                result = np.broadcast_to(result, record["tokens"].shape)
            theirs = given.get(name)
            fitted = fit(operation, args, result, theirs) if fit and theirs is not None else None
            record[name] = result if fitted is None else fitted
            if name == until:
                raise _Enough
            return theirs if theirs is not None and theirs.shape == result.shape else result

        return watched

    return with_ops(model, **{operation: watching(operation) for operation in MADE_BY})


@functools.cache
def _made(n_layer):
    """(entry, the operation that makes it) in order: all but resid_pre after the first block."""
    copies = {_next_pre(name) for name in entries(n_layer)}
    found = [(n, e.operation) for n, e in entries(n_layer).items() if n not in copies]
    return [(name, operation) for name, operation in found if operation]


def _next_pre(name):
    """A block's resid_post is the next one's resid_pre; "" for other entries."""
    block, _, rest = name.rpartition(".")
    return f"h.{int(block[2:]) + 1}.resid_pre" if rest == "resid_post" else ""


def _axis(name, array, letters):
    """The first axis of an entry that is named by one of the letters, counted from the right."""
    shape = LETTERS[_template(name)]
    return next((array.ndim - len(shape) + i for i, x in enumerate(shape) if x in letters), None)


LETTERS = {entry.name: entry.shape.split() for entry in CATALOGUE}


def _has_axes(name, array):
    return array.ndim >= len(LETTERS[_template(name)])


def _piece(name, array, piece):
    """What belongs to a piece of the tokens: of keys and values the new ones, of scores all."""
    axis = _axis(name, array, "TS")
    if name.endswith((".scores", ".pattern")):
        array = array[..., : piece.stop]
    return array if axis is None else array[(slice(None),) * axis + (piece,)]


def _joined(name, arrays, n_keys):
    """The pieces of an entry side by side; scores get -inf, and the pattern 0, for later keys."""
    if len(arrays) == 1:
        return arrays[0]
    if name.endswith((".scores", ".pattern")):
        fill = -np.inf if name.endswith(".scores") else 0
        widths = [[(0, 0)] * 3 + [(0, n_keys - a.shape[3])] for a in arrays]
        arrays = [np.pad(a, w, constant_values=fill) for a, w in zip(arrays, widths, strict=True)]
    return np.concatenate(arrays, _axis(name, arrays[0], "TS"))


# ---- their tensors, under our names and in our layout -------------------------------------------


def align(theirs: dict, ours: dict, params=None) -> tuple[dict, list[str]]:
    """Their arrays under our names, in our layout and order; and the names nobody knows.

    ours: our record of the same run, which tells the shapes; where two layouts would fit, the
    closer one is taken. An array that fits in none is kept as it is. params: the model's, for norms
    that were dumped before their gain. Raises ValueError if no name is known, or two names mean the
    same entry.
    """
    n_layer = 1 + max((int(name.split(".")[1]) for name in ours if name[:2] == "h."), default=0)
    names, aligned, unknown, taken = other_names(n_layer), {}, [], {}
    for name, array in _unstacked(theirs, n_layer).items():
        entry = names.get(_plain(name))
        if entry not in ours or array.dtype.kind not in "fiu":
            unknown.append(name)
            continue
        if entry in taken:
            raise ValueError(f"{name!r} and {taken[entry]!r} are both {entry}: keep one of them")
        taken[entry] = name
        views = list(_views(array, entry, ours[entry]))
        if "hook_normalized" in name and params:
            views += list(_views(_with_gain(array, entry, params), entry, ours[entry]))
        aligned[entry] = min(views, key=lambda v: gap(v, ours[entry])) if views else array
    if not aligned:
        raise ValueError(
            f"none of the names {', '.join(theirs)[:200]} is one that numpygpt, transformers, "
            "TransformerLens or llm.c has: `numpygpt trace --list` shows them"
        )
    for post in [name for name in ours if _next_pre(name) in aligned]:
        aligned.setdefault(post, aligned[_next_pre(post)])
    return {name: aligned[name] for name in ours if name in aligned}, unknown


def _plain(name):
    """hidden_states[3], hidden_states_3, transformer.h.0.attn, model/h/0/attn: with plain dots."""
    name = re.sub(r"\[(\d+)\]", r".\1", name.replace("/", "."))
    name = re.sub(r"^(model\.|transformer\.)+", "", name)
    return re.sub(r"^(hidden_states|attentions)_", r"\1.", name)


def _unstacked(theirs, n_layer):
    """Arrays with an axis for the layers as one array a layer; llm.c leaves masked scores as they
    were in memory, and pads the vocabulary of its logits."""
    arrays = {}
    for name, array in theirs.items():
        if name not in STACKED:
            arrays[name] = array
        elif array.ndim < 2 or len(array) not in (n_layer, n_layer + 1):
            raise ValueError(f"{name!r} has shape {array.shape}: its first axis should be layers")
        else:
            arrays |= {f"{name}.{i}": part for i, part in enumerate(array)}
    for name, array in arrays.items():
        if name.startswith("preatt."):
            future = np.triu(np.ones(array.shape[-2:], bool), 1)
            arrays[name] = np.where(future, -np.inf, array)
    return arrays


def _views(array, name, ours):
    """Every way to read an array as the entry: with our record's shape, or, for logits, of the last
    tokens alone or of a padded vocabulary."""
    shape = ours.shape
    for view in _layouts(array, name, ours):
        if view.shape == shape:
            yield view
        elif name == "logits" and view.ndim == 3 and len(view) == shape[0]:
            if view.shape[1] in (1, shape[1]) and view.shape[2] >= shape[2]:
                yield view


def _layouts(array, name, ours):
    shape, kind = ours.shape, name.rpartition("attn.")[2]
    if array.ndim == 1 and array.size == ours.size:
        yield array.reshape(shape)
    if name in ("positions", "wpe") and array.shape in (shape[1:], (1, *shape[1:])):
        yield np.broadcast_to(array, shape)
    for a in (array, array[None]):  # the axis of the batch may be left out
        yield a
        if kind in ("q", "k", "v") and a.ndim == 4:
            yield a.swapaxes(1, 2)  # (B, T, H, D)
        elif kind in ("q", "k", "v") and a.ndim == 3 and a.shape[2] == shape[1] * shape[3]:
            yield ops.split_heads(a, shape[1])
        elif kind == "z" and a.ndim == 4:
            yield a.reshape(*a.shape[:2], -1)  # (B, T, H, D)
            yield ops.merge_heads(a)  # (B, H, T, D)
        elif name == "logits" and a.ndim == 2:
            yield a[:, None]  # (B, V), of the last token


def _with_gain(array, name, params):
    gain, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    return array * gain + bias if array.shape[-1:] == gain.shape else array


# ---- two tensors side by side -------------------------------------------------------------------


def gap(theirs, ours) -> float:
    """max |theirs - ours| / max |ours|; infinite where only one is a number, or shapes differ.

    Masked scores, -inf or below HIDDEN, equal each other.
    """
    theirs, ours = _facing(theirs, ours)
    if theirs.shape != ours.shape:
        return np.inf
    with np.errstate(invalid="ignore"):
        difference = np.where(_same(theirs, ours), 0, np.abs(theirs - ours))
    worst = difference.max(initial=0.0)
    return float(np.inf if np.isnan(worst) else worst / _scale(ours))


def _scale(ours):
    """The largest number, masks apart."""
    return np.abs(ours[np.isfinite(ours) & (ours > HIDDEN)]).max(initial=0.0) or 1.0


def _facing(theirs, ours):
    """Both as float64; of our logits only the last tokens where theirs are of these alone."""
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if theirs.ndim == ours.ndim == 3 and theirs.shape[1] < ours.shape[1]:
        ours = ours[:, -theirs.shape[1] :]
    return theirs, ours


def _same(theirs, ours):
    hidden = (theirs <= HIDDEN) & (ours <= HIDDEN)
    return (theirs == ours) | hidden | (np.isnan(theirs) & np.isnan(ours))


@dataclass(frozen=True)
class Row:
    """One tensor of a comparison. status: "exact", "close", "differs" or "shape"; worst: where the
    two are furthest apart, and what they are there."""

    name: str
    status: str
    max_abs: float
    max_rel: float
    worst: tuple[int, ...] = ()
    theirs: float = np.nan
    ours: float = np.nan


def compare_tensor(name, theirs, ours, line=CLOSE) -> Row:
    """The row for one tensor; `line` is the largest relative gap that is still close."""
    theirs, ours = _facing(theirs, ours)
    if theirs.shape != ours.shape:
        return Row(name, "shape", np.inf, np.inf, theirs.shape)
    if np.array_equal(theirs, ours, equal_nan=True):
        return Row(name, "exact", 0.0, 0.0)
    with np.errstate(invalid="ignore"):
        apart = np.where(_same(theirs, ours), 0, np.abs(theirs - ours))
    apart = np.where(np.isnan(apart), np.inf, apart)
    at = np.unravel_index(apart.argmax(), apart.shape)
    relative = float(apart[at]) / _scale(ours)
    status = "close" if relative <= line else "differs"
    worst = tuple(int(i) for i in at)
    return Row(name, status, float(apart[at]), relative, worst, float(theirs[at]), float(ours[at]))


def compare_records(theirs: dict, ours: dict, pads=None, lines=None) -> list[Row]:
    """A row for each tensor of theirs, in our order; padding is left out."""
    return [
        compare_tensor(
            name,
            real(name, array, pads),
            real(name, ours[name], pads),
            (lines or {}).get(name, CLOSE),
        )
        for name, array in theirs.items()
    ]


def real(name, array, pads, filling=0.0):
    """The array with the rows of padding tokens replaced by `filling`: nobody reads them."""
    axis = _axis(name, array, "TS")
    if pads is None or not axis or len(array) != len(pads):
        return array
    if array.shape[axis] == 1:  # logits of the last token, which is never padding
        return array
    padding = np.arange(array.shape[axis]) < np.asarray(pads)[:, None]
    shape = [array.shape[i] if i in (0, axis) else 1 for i in range(array.ndim)]
    return np.where(padding.reshape(shape), filling, array)
