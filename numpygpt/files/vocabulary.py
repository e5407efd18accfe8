"""The vocabulary in a folder, in every layout in which people keep one; and back into files.

    tokenizer.json                                     all in one file; where there is none,
    vocab.json, merges.txt                             Hugging Face's two, or
    encoder.json, vocab.bpe                            OpenAI's
    tokenizer_config.json, special_tokens_map.json,    beside them: tokens that were added, what
    added_tokens.json                                  they are for, what stands before a text
    config.json, generation_config.json                the ids that end and begin, as the model says

The files say which tokens are special and what ends a text; no spelling is taken for anything. What
a file says is done or refused by name and value, and what makes no difference to any id is listed
here as such. The ids are those of transformers with its default settings; where it leaves out what
tokenizer.json says, they are those of the package tokenizers, which reads that file as it stands.
"""

import dataclasses
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from numpygpt.bpe import END_OF_TEXT, Special, Tokenizer, parse_merges
from numpygpt.files import text
from numpygpt.files.atomic import writing
from numpygpt.formats import CheckpointError

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
OFFICIAL = range(50257, 50304 + 1)  # rows of a model with GPT-2's own vocabulary, and with padding
# Vocabularies of other kinds: the English one is not put in their place.
FOREIGN = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.txt", "dict.txt")
FOREIGN += ("tekken.json", "bpe.codes", "vocab.tiktoken", "tokenizer.tiktoken", "qwen.tiktoken")

# What GPT2Tokenizer takes these for where no file says otherwise.
GPT2_ROLES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
LISTS = ("additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens")

# Name -> the values that mean what GPT-2 does. A name that is not here, or another value, is
# refused; ANY is what no id depends on, or what is looked at by itself.
ANY = object()
WHOLE = {
    "version": ANY,
    "truncation": (None,),
    "padding": (None,),
    "normalizer": (None,),
    "added_tokens": ANY,
    "pre_tokenizer": ANY,
    "post_processor": ANY,
    "decoder": ANY,
    "model": ANY,
}
MODEL = {
    "type": ("BPE",),
    "dropout": ANY,
    "unk_token": ANY,  # never needed: every byte has a token
    "fuse_unk": ANY,
    "byte_fallback": ANY,
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "ignore_merges": (None, False),
    "vocab": ANY,
    "merges": ANY,
}
BYTE_LEVEL = {
    "type": ("ByteLevel",),
    "add_prefix_space": (False, True),
    "use_regex": (False, True),
    "trim_offsets": ANY,
}
ADDED = {
    "id": ANY,
    "content": ANY,
    "__type": ("AddedToken",),
    **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), (False, True)),
}
SETTINGS = {  # of tokenizer_config.json, where many names are for other purposes
    "tokenizer_class": (
        None,
        *("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"),
    ),
    "add_prefix_space": (None, False, True),
    "add_bos_token": (None, False, True),
    "add_eos_token": (None, False),
    "split_special_tokens": (None, False),
    "do_lower_case": (None, False),
}


@dataclass
class Found:
    """What the files say, before it is a Tokenizer."""

    source: str  # the files, for messages
    ids: dict  # spelling -> id
    merges: list
    rules: dict = field(default_factory=dict)  # spelling -> Special
    before: list = field(default_factory=list)  # spellings
    prefix_space: bool = False
    words: bool = True


def read(folder: str | os.PathLike, rows: int | None = None) -> Tokenizer:
    """The tokenizer of a folder.

    rows: how many the model's embedding has; a folder without any vocabulary then has the official
    one of 50,257 tokens, if that fits. What is inferred or ignored is said in a warning.

    Raises CheckpointError for files that are damaged, contradict each other, or ask for what
    numpygpt does not do.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    if (folder / "tokenizer.json").is_file():
        found = _read_whole(folder / "tokenizer.json", settings)
    else:
        found = _read_pair(folder, rows)
        found.prefix_space = settings.get("add_prefix_space") is True
    declared = _declare(found, folder, settings)
    if not (folder / "tokenizer.json").is_file() and settings.get("add_bos_token"):
        if declared.get("bos_token") not in found.ids:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'} says add_bos_token = true, but names no "
                "bos_token that is in the vocabulary: add that to it"
            )
        found.before = [declared["bos_token"]]
    tokens = sorted(found.ids, key=found.ids.get)
    roles, ends = _ends_and_begins(folder, tokens, found.rules, declared)
    try:
        tokenizer = Tokenizer(
            tokens,
            found.merges,
            found.rules.values(),
            roles=roles,
            ends=ends,
            before=[found.ids[token] for token in found.before],
            prefix_space=found.prefix_space,
            words=found.words,
        )
    except ValueError as error:
        raise CheckpointError(f"{found.source} does not fit together: {error!s:.1000}") from None
    if tokenizer.unmade:
        warnings.warn(
            f"{found.source} holds {_listed(tokenizer.unmade)}, which no merge makes and no file "
            "calls special: no text becomes that",
            stacklevel=2,
        )
    return tokenizer


# ---- tokenizer.json ------------------------------------------------------------------------------


def _read_whole(path, settings):
    fields = text.read_json(path)
    _allow(path, "", fields, WHOLE)
    model = fields.get("model")
    _allow(path, "model", model, MODEL)
    if model.get("dropout"):
        warnings.warn(
            f"{path} says model.dropout = {_short(model['dropout'])}, which is for training a "
            "tokenizer's users: it is ignored, so that a text has the same ids every time",
            stacklevel=3,
        )
    found = Found(str(path), _vocabulary(path, model.get("vocab")), _merges(path, model))
    split = fields.get("pre_tokenizer")
    _allow(path, "pre_tokenizer", split, BYTE_LEVEL)
    found.prefix_space, found.words = split.get("add_prefix_space"), split.get("use_regex", True)
    if found.prefix_space is None:
        raise CheckpointError(f"{path} lacks pre_tokenizer.add_prefix_space: get it again")
    theirs = settings.get("add_prefix_space")
    if theirs not in (None, found.prefix_space):
        raise CheckpointError(
            f"{path} says add_prefix_space = {_short(found.prefix_space)}, tokenizer_config.json "
            f"{_short(theirs)}: correct the one that is wrong"
        )
    decoder = fields.get("decoder")
    if decoder is not None:
        _allow(path, "decoder", decoder, BYTE_LEVEL)
    added = fields.get("added_tokens") or []
    if not isinstance(added, list):
        raise _refused(path, "added_tokens", added)
    rules = [_added(path, "added_tokens", token) for token in added]
    _add(found, path, [_get(token, "id") for token in added], rules)
    found.before = _before(path, "post_processor", fields.get("post_processor"), found)
    bos = settings.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if settings.get("add_bos_token") and found.before != [bos]:
        raise CheckpointError(
            f"{path} puts {_listed(found.before) or 'nothing'} before a text (post_processor), but "
            "tokenizer_config.json says add_bos_token = true: correct the one that is wrong"
        )
    return found


def _vocabulary(path, vocab):
    """Spelling -> id, in the order of the ids, which are 0, 1, 2, ..."""
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path} is not a JSON object of tokens and their ids: get it again")
    tokens = [None] * len(vocab)
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < len(tokens) or tokens[i] is not None:
            raise CheckpointError(
                f"{path}: the id {_short(i)} of {token!r:.99} is not one of 0 to "
                f"{len(tokens) - 1}, or is given twice: {_what_to_do(vocab)}"
            )
        tokens[i] = token
    return {token: i for i, token in enumerate(tokens)}


def _what_to_do(vocab):
    """About ids that are not 0, 1, 2, ...: fill a hole among them, if that is all."""
    ids = set(vocab.values()) if all(type(i) is int for i in vocab.values()) else set()
    hole = next((i for i in range(len(ids)) if i not in ids), None)
    if len(ids) < len(vocab) or hole is None or min(ids) < 0:
        return "get it again"
    return f'no token has the id {hole}; if that is on purpose, add one, "<unused{hole}>": {hole}'


def _merges(path, model):
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise CheckpointError(f"{path} lacks model.merges: get it again")
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else m for m in merges]
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, (list, tuple)) or [type(part) for part in pair] != [str, str]:
            raise CheckpointError(f"{path}: merge {number} is not a pair of symbols: get it again")
    return [tuple(pair) for pair in pairs]


def _before(path, name, processor, found):
    """What a post-processor puts before every text; one that puts something after is refused."""
    if processor is None:
        return []
    kind = processor.get("type") if isinstance(processor, dict) else processor
    if kind == "ByteLevel":  # trims offsets, changes no id
        _allow(path, name, processor, BYTE_LEVEL)
        return []
    if kind == "Sequence" and isinstance(processor.get("processors"), list):
        parts = [_before(path, name, part, found) for part in processor["processors"]]
        return [token for part in reversed(parts) for token in part]
    if kind != "TemplateProcessing":
        raise _refused(path, name, processor if not isinstance(kind, str) else kind)
    pieces = processor.get("single")
    names = [next(iter(p), None) if isinstance(p, dict) else None for p in pieces or []]
    if names[-1:] != ["Sequence"] or any(n != "SpecialToken" for n in names[:-1]):
        raise _refused(path, f"{name} TemplateProcessing.single", pieces)
    before = [_get(piece, "SpecialToken", "id") for piece in pieces[:-1]]
    tokens = []
    for key in before:
        ids = _get(processor, "special_tokens", key, "ids")
        spelled = [token for i in ids or [] for token in found.ids if found.ids[token] == i]
        if not ids or len(spelled) != len(ids):
            raise _refused(path, f"{name} TemplateProcessing.special_tokens", ids)
        tokens += spelled
    return tokens


def _get(fields, *names):
    for name in names:
        fields = fields.get(name) if isinstance(fields, dict) else None
    return fields


# ---- two files -----------------------------------------------------------------------------------


def read_pair(vocab: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(spelling -> id in the order of the ids, merges) of two files. Raises CheckpointError."""
    try:
        pairs = parse_merges(text.read(merges), str(merges))
    except ValueError as error:
        raise CheckpointError(f"{error}: get it again") from None
    return _vocabulary(vocab, text.read_json(vocab)), pairs


def _read_pair(folder, rows):
    there = [name for pair in PAIRS for name in pair if (folder / name).exists()]
    for names in PAIRS:
        if set(names) <= set(there):
            vocab, merges = (folder / name for name in names)
            return Found(f"{vocab} with {names[1]}", *read_pair(vocab, merges))
    foreign = [name for name in FOREIGN if (folder / name).exists()]
    if there or foreign:
        raise CheckpointError(
            f"{folder} has no vocabulary that numpygpt reads, but {' and '.join(there + foreign)}: "
            "byte-level BPE needs tokenizer.json, vocab.json with merges.txt, or encoder.json with "
            "vocab.bpe"
        )
    if rows not in OFFICIAL:
        size = "" if rows is None else f", and a model of {rows:,} tokens is not trained with the "
        size += "" if rows is None else f"official one of {OFFICIAL[0]:,}"
        raise CheckpointError(
            f"{folder} has no vocabulary{size}: put its vocab.json and merges.txt there"
        )
    warnings.warn(
        f"{folder} has no vocabulary: the official one of {OFFICIAL[0]:,} tokens is taken, which "
        f"fits a model of {rows:,} rows",
        stacklevel=4,
    )
    official = Tokenizer.gpt2()
    ids = {token: i for i, token in enumerate(official.tokens)}
    return Found("the official vocabulary", ids, official.merges)


# ---- the files beside them -----------------------------------------------------------------------


def _read_settings(folder):
    path = folder / "tokenizer_config.json"
    settings = _optional(path)
    _allow(path, "", {k: v for k, v in settings.items() if k in SETTINGS}, SETTINGS)
    return settings


def _optional(path):
    return text.read_json(path) if path.exists() else {}


def _declare(found, folder, settings):
    """Add to `found` every token that the files beside it name; -> {"eos_token": spelling, ...}.

    A role that a file leaves empty is there, as None.
    """
    sources = {folder / "tokenizer_config.json": settings}
    if "added_tokens_decoder" not in settings:  # files of transformers before version 4.34
        path = folder / "special_tokens_map.json"
        sources[path] = _optional(path)
    roles, others = {}, []
    for path, fields in sources.items():
        for name, value in fields.items():
            if name.endswith("_token") and type(value) in (str, dict, type(None)):
                roles[name] = value and _added(path, name, value)
            elif name in LISTS and value:
                if not isinstance(value, (list, dict)):
                    raise _refused(path, name, value)
                values = value.values() if isinstance(value, dict) else value
                others += [_added(path, name, token) for token in values]
    special = [rule for rule in [*roles.values(), *others] if rule]
    if "added_tokens_decoder" in settings:
        _add_decoder(found, folder / "tokenizer_config.json", settings["added_tokens_decoder"])
    else:
        path, texts = folder / "added_tokens.json", {rule.text for rule in special}
        added = _optional(path).items()
        rules = [
            Special(token, late=token not in texts, hidden=token in texts) for token, _ in added
        ]
        _add(found, path, [i for _, i in added], rules)
    if settings.get("tokenizer_class") in (None, "GPT2Tokenizer", "GPT2TokenizerFast"):
        undeclared = {END_OF_TEXT} if GPT2_ROLES.keys() - roles.keys() else set()
        special += map(Special, undeclared & found.ids.keys())
    for rule in special:
        found.ids.setdefault(rule.text, len(found.ids))  # transformers gives a new one the next id
        known = found.rules.get(rule.text, rule)
        found.rules[rule.text] = dataclasses.replace(known, hidden=True)
    return {name: rule and rule.text for name, rule in roles.items()}


def _add_decoder(found, path, entries):
    if not isinstance(entries, dict) or not all(i.isdecimal() and len(i) < 10 for i in entries):
        raise _refused(path, "added_tokens_decoder", entries)
    rules = [_added(path, "added_tokens_decoder", entry) for entry in entries.values()]
    _add(found, path, map(int, entries), rules)


def _added(path, name, value):
    """A `Special` from a spelling or the fields of an AddedToken."""
    if isinstance(value, str):
        return Special(value)
    _allow(path, name, value, ADDED)
    token = value.get("content")
    if not isinstance(token, str) or not token:
        raise _refused(path, f"{name}.content", token)
    hidden = value.get("special", not name.startswith("added_tokens"))
    return Special(
        token,
        lstrip=value.get("lstrip", False),
        rstrip=value.get("rstrip", False),
        single_word=value.get("single_word", False),
        late=value.get("normalized", not hidden),
        hidden=hidden,
    )


def _add(found, path, ids, rules):
    """Tokens with the ids that a file gives them: their own in the vocabulary, or the next ones."""
    pairs = list(zip(ids, rules, strict=True))
    for i, rule in pairs:
        if type(i) is not int:
            raise CheckpointError(
                f"{path} gives {rule.text!r:.99} the id {_short(i)}: get it again"
            )
    for i, rule in sorted(pairs, key=lambda pair: pair[0]):
        expected = found.ids.setdefault(rule.text, len(found.ids))
        if i != expected:
            raise CheckpointError(
                f"{path} gives {rule.text!r:.99} the id {i}, but it has {expected} in the order of "
                f"{found.source}: get both again"
            )
        found.rules[rule.text] = rule


# ---- what ends and begins ------------------------------------------------------------------------


def _ends_and_begins(folder, tokens, rules, declared):
    """-> roles, and the ids after which the model has no more to say (None: its end token's).

    The tokenizer's files say what ends a document; generation_config.json, then config.json, what
    ends that which the model writes. Each speaks for the other where that is silent.
    """
    model, generation = (_optional(folder / f"{n}.json") for n in ("config", "generation_config"))
    roles = {name: token for name, token in declared.items() if token is not None}
    for name in ("eos_token", "bos_token"):
        ids = [i for i in named_ids(model, f"{name}_id") if i < len(tokens)]
        if declared.get(name) is None and ids:
            roles[name] = tokens[ids[0]]
        elif name not in declared and f"{name}_id" not in model and END_OF_TEXT in rules:
            roles[name] = END_OF_TEXT
    ends = named_ids(generation, "eos_token_id") or named_ids(model, "eos_token_id")
    if unknown := [i for i in ends if i >= len(tokens)]:
        warnings.warn(
            f"{folder / 'config.json'} says that the model ends with the id {unknown[0]}, but the "
            f"vocabulary has ids 0 to {len(tokens) - 1}",
            stacklevel=3,
        )
    return roles, ends if ends or "eos_token_id" in model else None


def named_ids(fields: dict, name: str) -> list[int]:
    """The ids under a name of a configuration, which has one, a list of them, or null."""
    value = fields.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise CheckpointError(f"the model's configuration says {name} = {_short(value)}, not an id")
    return [i for i in ids if i >= 0]  # -1 stands for none in some files


def named_by_configuration(folder: str | os.PathLike) -> list[int]:
    """All the ids that a model's configuration names: what ends, begins, pads, ..."""
    found = [_optional(Path(folder) / f"{n}.json") for n in ("config", "generation_config")]
    names = {name for fields in found for name in fields if name.endswith("_token_id")}
    return sorted({i for fields in found for name in names for i in named_ids(fields, name)})


# ---- what is allowed -----------------------------------------------------------------------------


def _allow(path, prefix, fields, known):
    """Raises CheckpointError for a name that is not known, or a value that is not allowed."""
    if not isinstance(fields, dict):
        raise _refused(path, prefix, fields)
    for name in sorted(fields, key=lambda name: name != "type"):  # the type says most
        value, allowed = fields[name], known.get(name, ())
        if allowed is not ANY and not any(type(value) is type(a) and value == a for a in allowed):
            raise _refused(path, f"{prefix}.{name}" if prefix else name, value)


def _refused(path, name, value):
    what = "the ids would not be those the model was trained with"
    if name in ("truncation", "padding"):
        what = "put null there to have texts encoded whole, which is what transformers does"
    return CheckpointError(
        f"{path} says {name} = {_short(value)}, which numpygpt's tokenizer does not do: {what}"
    )


def _short(value):
    shown = json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= 99 else f"{shown[:96]}..."


def _listed(tokens):
    more = f" and {len(tokens) - 5} more" if len(tokens) > 5 else ""
    return ", ".join(f"{token!r:.99}" for token in tokens[:5]) + more


# ---- writing -------------------------------------------------------------------------------------


def files(tokenizer: Tokenizer) -> list[str]:
    """The names of the files that `write` writes, in their order."""
    whole = ["tokenizer.json", "tokenizer_config.json"]
    return (
        whole
        if _needs_one_file(tokenizer)
        else ["tokenizer_config.json", "vocab.json", "merges.txt"]
    )


def _needs_one_file(tokenizer):
    """Whether only tokenizer.json can say what this one does."""
    begins = [] if tokenizer.bos not in tokenizer.special.values() else [tokenizer.bos]
    return not tokenizer.words or list(tokenizer.before) not in ([], begins)


def write(tokenizer: Tokenizer, folder: str | os.PathLike, n_ctx: int | None = None) -> None:
    """Write a vocabulary that `read` and transformers (4 and 5) read to the same ids.

    vocab.json and merges.txt, and in tokenizer_config.json the special tokens, what they are for,
    the space and the token before a text; or tokenizer.json for what those cannot say. n_ctx: how
    many tokens the model reads. No file is ever half there, and merges.txt comes last.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(tokenizer.tokens)}
    merges = "".join(f"{left} {right}\n" for left, right in tokenizer.merges)
    contents = {
        "tokenizer_config.json": lambda: _dumps(_written_settings(tokenizer, n_ctx)),
        "vocab.json": lambda: json.dumps(vocab, ensure_ascii=False),
        "merges.txt": lambda: "#version: 0.2\n" + merges,
        "tokenizer.json": lambda: _dumps(_written_whole(tokenizer, vocab)),
    }
    for name in files(tokenizer):
        with writing(folder / name) as file:
            file.write(contents[name]())


def _dumps(fields):
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def _written_settings(tokenizer, n_ctx):
    roles = {name: t for name, t in tokenizer.roles.items() if t in tokenizer.special}
    fields = {
        "tokenizer_class": "GPT2Tokenizer",
        "model_max_length": n_ctx,
        "add_prefix_space": tokenizer.prefix_space,
        "clean_up_tokenization_spaces": False,  # transformers used to change the spaces it decodes
        **dict.fromkeys(GPT2_ROLES),  # null, so that transformers does not add them by itself
        **roles,
        "added_tokens_decoder": {
            str(i): _written_rule(tokenizer.rules[token]) for token, i in tokenizer.special.items()
        },
    }
    if n_ctx is None:
        del fields["model_max_length"]
    if _needs_one_file(tokenizer):
        fields["tokenizer_class"] = (
            "PreTrainedTokenizerFast"  # GPT2Tokenizer reads half of the file
        )
    elif tokenizer.before:
        fields["add_bos_token"] = True
    return fields


def _written_rule(rule):
    return {
        "content": rule.text,
        "lstrip": rule.lstrip,
        "rstrip": rule.rstrip,
        "single_word": rule.single_word,
        "normalized": rule.late,
        "special": rule.hidden,
    }


def _written_whole(tokenizer, vocab):
    space = {"add_prefix_space": tokenizer.prefix_space, "trim_offsets": True}
    level = {"type": "ByteLevel", **space, "use_regex": tokenizer.words}
    before = [(tokenizer.tokens[i], i) for i in tokenizer.before]
    text_itself = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}} for token, _ in before] + [text_itself]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, **_written_rule(tokenizer.rules[token])}
            for token, i in sorted(tokenizer.special.items(), key=lambda pair: pair[1])
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]} for token, i in before
            },
        },
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{left} {right}" for left, right in tokenizer.merges],  # any version's
        },
    }
