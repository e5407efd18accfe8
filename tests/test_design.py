"""The plan of the house: who imports whom, and which file may open which door to the outside."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "numpygpt"

# The book, in reading order. A file may use those beside it and no others: numbers flow one way.
BOOK = {
    "plain": "",
    "elsewhere": "",
    "fast": "",
    "ops": "fast",
    "model": "fast ops",
    "bpe": "elsewhere",
    "sample": "elsewhere fast ops",
    "draft": "sample",
    "beam": "ops sample",
    "completion": "elsewhere ops sample beam",
    "data": "bpe sample",
    "optim": "fast",
    "train": "fast sample optim",
    "lora": "sample",
    "evaluate": "ops data sample",
    "family": "ops model bpe sample beam optim",
}
# The workshop: its rooms may use any file of the book, themselves and the rooms beside them.
# `files.atomic`, which writes whatever is written, uses nothing of ours and is a room of its own.
WORKSHOP = {
    "files.atomic": "",
    "formats": "files.atomic",
    "files": "files.atomic formats",
    "look": "files.atomic",
    "check": "files.atomic formats files look",
    "course": "files.atomic files check",
}
ANYTHING = {"__init__", "__main__"}  # the doors of the house itself
DOORS = {
    "regex": {"bpe", "plain"},
    "requests": {"files.download.transfer"},
    "matplotlib": {"look.plot"},
    "threadpoolctl": {"fast"},
    "tqdm": {"cli.training", "cli.evaluating", "cli.looking", "cli.models", "cli.measuring"},
    "torch": {"check.rivals"},  # only to be measured beside, where it happens to be installed
    "transformers": {"check.rivals"},
    "ctranslate2": {"check.rivals"},
}
STANDARD = set(sys.stdlib_module_names) | {"numpy", "tomllib"}  # tomllib since Python 3.11


def files():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path):
    """(module, level) of every import statement, those inside functions included."""
    inside = path.parent.relative_to(PACKAGE.parent).parts  # the package the file is in
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*inside[: len(inside) - node.level + 1], node.module or ""])
            base = base.removesuffix(".")
            yield from ([base] if node.module else (f"{base}.{a.name}" for a in node.names))
        elif isinstance(node, ast.ImportFrom):
            whole = node.module == "numpygpt"
            yield from ((f"numpygpt.{a.name}" for a in node.names) if whole else [node.module])


def room(name):
    return name if name == "files.atomic" else name.split(".")[0]


def test_every_file_is_in_a_room_of_the_plan():
    assert {room(name) for name in files()} <= set(BOOK) | set(WORKSHOP) | ANYTHING | {"cli"}
    for path in files().values():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("name", sorted(set(files()) - ANYTHING))
def test_a_file_uses_the_rooms_it_may(name):
    used = {module for module in imports(files()[name]) if module.split(".")[0] == "numpygpt"}
    used = {room(module.removeprefix("numpygpt.")) for module in used} - {room(name), "numpygpt"}
    if room(name) in BOOK:  # the book imports no folder of the workshop
        assert used <= set(BOOK[room(name)].split())
    elif room(name) in WORKSHOP:
        assert used <= set(BOOK) | set(WORKSHOP[room(name)].split())


@pytest.mark.parametrize("name", sorted(files()))
def test_doors_are_narrow(name):
    outside = {module.split(".")[0] for module in imports(files()[name])} - STANDARD - {"numpygpt"}
    allowed = {door for door, rooms in DOORS.items() if name in rooms}
    assert outside <= allowed


def test_the_plan_has_no_circles():
    """Each line of the plan names only what stands above it."""
    for plan in (BOOK, WORKSHOP):
        above = set()
        for name, uses in plan.items():
            assert set(uses.split()) <= above
            above.add(name)


def test_the_readme_lists_the_book_in_reading_order():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    order = [name for name in re.findall(r"^\| `(\w+)\.py`", readme, re.M) if name in BOOK]
    for name in order:
        uses = set(BOOK[name].split()) - {"fast", "elsewhere"}  # nobody needs them to read on
        assert uses <= set(order[: order.index(name)]), name


def test_importing_the_package_opens_no_door():
    code = (
        "import sys, numpygpt; numpygpt.formats.safetensors.read; numpygpt.GPT2;"
        f"print(*[door for door in {sorted(DOORS)} if door in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def public(body, inside=""):
    """(name, node) of the functions and classes that others may use, methods included."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield inside + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{node.name}.")


@pytest.mark.parametrize("name", sorted(files()))
def test_whatever_is_public_says_what_it_does(name):
    tree = ast.parse(files()[name].read_text(encoding="utf-8"))
    assert [n for n, node in public(tree.body) if not ast.get_docstring(node)] == []


def test_classes_inherit_from_errors_and_named_tuples_alone():
    for path in files().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                allowed = ("Error", "Exception", "NamedTuple")
                if node.name == "Record":  # a dict in every way but how it is shown
                    allowed = ("dict",)
                assert all(base.endswith(allowed) for base in bases), node.name
