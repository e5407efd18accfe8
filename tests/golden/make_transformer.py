"""Makes transformer.npz: what torch.nn.Transformer computes with the weights of `family_models`.

Logits, smoothed loss and the gradient of every parameter, in float64, for sources of three lengths.
torch's own stacks end in a layer norm that the paper does not have, so they are built without.
Run from anywhere: python tests/golden/make_transformer.py
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import family_models as models  # noqa: E402


def stacks(config):
    args = (config.n_embd, config.n_head, config.n_inner)
    options = {"dropout": 0.0, "activation": "relu", "layer_norm_eps": config.layer_norm_epsilon}
    options |= {"batch_first": True, "norm_first": False, "dtype": torch.float64}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(*args, **options), config.n_layer, enable_nested_tensor=False
    )
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(*args, **options), config.n_layer)
    return nn.Transformer(
        *args[:2], custom_encoder=encoder, custom_decoder=decoder, batch_first=True
    )


def theirs(name, c):
    """torch's name of one of our parameters, and its rows there, which are our columns."""
    stack, _, i, sublayer, module, kind = name.split(".")
    layer = f"{stack}.layers.{i}"
    if module == "ln":
        order = ["attn", "cross", "mlp"] if stack == "decoder" else ["attn", "mlp"]
        return f"{layer}.norm{order.index(sublayer) + 1}.{kind}", slice(None)
    if sublayer == "mlp":
        return f"{layer}.linear{1 if module == 'c_fc' else 2}.{kind}", slice(None)
    attention = f"{layer}.{'self_attn' if sublayer == 'attn' else 'multihead_attn'}"
    if module == "c_proj":
        return f"{attention}.out_proj.{kind}", slice(None)
    return f"{attention}.in_proj_{kind}", slice(0, c) if module == "c_q" else slice(c, 3 * c)


def main():
    config, params = models.TRANSFORMER, models.transformer_params()
    source, real, target, targets, mask = models.transformer_batch()
    model, c = stacks(config), config.n_embd
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in params.items():
            if name != "wte.weight":
                place, rows = theirs(name, c)
                named[place][rows] = torch.tensor(value.T.astype(np.float64))
    table = nn.Parameter(torch.tensor(params["wte.weight"].astype(np.float64)))

    def embed(ids):
        x = table[torch.tensor(ids)] * math.sqrt(c)
        for position in range(ids.shape[1]):
            for i in range(c):
                angle = position / 10000 ** ((i - i % 2) / c)
                x[:, position, i] += math.cos(angle) if i % 2 else math.sin(angle)
        return x

    hidden = torch.tensor(~real)
    y = model(
        embed(source),
        embed(target),
        tgt_mask=torch.triu(torch.ones(target.shape[1], target.shape[1], dtype=bool), 1),
        src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
    )
    logits = y @ table.T
    wanted = torch.tensor(np.where(mask, targets, -100))
    loss = nn.functional.cross_entropy(
        logits.flatten(0, 1), wanted.flatten(), label_smoothing=models.SMOOTHING
    )
    loss.backward()
    arrays = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    for name in params:
        if name == "wte.weight":
            grad = table.grad
        else:
            place, rows = theirs(name, c)
            grad = named[place].grad[rows]
        arrays["grad " + name] = grad.numpy().T if grad.ndim == 2 and name != "wte.weight" else grad
    assert set(named) == {theirs(name, c)[0] for name in params if name != "wte.weight"}
    np.savez_compressed(HERE / "transformer.npz", **arrays)
    print(torch.__version__, arrays["loss"], (HERE / "transformer.npz").stat().st_size, "bytes")


if __name__ == "__main__":
    main()
