"""Arrays in, Axes out.

Every function draws into the Axes it is given and returns it; `figure` makes some without opening a
window. In a notebook a cell that ends in such a figure, or in one of its Axes, shows the picture.

Colours go from light to dark, so that a picture is read in grey and by the colour-blind; signs are
said by sides or by numbers, lines by their dashes. What is masked is hatched: that is not a 0.
"""

import functools
import io
import os
import unicodedata

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from numpygpt.files.atomic import writing

SHADES = "Blues"  # light is little, dark is much
BLUE, ORANGE, GREY = "#0b559f", "#c8590b", "0.55"  # of different lightness
MASKED = {"hatch": "//////", "edgecolor": "0.75", "facecolor": "0.96", "linewidth": 0}
READABLE = 48  # tokens on an axis; more are numbered


def figure(columns: int = 1, width: float = 6.0, height: float = 3.6, rows: int = 1):
    """A Figure and the list of its Axes, row by row. Sizes are those of one Axes, in inches."""
    fig = Figure(figsize=(width * columns, height * rows), dpi=150, layout="constrained")
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for shown in (fig, *axes):  # what notebooks ask an object for that a cell ends in
        shown._repr_png_ = functools.partial(_png, fig)
    return fig, axes


def _png(fig):
    fig.draw_without_rendering()  # the layout knows the sizes of all texts from the second time on
    data = io.BytesIO()
    fig.savefig(data, format="png", dpi=90)  # sharp enough on a page, and a third of the bytes
    return data.getvalue()


def save(fig, path) -> None:
    """Write the figure; the format is that of the path's ending, PNG or SVG for instance."""
    kind = os.path.splitext(path)[1].removeprefix(".").lower() or "png"
    fig.draw_without_rendering()  # as for a notebook
    with writing(path, binary=True) as file:
        fig.savefig(file, format=kind)


# ---- tokens as people read them -----------------------------------------------------------------

SIGNS = {" ": "␣", "\n": "↵", "\r": "\\r", "\t": "⇥"}
MEANINGS = {"␣": "␣ a space", "↵": "↵ a new line", "⇥": "⇥ a tab", "‹": "‹e2› bytes in hexadecimal"}


def token_labels(tokenizer, ids) -> list[str]:
    """Each token as a reader can see it: a space as ␣, a new line as ↵, a tab as ⇥.

    Bytes that do not make a whole character are written in hexadecimal, ‹e2 80›, and characters
    that the pictures' font does not have by their number, U+4E2D.
    """
    return [_label(tokenizer.decode_bytes([i])) for i in ids]


def _label(data):
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return f"‹{data.hex(' ')}›"
    return "".join(SIGNS.get(c) or (c if _has_glyph(c) else f"U+{ord(c):04X}") for c in text)


@functools.cache
def _has_glyph(character):
    if unicodedata.category(character)[0] in "CZ":  # controls, and spaces of other widths
        return False
    return get_font(findfont(FontProperties())).get_char_index(ord(character)) != 0


def _plain(labels):
    """Without the meaning that matplotlib gives to $: formulas stand between two of them."""
    return [str(label).replace("$", r"\$") for label in labels]


def _key(what, labels, *more):
    """What an axis shows, and in brackets what the signs in its labels mean."""
    found = [meaning for sign, meaning in MEANINGS.items() if any(sign in x for x in labels)]
    return f"{what} ({', '.join([*found, *more])})" if found or more else what


def _tokens_on(axis, labels, most=READABLE, **style):
    """Tokens as the ticks of an axis; more than `most` are left to be numbered."""
    if len(labels) <= most:
        axis.set_ticks(range(len(labels)), _plain(labels), fontsize=8, **style)


# ---- training -----------------------------------------------------------------------------------


def loss_curve(ax, tokens, losses, validation=None):
    """Training loss against tokens seen, each step and a running mean, and the validation loss.

    tokens, losses: one per step, the tokens seen up to it and its loss. validation: pairs (tokens
    seen, nats per token). The mean of n steps is drawn at the middle of them, so that it is not
    late.
    """
    millions, losses = np.asarray(tokens) / 1e6, np.asarray(losses)
    ax.plot(millions, losses, color=BLUE, alpha=0.25, linewidth=0.5, label="each training batch")
    n = min(len(losses), 100)
    mean = np.convolve(losses, np.ones(n) / n, mode="valid")
    ax.plot(millions[n // 2 : n // 2 + len(mean)], mean, color=BLUE, label=f"mean of {n} batches")
    if validation:
        seen, nats = np.array(validation).T
        ax.plot(seen / 1e6, nats, "o--", color=ORANGE, label="validation")
    ax.set_xlabel("million tokens seen")
    ax.set_ylabel("loss, nats per token")
    ax.legend()
    return ax


# ---- attention ----------------------------------------------------------------------------------


def attention(ax, pattern, queries, keys=None, colorbar=True):
    """The weights of one head (T, S): each row is a query, each column a key it looks at.

    The T queries are the last of the S positions; what they must not see is hatched. Raises
    ValueError for labels that are not as many as the positions.
    """
    keys = queries if keys is None else keys
    image = _pattern(ax, pattern, queries, keys)
    _tokens_on(ax.xaxis, keys, rotation=90)
    _tokens_on(ax.yaxis, queries)
    ax.set_xlabel(_key("key: the token that is looked at\n", keys, "hatched: not to be seen"))
    ax.set_ylabel("query: the token that looks")
    if colorbar:
        ax.figure.colorbar(image, ax=ax, label="weight, a row adds up to 1")
    return ax


def _pattern(ax, pattern, queries, keys):
    if np.shape(pattern) != (len(queries), len(keys)):
        raise ValueError(
            f"a pattern of {len(queries)} queries and {len(keys)} keys is not of shape "
            f"{np.shape(pattern)}: it is that of one head, and every token has a label"
        )
    t, s = np.shape(pattern)
    future = np.triu(np.ones((t, s), bool), s - t + 1)
    ax.patch.set(**MASKED)
    return ax.imshow(np.ma.array(pattern, mask=future), cmap=SHADES, vmin=0, vmax=1)


def heads(axes, patterns, queries, keys=None):
    """All heads of a layer, patterns (H, T, S), one in each Axes, with one colour bar.

    axes: of `figure(columns, rows=...)`, at least H; what is left over is taken away. Raises
    ValueError for too few, and as `attention`.
    """
    keys = queries if keys is None else keys
    if len(axes) < len(patterns):
        raise ValueError(f"{len(axes)} axes are too few for {len(patterns)} heads")
    for head, (ax, pattern) in enumerate(zip(axes, patterns, strict=False)):
        image = _pattern(ax, pattern, queries, keys)
        ax.set_title(f"head {head}", fontsize=10)
        place = ax.get_subplotspec()
        lowest = head + place.get_gridspec().ncols >= len(patterns)
        if place.is_first_col():
            _tokens_on(ax.yaxis, queries, most=READABLE // 2)
        else:
            ax.set_yticks([])
        if lowest:
            _tokens_on(ax.xaxis, keys, most=READABLE // 2, rotation=90)
        else:
            ax.set_xticks([])
    for ax in axes[len(patterns) :]:
        ax.remove()
    fig, shown = axes[0].figure, axes[: len(patterns)]
    fig.colorbar(image, ax=shown, label="weight, a row adds up to 1", aspect=40)
    fig.supylabel("query: the token that looks")
    fig.supxlabel(_key("key: the token that is looked at", keys, "hatched: not to be seen"))
    return shown


# ---- what comes next ----------------------------------------------------------------------------


def next_tokens(ax, probabilities, labels):
    """The likeliest next tokens, the first at the top, and what is left for all the others."""
    names = [*_plain(labels), "all others"]
    shares = np.array([*probabilities, max(0.0, 1 - np.sum(probabilities))])
    bars = ax.barh(range(len(names)), shares, color=[BLUE] * len(labels) + [GREY])
    ax.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=8)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.3 * shares.max())  # room for the numbers
    ax.set_xlabel("probability of being the next token")
    ax.set_ylabel(_key("next token\n", labels))
    return ax


def logprobs(ax, nats, labels, entropy=None):
    """How unexpected each token was, -ln p in nats; and the entropy, how unexpected on average.

    A bar above the line: the model was surprised. One below it: it was right, or lucky.
    """
    at = np.arange(len(nats))
    ax.bar(at, nats, color=BLUE, width=0.8, label="surprise: -ln p of the token that came")
    if entropy is not None:
        steps = np.concatenate([at - 0.5, at[-1:] + 0.5])
        ax.stairs(entropy, steps, baseline=None, color=ORANGE, linewidth=1.5,
                  label="expected surprise: the entropy of all p")  # fmt: skip
    ax.set_xlim(-0.6, len(nats) - 0.4)
    _tokens_on(ax.xaxis, labels, rotation=90)
    shown = len(labels) <= READABLE
    ax.set_xlabel(_key("token that came", labels) if shown else "position of the token that came")
    ax.set_ylabel("nats")
    ax.set_title(f"mean surprise {np.nanmean(nats):.2f} nats per token", fontsize=10)
    ax.legend(loc="upper right")
    ax.set_ylim(0, 1.25 * np.nanmax(nats) or 1.0)
    return ax


def lens(ax, probabilities, words, rows, inputs):
    """The logit lens: what each layer (rows, the last at the top) would say comes next.

    probabilities, words (N, T): the likeliest token and how likely; rows: N names; inputs: T.
    """
    image = ax.imshow(probabilities, cmap=SHADES, vmin=0, vmax=1, aspect="auto", origin="lower")
    for (row, column), word in np.ndenumerate(np.array(words, object)):
        dark = probabilities[row][column] > 0.55
        ax.text(column, row, word, ha="center", va="center", fontsize=7, parse_math=False,
                color="white" if dark else "black")  # fmt: skip
    _tokens_on(ax.xaxis, inputs, rotation=90)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_xlabel(_key("token that was read", [*inputs, *np.ravel(words)]))
    ax.set_ylabel("after so much of the model")
    ax.figure.colorbar(image, ax=ax, label="probability of the word written here")
    return ax


# ---- heads and parts ----------------------------------------------------------------------------


def head_scores(ax, scores, label, limit=None):
    """A number for each head (L, H): the shade its size, up to `limit` (None: the largest), and
    written down; of more than 200 heads only the minus of negative ones."""
    scores = np.asarray(scores)
    signed = bool((scores < 0).any())
    limit = limit or np.abs(scores).max() or 1.0
    image = ax.imshow(np.abs(scores), cmap=SHADES, vmin=0, vmax=limit, aspect="auto")
    for (layer, head), score in np.ndenumerate(scores):
        if scores.size <= 200:
            rounded = round(float(score), 2) + 0.0  # never -0.00
            text = f"{rounded:+.2f}" if signed else f"{rounded:.2f}"
        else:
            text = "−" if score < 0 else ""
        color = "white" if abs(score) > 0.55 * limit else "black"
        ax.text(head, layer, text, ha="center", va="center", fontsize=7, color=color)
    ax.set_xticks(range(scores.shape[1]))
    ax.set_yticks(range(scores.shape[0]))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.figure.colorbar(image, ax=ax, label=f"size of the {label}" if signed else label)
    return ax


def repetition(ax, nats):
    """Loss by position, nats (2 n,), where the second half repeats the first."""
    n = len(nats) // 2
    ax.plot(np.arange(len(nats)), nats, ".-", color=BLUE, linewidth=1)
    ax.axvline(n - 0.5, color="black", linestyle=":")
    for start, name in ((0, "first showing"), (n, "the same again")):
        text = f"{name}\nmean {np.nanmean(nats[start : start + n]):.2f}"
        place = ax.get_xaxis_transform()
        ax.text(start + n / 2, 0.98, text, ha="center", va="top", transform=place)
    ax.set_ylim(0, 1.25 * np.nanmax(nats) or 1.0)
    ax.set_xlabel("position")
    ax.set_ylabel("loss, nats per token")
    return ax


def attribution(ax, names, shares):
    """What each part adds to a logit, or to a difference of two: bars right of 0 add to it."""
    shares = np.asarray(shares)
    at = np.arange(len(names))
    ax.barh(at, shares, color=[BLUE if share > 0 else ORANGE for share in shares])
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(at, names, fontsize=8 if len(names) <= 30 else 6)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlabel(f"adds to the logit (all bars together: {shares.sum():.2f})")
    ax.grid(axis="x", alpha=0.3)
    return ax


# ---- embeddings ---------------------------------------------------------------------------------


def embedding(ax, points, labels, explained):
    """Vectors in the plane in which they differ most: points (N, 2), shares of the variance."""
    ax.plot(*np.asarray(points).T, ".", color=GREY, markersize=3)
    for (x, y), label in zip(points, labels, strict=True):
        ax.annotate(label, (x, y), (2, 2), textcoords="offset points", fontsize=7, parse_math=False)
    ax.margins(0.15, 0.08)  # words stand at the right of their points
    ax.set_title(_key(f"embeddings of {len(labels)} tokens", labels), fontsize=10)
    for name, number in (("x", 0), ("y", 1)):
        text = f"principal component {number + 1}, {explained[number]:.0%} of the variance"
        getattr(ax, f"set_{name}label")(text)
    return ax


def similarity(ax, cosines):
    """How alike the vectors of each two positions are: cosines (N, N)."""
    image = ax.imshow(cosines, cmap=SHADES, vmin=-1, vmax=1)
    ax.set_xlabel("position")
    ax.set_ylabel("position")
    ax.set_title(f"embeddings of {len(cosines)} positions", fontsize=10)
    ax.figure.colorbar(image, ax=ax, label="cosine of the angle between the two")
    return ax


# ---- cost ---------------------------------------------------------------------------------------


def cost(ax, lengths, measured, predicted, unit="seconds", crossing=None):
    """Measured cost against length, with curves that predict it: name -> (lengths, values).

    crossing: (length, what happens there), marked by an upright line.
    """
    styles = [("-", "black"), ("--", BLUE), (":", ORANGE)]
    for (name, (at, values)), (style, color) in zip(predicted.items(), styles, strict=False):
        ax.plot(at, values, style, color=color, label=name)
    ax.plot(lengths, measured, "o", color="black", markersize=5, label="measured here")
    if crossing is not None:
        ax.axvline(crossing[0], color=GREY, linewidth=1)
        place = ax.get_xaxis_transform()
        ax.text(crossing[0], 0.03, crossing[1] + " ", fontsize=8, ha="right", transform=place)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ticks = [4**i for i in range(2, 9) if 4**i <= ax.get_xlim()[1]]
    ax.set_xticks(ticks, [f"{n:,}" for n in ticks])
    ax.set_xlabel("n, tokens")
    ax.set_ylabel(unit)
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", fontsize=8)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.25)  # room for the legend
    return ax


def context(axes, each, strides, stride_nats):
    """What a longer context is worth, and what windows that overlap cost: into two Axes.

    Left nats by how many tokens were seen, of `each` (windows, n_ctx); positions are taken
    together by powers of two, and bars are twice the standard error over windows. Right, for each
    stride, nats per token and how many tokens were worked on for each that is counted.
    """
    left, right = axes
    each = np.asarray(each)
    edges = [0, *(2**i for i in range(64) if 2**i < each.shape[1]), each.shape[1]]
    groups = [each[:, a:b].mean(1) for a, b in zip(edges, edges[1:], strict=False)]
    names = [f"{a + 1:,}" if b == a + 1 else f"{a + 1:,}–{b:,}"
             for a, b in zip(edges, edges[1:], strict=False)]  # fmt: skip
    error = [2 * group.std(ddof=1) / len(group) ** 0.5 for group in groups]
    left.errorbar(range(len(groups)), [group.mean() for group in groups], error, fmt="o-",
                  color=BLUE, capsize=3)  # fmt: skip
    left.set_xticks(range(len(groups)), names, rotation=45, ha="right", fontsize=8)
    left.set_xlabel(f"tokens that the next one is expected from (mean of {len(each)} windows)")
    left.set_ylabel("loss, nats per token")
    left.set_title("What a longer context is worth")
    left.grid(axis="y", alpha=0.3)
    worked = [each.shape[1] / stride for stride in strides]
    right.plot(worked, stride_nats, "o-", color=BLUE)
    for stride, x, y in zip(strides, worked, stride_nats, strict=True):
        text = f"stride {stride:,}: {y:.3f}"
        right.annotate(text, (x, y), (4, 6), textcoords="offset points", fontsize=8)
    right.set_xlim(0, 1.4 * max(worked))
    right.set_ylim(0.97 * min(stride_nats), 1.03 * max(stride_nats))  # less is not worth a picture
    right.set_xlabel("cost: tokens worked on for each that is counted")
    right.set_ylabel("loss, nats per token")
    right.set_title("Windows that overlap: more context, more work")
    right.grid(alpha=0.3)
    return axes


def ratios(ax, names, values):
    """Horizontal bars of ratios to a limit, the limit at 1."""
    at = np.arange(len(names))
    ax.barh(at, values, color=BLUE)
    ax.axvline(1.0, color="black", linewidth=0.8)
    ax.set_yticks(at, names)
    ax.invert_yaxis()
    ax.set_xlabel("ratio to the limit of this machine")
    return ax
