"""Makes gpt3.npz: what transformers' GPT-Neo, whose odd blocks see a window too, computes.

GPT-Neo does not divide its scores by sqrt(D), so its queries' weights are; its
queries, keys and values have no biases, so ours are 0. Logits for windows of 1, 3 and 20, in
float64 but for the patterns, which GPT-Neo always computes in float32.
Run from anywhere: python tests/golden/make_gpt3.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import family_models as models  # noqa: E402


def neo(config, params, window):
    model = transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=config.n_vocab,
            max_position_embeddings=config.n_ctx,
            hidden_size=config.n_embd,
            num_layers=config.n_layer,
            attention_types=[[["global", "local"], config.n_layer // 2]],
            num_heads=config.n_head,
            intermediate_size=config.n_inner,
            window_size=window,
            layer_norm_epsilon=config.layer_norm_epsilon,
        )
    )
    state, c = {}, config.n_embd
    for name, value in params.items():
        value = torch.tensor(value.astype(np.float64))
        if ".attn.c_attn.weight" in name:
            parts = zip("qkv", value.split(c, dim=1), strict=True)
            for letter, part in parts:
                scale = (c // config.n_head) ** -0.5 if letter == "q" else 1
                place = name.replace("c_attn", f"attention.{letter}_proj")
                state["transformer." + place] = part.T * scale
        elif ".attn.c_attn.bias" not in name:
            place = name.replace("attn.c_proj", "attn.attention.out_proj")
            is_matrix = value.ndim == 2 and not name.startswith(("wte", "wpe"))
            state["transformer." + place] = value.T if is_matrix else value
    missing, unknown = model.double().load_state_dict(state, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unknown, (missing, unknown)
    model.tie_weights()
    return model.eval()


def main():
    params = models.gpt3_params()
    tokens = models.gpt3_tokens()
    arrays = {}
    for window in models.BANDS:
        logits = neo(models.GPT3, params, window)(torch.tensor(tokens)).logits
        arrays[f"band {window}"] = logits.detach().numpy()
    np.savez_compressed(HERE / "gpt3.npz", **arrays)
    print(transformers.__version__, [float(a.std()) for a in arrays.values()])


if __name__ == "__main__":
    main()
