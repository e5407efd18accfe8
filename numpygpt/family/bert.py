"""BERT: the Transformer's encoder alone, trained to fill in words that were hidden. Unlike GPT-2,

*  nothing is masked but padding: a position sees those to its right as well. So it cannot be
   trained to say the next token, which it sees, and cannot write a text from left to right;
*  instead 15 % of the tokens are chosen, most of them hidden behind [MASK], and the loss is on
   those alone: `mask_tokens`. A second output says whether one sentence followed the other. (An
   output's layers are called its *head*, which has nothing to do with the heads of attention);
*  the layer norm stands behind each sum ("post-norm"), one more behind the embeddings, which are
   three: token, position and segment (first or second sentence);
*  GELU is the exact one, x/2 (1 + erf(x / sqrt 2)), where GPT-2 has the tanh approximation;
*  tokens are WordPieces: words cut by spaces and punctuation first, then the longest pieces that
   the vocabulary has. Decoding cannot give the spaces back.

Names and shapes are those of Hugging Face's files. Their matrices stand (out, in), as torch's
nn.Linear keeps them, and are turned, `.T`, where they multiply. Dropout is left out.
Sources: Devlin et al. 2019; google-research/bert (masking, tokenization).
"""

import functools
import math
import unicodedata

import numpy as np

from numpygpt import ops
from numpygpt.family.transformer import attention, attention_backward, padding
from numpygpt.model import (
    Config,
    check_ids,
    check_init,
    check_params,
    check_targets,
    described,
)
from numpygpt.sample import check_count, check_rng

# ---- exact GELU ---------------------------------------------------------------------------------

STEP, END = 1 / 512, 6.0  # erf(6) is 1 - 2e-17, which float64 rounds to 1


@functools.cache
def _erf_table(dtype):
    return np.array([math.erf(i * STEP) for i in range(round(END / STEP) + 1)], dtype)


def erf(x):
    """erf(x) = 2 / sqrt(pi) integral from 0 to x of exp(-t^2) dt, elementwise, dtype kept.

    NumPy has none, and `math.erf` takes one number at a time. So: the value at the nearest multiple
    x0 of 1/512, from a table made with `math.erf`, and four terms of the Taylor series from there,

        erf(x0 + d) = erf(x0) + 2/sqrt(pi) exp(-x0^2) (d - x0 d^2 + (2 x0^2 - 1)/3 d^3 - ...)

    whose next term is at most 1.01e-16. Measured: within 2.3e-16 of `math.erf` in float64, and nine
    times as fast as calling that for each number.
    """
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):  # a table of integers would hold zeros alone
        x = x.astype(np.float64)
    size = np.abs(x)
    at = np.rint(np.fmin(size, END) / STEP)
    x0 = at * STEP
    d = np.minimum(size, END) - x0  # NaN stays NaN here
    sq = x0 * x0
    series = d * (1 - d * (x0 - d * ((2 * sq - 1) / 3 - d * x0 * (2 * sq - 3) / 6)))
    y = _erf_table(x.dtype)[at.astype(np.intp)] + 2 / math.sqrt(math.pi) * np.exp(-sq) * series
    return np.copysign(y, x)


def gelu(x):
    """y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2, the normal distribution's share below x."""
    return x * _phi(x)


def _phi(x):
    return 0.5 * (1 + erf(x * math.sqrt(0.5)))


def gelu_backward(dy, x):
    """dx = dy (Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi))."""
    return dy * (_phi(x) + x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))


# ---- the model ----------------------------------------------------------------------------------

HEADS = ("pooler", "masked", "next")


def parameter_shapes(config: Config, n_segments=2, heads=HEADS) -> dict[str, tuple[int, ...]]:
    """Hugging Face's name -> shape, in the order of computation.

    heads: the masked-word head ("masked"), the next-sentence head ("next"), and the layer in front
    of that ("pooler"). Published files lack one or another.
    """
    c, f, v = config.n_embd, config.n_inner, config.n_vocab
    e = "bert.embeddings."
    shapes = {f"{e}word_embeddings.weight": (v, c)}
    shapes[f"{e}position_embeddings.weight"] = (config.n_ctx, c)
    shapes[f"{e}token_type_embeddings.weight"] = (n_segments, c)
    modules = {f"{e}LayerNorm": (c,)}
    for i in range(config.n_layer):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value"):
            modules[f"bert.encoder.layer.{i}.{name}"] = (c, c)
        modules |= {
            f"bert.encoder.layer.{i}.attention.output.dense": (c, c),
            f"bert.encoder.layer.{i}.attention.output.LayerNorm": (c,),
            f"bert.encoder.layer.{i}.intermediate.dense": (f, c),
            f"bert.encoder.layer.{i}.output.dense": (c, f),
            f"bert.encoder.layer.{i}.output.LayerNorm": (c,),
        }
    if "pooler" in heads:
        modules["bert.pooler.dense"] = (c, c)
    if "masked" in heads:
        modules["cls.predictions.transform.dense"] = (c, c)
        modules["cls.predictions.transform.LayerNorm"] = (c,)
    if "next" in heads:
        modules["cls.seq_relationship"] = (2, c)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | ({"cls.predictions.bias": (v,)} if "masked" in heads else {})


def init(config: Config, rng: np.random.Generator, dtype=np.float32) -> dict[str, np.ndarray]:
    """Random parameters as BERT's were: matrices and tables normal with std 0.02, biases 0."""
    check_init(rng, dtype)
    params = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            params[name] = np.full(shape, name.endswith("LayerNorm.weight"), dtype)
        else:
            params[name] = rng.standard_normal(shape, dtype) * 0.02
    return params


class Bert:
    """BERT with the given configuration and parameters (used, not copied).

    `heads` are those whose parameters are there. Raises ValueError or TypeError naming every
    parameter that does not fit.
    """

    def __init__(self, config: Config, params: dict[str, np.ndarray]):
        self.config, self.params = config, params
        prefix = {"pooler": "bert.pooler", "masked": "cls.predictions", "next": "cls.seq_"}
        self.heads = tuple(h for h in HEADS if any(name.startswith(prefix[h]) for name in params))
        if "next" in self.heads and "pooler" not in self.heads:
            raise ValueError(
                "the next-sentence head is there, but bert.pooler, which it needs, is not"
            )
        table = params.get("bert.embeddings.token_type_embeddings.weight", [[], []])
        self.n_segments = np.shape(table)[0]
        self.dtype = check_params(params, parameter_shapes(config, self.n_segments, self.heads))

    def __repr__(self):
        return described(self)

    def cache(self, batch: int = 1):
        """Raises TypeError: what a position sees to its right is not known before it is written."""
        raise TypeError(
            "this model is a BERT, which sees both sides of every position: it has no cache and "
            "cannot write from left to right. It fills in: numpygpt.family.bert.fill_mask"
        )

    def forward(self, tokens, segments=None, real=None):
        """(masked, following, acts): logits (B, T, V) of the token at each place, and (B, 2).

        tokens (B, T): ids, from [CLS] to [SEP]. segments (B, T): 0 in the first sentence, 1 in the
        second; None is 0. real (B, T): 0 at padding. following[:, 0] is that the second sentence
        follows the first, [:, 1] that it does not. A head that the model does not have gives None.
        """
        acts = {}
        x = self.encode(tokens, segments, real, acts)
        return self.masked(x, acts), self.following(x, acts), acts

    def encode(self, tokens, segments=None, real=None, acts=None):
        """What the encoder makes of each token: (B, T) -> (B, T, C)."""
        acts = {} if acts is None else acts
        tokens, segments, real = self._checked(tokens, segments, real)
        positions = ops.positions(0, tokens.shape[1])
        ids = {"word": tokens, "position": positions, "token_type": segments}
        x = 0
        for name, index in ids.items():
            acts[name] = np.broadcast_to(index, tokens.shape)
            table = self.params[f"bert.embeddings.{name}_embeddings.weight"]
            x = x + ops.embedding(index, table)
        x = self._norm(x, "bert.embeddings.LayerNorm", acts)
        acts["hidden"] = padding(real, self.dtype)
        for i in range(self.config.n_layer):
            x = self._layer(x, f"bert.encoder.layer.{i}.", acts)
        return x

    def _layer(self, x, h, acts):
        names = ("query", "key", "value")
        qkv = [self._linear(x, f"{h}attention.self.{name}", acts) for name in names]
        qkv = acts[h + "qkv"] = [ops.split_heads(part, self.config.n_head) for part in qkv]
        z = ops.merge_heads(attention(*qkv, acts["hidden"]))
        y = self._linear(z, h + "attention.output.dense", acts)
        x = self._norm(ops.residual(x, y), h + "attention.output.LayerNorm", acts)
        fc = acts[h + "fc"] = self._linear(x, h + "intermediate.dense", acts)
        y = self._linear(gelu(fc), h + "output.dense", acts)
        return self._norm(ops.residual(x, y), h + "output.LayerNorm", acts)

    def masked(self, x, acts):
        """Which token stands here? A layer, GELU, a norm, then the embedding's table and a bias."""
        if "masked" not in self.heads:
            return None
        name = "cls.predictions.transform."
        y = acts["transform"] = self._linear(x, name + "dense", acts)
        y = acts["unembedded"] = self._norm(gelu(y), name + "LayerNorm", acts)
        table = self.params["bert.embeddings.word_embeddings.weight"]
        return ops.unembed(y, table) + self.params["cls.predictions.bias"]

    def following(self, x, acts):
        """Does the second sentence follow? From the place of [CLS] alone."""
        if "next" not in self.heads:
            return None
        acts["shape"] = x.shape
        pooled = acts["pooled"] = np.tanh(self._linear(x[:, 0], "bert.pooler.dense", acts))
        return self._linear(pooled, "cls.seq_relationship", acts)

    def _linear(self, x, name, acts):
        acts[name] = x  # the record keeps what each module was given
        return ops.linear(x, self.params[name + ".weight"].T, self.params[name + ".bias"])

    def _norm(self, x, name, acts):
        acts[name] = x
        w, b = self.params[name + ".weight"], self.params[name + ".bias"]
        return ops.layer_norm(x, w, b, self.config.layer_norm_epsilon)

    def backward(self, dmasked, dfollowing, acts) -> dict[str, np.ndarray]:
        """Gradients under the parameters' names, from those of the two heads' logits, or None."""
        grads, p = {}, self.params
        dx, dtable = 0, None
        words = "bert.embeddings.word_embeddings.weight"
        if dmasked is not None:
            name = "cls.predictions.transform."
            grads["cls.predictions.bias"] = dmasked.sum((0, 1))
            dy, dtable = ops.unembed_backward(dmasked, acts["unembedded"], p[words])
            dy = gelu_backward(
                self._norm_back(dy, name + "LayerNorm", acts, grads), acts["transform"]
            )
            dx = self._linear_back(dy, name + "dense", acts, grads)
        if dfollowing is not None:
            dy = self._linear_back(dfollowing, "cls.seq_relationship", acts, grads)
            dy = dy * (1 - np.square(acts["pooled"]))  # of tanh
            first = np.zeros(acts["shape"], self.dtype)
            first[:, 0] = self._linear_back(dy, "bert.pooler.dense", acts, grads)
            dx = dx + first
        for i in reversed(range(self.config.n_layer)):
            dx = self._layer_back(dx, f"bert.encoder.layer.{i}.", acts, grads)
        dx = self._norm_back(dx, "bert.embeddings.LayerNorm", acts, grads)
        for name in ("word", "position", "token_type"):
            table = f"bert.embeddings.{name}_embeddings.weight"
            into = dtable if table == words else None  # used twice, its gradients add up
            grads[table] = ops.embedding_backward(dx, acts[name], p[table], into)
        for name in p.keys() - grads.keys():  # of a head that had no part in the loss
            grads[name] = np.zeros_like(p[name])
        return {name: grads[name] for name in p}

    def _layer_back(self, dx, h, acts, grads):
        """`_layer` from its last line to its first."""
        dx = self._norm_back(dx, h + "output.LayerNorm", acts, grads)
        dy = self._linear_back(dx, h + "output.dense", acts, grads)
        dy = gelu_backward(dy, acts[h + "fc"])
        dx = dx + self._linear_back(dy, h + "intermediate.dense", acts, grads)
        dx = self._norm_back(dx, h + "attention.output.LayerNorm", acts, grads)
        dz = self._linear_back(dx, h + "attention.output.dense", acts, grads)
        dz = ops.split_heads(dz, self.config.n_head)
        dqkv = attention_backward(dz, *acts[h + "qkv"], acts["hidden"])
        for name, d in zip(("query", "key", "value"), dqkv, strict=True):
            d = ops.merge_heads(d)
            dx = dx + self._linear_back(d, f"{h}attention.self.{name}", acts, grads)
        return dx

    def _linear_back(self, dy, name, acts, grads):
        w, b = self.params[name + ".weight"].T, self.params[name + ".bias"]
        dx, dw, grads[name + ".bias"] = ops.linear_backward(dy, acts[name], w, b)
        grads[name + ".weight"] = np.ascontiguousarray(dw.T)
        return dx

    def _norm_back(self, dy, name, acts, grads):
        w, b = self.params[name + ".weight"], self.params[name + ".bias"]
        dx, grads[name + ".weight"], grads[name + ".bias"] = ops.layer_norm_backward(
            dy, acts[name], w, b, self.config.layer_norm_epsilon
        )
        return dx

    def loss_and_grads(self, tokens, targets, mask, segments=None, real=None, is_next=None):
        """Masked loss, plus the next-sentence loss where is_next (B,) is given, and the gradients.

        tokens: with the chosen ones hidden; targets: as they were; mask: 1 where one was chosen.
        """
        tokens, targets, mask = check_targets(self.config, tokens, targets, mask)
        masked, following, acts = self.forward(tokens, segments, real)
        one = self.dtype.type(1)
        if masked is None:
            raise ValueError(
                "this BERT has no masked-word head (cls.predictions): nothing to train"
            )
        loss = ops.cross_entropy(masked, targets, mask)
        dmasked, dfollowing = ops.cross_entropy_backward(one, masked, targets, mask), None
        if is_next is not None:
            if following is None:
                raise ValueError("this BERT has no next-sentence head (cls.seq_relationship)")
            if np.shape(is_next) != (len(tokens),) or not np.isin(is_next, (0, 1)).all():
                raise ValueError(f"is_next must be 0 or 1 for each of the {len(tokens)} rows")
            label = 1 - np.asarray(is_next, int)  # 0 is "follows", as published
            loss = loss + ops.cross_entropy(following, label)
            dfollowing = ops.cross_entropy_backward(one, following, label)
        return loss, self.backward(dmasked, dfollowing, acts)

    def _checked(self, tokens, segments, real):
        tokens = check_ids(tokens, "tokens", self.config.n_vocab)
        if tokens.shape[1] > self.config.n_ctx:
            raise ValueError(
                f"{tokens.shape[1]} tokens are more than this model's {self.config.n_ctx} "
                "positions: shorten the text"
            )
        segments = np.zeros(tokens.shape, int) if segments is None else segments
        segments = check_ids(segments, "segments", self.n_segments)
        real = None if real is None else np.atleast_2d(real)
        if segments.shape != tokens.shape or (real is not None and real.shape != tokens.shape):
            raise ValueError(f"segments and real must have the shape of the tokens, {tokens.shape}")
        if real is not None and not real.any(1).all():
            raise ValueError("a row holds nothing but padding: real needs a 1 in every row")
        return tokens, segments, real


def fill_mask(model: Bert, tokenizer: "WordPiece", text: str, k: int = 5):
    """The k likeliest tokens for each [MASK] of the text: a list of (token, probability) for each.

    Several are filled in one at a time, each as if the others stayed hidden. Raises ValueError for
    a text without [MASK], one too long, and a model without the head.
    """
    if not isinstance(model, Bert) or not isinstance(tokenizer, WordPiece):
        found = f"{type(model).__name__} and {type(tokenizer).__name__}"
        raise TypeError(f"a BERT and its WordPiece tokenizer fill in, not {found}")
    k = check_count("k", k, 1)
    if "masked" not in model.heads:
        raise ValueError(
            "this BERT has no masked-word head (cls.predictions), so it cannot fill in"
        )
    ids, segments = tokenizer.sequence(text, allowed_special={MASK})
    places = [place for place, i in enumerate(ids) if i == tokenizer.special[MASK]]
    if not places:
        raise ValueError(
            f"there is no {MASK} in the text: write it where a word is to be filled in"
        )
    masked, _, _ = model.forward([ids], [segments])
    found = []
    for probability in ops.softmax(masked[0, places]):
        best = np.argsort(-probability, kind="stable")[:k]
        found.append([(tokenizer.tokens[i], float(probability[i])) for i in best])
    return found


# ---- WordPiece ----------------------------------------------------------------------------------

PAD, UNKNOWN, CLS, SEP, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 100  # characters: a longer word is unknown as a whole
CHINESE = (  # the first and last of each block whose characters are words of their own
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),  # the block begins at 0x2B820; so it stands in huggingface/tokenizers
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def words(text: str, lower: bool, strip_accents: bool | None = None, chinese: bool = True):
    """The words and punctuation marks of a text, in order: what pieces are then cut from.

    Control characters vanish, white space separates, every punctuation mark and (if `chinese`)
    every Chinese character is a word. `lower` writes all in small letters; accents are taken off
    as well, unless strip_accents says otherwise.
    """
    strip_accents = lower if strip_accents is None else strip_accents
    text = "".join(map(_clean, text))
    if chinese:
        text = "".join(f" {c} " if _is_chinese(c) else c for c in text)
    if strip_accents:
        text = unicodedata.normalize("NFD", text)
        text = "".join(c for c in text if unicodedata.category(c) != "Mn")
    if lower:
        # One by one: a whole word's lower() would write a capital sigma at its end as ς, not σ.
        text = "".join(c.lower() for c in text)
    return "".join(f" {c} " if _is_punctuation(c) else c for c in text).split()


def _clean(c):
    category = unicodedata.category(c)
    if c in "\t\n\r" or category[0] == "Z":
        return " "
    # Unassigned ones ("Cn") stay: which they are depends on the version of Unicode.
    return "" if c == "\ufffd" or (category[0] == "C" and category != "Cn") else c


def _is_chinese(c):
    return any(first <= ord(c) <= last for first, last in CHINESE)


def _is_punctuation(c):
    if c.isascii():  # $ + < = > ^ ` | ~ too, which Unicode calls symbols
        return c.isprintable() and not c.isalnum() and c != " "
    return unicodedata.category(c)[0] == "P"


class WordPiece:
    """BERT's tokenizer: `tokens` by id, `special` the five of SPECIAL to their ids.

    lower: for an uncased vocabulary. strip_accents and chinese: see `words`. Raises ValueError for
    a vocabulary with a token twice, or without one of the five.
    """

    eot = None  # BERT's texts end in [SEP], which also stands in their middle

    def __init__(self, tokens, lower: bool, strip_accents: bool | None = None, chinese=True):
        self.tokens, self.n_vocab = list(tokens), len(tokens)
        self._ids = {token: i for i, token in enumerate(self.tokens)}
        if len(self._ids) < self.n_vocab:
            twice = next(t for i, t in enumerate(self.tokens) if self._ids[t] != i)
            raise ValueError(f"the token {twice!r} is in the vocabulary twice")
        if missing := [token for token in SPECIAL if token not in self._ids]:
            raise ValueError(f"the vocabulary lacks {', '.join(missing)}")
        self.special = {token: self._ids[token] for token in SPECIAL}
        self.lower, self.strip_accents, self.chinese = lower, strip_accents, chinese

    def __repr__(self):
        return f"WordPiece({self.n_vocab:,} tokens, {'uncased' if self.lower else 'cased'})"

    def encode(self, text: str, allowed_special=(), begins: bool = True) -> list[int]:
        """The ids of a text, whether it begins or goes on, without [CLS] and [SEP].

        Special tokens are plain text unless allowed.
        Raises TypeError for anything but a str and ValueError for what is not a special token.
        """
        if not isinstance(text, str):
            raise TypeError(f"the text must be a str, not {type(text).__name__}")
        if isinstance(allowed_special, str):
            raise TypeError(f"allowed_special must be a set of tokens: {{{allowed_special!r}}}")
        if unknown := sorted(set(allowed_special) - self.special.keys()):
            raise ValueError(f"{unknown} are not special tokens here; {list(self.special)} are")
        ids = []
        for piece in _cut_at(text, allowed_special):
            if piece in allowed_special:
                ids.append(self.special[piece])
                continue
            for word in words(piece, self.lower, self.strip_accents, self.chinese):
                ids += self._pieces(word)
        return ids

    def _pieces(self, word):
        """The longest piece from the left, then the longest from there, ...; or [UNK] for all."""
        ids, start = [], 0
        while start < len(word) <= LONGEST:
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if prefix + word[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[prefix + word[start:end]])
            start = end
        return ids if start == len(word) else [self.special[UNKNOWN]]

    def sequence(self, first: str, second: str | None = None, allowed_special=()):
        """([CLS] first [SEP] second [SEP] as ids, their segments 0 and 1)."""
        ids = [self.special[CLS], *self.encode(first, allowed_special), self.special[SEP]]
        segments = [0] * len(ids)
        if second is not None:
            ids += [*self.encode(second, allowed_special), self.special[SEP]]
            segments += [1] * (len(ids) - len(segments))
        return ids, segments

    def decode(self, ids) -> str:
        """The pieces with a space before each word: not the text, whose spaces are lost.

        Raises ValueError for an id that does not exist, TypeError for what is not an integer.
        """
        text = ""
        for i in ids:
            i = check_count("an id", i)
            if not 0 <= i < self.n_vocab:
                raise ValueError(f"the id {i} does not exist: there are 0 to {self.n_vocab - 1}")
            token = self.tokens[i]
            text += token[2:] if token.startswith("##") else f" {token}"
        return text.removeprefix(" ")


def _cut_at(text, marks):
    """The text cut around each mark: "the [MASK] sat" -> "the ", "[MASK]", " sat"."""
    pieces = [text]
    for mark in sorted(marks):
        cut = []
        for piece in pieces:
            if piece in marks:
                cut.append(piece)
                continue
            first, *rest = piece.split(mark)
            cut.append(first)
            for part in rest:
                cut += [mark, part]
        pieces = cut
    return pieces


# ---- what it is trained on ----------------------------------------------------------------------


def mask_tokens(tokens, special, mask_id: int, n_vocab: int, rng, share: float = 0.15):
    """(tokens with some hidden, mask): the loss counts those chosen, each with probability `share`.

    80 % of those become [MASK], 10 % a random token, and 10 % stay: a model trained on [MASK] alone
    would have nothing to say of a text without it; so it has to doubt every token. `special`: ids
    that are never chosen.
    """
    tokens = np.asarray(tokens)
    mask = (rng.random(tokens.shape) < share) & ~np.isin(tokens, list(special))
    fate = rng.random(tokens.shape)
    anything = rng.integers(n_vocab, size=tokens.shape)
    hidden = np.where(mask & (fate < 0.8), mask_id, tokens)
    return np.where(mask & (fate >= 0.9), anything, hidden), mask


def pair_batches(documents, tokenizer: WordPiece, batch: int, length: int, rng):
    """Batches of (tokens, targets, mask, segments, real, is_next) for `Bert.loss_and_grads`.

    Without end. documents: lists of sentences, each a text. A row is [CLS] a [SEP] b [SEP]: half of
    the time b followed a, otherwise it is a sentence of another document. The longer of the two is
    shortened until the row fits `length`. Raises ValueError for fewer than two documents with two
    sentences. (BERT itself fills its rows with several sentences on each side.)
    """
    batch, length = check_count("batch", batch, 1), check_count("length", length)
    check_rng(rng)
    special = tokenizer.special
    documents = [[tokenizer.encode(s) for s in sentences] for sentences in documents]
    documents = [[ids for ids in sentences if ids] for sentences in documents]
    documents = [sentences for sentences in documents if len(sentences) > 1]
    if len(documents) < 2:
        raise ValueError("pairs of sentences need two documents of two sentences at least")
    if {i for sentences in documents for ids in sentences for i in ids} <= set(special.values()):
        raise ValueError("there is no word to hide: the vocabulary knows none of this text")
    if length < 5:
        raise ValueError(
            f"length must be at least 5, not {length}: a pair has three special tokens"
        )
    while True:
        rows, is_next = [], rng.random(batch) < 0.5
        for follows in is_next:
            here, there = rng.choice(len(documents), 2, replace=False)
            at = rng.integers(len(documents[here]) - 1)
            a = list(documents[here][at])
            b = documents[here][at + 1] if follows else _any(documents[there], rng)
            rows.append((a, list(b)))
        tokens = np.full((batch, length), special[PAD])
        segments, real = np.zeros(tokens.shape, int), np.zeros(tokens.shape, bool)
        for row, (a, b) in enumerate(rows):
            while len(a) + len(b) > length - 3:
                (a if len(a) > len(b) else b).pop()
            ids = [special[CLS], *a, special[SEP], *b, special[SEP]]
            tokens[row, : len(ids)], real[row, : len(ids)] = ids, True
            segments[row, len(a) + 2 : len(ids)] = 1
        used = real.any(0)
        tokens, segments, real = tokens[:, used], segments[:, used], real[:, used]
        hidden, mask = mask_tokens(tokens, special.values(), special[MASK], tokenizer.n_vocab, rng)
        if mask.any():
            yield hidden, tokens, mask, segments, real, is_next


def _any(sentences, rng):
    return sentences[rng.integers(len(sentences))]
