"""Text and JSON lines as people write them: one reader for each.

A text is UTF-8. A byte order mark before it is not part of it, and a line that ends in CRLF, as
Windows writes it, ends in a newline. JSON lines are one object a line, cut at newlines alone:
U+2028 and U+0085 may stand inside a JSON string, where `str.splitlines` would cut.
"""

import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from numpygpt.formats import CheckpointError, unique

# What a file begins with that is not text, or not in UTF-8. UTF-32's mark begins as UTF-16's does.
OTHER_BEGINNINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "a gzip file",
    b"PK\x03\x04": "a zip file",
    b"(\xb5/\xfd": "a zstd file",
    b"\xfd7zXZ\x00": "an xz file",
    b"BZh": "a bzip2 file",
}


def read(path: str | os.PathLike) -> str:
    """The text of a file. Raises ValueError for what is not UTF-8 text, OSError as `open` does."""
    path = Path(path)
    if path.exists() and not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is a pipe or a device: write the text to a file and name that")
    with open(path, "rb") as file:
        beginning = file.read(1000)
        _check_beginning(beginning, str(path))  # before the rest, which may be large
        return decode(beginning + file.read(), str(path))


def prose(path: str | os.PathLike) -> str:
    """The text of a file that is to be read as text. Raises ValueError for one that is JSON, or
    JSON lines, as well."""
    text = read(path)
    beginning = text.lstrip()
    if beginning[:1] in ("{", "[") and (
        _is_json(beginning.split("\n", 1)[0], dict) or _is_json(text, (dict, list))
    ):
        raise ValueError(
            f"{path} holds JSON, not prose: `finetune` trains on (x, y) pairs, one JSON object a "
            "line, `evaluate --pairs` measures them, and `generate --prompts` reads prompts from a "
            "file called .jsonl"
        )
    return text


def _is_json(text, kinds):
    try:
        return isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


def decode(data: bytes, source: str) -> str:
    """Bytes as text; `source` is what a message calls them. Raises ValueError as `read`."""
    _check_beginning(data[:1000], source)
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        what = f"line {line} has the byte {error.object[error.start]:#04x}"
        raise ValueError(_not_utf8(source, what, "WINDOWS-1252")) from None


def _check_beginning(data, source):
    for beginning, kind in OTHER_BEGINNINGS.items():
        if data.startswith(beginning):
            if kind.startswith("UTF"):
                raise ValueError(_not_utf8(source, f"it is {kind}", kind))
            raise ValueError(f"{source} is {kind}, not a text: unpack it first")
    if data.count(0) > len(data) // 4:  # "a" in UTF-16 is "a\0", which is UTF-8, too
        raise ValueError(_not_utf8(source, "every other byte is 0, as in UTF-16", "UTF-16LE"))


def _not_utf8(source, what, encoding):
    maybe = "perhaps " if encoding == "WINDOWS-1252" else ""
    return (
        f"{source} is not UTF-8: {what}. Save it as UTF-8, {maybe}with "
        f"`iconv -f {encoding} -t UTF-8`"
    )


# ---- JSON ----------------------------------------------------------------------------------------

MAX_JSON = 200_000_000  # bytes; the largest tokenizer.json of a known model has 33 million


def read_json(path: str | os.PathLike) -> dict:
    """The JSON object in a file.

    Raises CheckpointError for what is not one: damaged, nested without end, with a number of
    thousands of digits, the same key twice, or far too large.
    """
    path = Path(path)
    if (size := path.stat().st_size) > MAX_JSON:
        raise CheckpointError(f"{path} has {size:,} bytes, too many for what it is: get it again")
    try:
        content = json.loads(read(path), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a JSON file ({error}): get it again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} should hold a JSON object: get it again")
    return content


# ---- JSON lines ----------------------------------------------------------------------------------


def json_lines(
    path: str | os.PathLike,
    fields: dict[str, Callable],
    sometimes: dict[str, Callable] | None = None,
) -> list[dict]:
    """The objects of a file of JSON lines, of each the named fields; blank lines are skipped.

    fields: name -> a function from the value in the file to the value that is meant, such as
    `string`, which raises ValueError saying what it should be; `sometimes`: those that may be
    absent. Raises ValueError with the file's line number for what is not JSON, not an object, or
    lacks a field or has it wrong or with half a character; and for a file without any line.
    """
    rows = []
    for number, line in enumerate(read(path).split("\n"), 1):
        if line.strip():
            rows.append(_row(f"{path}, line {number}", line, fields, sometimes or {}))
    if not rows:
        raise ValueError(f"{path} has no lines: it takes JSON objects with {', '.join(fields)}")
    return rows


def _row(where, line, fields, sometimes):
    try:
        item = json.loads(line, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}): write one object a line") from None
    if not isinstance(item, dict):
        raise ValueError(f"{where} must be one JSON object with {', '.join(fields)}")
    if missing := [name for name in fields if name not in item]:
        raise ValueError(f"{where} lacks {missing[0]!r}: it must have {', '.join(fields)}")
    row = {}
    for name, meant in (fields | sometimes).items():
        if name not in item:
            continue
        try:
            row[name] = meant(item[name])
        except ValueError as error:
            kind = {list: "a list", dict: "an object"}.get(type(item[name]))
            shown = kind or json.dumps(item[name])
            raise ValueError(f"{where}: {name} must be {error}, not {shown:.60}") from None
        if half := re.search("[\ud800-\udfff]", json.dumps(item[name], ensure_ascii=False)):
            raise ValueError(
                f"{where}: {name} has half a character, {json.dumps(half[0])[1:-1]}: it was cut "
                "within one, so write it again"
            )
    return row


def string(value) -> str:
    """A string as it is: neither None nor 5 is the text of its name."""
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def number(value) -> float:
    """A number as it is; JSON's true and false are not numbers."""
    if type(value) not in (int, float):
        raise ValueError("a number")
    return value


def four_strings(value) -> list[str]:
    """HellaSwag's endings."""
    if not isinstance(value, list) or len(value) != 4 or not all(type(x) is str for x in value):
        raise ValueError("a list of four strings")
    return value


def label(value) -> int:
    """Which of HellaSwag's endings is right: 0 to 3, or "0" to "3" as some copies write it."""
    if type(value) not in (int, str) or str(value) not in ("0", "1", "2", "3"):
        raise ValueError("0, 1, 2 or 3 (HellaSwag's test file has no labels: use its validation)")
    return int(value)


def strings(value) -> list[str]:
    """Sentences, or the options of a question."""
    if not isinstance(value, list) or not all(type(x) is str for x in value):
        raise ValueError("a list of strings")
    return value


PAIR = {"x": string, "y": string}
LAMBADA = {"text": string}
HELLASWAG = {"ctx": string, "endings": four_strings, "label": label}
CBT = {"sentences": strings, "question": string, "answer": string, "options": strings}
SENTENCES = {"a": string, "b": string}
LOG = {"number": number}  # of `training.jsonl`
LOG_SOMETIMES = {"tokens": number, "loss": number, "validation": number}
