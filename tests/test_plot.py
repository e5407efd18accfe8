"""What is drawn are the numbers that were given."""

import json

import numpy as np
import pytest

from numpygpt import cli
from numpygpt.look import plot


def test_loss_curve_draws_steps_mean_and_validation():
    losses = np.linspace(4, 3, 250)
    fig, (ax,) = plot.figure()
    assert plot.loss_curve(ax, range(1, 251), losses, [(100, 3.7), (250, 3.1)], 2000) is ax
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
    assert [line.get_label() for line in left.get_lines()] == ["measured", "predicted"]
    plot.ratios(right, ["decode", "prefill"], [0.9, 0.7])
    assert [bar.get_width() for bar in right.patches] == [0.9, 0.7]
    assert right.yaxis_inverted()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_command_draws_a_log(tmp_path, ending):
    rows = [{"number": n, "loss": 5 / n} for n in range(1, 40)]
    rows[20]["validation"] = 2.5
    log = tmp_path / "training.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / f"loss.{ending}"
    assert cli.main(["plot", "loss", str(log), "-o", str(out)]) == 0
    start = out.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == "png" else b"<svg" in start or b"xml" in start
