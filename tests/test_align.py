"""Other programs' names and layouts: each is brought to ours, and what cannot be is said.

The dumps are made here from our own record, under the names that each program's users would save.
"""

import re

import numpy as np
import pytest
from golden import models

import numpygpt
from numpygpt.check import align as names
from numpygpt.check import trace
from numpygpt.check.diagnose import as_json, report
from numpygpt.model import GPT2, Config, as_dtype, with_ops

# No two sizes are alike.
SIZES = Config(23, 11, 28, 4, 3, n_inner=19)
SCALES = {"wte": 0.5, "wpe": 0.3, "final_gain": 1.0}
TOKENS = np.array([[3, 22, 0, 7, 7], [1, 9, 14, 2, 20]])
ONE = TOKENS[1:]


def loud(params):
    """A channel of the first token is hundreds of times larger than the rest, as in GPT-2's."""
    params["wpe.weight"][0, 5] = 400.0
    return params


@pytest.fixture(scope="module")
def model():
    return GPT2(SIZES, loud(models.weights(SIZES, 5, SCALES)))


@pytest.fixture(scope="module")
def record(model):
    return trace.replay(model, TOKENS)


@pytest.fixture(scope="module")
def one(model):
    """The record of a batch of one."""
    return trace.replay(model, ONE)


def blocks(record, table):
    """A dump from their name -> our entry, with {i} for the block in both."""
    dump = {}
    for i in range(SIZES.n_layer):
        for theirs, ours in table.items():
            dump[theirs.format(i=i)] = record[ours.format(i=i)]
    return dump


def expect(found, wanted):
    """The matches are `wanted`, where a block's end may be called the next one's beginning."""
    same = {trace.next_pre(n): n for n in trace.entries(SIZES.n_layer)}
    for theirs, ours in wanted.items():
        got = found.matched.get(theirs)
        assert same.get(got, got) == same.get(ours, ours), (theirs, got, ours)


def assert_agrees(dump, model, tokens=TOKENS, **more):
    found = numpygpt.compare(dump, model, tokens, **more)
    assert found.verdict == "agrees" and found.exit_status == 0, report(found)
    return found


# ---- dictionaries -------------------------------------------------------------------------------


def test_names_of_other_libraries():
    known = names.other_names(3)
    assert known["hidden_states.0"] == "h.0.resid_pre"
    assert known["hidden_states.2"] == "h.2.resid_pre"
    assert known["hidden_states.3"] == "ln_f"  # transformers' last one has passed the norm
    assert known["h.1"] == "h.1.resid_post"
    assert known["blocks.2.attn.hook_z"] == "h.2.attn.z"
    assert known["residual3.1"] == "h.1.resid_post"
    assert known["encoded"] == "h.0.resid_pre"
    assert known["logits"] == "logits" and known["lnf"] == "ln_f"
    assert all(trace.is_entry(ours) for ours in known.values())


HOOKS = {
    "transformer.h.{i}.ln_1": "h.{i}.ln_1",
    "transformer.h.{i}.attn.c_attn": "h.{i}.attn.c_attn",
    "transformer.h.{i}.attn.c_proj": "h.{i}.attn.c_proj",
    "transformer.h.{i}.attn.resid_dropout": "h.{i}.attn.c_proj",
    "transformer.h.{i}.attn": "h.{i}.attn.c_proj",
    "transformer.h.{i}.ln_2": "h.{i}.ln_2",
    "transformer.h.{i}.mlp.c_fc": "h.{i}.mlp.c_fc",
    "transformer.h.{i}.mlp.c_proj": "h.{i}.mlp.c_proj",
    "transformer.h.{i}.mlp.dropout": "h.{i}.mlp.c_proj",
    "transformer.h.{i}.mlp": "h.{i}.mlp.c_proj",
    "transformer.h.{i}": "h.{i}.resid_post",
}
NANOGPT = HOOKS | {"transformer.h.{i}.mlp.gelu": "h.{i}.mlp.act"}
MINGPT = HOOKS | {
    "transformer.h.{i}.mlp.act": "h.{i}.mlp.act",
    "transformer.h.{i}.attn.attn_dropout": "h.{i}.attn.pattern",
}
FLAX = {"/".join([*n.split("."), "__call__"]): ours for n, ours in HOOKS.items()}
HF_TF = {
    "tfgpt2lm_head_model/"
    + n.replace("h.{i}", "h_._{i}").replace(".", "/").replace("h_/_", "h_._"): o
    for n, o in HOOKS.items()
}
OPENAI = {
    "model/h{i}/ln_1": "h.{i}.ln_1", "model/h{i}/attn/c_attn": "h.{i}.attn.c_attn",
    "model/h{i}/attn/c_proj": "h.{i}.attn.c_proj", "model/h{i}/ln_2": "h.{i}.ln_2",
    "model/h{i}/mlp/c_fc": "h.{i}.mlp.c_fc", "model/h{i}/mlp/c_proj": "h.{i}.mlp.c_proj",
}  # fmt: skip
FROM_SCRATCH = {
    "trf_blocks.{i}.norm1": "h.{i}.ln_1", "trf_blocks.{i}.att.out_proj": "h.{i}.attn.c_proj",
    "trf_blocks.{i}.att.dropout": "h.{i}.attn.pattern", "trf_blocks.{i}.att": "h.{i}.attn.c_proj",
    "trf_blocks.{i}.norm2": "h.{i}.ln_2", "trf_blocks.{i}.ff.layers.0": "h.{i}.mlp.c_fc",
    "trf_blocks.{i}.ff.layers.1": "h.{i}.mlp.act", "trf_blocks.{i}.ff.layers.2": "h.{i}.mlp.c_proj",
    "trf_blocks.{i}.ff": "h.{i}.mlp.c_proj", "trf_blocks.{i}": "h.{i}.resid_post",
}  # fmt: skip
LENS = {
    "blocks.{i}.hook_resid_pre": "h.{i}.resid_pre",
    "blocks.{i}.attn.hook_pattern": "h.{i}.attn.pattern",
    "blocks.{i}.attn.hook_attn_scores": "h.{i}.attn.scores",
    "blocks.{i}.hook_mlp_out": "h.{i}.mlp.c_proj",
    "blocks.{i}.mlp.hook_post": "h.{i}.mlp.act", "blocks.{i}.hook_attn_out": "h.{i}.attn.c_proj",
}  # fmt: skip
BRIDGE = {
    "blocks.{i}.hook_in": "h.{i}.resid_pre", "blocks.{i}.ln1.hook_out": "h.{i}.ln_1",
    "blocks.{i}.attn.hook_out": "h.{i}.attn.c_proj", "blocks.{i}.mlp.in.hook_out": "h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.hook_out": "h.{i}.mlp.c_proj", "blocks.{i}.hook_out": "h.{i}.resid_post",
}  # fmt: skip
ENDS = {
    "nanogpt": {"transformer.drop": "h.0.resid_pre", "lm_head": "logits"},
    "mingpt": {"transformer.ln_f": "ln_f", "transformer": "ln_f", "lm_head": "logits"},
    "flax": {"transformer/dropout/__call__": "h.0.resid_pre", "transformer/__call__": "ln_f",
             "transformer/h/__call__": "h.2.resid_post", "__call__": "logits"},
    "hf_tf": {"tfgpt2lm_head_model/transformer/wte": "wte", "logits": "logits"},
    "openai": {"model/wte": "wte", "model/ln_f": "ln_f"},
    "from_scratch": {"tok_emb": "wte", "pos_emb": "wpe", "drop_emb": "h.0.resid_pre",
                     "final_norm": "ln_f", "out_head": "logits"},
    "lens": {"hook_embed": "wte", "ln_final.hook_normalized": "ln_f"},
    "bridge": {"embed.hook_out": "wte", "ln_final.hook_out": "ln_f", "unembed.hook_out": "logits"},
}  # fmt: skip
TABLES = {
    "nanogpt": NANOGPT, "mingpt": MINGPT, "flax": FLAX, "hf_tf": HF_TF, "openai": OPENAI,
    "from_scratch": FROM_SCRATCH, "lens": LENS, "bridge": BRIDGE,
}  # fmt: skip


@pytest.mark.parametrize("program", TABLES)
def test_a_program_under_its_own_names(program, model, record):
    dump = blocks(record, TABLES[program]) | {n: record[o] for n, o in ENDS[program].items()}
    found = assert_agrees(dump, model)
    for i in range(SIZES.n_layer):
        expect(found, {n.format(i=i): o.format(i=i) for n, o in TABLES[program].items()})
    expect(found, ENDS[program])
    assert found.not_compared == () and {how for _, how in found.sure.values()} == {"name"}
    said = "logits were not among what was compared" in found.remarks
    assert said == ("logits" not in found.matched.values())


def test_llama_cpp(model, one):
    """No batch axis, stages between ours, and two that are one of ours."""
    heads = {f"{x.upper()}cur-{{i}}": f"h.{{i}}.attn.{x}" for x in "qkv"}
    dump = {n: a[0].swapaxes(0, 1) for n, a in blocks(one, heads).items()}
    rest = {
        "attn_norm-{i}": "h.{i}.ln_1", "bqkv-{i}": "h.{i}.attn.c_attn",
        "kqv_out-{i}": "h.{i}.attn.z",
        "kq_soft_max-{i}": "h.{i}.attn.pattern", "ffn_inp-{i}": "h.{i}.resid_mid",
        "ffn_norm-{i}": "h.{i}.ln_2", "ffn_up_b-{i}": "h.{i}.mlp.c_fc",
        "ffn_gelu-{i}": "h.{i}.mlp.act", "ffn_out-{i}": "h.{i}.mlp.c_proj",
        "l_out-{i}": "h.{i}.resid_post",
    }  # fmt: skip
    dump |= {n: a[0] for n, a in blocks(one, rest).items()}
    for i in range(SIZES.n_layer):
        q, k = one[f"h.{i}.attn.q"], one[f"h.{i}.attn.k"]
        dump[f"kq-{i}"] = (q @ k.swapaxes(2, 3))[0]
        dump[f"wqkv-{i}"] = (one[f"h.{i}.attn.c_attn"] - model.params[f"h.{i}.attn.c_attn.bias"])[0]
    dump |= {"inp_tokens": ONE[0], "result_norm": one["ln_f"][0], "result_output": one["logits"][0]}
    found = assert_agrees(dump, model, None)
    expect(found, {"Kcur-2": "h.2.attn.k", "kqv_out-1": "h.1.attn.z", "inp_tokens": "tokens"})
    assert found.neighbours["kq-1"] == "h.1.attn.scores before the scale and the mask"
    assert found.neighbours["wqkv-0"] == "h.0.attn.c_attn before its bias"
    assert found.not_compared == ()


def test_onnx(model, one):
    """(B T, C) around each product, copies by Reshape, and stages of scores and GELU."""
    dump = {"input_ids": ONE}
    for i in range(SIZES.n_layer):
        h, at = f"/transformer/h.{i}", f"h.{i}."
        x = one[at + "mlp.c_fc"]
        dump |= {
            f"{h}/ln_1/LayerNormalization_output_0": one[at + "ln_1"],
            f"{h}/attn/c_attn/Reshape_output_0": one[at + "ln_1"][0],
            f"{h}/attn/c_attn/Gemm_output_0": one[at + "attn.c_attn"][0],
            f"{h}/attn/Reshape_output_0": one[at + "attn.k"].swapaxes(1, 2),
            f"{h}/attn/Transpose_2_output_0": one[at + "attn.k"].swapaxes(2, 3),
            f"{h}/attn/Add_output_0": np.maximum(one[at + "attn.scores"], -3e38),
            f"{h}/attn/Softmax_output_0": one[at + "attn.pattern"],
            f"{h}/attn/Reshape_3_output_0": one[at + "attn.z"],
            f"{h}/mlp/act/Pow_output_0": x**3,
            f"{h}/mlp/act/Mul_3_output_0": one[at + "mlp.act"],
            f"{h}/Add_1_output_0": one[at + "resid_post"],
        }
    found = assert_agrees(dump | {"logits": one["logits"]}, model, None)
    h = "/transformer/h.1/"
    expect(found, {
        h + "attn/c_attn/Reshape_output_0": "h.1.ln_1", h + "attn/Reshape_output_0": "h.1.attn.k",
        h + "attn/Transpose_2_output_0": "h.1.attn.k", h + "attn/Add_output_0": "h.1.attn.scores",
        h + "mlp/act/Mul_3_output_0": "h.1.mlp.act", h + "mlp/act/Pow_output_0": None,
    })  # fmt: skip
    assert h + "mlp/act/Pow_output_0" in found.not_compared


# ---- no dictionary ------------------------------------------------------------------------------

FREE = {
    "layer{i}_norm_a": "h.{i}.ln_1", "layer{i}_attn_probs": "h.{i}.attn.pattern",
    "layer{i}_attn_out": "h.{i}.attn.c_proj", "layer{i}_x_mid": "h.{i}.resid_mid",
    "layer{i}_hidden": "h.{i}.mlp.act", "layer{i}_out": "h.{i}.resid_post",
}  # fmt: skip


def free_dump(record, table=FREE):
    dump = {"sentence": record["tokens"], "emb": record["h.0.resid_pre"]}
    dump |= blocks(record, table)
    return dump | {"norm": record["ln_f"], "prediction": record["logits"]}


def test_an_authors_own_names(model, record):
    found = assert_agrees(free_dump(record), model, None)
    for i in range(SIZES.n_layer):
        expect(found, {n.format(i=i): o.format(i=i) for n, o in FREE.items()})
    expect(found, {"sentence": "tokens", "prediction": "logits", "emb": "h.0.resid_pre"})
    assert "layer1_hidden" in report(found) and "by value, 100% sure" in report(found)
    assert as_json(found)["matched"]["layer2_out"] == "h.2.resid_post"


def numbered(record):
    kept = [n for n in record if n not in ("positions", "wte", "wpe") and not trace.next_pre(n)]
    kept += [f"h.{SIZES.n_layer - 1}.resid_post"]
    order = [n for n in record if n in kept]
    return {f"t{k:03}": record[n] for k, n in enumerate(order)}, order


def test_numbers_for_names(model, record):
    dump, order = numbered(record)
    found = assert_agrees(dump, model, None)
    expect(found, dict(zip(dump, order, strict=True)))


@pytest.mark.parametrize("alphabetical", [False, True])
@pytest.mark.parametrize("wrong", ["positions", "ln_1", "scores", "gelu", "per head"])
def test_names_without_a_dictionary_and_a_mistake(model, wrong, alphabetical):
    """What follows the mistake has other values: their numbers, put in place of ours, give
    what follows them. Names are found although every value after the mistake is another."""
    ops = model.ops
    change = {
        "positions": {"positions": lambda past, t, pads=None: ops.positions(past + 1, t, pads)},
        "ln_1": {"layer_norm": lambda x, g, b, eps: ops.layer_norm(x, 1.3 * g, b, eps)},
        "scores": {
            "attention_scores": lambda q, k, pads=None: 2 * ops.attention_scores(q, k, pads)
        },
        "gelu": {"gelu": lambda x: np.maximum(x, 0.1 * x)},
        "per head": {"split_qkv": lambda x: _per_head(x)},
    }[wrong]
    record = trace.replay(with_ops(model, **change), TOKENS)
    dump, order = numbered(record)
    if alphabetical:  # a file that does not keep the order: words and digits must do
        dump = dict(sorted(free_dump(record).items()))
        wanted = {n.format(i=i): o.format(i=i) for n, o in FREE.items() for i in range(3)}
    else:
        wanted = dict(zip(dump, order, strict=True))
    found = numpygpt.compare(dump, model)
    assert found.verdict == "differs"
    expect(found, wanted)


def _per_head(x):
    heads = x.reshape(*x.shape[:2], SIZES.n_head, 3, -1)
    return [heads[:, :, :, i].reshape(*x.shape[:2], -1) for i in range(3)]


def test_a_map_goes_before_everything(model, record):
    dump = {"a": record["h.1.ln_1"], "b": record["logits"] + 1.0, "c": record["h.0.mlp.act"]}
    found = numpygpt.compare(dump, model, TOKENS, names={"a": "h.0.ln_1", "b": None})
    assert found.matched["a"] == "h.0.ln_1" and found.first == "h.0.ln_1"
    assert "b" in found.not_compared and found.matched["c"] == "h.0.mlp.act"
    with pytest.raises(ValueError, match="'d', which is not in their file"):
        numpygpt.compare(dump, model, TOKENS, names={"d": "ln_f"})
    with pytest.raises(ValueError, match="does not fit"):
        numpygpt.compare(dump, model, TOKENS, names={"c": "ln_f"})


# ---- copies, padding, what was not compared -----------------------------------------------------


def test_two_names_of_one_entry_are_both_compared(model, record):
    dump = {
        "h.0.attn": record["h.0.attn.c_proj"],
        "h.0.attn.resid_dropout": record["h.0.attn.c_proj"],
    }
    found = assert_agrees(dump, model)
    assert [row.whose for row in found.rows if row.name == "h.0.attn.c_proj"] == list(dump)
    dropped = dump["h.0.attn.resid_dropout"].copy()
    dropped[:, :, ::3] = 0
    found = numpygpt.compare(dump | {"h.0.attn.resid_dropout": dropped}, model, TOKENS)
    assert found.verdict == "differs" and found.first == "h.0.attn.c_proj"
    assert as_json(found)["first_divergence_theirs"] == "h.0.attn.resid_dropout"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_at_either_side(model, side):
    real = [5, 2, 4]
    tokens = np.full((3, 5), 9)
    mask = np.zeros((3, 5), int)
    for row, n in enumerate(real):
        place = slice(5 - n, 5) if side == "left" else slice(0, n)
        tokens[row, place], mask[row, place] = models.token_ids(row, (5,), 23)[:n], 1
    pads = 5 - np.array(real) if side == "left" else None
    record = trace.replay(model, tokens, pads)
    dump = {
        n: record[n].copy() for n in ("h.0.resid_pre", "h.1.attn.pattern", "h.2.mlp.act", "logits")
    }
    for array in dump.values():  # what stands at padding means nothing
        for row in range(3):
            at = (row, slice(None), mask[row] == 0) if array.ndim == 4 else (row, mask[row] == 0)
            array[at] = 77
    dump |= {"input_ids": tokens, "attention_mask": mask}
    dump["position_ids"] = np.where(mask, np.maximum(mask.cumsum(1) - 1, 0), 1)
    found = assert_agrees(dump, model, None)
    assert f"padded at the {side}" in found.remarks[0]
    dump["position_ids"] = np.broadcast_to(np.arange(5), mask.shape)
    found = numpygpt.compare(dump, model)
    assert (found.first == "positions") == (side == "left")
    dump["attention_mask"] = np.array([[1, 0, 1, 1, 1]] * 3)
    with pytest.raises(ValueError, match="in the middle of a row"):
        numpygpt.compare(dump, model)


LEFT = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
MASKS = {  # the same padding as other libraries write it
    "attention_mask": LEFT.astype(bool),
    "mask": np.where(LEFT, 0, -1e9).astype(np.float32),
    "attn_mask": np.where(LEFT, 0, -np.inf).astype(np.float32)[:, None, None],
    "extended_attention_mask": LEFT[:, None, None] * np.tri(5, dtype=int),
    "key_padding_mask": LEFT == 0,
}


def test_masks_of_every_kind_say_the_padding(model):
    record = trace.replay(model, TOKENS, np.array([2, 0]))
    dump = {n: record[n] for n in ("h.0.attn.pattern", "h.2.resid_post", "logits")}
    for name, mask in MASKS.items():
        found = assert_agrees(dump | {name: mask}, model)
        assert found.remarks == (f"{name}: padded at the left by [2, 0]",)
    assert assert_agrees(dump | {"pads": np.array([2, 0])}, model).remarks == ()
    turned = {"pad_mask": LEFT == 0}  # as real tokens it would leave the second row none
    remark = "pad_mask: padded at the left by [2, 0]"
    assert assert_agrees(dump | turned, model).remarks == (remark,)
    with pytest.raises(ValueError, match="pad_mask leaves no real token in row 1, however"):
        numpygpt.compare(dump | {"pad_mask": np.repeat([[1], [0]], 5, 1)}, model, TOKENS)
    with pytest.raises(ValueError, match=r"their pads must be integers, not \[2.0, 0.5\]"):
        numpygpt.compare(dump | {"pads": np.array([2, 0.5])}, model, TOKENS)
    assert numpygpt.compare(dump, model, TOKENS).verdict == "differs"  # without a word of it


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((2, 5), np.float32), np.zeros((2, 5), bool), np.ones((2, 5)),
        np.zeros((2, 1, 1, 5)), np.zeros((2, 1, 5, 5), int) + np.tri(5, dtype=int),
        np.where(np.tri(5), 0, -np.inf)[None, None], np.tri(5)[None, None] == 0,
    ],
)  # fmt: skip
def test_a_mask_that_hides_nothing_hides_no_mistake(mask, model):
    wrong = with_ops(model, gelu=lambda x: np.maximum(x, 0))
    found = numpygpt.compare(trace.replay(wrong, TOKENS) | {"attention_mask": mask}, model)
    assert found.cause == "relu" and found.first == "h.0.mlp.act"


def test_a_causal_mask_is_not_taken_for_padding(model):
    square = models.token_ids(4, (5, 5), SIZES.n_vocab)
    record = trace.replay(model, square)
    late = np.arange(5) > np.arange(5)[:, None]  # (B, T), as if it were padding at the right
    for name in ("attention_mask", "causal_mask"):
        dump = {"logits": record["logits"] * np.where(late, 2, 1)[..., None]}
        dump |= {name: np.tri(5)}
        assert numpygpt.compare(dump, model, square).verdict == "differs"


def test_padding_that_leaves_nothing_is_refused(model, record):
    for pads in ([5, 5], [0, 5]):
        with pytest.raises(ValueError, match=f"leave no token to compare in row {pads.index(5)}"):
            numpygpt.compare(record, model, pads=np.array(pads))


def test_nothing_compared_is_no_agreement(model, record):
    for dump in ({"tokens": TOKENS}, {"tokens": TOKENS, "foo": np.ones((2, 3, 7))}, {}):
        with pytest.raises(ValueError, match="nothing was compared"):
            numpygpt.compare(dump, model, TOKENS)
    noise = {f"x{i}": np.random.default_rng(i).normal(size=(2, 5, 28)) for i in range(4)}
    with pytest.raises(ValueError, match="nothing was compared"):
        numpygpt.compare(noise, model, TOKENS)  # shapes alone are no reason to compare
    with pytest.raises(ValueError, match="say what was computed"):
        numpygpt.compare({"logits": record["logits"]}, model)
    with pytest.raises(ValueError, match="is it the model that was run"):
        numpygpt.compare({"logits": record["logits"]}, model, TOKENS + 20)


def test_a_shape_that_fits_nothing_is_the_first_divergence(model, record):
    dump = {"h.0.ln_1": record["h.0.ln_1"][:, :4], "logits": record["logits"]}
    found = numpygpt.compare(dump, model, TOKENS)
    assert found.verdict == "differs" and found.first == "h.0.ln_1"
    assert "was it computed from the same tokens?" in found.note
    odd = {"positions": np.full((2, 5), np.nan), "x": np.array(["a"]), "logits": record["logits"]}
    assert numpygpt.compare(odd, model, TOKENS).first == "positions"


# ---- layouts ------------------------------------------------------------------------------------


LAYOUTS = {
    "(T, B, C)": ("BTC", lambda a: a.swapaxes(0, 1)),
    "(B T, C)": ("BTC", lambda a: a.reshape(-1, a.shape[-1])),
    "(T B, C)": ("BTC", lambda a: a.swapaxes(0, 1).reshape(-1, a.shape[-1])),
    "(B, C, T)": ("BTC", lambda a: a.swapaxes(1, 2)),
    "flat": ("BTC", lambda a: a.reshape(-1)),
    "(B H, T, .)": ("heads", lambda a: a.reshape(-1, *a.shape[2:])),
    "(H, B, T, .)": ("heads", lambda a: a.swapaxes(0, 1)),
    "(B, T, H, D)": ("qkv", lambda a: a.swapaxes(1, 2)),
    "(T, B, H, D)": ("qkv", lambda a: a.transpose(2, 0, 1, 3)),
    "(B, T, C) of heads": ("qkv", lambda a: a.swapaxes(1, 2).reshape(2, 5, -1)),
    "(B, H, D, T)": ("qkv", lambda a: a.swapaxes(2, 3)),
    "(B H, D, T)": ("qkv", lambda a: a.swapaxes(2, 3).reshape(-1, 7, 5)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout(layout, model, record):
    which, change = LAYOUTS[layout]
    dump = {}
    for name, array in record.items():
        kind = "qkv" if name[-2:] in (".q", ".k", ".v") else "heads" if array.ndim == 4 else "BTC"
        wanted = kind == which or (which == "heads" and kind == "qkv")
        if array.dtype.kind == "f" and name != "wpe":
            dump[name] = change(array) if wanted else array
    found = assert_agrees(dump, model)
    assert found.not_compared == () and len(found.rows) == len(dump)


def test_axes_in_the_order_of_julia(model, record, one):
    """Columns first, and tokens (T, B) too, with a mistake and without."""
    found = assert_agrees({n: a.transpose() for n, a in record.items()}, model, None)
    assert "read as (T, B)" in found.remarks[0] and len(found.rows) == len(record)
    assert_agrees({n: a.transpose() for n, a in one.items() if n != "positions"}, model, None)
    wrong = trace.replay(with_ops(model, gelu=lambda x: np.maximum(x, 0)), TOKENS)
    found = numpygpt.compare({n: a.transpose() for n, a in wrong.items()}, model)
    assert (found.first, found.cause) == ("h.0.mlp.act", "relu")
    found = numpygpt.compare({f"x{i}": a.T for i, a in enumerate(wrong.values())}, model, TOKENS)
    assert (found.first, found.cause) == ("h.0.mlp.act", "relu")


def test_axes_of_one_in_between(model, record):
    floats = {n: a for n, a in record.items() if a.dtype.kind == "f"}
    for axis in (0, 1, 2):
        dump = {n: np.expand_dims(a, axis) for n, a in floats.items()}
        assert len(assert_agrees(dump, model).rows) == len(floats)


def test_c_attn_with_axes_for_q_k_v_and_for_heads(model, record):
    for form in (
        lambda a: a.reshape(2, 5, 3, 28), lambda a: a.reshape(2, 5, 3, 4, 7),
        lambda a: np.stack(np.split(a, 3, -1)),
        lambda a: a.reshape(2, 5, 3, 4, 7).transpose(2, 0, 3, 1, 4),
    ):  # fmt: skip
        dump = {n: form(a) if n == "h.1.attn.c_attn" else a for n, a in record.items()}
        assert "h.1.attn.c_attn" in [row.name for row in assert_agrees(dump, model).rows]


def test_attention_averaged_over_the_heads_is_no_wrong_shape(model, record):
    """As torch.nn.MultiheadAttention returns it."""
    mean = {f"h.{i}.attn.pattern": record[f"h.{i}.attn.pattern"].mean(1) for i in range(3)}
    found = assert_agrees(record | mean, model)
    assert found.neighbours["h.1.attn.pattern"].startswith("the mean of h.1.attn.pattern")
    assert "h.1.attn.pattern" not in found.matched
    mean["h.1.attn.pattern"] = 2 * mean["h.1.attn.pattern"]
    assert numpygpt.compare(record | mean, model, TOKENS).first == "h.1.attn.pattern"


def counted_from_one(dump):
    def moved(name):
        return re.sub(r"(?<=^h\.)\d+", lambda number: str(int(number[0]) + 1), name)

    return {moved(name): array for name, array in dump.items()}


def test_names_that_count_the_blocks_from_one(model, record):
    dump = counted_from_one(record)
    assert "h.3.ln_1" in dump and "h.0.ln_1" not in dump
    found = assert_agrees(dump, model)
    assert found.matched["h.1.ln_1"] == "h.0.ln_1" and "from 1" in found.remarks[0]
    wrong = trace.replay(with_ops(model, gelu=lambda x: np.maximum(x, 0)), TOKENS)
    found = numpygpt.compare(counted_from_one(wrong), model, TOKENS)
    assert (found.first, found.cause) == ("h.0.mlp.act", "relu")
    assert as_json(found)["first_divergence_theirs"] == "h.1.mlp.act"
    some = {n: a for n, a in record.items() if n[:2] in ("h.", "lo") and n[:3] != "h.0"}
    assert assert_agrees(some, model).matched["h.1.ln_1"] == "h.1.ln_1"  # from 0, a part of them
    llama = {f"Qcur-{i + 1}": record[f"h.{i}.attn.q"] for i in range(3)}
    assert assert_agrees(llama, model).matched["Qcur-1"] == "h.0.attn.q"


def test_logits_written_token_by_token(model, record):
    logits = record["logits"]
    for form in (lambda a: a, lambda a: a[:, None]):
        for first in (0, 1, 17):
            dump = {f"step_{first + t}.logits": form(logits[:, t]) for t in range(5)}
            found = assert_agrees(dump, model)
            assert "compared as one" in found.remarks[0]
    wrong = {f"logits_{t}": 2 * logits[:, t] for t in range(5)}
    assert numpygpt.compare(wrong, model, TOKENS).relations[0].kind == "factor"
    short = {f"logits_{t}": logits[:, t] for t in range(4)}
    with pytest.raises(ValueError, match="4 of them for 5 tokens; write those of every token"):
        numpygpt.compare(short, model, TOKENS)
    found = assert_agrees(short | {"ln_f": record["ln_f"]}, model)
    assert "logits were not among what was compared" in found.remarks


def test_without_the_axis_of_the_batch(model, one):
    dump = {name: array[0] for name, array in one.items()}
    assert len(assert_agrees(dump, model, None).rows) == len(one)


def test_stacked_layers(model, record):
    dump = {n: np.stack([record[f"h.{i}.{n}"] for i in range(3)]) for n in ("ln_1", "resid_mid")}
    dump |= {
        "hidden_states": np.stack([*(record[f"h.{i}.resid_pre"] for i in range(3)), record["ln_f"]])
    }
    dump |= {"preatt": np.stack([record[f"h.{i}.attn.scores"] for i in range(3)])}
    dump["preatt"] = np.where(
        np.isneginf(dump["preatt"]), 12.5, dump["preatt"]
    )  # what was in memory
    found = assert_agrees(dump, model)
    expect(
        found, {"hidden_states[3]": "ln_f", "preatt[1]": "h.1.attn.scores", "ln_1[2]": "h.2.ln_1"}
    )
    with pytest.raises(ValueError, match="first axis should be layers"):
        numpygpt.compare({"ln1": record["ln_f"]}, model, TOKENS)


@pytest.mark.parametrize("more", [1, 9, 41])
@pytest.mark.parametrize("fill", [0.0, -np.inf, 3.0])
def test_padded_vocabularies_are_cut_with_a_remark(more, fill, model, record):
    wide = np.pad(record["logits"], ((0, 0), (0, 0), (0, more)), constant_values=fill)
    found = assert_agrees({"logits": wide, "ln_f": record["ln_f"]}, model)
    assert any(f"has {23 + more} columns" in remark for remark in found.remarks)


@pytest.mark.parametrize("name", ["probs", "logits", "output"])
@pytest.mark.parametrize("logarithm", [False, True])
def test_probabilities_in_the_place_of_logits(name, logarithm, model, record):
    def probabilities(logits):
        p = model.ops.softmax(np.asarray(logits, np.float64))
        return np.log(p) if logarithm else p

    found = assert_agrees({name: probabilities(record["logits"])}, model)
    assert "not logits" in found.remarks[0]
    wrong = with_ops(model, gelu=lambda x: np.maximum(x, 0)).forward(TOKENS)[0]
    found = numpygpt.compare({name: probabilities(wrong)}, model, TOKENS)
    assert found.cause == "relu"


def test_logits_of_the_last_token_and_the_vocabulary_first(model, record):
    for logits in (
        record["logits"][:, -1:],
        record["logits"][:, -1],
        record["logits"].swapaxes(1, 2),
    ):
        assert_agrees({"logits": logits}, model)


@pytest.mark.parametrize("half", [np.float16, "bfloat16"])
def test_a_file_in_half_precision(half, model, record):
    from numpygpt.check.mistakes.forward import to_bfloat16

    dump = {
        n: to_bfloat16(a) if half == "bfloat16" else a.astype(half)
        for n, a in record.items() if a.dtype.kind == "f"
    }  # fmt: skip
    found = numpygpt.compare(dump, model, TOKENS)
    assert (found.exit_status, found.precision) == (
        0,
        "bfloat16" if half == "bfloat16" else "float16",
    )
    if half == "bfloat16":  # as NumPy reads what it does not know
        bits = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in dump.items()}
        found = numpygpt.compare({n: a.view("V2") for n, a in bits.items()}, model, TOKENS)
        assert (found.exit_status, found.precision) == (0, "bfloat16")
        with pytest.raises(ValueError, match=r"no integers: wte \(uint16\)"):
            numpygpt.compare(bits, model, TOKENS)


def test_what_is_no_array_of_numbers(model, record):
    found = assert_agrees({"encoded": TOKENS, "logits": record["logits"]}, model, None)
    assert "taken for the tokens" in found.remarks[0]
    more = {"h.0.ln_1": TOKENS[..., None] + np.zeros((1, 1, 28), int), "n_head": np.array(4)}
    found = assert_agrees(record | more, model)
    assert found.not_compared == ("h.0.ln_1", "n_head") and "h.0.ln_1 (int64)" in found.remarks[0]
    with pytest.raises(ValueError, match="'logits' is not an array: its rows"):
        numpygpt.compare({"logits": [[1.0, 2.0], [3.0]]}, model, TOKENS)


# ---- processing that does no harm ---------------------------------------------------------------


@pytest.mark.parametrize(
    "done",
    [("stream",), ("logits",), ("stream", "logits"), ("stream", "logits", "norms", "values")],
)
def test_harmless_processing(done, model):
    from numpygpt.check.processing import NAMES, processed

    wide = as_dtype(model, np.float64)
    rewritten = processed(wide, done)
    right, theirs = wide.forward(TOKENS)[0], rewritten.forward(TOKENS)[0]
    softmax = model.ops.softmax
    assert trace.gap(softmax(theirs), softmax(right)) < 1e-12
    record = trace.replay(rewritten, TOKENS)
    heads = ("attn.q", "attn.k", "attn.v", "attn.pattern", "resid_pre", "resid_mid", "ln_1")
    dump = {n: a for n, a in record.items() if n.endswith((*heads, "logits"))}
    found = numpygpt.compare(dump, model, TOKENS)
    assert found.verdict == "harmless" and found.exit_status == 0, report(found)
    assert all(NAMES[name] in found.remarks[0] for name in done)
    wrong = with_ops(
        rewritten, attention_scores=lambda q, k, pads=None: model.ops.attention_scores(3 * q, k)
    )
    record = trace.replay(wrong, TOKENS)
    found = numpygpt.compare({n: record[n] for n in dump}, model, TOKENS)
    assert found.exit_status == 1 and found.first == "h.0.attn.pattern"


def test_ids_that_were_written_down_as_floats(model, record):
    positions = np.arange(TOKENS.shape[1], dtype=np.float32)
    ids = {"tokens": TOKENS.astype(np.float32), "positions": positions}
    assert_agrees(ids | {"logits": record["logits"]}, model, None)
    shifted = trace.replay(model, TOKENS, theirs={"positions": positions[None] + [[1], [1]]})
    found = numpygpt.compare(
        {"positions": positions + 1, "logits": shifted["logits"]}, model, TOKENS
    )
    assert (found.first, found.cause) == ("positions", "positions-off-by-one")


@pytest.mark.parametrize("wrong", [99, -1, 1.5, np.nan, np.inf])
def test_positions_that_are_no_rows_differ_and_stop_nothing(model, record, wrong):
    positions = np.broadcast_to(np.arange(TOKENS.shape[1], dtype=np.float64), TOKENS.shape).copy()
    positions[-1, -1] = wrong
    for logits in (record["logits"], 2 * record["logits"]):
        found = numpygpt.compare({"positions": positions, "logits": logits}, model, TOKENS)
        assert found.first == "positions" and found.verdict != "agrees"


def test_what_holds_no_numbers_is_left_out_and_said(model, record):
    for array in (record["ln_f"] > 0, record["ln_f"].astype(np.complex64), np.zeros((0, 3))):
        dump = {"logits": record["logits"], "ln_f": array}
        found = assert_agrees(dump, model)
        (said,) = [remark for remark in found.remarks if "left out" in remark]
        assert f"ln_f ({array.dtype} of shape {array.shape})" in said
        with pytest.raises(ValueError, match=r"nothing was compared.*left out, .* ln_f \("):
            numpygpt.compare({"ln_f": array}, model, TOKENS)


def test_logits_in_one_row_of_numbers_or_one_number(model, one):
    found = assert_agrees({"logits": one["logits"].ravel()}, model, ONE)
    assert not any("cut off" in remark for remark in found.remarks)
    found = numpygpt.compare({"logits": one["logits"][0, 0, 0]}, model, ONE)
    assert (found.first, found.verdict) == ("logits", "differs")


def test_arrays_and_model_in_the_wrong_order_are_said(model, record):
    for wrong in ((model, record), (record, record), ([record["logits"]], model)):
        with pytest.raises(TypeError, match="a dict name -> array, and then our model"):
            numpygpt.compare(*wrong, TOKENS)
