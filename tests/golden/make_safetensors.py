"""Makes safetensors_tiny.*: a file by the official package, and what torch reads from it.

Also writes a file with our writer and fails unless the official readers agree with ours.
Run from the repository's root: python tests/golden/make_safetensors.py
"""

import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch

import numpygpt.formats.safetensors as ours

HERE = Path(__file__).parent
EDGES = [
    0.0,
    -0.0,
    1.0,
    -2.5,
    6.1e-5,
    1e-7,
    65504.0,
    float("inf"),
    -float("inf"),
    float("nan"),
    3e38,
]


def tensors():
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(5, 3, generator=generator)
    edges = torch.tensor(EDGES)
    return {
        "h.0.attn.c_attn.weight": normal,
        "double": normal.double() / 3,
        "half": edges.half(),
        "brain": edges.bfloat16(),
        "brain.square": (normal[:, :2] * 1e20).bfloat16(),
        "step": torch.tensor(123_456_789_012),
        "small": torch.tensor([-3, 2, 7], dtype=torch.int32),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "h.0.attn.bias": torch.ones(4, 4).tril().bool().view(1, 1, 4, 4),
        "nothing": torch.zeros(0, 6),
        "scalar": torch.tensor(0.1),
    }


def widened(tensor):
    return (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).numpy()


def make():
    path = HERE / "safetensors_tiny.safetensors"
    safetensors.torch.save_file(
        tensors(), path, metadata={"format": "pt", "ünï": "cödé \U0001f600"}
    )
    np.savez(HERE / "safetensors_tiny.npz", **{k: widened(v) for k, v in tensors().items()})


def check_our_writer():
    arrays = {k: v.numpy() for k, v in tensors().items() if v.dtype != torch.bfloat16}
    # The 7 bytes come first, so that everything behind them lies at an odd address.
    arrays = {"bytes": arrays["bytes"]} | arrays
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.safetensors"
        ours.write(path, arrays, {"format": "pt", "why": "ünï"})
        theirs = safetensors.numpy.load_file(path)
        assert sorted(theirs) == sorted(arrays)
        for name, array in arrays.items():
            assert theirs[name].dtype == array.dtype, name
            np.testing.assert_array_equal(theirs[name], array)
        with safetensors.safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt", "why": "ünï"}
            assert torch.equal(file.get_tensor("scalar"), tensors()["scalar"])


if __name__ == "__main__":
    make()
    check_our_writer()
