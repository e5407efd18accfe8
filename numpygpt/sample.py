"""From logits to the next id: greedy, temperature, top-k, top-p; one prompt or a batch.

A model is handed in, never imported. What is asked of it: `config.n_ctx`, `config.n_vocab`,
`cache(batch)` and `forward(tokens, cache, pads=, only_last=)`; and of the cache: `length`, `pads`,
and the lists `k` and `v` of one array (B, H, n_ctx, D) per layer.
"""

import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from . import elsewhere, fast, ops

# Tokens of a row that are read at once: more would only take more memory.
PREFILL = 1024  # any value is right


# ---- filters: logits (..., V) -> logits (..., V), -inf where a token is forbidden ---------------


def apply_temperature(logits, temperature: float):
    """(x - max x) / temperature: below 1 sharper, above 1 flatter.

    Subtracting the maximum changes no probability and keeps a tiny temperature from overflowing.
    """
    smallest = float(np.finfo(logits.dtype).tiny)  # less would round to 0
    with np.errstate(over="ignore"):  # to -inf, which is right: probability 0
        return (logits - logits.max(-1, keepdims=True)) / max(temperature, smallest)


def keep_top_k(logits, k: int):
    """Forbid all logits below the k-th largest; those equal to it stay, as in transformers."""
    k = min(int(k), logits.shape[-1])  # -k of an unsigned one of NumPy's is positive
    kth = np.partition(logits, -k, axis=-1)[..., -k, None]
    out = logits.copy()
    out[logits < kth] = -np.inf
    return out


def keep_top_p(logits, p: float):
    """Keep the likeliest tokens, as few as together hold at least p (Holtzman et al. 2019, 3.1).

    The token with which the sum crosses p stays. Among equals the lower id comes first.
    """
    p = float(p)  # one of NumPy's may be too coarse for a sum
    if p == 1:  # a sum that rounds up to 1 early must not cut the tail off
        return logits.copy()
    out = np.full_like(logits, -np.inf)
    rows, kept = (array.reshape(-1, logits.shape[-1]) for array in (logits, out))
    for x, row in zip(rows, kept, strict=True):
        weight = np.exp(x - x.max())
        total = float(weight.sum(dtype=np.float64))
        # V tokens below (1 - p) / 2V together hold less than 1 - p: none is kept, so none is sorted
        likely = np.flatnonzero(weight > (1 - p) / (2 * x.size) * total)
        order = likely[np.argsort(-x[likely], kind="stable")]
        held = np.cumsum(weight[order], dtype=np.float64)
        keep = order[: np.searchsorted(held, p * total) + 1]
        row[keep] = x[keep]
    return out


def penalise_repetition(logits, rows, penalty: float):
    """Make what has been said less likely: logits (B, V), ids of each row so far -> (B, V).

    A logit x becomes x / penalty where it is positive and x * penalty where it is negative, once
    for each id that occurs, in the prompt too (Keskar et al. 2019, 4.1, as transformers does it).
    """
    out = logits.copy()
    for x, ids in zip(out, rows, strict=True):
        seen = np.unique(ids)
        x[seen] = np.where(x[seen] > 0, x[seen] / penalty, x[seen] * penalty)
    return out


def probabilities(logits, temperature: float = 1.0, top_k: int | None = None, top_p=None):
    """What the next id is drawn from: temperature, then top-k, then top-p, then softmax.

    logits (..., V) -> (..., V), exactly 0 where a token is forbidden. temperature=0 is greedy: all
    on the largest logit, the lowest id among equals. Raises ValueError for settings out of range,
    FloatingPointError if a logit is NaN or infinite.
    """
    temperature, top_k, top_p = _check_filters(temperature, top_k, top_p)
    logits = np.asarray(logits)
    if not np.issubdtype(logits.dtype, np.floating):  # integers have no -inf
        logits = logits.astype(np.float64)
    check_logits(logits)
    if temperature == 0:
        p = np.zeros_like(logits)
        np.put_along_axis(p, logits.argmax(-1)[..., None], 1, -1)
        return p
    if temperature != 1:
        logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return ops.softmax(logits)


def draw(p, u: float) -> int:
    """The id at which the running sum of p (V,) passes u in [0, 1): never one with p = 0."""
    ids = np.flatnonzero(p > 0)
    held = np.cumsum(p[ids], dtype=np.float64)
    # held[-1] is 1 up to rounding; u < 1, and the product is less than held[-1] even when rounded
    return int(ids[np.searchsorted(held, u * held[-1], side="right")])


# ---- generate -----------------------------------------------------------------------------------


@dataclass
class Row:
    """A sequence that is being continued. The model sees its ids from `start` on."""

    ids: list
    rng: np.random.Generator
    left: int  # how many ids it may still get
    start: int
    new: list = field(default_factory=list)  # those of this step
    tail: bytes = b""  # the last bytes of the new text: the beginning of a stop string, perhaps
    reason: str = ""  # why it ended

    def take(self, i: int, ends: Callable):
        """Append an id; note why the row ends, if it does with this one."""
        self.ids.append(i)
        self.new.append(i)
        self.left -= 1
        if ends(self, i):
            self.reason = "stop"
        elif not self.left:
            self.reason = "length"


@elsewhere.names(elsewhere.GENERATING)
def generate(
    model,
    prompts,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_return_sequences: int = 1,
    stop: int | str | Iterable = (),
    rng: np.random.Generator | None = None,
    tokenizer=None,
    at_end: str = "stop",
    repetition_penalty: float = 1.0,
    draft=None,
) -> Iterator[list[list[int]]]:
    """Continue one prompt or many, yielding at every step the new ids of each row.

    prompts: ids, or a list of them, of any lengths. Row p * num_return_sequences + r is the r-th
        continuation of prompt p. A step holds one list a row: one id, or several with a draft, or
        none once the row has ended.
    stop: ids and strings that end a row. The id, or the token that completes the string, is still
        yielded. Strings are looked for in the new text and need `tokenizer` (its `decode_bytes`).
    rng: each row draws from a child of it (`rng.spawn`), so what a row gets depends on the seed and
        its number, not on when others end. None: seeded by the operating system, anew every time.
    at_end: what happens when n_ctx ids have been read and the next has no position left. "stop":
        the row ends, after n_ctx - len(prompt) + 1 new ids. "slide": its oldest ids are dropped and
        the last n_ctx // 2 read again, as if the text began there, as often as necessary.
    repetition_penalty: above 1, what has been said becomes less likely; before the filters.
    draft: `draft.prompt_lookup()` or `draft.draft_model(small)`: several ids a step, for one row.
        What is drawn is distributed as without one, and greedy ids are the same; see `draft.py`.

    Returns (the generator's value: `reasons = yield from generate(...)`) for each row why it ended:
    "length", "stop" or "context". Raises, at the call, ValueError or TypeError for what does not
    fit, such as prompts longer than n_ctx, of which "slide" reads the last n_ctx ids.
    """
    temperature, top_k, top_p = _check_filters(temperature, top_k, top_p)
    repetition_penalty = check_penalty(repetition_penalty)
    max_new_tokens = check_count("max_new_tokens", max_new_tokens, 0)
    num_return_sequences = check_count("num_return_sequences", num_return_sequences, 1)
    prompts = check_prompts(model.config, prompts, at_end)
    count = len(prompts) * num_return_sequences
    check_memory(model.config, count, max(map(len, prompts)) + max_new_tokens)
    if draft is not None and count > 1:
        raise ValueError(f"a draft can serve one row, not {count}: generate them one after another")
    if draft is not None and not hasattr(draft, "steps"):
        raise TypeError(f"draft must be one of numpygpt.draft, as prompt_lookup(), not {draft!r}")
    rows = []
    for i, child in enumerate(_children(rng, count)):
        ids = prompts[i // num_return_sequences]
        start = max(0, len(ids) - model.config.n_ctx)
        rows.append(Row(list(ids), child, max_new_tokens, start))
    ends = _stop_test(check_stop(stop, model.config.n_vocab), tokenizer)

    def distribution(logits):
        return probabilities(logits, temperature, top_k, top_p)

    slide = at_end == "slide"
    if draft is None:
        penalty = repetition_penalty
        steps = _generate(model, rows, num_return_sequences, distribution, ends, slide, penalty)
    elif repetition_penalty != 1:
        raise ValueError("a draft is not checked against a repetition_penalty: leave out one")
    else:
        steps = draft.steps(model, rows[0], distribution, ends, slide)
    return _keeping_memory(steps)


def _children(rng, count):
    """A generator of random numbers for each row."""
    if rng is not None:
        check_rng(rng)
    return (np.random.default_rng() if rng is None else rng).spawn(count)


def _keeping_memory(steps):
    with fast.kept_memory():
        return (yield from steps)


def _generate(model, rows, copies, distribution, ends, slide, penalty):
    """The loop: distribution, draw, yield, make room, forward. Row r continues prompt r // copies.

    A row that has ended leaves the batch.
    """
    if not rows[0].left:
        return ["length"] * len(rows)
    cache, logits = prefill(model, [row.ids[row.start :] for row in rows[::copies]])
    if copies > 1:
        prompt_of = np.repeat(np.arange(len(logits)), copies)
        cache, logits = select(model, cache, prompt_of), logits[prompt_of]
    going = rows
    while True:
        for row in rows:
            row.new = []
        if penalty != 1:
            logits = penalise_repetition(logits, [row.ids for row in going], penalty)
        for row, p in zip(going, distribution(logits), strict=True):  # p (V,)
            row.take(draw(p, row.rng.random()), ends)
        yield [row.new for row in rows]

        slid = meet_context_end(going, model.config.n_ctx, slide)
        still = [i for i, row in enumerate(going) if not row.reason]
        if not still:
            return [row.reason for row in rows]
        if len(still) < len(going):
            going, cache = [going[i] for i in still], select(model, cache, still)
        if slid:
            cache, _ = prefill(model, [row.ids[row.start : -1] for row in going])
        logits = read(model, np.array([row.ids[-1:] for row in going]), cache)


def meet_context_end(rows, n_ctx, slide):
    """End rows whose last id has no position left, or move their start: true if one was moved."""
    full = [row for row in rows if not row.reason and len(row.ids) - row.start > n_ctx]
    for row in full:
        if slide:
            row.start = len(row.ids) - max(1, n_ctx // 2)
        else:
            row.reason = "context"
    return slide and bool(full)


def prefill(model, windows):
    """Read rows of unequal length, padded at the left: (cache, logits (B, V) after the last id)."""
    longest = max(len(ids) for ids in windows)
    pads = np.array([longest - len(ids) for ids in windows])
    tokens = np.array([[0] * pad + ids for pad, ids in zip(pads, windows, strict=True)])
    cache = model.cache(len(windows))
    return cache, read(model, tokens, cache, pads if pads.any() else None)


def read(model, tokens, cache, pads=None):
    """Logits (B, V) after the last of tokens (B, T), which are read into the cache; None if T is 0.

    A longer prompt than PREFILL goes in pieces: each sees the earlier ones through the cache.
    """
    logits = None
    for start in range(0, tokens.shape[1], PREFILL):
        piece = tokens[:, start : start + PREFILL]
        logits, _ = model.forward(piece, cache, pads=pads, only_last=True)
    return None if logits is None else logits[:, -1]


def select(model, cache, rows):
    """A cache with these rows of the old one, in this order, less the padding common to them.

    A key knows its position (from `wpe`), not its column, so it may move to another column.
    """
    pads = np.zeros(len(rows), int) if cache.pads is None else cache.pads[rows]
    first = int(pads.min())
    chosen = model.cache(len(rows))
    chosen.length = cache.length - first
    chosen.pads = pads - first if pads.max() > first else None
    for old, new in zip(cache.k + cache.v, chosen.k + chosen.v, strict=True):
        new[:, :, : chosen.length] = old[rows, :, first : cache.length]
    return chosen


def _stop_test(stop, tokenizer):
    """A function (row, new id) -> whether the row ends with it."""
    ids = {s for s in stop if _is_int(s)}
    # As bytes: a character may be spread over tokens, and UTF-8 cannot match across a boundary.
    texts = [s.encode() for s in stop if isinstance(s, str)]
    if texts and tokenizer is None:
        raise ValueError("stop strings are looked for in text: give generate a tokenizer as well")
    if not texts:
        return lambda row, i: i in ids
    longest = max(map(len, texts))

    def ends(row, i):
        text = row.tail + tokenizer.decode_bytes([i])
        row.tail = text[max(0, len(text) - longest + 1) :]
        return i in ids or any(s in text for s in texts)

    return ends


# ---- what is refused, and in which words --------------------------------------------------------


def _is_int(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_penalty(penalty) -> float:
    """The penalty. Raises TypeError or ValueError for what is not a positive number."""
    number = check_number("repetition_penalty", penalty)
    if not 0 < number < math.inf:
        raise ValueError(f"repetition_penalty must be a positive number, not {penalty!r}")
    return number


def check_stop(stop, n_vocab: int | None = None) -> list:
    """The ids and strings that end a text.

    Raises TypeError for anything else, and ValueError for an id that the vocabulary does not have
    and for a string that no text can hold.
    """
    one = isinstance(stop, str | bytes) or not isinstance(stop, Iterable)
    stop = [stop] if one else list(stop)
    for s in stop:
        if not _is_int(s) and not (isinstance(s, str) and s):
            raise TypeError(f"stop must hold ids and strings that are not empty, not {s!r}")
        if isinstance(s, str):
            if any("\ud800" <= c <= "\udfff" for c in s):
                raise ValueError(f"stop holds {s!r}, half a character, which no text holds")
        elif n_vocab is not None and not 0 <= s < n_vocab:
            raise ValueError(
                f"stop holds the id {s}, which never comes: the vocabulary has ids 0 to "
                f"{n_vocab - 1}"
            )
    return stop


def check_count(name, value, least=None) -> int:
    """The integer as Python's own: NumPy's small ones overflow as soon as they are added to.

    Raises TypeError for what is not an integer, ValueError where it is below `least`.
    """
    try:
        count = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        count = None
    if count is None:
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if least is not None and count < least:
        raise ValueError(f"{name} must be at least {least}, not {count}")
    return count


def check_rng(rng):
    """Raises TypeError for what is not a NumPy Generator, as a seed is not."""
    if not (hasattr(rng, "spawn") and hasattr(rng, "random")):
        raise TypeError(
            f"rng must be a NumPy Generator such as np.random.default_rng(7), not {rng!r}"
        )


def check_logits(logits):
    """Raises FloatingPointError where the largest of a row (..., V) is NaN or infinite."""
    if not np.isfinite(logits.max(-1)).all():  # one NaN makes the maximum NaN
        raise FloatingPointError(
            "the model returned logits that are not numbers: its weights or an operation are broken"
        )


def check_memory(config, rows, length):
    """Raises ValueError where keys, values and logits of that many rows cannot fit the machine."""
    each = 8 * config.n_layer * config.n_embd * min(length, config.n_ctx) + 8 * config.n_vocab
    memory = fast.machine_memory()
    if rows * each > memory:
        raise ValueError(
            f"{rows:,} texts at once take {rows * each / 1e9:,.0f} GB of keys, values and logits, "
            f"and this machine has {memory / 1e9:,.0f}: ask for fewer at a time"
        )


def _check_filters(temperature, top_k, top_p):
    """The three as Python's numbers."""
    number = check_number("temperature", temperature)
    if not 0 <= number < math.inf:  # NaN fails as well
        raise ValueError(
            f"temperature must be 0 (greedy) or a positive number, not {temperature!r}"
        )
    if top_k is not None:
        top_k = check_count("top_k", top_k, 1)
    if top_p is not None:
        share = check_number("top_p", top_p)
        if not 0 < share <= 1:
            raise ValueError(f"top_p must be greater than 0 and at most 1, not {top_p!r}")
        top_p = share
    return number, top_k, top_p


def check_number(name, value) -> float:
    """The number as Python's own: one of NumPy's would change the dtype of what it is used on.

    Raises TypeError for what is not a real number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.copysign(math.inf, value)


def check_prompts(config, prompts, at_end):
    """The prompts as lists of Python ints."""
    if at_end not in ("stop", "slide"):
        raise ValueError(f'at_end must be "stop" or "slide", not {at_end!r}')
    if isinstance(prompts, str):
        raise TypeError("prompts are ids, not text: encode it with the tokenizer first")
    try:
        nested = len(prompts) > 0 and np.ndim(prompts[0]) > 0
    except (TypeError, KeyError, ValueError):  # of a number or a set, a dict, lists in lists
        raise TypeError(
            f"prompts must be a list of ids, or a list of such lists, not {prompts!r:.200}"
        ) from None
    prompts = list(prompts) if nested else [prompts]
    for number, ids in enumerate(prompts):
        try:
            ids = prompts[number] = np.asarray(ids)
        except ValueError:
            raise TypeError(f"prompt {number} must be a list of ids, not {ids!r:.200}") from None
        if ids.size == 0:
            raise ValueError(
                f"prompt {number} is empty: begin with the id of <|endoftext|>, if any"
            )
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise TypeError(f"prompt {number} must be a list of ids, not {ids.dtype} {ids.shape}")
        if ids.min() < 0 or ids.max() >= config.n_vocab:
            at = np.flatnonzero((ids < 0) | (ids >= config.n_vocab))[0]
            raise ValueError(
                f"prompt {number} holds the id {ids[at]} at position {at}: the vocabulary has ids "
                f"0 to {config.n_vocab - 1}"
            )
        if len(ids) > config.n_ctx and at_end == "stop":
            raise ValueError(
                f"prompt {number} has {len(ids)} ids, but the model has n_ctx = {config.n_ctx}: "
                'shorten it, or slide the window (at_end="slide")'
            )
    return [ids.tolist() for ids in prompts]
