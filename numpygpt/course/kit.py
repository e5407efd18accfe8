"""A course that a teacher can use tomorrow: its files, its rules, and a whole class graded."""

import csv
import os
import secrets
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import numpygpt
from numpygpt.course import grade
from numpygpt.course.assignment import BY_NAME, CHECKS, Check
from numpygpt.files import pretrained
from numpygpt.files.atomic import writing


@dataclass(frozen=True)
class Rules:
    """What a course asks for: points of each function (name -> points), the names whose tests are
    hidden, hints ("none", "brief" or "full"), limits in seconds and MiB for each function, and a
    teacher's own checks."""

    points: dict = field(default_factory=dict)
    hidden: tuple = ()
    hints: str = "full"
    seconds: float = 10.0
    memory: int = 2048
    own: tuple = ()


def read_rules(path=None, seconds=None, memory=None, hints=None, only=()) -> Rules:
    """The rules in a points.toml, or those of the whole assignment; arguments that are given come
    before the file's. Raises ValueError with the key for whatever is not understood."""
    table = _toml(path) if path else {}
    known = {"points", "hidden", "hints", "seconds", "memory", "own"}
    if unknown := table.keys() - known:
        raise ValueError(f"{path}: {sorted(unknown)[0]} is not known; there are {sorted(known)}")
    own = _own_checks(Path(path).parent / table["own"]) if "own" in table else ()
    names = {**BY_NAME, **{check.name: check for check in own}}
    points = table.get("points", {name: check.points for name, check in names.items()})
    if not isinstance(points, dict):
        raise ValueError(f"{path}: [points] must be a table of functions and their points")
    for name, value in points.items():
        if name not in names:
            raise ValueError(f"{path}: no check is called {name}: they are {', '.join(names)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ValueError(f"{path}: the points of {name} must be a positive number")
    if unknown := set(only) - names.keys():
        raise ValueError(
            f"no check is called {', '.join(sorted(unknown))}: they are {', '.join(names)}"
        )
    if only:
        points = {name: points.get(name, names[name].points) for name in names if name in only}
    hidden = table.get("hidden", [])
    if not isinstance(hidden, list) or not set(hidden) <= names.keys():
        raise ValueError(f"{path}: hidden must be a list of functions, not {hidden!r}")
    hints = hints or table.get("hints", "full")
    if hints not in grade.HINTS:
        raise ValueError(f"{path}: hints must be one of {', '.join(grade.HINTS)}, not {hints!r}")
    limits = {}
    for name, given, usual in (("seconds", seconds, 10.0), ("memory", memory, 2048)):
        value = given if given is not None else table.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{path}: {name} must be a number, not {value!r}")
        limits[name] = value
    return Rules(points, tuple(hidden), hints, **limits, own=own)


def _toml(path):
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise ValueError("points.toml needs Python 3.11 or newer") from None
    if Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is not a file but a folder, pipe or device: name a points.toml")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text, so it is not a points.toml") from None
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None


def _own_checks(path):
    """A teacher's own part: a Python file with `CHECKS = [(name, function, inputs, points), ...]`.

    The function is the right one; inputs is a function of a numpy Generator that returns a list of
    tuples of arguments. This is the teacher's code and runs here.
    """
    names = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    try:
        own = [tuple(entry) for entry in names["CHECKS"]]
        if not all(len(entry) == 4 and callable(entry[1]) and callable(entry[2]) for entry in own):
            raise TypeError
        return tuple(_own_check(*entry) for entry in own)
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{path} must have CHECKS = [(name, right function, inputs, points), ...]"
        ) from None


def _own_check(name, function, inputs, points):
    count = function.__code__.co_argcount
    return Check(
        name,
        points,
        ", ".join(function.__code__.co_varnames[:count]),
        lambda f: inputs(f.rng(f"own {name}")),
        lambda way, *arguments: way(*arguments),
        "the handout",
        way=lambda f: function,
        places=("own",),
        aspects=tuple(f"case {i + 1}" for i in range(len(inputs(np.random.default_rng(0))))),
    )


def grade_one(student, tokenizer, rules: Rules, adapters=None, seed=None) -> grade.Grading:
    """`grade.grade` by the rules of a course."""
    checks = [
        *(check for check in CHECKS if check.name in rules.points),
        *(check for check in rules.own if check.name in rules.points),
    ]
    return grade.grade(
        student,
        tokenizer,
        adapters,
        seconds=rules.seconds,
        memory=rules.memory,
        seed=seed,
        points=rules.points,
        checks=checks,
    )


def grade_class(students, table, tokenizer, rules, adapters=None, seed=None, jobs=1, say=print):
    """Grade each file and write a row for each into a CSV; -> 0, or 1 where somebody has less than
    all points. Rows that are there already stay: a stopped run goes on. All get the same numbers.
    """
    columns = ["student", *rules.points, "total", "of", "seed"]
    rows = _rows(table, columns)
    names = [str(student) for student in students]
    if len(set(names)) < len(names):
        raise ValueError("a student is named twice")
    if rows:
        seed = int(next(iter(rows.values()))["seed"])
    seed = secrets.randbelow(2**32) if seed is None else seed

    def work(name):
        return name, grade_one(name, tokenizer, rules, adapters, seed)

    todo = [name for name in names if name not in rows]
    for name in todo:
        if not Path(name).is_file():
            raise FileNotFoundError(f"there is no file {name}")
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for name, grading in pool.map(work, todo):
            scores = {result.check.name: f"{result.score:g}" for result in grading.results}
            totals = {"total": f"{grading.score:g}", "of": f"{grading.points:g}", "seed": seed}
            rows[name] = {"student": name} | scores | totals
            ordered = [rows[n] for n in sorted(rows)]
            with writing(table) as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(ordered)
            say(f"{name}: {grading.score:g} of {grading.points:g}")
    return int(any(float(rows[name]["total"]) < float(rows[name]["of"]) for name in names))


def _rows(table, columns):
    """The rows of a table begun before, by student. Raises ValueError for another table."""
    if not os.path.exists(table):
        return {}
    with open(table, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != columns:
            raise ValueError(f"{table} is a table of something else: name another --table")
        return {row["student"]: row for row in reader}


# ---- the files of a course -----------------------------------------------------------------------

TEMPLATES = Path(__file__).parent / "templates"


def new(folder: Path) -> list[Path]:
    """Write a course; return its files' paths. Raises ValueError for a folder that is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    checks = [(check.name, check.arguments, check.points) for check in CHECKS]
    checks.append(("perplexity", "nats", 2))  # that of own_checks.py
    fill = {
        "{table}": "\n".join(f"| `{name}({given})` | {points} |" for name, given, points in checks),
        "{points}": "\n".join(f"{name} = {points}" for name, _, points in checks),
    }
    written = []
    for path in sorted(TEMPLATES.iterdir()):
        if path.name not in ZIPPED:
            written.append(folder / path.name.removesuffix(".txt"))
            with writing(written[-1]) as file:
                file.write(_filled(path, fill))
    with writing(folder / "solution.py") as file:
        file.write(Path(numpygpt.plain.__file__).read_text(encoding="utf-8"))
    grade.write_starter(folder / "student.py")
    with writing(folder / "gradescope.zip", binary=True) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in (*ZIPPED, "points.toml", "own_checks.py.txt"):
                entry = zipfile.ZipInfo(name.removesuffix(".txt"), (2026, 1, 1, 0, 0, 0))
                entry.external_attr = (0o755 if name in ZIPPED else 0o644) << 16
                archive.writestr(entry, _filled(TEMPLATES / name, fill))
            _add_package(archive)
    return [*written, *(folder / name for name in ("solution.py", "student.py", "gradescope.zip"))]


ZIPPED = ("setup.sh", "run_autograder")  # what Gradescope runs


def _add_package(archive):
    """numpygpt as it is here, and the bundled model: nothing has to be published for a course."""
    package, model = Path(numpygpt.__file__).parent, pretrained.find("stories")
    for folder, name in ((package, "numpygpt"), (model, "weights/stories")):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, f"{name}/{path.relative_to(folder).as_posix()}")


def _filled(path, fill):
    text = path.read_text(encoding="utf-8")
    for gap, words in fill.items():
        text = text.replace(gap, words)
    return text
