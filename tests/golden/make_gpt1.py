"""Makes gpt1/, gpt1.npz and gpt1_words.json: a GPT-1 as transformers saves it, and its results.

    gpt1/            model.safetensors, config.json, vocab.json, merges.txt
    gpt1.npz         ids of two rows, and float64 logits
    gpt1_words.json  texts and ids

Run from anywhere: python tests/golden/make_gpt1.py
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from make_bert import TEXTS  # noqa: E402

MERGES = """t h|th e</w>|c a|ca t</w>|s a|sa t</w>|o n</w>|i n|in g</w>|e r|er e</w>|th ere</w>|
    l l|l l</w>|a ll</w>|d o|do n</w>|x x|xx x</w>|xx xx""".replace("\n", "").split("|")


def main():
    out = HERE / "gpt1"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    merges = [tuple(pair.split()) for pair in MERGES]
    letters = [*"abcdefghilmnorstuvwxyz.,'!-1974$αβςσ中"]
    base = ["<unk>", *letters, *(c + "</w>" for c in letters)]
    tokens = list(dict.fromkeys([*base, *("".join(pair) for pair in merges)]))
    vocab = {token: i for i, token in enumerate(tokens)}
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{left} {right}\n" for left, right in merges)
    (out / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    tokenizer = transformers.OpenAIGPTTokenizer.from_pretrained(out)
    texts = [text for text in TEXTS if "[" not in text] + ["There all catting on, all!", "xxxxx xx"]
    ids = [tokenizer.encode(text) for text in texts]
    content = json.dumps({"texts": texts, "ids": ids}, indent=1)
    (HERE / "gpt1_words.json").write_text(content + "\n")

    torch.manual_seed(1)
    config = transformers.OpenAIGPTConfig(
        vocab_size=len(tokens), n_positions=11, n_embd=15, n_layer=2, n_head=3
    )
    model = transformers.OpenAIGPTLMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * (0.3 if p.ndim == 1 else 0.4)
    model.save_pretrained(out)
    rng = np.random.default_rng(3)
    tokens = rng.integers(len(vocab), size=(2, 11))
    logits = model.double()(torch.tensor(tokens)).logits.detach().numpy()
    np.savez_compressed(HERE / "gpt1.npz", tokens=tokens, logits=logits)
    print(torch.__version__, transformers.__version__, logits.std())


if __name__ == "__main__":
    main()
