"""The plan of the house: who imports whom, and which file may open which door to the outside."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "numpygpt"

# Reading order. A room may use the rooms named beside it and no others: numbers flow one way.
ROOMS = {
    "ops": "",
    "model": "ops",
    "bpe": "",
    "memory": "",
    "sample": "memory ops",
    "data": "",
    "optim": "ops",
    "train": "memory optim formats",
    "evaluate": "ops",
    "trace": "model ops",
    "mistakes": "model ops bpe sample optim",
    "diagnose": "model mistakes trace",
    "assignment": "model ops bpe sample optim mistakes",
    "grade": "assignment grade_worker",
    "grade_worker": "",
    "analyze": "model ops",
    "plot": "",
    "bench": "memory analyze checkpoint optim sample train bpe model",
    "formats": "formats",
    "formats.dump": "formats",
    "formats.safetensors": "formats",
    "formats.tensorflow": "formats",
    "checkpoint": "model bpe formats",
    "download": "formats",
    "pretrained": "checkpoint download model bpe formats",
    "measure": "model ops sample evaluate optim",
    "published": "measure model download",
}
ANYTHING = {"cli", "__init__", "__main__"}  # the doors of the house itself
DOORS = {
    "regex": {"bpe"},
    "requests": {"download"},
    "matplotlib": {"plot"},
    "tqdm": {"cli"},
    "torch": {"bench"},  # only to be measured beside, where it happens to be installed
    "transformers": {"bench"},
}
STANDARD = set(sys.stdlib_module_names) | {"numpy"}


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


def test_every_file_is_a_room_of_the_plan():
    assert set(files()) <= set(ROOMS) | ANYTHING
    for path in files().values():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("name", sorted(set(files()) - ANYTHING))
def test_a_room_uses_the_rooms_it_may(name):
    used = {module for module in imports(files()[name]) if module.split(".")[0] == "numpygpt"}
    used = {module.split(".")[1] for module in used if "." in module}
    assert used <= set(ROOMS[name].split())


@pytest.mark.parametrize("name", sorted(files()))
def test_doors_are_narrow(name):
    outside = {module.split(".")[0] for module in imports(files()[name])} - STANDARD - {"numpygpt"}
    allowed = {door for door, rooms in DOORS.items() if name in rooms}
    assert outside <= allowed


def test_the_plan_has_no_circles():
    todo, done = {name: set(uses.split()) for name, uses in ROOMS.items()}, {"formats"}
    while ready := [name for name, uses in todo.items() if uses <= done and name != "formats"]:
        done |= set(ready)
        todo = {name: uses for name, uses in todo.items() if name not in ready}
    assert set(todo) <= {"formats"}


def test_the_readme_lists_the_rooms_in_reading_order():
    """A room uses those listed above it; `formats` itself only defines the error of its rooms."""
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    order = [name.replace("/", ".") for name in re.findall(r"^\| `([\w/]+)\.py`", readme, re.M)]
    for name in set(order) - ANYTHING:
        used = set(ROOMS[name].split()) - {"formats"}
        assert used <= set(order[: order.index(name)]), name


def test_importing_the_package_opens_no_door():
    code = (
        "import sys, numpygpt; numpygpt.formats.safetensors.read; numpygpt.GPT2;"
        f"print(*[door for door in {sorted(DOORS)} if door in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


def test_classes_inherit_from_errors_and_named_tuples_alone():
    for path in files().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base) for base in node.bases]
                allowed = ("Error", "Exception", "NamedTuple")
                assert all(base.endswith(allowed) for base in bases), node.name
