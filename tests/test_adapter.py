"""A LoRA by itself: written, loaded again with its model, and refused where it does not fit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt import cli, lora
from numpygpt.files import adapter, plan, run
from numpygpt.formats import dump, safetensors

CONFIG = numpygpt.Config(n_vocab=270, n_ctx=16, n_embd=12, n_head=2, n_layer=2)
TEXT = "A cat sat on a mat, and the cat saw a rat.\n"
PAIRS = [("A cat", " sat"), ("the cat", " saw"), ("a rat", " sat")]


@pytest.fixture
def base(tmp_path):
    gpt = numpygpt.GPT2(CONFIG, numpygpt.init(CONFIG, np.random.default_rng(0)))
    tokenizer = numpygpt.Tokenizer.train(TEXT, 270)
    numpygpt.save(gpt, tokenizer, tmp_path / "base")
    return (*numpygpt.load(tmp_path / "base"), str(tmp_path / "base"))


def filled(gpt, matrices=("attn.c_attn", "mlp.c_proj")):
    rng = np.random.default_rng(1)
    learned = lora.LoRA(gpt, 3, 7.0, matrices, rng)
    for value in learned.params.values():
        value[...] = rng.standard_normal(value.shape)
    return learned


def test_a_lora_is_loaded_with_its_model(base, tmp_path):
    gpt, tokenizer, name = base
    learned = filled(gpt)
    adapter.save(learned, name, tmp_path / "lora")
    again, its_tokenizer = numpygpt.load(tmp_path / "lora")
    assert its_tokenizer.tokens == tokenizer.tokens
    for key, value in learned.merged().params.items():
        np.testing.assert_array_equal(again.params[key], value, err_msg=key)
    arrays = safetensors.read(tmp_path / "lora" / "adapter_model.safetensors")
    a = arrays["base_model.model.transformer.h.1.mlp.c_proj.lora_A.weight"]
    assert a.shape == (3, 48)
    np.testing.assert_array_equal(a, learned.params["h.1.mlp.c_proj.lora_A"].T)


def test_peft_means_all_modules_that_end_in_a_name(base, tmp_path):
    gpt, _, name = base
    learned = filled(gpt, ("attn.c_proj", "mlp.c_proj"))
    adapter.save(learned, name, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"target_modules": ["c_proj"]}), encoding="utf-8")
    loaded, _ = numpygpt.load(tmp_path / "lora")
    for key, value in learned.merged().params.items():
        np.testing.assert_allclose(loaded.params[key], value, rtol=1e-5, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"rank_pattern": {"h.0": 2}}, "rank_pattern"),
        ({"r": "3"}, "does not describe a LoRA"),
        ({"r": 0}, "rank and alpha must be positive"),
        ({"r": 4}, "has shape"),
        ({"r": 10**12}, "no array in adapter_model.safetensors is as large"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "olora"}, r"'olora', which is not read here: merge it into its mod"),
        ({"init_lora_weights": "corda"}, "init_lora_weights is 'corda'"),
        ({"alora_invocation_tokens": [9, 200]}, r"alora_invocation_tokens is \[9, 200\]"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is"),
        ({"a_switch_of_tomorrow": 1}, "a_switch_of_tomorrow is 1, which is not read here"),
        ({"target_modules": ["h.1.mlp.c_proj", "c_attn"]}, "leaves transformer.h.0.mlp.c_proj out"),
        ({"target_modules": ["wte"]}, "'wte' is not changed"),
        ({"target_modules": ["c_attn"]}, "does not fit this model"),
        ({"target_modules": "all-linear"}, "list of names"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_what_is_not_this_kind_of_lora_is_refused(base, tmp_path, change, message):
    gpt, _, name = base
    adapter.save(filled(gpt), name, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), encoding="utf-8")
    with pytest.raises(numpygpt.CheckpointError, match=message) as caught:
        numpygpt.load(tmp_path / "lora")
    assert str(caught.value).count("adapter_config.json") < 2


def test_the_commands_that_take_ids_alone_read_a_lora_as_well(base, tmp_path, capsys):
    gpt, _, name = base
    adapter.save(filled(gpt), name, tmp_path / "lora")
    out = str(tmp_path / "ours.npz")
    ids = ["--tokens", "3 1 4", "--model", str(tmp_path / "lora")]
    assert cli.main(["trace", *ids, "-o", out]) == 0
    logits, _ = numpygpt.load(tmp_path / "lora")[0].forward([3, 1, 4])
    np.testing.assert_allclose(dump.read(out)["logits"], logits, rtol=1e-5, atol=1e-6)
    np.savez(tmp_path / "theirs.npz", logits=logits)
    assert cli.main(["compare", str(tmp_path / "theirs.npz"), *ids]) == 0
    assert "verdict           agrees" in capsys.readouterr().out


def test_what_does_not_change_the_formula_is_read(base, tmp_path):
    gpt, _, name = base
    learned = filled(gpt)
    adapter.save(learned, name, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_config.json"
    whole = json.loads(path.read_text("utf-8"))
    modules = [f"transformer.h.{i}.{m}" for i in (1, 0) for m in learned.matrices]  # "all-linear"
    for change in (
        {"init_lora_weights": "gaussian", "kasa_config": None, "use_something_new": False},
        {"init_lora_weights": True, "peft_version": "0.21.2", "lora_dropout": 0.1, "new": {}},
        {"target_modules": modules, "inference_mode": False, "revision": None},
    ):
        path.write_text(json.dumps(whole | change), encoding="utf-8")
        loaded, _ = numpygpt.load(tmp_path / "lora")
        for key, value in learned.merged().params.items():
            np.testing.assert_array_equal(loaded.params[key], value, err_msg=key)


def test_a_lora_beside_a_model_is_left_out_and_that_is_said(base, tmp_path):
    gpt, _, name = base
    learned = filled(gpt)
    adapter.save(learned, name, tmp_path / "lora")
    shutil.copy(Path(name) / "config.json", tmp_path / "lora")  # as some put it there: no weights
    merged, _ = numpygpt.load(tmp_path / "lora")
    changed = "h.1.mlp.c_proj.weight"
    np.testing.assert_array_equal(merged.params[changed], learned.merged().params[changed])
    shutil.copytree(name, tmp_path / "both")
    shutil.copytree(tmp_path / "lora", tmp_path / "both", dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="holds a model and a LoRA .* the LoRA is not") as said:
        model, tokenizer = numpygpt.load(tmp_path / "both")
    assert len(said) == 1
    np.testing.assert_array_equal(model.params[changed], gpt.params[changed])
    with pytest.raises(ValueError, match="holds adapter_config.json, which transformers would"):
        numpygpt.save(model, tokenizer, tmp_path / "both")


def test_arrays_of_an_adapter_that_are_no_floats_or_a_pickle_are_refused(base, tmp_path):
    gpt, _, name = base
    adapter.save(filled(gpt), name, tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    arrays = safetensors.read(path)
    last = list(arrays)[-1]
    safetensors.write(
        path, {n: np.array(a, "i4" if n == last else "f4") for n, a in arrays.items()}
    )
    with pytest.raises(
        numpygpt.CheckpointError, match=r"dtype int32, but this model takes \(12, 3"
    ):
        numpygpt.load(tmp_path / "lora")
    path.rename(path.with_name("adapter_model.bin"))
    with pytest.raises(numpygpt.CheckpointError, match="adapter_model.bin is a pickle, .* PEFT"):
        numpygpt.load(tmp_path / "lora")


def test_a_lora_of_a_model_that_has_changed_is_loaded_with_a_warning(base, tmp_path):
    gpt, tokenizer, name = base
    adapter.save(filled(gpt), name, tmp_path / "lora")
    params = {key: value.copy() for key, value in gpt.params.items()}
    params["h.0.mlp.c_fc.weight"] *= 2  # it does not change this one
    numpygpt.save(numpygpt.GPT2(CONFIG, params), tokenizer, name)
    numpygpt.load(tmp_path / "lora")
    params["h.0.mlp.c_proj.weight"] *= 2
    numpygpt.save(numpygpt.GPT2(CONFIG, params), tokenizer, name)
    with pytest.warns(UserWarning, match="as it was before: its weights have changed since"):
        numpygpt.load(tmp_path / "lora")
    arrays = safetensors.read(tmp_path / "lora" / "adapter_model.safetensors")
    arrays = {key: value.copy() for key, value in arrays.items()}
    safetensors.write(tmp_path / "lora" / "adapter_model.safetensors", arrays, {"format": "pt"})
    numpygpt.load(tmp_path / "lora")  # PEFT's says nothing of its model


def test_a_lora_of_a_lora_is_loaded_and_one_of_itself_is_not(base, tmp_path):
    gpt, _, name = base
    one, two = tmp_path / "one", tmp_path / "two"
    first = filled(gpt)
    adapter.save(first, name, one)
    second = filled(numpygpt.load(one)[0], ("attn.c_proj",))
    adapter.save(second, str(one), two)
    for key, value in second.merged().params.items():
        np.testing.assert_array_equal(numpygpt.load(two)[0].params[key], value, err_msg=key)
    for target, message in (
        (two, "two is a LoRA of .*two, which is one of it"),
        (tmp_path / "gone", "two is a LoRA of '.*gone', and '.*gone' is neither a folder"),
    ):
        adapter.save(second, str(target), two)
        with pytest.raises(ValueError, match=message):
            numpygpt.load(two)
    adapter.save(second, str(two), one)
    adapter.save(second, str(one), two)
    with pytest.raises(numpygpt.CheckpointError, match="which is one of it"):
        numpygpt.load(one)
    adapter.save(second, str(Path(__file__).parent / "golden" / "gpt1"), two)
    with pytest.raises(numpygpt.CheckpointError, match="is a LoRA of GPT1, not of a GPT-2"):
        numpygpt.load(two)


def test_fine_tuning_writes_it_apart_when_asked(base, tmp_path):
    settings = {"steps": 4, "batch": 2}
    begun = plan.finetuning(PAIRS, tmp_path / "out", base, rank=2, settings=settings, apart=True)
    list(run.resumable(begun))
    assert not (tmp_path / "out" / "model.safetensors").exists()
    again, _ = numpygpt.load(tmp_path / "out")
    for key, value in begun.model.merged().params.items():
        np.testing.assert_array_equal(again.params[key], value, err_msg=key)
    more = settings | {"steps": 6}  # the same command goes on in the same folder
    begun = plan.finetuning(PAIRS, tmp_path / "out", base, rank=2, settings=more, apart=True)
    assert [progress.number for progress in run.resumable(begun)] == [4, 5, 6]
    again, _ = numpygpt.load(tmp_path / "out")
    for key, value in begun.model.merged().params.items():
        np.testing.assert_array_equal(again.params[key], value, err_msg=key)
    with pytest.raises(ValueError, match="only a LoRA can be written apart"):
        plan.finetuning(PAIRS, tmp_path / "other", base, apart=True)
