"""The notebooks say what is true: run anew, compared with what is stored, their prose checked."""

import ast
import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import run_notebooks as notebooks

nbformat = pytest.importorskip("nbformat")
FOLDER = Path(__file__).parent.parent / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.name for path in FILES]


@pytest.fixture(scope="module")
def stored():
    return {path.name: nbformat.read(path, as_version=4) for path in FILES}


@pytest.fixture(scope="module")
def reports():
    """name -> future of a report; two notebooks are run at a time, in processes of their own."""
    with ThreadPoolExecutor(2) as pool:
        yield {path.name: pool.submit(_report, path) for path in FILES}


def _report(path):
    ran = subprocess.run(
        [sys.executable, notebooks.__file__, "--check", str(path)], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_run_anew_it_shows_what_is_stored(name, reports):
    assert reports[name].result()["differences"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_checker_of_an_exercise_tells_a_blank_from_a_solution(name, reports, stored):
    report = reports[name].result()
    assert all(text.startswith("not yet") for text in report["blanks"]), report["blanks"]
    assert all(text.startswith("right") for text in report["answers"]), report["answers"]
    assert len(report["blanks"]) == sum("solution" in c.metadata for c in stored[name].cells)


@pytest.mark.parametrize("name", NAMES)
def test_every_number_in_the_prose_is_asserted(name, stored):
    assert notebooks.unproved(stored[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_canonical_and_small(name, stored):
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert text == notebooks.written(notebooks.canonical(stored[name]))
    assert len(text) <= 400_000


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_nothing_but_the_package(name, stored):
    """No set-up, no network, no picture from elsewhere, no error; text and PNG alone."""
    allowed = {"numpygpt", "numpy", "matplotlib"} | set(sys.stdlib_module_names)
    for cell in stored[name].cells:
        if cell.cell_type == "markdown":
            assert not re.search(r"!\[|<img|<script|<iframe", cell.source), cell.id
            continue
        for node in ast.walk(ast.parse(cell.source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {n.split(".")[0] for n in names} <= allowed, cell.id
        assert not re.search(r"sys\.path|https?://|^[!%]", cell.source, re.M), cell.id
        for output in cell.outputs:
            assert output.output_type != "error", cell.id
            assert output.get("name") != "stderr", cell.id
            assert set(output.get("data", {})) <= notebooks.KINDS, cell.id


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_parts_a_lesson_has(name, stored):
    prose = "\n".join(c.source for c in stored[name].cells if c.cell_type == "markdown")
    for part in ("# ", "you'll do", "you'll learn", "you'll need", "## On your own"):
        assert part in prose, part
    for part in ("## In practice", "## Further reading"):
        assert part in prose, part


def test_the_instructors_version_is_the_assignment_with_its_solutions(stored):
    blank, solved = (stored[f"15_assignment{end}.ipynb"] for end in ("", "_solutions"))
    for one, other in zip(blank.cells[1:], solved.cells[1:], strict=True):
        assert other.source == one.metadata.get("solution", one.source)
    for cell in solved.cells:
        if "check(" in cell.source and cell.cell_type == "code" and "def " in cell.source:
            assert notebooks.text_of(cell).startswith("right")


# ---- the checks themselves -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "computed", "equal"),
    [
        ("loss 3.41 at 7", "loss 3.42 at 7", True),
        ("loss 3.41 at 7", "loss 3.43 at 7", False),
        ("loss 3.41 at 7", "loss 3.41 at 8", False),
        ("loss 3.41", "lost 3.41", False),
        ("[ 1.0  2.5]", "[1.0 2.5]", True),
        ("-0.5", "0.5", False),
        ("1.5e-07", "1.6e-07", True),
        ("1.5e-07", "1.5e-06", False),
        ("5,853,184 numbers", "5,853,185 numbers", False),
        ("1 2", "1", False),
        ("nan", "nan", True),
        ("0.5", "nan", False),
    ],
)
def test_outputs_are_compared_with_a_tolerance(stored, computed, equal):
    assert notebooks.same(stored, computed) is equal


@pytest.mark.parametrize(
    ("prose", "missing"),
    [
        ("It has 12 heads.", []),
        ("It has 13 heads.", ["13"]),
        ("`13` heads and $13 x$, GPT-2, 124M; see [this](13)", []),
        ("# 13 ways\n\n13. point\n\nvalue", []),
        ("a loss of 0.25 nats", []),
        ("a loss of 0.26 nats", ["0.26"]),
        ("1,024 and 7", ["7"]),
        ("Radford et al. 2019", []),
        ("in the year 2019", ["2019"]),
    ],
)
def test_the_linter_finds_numbers_that_nothing_asserts(prose, missing):
    code = "assert heads == 12\nnp.testing.assert_allclose(loss, 0.25)\nassert n == 1024\nx = 7"
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(prose), v4.new_code_cell(code)]
    found = notebooks.unproved(v4.new_notebook(cells=cells))
    assert [claim.split(": ")[1] for claim in found] == missing
