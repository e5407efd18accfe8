"""From a name or a folder to a model: names, places, vocabularies, and what `import` costs."""

import ast
import configparser
import dataclasses
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt.files import download, pretrained, vocabulary
from numpygpt.files.checkpoint import load_folder
from numpygpt.formats import CheckpointError, safetensors

PACKAGE = Path(numpygpt.__file__).parent
STORIES = PACKAGE.parent / "weights" / "stories"
CASES = Path(__file__).parent / "golden" / "checkpoint"
TEXT = "The wolf said: there's the house of the seven kids! <|endoftext|> ünï 🐺"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A machine without any weights; -> the folder where they would go."""
    for variable in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("NUMPYGPT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


def change_json(path, **fields):
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(content), encoding="utf-8")


# ---- names and folders ---------------------------------------------------------------------------


def test_the_bundled_model_is_the_default(monkeypatch):
    monkeypatch.delenv("NUMPYGPT_WEIGHTS", raising=False)
    model, tokenizer = numpygpt.load()
    assert tokenizer.n_vocab == model.config.n_vocab
    ids = tokenizer.encode("Once upon a time, there was a")
    logits, _ = model.forward(ids[:-1])
    p = np.exp(logits[0] - logits[0].max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    # far better than guessing, on average over the sentence
    assert np.log(p[range(len(ids) - 1), ids[1:]]).mean() > -np.log(tokenizer.n_vocab) / 2


@pytest.mark.parametrize("name", ["stories", "124M", "gpt2", "1558M", "gpt2-xl", "distilgpt2"])
def test_names_lead_to_the_weights_folder(places, name):
    official = {"gpt2": "124M", "gpt2-xl": "1558M"}.get(name, name)
    shutil.copytree(CASES / "ours", places / official)
    model, tokenizer = numpygpt.load(name)
    assert model.config == load_folder(CASES / "ours").config
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_folders(places):
    shutil.copytree(CASES / "ours", places.parent / "gpt2")
    for folder in ("./gpt2", Path("gpt2"), places.parent / "gpt2", f"{places.parent}/gpt2"):
        assert numpygpt.load(folder)[0].config.n_vocab == 270
    with pytest.raises(FileNotFoundError):  # a name is a name
        numpygpt.load("gpt2")


@pytest.mark.parametrize("name", ["124M", "gpt2", "gpt2-large", "distilgpt2"])
def test_weights_that_are_not_here(places, name):
    with pytest.raises(FileNotFoundError) as caught:
        numpygpt.load(name)
    assert str(caught.value).endswith(f"run `numpygpt download {name}`")


def test_a_repository_that_is_not_here_is_downloaded_by_its_short_name(places):
    for repository, name in (
        ("openai-community/gpt2", "124M"),
        ("openai-community/gpt2-xl", "1558M"),
        ("distilbert/distilgpt2", "distilgpt2"),
    ):
        with pytest.raises(FileNotFoundError, match=f"run `numpygpt download {name}`"):
            numpygpt.load(repository)
        assert download.official_name(name) == name  # the command knows it


@pytest.mark.parametrize("name", ["gpt3", "", "124m", "published", "gpt-nano-sort", "no/folder"])
def test_unknown_names_are_told_the_known_ones(places, name):
    with pytest.raises(ValueError, match="neither a folder nor the name of a model") as caught:
        numpygpt.load(name)
    for known in ("stories", "124M", "gpt2-medium", "distilgpt2"):
        assert known in str(caught.value)


def cached(places, name, *snapshots, main=None):
    """A repository in Hugging Face's cache, the same model in each of its snapshots."""
    repository = places.parent / "elsewhere" / f"models--{name.replace('/', '--')}"
    for number, snapshot in enumerate(snapshots):
        folder = repository / "snapshots" / snapshot
        shutil.copytree(CASES / "ours", folder)
        change_json(folder / "config.json", layer_norm_epsilon=number / 8)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(main, encoding="ascii")
    return repository


def test_a_repository_in_the_cache_of_hugging_face_by_its_name(places):
    repository = cached(places, "some-body/my.model", "aa", "bb", "cc", main="bb")
    for name in ("some-body/my.model", repository, str(repository)):
        assert numpygpt.load(name)[0].config.layer_norm_epsilon == 1 / 8
    assert numpygpt.load(repository / "snapshots" / "cc")[0].config.layer_norm_epsilon == 2 / 8
    cached(places, "openai-community/gpt2", "only")
    assert numpygpt.load("openai-community/gpt2")[0].config.n_vocab == 270
    unnamed = cached(places, "a/b", "aa", "bb")
    for name in ("a/b", unnamed):
        with pytest.raises(ValueError, match="names none of its snapshots"):
            numpygpt.load(name)
    with pytest.raises(ValueError, match=r"neither a folder .* cache has no .*models--a--c"):
        numpygpt.load("a/c")


def test_the_name_of_the_former_bundle_says_what_took_its_place(places):
    with pytest.raises(ValueError, match='"stories" took its place as the default'):
        numpygpt.load("tales")
    shutil.copytree(CASES / "ours", "tales")  # somebody's own folder is still a folder
    assert numpygpt.load("tales")[0].config.n_vocab == 270


def test_a_folder_that_is_not_there(places):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        numpygpt.load(places / "nothing")


def test_a_half_saved_bundle_is_not_taken(places, monkeypatch):
    monkeypatch.setattr(pretrained, "__file__", str(places.parent / "a" / "b" / "pretrained.py"))
    shutil.copytree(CASES / "ours", places / "stories")
    (places / "stories" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="install numpygpt again"):
        numpygpt.load()


# ---- vocabularies --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """The model that transformers saved, tokenizer.json beside it."""
    shutil.copytree(CASES / "prefix", tmp_path / "model")
    return tmp_path / "model"


def test_tokenizer_json_alone(folder):
    """All that transformers 5 saves of a tokenizer."""
    assert not (folder / "vocab.json").exists()
    _, tokenizer = numpygpt.load(folder)
    ours = vocabulary.read(CASES / "ours")
    assert (tokenizer.tokens, tokenizer.merges, tokenizer.special) == (
        ours.tokens,
        ours.merges,
        ours.special,
    )
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    model["merges"] = [" ".join(pair) for pair in model["merges"]]  # as older versions wrote them
    change_json(folder / "tokenizer.json", model=model)
    assert pretrained.read_tokenizer(folder).merges == ours.merges


def test_added_tokens_keep_their_rows(folder):
    """A chat model's own tokens are behind the vocabulary, where padding would be."""
    fields = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    added = [*fields["added_tokens"], {"id": 270, "content": "<|user|>"}]
    change_json(folder / "tokenizer.json", added_tokens=added)
    model, tokenizer = numpygpt.load(folder)  # as transformers does: the id is an error when used
    assert (model.config.n_vocab, tokenizer.n_vocab) == (270, 271)
    with pytest.raises(ValueError, match="270"):
        model.forward(tokenizer.encode("a<|user|>", tokenizer.special))
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CASES / "padded" / name, folder)
    with pytest.warns(UserWarning, match="317 rows in its embedding for 271 tokens.*cut off"):
        model, tokenizer = numpygpt.load(folder)
    assert model.config.n_vocab == 271
    assert tokenizer.encode("<|user|>", {"<|user|>"}) == [270]


def test_openai_names_and_incomplete_vocabularies(folder):
    (folder / "tokenizer.json").unlink()
    shutil.copy(CASES / "ours" / "vocab.json", folder / "encoder.json")
    with pytest.raises(CheckpointError, match="has no vocabulary that"):
        numpygpt.load(folder)
    shutil.copy(CASES / "ours" / "merges.txt", folder / "vocab.bpe")
    assert numpygpt.load(folder)[1].n_vocab == 270
    (folder / "vocab.bpe").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="vocab.bpe is not UTF-8"):
        numpygpt.load(folder)


@pytest.mark.parametrize("rows", [50256, 50257, 50304, 50305])
def test_without_a_vocabulary_the_official_one_if_it_fits(tmp_path, rows):
    config = numpygpt.Config(rows, n_ctx=3, n_embd=2, n_head=1, n_layer=1)
    params = numpygpt.init(config, np.random.default_rng(1))
    safetensors.write(tmp_path / "model.safetensors", params)
    fields = dataclasses.asdict(config) | {"vocab_size": rows, "n_positions": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    if 50257 <= rows <= 50304:
        with pytest.warns(UserWarning, match="the official one of 50,257 tokens is taken|cut off"):
            model, tokenizer = numpygpt.load(tmp_path)
        assert tokenizer.eot == 50256
        assert model.forward([[50256]])[0].shape == (1, 1, 50257)
    else:
        with pytest.raises(CheckpointError, match="has no vocabulary"):
            numpygpt.load(tmp_path)


# ---- import --------------------------------------------------------------------------------------


def run(code):
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return result.stdout.strip()


def test_import_loads_nothing_and_takes_no_time():
    code = """
import sys, time
start = time.process_time()
import numpygpt
print(time.process_time() - start, *sorted(sys.modules))
"""
    results = [run(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, *_ in results) < 0.05
    loaded = results[0][1:]
    assert "numpygpt" in loaded
    assert not {"numpy", "regex", "requests", "matplotlib", "tqdm", "numpygpt.bpe"} & set(loaded)


def test_loading_the_bundle_opens_no_door_it_does_not_need():
    code = f"import sys, numpygpt; numpygpt.load({str(CASES / 'ours')!r}); print(*sys.modules)"
    loaded = set(run(code).split())
    assert "numpygpt.files.checkpoint" in loaded
    assert not {"requests", "matplotlib", "tqdm", "http.client"} & loaded


def test_every_public_name_is_there_after_import_numpygpt_alone():
    assert run("import numpygpt; print(numpygpt.formats.safetensors.read.__name__)") == "read"
    for name, file in numpygpt.PUBLIC.items():
        assert getattr(numpygpt, name).__module__ == f"numpygpt.{file}"
    assert run("from numpygpt import *; print(load.__module__)") == "numpygpt.files.pretrained"
    assert issubclass(numpygpt.CheckpointError, ValueError)


def test_every_file_of_the_package_can_be_reached():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(dir(numpygpt)) == files | rooms | {"__version__"} | set(numpygpt.PUBLIC)
    code = "import numpygpt; print(numpygpt.data.__name__, numpygpt.formats.__name__)"
    assert run(code) == "numpygpt.data numpygpt.formats"


def test_editors_see_every_public_name_where_it_is_defined():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {a.name: node.module for node in block.body for a in node.names}
    assert seen == {name: f"numpygpt.{file}" for name, file in numpygpt.PUBLIC.items()}


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="numpygpt has no 'lode': it has load, save"):
        _ = numpygpt.lode


# ---- what is installed ---------------------------------------------------------------------------


def test_a_wheel_gets_every_package_and_the_whole_bundle():
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / "setup.cfg", encoding="utf-8")
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(config["options"]["packages"].split()) == packages
    bundle = PACKAGE.parent / "weights" / "stories"
    there = {f"weights/stories/{path.name}" for path in bundle.glob("*[!.]*")}
    there = {name for name in there if "/training." not in name}
    assert set(config["options.data_files"]["share/numpygpt/stories"].split()) == there


def test_the_bundle_is_found_where_pip_puts_it(tmp_path, monkeypatch):
    """In share/numpygpt of the environment, of the user's own folder, or of `pip --target`."""
    monkeypatch.delenv("NUMPYGPT_WEIGHTS", raising=False)
    package = tmp_path / "site" / "numpygpt" / "files" / "pretrained.py"
    monkeypatch.setattr(pretrained, "__file__", str(package))
    paths = {"here": tmp_path / "here", "user": tmp_path / "user"}
    monkeypatch.setattr(pretrained.sysconfig, "get_default_scheme", lambda: "here")
    monkeypatch.setattr(pretrained.sysconfig, "get_preferred_scheme", lambda key: key)
    monkeypatch.setattr(pretrained.sysconfig, "get_path", lambda name, scheme: str(paths[scheme]))
    with pytest.raises(FileNotFoundError, match="install numpygpt again"):
        pretrained.find("stories")
    for root in (paths["user"], paths["here"], tmp_path / "site"):  # each comes before the last
        folder = root / "share" / "numpygpt" / "stories"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}", encoding="utf-8")
        assert pretrained.find("stories") == folder


def test_an_editable_install_is_found_beside_a_clone_called_numpygpt(tmp_path):
    """A folder `numpygpt` in Python's current one, without `__init__.py`, must not hide it."""
    found = importlib.metadata.distributions(name="numpygpt")  # the clone's own egg-info is one
    origins = [json.loads(one.read_text("direct_url.json") or "{}") for one in found]
    if not any(origin.get("dir_info", {}).get("editable") for origin in origins):
        pytest.skip("numpygpt is not installed here with pip install -e")
    (tmp_path / "numpygpt").symlink_to(PACKAGE.parent)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for words in (["-c", "import numpygpt; numpygpt.load"], ["-m", "numpygpt", "--help"]):
        subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("wrong", [5, None, True, b"stories", ["stories"], 1.5])
def test_what_is_neither_text_nor_a_path_is_refused(wrong):
    """An int would be taken for the number of an open file."""
    with pytest.raises(TypeError, match="give the name of a model or a folder, not"):
        pretrained.load(wrong)
