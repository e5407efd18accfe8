"""Folders of models whose vocabularies are laid out and settled in the ways that people have them.

The golden script and the tests both make them here, so vocabulary.json holds no files, only what
transformers made of them. No rule of a vocabulary occurs in one folder alone.
"""

import json
from pathlib import Path

from golden import models

from numpygpt.bpe import Tokenizer
from numpygpt.formats import safetensors
from numpygpt.model import Config

TEXT = (
    "the moth met the otter there; the otter then went to the weir with the moth. A lamp, a boat, "
    "and nobody else: it rained on the other shore, and the mother of all otters said so again."
)
LEARNED = Tokenizer.train(TEXT, 290, special="<|endoftext|>")
MERGES = LEARNED.merges
BASE = LEARNED.tokens[:-1]  # 289 tokens without a special one
END = "<|endoftext|>"
TEXTS = [
    "the otter then",
    " the moth",
    "",
    "The weir's otter, isn't it?\n\n  two  spaces \t",
    "naïve 港 🦦 1234",
    f"the moth{END}the otter{END}{END} then",
    "<q>the moth<a> the otter</s>",
    "x <q>  <a>\n<q> the[PAD][PAD]then",
    "the mothword otterwordword wordy a-word",
    "::stop::the ::stop:: <q><q>x<q>y",
    f"  {END}\n the </s> <pad> end",
    "<q",
    "\u00a0<a>\u2003<q>",
]


def added(i, content, **flags):
    return {
        "id": i,
        "content": content,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
        **flags,
    }


def pair(*special, **files):
    """vocab.json with special tokens behind the learned ones, merges.txt, and what is beside."""
    vocab = {token: i for i, token in enumerate([*BASE, *special])}
    lines = "".join(f"{left} {right}\n" for left, right in MERGES)
    return {"vocab": vocab, "merges.txt": "#version: 0.2\n" + lines, **files}


def whole(*tokens, pre=None, post=None, model=None, **files):
    """tokenizer.json and, so that transformers takes it as it stands, the class that does."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = True
    fields = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(tokens),
        "normalizer": None,
        "pre_tokenizer": level | (pre or {}),
        "post_processor": post,
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
            "vocab": {token: i for i, token in enumerate(BASE)},
            "merges": [list(pair) for pair in MERGES],
            **(model or {}),
        },
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **files.pop("tokenizer_config", {})}
    return {"tokenizer": fields, "tokenizer_config": settings, **files}


def template(token, i):
    return {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": token, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]}},
    }


DECODER = {
    "289": added(0, END),
    "290": added(0, "<q>", lstrip=True),
    "291": added(0, "<a>", rstrip=True),
    "292": added(0, "word", single_word=True, special=False, normalized=True),
    "293": added(0, "::stop::", lstrip=True, rstrip=True),
}
for entry in DECODER.values():
    del entry["id"]

# name -> rows of the embedding, eos_token_id and bos_token_id of config.json, files
FOLDERS = {
    "bare": (290, 289, 289, pair(END)),
    "another end token": (
        290, 289, 289,
        pair("</s>", tokenizer_config={
            "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}),
    ),
    "added_tokens.json": (
        293, 291, 289,
        pair(END, added_tokens={"<q>": 290, "</s>": 291, "word": 292},
             special_tokens_map={"eos_token": "</s>", "bos_token": END}),
    ),
    "a map of words": (
        292, 290, 289,
        pair(END, "word", "::stop::", special_tokens_map={
            "eos_token": {"content": "word", "lstrip": True, "rstrip": False, "normalized": False,
                          "single_word": False},
            "additional_special_tokens": ["::stop::"]}),
    ),
    "decoder with flags": (
        294, 289, 289, pair(END, tokenizer_config={"added_tokens_decoder": DECODER}),
    ),
    "prefix space": (
        291, 289, 289,
        pair(END, tokenizer_config={"add_prefix_space": True,
                                    "additional_special_tokens": ["<q>"]}),
    ),
    "begins with bos": (
        292, 291, 290,
        pair(END, "<s>", "</s>", tokenizer_config={
            "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}),
    ),
    "two ends": (
        292, [290, 289], 289,
        pair(END, "</s>", "<q>", tokenizer_config={"additional_special_tokens": ["<q>"]},
             generation_config={"eos_token_id": [290, 291]}),
    ),
    "null roles": (
        291, 289, None,
        pair(END, "<pad>", tokenizer_config={
            "bos_token": None, "eos_token": END, "unk_token": None, "pad_token": "<pad>"}),
    ),
    "a role without an id": (
        291, 289, 289, pair(END, tokenizer_config={"pad_token": "[PAD]"}),
    ),
    "nobody declares <pad>": (292, 289, 289, pair(END, "<pad>", "<q>")),
    "not resized": (
        290, 289, 289,
        pair(END, added_tokens={"[PAD]": 290}, tokenizer_config={"pad_token": "[PAD]"}),
    ),
    "padded": (320, 289, 289, pair(END)),
    "tokenizer.json": (290, 289, 289, whole(added(289, END))),
    "added words": (
        294, 289, 289,
        whole(added(289, END), added(290, "word", special=False), added(291, " moth"),
              added(292, "<q>", special=False, normalized=True), added(293, "q>", rstrip=True)),
    ),
    "merges as strings": (
        291, 290, 289,
        whole(added(289, END), added(290, "</s>"),
              model={"merges": [" ".join(pair) for pair in MERGES], "end_of_word_suffix": "",
                     "continuing_subword_prefix": ""},
              tokenizer_config={"eos_token": "</s>", "bos_token": END}),
    ),
    "no words": (
        291, 289, 289,
        whole(added(289, END), added(290, "<q>", lstrip=True), pre={"use_regex": False},
              model={"vocab": {t: i for i, t in enumerate([*BASE[:288], "eĠ"])},
                     "merges": [["e", "Ġ"], *map(list, MERGES[:-1])]}),
    ),
    "one file with prefix space": (
        290, 289, 289, whole(added(289, END), pre={"add_prefix_space": True}),
    ),
    "template": (
        291, 289, 290, whole(added(289, END), added(290, "<s>"), post=template("<s>", 290)),
    ),
    "sequence of processors": (
        291, 289, 290,
        whole(added(289, END), added(290, "<q>", rstrip=True), post={
            "type": "Sequence",
            "processors": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False,
                            "use_regex": True}, template(END, 289)]}),
    ),
}  # fmt: skip


def write(name, folder: Path):
    """The folder of that name; -> its configuration."""
    rows, end, begin, files = FOLDERS[name]
    folder.mkdir(parents=True)
    for file, content in files.items():
        file = file if file.endswith(".txt") else f"{file}.json"
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / file).write_text(text, encoding="utf-8", newline="\n")
    config = Config(rows, 40, 6, 3, 1, 10)
    fields = {"model_type": "gpt2", "vocab_size": rows, "n_positions": 40, "n_embd": 6, "n_head": 3}
    fields |= {"n_layer": 1, "n_inner": 10, "eos_token_id": end, "bos_token_id": begin}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    params = models.weights(config, rows, models.SMALL_SCALES)
    arrays = {f"transformer.{name}": array for name, array in params.items()}
    safetensors.write(folder / "model.safetensors", arrays, {"format": "pt"})
    return config
