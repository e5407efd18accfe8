"""What is drawn are the numbers that were given."""

import json

import numpy as np
import pytest

from numpygpt import cli, model
from numpygpt.bpe import Tokenizer
from numpygpt.files import checkpoint
from numpygpt.look import plot


def test_loss_curve_draws_steps_mean_and_validation():
    losses = np.linspace(4, 3, 250)
    fig, (ax,) = plot.figure()
    assert plot.loss_curve(ax, np.arange(1, 251) * 2000, losses, [(2e5, 3.7), (5e5, 3.1)]) is ax
    each, mean, validation = ax.get_lines()
    np.testing.assert_allclose(each.get_xdata()[-1], 0.5)  # million tokens
    np.testing.assert_array_equal(each.get_ydata(), losses)
    assert len(mean.get_ydata()) == 151
    # of a straight line, a mean drawn in its middle lies on the line (to half a step)
    np.testing.assert_allclose(
        np.interp(mean.get_xdata(), each.get_xdata(), losses), mean.get_ydata(), atol=0.003
    )
    np.testing.assert_allclose(validation.get_xdata(), [0.2, 0.5])


def test_attention_shows_queries_as_rows():
    pattern = np.array([[1, 0, 0], [0.25, 0.75, 0]])
    fig, (ax,) = plot.figure()
    plot.attention(ax, pattern, ["b", "c"], ["a", "b", "c"])
    np.testing.assert_array_equal(ax.get_images()[0].get_array(), pattern)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_cost_and_ratios():
    fig, (left, right) = plot.figure(columns=2)
    plot.cost(left, [16, 32], [1e-3, 3e-3], {"predicted": ([16, 32, 64], [1e-3, 2e-3, 4e-3])})
    assert [line.get_label() for line in left.get_lines()] == ["predicted", "measured here"]
    plot.ratios(right, ["decode", "prefill"], [0.9, 0.7])
    assert [bar.get_width() for bar in right.patches] == [0.9, 0.7]
    assert right.yaxis_inverted()


@pytest.mark.parametrize(("named", "ending"), [("", "png"), ("training.jsonl", "svg")])
def test_the_command_draws_the_log_of_a_run(tmp_path, named, ending):
    rows = [{"number": n, "loss": 5 / n, "tokens": 64} for n in range(1, 40)]
    rows[20]["validation"] = 2.5
    log = tmp_path / "training.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / f"loss.{ending}"
    assert cli.main(["plot", "loss", str(tmp_path / named), "-o", str(out)]) == 0
    start = out.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<svg" in start or b"xml" in start


# ---- tokens as people read them -----------------------------------------------------------------


class Bytes:
    """A tokenizer of whole pieces, by their number."""

    def __init__(self, *pieces):
        self.pieces = pieces

    def decode_bytes(self, ids):
        return b"".join(self.pieces[i] for i in ids)


def test_tokens_are_written_as_people_read_them():
    pieces = [
        b" the",
        b"\n\n",
        b"\t",
        b"\xe2\x80",
        "é".encode(),
        "中".encode(),
        b"\x07",
        b"$x$",
        b"",
    ]
    labels = plot.token_labels(Bytes(*pieces), range(len(pieces)))
    assert labels[:4] == ["␣the", "↵↵", "⇥", "‹e2 80›"]
    assert labels[4:] == ["é", "U+4E2D", "U+0007", "$x$", ""]


def test_what_could_be_a_formula_is_drawn_as_it_is(tmp_path):
    fig, axes = plot.figure(2)
    labels = ["$", r"\frac{", "$x^$", "_^{", r"\$"]
    plot.next_tokens(axes[0], [0.2] * 5, labels)
    plot.lens(axes[1], np.full((1, 5), 0.3), [labels], ["layer 0"], labels)
    plot.save(fig, tmp_path / "a.png")  # a formula would not parse
    assert [label.get_text() for label in axes[0].get_yticklabels()][2] == r"\$x^\$"


# ---- each picture -------------------------------------------------------------------------------


def test_what_a_query_must_not_see_is_masked_and_a_zero_is_not():
    pattern = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    fig, (ax,) = plot.figure()
    plot.attention(ax, pattern[:, :3], ["b", "c"], ["a", "b", "c"])  # the last 2 of 3 positions
    shown = ax.get_images()[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), [[0, 0, 1], [0, 0, 0]])
    assert ax.patch.get_hatch() and "hatched" in ax.get_xlabel()


def test_all_heads_in_one_grid():
    patterns = np.random.default_rng(0).random((3, 4, 4))
    fig, axes = plot.figure(2, 2, 2, rows=2)
    shown = plot.heads(axes, patterns, ["␣a", "b", "c", "d"])
    assert len(shown) == 3 and axes[3] not in fig.axes
    for ax, pattern in zip(shown, patterns, strict=True):
        np.testing.assert_array_equal(ax.get_images()[0].get_array().data, pattern)
    labelled = [bool([t.get_text() for t in ax.get_xticklabels()]) for ax in shown]
    assert labelled == [False, True, True]  # the lowest of each column
    assert "␣ a space" in fig.get_supxlabel()


def test_next_tokens_shows_what_is_left_for_the_others():
    fig, (ax,) = plot.figure()
    plot.next_tokens(ax, [0.5, 0.125], ["␣a", "b"])
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.125, 0.375]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["␣a", "b", "all others"]


def test_logprobs_shows_surprise_and_entropy():
    fig, (ax,) = plot.figure()
    plot.logprobs(ax, [1.0, 3.0], ["a", "b"], [2.0, 0.5])
    assert [bar.get_height() for bar in ax.patches[:2]] == [1, 3]
    np.testing.assert_array_equal(ax.patches[2].get_data().values, [2, 0.5])
    assert "2.00 nats" in ax.get_title()


def test_head_scores_are_written_down_with_their_signs():
    fig, (left, right) = plot.figure(2)
    plot.head_scores(left, [[0.5, 0.0], [1.0, 0.25]], "score")
    assert [text.get_text() for text in left.texts] == ["0.50", "0.00", "1.00", "0.25"]
    plot.head_scores(right, [[0.5, -0.001], [-1.0, 0.25]], "share")
    assert [text.get_text() for text in right.texts] == ["+0.50", "+0.00", "-1.00", "+0.25"]
    np.testing.assert_array_equal(right.get_images()[0].get_array(), [[0.5, 0.001], [1, 0.25]])
    plot.head_scores(left, np.zeros((2, 2)), "score")  # nothing to divide by


def test_attribution_bars_and_their_sum():
    fig, (ax,) = plot.figure()
    plot.attribution(ax, ["token", "MLP 0"], [1.5, -0.25])
    assert [bar.get_width() for bar in ax.patches] == [1.5, -0.25]
    assert "1.25" in ax.get_xlabel()


def test_repetition_gives_the_mean_of_each_half():
    fig, (ax,) = plot.figure()
    plot.repetition(ax, np.array([np.nan, 4.0, 1.0, 2.0]))
    assert [text.get_text()[-4:] for text in ax.texts] == ["4.00", "1.50"]


def test_embedding_and_similarity():
    fig, (left, right) = plot.figure(2)
    plot.embedding(left, [(0, 1), (2, 3)], ["$a", "␣b"], [0.5, 0.25])
    assert [text.get_text() for text in left.texts] == ["$a", "␣b"]
    assert "50%" in left.get_xlabel() and "25%" in left.get_ylabel()
    plot.similarity(right, np.eye(3))
    assert right.get_images()[0].get_clim() == (-1, 1)


def test_context_draws_positions_and_strides():
    fig, axes = plot.figure(2)
    each = np.array([[5.0, 4, 3, 2, 1, 1], [7.0, 4, 3, 4, 1, 3]])
    plot.context(axes, each, [6, 3], [4.0, 3.5])
    line = axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), [6, 4, 3, 1.5])
    labels = [label.get_text() for label in axes[0].get_xticklabels()]
    assert labels == ["1", "2", "3–4", "5–6"]
    np.testing.assert_array_equal(axes[1].get_lines()[0].get_xydata(), [[1, 4], [2, 3.5]])
    assert [text.get_text() for text in axes[1].texts] == ["stride 6: 4.000", "stride 3: 3.500"]


def test_the_command_measures_context(tmp_path, capsys):
    path, out = tmp_path / "t.txt", tmp_path / "c.png"
    config = model.Config(257, 16, 12, 3, 2)
    tokenizer = Tokenizer.train("Once upon a time.", 257)
    gpt = model.GPT2(config, model.init(config, np.random.default_rng(0)))
    checkpoint.save(gpt, tokenizer, tmp_path / "model")
    command = ["plot", "context", str(path), "--model", str(tmp_path / "model"), "-o", str(out)]
    path.write_text("Once upon a time there was a fox. " * 9, encoding="utf-8")
    assert cli.main([*command, "--windows", "9"]) == 0
    assert out.stat().st_size > 10_000
    path.write_text("Once upon a time.", encoding="utf-8")
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "do not fill two windows" in capsys.readouterr().err
    assert cli.main(["plot", "context"]) == 2
    path.write_text('{"x": "Once", "y": "upon a time"}\n' * 30, encoding="utf-8")
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "holds JSON, not prose" in capsys.readouterr().err


def test_a_notebook_is_given_a_picture_of_a_figure_and_of_its_axes():
    fig, axes = plot.figure(2)
    for shown in (fig, *axes):
        assert shown._repr_png_().startswith(b"\x89PNG")


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["next", "logprobs", "attention", "heads", "lens", "attribution", "induction", "embedding"],
)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_draws_the_bundled_model(tmp_path, what, ending, capsys):
    text = [] if what in ("induction", "embedding") else ["The old $ fox\n中, the old"]
    out = tmp_path / f"a.{ending}"
    assert cli.main(["plot", what, *text, "-o", str(out)]) == 0
    assert out.stat().st_size > 10_000
    assert capsys.readouterr().err == f"drawn in {out}\n"


def test_damaged_weights_are_not_drawn(tmp_path, capsys):
    config = model.Config(262, 16, 12, 3, 2)
    tokenizer = Tokenizer.train("the fox and the hen " * 9, 262)
    params = model.init(config, np.random.default_rng(0))
    for name, value in (("h.1.mlp.c_fc.weight", 1e38), ("wte.weight", np.nan)):
        params[name] = params[name] * np.float32(value) * 50
        checkpoint.save(model.GPT2(config, params), tokenizer, tmp_path / "model")
        for what in ("next", "logprobs", "heads", "lens", "attribution", "induction", "embedding"):
            if value == 1e38 and what == "embedding":  # which does not read c_fc
                continue
            text = [] if what == "induction" else ["the fox and"]
            command = ["plot", what, *text, "--model", str(tmp_path / "model")]
            assert cli.main([*command, "-o", str(tmp_path / "a.png")]) == 1, what
            err = capsys.readouterr().err
            assert "NaN or infinity" in err and err.count("\n") == 1, what
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["next", ""], "the text is empty"),
        (["next", "a", "--top", "101"], "--top goes up to 100"),
        (["lens", "a b c " * 30], "too many to be readable"),
        (["attention", "a", "--head", "-1"], "there is no layer 0, head -1"),
        (["heads", "a", "--layer", "99"], "there is no layer 99"),
        (["attribution", "a", "--target", "hungry wolf"], "--target must be one token"),
        (["attribution", "a", "--against", ""], "--against must be one token"),
        (["induction", "--length", "1"], "length must be 2 to"),
        (["embedding", "a"], "give at least three"),
        (["next", "a", "-o", "a.xyz"], "'xyz' is not supported"),
        (["loss"], "training.jsonl"),
        (["next", "a", "--layer", "3"], "--layer is for attention, heads, not for next"),
        (["cost", "a text"], "the input is for next"),
        (["lens", "a", "--seed", "0"], "--seed is for induction, not for lens"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_one_line(
    arguments, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plot", *arguments]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_head_and_no_label_is_left_out_without_a_word():
    patterns = np.full((4, 3, 3), 1 / 3)
    labels = ["a", "b", "c"]
    for wrong in (patterns[0, :2], patterns[0, :, :2], patterns):
        with pytest.raises(ValueError, match="a pattern of 3 queries and 3 keys is not of shape"):
            plot.attention(plot.figure()[1][0], wrong, labels)
    with pytest.raises(ValueError, match="a pattern of 2 queries"):
        plot.heads(plot.figure(2, rows=2)[1], patterns, labels[:2])
    with pytest.raises(ValueError, match="3 axes are too few for 4 heads"):
        plot.heads(plot.figure(3)[1], patterns, labels)
    ax = plot.attention(plot.figure()[1][0], patterns[0, -2:], labels[-2:], labels)
    assert len(ax.get_xticks()) == 3 and len(ax.get_yticks()) == 2


def test_a_model_that_is_certain_has_a_picture_as_well():
    _, (left, right) = plot.figure(2)
    assert plot.logprobs(left, [0.0, 0.0], ["a", "b"]).get_ylim() == (0, 1)
    assert plot.repetition(right, [np.nan, 0.0, 0.0, 0.0]).get_ylim() == (0, 1)
