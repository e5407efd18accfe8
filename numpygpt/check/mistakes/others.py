"""The mistakes of loss, sampling, optimizer and tokenizer: wrong versions of whole functions."""

import re
from itertools import pairwise

import numpy as np

from numpygpt import ops as right
from numpygpt import optim, sample
from numpygpt.bpe import byte_symbols, merge, pre_tokens
from numpygpt.check.mistakes.forward import Mistake

# ---- loss ---------------------------------------------------------------------------------------


def loss_not_shifted(logits, targets, mask=None):
    """Each position is asked for its own token, which is the target of the position before."""
    mask = None if mask is None else np.asarray(mask)[:, :-1]
    return right.cross_entropy(logits[:, 1:], np.asarray(targets)[:, :-1], mask)


def loss_shifted_twice(logits, targets, mask=None):
    """The logits of a position are compared with the token two places further on."""
    mask = None if mask is None else np.asarray(mask)[:, 1:]
    return right.cross_entropy(logits[:, :-1], np.asarray(targets)[:, 1:], mask)


def loss_over_padding(logits, targets, mask=None):
    """The mask is not asked: every position counts, with id 0 for what is not an id."""
    return right.cross_entropy(logits, np.maximum(targets, 0))


def loss_divided_by_all(logits, targets, mask=None):
    """The sum over the tokens that count, divided by the number of all."""
    share = 1.0 if mask is None else float(np.mean(mask))
    return right.cross_entropy(logits, targets, mask) * share


def loss_mean_of_rows(logits, targets, mask=None):
    """The mean of the rows' means: a token of a short row counts for more."""
    masks = [None] * len(logits) if mask is None else [m[None] for m in np.asarray(mask)]
    rows = zip(logits, np.asarray(targets), masks, strict=True)
    return np.mean([right.cross_entropy(x[None], t[None], m) for x, t, m in rows])


# ---- sampling -----------------------------------------------------------------------------------


def temperature_multiplied(logits, temperature):
    """x temperature, where x / temperature belongs; less the maximum, as there."""
    return (logits - logits.max(-1, keepdims=True)) * temperature


def top_p_without_crossing_token(logits, p):
    """Keep tokens as long as their sum stays within p; the likeliest at least."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    held = np.cumsum(np.take_along_axis(right.softmax(logits), order, -1), -1)
    keep = held <= p
    keep[..., 0] = True
    out = np.full_like(logits, -np.inf)
    np.put_along_axis(
        out, order, np.where(keep, np.take_along_axis(logits, order, -1), -np.inf), -1
    )
    return out


def top_k_or_top_p(logits, temperature=1.0, top_k=None, top_p=None):
    """The union of the two filters instead of one after the other."""
    scaled = sample.apply_temperature(logits, temperature)
    by_k = scaled if top_k is None else sample.keep_top_k(scaled, top_k)
    by_p = scaled if top_p is None else sample.keep_top_p(scaled, top_p)
    return right.softmax(np.maximum(by_k, by_p))


def top_p_before_temperature(logits, temperature=1.0, top_k=None, top_p=None):
    """Top-k and top-p on the logits as they came, and the temperature last."""
    filtered = logits if top_k is None else sample.keep_top_k(logits, top_k)
    filtered = filtered if top_p is None else sample.keep_top_p(filtered, top_p)
    return right.softmax(sample.apply_temperature(filtered, temperature))


# ---- optimizer ----------------------------------------------------------------------------------


def decay_everything(name, param):
    """Biases and gains decay as matrices do."""
    return True


def clip_per_tensor(grads, max_norm):
    """A factor of its own for each gradient, from its own norm."""
    norm = optim.global_norm(grads)
    for name in grads:
        optim.clip({name: grads[name]}, max_norm)
    return norm


def _adam(root=lambda v, eps: np.sqrt(v) + eps, corrected=True, decoupled=True):
    """adamw with one of its details done otherwise."""

    def adamw(params, grads, state, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
        state.step += 1
        c1, c2 = (1 - beta**state.step if corrected else 1.0 for beta in (beta1, beta2))
        for name, p in params.items():
            m, v, g = state.m[name], state.v[name], grads[name]
            decay = weight_decay if optim.decays(name, p) else 0.0
            if not decoupled:
                g, decay = g + decay * p, 0.0
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            p *= 1 - lr * decay
            p -= lr * m / c1 / root(v / c2, eps)

    return adamw


# ---- tokenizer: what Tokenizer.encode(text) and pre_tokens(text) take ----------------------------


def merges_in_text_order(tokenizer, text):
    """Join the first pair from the left that has a merge, whatever its rank."""
    return _encode(tokenizer, pre_tokens(text), _merge_in_text_order)


def _merge_in_text_order(symbols, ranks, made):
    symbols = list(symbols)
    while known := [i for i, pair in enumerate(pairwise(symbols)) if pair in ranks]:
        i = known[0]
        symbols[i : i + 2] = [made[ranks[symbols[i], symbols[i + 1]]]]
    return symbols


def merges_across_words(tokenizer, text):
    """The whole text merged as if it were one word."""
    return _encode(tokenizer, [text], merge)


def longest_token_first(tokenizer, text):
    """Cut off the longest token of the vocabulary, again and again; the merges are not asked."""
    ids = {bytes_of(tokenizer, i): i for i in range(tokenizer.n_vocab)}
    found = []
    for word in map(str.encode, pre_tokens(text)):
        while word:
            n = next(n for n in range(len(word), 0, -1) if word[:n] in ids)
            found.append(ids[word[:n]])
            word = word[n:]
    return found


def bytes_of(tokenizer, i):
    """The bytes of one token."""
    return tokenizer.decode_bytes([i])


def _encode(tokenizer, words, merge):
    """Byte-pair encoding of words by a function in place of `bpe.merge`."""
    symbols = byte_symbols()
    ids = {spelling: i for i, spelling in enumerate(tokenizer.tokens)}
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    made = ["".join(pair) for pair in tokenizer.merges]
    rows = ([symbols[byte] for byte in word.encode()] for word in words)
    return [ids[token] for row in rows for token in merge(row, ranks, made)]


def _splitting(pattern):
    """pre_tokens by another pattern; `re` has [^\\W\\d_] where GPT-2's pattern has \\p{L}."""
    return re.compile(pattern.replace("LETTER", r"[^\W\d_]")).findall


# ---- the table ----------------------------------------------------------------------------------

M = Mistake
OTHERS = (
    M("loss-not-shifted", "ops.cross_entropy",
      "Each position is asked for the token it was given; its target is the next one.",
      "hand-written training loops", loss_not_shifted),
    M("loss-shifted-twice", "ops.cross_entropy",
      "The targets are shifted where the batch is made and again in the loss; shift once.",
      "labels prepared for transformers, which shifts them itself", loss_shifted_twice),
    M("loss-over-padding", "ops.cross_entropy",
      "Padding counts as targets; leave it out of sum and mean, by the mask.",
      "fine-tuning scripts", loss_over_padding),
    M("loss-divided-by-all", "ops.cross_entropy",
      "The masked sum is divided by all positions; divide by those that count.",
      "mean() after a mask", loss_divided_by_all),
    M("loss-mean-of-rows", "ops.cross_entropy",
      "Rows are averaged first, so tokens of short rows weigh more; average over all tokens at "
      "once.",
      "gradient accumulation", loss_mean_of_rows),
    M("temperature-multiplied", "sample.apply_temperature",
      "Logits are multiplied by the temperature; divide by it, so that a low one sharpens.",
      "gpt-numpy", temperature_multiplied),
    M("top-k-or-top-p", "sample.probabilities",
      "A token stays if either filter keeps it; it must pass both, top-k first.",
      "gpt-numpy", top_k_or_top_p),
    M("top-p-before-temperature", "sample.probabilities",
      "The filters see the logits before the temperature; divide by it first.",
      "hand-written samplers", top_p_before_temperature),
    M("top-p-drops-crossing-token", "sample.keep_top_p",
      "The token with which the sum crosses p is dropped; it stays, so that p is reached.",
      "hand-written samplers", top_p_without_crossing_token),
    M("decay-everything", "optim.decays",
      "Weight decay pulls biases and gains to 0, too; decay matrices alone.",
      "AdamW(model.parameters())", decay_everything),
    M("adam-without-bias-correction", "optim.adamw",
      "m and v begin at 0 and are used as they are; divide by 1 - beta^t.",
      "hand-written Adam, BERT's original optimizer", _adam(corrected=False)),
    M("adam-eps-inside-root", "optim.adamw",
      "eps is added under the root; add it to the root.",
      "hand-written Adam", _adam(root=lambda v, eps: np.sqrt(v + eps))),
    M("decay-in-gradient", "optim.adamw",
      "The decay is added to the gradient and divided by sqrt(v) with it (Adam with L2); AdamW "
      "shrinks the weight itself.",
      "torch.optim.Adam(weight_decay=)", _adam(decoupled=False)),
    M("clip-per-tensor", "optim.clip",
      "Each gradient is clipped by its own norm, which turns the direction; use one factor from "
      "the norm of all.",
      "hand-written clipping", clip_per_tensor),
    M("merges-in-text-order", "bpe.Tokenizer.encode",
      "Pairs are joined from left to right; always join the pair of lowest rank in the word.",
      "hand-written tokenizers", merges_in_text_order),
    M("merges-across-words", "bpe.Tokenizer.encode",
      "Merges run across words; cut the text by the pattern first and merge inside each piece.",
      "hand-written tokenizers", merges_across_words),
    M("longest-token-first", "bpe.Tokenizer.encode",
      "The longest token that fits is taken, as WordPiece does; BPE applies the merges in order.",
      "code adapted from BERT", longest_token_first),
    M("split-on-spaces", "bpe.pre_tokens",
      "The text is cut at white space only; GPT-2 also parts letters, digits and punctuation.",
      "str.split", _splitting(r" ?\S+|\s+")),
    M("pattern-with-word-characters", "bpe.pre_tokens",
      "Letters and digits are taken together, with the underscore (\\w); they are separate "
      "classes.",
      r"re, which knows no \p{L}",
      _splitting(r"'s|'t|'re|'ve|'m|'ll|'d| ?\w+| ?[^\s\w]+|\s+(?!\S)|\s+")),
    M("pattern-without-lookahead", "bpe.pre_tokens",
      r"A run of white space takes the space before the next word; leave that one to the word: "
      r"\s+(?!\S).",
      "shortened patterns",
      _splitting(r"'s|'t|'re|'ve|'m|'ll|'d| ?LETTER+| ?\d+| ?[^\s\w]+| ?_+|\s+")),
    M("pattern-any-case", "bpe.pre_tokens",
      "'S, 'T, 'RE ... are split off as well (that is GPT-4's pattern); GPT-2's knows them in "
      "lower case only.",
      "tiktoken's cl100k pattern",
      _splitting(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?LETTER+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")),
    M("pattern-digits-in-threes", "bpe.pre_tokens",
      "Numbers are cut into groups of three (GPT-4's pattern); GPT-2 keeps a run of digits "
      "whole.",
      "tiktoken's cl100k pattern",
      _splitting(r"'s|'t|'re|'ve|'m|'ll|'d| ?LETTER+| ?\d{1,3}| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")),
)  # fmt: skip
