"""The same things from a shell: each command one short function that calls one room."""

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


def train_command(args):
    from . import data, optim, train
    from .bpe import Tokenizer
    from .model import GPT2, Config, init

    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    texts = data.documents(Path(args.text).read_text(encoding="utf-8"))
    if (out / "vocab.json").exists():
        tokenizer = Tokenizer.read(out)
    else:
        _say(f"learning a vocabulary of {args.vocab} tokens")
        tokenizer = Tokenizer.train(f"\n{data.END_OF_TEXT}\n".join(texts), args.vocab)
        tokenizer.write(out)
    settings = train.Settings(
        args.steps, args.batch, args.n_ctx, args.lr, args.floor, args.warmup, args.weight_decay,
        args.beta1, args.beta2, args.clip, args.seed,
    )
    config = Config(tokenizer.n_vocab, args.n_ctx, args.n_embd, args.n_head, args.n_layer)
    model = GPT2(config, init(config, np.random.default_rng(settings.seed)))
    state = optim.adam_state(model.params)
    run = out / "training.safetensors"
    if run.exists():
        state = train.load_run(run, model, settings)
        _say(f"going on from step {state.step}")
    ids = data.encode_documents(tokenizer, texts)
    _say(f"{len(ids):,} tokens, {sum(p.size for p in model.params.values()):,} parameters")
    batches = data.stream(ids, settings.batch, settings.length, np.random.default_rng([settings.seed, 1]))
    batches = train.skip(batches, state.step)
    validation = None
    if args.validation:
        validation = data.encode_documents(
            tokenizer, data.documents(Path(args.validation).read_text(encoding="utf-8"))
        )
    log = out / "training.jsonl"
    stopped = []
    signal.signal(signal.SIGINT, lambda *_: stopped.append(True))
    steps = train.train(model, batches, settings, state, args.workers)
    for step in steps:
        if step.number % args.save_every == 0 or step.number == settings.steps or stopped:
            train.save_run(run, model, state, settings)
        row = dataclasses.asdict(step)
        if validation is not None and (step.number % args.evaluate_every == 0 or step.number == settings.steps):
            from . import evaluate

            part = validation[: 128 * args.n_ctx + 1]
            nats, count = evaluate.stream_nats(model, part)
            row["validation"] = nats / count
            _say(f"step {step.number} validation {nats / count:.4f}")
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if step.number % 10 == 0:
            _say(f"step {step.number}  loss {step.loss:.4f}  lr {step.lr:.2e}  norm {step.grad_norm:.2f}  {step.tokens_per_second:.0f} tok/s")
        if stopped:
            _say("stopped and saved")
            return 130


def _say(text):
    print(text, file=sys.stderr, flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(prog="numpygpt")
    commands = parser.add_subparsers(required=True)
    p = commands.add_parser("train")
    p.add_argument("text")
    p.add_argument("--validation")
    p.add_argument("--out", required=True)
    p.add_argument("--vocab", type=int, default=4096)
    p.add_argument("--n-ctx", type=int, default=256)
    p.add_argument("--n-embd", type=int, default=256)
    p.add_argument("--n-head", type=int, default=4)
    p.add_argument("--n-layer", type=int, default=6)
    p.add_argument("--steps", type=int, default=1000)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--floor", type=float, default=0.0)
    p.add_argument("--warmup", type=int, default=100)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--clip", type=float, default=1.0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=int, default=1)
    p.add_argument("--save-every", type=int, default=200)
    p.add_argument("--evaluate-every", type=int, default=500)
    p.set_defaults(run=train_command)
    args = parser.parse_args(argv)
    return args.run(args) or 0
