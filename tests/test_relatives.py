"""Folders of BERT and GPT-1: read, or refused by name; what GPT-2's commands say of them."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from commands import run

import numpygpt
from numpygpt.family import bert, gpt1
from numpygpt.formats import safetensors
from numpygpt.look import analyze

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "bert" / "uncased", tmp_path / "bert"))


@pytest.fixture
def gpt1_folder(tmp_path):
    return Path(shutil.copytree(GOLDEN / "gpt1", tmp_path / "gpt1"))


def change_json(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def change_arrays(folder, change):
    path = folder / "model.safetensors"
    arrays = {name: array.copy() for name, array in safetensors.read(path).items()}
    safetensors.write(path, change(arrays))


def test_load_gives_the_relative(folder, gpt1_folder):
    model, tokenizer = numpygpt.load(folder)
    assert type(model) is bert.Bert and model.heads == bert.HEADS
    assert type(tokenizer) is bert.WordPiece and tokenizer.lower
    assert model.config.n_vocab == tokenizer.n_vocab
    model, tokenizer = numpygpt.load(gpt1_folder)
    assert type(model) is gpt1.GPT1 and type(tokenizer) is gpt1.CharacterBPE


def test_loaded_weights_give_the_golden_logits(folder):
    import test_bert

    model, _ = numpygpt.load(folder)
    tokens, segments, real, *_ = test_bert.models.bert_batch(test_bert.CONFIG)
    masked, following, _ = model.forward(tokens, segments, real)
    assert test_bert.gap(masked[real], test_bert.EXPECTED["masked"][real]) < 1e-5
    assert test_bert.gap(following, test_bert.EXPECTED["following"]) < 1e-5


def test_names_of_other_files_are_the_same_arrays(folder):
    expected = numpygpt.load(folder)[0].forward([[2, 5, 3]])[0]

    def as_google(arrays):
        names = {n: n.replace("LayerNorm.weight", "LayerNorm.gamma") for n in arrays}
        names = {n: m.replace("LayerNorm.bias", "LayerNorm.beta") for n, m in names.items()}
        table = arrays["bert.embeddings.word_embeddings.weight"]
        more = {"cls.predictions.decoder.weight": table.copy()}
        more["bert.embeddings.position_ids"] = np.arange(13)[None]
        return {names[n]: a for n, a in arrays.items()} | more

    change_arrays(folder, as_google)
    assert (numpygpt.load(folder)[0].forward([[2, 5, 3]])[0] == expected).all()


def test_a_file_without_heads_is_an_encoder(folder):
    def alone(arrays):
        return {n.removeprefix("bert."): a for n, a in arrays.items() if n.startswith("bert.")}

    expected = numpygpt.load(folder)[0].encode([[2, 5, 3]])
    change_arrays(folder, alone)
    model, tokenizer = numpygpt.load(folder)
    assert model.heads == ("pooler",)
    assert (model.encode([[2, 5, 3]]) == expected).all()
    masked, following, _ = model.forward([[2, 5, 3]])
    assert masked is None and following is None
    with pytest.raises(ValueError, match="no masked-word head"):
        bert.fill_mask(model, tokenizer, "the [MASK] sat")
    with pytest.raises(ValueError, match="no masked-word head"):
        model.loss_and_grads([[2, 5, 3]], [[2, 5, 3]], [[0, 1, 0]])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
    ],
)
def test_a_bert_of_another_kind_is_refused_by_name(folder, field, value):
    change_json(folder / "config.json", **{field: value})
    with pytest.raises(numpygpt.CheckpointError, match=f"{field} = {value!r}.*come out wrong"):
        numpygpt.load(folder)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "llama", ["bert"], 7])
def test_other_models_are_refused_by_name(folder, kind):
    change_json(folder / "config.json", model_type=kind)
    with pytest.raises(numpygpt.CheckpointError, match="model_type = "):
        numpygpt.load(folder)


def test_what_is_damaged_is_refused(folder):
    change_json(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(numpygpt.CheckpointError, match=r"missing: bert.encoder.layer.2"):
        numpygpt.load(folder)
    change_json(folder / "config.json", num_hidden_layers=10**9)
    with pytest.raises(numpygpt.CheckpointError, match="1,000,000,000 layers"):
        numpygpt.load(folder)
    change_json(folder / "config.json", num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(numpygpt.CheckpointError, match="cannot be divided"):
        numpygpt.load(folder)
    fields = json.loads((folder / "config.json").read_text())
    del fields["layer_norm_eps"], fields["hidden_size"]
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(numpygpt.CheckpointError, match="missing: hidden_size, layer_norm_eps"):
        numpygpt.load(folder)


def test_arrays_that_do_not_belong_are_named(folder):
    change_arrays(folder, lambda arrays: arrays | {"bert.adapter.weight": np.zeros(3, np.float32)})
    with pytest.raises(numpygpt.CheckpointError, match=r"unknown: 'bert.adapter.weight'"):
        numpygpt.load(folder)


def test_a_decoder_that_is_not_the_table_is_refused(folder):
    other = {"cls.predictions.decoder.weight": np.zeros((75, 15), np.float32)}
    change_arrays(folder, lambda arrays: arrays | other)
    with pytest.raises(numpygpt.CheckpointError, match="decoder.weight differs"):
        numpygpt.load(folder)


def test_the_vocabulary_may_be_the_one_file_of_transformers_5(folder):
    _, expected = numpygpt.load(folder)
    vocab = {token: i for i, token in enumerate(expected.tokens)}
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(bert.SPECIAL)]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True}
    content = {
        "added_tokens": added,
        "normalizer": normalizer | {"strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "vocab": vocab, "unk_token": "[UNK]"},
    }
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    _, tokenizer = numpygpt.load(folder)
    text = "Unaffably naïve 中国!"
    assert tokenizer.encode(text) == expected.encode(text)
    content["added_tokens"].append({"id": 75, "content": "[NEW]", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(numpygpt.CheckpointError, match=r"'\[NEW\]' was added"):
        numpygpt.load(folder)
    content["normalizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(numpygpt.CheckpointError, match="cannot be read here"):
        numpygpt.load(folder)


def test_cased_or_not_is_read_and_else_seen_in_the_vocabulary(folder):
    for name, lower in (("uncased", True), ("cased", False)):
        lines = (GOLDEN / "bert" / name / "vocab.txt").read_text(encoding="utf-8").splitlines()
        lines += [f"more{i}" for i in range(75 - len(lines))]
        (folder / "vocab.txt").write_text("".join(f"{x}\n" for x in lines), encoding="utf-8")
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
        change_json(folder / "config.json", vocab_size=75)
        with pytest.warns(UserWarning, match="no capitals" if lower else "capitals, so texts keep"):
            _, tokenizer = numpygpt.load(folder)
        assert tokenizer.lower is lower
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": not lower}))
        assert numpygpt.load(folder)[1].lower is not lower


def test_vocabularies_that_do_not_fit_are_refused(folder):
    path = folder / "vocab.txt"
    text = path.read_text(encoding="utf-8")
    path.write_text(text + "more\n", encoding="utf-8")
    with pytest.raises(numpygpt.CheckpointError, match="75 tokens, but its vocabulary has 76"):
        numpygpt.load(folder)
    path.write_text(text.replace("[MASK]\n", "[HIDE]\n"), encoding="utf-8")
    with pytest.raises(numpygpt.CheckpointError, match=r"lacks \[MASK\]"):
        numpygpt.load(folder)
    path.write_text(text.replace("\ncat\n", "\nthe\n"), encoding="utf-8")
    with pytest.raises(numpygpt.CheckpointError, match="'the' is in the vocabulary twice"):
        numpygpt.load(folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(numpygpt.CheckpointError, match="not UTF-8"):
        numpygpt.load(folder)
    path.unlink()
    with pytest.raises(numpygpt.CheckpointError, match="put its vocab.txt there"):
        numpygpt.load(folder)


def test_rows_of_padding_are_cut_off_and_it_is_said(folder):
    expected = numpygpt.load(folder)[0].forward([[2, 5, 3]])[0]
    path = folder / "vocab.txt"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:-2]), "utf-8")
    with pytest.warns(UserWarning, match="75 rows in its embedding for 73 tokens"):
        model, tokenizer = numpygpt.load(folder)
    assert model.config.n_vocab == tokenizer.n_vocab == 73
    assert (model.forward([[2, 5, 3]])[0] == expected[..., :73]).all()


def test_special_tokens_of_other_spellings_are_refused(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}))
    with pytest.raises(numpygpt.CheckpointError, match="mask_token '<mask>'"):
        numpygpt.load(folder)


def test_a_gpt1_of_another_kind_is_refused(gpt1_folder):
    change_json(gpt1_folder / "config.json", afn="relu")
    with pytest.raises(numpygpt.CheckpointError, match="afn = 'relu'"):
        numpygpt.load(gpt1_folder)
    change_json(gpt1_folder / "config.json", afn="gelu")
    (gpt1_folder / "merges.txt").unlink()
    with pytest.raises(numpygpt.CheckpointError, match=r"vocab.json and merges.txt"):
        numpygpt.load(gpt1_folder)


def test_gpt1s_one_file_vocabulary(gpt1_folder):
    _, expected = numpygpt.load(gpt1_folder)
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(expected.tokens)}}
    model |= {"merges": [list(pair) for pair in expected.merges]}
    content = {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": {"type": "BertNormalizer", "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": model | {"end_of_word_suffix": "</w>", "unk_token": "<unk>"},
    }
    (gpt1_folder / "vocab.json").unlink()
    (gpt1_folder / "tokenizer.json").write_text(json.dumps(content))
    assert numpygpt.load(gpt1_folder)[1].encode("There all!") == expected.encode("There all!")


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "the cat", "--model"),
        ("plot", "attention", "the cat", "--model"),
        ("trace", "the cat", "--model"),
        ("trace", "--tokens", "1 2", "--model"),
        ("verify", "--model"),
        ("bench", "--model"),
    ],
)
def test_gpt2s_commands_say_so_in_one_sentence(folder, capsys, arguments):
    status, out, err = run(capsys, *arguments, folder)
    assert status == 1 and out == ""
    assert err == (
        f"numpygpt: {folder} is a BERT, and this works on a GPT-2 alone: in Python numpygpt.load "
        "reads it, and `numpygpt info` shows it\n"
    )


def test_saving_and_generating_say_what_to_do(folder, tmp_path):
    model, tokenizer = numpygpt.load(folder)
    with pytest.raises(TypeError, match="a Bert cannot be saved, only a GPT-2: copy the folder"):
        numpygpt.save(model, tokenizer, tmp_path / "out")
    with pytest.raises(TypeError, match=r"has no cache.*fill_mask"):
        list(numpygpt.generate(model, [[2, 5]], 3))


def test_info_shows_a_relative(folder, gpt1_folder, capsys):
    model, _ = numpygpt.load(folder)
    status, out, _ = run(capsys, "info", folder)
    assert status == 0 and "BERT" in out and "WordPiece(75 tokens, uncased)" in out
    assert f"{sum(p.size for p in model.params.values()):,}" in out
    status, out, _ = run(capsys, "info", gpt1_folder)
    assert status == 0 and "GPT-1" in out and "CharacterBPE(95 tokens)" in out


def test_gpt1_generates_and_both_tokenize(folder, gpt1_folder, capsys):
    status, out, err = run(
        capsys, "generate", "The cat", "--model", gpt1_folder, "--max-new-tokens", 5, "--seed", 1
    )
    assert status == 0 and out.startswith("The cat ") and "5 tokens" in err
    status, out, _ = run(capsys, "tokenize", "The cat sat", "--model", folder, "--ids")
    assert status == 0 and out == "5 7 8\n"
    status, out, err = run(capsys, "tokenize", "the", "--model", folder, "--show-work")
    assert status == 2 and out == "" and "--show-work" in err and err.count("\n") == 1


def test_info_family(capsys):
    status, out, _ = run(capsys, "info", "--family")
    assert status == 0
    lines = {line[:24].strip(): line.split() for line in out.splitlines()}
    assert "355,871,744*" in lines["GPT-3 Medium"] and "350M" in lines["GPT-3 Medium"]
    assert "174,604,259,328*" in lines["GPT-3 175B"]
    assert "125,226,240" in lines["GPT-3 Small"]
    assert "GPT-3 Medium: 350M printed, 356M counted" in out
    assert "24 heads x 128 are printed beside d_model 2048" in out
    assert "3.14e+23 FLOPs" in out


def test_the_rows_of_the_family_are_counted_and_not_written_down():
    rows = {row.name: row for row in analyze.family()}
    assert rows["GPT-2 124M"].count == 124_439_808
    assert rows["BERT base"].count == 110_106_428  # transformers' BertForPreTraining
    assert rows["GPT-1"].count == 116_534_784  # transformers' OpenAIGPTLMHeadModel
    disagree = {name for name, row in rows.items() if not row.agrees and "GPT-3" in name}
    assert disagree == {"GPT-3 Medium", "GPT-3 13B", "GPT-3 175B"}
    base, c = rows["Transformer base"], 512
    # by hand: a table; per block 4 C^2 of attention (8 in the decoder) and 2 C F of the MLP
    assert base.count == 37_000 * c + 6 * (12 * c * c + 4 * c * 2048) + 6 * biases(c, 2048)
    forward = 6 * (2 * 12 * c * c + 3 * 4 * 512 * c + 2 * 4 * c * 2048) + 2 * 37_000 * c
    assert base.flops == forward
    assert base.cache == 2 * 6 * 2 * 512 * c * 4 and rows["BERT base"].cache == 0


def biases(c, f):
    """Of one encoder block and one decoder block, layer norms included."""
    attention, mlp, norm = 4 * c, f + c, 2 * c
    return (attention + norm + mlp + norm) + (2 * (attention + norm) + mlp + norm)


def test_a_name_of_no_part_is_not_lost():
    with pytest.raises(KeyError, match="elsewhere"):
        analyze.parts({"elsewhere": (3,)})


def test_damaged_files_are_refused_and_nothing_else_is_raised(folder, gpt1_folder):
    rng = np.random.default_rng(0)
    for original in (folder, gpt1_folder):
        files = sorted(original.iterdir())
        whole = {path: path.read_bytes() for path in files}
        outcomes = set()
        for _ in range(120):
            path = files[rng.integers(len(files))]
            data = bytearray(whole[path])
            at = int(rng.integers(min(len(data), 2000)))
            if rng.random() < 0.5:
                data[at] = rng.integers(256)
            else:
                del data[at : at + int(rng.integers(1, 30))]
            path.write_bytes(data)
            try:
                with warnings.catch_warnings():  # of a shorter vocabulary, for instance
                    warnings.simplefilter("ignore")
                    _, tokenizer = numpygpt.load(original)
                outcomes.add(len(tokenizer.encode("the cat")) > 0)
            except numpygpt.CheckpointError as error:
                outcomes.add(str(error).count("\n"))
            path.write_bytes(whole[path])
        assert outcomes == {True, 0}  # read, or refused in one line


def test_what_would_cut_texts_otherwise_is_refused(folder):
    path = folder / "tokenizer_config.json"
    for fields, message in (
        ({"tokenizer_class": "BertJapaneseTokenizer"}, "tokenizer_class = 'BertJapaneseTokenizer'"),
        ({"do_basic_tokenize": False}, "do_basic_tokenize = False"),
        ({"added_tokens_decoder": {"75": {"content": "[NEW]"}}}, r"'\[NEW\]' was added"),
        ({"do_lower_case": "yes"}, "must be true or false"),
    ):
        path.write_text(json.dumps(fields))
        with pytest.raises(numpygpt.CheckpointError, match=message):
            numpygpt.load(folder)
    path.write_text(
        json.dumps({"pad_token": None, "added_tokens_decoder": {"4": {"content": "[MASK]"}}})
    )
    with pytest.warns(UserWarning, match="do_lower_case"):
        assert numpygpt.load(folder)[1].lower
    (folder / "added_tokens.json").write_text(json.dumps({"<ent>": 75}))
    with pytest.raises(numpygpt.CheckpointError, match="'<ent>' was added"):
        numpygpt.load(folder)


def test_a_notebook_shows_what_it_has(folder, gpt1_folder):
    model, tokenizer = numpygpt.load(folder)
    assert repr(model).startswith("Bert(2 layers, 15 wide, 3 heads, 13 positions, 75 tokens: ")
    assert repr(tokenizer) == "WordPiece(75 tokens, uncased)"
    assert repr(numpygpt.load(gpt1_folder)[0]).startswith("GPT1(2 layers, 15 wide, 3 heads")


def test_each_file_of_the_family_is_there_when_it_is_named():
    code = "import numpygpt as n; print(n.family.gpt3.TABLE[0].name, n.family.transformer.__name__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["Small", "numpygpt.family.transformer"]
