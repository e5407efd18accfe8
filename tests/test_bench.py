"""That the table says what it claims; how fast anything is, is no test."""

import json
import os
import sys
import time

import numpy as np
import pytest

import numpygpt
from numpygpt import cli, model
from numpygpt.check import bench
from numpygpt.look import analyze

CONFIG = model.Config(n_vocab=280, n_ctx=160, n_embd=24, n_head=3, n_layer=2)
TEXT = "A cat sat on a mat, and the cat saw a rat. The rat ran, so the cat ran too.\n" * 9


@pytest.fixture(scope="module")
def gpt():
    return model.GPT2(CONFIG, model.init(CONFIG, np.random.default_rng(0)))


def test_prefill_flops_are_the_sum_over_its_tokens():
    whole = bench.prefill_flops(CONFIG, 7)
    each = [analyze.flops_per_token(CONFIG, keys) for keys in range(1, 8)]
    assert (
        sum(whole.values())
        == sum(value for flops in each for part, value in flops.items() if part != "unembed")
        + each[0]["unembed"]
    )
    training = bench.training_flops(CONFIG, 7)
    assert sum(training.values()) == sum(sum(flops.values()) for flops in each)


def test_weight_bytes_leave_out_the_positions(gpt):
    total = sum(p.nbytes for p in gpt.params.values())
    assert bench.weight_bytes(gpt) == total - gpt.params["wpe.weight"].nbytes


def test_measures_are_called_in_turn_and_the_first_round_does_not_count():
    calls = []

    def measure(name, times):
        def call():
            calls.append(name)
            return times.pop(0)

        return call

    a, b = bench.in_turn([measure("a", [9, 3, 1]), measure("b", [9, 2, 4])], 2)
    assert calls == ["a", "b"] * 3
    assert (a, b) == ([1, 3], [2, 4])


def test_limits_are_spent_on_as_much_as_is_asked_for(gpt, monkeypatch):
    limit = bench.Limits(gpt, runs=1)
    assert limit.size == sum(w.nbytes for _, w in limit.pairs) > 0
    monkeypatch.setattr(bench, "timed", lambda work: {"read": 2.0, "multiply": 3.0}[work.__name__])
    assert limit.seconds(size=2.5 * limit.size) == pytest.approx(5)
    assert limit.seconds(flops=limit.flops / 10) == pytest.approx(0.3)
    assert limit.seconds(limit.size, limit.flops) == pytest.approx(5)


def test_official_shapes_and_no_others():
    sizes = {name: analyze.parameter_counts(bench.shape(name)) for name in bench.SIZES}
    assert sum(sizes["124M"].values()) == 124439808
    assert sum(sizes["1558M"].values()) == 1557611200
    with pytest.raises(ValueError, match="no such shape '7B': choose from 124M"):
        bench.shape("7B")


def test_the_command_prints_every_kind_of_row(gpt, tmp_path, capsys):
    tokenizer = numpygpt.Tokenizer.train(TEXT, 280)
    numpygpt.save(gpt, tokenizer, tmp_path / "small")
    words = ["bench", "--model", tmp_path / "small", "--runs", 1, "--json", tmp_path / "b.json"]
    assert cli.main([str(w) for w in words] + ["--plot", str(tmp_path / "b.png")]) == 0
    out, _ = capsys.readouterr()
    rows = {row["work"]: row for row in json.loads((tmp_path / "b.json").read_text("utf-8"))}
    assert len(rows) == len(out.splitlines())
    for work in (
        *("limit: bandwidth", "import numpygpt", "load", "prefill 64", "decode at 128"),
        *(
            "decode 16 rows, context 128",
            "training step 4 x 64",
            "BPE encode, random words",
            "BPE decode, random words",
        ),
        *("draft, repetitive prompt, speed-up", "memory, training 4 x 64", "memory, LoRA 4 x 64"),
    ):
        assert rows[work]["value"] > 0
        assert rows[work]["least"] <= rows[work]["value"] <= rows[work]["most"]
    assert rows["memory, first token"]["ratio"] > 1
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_cost_curves_measure_what_they_predict(gpt):
    done = []
    panels = bench.cost_curves(gpt, runs=1, seconds=0, bar=lambda jobs: done.append(jobs) or jobs)
    assert [panel.unit for panel in panels] == ["seconds", "seconds", "MB"]
    assert done == [[(0, 16), (0, 32), (0, 64), (0, 128)]]
    for panel in panels:
        assert panel.lengths.tolist() == [16, 32, 64, 128]
        assert (panel.measured > 0).all()
        assert all(len(at) == len(values) for at, values in panel.predicted.values())
    ((_, cache),) = panels[2].predicted.values()
    assert (panels[2].measured >= cache[:4]).all()


def test_the_two_terms_of_reading_cross_where_it_is_said(gpt):
    panel = bench.cost_curves(gpt, runs=1, seconds=0)[0]
    (at, whole), (_, linear), (_, square) = panel.predicted.values()
    length, text = panel.crossing
    assert length == 12 * CONFIG.n_embd and "12 d" in text
    assert ((square > linear) == (at > length)).all() and at[0] < length < at[-1]
    assert (whole > linear + square).all()


def test_the_table_has_a_column_for_each_rival():
    row = bench.Row("prefill 64", 1000.0, "tokens/s", 900.0, 1100.0, 0.75, {"torch": 1.25})
    heading, line = bench.heading(["torch", "other"]), bench.table_line(row, ["torch", "other"])
    assert heading.split()[-3:] == ["ratio", "torch", "other"]
    assert line.split()[-2:] == ["0.75", "1.25"]
    assert heading.index("torch") + len("torch") == line.index("1.25") + len("1.25")


def test_rivals_are_measured_beside_ours_and_may_have_no_answer(gpt):
    class Slow:
        def prefill(self, tokens):
            return lambda: 1e6

        def training(self, tokens):
            return None

    limit = bench.Limits(gpt, runs=1)
    (work,) = bench.reading(gpt, (16,))
    assert bench.measured(work, limit, {"slow": Slow()}, 1).rivals["slow"] > 1000
    for work in bench.training(gpt, ((2, 8),)):
        assert bench.measured(work, limit, {"slow": Slow()}, 1).rivals == {}


def test_busy_processes_run_only_as_long_as_they_are_wanted(tmp_path):
    code = f"import pathlib, os\n(pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch()\n"
    for kind in (bench.SPIN, bench.MULTIPLY):
        with pytest.raises(KeyError), bench.processes(code + kind, 2):
            begun = time.monotonic()
            while len(list(tmp_path.iterdir())) < 2 and time.monotonic() - begun < 60:
                time.sleep(0.05)
            ids = [int(path.name) for path in tmp_path.iterdir()]
            assert len(ids) == 2
            for process in ids:
                os.kill(process, 0)  # it runs
                (tmp_path / str(process)).unlink()
            raise KeyError
        for process in ids:
            with pytest.raises(ProcessLookupError):
                os.kill(process, 0)


def test_beside_busy_processes_every_work_is_named(gpt, monkeypatch):
    monkeypatch.setattr(bench, "SPIN", "pass")
    monkeypatch.setattr(bench, "MULTIPLY", "pass")
    monkeypatch.setattr(bench.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("NUMPYGPT_THREADS", "2")
    rows = list(bench.busy(gpt, 1))
    assert [row.work for row in rows[:3]] == [
        "prefill 16, alone",
        "prefill 16, beside 2 busy processes",
        "prefill 16, beside another BLAS program",
    ]
    assert rows[0].ratio is None and all(row.ratio > 0 for row in rows[1:3])
    assert "decode 8 rows, context 128, alone" in [row.work for row in rows]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--vs", "jax"], "--vs takes torch and ctranslate2, with a comma between them, not 'jax'"),
        (["--vs", "torch,ctranslate2"], "needs torch and transformers"),
        (["--vs", "ctranslate2"], "needs ctranslate2"),
    ],
)
def test_a_rival_that_is_not_there_is_said_in_one_line(words, message, capsys, monkeypatch):
    for name in ("torch", "transformers", "ctranslate2"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert cli.main(["bench", *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and len(err.splitlines()) == 1 and out == ""
