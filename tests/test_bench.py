"""That the table says what it claims; how fast anything is, is no test."""

import json

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
