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
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
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
    weights. rivals: name -> its time over ours, so that above 1 we are faster.
    """

    work: str
    value: float
    unit: str
    least: float
    most: float
    ratio: float | None = None
    rivals: dict = field(default_factory=dict)


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
        """All weights once, through products with one row: `size` bytes."""
        for x, w in self.pairs:
            x @ w

    def multiply(self):
        """One large matrix product: `flops` operations."""
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


@dataclass(frozen=True)
class Work:
    """Something to be measured: what it is called, how many tokens it makes, the function that does
    it, what it costs at least, and a function rival -> function that returns its seconds."""

    name: str
    tokens: int
    run: Callable
    theirs: Callable
    size: float = 0
    flops: float = 0


def reading(model, lengths=PREFILL):
    """Reading a prompt into an empty cache, to the next token's logits."""
    for t in (t for t in lengths if t <= model.config.n_ctx):
        tokens = _tokens(model, 1, t)
        yield Work(
            f"prefill {t}",
            t,
            lambda tokens=tokens: sample.read(model, tokens, model.cache()),
            lambda rival, tokens=tokens: rival.prefill(tokens),
            flops=sum(prefill_flops(model.config, t).values()),
        )


def decoding(model, contexts=CONTEXTS, batches=BATCHES):
    """Single steps of one row at several lengths of context, and of several rows at one length."""
    for s in (s for s in contexts if s < model.config.n_ctx):
        yield _steps(model, 1, s, f"decode at {s}")
    s = min(128, model.config.n_ctx - 1)
    for batch in batches:
        yield _steps(model, batch, s, f"decode {batch} row{'s' * (batch > 1)}, context {s}")


def _steps(model, batch, s, name):
    steps = min(16, model.config.n_ctx - s)
    context, token = _tokens(model, batch, s), _tokens(model, batch, 1)
    cache = model.cache(batch)
    sample.read(model, context, cache)

    def run():
        for _ in range(steps):
            model.forward(token, cache, only_last=True)
        cache.length = s

    size = steps * (weight_bytes(model) + batch * s * cache_bytes(model))
    return Work(name, batch * steps, run, lambda rival: rival.decoding(context, token, steps), size)


def training(model, shapes=TRAINING):
    """Whole steps: forward, backward, clipping, AdamW."""
    trained = GPT2(model.config, {name: p.copy() for name, p in model.params.items()})
    for batch, t in ((b, t) for b, t in shapes if t <= model.config.n_ctx):
        tokens = _tokens(trained, batch, t)
        same = iter(lambda x=tokens: (x, x, np.ones(x.shape, bool)), None)
        settings = train.Settings(steps=10**6, lr=1e-6)
        steps = train.train(trained, same, settings, optim.adam_state(trained.params))
        yield Work(
            f"training step {batch} x {t}",
            batch * t,
            lambda steps=steps: next(steps),
            lambda rival, tokens=tokens: rival.training(tokens),
            # AdamW reads p, g, m, v and writes p, m, v
            7 * sum(p.nbytes for p in trained.params.values()),
            3 * sum(training_flops(trained.config, t).values()) * batch,
        )
        steps.close()


def measured(work: Work, limit, rivals, runs) -> Row:
    """Ours, the limit and every rival in turn, so that all meet the same disturbances."""
    measures = [lambda: timed(work.run), lambda: limit.seconds(work.size, work.flops)]
    theirs = {name: work.theirs(rival) for name, rival in rivals.items()}
    theirs = {name: seconds for name, seconds in theirs.items() if seconds}
    with fast.kept_memory():  # as in `generate` and `train`
        ours, best, *others = in_turn([*measures, *theirs.values()], runs)
    middle = statistics.median(ours)
    ratios = {
        name: statistics.median(times) / middle for name, times in zip(theirs, others, strict=True)
    }
    return _rate(work.name, work.tokens, ours, statistics.median(best) / middle, ratios)


# ---- beside others ------------------------------------------------------------------------------

# Each ends by itself when the process that started it has ended.
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(10000))\n"
MULTIPLY = (
    "import os, numpy\nparent, x = os.getppid(), numpy.ones((1024, 1024), 'f4')\n"
    "while os.getppid() == parent:\n    x @ x\n"
)


@contextlib.contextmanager
def processes(code: str, count: int):
    """So many Python processes that do `code`, until this ends."""
    started = []
    try:
        for _ in range(count):
            started.append(subprocess.Popen([sys.executable, "-c", code]))
        time.sleep(1)  # until they are at work
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def busy(model, runs):
    """Every work alone, then beside as many busy processes as we have threads, then beside another
    program that multiplies matrices on as many. The ratio is that of the slowest run to the median
    of those alone: what can be relied on."""
    count = fast.threads()
    others = {
        f"beside {count} busy processes": (SPIN, count),
        "beside another BLAS program": (MULTIPLY, 1),
    }
    for work in itertools.chain(
        reading(model, (16, 64, 256, 1024)), decoding(model, (), (1, 8)), training(model)
    ):
        with fast.kept_memory():
            (alone,) = in_turn([lambda work=work: timed(work.run)], runs)
            yield _rate(f"{work.name}, alone", work.tokens, alone)
            for name, (code, number) in others.items():
                with processes(code, number):
                    (times,) = in_turn([lambda work=work: timed(work.run)], runs)
                ratio = statistics.median(alone) / times[-1]
                yield _rate(f"{work.name}, {name}", work.tokens, times, ratio)


# ---- the rest -----------------------------------------------------------------------------------


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
    """Bytes that one position takes in this model's KV cache, in its own dtype."""
    return analyze.cache_bytes_per_token(model.config, model.dtype.itemsize)


def _tokens(model, batch, t):
    return np.random.default_rng(0).integers(0, model.config.n_vocab, (batch, t))


def _rate(work, amount, times, ratio=None, rivals=None, unit="tokens/s"):
    """A row, from the sorted durations of ours."""
    middle = statistics.median(times)
    return Row(
        work, amount / middle, unit, amount / times[-1], amount / times[0], ratio, rivals or {}
    )


def _python(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return ran.stdout


# ---- everything, and the table ------------------------------------------------------------------


def bench(model, tokenizer=None, runs: int = 5, rivals=None, folder=None):
    """All rows, one by one as they are measured.

    tokenizer: for the rows on drafts, which random weights would say nothing about. folder: where
    the model can be loaded from, for the rows on loading and memory. rivals: name -> one of
    `rivals.RIVALS` of the same configuration, to be measured beside each row.
    """
    limit = Limits(model, runs)
    yield Row("limit: bandwidth", limit.bandwidth / 1e9, "GB/s", *[limit.bandwidth / 1e9] * 2)
    yield Row("limit: matrix product", limit.peak / 1e9, "GFLOP/s", *[limit.peak / 1e9] * 2)
    if folder:
        yield from start(folder, runs)
    for work in itertools.chain(reading(model), decoding(model), training(model)):
        yield measured(work, limit, rivals or {}, runs)
    if tokenizer is not None:
        yield from drafts(model, tokenizer)
    yield from bpe(runs)
    if folder:
        yield from footprint(folder, model.config)


def heading(rivals=()) -> str:
    """What stands above the table; rivals: their names."""
    columns = "".join(f"{name:>13}" for name in rivals)
    return f"{'work':<50}{'median':>12} {'unit':<9}{'least .. most':>22}{'ratio':>8}{columns}"


def table_line(row: Row, rivals=()) -> str:
    """One aligned line of the table."""
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    columns = "".join(
        f"{row.rivals[name]:>13.2f}" if name in row.rivals else " " * 13 for name in rivals
    )
    spread = f"{row.least:,.4g} .. {row.most:,.4g}"
    line = f"{row.work:<50}{row.value:>12,.4g} {row.unit:<9}{spread:>22}{ratio:>8}{columns}"
    return line.rstrip()


def write_json(path, rows) -> None:
    """The rows as a JSON list, written whole or not at all."""
    with writing(path) as file:
        file.write(json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")


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
    """The shortest duration of `work`, repeated for that many seconds, at least once."""
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
    """A model of random weights in a temporary folder, loaded from there: (folder, model)."""
    with tempfile.TemporaryDirectory(prefix="numpygpt-bench-") as folder:
        random = GPT2(config, init(config, np.random.default_rng(0)))
        checkpoint.save(random, Tokenizer.gpt2(), folder)
        del random
        yield folder, checkpoint.load_folder(folder)
