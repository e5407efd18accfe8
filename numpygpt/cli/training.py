"""train, finetune, evaluate: making a model, and measuring how good it is."""

import dataclasses
import json
import math
import signal
import sys
from pathlib import Path

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say


def train_command(args):
    """Pre-train a GPT-2 on a text, in which <|endoftext|> ends each document."""
    import numpy as np

    from numpygpt import data, model, train
    from numpygpt.files import run, text

    settings = _settings(args, train.Settings)
    config = model.Config(args.n_vocab, args.n_ctx, args.n_embd, args.n_head, args.n_layer)
    whole = text.read(args.text)
    held_out = data.documents(text.read(args.validation)) if args.validation else []
    if args.validation and not held_out:
        raise ValueError(f"{args.validation} holds no text")
    out = _new_folder(args.out)
    tokenizer = _vocabulary(out, whole, args.n_vocab)
    gpt = model.GPT2(config, model.init(config, np.random.default_rng(args.seed)))
    ids = data.encode_documents(tokenizer, data.documents(whole))
    batches = data.stream(ids, args.batch, args.n_ctx, np.random.default_rng([args.seed, 1]))
    say(f"{len(ids):,} tokens, {sum(p.size for p in gpt.params.values()):,} parameters")
    validation = data.encode_documents(tokenizer, held_out) if held_out else None
    return _run(args, gpt, tokenizer, batches, settings, run.digest(ids), validation)


def _vocabulary(out, text, n_vocab):
    """The vocabulary of an unfinished run, or a new one learned from the text."""
    from numpygpt.bpe import Tokenizer

    if (out / "merges.txt").exists():  # the second of its two files
        tokenizer = Tokenizer.read(out)
        if tokenizer.n_vocab != n_vocab:
            raise ValueError(
                f"{out} has a vocabulary of {tokenizer.n_vocab} tokens, not of {n_vocab}: repeat "
                "--n-vocab, or train into another folder"
            )
        return tokenizer
    say(f"learning a vocabulary of {n_vocab} tokens")
    tokenizer = Tokenizer.train(text, n_vocab)
    tokenizer.write(out)
    return tokenizer


def finetune_command(args):
    """Go on training a model on (x, y) pairs, with the loss on y alone."""
    import numpy as np

    from numpygpt import data, train
    from numpygpt.files import run, text

    settings = _settings(args, train.Settings)
    pairs = text.json_lines(args.pairs, text.PAIR)
    _new_folder(args.out)
    model, tokenizer = load(args.model)
    batches = data.pair_batches(
        [(pair["x"], pair["y"]) for pair in pairs],
        tokenizer,
        args.batch,
        model.config.n_ctx,
        np.random.default_rng([args.seed, 1]),
    )
    return _run(args, model, tokenizer, batches, settings, run.digest(json.dumps(pairs)), None)


def _new_folder(path):
    from numpygpt.files import checkpoint

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.check_target(folder)
    return folder


def _settings(args, settings):
    return settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(settings)})


def _run(args, model, tokenizer, batches, settings, text, validation):
    """Train, drawing a bar, keeping a log and saving; the same command goes on where it stopped."""
    from tqdm import tqdm

    from numpygpt import optim, train
    from numpygpt.files import checkpoint, run

    out = Path(args.out)
    state = optim.adam_state(model.params)
    saved = out / "training.safetensors"
    if saved.exists():
        state = run.load_run(saved, model, settings, text)
        say(f"going on from step {state.step}")
    stop = _ctrl_c_ends_the_step()
    steps = train.train(model, train.skip(batches, state.step), settings, state)
    bar = tqdm(steps, total=settings.steps, initial=state.step, disable=None, unit="step")
    with run.open_log(out / "training.jsonl", state.step) as log:
        for step in bar:
            row, last = dataclasses.asdict(step), step.number == settings.steps
            bar.set_postfix(loss=f"{step.loss:.4f}", rate=f"{step.tokens_per_second:.0f} tokens/s")
            if validation is not None and (last or step.number % args.evaluate_every == 0):
                row["validation"] = _validate(model, validation, step.number, bar)
            log.write(json.dumps(row) + "\n")
            if last or stop or step.number % args.save_every == 0:
                log.flush()
                run.save_run(saved, model, state, settings, text)
            if stop:
                bar.close()
                say(f"stopped and saved at step {step.number}: the same command goes on from there")
                return 130
    checkpoint.save(model, tokenizer, out, "float16" if args.half else None)
    say(f"saved the model in {out}")
    return 0


def _validate(model, ids, number, bar):
    """Nats per token of the first 2**15 validation tokens, said on stderr."""
    from numpygpt import evaluate

    nats, count = evaluate.stream_nats(model, ids[: 2**15])
    with bar.external_write_mode(sys.stderr):
        say(f"step {number}: validation {nats / count:.4f} nats per token ({count:,} tokens)")
    return nats / count


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


def evaluate_command(args):
    """Measure a model on a file: perplexity of a text, LAMBADA or HellaSwag."""
    from tqdm import tqdm

    from numpygpt import data, evaluate
    from numpygpt.files import text

    if args.task == "perplexity":
        whole = text.read(args.file)
    else:
        fields = {"lambada": text.LAMBADA, "hellaswag": text.HELLASWAG}[args.task]
        items = text.json_lines(args.file, fields)[: args.limit]
    model, tokenizer = load(args.model)
    if args.task == "perplexity":
        documents = data.documents(whole)
        ids = data.encode_documents(tokenizer, documents)[: args.limit]
        nats, count = evaluate.stream_nats(model, ids, args.stride)
        results = {"tokens": count, "nats per token": nats / count}
        results["perplexity per token"] = math.exp(nats / count)
        if args.limit is None:
            size = sum(len(document.encode("utf-8")) for document in documents)
            results["bits per byte"] = evaluate.bits_per_byte(nats, size)
    else:
        bar = tqdm(items, disable=None, unit="item")
        if args.task == "lambada":
            results = evaluate.lambada(model, tokenizer, (item["text"] for item in bar))
        else:
            results = evaluate.hellaswag(model, tokenizer, bar)
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:<24}{value:>12,}" if isinstance(value, int) else f"{name:<24}{value:>12.4f}")


def _training_options(p, lr):
    p.add_argument("--out", required=True, help="folder of the new model; holds an unfinished run")
    p.add_argument("--steps", type=positive, default=1000)
    p.add_argument("--batch", type=positive, default=8)
    p.add_argument("--lr", type=float, default=lr, help="peak")
    p.add_argument("--floor", type=float, default=0.0, help="learning rate at the end")
    p.add_argument("--warmup", type=int, default=100, help="steps")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--clip", type=float, default=1.0, help="largest global gradient norm")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=positive, default=1, help="threads that share a batch")
    p.add_argument("--save-every", type=positive, default=200, help="steps")
    p.add_argument("--half", action="store_true", help="write the model as float16")


def add(command):
    """Their options."""
    p = command(train_command)
    p.add_argument("text", help="file of text; <|endoftext|> ends a document")
    p.add_argument("--validation", help="file of text to report the loss on")
    p.add_argument("--n-vocab", type=positive, default=4096)
    p.add_argument("--n-ctx", type=positive, default=256)
    p.add_argument("--n-embd", type=positive, default=256)
    p.add_argument("--n-head", type=positive, default=4)
    p.add_argument("--n-layer", type=positive, default=6)
    p.add_argument("--evaluate-every", type=positive, default=500)
    _training_options(p, lr=1e-3)

    p = command(finetune_command)
    p.add_argument("pairs", help='file of lines {"x": "...", "y": "..."}')
    p.add_argument("--model", **MODEL)
    _training_options(p, lr=1e-4)

    p = command(evaluate_command)
    p.add_argument("file", help='a text, or lines {"text": ...} or {"ctx": ..., "endings": ...}')
    p.add_argument("--model", **MODEL)
    p.add_argument("--task", default="perplexity", choices=["perplexity", "lambada", "hellaswag"])
    p.add_argument("--stride", type=int, help="of perplexity's windows (default: n_ctx)")
    p.add_argument("--limit", type=positive, help="only so many tokens or items")
    p.add_argument("--json", action="store_true", help="print one JSON object")
