"""The models behind transformer.npz and bert.npz, for the golden scripts and the tests."""

import numpy as np
from models import SMALL_SCALES, uniform, weights

from numpygpt.family import bert, transformer
from numpygpt.model import Config

SMOOTHING = 0.13
# Every size differs; an odd width has a last sine without its cosine.
TRANSFORMER = Config(19, 9, 15, 3, 2, n_inner=11, layer_norm_epsilon=2e-5)
START, END = 17, 18


def spread(shapes, seed, table_std):
    """float32 parameters of a size a trained model has: no gain is 1, no bias 0."""
    bits = np.random.PCG64(seed)
    params = {}
    for name, shape in shapes.items():
        gain = len(shape) == 1 and name.endswith("weight")
        std = 0.3 if gain else 0.2 if len(shape) == 1 else 1.3 / shape[0] ** 0.5
        is_table = name == "wte.weight" or "_embeddings" in name
        params[name] = uniform(bits, shape, table_std if is_table else std)
        params[name] += 1.0 if gain else 0.0
    return params


def transformer_params():
    return spread(transformer.parameter_shapes(TRANSFORMER), 2017, 0.25)


def transformer_batch():
    """Sources of 7, 4 and 1 tokens, targets of 2, 5 and 4."""
    sources = [[3, 14, 1, 5, 9, 2, 6], [5, 3, 5, 8], [16]]
    targets = [[9, 7], [9, 3, 2, 3, 8], [4, 6, 2, 6]]
    return transformer.pair_batch(list(zip(sources, targets, strict=True)), START, END)


def bert_config(n_vocab):
    return Config(n_vocab, 13, 15, 3, 2, n_inner=11, layer_norm_epsilon=1e-12)


def bert_params(config):
    return spread(bert.parameter_shapes(config), 2018, 0.25)


def bert_batch(config):
    """Three rows of 13, 9 and 5 tokens in two segments, a few of them hidden."""
    rng = np.random.Generator(np.random.PCG64(11))
    lengths = np.array([13, 9, 5])
    place = np.arange(13)
    tokens = rng.integers(config.n_vocab, size=(3, 13))
    targets = rng.integers(config.n_vocab, size=(3, 13))
    segments = (place >= np.array([[6], [3], [2]])).astype(int)
    real = place < lengths[:, None]
    mask = (place % 4 == 1) & real
    return tokens, segments, real, targets, mask, np.array([True, False, True])


GPT3 = Config(23, 14, 15, 3, 4, n_inner=19, layer_norm_epsilon=2e-5)
BANDS = (1, 3, 20)


def gpt3_params():
    """As `weights`, but for the biases of queries, keys and values, which GPT-Neo does not have."""
    params = weights(GPT3, 2020, SMALL_SCALES)
    return {n: a * 0 if n.endswith("c_attn.bias") else a for n, a in params.items()}


def gpt3_tokens():
    return np.random.Generator(np.random.PCG64(8)).integers(GPT3.n_vocab, size=(2, 14))
