"""The same things from a shell: each command one short function that calls one room."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import signal
import sys
import time
from pathlib import Path

# NumPy and the rooms are imported by the commands, inside `main`'s try: so Ctrl-C is quiet from the
# first moment, and `numpygpt --help` does not wait for them.


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit status: 0 done, 1 the work failed, 2 misuse."""
    args = _parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a console that lacks a character shows ?, and goes on
        sys.stdout.reconfigure(errors="replace")
    try:
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head -1`: nobody reads on, so there is nobody to tell
        _drop_output()
        return 0
    except (ValueError, TypeError, OSError, ArithmeticError, MemoryError) as error:
        if isinstance(error, OSError):
            _drop_output()
        _say(f"numpygpt: {_sentence(error)}")
        return _status(error)


def _drop_output():
    """What is still to be written goes nowhere: Python would try again at its end, and complain."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _sentence(error):
    if isinstance(error, UnicodeDecodeError):
        return f"the text is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this: {error}"
    return " ".join(str(error).split())


def _status(error):
    from .formats import CheckpointError

    paths = FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError
    misuse = isinstance(error, (ValueError, TypeError, *paths))
    return 2 if misuse and not isinstance(error, CheckpointError) else 1


def _say(text):
    """A line on stderr; a training run goes on when nobody reads it any more."""
    with contextlib.suppress(BrokenPipeError):
        print(text, file=sys.stderr, flush=True)


def _text(argument, what):
    """A text given as an argument, or on standard input where there is none or it is `-`."""
    if argument not in (None, "-"):
        return argument
    if sys.stdin is None or (argument is None and sys.stdin.isatty()):
        raise ValueError(f"give {what} as an argument or on standard input")
    return sys.stdin.buffer.read().decode("utf-8")


# ---- generate -----------------------------------------------------------------------------------


def generate_command(args):
    """Continue a prompt; the text goes to standard output as it is made."""
    import numpy as np

    import numpygpt

    # the newline that ends a line of input is the shell's, and would end a paragraph of the tale
    prompt = _text(args.prompt, "a prompt").removesuffix("\n")
    model, tokenizer = _load(args.model)
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
    _say(f"model {args.model}, {size:,} parameters, seed {seed}")
    rows = [[] for _ in range(args.num_return_sequences)]
    reasons = []
    start = time.perf_counter()
    first = _plain(_first_row(steps, rows, reasons), tokenizer, args.stop)
    if len(rows) == 1:
        for piece in itertools.chain([prompt], first):
            print(piece, end="", flush=True)
        print()
    else:
        for _ in first:  # several texts at once cannot be streamed: they are printed one by one
            pass
        for number, ids in enumerate(rows, 1):
            text = "".join(_plain(ids, tokenizer, args.stop))
            print(f"--- {number}\n{prompt}{text}\n", flush=True)
    seconds, count = time.perf_counter() - start, sum(map(len, rows))
    if "context" in reasons:
        _say(f"stopped at the end of the context, {model.config.n_ctx} tokens")
    _say(f"{count} tokens in {seconds:.2f} s, {count / seconds:.0f} tokens/s")


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


def _plain(ids, tokenizer, stops):
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


# ---- tokenize -----------------------------------------------------------------------------------


def tokenize_command(args):
    """Show the ids and tokens of a text."""
    text = _text(args.text, "a text")
    tokenizer = _tokenizer(args.model)
    allowed = tokenizer.special if args.special else ()
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
    _say(
        f"{len(ids)} tokens, {len(text.encode('utf-8', 'replace'))} bytes, vocabulary {args.model}"
    )


def _tokenizer(name):
    import numpygpt

    return numpygpt.Tokenizer.gpt2() if name == "gpt2" else _load(name)[1]


# ---- train and finetune -------------------------------------------------------------------------


def train_command(args):
    """Pre-train a GPT-2 on a text, in which a line <|endoftext|> ends each document."""
    import numpy as np

    from . import data, model, train

    settings = _settings(args, train.Settings)
    config = model.Config(args.n_vocab, args.n_ctx, args.n_embd, args.n_head, args.n_layer)
    texts = data.documents(_read(args.text))
    held_out = data.documents(_read(args.validation)) if args.validation else []
    if args.validation and not held_out:
        raise ValueError(f"{args.validation} holds no text")
    out = _new_folder(args.out)
    tokenizer = _vocabulary(out, texts, args.n_vocab)
    gpt = model.GPT2(config, model.init(config, np.random.default_rng(args.seed)))
    ids = data.encode_documents(tokenizer, texts)
    batches = data.stream(ids, args.batch, args.n_ctx, np.random.default_rng([args.seed, 1]))
    _say(f"{len(ids):,} tokens, {sum(p.size for p in gpt.params.values()):,} parameters")
    validation = data.encode_documents(tokenizer, held_out) if held_out else None
    return _run(args, gpt, tokenizer, batches, settings, train.digest(ids), validation)


def _vocabulary(out, texts, n_vocab):
    """The vocabulary of an unfinished run, or a new one learned from the texts."""
    from . import data
    from .bpe import Tokenizer

    if (out / "merges.txt").exists():  # the second of its two files
        tokenizer = Tokenizer.read(out)
        if tokenizer.n_vocab != n_vocab:
            raise ValueError(
                f"{out} has a vocabulary of {tokenizer.n_vocab} tokens, not of {n_vocab}: repeat "
                "--n-vocab, or train into another folder"
            )
        return tokenizer
    _say(f"learning a vocabulary of {n_vocab} tokens")
    tokenizer = Tokenizer.train(f"\n{data.END_OF_TEXT}\n".join(texts), n_vocab)
    tokenizer.write(out)
    return tokenizer


def finetune_command(args):
    """Go on training a model on (x, y) pairs, with the loss on y alone."""
    import numpy as np

    from . import data, train

    settings = _settings(args, train.Settings)
    text = _read(args.pairs)
    lines = enumerate(text.splitlines(), 1)
    pairs = [_item(args.pairs, number, line, ["x", "y"]) for number, line in lines]
    _new_folder(args.out)
    model, tokenizer = _load(args.model)
    batches = data.pair_batches(
        [(str(pair["x"]), str(pair["y"])) for pair in pairs],
        tokenizer,
        args.batch,
        model.config.n_ctx,
        np.random.default_rng([args.seed, 1]),
    )
    return _run(args, model, tokenizer, batches, settings, train.digest(text), None)


def _new_folder(path):
    from . import checkpoint

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.check_target(folder)
    return folder


def _read(path):
    return Path(path).read_text(encoding="utf-8")


def _settings(args, settings):
    return settings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(settings)})


def _run(args, model, tokenizer, batches, settings, text, validation):
    """Train, drawing a bar, keeping a log and saving; the same command goes on where it stopped."""
    from tqdm import tqdm

    from . import checkpoint, optim, train

    out = Path(args.out)
    state = optim.adam_state(model.params)
    run = out / "training.safetensors"
    if run.exists():
        state = train.load_run(run, model, settings, text)
        _say(f"going on from step {state.step}")
    stop = _ctrl_c_ends_the_step()
    steps = train.train(model, train.skip(batches, state.step), settings, state)
    bar = tqdm(steps, total=settings.steps, initial=state.step, disable=None, unit="step")
    with train.open_log(out / "training.jsonl", state.step) as log:
        for step in bar:
            row, last = dataclasses.asdict(step), step.number == settings.steps
            bar.set_postfix(loss=f"{step.loss:.4f}", rate=f"{step.tokens_per_second:.0f} tokens/s")
            if validation is not None and (last or step.number % args.evaluate_every == 0):
                row["validation"] = _validate(model, validation, step.number, bar)
            log.write(json.dumps(row) + "\n")
            if last or stop or step.number % args.save_every == 0:
                log.flush()
                train.save_run(run, model, state, settings, text)
            if stop:
                bar.close()
                _say(
                    f"stopped and saved at step {step.number}: the same command goes on from there"
                )
                return 130
    checkpoint.save(model, tokenizer, out, "float16" if args.half else None)
    _say(f"saved the model in {out}")
    return 0


def _validate(model, ids, number, bar):
    """Nats per token of the first 2**15 validation tokens, said on stderr."""
    from . import evaluate

    nats, count = evaluate.stream_nats(model, ids[: 2**15])
    with bar.external_write_mode(sys.stderr):
        _say(f"step {number}: validation {nats / count:.4f} nats per token ({count:,} tokens)")
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


# ---- info ---------------------------------------------------------------------------------------


def info_command(args):
    """Show a model's configuration, parameters by part, bytes and FLOPs."""
    from . import analyze

    model, _ = _load(args.model)
    config, itemsize = model.config, model.dtype.itemsize
    for name, value in dataclasses.asdict(config).items():
        print(f"{name:<20}{value:>16,}" if isinstance(value, int) else f"{name:<20}{value:>16}")
    counts = analyze.parameter_counts(config, tied="lm_head.weight" not in model.params)
    print(f"\n{'parameters':<20}{sum(counts.values()):>16,}")
    for part, count in counts.items():
        print(f"  {part:<18}{count:>16,}")
    print(f"\n{'bytes of weights':<20}{sum(counts.values()) * itemsize:>16,}  ({model.dtype})")
    cache = config.n_ctx * analyze.cache_bytes_per_token(config, itemsize)
    print(f"{'bytes of KV cache':<20}{cache:>16,}  ({config.n_ctx} tokens)")
    for keys in (1, config.n_ctx):
        flops = analyze.flops_per_token(config, keys)
        print(f"\n{'FLOPs per token':<20}{sum(flops.values()):>16,}  (seeing {keys} tokens)")
        for part, count in flops.items():
            print(f"  {part:<18}{count:>16,}")


# ---- download -----------------------------------------------------------------------------------


def download_command(args):
    """Fetch and check the official files of a model, or those that `verify` compares with."""
    from . import download

    try:
        folder = _fetch(
            args.name, args.folder, args.source, args.offline, args.mirror, args.trust_mirror
        )
    except download.DownloadError as error:
        _say(f"numpygpt: {error}")
        _say(download.by_hand(args.name, args.folder))
        return 1
    except KeyboardInterrupt:
        _say("stopped: what has arrived is kept, and the same command goes on from there")
        return 130
    _say(f"{args.name} is here, whole and checked: {folder}")
    return 0


def _fetch(name, folder=None, source="any", offline=False, mirror=None, trust_mirror=False):
    """Download with a line for each file, and on a terminal with a bar; -> the folder."""
    from tqdm import tqdm

    from . import download

    bar = tqdm(disable=True)

    def progress(file, here, total):
        nonlocal bar
        if bar.disable and sys.stderr.isatty():
            bar = tqdm(desc=file, total=total, initial=here, unit="B", unit_scale=True)
        bar.update(here - bar.n)

    def say(text):
        nonlocal bar
        bar.close()
        bar = tqdm(disable=True)
        _say(text)

    try:
        return download.download(
            name,
            folder,
            source,
            offline=offline,
            mirror=mirror,
            trust_mirror=trust_mirror,
            progress=progress,
            say=say,
        )
    finally:
        bar.close()


def _load(name):
    """A model and its tokenizer. One that is not here yet is fetched if somebody is watching."""
    import numpygpt

    return numpygpt.load(name, fetch=_fetch if sys.stderr.isatty() else None)


# ---- bench and plot -----------------------------------------------------------------------------


def bench_command(args):
    """Measure speed and memory beside what this machine can do."""
    from . import bench

    with _to_measure(args) as (folder, model, tokenizer):
        rival = bench.Torch(model.config) if args.vs else None
        _say(bench.HEADING)
        rows = []
        for row in bench.bench(model, tokenizer, args.runs, rival, folder):
            print(bench.table_line(row), flush=True)
            rows.append(row)
    if args.json:
        bench.write_json(args.json, rows)
    if args.plot:
        from . import plot

        rated = [row for row in rows if row.ratio is not None and row.unit != "MB"]
        fig, (ax,) = plot.figure(height=0.25 * len(rated) + 1)
        plot.ratios(ax, [row.work for row in rated], [row.ratio for row in rated])
        plot.save(fig, args.plot)


@contextlib.contextmanager
def _to_measure(args):
    """A folder to load from, its model, and its tokenizer, or None for random weights."""
    from . import bench, pretrained

    if args.shape:
        with bench.temporary_model(bench.shape(args.shape)) as (folder, model):
            yield folder, model, None
    else:
        yield pretrained.find(args.model), *_load(args.model)


def plot_command(args):
    """Draw a training log, a head's attention, or cost against length."""
    from . import plot

    draw = {"loss": _plot_loss, "attention": _plot_attention, "cost": _plot_cost}[args.what]
    out = args.output or f"{args.what}.png"
    plot.save(draw(args, plot), out)
    _say(f"drawn in {out}")


def _plot_loss(args, plot):
    if args.input is None:
        raise ValueError("name the log of a run, its training.jsonl")
    lines = enumerate(_read(args.input).splitlines(), 1)
    rows = [_item(args.input, number, line, ["number", "loss"]) for number, line in lines]
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
    model, tokenizer = _load(args.model)
    ids = tokenizer.encode(_text(args.input, "a text"))
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
    from . import bench

    with _to_measure(args) as (_, model, _):
        panels = bench.cost_curves(model)
    fig, axes = plot.figure(len(panels), width=5)
    for ax, (name, (lengths, measured, predicted)) in zip(axes, panels.items(), strict=True):
        plot.cost(ax, lengths, measured, predicted, name)
    return fig


# ---- trace and compare --------------------------------------------------------------------------


def trace_command(args):
    """Write down every tensor of a forward pass, by name."""
    import fnmatch

    from . import model as forward
    from . import trace
    from .formats import dump

    if args.list:
        print(trace.catalogue())
        return
    model, tokenizer = _load_for(args.prompt, args.model)
    tokens, pads = _token_rows(args.prompt, args.tokens, tokenizer)
    model = forward.as_dtype(model, args.dtype)
    record = model.forward(tokens, pads=pads, keep="everything")[1]
    kept = {n: a for n, a in record.items() if any(fnmatch.fnmatch(n, x) for x in args.names)}
    if not kept:
        raise ValueError(f"no tensor is called {' or '.join(args.names)}: see --list")
    if args.output:
        path = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        dump.write(args.output, {"tokens": tokens} | kept, path)
    for name, array in kept.items():
        print(f"{name:20} {array.dtype!s:8} {array.shape}")


def compare_command(args):
    """Compare another program's tensors with ours, and name the mistake."""
    from . import diagnose, trace

    theirs, ours, name = _dumps(args)
    if name is None:
        aligned, unknown = trace.align(theirs, ours)
        found = diagnose.difference(aligned, ours, ours.get("pads"))
        found = dataclasses.replace(found, note="give --model to find the cause")
    else:
        case, unknown = _case(args, theirs, ours, name)
        found = diagnose.diagnose(case)
    if args.json:
        print(json.dumps(diagnose.as_json(found) | {"not_compared": unknown}, indent=1))
    else:
        print(diagnose.report(found))
        if unknown:
            print(f"not compared: {', '.join(unknown)}")
    return 0 if found.first is None else 1


def _dumps(args):
    """Their arrays, ours or {}, and the name of the model, None if nobody says it."""
    from . import trace
    from .formats import dump

    if args.logits:
        return dump.read(args.logits), {}, args.model or "tales"
    if len(args.files) not in (1, 2):
        raise ValueError("name their file, or our file and theirs")
    theirs = dump.read(args.files[-1])
    if len(args.files) == 1:
        return theirs, {}, args.model or "tales"
    ours = dump.read(args.files[0])
    name = args.model or dump.model_of(args.files[0], ours)
    known = {name: array for name, array in ours.items() if trace.is_entry(name)}
    if not known:
        raise ValueError(f"{args.files[0]} has no tensor under our names: make it with trace -o")
    return theirs, known, name or None


def _case(args, theirs, ours, name):
    """What to explain, and the names nobody knows."""
    import numpy as np

    from . import diagnose, trace

    prompts = args.prompt + (args.files if args.logits else [])
    model, tokenizer = _load_for(prompts, name)
    given = {**theirs, **ours}
    ids = next((given[n] for n in ("tokens", "input_ids", "inputs") if n in given), None)
    if prompts or args.tokens:
        tokens, pads = _token_rows(prompts, args.tokens, tokenizer)
    elif ids is None:
        raise ValueError(
            "say what was computed: --tokens, --prompt, or an array `tokens` in the dump"
        )
    else:
        tokens, pads = _as_ids(ids), given.get("pads")
    if args.pads:
        pads = np.array(_integers(args.pads, "--pads"))
    chunks = _integers(args.chunks, "--chunks") if args.chunks else None
    right = trace.replay(model, tokens, pads, chunks)
    aligned, unknown = trace.align(theirs, right, model.params)
    return diagnose.Case(model, tokens, aligned, pads, chunks), unknown


def _load_for(prompts, name):
    """A model, and the tokenizer if there are prompts: where ids are given, none is needed."""
    from . import checkpoint, pretrained

    return _load(name) if prompts else (checkpoint.load_folder(pretrained.find(name)), None)


def _as_ids(array):
    import numpy as np

    ids = np.atleast_2d(array)
    if not np.array_equal(ids, np.round(ids)):
        raise ValueError("the dump's tokens are no integers")
    return ids.astype(np.int64)


def _integers(text, option):
    try:
        return [int(x) for x in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"{option} takes integers, not {text!r}") from None


def _token_rows(prompts, rows, tokenizer):
    """Ids (B, T), and the padding at the left of each row, or None if all are equally long."""
    import numpy as np

    ids = [_integers(row, "--tokens") for row in rows] or [tokenizer.encode(p) for p in prompts]
    if not ids or not all(ids):
        raise ValueError("give a prompt that is not empty, or --tokens")
    length = max(map(len, ids))
    pads = np.array([length - len(row) for row in ids])
    tokens = np.array([[0] * (length - len(row)) + row for row in ids])
    return tokens, pads if pads.any() else None


# ---- verify and evaluate ------------------------------------------------------------------------


def verify_command(args):
    """Compute the numbers that others published about a model, and say whether they agree."""
    from tqdm import tqdm

    from . import published
    from .measure import Subject

    model, tokenizer, name, folder = _to_verify(args)
    rows = [row for row in published.rows(name) if not args.only or row["id"] in args.only]
    if not rows:
        raise ValueError(f"no row of {name} is called {' or '.join(args.only)}")
    subject = Subject(model, tokenizer, (folder, *published.folders(name, args.data)))
    results, before = [], None
    bar = tqdm(total=sum(len(row["checks"]) for row in rows), disable=None, unit="check")
    for result in published.verify(subject, rows, args.quick):
        if (result.id, result.input) != before:
            bar.write(published.heading(result))
        bar.write(published.line(result))
        before = result.id, result.input
        results.append(result)
        bar.update()
    bar.close()
    if args.json:
        fields = [dataclasses.asdict(result) for result in results]
        Path(args.json).write_text(json.dumps(fields, indent=1), encoding="utf-8")
    _say(published.summary(results))
    verdicts = {result.verdict for result in results}
    return 0 if "pass" in verdicts and "FAIL" not in verdicts else 1


def _to_verify(args):
    """Model, tokenizer, the name it has rows under, and its own folder."""
    from . import download, pretrained, published

    if args.model == "gpt-nano-sort":
        found = [
            folder
            for folder in published.folders(args.model, args.data)
            if (folder / "gpt-nano-sort-model.json").is_file()
        ]
        if not found:
            raise FileNotFoundError(
                "gpt-nano-sort is not on this machine: run `numpygpt download gpt-nano-sort`, or "
                "name its folder with --data"
            )
        return published.load_nano_sort(found[0]), None, args.model, found[0]
    model, tokenizer = _load(args.model)
    name = download.ALIASES.get(args.model, args.model)
    if not published.rows(name):
        name = published.official_name(model)
    return model, tokenizer, name, pretrained.find(args.model)


def _item(path, number, line, keys):
    try:
        item = json.loads(line)
        if all(key in item for key in keys):
            return item
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path}, line {number}: it must be a JSON object with {', '.join(keys)}")


def evaluate_command(args):
    """Measure a model on a file: perplexity of a text, LAMBADA or HellaSwag."""
    from tqdm import tqdm

    from . import data, evaluate

    text = _read(args.file)
    model, tokenizer = _load(args.model)
    if args.task == "perplexity":
        documents = data.documents(text)
        ids = data.encode_documents(tokenizer, documents)[: args.limit]
        nats, count = evaluate.stream_nats(model, ids, args.stride)
        results = {"tokens": count, "nats per token": nats / count}
        results["perplexity per token"] = math.exp(nats / count)
        if args.limit is None:
            size = sum(len(document.encode("utf-8")) for document in documents)
            results["bits per byte"] = evaluate.bits_per_byte(nats, size)
    else:
        keys = {"lambada": ["text"], "hellaswag": ["ctx", "endings", "label"]}[args.task]
        lines = list(enumerate(text.splitlines(), 1))[: args.limit]
        items = [_item(args.file, *line, keys) for line in lines]
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


# ---- grade --------------------------------------------------------------------------------------


def grade_command(args):
    """Grade a student's functions: exit status 0 for all points, 1 for fewer, 2 for misuse."""
    import numpygpt

    from . import grade

    if args.starter:
        grade.write_starter(args.student)
        _say(f"wrote {args.student}: fill it in and run `numpygpt grade {args.student}`")
        return 0
    model, tokenizer = numpygpt.load(args.model)
    results = grade.grade(
        args.student, model, tokenizer, args.adapters, args.only, args.seconds, args.memory
    )
    print(grade.sheet(results))
    if args.gradescope:
        grade.write_gradescope(results, args.gradescope)
    return int(any(result.score < result.check.points for result in results))


# ---- the parser ---------------------------------------------------------------------------------


def _parser():
    parser = argparse.ArgumentParser(prog="numpygpt", description="GPT-2 in plain NumPy.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(run):
        name = run.__name__.removesuffix("_command")
        sub = commands.add_parser(name, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        return sub

    model = {"default": "tales", "help": "name or folder of a model (default: %(default)s)"}

    p = command(generate_command)
    p.add_argument("prompt", nargs="?", help="default: standard input")
    p.add_argument("--model", **model)
    p.add_argument("--max-new-tokens", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.8, help="0 is greedy")
    p.add_argument("--top-k", type=int)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--num-return-sequences", type=int, default=1)
    p.add_argument("--seed", type=int)
    p.add_argument("--slide", action="store_true", help="forget the oldest text when n_ctx is full")
    p.add_argument("--stop", action="append", default=[], help="end before this text; repeatable")

    p = command(tokenize_command)
    p.add_argument("text", nargs="?", help="default: standard input")
    p.add_argument("--model", default="gpt2", help="whose vocabulary (default: %(default)s)")
    p.add_argument("--special", action="store_true", help="read <|endoftext|> as the special token")
    p.add_argument("--ids", action="store_true", help="print the ids alone, on one line")
    p.add_argument("--show-work", action="store_true", help="pre-tokens, bytes and every merge")

    p = command(train_command)
    p.add_argument("text", help="file of text; a line <|endoftext|> ends a document")
    p.add_argument("--validation", help="file of text to report the loss on")
    p.add_argument("--n-vocab", type=_positive, default=4096)
    p.add_argument("--n-ctx", type=_positive, default=256)
    p.add_argument("--n-embd", type=_positive, default=256)
    p.add_argument("--n-head", type=_positive, default=4)
    p.add_argument("--n-layer", type=_positive, default=6)
    p.add_argument("--evaluate-every", type=_positive, default=500)
    _training_options(p, lr=1e-3)

    p = command(finetune_command)
    p.add_argument("pairs", help='file of lines {"x": "...", "y": "..."}')
    p.add_argument("--model", **model)
    _training_options(p, lr=1e-4)

    p = command(info_command)
    p.add_argument("model", nargs="?", **model)

    p = command(download_command)
    p.add_argument("name", help="124M, 355M, 774M, 1558M, distilgpt2, gpt-nano-sort or published")
    p.add_argument("--folder", help="default: its own folder in weights/ or in the user's cache")
    p.add_argument("--source", default="any", choices=["any", "openai", "huggingface"])
    p.add_argument("--offline", action="store_true", help="check what is here, fetch nothing")
    p.add_argument("--mirror", metavar="URL", help="in place of https://HOST of every address")
    p.add_argument(
        "--trust-mirror", action="store_true", help="its files need not be the official ones"
    )

    p = command(bench_command)
    p.add_argument("--model", **model)
    p.add_argument("--shape", help="random weights of an official size instead: 124M, 355M, ...")
    p.add_argument(
        "--runs", type=_positive, default=5, help="counted runs of each (default: %(default)s)"
    )
    p.add_argument("--vs", choices=["torch"], help="also measure transformers on torch")
    p.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    p.add_argument("--plot", metavar="FILE", help="also draw the ratios")

    p = command(plot_command)
    p.add_argument("what", choices=["loss", "attention", "cost"])
    p.add_argument("input", nargs="?", help="loss: training.jsonl; attention: a text")
    p.add_argument("-o", "--output", help="picture (default: WHAT.png)")
    p.add_argument("--tokens-per-step", type=_positive, default=2048, help="of the run (loss)")
    p.add_argument("--model", **model)
    p.add_argument("--shape", help="as in bench (cost)")
    p.add_argument("--layer", type=int, default=0)
    p.add_argument("--head", type=int, default=0)

    p = command(trace_command)
    p.add_argument("prompt", nargs="*", help="several are padded at the left to one batch")
    p.add_argument("--tokens", action="append", default=[], help='ids instead: "17 310 203"')
    p.add_argument("--model", **model)
    p.add_argument("-o", "--output", metavar="FILE", help=".npz or .safetensors")
    p.add_argument("--names", nargs="+", default=["*"], help='of the tensors, "h.0.*" for instance')
    p.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    p.add_argument("--list", action="store_true", help="print names, shapes, formulas, sources")

    p = command(compare_command)
    p.add_argument("files", nargs="*", help="our file, which may be left out, and theirs")
    p.add_argument("--model", help="name or folder (default: the one that made our file, or tales)")
    p.add_argument("--tokens", action="append", default=[], help='what was computed: "17 310 203"')
    p.add_argument("--prompt", action="append", default=[], help="the same as text; repeatable")
    p.add_argument("--pads", help='padding tokens at the left of each row: "0 3"')
    p.add_argument("--chunks", help="lengths of the pieces that went through a KV cache: 4,1,1")
    p.add_argument("--logits", metavar="FILE", help="their logits alone; then give the prompt")
    p.add_argument("--json", action="store_true")

    p = command(verify_command)
    p.add_argument("--model", default="124M", help="name or folder (default: %(default)s)")
    p.add_argument("--data", metavar="FOLDER", help="with files that some rows read")
    p.add_argument("--quick", action="store_true", help="leave out rows that take minutes")
    p.add_argument("--only", action="append", metavar="ROW", help="this row; repeatable")
    p.add_argument("--json", metavar="FILE", help="also write everything as JSON")

    p = command(evaluate_command)
    p.add_argument("file", help='a text, or lines {"text": ...} or {"ctx": ..., "endings": ...}')
    p.add_argument("--model", **model)
    p.add_argument("--task", default="perplexity", choices=["perplexity", "lambada", "hellaswag"])
    p.add_argument("--stride", type=int, help="of perplexity's windows (default: n_ctx)")
    p.add_argument("--limit", type=_positive, help="only so many tokens or items")
    p.add_argument("--json", action="store_true", help="print one JSON object")

    p = command(grade_command)
    p.add_argument("student", nargs="?", default="student.py", help="(default: %(default)s)")
    p.add_argument("--starter", action="store_true", help="write a file to begin with, and end")
    p.add_argument("--adapters", help="file whose names come first; the other is its `student`")
    p.add_argument("--only", nargs="+", default=[], help="grade these functions alone")
    p.add_argument("--gradescope", metavar="JSON", help="also write Gradescope's results.json")
    p.add_argument("--model", **model)
    p.add_argument("--seconds", type=float, default=10, help="of computing, for each function")
    p.add_argument("--memory", type=int, default=2048, help="in MiB, for each function")

    for p in (parser, *commands.choices.values()):
        p.error = _misuse
    return parser


def _training_options(p, lr):
    p.add_argument("--out", required=True, help="folder of the new model; holds an unfinished run")
    p.add_argument("--steps", type=_positive, default=1000)
    p.add_argument("--batch", type=_positive, default=8)
    p.add_argument("--lr", type=float, default=lr, help="peak (default: %(default)s)")
    p.add_argument("--floor", type=float, default=0.0, help="learning rate at the end")
    p.add_argument("--warmup", type=int, default=100, help="steps")
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--beta1", type=float, default=0.9)
    p.add_argument("--beta2", type=float, default=0.99)
    p.add_argument("--clip", type=float, default=1.0, help="largest global gradient norm")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--workers", type=_positive, default=1, help="threads that share a batch")
    p.add_argument("--save-every", type=_positive, default=200, help="steps")
    p.add_argument("--half", action="store_true", help="write the model as float16")


def _positive(text):
    """An argparse type: an integer that is at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _misuse(message):
    """argparse's error without the usage in front: one line."""
    _say(f"numpygpt: {message}")
    raise SystemExit(2)
