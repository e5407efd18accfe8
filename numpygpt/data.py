"""From ids, or from (x, y) pairs, to batches of tokens, targets and mask.

A batch is `(tokens, targets, mask)`, three arrays (B, T): the target of a position is the token
that follows it, and the mask is True where the loss counts it. Pre-training counts every token;
fine-tuning on pairs counts those of the answer. Nothing else differs between the two.

GPT predicts the *next* token at every position. No token is hidden and guessed from both sides:
that is masked language modelling, which is how BERT is trained.
"""

import numpy as np

from .bpe import documents as documents  # the vocabulary is learned from the same documents


def encode_documents(tokenizer, texts) -> np.ndarray:
    """One stream of ids: the end token, document, end token, document, ..., end token.

    It stands first as well, so that the model learns what a document begins with: (N,) int32.
    Other special tokens in a document are what they are everywhere: one token.
    """
    end = _end(tokenizer)
    ids = [end]
    for text in texts:
        ids += tokenizer.encode(text, tokenizer.special)
        ids.append(end)
    return np.array(ids, np.int32)


def _end(tokenizer):
    if tokenizer.eot is None:
        raise ValueError("the vocabulary names no end token, which must end each document")
    return tokenizer.eot


def stream(ids, batch: int, length: int, rng: np.random.Generator):
    """Batches of windows of a long stream, without end.

    Each pass over the stream cuts it into windows of `length` tokens at another offset and takes
    them in another order; every window is used once in a pass. A pass's last windows that do not
    fill a batch are left out. Raises ValueError for a stream too short for one batch.
    """
    ids = np.asarray(ids)
    if len(ids) <= length * (batch + 1):
        raise ValueError(
            f"{len(ids)} tokens are too few for batches of {batch} windows of {length}: "
            "bring more text, or use a smaller batch or window"
        )
    steps = np.arange(length)
    while True:
        starts = np.arange(rng.integers(length), len(ids) - length, length)
        rng.shuffle(starts)
        for i in range(0, len(starts) - batch + 1, batch):
            at = starts[i : i + batch, None] + steps  # (B, T)
            yield ids[at], ids[at + 1], np.ones(at.shape, bool)


def pair_batches(pairs, tokenizer, batch: int, length: int, rng: np.random.Generator):
    """Batches of (x, y) text pairs, without end: the loss counts y and the end token after it.

    A row is x, y and the end token, filled up at the right, where causal attention makes padding
    harmless, to the longest row of the batch. Raises ValueError naming a pair that is longer than
    `length` tokens, and when there are fewer pairs than `batch`.
    """
    end = _end(tokenizer)
    rows = []
    for number, (x, y) in enumerate(pairs):
        before = tokenizer.encode(x, tokenizer.special)
        after = [*tokenizer.encode(y, tokenizer.special), end]
        if not before:
            before = [end]  # the first token of y needs something to be predicted from
        if len(before) + len(after) - 1 > length:
            raise ValueError(
                f"pair {number} has {len(before) + len(after)} tokens, more than the {length + 1} "
                "that fit: shorten it or leave it out"
            )
        rows.append((before + after, len(before)))
    if len(rows) < batch:
        raise ValueError(f"{len(rows)} pairs are too few for a batch of {batch}")
    while True:
        order = rng.permutation(len(rows))
        for i in range(0, len(order) - batch + 1, batch):
            yield _padded([rows[j] for j in order[i : i + batch]], end)


def _padded(rows, end):
    length = max(len(ids) for ids, _ in rows) - 1
    tokens = np.full((len(rows), length), end, np.int32)
    targets = tokens.copy()
    mask = np.zeros(tokens.shape, bool)
    for row, (ids, answer) in enumerate(rows):
        n = len(ids) - 1
        tokens[row, :n], targets[row, :n] = ids[:-1], ids[1:]
        mask[row, answer - 1 : n] = True  # the last token of x predicts the first of y
    return tokens, targets, mask
