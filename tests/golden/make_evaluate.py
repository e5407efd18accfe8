"""Makes evaluate.json: log-likelihoods as transformers' GPT2LMHeadModel computes them.

The model is the small one of models.py, in float64. Each row is computed alone, token by token,
without batches, padding or windows of ours, and each score is summed here from those.
Run from the repository's root: PYTHONPATH=.:tests/golden python tests/golden/make_evaluate.py
"""

import json

import torch
from make_model import reference_model
from models import GOLDEN, SMALL, small, token_ids

N_CTX = SMALL.n_ctx


def log_probabilities(model, ids):
    """ln p of each id but the first, given those before it."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids[:-1]])).logits[0]
    return torch.log_softmax(logits, -1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def rolling(model, ids):
    """EleutherAI's rolling windows: each predicts the next N_CTX ids, the last fills itself up."""
    total, done = 0.0, 0
    targets = len(ids) - 1
    while done < targets:
        count = min(N_CTX, targets - done)
        end = done + count
        start = max(0, end - N_CTX)
        total += float(log_probabilities(model, ids[start : end + 1])[-count:].sum())
        done = end
    return total


def main():
    model = reference_model(SMALL, small())
    rows, numbers = [], iter(range(1000))
    for context, length in ((3, 1), (5, 4), (12, 2), (20, 3), (1, 13), (9, 5)):
        ids = token_ids(next(numbers), (context + length + 2,), SMALL.n_vocab).tolist()[2:]
        each = log_probabilities(model, ids[-N_CTX - 1 :])[-length:]
        rows.append({"context": ids[:context], "ids": ids[context:], "each": each.tolist()})
    for context in (4, 7):  # what greedy decoding writes
        ids = token_ids(next(numbers), (context,), SMALL.n_vocab).tolist()
        made = list(ids)
        for _ in range(3):
            with torch.inference_mode():
                made.append(int(model(torch.tensor([made])).logits[0, -1].argmax()))
        each = log_probabilities(model, made)[-3:]
        rows.append({"context": ids, "ids": made[context:], "each": each.tolist(), "greedy": True})
    texts = []
    for length in (2, 13, 14, 15, 40):
        ids = token_ids(next(numbers), (length + 2,), SMALL.n_vocab).tolist()[2:]
        texts.append({"ids": ids, "sum": rolling(model, ids)})
    path = GOLDEN / "evaluate.json"
    path.write_text(json.dumps({"rows": rows, "texts": texts}, indent=1) + "\n")
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
