"""Text in, text out: prompts as people write them, and the text that follows where it ends.

numpygpt.complete(model, tokenizer, "Once upon a time", max_new_tokens=100, seed=7)
for (piece,) in numpygpt.stream(model, tokenizer, "Once upon a time"):
    print(piece, end="")
"""

import collections
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import elsewhere, ops, sample
from .beam import beam_search

LONG_PROMPTS = ("error", "keep_end", "slide")


@elsewhere.names(elsewhere.GENERATING)
def complete(
    model,
    tokenizer,
    prompts: str | Iterable[str],
    max_new_tokens: int = 100,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_return_sequences: int = 1,
    stop: int | str | Iterable = (),
    seed: int | None = None,
    rng: np.random.Generator | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int | None = None,
    long_prompts: str = "error",
) -> list[str]:
    """The texts that follow the prompts, without the prompts: num_return_sequences for each.

    Text p * num_return_sequences + r is the r-th that follows prompt p. It ends before an end token
    of the model, before a `stop` that is a string in the new text, behind one that is an id, after
    max_new_tokens, or where the context is full. num_beams: the likeliest texts that `beam_search`
    finds, with that many beams and the best first, instead of drawn ones; a stop string cuts them
    when they are found. Everything else, and what is raised, is as in `stream`.
    """
    if num_beams is not None:
        drawn = (temperature, top_k, top_p, seed, rng) != (1.0, None, None, None, None)
        if drawn:
            raise ValueError("beams draw nothing: leave out temperature, top_k, top_p, seed, rng")
        return _beams(
            model, tokenizer, prompts, max_new_tokens, num_return_sequences, stop,
            repetition_penalty, num_beams, long_prompts,
        )  # fmt: skip
    texts = None
    for pieces in stream(
        model,
        tokenizer,
        prompts,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_return_sequences=num_return_sequences,
        stop=stop,
        seed=seed,
        rng=rng,
        repetition_penalty=repetition_penalty,
        long_prompts=long_prompts,
    ):
        texts = pieces if texts is None else [a + b for a, b in zip(texts, pieces, strict=True)]
    return texts


class Ended(NamedTuple):
    """How a row of `stream` ended: its new ids, and "length", "stop" or "context"."""

    ids: list[int]
    reason: str


@elsewhere.names(elsewhere.GENERATING)
def stream(
    model,
    tokenizer,
    prompts: str | Iterable[str],
    max_new_tokens: int = 100,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_return_sequences: int = 1,
    stop: int | str | Iterable = (),
    seed: int | None = None,
    rng: np.random.Generator | None = None,
    repetition_penalty: float = 1.0,
    long_prompts: str = "error",
) -> Iterator[list[str]]:
    """The same texts as they are made: at every step the new piece of each, "" where there is none.

    A piece comes as soon as it is certain: halves of a character are held back, and what may turn
    out to be the beginning of a stop string. Special tokens are not shown.

    seed: an integer that fixes what is drawn, or rng: a Generator. Without either, every call draws
        anew.
    long_prompts: what to do with a prompt that leaves no room in n_ctx. "error": refuse one longer
        than n_ctx. "keep_end": read only its last ids, as many as leave room for max_new_tokens.
        "slide": forget the oldest ids as often as necessary (`at_end="slide"` of `generate`).

    Returns (the generator's value) an `Ended` for each text. Raises as `generate`.
    """
    if seed is not None:
        if rng is not None:
            raise ValueError("seed and rng are two ways to say the same: give one")
        rng = np.random.default_rng(sample.check_count("seed", seed, 0))
    ids = prompt_ids(model, tokenizer, prompts, max_new_tokens, long_prompts)
    count = sample.check_count("num_return_sequences", num_return_sequences, 1)
    stops = _stops(model, tokenizer, stop)
    steps = sample.generate(
        model,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        num_return_sequences=count,
        stop=stops,
        rng=rng,
        tokenizer=tokenizer,
        at_end="slide" if long_prompts == "slide" else "stop",
        repetition_penalty=repetition_penalty,
    )
    return _stream(steps, tokenizer, stops, len(ids) * count)


def _stops(model, tokenizer, stop):
    """The ids and strings that end a text. An end that a model's files name, but that is not among
    its ids (`load` says so), never comes."""
    n_vocab = model.config.n_vocab
    return [*(i for i in tokenizer.ends if i < n_vocab), *sample.check_stop(stop, n_vocab)]


def _stream(steps, tokenizer, stops, count):
    texts = [Pieces(tokenizer, stops) for _ in range(count)]
    ids = [[] for _ in range(count)]
    while True:
        try:
            step = next(steps)
        except StopIteration as ended:
            yield [text.rest() for text in texts]
            return [Ended(*one) for one in zip(ids, ended.value, strict=True)]
        for row, new in zip(ids, step, strict=True):
            row += new
        yield [text.add(new) for text, new in zip(texts, step, strict=True)]


class Pieces:
    """Ids in, pieces of their text out, up to a stop string and without special tokens."""

    def __init__(self, tokenizer, stops: Iterable = ()):
        self._hidden = {tokenizer.special[text] for text, r in tokenizer.rules.items() if r.hidden}
        self._hidden |= set(tokenizer.ends)  # which need not be special
        self._stops = [stop for stop in stops if isinstance(stop, str)]
        self._ids = collections.deque()
        self._text = tokenizer.decode_stream(self._take())
        self._held, self._ended = "", False

    def _take(self):
        while self._ids:  # it is empty when no more come: `add` takes out what it puts in
            yield self._ids.popleft()

    def add(self, ids: Iterable[int]) -> str:
        """The text that has become certain with these ids."""
        shown = [i for i in ids if i not in self._hidden]
        self._ids.extend(shown)
        return self._certain("".join(next(self._text) for _ in shown), last=False)

    def rest(self) -> str:
        """What was held back, now that no more ids come."""
        return self._certain("".join(self._text), last=True)

    def _certain(self, new, last):
        if self._ended:
            return ""
        text, self._held = self._held + new, ""
        found = [text.index(stop) for stop in self._stops if stop in text]
        if found:
            self._ended = True
            return text[: min(found)]
        if not last:
            begun = (n for s in self._stops for n in range(1, len(s)) if text.endswith(s[:n]))
            held = max(begun, default=0)
            text, self._held = text[: len(text) - held], text[len(text) - held :]
        return text


def prompt_ids(model, tokenizer, prompts, max_new_tokens, long_prompts="error"):
    """The ids of each prompt as `stream` reads them; special tokens in a prompt are tokens.

    An empty prompt is the token that begins a text. Raises TypeError for anything but text,
    ValueError for a prompt that does not fit and may not be cut.
    """
    if not hasattr(tokenizer, "decode_stream"):
        raise TypeError(
            f"a {type(tokenizer).__name__} is not the tokenizer of a model that writes: give a GPT "
            "and its tokenizer, in this order"
        )
    if long_prompts not in LONG_PROMPTS:
        known = ", ".join(f'"{name}"' for name in LONG_PROMPTS)
        raise ValueError(f"long_prompts must be one of {known}, not {long_prompts!r}")
    is_dict = isinstance(prompts, dict)  # whose keys would be taken for prompts
    if isinstance(prompts, str):
        prompts = [prompts]
    prompts = list(prompts) if isinstance(prompts, Iterable) else []
    if not prompts or is_dict or not all(isinstance(prompt, str) for prompt in prompts):
        raise TypeError(
            "prompts must be a text or a list of texts; generate is the one that takes ids"
        )
    n_ctx = model.config.n_ctx
    max_new_tokens = sample.check_count("max_new_tokens", max_new_tokens, 0)
    rows = []
    for number, prompt in enumerate(prompts):
        ids = tokenizer.encode(prompt, tokenizer.special)
        begin = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
        if not ids and begin is None:
            raise ValueError(
                f"prompt {number} is empty, and the model has no token to begin with: give a text"
            )
        ids = ids or [begin]
        if long_prompts == "error" and len(ids) > n_ctx:
            raise ValueError(
                f"prompt {number} has {len(ids):,} tokens, but the model has n_ctx = {n_ctx}: "
                'shorten it, or choose long_prompts="keep_end" or "slide"'
            )
        room = min(n_ctx, n_ctx + 1 - max_new_tokens)  # the last new id is not read
        if long_prompts == "keep_end" and len(ids) > room:
            if room < 1:
                raise ValueError(
                    f"{max_new_tokens} new tokens do not fit n_ctx = {n_ctx}: ask for at most "
                    f"{n_ctx}"
                )
            ids = ids[-room:]
        rows.append(ids)
    return rows


def _beams(
    model, tokenizer, prompts, max_new_tokens, count, stop, penalty, num_beams, long_prompts
):
    """The `count` best texts of each prompt."""
    num_beams = sample.check_count("num_beams", num_beams, 1)
    count = sample.check_count("num_return_sequences", count, 1)
    penalty = sample.check_penalty(penalty)
    if count > num_beams:
        raise ValueError(f"{num_beams} beams find {num_beams} texts, not {count}")
    if long_prompts == "slide":
        raise ValueError('beams do not slide: choose long_prompts="error" or "keep_end"')
    stops = _stops(model, tokenizer, stop)
    ends = [stop for stop in stops if not isinstance(stop, str)]
    texts = []
    for ids in prompt_ids(model, tokenizer, prompts, max_new_tokens, long_prompts):
        found = beam_search(
            model, ids, max_new_tokens, num_beams, eos=ends, log_p=_penalised(penalty)
        )
        for new, _ in found[:count]:
            pieces = Pieces(tokenizer, stops)
            texts.append(pieces.add(new) + pieces.rest())
    return texts


def _penalised(penalty):
    """log softmax with repetitions made less likely, as transformers does it in a beam search."""

    def log_p(rows, logits):
        return sample.penalise_repetition(ops.log_softmax(logits), rows, penalty)

    return None if penalty == 1 else log_p


# ---- how likely each token was ------------------------------------------------------------------


class TokenLogprob(NamedTuple):
    """An id, its log p in nats given all before it, and the likeliest ids with theirs."""

    id: int
    logprob: float
    alternatives: list[tuple[int, float]]


def logprobs(model, prompt: list[int], ids: list[int], top: int = 5) -> list[TokenLogprob]:
    """log p of each of `ids` after `prompt` and the ids before it, and of the `top` likeliest.

    They are the model's own, softmax of the logits, whatever temperature and filters drew the ids.
    Raises ValueError for what does not fit n_ctx, and for ids outside the vocabulary.
    """
    top = sample.check_count("top", top, 0)
    if len(ids) == 0:
        return []
    if len(prompt) == 0:
        raise ValueError("the first id needs something to be predicted from: an empty prompt")
    (everything,) = sample.check_prompts(model.config, [[*prompt, *ids]], "slide")
    logits, _ = model.forward(np.array([everything[:-1]]))
    rows = ops.log_softmax(logits[0, len(prompt) - 1 :].astype(np.float64))
    found = []
    for i, row in zip(everything[len(prompt) :], rows, strict=True):
        likeliest = np.argsort(-row, kind="stable")[:top]
        found.append(TokenLogprob(i, float(row[i]), [(int(j), float(row[j])) for j in likeliest]))
    return found


# ---- tasks without training ---------------------------------------------------------------------
#
# A model that was never trained for a task is given it as a prompt after which the answer is the
# likely continuation (Radford et al. 2019, 3.6 to 3.8). The pairs that show the form of a
# translation and of an answer are ours, as the paper does not print its own.


@dataclass(frozen=True)
class Task:
    """The prompt made of a text, how it is continued, and how much of that is the answer."""

    prompt: Callable[[str], str]
    settings: dict
    answer: Callable[[str], str]


def sentences(text: str, count: int) -> str:
    """The first `count` sentences, each up to its . ! or ?"""
    ends = [m.end() for m in re.finditer(r"[.!?]+[\"'”’)]*(?=\s|$)", text)]
    return text[: ends[count - 1]] if len(ends) >= count else text


TRANSLATIONS = (
    "The house is small. = La maison est petite.\n"
    "Where is my book? = Où est mon livre ?\n"
    "We are going to the market tomorrow. = Nous allons au marché demain.\n"
)
ANSWERS = (
    "Q: How many days are there in a week?\nA: seven\n"
    "Q: What do bees make?\nA: honey\n"
    "Q: Which is the largest ocean?\nA: the Pacific\n"
)


def _question(text):
    """The last line is the question, about the text above it."""
    about, _, question = text.strip().rpartition("\n")
    return f"{about.strip()}\n\nQ: {question}\nA:" if about else f"{ANSWERS}Q: {question}\nA:"


GREEDY = {"temperature": 0.0, "stop": "\n"}
TASKS = {
    # 100 tokens, drawn from the two likeliest; the first three sentences are the summary
    "summarize": Task(
        lambda text: f"{text.strip()}\nTL;DR:",
        {"max_new_tokens": 100, "top_k": 2},
        lambda text: sentences(text.strip(), 3),
    ),
    "translate": Task(
        lambda text: f"{TRANSLATIONS}{text.strip()} =",
        {"max_new_tokens": 60} | GREEDY,
        lambda text: sentences(text.strip(), 1),
    ),
    "answer": Task(_question, {"max_new_tokens": 30} | GREEDY, str.strip),
}


def ask(
    model,
    tokenizer,
    task: str,
    text: str,
    seed: int | None = None,
    long_prompts: str = "error",
) -> str:
    """Summarize a text, translate an English sentence into French, or answer a question.

    task: "summarize", "translate" or "answer", where the text's last line is the question, and is
    about the lines above it. seed: fixes the summary, which is drawn at random. long_prompts: what
    to do with a text that does not fit, as in `stream`. Raises ValueError for another task and for
    an empty text, and what `complete` raises.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    if not text.strip():
        raise ValueError(f"there is no text to {task}")
    chosen = TASKS[task]
    prompt = chosen.prompt(text)
    (new,) = complete(
        model, tokenizer, prompt, seed=seed, long_prompts=long_prompts, **chosen.settings
    )
    return chosen.answer(new)
