"""Where do the tests only look on? Changes one operator or number at a time, and runs the tests.

    python tests/mutate.py [--count 300] [--seed 0] [--seconds 120] [--jobs 1] [FILE ...]

A survivor is a change that no test of its file noticed: a test is missing, or the change changes
nothing. Not part of the suite, as it takes hours. FILE is a file of numpygpt such as `ops.py`; all
files of the book if none is named. Works in copies of the tracked files, at a low priority.

Not changed is what no test can tell from right:

* the words of a message, and types, which are only read;
* a constant in CAPITALS whose line says of it "any value is right": speed or memory depends on
  it, and no number that is computed does;
* the 1 of -1 in `reshape`: NumPy takes any negative number there for "as many as are left" (the
  minus is taken away);
* `strict` of `zip`, which speaks up only where something is wrong already.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parent.parent
BOOK = (
    "plain ops fast model bpe sample draft beam completion data optim train lora evaluate "
    "look/analyze files/checkpoint"
).split()
# The tests of a file are those of its name; these say so under another.
TESTS = {"data": ["test_data", "test_train"], "train": ["test_train"]}

ANY_VALUE = "any value is right"
SWAPS = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*",
    ast.Pow: "*", ast.BitAnd: "|", ast.BitOr: "&",
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
    ast.And: "or", ast.Or: "and",
}  # fmt: skip


def mutants(source):
    """(start, end, new text) of every change, as places in the source's bytes."""
    data, lines = source.encode("utf-8"), source.split("\n")
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)

    def begin(node):
        return starts[node.lineno - 1] + node.col_offset

    def end(node):
        return starts[node.end_lineno - 1] + node.end_col_offset

    def between(left, operator, right):
        """The place of an operator, between its operands and their brackets, and its opposite."""
        gap = data[end(left) : begin(right)]
        text = gap.decode("utf-8")
        spelled = text.strip().strip("()").strip()
        at = text.index(spelled)
        if "#" in text or "\n" in spelled:
            return None
        start = end(left) + len(text[:at].encode("utf-8"))
        return start, start + len(spelled.encode("utf-8")), SWAPS[type(operator)]

    as_many_as_are_left = set()  # the -1 of reshape

    def visit(node):
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert):
            return
        if isinstance(node, ast.Assign) and ANY_VALUE in lines[node.lineno - 1]:
            return
        if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            yield between(node.left, node.op, node.right)
        elif isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            for left, operator, right in zip(operands, node.ops, operands[1:], strict=False):
                yield between(left, operator, right)
        elif isinstance(node, ast.BoolOp):
            for left, right in zip(node.values, node.values[1:], strict=False):
                yield between(left, node.op, right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            length = 3 if isinstance(node.op, ast.Not) else 1
            yield begin(node), begin(node) + length, ""
            if node in as_many_as_are_left:
                return
        elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
            place = between(node.target, node.op, node.value)
            yield place and (*place[:2], SWAPS[type(node.op)] + "=")
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            if isinstance(node.value, float):
                new = node.value * 1.01 if node.value else 1e-3
            yield begin(node), end(node), repr(new)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "reshape":
            as_many_as_are_left.update(arg for arg in node.args if ast.unparse(arg) == "-1")
        children = ast.iter_child_nodes(node)
        if isinstance(node, ast.FunctionDef | ast.AnnAssign | ast.arg):  # types are only read
            hints = [getattr(node, name, None) for name in ("annotation", "returns")]
            children = [child for child in children if child not in hints]
        for child in children:
            yield from visit(child)

    return [mutant for mutant in visit(ast.parse(source)) if mutant]


def run_tests(tree, name, seconds):
    """Whether the file's own tests fail, or None where they did not end in time."""
    own = TESTS.get(name, [f"test_{Path(name).name}"])
    files = [f"tests/{test}.py" for test in own]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "NUMPYGPT_THREADS": "2"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer to load than our tests
    try:
        ran = subprocess.run(
            command, cwd=tree, env=environment, timeout=seconds,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    return ran.returncode != 0


def copies(folder, count):
    """A queue of `count` copies of the tracked files: whoever runs tests takes one meanwhile."""
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT).decode().split("\0")
    trees = Queue()
    for i in range(count):
        tree = Path(folder) / f"tree{i}"
        for path in filter(None, tracked):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path)
        trees.put(tree)
    return trees


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", metavar="FILE")
    parser.add_argument("--count", type=int, default=300, help="how many changes to try (300)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (0)")
    parser.add_argument("--seconds", type=float, default=120, help="for the tests of one (120)")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (1)")
    options = parser.parse_args()
    os.nice(5)
    names = [file.removesuffix(".py") for file in options.files] or BOOK
    begun, sources, every = time.monotonic(), {}, []
    for name in names:
        sources[name] = (ROOT / "numpygpt" / f"{name}.py").read_text(encoding="utf-8")
        every += [(name, *mutant) for mutant in mutants(sources[name])]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} changes in {len(names)} files", flush=True)
    tried, survivors, slow = 0, [], 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees = copies(folder, options.jobs)

        def unchanged(name):
            """Whether the tests of a file pass as it is."""
            tree = trees.get()
            failed = run_tests(tree, name, 10 * options.seconds)
            trees.put(tree)
            return failed is False

        def changed(mutant):
            """The mutant, and whether its file's tests failed; None where the time was up."""
            name, start, end, new = mutant
            if time.monotonic() - begun > 60 * options.minutes:
                return None
            data = sources[name].encode("utf-8")
            tree = trees.get()
            file = tree / "numpygpt" / f"{name}.py"
            file.write_bytes(data[:start] + new.encode("utf-8") + data[end:])
            failed = run_tests(tree, name, options.seconds)
            file.write_bytes(data)
            trees.put(tree)
            return mutant, failed

        tested = sorted({name for name, *_ in chosen})
        for name, passed in zip(tested, pool.map(unchanged, tested), strict=True):
            if not passed:
                sys.exit(f"the tests of {name} do not pass without a change")
        for result in filter(None, pool.map(changed, chosen)):
            (name, start, end, new), failed = result
            print(".", end="", flush=True)
            tried += 1
            slow += failed is None
            if failed is False:
                data = sources[name].encode("utf-8")
                number = data[:start].count(b"\n")
                line = sources[name].split("\n")[number].strip()
                survivors.append(name)
                was = data[start:end].decode("utf-8")
                print(
                    f"\nsurvived: {name}.py:{number + 1}: {was!r} -> {new!r}   {line}", flush=True
                )
    print(
        f"\n{tried} tried, {tried - len(survivors)} noticed ({slow} by running too long), "
        f"{len(survivors)} survived, {time.monotonic() - begun:.0f} s"
    )


if __name__ == "__main__":
    main()
