"""Teach a model a small skill on stories, with all its parameters and with LoRA, and say what the
skill cost.

    python notebooks/scripts/skill.py pairs past 4000 > pairs.jsonl  # (x, y) pairs, one a line
    python notebooks/scripts/skill.py teach past --text stories.txt  # before, after, bits per byte

Two skills: `past` puts a sentence into the past (Tom sees a dog -> Tom saw a dog), `who` names who
did what (Tom saw a dog. Mia fed a cat. Who fed a cat? -> Mia). Of both, no pair that is measured
has been trained on. `numpygpt finetune pairs.jsonl` does the same from a shell.

Of 200 held-out pairs of `past` the bundled model answers none before; with all its parameters
98 % exactly after 15 steps (13 seconds of one core, measuring included) and 100 % after 30; with
LoRA of rank 16 99.5 % after 30 steps (19 seconds) and 100 % after 45. It is not free: the stories
held out cost 0.655 bits per byte before, 1.264 after 60 steps of all parameters and 1.021 after 60
of LoRA. `who` is not learned: the model soon names one of the people, whichever; the
right one in 46 % after 400 and after 1600 steps of all parameters (473 seconds of one core), while
the stories come to cost 3.432 bits per byte. 26,000 pairs in place of 4,000 changed nothing when
that was tried, with weights that were trained for less time: 39.5 % after 1200 steps.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

import numpygpt
from numpygpt import data, evaluate
from numpygpt.files import plan, run
from numpygpt.lora import MATRICES

NAMES = (
    "Tom Lily Ben Mia Sam Anna Max Sue Tim Lucy Jack Sara Leo Amy Bob Kitty Spot Jane Mark Ella"
).split()
ANIMALS = "dog cat bird rabbit bear frog duck fox mouse pony".split()
LOOKS = "big small red blue old new happy sad little funny".split()
THINGS = "ball hat box doll kite cake car book drum leaf shell flower toy boat bell".split()
PLACES = (
    "in the park|at home|near the lake|by the tree|under the bed|in the garden|at the beach|"
    "behind the house|on the hill|in the kitchen"
).split("|")
# present, past: what one does with a thing, and what one does somewhere
DOES = {
    "sees": "saw", "finds": "found", "takes": "took", "loses": "lost", "makes": "made",
    "buys": "bought", "gets": "got", "brings": "brought", "hides": "hid", "holds": "held",
    "draws": "drew", "throws": "threw", "gives away": "gave away", "wants": "wanted",
    "likes": "liked", "opens": "opened", "drops": "dropped", "cleans": "cleaned",
    "picks up": "picked up", "carries": "carried", "paints": "painted", "breaks": "broke",
}  # fmt: skip
GOES = {
    "runs": "ran", "sings": "sang", "sleeps": "slept", "sits": "sat", "plays": "played",
    "walks": "walked", "swims": "swam", "cries": "cried", "dances": "danced", "eats": "ate",
    "hops": "hopped", "stands": "stood", "falls": "fell", "smiles": "smiled", "waits": "waited",
}  # fmt: skip


def past(rng) -> tuple[str, str]:
    """A sentence, and the same sentence in the past."""
    subject = rng.choice(NAMES)
    if rng.random() < 0.3:
        subject = f"The {rng.choice(LOOKS)} {rng.choice(ANIMALS)}"
    place = f" {rng.choice(PLACES)}" if rng.random() < 0.6 else ""
    if rng.random() < 0.6:
        verb = rng.choice(list(DOES))
        then, rest = DOES[verb], f" the {rng.choice(LOOKS)} {rng.choice(THINGS)}{place}."
    else:
        verb = rng.choice(list(GOES))
        then, rest = GOES[verb], f"{place}."
    return f"Today: {subject} {verb}{rest}\nYesterday:", f" {subject} {then}{rest}"


def who(rng) -> tuple[str, str]:
    """Two or three people who did something each, a question for one of them, and the name."""
    count = 2 + int(rng.random() < 0.5)
    people = rng.choice(NAMES, count, replace=False)
    deeds = [
        f"{verb} the {look} {thing}"
        for verb, look, thing in zip(
            rng.choice(list(DOES.values()), count, replace=False),
            rng.choice(LOOKS, count),
            rng.choice(THINGS, count, replace=False),
            strict=True,
        )
    ]
    asked = rng.integers(count)
    story = " ".join(f"{name} {deed}." for name, deed in zip(people, deeds, strict=True))
    return f"{story}\nWho {deeds[asked]}?", f" {people[asked]}"


SKILLS = {"past": past, "who": who}


def make_pairs(skill: str, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """So many pairs, no two of the same x."""
    rng = np.random.default_rng(seed)
    pairs = {}
    while len(pairs) < count:
        x, y = SKILLS[skill](rng)
        pairs[x] = y
    return list(pairs.items())


def teach(skill, name, text, count, steps, rank, folder):
    """Fine-tune on pairs of the skill; print how well the model does it before and after."""
    model, tokenizer = numpygpt.load(name)
    kept, held_out = data.hold_out_pairs(make_pairs(skill, count), most=200)
    planned = plan.finetuning(
        kept,
        folder,
        (model, tokenizer, name),
        validation=held_out,
        settings={"steps": steps},
        rank=rank,
        matrices=MATRICES if rank else None,
    )
    before = bits_per_byte(model, tokenizer, text)
    start, cpu = time.perf_counter(), time.process_time()
    for progress in run.resumable(planned, evaluate_every=max(1, steps // 4)):
        if progress.measured:
            exact, ended = progress.measured["exact"], progress.measured["ended"]
            print(
                f"{time.perf_counter() - start:6.0f} s ({time.process_time() - cpu:.0f} s of one "
                f"core)  step {progress.number:>5}  "
                f"loss on y {progress.measured['validation']:.4f}  exact {exact:.1%}  "
                f"ended {ended:.1%}  {progress.measured['sample']!r}",
                flush=True,
            )
    taught, _ = numpygpt.load(folder)
    after = bits_per_byte(taught, tokenizer, text)
    print(f"bits per byte of the text: {before} before, {after} after", flush=True)


def bits_per_byte(model, tokenizer, text):
    """Of a text, as `numpygpt evaluate` measures it; None without one."""
    if text is None:
        return None
    documents = data.documents(text)
    ids = data.encode_documents(tokenizer, documents)
    nats, _ = evaluate.stream_nats(model, ids)
    size = sum(len(document.encode("utf-8")) for document in documents)
    return round(evaluate.bits_per_byte(nats, size), 4)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["pairs", "teach"])
    parser.add_argument("skill", choices=list(SKILLS))
    parser.add_argument("count", type=int, nargs="?", default=4000, help="pairs")
    parser.add_argument("--model", default="stories")
    parser.add_argument("--text", help="file to measure bits per byte on, before and after")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--only", choices=["full", "lora"])
    args = parser.parse_args()
    if args.what == "pairs":
        for x, y in make_pairs(args.skill, args.count):
            print(json.dumps({"x": x, "y": y}))
        return
    text = Path(args.text).read_text(encoding="utf-8") if args.text else None
    for kind, rank in (("full", None), ("lora", args.rank)):
        if args.only in (None, kind):
            print(f"{args.skill}, {kind}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                teach(args.skill, args.model, text, args.count, args.steps, rank, folder)


if __name__ == "__main__":
    main()
