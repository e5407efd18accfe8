"""A student's function beside ours, on the same numbers, and what to look at when they differ.

Every function of `assignment.py` is checked by itself and earns its points when values, shapes and
dtypes are right in float64 and in float32 and its arguments are as they were. Where values are
wrong, all known mistakes are tried: one that gives the student's numbers is named.

The student's code runs in a process of its own (`worker.py`); all comparing is done here.
"""

import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numpygpt.course import worker
from numpygpt.course.assignment import (
    BY_NAME,
    CHECKS,
    Check,
    Fixture,
    fixture,
    hypotheses,
    mistaken,
    right_answer,
)
from numpygpt.files.atomic import writing

# Gaps relative to the largest number of an array. Correct code stays below 1e-6 in float32 and
# 1e-13 in float64, where a constant copied with 8 digits may pass.
TOLERANCE = {"float64": 1e-7, "float32": 1e-5}


@dataclass(frozen=True)
class Result:
    """Of one check: the points, what is wrong (or nothing), and the mistake that was recognised:
    its name, the check's name and a function that makes it."""

    check: Check
    score: int
    message: str = ""
    mistake: tuple = ()


def grade(student, model, tokenizer, adapters=None, only=(), seconds=10.0, memory=2048):
    """Check a student's file; return a list of one Result per check.

    student, adapters: paths of Python files; names in `adapters`, which finds the student's file as
    the module `student`, come before the student's. model, tokenizer: where the numbers come from.
    only: names of checks; all if there are none. seconds, memory: limits, for each function in
    seconds and MiB. Raises ValueError for unknown names, FileNotFoundError for missing files.
    """
    student, adapters = Path(student), adapters and Path(adapters)
    for path in (student, adapters):
        if path and not path.is_file():
            raise FileNotFoundError(f"there is no file {path}")
    if unknown := set(only) - BY_NAME.keys():
        raise ValueError(f"no check is called {', '.join(unknown)}: they are {', '.join(BY_NAME)}")
    if not (seconds > 0 and memory > 0):
        raise ValueError("seconds and memory must be more than 0")
    f = fixture(model, tokenizer)
    checks = [check for check in CHECKS if not only or check.name in only]
    jobs = [(check.name, [sent for sent, _ in calls(check, f)]) for check in checks]
    results = []
    for check, outcome in zip(
        checks, worker.run(student, adapters, jobs, seconds, memory), strict=True
    ):
        known = [result.mistake for result in results if result.mistake]
        results.append(judged(check, f, outcome, known))
    return results


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


def judged(check: Check, f: Fixture, outcome: dict, known=()) -> Result:
    """The result of a check, from what its function returned.

    What calls a wrong function of the student's is right if it gives what the right one does with
    that mistake: `known` are those recognised before, as in `Result.mistake`.
    """
    with np.errstate(all="ignore"):  # wrong numbers may be of any size
        result = _judged(check, f, outcome)
        if result.score or check.backward_of or check.places:
            return result
        known = [mistake for mistake in known if _shows(check, f, mistake)]
        if not known:
            return result
        again = _judged(check, mistaken(f, known), outcome)
    names = " and ".join(name for name, *_ in known)
    if again.score:
        return Result(check, again.score, f"Right but for {names}, which cost points already.")
    if again.mistake and not result.mistake:
        return Result(check, 0, f"With {names} made as well: {again.message}", again.mistake)
    return result


def _shows(check, f, mistake):
    answers = [right_answer(check, g)(*check.cases(f)[0]) for g in (f, mistaken(f, [mistake]))]
    return _gap(*map(_parts, answers)) > 0


def _judged(check, f, outcome):
    asked = calls(check, f)
    try:
        cases, error = _opened(outcome)
    except (ValueError, TypeError, KeyError, AttributeError, MemoryError):  # forged, or broken off
        cases, error = [], "left something that is no result"
    if not error and len(cases) != len(asked):
        error = "left something that is no result"
    pairs = list(zip(asked, cases, strict=False))
    faults = (_fault(check, f, *pair, pairs) for pair in pairs)
    fault, mistake = next((found for found in faults if found[0]), ("", ()))
    if error and not fault:
        fault = f"{check.name} {error}" + "." * (error[-1] not in ".?!")
    message = fault
    if fault and outcome.get("printed"):
        message += f" It printed: {outcome['printed']}"
    if outcome.get("uses_reference"):
        message += " Note: numpygpt itself, the answer key, is imported."
    return Result(check, 0 if fault else check.points, _clean(message), mistake)


def _opened(outcome):
    """[(label -> array or text, numbers of changed arguments)] of an outcome, and its error."""
    cases = [
        ({k: worker.unpacked(v) for k, v in case["parts"].items()}, [*case["changed"]])
        for case in outcome.get("cases", [])
    ]
    return cases, str(outcome.get("error", ""))


def _clean(text):
    """The text on one line of bearable length, without what could play tricks on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text[:2000].split()))


def _fault(check, f, asked, returned, pairs):
    """What is wrong with what one call of `pairs` returned, in sentences, and the known mistake."""
    (sent, doubled), (theirs, changed) = asked, returned
    dtype = _dtype(asked)
    called = _called(check, sent, dtype)
    right = _parts(right_answer(check, f)(*doubled))
    fault = _misshapen(check, theirs, right) or _wrong_values(check, theirs, right, dtype)
    if fault:
        alike = [(a[0], returned[0]) for a, returned in pairs if _dtype(a) == dtype]
        cause, mistake = _cause(check, f, sent, theirs, right, alike, TOLERANCE[dtype])
        return f"{called}: {fault}. {cause}", mistake
    dtypes = {str(x.dtype) for x in theirs.values() if isinstance(x, np.ndarray) and x.ndim}
    if _floats(right) and dtypes - {dtype}:
        fault = f"the values are right, but they are {', '.join(dtypes - {dtype})}"
        cause = (
            "Constants must be Python floats: a NumPy scalar such as np.sqrt(2 / np.pi) is float64"
        )
        return f"{called}: {fault}. {cause}, and so is np.zeros(shape) without a dtype.", ()
    if changed:
        names = [n for i, n in enumerate(check.arguments.split(", ")) if i in changed]
        return f"It changed its argument {', '.join(names)}: copy it first.", ()
    return "", ()


def _dtype(asked):
    sent, doubled = asked
    return "float64" if sent is doubled else "float32"


def _parts(value):
    return dict(worker.flatten(value))


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
    if theirs.keys() != right.keys():
        names = [" and ".join(_part_name(check, x) for x in parts) for parts in (theirs, right)]
        return f"it returned {names[0] or 'nothing'} instead of {names[1]}"
    for label, value in right.items():
        name, got = _part_name(check, label), theirs[label]
        if isinstance(value, str) != isinstance(got, str):
            return f"{name} is of type {type(got).__name__} instead of {type(value).__name__}"
        if not isinstance(value, str) and got.shape != value.shape:
            return f"{name} has shape {got.shape} instead of {value.shape}"
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
            sentences[-1] += f"; the largest error is {largest:.2g}"
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


def sheet(results: list[Result]) -> str:
    """The results to be read: one line per check, what is wrong below it, the sum at the end."""
    lines, last = [], ""
    for result in results:
        lines.append(f"{result.check.name:<28}{result.score:>3} / {result.check.points}")
        message = "as above" if result.message and result.message == last else result.message
        lines += textwrap.wrap(message, 96, initial_indent="    ", subsequent_indent="    ")
        last = result.message
    total = sum(r.score for r in results), sum(r.check.points for r in results)
    return "\n".join([*lines, f"{'total':<28}{total[0]:>3} / {total[1]}"])


def write_gradescope(results: list[Result], path: str | os.PathLike):
    """results.json as Gradescope's autograder reads it; never half a file."""
    tests = [
        {
            "name": r.check.name,
            "score": r.score,
            "max_score": r.check.points,
            "status": "failed" if r.score < r.check.points else "passed",
            "output": r.message,
            "output_format": "text",
        }
        for r in results
    ]
    with writing(path) as file:
        file.write(json.dumps({"tests": tests}, indent=1) + "\n")


def write_starter(path: str | os.PathLike):
    """The file a student begins with: every signature, nothing done. Raises ValueError where there
    is a file already."""
    text = (Path(__file__).parent / "starter.py.txt").read_text(encoding="utf-8")
    if os.path.lexists(path):
        raise ValueError(f"{path} exists already: give the starter another name")
    with writing(path) as file:
        file.write(text)
