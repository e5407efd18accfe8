"""Run notebooks from top to bottom in a fresh kernel, save them canonically, and find untruths.

    python tests/run_notebooks.py notebooks/01*.ipynb        run and save these
    python tests/run_notebooks.py --check FILE               run, print what differs, save nothing

Saved is what a reader sees: text and PNG pictures. Cell ids are numbers, execution counts 1..n, and
no time of day or of computing stands in the file, so that a notebook run twice is the same file.
"""

import argparse
import ast
import asyncio
import json
import re
import sys
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
KINDS = {"text/plain", "image/png"}
NUMBER = re.compile(r"[-+]?(?:\d[\d,_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def execute(notebook, folder, seconds=300):
    """A copy with fresh outputs; an exercise's solution and outputs are added to its metadata.

    Raises nbclient's CellExecutionError at the first cell that fails.
    """
    from nbclient import NotebookClient

    fresh = nbformat.from_dict(json.loads(json.dumps(notebook)))
    exercises = [cell for cell in fresh.cells if "solution" in cell.metadata]
    solved = [nbformat.v4.new_code_cell(cell.metadata["solution"]) for cell in exercises]
    fresh.cells += solved
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    NotebookClient(
        fresh,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    ).execute()
    fresh.cells = fresh.cells[: len(notebook.cells)]
    answers = [text_of(cell) for cell in solved]
    return canonical(fresh), [text_of(cell) for cell in exercises], answers


def canonical(notebook):
    """The same notebook without what changes from run to run."""
    out = nbformat.v4.new_notebook()
    out.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    count = 0
    for number, cell in enumerate(notebook.cells):
        metadata = {k: cell.metadata[k] for k in ("tags", "solution") if k in cell.metadata}
        if cell.cell_type == "code":
            count += 1
            new = nbformat.v4.new_code_cell(cell.source, metadata=metadata, execution_count=count)
            new.outputs = _outputs(cell.outputs, count)
        else:
            new = nbformat.v4.new_markdown_cell(cell.source, metadata=metadata)
        new.id = f"{number:02}"
        out.cells.append(new)
    return out


def _outputs(outputs, count):
    """Neighbouring pieces of one stream joined, pictures and text only."""
    kept = []
    for output in outputs:
        output = nbformat.from_dict(json.loads(json.dumps(output)))
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if "data" in output:
            output.data = {kind: value for kind, value in output.data.items() if kind in KINDS}
            if "image/png" in output.data:  # its text says only how large the figure is
                output.data = {"image/png": output.data["image/png"]}
            output.metadata = {}
        if output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    return kept


def written(notebook):
    return nbformat.writes(notebook) + "\n"


def text_of(cell):
    """All that a cell printed or returned, as text."""
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
    return "".join(texts)


# ---- is what is stored what is computed? ---------------------------------------------------------


def differences(stored, fresh):
    """One sentence for each cell whose stored outputs are not those just computed."""
    found = []
    for old, new in zip(stored.cells, fresh.cells, strict=True):
        if old.cell_type != "code":
            continue
        kinds = [
            [(o.output_type, *sorted(o.get("data", {}))) for o in c.outputs] for c in (old, new)
        ]
        if kinds[0] != kinds[1]:
            found.append(f"cell {old.id}: stored are {kinds[0]}, computed {kinds[1]}")
        elif "varies" not in old.metadata.get("tags", []) and not same(text_of(old), text_of(new)):
            found.append(f"cell {old.id}: stored is\n{text_of(old)}\ncomputed\n{text_of(new)}")
    return found


def same(stored: str, computed: str) -> bool:
    """Equal words, and numbers equal to one unit of the last digit shown (or 1e-5 of themselves).

    Columns may be wider or narrower: a run of blanks is one blank.
    """
    texts = [" ".join(text.split()) for text in (stored, computed)]
    if NUMBER.sub("#", texts[0]).replace(" ", "") != NUMBER.sub("#", texts[1]).replace(" ", ""):
        return False
    pairs = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    return all(_close(old, new) for old, new in pairs)


def _close(old, new):
    digits, _, exponent = old.lower().partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    if "." not in digits and not exponent:
        return old == new  # a count, which is right or wrong
    a, b = (float(re.sub("[,_]", "", number)) for number in (old, new))
    return abs(a - b) <= max(1.01 * unit, 1e-5 * abs(a))


# ---- is what the prose says asserted? ------------------------------------------------------------

# What is no claim: code and names in backticks, formulas, the targets of links, headings.
SKIPPED = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^\s*#+.*?$|^\s*\d+\.\s|\bet al\. \d{4}",
    re.S | re.M,
)
CLAIM = re.compile(r"(?<![\w.-])[-−]?\d[\d,]*(?:\.\d+)?(?![\w-]*[A-Za-z])")


def unproved(notebook) -> list[str]:
    """Numbers of the prose that stand in no assertion of the notebook."""
    proved = set()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            proved |= set(asserted(cell.source))
    missing = []
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        prose = cell.source.partition("## Further reading")[0]  # years and pages are no claims
        for claim in CLAIM.findall(SKIPPED.sub(" ", prose)):
            if abs(float(claim.replace(",", "").replace("−", "-"))) not in proved:
                missing.append(f"cell {cell.id}: {claim}")
    return missing


def asserted(source):
    """The numbers written in `assert` statements and in calls of functions named assert_..."""
    for node in ast.walk(ast.parse(source)):
        called = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1]
        if isinstance(node, ast.Assert) or (called and called.startswith("assert_")):
            for leaf in ast.walk(node):
                if isinstance(leaf, ast.Constant) and type(leaf.value) in (int, float):
                    yield abs(float(leaf.value))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true", help="save nothing; print a JSON report")
    args = parser.parse_args()
    for path in args.files:
        stored = nbformat.read(path, as_version=4)
        fresh, blanks, answers = execute(stored, path.parent)
        if args.check:
            report = {"differences": differences(stored, fresh), "blanks": blanks}
            print(json.dumps(report | {"answers": answers}))
        else:
            path.write_text(written(fresh), encoding="utf-8")
            print(f"{path}: {path.stat().st_size:,} bytes", *unproved(fresh), sep="\n  ")


if __name__ == "__main__":
    main()
