"""From ids, or from (x, y) pairs, to batches of tokens, targets and mask.

A batch is `(tokens, targets, mask)`, three arrays (B, T): the target of a position is the token
that follows it, and the mask is True where the loss counts it. Pre-training counts every token;
fine-tuning on pairs counts those of the answer. Nothing else differs between the two.

GPT predicts the *next* token at every position. No token is hidden and guessed from both sides:
that is masked language modelling, which is how BERT is trained.
"""

import numpy as np

from .bpe import documents
from .sample import check_count, check_rng


def hold_out(texts: list[str], share: float = 0.05) -> tuple[list[str], list[str]]:
    """Documents to train on, and documents to measure on that training never sees.

    With a share of 0.05 that is every 20th document, no copy of which is trained on; or, if there
    are fewer than 20, the last 5 % of each, beginning after a space or a newline if one is near.
    Raises ValueError for a share outside [0, 0.5].
    """
    check_documents(texts)
    texts = list(texts)
    if not 0 <= share <= 0.5:
        raise ValueError(f"the share that is held out must lie between 0 and 0.5, not {share}")
    if share == 0:
        return texts, []
    every = round(1 / share)
    if len(texts) >= every:
        held = texts[every - 1 :: every]
        seen = set(held)
        return [text for text in texts if text not in seen], held
    parts = []
    for text in texts:
        at = int(len(text) * (1 - share))
        # Chinese has no spaces: a border far away, as after the title, is not looked for.
        nearest = at - min(at, len(text) - at, 100)
        border = max(text.rfind(" ", nearest, at), text.rfind("\n", nearest, at))
        if border >= 0:
            at = border + 1
        parts.append((text[:at], text[at:]))
    return [before for before, _ in parts if before], [after for _, after in parts if after]


def hold_out_pairs(pairs, share: float = 0.1, most: int = 200, seed: int = 0):
    """Pairs to train on, and at most `most` to measure on whose x training never sees.

    Which they are depends on the seed. Of fewer than 20 different x none is held out. Raises
    ValueError for a share outside [0, 0.5].
    """
    if not 0 <= share <= 0.5:
        raise ValueError(f"the share that is held out must lie between 0 and 0.5, not {share}")
    pairs = list(pairs)
    for number, pair in enumerate(pairs, 1):
        check_pair(number, pair)
    most, seed = check_count("most", most, 0), check_count("seed", seed, 0)
    different = list(dict.fromkeys(x for x, _ in pairs))
    count = min(most, int(len(different) * share)) if len(different) >= 20 else 0
    rng = np.random.default_rng([seed, 2])  # 2: not the draws that others make from the same seed
    chosen = rng.permutation(len(different))[:count]
    held = {different[i] for i in chosen}
    return [pair for pair in pairs if pair[0] not in held], [p for p in pairs if p[0] in held]


def documents_of(text: str, tokenizer) -> list[str]:
    """The documents of a text for a tokenizer, each ended by its end token; see `documents`.

    Without an end token the whole text is one.
    """
    end = None if tokenizer.eot is None else tokenizer.tokens[tokenizer.eot]
    if end not in tokenizer.special:
        return [text] if text else []
    return documents(text, end)


def check_documents(texts):
    """Raises TypeError for one text, of which each letter would be taken for a document."""
    if isinstance(texts, str):
        raise TypeError("give a list of documents, as documents(text) makes one, not a single text")


def encode_documents(tokenizer, texts) -> np.ndarray:
    """One stream of ids: the end token, document, end token, document, ..., end token.

    It stands first as well, so that the model learns what a document begins with: (N,) int32.
    Other special tokens in a document are what they are everywhere: one token. If the vocabulary
    names no end token, a single text does without, and several raise ValueError.
    """
    check_documents(texts)
    texts = list(texts)
    if tokenizer.eot is None and len(texts) == 1:
        return np.array(tokenizer.encode(texts[0], tokenizer.special), np.int32)
    end = end_token(tokenizer)
    ids = [end]
    for text in texts:
        ids += tokenizer.encode(text, tokenizer.special)
        ids.append(end)
    return np.array(ids, np.int32)


def check_stream(ids) -> np.ndarray:
    """The ids of a text as an array (N,). Raises TypeError for what is not one list of integers."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"ids must be one list of integers, not {array.dtype} {array.shape}")
    return array


def end_token(tokenizer) -> int:
    """The id that ends a document. Raises ValueError for a vocabulary that names none."""
    if tokenizer.eot is None:
        raise ValueError(
            "the vocabulary names no end token, which must end each document: name one of its "
            'tokens in the model\'s tokenizer_config.json, as {"eos_token": "<|endoftext|>"}'
        )
    return tokenizer.eot


def stream(ids, batch: int, length: int, rng: np.random.Generator):
    """Batches (B, T) of windows of a long stream of ids (N,), without end: B = batch, T = length.

    Each pass over the stream cuts it into windows at a random offset and takes each of them once,
    in random order. Those at the end of a pass that do not fill a batch are left out. Raises
    ValueError for a stream too short for one batch.
    """
    ids = check_stream(ids)
    batch, length = check_count("batch", batch, 1), check_count("length", length, 1)
    check_rng(rng)
    if len(ids) <= length * (batch + 1):
        raise ValueError(
            f"{len(ids)} tokens are too few for batches of {batch} windows of {length}: "
            "bring more text, or use a smaller batch or window"
        )
    return _stream(ids, batch, length, rng)


def _stream(ids, batch, length, rng):
    steps = np.arange(length)
    while True:
        starts = np.arange(rng.integers(length), len(ids) - length, length)
        rng.shuffle(starts)
        for i in range(0, len(starts) - batch + 1, batch):
            at = starts[i : i + batch, None] + steps  # (B, T)
            yield ids[at], ids[at + 1], np.ones(at.shape, bool)


def encode_pair(tokenizer, x: str, y: str) -> tuple[list[int], list[int]]:
    """(ids of x, ids of y and the end token after it); an empty x is the end token."""
    end = end_token(tokenizer)
    before = tokenizer.encode(x, tokenizer.special)
    after = [*tokenizer.encode(y, tokenizer.special, begins=False), end]
    return before or [end], after  # the first token of y needs something to be predicted from


def pair_batches(pairs, tokenizer, batch: int, length: int, rng: np.random.Generator):
    """Batches of (x, y) text pairs, without end: the loss counts y and the end token after it.

    A row is x, y and the end token, filled up at the right, where causal attention makes padding
    harmless, to the longest row of the batch. Raises ValueError for fewer pairs than `batch`, and
    what `pair_rows` raises.
    """
    batch, length = check_count("batch", batch, 1), check_count("length", length, 1)
    check_rng(rng)
    rows = pair_rows(pairs, tokenizer, length)
    if len(rows) < batch:
        raise ValueError(
            f"{len(rows)} pairs are too few for a batch of {batch}: bring more, or use a smaller "
            "batch"
        )
    return _pair_batches(rows, batch, rng)


def _pair_batches(rows, batch, rng):
    while True:
        order = rng.permutation(len(rows))
        for i in range(0, len(order) - batch + 1, batch):
            yield padded([rows[j] for j in order[i : i + batch]])


def check_pair(number, pair):
    """Raises TypeError for what is not two texts: of {"x": ..., "y": ...} the names would be taken
    for them."""
    is_pair = isinstance(pair, tuple | list) and len(pair) == 2
    if not is_pair or not all(isinstance(text, str) for text in pair):
        raise TypeError(f"pair {number} must be two texts, (x, y), not {pair!r:.60}")


def pair_rows(pairs, tokenizer, length: int) -> list[tuple[list[int], int]]:
    """(ids of x, y and the end token; how many of them are x) of each pair.

    Raises ValueError naming the first pair of more than length + 1 ids, of which the last is only a
    target, and TypeError for what is not a pair of texts.
    """
    rows = []
    for number, pair in enumerate(pairs, 1):
        check_pair(number, pair)
        x, y = pair
        before, after = encode_pair(tokenizer, x, y)
        if len(before) + len(after) - 1 > length:
            raise ValueError(
                f"pair {number}, {x!r:.40}, has {len(before) + len(after)} tokens, more than the "
                f"{length + 1} that fit: shorten it or leave it out"
            )
        rows.append((before + after, len(before)))
    return rows


def padded(rows):
    """(tokens, targets, mask) of rows of `pair_rows`, filled up at the right with the end token."""
    end = rows[0][0][-1]
    length = max(len(ids) for ids, _ in rows) - 1
    tokens = np.full((len(rows), length), end, np.int32)
    targets = tokens.copy()
    mask = np.zeros(tokens.shape, bool)
    for row, (ids, length_x) in enumerate(rows):
        n = len(ids) - 1
        tokens[row, :n], targets[row, :n] = ids[:-1], ids[1:]
        mask[row, length_x - 1 : n] = True  # the last token of x predicts the first of y
    return tokens, targets, mask
