"""GPT-3: GPT-2, larger. Unlike in GPT-2,

*  attention alternates: in every second block a query sees only the last `band` positions, itself
   among them ("locally banded"), in the others all of them. The paper says that they alternate and
   refers to the Sparse Transformer; neither the band's width nor which blocks come first is given;
*  the context is 2048, and there are eight sizes, the largest over a hundred times as large.

Nothing else: the paper calls it the same model and architecture, pre-norm and tokenizer included.
Sources: Brown et al. 2020, table 2.1 and appendix D; Child et al. 2019 (Sparse Transformer).
"""

import functools
from typing import NamedTuple

import numpy as np

from numpygpt import ops
from numpygpt.model import GPT2, Config, check_input, described, with_ops
from numpygpt.sample import check_count

# ---- the eight sizes ----------------------------------------------------------------------------

TRAINING_TOKENS = 300_000_000_000  # that each of the eight was trained on
FLOPS_PRINTED = 3.14e23  # of training the largest, appendix D


class Printed(NamedTuple):
    """A row of the paper's table 2.1, as printed (`printed`: its parameters); batch in tokens."""

    name: str
    printed: str
    n_layer: int
    n_embd: int
    n_head: int
    d_head: int
    batch: float
    learning_rate: float


TABLE = (
    Printed("Small", "125M", 12, 768, 12, 64, 0.5e6, 6.0e-4),
    Printed("Medium", "350M", 24, 1024, 16, 64, 0.5e6, 3.0e-4),
    Printed("Large", "760M", 24, 1536, 16, 96, 0.5e6, 2.5e-4),
    Printed("XL", "1.3B", 24, 2048, 24, 128, 1e6, 2.0e-4),
    Printed("2.7B", "2.7B", 32, 2560, 32, 80, 1e6, 1.6e-4),
    Printed("6.7B", "6.7B", 32, 4096, 32, 128, 2e6, 1.2e-4),
    Printed("13B", "13.0B", 40, 5140, 40, 128, 2e6, 1.0e-4),
    Printed("175B", "175.0B", 96, 12288, 96, 128, 3.2e6, 0.6e-4),
)


def config(row: Printed) -> Config:
    """What is built for a row of the table.

    Two rows cannot be built as printed, as heads x head width is not d_model: XL (24 x 128 = 3072,
    not 2048) and 13B (40 x 128 = 5120, not 5140). The head width is believed: XL gets the 16 heads
    of 128 that fill 2048, which changes no parameter's shape; 13B gets the 5120 that its 40 heads
    fill.
    """
    width = row.n_embd // row.d_head * row.d_head  # 5140 -> 5120; the others stay
    return Config(50257, 2048, width, width // row.d_head, row.n_layer)


def notes(row: Printed) -> tuple[str, ...]:
    """What of a row cannot be built as printed."""
    if row.n_head * row.d_head == row.n_embd:
        return ()
    built = config(row)
    return (
        f"{row.n_head} heads x {row.d_head} are printed beside d_model {row.n_embd}, which is not "
        f"their product; what is built has {built.n_head} heads and d_model {built.n_embd}",
    )


# ---- the band -----------------------------------------------------------------------------------


def banded_scores(q, k, pads=None, *, band: int):
    """`ops.attention_scores`, and -inf for keys that are `band` or more positions back.

    A query at position t sees keys t - band + 1 .. t, so band = S hides nothing. The backward is
    that of `ops.attention_scores`: a key without weight gets no gradient. Padding at the left keeps
    seeing itself, as there.
    """
    scores = ops.attention_scores(q, k, pads)
    t, s = scores.shape[-2:]
    back = np.arange(s - t, s)[:, None] - np.arange(s)
    return np.where(back < band, scores, -np.inf).astype(scores.dtype)


class GPT3:
    """GPT-2 whose blocks 1, 3, 5, ... see a band; `band` is its width in positions.

    Whatever samples from a GPT-2 samples from it. The band saves no time here: what it hides is
    computed and then masked. Raises ValueError for a band below 1, and what `GPT2` raises.
    """

    def __init__(self, config: Config, params: dict[str, np.ndarray], band: int):
        band = check_count("band", band, 1)
        dense = GPT2(config, params)
        banded = with_ops(dense, attention_scores=functools.partial(banded_scores, band=band))
        self.config, self.params, self.dtype, self.band = config, params, dense.dtype, band
        self.kinds, self.cache = (dense, banded), dense.cache

    def __repr__(self):
        return f"{described(self)[:-1]}, a band of {self.band} in every second layer)"

    def forward(self, tokens, cache=None, pads=None, keep="nothing", only_last=False):
        """As `GPT2.forward`, without a backward pass: logits (B, T, V) or (B, 1, V), the record."""
        p = self.params
        tokens, pads = check_input(self, tokens, cache, pads, keep)
        if keep == "backward":
            raise ValueError('GPT-3 has no backward pass here: keep "nothing" or "everything"')
        past = cache.length if cache else 0
        acts = {}

        def save(name, array, prefix=""):
            if keep == "everything":
                acts[prefix + name] = array
            return array

        positions = ops.positions(past, tokens.shape[1], pads)
        save("positions", np.broadcast_to(positions, tokens.shape))
        if pads is not None:
            save("pads", pads)
        x = save("wte", ops.embedding(save("tokens", tokens), p["wte.weight"]))
        x = ops.residual(x, save("wpe", ops.embedding(positions, p["wpe.weight"])))
        for i in range(self.config.n_layer):
            x = self.kinds[i % 2].block(x, i, cache, pads, save, whole=keep == "everything")
        if only_last:
            x = x[:, -1:]
        eps = self.config.layer_norm_epsilon
        x = save("ln_f", ops.layer_norm(x, p["ln_f.weight"], p["ln_f.bias"], eps))
        if cache:
            cache.length, cache.pads = past + tokens.shape[1], pads
        return save("logits", ops.unembed(x, p.get("lm_head.weight", p["wte.weight"]))), acts
