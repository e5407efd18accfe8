"""What a training run begins with: what was asked for, else what the run in the folder was begun
with, else what suits the text and this machine; and what is chosen is said.

    from numpygpt.files import plan, run
    for progress in run.resumable(plan.pretraining(text, "my-model")):
        print(progress)
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from numpygpt import data, evaluate, optim, sample
from numpygpt.bpe import END_OF_TEXT, Tokenizer
from numpygpt.fast import machine_memory
from numpygpt.files import adapter, checkpoint, run, vocabulary
from numpygpt.lora import LoRA
from numpygpt.model import GPT2, Config, init
from numpygpt.train import Settings

MINUTES = 10  # that a run may take whose number of steps nobody gave
PASSES = 10  # over the text or the pairs, where that takes less; a small model gains little by more
TOKENS_A_STEP, N_CTX = 2048, 256
VALIDATION = 2**15  # tokens at most: enough for two digits after the point, and a few seconds
# Tokens of the text up to which a size is taken -> layers, width; heads are 64 wide, as GPT-2's.
SIZES = {50_000: (4, 128), 1_000_000: (6, 192), 10_000_000: (6, 256), float("inf"): (8, 384)}
SHORTEST = 8  # tokens in a window


def say_nothing(text: str) -> None:
    """Where nobody wants to hear what is chosen."""


def pretraining(
    text: str,
    folder,
    *,
    base: tuple | None = None,
    validation: str | None = None,
    share: float = 0.05,
    sizes: dict | None = None,
    settings: dict | None = None,
    half: bool = False,
    say: Callable[[str], None] = say_nothing,
) -> run.Run:
    """A run that trains a model on a text, in which `<|endoftext|>` ends each document.

    base: (model, tokenizer, name) to go on from; by default a new model and a new vocabulary.
    validation: a text to measure on; by default `data.hold_out` takes `share` of the text. sizes:
    some of n_vocab, n_ctx, n_embd, n_head, n_layer, for a new model. settings: some of
    `train.Settings`. half: the model is written as float16.

    Raises ValueError for what does not fit, and where `folder` holds another run or a model.
    """
    sizes, settings, folder = dict(sizes or {}), dict(settings or {}), Path(folder)
    if base and sizes:
        raise ValueError(f"{', '.join(sizes)}: a model to go on from has its own sizes")
    for one in (text, *([] if validation is None else [validation])):
        if not isinstance(one, str):
            raise TypeError(f"a text must be a str in which {END_OF_TEXT} ends each document")
    base = base and _parts(base)
    begun = _begun(folder)
    _check_numbers(settings, sizes)
    about = {"begun from": base[2] if base else "random weights"}
    _check_base(begun, about["begun from"], folder)
    texts, held_out = _documents(text, validation, base and base[1], share, say)
    if base:
        gpt, tokenizer, _ = base
        ids = data.encode_documents(tokenizer, texts)
    else:
        tokenizer = _vocabulary(begun, folder, texts, sizes.get("n_vocab"), say)
        ids = data.encode_documents(tokenizer, texts)
        config = _config(tokenizer.n_vocab, sizes, begun, len(ids), say)
        gpt = GPT2(config, init(config, np.random.default_rng(_seed(settings, begun))))
    digest = run.digest(run.digest(ids) + "\0".join(held_out))
    _check_text(begun, digest, folder)
    planned = {"batch": _batch(len(ids), gpt.config.n_ctx), "lr": 3e-4 if base else 1e-3}
    planned = _planned(planned, begun, settings)
    window = _window(len(ids), planned["batch"], gpt.config.n_ctx, say)
    size = len("".join(texts).encode("utf-8", "replace"))
    what = f"{amount(size, 'B')}, {amount(len(ids), ' tokens')}: "
    what += amount(_count(gpt), " parameters") + (f", begun from {base[2]}" if base else "")
    settings = _settings(planned, gpt, ids.size, window, what, begun, say)
    rng = np.random.default_rng([settings.seed, 1])
    return run.Run(
        folder,
        gpt,
        data.stream(ids, settings.batch, window, rng),
        settings,
        digest,
        partial(checkpoint.save_in_locked, gpt, tokenizer, folder, "float16" if half else None),
        _measure_text(gpt, tokenizer, held_out, say),
        about,
    )


def finetuning(
    pairs: list[tuple[str, str]],
    folder,
    base: tuple,
    *,
    validation: list[tuple[str, str]] | None = None,
    share: float = 0.1,
    settings: dict | None = None,
    rank: int | None = None,
    alpha: float | None = None,
    matrices: tuple[str, ...] | None = None,
    apart: bool = False,
    half: bool = False,
    say: Callable[[str], None] = say_nothing,
) -> run.Run:
    """A run that trains base = (model, tokenizer, name) on (x, y) pairs, with the loss on y alone.

    validation: pairs to measure on; by default `data.hold_out_pairs` takes `share` of them. rank,
    and alpha and matrices (None: those of `LoRA`): of a LoRA, which is merged into the model that
    is written, or written apart; by default all parameters learn. settings, half and what is
    raised: as in `pretraining`.
    """
    settings, folder = dict(settings or {}), Path(folder)
    gpt, tokenizer, name = _parts(base)
    if not pairs:
        raise ValueError("there are no pairs to train on")
    given = {"alpha": alpha, "matrices": matrices}
    given = {option: value for option, value in given.items() if value is not None}
    if apart and not rank:
        raise ValueError("only a LoRA can be written apart: give its rank")
    if given and not rank:
        raise ValueError("only a LoRA has an alpha and matrices: give its rank, or leave them out")
    if apart and half:
        raise ValueError("a LoRA is written as it is, not as float16")
    begun = _begun(folder)
    _check_numbers(settings)
    if begun and "rank" in begun["begun"] and not rank:
        raise ValueError(
            f"{folder} holds a run of LoRA of rank {begun['begun']['rank']}: give the rank again, "
            "or train into another folder"
        )
    n_ctx = gpt.config.n_ctx
    data.pair_rows(pairs, tokenizer, n_ctx)  # refuses those that are long
    data.pair_rows(validation or [], tokenizer, n_ctx)
    if validation is None:
        pairs, validation = data.hold_out_pairs(pairs, share, seed=_seed(settings, begun))
    digest = run.digest("\n\n".join(map(_joined, (pairs, validation))))
    _check_base(begun, name, folder)
    _check_text(begun, digest, folder)
    planned = {"batch": min(16, len(pairs)), "lr": 3e-3 if rank else 5e-4}
    planned = _planned(planned, begun, settings)
    model, about = gpt, {"begun from": name}
    if rank:
        model = LoRA(gpt, rank, **given, rng=np.random.default_rng([planned.get("seed", 0), 3]))
        about |= {"rank": rank, "alpha": model.alpha, "matrices": list(model.matrices)}
        about |= {"apart": apart, "base": adapter.digest(model)}
        _check_weights(begun, about, folder)
    _say_pairs(pairs, validation, say)
    rows = data.pair_rows(pairs, tokenizer, n_ctx)
    tokens = sum(len(ids) - 1 for ids, _ in rows)
    what = f"{_pairs(len(pairs))}, {amount(tokens, ' tokens')}: "
    what += f"{amount(_count(model), ' parameters')} learn, begun from {name}"
    rng = np.random.default_rng([planned.get("seed", 0), 1])
    batches = data.pair_batches(pairs, tokenizer, planned["batch"], n_ctx, rng)
    window = -(-tokens // max(1, len(rows)))
    settings = _settings(planned, model, tokens, window, what, begun, say)

    def keep():
        if apart:
            source = str(Path(name).resolve()) if Path(name).exists() else name
            adapter.save(model, source, folder)
        else:
            dtype = "float16" if half else None
            checkpoint.save_in_locked(_whole(model), tokenizer, folder, dtype)

    return run.Run(
        folder,
        model,
        batches,
        settings,
        digest,
        keep,
        _measure_pairs(model, tokenizer, validation),
        about,
    )


def _check_weights(begun, about, folder):
    """Raises ValueError where the LoRA in the folder was trained on a model that has changed."""
    if begun and begun["begun"].get("base", about["base"]) != about["base"]:
        raise ValueError(
            f"{folder} holds a LoRA of {about['begun from']} as it was then, and its weights have "
            "changed since: train into another folder"
        )


def _say_pairs(pairs, validation, say):
    held_out = f"{len(validation):,}" if validation else "none"
    warning = "" if validation else ": nothing says how well it does"
    say(f"{_pairs(len(pairs))} to train on, {held_out} held out{warning}")
    seen = {x for x, _ in pairs}
    _say_what_is_seen(sum(x in seen for x, _ in validation), "pairs", say)


def _joined(pairs):
    return "\n".join(f"{x}\0{y}" for x, y in pairs)


def _whole(model):
    """The GPT2 that a model is, or that a LoRA stands for."""
    return model.merged() if isinstance(model, LoRA) else model


def _count(model):
    return sum(p.size for p in model.params.values())


# ---- what is measured ---------------------------------------------------------------------------


def _measure_text(gpt, tokenizer, held_out, say):
    """What a run on a text measures, on documents that were held out; None without any."""
    ids = data.encode_documents(tokenizer, held_out) if held_out else []
    if len(ids) > VALIDATION:
        say(f"of {len(ids):,} tokens to measure on the first {VALIDATION:,} are used")
        ids = ids[:VALIDATION]

    def measure():
        nats, count = evaluate.stream_nats(gpt, ids)
        return {"validation": nats / count, "sample": _sample(gpt, tokenizer)}

    return measure if len(ids) > 1 else None


def _measure_pairs(model, tokenizer, validation):
    """What a run on pairs measures, on pairs that were held out; None without any."""

    def measure():
        gpt = _whole(model)
        result = evaluate.pairs(gpt, tokenizer, validation)
        x, y = validation[0]
        (answer,) = evaluate.answers(gpt, tokenizer, [(x, y)])
        end = tokenizer.tokens[tokenizer.eot] if answer.ended else "..."
        return {
            "validation": result["nats per token of y"],
            "exact": result["exact match"],
            "ended": result["ended"],
            "sample": f"{x}|{answer.text}{end}",
        }

    return measure if validation else None


# ---- what is chosen -----------------------------------------------------------------------------


def _check_numbers(settings, sizes=None):
    """What makes no sense is refused before anything is said, learned or written."""
    Settings(**({"steps": 1} | settings))
    if sizes and {"n_embd", "n_head"} <= sizes.keys():
        Config(**({"n_vocab": 257, "n_ctx": 1, "n_layer": 1} | sizes))


def _parts(base):
    if not isinstance(base, tuple) or len(base) != 3:
        raise TypeError(
            'what to go on from is (model, tokenizer, name), as (*numpygpt.load("124M"), "124M")'
        )
    return base


def _check_base(begun, base, folder):
    """Raises ValueError where the run in the folder was begun from something else."""
    before = begun["begun"].get("begun from", base) if begun else base
    if before != base:
        raise ValueError(
            f"{folder} holds a run that was begun from {before}, not from {base}: repeat that, or "
            "train into another folder"
        )


def _check_text(begun, digest, folder):
    """Raises ValueError where the run in the folder is of another text, or measured on another."""
    if begun and begun["text"] != digest:
        raise ValueError(
            f"{folder} holds a run whose text to train or to measure on is a different one, as "
            "another file, share that is held out, or seed makes it: repeat that, or train into "
            "another folder"
        )


def _seed(settings, begun):
    """The seed that was asked for, else that of the run in the folder, else 0."""
    return settings.get("seed", begun["begun"]["seed"] if begun else 0)


def _planned(chosen, begun, settings):
    """What is chosen, then what the run in the folder was begun with, then what is asked for."""
    return chosen | (begun["begun"] if begun else {}) | settings


def _batch(count, n_ctx):
    """Windows at a time, `TOKENS_A_STEP` in all; fewer where the text does not have as many."""
    return max(1, min(TOKENS_A_STEP // n_ctx, (count - 1) // n_ctx - 1))


def _window(count, batch, n_ctx, say):
    """How many tokens a window has: n_ctx, or fewer where the text is short."""
    window = min(n_ctx, (count - 1) // (batch + 1))
    if window < SHORTEST:
        smaller = ", or use a smaller batch" if batch > 1 else ""
        raise ValueError(
            f"{count} tokens are too few for a batch of {batch} and the tokens that follow: bring "
            f"more text{smaller}"
        )
    if window < n_ctx:
        say(f"the text is short: windows of {window} tokens instead of {n_ctx}")
    return window


def _documents(text, validation, tokenizer, share, say):
    """(documents to train on, documents to measure on), ended by the tokenizer's end token."""
    if tokenizer:
        data.end_token(tokenizer)
    split = partial(data.documents_of, tokenizer=tokenizer) if tokenizer else data.documents
    texts = split(text)
    if not texts:
        raise ValueError("the text is empty")
    if validation is not None:
        held_out = split(validation)
        if not held_out:
            raise ValueError("the text to measure on is empty")
        _say_what_is_seen(len(set(held_out) & set(texts)), "documents", say)
        return texts, held_out
    documents, (texts, held_out) = texts, data.hold_out(texts, share)
    count = len(documents)
    if not texts:
        raise ValueError("the text is too short to hold out a part of it: bring more text")
    if not held_out:
        say("nothing is held out: nothing says when the model begins to learn the text by heart")
    elif set(held_out) <= set(documents):
        copies = count - len(texts) - len(held_out)
        without = f"; copies of them left out: {copies:,}" if copies else ""
        say(f"{len(held_out):,} of {count:,} documents are held out to measure on{without}")
    else:
        which = "the text" if count == 1 else f"each of {count} documents"
        say(f"the last {100 * share:.3g}% of {which} is held out to measure on")
    return texts, held_out


def _say_what_is_seen(count, what, say):
    if count:
        say(f"{what} to measure on that are trained on as well: {count:,}, and that flatters")


def _begun(folder):
    """The run in the folder, or None; a folder in which a model stands alone is refused."""
    begun = run.read_run(folder)
    models = "config.json", adapter.CONFIG
    foreign = begun is None and any((folder / name).exists() for name in models)
    if foreign and not run.took_no_step(folder):
        raise ValueError(
            f"{folder} holds a model and no checkpoint of a run: choose another folder, so that it "
            "is not written over"
        )
    checkpoint.check_target(folder)
    return begun


def _vocabulary(begun, folder, texts, n_vocab, say):
    """The vocabulary of the run in the folder, or a new one learned from the texts."""
    if begun:
        tokenizer = vocabulary.read(folder)
        if n_vocab not in (None, tokenizer.n_vocab):
            raise ValueError(
                f"{folder} has a vocabulary of {tokenizer.n_vocab} tokens, not of {n_vocab}: "
                "repeat its n_vocab, or train into another folder"
            )
        return tokenizer
    text = f"\n{END_OF_TEXT}\n".join(texts)
    if n_vocab is None:
        return _suitable_vocabulary(text, say)
    say(f"learning a vocabulary of {n_vocab:,} tokens")
    return Tokenizer.train(text, n_vocab)


def _suitable_vocabulary(text, say):
    """As many tokens as the power of two next to the square root of the text's bytes, 512 to 8192;
    fewer where the text repeats itself so much that it does not have the pairs for them."""
    root = len(text.encode("utf-8", "replace")) ** 0.5
    n_vocab = wanted = int(2 ** np.clip(round(np.log2(root)), 9, 13))
    say(f"learning a vocabulary of {wanted:,} tokens")
    while True:
        try:
            tokenizer = Tokenizer.train(text, n_vocab)
        except ValueError:
            if n_vocab == 257:
                raise
            n_vocab = 257 + (n_vocab - 257) // 2
            continue
        if n_vocab < wanted:
            say(f"the text does not have the pairs for as many: {n_vocab} tokens")
        return tokenizer


def _config(n_vocab, sizes, begun, tokens, say):
    """The sizes that were asked for, else those of the run in the folder, else by the text."""
    layers, width = next(size for limit, size in SIZES.items() if tokens <= limit)
    # A position that no window has would not be learned: of a short text they are fewer.
    n_ctx = int(np.clip((tokens - 1) // (TOKENS_A_STEP // N_CTX + 1), SHORTEST, N_CTX))
    chosen = {"n_ctx": n_ctx, "n_embd": width, "n_layer": layers}
    if begun:
        chosen = {name: begun["begun"][name] for name in (*chosen, "n_head")}
    elif n_ctx < N_CTX and "n_ctx" not in sizes:
        say(f"the text is short: a context of {n_ctx} tokens instead of {N_CTX}")
    chosen |= sizes | {"n_vocab": n_vocab}
    chosen.setdefault("n_head", max(1, chosen["n_embd"] // 64))
    return _fitting(Config(**chosen))


def _fitting(config):
    """The configuration, or ValueError where parameters, gradients, m and v do not fit."""
    c, f = config.n_embd, config.n_inner
    each = c * (4 * c + 2 * f + 9) + f  # of a block
    count = c * (config.n_vocab + config.n_ctx + 2) + config.n_layer * each
    memory = machine_memory()
    if 16 * count > memory:
        raise ValueError(
            f"a model of {count:,} parameters takes {16 * count / 1e9:,.0f} GB to train, and this "
            f"machine has {memory / 1e9:,.0f}: choose smaller sizes"
        )
    return config


def _settings(planned, model, tokens, window, what, begun, say):
    """All settings; steps, where nobody gave them, by the size of the text and the machine."""
    a_step = planned["batch"] * window
    seconds = _seconds_per_step(model, planned["batch"], window)
    if "steps" not in planned:
        steps = max(200, PASSES * tokens // a_step)
        steps = min(steps, MINUTES * 60 / seconds)
        digits = 10 ** max(0, int(np.log10(max(1, steps))) - 1)
        planned["steps"] = max(1, int(steps // digits * digits))  # two digits are enough
    planned.setdefault("warmup", min(100, planned["steps"] // 10))
    known = {name: planned[name] for name in Settings.__dataclass_fields__ if name in planned}
    settings = Settings(**known)
    step = begun["step"] if begun else 0
    left = max(0, settings.steps - step) * seconds
    passes = settings.steps * a_step / tokens
    say(
        f"{what}, {settings.steps:,} steps ({passes:.1f} passes), about "
        f"{duration(left)} on this machine"
    )
    before = begun["begun"]["steps"] if begun else settings.steps
    if before < settings.steps:
        lr = optim.warmup_cosine(step, settings.lr, settings.floor, settings.warmup, settings.steps)
        say(
            f"the run was to take {before:,} steps and goes on to {settings.steps:,}: the learning "
            f"rate follows the schedule of the new number, and is {lr:.2e} at step {step + 1:,}"
        )
    return settings


def _seconds_per_step(model, batch, window):
    """One forward and backward of a batch, timed after one that is not."""
    tokens = np.zeros((batch, min(window, model.config.n_ctx)), np.int64)
    for _ in range(2):
        start = time.perf_counter()
        model.loss_and_grads(tokens, tokens)
        seconds = time.perf_counter() - start
    return max(seconds, 1e-6)  # a clock may stand still


def _sample(model, tokenizer, length=60):
    """The beginning of a text, always with the same random numbers."""
    steps = sample.generate(
        model,
        [tokenizer.eot],
        min(length, model.config.n_ctx),
        temperature=0.8,
        stop=tokenizer.eot,
        rng=np.random.default_rng(0),
    )
    return tokenizer.decode([i for step in steps for i in step[0]])


# ---- in words -----------------------------------------------------------------------------------


def amount(count: float, unit: str) -> str:
    """A number as people say it: amount(1.1e6, "B") is 1.1 MB, (290e3, " tokens") 290 k tokens."""
    prefixes = {"G": 1e9, "M": 1e6, "k": 1e3, "": 1}
    prefix = next((prefix for prefix, size in prefixes.items() if count >= size), "")
    value = count / prefixes[prefix]
    digits = 1 if prefix and value < 10 else 0
    return f"{value:.{digits}f} {prefix}{unit}".replace("  ", " ")


def _pairs(count):
    return f"{count:,} pair{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 40 s, 9 min, 2 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
