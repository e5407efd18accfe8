"""family/transformer.py: golden against torch.nn.Transformer, caches, decoding, training."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import family_models as models  # noqa: E402

from numpygpt.family import transformer  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "transformer.npz")
START, END = models.START, models.END


def model(dtype=np.float64):
    params = {name: value.astype(dtype) for name, value in models.transformer_params().items()}
    return transformer.Transformer(models.TRANSFORMER, params)


def gap(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_outputs_and_every_gradient_are_torchs(dtype, limit):
    source, real, target, targets, mask = models.transformer_batch()
    assert not real.all() and not mask.all()
    ours = model(dtype)
    logits, _ = ours.forward(source, target, real)
    loss, grads = ours.loss_and_grads(source, real, target, targets, mask, models.SMOOTHING)
    gaps = {"logits": gap(logits, GOLDEN["logits"]), "loss": gap(loss, GOLDEN["loss"])}
    gaps |= {name: gap(grad, GOLDEN["grad " + name]) for name, grad in grads.items()}
    assert list(grads) == list(ours.params) and len(gaps) == len(GOLDEN.files)
    assert {a.dtype for a in (logits, *grads.values())} == {np.dtype(dtype)}
    assert max(gaps.values()) < limit, max(gaps, key=gaps.get)
