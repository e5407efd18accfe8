"""Makes checkpoint/: that transformers loads what we save, and files it saves for us to load.

    ours/             saved by numpygpt.save, and then loaded by transformers
    reproduced.json   how far its logits were from ours, and with which versions
    the others        one model as transformers, or a file from elsewhere, lays it out
    expected.npz      transformers' float64 logits for each of them

Fails if transformers warns about a folder of ours, or differs in a logit or a token. Sizes are tiny
and different. Run from anywhere: python tests/golden/make_checkpoint.py [MORE FOLDERS OF OURS]
"""

import copy
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import transformers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

import numpygpt  # noqa: E402
from numpygpt.files.checkpoint import parameter_shapes  # noqa: E402

OUT = HERE / "checkpoint"
SIZES = 270, 11, 6, 3, 2, 10  # n_vocab, n_ctx, n_embd, n_head, n_layer, n_inner
EPSILON = 1.3e-5
TEXT = (
    "The wolf said to the other wolves: there is the house of the seven kids, there, there.\n" * 3
)
TEXTS = [
    *(
        "",
        " ",
        "\n\n  \t x",
        "the house",
        "The house's roof, they'll say",
        "ünï 你好 🐺",
        "\x00\x7f",
    ),
    *("1234 5678", "<|endoftext|>", "the end<|endoftext|>The wolf", "there" * 9, "a  b   c    d"),
]


def check(folder):
    """The largest relative gap between transformers' logits and ours, all else being equal."""
    model, tokenizer = numpygpt.load(folder)
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    transformers.utils.logging.get_logger("transformers").addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float64
        )
        stored = transformers.GPT2LMHeadModel.from_pretrained(folder).dtype
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    transformers.utils.logging.get_logger("transformers").removeHandler(handler)
    assert not messages, messages
    assert not any(loading.values()), loading
    check_tokens(tokenizer, their_tokenizer)
    assert theirs.config.eos_token_id == their_tokenizer.eos_token_id == tokenizer.eot

    n_ctx = model.config.n_ctx
    tokens = np.random.default_rng(3).integers(model.config.n_vocab, size=(2, min(n_ctx, 64)))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    gaps = {}
    for dtype in (np.float64, model.dtype):
        logits, _ = numpygpt.model.as_dtype(model, dtype).forward(tokens)
        gaps[str(np.dtype(dtype))] = float(np.abs(logits - expected).max() / np.abs(expected).max())
    assert gaps["float64"] < 1e-12 and max(gaps.values()) < 1e-6, gaps
    return {"stored_as": str(stored).removeprefix("torch."), "relative_gap": gaps}


def check_tokens(ours, theirs):
    assert len(theirs) == ours.n_vocab
    for text in TEXTS:
        ids = ours.encode(text, ours.special)
        assert theirs.encode(text) == ids, text
        assert theirs.decode(ids) == ours.decode(ids) == text


def random_params(config, rng, tied):
    params = numpygpt.init(config, rng, np.float64)
    for name, shape in parameter_shapes(config, tied).items():
        params[name] = rng.normal(size=shape) * 0.3 + name.endswith(("ln_1.weight", "ln_f.weight"))
    return {name: a.astype(np.float32).astype(np.float64) for name, a in params.items()}


def save_ours(rng, temporary):
    """Every kind of folder that we write; the first one is kept."""
    tokenizer = numpygpt.Tokenizer.train(TEXT, SIZES[0])
    config = numpygpt.Config(*SIZES, layer_norm_epsilon=EPSILON)
    results = {}
    for name, tied, dtype in (
        ("ours", True, np.float32),
        ("float64", True, np.float64),
        ("float16", True, np.float16),
        ("untied", False, np.float32),
    ):
        model = numpygpt.GPT2(config, random_params(config, rng, tied))
        folder = (OUT if name == "ours" else temporary) / name
        numpygpt.save(model, tokenizer, folder, dtype)
        results[name] = check(folder)
        assert results[name]["stored_as"] == np.dtype(dtype).name
    official = numpygpt.Config(50257, 8, 6, 3, 2)
    model = numpygpt.GPT2(official, numpygpt.init(official, rng))
    numpygpt.save(model, numpygpt.Tokenizer.gpt2(), temporary / "official")
    results["official vocabulary"] = check(temporary / "official")
    return results


# ---- transformers' folders -----------------------------------------------------------------------


def random_model(n_vocab, n_ctx, n_embd, n_head, n_layer, n_inner, tied=True):
    config = transformers.GPT2Config(
        vocab_size=n_vocab,
        n_positions=n_ctx,
        n_embd=n_embd,
        n_head=n_head,
        n_layer=n_layer,
        n_inner=n_inner,
        layer_norm_epsilon=EPSILON,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter *= 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            if "ln_" in name and name.endswith("weight"):
                parameter += 1
    return model


def sizes_of(model):
    c = model.config
    return c.vocab_size, c.n_positions, c.n_embd, c.n_head, c.n_layer, c.n_inner


# Each writes a layout of the model into the folder, and returns the model that it then holds.


def prefix(model, folder):
    model.save_pretrained(folder)
    return model


def sharded(model, folder):
    model.save_pretrained(folder, max_shard_size=model.transformer.wte.weight.nbytes + 1)
    assert (folder / "model.safetensors.index.json").exists()
    return model


def bare(model, folder):
    model.transformer.save_pretrained(folder)
    return model


def official(model, folder):
    """As transformers wrote until 2023, when the file that is now the official one was made."""
    n, state = model.config.n_positions, model.transformer.state_dict()
    for i in range(model.config.n_layer):
        state[f"h.{i}.attn.bias"] = torch.tril(torch.ones(n, n)).view(1, 1, n, n)
        state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return write(model, folder, state)


def both_heads(model, folder):
    return write(model, folder, {k: v.clone() for k, v in model.state_dict().items()})


def only_head(model, folder):
    write(model, folder, {})
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert "transformer.wte.weight" not in state
    return model


def padded(model, folder):
    n_vocab, *others = sizes_of(model)
    larger, state = random_model(n_vocab + 47, *others), model.transformer.state_dict()
    rest = larger.transformer.wte.weight.detach()[n_vocab:]
    state["wte.weight"] = torch.cat([state["wte.weight"], rest])
    larger.transformer.load_state_dict(state)
    larger.save_pretrained(folder)
    return larger


def untied(model, folder):
    other = random_model(*sizes_of(model), tied=False)
    other.save_pretrained(folder)
    return other


def bfloat16(model, folder):
    return prefix(copy.deepcopy(model).to(torch.bfloat16), folder)


def float16(model, folder):
    return prefix(copy.deepcopy(model).to(torch.float16), folder)


def write(model, folder, state):
    config = model.config.to_dict() | {"n_ctx": model.config.n_positions}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})
    return model


LAYOUTS = (
    *(prefix, sharded, bare, official, both_heads, only_head),
    *(padded, untied, bfloat16, float16),
)


def check_conversion_of_pickles(model, folder):
    """Run the line that the refusal of a pickle recommends."""
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    shutil.copy(OUT / "prefix" / "config.json", folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(OUT / "ours" / name, folder)
    try:
        numpygpt.load(folder)
        raise AssertionError("a pickle was loaded")
    except numpygpt.CheckpointError as refusal:
        line = re.search(r'python (-c ".*")$', str(refusal))[1]
    subprocess.run(f"{sys.executable} {line}", shell=True, check=True)
    ours, expected = numpygpt.load(folder)[0], numpygpt.load(OUT / "prefix")[0]
    assert all(np.array_equal(a, expected.params[name]) for name, a in ours.params.items())


def main(more_folders):
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    with tempfile.TemporaryDirectory() as temporary:
        results = save_ours(np.random.default_rng(5), Path(temporary))
        model = random_model(*SIZES)
        models = {layout.__name__: layout(model, OUT / layout.__name__) for layout in LAYOUTS}
        transformers.AutoTokenizer.from_pretrained(OUT / "ours").save_pretrained(OUT / "prefix")
        check_conversion_of_pickles(model, Path(temporary) / "pickle")
    tokens = np.random.default_rng(9).integers(SIZES[0], size=(2, 3))
    expected = {"tokens": tokens}
    with torch.no_grad():
        for name, model in models.items():
            logits = copy.deepcopy(model).double()(torch.tensor(tokens)).logits.numpy()
            logits = logits[..., : SIZES[0]]  # without padding
            same = [n for n in expected if np.array_equal(expected[n], logits)]
            expected[name] = np.array(same[0]) if same else logits
    np.savez_compressed(OUT / "expected.npz", **expected)
    for path in (*OUT.glob("*/generation_config.json"), *OUT.glob("prefix/tokenizer_config.json")):
        path.unlink()  # nothing of ours reads it
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    text = json.dumps({"versions": versions, "folders": results}, indent=2) + "\n"
    (OUT / "reproduced.json").write_text(text, encoding="utf-8")
    print(text, end="")
    for folder in more_folders:
        print(folder, check(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
