"""Rewritings of a model that change its numbers and do no harm, as TransformerLens makes them.

The mean of the residual stream, the mean of the logits, the gain of a norm and the bias of the
values can be moved to another place without a change in any probability. Here they are moved in the
reference too, so that what is left to compare is what the other program computed.
"""

import numpy as np

from numpygpt.check.trace import gap, kind
from numpygpt.model import GPT2, with_ops

NAMES = {
    "stream": "the residual stream is centred",
    "logits": "the logits are centred",
    "norms": "gain and bias of the norms are folded into the layers behind them",
    "values": "the bias of the values is moved into attn.c_proj.bias",
}


def detect(theirs: dict, ours: dict, model: GPT2) -> tuple[str, ...]:
    """Which of NAMES were done to the model behind their tensors, as their numbers show.

    theirs: their arrays as our entries. ours: our record. A tensor tells only where the two
    differ: the mean of theirs is 0 and that of ours is not.
    """
    found = {}
    streams = [n for n in theirs if kind(n) in ("wte", "resid_pre", "resid_mid", "resid_post")]
    found["stream"] = any(_is_centred(theirs[n], ours[n]) for n in streams)
    found["logits"] = "logits" in theirs and _is_centred(theirs["logits"], ours["logits"])
    for name in theirs:
        if kind(name) in ("ln_1", "ln_2", "ln_f"):
            gain, bias = (model.params[f"{name}.{x}"] for x in ("weight", "bias"))
            raw = (ours[name] - bias) / gain
            found["norms"] = gap(theirs[name], raw) < gap(theirs[name], ours[name]) / 2
            break
    for what in ("attn.v", "attn.z"):
        name = f"h.0.{what}"
        if name in theirs and theirs[name].shape == ours[name].shape:
            bias = np.split(model.params["h.0.attn.c_attn.bias"], 3)[2]
            weight = np.split(model.params["h.0.attn.c_attn.weight"], 3, axis=1)[2]
            folded = bias + model.params["h.0.ln_1.bias"] @ weight
            shape = (model.config.n_head, 1, -1) if what == "attn.v" else (-1,)
            gaps = [
                gap(theirs[name], ours[name] - b.reshape(shape)) for b in (0 * bias, bias, folded)
            ]
            found["values"] = min(gaps[1:]) < gaps[0] / 2 and not _is_lost(theirs, model)
            found["norms"] = found.get("norms") or (found["values"] and gaps[2] < gaps[1])
            break
    return tuple(name for name in NAMES if found.get(name))


def _is_lost(theirs, model):
    """Does what follows their attn.z show that nothing was moved to attn.c_proj.bias?"""
    z, out = theirs.get("h.0.attn.z"), theirs.get("h.0.attn.c_proj")
    if out is None and {"h.0.resid_pre", "h.0.resid_mid"} <= set(theirs):
        out = theirs["h.0.resid_mid"] - theirs["h.0.resid_pre"]
    if z is None or out is None or z.shape != out.shape:
        return False
    weight, bias = (model.params[f"h.0.attn.c_proj.{x}"] for x in ("weight", "bias"))
    return gap(out, z @ weight + bias) < 1e-4


def _is_centred(theirs, ours):
    def mean(x):
        return np.abs(x.mean(-1)).max() / np.abs(x).max()

    if not theirs.ndim or not np.isfinite(theirs).all() or not theirs.any():
        return False
    return mean(theirs) < 1e-6 < 1e-4 < mean(ours)


def processed(model: GPT2, names) -> GPT2:
    """The same model, rewritten; in its record the norms stand before their gain if "norms" is in
    names. Its probabilities are those of before."""
    config = model.config
    p = {name: np.array(a, np.float64) for name, a in model.params.items()}
    table = p.pop("lm_head.weight", p["wte.weight"]).copy()
    shift = np.zeros(config.n_vocab)
    if "norms" in names:
        shift = table @ p["ln_f.bias"]
        table = table * p["ln_f.weight"]
        for i in range(config.n_layer):
            for norm, layer in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
                norm, layer = f"h.{i}.{norm}", f"h.{i}.{layer}"
                p[f"{layer}.bias"] += p[f"{norm}.bias"] @ p[f"{layer}.weight"]
                p[f"{layer}.weight"] *= p[f"{norm}.weight"][:, None]
        for name in [n for n in p if kind(n).startswith("ln_")]:
            p[name][:] = name.endswith(".weight")
    if "stream" in names:
        for name in [n for n in p if "c_proj" in n or n in ("wte.weight", "wpe.weight")]:
            p[name] -= p[name].mean(-1, keepdims=True)
    if "logits" in names:
        table, shift = table - table.mean(0), shift - shift.mean()
    if "values" in names:
        for i in range(config.n_layer):
            bias = p[f"h.{i}.attn.c_attn.bias"][-config.n_embd :]
            p[f"h.{i}.attn.c_proj.bias"] += bias @ p[f"h.{i}.attn.c_proj.weight"]
            bias[:] = 0
    plain = model.ops.unembed

    def unembed(x, table):
        logits = plain(x, table)
        width = min(len(shift), logits.shape[-1])  # other tables: of one block, or padded
        logits[..., :width] += shift[:width]
        return logits

    rewritten = GPT2(config, p | {"lm_head.weight": table}, model.ops)
    return with_ops(rewritten, unembed=unembed)
