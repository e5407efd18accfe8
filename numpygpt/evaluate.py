"""How good is it: perplexity, LAMBADA, HellaSwag, each with its protocol spelled out."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from . import data, ops, sample

ROWS = 16  # that are taken in float64 at a time: 6 MB of GPT-2's vocabulary


def nats(logits, targets) -> np.ndarray:
    """-ln p of each target, in float64: logits (B, T, V), ids (B, T) -> (B, T).

    Raises FloatingPointError for logits that are NaN or infinite: no score is made of them.
    """
    out = np.empty(np.shape(targets))
    for row, x, ids in zip(out, logits, np.asarray(targets), strict=True):
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


def stream_nats(model, ids, stride: int | None = None, batch: int = 8):
    """Total -log p, in nats, of all ids but the first, and how many tokens that is.

    Protocol: windows of n_ctx tokens, each `stride` further than the last (n_ctx if None). A token
    is counted once, in the first window that predicts it; so with stride < n_ctx every token
    outside the first window is predicted from at least n_ctx - stride + 1 tokens, which costs
    n_ctx / stride as much. Raises ValueError for fewer than two ids and for other strides.
    """
    ids = np.asarray(ids)
    if len(ids) < 2:
        raise ValueError("a loss needs at least two tokens: one to predict another from")
    n_ctx = model.config.n_ctx
    stride = n_ctx if stride is None else stride
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"stride must be between 1 and n_ctx = {n_ctx}, not {stride}")
    starts, counted = [0], min(n_ctx, len(ids) - 1)
    new = [counted]  # of each window, how many of its last targets are new
    while counted < len(ids) - 1:
        end = min(counted + stride, len(ids) - 1)
        starts.append(end - n_ctx)
        new.append(end - counted)
        counted = end
    length = min(n_ctx, len(ids) - 1)
    total = 0.0
    for i in range(0, len(starts), batch):
        at = np.array(starts[i : i + batch])[:, None] + np.arange(length)
        mask = np.arange(length) >= length - np.array(new[i : i + batch])[:, None]
        logits, _ = model.forward(ids[at])
        mean = model.ops.cross_entropy(logits, ids[at + 1], mask)
        total += float(mean) * int(mask.sum())
    return total, counted


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """nats / ln 2 / bytes: unlike a loss per token, it compares models with other vocabularies."""
    return nats / math.log(2) / n_bytes


class Scored(NamedTuple):
    """A continuation: -ln p of all its tokens, how many, and whether greedy decoding writes it."""

    nats: float
    tokens: int
    greedy: bool


def continuations(model, context: list[int], candidates: list[list[int]]) -> list[Scored]:
    """How likely each candidate is after the same context, all in one pass.

    Rows are filled up at the right, where causal attention cannot see it. Of what is longer than
    n_ctx + 1 tokens the beginning is cut off. Raises ValueError for an empty context or candidate,
    and for a candidate longer than n_ctx.
    """
    if not context or not all(candidates):
        raise ValueError("a context and its continuations need at least one token each")
    if (longest := max(map(len, candidates))) > model.config.n_ctx:
        raise ValueError(f"{longest} tokens do not fit n_ctx = {model.config.n_ctx}")
    rows = [(context + ids)[-model.config.n_ctx - 1 :] for ids in candidates]
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    logits, _ = model.forward(tokens[:, :-1])
    scored = []
    for row, ids, x in zip(rows, candidates, logits, strict=True):
        x = x[len(row) - 1 - len(ids) : len(row) - 1].astype(np.float64)  # they predict `ids`
        nats = -float(np.take_along_axis(ops.log_softmax(x), np.array(ids)[:, None], -1).sum())
        scored.append(Scored(nats, len(ids), bool((x.argmax(-1) == ids).all())))
    return scored


def lambada(model, tokenizer, texts: Iterable[str]) -> dict:
    """LAMBADA, predicting the last word of a passage, as EleutherAI's `lambada_openai` scores it.

    Protocol: context = the text up to its last space, encoded by itself with nothing before it;
    target = that space and the last word, all of its tokens. accuracy: share of texts whose every
    target token is the likeliest. perplexity: exp of the mean over texts of -ln p(whole word), per
    word and not per token. Figures without a protocol cannot be compared: for 124M this one gives
    32.56 % and 40.06, OpenAI's paper 45.99 % and 35.13, and the last token alone 46.67 %.

    Returns accuracy, perplexity and texts (their number).
    """
    scored = []
    for text in texts:
        context, space, word = text.rstrip().rpartition(" ")
        if not space:
            raise ValueError(f"a LAMBADA text needs two words at least, not {text!r}")
        ids = tokenizer.encode(" " + word, tokenizer.special)
        scored += continuations(model, tokenizer.encode(context, tokenizer.special), [ids])
    _check_some(scored, "LAMBADA texts")
    return {
        "accuracy": sum(one.greedy for one in scored) / len(scored),
        "perplexity": math.exp(sum(one.nats for one in scored) / len(scored)),
        "texts": len(scored),
    }


def hellaswag(model, tokenizer, items: Iterable[dict]) -> dict:
    """HellaSwag, which of four endings follows, in the completion style of llm.c and build-nanogpt.

    Protocol: items are lines of the published JSON with `ctx`, `endings` and `label`; context =
    encode(ctx), nothing before it; each ending = encode(" " + ending). accuracy: the ending with
    the smallest sum of -ln p is right; accuracy_norm: the one with the smallest mean per token.
    EleutherAI's harness has other numbers (28.92 and 31.14 % where this protocol has 28.59 and
    29.55 for 124M), as it prepares the texts and normalises in its own way.

    Returns accuracy, accuracy_norm and items (their number).
    """
    right = {"accuracy": 0, "accuracy_norm": 0}
    count = 0
    for item in items:
        endings = [tokenizer.encode(" " + ending, tokenizer.special) for ending in item["endings"]]
        scored = continuations(model, tokenizer.encode(item["ctx"], tokenizer.special), endings)
        label = int(item["label"])
        right["accuracy"] += int(np.argmin([one.nats for one in scored])) == label
        right["accuracy_norm"] += int(np.argmin([s.nats / s.tokens for s in scored])) == label
        count += 1
    _check_some(range(count), "HellaSwag items")
    return {name: value / count for name, value in right.items()} | {"items": count}


def pairs_nats(model, tokenizer, pairs, batch: int = 16):
    """Total -log p, in nats, of every y and the end token after it, given x; and their tokens.

    Raises ValueError for a pair that does not fit n_ctx.
    """
    rows = data.pair_rows(pairs, tokenizer, model.config.n_ctx)
    _check_some(rows, "pairs")
    total = count = 0
    for i in range(0, len(rows), batch):
        tokens, targets, mask = data.padded(rows[i : i + batch])
        logits, _ = model.forward(tokens)
        total += float(nats(logits, targets)[mask].sum())
        count += int(mask.sum())
    return total, count


class Answer(NamedTuple):
    """What a model wrote after x: its text, and whether it ended it with the end token."""

    text: str
    ended: bool


def answers(model, tokenizer, pairs, batch: int = 16) -> list[Answer]:
    """The greedy continuation of every x, up to the end token or to one token more than y has."""
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
        for row in ids:
            ended = row[-1:] == [end]
            written.append(Answer(tokenizer.decode(row[:-1] if ended else row), ended))
    return written


def pairs(model, tokenizer, pairs) -> dict:
    """Loss on y in nats per token, and the share of pairs whose y greedy decoding writes exactly.

    Protocol: after the tokens of x the tokens of y and the end token are predicted, nothing of x is
    counted. An answer is exact if it is y, character for character, and the end token follows.
    """
    total, count = pairs_nats(model, tokenizer, pairs)
    written = answers(model, tokenizer, pairs)
    exact = [a.ended and a.text == y for a, (_, y) in zip(written, pairs, strict=True)]
    return {
        "nats per token of y": total / count,
        "exact match": sum(exact) / len(pairs),
        "ended": sum(answer.ended for answer in written) / len(pairs),
        "pairs": len(pairs),
    }


def windows_perplexity(model, ids, stride: int) -> float:
    """Perplexity as the documentation of transformers computes it, for comparing with its numbers.

    Protocol: windows ids[begin : begin + n_ctx], begin = 0, stride, 2 stride, ...; of each only
    what no window before held is counted, and never the window's first token. exp of the mean of
    the windows' mean losses, weighted by (tokens counted anew) - 1. With stride = n_ctx the first
    token of every window is left out; `stream_nats` leaves out the text's first token alone.
    """
    ids, n_ctx = np.asarray(ids), model.config.n_ctx
    if not 1 <= stride <= n_ctx:
        raise ValueError(f"stride must be between 1 and n_ctx = {n_ctx}, not {stride}")
    total = weight = before = 0
    for begin in range(0, len(ids), stride):
        window = ids[begin : begin + n_ctx]
        new = begin + len(window) - before
        before = begin + len(window)
        if new > 1:
            mask = np.arange(1, len(window)) >= len(window) - new
            logits, _ = model.forward(window[:-1])
            loss = model.ops.cross_entropy(logits, window[None, 1:], mask[None])
            total, weight = total + float(loss) * (new - 1), weight + new - 1
        if before == len(ids):
            break
    return math.exp(total / weight)


def _check_some(items, what):
    if not len(items):
        raise ValueError(f"there are no {what} to evaluate")
