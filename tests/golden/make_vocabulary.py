"""Makes vocabulary.json: what transformers makes of the folders of vocabularies.py.

Of each folder the ids of every text with its special tokens, the ids after which generation ends,
and float64 logits after the first text. Then numpygpt saves each folder, and transformers, this
version and others, must give the same ids from what was saved.

Run from anywhere: python tests/golden/make_vocabulary.py [PYTHON OF ANOTHER VERSION ...]
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from golden import vocabularies  # noqa: E402

import numpygpt  # noqa: E402
from numpygpt.files import vocabulary  # noqa: E402

TEXTS = vocabularies.TEXTS
READ = """
import json, sys, transformers
transformers.utils.logging.set_verbosity_error()
read = lambda folder: transformers.AutoTokenizer.from_pretrained(folder)
ids = [[read(folder).encode(text) for text in json.loads(sys.argv[1])] for folder in sys.argv[2:]]
print(json.dumps([transformers.__version__, ids]))
"""


def read_by(python, folders):
    command = [python, "-W", "ignore", "-c", READ, json.dumps(TEXTS), *map(str, folders)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def logits(folder, ids):
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).double().eval()
    ends = model.generation_config.eos_token_id
    with torch.no_grad():
        return ends, model(torch.tensor([ids])).logits[0, -1].tolist()


def digest(folder, tokenizer):
    """Of the vocabulary's files that a save writes."""
    files = [(folder / name).read_bytes() for name in sorted(vocabulary.files(tokenizer))]
    return hashlib.sha256(b"".join(files)).hexdigest()


def main(others):
    warnings.simplefilter("ignore")  # what numpygpt says of each folder, the tests ask for
    with tempfile.TemporaryDirectory() as temporary:
        theirs = {name: Path(temporary) / "theirs" / str(i) for i, name in
                  enumerate(vocabularies.FOLDERS)}  # fmt: skip
        ours = {name: Path(temporary) / "ours" / str(i) for i, name in enumerate(theirs)}
        for name, folder in theirs.items():
            vocabularies.write(name, folder)
        version, ids = read_by(sys.executable, theirs.values())
        golden = {"versions": {"read": version, "saved": []}, "folders": {}}
        for name, theirs_ids in zip(theirs, ids, strict=True):
            model, tokenizer = numpygpt.load(theirs[name])
            numpygpt.save(model, tokenizer, ours[name])
            ends, row = logits(theirs[name], theirs_ids[0])
            golden["folders"][name] = {
                "ids": theirs_ids,
                "ends": ends,
                "logits": [round(x, 13) for x in row[::9]],
                "saved": digest(ours[name], tokenizer),
            }
        for python in (sys.executable, *others):
            version, again = read_by(python, ours.values())
            wrong = [(name, text, a, b) for name, x, y in zip(theirs, ids, again, strict=True)
                     for text, a, b in zip(TEXTS, x, y, strict=True) if a != b]  # fmt: skip
            if wrong:
                raise SystemExit(f"transformers {version} reads what was saved otherwise: {wrong}")
            golden["versions"]["saved"].append(version)
    text = json.dumps(golden, ensure_ascii=False).replace('"folders": {"', '"folders": {\n"')
    text = text.replace('}, "', '},\n"')
    (HERE / "vocabulary.json").write_text(text + "\n", encoding="utf-8")
    print(golden["versions"], len(golden["folders"]), "folders")


if __name__ == "__main__":
    main(sys.argv[1:])
