"""Makes trace_ports.npz: what GPT-2 ports with a planted bug dump, for `compare` to find the bug.

The port is written in torch, without a look at numpygpt's forward pass, and its bugs are written as
people write them. Each dump has its own names and layout. Run from the repository's root:
PYTHONPATH=. python tests/golden/make_trace.py
"""

import math

import numpy as np
import torch
from models import GOLDEN, SMALL, small, token_ids
from torch.nn import functional as F

H, D, C = SMALL.n_head, SMALL.n_embd // SMALL.n_head, SMALL.n_embd


def norm(x, w, b, bug):
    if bug == "annotated":
        return w * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 3e-5) + b
    if bug == "unbiased":
        return w * (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 3e-5).sqrt() + b
    return F.layer_norm(x, (C,), w, b, 1e-6 if "eps" in bug else 3e-5)


def attention(x, p, h, bug, dump):
    b, t, _ = x.shape
    qkv = x @ p[h + "attn.c_attn.weight"] + p[h + "attn.c_attn.bias"]
    dump(h + "attn.c_attn", qkv)
    if "per head" in bug:
        q, k, v = qkv.view(b, t, H, 3 * D).transpose(1, 2).chunk(3, dim=-1)
    else:
        q, k, v = (a.view(b, t, H, D).transpose(1, 2) for a in qkv.split(C, dim=2))
    for name, a in zip("qkv", (q, k, v), strict=True):
        dump(h + "attn." + name, a)
    scores = q @ k.transpose(2, 3) / math.sqrt(C if bug == "width" else D)
    see = torch.ones(t, t).tril(-1 if bug == "strict" else 0).bool()
    scores = scores.masked_fill(~see, torch.finfo(scores.dtype).min)
    dump(h + "attn.scores", scores)
    pattern = F.softmax(scores, dim=2 if "queries" in bug else 3)
    dump(h + "attn.pattern", pattern)
    z = pattern @ v
    z = z.reshape(b, t, C) if bug == "merge" else z.transpose(1, 2).reshape(b, t, C)
    dump(h + "attn.z", z)
    w = p[h + "attn.c_proj.weight"]
    return F.linear(z, w if bug == "square" else w.T, p[h + "attn.c_proj.bias"])


def mlp(x, p, h, bug, dump):
    x = x @ p[h + "mlp.c_fc.weight"] + p[h + "mlp.c_fc.bias"]
    dump(h + "mlp.c_fc", x)
    x = F.gelu(x, approximate="none" if "erf" in bug else "tanh")
    dump(h + "mlp.act", x)
    return x @ p[h + "mlp.c_proj.weight"] + p[h + "mlp.c_proj.bias"]


def gpt2(p, tokens, bug="", dtype=torch.float32):
    """Everything that one forward pass computes, name -> array."""
    p = {name: torch.from_numpy(value).to(dtype) for name, value in p.items()}
    record = {"tokens": tokens}

    def dump(name, x):
        record[name] = x.numpy() if dtype == torch.float64 else x.float().numpy()

    def ln(name, x):
        y = norm(x, p[name + ".weight"], p[name + ".bias"], bug)
        dump(name, y)
        return y

    tokens = torch.from_numpy(tokens)
    start = 1 if bug == "one" else 0
    positions = torch.arange(start, start + tokens.shape[1])
    x = p["wte.weight"][tokens] * (math.sqrt(C) if bug == "embedding" else 1)
    x = x + p["wpe.weight"][positions]
    for i in range(SMALL.n_layer):
        h = f"h.{i}."
        dump(h + "resid_pre", x)
        if bug == "post":
            y = attention(x, p, h, bug, dump)
            x = ln(h + "ln_1", x + y)
        else:
            y = attention(ln(h + "ln_1", x), p, h, bug, dump)
            x = x + y
        dump(h + "attn.c_proj", y)
        dump(h + "resid_mid", x)
        y = mlp(x if bug == "post" else ln(h + "ln_2", x), p, h, bug, dump)
        dump(h + "mlp.c_proj", y)
        x = ln(h + "ln_2", x + y) if bug == "post" else x + y
        dump(h + "resid_post", x)
    x = x if bug == "final" else ln("ln_f", x)
    dump("logits", x @ p["wte.weight"].T)
    return record


# ---- the dumps: in other libraries' names -------------------------------------------------------


def as_transformers(record):
    """What output_hidden_states and output_attentions show, and two modules."""
    n = SMALL.n_layer
    last = record.get("ln_f", record[f"h.{n - 1}.resid_post"])
    dump = {f"hidden_states.{i}": record[f"h.{i}.resid_pre"] for i in range(n)}
    dump |= {f"attentions.{i}": record[f"h.{i}.attn.pattern"] for i in range(n)}
    dump["transformer.h.1.mlp.act"] = record["h.1.mlp.act"]
    return dump | {f"hidden_states.{n}": last, "logits": record["logits"]}


def as_transformer_lens(record):
    names = {
        "resid_pre": "hook_resid_pre",
        "ln_1": "ln1.hook_normalized",
        "attn.q": "attn.hook_q",
        "attn.k": "attn.hook_k",
        "attn.v": "attn.hook_v",
        "attn.scores": "attn.hook_attn_scores",
        "attn.pattern": "attn.hook_pattern",
        "attn.z": "attn.hook_z",
        "resid_mid": "hook_resid_mid",
        "mlp.c_fc": "mlp.hook_pre",
        "mlp.act": "mlp.hook_post",
        "resid_post": "hook_resid_post",
    }
    dump = {}
    for i in range(SMALL.n_layer):
        for ours, theirs in names.items():
            array = record[f"h.{i}.{ours}"]
            if ours in ("attn.q", "attn.k", "attn.v"):
                array = array.swapaxes(1, 2)
            if ours == "attn.z":
                array = array.reshape(*array.shape[:2], H, D)
            dump[f"blocks.{i}.{theirs}"] = array
    return dump


def as_llm_c(record):
    """Stacked by layer; what is masked is never written there, so it holds anything."""
    names = {
        "ln1": "ln_1", "qkv": "attn.c_attn", "atty": "attn.z", "preatt": "attn.scores",
        "att": "attn.pattern", "attproj": "attn.c_proj", "residual2": "resid_mid", "ln2": "ln_2",
        "fch": "mlp.c_fc", "fch_gelu": "mlp.act", "fcproj": "mlp.c_proj", "residual3": "resid_post",
    }  # fmt: skip
    dump = {"encoded": record["h.0.resid_pre"]}
    for theirs, ours in names.items():
        dump[theirs] = np.stack([record[f"h.{i}.{ours}"] for i in range(SMALL.n_layer)])
    dump["preatt"] = np.where(dump["preatt"] < -1e30, 0, dump["preatt"])
    return dump | {"lnf": record["ln_f"], "logits": record["logits"]}


def ours(record):
    """Without the last block, to keep the file small."""
    return {n: a for n, a in record.items() if not n.startswith(f"h.{SMALL.n_layer - 1}.")}


def without_batch(record):
    return {name: array[0] for name, array in ours(record).items()}


def logits_only(record):
    return {"logits": record["logits"]}


def last_logits(record):
    return {"logits": record["logits"][0, -1]}


# label: bug, dtype, names
PORTS = {
    "right": ("", torch.float32, as_transformer_lens),
    "erf": ("erf", torch.float32, as_transformers),
    "annotated": ("annotated", torch.float32, as_llm_c),
    "unbiased": ("unbiased", torch.float32, logits_only),
    "post": ("post", torch.float32, ours),
    "strict": ("strict", torch.float32, as_transformer_lens),
    "per head": ("per head", torch.float32, without_batch),
    "width": ("width", torch.float32, as_transformers),
    "merge": ("merge", torch.float32, as_transformers),
    "square": ("square", torch.float32, logits_only),
    "final": ("final", torch.float32, as_transformers),
    "one": ("one", torch.float32, last_logits),
    "embedding": ("embedding", torch.float32, as_transformers),
    "queries and eps": ("queries and eps", torch.float32, ours),
    "per head and erf": ("per head and erf", torch.float32, as_transformers),
    "float16": ("", torch.float16, as_transformers),
    "bfloat16": ("", torch.bfloat16, as_transformers),
}


def loud():
    """A model with scores below -1e4, for masks of -1e4."""
    params = small()
    for i in range(SMALL.n_layer):
        params[f"h.{i}.attn.c_attn.weight"][:, : 2 * C] *= 80
    return params


def main():
    tokens = token_ids(8, (1, 6), SMALL.n_vocab)
    arrays = {"tokens": tokens}
    for label, (bug, dtype, names) in PORTS.items():
        dump = names(gpt2(small(), tokens, bug, dtype))
        arrays |= {f"{label}/{name}": a for name, a in dump.items() if name != "tokens"}
    arrays["loud/logits"] = gpt2(loud(), tokens, dtype=torch.float64)["logits"]
    path = GOLDEN / "trace_ports.npz"
    np.savez_compressed(path, **arrays)
    print(path.name, path.stat().st_size // 1000, "kB")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
