"""A training run on disk: its log, the checkpoint from which it goes on bit for bit, and the loop
that keeps both."""

import dataclasses
import hashlib
import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from numpygpt import optim
from numpygpt.files import text as files_text
from numpygpt.files.atomic import locked, writing
from numpygpt.formats import CheckpointError, safetensors
from numpygpt.train import NonFiniteLoss, Settings, Step, skip, train

STATE, LOG = "training.safetensors", "training.jsonl"
KEPT = STATE, "training.before.safetensors"  # the last two checkpoints, the newer one first
MAY_CHANGE = ("lr", "floor", "steps")  # from one call to the next; steps may only grow


@dataclasses.dataclass
class Run:
    """What a run is made of; `files.plan` makes one for a text or for pairs.

    model: what learns, a GPT2 or a LoRA of one. batches: from their beginning. text: `digest` of
    what is trained on and of what is measured on. about: what else must be the same for the run to
    go on, name -> value. measure: None, or a function without arguments -> dict with `validation`,
    nats per token, and more that is logged. keep: writes the model as it is now into the folder.
    """

    folder: Path
    model: object
    batches: Iterable
    settings: Settings
    text: str
    keep: Callable[[], None]
    measure: Callable[[], dict] | None = None
    about: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a step, or before its first: then `step` is None.

    measured: what was measured now, {} at most steps. best: (number, validation) of the lowest
    validation loss so far, or None; the model in the folder is that of this step. seconds_left: at
    the speed of this call so far, or None. ended: "" or why this is the last: "steps", "patience".
    """

    number: int
    steps: int
    step: Step | None
    measured: dict
    best: tuple[int, float] | None
    seconds_left: float | None
    ended: str


def resumable(
    run: Run, evaluate_every: int = 500, save_every: int = 200, patience: int | None = None
) -> Iterator[Progress]:
    """Train, keeping a log and saving on the way; the same call goes on where the last one stopped.

    The first Progress comes before the first step. The folder gets training.jsonl, a row a step;
    training.safetensors, from which the run goes on, and the one before, from which it goes on,
    with a warning, where that is damaged; and the model: with a `measure` the one of the lowest
    validation loss, without it the latest. patience: how many measurements without a lower
    loss end the run. Whoever stops iterating (`break`, or `close()`) has the last step saved; what
    interrupts a step itself costs the steps since the last save.

    Nobody else can write in the folder until the iteration ends. Raises ValueError for numbers
    below 1 and for patience without a measure, and what `locked`, `load_run`, `train` and writing
    to the disk raise; what was saved stays as it was.
    """
    for name, value in (
        ("evaluate_every", evaluate_every),
        ("save_every", save_every),
        ("patience", 1 if patience is None else patience),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if patience and run.measure is None:
        raise ValueError(
            "patience waits for a lower validation loss, and nothing is held out to measure one: "
            "hold out a part, or leave it out"
        )
    with locked(run.folder):
        yield from _resumable(run, evaluate_every, save_every, patience)


def _resumable(run, evaluate_every, save_every, patience):
    state = _first_whole(
        run.folder, lambda path: load_run(path, run.model, run.settings, run.text, run.about)
    )
    begins = state is None
    state = state or optim.adam_state(run.model.params)
    with open_log(run.folder / LOG, -1 if begins else state.step) as log:
        kept = _Kept(run, state, patience, log, None if begins else state.step)
        measured = kept.first() if begins else {}
        now = kept.progress(None, measured, None)
        yield now
        if now.ended:
            return
        start, first = time.perf_counter(), state.step
        for step in train(run.model, skip(run.batches, state.step), run.settings, state):
            due = step.number % evaluate_every == 0 or step.number == run.settings.steps
            measured = kept.row(dataclasses.asdict(step), due)
            each = (time.perf_counter() - start) / (state.step - first)
            now = kept.progress(step, measured, each * (run.settings.steps - state.step))
            if now.ended or step.number % save_every == 0:
                kept.save()
            try:
                yield now
            except GeneratorExit:
                kept.save()
                raise
            if now.ended:
                return


@dataclasses.dataclass
class _Kept:
    """What a run leaves in its folder as it goes: its log, the best model, its checkpoint."""

    run: Run
    state: optim.AdamState
    patience: int | None
    log: io.TextIOBase
    saved_at: int | None  # the step of the checkpoint, if there is one

    def __post_init__(self):
        rows = read_log(self.run.folder / LOG)
        self.history = [
            (row["number"], row["validation"]) for row in rows if row.get("validation") is not None
        ]

    def first(self):
        """Before the first step: what the model measures as it is, {} without a measure."""
        measured = self.row({"number": 0, "tokens": 0}, True) if self.run.measure else {}
        self.save()
        return measured

    def row(self, row, due):
        """Log a step, with what is measured if that is due; the model is kept if it is the best."""
        measured = self._measured(row["number"]) if due and self.run.measure else {}
        self.log.write(json.dumps(row | measured) + "\n")
        if measured:
            self.history.append((row["number"], measured["validation"]))
            if _best(self.history) == self.history[-1]:
                self.run.keep()
            self.save()
        return measured

    def _measured(self, number):
        try:
            return self.run.measure()
        except FloatingPointError as error:
            if number == 0:  # the model was so from the beginning
                raise
            raise NonFiniteLoss(
                f"step {number}: {error}: lower the learning rate (lr) and go on from the last "
                "checkpoint"
            ) from None

    def save(self):
        """Write the checkpoint, and the model unless the best is kept, if that is not done yet."""
        run, state = self.run, self.state
        if self.saved_at == state.step:
            return
        if run.measure is None:
            run.keep()
        self.log.flush()
        save_run(run.folder / STATE, run.model, state, run.settings, run.text, run.about)
        self.saved_at = state.step

    def progress(self, step, measured, seconds_left):
        """Where the run stands."""
        number, steps, best = self.state.step, self.run.settings.steps, _best(self.history)
        ended = "steps" if number >= steps else ""
        if self.patience and best:
            without_lower = len(self.history) - 1 - self.history.index(best)
            ended = "patience" if without_lower >= self.patience else ended
        return Progress(number, steps, step, measured, best, seconds_left, ended)


def _best(history):
    """(number, validation) of the lowest, the earliest among equals; NaN is never the lowest."""
    finite = [one for one in history if math.isfinite(one[1])]
    return min(finite, key=lambda one: one[1], default=None)


# ---- the log ------------------------------------------------------------------------------------


def open_log(path, step: int):
    """The log of a run, a JSON object a line, opened to append.

    Rows after `step` are dropped: a run that was killed goes on from its last checkpoint and writes
    them again.
    """
    path = Path(path)
    kept = [row for row, number in _whole_rows(path) if number <= step] if path.exists() else []
    with writing(path) as file:
        file.writelines(row + "\n" for row in kept)
    return open(path, "a", encoding="utf-8")


def _whole_rows(path):
    """The rows of a log, and the step of each; without the last if its writer did not end it."""
    rows = [row for row in files_text.read(path).splitlines() if row.endswith("}")]
    try:
        return [(row, int(json.loads(row)["number"])) for row in rows]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise ValueError(f"{path} is not the log of a run: move it away") from None


def took_no_step(folder) -> bool:
    """Whether a run began in a folder and was ended before its first step and checkpoint, so that
    the model there is the one that it began with."""
    path = Path(folder) / LOG
    return path.exists() and all(number == 0 for _, number in _whole_rows(path))


def read_log(path) -> list[dict]:
    """The rows of a log."""
    return [json.loads(row) for row in files_text.read(path).splitlines()]


# ---- the checkpoint -----------------------------------------------------------------------------


def digest(text_or_ids) -> str:
    """sha256 of what is trained on, so that a run does not go on with something else."""
    is_text = isinstance(text_or_ids, str)
    data = text_or_ids.encode("utf-8", "surrogatepass") if is_text else np.asarray(text_or_ids)
    return hashlib.sha256(data).hexdigest()


def save_run(path, model, state: optim.AdamState, settings: Settings, text="", about=None) -> None:
    """Everything a run needs to go on, in one safetensors file, replaced whole or not at all.

    The file that is there becomes the one before. text: the `digest` of what it is trained on. The
    state of its random numbers is in there too: the seed, and the number of batches drawn, which is
    the number of steps.
    """
    arrays = {}
    for kind, values in (("param", model.params), ("m", state.m), ("v", state.v)):
        arrays |= {f"{kind}.{name}": value for name, value in values.items()}
    run = {"step": state.step, "begun": _begun(model, settings, about), "text": text}
    path = Path(path)
    new = path.with_name(f"{path.name}.new")
    safetensors.write(new, arrays, {"run": json.dumps(run)}, digest=True)
    if path.exists():
        os.replace(path, path.with_name(KEPT[1]))
    os.replace(new, path)


def _begun(model, settings, about):
    """What must be the same for a run to go on, but for what may change."""
    return dataclasses.asdict(settings) | dataclasses.asdict(model.config) | (about or {})


def read_run(folder) -> dict | None:
    """{"step", "begun", "text"} of the run in a folder, or None where there is none.

    Raises CheckpointError where no checkpoint is whole, and warns where only the one before is.
    """
    return _first_whole(Path(folder), _read_run)


def _first_whole(folder, read):
    """What `read` makes of the newest checkpoint that is whole; None where there is none at all."""
    faults = []
    for path in (folder / name for name in KEPT):
        try:
            found = read(path) if path.exists() else None
        except CheckpointError as fault:
            faults.append(str(fault))
            continue
        if found and faults:
            warnings.warn(f"{faults[0]}; going on from the one before", stacklevel=3)
        if found:
            return found
    if faults:
        raise CheckpointError(f"{'; '.join(faults)}: remove the folder, and begin anew")
    return None


def _read_run(path):
    if not safetensors.check(path):
        raise CheckpointError(f"{path} is not a training checkpoint of numpygpt")
    try:
        run = json.loads(safetensors.read_metadata(path)["run"])
        step, _ = run["step"], (dict(run["begun"]), run["text"])  # all of them are there
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint of numpygpt") from error
    if type(step) is not int or step < 0:
        raise CheckpointError(f"{path} says that {step!r} steps were taken")
    return run


def load_run(path, model, settings: Settings, text="", about=None) -> optim.AdamState:
    """Put a saved run's parameters into `model` and return its optimizer state.

    Raises CheckpointError if the file is damaged or is not a run, and ValueError naming what
    differs from that with which the run was begun: settings (other than lr, floor and more steps),
    model, text.
    """
    path = Path(path)
    arrays, run = safetensors.read(path), _read_run(path)
    begun, now = run["begun"], _begun(model, settings, about)
    differ = [
        f"{k} was {begun.get(k)!r}, now {now[k]!r}"
        for k in now
        if k not in MAY_CHANGE and begun.get(k) != now[k]
    ]
    if begun.get("steps", 0) > settings.steps:
        differ.append(f"steps was {begun['steps']}, now {settings.steps}: it may only grow")
    if run["text"] != text:
        differ.append("the text to train or to measure on is a different one")
    if differ:
        raise ValueError(
            f"{path.parent} holds a run with other settings ({'; '.join(differ)}): "
            "repeat them, or train into another folder"
        )
    parts = {"param": {}, "m": {}, "v": {}}
    for name, value in arrays.items():
        kind, _, name = name.partition(".")
        ours = model.params.get(name)
        same = ours is not None and (value.shape, value.dtype) == (ours.shape, ours.dtype)
        if kind not in parts or not same:
            raise CheckpointError(f"{path} holds {kind}.{name}, which this model does not have")
        parts[kind][name] = value
    for kind, values in parts.items():
        if len(values) != len(model.params):
            raise CheckpointError(f"{path} lacks some of the model's arrays ({kind})")
    for name, value in parts["param"].items():
        model.params[name][...] = value
    state = ({n: np.array(parts[kind][n]) for n in model.params} for kind in "mv")
    return optim.AdamState(run["step"], *state)
