"""What a porter needs besides: gradients beside ours, raw folders and their readers, fixtures."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from commands import save_golden
from golden import models

import numpygpt
from numpygpt import cli, ops
from numpygpt.check import backward
from numpygpt.check.diagnose import report
from numpygpt.check.fixtures import STRINGS, tokenizer_fixtures
from numpygpt.check.mistakes.forward import to_bfloat16, to_float16
from numpygpt.check.trace import replay
from numpygpt.formats import dump
from numpygpt.model import GPT2, Config, as_dtype, with_ops

PORTING = Path(__file__).parent.parent / "notebooks" / "porting"
SIZES = Config(23, 11, 28, 4, 3, n_inner=19)
MODEL = GPT2(SIZES, models.weights(SIZES, 5, {"wte": 0.5, "wpe": 0.3, "final_gain": 1.0}))
TOKENS = np.array([[3, 22, 0, 7, 7], [1, 9, 14, 2, 20]])


def trained(model=MODEL, **more):
    """Loss and gradients of a float32 program."""
    return backward.loss_and_gradients(model, TOKENS, **more)


def compare(theirs, tokens=TOKENS):
    return numpygpt.compare(theirs, MODEL, tokens)


# ---- gradients ----------------------------------------------------------------------------------


def test_the_gradients_are_those_of_the_model():
    loss, grads = MODEL.loss_and_grads(TOKENS[:, :-1], TOKENS[:, 1:])
    ours = trained()
    assert ours["loss"][0] == pytest.approx(loss, rel=1e-6)
    for name, gradient in grads.items():
        apart = np.abs(ours[f"grad.{name}"] - gradient).max() / np.abs(gradient).max()
        assert apart < 1e-5, name


def test_padding_does_not_count():
    pads = np.array([2, 0])
    ours = backward.loss_and_gradients(MODEL, TOKENS, pads)
    assert ours["loss_mask"].tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    other = TOKENS.copy()
    other[0, :2] = 19
    again = backward.loss_and_gradients(MODEL, other, pads)
    np.testing.assert_allclose(again["grad.ln_f.weight"], ours["grad.ln_f.weight"], rtol=1e-5)


def test_right_gradients_agree():
    found = compare(trained())
    assert found.verdict == "agrees" and found.exit_status == 0
    assert {row.name for row in found.rows} == {"loss"} | {f"grad.{n}" for n in MODEL.params}
    wide = backward.loss_and_gradients(as_dtype(MODEL, np.float64), TOKENS)
    narrow = trained()
    apart = [np.abs(wide[n] - narrow[n]).max() / np.abs(wide[n]).max() for n in wide if "grad" in n]
    assert max(apart) < backward.CLOSE / 10


def test_names_and_layouts_of_others():
    ours = trained()
    theirs = {"loss": ours["loss"][0]}
    for name in MODEL.params:
        gradient = ours[f"grad.{name}"]
        turn = gradient.ndim == 2 and name[:2] == "h."  # as torch.nn.Linear has them
        theirs[f"transformer.{name}.grad"] = gradient.T if turn else gradient
    found = compare(theirs)
    assert found.verdict == "agrees" and len(found.rows) == len(theirs)
    stacked = {"grad.lnfw": ours["grad.ln_f.weight"]}
    stacked["grad.fcb"] = np.stack([ours[f"grad.h.{i}.mlp.c_fc.bias"] for i in range(3)])
    found = compare(stacked)
    assert found.verdict == "agrees" and len(found.rows) == 4


def turned(arrays):
    """Weights as torch.nn.Linear has them, the square one of attention too."""
    return {
        n: a.T if ".h." in f".{n}" and n.endswith("weight") and a.ndim == 2 else a
        for n, a in arrays.items()
    }


def test_square_weights_lie_as_the_others_do():
    ours = trained()
    for form in (turned, lambda arrays: {n: a.T for n, a in arrays.items()}):
        assert compare(form(ours)).verdict == "agrees"
        found = compare(form(MODEL.params))
        assert found.verdict == "agrees" and len(found.rows) == len(MODEL.params)
    name = "grad.h.1.attn.c_proj.weight"
    found = compare(turned(ours) | {name: ours[name]})
    assert found.first == name and "are ours transposed" in found.relations[0].text


@pytest.mark.parametrize("form", ["d_{}", "gradients/{}", "{}_grad", "grads.{}"])
def test_what_gradients_are_called(form):
    ours = trained()
    found = compare({form.format(n): ours[f"grad.{n}"] for n in MODEL.params})
    assert found.verdict == "agrees" and len(found.rows) == len(MODEL.params)
    found = compare({form.format(n): 2 * ours[f"grad.{n}"] for n in MODEL.params})
    assert found.first == "grad.ln_f.bias" and "2 times ours" in found.relations[0].text


def test_gradients_of_blocks_counted_from_one():
    ours = trained()
    dump = {re.sub(r"(?<=h\.)\d", lambda i: str(int(i[0]) + 1), n): a for n, a in ours.items()}
    assert "grad.h.3.ln_1.bias" in dump and compare(dump).verdict == "agrees"
    dump["grad.h.3.ln_1.bias"] = 3 * dump["grad.h.3.ln_1.bias"]
    assert compare(dump).first == "grad.h.2.ln_1.bias"


def test_one_gradient_that_is_wrong_by_itself():
    ours = trained()
    found = compare(ours | {"grad.h.1.mlp.c_fc.bias": 1.5 * ours["grad.h.1.mlp.c_fc.bias"]})
    assert found.note.startswith("the first wrong backward is that of h.1.mlp.c_fc.bias itself")
    found = compare(ours | {"grad.h.1.mlp.c_fc.bias": ours["grad.h.1.mlp.c_fc.bias"][:7]})
    assert found.verdict == "differs" and "has shape (7,), ours" in found.note
    names = [f"grad.h.1.mlp.c_fc.{part}" for part in ("weight", "bias")]
    both = {name: 2 * ours[name] for name in names}
    assert "after grad.h.1.mlp.c_proj.weight, which is right" in compare(ours | both).note


def test_gradients_and_losses_that_are_not_numbers():
    ours = trained()
    name = "grad.h.1.ln_2.weight"
    spoilt = ours[name].copy()
    spoilt[3] = np.nan
    relation = compare(ours | {name: spoilt}).relations[0]
    assert relation.kind == "nan" and f"NaN or infinite at 1 of {spoilt.size}" in relation.text
    assert compare({"loss": np.array(np.nan)}).relations[0].text == "their loss is NaN"
    assert compare({"loss": np.array(np.inf)}).relations[0].text == "their loss is infinite"


def test_a_loss_for_each_token_and_a_curve_of_losses():
    ours = trained()
    log_p = ops.log_softmax(np.asarray(MODEL.forward(TOKENS)[0], np.float64))
    losses = -np.take_along_axis(log_p, ours["targets"][..., None], 2)[..., 0]
    for each in (losses, losses[:, :-1]):
        assert compare({"loss": each}).verdict == "agrees"
        assert "2 times ours" in compare({"loss": 2 * each}).relations[0].text
    found = compare(ours | {"loss": np.linspace(4, 3, 50)})
    assert found.not_compared == ("loss",) and "loss" not in [row.name for row in found.rows]


def test_other_weights_are_said_beside_what_follows_from_them():
    name = "h.1.attn.c_attn.weight"
    other = GPT2(MODEL.config, MODEL.params | {name: 1.01 * MODEL.params[name]})
    found = compare(replay(other, TOKENS) | {f"param.{n}": a for n, a in other.params.items()})
    assert found.first == "h.1.attn.c_attn"
    assert found.note.startswith(f"their param.{name} are not those of this model")


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_parameters_in_half_precision_are_no_other_weights(half):
    rounding = {"float16": to_float16, "bfloat16": to_bfloat16}[half]
    rounded = {n: rounding(a) for n, a in MODEL.params.items()}
    found = compare(rounded)
    assert (found.verdict, found.precision, found.exit_status) == ("precision", half, 3)
    assert f"rounded to {half}" in found.note
    found = compare(rounded | {"wpe.weight": rounded["wpe.weight"] * 2})
    assert found.verdict == "differs" and "not those of this model" in found.note


# a wrong backward -> the first gradient that is wrong, a part of the sentence
WRONG = {
    "gelu_backward": (lambda dy, x: dy * (x > 0), "grad.h.2.mlp.c_fc.bias", "gelu_backward"),
    "softmax_backward": (
        lambda dy, x, y=None: (ops.softmax(x) if y is None else y) * dy,
        "grad.h.2.attn.c_attn.bias", "softmax",
    ),
    "layer_norm_backward": (
        lambda dy, x, g, b, eps: (dy * g, *ops.layer_norm_backward(dy, x, g, b, eps)[1:]),
        "grad.h.2.mlp.c_proj.bias", "layer_norm_backward of the norm behind it",
    ),
    "linear_backward": (
        lambda dy, x, w, b: (ops.linear_backward(dy, x, w, b)[0],
                             ops.linear_backward(dy, x, w, b)[1] * 0.5,
                             ops.linear_backward(dy, x, w, b)[2]),
        "grad.h.2.mlp.c_proj.weight", "mlp.c_proj.weight itself",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_backward_is_told(name):
    wrong, first, words = WRONG[name]
    found = compare(trained(with_ops(MODEL, **{name: wrong})))
    assert found.verdict == "differs" and found.first == first, report(found)
    assert words in found.note


def test_relations_of_gradients():
    ours = trained()
    table = ops.unembed_backward
    logits, acts = MODEL.forward(TOKENS, keep="backward")
    d = ops.cross_entropy_backward(np.float32(1), logits, ours["targets"], ours["loss_mask"])
    unembedding = table(d, acts["ln_f"], MODEL.params["wte.weight"])[1]
    found = compare(ours | {"grad.wte.weight": unembedding})
    assert "lack the gradient of the embedding" in found.relations[0].text
    summed = {n: 8 * a if "grad" in n else a for n, a in ours.items()}
    found = compare(summed)
    assert "8 times ours, and 8 targets count: the loss was summed" in found.relations[0].text
    square = ours | {"grad.h.2.attn.c_proj.weight": ours["grad.h.2.attn.c_proj.weight"].T}
    found = compare(square)
    assert "are ours transposed" in found.relations[0].text


def test_a_wrong_loss_is_named():
    ours = trained()
    found = compare({"loss": ours["loss"] * 8})
    assert found.first == "loss" and "summed over 8 targets" in found.relations[0].text
    logits = MODEL.forward(TOKENS)[0]
    shares = ops.cross_entropy(logits, ours["targets"], ours["loss_mask"]) * 0.8
    found = compare({"loss": np.array([shares])})
    assert found.cause == "loss-divided-by-all" and found.exit_status == 1


def test_their_own_targets_and_other_weights():
    targets = np.array([[1, 2, 3, -100, -100], [4, 5, 6, 7, 8]])
    theirs = trained(targets=np.maximum(targets, 0), mask=targets >= 0)
    theirs |= {"targets": targets}
    theirs.pop("loss_mask")
    assert compare(theirs).verdict == "agrees"
    found = compare({"param.ln_f.bias": MODEL.params["ln_f.bias"] + 1} | trained())
    assert found.first == "param.ln_f.bias" and "the same weights" in found.note


# ---- the command, and the raw folder ------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_golden(tmp_path_factory.mktemp("model"), MODEL.params)


@pytest.mark.parametrize("name", ["state.npz", "state.safetensors", "state/", "state"])
def test_all_of_a_training_step_in_one_command(name, folder, tmp_path, capsys):
    out = f"{tmp_path}/{name}"
    words = ["--tokens", "3 22 0 7 7", "--tokens", "1 9 14 2 20", "--model", str(folder)]
    assert cli.main(["trace", *words, "--backward", "--params", "-o", out]) == 0
    arrays = dump.read(out)
    assert {f"param.{n}" for n in MODEL.params} | {f"grad.{n}" for n in MODEL.params} < set(arrays)
    assert {"tokens", "logits", "loss", "targets"} < set(arrays)
    assert dump.model_of(out, arrays) == str(folder)
    capsys.readouterr()
    assert cli.main(["compare", out]) == 0
    assert "agrees" in capsys.readouterr().out


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    path = tmp_path_factory.mktemp("raw") / "state"
    record = MODEL.forward(TOKENS, keep="everything")[1]
    dump.write(path, {n: np.asarray(a) for n, a in record.items()}, "a model")
    return path


def expect_listing(printed, raw):
    arrays = dump.read(raw)
    lines = [line.split() for line in printed.splitlines()]
    assert [line[0] for line in lines] == list(arrays)
    for name, *shape, total in lines:
        array = arrays[name].astype(np.float64)
        assert tuple(map(int, shape)) == array.shape
        assert float(total) == pytest.approx(array[array > -1e30].sum(), rel=1e-5, abs=1e-5)


def test_the_reader_in_c(raw, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = tmp_path / "read_trace"
    words = [compiler, "-Wall", "-O1", "-o", str(program), str(PORTING / "read_trace.c")]
    made = subprocess.run(words, capture_output=True, text=True)
    assert made.returncode == 0 and made.stderr == "", made.stderr
    ran = subprocess.run([str(program), str(raw)], capture_output=True, text=True, check=True)
    expect_listing(ran.stdout, raw)


def test_the_reader_in_javascript(raw):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    words = [node, str(PORTING / "read_trace.js"), str(raw)]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    expect_listing(ran.stdout, raw)


def test_the_readers_are_short():
    for path in PORTING.glob("read_trace.*"):
        assert len(path.read_text().splitlines()) <= 46


def test_a_broken_folder_is_one_sentence(raw, tmp_path, capsys):
    for damage in ("missing", "short", "index", "shape"):
        path = tmp_path / damage
        shutil.copytree(raw, path)
        if damage == "missing":
            (path / "ln_f.f32").unlink()
        elif damage == "short":
            (path / "ln_f.f32").write_bytes(b"1234")
        elif damage == "index":
            (path / "index.json").write_text('{"tensors": [1]}')
        else:
            (path / "index.json").write_text('{"tensors": {"ln_f": {"file": "ln_f.f32"}}}')
        assert cli.main(["compare", str(path)]) == 2, damage
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1, damage


def test_an_index_cannot_point_out_of_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"1234")
    inside = tmp_path / "inside"
    inside.mkdir()
    entry = {"file": "../secret", "shape": [1]}
    (inside / "index.json").write_text(json.dumps({"tensors": {"x": entry}}))
    with pytest.raises(ValueError, match="secret is missing"):
        dump.read(inside)


# ---- tokenizer fixtures -------------------------------------------------------------------------


def test_tokenizer_fixtures(tmp_path, capsys):
    assert cli.main(["trace", "--tokenizer-fixtures"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert cli.main(["trace", "--tokenizer-fixtures", "-o", str(tmp_path / "fixtures.json")]) == 0
    written = json.loads((tmp_path / "fixtures.json").read_text(encoding="utf-8"))
    assert printed == written and [c["text"] for c in printed["cases"]] == list(STRINGS)
    for case in printed["cases"]:
        assert bytes.fromhex("".join(case["bytes"])) == case["text"].encode()
        assert len(case["ids"]) == len(case["bytes"])
    tokenizer = numpygpt.Tokenizer.gpt2()
    assert tokenizer_fixtures(tokenizer) == printed["cases"]
    assert printed["cases"][1]["ids"] == [220]  # a space


def test_the_prompt_is_taken_as_trace_takes_it(tmp_path, capsys):
    ours, prompt = str(tmp_path / "ours.npz"), "Once upon a time"
    assert cli.main(["trace", prompt, "-o", ours, "--names", "ln_f", "logits"]) == 0
    arrays = {n: a for n, a in dump.read(ours).items() if n in ("ln_f", "logits")}
    np.savez(tmp_path / "theirs.npz", **arrays)
    capsys.readouterr()
    theirs = str(tmp_path / "theirs.npz")
    assert cli.main(["compare", theirs, prompt]) == 0
    assert cli.main(["compare", ours, theirs, prompt]) == 0
    assert cli.main(["compare", theirs, "--prompt", prompt]) == 0
    assert cli.main(["compare", theirs, "Once upon a day"]) == 1
    assert cli.main(["compare", theirs, "absent.npz"]) == 2
    capsys.readouterr()
    assert cli.main(["compare", theirs, prompt, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "agrees"


def test_nothing_compared_is_misuse(tmp_path, capsys):
    np.savez(tmp_path / "theirs.npz", tokens=np.array([[1, 2, 3]]))
    assert cli.main(["compare", str(tmp_path / "theirs.npz")]) == 2
    assert "nothing was compared" in capsys.readouterr().err


def test_the_model_that_nobody_named_is_said(tmp_path, capsys):
    file = tmp_path / "theirs.npz"
    np.savez(file, logits=np.zeros((1, 2, 23), np.float32))
    assert cli.main(["compare", str(file), "--tokens", "3 5"]) == 1
    said = capsys.readouterr()
    assert "no --model is given: comparing with the bundled model, stories" in said.err
    assert "is it the model that was run?" in said.out


def test_a_map_from_a_file(folder, tmp_path, capsys):
    record = MODEL.forward(TOKENS, keep="everything")[1]
    np.savez(tmp_path / "theirs.npz", tokens=TOKENS, a=record["ln_f"], b=record["logits"] * 2)
    path = tmp_path / "map.json"
    words = ["compare", str(tmp_path / "theirs.npz"), "--model", str(folder), "--names", str(path)]
    path.write_text('{"a": "ln_f", "b": null}')
    assert cli.main([*words]) == 0
    assert "not compared: b" in capsys.readouterr().out
    for text in ("[1]", "{", '{"a": "nothing"}', '{"a": 3}', '{"c": "ln_f"}'):
        path.write_text(text)
        assert cli.main([*words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
