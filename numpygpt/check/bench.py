"""How fast is it, beside what this machine can do: every figure with its limit from the same run.

Two limits are measured with NumPy itself. *Bandwidth*: all weights streamed through `x @ W` with
one row, bytes per second. *Peak*: a large matrix product, floating-point operations per second. One
decoding step cannot be faster than reading every weight once; a prefill or a training step cannot
be faster than its matrix products at the peak. The ratio says how near we are, on any machine.

What a machine gives changes from second to second where others use it too. So as many bytes or
operations as the work needs are spent at the limit right after each run of it, and the ratio is one
of two medians that met the same disturbances.
"""

import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from numpygpt import fast, optim, sample, train
from numpygpt.bpe import Tokenizer
from numpygpt.draft import prompt_lookup
from numpygpt.files import checkpoint
from numpygpt.files.atomic import writing
from numpygpt.look import analyze
from numpygpt.model import GPT2, SIZES, Config, init

PREFILL, CONTEXTS, BATCHES = (16, 64, 256, 512, 1024), (16, 128, 512, 1000), (1, 2, 4, 8, 16)
TRAINING = ((4, 64), (1, 1024))


@dataclass(frozen=True)
class Row:
    """One figure: the median of several runs, the least and the most.

    ratio: time at the limit over time taken, so that 1 is the limit; of memory, a multiple of the
    weights. torch: its time over ours, so that above 1 we are faster.
    """

    work: str
    value: float
    unit: str
    least: float
    most: float
    ratio: float | None = None
    torch: float | None = None


def shape(name: str) -> Config:
    """The configuration of an official size. Raises ValueError for another name."""
    if name not in SIZES:
        raise ValueError(f"no such shape {name!r}: choose from {', '.join(SIZES)}")
    return SIZES[name]


def timed(work, *arguments) -> float:
    """Seconds that work(*arguments) takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def in_turn(measures, runs: int) -> list[list[float]]:
    """What each measure, a function that returns seconds, says when all are called in turn.

    Sorted, `runs` of each; a first round is not counted.
    """
    rounds = []
    for _ in range(runs + 1):
        rounds.append([])
        for measure in measures:
            if len(measures) > 2:  # torch's idle threads, and BLAS's, spin a while in our way
                time.sleep(0.15)
            rounds[-1].append(measure())
    return [sorted(column) for column in zip(*rounds[1:], strict=True)]


class Limits:
    """This machine's limits, measured with the model's own matrices: bandwidth and peak.

    bandwidth in bytes per second, peak in floating-point operations per second, best of `runs`.
    """

    def __init__(self, model, runs: int = 5):
        matrices = [p for name, p in model.params.items() if p.ndim == 2 and name != "wpe.weight"]
        self.pairs = [(np.ones((1, w.shape[0]), w.dtype), w) for w in matrices]
        self.size = sum(w.nbytes for w in matrices)
        self.square = np.ones((2048, 2048), model.dtype)
        self.flops = 2 * 2048**3
        ((best_read, *_), (best_product, *_)) = in_turn(
            [lambda: timed(self.read), lambda: timed(self.multiply)], runs
        )
        self.bandwidth, self.peak = self.size / best_read, self.flops / best_product

    def read(self):
        for x, w in self.pairs:
            x @ w

    def multiply(self):
        self.square @ self.square

    def seconds(self, size: float = 0, flops: float = 0) -> float:
        """How long it takes now to read `size` bytes and to multiply with `flops` operations."""
        total = 0.0
        for amount, unit, work in (
            (size, self.size, self.read),
            (flops, self.flops, self.multiply),
        ):
            if amount:
                times = [timed(work) for _ in range(max(1, round(amount / unit)))]
                total += amount / unit * statistics.mean(times)
        return total


# ---- the figures --------------------------------------------------------------------------------


def prefill(model, limit, rival, runs):
    """Tokens per second of reading a prompt into an empty cache, to the next token's logits."""
    for t in (t for t in PREFILL if t <= model.config.n_ctx):
        yield _prefill(model, limit, rival, runs, t)


def _prefill(model, limit, rival, runs, t):
    tokens = _tokens(model, 1, t)
    flops = sum(prefill_flops(model.config, t).values())
    measures = [
        lambda: timed(sample.read, model, tokens, model.cache()),
        lambda: limit.seconds(flops=flops),
    ]
    if rival:
        measures.append(lambda: timed(rival.prefill, tokens))
    with fast.kept_memory():  # as in `generate`
        return _rate(f"prefill {t}", t, *in_turn(measures, runs))


def decode(model, limit, rival, runs):
    """Tokens per second of single steps at several lengths of context."""
    for s in (s for s in CONTEXTS if s < model.config.n_ctx):
        yield _decode(model, limit, rival, runs, 1, s, f"decode at {s}")


def decode_batches(model, limit, rival, runs):
    """Tokens per second of all rows together, at a context of 128."""
    for batch in BATCHES:
        s = min(128, model.config.n_ctx - 1)
        yield _decode(model, limit, rival, runs, batch, s, f"decode {batch} rows, context {s}")


def _decode(model, limit, rival, runs, batch, s, name):
    steps = min(16, model.config.n_ctx - s)
    context, token = _tokens(model, batch, s), _tokens(model, batch, 1)
    cache = model.cache(batch)
    sample.read(model, context, cache)

    def work():
        for _ in range(steps):
            model.forward(token, cache, only_last=True)
        cache.length = s

    size = steps * (weight_bytes(model) + batch * s * cache_bytes(model))
    measures = [lambda: timed(work), lambda: limit.seconds(size=size)]
    if rival:
        theirs = rival.decoding(context, token, steps)
        measures.append(lambda: timed(theirs))
    return _rate(name, batch * steps, *in_turn(measures, runs))


def training(model, limit, rival, runs):
    """Tokens per second of a whole step: forward, backward, clipping, AdamW."""
    trained = GPT2(model.config, {name: p.copy() for name, p in model.params.items()})
    for batch, t in ((b, t) for b, t in TRAINING if t <= model.config.n_ctx):
        yield _training(trained, limit, rival, runs, batch, t)


def _training(model, limit, rival, runs, batch, t):
    tokens = _tokens(model, batch, t)
    same = iter(lambda: (tokens, tokens, np.ones(tokens.shape, bool)), None)
    settings = train.Settings(steps=10**6, lr=1e-6)
    steps = train.train(model, same, settings, optim.adam_state(model.params))
    flops = 3 * sum(training_flops(model.config, t).values()) * batch
    # AdamW reads p, g, m, v and writes p, m, v
    size = 7 * sum(p.nbytes for p in model.params.values())
    durations = in_turn([lambda: timed(next, steps), lambda: limit.seconds(size, flops)], runs)
    steps.close()  # so that the rival is measured without `fast.kept_memory`, as it is by itself
    if rival:
        theirs = rival.training(tokens)
        durations += in_turn([lambda: timed(theirs)], runs)
    return _rate(f"training step {batch} x {t}", batch * t, *durations)


def bpe(runs, megabytes: float = 1.0):
    """MB per second of the official vocabulary's encode, with an empty cache, and decode.

    The text is words drawn at random, more of them rare than in prose, which is faster.
    """
    rng = np.random.default_rng(0)
    vocabulary = Tokenizer.gpt2()
    words = [t.replace("Ġ", " ") for t in vocabulary.tokens if t.lstrip("Ġ").isalpha()]
    odds = 1 / (np.arange(len(words)) + 2.7)  # as often as words are in prose (Zipf, Mandelbrot)
    common = rng.choice(len(words), int(megabytes * 1.8e5), p=odds / odds.sum())
    text = "".join(words[i] for i in common)
    size = len(text.encode("utf-8"))
    ids = vocabulary.encode(text)
    measures = [
        lambda: timed(Tokenizer.gpt2().encode, text),  # a new one, its cache empty
        lambda: timed(vocabulary.decode, ids),
    ]
    for name, times in zip(("encode", "decode"), in_turn(measures, runs), strict=True):
        yield _rate(f"BPE {name}, random words", size / 1e6, times, unit="MB/s")


def start(folder, runs):
    """Seconds of `import numpygpt` beyond Python's own start and NumPy, and of loading a model."""
    code = {
        "import numpygpt": "import numpy\nimport time\ns = time.perf_counter()\nimport numpygpt\n",
        "load": "import numpygpt, numpygpt.files.pretrained, time\ns = time.perf_counter()\n"
        f"numpygpt.load({str(folder)!r})\n",
    }
    for name, lines in code.items():
        lines += "print(time.perf_counter() - s)"
        times = sorted(float(_python(lines)) for _ in range(runs))
        yield Row(name, statistics.median(times), "s", times[0], times[-1])


def footprint(folder, config):
    """Peak memory of whole processes, as a multiple of the weights, NumPy and Python included."""
    head = (
        "import numpy as np, numpygpt\nfrom numpygpt import lora, optim, sample, train\n"
        f"model, _ = numpygpt.load({str(folder)!r})\n"
        "size = sum(p.nbytes for p in model.params.values())\n"
        "def step(model, rows, length):\n"
        "    tokens = np.zeros((rows, length), int)\n"
        "    batch = tokens, tokens, np.ones(tokens.shape, bool)\n"
        "    state = optim.adam_state(model.params)\n"
        "    list(train.train(model, [batch] * 2, train.Settings(steps=2), state))\n"
    )
    tail = "\nfrom numpygpt.check import bench\nprint(bench.peak_memory(), size)"
    works = {"memory, first token": "model.forward([0])"}
    if config.n_ctx >= 1024:
        works["memory, prefill 1024"] = "next(sample.generate(model, [0] * 1024, 1))"
    if config.n_ctx >= 64:
        works["memory, training 4 x 64"] = "step(model, 4, 64)"
        works["memory, LoRA 4 x 64"] = "step(lora.LoRA(model, rank=8), 4, 64)"
    for name, work in works.items():
        peak, size = map(int, _python(head + work + tail).split())
        yield Row(name, peak / 1e6, "MB", peak / 1e6, peak / 1e6, peak / size)


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage would count the process that started this one
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def drafts(model, tokenizer, tokens: int = 100):
    """Greedy decoding with prompt-lookup drafts: ids per step, and the speed-up over none."""
    prompts = {
        "repetitive": "One, two, three, said the cat. " * 8 + "One, two,",
        "ordinary": "The youngest brother went down to the river to look for his lost ring, and",
    }
    for name, prompt in prompts.items():
        ids = tokenizer.encode(prompt)[: model.config.n_ctx // 2]
        spent, per_step = {}, {}
        for draft in (None, prompt_lookup()):
            begun = time.perf_counter()
            steps = list(sample.generate(model, ids, tokens, temperature=0, draft=draft))
            spent[draft is None] = time.perf_counter() - begun
            per_step[draft is None] = sum(len(step[0]) for step in steps) / len(steps)
        gain = spent[True] / spent[False]
        for what, value in (("ids per step", per_step[False]), ("speed-up", gain)):
            yield Row(f"draft, {name} prompt, {what}", value, "x", value, value)


# ---- what they cost at least --------------------------------------------------------------------


def prefill_flops(config, t: int) -> dict[str, int]:
    """Of reading t tokens: each sees those before it, only the last is unembedded."""
    flops = analyze.flops_per_token(config, t)
    seen = sum(analyze.flops_per_token(config, s)["scores and values"] for s in range(1, t + 1))
    return {
        "attn": flops["attn"] * t,
        "mlp": flops["mlp"] * t,
        "scores and values": seen,
        "unembed": flops["unembed"],
    }


def training_flops(config, t: int) -> dict[str, int]:
    """Of the forward pass of t tokens, all of them unembedded."""
    return prefill_flops(config, t) | {"unembed": analyze.flops_per_token(config, 1)["unembed"] * t}


def weight_bytes(model) -> int:
    """Bytes that a decoding step reads: all weights but the table of positions."""
    return sum(p.nbytes for name, p in model.params.items() if name != "wpe.weight")


def cache_bytes(model) -> int:
    return analyze.cache_bytes_per_token(model.config, model.dtype.itemsize)


def _tokens(model, batch, t):
    return np.random.default_rng(0).integers(0, model.config.n_vocab, (batch, t))


def _rate(work, amount, times, best=None, theirs=None, unit="tokens/s"):
    """A row, from durations of ours, of as much at the limit, and of torch's."""
    middle = statistics.median(times)
    return Row(
        work,
        amount / middle,
        unit,
        amount / times[-1],
        amount / times[0],
        statistics.median(best) / middle if best else None,
        statistics.median(theirs) / middle if theirs else None,
    )


def _python(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout


# ---- everything, and the table ------------------------------------------------------------------


def bench(model, tokenizer=None, runs: int = 5, rival=None, folder=None):
    """All rows, one by one as they are measured.

    tokenizer: for the rows on drafts, which random weights would say nothing about. folder: where
    the model can be loaded from, for the rows on loading and memory. rival: a
    `Torch(config)` to be measured beside each row on the same threads.
    """
    limit = Limits(model, runs)
    yield Row("limit: bandwidth", limit.bandwidth / 1e9, "GB/s", *[limit.bandwidth / 1e9] * 2)
    yield Row("limit: matrix product", limit.peak / 1e9, "GFLOP/s", *[limit.peak / 1e9] * 2)
    if folder:
        yield from start(folder, runs)
    for figures in (prefill, decode, decode_batches, training):
        yield from figures(model, limit, rival, runs)
    if tokenizer is not None:
        yield from drafts(model, tokenizer)
    yield from bpe(runs)
    if folder:
        yield from footprint(folder, model.config)


def table_line(row: Row) -> str:
    """One aligned line of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    torch = "" if row.torch is None else f"{row.torch:.2f}"
    spread = f"{row.least:,.4g} .. {row.most:,.4g}"
    return f"{row.work:<42}{row.value:>12,.4g} {row.unit:<9}{spread:>22}{ratio:>8}{torch:>8}"


HEADING = f"{'work':<42}{'median':>12} {'unit':<9}{'least .. most':>22}{'ratio':>8}{'torch':>8}"


def write_json(path, rows) -> None:
    """The rows as a JSON list, written whole or not at all."""
    with writing(path) as file:
        file.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


class Torch:
    """transformers' GPT-2 of the same shape on the same threads, with random weights.

    Raises ValueError where torch or transformers is not installed.
    """

    def __init__(self, config: Config):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ValueError(f"--vs torch needs torch and transformers: {error}") from None
        torch.set_num_threads(int(os.environ.get("OPENBLAS_NUM_THREADS", os.cpu_count())))
        sizes = {name: getattr(config, name) for name in ("n_embd", "n_head", "n_layer", "n_inner")}
        sizes |= {"vocab_size": config.n_vocab, "n_positions": config.n_ctx}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.torch = torch
        self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **no_dropout))

    def prefill(self, tokens):
        with self.torch.inference_mode():
            self.model(self.torch.tensor(tokens), use_cache=True, logits_to_keep=1)

    def decoding(self, context, token, steps):
        """A function that decodes `steps` times after the context, and forgets it again."""
        torch = self.torch
        with torch.inference_mode():
            past = self.model(torch.tensor(context), use_cache=True).past_key_values

        def work():
            with torch.inference_mode():
                for _ in range(steps):
                    self.model(torch.tensor(token), past_key_values=past, use_cache=True)
                past.crop(-steps)  # counted from the end

        return work

    def training(self, tokens):
        """A function that takes one training step."""
        tokens = self.torch.tensor(tokens)
        optimizer = self.torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.1)

        def work():
            self.model(tokens, labels=tokens).loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return work


@dataclass(frozen=True)
class Panel:
    """One picture of what length costs: what was measured, and what predicts it.

    lengths, measured: points. predicted: name -> (lengths, values). crossing: (length, what happens
    there) or None.
    """

    title: str
    unit: str
    lengths: np.ndarray
    measured: np.ndarray
    predicted: dict
    crossing: tuple | None = None


def cost_curves(model, runs: int = 3, seconds: float = 30.0, bar: Callable = list) -> list[Panel]:
    """Time and memory of reading n tokens and of one decoding step, measured and predicted.

    Predicted for n tokens, with N weights in the blocks, L layers, width d:

        time    (2 N n + 2 L d n^2 + unembedding) / peak         every pair of tokens seen: n^2 / 2
        memory  8 L d n bytes, its keys and values in float32; every decoding step reads them back
                beside all weights, at the bandwidth

    The often quoted O(n^2 d) alone leaves out 2 N n = 24 L d^2 n, which is the larger up to
    `analyze.attention_overtakes`.

    Measured up to n_ctx, all lengths in turn, in `runs` rounds; what takes less than a fifth of a
    second is repeated for so long. The quickest counts, as others on the machine can only delay.
    After `seconds` nothing is measured for a second time.
    Predicted on to where the two terms have crossed. bar: goes round what is done, as `tqdm` does.
    """
    limit = Limits(model, 2 * runs)
    longest = int(np.log2(model.config.n_ctx))
    lengths = [2**i for i in range(min(4, longest), longest + 1)]
    held, reading, step = {}, {}, {}
    start = time.perf_counter()
    for number, n in bar([(number, n) for number in range(runs) for n in lengths]):
        left = seconds - (time.perf_counter() - start)
        if number == 0:
            held[n] = _held(model, n)
            reading[n] = step[n] = math.inf
        if number == 0 or left > 0:
            took = _read_and_step(model, n, min(0.2, max(0, left)))
            reading[n], step[n] = min(reading[n], took[0]), min(step[n], took[1])
    return _panels(model, limit, lengths, reading, step, held)


def _held(model, n):
    """Bytes at the peak of reading n tokens: the cache's share of them, and the activations."""
    tokens, cache = _tokens(model, 1, n), model.cache()
    tracemalloc.start()  # NumPy tells it of its arrays
    sample.read(model, tokens, cache)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + n * cache_bytes(model)


def _read_and_step(model, n, seconds):
    """Seconds of reading n tokens, and of a step with the last of them; see `_quickest`."""
    tokens, cache = _tokens(model, 1, n), model.cache()

    def read():
        cache.length = 0
        sample.read(model, tokens, cache)

    def step():
        cache.length = n - 1
        model.forward([0], cache, only_last=True)

    return _quickest(read, seconds), _quickest(step, seconds)


def _quickest(work, seconds):
    """The least of the durations of `work`, repeated for so many seconds, once at least."""
    durations, start = [], time.perf_counter()
    while not durations or time.perf_counter() - start < seconds:
        durations.append(timed(work))
    return min(durations)


def _panels(model, limit, lengths, reading, step, held):
    at = 2 ** np.arange(int(np.log2(lengths[0])), int(np.log2(24 * model.config.n_embd)) + 1)
    parts = [prefill_flops(model.config, int(n)) for n in at]
    square = np.array([part["scores and values"] for part in parts])
    linear = np.array([part["attn"] + part["mlp"] for part in parts])
    whole = np.array([sum(part.values()) for part in parts])
    cached, weights = at * cache_bytes(model), np.full(len(at), weight_bytes(model))
    overtakes = analyze.attention_overtakes(model.config, causal=True)
    widths = f"n = {overtakes / model.config.n_embd:.3g} d = {overtakes:,.0f}"
    points = [np.array([values[n] for n in lengths]) for values in (reading, step, held)]
    return [
        Panel(
            "Reading n tokens at once",
            "seconds",
            np.array(lengths),
            points[0],
            {
                "all products, at this machine's best speed": (at, whole / limit.peak),
                "of these the weights: n d²": (at, linear / limit.peak),
                "of these attention: n² d": (at, square / limit.peak),
            },
            (
                overtakes,
                f"from {widths} on\nattention costs more\n(half of it, were nothing masked)",
            ),
        ),
        Panel(
            "Writing one token after n",
            "seconds",
            np.array(lengths),
            points[1],
            {
                "reading weights and cache, at the bandwidth": (
                    at,
                    (weights + cached) / limit.bandwidth,
                ),
                "of these the weights": (at, weights / limit.bandwidth),
                "of these the cache": (at, cached / limit.bandwidth),
            },
        ),
        Panel(
            "Memory to read n tokens, weights aside",
            "MB",
            np.array(lengths),
            points[2] / 1e6,
            {"of this the cache: keys and values": (at, cached / 1e6)},
        ),
    ]


@contextlib.contextmanager
def temporary_model(config):
    """A model of random weights in a folder that goes again, loaded from there: (folder, model)."""
    with tempfile.TemporaryDirectory(prefix="numpygpt-bench-") as folder:
        random = GPT2(config, init(config, np.random.default_rng(0)))
        checkpoint.save(random, Tokenizer.gpt2(), folder)
        del random
        yield folder, checkpoint.load_folder(folder)
