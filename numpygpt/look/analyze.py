"""Numbers derived from a record or a configuration.

Logit lens, attention statistics, parameters, FLOPs, bytes.
"""

import numpy as np

from numpygpt.model import Config, parameter_shapes


def parameter_counts(config: Config, tied: bool = True) -> dict[str, int]:
    """Parameters by part: token and position embeddings, attention, MLP, layer norms, lm_head."""
    parts = dict.fromkeys(("wte", "wpe", "attn", "mlp", "ln", "lm_head"), 0)
    for name, shape in parameter_shapes(config, tied).items():
        part = next(part for part in parts if f".{part}" in f".{name}")
        parts[part] += int(np.prod(shape))
    return parts


def flops_per_token(config: Config, keys: int) -> dict[str, int]:
    """Floating-point operations of the forward pass for one token that sees `keys` positions.

    A matrix product costs 2 per weight: one multiplication, one addition.

        attn, mlp, unembed   2 x their matrices            C (4 C), 2 C F, C V
        scores and values    2 x 2 keys C, per layer       q k^T and pattern v

    Biases, layer norms, GELU and softmax, under 1 % at GPT-2's sizes, are left out. The backward
    pass costs twice as much again, so training costs three times this.
    """
    c, f = config.n_embd, config.n_inner
    return {
        "attn": config.n_layer * 2 * 4 * c * c,
        "scores and values": config.n_layer * 4 * keys * c,
        "mlp": config.n_layer * 2 * 2 * c * f,
        "unembed": 2 * c * config.n_vocab,
    }


def cache_bytes_per_token(config: Config, itemsize: int = 4) -> int:
    """Bytes that one position takes in the KV cache: a key and a value of width C per layer."""
    return 2 * config.n_layer * config.n_embd * itemsize


def logit_lens(model, acts) -> dict[str, np.ndarray]:
    """What the model would predict if it stopped at each entry of the residual stream.

    The final layer norm and the unembedding are applied to every `resid_pre` of the record and
    to the last `resid_post`: name -> logits (B, T, V). Source: nostalgebraist 2020, "interpreting
    GPT: the logit lens".
    """
    p, ops = model.params, model.ops
    last = f"h.{model.config.n_layer - 1}.resid_post"
    lens = {}
    for name, x in acts.items():
        if name.endswith("resid_pre") or name == last:
            x = ops.layer_norm(x, p["ln_f.weight"], p["ln_f.bias"], model.config.layer_norm_epsilon)
            lens[name] = ops.unembed(x, p.get("lm_head.weight", p["wte.weight"]))
    return lens


def attention_statistics(pattern) -> dict[str, np.ndarray]:
    """Per head, averaged over batch and queries, of a pattern (B, H, T, S): each (H,).

    entropy: -sum p log p in nats; distance: how many tokens back it looks on average; first: the
    weight on position 0, where heads that have nothing to do put it; self: on the query's own.
    """
    t, s = pattern.shape[-2:]
    query = np.arange(s - t, s)
    back = (query[:, None] - np.arange(s)).clip(0)
    log = np.log(np.where(pattern > 0, pattern, 1))
    own = np.take_along_axis(pattern, np.broadcast_to(query[:, None], (*pattern.shape[:-1], 1)), -1)
    per_query = {
        "entropy": -(pattern * log).sum(-1),
        "distance": (pattern * back.astype(pattern.dtype)).sum(-1),
        "first": pattern[..., 0],
        "self": own[..., 0],
    }
    return {name: value.mean(axis=(0, 2)) for name, value in per_query.items()}
