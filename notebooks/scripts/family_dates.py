"""Train the Transformer of 2017 to rewrite dates, "Tuesday, 3 March 1974" -> "1974-03-03".

    python notebooks/scripts/family_dates.py [--steps 700] [--seed 0]

Reads nothing. The months and days of the week are words, the order varies, and the year may have
two digits; so the decoder has to look at the right place of the source for every character. Half
of all dates from 1930 to 2029 are trained on, and never one of the other half, on which it ends.
"""

import argparse
import datetime
import os
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # products too small to be shared by threads

import numpy as np  # noqa: E402

from numpygpt import optim  # noqa: E402
from numpygpt.cli.shell import positive  # noqa: E402
from numpygpt.family import transformer  # noqa: E402
from numpygpt.model import Config  # noqa: E402

FORMATS = ("%A, %d %B %Y", "%d %b %Y", "%B %d, %Y", "%d.%m.%Y", "%m/%d/%Y", "%d %B '%y", "%Y%m%d")
CHARACTERS = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 ,./'-"))
START, END = len(CHARACTERS), len(CHARACTERS) + 1


def encode(text):
    return [CHARACTERS.index(c) for c in text]


def decode(ids):
    return "".join(CHARACTERS[i] for i in ids)


def pairs(days, rng):
    """(source, target) texts, each day written in one of the formats, in small letters."""
    names = rng.choice(FORMATS, len(days))
    return [(d.strftime(f).lower(), d.isoformat()) for d, f in zip(days, names, strict=True)]


def batches(days, size, rng):
    """Batches of random days without end."""
    while True:
        texts = pairs([days[i] for i in rng.integers(len(days), size=size)], rng)
        yield transformer.pair_batch([(encode(x), encode(y)) for x, y in texts], START, END)


def exact(model, texts):
    """How many of the targets greedy decoding writes without a mistake, and the mistakes."""
    source, real, *_ = transformer.pair_batch([(encode(x), []) for x, _ in texts], START, END)
    written = map(decode, transformer.greedy(model, source, START, END, 12, real))
    wrong = [(x, y, out) for (x, y), out in zip(texts, written, strict=True) if out != y]
    return len(texts) - len(wrong), wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=positive, default=700)
    parser.add_argument("--batch", type=positive, default=64)
    parser.add_argument("--warmup", type=positive, default=200)
    parser.add_argument("--unseen", type=positive, default=2000, help="dates to end on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    first = datetime.date(1930, 1, 1).toordinal()
    days = [datetime.date.fromordinal(first + i) for i in rng.permutation(36525)]
    seen, unseen = days[: len(days) // 2], days[len(days) // 2 :]
    config = Config(len(CHARACTERS) + 2, 32, 64, 4, 2)
    model = transformer.Transformer(config, transformer.init(config, rng))
    print(model)
    start = time.perf_counter()
    steps = transformer.train(model, batches(seen, args.batch, rng), args.steps, args.warmup)
    snapshots = []
    for number, loss in enumerate(steps, 1):
        if number == args.steps or (number > args.steps * 0.8 and number % 10 == 0):
            snapshots.append({name: p.copy() for name, p in model.params.items()})
        if number % 100 == 0:
            print(
                f"step {number:>5}  loss {loss:.4f}  {time.perf_counter() - start:5.1f} s",
                flush=True,
            )
    texts = pairs(unseen[: args.unseen], rng)
    last = exact(model, texts)[0]
    trained = time.perf_counter() - start
    model = transformer.Transformer(config, optim.average(*snapshots))
    right, wrong = exact(model, texts)
    total = time.perf_counter() - start
    for x, y, out in wrong[:5]:
        print(f"wrong: {x} -> {out}, should be {y}")
    text = texts[0][0]
    ids, score = transformer.beam(model, encode(text), START, END, 12)
    print(f"beams: {text} -> {decode(ids)}  (score {score:.3f})")
    print(f"{last} of {len(texts)} exact with the last step's parameters, before averaging")
    print(
        f"{right} of {len(texts)} unseen dates exact ({right / len(texts):.2%}); trained in "
        f"{trained:.1f} s, {total:.1f} s with the test, {time.process_time():.1f} s of them CPU"
    )


if __name__ == "__main__":
    main()
