"""The catalogue beside the record, replays, other libraries' names and layouts, the commands."""

import json
import re

import numpy as np
import pytest
from commands import save_golden
from golden import models

from numpygpt import cli
from numpygpt.check import backward, trace
from numpygpt.formats import dump, safetensors
from numpygpt.model import GPT2, Config, with_ops

# No two sizes are alike: B T H D C F L V n_ctx = 2 5 3 4 12 19 ... as in the fixture below.
SIZES = Config(23, 11, 28, 4, 3, n_inner=19)
LETTERS = {"B": 2, "T": 5, "S": 5, "H": 4, "D": 7, "C": 28, "3C": 84, "F": 19, "V": 23}
SCALES = {"wte": 0.5, "wpe": 0.3, "final_gain": 1.0}
TOKENS = np.array([[3, 22, 0, 7, 7], [1, 9, 14, 2, 20]])


@pytest.fixture(scope="module")
def model():
    return GPT2(SIZES, models.weights(SIZES, 5, SCALES))


@pytest.fixture(scope="module")
def record(model):
    return model.forward(TOKENS, keep="everything")[1]


# ---- the catalogue ------------------------------------------------------------------------------


@pytest.mark.parametrize("pads", [None, np.array([0, 2])])
def test_the_record_is_the_catalogue_in_order(model, pads):
    acts = model.forward(TOKENS, pads=pads, keep="everything")[1]
    entries = trace.entries(SIZES.n_layer)
    if pads is None:
        entries = {name: entry for name, entry in entries.items() if name != "pads"}
    assert list(acts) == list(entries)
    for name, entry in entries.items():
        letters = entry.shape.split()
        if name == "wpe" and pads is not None:  # then each row has its own positions
            letters = ["B", *letters]
        assert acts[name].shape == tuple(LETTERS[x] for x in letters), name


def test_every_entry_has_a_source_and_a_formula():
    for entry in trace.CATALOGUE:
        assert re.match(r"model\.py:\d+: .*save\(", entry.source), entry.name
        assert entry.formula
    assert len({entry.source for entry in trace.CATALOGUE}) >= len(trace.CATALOGUE) - 2  # q k v
    assert trace.catalogue().count("model.py:") == len(trace.CATALOGUE)


def trace_of(record):
    return record | {"wpe": np.broadcast_to(record["wpe"], record["wte"].shape)}


# ---- replays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pads", [None, np.array([0, 2])])
def test_a_replay_on_nothing_is_the_forward_pass(model, pads):
    acts = model.forward(TOKENS, pads=pads, keep="everything")[1]
    acts.pop("pads", None)
    replayed = trace.replay(model, TOKENS, pads)
    assert list(replayed) == list(acts)
    for name, array in acts.items():
        np.testing.assert_array_equal(replayed[name], np.broadcast_to(array, replayed[name].shape))


@pytest.mark.parametrize("pads", [None, np.array([0, 2])])
def test_the_pieces_of_a_cached_run_are_joined(model, pads):
    model = GPT2(SIZES, {name: a.astype(np.float64) for name, a in model.params.items()})
    whole = trace.replay(model, TOKENS, pads)
    pieces = trace.replay(model, TOKENS, pads, [2, 1, 2])
    assert list(pieces) == list(whole)
    assert max(trace.gap(pieces[name], whole[name]) for name in whole) < 1e-12
    with pytest.raises(ValueError, match="do not add up to the 5 tokens"):
        trace.replay(model, TOKENS, pads, [2, 2])


@pytest.mark.parametrize("chunks", [None, [3, 2]])
def test_each_step_works_on_their_numbers(model, record, chunks):
    """A port that is wrong everywhere by itself is right in no step; one that is wrong in one step
    differs in that alone, though all that follows has changed."""
    wrong = {name: a for name, a in trace_of(record).items() if name != "positions"}
    wrong["h.1.attn.k"] = wrong["h.1.attn.k"] + 1
    replayed = trace.replay(model, TOKENS, None, chunks, wrong)
    # Adding 1 to the keys changes the scores of a row alike, so that the softmax forgets it.
    differing = {name for name in wrong if trace.gap(wrong[name], replayed[name]) > 1e-6}
    assert differing == {"h.1.attn.k", "h.1.attn.scores"}
    scaled = {name: 2 * array for name, array in wrong.items() if name != "tokens"}
    replayed = trace.replay(model, TOKENS, None, chunks, scaled)
    assert trace.gap(replayed["h.0.resid_mid"], scaled["h.0.resid_mid"]) < 1e-6  # sums are linear
    np.testing.assert_array_equal(replayed["wte"], record["wte"])  # nothing of theirs comes before


def test_the_first_blocks_are_a_model(model, record):
    short = trace.replay(trace.first_blocks(model, 1), TOKENS)
    assert list(trace.entries(1)) == [*list(short)[:2], "pads", *list(short)[2:]]
    np.testing.assert_array_equal(short["h.0.resid_post"], record["h.0.resid_post"])
    assert trace.first_blocks(model, 3) is model


# ---- two tensors side by side -------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [-np.inf, -1e4, -1e10, np.finfo(np.float32).min])
def test_whatever_masks_the_scores_is_a_mask(record, hidden):
    scores = record["h.0.attn.scores"]
    assert trace.gap(np.where(np.isneginf(scores), hidden, scores), scores) == 0
    assert trace.gap(np.where(np.isneginf(scores), 0, scores), scores) == np.inf


def test_the_gap():
    assert trace.gap(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert trace.gap(np.zeros(3), np.zeros(3)) == 0
    assert trace.gap(np.ones(2), np.ones(3)) == np.inf
    assert trace.gap(np.array([np.nan, 1]), np.array([np.nan, 1])) == 0
    assert trace.gap(np.array([np.nan, 1]), np.array([2.0, 1])) == np.inf


def test_the_gap_is_that_of_a_token_and_not_of_the_tensor():
    """A token with massive activations, as GPT-2's first has, does not hide what is wrong in the
    others; and a row of nearly nothing is not blamed for noise."""
    ours = np.random.default_rng(0).normal(size=(1, 5, 8))
    ours[0, 0, 3] = 3000
    theirs = ours.copy()
    theirs[0, 2] += 1e-3
    assert trace.gap(theirs, ours) > 3e-4
    assert trace.compare_tensor("ln_f", theirs, ours).worst[:2] == (0, 2)
    theirs = ours.copy()
    theirs[0, 0, 3] += 1e-3  # 3e-7 of that token's largest number
    assert trace.gap(theirs, ours) < 1e-6
    ours[0, 4] = 1e-9
    theirs = ours.copy()
    theirs[0, 4] = 2e-9
    assert trace.gap(theirs, ours) < 1e-8


def test_the_row_of_a_tensor():
    ours = np.arange(12.0).reshape(1, 3, 4)
    theirs = ours.copy()
    assert trace.compare_tensor("ln_f", theirs, ours).status == "exact"
    theirs[0, 2, 1] += 1e-5
    assert trace.compare_tensor("ln_f", theirs, ours).status == "close"
    theirs[0, 2, 1] = 8
    row = trace.compare_tensor("ln_f", theirs, ours)
    assert (row.status, row.max_abs, row.worst, row.theirs, row.ours) == (
        "differs",
        1,
        (0, 2, 1),
        8,
        9,
    )
    assert row.max_rel == pytest.approx(1 / 11)
    assert trace.compare_tensor("ln_f", theirs[:, :2], ours[..., :3]).status == "shape"


# ---- files of dumped arrays ---------------------------------------------------------------------


def assert_same(read, arrays):
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_every_kind_of_dump(tmp_path, record):
    arrays = {"ln_f": record["ln_f"], "logits": record["logits"]}
    np.savez(tmp_path / "a.npz", **arrays)
    safetensors.write(tmp_path / "a.safetensors", arrays)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    (tmp_path / "raw.bin").write_bytes(b"".join(a.astype("<f4").tobytes() for a in arrays.values()))
    (tmp_path / "raw.json").write_text(json.dumps({n: a.shape for n, a in arrays.items()}))
    for name in ("a.npz", "a.safetensors", "folder", "raw.bin", "raw.json"):
        assert_same(dump.read(tmp_path / name), arrays)
    np.save(tmp_path / "one.npy", record["logits"])
    assert_same(dump.read(tmp_path / "one.npy"), {"logits": record["logits"]})


def test_bfloat16_that_numpy_does_not_know(tmp_path):
    upper = np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16
    np.savez(tmp_path / "a.npz", x=upper.astype(np.uint16).view("V2"))
    np.testing.assert_array_equal(dump.read(tmp_path / "a.npz")["x"], [1.5, -2.0])


def test_the_model_is_written_along(tmp_path, record):
    for name in ("a.npz", "a.safetensors"):
        dump.write(tmp_path / name, {"ln_f": record["ln_f"]}, "stories")
        assert dump.model_of(tmp_path / name, dump.read(tmp_path / name)) == "stories"
    with pytest.raises(ValueError, match="should end in"):
        dump.write(tmp_path / "a.txt", {})


def broken_files(folder):
    np.savez(folder / "pickle.npz", x=np.array([{}, 1], object))
    np.savez(folder / "good.npz", x=np.arange(1000.0))
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:-300])
    (folder / "text.npz").write_text("hello")
    (folder / "empty.npz").write_bytes(b"")
    np.savez(folder / "nothing.npz")
    (folder / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (folder / "none").mkdir()
    (folder / "raw.bin").write_bytes(b"12345678")
    (folder / "raw.json").write_text('{"x": [3]}')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "odd.txt").write_text("1 2 3")
    np.save(folder / "really.npy", np.arange(3))
    (folder / "really.npy").rename(folder / "array.npz")
    return (
        "pickle.npz cut.npz text.npz empty.npz nothing.npz half.safetensors none raw.bin list.json"
        " odd.txt array.npz absent.npz"
    ).split()


def test_every_unusable_file_is_one_sentence_and_status_2(tmp_path, capsys):
    for name in broken_files(tmp_path):
        assert cli.main(["compare", str(tmp_path / name), "--tokens", "1"]) == 2, name
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1, name
        assert name.split(".")[0] in printed.err


# ---- the commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model):
    """A model without a vocabulary."""
    return save_golden(tmp_path_factory.mktemp("model"), model.params)


IDS = ["--tokens", "3 22 0 7 7", "--tokens", "1,9,14,2,20"]


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_trace_then_compare(folder, record, tmp_path, capsys, ending):
    ours, theirs = str(tmp_path / f"ours.{ending}"), str(tmp_path / "theirs.npz")
    assert cli.main(["trace", *IDS, "--model", str(folder), "-o", ours]) == 0
    assert_same({n: a for n, a in dump.read(ours).items() if n != "model"}, record)
    np.savez(theirs, logits=record["logits"], ln_f=record["ln_f"] + 1e-7)
    capsys.readouterr()
    assert cli.main(["compare", ours, theirs]) == 0
    assert "all 2 tensors agree" in capsys.readouterr().out
    np.savez(theirs, logits=record["logits"] * 1.5, ln_f=record["ln_f"], extra=np.ones(3))
    assert cli.main(["compare", ours, theirs]) == 1
    out = capsys.readouterr().out
    assert (
        "first divergence  logits\nlast that agreed  ln_f" in out and "not compared: extra" in out
    )
    assert "relation          their logits are 1.5 times ours" in out


def test_compare_without_our_file(folder, record, tmp_path, capsys):
    theirs = str(tmp_path / "theirs.npz")
    np.savez(theirs, tokens=TOKENS, **{"h.0.mlp.act": np.maximum(record["h.0.mlp.c_fc"], 0)})
    for arguments in (IDS, []):  # or the tokens in their file
        assert cli.main(["compare", theirs, "--model", str(folder), "--json", *arguments]) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["first_divergence"] == "h.0.mlp.act" and found["cause"] == "relu"
        assert found["last_agreed"] == "tokens" and found["candidates"][0]["reproduces"]
        assert [row["status"] for row in found["tensors"]] == ["exact", "differs"]
    assert cli.main(["compare", theirs, "--model", str(folder), "--tokens", "1 2 3"]) == 1
    assert "their tokens are not ours" in capsys.readouterr().out


def test_compare_from_logits_alone(folder, model, tmp_path, capsys):
    np.save(tmp_path / "theirs.npy", model.forward(TOKENS[0])[0][0, -1])
    arguments = ["--logits", str(tmp_path / "theirs.npy"), "--model", str(folder)]
    assert cli.main(["compare", *arguments, *IDS[:2]]) == 0
    wrong = with_ops(model, gelu=lambda x: np.maximum(x, 0))
    np.save(tmp_path / "theirs.npy", wrong.forward(TOKENS[0])[0])
    capsys.readouterr()
    assert cli.main(["compare", *arguments, *IDS[:2]]) == 1
    assert "cause             relu" in capsys.readouterr().out


def test_prompts_of_different_lengths_are_padded_at_the_left(folder, model, tmp_path):
    tokens, pads = np.array([[0, 0, 3], [5, 6, 7]]), np.array([2, 0])
    np.savez(tmp_path / "theirs.npz", logits=model.forward(tokens, pads=pads)[0])
    arguments = ["--model", str(folder), "--tokens", "3", "--tokens", "5 6 7"]
    assert cli.main(["compare", str(tmp_path / "theirs.npz"), *arguments]) == 0
    chunked = [*arguments, "--chunks", "2,1"]
    assert cli.main(["compare", str(tmp_path / "theirs.npz"), *chunked]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare"],
        ["compare", "THEIRS"],
        ["compare", "THEIRS", "--tokens", "1 2 99"],
        ["compare", "THEIRS", "--tokens", "1 x"],
        ["compare", "THEIRS", "--tokens", "1 2", "--chunks", "2,2"],
        ["compare", "THEIRS", "--tokens", "1 2", "--pads", "1 1 1"],
        ["compare", "THEIRS", "THEIRS"],
        ["compare", "THEIRS", "--model", "nowhere"],
        ["trace"],
        ["trace", "--tokens", "1 2", "--names", "nothing"],
        ["trace", "--tokens", "1 2", "-o", "ours.txt"],
    ],
)
def test_misuse_is_one_sentence_and_status_2(arguments, folder, tmp_path, capsys):
    np.savez(tmp_path / "theirs.npz", foo=np.ones(3))
    arguments = [str(tmp_path / "theirs.npz") if a == "THEIRS" else a for a in arguments]
    model = [] if "nowhere" in arguments else ["--model", str(folder)]
    assert cli.main([*arguments, *model]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "Traceback" not in printed.err


def test_a_map_with_a_name_twice_is_refused(folder, model, tmp_path, capsys):
    theirs, names = str(tmp_path / "theirs.npz"), tmp_path / "map.json"
    np.savez(theirs, mine=model.forward([1, 2])[0])
    arguments = [
        "compare",
        theirs,
        "--tokens",
        "1 2",
        "--model",
        str(folder),
        "--names",
        str(names),
    ]
    names.write_text('{"mine": "logits"}')
    assert cli.main(arguments) == 0
    names.write_text('{"mine": "logits", "mine": null}')
    assert cli.main(arguments) == 2
    assert "map.json is not JSON: it has the same key twice" in capsys.readouterr().err


def test_the_catalogue_is_printed(capsys):
    assert cli.main(["trace", "--list"]) == 0
    assert "blocks.{i}.attn.hook_pattern" in capsys.readouterr().out


def test_a_replay_takes_ids_as_forward_does(model):
    for tokens in ([1, 2, 3], [[1, 2, 3]], np.array([1, 2, 3], np.uint8)):
        record = trace.replay(model, tokens, chunks=[1, 2])
        whole = model.forward([1, 2, 3], keep="everything")[1]
        np.testing.assert_allclose(record["logits"], whole["logits"], atol=1e-5)


def test_one_token_has_no_loss(model):
    for tokens, pads in (([[1]], None), ([[0, 1]], [1])):
        with pytest.raises(ValueError, match="give at least two tokens"):
            backward.loss_and_gradients(model, np.array(tokens), pads)


def test_what_is_an_argument_is_not_replayed(model, record):
    theirs = {"tokens": TOKENS, "pads": np.array([0, 0]), "wte": record["wte"]}
    np.testing.assert_array_equal(
        trace.replay(model, TOKENS, theirs=theirs)["logits"], record["logits"]
    )
