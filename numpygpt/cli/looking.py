"""plot: pictures."""

from numpygpt.cli.measuring import to_measure
from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, json_line, positive, read, say, text_or_stdin


def plot_command(args):
    """Draw a training log, a head's attention, or cost against length."""
    from numpygpt.look import plot

    draw = {"loss": _plot_loss, "attention": _plot_attention, "cost": _plot_cost}[args.what]
    out = args.output or f"{args.what}.png"
    plot.save(draw(args, plot), out)
    say(f"drawn in {out}")


def _plot_loss(args, plot):
    if args.input is None:
        raise ValueError("name the log of a run, its training.jsonl")
    lines = enumerate(read(args.input).splitlines(), 1)
    rows = [json_line(args.input, number, line, ["number", "loss"]) for number, line in lines]
    fig, (ax,) = plot.figure(width=7)
    validation = [(row["number"], row["validation"]) for row in rows if "validation" in row]
    plot.loss_curve(
        ax,
        [row["number"] for row in rows],
        [row["loss"] for row in rows],
        validation,
        args.tokens_per_step,
    )
    return fig


def _plot_attention(args, plot):
    model, tokenizer = load(args.model)
    ids = tokenizer.encode(text_or_stdin(args.input, "a text"))
    _, acts = model.forward(ids, keep="everything")
    name = f"h.{args.layer}.attn.pattern"
    if name not in acts or args.head >= model.config.n_head or args.head < 0:
        sizes = f"{model.config.n_layer} layers of {model.config.n_head} heads"
        raise ValueError(f"there is no layer {args.layer}, head {args.head}: the model has {sizes}")
    size = 2 + 0.25 * len(ids)
    fig, (ax,) = plot.figure(width=size + 1, height=size)
    plot.attention(ax, acts[name][0, args.head], [tokenizer.tokens[i] for i in ids])
    ax.set_title(f"layer {args.layer}, head {args.head}")
    return fig


def _plot_cost(args, plot):
    from numpygpt.check import bench

    with to_measure(args) as (_, model, _):
        panels = bench.cost_curves(model)
    fig, axes = plot.figure(len(panels), width=5)
    for ax, (name, (lengths, measured, predicted)) in zip(axes, panels.items(), strict=True):
        plot.cost(ax, lengths, measured, predicted, name)
    return fig


def add(command):
    """Their options."""
    p = command(plot_command)
    p.add_argument("what", choices=["loss", "attention", "cost"])
    p.add_argument("input", nargs="?", help="loss: training.jsonl; attention: a text")
    p.add_argument("-o", "--output", help="picture (default: WHAT.png)")
    p.add_argument("--tokens-per-step", type=positive, default=2048, help="of the run (loss)")
    p.add_argument("--model", **MODEL)
    p.add_argument("--shape", help="as in bench (cost)")
    p.add_argument("--layer", type=int, default=0)
    p.add_argument("--head", type=int, default=0)
