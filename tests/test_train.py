"""The loop: it learns, it can be stopped at any moment, and it never spoils what it has."""

import dataclasses
import json
import math
import signal
import subprocess
import sys

import numpy as np
import pytest

from numpygpt import data, model, ops, optim, train
from numpygpt.files import run
from numpygpt.formats import CheckpointError, safetensors

CONFIG = model.Config(n_vocab=61, n_ctx=16, n_embd=24, n_head=3, n_layer=2)
SETTINGS = train.Settings(steps=30, batch=4, lr=3e-3, warmup=5)


def new_run(settings=SETTINGS, dtype=np.float32):
    gpt = model.GPT2(CONFIG, model.init(CONFIG, np.random.default_rng(settings.seed), dtype))
    ids = np.random.default_rng(7).zipf(1.7, 3000) % CONFIG.n_vocab
    batches = data.stream(ids, settings.batch, CONFIG.n_ctx, np.random.default_rng(3))
    return gpt, batches, optim.adam_state(gpt.params)


def test_the_first_loss_is_that_of_guessing_and_the_last_is_lower():
    gpt, batches, state = new_run()
    steps = list(train.train(gpt, batches, SETTINGS, state))
    assert [step.number for step in steps] == list(range(1, 31))
    assert abs(steps[0].loss - math.log(CONFIG.n_vocab)) < 0.02 * math.log(CONFIG.n_vocab)
    assert steps[-1].loss < steps[0].loss - 0.5
    assert steps[4].lr == SETTINGS.lr
    assert all(step.grad_norm > 0 and step.tokens_per_second > 0 for step in steps)


def test_a_run_that_is_saved_and_loaded_goes_on_bit_for_bit(tmp_path):
    gpt, batches, state = new_run()
    whole = [(s.loss, s.grad_norm, s.lr) for s in train.train(gpt, batches, SETTINGS, state)]

    other, batches, state = new_run()
    for step in train.train(other, batches, SETTINGS, state):
        if step.number == 11:
            run.save_run(tmp_path / "run", other, state, SETTINGS)
            break
    third, batches, _ = new_run()
    state = run.load_run(tmp_path / "run", third, SETTINGS)
    rest = train.train(third, train.skip(batches, state.step), SETTINGS, state)
    assert [(s.loss, s.grad_norm, s.lr) for s in rest] == whole[11:]
    for name, value in gpt.params.items():
        np.testing.assert_array_equal(third.params[name], value, err_msg=name)


def test_a_run_with_other_settings_or_another_model_is_refused(tmp_path):
    gpt, _, state = new_run()
    run.save_run(tmp_path / "run", gpt, state, SETTINGS)
    longer = dataclasses.replace(SETTINGS, warmup=6, clip=0.5)
    with pytest.raises(ValueError, match=r"warmup was 5, now 6; clip was 1.0, now 0.5\): repeat"):
        run.load_run(tmp_path / "run", gpt, longer)
    for config in (model.Config(61, 16, 24, 3, 1), model.Config(61, 16, 24, 4, 2)):
        other = model.GPT2(config, model.init(config, np.random.default_rng(0)))
        with pytest.raises(ValueError, match="n_layer was 2, now 1|n_head was 3, now 4"):
            run.load_run(tmp_path / "run", other, SETTINGS)
    with pytest.raises(ValueError, match="to measure on is a different one"):
        run.load_run(tmp_path / "run", gpt, SETTINGS, run.digest("another"))
    run.load_run(tmp_path / "run", gpt, dataclasses.replace(SETTINGS, lr=1e-4))  # may be lowered
    safetensors.write(tmp_path / "other", gpt.params)
    with pytest.raises(CheckpointError, match="not a training checkpoint"):
        run.load_run(tmp_path / "other", gpt, SETTINGS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": float("nan")},
        {"lr": 0},
        {"lr": float("inf")},
        {"floor": float("inf")},
        {"weight_decay": -0.1},
        {"beta2": -0.1},
        {"clip": -1},
        {"beta1": 1},
        {"batch": 0},
        {"steps": 0},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        train.Settings(**({"steps": 5} | wrong))


@pytest.mark.parametrize(
    "wrong", [{"steps": 2.5}, {"batch": "8"}, {"warmup": True}, {"seed": None}, {"lr": "1e-3"}]
)
def test_settings_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} must be"):
        train.Settings(**({"steps": 5} | wrong))


def test_settings_at_their_borders_are_allowed():
    least = {"steps": 1, "batch": 1, "lr": 1e-9, "clip": 1e-9, "floor": 0, "warmup": 0}
    assert train.Settings(**least, weight_decay=0, beta1=0, beta2=0, seed=0).steps == 1


def test_settings_and_steps_do_not_change():
    for one, name in ((SETTINGS, "lr"), (train.Step(1, 2.0, 0.1, 1.0, 64, 9.0), "loss")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, name, 0)


@pytest.mark.parametrize(("clock", "rate"), [([5.0, 7.0], 64 / 2), ([5.0, 5.0], 64 / 1e-6)])
def test_tokens_per_second_also_where_a_clock_stands_still(clock, rate, monkeypatch):
    gpt, batches, state = new_run()
    times = iter(clock)
    monkeypatch.setattr(train.time, "perf_counter", lambda: next(times))
    step = next(train.train(gpt, batches, SETTINGS, state))
    assert step.tokens == 4 * 16 and step.tokens_per_second == pytest.approx(rate, rel=1e-12)


def test_a_run_that_is_at_its_end_takes_no_step():
    gpt, batches, state = new_run()
    for taken in (30, 31):
        state.step = taken
        assert list(train.train(gpt, batches, SETTINGS, state)) == []


def test_a_log_of_something_else_is_refused(tmp_path):
    (tmp_path / "log").write_text('{"epoch": 1}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="not the log of a run"):
        run.open_log(tmp_path / "log", 3)
    (tmp_path / "log").write_text('{"number": 1}\n{"number": 2}\n{"numb', encoding="utf-8")
    run.open_log(tmp_path / "log", 1).close()
    assert (tmp_path / "log").read_text(encoding="utf-8") == '{"number": 1}\n'


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_a_loss_that_is_not_a_number_stops_the_run_before_the_update(spoiled):
    gpt, batches, state = new_run()
    calls = []

    def bad(real):
        def op(*args):
            calls.append(1)
            return real(*args) * (np.nan if len(calls) == 4 else 1)

        return op

    name = "cross_entropy" if spoiled == "loss" else "cross_entropy_backward"
    gpt = model.with_ops(gpt, **{name: bad(getattr(ops, name))})
    run = train.train(gpt, batches, SETTINGS, state)
    for _ in range(3):
        next(run)
    before = {key: value.copy() for key, value in gpt.params.items()}
    with pytest.raises(train.NonFiniteLoss, match="step 4: the loss is .* lower the learning rate"):
        next(run)
    assert state.step == 3
    for key, value in before.items():
        np.testing.assert_array_equal(gpt.params[key], value)


def test_fine_tuning_learns_the_answers_and_is_the_same_loop():
    class Letters:
        special, eot = {"<|endoftext|>": 0}, 0

        def encode(self, text, allowed_special=(), begins=True):
            return [ord(c) - 96 for c in text]

    gpt, _, state = new_run()
    pairs = [("ab", "c"), ("ba", "d"), ("aa", "e"), ("bb", "fg")]
    batches = data.pair_batches(pairs, Letters(), 4, 16, np.random.default_rng(0))
    settings = train.Settings(steps=150, batch=4, lr=1e-2, warmup=10)
    steps = list(train.train(gpt, batches, settings, state))
    assert steps[-1].loss < 0.05
    for x, y in pairs:
        tokens = Letters().encode(x)
        for expected in [*Letters().encode(y), 0]:
            assert gpt.forward(np.array(tokens))[0][0, -1].argmax() == expected
            tokens.append(expected)


TEXT = "The cat sat on the mat. A dog ran to the cat, and the cat ran up a tree.\n" * 60


def command(folder, *more):
    return [
        *(sys.executable, "-m", "numpygpt", "train", str(folder / "text.txt")),
        *("--out", str(folder / "out"), "--n-vocab", "270", "--n-ctx", "16", "--n-embd", "16"),
        *("--n-head", "2", "--n-layer", "1", "--batch", "2", "--steps", "300", "--warmup", "9"),
        *(
            "--save-every",
            "25",
            "--validation",
            str(folder / "text.txt"),
            "--evaluate-every",
            "100",
        ),
        *more,
    ]


def log_of(folder):
    rows = (folder / "out" / "training.jsonl").read_text(encoding="utf-8").splitlines()
    keys = ("number", "loss", "grad_norm", "lr", "validation")
    return [[json.loads(row).get(key) for key in keys] for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    subprocess.run(command(folder), check=True, capture_output=True, timeout=120)
    return folder


# The command, but when it calls `function` for the `count`-th time it says so and waits for a word,
# so that it is stopped at a known place, however fast or busy the machine is.
PAUSING = """
import importlib, sys
module, function, count, when, *words = sys.argv[1:]
module = importlib.import_module(module)
real, calls = getattr(module, function), []

def pausing(*args, **kwargs):
    calls.append(1)
    done = real(*args, **kwargs) if when == "after" else None
    if len(calls) == int(count):
        print("here", flush=True)
        sys.stdin.readline()
    return done if when == "after" else real(*args, **kwargs)

setattr(module, function, pausing)
from numpygpt.cli import main
sys.exit(main(words))
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_a_killed_run_ends_as_if_it_had_not_been(undisturbed, tmp_path, how):
    """Six times killed at a different place, then run to its end: same log, same model."""
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    update, save = "numpygpt.optim adamw", "numpygpt.files.run save_run"
    places = [f"{update} 1 before", f"{update} 20 after", f"{save} 3 before", f"{save} 4 after"]
    for place in [*places, "os replace 5 before", f"{update} 90 before"]:
        process = subprocess.Popen(
            [sys.executable, "-c", PAUSING, *place.split(), *command(tmp_path)[3:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "here\n", process.communicate()[1]
        process.send_signal(getattr(signal, how))
        said = process.communicate("go on\n", timeout=60)[1]
        if how == "SIGINT":
            assert process.returncode == 130, said
            assert "stopped and saved at step" in said
            assert "Traceback" not in said
    subprocess.run(command(tmp_path), check=True, capture_output=True, timeout=120)
    assert log_of(tmp_path) == log_of(undisturbed)
    ours, theirs = (
        safetensors.read(f / "out" / "model.safetensors") for f in (tmp_path, undisturbed)
    )
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_what_a_run_is_unless_said_otherwise():
    assert dataclasses.asdict(train.Settings(steps=7)) == {
        "steps": 7, "batch": 8, "lr": 1e-3, "floor": 0.0, "warmup": 100, "weight_decay": 0.1,
        "beta1": 0.9, "beta2": 0.99, "clip": 1.0, "seed": 0,
    }  # fmt: skip


def test_settings_are_numbers_of_every_kind():
    counts = {"steps": 200, "batch": 100, "warmup": 30, "seed": 120}
    for kind in (np.int64, np.uint8, np.array):
        settings = train.Settings(**{name: kind(n) for name, n in counts.items()})
        assert settings == train.Settings(**counts)
        assert json.loads(json.dumps(dataclasses.asdict(settings))) == dataclasses.asdict(settings)
    settings = train.Settings(5, lr=np.float32(0.25), floor=np.int64(0), clip=np.float64(1.5))
    assert settings == train.Settings(5, lr=0.25, floor=0, clip=1.5)
    assert {type(value) for value in dataclasses.astuple(settings)} == {int, float}
    for wrong in ({"steps": 5.0}, {"steps": True}, {"steps": np.True_}, {"seed": "1"}):
        with pytest.raises(TypeError, match="must be an integer"):
            train.Settings(**{"steps": 5} | wrong)
    for wrong in ({"lr": "a"}, {"lr": True}, {"beta1": None}):
        with pytest.raises(TypeError, match="must be a number"):
            train.Settings(5, **wrong)


def test_batches_may_be_lists():
    gpt, _, state = new_run()
    batch = [[1, 2], [3, 4]], [[2, 3], [4, 5]], [[1, 1], [1, 0]]
    as_arrays, _, other = new_run()
    arrays = tuple(np.array(part) for part in batch)
    settings = train.Settings(2, warmup=0)
    ours = list(train.train(gpt, [batch] * 2, settings, state))
    theirs = list(train.train(as_arrays, [arrays] * 2, settings, other))
    assert [(s.loss, s.tokens) for s in ours] == [(s.loss, s.tokens) for s in theirs]
    assert ours[0].tokens == 4
