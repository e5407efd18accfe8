"""Text and JSON lines as people write them."""

import gzip
import json
import os

import pytest

from numpygpt.cli import comparing
from numpygpt.files import download, results, run, text
from numpygpt.formats import CheckpointError


@pytest.fixture
def write(tmp_path):
    def write(data, name="a file.txt"):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_the_text(write):
    assert text.read(write(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")) == "one\n\ntwo\n"
    assert text.read(write("a\u2028b\x85c\rd\n\ufeff")) == "a\u2028b\x85c\rd\n\ufeff"
    assert text.read(write("")) == ""


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
        ("utf-16-le", ["as in UTF-16", "iconv -f UTF-16LE"]),
        ("utf-32", ["UTF-32"]),
        ("latin-1", ["line 2 has the byte 0xe9", "WINDOWS-1252"]),
    ],
)
def test_another_encoding_is_named(write, encoding, words):
    path = write("plain\ncafé\n".encode(encoding))
    with pytest.raises(ValueError) as caught:
        text.read(path)
    for word in [str(path), "not UTF-8", *words]:
        assert word in str(caught.value)


def test_what_is_not_a_text_is_named(write, tmp_path):
    with pytest.raises(ValueError, match=r"is a gzip file.*unpack"):
        text.read(write(gzip.compress(b"text")))
    with pytest.raises(FileNotFoundError):
        text.read(tmp_path / "absent")
    with pytest.raises(OSError):
        text.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a pipe or a device"):
        text.read(tmp_path / "pipe")


def test_what_is_json_is_not_prose(write):
    rows = [{"x": "a", "y": "b"}, {"x": "c", "y": "d \U0001f600"}]
    lines = "\n".join(map(json.dumps, rows))
    for content in (
        lines,
        "\n" + lines,
        json.dumps(rows),
        json.dumps(rows, indent=1),
        "{}",
        "[]\n",
    ):
        with pytest.raises(ValueError, match="holds JSON, not prose"):
            text.prose(write(content))
    for content in ('["', "[1] says\n[2]", '"x"', "{ a\n}", "5", "[" * 100_000):
        assert text.prose(write(content)) == content
    assert text.json_lines(write(lines), text.PAIR) == rows


def test_json_lines_end_at_newlines_alone(write):
    strings = ["one\u2028two", "three\u2029four", "five\x85six"]
    rows = [json.dumps({"x": s, "y": "z", "id": 3}, ensure_ascii=False) for s in strings]
    path = write("\ufeff" + "\r\n".join([rows[0], "", *rows[1:], "  ", "", ""]))
    assert text.json_lines(path, text.PAIR) == [{"x": s, "y": "z"} for s in strings]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"x": "a", "y": null}', "y must be a string, not null"),
        ('{"x": 5, "y": "b"}', "x must be a string, not 5"),
        ('{"x": "a", "y": ["b"]}', "y must be a string, not a list"),
        ('{"x": "a", "y": true}', "y must be a string, not true"),
        ('{"x": "a"}', "lacks 'y'"),
        ('{"x": "a", "x": "b", "y": "c"}', "the same key twice"),
        ('["a", "b"]', "must be one JSON object with x, y"),
        ('"x y"', "must be one JSON object"),
        ('{"x": "a", "y": "b"', "is not JSON (Expecting"),
        ('{"x": "a", "y": "b \\ud83d"}', r"y has half a character, \ud83d"),
        ("[" * 100_000, "is not JSON (maximum recursion|must be one JSON object"),
        ('{"x": ' + "1" * 5000 + "}", "is not JSON (Exceeds the limit"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(write, line, words):
    path = write(f'\n{{"x": "a\u2028", "y": "b"}}\n\n{line}\n', "pairs.jsonl")
    with pytest.raises(ValueError) as caught:
        text.json_lines(path, text.PAIR)
    assert f"{path}, line 4" in str(caught.value)
    assert any(word in str(caught.value) for word in words.split("|"))


@pytest.mark.parametrize(("label", "meant"), [(0, 0), (3, 3), ("2", 2)])
def test_a_hellaswag_label_is_0_to_3(write, label, meant):
    row = {"ctx": "a", "endings": list("bcde"), "label": label}
    path = write(json.dumps(row))
    assert text.json_lines(path, text.HELLASWAG) == [row | {"label": meant}]


@pytest.mark.parametrize("label", ["", 4, -1, "4", "-1", "02", "two", 1.0, None, True, [1]])
def test_other_labels_are_refused(write, label):
    row = {"ctx": "a", "endings": list("bcde"), "label": label}
    with pytest.raises(ValueError, match="line 1: label must be 0, 1, 2 or 3"):
        text.json_lines(write(json.dumps(row)), text.HELLASWAG)


@pytest.mark.parametrize("endings", [["a", "b", "c"], ["a", "b", "c", 4], "abcd", {"a": 1}])
def test_endings_are_four_strings(write, endings):
    row = {"ctx": "a", "endings": endings, "label": 1}
    with pytest.raises(ValueError, match="line 1: endings must be a list of four strings"):
        text.json_lines(write(json.dumps(row)), text.HELLASWAG)


DEEP = "[" * 100_000


def test_json_nested_without_end_is_an_error_in_words_in_every_reader(write, tmp_path):
    with pytest.raises(CheckpointError, match="is not a JSON file"):
        text.read_json(write(DEEP))
    with pytest.raises(ValueError, match="is not the log of a run"):
        run.open_log(write(DEEP + "}\n"), 3)
    with pytest.raises(ValueError, match="is not JSON"):
        comparing._map(write(DEEP))
    with pytest.raises(ValueError, match="is damaged"):
        list(results.resumed(write("{}\n" + DEEP + "\n"), {}, lambda done: []))
    assert download.places.read_json(write(DEEP)) == {}


@pytest.mark.parametrize(
    "content", ["", "[]", "5", '{"a": 1, "a": 2}', '{"a": ' + "1" * 5000 + "}"]
)
def test_what_is_not_one_json_object_is_refused(write, content):
    with pytest.raises(CheckpointError, match="is not a JSON file|should hold a JSON object"):
        text.read_json(write(content))


def test_a_file_without_lines_is_refused(write):
    with pytest.raises(ValueError, match="has no lines: it takes JSON objects with text"):
        text.json_lines(write("\n \n"), text.LAMBADA)


def test_a_field_that_may_be_absent_is_checked_where_it_is(write):
    rows = '{"number": 1, "loss": 2.5}\n{"number": 2, "loss": 2.25, "validation": 3}\n'
    rows_read = text.json_lines(write(rows), text.LOG, text.LOG_SOMETIMES)
    assert rows_read == [json.loads(row) for row in rows.splitlines()]
    with pytest.raises(ValueError, match="line 2: validation must be a number, not true"):
        text.json_lines(write(rows.replace("3}", "true}")), text.LOG, text.LOG_SOMETIMES)
