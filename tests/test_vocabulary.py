"""Vocabularies in files: every layout, what beside it says, damage, and back into files."""

import json
from pathlib import Path

import pytest

from numpygpt.bpe import END_OF_TEXT, Tokenizer, byte_symbols
from numpygpt.files import atomic, vocabulary
from numpygpt.formats import CheckpointError

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
    "gap": ("vocab.json", vocab_with(zz=601), "not one of 0 to 600"),
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
