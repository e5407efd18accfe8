"""family/bert.py: golden against transformers, WordPiece, masking, what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import family_models as models  # noqa: E402

from numpygpt.family import bert  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = np.load(GOLDEN / "bert.npz")
WORDS = json.loads((GOLDEN / "bert_words.json").read_text())
N_VOCAB = EXPECTED["masked"].shape[-1]
CONFIG = models.bert_config(N_VOCAB)


def model(dtype=np.float64):
    params = {name: value.astype(dtype) for name, value in models.bert_params(CONFIG).items()}
    return bert.Bert(CONFIG, params)


def vocabulary(name):
    tokens = (GOLDEN / "bert" / name / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return bert.WordPiece(tokens, lower=name == "uncased")


def gap(ours, theirs, scale=0):
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), scale)


def gradient_gaps(grads):
    """A key's bias moves all scores of a query alike, so its gradient is 0, but for rounding: its
    error is measured against the gradient of the query's."""
    for name, grad in grads.items():
        twin = EXPECTED["grad " + name.replace(".key.bias", ".query.bias")]
        yield name, gap(grad, EXPECTED["grad " + name], np.abs(twin).max())


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_both_heads_and_every_gradient_are_transformers(dtype, limit):
    tokens, segments, real, targets, mask, is_next = models.bert_batch(CONFIG)
    ours = model(dtype)
    masked, following, _ = ours.forward(tokens, segments, real)
    loss, grads = ours.loss_and_grads(tokens, targets, mask, segments, real, is_next)
    gaps = {"masked": gap(masked[real], EXPECTED["masked"][real])}
    gaps |= {
        "following": gap(following, EXPECTED["following"]),
        "loss": gap(loss, EXPECTED["loss"]),
    }
    gaps |= dict(gradient_gaps(grads))
    assert list(grads) == list(ours.params) and len(gaps) == len(EXPECTED.files)
    assert {a.dtype for a in (masked, following, *grads.values())} == {np.dtype(dtype)}
    assert max(gaps.values()) < limit, max(gaps, key=gaps.get)


@pytest.mark.parametrize("name", ["uncased", "cased"])
@pytest.mark.parametrize("number", range(len(WORDS["texts"])))
def test_ids_are_transformers(name, number):
    tokenizer = vocabulary(name)
    ids = tokenizer.encode(WORDS["texts"][number], allowed_special=tokenizer.special)
    assert ids == WORDS[name]["texts"][number]
