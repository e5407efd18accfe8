"""Losses over a long text: every token counted once, with the context the protocol promises."""

import json
import math

import numpy as np
import pytest

from numpygpt import cli, data, evaluate, model
from numpygpt.bpe import Tokenizer
from numpygpt.files import checkpoint

CONFIG = model.Config(n_vocab=31, n_ctx=8, n_embd=12, n_head=2, n_layer=2)


@pytest.fixture(scope="module")
def gpt():
    return model.GPT2(CONFIG, model.init(CONFIG, np.random.default_rng(0), np.float64))


def one_by_one(gpt, ids, stride):
    """-log p of each token, computed singly: windows by their definition, one token at a time."""
    total, covered, start = 0.0, 0, 0
    while covered < len(ids) - 1:
        window = ids[start : start + CONFIG.n_ctx + 1]
        for t in range(max(1, covered - start + 1), len(window)):
            logits = gpt.forward(window[:t])[0][0, -1]
            total += math.log(np.exp(logits).sum()) - logits[window[t]]
        covered = start + len(window) - 1
        start = min(start + stride, max(0, len(ids) - 1 - CONFIG.n_ctx))
    return total


@pytest.mark.parametrize("length", [2, 5, 9, 10, 17, 30])
@pytest.mark.parametrize("stride", [1, 3, 8, None])
def test_stream_nats_counts_every_token_once(gpt, length, stride):
    ids = np.random.default_rng(length).integers(0, 31, length)
    nats, counted = evaluate.stream_nats(gpt, ids, stride, batch=3)
    assert counted == length - 1
    np.testing.assert_allclose(nats, one_by_one(gpt, ids, stride or 8), rtol=1e-12)


def test_an_untrained_model_costs_ln_v_per_token(gpt):
    ids = np.random.default_rng(1).integers(0, 31, 200)
    nats, counted = evaluate.stream_nats(gpt, ids)
    assert abs(nats / counted - math.log(31)) < 0.02 * math.log(31)


def test_refusals(gpt):
    for stride in (0, 9):
        with pytest.raises(ValueError, match="stride must be between 1 and n_ctx = 8"):
            evaluate.stream_nats(gpt, [1, 2, 3], stride)
    for ids in ([], [4]):
        with pytest.raises(ValueError, match="two tokens"):
            evaluate.stream_nats(gpt, ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nats_of_each_target(dtype):
    rng = np.random.default_rng(0)
    logits = (30 * rng.standard_normal((2, 70, 9))).astype(
        dtype
    )  # more rows than are taken at once
    targets = rng.integers(0, 9, (2, 70))
    exact = np.exp(logits.astype(np.longdouble))
    exact = np.log(exact.sum(-1)) - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(evaluate.nats(logits, targets), exact.astype(float), atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nats_of_what_is_not_a_number_are_no_score(value):
    logits = np.zeros((1, 3, 5))
    logits[0, 2, 4] = value
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        evaluate.nats(logits, np.zeros((1, 3), int))


def test_bits_per_byte_of_a_fair_coin_per_bit():
    assert evaluate.bits_per_byte(8 * math.log(2) * 10, n_bytes=10) == pytest.approx(8)


# ---- continuations, LAMBADA, HellaSwag, windows -------------------------------------------------


def singly(gpt, context, ids):
    """-ln p and whether greedy decoding writes it, one token at a time."""
    nats, greedy = 0.0, True
    for i, target in enumerate(ids):
        logits = gpt.forward(np.array((context + ids[:i])[-CONFIG.n_ctx :]))[0][0, -1]
        nats += math.log(np.exp(logits).sum()) - logits[target]
        greedy &= bool(logits.argmax() == target)
    return nats, greedy


def test_continuations_equal_each_scored_alone(gpt):
    context = [3, 1, 4]
    likeliest = int(gpt.forward(np.array(context))[0][0, -1].argmax())
    candidates = [[5, 9, 2], [likeliest], [6, 5, 3, 5, 8]]
    scored = evaluate.continuations(gpt, context, candidates)
    for one, ids in zip(scored, candidates, strict=True):
        nats, greedy = singly(gpt, context, ids)
        assert (one.tokens, one.greedy) == (len(ids), greedy)
        np.testing.assert_allclose(one.nats, nats, rtol=1e-12)
    assert scored[1].greedy


def test_of_a_long_context_the_end_counts(gpt):
    ids = np.random.default_rng(3).integers(0, 31, 20).tolist()
    long, short = (evaluate.continuations(gpt, ids[-n:], [[7, 11]])[0] for n in (20, 7))
    assert long == short  # 7 + 2 = n_ctx + 1
    with pytest.raises(ValueError, match="9 tokens do not fit n_ctx = 8"):
        evaluate.continuations(gpt, [1], [[2] * 9])
    for context, candidates in (([], [[1]]), ([1], [[2], []])):
        with pytest.raises(ValueError, match="at least one token"):
            evaluate.continuations(gpt, context, candidates)


class Letters:
    """A tokenizer whose ids are the places of letters in the alphabet, and 0 for a space."""

    special = ()

    def encode(self, text, allowed_special=()):
        return [" abcdefghijklmnopqrstuvwxyz".index(letter) for letter in text]


class NextLetter:
    """A model that expects the next letter of the alphabet, e times as much as any other."""

    config = CONFIG

    def forward(self, tokens):
        return (np.arange(31) == np.asarray(tokens)[..., None] + 1).astype(float), {}


def test_lambada_by_hand():
    # after "q": " " is not what comes next, but "a" after " " (0, 1) is, and "b" after "a".
    # after "c": " " is not, and "d" after " " is not.
    result = evaluate.lambada(NextLetter(), Letters(), ["q ab\n", "c d"])
    likely, other = math.log(math.e + 30) - 1, math.log(math.e + 30)
    mean = (other + likely + likely + other + other) / 2
    assert result["texts"] == 2 and result["accuracy"] == 0
    assert result["perplexity"] == pytest.approx(math.exp(mean))
    with pytest.raises(ValueError, match="two words"):
        evaluate.lambada(NextLetter(), Letters(), ["alone"])
    with pytest.raises(ValueError, match="no LAMBADA texts"):
        evaluate.lambada(NextLetter(), Letters(), [])


def test_hellaswag_by_hand():
    # Two unlikely tokens have the smaller sum, five with some likely ones the smaller mean.
    items = [
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": 0},
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": "1"},
        {"ctx": "q", "endings": ["ab", "zz", "zzz", "zzzz"], "label": 0},
    ]
    result = evaluate.hellaswag(NextLetter(), Letters(), items)
    assert result == {"accuracy": 2 / 3, "accuracy_norm": 2 / 3, "items": 3}


@pytest.mark.parametrize(("length", "stride"), [(21, 8), (21, 3), (8, 4), (5, 8), (30, 2)])
def test_windows_perplexity_is_that_of_the_documentation(gpt, length, stride):
    ids = np.random.default_rng(length).integers(0, 31, length)
    total, weight, previous = 0.0, 0, 0
    for begin in range(0, length, stride):  # the loop as transformers documents it
        end = min(begin + CONFIG.n_ctx, length)
        new = end - previous
        labels = ids[begin:end].copy()
        labels[: len(labels) - new] = -100
        logits = gpt.forward(ids[begin:end])[0][0, :-1]
        kept = labels[1:] != -100
        if new - 1 > 0:
            nll = (
                np.log(np.exp(logits).sum(-1))
                - logits[np.arange(len(logits)), ids[begin + 1 : end]]
            )
            total += nll[kept].mean() * (new - 1)
            weight += new - 1
        previous = end
        if end == length:
            break
    ours = evaluate.windows_perplexity(gpt, ids, stride)
    np.testing.assert_allclose(ours, math.exp(total / weight), rtol=1e-12)


# ---- the command --------------------------------------------------------------------------------

TEXT = "The fox ran. The hen ran after the fox.\n<|endoftext|>\nA hen and a fox.\n<|endoftext|>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of its own vocabulary, saved."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer.train(TEXT, 262)
    config = model.Config(262, 9, 12, 3, 2)
    gpt = model.GPT2(config, model.init(config, np.random.default_rng(5)))
    checkpoint.save(gpt, tokenizer, folder)
    return folder


def run(folder, path, *options):
    return cli.main(["evaluate", str(path), "--model", str(folder), "--json", *options])


def test_evaluate_command_perplexity(folder, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    assert run(folder, tmp_path / "text.txt", "--stride", "4") == 0
    result = json.loads(capsys.readouterr().out)
    gpt, tokenizer = checkpoint.load_folder(folder), Tokenizer.read(folder)
    ids = data.encode_documents(tokenizer, data.documents(TEXT))
    nats, count = evaluate.stream_nats(gpt, ids, 4)
    assert result["tokens"] == count == len(ids) - 1
    assert result["perplexity per token"] == pytest.approx(math.exp(nats / count))
    size = len("The fox ran. The hen ran after the fox.A hen and a fox.")
    assert result["bits per byte"] == pytest.approx(nats / math.log(2) / size)


def test_evaluate_command_on_items(folder, tmp_path, capsys):
    lines = ['{"text": "the fox ran"}', '{"text": "a hen and a fox"}', '{"text": "x y"}']
    (tmp_path / "l.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert run(folder, tmp_path / "l.jsonl", "--task", "lambada", "--limit", "2") == 0
    assert json.loads(capsys.readouterr().out)["texts"] == 2
    assert run(folder, tmp_path / "l.jsonl", "--task", "hellaswag") == 2
    assert "line 1 lacks 'ctx': it must have ctx, endings, label" in capsys.readouterr().err
