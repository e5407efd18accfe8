"""Any bytes changed, cut or put in: each reader loads the file, or says in a line what is wrong."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt.files import adapter, checkpoint, download, relatives, results, run, text, vocabulary
from numpygpt.formats import CheckpointError, dump, safetensors, tensorflow
from numpygpt.lora import LoRA

GOLDEN = Path(__file__).parent / "golden"
TRIALS = 60  # a case; `python tests/test_mutations.py 5000` tries more

JSON_LINES = '{"x": "A cat", "y": " sat"}\n{"x": "A dog", "y": " ran"}\n'
# What a change of a byte is unlikely to come upon.
CRUEL = [
    b"[" * 50_000, b'{"a":' * 20_000, b"9" * 5000, b"-1", b"1e999", b"NaN", b"null", b"true",
    b"\x00" * 9, b"\xff\xfe", b'""', b"[]", b"{}", b"\x80\x02", b"\n", b"0", b"9" * 20,
    b"\xed\xb2\x80",
]  # fmt: skip


def cases(folder):
    """Name -> (the file that is damaged, a function that reads it, what that may raise)."""
    rng = np.random.default_rng(1)
    ours = Path(shutil.copytree(GOLDEN / "checkpoint" / "ours", folder / "ours"))
    sharded = Path(shutil.copytree(GOLDEN / "checkpoint" / "sharded", folder / "sharded"))
    tensors = Path(shutil.copytree(GOLDEN / "tensorflow_tiny", folder / "tensors"))
    bert = Path(shutil.copytree(GOLDEN / "bert" / "cased", folder / "cased"))
    gpt1 = Path(shutil.copytree(GOLDEN / "gpt1", folder / "gpt1"))
    arrays = {"a": rng.normal(size=(2, 3)).astype(np.float32), "b": np.arange(5)}
    np.savez(folder / "x.npz", **arrays)
    np.savez_compressed(folder / "y.npz", **arrays)
    np.save(folder / "x.npy", arrays["a"])
    safetensors.write(folder / "x.safetensors", arrays, digest=True)
    dump.write(folder / "raw", {"a": arrays["a"]})
    (folder / "z.json").write_text('{"a": [2, 3]}')
    arrays["a"].tofile(folder / "z.bin")
    (folder / "pairs.jsonl").write_text(JSON_LINES)
    (folder / "log.jsonl").write_text('{"number": 1, "loss": 2.5}\n{"number": 2, "loss": 2.25}\n')
    (folder / "prose.txt").write_text("A cat sat.\r\nHäuser\n", encoding="utf-8")
    (folder / download.places.RECORD).write_text(
        '{"a": {"checked": "size", "facts": [1, 2, 3, null]}}'
    )
    lora = folder / "lora"
    adapter.save(LoRA(numpygpt.load(ours)[0], 2, 4.0, ("attn.c_attn",), rng), "ours", lora)
    (folder / "results").write_text('{"a": 1}\n{"b": 2}\n')
    found = {
        "config": (ours / "config.json", lambda: numpygpt.load(ours), CheckpointError),
        "weights": (ours / "model.safetensors", lambda: numpygpt.load(ours), CheckpointError),
        "vocab": (ours / "vocab.json", lambda: vocabulary.read(ours), CheckpointError),
        "merges": (ours / "merges.txt", lambda: vocabulary.read(ours), CheckpointError),
        "specials": (
            ours / "tokenizer_config.json", lambda: vocabulary.read(ours), CheckpointError,
        ),
        "shards": (
            sharded / checkpoint.SHARDS, lambda: checkpoint.load_folder(sharded), CheckpointError,
        ),
        "tensorflow": (
            next(tensors.glob("*.index")), lambda: tensorflow.read(tensors), CheckpointError,
        ),
        "safetensors": (
            folder / "x.safetensors", lambda: safetensors.read(folder / "x.safetensors"),
            CheckpointError,
        ),
        "digest": (
            folder / "x.safetensors", lambda: safetensors.check(folder / "x.safetensors"),
            CheckpointError,
        ),
        "log": (
            folder / "log.jsonl", lambda: run.open_log(folder / "log.jsonl", 9).close(), ValueError,
        ),
        "results": (
            folder / "results",
            lambda: list(results.resumed(folder / "results", {"a": 1}, lambda done: [])),
            ValueError,
        ),
        "pairs": (
            folder / "pairs.jsonl", lambda: text.json_lines(folder / "pairs.jsonl", text.PAIR),
            ValueError,
        ),
        "prose": (folder / "prose.txt", lambda: text.prose(folder / "prose.txt"), ValueError),
        "adapter": (
            lora / adapter.CONFIG, lambda: adapter.load(lora, numpygpt.load(ours)[0]),
            CheckpointError,
        ),
        "downloads": (folder / download.places.RECORD, lambda: download.verdict(folder), ()),
    }  # fmt: skip
    for name in ("x.npz", "y.npz", "x.npy", "z.json", "z.bin", "x.safetensors"):
        path = folder / name
        found[f"dump {name}"] = path, lambda path=path: dump.read(path), ValueError
    raw = folder / "raw"
    found["dump raw"] = raw / "index.json", lambda: dump.read(raw), ValueError
    readers = {bert: relatives._read_wordpiece, gpt1: numpygpt.load}
    for relative, reader in readers.items():
        for path in sorted(p for p in relative.iterdir() if p.suffix in (".json", ".txt")):
            found[f"{relative.name} {path.name}"] = (
                path, lambda folder=relative, read=reader: read(folder), ValueError,
            )  # fmt: skip
    return found


NAMES = sorted(
    ["config", "weights", "vocab", "merges", "specials", "shards", "tensorflow", "safetensors"]
    + ["digest", "log", "results", "pairs", "prose", "dump x.npz", "dump y.npz", "dump x.npy"]
    + ["dump z.json", "dump z.bin", "dump x.safetensors", "dump raw", "adapter", "downloads"]
    + [
        f"{Path(folder).name} {path.name}"
        for folder in ("bert/cased", "gpt1")
        for path in (GOLDEN / folder).iterdir()
        if path.suffix in (".json", ".txt") and path.name != "generation_config.json"
    ]
)


def damaged(data, rng):
    """A few bytes changed, taken away, doubled, or something cruel in their place."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(min(len(data), 3000) or 1))
        kind = rng.integers(5)
        if kind == 0:
            data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 2:
            data[at:at] = data[at : at + int(rng.integers(1, 40))]
        elif kind == 3:
            data[at : at + int(rng.integers(4))] = CRUEL[rng.integers(len(CRUEL))]
        else:
            del data[int(rng.integers(len(data) + 1)) :]
    return bytes(data)


def attack(name, folder, trials, seed=0):
    """-> how often it was refused."""
    path, read, allowed = cases(folder)[name]
    data, rng, refused = path.read_bytes(), np.random.default_rng(seed), 0
    for trial in range(trials):
        path.write_bytes(damaged(data, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
        except allowed as error:
            said = str(error)
            assert path.name in said or path.parent.name in said, (trial, said[:300])
            assert len(said.splitlines()) == 1 and len(said) < 4000, (trial, said[:300])
            refused += 1
    path.write_bytes(data)
    read()
    return refused


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, name):
    refused = attack(name, tmp_path, TRIALS)
    assert refused > TRIALS // 10 or name in ("downloads", "prose", "cased vocab.txt"), refused


if __name__ == "__main__":
    import sys
    import tempfile

    for each in NAMES:
        with tempfile.TemporaryDirectory() as place:
            count = int(sys.argv[1])
            print(f"{each:20} {attack(each, Path(place), count, 1):6} of {count} refused")
