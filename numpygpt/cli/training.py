"""train, finetune: making a model."""

import dataclasses
import signal
import sys
import time
from pathlib import Path

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say


def train_command(args):
    """Train on a text, in which <|endoftext|> ends each document: a new model, or --model.

    What is not asked for is chosen for the text and this machine, and said.
    """
    from numpygpt.files import plan, text

    sizes = _given(args, ["n_vocab", "n_ctx", "n_embd", "n_head", "n_layer"])
    out = _out(args, args.text, "model")
    planned = plan.pretraining(
        text.prose(args.text),
        out,
        base=(*load(args.model), args.model) if args.model else None,
        validation=text.prose(args.validation) if args.validation else None,
        share=args.hold_out,
        sizes=sizes,
        settings=_settings(args),
        half=args.half,
        say=say,
    )
    return _run(args, planned)


def finetune_command(args):
    """Go on training a model on (x, y) pairs, with the loss on y alone."""
    from numpygpt.files import plan

    pairs = _pairs(args.pairs)
    planned = plan.finetuning(
        pairs,
        _out(args, args.pairs, "tuned"),
        (*load(args.model), args.model),
        validation=_pairs(args.validation) if args.validation else None,
        share=args.hold_out,
        settings=_settings(args),
        rank=args.lora,
        alpha=args.lora_alpha,
        matrices=tuple(args.lora_matrices.split(",")) if args.lora_matrices else None,
        apart=args.lora_apart,
        half=args.half,
        say=say,
    )
    return _run(args, planned)


def _pairs(path):
    from numpygpt.files import text

    return [(pair["x"], pair["y"]) for pair in text.json_lines(path, text.PAIR)]


def _out(args, source, what):
    """The folder asked for, or one in the current folder that is named after the file."""
    return Path(args.out or f"{Path(source).stem}-{what}")


def _given(args, names):
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _settings(args):
    from numpygpt import train

    return _given(args, [field.name for field in dataclasses.fields(train.Settings)])


def _run(args, planned):
    """Train with a bar on a terminal and lines elsewhere; Ctrl-C saves the last step."""
    from numpygpt.files import run

    if not args.out:
        say(f"the model goes to {planned.folder}")
    pressed = _ctrl_c_ends_the_step()
    steps = run.resumable(
        planned,
        args.evaluate_every or max(1, planned.settings.steps // 10),
        args.save_every,
        args.patience,
    )
    with _Reporter(planned.settings.steps) as reporter:
        for progress in steps:
            reporter.show(progress)
            if pressed and not progress.ended:
                steps.close()  # which saves
                reporter.close()
                say(
                    f"stopped and saved at step {progress.number}: the same command goes on from "
                    "there"
                )
                return 130
    kept = f"the model of step {progress.number}"
    if progress.best:
        kept = "the model of step {:,}, which has the lowest validation loss ({:.4f}),"
        kept = kept.format(*progress.best)
    if progress.ended == "patience":
        say(f"ended at step {progress.number}: {args.patience} measurements without a lower loss")
    elif progress.step is None:
        say(f"the run is finished: --steps with more than {progress.steps:,} goes on")
    say(f"saved {kept} in {planned.folder}")
    return 0


class _Reporter:
    """Shows Progress: on a terminal a bar, else a line every 10 steps, and every 10 seconds."""

    def __init__(self, steps):
        from tqdm import tqdm

        self.bar = tqdm(total=steps, disable=None, unit="step")
        self.shown_at, self.shown = time.monotonic(), 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.bar.close()

    def show(self, progress):
        if progress.step is None:
            self.bar.update(progress.number - self.bar.n)
            if progress.number:
                self._line(f"going on from step {progress.number}")
            self.shown = progress.number
        elif self.bar.disable:
            late = time.monotonic() - self.shown_at >= 10
            if late or progress.measured or progress.ended or progress.number >= self.shown + 10:
                self._line(step_line(progress))
                self.shown_at, self.shown = time.monotonic(), progress.number
        else:
            speed = f"{progress.step.tokens_per_second:.0f} tokens/s"
            self.bar.set_postfix(loss=f"{progress.step.loss:.4f}", rate=speed, refresh=False)
            self.bar.update(progress.number - self.bar.n)
        if progress.measured:
            self._measured(progress)

    def _measured(self, progress):
        text = f"step {progress.number}: validation {progress.measured['validation']:.4f}"
        text += " nats per token"
        for name in ("exact", "ended"):
            if name in progress.measured:
                text += f", {name} {progress.measured[name]:.1%}"
        best = progress.best and progress.best[0] == progress.number
        self._line(text + (" (the lowest)" if best else ""))
        for line in progress.measured["sample"].splitlines():
            # an untrained model writes any bytes, among them what a terminal takes for commands
            self._line("    " + "".join(c if c.isprintable() else "\ufffd" for c in line))

    def _line(self, text):
        with self.bar.external_write_mode(sys.stderr):
            say(text)


def step_line(progress) -> str:
    """One line of a log: step, loss, validation, learning rate, tokens/s, time left."""
    from numpygpt.files import plan

    step = progress.step
    parts = [f"step {progress.number:,} of {progress.steps:,}", f"loss {step.loss:.4f}"]
    if progress.measured:
        parts.append(f"validation {progress.measured['validation']:.4f}")
    parts += [f"lr {step.lr:.2e}", f"{step.tokens_per_second:,.0f} tokens/s"]
    return "  ".join([*parts, f"{plan.duration(progress.seconds_left)} left"])


def _ctrl_c_ends_the_step():
    """A list that Ctrl-C makes non-empty; a second Ctrl-C interrupts at once, as always.

    The optimizer changes parameters in place: between two steps they are all of the same age.
    """
    pressed = []

    def handler(*_):
        pressed.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, handler)
    return pressed


def _training_options(p, batch, lr):
    p.add_argument("--out", help="folder of the new model; holds an unfinished run as well")
    p.add_argument("--validation", metavar="FILE", help="to measure on, instead of a part held out")
    p.add_argument(
        "--steps", type=positive, help="may be raised later (default: said at the start)"
    )
    p.add_argument("--batch", type=positive, help=f"rows (default: {batch})")
    p.add_argument("--lr", type=float, help=f"peak (default: {lr})")
    p.add_argument("--floor", type=float, help="learning rate at the end (default: 0)")
    p.add_argument("--warmup", type=int, help="steps (default: a tenth of them, at most 100)")
    p.add_argument("--weight-decay", type=float, help="(default: 0.1)")
    p.add_argument("--beta1", type=float, help="(default: 0.9)")
    p.add_argument("--beta2", type=float, help="(default: 0.99)")
    p.add_argument("--clip", type=float, help="largest global gradient norm (default: 1.0)")
    p.add_argument("--seed", type=int, help="(default: 0)")
    p.add_argument("--save-every", type=positive, default=200, help="steps")
    p.add_argument("--evaluate-every", type=positive, help="steps (default: a tenth of them)")
    p.add_argument(
        "--patience", type=positive, help="end after this many measurements without a lower loss"
    )
    p.add_argument("--half", action="store_true", help="write the model as float16")


def add(command):
    """Their options."""
    p = command(train_command)
    p.add_argument("text", help="file of text; <|endoftext|> ends a document")
    p.add_argument("--model", help="go on from this model, with its vocabulary and sizes")
    p.add_argument("--hold-out", type=float, default=0.05, help="share of the text to measure on")
    for name in ("vocab", "ctx", "embd", "head", "layer"):
        p.add_argument(f"--n-{name}", type=positive, help="(default: by the size of the text)")
    _training_options(
        p, batch="2,048 tokens / n_ctx, fewer if the text is short", lr="1e-3, with --model 3e-4"
    )

    p = command(finetune_command)
    p.add_argument("pairs", help='file of lines {"x": "...", "y": "..."}')
    p.add_argument("--model", **MODEL)
    p.add_argument("--hold-out", type=float, default=0.1, help="share of the pairs to measure on")
    p.add_argument("--lora", type=positive, metavar="RANK", help="learn A and B of this rank alone")
    p.add_argument("--lora-alpha", type=float, help="scale of A B is alpha / rank (default: 16)")
    p.add_argument(
        "--lora-apart", action="store_true", help="write A and B alone, not merged into the model"
    )
    p.add_argument(
        "--lora-matrices", help="which, with commas between (default: attn.c_attn)", metavar="NAMES"
    )
    _training_options(p, batch="16, or all pairs if they are fewer", lr="5e-4, with --lora 3e-3")
