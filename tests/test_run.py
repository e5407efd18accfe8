"""Runs that go on: whatever stops them, what was begun ends as if nothing had."""

import contextlib
import json
import math

import numpy as np
import pytest

import numpygpt
from numpygpt import data, evaluate, lora, model, ops, train
from numpygpt.files import plan, run
from numpygpt.formats import CheckpointError, safetensors

TEXT = "The cat sat on the mat. A dog ran to the cat, and the cat ran up a tree.\n" * 60
WORDS = "red blue green big small old new wet dry hot".split()
PAIRS = [(f"The {a} {b} cat", f" is {b}.") for a in WORDS for b in WORDS]
SIZES = {"n_vocab": 270, "n_ctx": 16, "n_embd": 16, "n_head": 2, "n_layer": 1}
SETTINGS = {"steps": 30, "batch": 2, "lr": 5e-3}


@pytest.fixture(scope="module")
def base():
    tokenizer = numpygpt.Tokenizer.train(" ".join(x + y for x, y in PAIRS), 280)
    config = numpygpt.Config(280, 32, 24, 3, 2)
    gpt = numpygpt.GPT2(config, numpygpt.init(config, np.random.default_rng(0)))
    gpt.params["wte.weight"] *= 5

    def fresh():
        params = {name: value.copy() for name, value in gpt.params.items()}
        return numpygpt.GPT2(config, params), tokenizer, "small"

    return fresh


def text_run(folder, settings=SETTINGS, **options):
    return plan.pretraining(TEXT, folder, sizes=SIZES, settings=settings, **options)


def numbers(progress):
    return progress.number, progress.step and progress.step.loss, progress.measured


def weights(folder):
    return safetensors.read(folder / "model.safetensors")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def runs(base):
    """Name -> a function of a folder that begins, or goes on with, such a run."""
    options = {"settings": SETTINGS | {"batch": 4}}
    return {
        "train": text_run,
        "train --model": lambda folder: plan.pretraining(
            TEXT, folder, base=base(), settings=SETTINGS
        ),
        "finetune": lambda folder: plan.finetuning(PAIRS, folder, base(), **options),
        "lora": lambda folder: plan.finetuning(PAIRS, folder, base(), rank=3, **options),
    }


@pytest.mark.parametrize("kind", ["train", "train --model", "finetune", "lora"])
def test_whoever_stops_iterating_goes_on_later_bit_for_bit(base, tmp_path, kind):
    begin = runs(base)[kind]
    whole = list(run.resumable(begin(tmp_path / "whole"), evaluate_every=8, save_every=100))
    assert [one.number for one in whole] == list(range(31))
    assert [one.number for one in whole if one.measured] == [0, 8, 16, 24, 30]
    assert [one.ended for one in whole] == [""] * 30 + ["steps"]
    assert whole[-1].measured["validation"] < whole[0].measured["validation"]
    seen = {}
    for stop_at in (5, 8, 23, 99):
        for one in run.resumable(begin(tmp_path / "parts"), evaluate_every=8, save_every=100):
            if one.step or not one.number:
                seen[one.number] = numbers(one)
            if one.number == stop_at:
                break
    assert list(seen.values()) == [numbers(one) for one in whole]
    rows = [
        [(row["number"], row["tokens"], row.get("loss"), row.get("validation")) for row in log]
        for log in (
            run.read_log(tmp_path / folder / "training.jsonl") for folder in ("whole", "parts")
        )
    ]
    assert rows[0] == rows[1]
    same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    (again,) = run.resumable(begin(tmp_path / "parts"))
    assert (again.number, again.ended, again.step) == (30, "steps", None)


def test_the_folder_holds_the_model_of_the_lowest_validation_loss(tmp_path):
    losses = iter([5.0, 4.0, math.nan, 3.0, 3.5, 3.0, 3.2])
    begun = text_run(tmp_path / "out")
    kept, parameters = [], {}
    begun.measure = lambda: {"validation": next(losses)}
    keep, begun.keep = begun.keep, lambda: (kept.append(True), keep())
    for one in run.resumable(begun, evaluate_every=5):
        parameters[one.number] = {n: p.copy() for n, p in begun.model.params.items()}
    assert one.best == (15, 3.0)  # the first of two equal ones
    assert len(kept) == 3
    saved, _ = numpygpt.load(tmp_path / "out")
    same(saved.params, parameters[15])


def test_a_measure_that_is_never_finite_has_no_best_and_ends_nothing(tmp_path):
    begun = text_run(tmp_path, SETTINGS | {"steps": 6})
    begun.measure = lambda: {"validation": math.nan}
    steps = list(run.resumable(begun, evaluate_every=1, patience=1))
    assert [(s.number, s.best, s.ended) for s in steps[-2:]] == [(5, None, ""), (6, None, "steps")]


def test_patience_ends_a_run_and_it_stays_ended(tmp_path):
    losses = iter([5.0, 4.0, 4.5, 4.2, 3.0])

    def begin():
        begun = text_run(tmp_path / "out")
        begun.measure = lambda: {"validation": next(losses)}
        return begun

    steps = list(run.resumable(begin(), evaluate_every=5, patience=2))
    assert (steps[-1].number, steps[-1].ended, steps[-1].best) == (15, "patience", (5, 4.0))
    (again,) = run.resumable(begin(), evaluate_every=5, patience=2)
    assert (again.number, again.ended) == (15, "patience")
    assert list(run.resumable(begin(), evaluate_every=15))[-1].number == 30


def test_steps_may_grow_and_the_schedule_is_restated(tmp_path):
    list(run.resumable(text_run(tmp_path / "out")))
    said = []
    longer = text_run(tmp_path / "out", {"steps": 60}, say=said.append)
    assert longer.settings.batch == 2  # as it was begun
    assert longer.settings.lr == 5e-3
    assert longer.settings.warmup == 3
    assert any("30 steps and goes on to 60" in line for line in said)
    first, step = (one for one, _ in zip(run.resumable(longer), range(2), strict=False))
    assert (first.number, step.number) == (30, 31)
    assert step.step.lr == pytest.approx(5e-3 * (1 + math.cos(math.pi * 27 / 57)) / 2)
    with pytest.raises(ValueError, match="steps was 60, now 59: it may only grow"):
        next(run.resumable(text_run(tmp_path / "out", {"steps": 59})))
    with pytest.raises(ValueError, match="batch was 2, now 3"):
        next(run.resumable(text_run(tmp_path / "out", {"batch": 3})))


def test_what_a_folder_holds_is_not_written_over(base, tmp_path):
    numpygpt.save(*base()[:2], tmp_path / "mine")
    with pytest.raises(ValueError, match="a model and no checkpoint of a run"):
        text_run(tmp_path / "mine")
    for _ in run.resumable(plan.finetuning(PAIRS, tmp_path / "out", base(), rank=3)):
        break
    for wrong, message in (
        (lambda: text_run(tmp_path / "out"), "begun from small, not from random weights"),
        (lambda: plan.finetuning(PAIRS, tmp_path / "out", base()), "LoRA of rank 3"),
        (
            lambda: next(run.resumable(plan.finetuning(PAIRS, tmp_path / "out", base(), rank=4))),
            "rank was 3, now 4",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_one_run_or_save_at_a_time_in_a_folder(base, tmp_path):
    gpt, tokenizer, _ = base()
    first, second = text_run(tmp_path / "out"), text_run(tmp_path / "out")
    steps = run.resumable(first)
    next(steps)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with pytest.raises(BlockingIOError, match="another run is writing"):
        next(run.resumable(second))
    with pytest.raises(BlockingIOError, match="another run is writing"):
        numpygpt.save(gpt, tokenizer, tmp_path / "out")
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    assert before == after
    steps.close()
    assert [one.number for one in run.resumable(second)] == list(range(31))


def test_a_run_that_was_not_begun_leaves_no_vocabulary_to_the_next(tmp_path):
    """The vocabulary of a text that was too short would be taken for that of the longer one."""
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="tokens are too few for a batch of 40 and"):
        plan.pretraining("A cat.\n" * 9, tmp_path / "out", settings={"batch": 40})
    text_run(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    begun = plan.pretraining("Zwei Bären.\n" * 60, tmp_path / "out", settings={"steps": 2})
    list(run.resumable(begun))
    _, tokenizer = numpygpt.load(tmp_path / "out")
    assert len(tokenizer.encode("Zwei Bären.")) < 6  # of 12 bytes
    again = plan.pretraining("Zwei Bären.\n" * 60, tmp_path / "out", settings={"steps": 3})
    assert [one.number for one in run.resumable(again)] == [2, 3]


def test_a_run_of_another_text_that_was_begun_meanwhile_is_not_written_over(tmp_path):
    late = text_run(tmp_path / "out")
    other = plan.pretraining("Zwei Bären. " * 99, tmp_path / "out", sizes=SIZES | {"n_vocab": 260})
    for _ in run.resumable(other):
        break
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")}
    with pytest.raises(ValueError, match="holds a run with other settings"):
        next(run.resumable(late))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*")} == before


def test_a_run_is_not_measured_on_something_else_when_it_goes_on(base, tmp_path):
    """The losses of two texts do not say which model is the better one."""

    def on_text(validation):
        return text_run(tmp_path / "text", validation=validation)

    def on_pairs(validation):
        settings = SETTINGS | {"batch": 4}
        return plan.finetuning(
            PAIRS, tmp_path / "pairs", base(), validation=validation, settings=settings
        )

    for begin, first, second in (
        (on_text, "The cat sat.", "The cat ran."),
        (on_pairs, PAIRS[:2], PAIRS[1:3]),
    ):
        next(run.resumable(begin(first)))
        next(run.resumable(begin(first)))
        with pytest.raises(ValueError, match="to train or to measure on is a different one"):
            next(run.resumable(begin(second)))


def test_another_run_in_the_folder_is_named_before_its_settings_are_tried(base, tmp_path):
    """Its batch is too large for these pairs, but that is not what is wrong."""
    begun = plan.pretraining(TEXT, tmp_path, base=base(), settings=SETTINGS | {"batch": 10})
    next(run.resumable(begun))
    with pytest.raises(ValueError, match="to train or to measure on is a different one"):
        plan.finetuning(PAIRS[:3], tmp_path, base())
    with pytest.raises(ValueError, match="begun from small, not from other"):
        plan.finetuning(PAIRS[:3], tmp_path, (*base()[:2], "other"))
    with pytest.raises(ValueError, match="to train or to measure on is a different one"):
        plan.pretraining(TEXT[:99], tmp_path, base=base())


def test_a_lora_does_not_go_on_from_a_model_that_has_changed(base, tmp_path):
    def begin(factor):
        gpt, tokenizer, name = base()
        gpt.params["h.1.attn.c_attn.weight"] *= factor
        return plan.finetuning(PAIRS, tmp_path / "out", (gpt, tokenizer, name), rank=3)

    next(run.resumable(begin(1)))
    next(run.resumable(begin(1)))
    with pytest.raises(ValueError, match="LoRA of small as it was then, and its weights have chan"):
        begin(1.01)


def test_what_is_trained_on_and_measured_on_as_well_is_said(base, tmp_path):
    said = []
    settings = SETTINGS | {"batch": 4}
    options = {"settings": settings, "say": said.append}
    plan.finetuning(PAIRS, tmp_path / "a", base(), validation=PAIRS[7:9] + [("A", "b")], **options)
    assert said[1] == "pairs to measure on that are trained on as well: 2, and that flatters"
    said.clear()
    plan.finetuning(PAIRS, tmp_path / "a", base(), **options)
    text_run(tmp_path / "b", say=said.append)
    assert not any("flatters" in line for line in said)
    text_run(tmp_path / "b", validation=TEXT, say=said.append)
    assert "documents to measure on that are trained on as well: 1, and that flatters" in said


def test_a_measure_that_is_not_a_number_says_what_to_do(base, tmp_path):
    """The loss of the step was one; the weights after it are too large."""
    settings = SETTINGS | {"batch": 4, "lr": 1e30, "clip": 1e30}
    steps = run.resumable(plan.finetuning(PAIRS, tmp_path, base(), settings=settings), 1)
    with pytest.raises(
        train.NonFiniteLoss, match="step 1: .* NaN or infinity.*: lower the learning"
    ):
        list(steps)
    begun = plan.finetuning(PAIRS, tmp_path, base(), settings=SETTINGS | {"batch": 4})
    assert next(run.resumable(begun)).number == 0  # another lr, and clip as it was begun
    broken, tokenizer, name = base()
    broken.params["ln_f.bias"][3] = np.nan
    with pytest.raises(FloatingPointError, match="its weights are damaged"):
        next(run.resumable(plan.finetuning(PAIRS, tmp_path / "b", (broken, tokenizer, name))))


def test_what_a_notebook_gets_wrong_is_said_before_anything_is_written(base, tmp_path):
    gpt, tokenizer, _ = base()
    for wrong, error, message in (
        (lambda: plan.pretraining([TEXT], tmp_path / "a"), TypeError, "a text must be a str"),
        (lambda: text_run(tmp_path / "a", validation=b"A"), TypeError, "a text must be a str"),
        (
            lambda: plan.finetuning(PAIRS, tmp_path / "a", (gpt, tokenizer)),
            TypeError,
            "is .model, tokenizer, name., as",
        ),
        (
            lambda: plan.pretraining(TEXT, tmp_path / "a", base=(gpt, tokenizer)),
            TypeError,
            "is .model, tokenizer, name., as",
        ),
        (lambda: plan.finetuning([], tmp_path / "a", base()), ValueError, "there are no pairs to"),
        (
            lambda: plan.finetuning([{"x": "a", "y": "b"}], tmp_path / "a", base()),
            TypeError,
            "pair 1 must be two texts",
        ),
        (lambda: next(run.resumable(text_run(tmp_path / "a"), 0)), ValueError, "evaluate_every mu"),
        (lambda: next(run.resumable(text_run(tmp_path / "a"), 1, 0)), ValueError, "save_every mu"),
        (lambda: next(run.resumable(text_run(tmp_path / "a"), 1, 1, 0)), ValueError, "patience mu"),
    ):
        with pytest.raises(error, match=message):
            wrong()
    assert not (tmp_path / "a").exists()


def test_patience_without_a_measure_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing is held out to measure one"):
        next(run.resumable(text_run(tmp_path / "out", share=0), patience=2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["parameter", "moment", "step", "length", "cut", "gone"])
def test_a_damaged_checkpoint_is_answered_with_the_one_before(tmp_path, place):
    whole = list(run.resumable(text_run(tmp_path / "whole"), evaluate_every=10, save_every=10))
    for one in run.resumable(text_run(tmp_path / "out"), evaluate_every=10, save_every=10):
        if one.number == 20:
            break
    path = tmp_path / "out" / run.STATE
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    if place == "step":
        at = data.index(b'\\"step\\": 20') + 11
        data[at] ^= 3
    else:
        places = {"parameter": 8 + header + 50, "moment": len(data) - 50, "length": 3}
        data[places.get(place, 0)] ^= 4
    path.write_bytes(data[:-1] if place == "cut" else data)
    if place == "gone":  # killed between two renames
        path.unlink()
    said = contextlib.nullcontext() if place == "gone" else pytest.warns(match="the one before$")
    with said:
        begun = text_run(tmp_path / "out")
    with said:
        rest = list(run.resumable(begun, evaluate_every=10, save_every=10))
    assert [numbers(one) for one in rest[1:]] == [numbers(one) for one in whole[11:]]
    same(weights(tmp_path / "out"), weights(tmp_path / "whole"))


def test_two_damaged_checkpoints_are_an_error_that_names_both(tmp_path):
    list(run.resumable(text_run(tmp_path / "out"), evaluate_every=10, save_every=10))
    for name in run.KEPT:
        path = tmp_path / "out" / name
        path.write_bytes(path.read_bytes()[:-5] + b"other")
    with pytest.raises(CheckpointError, match=f"{run.KEPT[0]} .*{run.KEPT[1]} .*begin anew"):
        text_run(tmp_path / "out")


@pytest.mark.parametrize("rank", [None, 3])
def test_fine_tuning_is_spoiled_neither_by_nan_nor_by_a_full_disk(
    base, tmp_path, monkeypatch, rank
):
    calls = []

    def bad(*args):
        calls.append(1)
        return ops.cross_entropy(*args) * (np.nan if len(calls) == 24 else 1)

    def begin(**table):
        gpt, tokenizer, name = base()
        return plan.finetuning(
            PAIRS, tmp_path / "out", (model.with_ops(gpt, **table), tokenizer, name),
            rank=rank, settings=SETTINGS,
        )  # fmt: skip

    options = {"evaluate_every": 10, "save_every": 10}
    with pytest.raises(train.NonFiniteLoss, match="lower the learning rate"):
        list(run.resumable(begin(cross_entropy=bad), **options))
    assert run.read_run(tmp_path / "out")["step"] == 20
    before = weights(tmp_path / "out")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "write", full)
        with pytest.raises(OSError, match="No space left"):
            list(run.resumable(begin(), **options))
    assert run.read_run(tmp_path / "out")["step"] == 20
    same(weights(tmp_path / "out"), before)
    assert list(run.resumable(begin(), **options))[-1].number == 30


def test_a_disk_that_is_full_at_once_leaves_a_run_that_can_begin(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "write", full)
        with pytest.raises(OSError, match="No space left"):
            list(run.resumable(text_run(tmp_path / "out")))
    list(run.resumable(text_run(tmp_path / "out")))
    numbers = [row["number"] for row in run.read_log(tmp_path / "out" / "training.jsonl")]
    assert numbers == list(range(31))


@pytest.mark.parametrize("kind", ["train", "finetune"])
def test_a_run_that_ends_before_its_first_checkpoint_can_begin_again(
    base, tmp_path, monkeypatch, kind
):
    """There was room for the model, but not for the checkpoint, which is larger."""
    write, begin = safetensors.write, runs(base)[kind]

    def nearly_full(path, *args, **kwargs):
        if "training" in str(path):
            raise OSError(28, "No space left on device")
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "write", nearly_full)
        with pytest.raises(OSError, match="No space left"):
            next(run.resumable(begin(tmp_path / "out")))
    assert (tmp_path / "out" / "config.json").exists()
    with open(tmp_path / "out" / "training.jsonl", "a", encoding="utf-8") as log:
        log.write('{"number": 1, "los')  # a row that was being written
    assert [one.number for one in run.resumable(begin(tmp_path / "out"))] == list(range(31))
    # the log of a run that took steps protects its model when the checkpoints are gone
    for name in run.KEPT:
        (tmp_path / "out" / name).unlink()
    with pytest.raises(ValueError, match="a model and no checkpoint of a run"):
        begin(tmp_path / "out")


def test_fine_tuning_learns_to_answer_and_to_end(base, tmp_path):
    """Held-out combinations of words: near 0 exact before, nearly all after."""
    begun = plan.finetuning(
        PAIRS, tmp_path / "out", base(), settings={"steps": 300, "lr": 1e-2, "batch": 16}
    )
    steps = [one for one in run.resumable(begun, evaluate_every=100) if one.measured]
    assert steps[0].measured["exact"] == 0
    assert steps[-1].measured["exact"] >= 0.8
    assert steps[-1].measured["ended"] >= 0.9
    assert steps[-1].measured["sample"].endswith("<|endoftext|>")
    gpt, tokenizer = numpygpt.load(tmp_path / "out")
    _, held_out = data.hold_out_pairs(PAIRS)
    assert len(held_out) == 10
    assert evaluate.pairs(gpt, tokenizer, held_out)["exact match"] == max(
        one.measured["exact"] for one in steps if one.best[0] == one.number
    )


def test_a_lora_run_saves_the_merged_model(base, tmp_path):
    begun = plan.finetuning(PAIRS, tmp_path / "out", base(), rank=3, settings=SETTINGS)
    assert isinstance(begun.model, lora.LoRA)
    begun.measure = None  # so that the last step is kept
    list(run.resumable(begun))
    saved, _ = numpygpt.load(tmp_path / "out")
    same(saved.params, begun.model.merged().params)


def test_what_is_chosen_is_said(tmp_path):
    said = []
    chosen = plan.pretraining(TEXT, tmp_path / "out", settings={"steps": 5}, say=said.append)
    assert any(line.startswith("the last 5% of the text is held out") for line in said)
    assert any("4.2 kB, " in line and "parameters, 5 steps" in line for line in said)
    n_vocab = chosen.model.config.n_vocab
    assert n_vocab < 512
    assert f"the text does not have the pairs for as many: {n_vocab} tokens" in said
    assert chosen.settings.warmup == 0
    with pytest.raises(ValueError, match="tokens are too few for a batch of 1 and .*more text$"):
        plan.pretraining("A cat.", tmp_path / "other")
    with pytest.raises(ValueError, match="empty"):
        plan.pretraining("<|endoftext|>\n", tmp_path / "third")
    with pytest.raises(ValueError, match="too short to hold out"):
        plan.pretraining("a", tmp_path / "third")
    texts = "<|endoftext|>".join(f"document {i % 25}" for i in range(40))
    plan.pretraining(texts, tmp_path / "third", sizes=SIZES, settings=SETTINGS, say=said.append)
    assert "2 of 40 documents are held out to measure on; copies of them left out: 1" in said
    text_run(tmp_path / "third", share=0.004, say=said.append)
    assert "the last 0.4% of the text is held out to measure on" in said


@pytest.mark.parametrize("words, n_ctx, batch", [(30, 8, 2), (180, 19, 8), (5000, 256, 8)])
def test_a_short_text_gets_a_context_all_of_whose_positions_are_learned(
    tmp_path, words, n_ctx, batch
):
    rng, said = np.random.default_rng(0), []
    text = " ".join(map(str, rng.integers(0, 10, words)))
    sizes = {name: SIZES[name] for name in ("n_embd", "n_head", "n_layer")} | {"n_vocab": 257}
    options = {"sizes": sizes, "settings": {"steps": 2}, "share": 0.05, "say": said.append}
    begun = plan.pretraining(text, tmp_path / "out", **options)
    short = f"the text is short: a context of {begun.model.config.n_ctx} tokens instead of 256"
    assert (short in said) == (n_ctx < 256)
    assert not any("windows of" in line for line in said)
    tokens, _, _ = next(begun.batches)
    assert tokens.shape == (begun.settings.batch, begun.model.config.n_ctx)
    begun = plan.pretraining(text, tmp_path / "out", **options)
    list(run.resumable(begun))
    again = plan.pretraining(text, tmp_path / "out", **options | {"settings": {"steps": 3}})
    assert again.model.config == begun.model.config
    # a context that was asked for, or that a model has, stays, and is said not to be filled
    asked = options | {"sizes": sizes | {"n_ctx": 512}}
    plan.pretraining(text, tmp_path / "other", **asked)
    assert any("windows of" in line for line in said) == (n_ctx < 256)


def test_of_much_to_measure_on_a_part_is_used_and_that_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "VALIDATION", 20)
    said = []
    begun = text_run(tmp_path / "out", say=said.append)
    used = [line for line in said if line.startswith("of ")]
    (count,) = (int(line.split()[1]) for line in used)
    assert used == [f"of {count} tokens to measure on the first 20 are used"]
    trained, held_out = data.hold_out([TEXT.removesuffix("\n")])
    tokenizer = plan.Tokenizer.train(trained[0], 270)
    ids = data.encode_documents(tokenizer, held_out)
    assert len(ids) == count
    nats, tokens = evaluate.stream_nats(begun.model, ids[:20])
    assert begun.measure()["validation"] == nats / tokens


def test_amounts_and_durations_in_words():
    assert plan.amount(1_100_000, "B") == "1.1 MB"
    assert plan.amount(290_400, " tokens") == "290 k tokens"
    assert plan.amount(950, " tokens") == "950 tokens"
    assert plan.amount(0, "B") == "0 B"
    assert [plan.duration(s) for s in (40, 540, 7500)] == ["40 s", "9 min", "2 h 5 min"]


def test_a_log_row_holds_the_tokens_of_its_step(tmp_path):
    list(run.resumable(text_run(tmp_path / "out")))
    rows = [json.loads(x) for x in (tmp_path / "out" / "training.jsonl").read_text("utf-8").split("\n") if x]  # fmt: skip  # noqa: E501
    assert [row["tokens"] for row in rows] == [0, *[2 * 16] * 30]
