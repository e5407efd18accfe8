"""family/bert.py: golden against transformers, WordPiece, masking, what is refused."""

import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import family_models as models  # noqa: E402

from numpygpt import ops, optim, train  # noqa: E402
from numpygpt.family import bert  # noqa: E402
from numpygpt.model import Config  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = np.load(GOLDEN / "bert.npz")
WORDS = json.loads((GOLDEN / "bert_words.json").read_text())
N_VOCAB = EXPECTED["masked"].shape[-1]
CONFIG = models.bert_config(N_VOCAB)


def model(dtype=np.float64):
    params = {name: value.astype(dtype) for name, value in models.bert_params(CONFIG).items()}
    return bert.Bert(CONFIG, params)


def vocabulary(name):
    tokens = (GOLDEN / "bert" / name / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return bert.WordPiece(tokens, lower=name == "uncased")


def gap(ours, theirs, scale=0):
    return np.abs(ours - theirs).max() / max(np.abs(theirs).max(), scale)


def gradient_gaps(grads):
    """A key's bias moves all scores of a query alike, so its gradient is 0, but for rounding: its
    error is measured against the gradient of the query's."""
    for name, grad in grads.items():
        twin = EXPECTED["grad " + name.replace(".key.bias", ".query.bias")]
        yield name, gap(grad, EXPECTED["grad " + name], np.abs(twin).max())


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_both_heads_and_every_gradient_are_transformers(dtype, limit):
    tokens, segments, real, targets, mask, is_next = models.bert_batch(CONFIG)
    ours = model(dtype)
    masked, following, _ = ours.forward(tokens, segments, real)
    loss, grads = ours.loss_and_grads(tokens, targets, mask, segments, real, is_next)
    gaps = {"masked": gap(masked[real], EXPECTED["masked"][real])}
    gaps |= {
        "following": gap(following, EXPECTED["following"]),
        "loss": gap(loss, EXPECTED["loss"]),
    }
    gaps |= dict(gradient_gaps(grads))
    assert list(grads) == list(ours.params) and len(gaps) == len(EXPECTED.files)
    assert {a.dtype for a in (masked, following, *grads.values())} == {np.dtype(dtype)}
    assert max(gaps.values()) < limit, max(gaps, key=gaps.get)


@pytest.mark.parametrize("name", ["uncased", "cased"])
@pytest.mark.parametrize("number", range(len(WORDS["texts"])))
def test_ids_are_transformers(name, number):
    tokenizer = vocabulary(name)
    ids = tokenizer.encode(WORDS["texts"][number], allowed_special=tokenizer.special)
    assert ids == WORDS[name]["texts"][number]


# ---- exact GELU ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 3e-16), (np.float32, 1.2e-7)])
def test_erf_is_maths(dtype, limit):
    x = np.concatenate([np.linspace(-7, 7, 40_001), [0, 1e-300, 1e-5, 6, 5.999999, 1e30]])
    x = np.concatenate([x, (np.arange(200) + 0.5) / 512]).astype(dtype)  # midway: d is largest
    exact = np.array([math.erf(value) for value in x.tolist()])
    y = bert.erf(x)
    assert y.dtype == dtype and np.abs(y - exact).max() <= limit
    assert (bert.erf(-x) == -y).all()


def test_erf_of_what_is_not_a_number_is_not_a_number():
    with np.errstate(all="raise"):
        y = bert.erf(np.array([np.inf, -np.inf, -0.0]))
    assert y.tolist() == [1, -1, 0] and np.signbit(y[2])
    with np.errstate(invalid="ignore"):
        assert np.isnan(bert.erf(np.array([np.nan, 1.0]))).tolist() == [True, False]


def test_gelu_and_its_slope():
    x = np.linspace(-6, 6, 1001)
    phi = np.array([math.erfc(-value / 2**0.5) / 2 for value in x])
    assert np.abs(bert.gelu(x) - x * phi).max() < 1e-15
    slope = (bert.gelu(x + 1e-6) - bert.gelu(x - 1e-6)) / 2e-6
    assert np.abs(bert.gelu_backward(np.ones_like(x), x) - slope).max() < 1e-8
    assert 4e-4 < np.abs(bert.gelu(x) - ops.gelu(x)).max() < 5e-4  # GPT-2's is another function


# ---- the model ----------------------------------------------------------------------------------


def test_a_row_with_padding_is_the_row_alone():
    tokens, segments, real, *_ = models.bert_batch(CONFIG)
    ours = model()
    masked, following, _ = ours.forward(tokens, segments, real)
    alone, alone_following, _ = ours.forward(tokens[1:2, :9], segments[1:2, :9])
    assert gap(masked[1:2, :9], alone) < 1e-12 and gap(following[1:2], alone_following) < 1e-12


def test_it_sees_both_sides():
    tokens = models.bert_batch(CONFIG)[0][:1]
    ours = model()
    before, _, _ = ours.forward(tokens)
    tokens[0, 10] = (tokens[0, 10] + 1) % N_VOCAB
    after, _, _ = ours.forward(tokens)
    assert (np.abs(after - before).max(-1) > 1e-6).all()


def test_the_masked_loss_alone_has_no_gradient_in_the_other_head():
    tokens, segments, real, targets, mask, is_next = models.bert_batch(CONFIG)
    ours = model()
    loss, grads = ours.loss_and_grads(tokens, targets, mask, segments, real)
    masked, _, _ = ours.forward(tokens, segments, real)
    assert loss == ops.cross_entropy(masked, targets, mask)
    assert (grads["cls.seq_relationship.weight"] == 0).all()
    assert (grads["bert.pooler.dense.weight"] == 0).all()
    both, _ = ours.loss_and_grads(tokens, targets, mask, segments, real, is_next)
    assert both > loss


def test_without_its_heads_it_is_an_encoder():
    params = {n: p for n, p in model().params.items() if not n.startswith("cls.")}
    ours = bert.Bert(CONFIG, params)
    assert ours.heads == ("pooler",)
    with pytest.raises(ValueError, match="bert.pooler, which it needs"):
        params = {n: p for n, p in model().params.items() if "pooler" not in n}
        bert.Bert(CONFIG, params)


def test_what_is_refused():
    ours = model()
    with pytest.raises(ValueError, match="14 tokens are more than this model's 13 positions"):
        ours.forward([[0] * 14])
    with pytest.raises(ValueError, match="tokens hold the id 75 in row 0, column 1"):
        ours.forward([[0, 75]])
    with pytest.raises(ValueError, match="segments hold the id 2"):
        ours.forward([[0, 1]], segments=[[0, 2]])
    with pytest.raises(ValueError, match="must have the shape of the tokens"):
        ours.forward([[0, 1]], segments=[[0]])
    with pytest.raises(ValueError, match="nothing but padding"):
        ours.forward([[0, 1]], real=[[0, 0]])
    with pytest.raises(TypeError, match="has no cache"):
        ours.cache(1)
    with pytest.raises(ValueError, match=r"bert.pooler.dense.bias is missing"):
        params = {n: p for n, p in ours.params.items() if n != "bert.pooler.dense.bias"}
        bert.Bert(CONFIG, params)


def test_fill_mask_is_the_softmax_at_the_gap():
    ours, tokenizer = model(np.float32), vocabulary("uncased")
    found = bert.fill_mask(ours, tokenizer, "the [MASK] sat on the [MASK]", k=3)
    assert [len(one) for one in found] == [3, 3]
    ids = [2, 5, 4, 8, 9, 5, 4, 3]  # [CLS] the [MASK] sat on the [MASK] [SEP]
    assert [tokenizer.tokens[i] for i in ids] == "[CLS] the [MASK] sat on the [MASK] [SEP]".split()
    masked, _, _ = ours.forward([ids])
    for place, one in zip((2, 6), found, strict=True):
        p = ops.softmax(masked[0, place])
        best = np.argsort(-p)[:3]
        assert one == [(tokenizer.tokens[i], float(p[i])) for i in best]
    with pytest.raises(ValueError, match=r"no \[MASK\] in the text"):
        bert.fill_mask(ours, tokenizer, "the cat sat")
    with pytest.raises(ValueError, match="more than this model's 13 positions"):
        bert.fill_mask(ours, tokenizer, "[MASK] " * 12)


def test_it_learns_to_fill_in():
    """Rows of one letter: the hidden one is the one around it, on whichever side that stands."""
    rng = np.random.default_rng(0)
    config = Config(6, 5, 16, 2, 1)
    ours = bert.Bert(config, bert.init(config, rng))

    def batches():
        while True:
            rows = np.repeat(rng.integers(5, size=(16, 1)), 5, axis=1)
            hidden, mask = bert.mask_tokens(rows, [], 5, 5, rng)
            yield hidden, rows, mask

    settings = train.Settings(250, batch=16, lr=4e-3, warmup=50)
    state = optim.adam_state(ours.params)
    losses = [step.loss for step in train.train(ours, batches(), settings, state)]
    assert losses[0] == pytest.approx(math.log(6), rel=0.05) and np.mean(losses[-20:]) < 0.7
    for place in (0, 2, 4):
        row = np.full((1, 5), 3)
        row[0, place] = 5
        assert ours.forward(row)[0][0, place].argmax() == 3


# ---- WordPiece ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["uncased", "cased"])
@pytest.mark.parametrize("number", range(len(WORDS["pairs"])))
def test_pairs_and_their_segments_are_transformers(name, number):
    tokenizer = vocabulary(name)
    ids, segments = tokenizer.sequence(*WORDS["pairs"][number], allowed_special=tokenizer.special)
    assert [ids, segments] == WORDS[name]["pairs"][number]


def test_the_longest_piece_comes_first():
    tokenizer = bert.WordPiece([*bert.SPECIAL, "a", "ab", "##b", "##bc", "##c"], True)

    def pieces(text):
        return [tokenizer.tokens[i] for i in tokenizer.encode(text)]

    assert pieces("ab abc abbc aC") == ["ab", "ab", "##c", "ab", "##bc", "a", "##c"]
    assert pieces("abd a") == ["[UNK]", "a"]  # the whole word, however well it begins
    assert tokenizer.decode(tokenizer.encode("abc a")) == "abc a"


def test_special_tokens_are_text_unless_allowed():
    tokenizer = vocabulary("uncased")
    assert tokenizer.special[bert.MASK] not in tokenizer.encode("the [MASK]")
    ids = tokenizer.encode("the[MASK][SEP]cat", allowed_special={"[MASK]"})
    assert ids[1] == tokenizer.special[bert.MASK] and ids.count(tokenizer.special[bert.SEP]) == 0
    with pytest.raises(ValueError, match="are not special tokens here"):
        tokenizer.encode("the", allowed_special={"<|endoftext|>"})
    with pytest.raises(TypeError, match="must be a set of tokens"):
        tokenizer.encode("the", allowed_special="[MASK]")
    with pytest.raises(TypeError, match="must be a str, not list"):
        tokenizer.encode(["the"])
    with pytest.raises(ValueError, match="the id 75 does not exist"):
        tokenizer.decode([75])


def test_the_switches_of_the_words():
    assert bert.words("Café 中国", lower=True) == ["cafe", "中", "国"]
    assert bert.words("Café 中国", lower=False) == ["Café", "中", "国"]
    assert bert.words("Café", lower=True, strip_accents=False) == ["café"]
    assert bert.words("Café", lower=False, strip_accents=True) == ["Cafe"]
    assert bert.words("中国", lower=True, chinese=False) == ["中国"]


# ---- what it is trained on ----------------------------------------------------------------------


def test_of_the_chosen_15_percent_80_are_hidden_10_random_10_kept():
    rng = np.random.default_rng(1)
    tokens = rng.integers(10, 1000, size=(400, 500))
    tokens[:, 0] = 2
    hidden, mask = bert.mask_tokens(tokens, [2, 3], 4, 1000, rng)
    assert not mask[:, 0].any() and (hidden[~mask] == tokens[~mask]).all()
    chosen, was = hidden[mask], tokens[mask]
    assert mask[:, 1:].mean() == pytest.approx(0.15, abs=0.003)
    assert (chosen == 4).mean() == pytest.approx(0.8, abs=0.01)
    assert (chosen == was).mean() == pytest.approx(0.1, abs=0.01)
    other = chosen[(chosen != 4) & (chosen != was)]
    assert len(other) / len(chosen) == pytest.approx(0.1, abs=0.01)
    assert abs(other.mean() - 499.5) < 20  # any id of the vocabulary


def test_pairs_of_sentences():
    tokenizer = vocabulary("uncased")
    first, second = ["the cat sat", "a dog ran", "the mat"], ["a cat", "unaffably walked"]
    stories = [first, second, ["the"], []]
    batches = bert.pair_batches(stories, tokenizer, 200, 12, np.random.default_rng(0))
    hidden, tokens, mask, segments, real, is_next = next(batches)
    followers = {
        (tuple(tokenizer.encode(a)), tuple(tokenizer.encode(b)))
        for story in (first, second)
        for a, b in itertools.pairwise(story)
    }
    sep = tokenizer.special[bert.SEP]
    assert tokens.shape[1] <= 12 and 0.4 < is_next.mean() < 0.6
    for row, kind, keep, follows in zip(tokens, segments, real, is_next, strict=True):
        ids = row[keep].tolist()
        assert ids[0] == tokenizer.special[bert.CLS] and ids[-1] == sep and ids.count(sep) == 2
        at = ids.index(sep)
        assert kind[keep].tolist() == [0] * (at + 1) + [1] * (len(ids) - at - 1)
        assert ((tuple(ids[1:at]), tuple(ids[at + 1 : -1])) in followers) == follows
    assert not mask[~real].any() and not np.isin(tokens[mask], [2, 3, 0]).any()
    assert (hidden[~mask] == tokens[~mask]).all()
    config = Config(tokenizer.n_vocab, 12, 12, 2, 1)
    ours = bert.Bert(config, bert.init(config, np.random.default_rng(0)))
    loss, grads = ours.loss_and_grads(hidden, tokens, mask, segments, real, is_next)
    assert loss == pytest.approx(math.log(75) + math.log(2), rel=0.02)
    assert all(np.isfinite(grad).all() for grad in grads.values())


def test_long_pairs_are_shortened_and_few_stories_refused():
    tokenizer = vocabulary("uncased")
    stories = [["the cat sat on the mat", "a dog"], ["the", "cat sat on"]]
    batch = next(bert.pair_batches(stories, tokenizer, 50, 6, np.random.default_rng(0)))
    assert batch[1].shape == (50, 6)
    assert ((batch[1] == tokenizer.special[bert.SEP]).sum(1) == 2).all()
    with pytest.raises(ValueError, match="two documents of two sentences"):
        next(bert.pair_batches([["the", "cat"]], tokenizer, 2, 9, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="at least 5, not 4"):
        next(bert.pair_batches(stories, tokenizer, 2, 4, np.random.default_rng(0)))


def test_erf_of_integers_is_that_of_the_same_numbers():
    """Their table would be one of integers: zeros."""
    for x in (2, [0, 1, -2], np.array([0, 1, -2]), np.array([3], np.uint8)):
        np.testing.assert_array_equal(bert.erf(x), bert.erf(np.asarray(x, np.float64)))
    assert bert.erf(1) == math.erf(1)


def test_a_loss_is_of_batches_that_fit():
    bert_model, rng = model(), np.random.default_rng(0)
    tokens = rng.integers(5, N_VOCAB, (2, 3))
    mask = np.array([[1, 0, 1], [0, 0, 1]])
    loss, grads = bert_model.loss_and_grads(tokens, tokens, mask, is_next=[1, 0])
    again, _ = bert_model.loss_and_grads(
        tokens.tolist(), tokens.tolist(), mask.tolist(), is_next=np.array([True, False])
    )
    assert again == loss
    single = bert_model.loss_and_grads(tokens[0], tokens[0], mask[0])[0]
    assert single == bert_model.loss_and_grads(tokens[:1], tokens[:1], mask[:1])[0]
    for what, wrong in (("targets", (tokens.T, mask)), ("mask", (tokens, mask.T))):
        with pytest.raises(ValueError, match=f"{what} have shape"):
            bert_model.loss_and_grads(tokens, *wrong)
    for is_next in (True, [1], [2, 0], [1, 0, 1]):
        with pytest.raises(ValueError, match="is_next must be 0 or 1 for each of the 2 rows"):
            bert_model.loss_and_grads(tokens, tokens, mask, is_next=is_next)


def test_it_is_filled_in_by_a_bert_with_its_tokenizer():
    tokenizer = vocabulary("uncased")
    config = Config(tokenizer.n_vocab, 16, 6, 2, 1)
    small = bert.Bert(config, bert.init(config, np.random.default_rng(0)))
    (five,) = bert.fill_mask(small, tokenizer, "the [MASK]", np.uint8(5))
    assert five == bert.fill_mask(small, tokenizer, "the [MASK]")[0] and len(five) == 5
    for k, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError)):
        with pytest.raises(error, match="k must be"):
            bert.fill_mask(small, tokenizer, "the [MASK]", k)
    with pytest.raises(TypeError, match="not WordPiece and Bert"):
        bert.fill_mask(tokenizer, small, "the [MASK]")


def test_it_is_told_from_a_model_that_writes():
    import numpygpt
    from numpygpt import evaluate

    tokenizer = vocabulary("uncased")
    config = Config(tokenizer.n_vocab, 16, 6, 2, 1)
    small = bert.Bert(config, bert.init(config, np.random.default_rng(0)))
    with pytest.raises(TypeError, match="a WordPiece is not the tokenizer of a model that writes"):
        numpygpt.complete(small, tokenizer, "the", 3)
    with pytest.raises(TypeError, match="does not predict the next token"):
        evaluate.lambada(small, tokenizer, ["the the"])
    for ids in ([1.0], "ab", [True]):
        with pytest.raises(TypeError, match="an id must be an integer"):
            tokenizer.decode(ids)
    assert tokenizer.decode(np.array([5, 6], np.uint8)) == tokenizer.decode([5, 6])
    rows = [[5, 6, 7]]
    for kind in (list, np.array):
        hidden, mask = bert.mask_tokens(kind(rows), [], 4, 50, np.random.default_rng(1), 1.0)
        assert hidden.shape == (1, 3) and mask.all()
    for rng in (0, None):
        with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
            bert.init(config, rng)


def test_batches_that_would_never_come_are_refused():
    tokenizer, rng = vocabulary("uncased"), np.random.default_rng(0)
    unknown = [["☃ ☃", "☃"], ["☃", "☃ ☃"]]
    with pytest.raises(ValueError, match="there is no word to hide"):
        next(bert.pair_batches(unknown, tokenizer, 2, 9, rng))
    for wrong, error in (({"batch": 0}, ValueError), ({"batch": 2.0}, TypeError),
                         ({"rng": 0}, TypeError), ({"length": 9.0}, TypeError)):  # fmt: skip
        settings = {"batch": 2, "length": 9, "rng": rng} | wrong
        with pytest.raises(error, match=f"{next(iter(wrong))} must be"):
            next(bert.pair_batches([["the", "the"]] * 2, tokenizer, **settings))
