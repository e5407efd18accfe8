"""Vocabularies in files: every layout, what beside it says, damage, and back into files."""

import hashlib
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from golden import vocabularies

import numpygpt
from numpygpt import completion, data
from numpygpt.bpe import END_OF_TEXT, Tokenizer, byte_symbols
from numpygpt.files import atomic, vocabulary
from numpygpt.formats import CheckpointError
from numpygpt.model import as_dtype

GOLDEN = Path(__file__).parent / "golden"
FOREIGN = json.loads((GOLDEN / "bpe_foreign.json").read_text(encoding="utf-8"))


def small(*merges, special=()):
    pairs = [tuple(merge.split(" ")) for merge in merges]
    return Tokenizer([*byte_symbols().values(), *map("".join, pairs), *special], pairs, special)


# ---- two files -----------------------------------------------------------------------------------


def test_foreign_vocabulary_has_the_ids_of_tokenizers(tmp_path):
    with pytest.warns(UserWarning, match="holds '<s>', which no merge makes and no file calls spe"):
        tokenizer = vocabulary.read(foreign_folder(tmp_path))
    assert tokenizer.special == {END_OF_TEXT: 1}
    assert FOREIGN["vocab"]["<s>"] == 0 and tokenizer.eot == 1  # here they come first
    for text, ids in zip(FOREIGN["texts"], FOREIGN["ids"], strict=True):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text


def foreign_folder(path, vocab="vocab.json", merges="merges.txt"):
    (path / vocab).write_text(json.dumps(FOREIGN["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, FOREIGN["merges"])]
    (path / merges).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_written_files_are_read_back(tmp_path):
    learned = Tokenizer.train("one fish two fish, é", n_vocab=264)
    for number, tokenizer in enumerate([Tokenizer.gpt2(), learned, small(special=["<a>", "[b]"])]):
        folder = tmp_path / "new" / str(number)
        vocabulary.write(tokenizer, folder)
        again = vocabulary.read(folder)
        assert again.tokens == tokenizer.tokens and again.merges == tokenizer.merges
        assert again.special == tokenizer.special
        assert sorted(path.name for path in folder.iterdir()) == (
            ["merges.txt", "tokenizer_config.json", "vocab.json"]
        )
        assert (folder / "merges.txt").read_bytes().startswith(b"#version: 0.2\n")


def test_both_pairs_of_names_and_both_line_ends_are_read(tmp_path):
    foreign_folder(tmp_path, "encoder.json", "vocab.bpe")
    path = tmp_path / "vocab.bpe"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.warns(UserWarning, match="no file calls special"):
        tokenizer = vocabulary.read(str(tmp_path))
    assert tokenizer.encode(FOREIGN["texts"][3]) == FOREIGN["ids"][3]


def test_an_interrupted_write_leaves_the_old_files(tmp_path, monkeypatch):
    vocabulary.write(small("a b"), tmp_path)

    calls = []

    def interrupted(source, target):
        calls.append("replace")
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: calls.append("fsync"))
    monkeypatch.setattr(atomic.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vocabulary.write(small("c d"), tmp_path)
    assert calls == ["fsync", "replace"]
    assert vocabulary.read(tmp_path).merges == [("a", "b")]


def vocab_with(**changes):
    vocab = {**FOREIGN["vocab"], **changes}
    return json.dumps({token: i for token, i in vocab.items() if i != "gone"})


MERGES = "\n".join(["#version: 0.2", *map(" ".join, FOREIGN["merges"])]) + "\n"
DAMAGED = {
    "empty vocab": ("vocab.json", "", "is not a JSON file"),
    "cut vocab": ("vocab.json", vocab_with()[:-30], "is not a JSON file"),
    "zeros": ("vocab.json", "\0" * 500, "is not a JSON file"),
    "deep": ("vocab.json", "[" * 100_000, "is not a JSON file"),
    "list": ("vocab.json", '["a", "b"]', "should hold a JSON object"),
    "empty list": ("vocab.json", "[]", "should hold a JSON object"),
    "number": ("vocab.json", "12", "should hold a JSON object"),
    "no tokens": ("vocab.json", "{}", "lacks the byte symbols"),
    "id twice": ("vocab.json", vocab_with(a=1), "or is given twice"),
    "gap": (
        "vocab.json",
        vocab_with(zz=601),
        'not one of 0 to 600, .* no token has the id 600; .* add one, "<unused600>": 600',
    ),
    "negative id": ("vocab.json", vocab_with(a=-1), "id -1 of 'a'"),
    "float id": ("vocab.json", vocab_with(a=3.0), "id 3.0 of 'a'"),
    "true id": ("vocab.json", vocab_with(a=True), "id true of 'a'"),
    "huge id": ("vocab.json", vocab_with(a="x").replace('"x"', "9" * 5000), "JSON file|not one of"),
    "token twice": (
        "vocab.json",
        vocab_with()[:-1] + ', "a": 600}',
        "the same key twice",
    ),
    "unmade token": ("vocab.json", vocab_with(zz=600), r"'zz' \(id 600\) is neither a byte"),
    "surrogate": ("vocab.json", vocab_with(**{"<\ud800>": 600}), "does not fit together"),
    "cut merges": ("merges.txt", MERGES[: MERGES.rindex(" ")], "line 343: expected two"),
    "fewer merges": ("merges.txt", "\n".join(MERGES.split("\n")[:-9]), "are merges missing"),
    "no merges": ("merges.txt", "", "line 1: expected two symbols"),
    "three symbols": ("merges.txt", MERGES + "a b c\n", "line 344: expected two .*'a b c'"),
    "blank line": ("merges.txt", "#version: 0.2\n\n" + MERGES[14:], "line 2: expected two"),
    "NUL": ("merges.txt", MERGES + "a \0\n", r"Merge 343 .* joins '\\x00'"),
    "unknown symbol": ("merges.txt", MERGES + "a 日\n", "Merge 343 .* joins '日'"),
    "unknown result": ("merges.txt", MERGES + "z z\n", "Merge 343 makes 'zz'"),
    "merge twice": ("merges.txt", MERGES + MERGES.split("\n")[1] + "\n", "repeats an earlier one"),
    "backwards": (
        "merges.txt",
        "\n".join(["#version: 0.2", *MERGES.split("\n")[-2:0:-1]]),
        "nor made by an earlier merge",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_are_refused(name, tmp_path):
    file, content, sentence = DAMAGED[name]
    (foreign_folder(tmp_path) / file).write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=sentence) as caught:
        vocabulary.read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_hole_filled_as_the_refusal_says_leaves_all_other_ids(tmp_path):
    ids = {token: i + (i > 570) for token, i in FOREIGN["vocab"].items()}
    path = foreign_folder(tmp_path) / "vocab.json"
    path.write_text(json.dumps(ids), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        vocabulary.read(tmp_path)
    entry = re.search(r'"<unused571>": 571$', str(caught.value))[0]
    path.write_text(json.dumps(ids)[:-1] + f", {entry}}}", encoding="utf-8")
    with pytest.warns(UserWarning, match="holds '<s>', '<unused571>', which no merge makes"):
        tokenizer = vocabulary.read(tmp_path)
    for text, expected in zip(FOREIGN["texts"], FOREIGN["ids"], strict=True):
        assert tokenizer.encode(text) == [i + (i > 570) for i in expected]


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_files_that_are_not_utf8_are_refused(file, tmp_path):
    (foreign_folder(tmp_path) / file).write_bytes(b'{"\xff": 0}')
    with pytest.raises(CheckpointError, match=f"{file} is not .*UTF-8"):
        vocabulary.read(tmp_path)


def test_missing_files_are_named(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="has no vocabulary: put its vocab.json"):
            vocabulary.read(folder)
    (foreign_folder(tmp_path) / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match="has no vocabulary that numpygpt reads, but vocab.j"):
        vocabulary.read(tmp_path)


# ---- what transformers makes of twenty vocabularies ----------------------------------------------

EXPECTED = json.loads((GOLDEN / "vocabulary.json").read_text(encoding="utf-8"))
SAYS = {  # what loading a folder warns of
    "nobody declares <pad>": "holds '<pad>', '<q>', which no merge makes and no file calls special",
    "padded": "has 320 rows in its embedding for 290 tokens",
    "begins with bos": "holds '<|endoftext|>', which no merge makes",
    "two ends": "holds '</s>', which no merge makes",
}


def load(name, folder):
    vocabularies.write(name, folder)
    if SAYS.get(name):
        with pytest.warns(UserWarning, match=re.escape(SAYS[name])):
            return numpygpt.load(folder)
    return numpygpt.load(folder)


def ids_of(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an <|endoftext|> that is plain text
        return [tokenizer.encode(text, tokenizer.special) for text in vocabularies.TEXTS]


@pytest.mark.parametrize("name", vocabularies.FOLDERS)
def test_ids_ends_and_logits_are_those_of_transformers(name, tmp_path):
    model, tokenizer = load(name, tmp_path / "model")
    expected = EXPECTED["folders"][name]
    assert ids_of(tokenizer) == expected["ids"]
    ends = expected["ends"]
    assert list(tokenizer.ends) == (ends if isinstance(ends, list) else [ends])
    logits, _ = as_dtype(model, np.float64).forward(expected["ids"][0])
    rows = np.array(expected["logits"])[: len(logits[0, -1][::9])]  # less those of padding
    assert len(rows) > 30
    np.testing.assert_allclose(logits[0, -1][::9], rows, rtol=0, atol=1e-11)
    for i in range(model.config.n_vocab, tokenizer.n_vocab):
        with pytest.raises(ValueError, match=str(i)):
            model.forward([i])


@pytest.mark.parametrize("name", vocabularies.FOLDERS)
def test_what_is_saved_is_what_transformers_read_to_the_same_ids(name, tmp_path):
    model, tokenizer = load(name, tmp_path / "model")
    numpygpt.save(model, tokenizer, tmp_path / "saved")
    files = [
        (tmp_path / "saved" / name).read_bytes() for name in sorted(vocabulary.files(tokenizer))
    ]
    assert hashlib.sha256(b"".join(files)).hexdigest() == EXPECTED["folders"][name]["saved"]
    assert {int(version.split(".")[0]) for version in EXPECTED["versions"]["saved"]} >= {4, 5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said before, of the first folder
        again, read = numpygpt.load(tmp_path / "saved")
    assert again.config == model.config
    assert ids_of(read) == EXPECTED["folders"][name]["ids"]
    for what in ("tokens", "merges", "special", "rules", "ends", "eot", "bos", "before"):
        assert getattr(read, what) == getattr(tokenizer, what), what


def test_a_save_over_a_save_of_another_kind_leaves_one_vocabulary(tmp_path):
    model, tokenizer = load("no words", tmp_path / "model")
    for _ in range(2):
        numpygpt.save(model, tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.json").exists()
    other, plain = load("tokenizer.json", tmp_path / "other")
    with pytest.raises(ValueError, match=r"holds tokenizer.json, which transformers would read"):
        numpygpt.save(other, plain, tmp_path / "saved")


# ---- what is refused, and what is said -----------------------------------------------------------


@pytest.fixture
def one_file(tmp_path):
    """A folder with tokenizer.json, and a function that changes a file in it and reads it."""
    vocabularies.write("tokenizer.json", tmp_path / "model")

    def changed(file="tokenizer", *, at=(), **changes):
        path = tmp_path / "model" / f"{file}.json"
        fields = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        part = fields
        for key in at:
            part = part[key]
        part.update(changes)
        path.write_text(json.dumps(fields), encoding="utf-8")
        return vocabulary.read(tmp_path / "model")

    return changed


LEVEL = {"type": "ByteLevel", "add_prefix_space": False}
TEMPLATE = vocabularies.template("<|endoftext|>", 289)


@pytest.mark.parametrize(
    ("at", "changes", "words"),
    [
        ([], {"truncation": {"max_length": 8}}, ["truncation", "8", "put null there"]),
        ([], {"padding": {"strategy": {"Fixed": 9}}}, ["padding", "Fixed"]),
        ([], {"normalizer": {"type": "NFC"}}, ["normalizer", "NFC"]),
        ([], {"normalizer": {"type": "Lowercase"}}, ["normalizer", "Lowercase"]),
        ([], {"pre_tokenizer": {"type": "Whitespace"}}, ["pre_tokenizer.type", "Whitespace"]),
        ([], {"pre_tokenizer": None}, ["pre_tokenizer = null"]),
        ([], {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [LEVEL]}}, ["Sequence"]),
        ([], {"pre_tokenizer": {**LEVEL, "prepend": "x"}}, ["pre_tokenizer.prepend", "x"]),
        ([], {"pre_tokenizer": {"type": "ByteLevel"}}, ["lacks pre_tokenizer.add_prefix_space"]),
        ([], {"pre_tokenizer": {**LEVEL, "use_regex": 0}}, ["pre_tokenizer.use_regex = 0"]),
        ([], {"decoder": {"type": "WordPiece"}}, ["decoder.type", "WordPiece"]),
        ([], {"post_processor": {"type": "RobertaProcessing"}}, ["post_processor", "RobertaProc"]),
        ([], {"post_processor": TEMPLATE | {"single": TEMPLATE["single"][::-1]}},
         ["post_processor", "TemplateProcessing", "single"]),
        ([], {"post_processor": TEMPLATE | {"single": None}}, ["TemplateProcessing.single"]),
        ([], {"post_processor": TEMPLATE | {"special_tokens": {}}}, ["special_tokens"]),
        ([], {"post_processor": 5}, ["post_processor = 5"]),
        ([], {"encode_special_tokens": True}, ["encode_special_tokens = true"]),
        ([], {"added_tokens": {"a": 1}}, ["added_tokens"]),
        ([], {"added_tokens": [3]}, ["added_tokens = 3"]),
        ([], {"added_tokens": [{"id": 300, "content": "<x>"}]}, ["'<x>' the id 300", "it has 289"]),
        ([], {"added_tokens": [{"id": "1", "content": "<x>"}]}, ["'<x>' the id", '"1"']),
        ([], {"added_tokens": [{"id": 289, "content": ""}]}, ["added_tokens.content"]),
        ([], {"added_tokens": [{"id": 289, "content": "x", "lstrip": 1}]}, ["lstrip = 1"]),
        ([], {"added_tokens": [{"id": 289, "content": "x", "upper": True}]}, ["upper = true"]),
        ([], {"model": []}, ["model"]),
        (["model"], {"type": "Unigram"}, ["model.type", "Unigram"]),
        (["model"], {"ignore_merges": True}, ["model.ignore_merges = true"]),
        (["model"], {"continuing_subword_prefix": "##"}, ["continuing_subword_prefix", "##"]),
        (["model"], {"end_of_word_suffix": "</w>"}, ["end_of_word_suffix", "</w>"]),
        (["model"], {"vocab": [["a", 0]]}, ["is not a JSON object of tokens"]),
        (["model"], {"merges": None}, ["lacks model.merges"]),
        (["model"], {"merges": [["a"]]}, ["merge 1 is not a pair"]),
        (["model"], {"merges": ["a b c"]}, ["merge 1 is not a pair"]),
        (["model"], {"merges": [["a", 1]]}, ["merge 1 is not a pair"]),
        (["model"], {"merges": []}, ["are merges missing?"]),
    ],
)  # fmt: skip
def test_what_tokenizer_json_asks_for_is_refused_by_name_and_value(one_file, at, changes, words):
    with pytest.raises(CheckpointError) as caught:
        one_file(at=at, **changes)
    assert "tokenizer.json" in str(caught.value) and "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, ["tokenizer_class", "LlamaTokenizer"]),
        ({"add_eos_token": True}, ["add_eos_token = true"]),
        ({"split_special_tokens": True}, ["split_special_tokens = true"]),
        ({"do_lower_case": True}, ["do_lower_case = true"]),
        ({"add_prefix_space": True}, ["add_prefix_space = false", "tokenizer_config.json true"]),
        ({"add_prefix_space": "yes"}, ["add_prefix_space", "yes"]),
        ({"add_bos_token": True, "bos_token": "<s>"}, ["puts nothing", "add_bos_token = true"]),
        ({"added_tokens_decoder": {"x": "<s>"}}, ["added_tokens_decoder"]),
        ({"added_tokens_decoder": {"7": "<s>"}}, ["'<s>' the id 7", "it has 290"]),
        ({"added_tokens_decoder": [1]}, ["added_tokens_decoder = [1]"]),
        ({"eos_token": {"content": 5}}, ["eos_token.content = 5"]),
        ({"additional_special_tokens": "<s>"}, ["additional_special_tokens"]),
    ],
)
def test_what_tokenizer_config_asks_for_is_refused_by_name_and_value(one_file, changes, words):
    with pytest.raises(CheckpointError) as caught:
        one_file("tokenizer_config", **changes)
    for word in ["tokenizer", *words]:
        assert word in str(caught.value)


def test_what_makes_no_difference_is_read(one_file):
    tokenizer = one_file(decoder=None, post_processor={"type": "ByteLevel", "trim_offsets": False})
    one_file("tokenizer_config", chat_template="{{ x }}", model_max_length=10**30, errors="ignore")
    again = one_file(at=["model"], unk_token="<|endoftext|>", fuse_unk=True, dropout=None)
    assert again.encode("the moth") == tokenizer.encode("the moth")
    with pytest.warns(UserWarning, match=r"model.dropout = 0.25, .* it is ignored"):
        dropping = one_file(at=["model"], dropout=0.25)
    assert {tuple(dropping.encode("the otter" * 9)) for _ in range(9)} == (
        {tuple(tokenizer.encode("the otter" * 9))}
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("additional_special_tokens", ["<img>"]),
        ("extra_special_tokens", [{"content": "<img>", "lstrip": False}]),
        ("extra_special_tokens", {"image_token": "<img>"}),
        ("model_specific_special_tokens", {"image_token": "<img>"}),
        ("image_token", "<img>"),
    ],
)
def test_a_special_token_under_each_name_that_transformers_has_for_more_of_them(
    one_file, name, value
):
    tokenizer = one_file("tokenizer_config", **{name: value})
    assert tokenizer.encode("the<img>moth", tokenizer.special)[1] == 290  # as transformers 5.24


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt", "tokenizer.model", "tekken.json"])
def test_a_vocabulary_of_another_kind_is_not_taken_for_the_english_one(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n\x07")
    with pytest.raises(CheckpointError, match=f"but {re.escape(name)}: byte-level BPE needs"):
        vocabulary.read(tmp_path, rows=50257)


def test_bos_is_asked_for_but_not_named(tmp_path):
    vocabularies.write("bare", tmp_path / "model")
    settings = {"add_bos_token": True, "bos_token": None}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="says add_bos_token = true, but names no bos_token"):
        vocabulary.read(tmp_path / "model")


def change_config(folder, name="config.json", **fields):
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(content | fields), encoding="utf-8")


def test_rows_that_a_file_names_are_no_padding(tmp_path):
    vocabularies.write("padded", tmp_path / "model")
    change_config(tmp_path / "model", pad_token_id=300)
    with pytest.warns(
        UserWarning, match="names the id 300, .* all 320 rows of the embedding are k"
    ):
        model, tokenizer = numpygpt.load(tmp_path / "model")
    assert (model.config.n_vocab, tokenizer.n_vocab) == (320, 290)
    change_config(tmp_path / "model", pad_token_id=-1)
    change_config(tmp_path / "model", "generation_config.json", eos_token_id=[289, 319])
    with pytest.warns(UserWarning, match="names the id 319|ends with the id 319"):
        model, tokenizer = numpygpt.load(tmp_path / "model")
    assert tokenizer.ends == (289, 319) and model.config.n_vocab == 320


def test_a_configuration_that_contradicts_the_weights_is_refused(tmp_path):
    vocabularies.write("bare", tmp_path / "model")
    warnings.simplefilter("ignore", UserWarning)  # of padding; pytest takes this back afterwards
    for rows in (289, 291, 280):
        change_config(tmp_path / "model", vocab_size=rows)
        with pytest.raises(CheckpointError) as caught:
            numpygpt.load(tmp_path / "model")
        assert str(rows) in str(caught.value) and "290" in str(caught.value)


@pytest.mark.parametrize("value", ["2", 1.5, [2, "x"], {"a": 1}, True])
def test_an_end_that_is_no_id_is_refused(tmp_path, value):
    vocabularies.write("bare", tmp_path / "model")
    change_config(tmp_path / "model", eos_token_id=value)
    with pytest.raises(CheckpointError, match="eos_token_id = .*, not an id"):
        numpygpt.load(tmp_path / "model")


def test_what_ends_where_the_files_are_silent(tmp_path):
    vocabularies.write("bare", tmp_path / "model")

    def read(**fields):
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config = {k: v for k, v in config.items() if not k.endswith("token_id")} | fields
        path.write_text(json.dumps(config), encoding="utf-8")
        return vocabulary.read(tmp_path / "model")

    assert (read().eot, read().ends, read().bos) == (289, (289,), 289)
    assert (read(eos_token_id=None).eot, read(eos_token_id=None).ends) == (None, ())
    newline = vocabularies.LEARNED.tokens.index("Ċ")
    assert (read(eos_token_id=newline).eot, read(eos_token_id=newline).ends) == (
        newline,
        (newline,),
    )
    with pytest.warns(
        UserWarning, match="ends with the id 50256, but the vocabulary has ids 0 to 2"
    ):
        assert read(eos_token_id=50256).ends == (50256,)
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert (read(eos_token_id=newline).eot, read(eos_token_id=newline).ends) == (289, (newline,))


def test_an_end_token_is_named_as_the_refusal_says(tmp_path):
    vocabularies.write("bare", tmp_path / "model")
    change_config(tmp_path / "model", eos_token_id=None, bos_token_id=None)
    tokenizer = vocabulary.read(tmp_path / "model")
    with pytest.raises(ValueError, match="names no end token, .* tokenizer_config.json") as caught:
        data.encode_documents(tokenizer, ["the moth", "the otter"])
    line = re.search(r"as (\{.*\})$", str(caught.value))[1]
    (tmp_path / "model" / "tokenizer_config.json").write_text(line, encoding="utf-8")
    tokenizer = vocabulary.read(tmp_path / "model")
    assert list(data.encode_documents(tokenizer, ["the moth", "the otter"])).count(289) == 3


def always(model, i):
    """The model with a last layer norm and an embedding in which only the id i is ever likely."""
    model.params["ln_f.weight"] = np.zeros_like(model.params["ln_f.weight"])
    model.params["ln_f.bias"] = np.ones_like(model.params["ln_f.bias"])
    model.params["wte.weight"] = np.zeros_like(model.params["wte.weight"])
    model.params["wte.weight"][i] = 1
    return model


@pytest.mark.parametrize(
    ("name", "token", "text"),
    [
        ("two ends", "</s>", ""),  # both of its ends, one of them declared by no tokenizer's file
        ("two ends", "<q>", ""),
        ("two ends", "<|endoftext|>", ""),  # special, so hidden, but not an end here
        ("two ends", "Ġthe", " the the the"),
        ("added words", "word", "wordwordword"),  # added, but a word as others
        ("added words", "<|endoftext|>", ""),
    ],
)
def test_generation_stops_at_the_models_ends_and_shows_neither_them_nor_special_tokens(
    name, token, text, tmp_path
):
    vocabularies.write(name, tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model, tokenizer = numpygpt.load(tmp_path / "model")
    i = tokenizer.tokens.index(token)
    steps = numpygpt.generate(always(model, i), [1], 3, temperature=0, stop=tokenizer.ends)
    assert sum(len(step[0]) for step in steps) == (1 if i in tokenizer.ends else 3)
    texts = numpygpt.complete(model, tokenizer, "the moth", max_new_tokens=3, temperature=0)
    assert list(texts) == [text]


def test_an_empty_prompt_begins_with_the_begin_or_the_end_token(tmp_path):
    for name, first in (("template", [290]), ("begins with bos", [290]), ("bare", [289])):
        vocabularies.write(name, tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model, tokenizer = numpygpt.load(tmp_path / name)
        assert completion.prompt_ids(model, tokenizer, [""], 3) == [first]


def test_an_end_of_text_that_is_no_token_is_said_to_be_text():
    other = small(special=["</s>"])
    with pytest.warns(UserWarning, match=r"<\|endoftext\|> stands in a text, but is not a token"):
        assert len(other.encode("a<|endoftext|>")) == 14


# ---- damage anywhere -----------------------------------------------------------------------------


def damaged(data, rng):
    """A copy with some bytes cut off, changed, doubled or exchanged, or with another JSON value."""
    i, j = sorted(rng.integers(0, len(data), 2))
    other = rng.choice(
        [b"null", b"-1", b"1e999", b"[]", b"{}", b'"\\ud800"', b"9" * 5000, b"[" * 9999]
    )
    return (
        data[:i],
        data[:i] + bytes([rng.integers(256)]) + data[i + 1 :],
        data[:i] + data[i : i + 40] + data[i:],
        data[:i] + data[j:] + data[i:j],
        re.sub(rb"(?<=[:\[, ])[\w\"]+(?=[,}\]])", lambda _: other, data, count=1 + i % 9),
        data.replace(b"[", b"{", 1 + i % 3),
    )[rng.integers(6)]


@pytest.mark.parametrize(
    "name", ["decoder with flags", "sequence of processors", "added_tokens.json"]
)
def test_damaged_files_raise_nothing_but_checkpoint_errors(name, tmp_path):
    vocabularies.write(name, tmp_path / "model")
    rng = np.random.default_rng(10)
    paths = sorted(p for p in (tmp_path / "model").iterdir() if p.suffix in (".json", ".txt"))
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(150):
            path = paths[rng.integers(len(paths))]
            whole = path.read_bytes()
            path.write_bytes(damaged(whole, rng))
            try:
                vocabulary.read(tmp_path / "model", rows=293)
            except CheckpointError as error:
                refused += 1
                assert str(tmp_path) in str(error) or "configuration" in str(error)
            path.write_bytes(whole)
    assert refused > 50
