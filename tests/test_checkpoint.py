"""Checkpoints: every layout that transformers writes, our own, and everything that is refused."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt.bpe import Tokenizer
from numpygpt.files import checkpoint, vocabulary
from numpygpt.files.checkpoint import (
    check_vocabulary,
    from_arrays,
    load_folder,
    official_name,
    save,
)
from numpygpt.formats import CheckpointError, safetensors, tensorflow
from numpygpt.model import GPT2, Config, as_dtype, parameter_shapes

GOLDEN = Path(__file__).parent / "golden"
CASES = GOLDEN / "checkpoint"
LAYOUTS = "prefix bare sharded official both_heads only_head padded untied bfloat16 float16".split()
CONFIG = Config(n_vocab=270, n_ctx=11, n_embd=6, n_head=3, n_layer=2, n_inner=10)


def random_params(config=CONFIG, tied=True, seed=4):
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in parameter_shapes(config, tied).items()
    }


def folder_of(tmp_path, arrays, **changes):
    """A folder of a few arrays and the configuration of transformers with some changes."""
    fields = json.loads((CASES / "prefix" / "config.json").read_text(encoding="utf-8")) | changes
    fields = {key: value for key, value in fields.items() if value is not ...}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    safetensors.write(tmp_path / "model.safetensors", arrays)
    return tmp_path


def refusal(function, *args):
    with pytest.raises(CheckpointError) as caught:
        function(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- every layout --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_layouts_give_transformers_logits(layout):
    with np.load(CASES / "expected.npz") as file:
        expected, tokens = file[layout], file["tokens"]
        if expected.dtype.kind == "U":  # the same as that one
            expected = file[str(expected)]
    model = load_folder(CASES / layout, 270)
    assert list(model.params) == list(parameter_shapes(model.config, layout != "untied"))
    assert model.dtype == np.float32
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-13)):
        logits, _ = as_dtype(model, dtype).forward(tokens)
        assert np.abs(logits - expected).max() / np.abs(expected).max() < tolerance


def test_what_is_not_widened_is_a_view_of_the_file():
    for layout in ("official", "padded", "sharded"):
        for name, array in load_folder(CASES / layout, 270).params.items():
            base = array
            while isinstance(base.base, np.ndarray):
                base = base.base
            assert isinstance(base, np.memmap), (layout, name)


def test_openai_layout():
    """Written by TensorFlow; eleven layers, whose names sort as h0, h1, h10, h2."""
    model = load_folder(GOLDEN / "tensorflow_tiny")
    assert model.config == Config(n_vocab=29, n_ctx=7, n_embd=6, n_head=2, n_layer=11)
    with np.load(GOLDEN / "tensorflow_tiny" / "expected.npz") as expected:
        assert len(model.params) == len(expected)
        for ours, theirs in (
            ("wte.weight", "model/wte"),
            ("ln_f.weight", "model/ln_f/g"),
            ("h.10.ln_1.bias", "model/h10/ln_1/b"),
            ("h.2.mlp.c_proj.bias", "model/h2/mlp/c_proj/b"),
        ):
            np.testing.assert_array_equal(model.params[ours], expected[theirs])
        w = expected["model/h10/attn/c_attn/w"]
        np.testing.assert_array_equal(model.params["h.10.attn.c_attn.weight"], w[0])


def test_openai_vocabulary_may_be_padded_too():
    config = Config(n_vocab=29, n_ctx=7, n_embd=6, n_head=2, n_layer=11)
    arrays = tensorflow.read(GOLDEN / "tensorflow_tiny")
    model = from_arrays(arrays, config, n_vocab=23)
    assert model.params["wte.weight"].shape == (23, 6)
    assert np.shares_memory(model.params["wte.weight"], arrays["model/wte"])


def test_official_names():
    for theirs, ours in {
        "model/wte": "wte.weight",
        "model/wpe": "wpe.weight",
        "model/h3/attn/c_proj/w": "h.3.attn.c_proj.weight",
        "model/h11/ln_2/g": "h.11.ln_2.weight",
        "model/ln_f/b": "ln_f.bias",
        "transformer.h.0.mlp.c_fc.bias": "h.0.mlp.c_fc.bias",
        "lm_head.weight": "lm_head.weight",
        "h.0.attn.bias": "h.0.attn.bias",
        "model/": "",
        "model/h1/w/x": "h.1.w.x",
    }.items():
        assert official_name(theirs) == ours


def test_lm_head_that_repeats_wte_is_dropped_and_another_one_is_kept():
    params = random_params()
    assert (
        "lm_head.weight"
        not in from_arrays(params | {"lm_head.weight": params["wte.weight"]}, CONFIG).params
    )
    other = params["wte.weight"].copy()
    other[-1, -1] += 1e-3
    model = from_arrays(params | {"lm_head.weight": other}, CONFIG)
    np.testing.assert_array_equal(model.params["lm_head.weight"], other)


def test_padding_is_never_sampled():
    """Rows beyond the vocabulary would be by far the likeliest here, in both tables."""
    config = dataclasses.replace(CONFIG, n_vocab=320)
    params = random_params(config, tied=False)
    for name in ("wte.weight", "lm_head.weight"):
        params[name][270:] = 50 * params[name][:50]
    model = from_arrays(params, config, n_vocab=270)
    assert model.config == CONFIG
    logits, _ = model.forward([[5, 7]])
    assert logits.shape == (1, 2, 270)
    whole = from_arrays(params, config)
    assert (whole.forward([[5, 7]])[0].argmax(-1) >= 270).all()
    # a configuration that says 270 while the arrays have 320 contradicts them
    text = refusal(from_arrays, params, CONFIG)
    assert "wte.weight is (320, 6) where (270, 6) is expected" in text


def test_dtypes():
    params = random_params()
    half = {name: array.astype(np.float16) for name, array in params.items()}
    assert from_arrays(half, CONFIG).dtype == np.float32
    double = {name: array.astype(np.float64) for name, array in params.items()}
    model = from_arrays(double, CONFIG)
    assert all(model.params[name] is double[name] for name in double)
    mixed = from_arrays(params | {"wpe.weight": double["wpe.weight"]}, CONFIG)
    assert mixed.dtype == np.float64
    np.testing.assert_array_equal(mixed.params["wte.weight"], params["wte.weight"])
    big_endian = {name: array.astype(">f4") for name, array in params.items()}
    np.testing.assert_array_equal(
        from_arrays(big_endian, CONFIG).params["wte.weight"], params["wte.weight"]
    )
    text = refusal(from_arrays, params | {"ln_f.bias": np.arange(6)}, CONFIG)
    assert "ln_f.bias is int64" in text
    wide = np.arange(6, dtype=np.longdouble)
    if wide.itemsize > 8:  # some systems have no wider numbers
        assert "ln_f.bias is" in refusal(from_arrays, params | {"ln_f.bias": wide}, CONFIG)


# ---- what does not fit is listed, all at once ----------------------------------------------------


def test_everything_wrong_is_in_one_message():
    params = random_params()
    del params["h.1.ln_2.bias"], params["wpe.weight"]
    params["h.0.mlp.c_fc.weight"] = params["h.0.mlp.c_fc.weight"].T
    params["ln_f.weight"] = np.float32(1)
    params |= {"transformer.ln_f.bias": np.ones(6), "score.weight": np.ones((6, 2))}
    text = refusal(from_arrays, params, CONFIG)
    for part in (
        "missing: wpe.weight, h.1.ln_2.bias",
        "unknown: 'score.weight'",
        "there twice: 'ln_f.bias' and 'transformer.ln_f.bias'",
        "h.0.mlp.c_fc.weight is (10, 6) where (6, 10) is expected (looks transposed",
        "ln_f.weight is () where (6,) is expected",
    ):
        assert part in text
    assert text.count("transposed") == 1


def test_long_lists_are_cut():
    text = refusal(from_arrays, {f"x.{i}.{'y' * 200}": np.ones(2) for i in range(900)}, CONFIG)
    assert "and 18 more" in text and "and 890 more" in text
    assert len(text) < 2000


def test_mask_buffers_are_ignored_by_name_and_shape():
    params = random_params()
    mask, value = np.ones((1, 1, 11, 11), np.uint8), np.float32(-1e4)
    fine = {"transformer.h.1.attn.bias": mask, "h.0.attn.masked_bias": value}
    assert list(from_arrays(params | fine, CONFIG).params) == list(params)
    for name, array in (
        ("h.0.attn.bias", np.ones(18, np.float32)),  # a c_attn.bias under a wrong name
        ("h.0.attn.bias", mask[..., :-1]),
        ("h.1.attn.masked_bias", np.ones(1)),
    ):
        assert f"misshapen: {name}" in refusal(from_arrays, params | {name: array}, CONFIG)
    for name in ("h.2.attn.bias", "h.00.attn.bias", "attn.bias", "h.0.attn.bias.x"):
        assert f"unknown: '{name}'" in refusal(from_arrays, params | {name: mask}, CONFIG)


def test_linear_weights_of_torch_are_recognised():
    params = {
        n: a.T if n.startswith("h.") and a.ndim == 2 else a for n, a in random_params().items()
    }
    text = refusal(from_arrays, params, CONFIG)
    # c_proj of the attention is square: nothing shows there
    assert text.count("looks transposed") == 6


def test_untied_needs_its_own_head(tmp_path):
    folder = folder_of(tmp_path, random_params(), tie_word_embeddings=False)
    assert "missing: lm_head.weight" in refusal(load_folder, folder)
    params = random_params(tied=False)
    del params["wte.weight"]
    assert "missing: wte.weight" in refusal(from_arrays, params, CONFIG, None, False)


def test_a_head_of_its_own_in_a_model_that_is_called_tied_is_kept_and_said(tmp_path):
    params = random_params(tied=False)
    for fields in ({}, {"tie_word_embeddings": True}):
        with pytest.warns(UserWarning, match="an lm_head.weight that differs .*: both are kept"):
            model = load_folder(folder_of(tmp_path, params, **fields))
        for name in ("lm_head.weight", "wte.weight"):
            np.testing.assert_array_equal(model.params[name], params[name])
    untied = load_folder(folder_of(tmp_path, params, tie_word_embeddings=False))  # no warning
    np.testing.assert_array_equal(untied.params["lm_head.weight"], params["lm_head.weight"])


SPELLINGS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def test_sizes_under_the_other_names_of_transformers(tmp_path):
    folder = folder_of(tmp_path, random_params())
    path = folder / "config.json"
    usual = json.loads(path.read_text(encoding="utf-8"))
    config = load_folder(folder).config
    other = {SPELLINGS.get(name, name): value for name, value in usual.items()}
    assert len(other.keys() - usual.keys()) == 4
    for fields in (other, usual | other):
        path.write_text(json.dumps(fields), encoding="utf-8")
        assert load_folder(folder).config == config
    for name, another in SPELLINGS.items():  # transformers goes by the other name
        path.write_text(json.dumps(usual | {another: 1}), encoding="utf-8")
        text = refusal(load_folder, folder)
        assert f"{name} = {usual[name]} and {another} = 1, which are two names of one" in text


def test_vocabularies_that_do_not_belong_together():
    params = random_params()
    for n_vocab in (271, 300, 1):
        model = (
            Config(n_vocab=1300, n_ctx=11, n_embd=6, n_head=3, n_layer=2)
            if n_vocab == 1
            else CONFIG
        )
        text = refusal(from_arrays, params, model, n_vocab)
        assert f"its tokenizer has {n_vocab}" in text


def test_up_to_1023_rows_may_be_padding():
    config = dataclasses.replace(CONFIG, n_vocab=1025)
    params = random_params(config)
    assert from_arrays(params, config, 2).config.n_vocab == 2
    assert "its tokenizer has 1:" in refusal(from_arrays, params, config, 1)
    for n_vocab, fits in ((1025, True), (2, True), (1, False), (1026, False)):
        tokenizer = types.SimpleNamespace(n_vocab=n_vocab, special={})
        if fits:
            check_vocabulary(1025, tokenizer, "a")
        else:
            assert "a is a model of 1,025 tokens" in refusal(check_vocabulary, 1025, tokenizer, "a")


def test_special_tokens_may_be_added_to_the_tokenizer_alone():
    """Those are an error when they are used; ordinary ones are another vocabulary."""
    added = {"<a>": 1025, "<b>": 1026}
    check_vocabulary(1025, types.SimpleNamespace(n_vocab=1027, special=added), "a")
    one = types.SimpleNamespace(n_vocab=1028, special=added)
    assert "its tokenizer has 1,028" in refusal(check_vocabulary, 1025, one, "a")


def test_only_a_convolution_of_width_one_is_a_matrix():
    params = random_params()
    w = params.pop("h.0.attn.c_attn.weight")
    theirs, ours = "model/h0/attn/c_attn/w", "h.0.attn.c_attn.weight"
    model = from_arrays(params | {theirs: w[None]}, CONFIG)
    np.testing.assert_array_equal(model.params[ours], w)
    for name, array in ((theirs, np.stack([w, w])), (theirs, w[None, None]), (ours, w[None])):
        shape = str(array.shape)
        assert f"{ours} is {shape} where (6, 18) is" in refusal(
            from_arrays, params | {name: array}, CONFIG
        )


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod."])
def test_what_a_wrapper_put_before_every_name_is_taken_off_and_said(wrapper, tmp_path):
    params = random_params()
    wrapped = {f"{wrapper}transformer.{name}": array for name, array in params.items()}
    with pytest.warns(UserWarning, match="is taken off the arrays' names"):
        model = from_arrays(wrapped, CONFIG)
    assert all(model.params[name] is params[name] for name in params)
    with pytest.warns(UserWarning, match="is taken off") as said:
        load_folder(folder_of(tmp_path, wrapped))
    assert {warning.filename for warning in said} == {__file__}
    odd = {name if "wpe" in name else f"{wrapper}{name}": a for name, a in params.items()}
    assert f"27 names begin with {wrapper!r}" in refusal(from_arrays, odd, CONFIG)  # not before all


def test_names_that_differ_by_a_prefix_are_one_sentence():
    params = random_params()
    for prefix in ("model.gpt.", "net.transformer."):
        text = refusal(from_arrays, {f"{prefix}{name}": a for name, a in params.items()}, CONFIG)
        assert text.startswith(f"this dict: {len(params)} names begin with {prefix!r}, and without")
        assert f"name.removeprefix({prefix!r})" in text and len(text) < 250
    one = {f"x.{name}" if name == "ln_f.bias" else name: a for name, a in params.items()}
    assert "1 names begin with 'x.'" in refusal(from_arrays, one, CONFIG)
    some = {f"x.{name}" if "attn" in name else name: a for name, a in params.items()}
    assert "8 names begin with 'x.'" in refusal(from_arrays, some, CONFIG)
    others = {f"{i}.{name}": array for i, (name, array) in enumerate(params.items())}
    assert "missing: " in refusal(from_arrays, others, CONFIG)


@pytest.mark.parametrize("name", ["gelu_fast", "gelu_accurate"])
def test_other_names_of_the_tanh_gelu(tmp_path, name):
    folder = folder_of(tmp_path, random_params(), activation_function=name)
    x = np.linspace(-9, 9, 999)
    theirs = {  # as transformers writes them
        "gelu_fast": 0.5 * x * (1 + np.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x))),
        "gelu_accurate": 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    }[name]
    assert np.abs(load_folder(folder).ops.gelu(x) - theirs).max() < 1e-11


def test_of_several_tensorflow_checkpoints_the_one_that_the_run_names(tmp_path):
    source = GOLDEN / "tensorflow_tiny"
    for step in (5, 40):
        for part in ("index", "data-00000-of-00001"):
            shutil.copy(source / f"model.ckpt.{part}", tmp_path / f"model-{step}.{part}")
    shutil.copy(source / "hparams.json", tmp_path)
    assert "should hold model.ckpt.index" in refusal(load_folder, tmp_path)
    for place in ("", "/content/run1/", "C:\\\\runs\\\\"):
        (tmp_path / "checkpoint").write_text(
            f'model_checkpoint_path: "{place}model-40"\nall_model_checkpoint_paths: "model-5"\n'
        )
        (tmp_path / "model-5.index").write_bytes(b"not looked at")
        assert load_folder(tmp_path).config.n_layer == 11
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model-41"\n')
    assert "model-40.index, model-5.index" in refusal(load_folder, tmp_path)


def test_a_configuration_of_a_billion_layers_costs_nothing():
    config = dataclasses.replace(CONFIG, n_layer=10**9)
    assert "1,000,000,000 layers" in refusal(from_arrays, random_params(), config)
    count = len(random_params())
    for n_layer, words in ((count, "missing: h.2"), (count + 1, f"{count + 1} layers, but holds")):
        config = dataclasses.replace(CONFIG, n_layer=n_layer)
        assert words in refusal(from_arrays, random_params(), config)


# ---- config.json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("activation_function", "gelu", "'gelu'"),
        ("activation_function", "relu", "has 'gelu_new'"),
        ("activation_function", None, "None"),
        ("scale_attn_weights", False, "scale_attn_weights = False"),
        ("scale_attn_by_inverse_layer_idx", True, "scale_attn_by_inverse_layer_idx = True"),
        ("add_cross_attention", True, "add_cross_attention"),
        ("model_type", "gptj", "'gptj'"),
        ("model_type", ["gpt2"], "['gpt2']"),
        ("vocab_size", ..., "missing: vocab_size"),
        ("n_positions", ..., "missing: n_positions"),
        ("n_head", ..., "missing: n_head"),
        ("n_head", 4, "cannot be divided"),
        ("n_head", 0, "n_head must be a positive integer"),
        ("n_layer", -2, "n_layer must be a positive integer"),
        ("n_layer", True, "not True"),
        ("n_embd", "6", "not '6'"),
        ("n_embd", 6.0, "not 6.0"),
        ("n_embd", [], "not []"),
        ("n_inner", {}, "not {}"),
        ("n_inner", 0, "n_inner must be"),
        ("layer_norm_epsilon", "1e-5", "'1e-5'"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon must be"),
        ("layer_norm_epsilon", 1, "layer_norm_epsilon must be"),
        ("layer_norm_epsilon", True, "expected a number"),
        ("tie_word_embeddings", "no", "'no'"),
    ],
)
def test_configurations_refused(tmp_path, key, value, part):
    assert part in refusal(load_folder, folder_of(tmp_path, random_params(), **{key: value}))


def test_configurations_accepted(tmp_path):
    folder = folder_of(
        tmp_path,
        random_params(),
        activation_function="gelu_pytorch_tanh",
        n_positions=...,
        n_ctx=11,
        layer_norm_epsilon=...,
        reorder_and_upcast_attn=True,  # the same numbers in another precision
        resid_pdrop="whatever",
    )
    assert load_folder(folder).config == CONFIG
    params = random_params(dataclasses.replace(CONFIG, n_inner=24))
    folder_of(tmp_path, params, n_inner=None)
    assert load_folder(folder).config.n_inner == 24


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b'{"n_embd": 6', b"\xff\xfe", b"[" * 99_999, b"7" * 9999],
)
def test_json_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    assert str(tmp_path / "config.json") in refusal(load_folder, tmp_path)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_folder(tmp_path / "nowhere")
    assert "not saved to the end" in refusal(load_folder, tmp_path)
    shutil.copy(CASES / "prefix" / "config.json", tmp_path)
    assert "holds no weights" in refusal(load_folder, tmp_path)
    (tmp_path / "training_args.bin").write_bytes(b"a pickle, but not of weights")
    assert "holds no weights" in refusal(load_folder, tmp_path)
    assert "name its folder" in refusal(load_folder, tmp_path / "config.json")


@pytest.mark.parametrize("name", ["model.gguf", "tf_model.h5", "flax_model.msgpack", "gpt2.bin"])
def test_weights_of_other_programs_are_refused_by_name(tmp_path, name):
    shutil.copy(CASES / "prefix" / "config.json", tmp_path)
    (tmp_path / name).write_bytes(b"\x5a\xd8\x34\x01" * 256)  # so begin llm.c's .bin files
    for path in (tmp_path, tmp_path / name):
        text = refusal(load_folder, path)
        assert f"{name} is not of a kind that numpygpt reads" in text and "save_pretrained" in text
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    if name != "gpt2.bin":
        assert "pytorch_model.bin is a pickle" in refusal(load_folder, tmp_path)


def test_safetensors_under_other_names_are_named(tmp_path):
    shutil.copy(CASES / "prefix" / "config.json", tmp_path)
    for name in ("model.fp16.safetensors", "model-00001-of-00002.safetensors"):
        shutil.copy(CASES / "prefix" / "model.safetensors", tmp_path / name)
        text = refusal(load_folder, tmp_path)
        assert name in text and "neither model.safetensors nor" in text and "index" in text


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt", "model.pth", "x.pkl", "a.ckpt"])
def test_pickles_are_refused_with_the_line_that_converts_them(tmp_path, name):
    shutil.copy(CASES / "prefix" / "config.json", tmp_path)
    (tmp_path / name).write_bytes(b"\x80\x02never opened")
    for path in (tmp_path, tmp_path / name):
        text = refusal(load_folder, path)
        assert "can run any code" in text
        assert 'python -c "import os, torch' in text  # run in test_pickles.py
    safetensors.write(
        tmp_path / "model.safetensors", safetensors.read(CASES / "prefix" / "model.safetensors")
    )
    assert (
        load_folder(tmp_path).config.n_vocab == 270
    )  # what is beside good weights does not matter


# ---- shards --------------------------------------------------------------------------------------

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def sharded(tmp_path, change):
    """The sharded folder with a changed index: `change` takes the weight_map."""
    shutil.copytree(CASES / "sharded", tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model.safetensors.index.json"
    fields = json.loads(index.read_text(encoding="utf-8"))
    change(fields["weight_map"])
    index.write_text(json.dumps(fields), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "../model.safetensors",
        "/etc/passwd",
        "/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "..",
        "",
        ".safetensors",
        ".hidden.safetensors",
        "model.safetensors\n",
        "model\0.safetensors",
        "pytorch_model.bin",
        "https://example.org/model.safetensors",
        7,
        None,
        [FIRST],
    ],
)
def test_shards_are_plain_names(tmp_path, file):
    (tmp_path / "inside").mkdir()
    shutil.copy(CASES / "prefix" / "model.safetensors", tmp_path)  # what "../" would reach
    folder = sharded(
        tmp_path / "inside", lambda places: places.update({"transformer.wte.weight": file})
    )
    assert "not the plain name" in refusal(load_folder, folder)


def test_shards_hold_what_the_index_says(tmp_path):
    name = "transformer.ln_f.bias"
    places = json.loads((CASES / "sharded" / "model.safetensors.index.json").read_text("utf-8"))
    other = SECOND if places["weight_map"][name] == FIRST else FIRST
    text = refusal(load_folder, sharded(tmp_path / "moved", lambda m: m.update({name: other})))
    assert name in text and "does not fit" in text
    text = refusal(load_folder, sharded(tmp_path / "less", lambda m: m.pop(name)))
    assert f"not in the index: '{name}'" in text
    text = refusal(load_folder, sharded(tmp_path / "more", lambda m: m.update({"x": FIRST})))
    assert "missing: 'x'" in text
    text = refusal(load_folder, sharded(tmp_path / "empty", lambda m: m.clear()))
    assert "no weight_map" in text
    index = tmp_path / "empty" / "model.safetensors.index.json"
    index.write_text('{"weight_map": [1]}', encoding="utf-8")
    assert "no weight_map" in refusal(load_folder, tmp_path / "empty")


def test_absent_shards_are_all_named(tmp_path):
    folder = sharded(tmp_path, lambda places: None)
    for file in (FIRST, SECOND):
        (folder / file).unlink()
    text = refusal(load_folder, folder)
    assert FIRST in text and SECOND in text


# ---- saving --------------------------------------------------------------------------------------

WRITTEN = ["config.json", "merges.txt", "model.safetensors", "tokenizer_config.json", "vocab.json"]


@pytest.fixture(scope="module")
def tokenizer():
    return vocabulary.read(CASES / "ours")


def test_what_is_saved_now_is_byte_for_byte_what_transformers_loaded(tmp_path, tokenizer):
    save(load_folder(CASES / "ours"), tokenizer, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == WRITTEN
    for name in WRITTEN:
        assert (tmp_path / "new" / "folder" / name).read_bytes() == (
            CASES / "ours" / name
        ).read_bytes()
    record = json.loads((CASES / "reproduced.json").read_text(encoding="utf-8"))
    assert set(record["folders"]) == {"ours", "float64", "float16", "untied", "official vocabulary"}
    for folder in record["folders"].values():
        assert folder["relative_gap"]["float64"] < 1e-12
        assert max(folder["relative_gap"].values()) < 1e-6


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_round_trip_is_exact(tmp_path, tokenizer, dtype, tied):
    config = dataclasses.replace(CONFIG, layer_norm_epsilon=3e-4)
    params = {name: array.astype(dtype) / 3 for name, array in random_params(config, tied).items()}
    save(GPT2(config, params), tokenizer, tmp_path)
    # transformers has the head outside of what it calls the transformer
    names = set(safetensors.read(tmp_path / "model.safetensors"))
    assert {n for n in names if not n.startswith("transformer.")} == params.keys() & {
        "lm_head.weight"
    }
    model, read = numpygpt.load(tmp_path)
    assert model.config == config and model.dtype == dtype
    assert list(model.params) == list(params)
    assert all(model.params[name].tobytes() == params[name].tobytes() for name in params)
    assert (read.tokens, read.merges, read.special) == (
        tokenizer.tokens,
        tokenizer.merges,
        tokenizer.special,
    )


def test_a_changed_bit_is_refused_and_a_large_file_is_checked_once(
    tmp_path, tokenizer, monkeypatch
):
    path = tmp_path / "model.safetensors"
    save(GPT2(CONFIG, random_params()), tokenizer, tmp_path)
    load_folder(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == WRITTEN
    size = path.stat().st_size
    monkeypatch.setattr(checkpoint, "LARGE", size + 1)
    load_folder(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == WRITTEN
    monkeypatch.setattr(checkpoint, "LARGE", size)
    load_folder(tmp_path)
    checks = []
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "check", checks.append)
        load_folder(tmp_path)
    assert not checks
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="model.safetensors is damaged: its bytes no"):
            load_folder(tmp_path)


def test_sizes_from_numpy_can_be_saved(tmp_path, tokenizer):
    config = Config(*map(np.int64, (270, 11, 6, 3, 2, 10)), layer_norm_epsilon=np.float32(0.5))
    save(GPT2(config, random_params(config)), tokenizer, tmp_path)
    assert load_folder(tmp_path).config == config


@pytest.mark.parametrize(("ends", "written"), [([269], 269), ([7, 269], [7, 269]), ([], None)])
def test_the_ids_that_end_a_text_are_saved(tmp_path, tokenizer, ends, written):
    others = Tokenizer(tokenizer.tokens, tokenizer.merges, tokenizer.special, ends=ends)
    save(GPT2(CONFIG, random_params()), others, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert fields["eos_token_id"] == written


def test_a_path_in_a_line_for_the_shell_is_shown_as_it_is():
    """But for what a shell would expand, and for quotes."""
    assert checkpoint._literal("/a b/ç-1_2.bin: ") == "'/a b/ç-1_2.bin: '"
    assert checkpoint._literal("$a'`\n") == r"'\U00000024a\U00000027\U00000060\U0000000a'"


def test_half_precision(tmp_path, tokenizer):
    params = random_params()
    save(GPT2(CONFIG, params), tokenizer, tmp_path, dtype=np.float16)
    assert safetensors.DTYPES["F16"] == "<f2"
    assert (tmp_path / "model.safetensors").read_bytes().count(b'"F16"') == len(params)
    model = load_folder(tmp_path)
    assert model.dtype == np.float32
    np.testing.assert_array_equal(
        model.params["wte.weight"], params["wte.weight"].astype(np.float16).astype(np.float32)
    )


def test_numbers_too_large_for_half_precision_are_refused(tmp_path, tokenizer):
    params = random_params()
    params["ln_f.weight"][2] = 65_520  # rounds to infinity; 65504 is the largest
    with pytest.raises(ValueError, match="ln_f.weight has numbers beyond the range of float16"):
        save(GPT2(CONFIG, params), tokenizer, tmp_path, dtype=np.float16)
    params["ln_f.weight"][2] = 65_504
    save(GPT2(CONFIG, params), tokenizer, tmp_path, dtype=np.float16)
    assert load_folder(tmp_path).params["ln_f.weight"][2] == 65_504


@pytest.mark.parametrize("dtype", [np.int8, np.complex64, np.longdouble, bool])
def test_other_dtypes_cannot_be_saved(tmp_path, tokenizer, dtype):
    with pytest.raises(ValueError, match="dtype must be float16, float32 or float64"):
        save(GPT2(CONFIG, random_params()), tokenizer, tmp_path / "x", dtype)
    assert not (tmp_path / "x").exists()


def test_a_folder_can_be_saved_into_itself(tmp_path, tokenizer):
    """Its arrays are views of the file that is replaced."""
    shutil.copytree(CASES / "ours", tmp_path, dirs_exist_ok=True)
    model, _ = numpygpt.load(tmp_path)
    model.params["ln_f.bias"] += 1
    save(model, tokenizer, tmp_path)
    again = load_folder(tmp_path)
    assert all(np.array_equal(again.params[n], model.params[n]) for n in model.params)
    original = load_folder(CASES / "ours").params["ln_f.bias"]
    np.testing.assert_array_equal(again.params["ln_f.bias"], original + 1)


def test_saving_over_shards_leaves_one_model(tmp_path, tokenizer):
    shutil.copytree(CASES / "sharded", tmp_path, dirs_exist_ok=True)
    params = random_params()
    save(GPT2(CONFIG, params), tokenizer, tmp_path)
    np.testing.assert_array_equal(load_folder(tmp_path).params["wte.weight"], params["wte.weight"])


@pytest.mark.parametrize("name", [*checkpoint.STALE, checkpoint.LORA])
def test_files_that_transformers_would_read_first_are_not_saved_beside(tmp_path, tokenizer, name):
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=f"holds {name}, which transformers would read"):
        save(GPT2(CONFIG, random_params()), tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_tokenizer_of_another_model_is_refused(tmp_path, tokenizer):
    config = dataclasses.replace(CONFIG, n_vocab=261)
    with pytest.raises(ValueError, match="do not belong together"):
        save(GPT2(config, random_params(config)), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_that_does_not_fit_its_configuration_is_not_saved(tmp_path, tokenizer):
    wrong = np.ones((6, 5), np.float32)
    for change, words in (
        (lambda params: params.pop("h.1.ln_2.bias"), "missing: h.1.ln_2.bias"),
        (lambda params: params.update({"h.0.mlp.c_fc.weight": wrong}), "misshapen: h.0.mlp.c_fc"),
        (lambda params: params.update({"h.2.ln_2.bias": wrong}), "unknown: 'h.2.ln_2.bias'"),
    ):
        model = GPT2(CONFIG, random_params())
        change(model.params)
        with pytest.raises(ValueError, match=f"the model that is to be saved is not .*{words}"):
            save(model, tokenizer, tmp_path / "new")
    with pytest.raises(TypeError, match="with its Tokenizer, .* not with a NoneType"):
        save(GPT2(CONFIG, random_params()), None, tmp_path / "new")
    assert not list(tmp_path.iterdir())


class Killed(BaseException):
    pass


def test_killed_at_any_moment_a_folder_is_old_or_new_or_none(tmp_path, tokenizer, monkeypatch):
    """Stop at each call that changes the disk, without tidying up, as SIGKILL would."""
    old, new = random_params(seed=1), random_params(seed=2)
    wider = dataclasses.replace(CONFIG, layer_norm_epsilon=1e-3)
    save(GPT2(CONFIG, old), tokenizer, tmp_path / "old")
    outcomes = []
    for moment in range(40):
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(moment))
        with monkeypatch.context() as patch:
            survived = kill_at(moment, patch)
            try:
                save(GPT2(wider, new), tokenizer, folder)
            except Killed:
                pass
        try:
            model, _ = numpygpt.load(folder)
        except CheckpointError as error:
            assert "not saved to the end" in str(error)
            outcomes.append("none")
        else:
            expected = new if model.config == wider else old
            assert all(np.array_equal(model.params[n], expected[n]) for n in old)
            outcomes.append("new" if model.config == wider else "old")
        save(GPT2(wider, new), tokenizer, folder)  # and another save always mends it
        assert sorted(path.name for path in folder.iterdir()) == WRITTEN
        if survived():
            break
    assert outcomes[-1] == "new" and outcomes[0] == "old" and "none" in outcomes
    assert outcomes == sorted(outcomes, key=["old", "none", "new"].index)


def kill_at(moment, patch):
    """Raise Killed at the moment-th call and at every later one; -> whether none was left to do."""
    calls = []
    for module, name in (
        (checkpoint.os, "replace"),
        (checkpoint.os, "fsync"),
        (checkpoint.Path, "unlink"),
        (checkpoint.Path, "mkdir"),
        (checkpoint.shutil, "rmtree"),
        (safetensors.os, "remove"),
    ):
        real = getattr(module, name)

        def call(*args, real=real, **options):
            calls.append(real)
            if len(calls) > moment:
                raise Killed
            return real(*args, **options)

        patch.setattr(module, name, call)
    return lambda: len(calls) <= moment


# ---- foreign bytes -------------------------------------------------------------------------------


def test_damaged_files_raise_nothing_else(tmp_path):
    """Any byte of the small files and of a header changed: it loads, or raises CheckpointError."""
    rng = np.random.default_rng(8)
    loaded = 0
    for trial in range(120):
        folder = tmp_path / str(trial)
        shutil.copytree(CASES / "sharded", folder)
        path = folder / rng.choice(["config.json", FIRST, "model.safetensors.index.json"])
        data = bytearray(path.read_bytes())
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(min(len(data), 1500))] = rng.integers(256)
        path.write_bytes(data[: len(data) if rng.random() < 0.8 else rng.integers(len(data))])
        try:
            load_folder(folder, 270)
            loaded += 1
        except CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < 4000
        shutil.rmtree(folder)
    assert 0 < loaded < 100


def test_faults_are_listed_up_to_ten_and_then_counted():
    for count, words in (
        (9, "x: 0, 1, 2, 3, 4, 5, 6, 7, 8$"),
        (10, "7, 8, 9$"),
        (12, "9 and 2 more$"),
    ):
        with pytest.raises(CheckpointError, match=words):
            checkpoint.raise_all("this file", {"x": [str(i) for i in range(count)], "y": []})
    checkpoint.raise_all("this file", {"x": []})  # nothing is wrong
