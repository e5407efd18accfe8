"""What a forward pass computed, by name, and where two forward passes part.

The catalogue lists what `forward` records. `replay` runs the same forward pass on somebody else's
numbers, each step on what *they* had before it, so that a step is judged by itself. `gap` is the
distance of two tensors.
"""

import functools
import inspect
import re
from dataclasses import dataclass, replace

import numpy as np

from numpygpt import model as forward
from numpygpt.model import GPT2

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
LETTERS = {entry.name: entry.shape.split() for entry in CATALOGUE}


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
    return template(name) in LETTERS


def template(name: str) -> str:
    """The entry's name in the catalogue: "h.3.ln_1" -> "h.{i}.ln_1"."""
    return re.sub(r"^h\.\d+\.", "h.{i}.", name)


def kind(name: str) -> str:
    """The entry's name without its block: "h.3.ln_1" -> "ln_1"."""
    return template(name).removeprefix("h.{i}.")


@functools.cache
def entries(n_layer: int) -> dict[str, Entry]:
    """The whole record of a model, in the order of computation: name -> entry, blocks filled in."""
    blocks = [replace(e, name=e.name.format(i=i)) for i in range(n_layer) for e in BLOCK]
    return {entry.name: entry for entry in (*EMBEDDINGS, *blocks, *END)}


def next_pre(name: str) -> str:
    """A block's resid_post is the next one's resid_pre; "" for other entries."""
    block, _, rest = name.rpartition(".")
    return f"h.{int(block[2:]) + 1}.resid_pre" if rest == "resid_post" else ""


# ---- the record, whole or from given numbers ----------------------------------------------------


def replay(model: GPT2, tokens, pads=None, chunks=None, theirs=None) -> dict[str, np.ndarray]:
    """The record of a forward pass in which each step works on *their* numbers where there are any.

    tokens (B, T), pads (B,) as in `forward`. chunks: lengths of the pieces that go through a KV
    cache, or None for all at once; the record is joined to that of the whole. theirs: entries that
    take the place of what was computed, *after* that has been recorded; they have the shapes of
    ours. Without `theirs` this is the record of `forward` itself, with positions for every row.
    Raises ValueError for chunks that do not add up to T.
    """
    tokens = np.atleast_2d(tokens)
    chunks = chunks or [tokens.shape[1]]
    if min(chunks) < 1 or sum(chunks) != tokens.shape[1]:
        raise ValueError(f"the chunks {chunks} do not add up to the {tokens.shape[1]} tokens")
    arguments = ("tokens", "pads")
    theirs = {name: array for name, array in (theirs or {}).items() if name not in arguments}
    if "positions" in theirs and not _are_rows(theirs["positions"], model.config.n_ctx):
        del theirs["positions"]  # no table has these rows: wpe is that of the right ones
    elif "positions" in theirs:  # perhaps written down as float32
        theirs["positions"] = theirs["positions"].astype(np.int64)
    cache = model.cache(len(tokens)) if len(chunks) > 1 else None
    parts, start = [], 0
    for length in chunks:
        piece = slice(start, start + length)
        given = {n: _piece(n, a, piece) for n, a in theirs.items()}
        with np.errstate(all="ignore"):  # mistakes overflow
            parts.append(
                model.forward(tokens[:, piece], cache, pads, keep="everything", given=given)[1]
            )
        start += length
    record = {name: _joined(name, [part[name] for part in parts], start) for name in parts[-1]}
    record.pop("pads", None)
    return record | {"wpe": np.broadcast_to(record["wpe"], record["wte"].shape)}


def _are_rows(numbers, n):
    """Whether all are whole numbers from 0 to n - 1; NaN is none."""
    return bool(((numbers >= 0) & (numbers < n)).all() and not (numbers % 1).any())


def first_blocks(model: GPT2, n: int) -> GPT2:
    """The same model without the blocks after the first n: their steps need not be computed."""
    dropped = tuple(f"h.{i}." for i in range(n, model.config.n_layer))
    params = {name: a for name, a in model.params.items() if not name.startswith(dropped)}
    return GPT2(replace(model.config, n_layer=n), params, model.ops) if dropped else model


def axis(name: str, array, letters: str) -> int | None:
    """The first axis of an entry that is named by one of the letters, or None."""
    shape = LETTERS[template(name)]
    return next((array.ndim - len(shape) + i for i, x in enumerate(shape) if x in letters), None)


def _piece(name, array, piece):
    """What belongs to a piece of the tokens: its own rows, and of the keys all up to its end."""
    if name.endswith((".scores", ".pattern")):
        array = array[..., : piece.stop]
    at = axis(name, array, "TS")
    start = 0 if name.endswith((".k", ".v")) else piece.start
    return array if at is None else array[(slice(None),) * at + (slice(start, piece.stop),)]


def _joined(name, arrays, n_keys):
    """The pieces of an entry side by side; scores get -inf, and the pattern 0, for later keys."""
    if len(arrays) == 1 or name == "pads" or name.endswith((".k", ".v")):
        return arrays[-1]  # with a cache the last piece has all the keys and values
    if name.endswith((".scores", ".pattern")):
        fill = -np.inf if name.endswith(".scores") else 0
        widths = [[(0, 0)] * 3 + [(0, n_keys - a.shape[3])] for a in arrays]
        arrays = [np.pad(a, w, constant_values=fill) for a, w in zip(arrays, widths, strict=True)]
    return np.concatenate(arrays, axis(name, arrays[0], "TS"))


# ---- two tensors side by side -------------------------------------------------------------------


def gap(theirs, ours) -> float:
    """The largest gap of a row, see `row_gaps`; infinite where shapes differ."""
    theirs, ours = _facing(theirs, ours)
    return float(row_gaps(theirs, ours).max(initial=0.0)) if theirs.shape == ours.shape else np.inf


def row_gaps(theirs, ours) -> np.ndarray:
    """max |theirs - ours| / scale of each row, a row being the last axis: one token, or one query.

    The scale is max |ours| of the row, but at least that of the median row. So one token with
    massive activations does not hide what is wrong in the others, and a row of nearly nothing is
    not blamed for the noise of sums. Masked scores, -inf or below HIDDEN, equal each other; where
    only one is a number, the gap is infinite.
    """
    apart = _apart(theirs, ours).reshape(-1, theirs.shape[-1] if theirs.ndim else 1)
    return apart.max(-1, initial=0.0) / _scales(ours)


def _apart(theirs, ours):
    hidden = (theirs <= HIDDEN) & (ours <= HIDDEN)
    same = (theirs == ours) | hidden | (np.isnan(theirs) & np.isnan(ours))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0, np.abs(theirs - ours))
    return np.where(np.isnan(apart), np.inf, apart)


def _scales(ours):
    """The largest number of each row, masks apart, but no less than the median of these."""
    rows = ours.reshape(-1, ours.shape[-1] if ours.ndim else 1)
    shown = np.where(np.isfinite(rows) & (rows > HIDDEN), np.abs(rows), 0)
    scales = shown.max(-1, initial=0.0)
    if not scales.any():
        return np.ones(len(rows))
    return np.maximum(scales, np.median(scales[scales > 0]))


def _facing(theirs, ours):
    """Both as float64; of ours only the last token where theirs is of that alone, as logits are."""
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if theirs.ndim == ours.ndim == 3 and theirs.shape[1] == 1 < ours.shape[1]:
        ours = ours[:, -1:]
    return theirs, ours


@dataclass(frozen=True)
class Row:
    """One tensor of a comparison. status: "exact", "close", "differs", "nan" or "shape"; max_rel:
    its `gap`; worst: where that is, and what the two are there; whose: their name of it."""

    name: str
    status: str
    max_abs: float
    max_rel: float
    worst: tuple[int, ...] = ()
    theirs: float = np.nan
    ours: float = np.nan
    whose: str = ""

    @property
    def right(self) -> bool:
        """Is it ours, but for the noise of floating point?"""
        return self.status in ("exact", "close")


def compare_tensor(name, theirs, ours, whose="", line=CLOSE) -> Row:
    """The row for one tensor; `line` is the largest gap that is still close."""
    theirs, ours = _facing(theirs, ours)
    if theirs.shape != ours.shape:
        return Row(name, "shape", np.inf, np.inf, theirs.shape, whose=whose)
    if np.array_equal(theirs, ours, equal_nan=True):
        return Row(name, "exact", 0.0, 0.0, whose=whose)
    apart, width = _apart(theirs, ours), theirs.shape[-1] if theirs.ndim else 1
    relative = apart.reshape(-1, width) / _scales(ours)[:, None]
    at = np.unravel_index(relative.argmax(), theirs.shape)
    status = "close" if relative.max() <= line else "differs"
    if status == "differs" and np.isnan(theirs).all():
        status = "nan"
    worst = tuple(int(i) for i in at)
    numbers = float(apart.max()), float(relative.max()), worst, float(theirs[at]), float(ours[at])
    return Row(name, status, *numbers, whose)


def compare_records(theirs: dict, ours: dict, valid=None, whose=None, lines=None) -> list[Row]:
    """A row for each tensor of theirs, in our order; padding is left out, see `real`.

    lines: entry -> the largest gap that is still close; CLOSE where it says nothing.
    """
    return [
        compare_tensor(
            name,
            real(name, array, valid),
            real(name, ours[name], valid),
            (whose or {}).get(name),
            (lines or {}).get(name, CLOSE),
        )
        for name, array in theirs.items()
    ]


def real(name, array, valid, filling=0.0):
    """The array with the rows of padding tokens replaced by `filling`: nobody reads them.

    valid (B, T): 1 for real tokens; None if all are real.
    """
    at = axis(name, array, "TS")
    if valid is None or not at or len(array) != len(valid) or array.shape[at] != valid.shape[1]:
        return array  # logits of the last token alone are never of padding
    shape = [array.shape[i] if i in (0, at) else 1 for i in range(array.ndim)]
    return np.where(np.reshape(valid, shape) != 0, array, filling)
