"""The command that a refused pickle suggests, run in a shell as the reader would.

`torch` and `safetensors` are stand-ins here, as they are not installed: a "pickle" is an .npz file,
and what the command asks of the two packages is all they have. With the real ones,
golden/make_checkpoint.py runs it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from numpygpt.files.checkpoint import load_folder
from numpygpt.formats import CheckpointError, safetensors

PREFIX = Path(__file__).parent / "golden" / "checkpoint" / "prefix"
ROOT = Path(__file__).parent.parent
TORCH = """
import numpy as np
class Tensor:
    def __init__(self, array): self.array = array
    def clone(self): return Tensor(self.array.copy())
    def contiguous(self): return self
def load(file, where, weights_only):
    assert where == "cpu" and weights_only is True
    with np.load(file) as arrays:
        read = {name: Tensor(arrays[name]) for name in arrays.files}
    return {"model": read, "step": 3} if file.endswith("ckpt.pt") else read
"""
SAVE = """
from numpygpt.formats import safetensors
def save_file(tensors, path):
    safetensors.write(path, {name: tensor.array for name, tensor in tensors.items()})
"""
ARRAYS = safetensors.read(PREFIX / "model.safetensors")
NAMES = sorted(ARRAYS)
FOLDERS = {  # what the user has -> file -> the arrays in it; None: not weights at all
    "one file": {"pytorch_model.bin": NAMES},
    "shards": {
        "pytorch_model-00001-of-00002.bin": NAMES[:9],
        "pytorch_model-00002-of-00002.bin": NAMES[9:],
        "pytorch_model.bin.index.json": None,
    },
    "a trainer's": {
        "optimizer.pt": None,
        "pytorch_model.bin": NAMES,
        "random_states_0.pkl": None,
        "rng_state.pth": None,
        "scheduler.pt": None,
        "training_args.bin": None,
    },
    "a run's": {"ckpt.pt": NAMES},
}


@pytest.fixture
def shell(tmp_path):
    """Runs a line in bash, where `python` is this one with the stand-ins."""
    if shutil.which("bash") is None:
        pytest.skip("this system has no bash")
    stubs, bin_folder = tmp_path / "stubs", tmp_path / "bin"
    for folder in (stubs / "torch", stubs / "safetensors", bin_folder):
        folder.mkdir(parents=True)
    (stubs / "torch" / "__init__.py").write_text(TORCH)
    (stubs / "safetensors" / "__init__.py").write_text("")
    (stubs / "safetensors" / "torch.py").write_text(SAVE)
    python = bin_folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{stubs}:{ROOT}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def run(line):
        environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": "/nowhere"}
        command = ["bash", "-c", line]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=stubs)

    return run


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("name", ["model", "it's $HOME's `pwd` \"best\" \\ model! [x]*?"])
def test_the_suggested_command_makes_a_folder_that_loads(tmp_path, shell, kind, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(PREFIX / "config.json", folder)
    for file, names in FOLDERS[kind].items():
        with open(folder / file, "wb") as opened:
            np.savez(opened, **({n: ARRAYS[n] for n in names} if names else {"x": np.zeros(3)}))
    with pytest.raises(CheckpointError, match="is a pickle, which can run any code") as caught:
        load_folder(folder)
    line = re.search(r'python -c ".*"$', str(caught.value))[0]
    ran = shell(line)
    assert ran.returncode == 0, ran.stderr
    model, expected = load_folder(folder), load_folder(PREFIX)
    for parameter, array in expected.params.items():
        np.testing.assert_array_equal(model.params[parameter], array)


def test_what_a_trainer_leaves_beside_weights_is_not_taken_for_them(tmp_path):
    shutil.copy(PREFIX / "config.json", tmp_path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_folder(tmp_path)
