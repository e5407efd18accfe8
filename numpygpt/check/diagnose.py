"""Which known mistake made their numbers.

Each step of the reference is done on *their* numbers, and on its own: a step that gives theirs in
neither way is wrong by itself, whatever came before. The same is done under each known mistake; one
that reproduces their numbers is a cause. It stays on while the next step is looked at.
"""

import itertools
import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from numpygpt.check.mistakes import (
    FORWARD,
    MISTAKES,
    apply,
    rounded_results,
    to_bfloat16,
    to_float16,
)
from numpygpt.check.trace import CLOSE, HIDDEN, compare_records, gap, real, replay
from numpygpt.model import GPT2, as_dtype, with_ops

MAX_CAUSES = 5
HALVES = {"bfloat16": to_bfloat16, "float16": to_float16}  # bfloat16 first: most fit in both


@dataclass(frozen=True)
class Case:
    """What another program computed, and from what: see `replay` for the fields."""

    model: GPT2
    tokens: np.ndarray
    theirs: dict
    pads: np.ndarray | None = None
    chunks: list | None = None


@dataclass(frozen=True)
class Cause:
    """A mistake that reproduces their numbers of `tensor`, from which the right step is `times` as
    far away. explains: all tensors that only the mistake gives. ties: mistakes that do as well."""

    mistake: str
    tensor: str
    gap: float
    times: float
    explains: list[str]
    ties: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """What a comparison found.

    rows: see `compare_records`. first: the first tensor that differs, or None. last: the one before
    it. unexplained: tensors that differ and that no cause gives. closest: (mistake, times) of those
    that come nearest, if there is no cause. precision: "float16" or "bfloat16" if rounding to that
    is all. note: a sentence to add, or "".
    """

    rows: list
    first: str | None
    last: str | None
    causes: tuple[Cause, ...] = ()
    unexplained: tuple[str, ...] = ()
    closest: tuple = ()
    precision: str | None = None
    note: str = ""


def diagnose(case: Case) -> Diagnosis:
    """Where their numbers leave the reference's, and which mistakes make them.

    The reference runs in float64. In the first step that is wrong by itself each known mistake is
    tried; one that reproduces their numbers, to a relative gap of 1e-5, is a cause. It is then left
    on, and the next step that is still unexplained is looked at.
    """
    case = replace(case, model=as_dtype(case.model, np.float64))
    right = _run(case, ())
    theirs = {n: _readable(n, a, right[n], case.pads) for n, a in case.theirs.items()}
    case = replace(case, theirs=theirs)
    found = difference(theirs, right, case.pads)
    if found.first is None:
        return found
    if found.first == "tokens":
        return replace(found, note="their tokens are others: give both programs the same ones")
    their_shape, our_shape = theirs[found.first].shape, right[found.first].shape
    if not _is_comparable(found.first, their_shape, our_shape):
        note = "their {} has shape {}, ours {}: was it computed from the same tokens?"
        return replace(found, note=note.format(found.first, their_shape, our_shape))
    half, lines = _precision(case, right)
    if half and all(row.max_rel <= lines[row.name] for row in found.rows):
        note = f"this is what {half} does, not a mistake: no tensor is further off than rounding"
        return replace(found, unexplained=(), precision=half, note=note)
    return _explained(case, found, lines)


def _is_comparable(name, theirs, ours):
    """Shapes of logits may differ: of the last token alone, or of a padded vocabulary."""
    return theirs == ours or (name == "logits" and len(theirs) == 3 and theirs[1] in (1, ours[1]))


def difference(theirs: dict, ours: dict, pads=None) -> Diagnosis:
    """Where two records part, without a cause."""
    rows = compare_records(theirs, ours, pads)
    differing = [row.name for row in rows if row.status not in ("exact", "close")]
    if not differing:
        return Diagnosis(rows, None, rows[-1].name)
    at = [row.name for row in rows].index(differing[0])
    return Diagnosis(rows, differing[0], rows[at - 1].name if at else None, (), tuple(differing))


def _readable(name, theirs, right, pads):
    """Their tensor with ours in the rows of padding, and -inf where both have a masked score."""
    if theirs.shape != right.shape:
        return theirs
    theirs = real(name, theirs, pads, right)
    if not name.endswith("attn.scores"):
        return theirs
    return np.where(np.isneginf(right) & (theirs <= HIDDEN), -np.inf, theirs)


def _precision(case, right):
    """The half precision in which all their numbers can be written, or None; and for each tensor
    the gap up to which it agrees: 1e-5, or four times what rounding every step to that gives."""
    names = [name for name, array in case.theirs.items() if array.dtype.kind == "f"]
    for half, rounding in HALVES.items():
        if names and all(_is_rounded(case.theirs[name], rounding) for name in names):
            return half, _noise(case, right, rounding)
    return None, dict.fromkeys(case.theirs, CLOSE)


def _is_rounded(array, rounding):
    finite = array[np.abs(array) < 6e4]
    return np.array_equal(rounding(finite), finite)


def _noise(case, right, rounding):
    rounded = with_ops(case.model, **rounded_results(case.model, rounding))
    record = _run(replace(case, model=rounded), ())
    size = _gaps_to(replace(case, theirs={name: record[name] for name in case.theirs}), right)
    return dict.fromkeys(case.theirs, CLOSE) | {n: max(CLOSE, 4 * gap) for n, gap in size.items()}


def _explained(case, found, lines):
    """The diagnosis with causes: one after the other, each left on while the next is looked for."""
    best, made, causes, closest = _gaps(case, ()), (), [], []
    while len(causes) < MAX_CAUSES:
        unexplained = [name for name in best if best[name] > lines[name]]
        if not unexplained or (made and _ends_right(case, made, lines)):
            break
        good, closest = _search(case, made, best, lines, unexplained[0])
        if not good:
            break
        mistakes, gaps, ties = _ranked(case, made, best, lines, good)
        causes += _causes(mistakes, ties, unexplained, best, gaps, lines)
        made += mistakes
        best = {name: min(best[name], gaps[name]) for name in best}
    unexplained = [name for name in best if best[name] > lines[name]]
    if found.rows[-1].status in ("exact", "close"):  # the end is right: no mistake, or no harm
        closest, causes = [(c.mistake, c.times) for c in causes] or closest, []
    elif not unexplained:
        closest = []
    lists = {"causes": causes, "unexplained": unexplained, "closest": closest}
    found = replace(found, **{name: tuple(value) for name, value in lists.items()})
    return replace(found, note=_note(case, found, made, lines))


def _gaps(case, made, only=None):
    """Gap of each tensor, or of one, to what these mistakes give, from our numbers or theirs."""
    first = next(name for name in case.theirs if name != "tokens")
    runs = [_gaps_to(case, _run(case, made, until=only), only)]
    if list(runs[0]) != [first]:  # otherwise no number of theirs comes before it
        runs.append(_gaps_to(case, _run(case, made, case.theirs, until=only), only))
    for fit in [mistake.fit for mistake in made if mistake.fit]:
        known = [mistake for mistake in made if not mistake.fit]
        runs.append(_gaps_to(case, _run(case, known, case.theirs, fit, only), only))
    return {name: min(run[name] for run in runs) for name in runs[0]}


def _run(case, made, theirs=None, fit=None, until=None):
    model = apply(case.model, *made)
    return replay(model, case.tokens, case.pads, case.chunks, theirs, fit, until)


def _gaps_to(case, record, only=None):
    names = [only] if only else [name for name in case.theirs if name != "tokens"]
    pairs = {n: [real(n, x[n], case.pads) for x in (case.theirs, record)] for n in names}
    return {name: gap(*pair) for name, pair in pairs.items()}


def _search(case, made, best, lines, name):
    """Mistakes, or sets of them, that reproduce one tensor; and how near the others come to it."""
    others = [mistake for mistake in FORWARD if mistake not in made]
    trials = {m: _gaps(case, (*made, m), only=name)[name] for m in others}
    good = [(m,) for m in others if trials[m] <= lines[name]]
    if (
        not good
    ):  # not made in one step, as post-norm: does the run as a whole end in their numbers?
        good = [(m,) for m in others if _ends_right(case, (*made, m), lines)]
    if not good and _is_quick(case.model):
        own = _step(case, made, name)
        acting = [m for m in others if _step(case, (*made, m), name) != own]
        pairs = itertools.combinations(acting, 2)
        good = [p for p in pairs if _gaps(case, (*made, *p), only=name)[name] <= lines[name]]
    near = sorted((trials[m], m.name) for m in others if trials[m] < best[name] / 3)
    return good, [(mistake, best[name] / max(x, 1e-16)) for x, mistake in near[:5]]


def _step(case, made, name):
    """Gap of one tensor to what these mistakes give from their numbers."""
    return _gaps_to(case, _run(case, made, case.theirs, until=name), name)[name]


def _ends_right(case, made, lines):
    name, gap_at_end = _gaps_to(case, _run(case, made)).popitem()
    return gap_at_end <= lines[name]


def _is_quick(model):
    return sum(array.size for array in model.params.values()) < 3e6


def _ranked(case, made, best, lines, good):
    """The best set of mistakes, its gaps, and those that are as good.

    Best is what leaves the fewest tensors unexplained, spoils the fewest that were right, agrees in
    the most when run from the tokens on, and is nearest, in this order.
    """
    ranked = []
    for mistakes in good:
        gaps = _gaps(case, (*made, *mistakes))
        left = sum(min(gaps[n], best[n]) > lines[n] for n in best)
        spoiled = sum(best[n] <= lines[n] < gaps[n] for n in best)
        free = _gaps_to(case, _run(case, (*made, *mistakes)))
        apart = sum(free[n] > lines[n] for n in best)
        explained = [gaps[n] for n in best if gaps[n] <= lines[n] < best[n]]
        ranked.append(((left, spoiled, apart, sum(explained)), mistakes, gaps))
    ranked.sort(key=lambda trial: trial[0])
    (*counts, total), mistakes, gaps = ranked[0]
    ties = [other for (*c, t), other, _ in ranked[1:] if c == counts and t <= 2 * total]
    return mistakes, gaps, ties


def _causes(mistakes, ties, unexplained, best, gaps, lines):
    explains = [name for name in unexplained if gaps[name] <= lines[name]]
    at = explains[0] if explains else unexplained[0]
    times = best[at] / max(gaps[at], 1e-16)
    tied = ["+".join(m.name for m in other) for other in ties]
    return [Cause(m.name, at, gaps[at], times, explains, tied) for m in mistakes]


def _note(case, found, made, lines):
    """A sentence on what the causes leave open, or "" if that is nothing."""
    last = found.rows[-1]
    if last.status in ("exact", "close"):
        return (
            f"{last.name} agrees again, so nothing was computed wrongly: {found.first} was written "
            "down at another place than ours, or the mistake does no harm"
        )
    if not found.unexplained:
        grown = "every step by itself is right: small differences have grown on the way"
        return "" if made else grown
    if made and _ends_right(case, made, lines):
        places = ", ".join(found.unexplained[:4])
        return f"all that follows is explained: {places} stand at another place in the program"
    right = _run(case, ())
    for half, rounding in () if made else HALVES.items():
        noise = _noise(case, right, rounding)
        if all(row.max_rel <= noise[row.name] for row in found.rows):
            return f"the differences are of the size that {half} makes: perhaps not a mistake"
    return f"no known mistake reproduces {found.unexplained[0]}"


# ---- the report ---------------------------------------------------------------------------------


def report(found: Diagnosis) -> str:
    """The comparison as text: a line for each tensor, then where the two part, and why."""
    width = max(len(row.name) for row in found.rows)
    lines = [f"{'tensor':{width}}  {'':7}   max abs   max rel  {'worst at':16}  theirs -> ours"]
    lines += [f"{row.name:{width}}  {_row(row)}" for row in found.rows]
    if found.first is None:
        return "\n".join([*lines, "", f"all {len(found.rows)} tensors agree"])
    lines += ["", f"first divergence  {found.first}", f"last that agreed  {found.last or 'none'}"]
    for cause in found.causes:
        lines += ["", *_cause_lines(cause)]
    if not found.causes and found.closest:
        near = ", ".join(f"{name} ({times:.3g} times closer)" for name, times in found.closest)
        lines += ["", f"what comes closest: {near}"]
    return "\n".join([*lines, *(["", found.note] if found.note else [])])


def _row(row):
    if row.status == "exact":
        return "exact"
    if row.status == "shape":
        return f"shape    {row.worst} does not fit"
    at = ",".join(map(str, row.worst))
    numbers = f"{row.max_abs:9.2e} {row.max_rel:9.2e}"
    return f"{row.status:7} {numbers}  {at:16}  {row.theirs:.7g} -> {row.ours:.7g}"


def _cause_lines(cause):
    mistake = MISTAKES[cause.mistake]
    yield f"cause             {cause.mistake}"
    yield f"  {mistake.why}"
    closer = f"{cause.times:.3g} times closer than the right step (gap {cause.gap:.1e})"
    yield f"  With it the reference gives their {cause.tensor}, {closer}."
    if len(cause.explains) > 1:
        others = ", ".join(cause.explains[1:5]) + (", ..." if len(cause.explains) > 5 else "")
        yield f"  So it does for {others}."
    yield f"  Seen in: {mistake.seen}."
    if cause.ties:
        yield f"  These numbers do not tell it from: {', '.join(cause.ties)}."


def as_json(found: Diagnosis) -> dict:
    """The comparison as plain data; what is not a finite number is None."""
    names = [cause.mistake for cause in found.causes]
    candidates = []
    for c in found.causes:
        facts = {"tensor": c.tensor, "gap": c.gap, "times_closer": c.times, "explains": c.explains}
        candidates += [{"name": n, "reproduces": True} | facts for n in [c.mistake, *c.ties]]
    candidates += [{"name": n, "reproduces": False, "times_closer": t} for n, t in found.closest]
    return _plain(
        {
            "first_divergence": found.first,
            "last_agreed": found.last,
            "cause": names[0] if names else found.precision,
            "causes": names,
            "candidates": candidates,
            "note": found.note,
            "unexplained": list(found.unexplained),
            "tensors": [asdict(row) for row in found.rows],
        }
    )


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
