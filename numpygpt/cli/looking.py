"""plot: pictures."""

import math
from pathlib import Path

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say, text_or_stdin


def plot_command(args):
    """Draw what a model does: where it looks, what it expects, what adds to it, what it costs."""
    from numpygpt.look import plot

    _check_options(args)
    out = args.output or f"{args.what}.png"
    plot.save(PICTURES[args.what](args, plot), out)
    say(f"drawn in {out}")


def _check_options(args):
    """An option of another picture is refused; the rest get their defaults."""
    for option, (pictures, default) in OPTIONS.items():
        if getattr(args, option) is None:
            setattr(args, option, default)
        elif args.what not in pictures:
            name = "the input" if option == "input" else "--" + option.replace("_", "-")
            raise ValueError(f"{name} is for {', '.join(pictures)}, not for {args.what}")


def _plot_loss(args, plot):
    from numpygpt.files import text
    from numpygpt.files.run import LOG

    if args.input is None:
        raise ValueError("name the folder of a run, or its training.jsonl")
    log = Path(args.input) / LOG if Path(args.input).is_dir() else Path(args.input)
    rows = text.json_lines(log, text.LOG, text.LOG_SOMETIMES)
    tokens, losses, validation, seen = [], [], [], 0
    for row in rows:
        # what a step read is in the log; runs of before that was logged need --tokens-per-step
        if "tokens" not in row and args.tokens_per_step is None:
            raise ValueError(f"{log} does not say how long a step is: --tokens-per-step N")
        seen += row.get("tokens", args.tokens_per_step)
        if "loss" in row:
            tokens.append(seen), losses.append(row["loss"])
        if "validation" in row:
            validation.append((seen, row["validation"]))
    if not losses:
        raise ValueError(f"{log} does not hold the steps of a training run")
    fig, (ax,) = plot.figure(width=7)
    plot.loss_curve(ax, tokens, losses, validation)
    return fig


# ---- of a text ----------------------------------------------------------------------------------


def _read_text(args):
    """Model, tokenizer, ids of the text (T,), logits (T, V) and the record."""
    text = text_or_stdin(args.input, "a text").removesuffix("\n")
    model, tokenizer = load(args.model)
    ids = tokenizer.encode(text, allowed_special=tokenizer.special)
    if not ids:
        raise ValueError("the text is empty: there is nothing to look at")
    logits, acts = _forward(model, ids)
    return model, tokenizer, ids, logits, acts


def _forward(model, ids):
    """Logits (T, V) and the record; NaN and infinity are not drawn."""
    import numpy as np

    with np.errstate(all="ignore"):
        logits, acts = model.forward(ids, keep="everything")
    _check_finite("the model returned", logits)
    return logits[0], acts


def _check_finite(what, array):
    import numpy as np

    if not np.isfinite(array).all():
        raise FloatingPointError(f"{what} NaN or infinity: its weights are damaged")


def _check_layer(model, layer, head=0):
    config = model.config
    if not (0 <= layer < config.n_layer and 0 <= head < config.n_head):
        sizes = f"{config.n_layer} layers of {config.n_head} heads, both counted from 0"
        raise ValueError(f"there is no layer {layer}, head {head}: the model has {sizes}")


def _plot_attention(args, plot):
    model, tokenizer, ids, _, acts = _read_text(args)
    _check_layer(model, args.layer, args.head)
    size = 2.5 + 0.16 * min(len(ids), plot.READABLE)
    fig, (ax,) = plot.figure(width=size + 1, height=size)
    pattern = acts[f"h.{args.layer}.attn.pattern"][0, args.head]
    plot.attention(ax, pattern, plot.token_labels(tokenizer, ids))
    ax.set_title(f"layer {args.layer}, head {args.head}")
    return fig


def _plot_heads(args, plot):
    model, tokenizer, ids, _, acts = _read_text(args)
    _check_layer(model, args.layer)
    n = model.config.n_head
    columns = math.ceil(math.sqrt(n))
    size = 1.3 + 0.13 * min(len(ids), plot.READABLE // 2)
    fig, axes = plot.figure(columns, size, size, rows=-(-n // columns))
    plot.heads(axes, acts[f"h.{args.layer}.attn.pattern"][0], plot.token_labels(tokenizer, ids))
    fig.suptitle(f"the {n} heads of layer {args.layer}")
    return fig


def _plot_next(args, plot):
    from numpygpt.look import analyze

    if args.top > 100:
        raise ValueError(f"a picture of {args.top} bars is not readable: --top goes up to 100")
    _, tokenizer, ids, logits, _ = _read_text(args)
    best, p = analyze.likeliest(logits[-1], args.top)
    fig, (ax,) = plot.figure(width=6, height=1.2 + 0.25 * len(best))
    plot.next_tokens(ax, p, plot.token_labels(tokenizer, best))
    ax.set_title(f"after  {_end(plot, tokenizer, ids)}", parse_math=False)
    return fig


def _end(plot, tokenizer, ids, longest=40):
    """The last few tokens, as a title shows them."""
    text = "".join(plot.token_labels(tokenizer, ids))
    return text if len(text) <= longest else "…" + text[-longest:]


def _plot_lens(args, plot):
    import numpy as np

    from numpygpt.look import analyze

    model, tokenizer, ids, _, acts = _read_text(args)
    lens = analyze.logit_lens(model, acts)
    best, p = analyze.likeliest(np.stack([logits[0] for logits in lens.values()]))
    words = [plot.token_labels(tokenizer, row) for row in best[..., 0]]
    rows = ["embeddings", *(f"layer {i}" for i in range(model.config.n_layer))]
    if len(ids) > 40:
        raise ValueError(f"{len(ids)} tokens are too many to be readable: give at most 40")
    fig, (ax,) = plot.figure(width=2.5 + 0.62 * len(ids), height=1.8 + 0.3 * len(rows))
    plot.lens(ax, p[..., 0], words, rows, plot.token_labels(tokenizer, ids))
    ax.set_title("what would come next, if the model ended after this layer")
    return fig


def _plot_logprobs(args, plot):
    from numpygpt.look import analyze

    model, tokenizer, ids, logits, _ = _read_text(args)
    if tokenizer.eot is not None and ids[0] != tokenizer.eot and len(ids) < model.config.n_ctx:
        ids = [tokenizer.eot, *ids]  # so that the first token is expected from something, too
        logits, _ = _forward(model, ids)
    if len(ids) < 2:
        raise ValueError("a single token is not predicted from anything: give a longer text")
    nats, entropy = analyze.surprise(logits, ids)
    fig, (ax,) = plot.figure(width=3.5 + 0.16 * min(len(ids), plot.READABLE), height=4)
    plot.logprobs(ax, nats, plot.token_labels(tokenizer, ids[1:]), entropy)
    return fig


def _plot_attribution(args, plot):
    from numpygpt.look import analyze

    model, tokenizer, ids, logits, acts = _read_text(args)
    target = _token(tokenizer, args.target, "--target")
    if target is None:
        target = int(logits[-1].argmax())
    against = _token(tokenizer, args.against, "--against")
    shares = analyze.logit_attribution(model, acts, target, against)
    shares = {name: share[0, -1] for name, share in shares.items()}
    names, sums, by_head = _by_layer(model.config, shares)
    fig, (left, right) = plot.figure(
        2,
        width=max(5.5, 1.5 + 0.42 * model.config.n_head),
        height=max(3.5, 1.2 + 0.22 * len(names)),
    )
    plot.attribution(left, names, sums)
    plot.head_scores(right, by_head, "share")
    left.set_title("what each part adds", fontsize=10)
    right.set_title("of attention, what each head adds", fontsize=10)
    labels = plot.token_labels(tokenizer, [target] if against is None else [target, against])
    what = f"logit of {labels[0]}" + ("" if against is None else f" less that of {labels[1]}")
    fig.suptitle(f"{what}  after  {_end(plot, tokenizer, ids)}", parse_math=False)
    return fig


def _by_layer(config, shares):
    """Names and sums of the rows of the left picture, and the shares of heads (L, H)."""
    import numpy as np

    by_head = [
        [shares[f"h.{i}.attn.{head}"] for head in range(config.n_head)]
        for i in range(config.n_layer)
    ]
    rows = {"token": shares["wte"], "position": shares["wpe"]}
    for i in range(config.n_layer):
        rows[f"attention {i}"] = sum(by_head[i]) + shares[f"h.{i}.attn.c_proj.bias"]
        rows[f"MLP {i}"] = shares[f"h.{i}.mlp"]
    rows["bias of ln_f"] = shares["ln_f.bias"]
    return list(rows), list(rows.values()), np.array(by_head)


def _token(tokenizer, text, option):
    if text is None:
        return None
    ids = tokenizer.encode(text, allowed_special=tokenizer.special)
    if len(ids) != 1:
        parts = " + ".join(repr(tokenizer.decode([i])) for i in ids)
        raise ValueError(
            f"{option} must be one token, but {text!r} is {parts or 'none'}: most words begin "
            "with their space"
        )
    return ids[0]


# ---- of a model ---------------------------------------------------------------------------------


def _plot_induction(args, plot):
    import numpy as np

    from numpygpt.look import analyze

    model, tokenizer = load(args.model)
    length = args.length or min(50, (model.config.n_ctx - 1) // 2)
    rng = np.random.default_rng(args.seed)
    scores, nats = analyze.induction(model, length, rng=rng, first=tokenizer.eot)
    config = model.config
    fig, (left, right) = plot.figure(2, width=max(5, 1.5 + 0.4 * config.n_head), height=4)
    plot.head_scores(left, scores, "weight on what followed this token before", limit=1)
    left.set_title("induction score of each head")
    plot.repetition(right, nats)
    right.set_title(f"{length} random tokens, twice")
    return fig


def _plot_embedding(args, plot):
    from numpygpt.look import analyze

    model, tokenizer = load(args.model)
    ids = _words(args, tokenizer)
    for name in ("wte.weight", "wpe.weight"):
        _check_finite(f"the model has in {name}", model.params[name])
    fig, (left, right) = plot.figure(2, width=6.5, height=5.5)
    points, explained = analyze.principal(model.params["wte.weight"][ids])
    plot.embedding(left, points, plot.token_labels(tokenizer, ids), explained)
    plot.similarity(right, analyze.cosines(model.params["wpe.weight"]))
    return fig


def _words(args, tokenizer):
    """The different tokens of the text; without one, the 70 words that were learned first."""
    if args.input is None:
        ids = (i for i, token in enumerate(tokenizer.tokens) if _is_word(tokenizer, token))
        ids = [i for i, _ in zip(ids, range(70), strict=False)]
    else:
        text = text_or_stdin(args.input, "a text")
        ids = list(dict.fromkeys(tokenizer.encode(text, allowed_special=tokenizer.special)))
    if len(ids) < 3:
        raise ValueError(f"{len(ids)} different tokens span no plane: give at least three")
    return ids


def _is_word(tokenizer, token):
    return len(token) > 3 and token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()


def _plot_cost(args, plot):
    from tqdm import tqdm

    from numpygpt.check import bench

    model = _random_model(bench.shape(args.shape)) if args.shape else load(args.model)[0]
    panels = bench.cost_curves(model, bar=lambda jobs: tqdm(jobs, disable=None, leave=False))
    fig, axes = plot.figure(len(panels), width=5, height=4.4)
    for ax, panel in zip(axes, panels, strict=True):
        plot.cost(ax, panel.lengths, panel.measured, panel.predicted, panel.unit, panel.crossing)
        ax.set_title(panel.title)
    c, size = model.config, sum(p.size for p in model.params.values())
    fig.suptitle(
        f"What length costs: {args.shape or args.model}, {size / 1e6:,.1f} million parameters, "
        f"{c.n_layer} layers of width d = {c.n_embd:,}"
    )
    return fig


def _random_model(config):
    import numpy as np

    from numpygpt.model import GPT2, init

    return GPT2(config, init(config, np.random.default_rng(0)))


def _plot_context(args, plot):
    from tqdm import tqdm

    from numpygpt import data, evaluate
    from numpygpt.files import text

    if args.input is None:
        raise ValueError("name a file of text to measure on, best one that was not trained on")
    content = text.prose(args.input)
    model, tokenizer = load(args.model)
    ids = data.encode_documents(tokenizer, data.documents_of(content, tokenizer))
    n_ctx = model.config.n_ctx
    ids = ids[: args.windows * n_ctx + 1]
    by_position = evaluate.position_nats(model, ids)
    strides = [n for n in (n_ctx, n_ctx // 2, n_ctx // 4) if n]
    bar = tqdm(strides, disable=None, leave=False)
    each = [evaluate.stream_nats(model, ids, stride) for stride in bar]
    for stride, (nats, count) in zip(strides, each, strict=True):
        say(
            f"stride {stride:>5,}: {nats / count:.4f} nats per token, {n_ctx / stride:g} x the work"
        )
    fig, axes = plot.figure(2, width=5.5, height=4)
    plot.context(axes, by_position, strides, [nats / count for nats, count in each])
    return fig


PICTURES = {
    "next": _plot_next,
    "logprobs": _plot_logprobs,
    "attention": _plot_attention,
    "heads": _plot_heads,
    "lens": _plot_lens,
    "attribution": _plot_attribution,
    "induction": _plot_induction,
    "embedding": _plot_embedding,
    "context": _plot_context,
    "loss": _plot_loss,
    "cost": _plot_cost,
}
TEXT = ("next", "logprobs", "attention", "heads", "lens", "attribution")
OPTIONS = {  # of which pictures they are, and their defaults
    "input": ((*TEXT, "embedding", "context", "loss"), None),
    "layer": (("attention", "heads"), 0),
    "head": (("attention",), 0),
    "top": (("next",), 15),
    "target": (("attribution",), None),
    "against": (("attribution",), None),
    "length": (("induction",), None),
    "seed": (("induction",), 0),
    "tokens_per_step": (("loss",), None),
    "windows": (("context",), 30),
    "shape": (("cost",), None),
}
WHAT = """of a text: next, the likeliest next tokens; logprobs, how unexpected each token was;
attention and heads, where one head or all of a layer look; lens, what each layer would say;
attribution, what adds to a logit. Of a model: induction, which heads continue what was seen
before; embedding, how tokens and positions lie; cost, time and memory by length; context, loss by
how much is seen. Of a run: loss"""


def add(command):
    """Their options."""
    p = command(plot_command)
    p.add_argument("what", choices=list(PICTURES), metavar="WHAT", help=WHAT)
    p.add_argument(
        "input", nargs="?", help="a text; context: a file of text; loss: a run's folder or log"
    )
    p.add_argument("-o", "--output", help="picture, .png or .svg (default: WHAT.png)")
    p.add_argument("--model", **MODEL)
    p.add_argument("--layer", type=int, help="of attention and heads (default: 0)")
    p.add_argument("--head", type=int, help="of attention (default: 0)")
    p.add_argument("--top", type=positive, help="how many tokens (next; default: 15)")
    p.add_argument("--target", help="token whose logit is looked at (attribution; else the best)")
    p.add_argument("--against", help="token whose logit is taken off it (attribution)")
    p.add_argument("--length", type=positive, help="of what is repeated (induction; default: 50)")
    p.add_argument("--seed", type=int, help="of the random tokens (induction; default: 0)")
    p.add_argument("--tokens-per-step", type=positive, help="where the log lacks them (loss)")
    p.add_argument("--windows", type=positive, help="of n_ctx tokens (context; default: 30)")
    p.add_argument("--shape", help="random weights of this size, as in bench (cost)")
