"""The models behind model_*.npz: configurations, weights and inputs, made with NumPy alone.

The golden script and the tests both make them here, so the files hold no weights but a checksum.
The numbers are raw bits of PCG64, a stream NumPy promises never to change, and so not normally
distributed but uniform.
"""

import zlib
from pathlib import Path

import numpy as np

from numpygpt.model import Config, parameter_shapes

GOLDEN = Path(__file__).parent
# Every size differs from every other, so that a swapped axis is an error and not a coincidence.
SMALL = Config(61, 13, 35, 5, 3, n_inner=57, layer_norm_epsilon=3e-5)
FULL = Config(50257, 1024, 768, 12, 12)
# Standard deviation of a matrix times the root of its inputs: outputs are of the size of 1.
SCALE = {"c_attn": 1.3, "c_proj": 0.7, "c_fc": 1.3}
# The embeddings are small, so the first layer norm meets rows of low variance and a wrong eps
# shows; the last gain makes up for it, so that the logits are of the size of 1 again.
SMALL_SCALES = {"wte": 0.012, "wpe": 0.009, "final_gain": 16.0}
FULL_SCALES = {"wte": 0.03, "wpe": 0.02, "final_gain": 3.0}


def uniform(bits, shape, std):
    """float32 numbers around 0 with the given standard deviation, the same on every machine."""
    size = int(np.prod(shape))
    x = bits.random_raw((size + 1) // 2).view(np.int32)[:size].astype(np.float32)
    x *= std * 3**0.5 / 2**31
    return x.reshape(shape)


def weights(config, seed, scales, tied=True):
    """float32 parameters of a size a trained model has: no gain is 1, no bias 0."""
    bits = np.random.PCG64(seed)
    params = {}
    for name, shape in parameter_shapes(config, tied).items():
        module, kind = name.split(".")[-2:]
        if module.startswith("ln_") and kind == "weight":
            params[name] = 1 + uniform(bits, shape, 0.3)
            params[name] *= scales["final_gain"] if module == "ln_f" else 1.0
        elif kind == "bias":
            params[name] = uniform(bits, shape, 0.2)
        elif module in SCALE:
            params[name] = uniform(bits, shape, SCALE[module] / shape[0] ** 0.5)
        else:
            params[name] = uniform(bits, shape, scales.get(module, scales["wte"]))
    return params


def small(tied=True):
    return weights(SMALL, 20190214, SMALL_SCALES, tied)


def full():
    """GPT-2 "124M" in shape; two channels of the stream are far larger than the rest, as there."""
    params = weights(FULL, 124, FULL_SCALES)
    params["h.2.mlp.c_proj.bias"][[138, 447]] += (30, -20)
    return params


def checksum(params):
    """CRC-32 of all the bytes, in order."""
    crc = 0
    for value in params.values():
        crc = zlib.crc32(np.ascontiguousarray(value, "<f4"), crc)
    return crc


def token_ids(seed, shape, n_vocab):
    """Ids from the whole vocabulary, the last and the first id among them."""
    ids = np.random.PCG64(seed).random_raw(int(np.prod(shape))) % np.uint64(n_vocab)
    ids = ids.astype(np.int64)
    ids[1:3] = n_vocab - 1, 0
    return ids.reshape(shape)


# What of the full-sized model is stored: these places of the record, of the logits and gradients.
TOKENS, CHANNELS, IDS = (0, 1, 17, 39, 40), slice(None, None, 13), slice(5, None, 29)


def sample(array, count=24):
    """`count` elements spread over the whole array, as a vector."""
    flat = array.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(count, flat.size)).astype(int)]


def gap(ours, reference):
    """Relative gap of two tensors: max |ours - reference| / max |reference|; -inf must coincide."""
    ours, reference = np.asarray(ours), np.asarray(reference)
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    finite = np.isfinite(reference)
    assert np.array_equal(ours[~finite], reference[~finite])
    ours, reference = ours[finite].astype(np.float64), reference[finite].astype(np.float64)
    assert np.isfinite(ours).all()
    largest = np.abs(reference).max(initial=0.0)
    return float(np.abs(ours - reference).max(initial=0.0) / (largest or 1.0))
