"""Compares numpygpt with transformers on bundles that TensorFlow wrote in OpenAI's own layout.

The other layouts are in check_real_shapes.py, whose sizes and measures these are. TensorFlow and
torch need not share an environment, so there are two steps, for the sizes named or for all:

    python tests/golden/check_openai_shapes.py write FOLDER [SIZE ...]      (needs tensorflow)
    python tests/golden/check_openai_shapes.py compare FOLDER [SIZE ...]    (needs transformers)

"compare" reads the bundles with numpygpt alone; transformers gets the same random numbers from
their seed. At 124M that takes 5 GB of memory and 0.5 GB of disk.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from numpygpt.model import Config, parameter_shapes  # noqa: E402

SIZES = {  # n_vocab, n_ctx, n_embd, n_head, n_layer
    "124M": (50257, 1024, 768, 12, 12),
    "124M, narrow": (1009, 96, 12 * 6, 12, 12),
    "355M, narrow": (1009, 96, 16 * 6, 16, 24),
    "774M, narrow": (1009, 96, 20 * 6, 20, 36),
    "1558M, narrow": (1009, 96, 25 * 6, 25, 48),
}


def arrays_of(size):
    """OpenAI's names -> random float32 arrays; gains are near 1, so that depth does no harm."""
    rng = np.random.default_rng(SIZES[size])
    arrays, scale = {}, np.float32(0.85 / SIZES[size][2] ** 0.5)  # a product keeps its size
    for name, shape in parameter_shapes(Config(*SIZES[size])).items():
        parts = name.removesuffix(".weight").removesuffix(".bias").split(".")
        if parts[0] == "h":
            parts[:2] = ["h" + parts[1]]
        if parts[0] not in ("wte", "wpe"):
            gain = "ln_" in parts[-1]
            parts.append("b" if name.endswith("bias") else "g" if gain else "w")
        x = rng.standard_normal(shape, np.float32) * scale
        x = x + np.float32(1) if parts[-1] == "g" else x[None] if parts[-1] == "w" else x
        arrays["/".join(["model", *parts])] = x
    return arrays


def write(folder, size):
    from make_tensorflow import save

    save(folder, arrays_of(size))
    names = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
    hparams = dict(zip(names, SIZES[size], strict=True))
    (folder / "hparams.json").write_text(json.dumps(hparams), encoding="utf-8")
    print(size, sum(file.stat().st_size for file in folder.iterdir()), "bytes", flush=True)


def torch_model(size):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    n_vocab, n_ctx, n_embd, n_head, n_layer = SIZES[size]
    config = GPT2Config(
        vocab_size=n_vocab, n_positions=n_ctx, n_embd=n_embd, n_head=n_head, n_layer=n_layer,
        attn_implementation="eager", bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    state = {}
    for name, array in arrays_of(size).items():
        name = name.removeprefix("model/").replace("/", ".")
        name = "h." + name[1:] if name.startswith("h") else name
        kind = {"w": "weight", "g": "weight", "b": "bias"}
        head, _, last = name.rpartition(".")
        name = f"{head}.{kind[last]}" if head and last in kind else f"{name}.weight"
        state["transformer." + name] = torch.from_numpy(array.squeeze(0) if last == "w" else array)
    state["lm_head.weight"] = state["transformer.wte.weight"]
    model.load_state_dict(state)
    return model


def main(step, folder, sizes):
    rng = np.random.default_rng(4)
    if step == "compare":
        from check_real_shapes import LINE, compare

        print(f"{'size':16}{'loss':>10}{'logits':>10}{'hidden':>10}{'gradients':>10}")
    for size in sizes:
        place = Path(folder) / size.replace(", ", "-")
        if step == "write":
            place.mkdir(parents=True, exist_ok=True)
            write(place, size)
            continue
        tokens, targets = rng.integers(SIZES[size][0], size=(2, 2, 40))
        gaps = compare(torch_model(size), place, tokens, targets, SIZES[size][0])
        print(f"{size:16}" + "".join(f"{gap:10.1e}" for gap in gaps), flush=True)
        assert max(gaps) < LINE, "above the line"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] or SIZES)
