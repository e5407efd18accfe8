"""The numbers other people published about these models, and whether this code meets them.

`published.json` holds the facts: rows with a model, an input and a source, and for each check the
name of a function in `measure.py`, the published value, its tolerance and why that one.

A number agrees if |ours - published| <= abs + rel |published| + scale max|published| + half a unit
of its last decimal (`decimals`) or significant digit (`digits`). Ids and text must be equal.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numpygpt import model as gpt2
from numpygpt.bpe import END_OF_TEXT
from numpygpt.check.published.measure import (
    MEASUREMENTS,
    Missing,
    Subject,
    erf_gelu,
    find,
    read_checked,
    tensor,
)
from numpygpt.files import download
from numpygpt.files.download import facts
from numpygpt.model import GPT2, Config, with_ops


@dataclass(frozen=True)
class Result:
    """One check, computed. verdict: "pass", "FAIL", "differs" (a weak row: not counted), "skip"."""

    id: str
    model: str
    input: str
    what: str
    published: object
    ours: object
    difference: float | None
    allowed: float | None
    numbers: int
    why: str
    source: str
    verdict: str
    note: str
    seconds: float


# ---- rows ---------------------------------------------------------------------------------------


def rows(model: str) -> list[dict]:
    """The rows published for a model: "124M", "distilgpt2", "gpt-nano-sort", ..."""
    text = (Path(__file__).parent / "published.json").read_text(encoding="utf-8")
    return [row for row in json.loads(text) if row["model"] == model]


SIZES = {(config.n_layer, config.n_embd): name for name, config in gpt2.SIZES.items()}
SIZES |= {(6, 768): "distilgpt2"}


def official_name(model: GPT2) -> str:
    """Which released model has its number of layers and width; raises ValueError if none."""
    size = (model.config.n_layer, model.config.n_embd)
    if size not in SIZES:
        raise ValueError(
            f"nobody published numbers for a model of {size[0]} layers, {size[1]} wide: "
            f"verify one of {', '.join(SIZES.values())} or gpt-nano-sort"
        )
    return SIZES[size]


def folders(model: str, data: str | Path | None = None) -> tuple[Path, ...]:
    """Where files of rows are looked for: `data`, its `data/`, and where `download` puts them."""
    weights = download.weights_folder()
    given = [Path(data), Path(data) / "data", Path(data) / model] if data else []
    official = download.find(model)
    return (*given, weights / "published", weights / model, *([official] if official else []))


def verify(subject: Subject, rows: list[dict], quick: bool = False) -> Iterator[Result]:
    """Compute each check of each row. `quick` skips rows that take minutes."""
    usual = subject
    exact = Subject(with_ops(usual.model, gelu=erf_gelu), usual.tokenizer, usual.folders)
    for row in rows:
        for check in row["checks"]:
            yield _checked(exact if row.get("gelu") == "erf" else usual, row, check, quick)


def _checked(subject, row, check, quick):
    start = time.perf_counter()
    compared, note = (None, None, None, None, 0), row.get("weak", "")
    try:
        if quick and "slow" in row:
            raise Missing(f"takes {row['slow']}: leave out --quick")
        published = _published(subject, check["expected"])
        ours = MEASUREMENTS[check["measure"]](subject, row["input"], **check.get("with", {}))
        agrees, *compared = compare(published, ours, check.get("tolerance", {}))
        verdict = "pass" if agrees else "differs" if "weak" in row else "FAIL"
    except Missing as reason:
        verdict, note = "skip", str(reason)
    except FloatingPointError as reason:  # logits that are not numbers
        verdict, note = "FAIL", str(reason)
    return Result(
        row["id"], row["model"], _shown(row["input"]), check["what"], *compared, check["why"],
        row["source"], verdict, note, round(time.perf_counter() - start, 3),
    )  # fmt: skip


def compare(published, ours, tolerance: dict):
    """(agrees, published, ours, difference, allowed, count): of many numbers, of the worst."""
    p = np.asarray(published)
    if p.dtype.kind != "f":  # text, truth, ids
        ours = ours.tolist() if isinstance(ours, np.ndarray | np.generic) else ours
        return published == ours, published, ours, None, None, p.size
    try:
        o = np.asarray(ours, np.float64)
    except ValueError:  # rows of different lengths
        return False, published, ours, None, None, p.size
    if p.shape != o.shape:
        return False, f"shape {p.shape}", f"shape {o.shape}", None, None, p.size
    p = p.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.where(p == o, 0.0, np.abs(o - p))  # -inf agrees with -inf
    off = np.where(np.isnan(off), np.inf, off)
    may = np.broadcast_to(allowance(p, tolerance), off.shape)
    at = np.unravel_index(np.argmax(off - may), off.shape)
    worst = (float(x[at]) for x in (p, o, off, may))
    return bool((off <= may).all()), *worst, p.size


def allowance(published, tolerance: dict):
    """How far off each of the published numbers may be, as the head of this file says."""
    size = np.abs(published)
    finite = size[np.isfinite(size)]
    allowed = np.asarray(tolerance.get("abs", 0.0)) + tolerance.get("rel", 0.0) * np.where(
        np.isfinite(size), size, 0.0
    )
    allowed = allowed + tolerance.get("scale", 0.0) * finite.max(initial=0.0)
    if "decimals" in tolerance:
        allowed = allowed + 0.5 * 10.0 ** -tolerance["decimals"]
    if "digits" in tolerance:
        first = np.floor(np.log10(np.where(size > 0, size, 1.0)))
        allowed = allowed + 0.5 * 10.0 ** (first - tolerance["digits"] + 1)
    return allowed


def _shown(given):
    text = given.get("texts", given.get("text", given.get("file", given.get("ids", ""))))
    text = text[0] if isinstance(text, list) and text and isinstance(text[0], str) else text
    return (END_OF_TEXT if given.get("bos") else "") + str(text)


def _published(subject, expected):
    """The published value: in the row, or where the row says it stands: in a file, or, where it is
    the hash of an official file, among the facts of the download."""
    if not isinstance(expected, dict):
        return expected
    if "digest" in expected:
        _, digest = getattr(facts, expected["digest"])
        return digest.partition(":")[2]
    path = find(subject, expected["file"])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            value = arrays[expected["entry"]]
    else:
        value = tensor(json.loads(read_checked(path))[expected["entry"]])
    value = value[expected["at"]] if "at" in expected else value
    return value.reshape(expected.get("shape", value.shape))


# ---- as text ------------------------------------------------------------------------------------


def heading(result: Result) -> str:
    """What the lines of one row have in common: its name, input and source."""
    return f"{result.id}  {_short(result.input, 60)}  [{result.source}]"


def line(result: Result) -> str:
    """One check: verdict, what, published value, ours, difference of allowed, and why that much."""
    columns = [f"  {result.verdict:<8}{result.what:<62}"]
    if result.verdict == "skip":
        return columns[0] + result.note
    columns += [f"{_short(value, 22):>24}" for value in (result.published, result.ours)]
    if result.difference is not None:
        columns.append(f"  off {result.difference:.1e} of {result.allowed:.1e}")
    worst = f" (worst of {result.numbers})" if result.numbers > 1 and result.difference else ""
    note = f"; {result.note}" if result.note else ""
    return "".join(columns) + worst + f"  {result.why}{note}"


def _short(value, width):
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    text = repr(text)[1:-1]  # a newline as \\n
    return text if len(text) <= width else text[: width - 3] + "..."


def summary(results: list[Result]) -> str:
    """How many checks passed, failed, differ or were skipped."""
    counts = {v: sum(r.verdict == v for r in results) for v in ("pass", "FAIL", "differs", "skip")}
    return (
        f"{counts['pass']} pass, {counts['FAIL']} fail, {counts['differs']} of weak rows differ "
        f"(not counted), {counts['skip']} skipped for want of a file or of time"
    )


# ---- a model that stands in a JSON file ----------------------------------------------------------


def load_nano_sort(folder: str | Path) -> GPT2:
    """The model of llm-viz (bbycroft): minGPT's gpt-nano, trained to sort 6 letters out of A, B, C.

    A JSON of `torch.nn.Linear` weights, which stand (out, in) and are transposed here to (in, out);
    `lm_head` is not tied to the embedding. Raises ValueError for another file than the published.
    """
    stored = json.loads(read_checked(Path(folder) / "gpt-nano-sort-model.json"))
    size = stored.pop("config")
    config = Config(
        size["vocab_size"], size["block_size"], size["n_embd"], size["n_head"], size["n_layer"]
    )
    params = {}
    for name, entry in stored.items():
        name = name.removeprefix("transformer.")
        if name.endswith(".attn.bias"):  # a causal mask, of minGPT
            continue
        linear = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
        params[name] = np.ascontiguousarray(tensor(entry).T if linear else tensor(entry))
    return GPT2(config, params)
