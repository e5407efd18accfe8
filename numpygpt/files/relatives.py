"""Hugging Face's folders of GPT-2's relatives, BERT and GPT-1, every name and shape accounted for.

        weights             sizes         vocabulary
BERT    model.safetensors   config.json   vocab.txt, or tokenizer.json
GPT-1   or its shards                     vocab.json and merges.txt, or tokenizer.json
"""

import dataclasses
import os
import re
import unicodedata
import warnings
from pathlib import Path

import numpy as np

from numpygpt.family import bert, gpt1
from numpygpt.files import checkpoint, text, vocabulary
from numpygpt.formats import CheckpointError
from numpygpt.model import Config

# Their sizes under Config's names; every one must be there.
BERT_SIZES = {
    "n_vocab": "vocab_size",
    "n_ctx": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "layer_norm_epsilon": "layer_norm_eps",
}
GPT1_SIZES = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_layer": "n_layer",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
# The switches that change what is computed, and the values that mean what is computed here.
BERT_ALONE = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
BERT_WORDS = {
    "tokenizer_class": ("BertTokenizer", "BertTokenizerFast", None),
    "do_basic_tokenize": (True,),
    "never_split": (None, []),
}
GPT1_ALONE = {
    "afn": ("gelu", "gelu_new"),  # both are the tanh GELU there
    "tie_word_embeddings": (True,),
}


def load(folder: str | os.PathLike):
    """The model and the tokenizer in a folder whose config.json is a BERT's or a GPT-1's.

    Raises CheckpointError for what is damaged, incomplete, unknown or would come out wrong.
    """
    folder = Path(folder)
    fields = text.read_json(folder / "config.json")
    if fields.get("model_type") == "bert":
        (config, params), tokenizer = _load_bert(folder, fields), _read_wordpiece(folder)
        return bert.Bert(*_without_padding(folder, config, params, tokenizer)), tokenizer
    fields = checkpoint.spelled_out(fields, folder / "config.json")
    (config, params), tokenizer = _load_gpt1(folder, fields), _read_character_bpe(folder)
    return gpt1.GPT1(*_without_padding(folder, config, params, tokenizer)), tokenizer


# What has a row for each token.
ROWS = (
    "wte.weight",
    "lm_head.weight",
    "bert.embeddings.word_embeddings.weight",
    "cls.predictions.bias",
)


def _without_padding(folder, config, params, tokenizer):
    """The rows that belong to tokens: no text has the others' ids, and no token could be shown."""
    rows, n_vocab = config.n_vocab, tokenizer.n_vocab
    if n_vocab > rows or rows >= n_vocab + checkpoint.MAX_PADDING:
        raise CheckpointError(
            f"{folder} is a model of {rows:,} tokens, but its vocabulary has {n_vocab:,}: they do "
            "not belong together"
        )
    if n_vocab < rows:
        warnings.warn(
            f"{folder} has {rows:,} rows in its embedding for {n_vocab:,} tokens: the others are "
            "taken for padding and cut off",
            stacklevel=4,
        )
        params = {name: a[:n_vocab] if name in ROWS else a for name, a in params.items()}
        config = dataclasses.replace(config, n_vocab=n_vocab)
    return config, params


def _config(folder, fields, sizes, switches):
    path = folder / "config.json"
    for key, allowed in switches.items():
        if key in fields and fields[key] not in allowed:
            raise CheckpointError(
                f"{path} says {key} = {fields[key]!r:.99}, but numpygpt computes {allowed[0]!r} "
                "alone: this model would come out wrong"
            )
    missing = [theirs for theirs in sizes.values() if theirs not in fields]
    checkpoint.raise_all(f"{path} is incomplete, get it again", {"missing": missing})
    try:
        return Config(**{ours: fields[theirs] for ours, theirs in sizes.items()})
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None


def _params(folder, arrays, shapes, ignored):
    """The arrays that `shapes` names, or one error with all that is wrong with them."""
    faults = {
        "missing": [name for name in shapes if name not in arrays],
        "unknown": [f"{n!r:.99}" for n in arrays if n not in shapes and n not in ignored],
        "misshapen": [
            f"{name} is {arrays[name].shape} where {shape} is expected"
            for name, shape in shapes.items()
            if name in arrays and arrays[name].shape != shape
        ],
    }
    checkpoint.raise_all(f"{folder} is not the model that its config.json describes", faults)
    return checkpoint.one_dtype({name: arrays[name] for name in shapes}, str(folder))


def _renamed(arrays, official, folder):
    names = {}
    for name in arrays:
        if official(name) in names:
            raise CheckpointError(f"{folder} holds {official(name)} twice, under two names")
        names[official(name)] = name
    return {new: arrays[old] for new, old in names.items()}


# ---- BERT ---------------------------------------------------------------------------------------


def _load_bert(folder, fields):
    config = _config(folder, fields, BERT_SIZES, BERT_ALONE)
    arrays = _renamed(checkpoint.read_arrays(folder), _bert_name, folder)
    _check_layers(folder, config, arrays)
    heads = [
        head
        for head, name in (
            ("pooler", "bert.pooler.dense.weight"),
            ("masked", "cls.predictions.transform.dense.weight"),
            ("next", "cls.seq_relationship.weight"),
        )
        if name in arrays
    ]
    table = "bert.embeddings.word_embeddings.weight"
    tied = {"cls.predictions.decoder.weight": table}
    tied["cls.predictions.decoder.bias"] = "cls.predictions.bias"
    for copy, source in tied.items():  # the same array under a second name, in some files
        if copy in arrays and not np.array_equal(arrays[copy], arrays.get(source)):
            raise CheckpointError(
                f"{folder}: {copy} differs from {source}, which is its own copy in a BERT: this "
                "model would come out wrong"
            )
    shapes = bert.parameter_shapes(config, fields.get("type_vocab_size", 2), heads)
    ignored = {*tied, "bert.embeddings.position_ids"}
    return config, _params(folder, arrays, shapes, ignored)


def _bert_name(name):
    """The names of Google's time, and those of a file saved without heads, are today's."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return name if name.startswith(("bert.", "cls.")) else f"bert.{name}"


def _check_layers(folder, config, arrays):
    if config.n_layer > len(arrays):  # a wrong number should not be believed and counted up to
        raise CheckpointError(
            f"{folder} should have {config.n_layer:,} layers, but holds {len(arrays)} arrays: its "
            "configuration and its weights do not belong together"
        )


def _read_wordpiece(folder):
    """tokenizer.json decides where it is there, as in transformers; else vocab.txt."""
    if (folder / "tokenizer.json").is_file():
        return _wordpiece_json(folder / "tokenizer.json")
    path = folder / "vocab.txt"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no vocabulary: put its vocab.txt there")
    try:
        tokens = text.read(path).removesuffix("\n").split("\n")
    except ValueError as error:
        raise CheckpointError(f"{error}: get it again") from None
    fields = _tokenizer_config(folder)
    lower = fields.get("do_lower_case")
    if lower is None:  # capitals stand in a cased vocabulary alone
        usual = (token for token in tokens if token not in bert.SPECIAL)
        lower = not any(unicodedata.category(c) == "Lu" for token in usual for c in token)
        found = (
            "no capitals, so texts are lowercased" if lower else "capitals, so texts keep theirs"
        )
        warnings.warn(
            f"no file in {folder} says do_lower_case: its vocabulary has {found}", stacklevel=4
        )
    chinese = fields.get("tokenize_chinese_chars", True)
    return _wordpiece(path, tokens, lower, fields.get("strip_accents"), chinese)


def _tokenizer_config(folder):
    """tokenizer_config.json or {}; refused is what would cut texts otherwise than BERT does."""
    path = folder / "tokenizer_config.json"
    fields = text.read_json(path) if path.is_file() else {}
    for role, token in zip(("pad", "unk", "cls", "sep", "mask"), bert.SPECIAL, strict=True):
        said = fields.get(f"{role}_token") or token
        said = said.get("content") if isinstance(said, dict) else said
        if said != token:
            raise CheckpointError(
                f"{path} has {role}_token {said!r:.99} where BERT has {token!r}: numpygpt would "
                "read its texts wrongly"
            )
    for key, allowed in BERT_WORDS.items():
        if key in fields and fields[key] not in allowed:
            raise CheckpointError(
                f"{path} says {key} = {fields[key]!r:.99}, but numpygpt cuts words as BERT does, "
                f"{allowed[0]!r}: its texts would be read wrongly"
            )
    added = fields.get("added_tokens_decoder") or {}
    contents = [one.get("content") if isinstance(one, dict) else one for one in _values(added)]
    if (folder / "added_tokens.json").is_file():
        contents += text.read_json(folder / "added_tokens.json")
    _refuse_added(folder, contents)
    return fields


def _values(mapping):
    return mapping.values() if isinstance(mapping, dict) else [mapping]


def _refuse_added(path, contents, known=bert.SPECIAL):
    for content in contents:
        if content not in known:
            raise CheckpointError(
                f"{path}: the token {content!r:.99} was added to the vocabulary, which numpygpt "
                "does not do for this kind of model"
            )


def _wordpiece(path, tokens, lower, strip_accents, chinese):
    if not (type(lower) is type(chinese) is bool and strip_accents in (None, True, False)):
        raise CheckpointError(f"{path.parent}: do_lower_case and its like must be true or false")
    try:
        return bert.WordPiece(tokens, lower, strip_accents, chinese)
    except ValueError as error:
        raise CheckpointError(f"{path} is not a BERT's vocabulary: {error}") from None


def _wordpiece_json(path):
    """The one file that transformers 5 saves."""
    fields, tokens = _tokenizer_json(path, "WordPiece", "BertNormalizer", "BertPreTokenizer")
    normal, model = fields["normalizer"], fields["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    longest = model.get("max_input_chars_per_word", bert.LONGEST)
    if (prefix, longest, normal.get("clean_text", True)) != ("##", bert.LONGEST, True):
        raise CheckpointError(f"{path}: numpygpt cuts words as BERT does, and this does not")
    chinese = normal.get("handle_chinese_chars", True)
    return _wordpiece(path, tokens, normal.get("lowercase"), normal.get("strip_accents"), chinese)


def _tokenizer_json(path, *kinds):
    """Its fields, and its tokens by id: of one kind of model, normalizer and pre-tokenizer."""
    fields = text.read_json(path)
    try:
        found = tuple(fields[part]["type"] for part in ("model", "normalizer", "pre_tokenizer"))
        if found != kinds:
            raise ValueError(f"its kind is {', '.join(found)} where {', '.join(kinds)} is expected")
        ids = dict(fields["model"]["vocab"])
        added = [token["content"] for token in fields.get("added_tokens") or []]
        tokens = sorted(ids, key=ids.get)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("its ids are not 0, 1, 2, ...")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{error!r} is not as expected"
        raise CheckpointError(f"{path} cannot be read here: {reason:.300}") from None
    _refuse_added(path, added, (*bert.SPECIAL, gpt1.UNKNOWN))
    return fields, tokens


# ---- GPT-1 --------------------------------------------------------------------------------------


def _load_gpt1(folder, fields):
    config = _config(folder, fields, GPT1_SIZES, GPT1_ALONE)
    arrays = _renamed(checkpoint.read_arrays(folder), _gpt1_name, folder)
    _check_layers(folder, config, arrays)
    head, wte = arrays.get("lm_head.weight"), arrays.get("wte.weight")
    if head is not None and np.array_equal(head, wte):
        del arrays["lm_head.weight"]
    ignored = {f"h.{i}.attn.bias" for i in range(config.n_layer)} | {"position_ids"}
    shapes = gpt1.parameter_shapes(config, tied="lm_head.weight" not in arrays)
    return config, _params(folder, arrays, shapes, ignored)


def _gpt1_name(name):
    name = name.removeprefix("transformer.")
    return {"tokens_embed.weight": "wte.weight", "positions_embed.weight": "wpe.weight"}.get(
        name, name
    )


def _read_character_bpe(folder):
    if (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        fields, tokens = _tokenizer_json(path, "BPE", "BertNormalizer", "BertPreTokenizer")
        model, normal = fields["model"], fields["normalizer"]
        found = [model.get(key) for key in ("end_of_word_suffix", "unk_token")]
        found += [normal.get(key, True) for key in ("lowercase", "clean_text")]
        if found != [gpt1.LAST, gpt1.UNKNOWN, True, True]:
            raise CheckpointError(
                f"{path}: GPT-1's words are in small letters, end in {gpt1.LAST} and are "
                f"{gpt1.UNKNOWN} where unknown; these are {found!r:.200}"
            )
        return _character_bpe(path, tokens, model.get("merges"))
    path = folder / "vocab.json"
    if not (path.is_file() and (folder / "merges.txt").is_file()):
        raise CheckpointError(f"{folder} has no vocabulary: put vocab.json and merges.txt there")
    ids, merges = vocabulary.read_pair(path, folder / "merges.txt")
    return _character_bpe(path, ids, merges)


def _character_bpe(path, tokens, merges):
    try:
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]
        return gpt1.CharacterBPE(tokens, pairs)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not a GPT-1's vocabulary: {error!s:.300}") from None
