"""Other programs that run the same model on the same processor, to be measured beside ours.

A rival has random weights of the same shape, float32, and as many threads as we have. Its methods
return functions that do the work once and return the seconds it took; a rival that cannot do a work
returns None.
"""

import tempfile
import time

import numpy as np

from numpygpt import fast
from numpygpt.model import Config


def _timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Torch:
    """transformers' GPT-2 on torch.

    Raises ValueError where torch or transformers is not installed.
    """

    def __init__(self, config: Config):
        try:
            import torch
            import transformers
        except ImportError as error:
            raise ValueError(f"--vs torch needs torch and transformers: {error}") from None
        torch.set_num_threads(fast.threads())
        sizes = {name: getattr(config, name) for name in ("n_embd", "n_head", "n_layer", "n_inner")}
        sizes |= {"vocab_size": config.n_vocab, "n_positions": config.n_ctx}
        no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.torch = torch
        self.model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **no_dropout))

    def prefill(self, tokens):
        """The prompt (B, T), with a cache made and the last logits alone."""

        def work():
            with self.torch.inference_mode():
                self.model(self.torch.tensor(tokens), use_cache=True, logits_to_keep=1)

        return lambda: _timed(work)

    def decoding(self, context, token, steps):
        """`steps` single tokens after the context, which are forgotten again."""
        torch = self.torch
        with torch.inference_mode():
            past = self.model(torch.tensor(context), use_cache=True).past_key_values

        def work():
            with torch.inference_mode():
                for _ in range(steps):
                    self.model(torch.tensor(token), past_key_values=past, use_cache=True)
                past.crop(-steps)  # counted from the end

        return lambda: _timed(work)

    def training(self, tokens):
        """One step: forward, backward, clipping, AdamW."""
        tokens = self.torch.tensor(tokens)
        optimizer = self.torch.optim.AdamW(self.model.parameters(), lr=1e-6, weight_decay=0.1)

        def work():
            self.model(tokens, labels=tokens).loss.backward()
            self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return lambda: _timed(work)


class CTranslate2:
    """CTranslate2's decoder, an engine for inference alone.

    It reads a prompt only in order to generate: what it takes for a prompt includes choosing one
    id, and what it takes for a step is the difference between many ids and one. Raises ValueError
    where it is not installed.
    """

    def __init__(self, config: Config):
        try:
            import ctranslate2
        except ImportError as error:
            raise ValueError(f"--vs ctranslate2 needs ctranslate2: {error}") from None
        self.n_ctx = config.n_ctx
        self.words = [f"word{i}" for i in range(config.n_vocab)]
        spec = _specification(ctranslate2.specs, config, self.words)
        with tempfile.TemporaryDirectory(prefix="numpygpt-rival-") as folder:
            spec.validate()
            spec.optimize()
            spec.save(folder)
            self.model = ctranslate2.Generator(
                folder, compute_type="float32", inter_threads=1, intra_threads=fast.threads()
            )

    def _generate(self, prompts, count):
        self.model.generate_batch(
            [[self.words[i] for i in row] for row in prompts],
            min_length=count,
            max_length=count,
            sampling_topk=1,
            end_token=[],
            include_prompt_in_result=False,
        )

    def prefill(self, tokens):
        """The prompt (B, T), and one id."""
        tokens = tokens[:, : self.n_ctx - 1]  # room for the one id
        return lambda: _timed(lambda: self._generate(tokens, 1))

    def decoding(self, context, token, steps):
        """What `steps` more ids take after the context: two runs, one less the other."""

        def seconds():
            one = _timed(lambda: self._generate(context, 1))
            return _timed(lambda: self._generate(context, 1 + steps)) - one

        return seconds

    def training(self, tokens):
        """None: it cannot train."""


def _specification(specs, config, words):
    """A GPT-2 of random weights as CTranslate2 describes models."""
    rng = np.random.default_rng(0)

    def linear(layer, rows, columns):
        layer.weight = rng.standard_normal((columns, rows), np.float32) * np.float32(0.02)
        layer.bias = np.zeros(columns, np.float32)

    def norm(layer):
        layer.gamma = np.ones(config.n_embd, np.float32)
        layer.beta = np.zeros(config.n_embd, np.float32)

    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, pre_norm=True, activation=specs.Activation.GELUTanh
    )
    c, f, decoder = config.n_embd, config.n_inner, spec.decoder
    table = rng.standard_normal((config.n_vocab, c), np.float32) * np.float32(0.02)
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = table
    decoder.position_encodings.encodings = table[: config.n_ctx]
    if len(table) < config.n_ctx:
        decoder.position_encodings.encodings = np.zeros((config.n_ctx, c), np.float32)
    norm(decoder.layer_norm)
    for layer in decoder.layer:
        norm(layer.self_attention.layer_norm)
        linear(layer.self_attention.linear[0], c, 3 * c)
        linear(layer.self_attention.linear[1], c, c)
        norm(layer.ffn.layer_norm)
        linear(layer.ffn.linear_0, c, f)
        linear(layer.ffn.linear_1, f, c)
    spec.register_vocabulary(words)
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = words[0]
    return spec


RIVALS = {"torch": Torch, "ctranslate2": CTranslate2}
