"""A student's function beside ours, on the same numbers, and what to look at when they differ.

Every function of `assignment.py` is checked by itself and earns its points when values, shapes and
dtypes are right in float64 and in float32 and its arguments are as they were. Each aspect of a
check (a whole sequence, a cache, ...) has an equal share, of which float64 is three quarters;
without the first aspect in float64 there are no points. Where values are wrong, all known mistakes
are tried: one that gives the student's numbers is named. What is right but for the student's own
other functions costs nothing: those have cost their points already.

The student's code runs in a process of its own (`sandbox.py`); all comparing is done here.
"""

import json
import math
import os
import secrets
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from numpygpt.course import sandbox
from numpygpt.course.assignment import (
    CHECKS,
    Check,
    Fixture,
    fixture,
    hypotheses,
    mistaken,
    right_answer,
    with_their_own,
)
from numpygpt.course.worker import Worker, size_of
from numpygpt.files.atomic import writing

# Gaps relative to the largest number of an array. Correct code stays below 1e-6 in float32 and
# 1e-13 in float64, where a constant copied with 8 digits may pass.
TOLERANCE = {"float64": 1e-7, "float32": 1e-5}
FLOAT64_SHARE = 0.75
HINTS = ("none", "brief", "full")


@dataclass(frozen=True)
class Result:
    """Of one check: the points, which aspects are right and wrong, what is wrong (or nothing), what
    to look at, and the mistake that was recognised: its name, the check's name and a function that
    makes it."""

    check: Check
    score: float
    aspects: str = ""
    fault: str = ""
    cause: str = ""
    mistake: tuple = ()
    note: str = ""

    def message(self, hints: str = "full") -> str:
        """In words. hints: "none" says right or wrong, "brief" what is wrong and the name of a
        known mistake, "full" also why, with the formula."""
        named = f"This is the mistake {self.mistake[0]}." if self.mistake else ""
        told = {"none": [], "brief": [self.fault, named], "full": [self.fault, self.cause]}[hints]
        return _clean(" ".join(text for text in (self.aspects, *told, self.note) if text))


@dataclass(frozen=True)
class Grading:
    """A submission's results, the seed of the numbers they were found with, and the limits."""

    results: list[Result]
    seed: int
    limits: str

    @property
    def score(self):
        """The points that were reached."""
        return sum(result.score for result in self.results)

    @property
    def points(self):
        """The points that can be reached."""
        return sum(result.check.points for result in self.results)


def grade(
    student,
    tokenizer,
    adapters=None,
    only=(),
    seconds=10.0,
    memory=2048,
    seed=None,
    points=None,
    checks=CHECKS,
) -> Grading:
    """Check a student's file.

    student, adapters: paths of Python files; names in `adapters`, which finds the student's file as
    the module `student`, come before the student's. tokenizer: for encode and decode. only: names
    of checks; all if there are none. seconds, memory: limits, for each function in seconds and MiB.
    seed: of the numbers; by default a new one. points: name -> points, in place of those of
    `checks`, which are by default those of the assignment. Raises ValueError for unknown names and
    limits that make no sense, FileNotFoundError for missing files, and GraderError, a ValueError,
    where the grader itself fails.
    """
    student, adapters = Path(student), adapters and Path(adapters)
    for path in (student, adapters):
        if path and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    names = [check.name for check in checks]
    if unknown := (set(only) | set(points or {})) - set(names):
        unknown = ", ".join(sorted(unknown))
        raise ValueError(f"no check is called {unknown}: they are {', '.join(names)}")
    seed = secrets.randbelow(2**32) if seed is None else seed
    f = fixture(seed, tokenizer)
    checks = [
        replace(check, points=(points or {}).get(check.name, check.points))
        for check in checks
        if not only or check.name in only
    ]
    with Worker(student, adapters, seconds, memory) as worker:
        if error := worker.import_error():
            fault = f"Nothing could be tried, as importing the file {error}."
            results = [
                Result(check, 0, fault=fault if i == 0 else "") for i, check in enumerate(checks)
            ]
            return Grading(results, seed, worker.limits())
        results = []
        for check in checks:
            asked = calls(check, f)
            most = sum(size_of(right_answer(check, f)(*doubled)) for _, doubled in asked)
            outcome = worker.call(check.name, [sent for sent, _ in asked], most)
            results.append(judged(check, f, outcome, results, worker))
    return Grading(results, seed, worker.limits())


def calls(check: Check, f: Fixture) -> list[tuple]:
    """(arguments as sent, the same numbers in float64) of all calls: in float64, then float32."""
    cases = check.cases(f)
    calls = [(case, case) for case in cases]
    if _floats(cases):
        narrow = [_cast(case, np.float32) for case in cases]
        calls += [(n, _widened(n, case)) for n, case in zip(narrow, cases, strict=True)]
    return calls


def _widened(narrow, original):
    """In float64 again; an array that float32 can hold is the original, and recognised as such."""
    if isinstance(narrow, tuple):
        return tuple(map(_widened, narrow, original))
    if isinstance(narrow, dict):
        return {k: _widened(v, original[k]) for k, v in narrow.items()}
    same = narrow is original or np.array_equal(narrow, original)
    return original if same else _cast(narrow, np.float64)


def _cast(value, dtype):
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    if isinstance(value, tuple):
        return tuple(_cast(v, dtype) for v in value)
    return {k: _cast(v, dtype) for k, v in value.items()} if isinstance(value, dict) else value


def _floats(value):
    """Whether there is an array of floats in it."""
    if isinstance(value, tuple | list):
        return any(map(_floats, value))
    if isinstance(value, dict):
        return any(map(_floats, value.values()))
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def judged(check: Check, f: Fixture, outcome: dict, before=(), worker=None) -> Result:
    """The result of a check, from what its function returned.

    What calls a wrong function of the student's is right if it gives what the right one does with
    that function in it, or with the mistake that was recognised there: `before` are the results of
    the checks before this one, and `worker` can call the student's functions again.
    """
    with np.errstate(all="ignore"):  # wrong numbers may be of any size
        result = _judged(check, f, outcome)
        if result.score == check.points or check.backward_of or check.places:
            return result
        unlike_ours = [r.check.name for r in before if r.fault or r.aspects]
        wrong = [name for name in unlike_ours if name in check.parts]
        if wrong and worker is not None:
            own = {name: _theirs(worker, name) for name in wrong}
            again = _judged(check, f, outcome, with_their_own(f, check, own))
            if again.score > result.score:
                names = " and ".join(wrong)
                said = f"Right but for {names}, which cost points already."
                return replace(again, aspects=said if not again.fault else again.aspects)
        known = [r.mistake for r in before if r.mistake and _shows(check, f, r.mistake)]
        if not known:
            return result
        again = _judged(check, mistaken(f, known), outcome)
    names = " and ".join(name for name, *_ in known)
    if again.score > result.score:
        return replace(again, aspects=f"Right but for {names}, which cost points already.")
    if again.mistake and not result.mistake:
        return replace(again, fault=f"With {names} made as well: {again.fault}")
    return result


class _NoAnswer(ValueError):
    """The student's function gave nothing that can be used in place of ours."""


def _theirs(worker, name):
    """A student's function, to be called from here."""

    def function(*arguments):
        outcome = worker.call(name, [arguments], 64 * size_of(arguments))
        try:
            parts, _, error = _opened(outcome)[0]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError):
            raise _NoAnswer from None
        if error or list(parts) != [""]:
            raise _NoAnswer
        return parts[""]

    return function


def _shows(check, f, mistake):
    answers = [right_answer(check, g)(*check.cases(f)[0]) for g in (f, mistaken(f, [mistake]))]
    return _gap(*map(_parts, answers)) > 0


def _judged(check, f, outcome, right=None):
    """right: what the answers are compared with, by default the right answer."""
    asked = calls(check, f)
    right = right or right_answer(check, f)
    try:
        cases, error = _opened(outcome), str(outcome.get("error", ""))
    except (ValueError, TypeError, KeyError, AttributeError, MemoryError):  # forged, or broken off
        cases, error = [], "left something that is not a result"
    if not error and len(cases) != len(asked):
        error = "left something that is not a result"
    if error:
        fault = f"{check.name} {error}" + "." * (error[-1] not in ".?!")
        found = [(fault, "", ())] * len(asked)
    else:
        pairs = list(zip(asked, cases, strict=True))
        found = [_fault(check, f, *pair, pairs, right) for pair in pairs]
    score, aspects = _score(check, asked, [not fault for fault, *_ in found])
    fault, cause, mistake = next((one for one in found if one[0]), ("", "", ()))
    if fault and outcome.get("printed"):
        fault += f" It printed: {outcome['printed']}"
    tried = outcome.get("tried", [])
    note = f"Note: it tried to {', '.join(tried)}." if tried else ""
    return Result(check, score, aspects, fault, cause, mistake, note)


def _score(check, asked, right):
    """Points for the aspects that are right, and these in words where there are some of both."""
    count = len(check.aspects)
    floats = len(asked) > count  # then all aspects come in float64, and again in float32
    shares = [FLOAT64_SHARE, 1 - FLOAT64_SHARE] if floats else [1]
    total = sum(shares[i // count] / count for i, ok in enumerate(right) if ok)
    if not right[0] or all(right):
        return (check.points if all(right) else 0), ""
    dtypes = [" in float64", " in float32"] if floats else [""]
    names = [
        f"{check.aspects[i % count]}{dtypes[i // count]}" if count > 1 else dtypes[i // count][4:]
        for i in range(len(right))
    ]
    yes = ", ".join(name for name, ok in zip(names, right, strict=True) if ok)
    no = ", ".join(name for name, ok in zip(names, right, strict=True) if not ok)
    return round(check.points * total, 2), f"Right: {yes}. Wrong: {no}."


def _opened(outcome):
    """[(label -> array or text, fingerprints of arguments, error)] of an outcome."""
    return [
        ({}, [], str(case["error"]))
        if "error" in case
        else ({k: sandbox.unpacked(v) for k, v in case["parts"].items()}, case["arguments"], "")
        for case in outcome.get("cases", [])
    ]


def _clean(text):
    """The text on one line of bearable length, without what could play tricks on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text[:2000].split()))


def _fault(check, f, asked, returned, pairs, answer):
    """What is wrong with what one call of `pairs` returned, what to look at, in sentences, and the
    known mistake."""
    (sent, doubled), (theirs, after, error) = asked, returned
    if error:
        return f"{check.name} {error}" + "." * (error[-1] not in ".?!"), "", ()
    dtype = _dtype(asked)
    called = _called(check, sent, dtype)
    try:
        right = _parts(answer(*doubled))
    except _NoAnswer:
        return "It calls a function that gives no answer.", "", ()
    except (ValueError, TypeError, IndexError):  # their function's numbers do not fit into ours
        return "It calls a function whose answer does not fit.", "", ()
    fault = _wrong_tokens(check, f, theirs, right) or _misshapen(check, theirs, right)
    fault = fault or _wrong_values(check, theirs, right, dtype)
    if fault:
        alike = [(a[0], returned[0]) for a, returned in pairs if _dtype(a) == dtype]
        alike = [(arguments, parts) for arguments, parts in alike if parts]
        cause, mistake = _cause(check, f, sent, theirs, right, alike, TOLERANCE[dtype])
        return f"{called}: {fault}.", cause, mistake
    dtypes = {str(x.dtype) for x in theirs.values() if isinstance(x, np.ndarray) and x.ndim}
    if _floats(sent) and dtypes - {dtype}:
        fault = f"the values are right, but they are {', '.join(sorted(dtypes - {dtype}))}"
        cause = (
            "Constants must be Python floats: a NumPy scalar such as np.sqrt(2 / np.pi) is float64"
        )
        return f"{called}: {fault}.", f"{cause}, and so is np.zeros(shape) without a dtype.", ()
    names = check.arguments.split(", ")
    changed = [
        name
        for name, value, now in zip(names, sent, after, strict=False)
        if sandbox.fingerprint(value) != now
    ]
    if changed or len(after) != len(sent):
        return f"It changed its argument {', '.join(changed)}: copy it first.", "", ()
    return "", "", ()


def _wrong_tokens(check, f, theirs, right):
    """Of a wrong list of ids: the first wrong token, as text."""
    ids, expected = (parts.get("") for parts in (theirs, right))
    if check.name != "encode" or not isinstance(ids, np.ndarray) or ids.ndim != 1:
        return ""
    ids, expected = ids.tolist(), expected.tolist()
    if ids == expected:
        return ""
    tokens = f.tokenizer.tokens
    at = next(
        (i for i, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1]),
        min(len(ids), len(expected)),
    )

    def shown(ids):
        if at >= len(ids):
            return "missing"
        known = isinstance(ids[at], int) and 0 <= ids[at] < len(tokens)
        return repr(tokens[ids[at]]) if known else f"{ids[at]!r}, which is not an id"

    before = f.tokenizer.decode(expected[max(0, at - 4) : at])
    after = f", after {before!r}," if before else ""
    return f"token {at}{after} is {shown(ids)} instead of {shown(expected)}"


def _dtype(asked):
    sent, doubled = asked
    return "float64" if sent is doubled else "float32"


def _parts(value):
    return dict(sandbox.flatten(value))


def _called(check, sent, dtype):
    """ "gelu(x (2, 7, 1024)) in float64" """
    shown = []
    for name, value in zip(check.arguments.split(", "), sent, strict=False):
        if isinstance(value, np.ndarray):
            shown.append(f"{name} {value.shape}")
        elif isinstance(value, dict | list):
            shown.append(name)
        else:
            shown.append(f"{name} = {value!r}")
    return f"{check.name}({', '.join(shown)})" + f" in {dtype}" * _floats(sent)


def _part_name(check, label):
    """ "dg" for the label "1", "params wte.weight" for "0.wte.weight", "the result" for ""."""
    first, _, rest = label.partition(".")
    if first.isdecimal() and int(first) < len(check.returns):
        first = check.returns[int(first)]
    return f"{first} {rest}".strip() or (check.returns or ("the result",))[0]


def _misshapen(check, theirs, right):
    """How parts and shapes differ from the right ones, or nothing."""
    tuple_asked = all(label.partition(".")[0].isdecimal() for label in right)
    if tuple_asked and any(label[:1].isalpha() for label in theirs):
        return f"it returned a dict instead of the tuple {', '.join(check.returns)}"
    if theirs.keys() != right.keys():
        names = [" and ".join(_part_name(check, x) for x in parts) for parts in (theirs, right)]
        return f"it returned {names[0] or 'nothing'} instead of {names[1]}"
    for label, value in right.items():
        name, got = _part_name(check, label), theirs[label]
        if isinstance(value, str) != isinstance(got, str):
            return f"{name} is of type {type(got).__name__} instead of {type(value).__name__}"
        if isinstance(value, str):
            continue
        if got.shape != value.shape:
            return f"{name} has shape {got.shape} instead of {value.shape}"
        if value.dtype.kind == "i" and got.dtype.kind == "f" and got.size:
            return f"{name} is made of {got.dtype}, where integers belong"
    return ""


def _wrong_values(check, theirs, right, dtype):
    """Which values differ, where first and by how much, or nothing; shapes are the same."""
    sentences, fine = [], []
    for label, value in right.items():
        name, got = _part_name(check, label), theirs[label]
        if isinstance(value, str):
            at = len(os.path.commonprefix([got, value]))
            if got != value:
                pair = f"{got[at : at + 9]!r} instead of {value[at : at + 9]!r}"
                sentences.append(f"from character {at} on {name} is {pair}")
            continue
        error = _errors(got, value)
        wrong = np.argwhere(error > TOLERANCE[dtype])
        if not len(wrong):
            fine.append(name)
            continue
        at = tuple(wrong[0].tolist())
        pair = f"{float(got[at]):.8g} instead of {float(value[at]):.8g}"
        if not at:
            sentences.append(f"{name} is {pair}")
            continue
        count = f"{len(wrong):,} of {value.size:,} values of {name} {value.shape} are wrong"
        sentences.append(f"{count}, first {list(at)}: {pair}")
        if value.dtype.kind == "f":
            largest = float(np.abs(got.astype(float) - value)[error > TOLERANCE[dtype]].max())
            if math.isfinite(largest):
                sentences[-1] += f"; the largest error is {largest:.2g}"
            elif not np.isfinite(got).all():
                sentences[-1] += f"; {np.count_nonzero(~np.isfinite(got)):,} are not finite"
    if sentences and fine:
        sentences.append(f"{', '.join(fine)} right")
    return "; ".join(sentences)


def _errors(theirs, right):
    """|theirs - right| relative to the largest right value: 0 where equal, inf where one is NaN."""
    theirs, right = theirs.astype(float), right.astype(float)
    finite = np.abs(right[np.isfinite(right)])
    scale = finite.max() if finite.size and finite.max() else 1.0
    error = np.abs(theirs - right) / scale
    same = (theirs == right) | (np.isnan(theirs) & np.isnan(right))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def _gap(theirs, right):
    """The largest error in any part; inf where parts or shapes differ."""
    if theirs.keys() != right.keys():
        return np.inf
    worst = 0.0
    for label, value in right.items():
        got = theirs[label]
        if type(got) is not type(value) or np.shape(got) != np.shape(value):
            return np.inf
        if isinstance(value, str):
            worst = worst if value == got else np.inf
        else:
            worst = max(worst, float(_errors(got, value).max(initial=0)))
    return worst


def _cause(check, f, sent, theirs, right, alike, tolerance):
    """The mistake that gives their numbers, in words and as in `Result`, or what to look at.

    alike: arguments and results of all calls in this dtype; a mistake that gives more of them wins.
    """
    found = []
    for name, why, wrong in hypotheses(check, f):
        near = _distance(wrong, sent, theirs)
        if near <= tolerance and near < _gap(theirs, right) / 10:
            given = sum(_distance(wrong, *call) <= tolerance for call in alike)
            found.append((-given, near, name, why, wrong))
    if not found:
        return f"No mistake we know gives these numbers. Look at {check.look}.", ()
    given, nearest, name, why, wrong = min(found, key=lambda mistake: mistake[:2])
    same = {m[2] for m in found if m[0] == given and m[1] <= 10 * nearest} - {name}
    also = f" (Or of {', '.join(sorted(same))}, which give the same ones here.)" if same else ""
    cause = f"These are the numbers of the mistake {name}: {why}{also}"
    return cause, (name, check.name, wrong)


def _distance(wrong, arguments, theirs):
    try:
        return _gap(theirs, _parts(wrong(*arguments)))
    except (ValueError, TypeError, IndexError):  # it cannot be made with these arguments
        return np.inf


# ---- the sheet -----------------------------------------------------------------------------------


def sheet(grading: Grading, hints: str = "full") -> str:
    """The results to be read: one line per check, what is wrong below it, the sum at the end."""
    lines = textwrap.wrap(grading.limits, 100)
    lines += [f"Numbers drawn with --seed {grading.seed}.", ""]
    last = ""
    for result in grading.results:
        lines.append(f"{result.check.name:<28}{result.score:>5g} / {result.check.points:g}")
        message = result.message(hints)
        shown = "as above" if message and message == last else message
        lines += textwrap.wrap(shown, 96, initial_indent="    ", subsequent_indent="    ")
        last = message
    return "\n".join([*lines, f"{'total':<28}{grading.score:>5g} / {grading.points:g}"])


def write_gradescope(grading: Grading, path: str | os.PathLike, hints: str = "full", hidden=()):
    """results.json as Gradescope's autograder reads it; never half a file.

    hidden: names of checks that students do not see before the results are published.
    """
    tests = [
        {
            "name": r.check.name,
            "score": r.score,
            "max_score": r.check.points,
            "status": "failed" if r.score < r.check.points else "passed",
            "output": r.message(hints),
            "output_format": "text",
            "visibility": "after_published" if r.check.name in hidden else "visible",
        }
        for r in grading.results
    ]
    about = {"output": f"{grading.limits} Seed of the numbers: {grading.seed}."}
    with writing(path) as file:
        file.write(json.dumps(about | {"tests": tests}, indent=1) + "\n")


def write_starter(path: str | os.PathLike):
    """The file a student begins with: every signature, nothing done. Raises ValueError where there
    is a file already."""
    text = (Path(__file__).parent / "starter.py.txt").read_text(encoding="utf-8")
    if os.path.lexists(path):
        raise ValueError(f"{path} exists already: give the starter another name")
    with writing(path) as file:
        file.write(text)
