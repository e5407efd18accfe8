"""Compares numpygpt with transformers at the proportions of all four GPT-2s, and at 124M exactly.

For every layout of make_checkpoint.py: transformers writes a random model, numpygpt loads it, and
logits, hidden states and gradients in float32 are held against torch's in float64. Prints a table
of the largest gaps, each relative to the largest entry of its tensor; fails above 1e-5.

Needs torch and transformers, 5 GB of memory and 1 GB of disk. Run from anywhere:
python tests/golden/check_real_shapes.py [SIZE ...]
"""

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from make_checkpoint import LAYOUTS, random_model

from numpygpt.files.checkpoint import load_folder

# The official depth and heads with few numbers a head (64 in truth): n_vocab, n_ctx, n_embd, ...
SHAPES = {
    "124M": (50257, 1024, 768, 12, 12, 3072),
    "124M, narrow": (1009, 96, 12 * 6, 12, 12, 4 * 12 * 6),
    "355M, narrow": (1009, 96, 16 * 6, 16, 24, 4 * 16 * 6),
    "774M, narrow": (1009, 96, 20 * 6, 20, 36, 4 * 20 * 6),
    "1558M, narrow": (1009, 96, 25 * 6, 25, 48, 4 * 25 * 6),
}
LINE = 1e-5


def reference(model, tokens, targets, n_vocab):
    """torch's float64 loss, logits, hidden states and gradients, padding left out."""
    model = copy.deepcopy(model).double()
    out = model(torch.tensor(tokens), output_hidden_states=True)
    logits = out.logits[..., :n_vocab]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten())
    loss.backward()
    grads = {n.removeprefix("transformer."): p.grad for n, p in model.named_parameters()}
    for name in grads.keys() & {"wte.weight", "lm_head.weight"}:
        grads[name] = grads[name][:n_vocab]
    return loss.item(), logits, out.hidden_states, grads


def gap(ours, expected):
    expected = expected.detach().numpy()
    return float(np.abs(ours - expected).max() / np.abs(expected).max())


def compare(model, folder, tokens, targets, n_vocab, expected=None):
    """-> the largest relative gaps: loss, logits, hidden states, gradients."""
    expected = expected or reference(model, tokens, targets, n_vocab)
    loss, logits, hidden, grads = expected
    ours = load_folder(folder, n_vocab)
    our_logits, acts = ours.forward(tokens, keep="everything")
    names = [f"h.{i}.resid_pre" for i in range(ours.config.n_layer)] + ["ln_f"]
    our_loss, our_grads = ours.loss_and_grads(tokens, targets)
    assert our_grads.keys() == grads.keys()
    return (
        abs(float(our_loss) - loss) / loss,
        gap(our_logits, logits),
        max(gap(acts[name], h) for name, h in zip(names, hidden, strict=True)),
        max(gap(our_grads[name], grad) for name, grad in grads.items()),
    )


def main(sizes):
    print(f"{'size':14}{'layout':12}{'loss':>10}{'logits':>10}{'hidden':>10}{'gradients':>10}")
    rng = np.random.default_rng(2)
    for size in sizes:
        shape = SHAPES[size]
        model = random_model(*shape)
        tokens, targets = rng.integers(shape[0], size=(2, 2, 20))
        expected = reference(model, tokens, targets, shape[0])
        for layout in LAYOUTS:
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder) / "model"
                held = layout(model, folder)
                known = expected if held is model else None
                gaps = compare(held, folder, tokens, targets, shape[0], known)
            print(
                f"{size:14}{layout.__name__:12}" + "".join(f"{g:10.1e}" for g in gaps), flush=True
            )
            assert max(gaps) < LINE, "above the line"


if __name__ == "__main__":
    main(sys.argv[1:] or SHAPES)
