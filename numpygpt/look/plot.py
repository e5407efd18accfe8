"""Arrays in, Axes out.

Every function draws into the Axes it is given and returns it; `figure` makes some without opening a
window, for scripts and the command line. In a notebook `plt.subplots()` does as well.
"""

import numpy as np
from matplotlib.figure import Figure


def figure(columns: int = 1, width: float = 6.0, height: float = 3.6):
    """A Figure with `columns` Axes in a row: (figure, list of Axes). Sizes of one Axes, inches."""
    fig = Figure(figsize=(width * columns, height), dpi=150, layout="constrained")
    return fig, list(fig.subplots(1, columns, squeeze=False)[0])


def loss_curve(ax, numbers, losses, validation=None, tokens_per_step=1):
    """Training loss against tokens seen, each step and a running mean, and the validation loss.

    numbers, losses: one per step. validation: pairs (step, nats per token). The mean of n steps is
    drawn at the middle of them, so that it is not late.
    """
    numbers, losses = np.asarray(numbers), np.asarray(losses)
    millions = numbers * tokens_per_step / 1e6
    ax.plot(millions, losses, color="C0", alpha=0.25, linewidth=0.5, label="each training batch")
    n = min(len(losses), 100)
    mean = np.convolve(losses, np.ones(n) / n, mode="valid")
    ax.plot(millions[n // 2 : n // 2 + len(mean)], mean, color="C0", label=f"mean of {n} batches")
    if validation:
        steps, nats = np.array(validation).T
        ax.plot(steps * tokens_per_step / 1e6, nats, "o-", color="C3", label="validation")
    ax.set_xlabel("million tokens seen")
    ax.set_ylabel("loss, nats per token")
    ax.legend()
    return ax


def attention(ax, pattern, queries, keys=None):
    """The weights of one head (T, S): each row is a query, each column a key it looks at."""
    keys = queries if keys is None else keys
    image = ax.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
    ax.set_xticks(range(len(keys)), keys, rotation=90)
    ax.set_yticks(range(len(queries)), queries)
    ax.set_xlabel("key")
    ax.set_ylabel("query")
    ax.figure.colorbar(image, ax=ax)
    return ax


def cost(ax, lengths, seconds, predicted, unit="seconds"):
    """Measured cost against length, with curves that predict it: name -> (lengths, values)."""
    ax.plot(lengths, seconds, "ko", label="measured")
    for name, (at, values) in predicted.items():
        ax.plot(at, values, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xlabel("tokens")
    ax.set_ylabel(unit)
    ax.legend()
    return ax


def ratios(ax, names, values):
    """Horizontal bars of ratios to a limit, the limit at 1."""
    at = np.arange(len(names))
    ax.barh(at, values, color="C0")
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_yticks(at, names)
    ax.invert_yaxis()
    ax.set_xlabel("ratio to the limit of this machine")
    return ax


def save(fig, path) -> None:
    """Write the figure; the format is that of the path's ending, PNG or SVG for instance."""
    fig.savefig(path)
