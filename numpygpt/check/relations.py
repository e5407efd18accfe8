"""What their result of one step has to do with the right one, in one sentence.

A step is judged on *their* inputs. Where its result is wrong, each function below looks for one
kind of relation between what they have and what they should have: a constant factor, a parameter
too many or too few, another order, a solved eps. No list of mistakes is needed for that. A relation
counts only if it gives their numbers, to the gap up to which tensors agree.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from numpygpt import ops
from numpygpt.check.mistakes.forward import to_bfloat16, to_float16
from numpygpt.check.trace import CLOSE, HIDDEN, kind, row_gaps
from numpygpt.model import GPT2


@dataclass(frozen=True)
class Relation:
    """tensor: ours by name. kind: see KINDS. text: the sentence. gap: how far their numbers are
    from what it gives. key: what another place must share to have the same relation. also: the
    other tensors that have it. cause: the mistake in the catalogue that it amounts to, or "".
    harmless: nothing that follows can be changed by it."""

    tensor: str
    kind: str
    text: str
    gap: float
    key: str = ""
    also: tuple[str, ...] = ()
    cause: str = ""
    harmless: bool = False


@dataclass(frozen=True)
class Step:
    """One step: its entry, their result, the right result on their inputs, what they had before it
    (theirs where it is there, else ours on theirs), and the model. line: the gap that agrees."""

    name: str
    theirs: np.ndarray
    right: np.ndarray
    seen: dict
    model: GPT2
    line: float = CLOSE

    @property
    def kind(self):
        """The entry's name without its block."""
        return kind(self.name)

    @property
    def head(self):
        """ "h.3." for an entry of block 3, "" for the others."""
        return self.name.removesuffix(self.kind)

    def before(self, what):
        """The tensor of this block, or of the stream before it, that is called `what`."""
        if self.name == "ln_f":
            return self.seen[[n for n in self.seen if n.endswith("resid_post")][-1]]
        return self.seen[self.head + what]

    def gap(self, predicted):
        """The gap of their result to a prediction, in the rows where ours is wrong."""
        predicted = np.asarray(predicted)
        if predicted.shape != self.theirs.shape:
            return np.inf
        wrong = self.wrong
        gaps = row_gaps(self.theirs, predicted)
        return float(gaps[wrong].max())

    @functools.cached_property
    def wrong(self):
        """Which rows ours does not give."""
        return row_gaps(self.theirs, self.right) > self.line

    def earlier(self):
        """(name, tensor of the same shape) for all that was there before this step."""
        for name, array in self.seen.items():
            if name == self.name:
                return
            if array.shape == self.theirs.shape and array.dtype.kind == "f":
                yield name, array


def find(step: Step) -> Relation | None:
    """The first relation that gives their result, the simplest kinds first."""
    if step.theirs.shape != step.right.shape or not step.wrong.any():
        return None
    if _is_byteswapped(step):
        text = f"their {step.name} have the bytes of each number in the other order: little-endian"
        return Relation(step.name, "bytes", f"{text} float32 is wanted", 0.0, "bytes")
    spoilt = ~np.isfinite(step.theirs) & np.isfinite(step.right)
    attention = step.kind in ("attn.scores", "attn.pattern")  # there a mask may have made them
    if spoilt.any() and not attention:
        return _not_numbers(step, spoilt)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing
        for look in LOOKS:
            for relation_kind, key, text, predicted, *more in look(step):
                distance = step.gap(predicted)
                if distance <= step.line:
                    cause, harmless = (*more, "", False)[:2] if more else ("", False)
                    text = f"their {step.name} {text}{where(step, predicted)}"
                    return Relation(
                        step.name, relation_kind, text, distance, key, (), cause, harmless
                    )
    return _not_numbers(step, spoilt) if np.isnan(step.theirs[spoilt]).any() else None


def _is_byteswapped(step):
    """Were they written as big-endian float32, and read as little-endian?"""
    if np.abs(step.theirs).max() < 1e10 * np.abs(step.right).max():
        return False
    with np.errstate(all="ignore"):
        turned = step.theirs.astype(np.float32).byteswap()
        return (np.abs(turned - step.right) <= 1e-4 * np.abs(step.right)).mean() > 0.9


def _not_numbers(step, spoilt):
    """Where theirs are NaN or infinite and ours are not."""
    nan = np.isnan(step.theirs)
    if nan[np.isfinite(step.right)].all():
        return Relation(step.name, "nan", f"their {step.name} are all NaN", 0.0, "nan")
    what = "NaN" if nan.any() else "infinite"
    rows = replace(step, theirs=np.where(spoilt, np.inf, step.right))
    text = f"their {step.name} are {what} at {spoilt.sum()} of {spoilt.size} numbers"
    return Relation(step.name, "nan", text + where(rows, step.right), 0.0, what)


def where(step, predicted):
    """ ", in token 3 alone" where the relation holds there and ours is right elsewhere."""
    everywhere = row_gaps(step.theirs, np.asarray(predicted, np.float64)).max() <= step.line
    wrong = step.wrong.reshape(step.theirs.shape[:-1])
    if wrong.all() or everywhere:
        return ""
    labels = ["batch row", "head", "token"] if wrong.ndim == 3 else ["batch row", "token"]
    for axis, label in enumerate(labels):
        others = tuple(i for i in range(wrong.ndim) if i != axis)
        some, every = wrong.any(others), wrong.all(others)
        if (some == every).all() and 0 < some.sum() < len(some):
            return f", in {label} {', '.join(map(str, np.flatnonzero(some)[:8]))} alone"
    return f", in {wrong.sum()} of {wrong.size} rows"


# ---- the kinds that any step can have -----------------------------------------------------------


def _equal(step) -> Iterator:
    yield "zero", "zero", "are all 0", np.zeros_like(step.right)
    for name, array in reversed(list(step.earlier())):
        what = name.removeprefix(step.head) if step.head else name
        why = "the step between them is missing"
        if step.kind in ("attn.q", "attn.k", "attn.v"):
            why = "the wrong one was taken"
        yield "equal", what, f"are equal to their {name}: {why}", array


def _constants(step):
    """Numbers that stand in GPT-2's formulas, or nearly: name -> value, as far as they belong."""
    config = step.model.config
    d, c, h = config.n_embd // config.n_head, config.n_embd, config.n_head
    block = int(step.head.split(".")[1]) + 1 if step.head else 1
    yield from {"√2": 2**0.5, "1/√2": 2**-0.5, "the opposite": -1.0}.items()
    if step.kind.startswith("attn.") and step.kind != "attn.c_proj":
        yield from {
            "√d once more": d**0.5, "1/√d once more": d**-0.5, "d": float(d), "1/d": 1 / d,
            "√H": h**0.5, "1/√H": h**-0.5, "H": float(h), "1/H": 1 / h,
            "ln 2, so the base is 2": math.log(2), "1 / ln 2": 1 / math.log(2),
        }.items()  # fmt: skip
        if block > 1:
            yield "1 / (block + 1), scale_attn_by_inverse_layer_idx", 1 / block
    if step.kind.endswith("c_proj") or _is_sum(step):
        yield "1/√(2 L)", (2 * config.n_layer) ** -0.5
        yield "1/(2 L)", 1 / (2 * config.n_layer)
    yield from {"√C": c**0.5, "1/√C": c**-0.5, "C": float(c), "1/C": 1 / c}.items()


def _named(step, factor):
    names = [name for name, value in _constants(step) if abs(factor / value - 1) < 1e-4]
    return f": {' or '.join(names)}" if names else ""


def _slope(x, y):
    """The factor s with s x nearest to y."""
    shown = np.isfinite(x) & np.isfinite(y) & (x > HIDDEN) & (y > HIDDEN)
    x, y = x[shown], y[shown]
    return float(x @ y / (x @ x)) if x.size and x.any() else np.nan


def _factor(step) -> Iterator:
    wrong = step.wrong.reshape(step.right.shape[:-1])
    s = _slope(step.right[wrong], step.theirs[wrong])
    if np.isfinite(s):
        text = f"are {s:.4g} times ours{_named(step, s)}"
        yield "factor", f"{s:.4g}", text, s * step.right
    yield from _factor_along(step)


def _factor_along(step):
    """Another factor for each head, token, batch row or column."""
    labels = {4: ["batch row", "head", "query", "column"], 3: ["batch row", "token", "column"]}
    for axis, label in enumerate(labels.get(step.right.ndim, [])):
        n = step.right.shape[axis]
        if (
            n < 2
            or step.right.size / n < 3
            or (axis == step.right.ndim - 1 and len(step.wrong) < 4)
        ):
            continue
        pairs = [(np.take(step.right, i, axis), np.take(step.theirs, i, axis)) for i in range(n)]
        factors = np.array([_slope(x, y) for x, y in pairs])
        if not np.isfinite(factors).all():
            continue
        shape = [n if i == axis else 1 for i in range(step.right.ndim)]
        shown = ", ".join(f"{f:.4g}" for f in factors[:6]) + (", ..." if n > 6 else "")
        text = f"are ours times a factor for each {label}: {shown}"
        yield "factor", f"by {label}", text, step.right * factors.reshape(shape)


def _added(step) -> Iterator:
    """A parameter, or a constant row, too many or too few."""
    apart = step.theirs - step.right
    if step.kind in ("attn.scores", "attn.pattern"):
        return
    rows = apart.reshape(-1, apart.shape[-1])[step.wrong]
    row = rows.mean(0)
    width = len(row)
    own = f"{step.name}.bias"
    params = {n: a for n, a in step.model.params.items() if a.shape == (width,)}
    if step.kind in ("attn.q", "attn.k", "attn.v"):
        yield from _bias_of_part(step, apart)
        return
    for name in sorted(params, key=lambda n: n != own):
        a = params[name]
        s = float(row @ a / (a @ a)) if a.any() else 0.0
        if abs(s) < 1e-3:
            continue
        if name == own:
            what = {-1.0: "is missing", 1.0: "is added twice"}.get(
                round(s, 3), f"counts {1 + s:.4g}"
            )
            text = f"are ours {'less' if s < 0 else 'plus'} {abs(s):.4g} {name}: it {what}"
        else:
            text = f"are ours {'less' if s < 0 else 'plus'} {abs(s):.4g} times {name}"
            own_bias = params.get(own)
            if own_bias is not None:
                swapped = step.right - own_bias + a
                yield (
                    "parameter", f"bias {kind(name)}",
                    f"have {name} in place of {own}", swapped,
                )  # fmt: skip
        yield "added", f"{s:.3g} {kind(name)}", text, step.right + s * a
    if len(rows) > 2:
        largest = row[np.abs(row).argmax()]
        text = f"are ours plus the same row for every token (its largest number is {largest:.4g})"
        yield "added", "row", text, step.right + row
        level = float(row.mean())
        yield "added", "constant", f"are ours plus {level:.4g}", step.right + level
    level = apart.mean(-1, keepdims=True)
    centred = np.abs(step.theirs.mean(-1)).max() < 1e-5 * np.abs(step.theirs).max()
    why = "their mean is 0" if centred else "another number for each token"
    harmless = step.name == "logits"
    tail = "; softmax does not see it" if harmless else ""
    text = f"are ours plus a number for each token ({why}){tail}"
    yield "added", "level", text, step.right + level, "centred-stream" if centred else "", harmless


def _bias_of_part(step, apart):
    b, h, t, d = apart.shape
    bias = step.model.params[f"{step.head}attn.c_attn.bias"]
    part = np.split(bias, 3)["qkv".index(step.kind[-1])].reshape(h, 1, d)
    for s, what in ((-1, "is missing"), (1, "is added twice")):
        text = f"are ours {'less' if s < 0 else 'plus'} their part of c_attn.bias: it {what}"
        yield "added", f"{s} c_attn.bias", text, step.right + s * part


def _order(step) -> Iterator:
    """The same numbers at other places."""
    right, ndim = step.right, step.right.ndim
    names = {4: "batch row,head,token,column", 3: "batch row,token,column"}.get(ndim, "")
    for axis, label in enumerate(names.split(",") if names else []):
        n = right.shape[axis]
        if n < 2:
            continue
        if label == "column" and step.kind in ("attn.scores", "attn.pattern"):
            label = "key"
        for shift in (1, -1):
            text = f"are ours shifted by {shift} along the {label}s"
            yield "order", f"shift {label} {shift}", text, np.roll(right, shift, axis)
            moved = np.roll(right, shift, axis)
            first = [slice(None)] * ndim
            first[axis] = 0 if shift > 0 else -1
            moved[tuple(first)] = 0
            yield "order", f"shift {label} {shift} 0", f"{text}, with 0 where nothing comes", moved
        yield "order", f"flip {label}", f"are ours with the {label}s reversed", np.flip(right, axis)
        if n <= 64 or (label == "column" and n <= 4096):
            match = _matching(right, step.theirs, axis)
            if match is not None and not np.array_equal(match, np.arange(n)):
                shown = ", ".join(map(str, match[:8])) + (", ..." if n > 8 else "")
                text = f"are ours with the {label}s in another order: {shown}"
                yield "order", f"{label}s", text, np.take(right, match, axis)
    if ndim == 4 and right.shape[1] != right.shape[2]:
        mixed = right.swapaxes(1, 2).reshape(right.shape)
        yield "order", "reshape", "are ours, (B, T, H, .) read as (B, H, T, .)", mixed
    if ndim == 4 and right.shape[2] == right.shape[3]:
        yield "order", "transposed", "are ours transposed", right.swapaxes(2, 3)
    flat = right.reshape(len(right), -1)
    for order, label in (
        (flat.reshape(*right.shape[:1], *right.shape[1:][::-1]), "read in the transposed shape"),
    ):
        if order.ndim == 3:
            yield "order", label, f"are ours, {label}", order.swapaxes(1, 2).reshape(right.shape)


def _matching(right, theirs, axis):
    """For each slice of theirs along an axis the slice of ours it equals, or None."""
    x = np.moveaxis(right, axis, 0).reshape(right.shape[axis], -1)
    y = np.moveaxis(theirs, axis, 0).reshape(theirs.shape[axis], -1)
    x, y = np.nan_to_num(x, neginf=0), np.nan_to_num(y, neginf=0)
    squares = np.square(y).sum(1)[:, None] + np.square(x).sum(1) - 2 * y @ x.T
    match = squares.argmin(1)
    far = np.sqrt(np.maximum(squares[np.arange(len(match)), match], 0))
    if far.max() > 1e-3 * np.sqrt(np.square(x).sum(1)).max():
        return None
    return match


def _twice(step) -> Iterator:
    """The operation once more on its own result."""
    p, eps, name = step.model.params, step.model.config.layer_norm_epsilon, step.name
    if step.kind == "mlp.act":
        yield "twice", "gelu", "are gelu(gelu(c_fc)): it is applied twice", ops.gelu(step.right)
    if step.kind == "attn.pattern":
        seen = np.where(np.isneginf(step.before("attn.scores")), -np.inf, step.right)
        yield "twice", "softmax", "are softmax(softmax(scores))", ops.softmax(seen)
        yield "twice", "softmax", "are softmax(softmax(scores))", ops.softmax(step.right)
    if step.kind in ("ln_1", "ln_2", "ln_f"):
        again = ops.layer_norm(step.right, p[f"{name}.weight"], p[f"{name}.bias"], eps)
        yield "twice", "norm", "have been through the norm twice", again
    w = p.get(f"{name}.weight")
    if w is not None and w.ndim == 2 and w.shape[0] == w.shape[1]:
        again = ops.linear(step.right, w, p[f"{name}.bias"])
        yield "twice", "linear", "have been through the layer twice", again


def _clipped(step) -> Iterator:
    """An elementwise function of the right result: clipped, squashed, rounded."""
    right, theirs = step.right, step.theirs
    finite = np.isfinite(right) & np.isfinite(theirs) & (right > HIDDEN)
    if not finite.any() or step.right.dtype.kind != "f":
        return
    top, low = float(theirs[finite].max()), float(theirs[finite].min())
    if (theirs[finite] == top).sum() > 1 or (theirs[finite] == low).sum() > 1:
        limits = [("between", low, top), ("at most", -np.inf, top), ("at least", low, np.inf)]
        for label, a, b in limits:
            shown = " and ".join(f"{x:.4g}" for x in (a, b) if np.isfinite(x))
            yield (
                "function",
                "clip",
                f"are ours clipped to {label} {shown}",
                np.where(finite, np.clip(right, a, b), right),
            )
    yield "function", "abs", "are the absolute values of ours", np.abs(right)
    some = slice(None, None, max(1, int(finite.sum()) // 5000))
    x, y = right[finite][some], theirs[finite][some]
    cap = _fit_one(lambda c: c * np.tanh(x / c), y, np.abs(y).max())
    if cap:
        text = f"are {cap:.4g} tanh(ours / {cap:.4g}): a soft cap"
        yield "function", "soft cap", text, np.where(finite, cap * np.tanh(right / cap), right)
    for label, rounded in (("float16", to_float16), ("bfloat16", to_bfloat16)):
        if np.array_equal(rounded(theirs[finite]), theirs[finite]):
            text = f"are ours rounded to {label}, in this place alone"
            size = {"float16": 2**-11, "bfloat16": 2**-8}[label]
            near = (
                np.abs(theirs - right)
                <= size * 1.1 * np.abs(right) + step.line * np.abs(right[finite]).max()
            )
            if near[finite].all():
                yield "rounded", label, text, theirs


def _least_squares(x, y):
    """a with x a nearest to y; 0 where the numbers have overflown."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return np.zeros((x.shape[1], *y.shape[1:]))
    return np.linalg.lstsq(x, y, rcond=None)[0]


def _fit_one(function, y, start):
    """The parameter with which function(parameter) is nearest to y, by a search over factors."""
    best = None
    for width in (8.0, 2.0, 1.2, 1.02, 1.002, 1.0002, 1.00002, 1.000002):
        centre = start if best is None else best[1]
        for f in np.geomspace(centre / width, centre * width, 41):
            error = float(np.square(function(f) - y).sum())
            if np.isfinite(error) and (best is None or error < best[0]):
                best = error, float(f)
    return best and best[1]


def _dropped(step) -> Iterator:
    """Some are 0, the others larger: dropout, of the result or of what was added to the stream."""
    right, theirs = step.right, step.theirs
    if step.kind == "attn.scores":
        return
    for x, y in [(0.0, right), *([_terms(step)] if _is_sum(step) else [])]:
        added = theirs - x
        large = np.abs(y) > 1e-3 * np.abs(y).max()
        gone = np.abs(added) < 1e-6 * np.abs(theirs).max()
        if large.any() and 0 < gone[large].mean() < 0.7:
            factor = float(np.median(added[large & ~gone] / y[large & ~gone]))
            share = gone[large].mean()
            text = f"have {share:.0%} of what was added" if np.ndim(x) else f"have {share:.0%}"
            text += f" set to 0 and the rest times {factor:.4g}: dropout"
            cause = "dropout-left-on" if factor > 1.005 else ""
            yield "dropout", "dropout", text, x + np.where(gone, 0, factor * y), cause


def _is_sum(step):
    return step.kind in ("resid_mid", "resid_post")


# ---- embeddings ---------------------------------------------------------------------------------


def _rows_of_tables(step) -> Iterator:
    p, kind_ = step.model.params, step.kind
    tokens, positions = step.seen["tokens"], step.seen.get("positions")
    if positions is None:
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    tables = {"wte": p["wte.weight"], "wpe": p["wpe.weight"]}
    if kind_ in tables:
        yield from _found_rows(step, tables, 0.0, kind_, tokens if kind_ == "wte" else positions)
    if step.name == "h.0.resid_pre":
        wte, wpe = step.seen["wte"], step.seen["wpe"]
        c = step.model.config.n_embd
        for s, label in ((c**0.5, "√C"), (2.0, "2"), (0.5, "1/2"), (c**-0.5, "1/√C")):
            yield "terms", f"wte {label}", f"are {label} wte + wpe", s * wte + wpe
            yield "terms", f"wpe {label}", f"are wte + {label} wpe", wte + s * wpe
        yield "equal", "wte", "are wte alone: the positions are missing", wte, "no-positions"
        yield "equal", "wpe", "are wpe alone: the tokens are missing", wpe
        yield from _found_rows(step, {"wpe": tables["wpe"]}, wte, "wpe", positions)
        yield from _found_rows(step, {"wte": tables["wte"]}, wpe, "wte", tokens)


def _found_rows(step, tables, base, own, ids):
    rest = (step.theirs - base).reshape(-1, step.theirs.shape[-1])
    for label, table in tables.items():
        if table.shape[1] != rest.shape[1] or len(table) > 60000:
            continue
        squares = np.square(table).sum(1) - 2 * rest @ table.T  # nearest row, up to |rest|^2
        rows = squares.argmin(1).reshape(ids.shape)
        predicted = base + table[rows]
        shift = np.unique(rows - ids)
        if len(shift) == 1 and label == own:
            text = f"have row i{shift[0]:+d} of {label} where row i belongs"
        else:
            line = next(i for i, x in enumerate(rows != ids) if x.any()) if label == own else 0
            shown, belong = rows[line].tolist(), np.broadcast_to(ids, rows.shape)[line].tolist()
            if len(shown) > 9:
                shown, belong = (f"[{', '.join(map(str, x[:9]))}, ...]" for x in (shown, belong))
            place = f" in batch row {line}" if len(rows) > 1 else ""
            text = f"have the rows {shown} of {label}{place}, not {belong}"
            text += _given_to_them(rows, ids, label, own)
        cause = ""
        if own == "wpe" and label == own and len(shift) == 1 and shift[0] == 1:
            cause = "positions-off-by-one"
        yield "row", f"{label} {shift.tolist() if len(shift) == 1 else ''}", text, predicted, cause


def _given_to_them(rows, ids, label, own):
    """What other ids mean, or other positions."""
    if label != own:
        return ""
    if own == "wte":
        return ": other tokens were given to their program"
    lengths = (rows != 0).sum(1)
    pads = rows.shape[1] - 1 - lengths
    if (rows == np.maximum(np.arange(rows.shape[1]) - pads[:, None], 0)).all():
        return f": as with padding at the left of {pads.tolist()} tokens, which --pads says"
    return ""


# ---- linear layers ------------------------------------------------------------------------------

INPUT = {
    "attn.c_attn": "ln_1",
    "attn.c_proj": "attn.z",
    "mlp.c_fc": "ln_2",
    "mlp.c_proj": "mlp.act",
}


def _linear(step) -> Iterator:
    p, name = step.model.params, step.name
    if step.kind in ("attn.q", "attn.k", "attn.v"):
        yield from _split(step)
        return
    if step.kind not in INPUT:
        return
    x, w, b = step.before(INPUT[step.kind]), p[f"{name}.weight"], p[f"{name}.bias"]
    product = x @ w
    s = _slope(product[_rows(step)], (step.theirs - b)[_rows(step)])
    yield "factor", f"{s:.4g} product", f"are {s:.4g} x w + b{_named(step, s)}", s * product + b
    s = _slope(product[_rows(step)], step.theirs[_rows(step)])
    yield "factor", f"{s:.4g} no bias", f"are {s:.4g} x w, without b", s * product
    if w.shape[0] == w.shape[1]:
        yield (
            "order", "weight transposed", f"are x w^T + b: {name}.weight is transposed",
            x @ w.T + b, "square-weight-transposed",
        )  # fmt: skip
        yield "order", "weight transposed, no bias", "are x w^T, without b", x @ w.T
    turned = w.reshape(w.shape[::-1]).T
    yield (
        "order", "weight out-in", f"come from {name}.weight read as (out, in) in memory",
        x @ turned + b, "weights-out-in",
    )  # fmt: skip
    for label, changed in _changed_weights(w):
        yield "rounded", label, f"come from a weight that is {label}", x @ changed + b
    for other, array in step.seen.items():
        if other == name:
            break
        if array.shape == x.shape and array is not x and array.dtype.kind == "f":
            text = f"are computed from {other} where {step.head}{INPUT[step.kind]} belongs"
            yield "input", other.removeprefix(step.head), text, array @ w + b
    for other, weight in p.items():
        if weight.shape == w.shape and other != f"{name}.weight":
            there = other.removesuffix(".weight")
            yield (
                "parameter", f"weight {kind(there)}",
                f"have {there}.weight and .bias in place of {name}'s",
                x @ weight + p.get(f"{there}.bias", b),
            )  # fmt: skip
            yield (
                "parameter", f"weight {kind(there)} alone",
                f"have {other} in place of {name}.weight", x @ weight + b,
            )  # fmt: skip
    for axis, label in ((0, "rows"), (1, "columns")):
        yield (
            "order", f"weight {label} reversed",
            f"come from {name}.weight with its {label} reversed",
            x @ np.flip(w, axis) + b,
        )  # fmt: skip
    yield "function", "relu", "are relu(x w + b)", np.maximum(step.right, 0)
    yield "function", "gelu", "are gelu(x w + b)", ops.gelu(step.right)


def _changed_weights(w):
    yield "rounded to float16", to_float16(w)
    yield "rounded to bfloat16", to_bfloat16(w)
    for label, axis in (
        ("8 bits, one scale", None),
        ("8 bits, a scale for each column", 0),
        ("8 bits, a scale for each row", 1),
    ):
        scale = np.abs(w).max(axis, keepdims=True) / 127
        yield f"rounded to {label}", np.round(w / scale) * scale


def _rows(step):
    return step.wrong.reshape(step.theirs.shape[:-1])


def _split(step) -> Iterator:
    """How else c_attn's columns could have become q, k and v."""
    x, h = step.before("attn.c_attn"), step.model.config.n_head
    b, t, c3 = x.shape
    c, part = c3 // 3, "qkv".index(step.kind[-1])
    d = c // h
    thirds = [x[..., i * c : (i + 1) * c] for i in range(3)]
    for i, third in enumerate(thirds):
        if i != part:
            text = f"are the columns of {'qkv'[i]} in c_attn"
            yield "order", f"columns of {'qkv'[i]}", text, ops.split_heads(third, h)
    per_head = x.reshape(b, t, h, 3, d)[:, :, :, part].swapaxes(1, 2)
    text = "are read from c_attn head by head, (H, 3, D), where it is (3, H, D)"
    yield "order", "per head", text, per_head, "qkv-per-head"
    own = thirds[part]
    text = "are (B, T, C) read as (B, H, T, D) without swapping T and H"
    yield "order", "not swapped", text, own.reshape(b, h, t, d), "heads-not-transposed"
    text = "have heads that take every H-th column, where head h takes D in a row"
    yield (
        "order", "interleaved", text, own.reshape(b, t, d, h).transpose(0, 3, 1, 2),
        "heads-interleaved",
    )  # fmt: skip
    last = x.reshape(b, t, h, d, 3)[..., part].swapaxes(1, 2)
    yield "order", "every third", "are every third column of c_attn, (H, D, 3)", last
    if step.kind != "attn.v":
        for label, turned in _rotated(step.right):
            yield (
                "rotation",
                label,
                f"are ours rotated by position ({label}): GPT-2 has no RoPE",
                turned,
            )
        centred = step.right - step.right.mean(-1, keepdims=True)
        normed = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
        yield "function", "norm", "are ours normed in each head", normed
        unit = step.right / np.sqrt(np.square(step.right).sum(-1, keepdims=True))
        yield "function", "unit", "are ours divided by their length", unit
        rms = step.right / np.sqrt(np.square(step.right).mean(-1, keepdims=True) + 1e-5)
        yield "function", "rms", "are ours divided by their root mean square", rms


def _rotated(x):
    """Rotary embeddings, in halves and in pairs."""
    t, d = x.shape[-2:]
    if d % 2:
        return
    angle = np.arange(t)[:, None] / 10000 ** (np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = x[..., : d // 2], x[..., d // 2 :]
    yield "RoPE, halves", np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    a, b = x[..., ::2], x[..., 1::2]
    yield "RoPE, pairs", np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(x.shape)


# ---- layer norm ---------------------------------------------------------------------------------


def _norm(step) -> Iterator:
    if step.kind not in ("ln_1", "ln_2", "ln_f"):
        return
    p, eps, name = step.model.params, step.model.config.layer_norm_epsilon, step.name
    x = step.before({"ln_1": "resid_pre", "ln_2": "resid_mid"}.get(step.kind, ""))
    g, b = p[f"{name}.weight"], p[f"{name}.bias"]
    yield from _solved(step, x, g, b)
    centred = x - x.mean(-1, keepdims=True)
    root = np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
    n = centred / root
    yield "parameter", "no gain", f"lack the gain: {name}.weight", n + b, ""
    yield "parameter", "neither", "lack gain and bias: they stop after the division", n
    yield "parameter", "1 + gain", f"have 1 + {name}.weight for the gain", n * (1 + g) + b
    yield "order", "bias first", "are (n + b) g: the bias is added before the gain", (n + b) * g
    yield "equal", "centred", "are not divided by the deviation", centred * g + b
    for other in [m.removesuffix(".weight") for m in p if ".ln_" in m or m[:3] == "ln_"]:
        if other + ".weight" in p and other != name:
            og, ob = p[f"{other}.weight"], p[f"{other}.bias"]
            key = kind(other)
            yield "parameter", f"norm {key}", f"have the gain and bias of {other}", n * og + ob
            yield "parameter", f"gain {key}", f"have the gain of {other}", n * og + b
            yield "parameter", f"bias {key}", f"have the bias of {other}", n * g + ob
    for other, array in step.earlier():
        if array is not x:
            normed = ops.layer_norm(array, g, b, eps)
            what = "the stream" if step.kind == "ln_f" else step.head + "resid"
            text = f"are the norm of {other}, where that of {what} belongs"
            yield "input", other.removeprefix(step.head), text, normed
    for axes, label in (((-2, -1), "tokens and channels"), ((-2,), "tokens"), ((0,), "the batch")):
        spread = np.sqrt(x.var(axes, keepdims=True) + eps)
        text = f"are normed over {label}, not over the channels of each token"
        cause = "norm-over-tokens" if axes == (-2, -1) else ""
        yield "function", label, text, (x - x.mean(axes, keepdims=True)) / spread * g + b, cause
    yield from _by_column(step, n, g, b)


def _solved(step, x, g, b) -> Iterator:
    """Mean, deviation and eps as they must have been, from each row: y = a (x - m) g + b."""
    rows = step.wrong
    x_, y = (z.reshape(-1, z.shape[-1])[rows] for z in (x, step.theirs))
    n = (y - b) / g
    weight = np.abs(g) > 1e-3 * np.abs(g).max()
    x_, n = x_[:, weight], n[:, weight]
    full = x.reshape(-1, x.shape[-1])
    xc = x_ - x_.mean(-1, keepdims=True)
    a = (xc * (n - n.mean(-1, keepdims=True))).sum(-1) / np.square(xc).sum(-1)
    m = x_.mean(-1) - n.mean(-1) / a
    mean, c = full.mean(-1)[rows], x.shape[-1]
    variance = full.var(-1)[rows]
    shift = np.median(np.abs(m) / (np.abs(mean) + 1e-30))
    centred = shift > 1e-2 or np.allclose(m, mean, 1e-3, 1e-3 * np.sqrt(variance).max())
    all_mean = full.mean(-1, keepdims=True)
    square = np.square(full).mean(-1)
    spread = {
        "var": full.var(-1), "mean square": square, "var, divided by C - 1": full.var(-1, ddof=1),
        "(sum of squares) / C^2": full.var(-1) / c,
    }  # fmt: skip
    shape = x.shape

    def norm(scale, subtract):
        moved = full - (all_mean if subtract else 0)
        return (moved / scale[:, None]).reshape(shape) * g + b

    for subtract in (True, False):
        what = "" if subtract else ", and the mean is not subtracted"
        for label, v in spread.items():
            solved = float(np.median(1 / np.square(a) - v[rows]))
            ours = label == "var" and subtract
            for eps in _tidy(solved):
                less = " (or another as small)" if eps < 1e-7 else ""
                text = f"have eps = {eps:.3g}{less} in sqrt({label} + eps){what}"
                cause = _eps_cause(eps) if ours else ""
                yield (
                    "eps",
                    f"{label} {eps:.2g}{what}",
                    text,
                    norm(np.sqrt(v + eps), subtract),
                    cause,
                )
            solved = float(np.median(1 / np.abs(a) - np.sqrt(v[rows])))
            for eps in _tidy(solved):
                text = f"have eps = {eps:.3g} outside the root, sqrt({label}) + eps{what}"
                yield "eps", f"outside {label}{what}", text, norm(np.sqrt(v) + eps, subtract)
    eps = step.model.config.layer_norm_epsilon
    text = "are divided by var + eps, without the root"
    yield "function", "no root", text, norm(spread["var"] + eps, True)
    s = float(np.median(a * np.sqrt(variance + eps)))
    text = f"are {s:.4g} times too large before gain and bias{_named(step, s)}"
    yield "factor", f"{s:.4g} normed", text, norm(np.sqrt(spread["var"] + eps) / s, True)
    if centred and len(a) > 1:
        power = np.polyfit(np.log(variance), np.log(np.abs(a)), 1)
        text = f"are (x - mean) times {np.exp(power[1]):.4g} var^{power[0]:.3g}, not var^-0.5"
        scale = 1 / (np.exp(power[1]) * spread["var"] ** power[0])
        yield "function", f"power {power[0]:.2g}", text, norm(scale, True)
    by_row = np.zeros(len(full))
    by_row[rows] = a
    own = np.zeros_like(all_mean)
    own[rows, 0] = m
    text = "are an affine function of each token's x, but with another mean or deviation"
    yield "function", "affine", text, ((full - own) * by_row[:, None]).reshape(shape) * g + b


def _tidy(solved):
    """The round numbers beside a solved eps, 0, and itself."""
    if not 3e-8 <= solved < np.inf:
        yield from (1e-12, 1e-8, 0.0)
    else:
        exponent = math.floor(math.log10(solved))
        yield from (float(f"{m}e{exponent}") for m in (1, 2, 3, 5, 10))
    yield from (1e-5, 1e-6, 1e-8, 1e-10, 1e-12, 0.0)
    yield solved


def _eps_cause(eps):
    return {1e-6: "eps-1e-6", 1e-12: "eps-1e-12", 1e-10: "eps-1e-10", 0.0: "eps-zero"}.get(eps, "")


def _by_column(step, n, g, b) -> Iterator:
    """Another gain and bias for each channel, read off the rows."""
    if len(step.wrong) < 4:
        return
    x, y = (z.reshape(-1, z.shape[-1]) for z in (n, step.theirs))
    xm, ym = x.mean(0), y.mean(0)
    gain = ((x - xm) * (y - ym)).sum(0) / np.square(x - xm).sum(0)
    bias = ym - gain * xm
    for label, candidate in {
        "g^2": g * g,
        "|g|": np.abs(g),
        "1/g": 1 / g,
        "g reversed": g[::-1],
    }.items():
        yield "parameter", label, f"have {label} for the gain g", n * candidate + b
    text = "have another gain and bias than ours (the same for every token)"
    yield "parameter", "unknown gain", text, n * gain + bias


# ---- attention ----------------------------------------------------------------------------------


def _scores(step) -> Iterator:
    if step.kind != "attn.scores":
        return
    q, k, v = (step.before(f"attn.{x}") for x in "qkv")
    d = q.shape[-1]
    raw = q @ k.swapaxes(-1, -2) / d**0.5
    shown = step.theirs > HIDDEN
    hidden = np.where(shown, 0, -np.inf)
    yield (
        "mask", _mask_key(shown, step), f"show {_mask_words(shown, step)}", raw + hidden,
        _mask_cause(shown, step),
    )  # fmt: skip
    s = _slope(raw[shown], step.theirs[shown])
    yield (
        "mask", f"{_mask_key(shown, step)} {s:.4g}",
        f"are {s:.4g} times ours{_named(step, s)}, and show {_mask_words(shown, step)}",
        s * raw + hidden,
    )  # fmt: skip
    future = np.isneginf(step.right)
    fill = np.unique(np.round(step.theirs[future], 6)) if future.any() else []
    if len(fill) == 1:
        text = f"are {fill[0]:.4g} where the mask is"
        if fill[0] > -100:  # exp(-104) is 0 in float32
            text += ", which exp does not turn into 0"
        yield "mask", f"fill {fill[0]:.4g}", text, np.where(future, fill[0], raw)
        s = _slope(raw[~future], step.theirs[~future])
        yield (
            "mask",
            f"fill {fill[0]:.4g} {s:.4g}",
            f"are {s:.4g} times ours, and {text}",
            np.where(future, fill[0], s * raw),
        )
    for label, product in (
        ("q q^T", q @ q.swapaxes(-1, -2)), ("k k^T", k @ k.swapaxes(-1, -2)),
        ("q v^T", q @ v.swapaxes(-1, -2)), ("k q^T", k @ q.swapaxes(-1, -2)),
        ("k v^T", k @ v.swapaxes(-1, -2)),
    ):  # fmt: skip
        yield "input", label, f"are {label} / √d, where q k^T belongs", product / d**0.5 + hidden
    for label in ("RoPE, halves", "RoPE, pairs"):
        turned = dict(_rotated(q)).get(label), dict(_rotated(k)).get(label)
        if turned[0] is not None:
            text = f"are those of q and k rotated by position ({label}): GPT-2 has no RoPE"
            yield "rotation", label, text, turned[0] @ turned[1].swapaxes(-1, -2) / d**0.5 + hidden
    unit = [z / np.sqrt(np.square(z).sum(-1, keepdims=True)) for z in (q, k)]
    cosine = unit[0] @ unit[1].swapaxes(-1, -2)
    s = _slope(cosine[shown], step.theirs[shown])
    yield "function", "cosine", f"are {s:.4g} times the cosine of q and k", s * cosine + hidden
    yield from _by_distance(step, raw, shown, hidden)


def _by_distance(step, raw, shown, hidden):
    """Something added that hangs on head, and on how far the key is from the query."""
    apart = np.where(shown, step.theirs - raw, 0)
    h, t, s = raw.shape[1:]
    distance = np.arange(s - t, s)[:, None] - np.arange(s)
    slopes = np.zeros((h, 1, 1))
    for i in range(h):
        x = np.broadcast_to(distance, apart[:, i].shape)[shown[:, i]]
        y = apart[:, i][shown[:, i]]
        slopes[i] = (x @ y) / max(x @ x, 1)
    numbers = ", ".join(f"{x:.4g}" for x in slopes[:6, 0, 0])
    text = f"are ours plus {numbers} per step of distance (a factor for each head): ALiBi"
    yield "added", "by distance", text, raw + slopes * distance + hidden
    level = np.zeros_like(apart)
    for gap_ in np.unique(distance):
        at = (distance == gap_) & shown.any((0, 1))
        level[..., at] = apart[..., at].mean()
    yield "added", "by distance", "are ours plus a number for each distance", raw + level + hidden
    row = apart.sum(-1, keepdims=True) / np.maximum(shown.sum(-1, keepdims=True), 1)
    text = "are ours plus a number for each query, which softmax does not see"
    yield "added", "level", text, raw + row + hidden, "", True


def _mask_key(shown, step):
    return _mask_words(shown, step)


def _mask_words(shown, step):
    """Which keys a query sees, in words."""
    t, s = shown.shape[-2:]
    query, key = np.arange(s - t, s)[:, None], np.arange(s)
    patterns = {
        "every key: there is no causal mask": np.ones((t, s), bool),
        "the keys up to the query, as they should": key <= query,
        "the keys before the query alone: the diagonal is hidden": key < query,
        "the keys after the query: the mask is transposed": key >= query,
        "one key too many, the next one": key <= query + 1,
        "the keys after the query alone": key > query,
        "the mask counted from the upper left corner": key <= query - (s - t),
        "each query alone": key == query,
        "the first key alone": np.broadcast_to(key == 0, (t, s)),
        "all but the first key": (key <= query) & ((key > 0) | (query == 0)),
    }
    union = shown.reshape(-1, t, s)
    for words, pattern in patterns.items():
        if (union == pattern).all():
            return words
    for window in range(1, s):
        if (union == ((key <= query) & (key > query - window))).all():
            return f"the last {window} keys alone: a window"
        if (union == ((key <= query) & (key >= window))).all():
            return f"no key before {window}"
        if (union == (key <= query + window)).all():
            return f"{window} keys after the query"
        if (union == ((key <= query) & ((query - key) % (window + 1) == 0))).all():
            return f"every {window + 1}th key"
    right = ~np.isneginf(step.right if step.kind == "attn.scores" else step.before("attn.scores"))
    more, fewer = int((shown & ~right).sum()), int((~shown & right).sum())
    at = np.argwhere(shown != right)
    where = f" (first: query {at[0][-2]}, key {at[0][-1]})" if len(at) else ""
    return f"{more} keys too many and {fewer} too few{where}"


def _mask_cause(shown, step):
    words = _mask_words(shown, step)
    for start, cause in (("every key", "no-mask"), ("one key too many", "mask-off-by-one")):
        if words.startswith(start):
            return cause
    return ""


def _pattern(step) -> Iterator:
    if step.kind != "attn.pattern":
        return
    scores, theirs = step.before("attn.scores"), step.theirs
    q, k = step.before("attn.q"), step.before("attn.k")
    raw = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    lowest = np.finfo(np.float64).min
    shown = theirs > 0
    words = _mask_words(shown, step)
    masked = np.where(shown, raw, lowest)
    cause = _mask_cause(shown, step)
    yield "mask", words, f"show {words}", ops.softmax(masked), cause
    s = _temperature(theirs, raw, shown)
    text = f"are softmax({s:.4g} times our scores){_named(step, s)}"
    if abs(s) > 1e-6:  # otherwise uniform, see below
        scaled = np.where(np.isneginf(scores), lowest, s * scores)
        yield "factor", f"{s:.4g}", text, ops.softmax(scaled)
        both = ops.softmax(np.where(shown, s * raw, lowest))
        yield "mask", f"{words} {s:.4g}", f"{text}, and show {words}", both
    whole = ops.softmax(raw)
    visible = ~np.isneginf(scores)
    yield (
        "mask", "after softmax", "are masked after the softmax, so that rows do not sum to 1",
        np.where(visible, whole, 0), "mask-after-softmax",
    )  # fmt: skip
    zeros = ops.softmax(np.where(visible, raw, 0))
    text = "are 0 in the scores where the mask is, and exp(0) is 1"
    yield "mask", "zeros", text, zeros, "mask-with-zeros"
    e = np.where(
        visible, np.exp(scores - np.where(visible, scores, lowest).max(-1, keepdims=True)), 0
    )
    plain, lowered = np.where(visible, np.exp(scores), 0), np.where(visible, scores, lowest)
    total = plain.sum(-1, keepdims=True)
    for label, y in (
        ("exp(scores), not divided by their sum", plain), ("exp(scores - max), not divided", e),
        ("exp(scores) / (1 + sum)", plain / (1 + total)),
        ("sigmoid(scores)", np.where(visible, 1 / (1 + np.exp(-scores)), 0)),
        ("relu(scores)", np.where(visible, np.maximum(scores, 0), 0)),
        ("relu(scores) / sum", np.where(visible, np.maximum(scores, 0), 0)
         / np.where(visible, np.maximum(scores, 0), 0).sum(-1, keepdims=True)),
        ("uniform over the visible keys", visible / visible.sum(-1, keepdims=True)),
        ("scores, without softmax", np.where(visible, scores, 0)),
        ("1 at the largest score, 0 elsewhere", (lowered == lowered.max(-1, keepdims=True)) * 1.0),
        ("log softmax(scores)", np.log(step.right)),
    ):  # fmt: skip
        yield "function", label, f"are {label}", y
    for axis, label in ((-2, "queries"), (1, "heads"), (0, "the batch")):
        y = np.exp(scores - scores.max(axis, keepdims=True))
        cause = "softmax-axis" if axis == -2 else ""
        text = f"are a softmax over {label}, not over the keys"
        yield "function", label, text, np.nan_to_num(y / y.sum(axis, keepdims=True)), cause
    flat = np.where(visible, np.exp(scores), 0)
    text = "are divided by the sum over all queries and keys"
    yield "function", "whole", text, flat / flat.sum((-2, -1), keepdims=True)
    power = _slope(np.log(step.right)[visible], np.log(theirs)[visible])
    yield "function", f"power {power:.3g}", f"are ours to the power {power:.4g}", step.right**power


def _temperature(theirs, scores, shown):
    """The factor of the scores, from log p = s score + a number for each row."""
    count = np.maximum(shown.sum(-1, keepdims=True), 1)
    x, y = (np.where(shown, z, 0) for z in (scores, np.log(theirs)))
    x, y = (np.where(shown, z - z.sum(-1, keepdims=True) / count, 0) for z in (x, y))
    return float((x * y).sum() / max((x * x).sum(), 1e-300))


def _values(step) -> Iterator:
    if step.kind != "attn.z":
        return
    pattern = step.before("attn.pattern")
    q, k, v = (step.before(f"attn.{x}") for x in "qkv")
    b, h, t, d = q.shape
    z = pattern @ v
    text = "are (B, H, T, D) read as (B, T, C) without swapping H and T"
    yield "order", "not swapped", text, z.reshape(b, t, h * d), "merge-not-transposed"
    yield (
        "order", "interleaved", "have the heads' columns interleaved",
        z.transpose(0, 2, 3, 1).reshape(b, t, -1),
    )  # fmt: skip
    for label, other in (
        ("pattern k", pattern @ k), ("pattern q", pattern @ q), ("v, without the pattern", v),
        ("pattern^T v", pattern.swapaxes(-1, -2) @ v),
        ("the mean of v", np.broadcast_to(v.mean(2, keepdims=True), z.shape)),
        ("the sum of v up to each token", np.cumsum(v, 2)),
    ):  # fmt: skip
        yield "input", label, f"are {label}, where pattern v belongs", ops.merge_heads(other)
    for shift in range(1, h):
        moved = np.roll(z, shift, 1)
        yield "order", "heads", f"have the heads shifted by {shift}", ops.merge_heads(moved)
        moved = pattern @ np.roll(v, shift, 1)
        text = f"have each head's pattern with the values of head {-shift:+d}"
        yield "order", "values of heads", text, ops.merge_heads(moved)
    yield "order", "heads", "have the heads reversed", ops.merge_heads(z[:, ::-1])
    together = np.broadcast_to(pattern.mean(1, keepdims=True), pattern.shape)
    yield (
        "input",
        "mean pattern",
        "have one pattern, the mean of all heads",
        ops.merge_heads(together @ v),
    )


# ---- activation ---------------------------------------------------------------------------------


def _erf(x):
    return np.vectorize(math.erf, otypes=[float])(x)


def _activation(step) -> Iterator:
    if step.kind != "mlp.act":
        return
    x, theirs = step.before("mlp.c_fc"), step.theirs
    positive = np.maximum(x, 0)
    yield (
        "function",
        "erf",
        "are x/2 (1 + erf(x / √2)), the exact GELU",
        x / 2 * (1 + _erf(x / 2**0.5)),
        "erf-gelu",
    )
    for label, y in {
        "relu(x)": positive, "x, without an activation": x, "tanh(x)": np.tanh(x),
        "x sigmoid(x), SiLU": x / (1 + np.exp(-x)), "relu(x)^2": positive**2,
        "sigmoid(x)": 1 / (1 + np.exp(-x)), "softplus(x)": np.logaddexp(0, x),
        "elu(x)": np.where(x > 0, x, np.expm1(x)),
        "x tanh(softplus(x)), Mish": x * np.tanh(np.logaddexp(0, x)),
        "x / (1 + |x|)": x / (1 + np.abs(x)), "x^2": x * x, "|x|": np.abs(x), "sin(x)": np.sin(x),
        "selu(x)": 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x)),
        "x hardsigmoid(x)": x * np.clip(x / 6 + 0.5, 0, 1), "clip(x, -1, 1)": np.clip(x, -1, 1),
        "x Φ without its half, x (1 + tanh(...))": 2 * step.right,
        "x/2 tanh(...), the 1 is missing": step.right - x / 2,
        "1/2 (1 + tanh(...)), the factor x is missing": step.right / x,
    }.items():  # fmt: skip
        yield "function", label, f"are {label}", y, {"relu(x)": "relu"}.get(label, "")
    wrong = _rows(step)
    xs, ys = x[wrong].reshape(-1), theirs[wrong].reshape(-1)
    if xs.size > 4000:
        xs, ys = xs[:: xs.size // 4000], ys[:: ys.size // 4000]
    s = _fit_one(lambda a: xs / (1 + np.exp(-a * xs)), ys, 1.0)
    if s:
        cause = "sigmoid-gelu" if abs(s / 1.702 - 1) < 1e-4 else ""
        yield (
            "function",
            f"sigmoid {s:.4g}",
            f"are x sigmoid({s:.4g} x)",
            x / (1 + np.exp(-s * x)),
            cause,
        )
    slope = _slope(xs[xs < 0], ys[xs < 0])
    yield (
        "function",
        f"leaky {slope:.3g}",
        f"are x, and {slope:.4g} x where x < 0",
        np.where(x > 0, x, slope * x),
    )
    yield from _gelu_constants(x, xs, ys)
    yield from _any_function(step, x)


def _gelu_constants(x, xs, ys) -> Iterator:
    """x/2 (1 + tanh(a x + c x^3)) with a and c solved for."""
    inside = 2 * ys / xs - 1
    good = (np.abs(inside) < 0.999) & (np.abs(xs) > 1e-2)
    if good.sum() < 3:
        return
    y = np.arctanh(inside[good])
    terms = np.stack([xs[good], xs[good] ** 3], 1)
    a, c = _least_squares(terms, y)
    predicted = x / 2 * (1 + np.tanh(a * x + c * x**3))
    text = (
        f"are x/2 (1 + tanh({a:.5g} (x + {c / a:.5g} x^3))), where the constants are "
        f"{ops.GELU_SCALE:.5g} and {ops.GELU_CUBIC}"
    )
    cause = "gelu-typo" if abs(c / a / 0.44715 - 1) < 1e-3 else ""
    yield "function", f"gelu {a:.4g} {c / a:.4g}", text, predicted, cause
    y = np.arctanh(np.clip(inside, -0.999999, 0.999999))[good]
    a, c = _least_squares(np.stack([xs[good], xs[good] ** 2], 1), y)
    predicted = x / 2 * (1 + np.tanh(a * x + c * x**2))
    text = f"are x/2 (1 + tanh({a:.5g} (x + {c / a:.5g} x^2))): a square where the cube belongs"
    yield "function", "square", text, predicted


def _any_function(step, x) -> Iterator:
    """Some other function of x alone: neighbouring x have neighbouring results."""
    order = np.argsort(x, axis=None)
    xs, ys = x.reshape(-1)[order], step.theirs.reshape(-1)[order]
    if len(xs) < 200 or not np.isfinite(ys).all():
        return
    guess = ys.copy()
    share = (xs[1:-1] - xs[:-2]) / np.maximum(xs[2:] - xs[:-2], 1e-300)
    guess[1:-1] = ys[:-2] + share * (ys[2:] - ys[:-2])
    inner = slice(len(xs) // 50, -(len(xs) // 50))
    error = np.abs(guess - ys)[inner]
    if np.median(error) < 1e-4 * np.abs(ys).max() and error.max() < 0.05 * np.abs(ys).max():
        at = [f"{p:g} -> {np.interp(p, xs, ys):.4g}" for p in (-2, -1, 0, 1, 2)]
        text = f"are another function of x = mlp.c_fc, elementwise: {', '.join(at)}"
        yield "function", "unknown", text, step.theirs


# ---- the residual stream ------------------------------------------------------------------------


def _terms(step):
    return tuple(step.before(name) for name in _term_names(step))


def _term_names(step):
    """What a sum of the stream is made of."""
    if step.kind == "resid_mid":
        return "resid_pre", "attn.c_proj"
    return "resid_mid", "mlp.c_proj"


def _combination(step) -> Iterator:
    """A sum of one, two or three of the tensors that were there."""
    if step.kind not in ("resid_mid", "resid_post"):
        if step.kind in ("attn.c_proj", "mlp.c_proj") or step.name == "ln_f":
            yield from _sums(step, 2)
        return
    yield from _sums(step, 3)


def _sums(step, most):
    rows = _rows(step)
    names, arrays = [], []
    for name, array in list(step.earlier())[::-1] + [("ours", step.right)]:
        if name.startswith(step.head or "h.") or name in ("wte", "wpe", "h.0.resid_pre", "ours"):
            names.append(name)
            arrays.append(array[rows].reshape(-1))
    if step.kind in ("resid_mid", "resid_post"):
        names, arrays = names[:-1], arrays[:-1]
    y = step.theirs[rows].reshape(-1)
    if not np.isfinite(y).all():
        return
    pick = slice(None, None, max(1, len(y) // 5000))
    y = y[pick]
    columns = [a[pick] for a in arrays]
    n = min(len(columns), 14)
    full = dict(step.earlier()) | {"ours": step.right}
    for count in range(1, most + 1):
        for some in itertools.combinations(range(n), count):
            x = np.stack([columns[i] for i in some], 1)
            solution = _least_squares(x, y)
            if (
                np.abs(x @ solution - y).max() > 1e-3 * np.abs(y).max()
                or (np.abs(solution) < 1e-3).any()
            ):
                continue
            found = {
                names[i].removeprefix(step.head): s for i, s in zip(some, solution, strict=True)
            }
            if _is_sum(step) and found.keys() == set(_term_names(step)):
                if np.abs(solution - 1).max() < 1e-5:
                    continue  # the right sum
            terms = [f"{_coefficient(s)}{names[i]}" for i, s in zip(some, solution, strict=True)]
            key = " ".join(
                f"{s:.3g} {names[i].removeprefix(step.head)}"
                for i, s in zip(some, solution, strict=True)
            )
            text = f"are {' + '.join(terms)}"
            if _is_sum(step):
                a, b = _term_names(step)
                text += f", where {step.head}{a} + {step.head}{b} belongs"
            predicted = sum(s * full[names[i]] for i, s in zip(some, solution, strict=True))
            yield "terms", key, text, predicted


def _coefficient(s):
    return "" if abs(s - 1) < 1e-5 else f"{s:.4g} "


# ---- logits -------------------------------------------------------------------------------------


def _logits(step) -> Iterator:
    if step.name != "logits":
        return
    p, theirs = step.model.params, step.theirs
    x = step.seen["ln_f"]
    if theirs.shape[1] != x.shape[1]:
        x = x[:, -theirs.shape[1] :]
    posts = [n for n in step.seen if n.endswith(("resid_post", "resid_mid", "ln_2"))]
    table = p.get("lm_head.weight", p["wte.weight"])
    for name in posts[::-1]:
        before = step.seen[name][:, -x.shape[1] :]
        yield "input", name, f"are {name} wte^T: ln_f is missing", before @ table.T
    g, b, eps = p["ln_f.weight"], p["ln_f.bias"], step.model.config.layer_norm_epsilon
    for name in [n for n in posts if n.endswith("resid_post")][-2::-1]:
        early = ops.layer_norm(step.seen[name][:, -x.shape[1] :], g, b, eps) @ table.T
        block = name.split(".")[1]
        yield "input", f"after {name}", f"are those of a model that ends with block {block}", early
    if "lm_head.weight" in p:
        text = "come from wte, but this model has lm_head.weight"
        yield "parameter", "wte", text, x @ p["wte.weight"].T, "untied-unembedding"
    turned = table.reshape(table.shape[::-1])
    text = "come from wte (V, C) read as (C, V), without a transpose"
    yield "order", "table read", text, x @ turned, "unembedding-reshaped"
    for shift in (1, -1):
        yield "order", f"ids {shift}", f"are shifted by {shift} id", np.roll(step.right, shift, -1)
    text = "are softmax(logits)"
    yield "function", "softmax", text, ops.softmax(step.right), "", True
    text = "are log softmax(logits)"
    yield "function", "log softmax", text, np.log(ops.softmax(step.right)), "", True
    for label, changed in _changed_weights(table):
        yield "rounded", label, f"come from a table that is {label}", x @ changed.T
    rows, y = x.reshape(-1, x.shape[-1]), theirs.reshape(-1, theirs.shape[-1])
    if len(rows) > rows.shape[1] and np.isfinite(y).all():
        other = _least_squares(rows, y)
        text = "are linear in ln_f, but with another table than wte"
        yield (
            "parameter",
            "another table",
            text,
            (rows @ other).reshape(theirs.shape),
            "untied-unembedding",
        )


# the simplest first; what only one kind of step can have goes before what any can
LOOKS = (
    _equal, _rows_of_tables, _factor, _twice, _activation, _scores, _pattern, _dropped, _linear,
    _norm, _values, _logits, _added, _combination, _order, _clipped,
)  # fmt: skip
