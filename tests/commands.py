"""What the tests of commands share: small models in folders, and running a command in here."""

import json

import numpy as np

import numpygpt
from numpygpt import cli
from numpygpt.formats import safetensors

TEXT = "A cat sat on a mat, and the cat saw a rat. The rat ran, so the cat ran too.\n" * 9


def save_small(folder):
    """A small model with random weights, and a vocabulary of TEXT; returns the folder."""
    tokenizer = numpygpt.Tokenizer.train(TEXT, 280)
    config = numpygpt.Config(280, 32, 24, 3, 2)
    model = numpygpt.GPT2(config, numpygpt.init(config, np.random.default_rng(0)))
    numpygpt.save(model, tokenizer, folder)
    return folder


def save_golden(folder, params):
    """A model of the golden files' size, without a vocabulary; returns the folder."""
    fields = {
        "vocab_size": 23, "n_positions": 11, "n_embd": 28, "n_head": 4, "n_layer": 3, "n_inner": 19,
        "layer_norm_epsilon": 1e-5, "model_type": "gpt2",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    safetensors.write(folder / "model.safetensors", params)
    return folder


def run(capsys, *words):
    """(exit status, stdout, stderr) of a command."""
    try:
        status = cli.main([str(word) for word in words])
    except SystemExit as ended:
        status = ended.code
    out, err = capsys.readouterr()
    return status, out, err
