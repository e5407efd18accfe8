"""bench, verify: speed beside the machine's, numbers beside the published ones."""

import contextlib
import dataclasses
import itertools
import json

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say


def bench_command(args):
    """Measure speed and memory beside what this machine can do."""
    from numpygpt.check import bench
    from numpygpt.check.rivals import RIVALS

    names = list(dict.fromkeys(args.vs.split(","))) if args.vs else []
    if unknown := [name for name in names if name not in RIVALS]:
        raise ValueError(
            f"--vs takes {' and '.join(RIVALS)}, with a comma between them, not {unknown[0]!r}"
        )
    rows = []
    with to_measure(args) as (folder, model, tokenizer):
        rivals = {name: RIVALS[name](model.config) for name in names}
        found = bench.bench(model, tokenizer, args.runs, rivals, folder)
        if args.busy:
            found = itertools.chain(found, bench.busy(model, args.runs))
        say(bench.heading(names))
        for row in found:
            print(bench.table_line(row, names), flush=True)
            rows.append(row)
    if args.json:
        bench.write_json(args.json, rows)
    if args.plot:
        from numpygpt.look import plot

        rated = [row for row in rows if row.ratio is not None and row.unit != "MB"]
        fig, (ax,) = plot.figure(height=0.25 * len(rated) + 1)
        plot.ratios(ax, [row.work for row in rated], [row.ratio for row in rated])
        plot.save(fig, args.plot)


@contextlib.contextmanager
def to_measure(args):
    """A folder to load from, its model, and its tokenizer, or None for random weights."""
    from numpygpt.check import bench
    from numpygpt.files import pretrained

    if args.shape:
        with bench.temporary_model(bench.shape(args.shape)) as (folder, model):
            yield folder, model, None
    else:
        yield pretrained.find(args.model), *load(args.model)


def verify_command(args):
    """Compute the numbers that others published about a model, and say whether they agree."""
    from tqdm import tqdm

    from numpygpt.check import published
    from numpygpt.check.published.measure import Subject
    from numpygpt.files import atomic

    model, tokenizer, name, folder = _to_verify(args)
    rows = [row for row in published.rows(name) if not args.only or row["id"] in args.only]
    if not rows:
        raise ValueError(f"no row of {name} is called {' or '.join(args.only)}")
    subject = Subject(model, tokenizer, (folder, *published.folders(name, args.data)))
    results, before = [], None
    bar = tqdm(total=sum(len(row["checks"]) for row in rows), disable=None, unit="check")
    for result in published.verify(subject, rows, args.quick):
        if (result.id, result.input) != before:
            bar.write(published.heading(result))
        bar.write(published.line(result))
        before = result.id, result.input
        results.append(result)
        bar.update()
    bar.close()
    if args.json:
        fields = [dataclasses.asdict(result) for result in results]
        with atomic.writing(args.json) as file:
            file.write(json.dumps(fields, indent=1) + "\n")
    say(published.summary(results))
    verdicts = {result.verdict for result in results}
    return 0 if "pass" in verdicts and "FAIL" not in verdicts else 1


def _to_verify(args):
    """Model, tokenizer, the name it has rows under, and its own folder."""
    from numpygpt.check import published
    from numpygpt.files import download, pretrained

    if args.model == "gpt-nano-sort":
        found = [
            folder
            for folder in published.folders(args.model, args.data)
            if (folder / "gpt-nano-sort-model.json").is_file()
        ]
        if not found:
            raise FileNotFoundError(
                "gpt-nano-sort is not on this machine: run `numpygpt download gpt-nano-sort`, or "
                "name its folder with --data"
            )
        return published.load_nano_sort(found[0]), None, args.model, found[0]
    model, tokenizer = load(args.model)
    name = download.ALIASES.get(args.model, args.model)
    if not published.rows(name):
        name = published.official_name(model)
    return model, tokenizer, name, pretrained.find(args.model)


def add(command):
    """Their options."""
    p = command(bench_command)
    p.add_argument("--model", **MODEL)
    p.add_argument("--shape", help="random weights of an official size instead: 124M, 355M, ...")
    p.add_argument("--runs", type=positive, default=5, help="counted runs of each")
    p.add_argument(
        "--vs",
        metavar="PROGRAMS",
        help="also measure torch (with transformers) or ctranslate2 where they are installed, or "
        "both: torch,ctranslate2",
    )
    p.add_argument(
        "--busy",
        action="store_true",
        help="also measure beside busy processes, which are started and ended for it",
    )
    p.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    p.add_argument("--plot", metavar="FILE", help="also draw the ratios")

    p = command(verify_command)
    p.add_argument("--model", default="124M", help="name or folder")
    p.add_argument("--data", metavar="FOLDER", help="with files that some rows read")
    p.add_argument("--quick", action="store_true", help="leave out rows that take minutes")
    p.add_argument("--only", action="append", metavar="ROW", help="this row; repeatable")
    p.add_argument("--json", metavar="FILE", help="also write everything as JSON")
