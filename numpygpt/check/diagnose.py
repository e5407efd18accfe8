"""From the first tensor that differs to what is wrong there, and to the mistake that makes it.

Each step of the reference is done on *their* numbers, and on its own: a step that gives theirs in
neither way is wrong by itself, whatever came before. First the relation between their result and
the right one is looked for (`relations.py`), then the mistake in the catalogue that reproduces
their numbers and spoils nothing that was right: in every block, or else at one place alone.
"""

import itertools
import math
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from numpygpt.check import relations
from numpygpt.check.mistakes import FORWARD, MISTAKES, Mistake, apply
from numpygpt.check.mistakes.forward import rounded_results, to_bfloat16, to_float16
from numpygpt.check.relations import Relation, Step
from numpygpt.check.trace import (
    CLOSE,
    HIDDEN,
    Row,
    compare_records,
    first_blocks,
    gap,
    kind,
    real,
    replay,
)
from numpygpt.model import GPT2, as_dtype, with_ops

MAX_FINDINGS = 6
HALVES = {"bfloat16": to_bfloat16, "float16": to_float16}  # bfloat16 first: most fit in both
# In the catalogue, but no mistakes: what a file in half precision does, and what does no harm.
PRECISION = {"float16-weights": "float16", "bfloat16-weights": "bfloat16"}
HARMLESS = {"centred-stream"}
SOME_IDS = 4096
QUICK = 3e6  # parameters up to which everything is tried
EXIT = {"agrees": 0, "harmless": 0, "elsewhere": 0, "differs": 1, "nan": 1, "precision": 3}


@dataclass(frozen=True)
class Case:
    """What another program computed, and from what: see `replay` for the fields.

    copies: (entry, their name, array) of further names for an entry. whose: entry -> their name.
    valid (B, T): 1 for real tokens; by default `pads` says it. right: the reference's record, if it
    is there already.
    """

    model: GPT2
    tokens: np.ndarray
    theirs: dict
    pads: np.ndarray | None = None
    chunks: list | None = None
    valid: np.ndarray | None = None
    copies: tuple = ()
    whose: dict = field(default_factory=dict)
    right: dict | None = None


@dataclass(frozen=True)
class Cause:
    """A mistake that reproduces their numbers of `tensor`, from which the right step is `times` as
    far away. explains: all tensors that only the mistake gives. ties: mistakes that do as well.
    only: the places it is at, if it is not everywhere."""

    mistake: str
    tensor: str
    gap: float
    times: float
    explains: list[str]
    ties: list[str]
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What a comparison found.

    verdict: "agrees", "differs", "nan" (theirs are not numbers), "precision" (half precision is
    all), "harmless" (nothing that follows can be changed by it) or "elsewhere" (written down at
    another place than ours; what follows is right).
    rows: see `compare_records`. first: our name of the first tensor that differs, or None; last:
    the one before it. relations: what their numbers have to do with the right ones, a sentence for
    each step that is wrong by itself. causes: mistakes of the catalogue that make them.
    unexplained: tensors that differ and that neither gives. closest: (mistake, times) of those that
    come nearest, if there is no cause. precision: "float16", "bfloat16" or None. note: a sentence
    to add. remarks: sentences on how theirs were read.
    matched: their name -> our entry; sure: their name -> (0 to 1, how it was found); neighbours:
    theirs that are not an entry -> what they are; not_compared: theirs that were left out.
    """

    rows: list
    first: str | None
    last: str | None
    relations: tuple[Relation, ...] = ()
    causes: tuple[Cause, ...] = ()
    unexplained: tuple[str, ...] = ()
    closest: tuple = ()
    precision: str | None = None
    note: str = ""
    verdict: str = "agrees"
    remarks: tuple[str, ...] = ()
    matched: dict = field(default_factory=dict)
    sure: dict = field(default_factory=dict)
    neighbours: dict = field(default_factory=dict)
    not_compared: tuple[str, ...] = ()
    harmless: str = ""

    @property
    def agrees(self) -> bool:
        """Is there nothing to mend?"""
        return EXIT[self.verdict] == 0

    @property
    def cause(self) -> str | None:
        """The first mistake's name, or what else the verdict rests on; None if nobody knows."""
        if self.causes:
            return self.causes[0].mistake
        named = next((r.cause for r in self.relations if r.cause), None)
        return self.precision or named or self.harmless or (self.verdict == "nan" and "nan") or None

    @property
    def exit_status(self) -> int:
        """0 agrees, 1 differs, 3 precision."""
        return EXIT[self.verdict]

    def __repr__(self):
        """A few lines: the verdict, where, and why; `report` has the whole table."""
        return "\n".join(summary(self))


# ---- the search ---------------------------------------------------------------------------------


def diagnose(case: Case, say=None) -> Diagnosis:
    """Where their numbers leave the reference's, and what makes them; see the head of this file.

    The reference runs in float64. say: called with a sentence now and then, as large models take
    their time.
    """
    if case.model.dtype != np.float64:
        case = replace(case, model=as_dtype(case.model, np.float64))
    if case.valid is None and case.pads is not None:
        valid = np.arange(case.tokens.shape[1]) >= np.asarray(case.pads)[:, None]
        case = replace(case, valid=valid)
    right = case.right or _run(case, ())
    theirs = {n: _readable(n, a, right[n], case.valid) for n, a in case.theirs.items()}
    case = replace(case, theirs=theirs, right=right)
    found = difference(theirs, right, case.valid, case.whose, case.copies)
    if found.first is None:
        return found
    if found.first == "tokens":
        return replace(found, note="their tokens are not ours: give both programs the same ones")
    row = next(row for row in found.rows if not row.right)
    numbers = [a for n, a in theirs.items() if n not in ("tokens", "positions", "wpe")]
    if numbers and row.status != "shape" and not any(a.any() for a in numbers):
        note = "all their numbers are 0: were they written down before they were computed?"
        return replace(found, note=note, harmless="all-zero")
    if row.status != "shape":
        noise = _float32_lines(case, right)
        found = difference(theirs, right, case.valid, case.whose, case.copies, noise)
        if found.first is None:
            note = "some are further off than usual, but no further than float32 makes them here"
            return replace(found, note=note)
    if row.status == "shape":
        theirs_, ours = row.worst, right[found.first].shape
        ask = "was it computed from the same tokens?"
        if theirs_[:-1] == ours[:-1] and not row.name.endswith((".scores", ".pattern")):
            ask = "is it the model that was run?"
        note = f"their {row.whose or row.name} has shape {theirs_}, ours {ours}: {ask}"
        return replace(found, note=note)
    written = _written_in_half(case, right)
    if written:
        note = f"their file is rounded to {written}: all numbers agree to its last digit"
        return replace(
            found, first=None, last=found.rows[-1].name, unexplained=(), precision=written,
            note=note, verdict="agrees", rows=[replace(r, status="close") if not r.right else r
                                               for r in found.rows],
        )  # fmt: skip
    half, lines = _precision(case, right)
    if half and all(row.max_rel <= lines[row.name] for row in found.rows):
        note = f"this is what {half} does, not a mistake: no tensor is further off than rounding"
        return replace(found, unexplained=(), precision=half, note=note, verdict="precision")
    if say:
        say(f"{found.first} is the first that differs: looking for the cause")
    return _explained(case, found, lines or dict.fromkeys(theirs, CLOSE) | noise, say)


def _float32_lines(case, right):
    """The gap of each tensor up to which it agrees: 1e-5, or four times what float32 gives here.

    Where scores are large, as in trained models, softmax enlarges the noise of all before it.
    """
    single = _run(_in_float32(case), ())
    sizes = _gaps_to(replace(case, theirs=_like(case, single)), right)
    return {name: max(CLOSE, 4 * size) for name, size in sizes.items() if np.isfinite(size)}


def difference(theirs: dict, ours: dict, valid=None, whose=None, copies=(), lines=None):
    """The diagnosis of where two records part, without a cause. lines: as in `compare_records`."""
    rows = compare_records(theirs, ours, valid, whose, lines)
    for entry, name, array in copies:  # behind the row of its entry
        copy = compare_records({entry: array}, ours, valid, {entry: name}, lines)[0]
        rows.insert(1 + [row.name for row in rows].index(entry), copy)
    differing = list(dict.fromkeys(row.name for row in rows if not row.right))
    if not differing:
        return Diagnosis(rows, None, rows[-1].name if rows else None)
    at = [row.name for row in rows].index(differing[0])
    first = next(row for row in rows if not row.right)
    numbers = [row for row in rows if row.name not in ("tokens", "positions")]
    empty = first.status == "nan" or (numbers and all(row.status == "nan" for row in numbers))
    last = rows[at - 1].name if at else None
    verdict = "nan" if empty else "differs"
    return Diagnosis(rows, differing[0], last, unexplained=tuple(differing), verdict=verdict)


def _readable(name, theirs, right, valid):
    """Their tensor with ours in the rows of padding, and -inf where both have a masked score."""
    if name in ("tokens", "positions"):
        if theirs.shape != right.shape:
            return theirs
        ids = np.nan_to_num(theirs, nan=-1, posinf=-1, neginf=-1)
        return real(name, ids if (ids % 1).any() else ids.astype(np.int64), valid, right)
    if theirs.shape != right.shape:
        return theirs
    theirs = real(name, np.asarray(theirs, np.float64), valid, right)
    if not name.endswith("attn.scores"):
        return theirs
    return np.where(np.isneginf(right) & (theirs <= HIDDEN), -np.inf, theirs)


# ---- half precision -----------------------------------------------------------------------------


def _written_in_half(case, right):
    """The half precision to whose last digit everything agrees: rounded once, when written."""
    arrays = {n: a for n, a in case.theirs.items() if n not in ("tokens", "positions")}
    for half, rounding in HALVES.items():
        step = {"float16": 2.0**-11, "bfloat16": 2.0**-8}[half]
        if all(_is_rounded(a, rounding) for a in arrays.values()) and all(
            _within(n, a, right[n], case.valid, step) for n, a in arrays.items()
        ):
            return half
    return None


def _within(name, theirs, ours, valid, step):
    theirs, ours = (real(name, np.asarray(a, np.float64), valid) for a in (theirs, ours))
    if theirs.ndim == ours.ndim == 3 and theirs.shape[1] < ours.shape[1]:
        ours = ours[:, -theirs.shape[1] :]
    if theirs.shape != ours.shape:
        return False
    shown = np.isfinite(ours) & (ours > HIDDEN)
    if not (theirs[~shown] <= HIDDEN).all():
        return False
    noise = CLOSE * np.abs(ours[shown]).max(initial=0)
    return (np.abs(theirs[shown] - ours[shown]) <= step * 1.001 * np.abs(ours[shown]) + noise).all()


def _precision(case, right):
    """The half precision in which all their numbers can be written, or None; and for each tensor
    the gap up to which it agrees: 1e-5, or four times what rounding every step to that gives.

    Half precision is noise in every tensor: where the earlier ones are right to float32, it is not
    the reason for what is wrong later.
    """
    names = [n for n in case.theirs if n not in ("tokens", "positions")]
    sizes = _gaps_to(case, right)
    for half, rounding in HALVES.items():
        if names and all(_is_rounded(case.theirs[name], rounding) for name in names):
            noise = _noise(case, right, rounding)
            computed = [n for n in names if n not in ("wte", "wpe")]
            if all(sizes[n] >= noise[n] / 200 for n in computed):
                return half, noise
    return None, {}


def _is_rounded(array, rounding):
    finite = array[np.abs(array) < 6e4]
    return np.array_equal(rounding(finite), finite)


def _noise(case, right, rounding):
    rounded = with_ops(case.model, **rounded_results(case.model, rounding))
    record = _run(replace(case, model=rounded), ())
    size = _gaps_to(replace(case, theirs=_like(case, record)), right)
    return dict.fromkeys(case.theirs, CLOSE) | {n: max(CLOSE, 4 * gap) for n, gap in size.items()}


def _like(case, record):
    """The record's arrays for what they have: of logits the last token alone, where theirs are."""
    return {
        n: record[n][:, -1:] if n == "logits" and a.shape[1] == 1 else record[n]
        for n, a in case.theirs.items()
    }


# ---- runs and gaps ------------------------------------------------------------------------------


def _run(case, made, theirs=None):
    return replay(apply(case.model, *made), case.tokens, case.pads, case.chunks, theirs)


def _given(case, right):
    """Theirs, where they can take the place of ours."""
    return {n: a for n, a in case.theirs.items() if a.shape == right[n].shape}


def _gaps_to(case, record, names=None):
    names = names or [name for name in case.theirs if name != "tokens"]
    pairs = {n: [real(n, x[n], case.valid) for x in (case.theirs, record)] for n in names}
    return {name: gap(*pair) for name, pair in pairs.items()}


class _Search:
    """What one diagnosis knows: the case, the right record, and runs that were made already."""

    def __init__(self, case, lines):
        self.case, self.lines = case, lines
        self.right = case.right
        self.given = _given(case, self.right)
        self.names = [name for name in case.theirs if name != "tokens"]
        self.quick = sum(array.size for array in case.model.params.values()) < QUICK
        self.stepped = None
        # Where a run takes its time, mistakes are tried in float32 first: its noise is far below
        # the line, and what agrees is looked at again in float64.
        self.trial = case if self.quick else _in_float32(case)

    def gaps(self, made):
        """Gap of each tensor to what these mistakes give, from the tokens on or from theirs."""
        record = _run(self.case, made) if made else self.right
        free = _gaps_to(self.case, record, self.names)
        if len(self.names) == 1:
            return free
        step = _gaps_to(self.case, self.step_record(made), self.names)
        return {name: min(free[name], step[name]) for name in free}

    def step_record(self, made):
        """The record of these mistakes on their numbers."""
        if not made and self.stepped is None:
            self.stepped = _run(self.case, (), self.given)
        return _run(self.case, made, self.given) if made else self.stepped

    def gap_at(self, made, name):
        """The same of one tensor, by the least that has to be run."""
        if self._on_its_own(name):
            return self.step_gap(made, name)
        case = replace(self.trial, model=self._shortened(name))
        runs = [_run(case, made)]
        if name != self.names[0]:
            given = self._up_to(name).items()
            dtype = case.model.dtype
            given = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in given}
            runs.append(_run(case, made, given))
        return min(_gaps_to(self.case, run, [name])[name] for run in runs)

    def _up_to(self, name):
        blocks = _block(name) + 1 if _block(name) is not None else None
        return {
            n: a for n, a in self.given.items()
            if blocks is None or _block(n) is None or _block(n) < blocks
        }  # fmt: skip

    def _on_its_own(self, name):
        """Is all that this step reads theirs, or computed from theirs within its block?"""
        i = _block(name)
        if i is None or self.case.chunks or kind(name) == "resid_pre":
            return False
        return f"h.{i}.resid_pre" in self.given

    def step_gap(self, made, name):
        return _gaps_to(self.case, {name: self.block_record(made, name)[name]}, [name])[name]

    def block_record(self, made, name, given=None):
        """The record of the block that a step is in, on its own and on their numbers."""
        i = _block(name)
        alone = block_alone(apply(self.case.model, *made), i)
        tokens = np.zeros_like(self.case.tokens)
        inside = {
            n.replace(f"h.{i}.", "h.0.", 1): a
            for n, a in (self.given if given is None else given).items()
            if _block(n) == i
        }
        # mistakes know their places by the arrays of the parameters, which are shared
        record = replay(alone, tokens, self.case.pads, None, inside)
        return {n.replace("h.0.", f"h.{i}.", 1): a for n, a in record.items() if n[:2] == "h."}

    def record(self, made, name, given):
        """The record with these mistakes, up to a tensor: of its block alone if that is enough.
        given: what takes the place of what is computed, beside their numbers before the tensor."""
        theirs = {n: a for n, a in self._up_to(name).items() if n != name}
        if self._on_its_own(name):
            inside = theirs | {n: a for n, a in given.items() if _block(n) == _block(name)}
            return self.block_record(made, name, inside)
        return _run(self.case, made, given if len(self.names) == 1 else theirs | given)

    def _shortened(self, name):
        """The model up to the block that a tensor is in."""
        i = _block(name)
        return self.trial.model if i is None else first_blocks(self.trial.model, i + 1)


def _in_float32(case):
    return replace(case, model=as_dtype(case.model, np.float32))


def _block(name):
    return int(name.split(".")[1]) if name[:2] == "h." else None


def block_alone(model: GPT2, i: int) -> GPT2:
    """A model of one block, block i, and a vocabulary of one token: for steps given their input."""
    config = replace(model.config, n_layer=1, n_vocab=1)
    params = {n: a for n, a in model.params.items() if n[:2] != "h." and n != "lm_head.weight"}
    params["wte.weight"] = params["wte.weight"][:1]
    inside = {n: a for n, a in model.params.items() if n.startswith(f"h.{i}.")}
    params |= {n.replace(f"h.{i}.", "h.0.", 1): a for n, a in inside.items()}
    return GPT2(config, params, model.ops)


@dataclass(frozen=True)
class _Explanation:
    """Mistakes, the tensors that only they give -> their gap, others that do as well, and the
    places they are at if not everywhere."""

    mistakes: tuple[Mistake, ...]
    gives: dict
    ties: list
    only: tuple[str, ...] = ()


# ---- explanations -------------------------------------------------------------------------------


def _explained(case, found, lines, say):
    search = _Search(case, lines)
    best, made = search.gaps(()), ()
    explained, stuck = {}, []  # tensor -> gap under its relation, or under a mistake at one place
    known, causes, closest = [], [], []
    while len(known) + len(causes) < MAX_FINDINGS:
        wrong = [n for n in best if best[n] > lines[n] and n not in explained and n not in stuck]
        if not wrong or (made and _ends_right(search, made)):
            break
        name = wrong[0]
        relation = _relation(search, made, name)
        good, near = _search(search, made, best, name, relation, say)
        if good:
            causes += _causes(good, name, best)
            if good.only:
                explained |= good.gives
            else:
                made += good.mistakes
                best = {n: min(best[n], good.gives.get(n, np.inf)) for n in best}
        closest = closest or near
        if relation:
            relation, same = _elsewhere_too(search, made if not good else (), relation, wrong)
            known.append(relation)
            if not good:
                explained |= same
                causes += _named_by(relation, same, best, lines)
        elif not good:
            stuck.append(name)
            if len(stuck) > 2:
                break
    left = [n for n in best if best[n] > lines[n] and n not in explained]
    fields = {
        "relations": tuple(known), "causes": tuple(causes), "unexplained": tuple(left),
        "closest": tuple(closest) if not causes else (),
    }  # fmt: skip
    found = replace(found, **fields)
    return _judged(search, found, made, best, stuck)


def _relation(search, made, name, record=None):
    """The relation at one step, judged on their inputs; free runs where they have none."""
    record = search.step_record(made) if record is None else record
    theirs, right = search.case.theirs[name], record[name]
    seen = record | {n: a for n, a in search.given.items() if n != name}
    if theirs.shape != right.shape:
        if name != "logits" or theirs.ndim != 3:
            return None
        right = right[:, -theirs.shape[1] :]
    theirs = real(name, theirs, search.case.valid, right)
    model = search.case.model
    if name == "logits" and right.shape[-1] > 2 * SOME_IDS:  # a part of so many tells as much
        theirs, right = theirs[..., :SOME_IDS], right[..., :SOME_IDS]
        model = _with_fewer_ids(model)
    return relations.find(Step(name, theirs, right, seen, model, search.lines[name]))


def _with_fewer_ids(model):
    cut = {
        n: a[:SOME_IDS] if n in ("wte.weight", "lm_head.weight") else a
        for n, a in model.params.items()
    }
    return GPT2(replace(model.config, n_vocab=SOME_IDS), cut, model.ops)


def _elsewhere_too(search, made, relation, wrong):
    """The relation with the other steps that have the same one, and the gap of each."""
    same = {relation.tensor: relation.gap}
    record = None
    for name in wrong:
        if name == relation.tensor or _operation(name) != _operation(relation.tensor):
            continue
        if record is None:
            record = search.step_record(made)
        other = _relation(search, made, name, record)
        if other and (other.kind, other.key) == (relation.kind, relation.key):
            same[name] = other.gap
    also = tuple(n for n in same if n != relation.tensor)
    return replace(relation, also=also), same


def _operation(name):
    what = kind(name)
    for alike in (
        ("ln_1", "ln_2", "ln_f"),
        ("attn.q", "attn.k", "attn.v"),
        ("resid_mid", "resid_post"),
    ):
        if what in alike:
            return alike[0]
    return what


def _search(search, made, best, name, relation, say):
    """The mistakes that reproduce one tensor and spoil nothing, or None; and how near the others
    come to it."""
    lines = search.lines
    others = [mistake for mistake in FORWARD if mistake not in made]
    if say and not search.quick:
        say(f"trying {len(others)} known mistakes at {name}")
    trials = {m: search.gap_at((*made, m), name) for m in others}
    good = [(m,) for m in others if trials[m] <= lines[name]]
    if not good and search.quick:  # not made in one step, as post-norm: does the run end in theirs?
        good = [(m,) for m in others if _ends_right(search, (*made, m))]
    near = sorted((trials[m], m.name) for m in others if trials[m] < best[name] / 3)
    near = [(mistake, best[name] / max(x, 1e-16)) for x, mistake in near[:5]]
    found = _ranked(search, made, best, good)
    if found is None:
        elsewhere = others if search.quick and relation is None else ()
        found = _at_one_place(search, made, best, name, good, elsewhere)
    plain = relation and relation.kind not in ("mask", "eps", "function")  # no two in one step
    if found is None and search.quick and len(search.names) > 1 and not plain:
        own = search.gap_at(made, name)
        acting = [m for m in others if trials[m] != own]
        pairs = [
            p for p in itertools.combinations(acting, 2)
            if search.gap_at((*made, *p), name) <= lines[name]
        ]  # fmt: skip
        found = _ranked(search, made, best, pairs)
    return found, near


def _ends_right(search, made):
    name = search.names[-1]
    return _gaps_to(search.case, _run(search.case, made), [name])[name] <= search.lines[name]


def _ranked(search, made, best, good):
    """The best set of mistakes, its gaps, and those that are as good; None if each spoils some.

    Best is what leaves the fewest tensors unexplained, agrees in the most when run from the tokens
    on, and is nearest, in this order. One that spoils what was right is not a cause.
    """
    lines, ranked = search.lines, []
    for mistakes in good:
        gaps = search.gaps((*made, *mistakes))
        if any(best[n] <= lines[n] < gaps[n] for n in best):
            continue
        left = sum(min(gaps[n], best[n]) > lines[n] for n in best)
        free = _gaps_to(search.case, _run(search.case, (*made, *mistakes)), search.names)
        apart = sum(free[n] > lines[n] for n in best)
        explained = [gaps[n] for n in best if gaps[n] <= lines[n] < best[n]]
        ranked.append(((left, apart, sum(explained)), mistakes, gaps))
    if not ranked:
        return None
    ranked.sort(key=lambda trial: trial[0])
    (*counts, total), mistakes, gaps = ranked[0]
    ties = [other for (*c, t), other, _ in ranked[1:] if c == counts and t <= 2 * total]
    gives = {n: gaps[n] for n in best if gaps[n] <= lines[n] < best[n]}
    return _Explanation(mistakes, gives, ties)


def _at_one_place(search, made, best, name, good, others):
    """A mistake that is made at one place alone: it reproduces that step, and the rest is right."""
    lines = search.lines
    for mistakes in good:  # reproduce the step, but spoil others: so they are not made there
        gaps = search.gaps((*made, *mistakes))
        only = [
            n for n in best
            if gaps[n] <= lines[n] < best[n] and _operation(n) == _operation(name)
        ]  # fmt: skip
        if name in only:
            ties = [other for other in good if other is not mistakes]
            return _Explanation(mistakes, {n: gaps[n] for n in only}, ties, tuple(only))
    if not others:
        return None
    order = list(search.right)
    before = [n for n in best if order.index(n) < order.index(name)]
    between = order[order.index(before[-1]) + 1 if before else 1 : order.index(name) + 1]
    right = search.record(made, name, search.right)
    for m in others:
        wrong = search.record((*made, m), name, search.right | right)
        places = [
            n for n in between
            if n in wrong and n in right and not np.array_equal(wrong[n], right[n], equal_nan=True)
        ]  # fmt: skip
        for place in places if len(between) > 1 else ():
            run = search.record(made, name, {place: wrong[place]})
            at_name = wrong[name] if place == name else run[name]
            distance = _gaps_to(search.case, {name: at_name}, [name])[name]
            if distance <= lines[name]:
                free = _gaps_to(search.case, _run(search.case, made, {place: wrong[place]}))
                gives = {n: free[n] for n in best if free[n] <= lines[n] < best[n]}
                return _Explanation((m,), gives | {name: distance}, [], (place,))
    return None


def _causes(good, name, best):
    explains = list(good.gives) or [name]
    at = name if name in good.gives else explains[0]
    distance = good.gives.get(at, 0.0)
    times = best[at] / max(distance, 1e-16)
    ties = ["+".join(m.name for m in other) for other in good.ties]
    return [Cause(m.name, at, distance, times, explains, ties, good.only) for m in good.mistakes]


def _named_by(relation, same, best, lines):
    """The catalogue's mistake that a relation amounts to, with numbers read off theirs."""
    if not relation.cause:
        return []
    what = _operation(relation.tensor)
    right = [n for n in best if _operation(n) == what != "resid_pre" and best[n] <= lines[n]]
    only = tuple(same) if right else ()
    times = best[relation.tensor] / max(relation.gap, 1e-16)
    return [Cause(relation.cause, relation.tensor, relation.gap, times, list(same), [], only)]


# ---- the verdict --------------------------------------------------------------------------------


def _judged(search, found, made, best, stuck):
    """The verdict, and a sentence on what the findings leave open."""
    if _ends_in_agreement(found):
        return _elsewhere(search, found)
    if found.causes and all(c.mistake in PRECISION for c in found.causes) and not found.unexplained:
        half = PRECISION[found.causes[0].mistake]
        return replace(found, verdict="precision", precision=half)
    harmless = [c.mistake in HARMLESS for c in found.causes]
    harmless += [r.harmless for r in found.relations if not found.causes]
    if harmless and all(harmless) and not found.unexplained:
        name = found.causes[0].mistake if found.causes else "softmax-does-not-see-it"
        return replace(found, verdict="harmless", harmless=name)
    if not found.causes and not found.relations and not stuck:
        return _grown(search, found, best)
    if made and found.unexplained and _ends_right(search, made):
        places = ", ".join(found.unexplained[:4])
        note = f"all that follows is explained: {places} stand at another place in the program"
        return replace(found, note=note)
    if not found.unexplained:
        return found
    first = found.unexplained[0]
    note = f"no known mistake reproduces {first}, and no relation to the right one was found"
    note += _place(search, made, first)
    if search.names == ["logits"]:
        note += (
            ". Logits alone do not show whether both programs have the same weights and were given "
            "the same tokens: write down the stream of the blocks too"
        )
    if first == "wte":
        note += ": is it the model that was run, with the same weights?"
    return replace(found, note=note)


def _place(search, made, name):
    """Where a step is wrong, if that is in one batch row, head or token alone."""
    theirs, right = search.case.theirs[name], search.step_record(made)[name]
    if theirs.shape != right.shape or theirs.ndim < 3:
        return ""
    step = Step(name, theirs, right, {}, search.case.model, search.lines[name])
    words = relations.where(step, right)
    return f"; it is wrong{words.removeprefix(',')}" if words.endswith("alone") else ""


def _ends_in_agreement(found):
    """Are the last numbers that were compared right, at every token where earlier ones are not?"""
    last = found.rows[-1]
    return last.right and last.name == "logits" and last.name not in found.unexplained


def _elsewhere(search, found):
    """What is wrong was not read by what follows, or does not change it."""
    free = _gaps_to(search.case, search.right, search.names)
    step = _gaps_to(search.case, search.step_record(()), search.names)
    unread = any(free[n] <= search.lines[n] < step[n] for n in free)  # theirs would spoil it
    if unread or not _is_last_token(search.case):
        says = "does no harm"
        if unread:
            says = "was written down at another place than ours, or spoilt in writing"
        note = f"logits agree, so nothing was computed wrongly: {found.first} {says}"
        verdict = "elsewhere" if unread else "harmless"
        near = [(c.mistake, c.times) for c in found.causes]
        name = "written-elsewhere" if unread else "does-no-harm"
        return replace(
            found, note=note, verdict=verdict, causes=(), closest=tuple(near), harmless=name
        )
    return replace(
        found, note="the logits of the last token agree, but what came before them does not"
    )


def _is_last_token(case):
    return case.theirs["logits"].shape[1] < case.tokens.shape[1]


SUSPICIOUS = 2e-6  # the gap of a single step in float32 stays below this


def _grown(search, found, best):
    """Every step agrees by itself, but the whole does not: noise that has grown, or something small
    that is wrong in every step."""
    name = max(best, key=best.get)
    worst = max(row.max_rel for row in found.rows)
    if best[name] > SUSPICIOUS:
        record = search.step_record(())
        fine = dict.fromkeys(search.lines, max(best[name] / 8, 5e-7))
        closer = _Search(search.case, fine)
        relation = _relation(closer, (), name, record)
        better = [m for m in FORWARD if search.gaps((m,))[name] < best[name] / 8]
        better = [m for m in better if max(search.gaps((m,)).values()) < best[name]]
        gaps = {m: search.gaps((m,))[name] for m in better}
        better.sort(key=gaps.get)
        if relation or better:
            ties = [m.name for m in better[1:]]
            causes = [
                Cause(m.name, name, gaps[m], best[name] / gaps[m], [name], ties) for m in better[:1]
            ]
            return replace(found, relations=(relation,) if relation else (), causes=tuple(causes))
    note = (
        f"every step by itself is right, to {best[name]:.0e} at {name}: the noise of floating "
        f"point has grown to {worst:.0e} on the way"
    )
    if worst > 1e-3:
        return replace(found, note=note + ", which is more than it should")
    return replace(found, note=note, verdict="agrees", unexplained=())


# ---- the report ---------------------------------------------------------------------------------


def report(found: Diagnosis) -> str:
    """The comparison as text: a line for each tensor, then where the two part, and why."""
    names = [row.name for row in found.rows]
    width = max(map(len, names))
    whose = max(len(row.whose or "") for row in found.rows)
    lines = [
        f"{'tensor':{width}}  {'theirs':{whose}}  {'':7}   max abs   max rel  {'worst at':16}  "
        "theirs -> ours"
    ]
    lines += [f"{row.name:{width}}  {row.whose or '':{whose}}  {_row(row)}" for row in found.rows]
    return "\n".join([*lines, *_map(found), "", *summary(found)])


def _map(found):
    """What their names were taken for, where no dictionary says it, and what was left out."""
    guessed = {n: s for n, s in found.sure.items() if s[1] != "name" and n != found.matched[n]}
    if guessed:
        width = max(map(len, guessed))
        yield "\nmatched without a dictionary (--names map.json corrects it):"
        how = {"value": "by value", "order": "by order and shape", "words": "by words and shape"}
        for name, (sure, by) in guessed.items():
            said = f"{how.get(by, 'as the map says')}, {sure:.0%} sure"
            yield f"  {name:{width}} -> {found.matched[name]:20} {said}"
    if found.neighbours:
        yield "\nnot an entry of ours, but known:"
        yield from (f"  {name} is {what}" for name, what in found.neighbours.items())
    if found.not_compared:
        yield f"\nnot compared: {', '.join(found.not_compared)}"


def summary(found: Diagnosis) -> list[str]:
    """The verdict, where the two part, the relations, the causes, and how theirs were read."""
    count = len(found.rows)
    if found.first is None:
        tensors = f"all {count} tensors agree" if count > 1 else "the one tensor compared agrees"
        lines = [f"verdict           {found.verdict}: {tensors}"]
    else:
        lines = [f"verdict           {found.verdict}", *_where(found)]
    for relation in found.relations:
        lines += ["", f"relation          {relation.text}"]
        if relation.also:
            also = ", ".join(relation.also[:6]) + (", ..." if len(relation.also) > 6 else "")
            lines += [f"  So it is at {also}."]
    for cause in found.causes:
        lines += ["", *_cause_lines(cause)]
    if not found.causes and found.closest:
        near = ", ".join(f"{name} ({times:.3g} times closer)" for name, times in found.closest)
        lines += ["", f"what comes closest: {near}"]
    lines += ["", found.note] if found.note else []
    lines += ["", *found.remarks] if found.remarks else []
    return lines


def _where(found):
    row = next((row for row in found.rows if row.name == found.first and not row.right), None)
    their = f" (their {row.whose})" if row and row.whose and row.whose != found.first else ""
    yield f"first divergence  {found.first}{their}"
    yield f"last that agreed  {found.last or 'none'}"


def _row(row: Row):
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
    if cause.only:
        yield f"  It is made only at {', '.join(cause.only)}; elsewhere that step is right."
    elif len(cause.explains) > 1:
        others = [name for name in cause.explains if name != cause.tensor]
        yield f"  So it does for {', '.join(others[:4])}{', ...' if len(others) > 4 else ''}."
    yield f"  Seen in: {mistake.seen}."
    if cause.ties:
        yield f"  These numbers do not tell it from: {', '.join(cause.ties)}."


def as_json(found: Diagnosis) -> dict:
    """The comparison as plain data; what is not a finite number is None."""
    candidates = []
    for c in found.causes:
        facts = {"tensor": c.tensor, "gap": c.gap, "times_closer": c.times, "explains": c.explains}
        facts |= {"only": list(c.only)}
        candidates += [{"name": n, "reproduces": True} | facts for n in [c.mistake, *c.ties]]
    candidates += [{"name": n, "reproduces": False, "times_closer": t} for n, t in found.closest]
    theirs = next(
        (row.whose for row in found.rows if row.name == found.first and not row.right), None
    )
    return _plain(
        {
            "verdict": found.verdict,
            "agrees": found.agrees,
            "first_divergence": found.first,
            "first_divergence_theirs": theirs,
            "last_agreed": found.last,
            "cause": found.cause,
            "causes": [cause.mistake for cause in found.causes],
            "relation": found.relations[0].text if found.relations else None,
            "relations": [asdict(relation) for relation in found.relations],
            "candidates": candidates,
            "precision": found.precision,
            "note": found.note,
            "remarks": list(found.remarks),
            "unexplained": list(found.unexplained),
            "matched": found.matched,
            "certainty": {n: {"sure": sure, "by": how} for n, (sure, how) in found.sure.items()},
            "neighbours": found.neighbours,
            "not_compared": list(found.not_compared),
            "tensors": [asdict(row) for row in found.rows],
        }
    )


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
