"""How good is it: perplexity, WikiText, LAMBADA, HellaSwag, the Children's Book Test.

Figures without a protocol cannot be compared, so each function says what it counts, and which
figure of OpenAI's 124M was published for it. Two kinds of measure, and every task is one of them:

    a text          `stream` yields (nats, tokens) of windows: how unexpected is each token?
    questions       `score_questions` yields how likely each row is: which is the likeliest?

Both are generators that can begin anywhere (`done=`, or questions[done:]): who iterates draws the
bar, keeps what has come, and goes on from there. A model is handed in, never imported; `forward`
and `config` are asked of it, so another's model is measured as well as ours.

Sources of the figures: Radford et al. 2019, table 3 ("the paper"); EleutherAI's
lm-evaluation-harness ("the harness"), issue 2159; huggingface/transformers, issue 13761 (29.94,
37.37, 46.67, 84.35 and 73.65); karpathy/llm.c, dev/data/hellaswag.py.
"""

import bz2
import collections
import itertools
import lzma
import math
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from . import data, ops, sample

# Rows that are taken in float64 at a time: 6 MB of GPT-2's vocabulary.
ROWS = 16  # any value is right
# Tokens of windows that go through the model at a time: 412 MB of GPT-2's logits.
TOKENS = 2048


def nats(logits, targets) -> np.ndarray:
    """-ln p of each target, in float64: logits (B, T, V), ids (B, T) -> (B, T).

    Raises ValueError for ids outside the vocabulary and for shapes that do not fit, and
    FloatingPointError for logits that are NaN or infinite: they have no score.
    """
    targets, n_vocab = np.asarray(targets), np.shape(logits)[-1]
    if targets.ndim != 2 or np.shape(logits)[:-1] != targets.shape:
        raise ValueError(
            f"logits must be (B, T, V) and targets (B, T), not of shapes {np.shape(logits)} and "
            f"{targets.shape}"
        )
    if targets.size and not np.issubdtype(targets.dtype, np.integer):
        raise TypeError(f"targets must be integers, not {targets.dtype}")
    if targets.size and not (targets.min() >= 0 and targets.max() < n_vocab):
        raise ValueError(
            f"ids from {targets.min()} to {targets.max()} are to be predicted, but the model's "
            f"vocabulary has ids 0 to {n_vocab - 1}"
        )
    out = np.empty(targets.shape)
    for row, x, ids in zip(out, logits, targets, strict=True):
        for i in range(0, len(x), ROWS):
            part = np.asarray(x[i : i + ROWS], np.float64)
            if not np.isfinite(part).all():
                raise FloatingPointError(
                    "the model returned NaN or infinity: its weights are damaged, or too large for "
                    "their precision"
                )
            chosen = np.take_along_axis(ops.log_softmax(part), ids[i : i + ROWS, None], 1)
            row[i : i + ROWS] = -chosen[:, 0]
    return out


def _logits(model, tokens, cache=None, only_last=False):
    """What the model returns; of damaged weights it is NaN, which `nats` refuses in words."""
    with np.errstate(all="ignore"):
        if cache is None:
            returned = model.forward(tokens)
        else:
            returned = model.forward(tokens, cache, only_last=only_last)
    if len(returned) != 2:  # as a BERT's
        raise TypeError(
            f"{type(model).__name__} does not predict the next token, which is what is measured: "
            "its forward must return logits and a record"
        )
    return returned[0]


def _encode(tokenizer, text, begins=True):
    """Special tokens in the text are those: an <|endoftext|> ends a document, as in training."""
    return tokenizer.encode(text, tokenizer.special, begins)


def _ids(ids) -> list[int]:
    """Ids as a list: of two arrays `+` would be the sum of their numbers."""
    return data.check_stream(ids).tolist()


def _check_list(what, texts):
    """Raises TypeError for one text, of which each letter would be taken for one."""
    if isinstance(texts, str):
        raise TypeError(f"give a list of {what}, not a single text: {texts!r:.60}")


# ---- a text -------------------------------------------------------------------------------------


def stream(model, ids, stride: int | None = None, batch: int | None = None, done: int = 0):
    """Yield, for each `batch` of windows, the sum of -ln p of the tokens counted, and their number.

    Protocol: all ids but the first are counted. Windows of n_ctx tokens, each `stride` further
    than the last (n_ctx if None). A token is counted once, in the first window that predicts it; so
    with stride < n_ctx every token outside the first window is predicted from at least
    n_ctx - stride + 1 tokens, at n_ctx / stride times the cost. batch: windows at a time; None: as
    many as hold 2,048 tokens. done: how many batches to leave out. Raises ValueError for fewer than
    two ids and for a stride that is not between 1 and n_ctx.
    """
    ids = data.check_stream(ids)
    done = sample.check_count("done", done, 0)
    if len(ids) < 2:
        raise ValueError("a loss needs at least two tokens: one to predict another from")
    stride = _check_stride(model, stride)
    n_ctx = model.config.n_ctx
    length = min(n_ctx, len(ids) - 1)
    starts, counted = [0], length
    new = [counted]  # of each window, how many of its last targets are new
    while counted < len(ids) - 1:
        end = min(counted + stride, len(ids) - 1)
        starts.append(end - n_ctx)
        new.append(end - counted)
        counted = end
    batch = _windows_at_a_time(model, batch)
    for i in range(done * batch, len(starts), batch):
        at = np.array(starts[i : i + batch])[:, None] + np.arange(length)
        counts = np.arange(length) >= length - np.array(new[i : i + batch])[:, None]
        yield float(nats(_logits(model, ids[at]), ids[at + 1])[counts].sum()), int(counts.sum())


def _check_stride(model, stride):
    n_ctx = model.config.n_ctx
    stride = n_ctx if stride is None else sample.check_count("stride", stride)
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"stride must be between 1 and n_ctx = {n_ctx}, not {stride}")
    return stride


def _windows_at_a_time(model, batch):
    if batch is not None:
        return sample.check_count("batch", batch, 1)
    return max(1, TOKENS // model.config.n_ctx)


def stream_nats(model, ids, stride: int | None = None, batch: int | None = None):
    """Total -ln p, in nats, of all ids but the first, and how many tokens that is; see `stream`."""
    each, counts = zip(*stream(model, ids, stride, batch), strict=True)
    return sum(each), sum(counts)


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """nats / ln 2 / bytes: unlike a loss per token, it compares models with different vocabularies.

    For enwik8 the paper gives 1.16 for 124M.
    """
    return nats / math.log(2) / n_bytes


def position_nats(model, ids, batch: int | None = None) -> np.ndarray:
    """-ln p by window and by position in it: (windows, n_ctx).

    Windows of n_ctx tokens stand side by side; what does not fill one is left out. At position t
    the token is expected from t + 1 tokens: the means by position say what a longer context is
    worth. Raises ValueError for a text that does not fill two windows.
    """
    ids, n_ctx = data.check_stream(ids), model.config.n_ctx
    starts = np.arange(0, len(ids) - n_ctx, n_ctx)
    if len(starts) < 2:
        raise ValueError(
            f"{len(ids)} tokens do not fill two windows of {n_ctx} and the token behind them"
        )
    batch = _windows_at_a_time(model, batch)
    each = []
    for i in range(0, len(starts), batch):
        at = starts[i : i + batch, None] + np.arange(n_ctx)
        each.append(nats(_logits(model, ids[at]), ids[at + 1]))
    return np.concatenate(each)


def windows_perplexity(model, ids, stride: int) -> float:
    """Perplexity as the documentation of transformers computes it, for comparing with its numbers.

    Protocol: windows ids[begin : begin + n_ctx], begin = 0, stride, 2 stride, ...; of each only
    what no window before held is counted, and never the window's first token. exp of the mean of
    the windows' mean losses, weighted by (tokens counted anew) - 1. With stride = n_ctx the first
    token of every window is left out; `stream_nats` leaves out the text's first token alone. For
    WikiText-2's test set 124M was published to give 29.94 (the paper: 29.41). Raises ValueError
    where no token is counted.
    """
    ids, n_ctx = data.check_stream(ids), model.config.n_ctx
    stride = _check_stride(model, stride)
    total = weight = before = 0
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + n_ctx]
        new = begin + len(window) - before
        before = begin + len(window)
        if new > 1:
            logits = _logits(model, window[None, :-1])
            counted = nats(logits, window[None, 1:])[0, -min(new, len(window) - 1) :]
            total, weight = total + float(counted.mean()) * (new - 1), weight + new - 1
        if before == len(ids):
            break
    if not weight:
        raise ValueError(f"no token is counted: of {len(ids)} tokens and a stride of {stride}")
    return math.exp(total / weight)


# ---- WikiText -----------------------------------------------------------------------------------


def wikitext_pages(text: str) -> list[str]:
    """The pages of a WikiText file: each begins with a line ` = Title = `."""
    pages = re.split(r"(?m)^(?= = [^=\n]+ = *$)", text)
    return [page for page in pages if page.strip()]


WIKITEXT = (  # what WikiText's tokens are made of, and what people write; in this order
    (r"s '", "s'"),
    *((f" @{re.escape(mark)}@ ", mark) for mark in "-,."),
    *((f" {re.escape(mark)} ", f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"\{\s*([^}]*?)\s*\}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (r"= = = =", "===="),
    (r"= = =", "==="),
    (r"= =", "=="),
    (r" ° ", "°"),
    (r" \n", "\n"),
    (r"\n ", "\n"),
    (r" N ", " 1 "),
    (r" 's", "'s"),
)


def wikitext_detokenized(page: str) -> str:
    """WikiText as people write it: ` , ` as `, `, ` @-@ ` as `-`, brackets and quotes closed up.

    The rules are those of Megatron-LM and EleutherAI's harness, with which the published figures
    were made. They are not invertible: a few marks are put where no author put them.
    """
    for pattern, replacement in WIKITEXT:
        page = re.sub(pattern, replacement, page)
    return page


def wikitext(model, tokenizer, pages: Iterable[str], batch: int | None = None):
    """Yield (-ln p, tokens, words) of each page of WikiText; see `wikitext_result`.

    Protocol, that of EleutherAI's harness: each page by itself, detokenised, the end token before
    it; windows of n_ctx side by side, of which the last is filled up with what stood before it.
    Words are those of the page as it was, before it was detokenised, between white space.
    """
    _check_list("pages", pages)
    before = [] if tokenizer.eot is None else [tokenizer.eot]
    for page in pages:
        ids = before + _encode(tokenizer, wikitext_detokenized(page))
        total, tokens = stream_nats(model, ids, batch=batch)
        yield total, tokens, len(re.split(r"\s+", page))


def wikitext_result(parts) -> dict:
    """Perplexity per word, exp(nats / words), and per token, and bits per word, of `wikitext`.

    For the test set of WikiText-2, which is that of WikiText-103, 124M was published to give 37.37
    per word (the paper: 37.50). Per token the same losses make a perplexity near 29: figures of the
    two kinds are often set side by side by mistake.
    """
    _check_some(parts, "WikiText pages")
    total, tokens, words = map(sum, zip(*parts, strict=True))
    return {
        "perplexity per word": math.exp(total / words),
        "perplexity per token": math.exp(total / tokens),
        "bits per word": total / words / math.log(2),
        "words": words,
        "tokens": tokens,
        "pages": len(parts),
    }


# ---- questions ----------------------------------------------------------------------------------


class Question(NamedTuple):
    """Rows (context, continuation) of ids that are compared, and which one is right, if any is."""

    rows: list
    right: int | None = None


class Scored(NamedTuple):
    """A continuation: -ln p of all its tokens, how many, and whether greedy decoding writes it."""

    nats: float
    tokens: int
    greedy: bool


def score(model, rows, banned=None) -> list[Scored]:
    """How likely each continuation is after its context, all rows (context, continuation) in one
    pass. banned: (V,) of bool, True for ids that greedy decoding must not write.

    Rows are filled up at the right, which causal attention does not see. Of a row longer than
    n_ctx + 1 tokens the beginning is cut off. Raises ValueError for an empty context or
    continuation, and for a continuation longer than n_ctx.
    """
    n_ctx = model.config.n_ctx
    rows = [(_ids(context), _ids(ids)) for context, ids in rows]
    _check_some(rows, "rows")
    if not all(context and ids for context, ids in rows):
        raise ValueError("a context and its continuations need at least one token each")
    if (longest := max(len(ids) for _, ids in rows)) > n_ctx:
        raise ValueError(f"{longest} tokens do not fit n_ctx = {n_ctx}")
    whole = [(context + ids)[-n_ctx - 1 :] for context, ids in rows]
    tokens = np.zeros((len(rows), max(map(len, whole))), np.int64)
    for row, ids in zip(tokens, whole, strict=True):
        row[: len(ids)] = ids
    logits = _logits(model, tokens[:, :-1])
    scored = []
    for all_ids, (_, ids), x in zip(whole, rows, logits, strict=True):
        x = x[len(all_ids) - 1 - len(ids) : len(all_ids) - 1]  # they predict `ids`
        scored.append(_scored(x, ids, banned))
    return scored


def _scored(logits, ids, banned):
    total = float(nats(logits[None], [ids]).sum())
    best = (logits if banned is None else np.where(banned, -np.inf, logits)).argmax(1)
    return Scored(total, len(ids), bool((best == ids).all()))


def score_after(model, context: list[int], candidates, banned=None) -> list[Scored]:
    """The same as `score` for rows of one context, which is read once, into the model's cache.

    Of ten candidates after 400 tokens that leaves about a tenth of the work. Context and candidate
    must fit n_ctx + 1.
    """
    context, candidates = _ids(context), [_ids(ids) for ids in candidates]
    cache = model.cache()
    first = _logits(model, [context], cache, only_last=True)[0]
    scored = []
    for ids in candidates:
        cache.length = len(context)  # forgets the candidate before
        rest = [_logits(model, [ids[:-1]], cache)[0]] if len(ids) > 1 else []
        scored.append(_scored(np.concatenate([first, *rest]), ids, banned))
    return scored


def _read_once(model, rows):
    """The context, if all rows share it, the model has a cache, and reading it once saves much."""
    context = rows[0][0]
    lengths = [len(ids) for _, ids in rows]
    worth_it = (
        hasattr(model, "cache")
        and all(other == context and ids for other, ids in rows)
        and len(context) * (len(rows) - 1) > sum(lengths)
        and len(context) + max(lengths) <= model.config.n_ctx + 1
    )
    return context if worth_it else None


def continuations(model, context: list[int], candidates: list[list[int]]) -> list[Scored]:
    """How likely each candidate is after the same context, all in one pass; see `score`."""
    return score(model, [(context, candidate) for candidate in candidates])


def score_questions(
    model, questions: Iterable[Question], batch: int = 8, banned=None
) -> Iterator[list]:
    """Yield for each question what `score` says of its rows; about `batch` rows go through at once.

    A long context that all rows of a question share is read once, see `score_after`. Questions are
    taken whole, in their order, so what comes can be kept, and a later call can go on from there:
    `score_questions(model, questions[done:])`.
    """
    batch = sample.check_count("batch", batch, 1)
    waiting = []
    for question in itertools.chain(questions, [None]):
        if question is not None:
            lists = [(_ids(context), _ids(ids)) for context, ids in question.rows]
            question = question._replace(rows=lists)
        rows = sum(len(one.rows) for one in waiting)
        context = None if question is None else _read_once(model, question.rows)
        full = question is None or context is not None or rows + len(question.rows) > batch
        if waiting and full:
            scored = iter(score(model, [row for one in waiting for row in one.rows], banned))
            for one in waiting:
                yield list(itertools.islice(scored, len(one.rows)))
            waiting = []
        if context is not None:
            yield score_after(model, context, [ids for _, ids in question.rows], banned)
        else:
            waiting.append(question)


# ---- LAMBADA ------------------------------------------------------------------------------------

STOP_WORDS = frozenset(  # NLTK's English list, in its older form of 127 words
    "a about above after again against all am an and any are as at be because been before being"
    " below between both but by can did do does doing don down during each few for from further had"
    " has have having he her here hers herself him himself his how i if in into is it its itself"
    " just me more most my myself no nor not now of off on once only or other our ours ourselves"
    " out over own s same she should so some such t than that the their theirs them themselves then"
    " there these they this those through to too under until up very was we were what when where"
    " which while who whom why will with you your yours yourself yourselves".split()
)


def lambada_questions(tokenizer, texts: Iterable[str], protocol: str = "word") -> list[Question]:
    """LAMBADA: the last word of a passage, in one of three published protocols; `lambada` says."""
    _check_protocol(protocol)
    _check_list("texts", texts)
    questions = []
    for text in texts:
        text = text.rstrip() if protocol == "word" else _as_openai_wrote_it(text)
        context, space, word = text.rpartition(" ")
        if not space or not context.strip():
            raise ValueError(f"a LAMBADA text needs at least two words, not {text!r}")
        if protocol == "token":
            ids = _encode(tokenizer, text)
            row = ids[:-1], ids[-1:]
        else:
            row = _encode(tokenizer, context), _encode(tokenizer, " " + word, False)
        questions.append(Question([row]))
    return questions


def _check_protocol(protocol):
    if protocol not in ("word", "token", "filtered"):
        raise ValueError(f"LAMBADA's protocols are word, token and filtered, not {protocol!r}")


def _as_openai_wrote_it(text):
    """A newline before it, and straight quotation marks."""
    for marks in ("“", "”", "``", "''"):
        text = text.replace(marks, '"')
    return "\n" + text.strip()


def stop_words(tokenizer, n_vocab: int) -> np.ndarray:
    """Which ids are a stop word, with a space or without: (V,) of bool."""
    words = (tokenizer.decode([i]).strip() in STOP_WORDS for i in range(tokenizer.n_vocab))
    return np.array([*words] + [False] * (n_vocab - tokenizer.n_vocab))


def lambada_result(scored) -> dict:
    """accuracy: share of texts whose every target token is the likeliest. perplexity: exp of the
    mean over texts of -ln p(target): per word, not per token."""
    scored = [one for (one,) in scored]
    _check_some(scored, "LAMBADA texts")
    return {
        "accuracy": sum(one.greedy for one in scored) / len(scored),
        "perplexity": math.exp(sum(one.nats for one in scored) / len(scored)),
        "texts": len(scored),
    }


def lambada(model, tokenizer, texts: Iterable[str], protocol: str = "word", batch: int = 8) -> dict:
    """LAMBADA (Paperno et al. 2016), predicting the last word of a passage; OpenAI's copy of it.

    Three protocols are in use, and 124M's figures by them lie far apart:

    word      context = the text up to its last space, encoded by itself with nothing before it;
              target = that space and the last word, all of its tokens. As EleutherAI's harness
              scores `lambada_openai`: accuracy 32.56 %, perplexity 40.06.
    token     the target is the last token alone, even if it is only the end of a word; a newline
              stands before the text, and quotation marks are straight. For the last token alone
              46.67 % was published.
    filtered  as "word", prepared as "token" is, and greedy decoding must not write a stop word. The
              paper's 45.99 % and 35.13 were made with such a filter, whose details it leaves out.

    Returns accuracy, perplexity and texts (their number), see `lambada_result`.
    """
    banned = stop_words(tokenizer, model.config.n_vocab) if protocol == "filtered" else None
    questions = lambada_questions(tokenizer, texts, protocol)
    return lambada_result(list(score_questions(model, questions, batch, banned)))


# ---- HellaSwag ----------------------------------------------------------------------------------


def hellaswag_questions(tokenizer, items: Iterable[dict]) -> list[Question]:
    """Lines of the published JSON with `ctx`, `endings` and `label`; see `hellaswag`."""
    questions = []
    for number, item in enumerate(items, 1):
        _check_list("endings", item["endings"])
        label = int(item["label"])
        if not 0 <= label < len(item["endings"]):
            raise ValueError(
                f"HellaSwag item {number} has the label {label}, but {len(item['endings'])} "
                "endings, counted from 0"
            )
        context = _encode(tokenizer, item["ctx"])
        rows = [(context, _encode(tokenizer, " " + ending, False)) for ending in item["endings"]]
        _check_tokens(f"HellaSwag item {number}", rows)
        questions.append(Question(rows, label))
    return questions


def hellaswag_result(questions, scored) -> dict:
    """accuracy: the ending with the smallest sum of -ln p is right; accuracy_norm: the one with the
    smallest mean per token."""
    _check_some(questions, "HellaSwag items")
    pairs = list(zip(questions, scored, strict=True))
    right = [int(np.argmin([one.nats for one in s])) == q.right for q, s in pairs]
    norm = [int(np.argmin([one.nats / one.tokens for one in s])) == q.right for q, s in pairs]
    count = len(questions)
    return {
        "accuracy": sum(right) / count,
        "accuracy_norm": sum(norm) / count,
        "items": count,
    }


def hellaswag(model, tokenizer, items: Iterable[dict], batch: int = 8) -> dict:
    """HellaSwag, which of four endings follows, in the completion style of llm.c and build-nanogpt.

    Protocol: context = encode(ctx), nothing before it; each ending = encode(" " + ending). For 124M
    28.59 % and 29.55 % (normalised) were published. EleutherAI's harness has other numbers (28.92
    and 31.14 %), as it prepares the texts and normalises in its own way.

    Returns accuracy, accuracy_norm and items (their number), see `hellaswag_result`.
    """
    questions = hellaswag_questions(tokenizer, items)
    return hellaswag_result(questions, list(score_questions(model, questions, batch)))


# ---- the Children's Book Test -------------------------------------------------------------------

GAP = "XXXXX"
TREEBANK = (  # what the Penn Treebank's tokens are made of, and what people write
    (r"-LRB- ?", "("),
    (r" ?-RRB-", ")"),
    (r"(?:``|“) ?", '"'),
    (r" ?(?:''|”)", '"'),
    (r" (n't|'s|'re|'ve|'ll|'d|'m)\b", r"\1"),
    (r" ([.,;:!?])", r"\1"),
    (r"(^|[\s(\"])(`|') ", r"\1'"),
)


def cbt_items(text: str) -> list[dict]:
    """The questions of a published file, `cbtest_CN_test_2500ex.txt`: sentences, question, answer,
    options. Twenty numbered lines are the story; the 21st has a gap, the answer and the options.

    Raises ValueError naming the line at which a question is not of this form.
    """
    items, sentences = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        _, _, rest = line.partition(" ")
        if "\t" not in line:
            sentences.append(rest)
            continue
        fields = [field for field in rest.split("\t") if field.strip()]
        if len(fields) != 3 or GAP not in fields[0]:
            raise ValueError(
                f"line {number} of the Children's Book Test must be a sentence with {GAP}, the "
                "answer and the options, with tabs between them"
            )
        question, answer, options = fields
        options = [option for option in options.strip().split("|") if option]
        items.append(
            {"sentences": sentences, "question": question, "answer": answer, "options": options}
        )
        sentences = []
    if sentences:
        raise ValueError("the Children's Book Test ends in a story without a question")
    return items


def treebank_detokenized(text: str) -> str:
    """The Penn Treebank's way of writing, as in CBT, turned into that of people."""
    for pattern, replacement in TREEBANK:
        text = re.sub(pattern, replacement, text)
    return text


def cbt_questions(tokenizer, items: Iterable[dict]) -> list[Question]:
    """Items with `sentences`, `question`, `answer` and `options`, as of `cbt_items`; see `cbt`."""
    questions = []
    for number, item in enumerate(items, 1):
        _check_list("sentences", item["sentences"])
        _check_list("options", item["options"])
        story, question, options = " ".join(item["sentences"]), item["question"], item["options"]
        if question.count(GAP) != 1 or item["answer"] not in options or len(set(options)) < 2:
            raise ValueError(
                f"item {number} of the Children's Book Test needs one {GAP} in its question, and "
                "its answer among two or more options"
            )
        texts = [
            treebank_detokenized(f"{story} {question.replace(GAP, option)}") for option in options
        ]
        context, _, _ = os.path.commonprefix(texts).rpartition(" ")
        rows = [
            (_encode(tokenizer, context), _encode(tokenizer, t[len(context) :], False))
            for t in texts
        ]
        _check_tokens(f"item {number} of the Children's Book Test", rows)
        questions.append(Question(rows, options.index(item["answer"])))
    return questions


def cbt_result(questions, scored) -> dict:
    """accuracy: the share of items whose likeliest option, see `cbt`, is the answer."""
    _check_some(questions, "questions of the Children's Book Test")
    right = [
        int(np.argmin([one.nats for one in s])) == q.right
        for q, s in zip(questions, scored, strict=True)
    ]
    return {"accuracy": sum(right) / len(right), "items": len(right)}


def cbt(model, tokenizer, items: Iterable[dict], batch: int = 8) -> dict:
    """The Children's Book Test (Hill et al. 2016): which of ten words fills the gap in a sentence.

    Protocol, the paper's: the option is chosen that is likeliest together with the rest of the
    sentence, given the twenty sentences before, all detokenised. Of a context too long for n_ctx
    the beginning is cut off. For 124M the paper gives 87.65 % (common nouns, CN) and 83.4 % (named
    entities, NE), but does not say how it detokenises; a public attempt to repeat it got 84.35 and
    73.65 %.

    Returns accuracy and items (their number), see `cbt_result`.
    """
    questions = cbt_questions(tokenizer, items)
    return cbt_result(questions, list(score_questions(model, questions, batch)))


# ---- pairs (x, y) -------------------------------------------------------------------------------


def pairs_nats(model, tokenizer, pairs, batch: int = 16):
    """Total -log p, in nats, of every y and the end token after it, given x; and their tokens.

    Raises ValueError for a pair that does not fit n_ctx.
    """
    batch = sample.check_count("batch", batch, 1)
    rows = data.pair_rows(pairs, tokenizer, model.config.n_ctx)
    _check_some(rows, "pairs")
    total = count = 0
    for i in range(0, len(rows), batch):
        tokens, targets, mask = data.padded(rows[i : i + batch])
        total += float(nats(_logits(model, tokens), targets)[mask].sum())
        count += int(mask.sum())
    return total, count


class Answer(NamedTuple):
    """What a model wrote after x: its text, and whether it ended it with the end token."""

    text: str
    ended: bool


def answers(model, tokenizer, pairs, batch: int = 16) -> list[Answer]:
    """The greedy continuation of every x, up to the end token or to one token more than y and the
    end token after it have."""
    pairs, batch = list(pairs), sample.check_count("batch", batch, 1)
    for number, pair in enumerate(pairs, 1):
        data.check_pair(number, pair)
    written = []
    for i in range(0, len(pairs), batch):
        rows = [data.encode_pair(tokenizer, x, y) for x, y in pairs[i : i + batch]]
        longest = max(len(after) for _, after in rows)
        end = rows[0][1][-1]
        ids = [[] for _ in rows]
        for step in sample.generate(
            model, [before for before, _ in rows], longest + 1, temperature=0, stop=end
        ):
            for row, new in zip(ids, step, strict=True):
                row += new
        for row, (_, after) in zip(ids, rows, strict=True):
            row = row[: len(after) + 1]  # others of the batch may need more
            ended = row[-1:] == [end]
            written.append(Answer(tokenizer.decode(row[:-1] if ended else row), ended))
    return written


def pairs(model, tokenizer, pairs) -> dict:
    """Loss on y in nats per token, and the share of pairs whose y greedy decoding writes exactly.

    Protocol: after the tokens of x the tokens of y and the end token are predicted, nothing of x is
    counted. An answer is exact if it is y, character for character, and the end token follows.
    """
    pairs = list(pairs)
    total, count = pairs_nats(model, tokenizer, pairs)
    written = answers(model, tokenizer, pairs)
    exact = [a.ended and a.text == y for a, (_, y) in zip(written, pairs, strict=True)]
    return {
        "nats per token of y": total / count,
        "exact match": sum(exact) / len(pairs),
        "ended": sum(answer.ended for answer in written) / len(pairs),
        "pairs": len(pairs),
    }


# ---- what one has without a model ---------------------------------------------------------------


def baselines(tokenizer, documents, known=()) -> dict:
    """Bits per byte of the documents with xz, bzip2 and a trigram model: a model should need less.

    Protocol: xz and bzip2 at their highest level, the documents joined by newlines. The trigram
    model predicts the same ids as `stream_nats` of `data.encode_documents`, each from the two
    before it (`trigram_nats`), and counts it afterwards. known: documents that came before; a
    compressor is charged only for what the documents add to them, and the trigram model has counted
    them. Raises ValueError for documents without text.
    """
    for texts in (documents, known):
        data.check_documents(texts)
    documents, known = list(documents), list(known)
    size = sum(len(document.encode("utf-8")) for document in documents)
    if not size:
        raise ValueError("there is no text to compress")
    text, before = ("\n".join(texts).encode("utf-8") for texts in (documents, known))
    results = {}
    for name, compress in (
        ("xz", lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
        ("bzip2", bz2.compress),
    ):
        added = len(compress(before + text)) - (len(compress(before)) if before else 0)
        results[f"{name}, bits per byte"] = 8 * added / size
    ids = data.encode_documents(tokenizer, documents).tolist()
    counted = data.encode_documents(tokenizer, known).tolist() if known else []
    total = trigram_nats(ids, tokenizer.n_vocab, counted)
    return results | {"trigram, bits per byte": bits_per_byte(total, size)}


def trigram_nats(ids: list[int], n_vocab: int, known: list[int] | tuple = ()) -> float:
    """-ln p of all ids but the first, by a trigram model that counts each id once it is predicted.

    p(w | u v) = (c(u v w) + t(u v) p(w | v)) / (c(u v) + t(u v)), and so on down to the unigrams,
    whose last resort is 1 / n_vocab; c counts, t is the number of different ids that have followed
    (Witten and Bell 1991). An unseen context has t = c = 0: then p is that of the shorter one.
    """
    followers = {}  # context, () to (u, v) -> {what followed: how often}
    counts = collections.Counter()  # context -> how often something followed
    total, u, v = 0.0, None, None
    for number, w in enumerate(itertools.chain(known, ids), -len(known)):
        contexts = [(), (v,), (u, v)]
        if number > 0:
            p = 1 / n_vocab
            for context in contexts:
                if seen := followers.get(context):
                    p = (seen.get(w, 0) + len(seen) * p) / (counts[context] + len(seen))
            total -= math.log(p)
        for context in contexts:
            counts[context] += 1
            seen = followers.setdefault(context, {})
            seen[w] = seen.get(w, 0) + 1
        u, v = v, w
    return total


def _check_tokens(where, rows):
    if not all(context and ids for context, ids in rows):
        raise ValueError(f"{where} has a context or a continuation without a token")


def _check_some(items, what):
    if not len(items):
        raise ValueError(f"there are no {what} to evaluate")
