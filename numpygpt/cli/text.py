"""generate, tokenize: text in and out."""

import itertools
import time

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, say, text_or_stdin


def generate_command(args):
    """Continue a prompt; the text goes to standard output as it is made."""
    import numpy as np

    import numpygpt

    # the newline that ends a line of input is the shell's, and would end a paragraph of the tale
    prompt = text_or_stdin(args.prompt, "a prompt").removesuffix("\n")
    model, tokenizer = load(args.model, also=["GPT1"])
    seed = np.random.SeedSequence().entropy % 2**32 if args.seed is None else args.seed
    end = [] if tokenizer.eot is None else [tokenizer.eot]
    steps = numpygpt.generate(
        model,
        tokenizer.encode(prompt, allowed_special=tokenizer.special) or end,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        num_return_sequences=args.num_return_sequences,
        stop=[*end, *args.stop],
        tokenizer=tokenizer,
        rng=np.random.default_rng(seed),
        at_end="slide" if args.slide else "stop",
    )
    size = sum(p.size for p in model.params.values())
    say(f"model {args.model}, {size:,} parameters, seed {seed}")
    rows = [[] for _ in range(args.num_return_sequences)]
    reasons = []
    start = time.perf_counter()
    first = plain_text(_first_row(steps, rows, reasons), tokenizer, args.stop)
    if len(rows) == 1:
        for piece in itertools.chain([prompt], first):
            print(piece, end="", flush=True)
        print()
    else:
        for _ in first:  # several texts at once cannot be streamed: they are printed one by one
            pass
        for number, ids in enumerate(rows, 1):
            text = "".join(plain_text(ids, tokenizer, args.stop))
            print(f"--- {number}\n{prompt}{text}\n", flush=True)
    seconds, count = time.perf_counter() - start, sum(map(len, rows))
    if "context" in reasons:
        say(f"stopped at the end of the context, {model.config.n_ctx} tokens")
    say(f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} tokens/s")


def _first_row(steps, rows, reasons):
    """The new ids of the first row as they come; all rows' ids are added to `rows`."""
    while True:
        try:
            step = next(steps)
        except StopIteration as ended:
            reasons += ended.value
            return
        for row, new in zip(rows, step, strict=True):
            row += new
        yield from step[0]


def plain_text(ids, tokenizer, stops):
    """Text of ids up to the first stop string, without special tokens; pieces as soon as certain.

    Held back are halves of a character and what may turn out to be the beginning of a stop string.
    """
    special = set(tokenizer.special.values())
    text = ""
    for piece in tokenizer.decode_stream(i for i in ids if i not in special):
        text += piece
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            yield text[: min(found)]
            text = ""
            for _ in ids:  # the row has ended, others may not have
                pass
            return
        held = max(
            (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )
        yield text[: len(text) - held]
        text = text[len(text) - held :]
    yield text


def tokenize_command(args):
    """Show the ids and tokens of a text."""
    text = text_or_stdin(args.text, "a text")
    tokenizer = _tokenizer(args.model)
    allowed = tokenizer.special if args.special else ()
    if args.show_work and not hasattr(tokenizer, "show_work"):
        raise ValueError(
            f"--show-work shows how bytes are merged, and {args.model} has no byte-level "
            "vocabulary: leave it out"
        )
    if args.show_work:
        for word in tokenizer.show_work(text, allowed):
            print(f"{word['text']!r}  bytes {word['bytes'].hex(' ')}")
            for merge in word["merges"]:
                print(
                    f"    merge {merge['rank']:>6}  {' + '.join(merge['pair'])}  at {merge['at']}"
                )
            print(
                "    ->",
                "  ".join(f"{i} {t}" for i, t in zip(word["ids"], word["tokens"], strict=True)),
            )
        return
    ids = tokenizer.encode(text, allowed)
    if args.ids:
        print(*ids)
        return
    for i in ids:
        print(f"{i:>6}  {tokenizer.tokens[i]}")
    say(f"{len(ids)} tokens, {len(text.encode('utf-8', 'replace'))} bytes, vocabulary {args.model}")


def _tokenizer(name):
    import numpygpt

    return numpygpt.Tokenizer.gpt2() if name == "gpt2" else load(name, also=["GPT1", "Bert"])[1]


def add(command):
    """Their options."""
    p = command(generate_command)
    p.add_argument("prompt", nargs="?", help="default: standard input")
    p.add_argument("--model", **MODEL)
    p.add_argument("--max-new-tokens", type=int, default=200, help="how long the text may become")
    p.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="below 1 plays safe, above 1 dares; 0 is greedy",
    )
    p.add_argument("--top-k", type=int, help="draw from the K likeliest tokens only")
    p.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        help="draw from the fewest tokens whose probabilities add up to P; 1 is all of them",
    )
    p.add_argument("--num-return-sequences", type=int, default=1, help="how many texts")
    p.add_argument("--seed", type=int, help="of the random draws; the same seed, the same text")
    p.add_argument("--slide", action="store_true", help="forget the oldest text when n_ctx is full")
    p.add_argument("--stop", action="append", default=[], help="end before this text; repeatable")

    p = command(tokenize_command)
    p.add_argument("text", nargs="?", help="default: standard input")
    p.add_argument("--model", default="gpt2", help="whose vocabulary")
    p.add_argument("--special", action="store_true", help="read <|endoftext|> as the special token")
    p.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    p.add_argument("--show-work", action="store_true", help="pre-tokens, bytes and every merge")
