"""GPT-1: the Transformer's decoder alone, trained to say the next token. Unlike in GPT-2,

*  the layer norm stands behind each sum ("post-norm"), x = LN(x + f(x)), as in 2017, so there is
   none at the end and the stream itself is normalised twice a block. GPT-2 moved it in front of
   attention and MLP, which leaves a path from the last block to the embedding that nothing scales;
*  a token is made not of bytes but of characters, and a word's last piece ends in </w>. So there
   are no spaces to give back, all is in small letters, and a character can be unknown.

All else is the same: parameters' names and shapes (without ln_f), tanh GELU, the causal mask, the
cache, the tied unembedding; its context is 512. Sources: Radford et al. 2018; Hugging Face's
`openai-gpt`, whose names differ for two tables.
"""

import numpy as np

from numpygpt import model as gpt2
from numpygpt import ops
from numpygpt.bpe import joined
from numpygpt.family.bert import words
from numpygpt.sample import check_count

UNKNOWN, LAST = "<unk>", "</w>"


def parameter_shapes(config: gpt2.Config, tied: bool = True) -> dict[str, tuple[int, ...]]:
    """Official name -> shape: GPT-2's but for the last layer norm."""
    shapes = gpt2.parameter_shapes(config, tied)
    return {name: shape for name, shape in shapes.items() if not name.startswith("ln_f")}


class GPT1:
    """GPT-1 with the given configuration and parameters (used, not copied).

    Whatever samples from a GPT-2 samples from it. Raises ValueError or TypeError naming every
    parameter that does not fit.
    """

    def __init__(self, config: gpt2.Config, params: dict[str, np.ndarray]):
        self.config, self.params = config, params
        self.dtype = gpt2.check_params(
            params, parameter_shapes(config, "lm_head.weight" not in params)
        )

    def __repr__(self):
        return gpt2.described(self)

    def cache(self, batch: int = 1) -> gpt2.Cache:
        """An empty KV cache for `batch` sequences."""
        return gpt2.new_cache(self.config, batch, self.dtype)

    def forward(self, tokens, cache=None, pads=None, keep="nothing", only_last=False):
        """Logits of the next token after each token, (B, T, V) or (B, 1, V), and the record.

        Arguments and errors as of `GPT2.forward`; there is no backward pass here, so keep may be
        "nothing" or "everything".
        """
        tokens, pads = gpt2.check_input(self, tokens, cache, pads, keep)
        if keep == "backward":
            raise ValueError('GPT-1 has no backward pass here: keep "nothing" or "everything"')
        past = cache.length if cache else 0
        positions = ops.positions(past, tokens.shape[1], pads)
        acts = {}

        def save(name, array):
            if keep == "everything":
                acts[name] = array
            return array

        save("tokens", tokens)
        save("positions", np.broadcast_to(positions, tokens.shape))
        wte = self.params["wte.weight"]
        x = save("wte", ops.embedding(tokens, wte))
        x = ops.residual(x, save("wpe", ops.embedding(positions, self.params["wpe.weight"])))
        for i in range(self.config.n_layer):
            x = self._block(x, i, cache, pads, save)
        if only_last:
            x = x[:, -1:]
        logits = save("logits", ops.unembed(x, self.params.get("lm_head.weight", wte)))
        if cache:
            cache.length, cache.pads = past + tokens.shape[1], pads
        return logits, acts

    def _block(self, x, i, cache, pads, save):
        """resid_mid = ln_1(x + attention(x)); resid_post = ln_2(resid_mid + mlp(resid_mid))."""
        h, eps = f"h.{i}.", self.config.layer_norm_epsilon

        def weights(name):
            return self.params[f"{h}{name}.weight"], self.params[f"{h}{name}.bias"]

        save(h + "resid_pre", x)
        y = save(h + "attn.c_attn", ops.linear(x, *weights("attn.c_attn")))
        q, k, v = (ops.split_heads(part, self.config.n_head) for part in ops.split_qkv(y))
        if cache:
            k = gpt2.append(cache.k[i], k, cache.length)
            v = gpt2.append(cache.v[i], v, cache.length)
        for name, array in (("q", q), ("k", k), ("v", v)):
            save(f"{h}attn.{name}", array)
        scores = save(h + "attn.scores", ops.attention_scores(q, k, pads))
        pattern = save(h + "attn.pattern", ops.softmax(scores))
        z = save(h + "attn.z", ops.merge_heads(ops.attention_values(pattern, v)))
        y = save(h + "attn.c_proj", ops.linear(z, *weights("attn.c_proj")))
        x = save(h + "resid_mid", ops.layer_norm(ops.residual(x, y), *weights("ln_1"), eps))
        y = save(h + "mlp.c_fc", ops.linear(x, *weights("mlp.c_fc")))
        y = save(h + "mlp.act", ops.gelu(y))
        y = save(h + "mlp.c_proj", ops.linear(y, *weights("mlp.c_proj")))
        return save(h + "resid_post", ops.layer_norm(ops.residual(x, y), *weights("ln_2"), eps))


class CharacterBPE:
    """GPT-1's tokenizer: words in small letters, merged from characters, the last with </w>.

    tokens: by id; merges: pairs in the order learned. It cuts words as BERT does, like Hugging
    Face's; OpenAI's own used spaCy, which cuts "don't" differently. `eot` is None: GPT-1 was
    trained on books without an end token. Raises ValueError for a token or a merge that is there
    twice, a merge that makes no token, and a vocabulary without <unk>.
    """

    eot, bos, ends = None, None, ()
    special, rules = {}, {}

    def __init__(self, tokens, merges):
        self.tokens, self.n_vocab, self.merges = list(tokens), len(tokens), list(merges)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(self.merges)}
        if len(self._ids) < self.n_vocab or len(self._ranks) < len(self.merges):
            raise ValueError("the vocabulary or the merges hold something twice")
        if UNKNOWN not in self._ids:
            raise ValueError(f"the vocabulary lacks {UNKNOWN}")
        for left, right in self.merges:
            lost = [part for part in (left, right, left + right) if part not in self._ids]
            if lost:
                raise ValueError(f"the merge of {left!r} and {right!r} needs the token {lost[0]!r}")

    def __repr__(self):
        return f"CharacterBPE({self.n_vocab:,} tokens)"

    def encode(self, text: str, allowed_special=(), begins: bool = True) -> list[int]:
        """The ids of a text, whether it begins or goes on.

        There are no special tokens to allow; <unk> is for what is unknown. Raises TypeError for
        anything but a str, ValueError for special tokens.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if allowed_special:
            raise ValueError(f"GPT-1 has no special tokens, so none of {sorted(allowed_special)}")
        pieces = (piece for word in words(text, lower=True) for piece in self._merge(word))
        return [self._ids.get(piece, self._ids[UNKNOWN]) for piece in pieces]

    def _merge(self, word):
        """Characters, joined by the earliest merge that applies until none does."""
        symbols = [*word[:-1], word[-1] + LAST]
        while True:
            pairs = set(zip(symbols, symbols[1:], strict=False)) & self._ranks.keys()
            if not pairs:
                return symbols
            first = min(pairs, key=self._ranks.get)
            symbols = joined(symbols, first, "".join(first))

    def decode(self, ids) -> str:
        """The pieces joined, with a space between words: not the text, whose spaces are lost.

        Raises ValueError for an id that does not exist, TypeError for what is not an integer.
        """
        return "".join(self.decode_stream(ids)).removeprefix(" ")

    def decode_bytes(self, ids) -> bytes:
        """`decode` in UTF-8."""
        return self.decode(ids).encode("utf-8")

    def decode_stream(self, ids):
        """The text of each id as it arrives, with a space before each word, the first too.

        So it continues a prompt, whose last word has always ended.
        """
        new_word = True
        for i in ids:
            i = check_count("an id", i)
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"the id {i} does not exist: there are 0 to {self.n_vocab - 1}")
            token = self.tokens[i]
            yield (" " if new_word else "") + token.removesuffix(LAST)
            new_word = token.endswith(LAST)
