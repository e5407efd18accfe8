"""generate, tokenize: text in and out."""

import time

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say, text_or_stdin

BATCH = 16  # prompts of a file that are continued at once


def generate_command(args):
    """Continue a prompt; the text goes to standard output as it is made."""
    from numpygpt import sample

    if args.logprobs is not None:
        sample.check_count("logprobs", args.logprobs, 0)
    prompts = _prompts(args)
    long_prompts = "slide" if args.slide else "keep_end" if args.keep_end else "error"
    if args.task:
        _task(args, prompts, long_prompts)
        return
    if args.dry_run:
        raise ValueError("--dry-run shows the prompt of a --task")
    if args.logprobs is not None and (args.slide or args.beams):
        raise ValueError("--logprobs does not go with --slide or --beams")
    if args.slide and args.beams:
        raise ValueError("--slide does not go with --beams: choose --keep-end, or leave it out")
    if args.max_new_tokens is None:
        args.max_new_tokens = 200
    model, tokenizer = load(args.model, also=["GPT1"])
    ids = _read(model, tokenizer, prompts, args.max_new_tokens, long_prompts)
    work = _beams if args.beams else _draw
    for text in work(args, model, tokenizer, prompts, ids, long_prompts):
        print(text, end="", flush=True)


def _read(model, tokenizer, prompts, max_new_tokens, long_prompts):
    """The ids of the prompts, as `completion.prompt_ids` reads them."""
    from numpygpt import completion

    whole = "slide" if long_prompts == "error" else long_prompts
    ids = completion.prompt_ids(model, tokenizer, prompts, max_new_tokens, whole)
    n_ctx = model.config.n_ctx
    for number, row in enumerate(ids, 1):
        if long_prompts == "error" and len(row) > n_ctx:
            raise ValueError(
                f"{_which(number, prompts)} has {len(row):,} tokens, but the model reads {n_ctx:,} "
                "tokens at most: shorten it, or choose --keep-end or --slide"
            )
    return ids


def _which(number, prompts):
    return f"prompt {number}" if len(prompts) > 1 else "the prompt"


def _say_what_runs(args, model, how):
    size = sum(p.size for p in model.params.values())
    say(f"model {args.model}, {size:,} parameters, {how}")


def _prompts(args):
    """Those of a file, one a line, or the one on the command line or on standard input."""
    if args.prompts is None:
        prompt = text_or_stdin(args.prompt, "a prompt")
        # the newline that ends a line of input is the shell's, and would end a paragraph
        return [prompt.removesuffix("\n") if args.prompt in (None, "-") else prompt]
    if args.prompt is not None:
        raise ValueError("give a prompt or --prompts FILE, not both")
    from numpygpt.files import text

    if args.prompts.endswith(".jsonl"):
        return [row["prompt"] for row in text.json_lines(args.prompts, {"prompt": text.string})]
    lines = text.prose(args.prompts).removesuffix("\n").split("\n")
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{args.prompts} has no prompts: write one a line")
    if len(prompts) < len(lines):
        say(f"{len(lines) - len(prompts):,} of {len(lines):,} lines are empty, and not continued")
    return prompts


def _seed(args):
    import numpy as np

    from numpygpt import sample

    if args.seed is None:
        return np.random.SeedSequence().entropy % 2**32
    sample.check_count("seed", args.seed, 0)
    return args.seed


def _say_what_is_not_read(model, tokenizer, prompts, ids, long_prompts):
    for number, (prompt, read) in enumerate(zip(prompts, ids, strict=True), 1):
        whole = len(tokenizer.encode(prompt, tokenizer.special))
        kept = min(len(read), model.config.n_ctx)
        if kept < whole:
            say(
                f"{_which(number, prompts)} has {whole:,} tokens: only its last {kept:,} are read "
                f"({long_prompts})"
            )


def _draw(args, model, tokenizer, prompts, ids, long_prompts):
    """What is to be printed, piece by piece: one text as it is made, several one by one."""
    import numpy as np

    from numpygpt import completion

    seed, copies = _seed(args), args.num_return_sequences
    rng, alone = np.random.default_rng(seed), len(prompts) == copies == 1
    seconds, count, reasons = 0.0, 0, []
    for first in range(0, len(prompts), BATCH):
        batch = prompts[first : first + BATCH]
        steps = completion.stream(
            model,
            tokenizer,
            batch,
            args.max_new_tokens,
            temperature=0.8 if args.temperature is None else args.temperature,
            top_k=args.top_k,
            top_p=0.95 if args.top_p is None else args.top_p,
            num_return_sequences=copies,
            stop=args.stop,
            rng=rng,
            repetition_penalty=args.repetition_penalty,
            long_prompts=long_prompts,
        )
        if first == 0:  # now that everything has been checked
            _say_what_runs(args, model, f"seed {seed}")
            _say_what_is_not_read(model, tokenizer, prompts, ids, long_prompts)
        texts, ended, start = [""] * len(batch) * copies, [], time.perf_counter()
        if alone:
            yield prompts[0]
        for pieces in _keeping_value(steps, ended):
            if alone:
                yield pieces[0]
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        seconds += time.perf_counter() - start
        if alone:
            yield "\n"
        for row, (text, end) in enumerate(zip(texts, ended, strict=True)):
            prompt = first + row // copies
            if not alone:
                yield f"--- {first * copies + row + 1}\n{prompts[prompt]}{text}\n\n"
            if args.logprobs is not None:
                yield from _logprob_lines(model, tokenizer, ids[prompt], end.ids, args.logprobs)
        count += sum(len(end.ids) for end in ended)
        reasons += [end.reason for end in ended]
    if "context" in reasons:
        say(f"stopped at the end of the context, {model.config.n_ctx} tokens")
    speed = f", {count / seconds:.0f} tokens/s" if seconds > 0 else ""  # a clock may stand still
    say(f"{count} tokens in {seconds:.2f} s{speed}")


def _keeping_value(steps, value):
    """The same steps; what the generator returns is added to the list `value`."""
    value += yield from steps


def _logprob_lines(model, tokenizer, prompt, ids, top):
    from numpygpt import completion

    yield "\n   log p  token             likeliest\n"
    for one in completion.logprobs(model, prompt, ids, top):
        others = "  ".join(f"{tokenizer.tokens[i]} {nats:.3f}" for i, nats in one.alternatives)
        yield f"{one.logprob:>8.3f}  {tokenizer.tokens[one.id]:<16}  {others}\n"


def _beams(args, model, tokenizer, prompts, ids, long_prompts):
    """What is to be printed of a beam search, prompt by prompt."""
    from numpygpt import completion

    for name in ("temperature", "top_k", "top_p", "seed"):
        if getattr(args, name) is not None:
            raise ValueError(f"beams draw nothing: leave out --{name.replace('_', '-')}")
    copies = args.num_return_sequences
    for first, prompt in enumerate(prompts):
        texts = completion.complete(
            model,
            tokenizer,
            prompt,
            args.max_new_tokens,
            num_return_sequences=copies,
            stop=args.stop,
            repetition_penalty=args.repetition_penalty,
            num_beams=args.beams,
            long_prompts=long_prompts,
        )
        if first == 0:  # now that everything has been checked
            _say_what_runs(args, model, f"{args.beams} beams")
            _say_what_is_not_read(model, tokenizer, prompts, ids, long_prompts)
        for number, text in enumerate(texts, first * copies + 1):
            alone = len(prompts) == copies == 1
            yield f"{prompt}{text}\n" if alone else f"--- {number}\n{prompt}{text}\n\n"


# What a task has settings of its own for, and what each option is where it is not given.
NOT_OF_A_TASK = {
    "max_new_tokens": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "beams": None,
    "stop": [],
    "logprobs": None,
}


def _task(args, prompts, long_prompts):
    """Print the answer to each prompt, or with --dry-run what the model would be asked."""
    from numpygpt import completion

    for name, default in NOT_OF_A_TASK.items():
        if getattr(args, name) != default:
            raise ValueError(
                f"a task has settings of its own, which --dry-run shows: leave out "
                f"--{name.replace('_', '-')}"
            )
    task = completion.TASKS[args.task]
    if args.dry_run:
        for prompt in prompts:
            print(task.prompt(prompt))
        say(", ".join(f"{name} {value!r}" for name, value in task.settings.items()))
        return
    model, tokenizer = load(args.model)
    seed, whole = _seed(args), [task.prompt(prompt) for prompt in prompts]
    ids = _read(model, tokenizer, whole, task.settings["max_new_tokens"], long_prompts)
    say(f"model {args.model}, {args.task}, seed {seed}")
    _say_what_is_not_read(model, tokenizer, whole, ids, long_prompts)
    for number, prompt in enumerate(prompts):
        answer = completion.ask(model, tokenizer, args.task, prompt, seed + number, long_prompts)
        print(answer, flush=True)


def tokenize_command(args):
    """Show the ids and tokens of a text."""
    text = text_or_stdin(args.text, "a text")
    tokenizer = _tokenizer(args.model)
    allowed = tokenizer.special if args.special else ()
    if not args.special and (read := [token for token in tokenizer.special if token in text]):
        say(f"{', '.join(read)} is read as plain text: with --special it is a token")
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
    size = len(text.encode("utf-8", "replace"))
    whose = f"the vocabulary of {args.model}"
    if args.model == "gpt2":
        whose = "GPT-2's vocabulary (another's: --model stories)"
    say(f"{len(ids)} tokens, {size} bytes, {whose}")


def _tokenizer(name):
    import numpygpt

    return numpygpt.Tokenizer.gpt2() if name == "gpt2" else load(name, also=["GPT1", "Bert"])[1]


def add(command):
    """Their options."""
    p = command(generate_command)
    p.add_argument("prompt", nargs="?", help="default: standard input")
    p.add_argument("--model", **MODEL)
    p.add_argument("--prompts", metavar="FILE", help='one a line, or .jsonl: {"prompt": ...}')
    p.add_argument("--max-new-tokens", type=int, help="how long the text may become (default: 200)")
    p.add_argument(
        "--temperature",
        type=float,
        help="below 1 plays safe, above 1 dares; 0 is greedy (default: 0.8)",
    )
    p.add_argument("--top-k", type=int, help="draw from the K likeliest tokens only")
    p.add_argument(
        "--top-p",
        type=float,
        help="draw from the fewest tokens whose probabilities add up to P; 1 is all of them "
        "(default: 0.95)",
    )
    p.add_argument("--num-return-sequences", type=int, default=1, help="how many texts")
    p.add_argument("--seed", type=int, help="of the random draws; the same seed, the same text")
    p.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1, what has been said becomes less likely",
    )
    p.add_argument("--beams", type=positive, metavar="N", help="the likeliest of N beams instead")
    long_prompts = p.add_mutually_exclusive_group()
    long_prompts.add_argument(
        "--slide", action="store_true", help="forget the oldest text when n_ctx is full"
    )
    long_prompts.add_argument(
        "--keep-end", action="store_true", help="of a prompt that is too long read the end alone"
    )
    p.add_argument("--stop", action="append", default=[], help="end before this text; repeatable")
    p.add_argument(
        "--logprobs",
        type=int,
        nargs="?",
        const=5,
        metavar="N",
        help="also each token's log-probability, and those of the N likeliest (5 if left out)",
    )
    p.add_argument(
        "--task",
        choices=["summarize", "translate", "answer"],
        help="by the prompts of GPT-2's paper; of `answer` the last line is the question",
    )
    p.add_argument("--dry-run", action="store_true", help="of a task, show the prompt alone")
    p.add_argument(
        "--raw",
        action="store_true",
        help="on a terminal, too, print the text as it is, with whatever commands it holds",
    )

    p = command(tokenize_command)
    p.add_argument("text", nargs="?", help="default: standard input")
    p.add_argument("--model", default="gpt2", help="whose vocabulary (default: gpt2)")
    p.add_argument("--special", action="store_true", help="read <|endoftext|> as the special token")
    p.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    p.add_argument("--show-work", action="store_true", help="pre-tokens, bytes and every merge")
