"""family/gpt1.py: golden against transformers, its tokenizer, sampling from it."""

import json
from pathlib import Path

import numpy as np
import pytest

import numpygpt
from numpygpt.family import gpt1

GOLDEN = Path(__file__).parent / "golden"
WORDS = json.loads((GOLDEN / "gpt1_words.json").read_text())
EXPECTED = np.load(GOLDEN / "gpt1.npz")


@pytest.fixture(scope="module")
def loaded():
    return numpygpt.load(GOLDEN / "gpt1")


def as_dtype(model, dtype):
    return gpt1.GPT1(model.config, {n: p.astype(dtype) for n, p in model.params.items()})


def gap(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("pieces", [(11,), (1,) * 11, (5, 2, 4)])
def test_logits_are_transformers_with_and_without_a_cache(loaded, dtype, limit, pieces):
    model = as_dtype(loaded[0], dtype)
    cache, logits, start = model.cache(2), [], 0
    for length in pieces:
        tokens = EXPECTED["tokens"][:, start : start + length]
        logits.append(model.forward(tokens, cache)[0])
        start += length
    logits = np.concatenate(logits, axis=1)
    assert logits.dtype == dtype and gap(logits, EXPECTED["logits"]) < limit


def test_padding_at_the_left_changes_nothing(loaded):
    model = as_dtype(loaded[0], np.float64)
    tokens = EXPECTED["tokens"]
    logits, _ = model.forward(tokens, pads=[0, 4])
    alone, _ = model.forward(tokens[1:, 4:])
    assert np.isfinite(logits).all() and gap(logits[1:, 4:], alone) < 1e-12


@pytest.mark.parametrize("number", range(len(WORDS["texts"])))
def test_ids_are_transformers(loaded, number):
    assert loaded[1].encode(WORDS["texts"][number]) == WORDS["ids"][number]


def test_merges_are_applied_in_the_order_learned():
    symbols = ["a", "b", "c", "a</w>", "b</w>", "c</w>"]
    tokens = ["<unk>", *symbols, "bc</w>", "ab", "abc</w>", "aa"]
    tokenizer = gpt1.CharacterBPE(tokens, [("b", "c</w>"), ("a", "b"), ("a", "a")])
    written = [tokenizer.tokens[i] for i in tokenizer.encode("abc ABC aaa aab é")]
    assert written == [*("a", "bc</w>") * 2, *("aa", "a</w>"), *("aa", "b</w>"), "<unk>"]


def test_decoding_puts_a_space_between_words(loaded):
    _, tokenizer = loaded
    ids = tokenizer.encode("There, all CATTING  on!")
    assert tokenizer.decode(ids) == "there , all catting on !"
    assert "".join(tokenizer.decode_stream(ids)) == " there , all catting on !"
    with pytest.raises(ValueError, match="the id 95 does not exist: there are 0 to 94"):
        tokenizer.decode([95])


def test_generate_works_on_it(loaded):
    model, tokenizer = loaded
    ids = tokenizer.encode("the cat")
    for (new,) in numpygpt.generate(model, [ids.copy()], 5, temperature=0, tokenizer=tokenizer):
        assert model.forward(ids)[0][0, -1].argmax() == new[0]
        ids += new


def test_the_record_is_named_as_gpt2s_and_the_stream_is_normalised(loaded):
    model = as_dtype(loaded[0], np.float64)
    _, acts = model.forward(EXPECTED["tokens"], keep="everything")
    for i in range(2):
        for norm, entry in (("ln_1", "resid_mid"), ("ln_2", "resid_post")):
            w, b = (model.params[f"h.{i}.{norm}.{kind}"] for kind in ("weight", "bias"))
            normal = (acts[f"h.{i}.{entry}"] - b) / w
            assert np.abs(normal.mean(-1)).max() < 1e-12
            assert np.abs(normal.var(-1) - 1).max() < 1e-3
    with pytest.raises(ValueError, match="no backward pass"):
        model.forward(EXPECTED["tokens"], keep="backward")


def test_a_vocabulary_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="lacks <unk>"):
        gpt1.CharacterBPE(["a"], [])
    with pytest.raises(ValueError, match="hold something twice"):
        gpt1.CharacterBPE(["<unk>", "a", "a"], [])
    with pytest.raises(ValueError, match=r"merge of 'a' and 'b</w>' needs the token 'ab</w>'"):
        gpt1.CharacterBPE(["<unk>", "a", "b</w>"], [("a", "b</w>")])
    with pytest.raises(ValueError, match="no special tokens"):
        gpt1.CharacterBPE(["<unk>", "a", "b</w>"], []).encode("a", allowed_special={"<unk>"})
    with pytest.raises(TypeError, match="must be a str"):
        gpt1.CharacterBPE(["<unk>"], []).encode(b"a")


def test_complete_writes_with_gpt1s_own_tokenizer(loaded):
    model, tokenizer = loaded
    new = [
        step[0][0]
        for step in numpygpt.generate(model, tokenizer.encode("the cat"), 6, temperature=0)
    ]
    (text,) = numpygpt.complete(model, tokenizer, "the cat", 6, temperature=0)
    assert text == "".join(tokenizer.decode_stream(new))


def test_only_ids_are_decoded(loaded):
    tokenizer = loaded[1]
    assert tokenizer.decode(np.array([5, 6], np.uint8)) == tokenizer.decode([5, 6])
    for ids in ([1.0], "ab", [True]):
        with pytest.raises(TypeError, match="an id must be an integer"):
            tokenizer.decode(ids)
