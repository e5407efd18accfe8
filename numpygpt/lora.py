"""Fine-tuning few numbers instead of all: LoRA (Hu et al. 2021).

A matrix W (in, out) of the model stays as it is. What is learned is a change of low rank r:

    W' = W + (alpha / r) A B          A (in, r), B (r, out)

A begins random and B with zeros, so that W' = W before the first step. The model computes with W',
and `backward` gives dW'; by the chain rule

    dA = (alpha / r) dW' B^T          dB = (alpha / r) A^T dW'

In 124M, c_attn has 768 x 2304 numbers in each of the 12 blocks; with r = 8 only 8 (768 + 2304) are
to be learned, 295 thousand in all, and the optimizer's two means are as small. Once trained, W' is
an ordinary matrix: the merged model is as fast as the one it came from.
"""

import copy

import numpy as np

from .sample import check_count, check_number, check_rng

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class LoRA:
    """A model in which only A and B learn. It trains as any model does: `train` asks for `params`
    and `loss_and_grads`.

    params: name -> array, `h.0.attn.c_attn.lora_A` (in, r) and `.lora_B` (r, out) of every adapted
    matrix. matrices: which of `MATRICES`, in every block; `attn.c_attn` makes queries, keys and
    values, of which the paper adapts the first and the last. rng: draws A. Raises ValueError for
    other matrices, and for a rank or an alpha that is not positive, and TypeError for what is not
    a number and for a model that is not a GPT-2.
    """

    def __init__(self, model, rank: int, alpha: float = 16.0, matrices=("attn.c_attn",), rng=None):
        self.rank, self.alpha = check_count("rank", rank), check_number("alpha", alpha)
        if self.rank < 1 or not 0 < self.alpha < np.inf:
            raise ValueError(f"rank and alpha must be positive, not {rank} and {alpha}")
        matrices = [matrices] if isinstance(matrices, str) else matrices
        if not matrices or set(matrices) - set(MATRICES):
            raise ValueError(f"matrices must be among {', '.join(MATRICES)}, not {matrices}")
        if rng is None:
            rng = np.random.default_rng()
        check_rng(rng)
        if not hasattr(model, "loss_and_grads") or "h.0.attn.c_attn.weight" not in model.params:
            raise TypeError(f"a LoRA is of a GPT-2, not of a {type(model).__name__}")
        self.config, self.matrices = model.config, matrices
        self.base, self.params = {}, {}
        for i in range(model.config.n_layer):
            for matrix in matrices:
                name = f"h.{i}.{matrix}"
                w = self.base[name] = model.params[f"{name}.weight"]
                a = rng.standard_normal((len(w), self.rank), w.dtype) / w.dtype.type(len(w) ** 0.5)
                self.params[f"{name}.lora_A"] = a
                self.params[f"{name}.lora_B"] = np.zeros((self.rank, w.shape[1]), w.dtype)
        self._model = model

    def __repr__(self):
        count = sum(p.size for p in self.params.values())
        return f"LoRA(rank={self.rank}, alpha={self.alpha}, {count:,} parameters that learn)"

    def merged(self):
        """A model with W' in place of W; the other parameters are the same arrays.

        It stays what it is when the LoRA learns on.
        """
        model = copy.copy(self._model)
        model.params = dict(model.params)
        for name, w in self.base.items():
            a, b = self.params[f"{name}.lora_A"], self.params[f"{name}.lora_B"]
            model.params[f"{name}.weight"] = w + (self.alpha / self.rank) * (a @ b)
        return model

    def loss_and_grads(self, tokens, targets, mask=None):
        """The loss of the merged model, and its gradients with respect to A and B."""
        changed = [f"{name}.weight" for name in self.base]
        loss, grads = self.merged().loss_and_grads(tokens, targets, mask, only=changed)
        scale, lora_grads = self.alpha / self.rank, {}
        for name in self.base:
            dw = grads.pop(f"{name}.weight")
            a, b = self.params[f"{name}.lora_A"], self.params[f"{name}.lora_B"]
            lora_grads[f"{name}.lora_A"] = scale * (dw @ b.T)
            lora_grads[f"{name}.lora_B"] = scale * (a.T @ dw)
        return loss, lora_grads
