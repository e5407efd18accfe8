"""Losses over a long text: every token counted once, with the context the protocol promises."""

import bz2
import dataclasses
import json
import lzma
import math
import types

import numpy as np
import pytest
from golden import models
from signatures import defaults

from numpygpt import cli, data, evaluate, model
from numpygpt.bpe import Tokenizer
from numpygpt.files import checkpoint, vocabulary

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


@pytest.mark.parametrize(("n_ctx", "windows"), [(1024, 2), (683, 2), (2048, 1), (4096, 1)])
def test_windows_go_through_as_many_at_a_time_as_hold_2048_tokens(n_ctx, windows):
    passes = []

    class Watched:
        config = dataclasses.replace(CONFIG, n_ctx=n_ctx)

        def forward(self, tokens):
            passes.append(tokens.shape)
            return np.zeros((*tokens.shape, 2)), {}

    ids = np.zeros(3 * n_ctx + 1, int)
    expected = [(2, n_ctx), (1, n_ctx)] if windows == 2 else [(1, n_ctx)] * 3
    assert evaluate.stream_nats(Watched(), ids)[1] == 3 * n_ctx
    assert passes == expected
    passes.clear()
    assert evaluate.position_nats(Watched(), ids).shape == (3, n_ctx)
    assert passes == expected


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


@pytest.mark.parametrize("wrong", [-1, CONFIG.n_vocab])
def test_the_last_id_is_looked_at_too(gpt, wrong):
    """The model does not read it, and NumPy would take -1 for the last id of the vocabulary."""
    with pytest.raises(ValueError, match="are to be predicted, but the model's vocabulary"):
        evaluate.continuations(gpt, [3, 5], [[7, 2], [7, wrong]])
    with pytest.raises(ValueError, match="are to be predicted, but the model's vocabulary"):
        evaluate.stream_nats(gpt, [3, 5, wrong])


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
    assert evaluate.continuations(gpt, [1], [[2] * 8])[0].tokens == 8
    with pytest.raises(ValueError, match="9 tokens do not fit n_ctx = 8"):
        evaluate.continuations(gpt, [1], [[2] * 9])
    for context, candidates in (([], [[1]]), ([1], [[2], []])):
        with pytest.raises(ValueError, match="at least one token"):
            evaluate.continuations(gpt, context, candidates)


class Letters:
    """A tokenizer whose ids are the places of letters in the alphabet, and 0 for a space."""

    letters = ' abcdefghijklmnopqrstuvwxyz\n",.'
    special, eot = (), None
    n_vocab = len(letters)

    def encode(self, text, allowed_special=(), begins=True):
        return [self.letters.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)


def test_a_context_begins_a_text_and_what_follows_it_does_not():
    """A vocabulary may put a token or a space before a text, but not before the rest of one."""
    begun = []

    class Noting(Letters):
        def encode(self, text, allowed_special=(), begins=True):
            begun.append((text, begins))
            return super().encode(text)

    evaluate.lambada_questions(Noting(), ["q ab"])
    evaluate.lambada_questions(Noting(), ["q cd"], "token")
    evaluate.hellaswag_questions(Noting(), [{"ctx": "q", "endings": ["x", "y"], "label": 0}])
    assert begun == [
        ("q", True), (" ab", False),
        ("\nq cd", True),
        ("q", True), (" x", False), (" y", False),
    ]  # fmt: skip


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
    for text in ("alone", " alone"):
        with pytest.raises(ValueError, match="two words"):
            evaluate.lambada(NextLetter(), Letters(), [text])
    with pytest.raises(ValueError, match="no LAMBADA texts"):
        evaluate.lambada(NextLetter(), Letters(), [])


def test_the_three_protocols_of_lambada_by_hand():
    """NextLetter writes the next letter; of these targets the last tokens are b, d and z."""
    texts = ["q ab", "\u201cq\u201d zd", "q zy"]
    model, letters = NextLetter(), Letters()
    token = evaluate.lambada(model, letters, texts, "token")
    assert token["accuracy"] == pytest.approx(1 / 3)  # of "ab" the b; the d would be an a
    likely, other = math.log(math.e + 30) - 1, math.log(math.e + 30)
    assert token["perplexity"] == pytest.approx(math.exp((likely + other + other) / 3))
    filtered = evaluate.lambada(model, letters, texts, "filtered")
    word = evaluate.lambada(model, letters, texts[::2])
    assert filtered["accuracy"] == word["accuracy"] == 0
    (question,) = evaluate.lambada_questions(letters, [texts[1]], "filtered")
    assert question.rows == [(letters.encode('\n"q"'), letters.encode(" zd"))]
    (question,) = evaluate.lambada_questions(letters, [" q ab \n"], "token")
    assert question.rows == [(letters.encode("\nq a"), letters.encode("b"))]
    with pytest.raises(ValueError, match="word, token and filtered, not 'last'"):
        evaluate.lambada(model, letters, texts, "last")


def test_a_stop_word_is_not_written_where_it_is_filtered():
    """ "a" follows " " and is a stop word: then the letters after the space are all alike, and the
    first of them, the space itself, is written."""
    letters = Letters()
    banned = evaluate.stop_words(letters, 31)
    assert [letters.letters[i] for i in np.flatnonzero(banned)] == list("aist")
    padded = evaluate.stop_words(letters, 35)  # rows of the embedding that are no token
    assert padded.tolist() == [*banned.tolist(), False, False, False, False]
    rows = [(letters.encode("q "), letters.encode(target)) for target in ("a", " ", "z")]
    plain = evaluate.score(NextLetter(), rows)
    assert [one.greedy for one in plain] == [True, False, False]
    filtered = evaluate.score(NextLetter(), rows, banned)
    assert [one.greedy for one in filtered] == [False, True, False]
    assert [one.nats for one in plain] == [one.nats for one in filtered]


class Answering:
    """A model that expects after each letter the one that it is told, after the others none."""

    config = CONFIG

    def __init__(self, follow):
        self.follow = {Letters.letters.index(a): Letters.letters.index(b) for a, b in follow}

    def cache(self, batch=1):
        return types.SimpleNamespace(k=[], v=[], length=0, pads=None)

    def forward(self, tokens, cache=None, pads=None, only_last=False):
        logits = np.zeros((*np.shape(tokens), 31))
        for at in np.ndindex(np.shape(tokens)):
            if tokens[at] in self.follow:
                logits[(*at, self.follow[tokens[at]])] = 1
        return logits[:, -1:] if only_last else logits, {}


def test_a_filter_takes_a_stop_word_for_wrong():
    """ "a" follows a space; without it all letters are alike, and the first is written: a space."""
    model = Answering([" a"])
    for protocol, accuracy in (("word", 1), ("token", 1), ("filtered", 0)):
        assert evaluate.lambada(model, Letters(), ["q a"], protocol)["accuracy"] == accuracy


def test_hellaswag_by_hand():
    # Two unlikely tokens have the smaller sum, five with some likely ones the smaller mean. The
    # second is right more often, so that a mean that is none would be right as seldom as the sum.
    items = [
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": 1},
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": 0},
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": "1"},
        {"ctx": "q", "endings": ["ab", "zz", "zzz", "zzzz"], "label": 0},
        {"ctx": "q", "endings": ["x", "abcde", "xx", "xxx"], "label": 2},
    ]
    result = evaluate.hellaswag(NextLetter(), Letters(), items)
    assert result == {"accuracy": 2 / 5, "accuracy_norm": 3 / 5, "items": 5}


CBT = """1 The fox sat .
2 He said , `` I 'm old . ''
21 The XXXXX ran .\tfox\t\tfox|hen|owl

1 Who ?
21 `` XXXXX is not n't here '' he said\then\t\tcat|hen
"""


def test_the_published_form_of_the_childrens_book_test():
    first, second = evaluate.cbt_items(CBT)
    assert first["sentences"] == ["The fox sat .", "He said , `` I 'm old . ''"]
    assert (first["question"], first["answer"]) == ("The XXXXX ran .", "fox")
    assert first["options"] == ["fox", "hen", "owl"]
    assert second["options"] == ["cat", "hen"]
    for wrong in ("21 The XXXXX ran .\tfox\n", "21 The ran .\tfox\t\tfox|hen\n"):
        with pytest.raises(ValueError, match="line 1 of the Children's Book Test"):
            evaluate.cbt_items(wrong)
    with pytest.raises(ValueError, match="without a question"):
        evaluate.cbt_items("1 The fox .\n")


class Text:
    """A tokenizer that leaves a text as it is."""

    special, eot = (), None

    def encode(self, text, allowed_special=(), begins=True):
        return text


def test_a_gap_is_filled_in_detokenised_text():
    first, second = evaluate.cbt_questions(Text(), evaluate.cbt_items(CBT))
    story = 'The fox sat. He said, "I\'m old." The'
    assert first.rows == [(story, f" {option} ran.") for option in ("fox", "hen", "owl")]
    assert second.rows[1] == ("Who?", ' "hen is notn\'t here" he said')
    assert (first.right, second.right) == (0, 1)


@pytest.mark.parametrize(
    ("change", "value"),
    [("answer", "wolf"), ("question", "no gap"), ("options", ["fox"]), ("question", "XXXXX XXXXX")],
)
def test_a_question_without_answer_or_gap_is_refused(change, value):
    item = evaluate.cbt_items(CBT)[0] | {change: value}
    with pytest.raises(ValueError, match="item 1 of the Children's Book Test"):
        evaluate.cbt_questions(Letters(), [item])


def test_an_item_without_tokens_is_named():
    item = {"ctx": "q", "endings": ["a", "b", "c", "d"], "label": 0}
    with pytest.raises(
        ValueError, match="HellaSwag item 2 has a context or a continuation without"
    ):
        evaluate.hellaswag_questions(Letters(), [item, item | {"ctx": ""}])
    nothing = {"sentences": [], "question": "XXXXX q", "answer": "a", "options": ["a", "b"]}
    with pytest.raises(ValueError, match="item 1 of the Children's Book Test has a context"):
        evaluate.cbt_questions(Letters(), [nothing])


def test_the_childrens_book_test_by_hand():
    """The rest of the sentence decides: after "m" the "n" is likely, after the others it is not."""
    items = [
        {"sentences": ["a q"], "question": "q XXXXXn", "answer": answer, "options": ["z", "m", "c"]}
        for answer in ("m", "z", "m", "m")
    ]
    result = evaluate.cbt(NextLetter(), Letters(), items, batch=7)
    assert result == {"accuracy": 0.75, "items": 4}


# ---- WikiText -----------------------------------------------------------------------------------

WIKI = """
 = Robert the Fox =

 Robert ( born 1 @,@ 970 ) said " hello " , and ran 3 @.@ 5 well @-@ known miles .
 = = Early life = =
 It 's the foxes ' den : cold ; dark .

 = Hen =

 A hen .
"""


def test_wikitext_as_people_write_it():
    first, second = evaluate.wikitext_pages(WIKI)
    assert first.startswith(" = Robert the Fox =") and second.startswith(" = Hen =")
    shown = evaluate.wikitext_detokenized(first)
    assert 'Robert (born 1,970) said "hello", and ran 3.5 well-known miles .' in shown
    assert "== Early life ==\n" in shown
    assert "the foxes' den: cold; dark.\n" in evaluate.wikitext_detokenized(
        " the foxes ' den : cold ; dark . \n"
    )


def test_wikitext_per_word_by_hand():
    """Two pages of letters alone: every token but "b" after "a" is as unlikely as any other."""
    pages = ["ab q", "q q q"]
    parts = list(evaluate.wikitext(NextLetter(), Letters(), pages))
    likely, other = math.log(math.e + 30) - 1, math.log(math.e + 30)
    assert [part[1:] for part in parts] == [(3, 2), (4, 3)]
    total = likely + 2 * other + 4 * other
    result = evaluate.wikitext_result(parts)
    assert result["perplexity per word"] == pytest.approx(math.exp(total / 5))
    assert result["perplexity per token"] == pytest.approx(math.exp(total / 7))
    assert result["bits per word"] == pytest.approx(total / 5 / math.log(2))
    assert (result["words"], result["tokens"], result["pages"]) == (5, 7, 2)
    with pytest.raises(ValueError, match="no WikiText pages"):
        evaluate.wikitext_result([])


# ---- windows ------------------------------------------------------------------------------------


def test_the_loss_at_each_position_of_the_window(gpt):
    ids = np.random.default_rng(5).integers(0, 31, 8 * 3 + 4)
    found = evaluate.position_nats(gpt, ids, batch=2)
    assert found.shape == (3, 8)
    for row, start in zip(found, (0, 8, 16), strict=True):
        for t in range(8):
            (one,) = evaluate.score(
                gpt, [(ids[start : start + t + 1].tolist(), [int(ids[start + t + 1])])]
            )
            np.testing.assert_allclose(row[t], one.nats, rtol=1e-12)
    with pytest.raises(ValueError, match="two windows of 8"):
        evaluate.position_nats(gpt, ids[:16])
    assert evaluate.position_nats(gpt, ids[:17]).shape == (2, 8)


@pytest.mark.parametrize(
    ("length", "stride"), [(21, 8), (21, 3), (8, 4), (5, 8), (30, 2), (17, 8), (2, 1)]
)
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


# ---- against transformers -----------------------------------------------------------------------

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_log_likelihoods_are_those_of_transformers(dtype):
    reference = json.loads((models.GOLDEN / "evaluate.json").read_text(encoding="utf-8"))
    params = {name: p.astype(dtype) for name, p in models.small().items()}
    small = model.GPT2(models.SMALL, params)
    rows = [(row["context"], row["ids"]) for row in reference["rows"]]
    alone = [evaluate.score(small, [row])[0] for row in rows]
    for one, together, row in zip(
        alone, evaluate.score(small, rows), reference["rows"], strict=True
    ):
        np.testing.assert_allclose(one.nats, -sum(row["each"]), rtol=TOLERANCE[dtype])
        np.testing.assert_allclose(together.nats, one.nats, rtol=TOLERANCE[dtype])
        assert one.greedy == together.greedy == row.get("greedy", False)
    for text in reference["texts"]:
        total, count = evaluate.stream_nats(small, text["ids"], batch=2)
        np.testing.assert_allclose(total, -text["sum"], rtol=TOLERANCE[dtype])
        assert count == len(text["ids"]) - 1


# ---- in batches, and from where it stopped ------------------------------------------------------


def some_questions(count=7):
    rng = np.random.default_rng(2)
    draw = lambda n: rng.integers(0, 31, n).tolist()  # noqa: E731
    return [
        evaluate.Question([(draw(3), draw(1 + i % 4)) for _ in range(1 + i % 3)])
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("batch", "rows"),
    [(1, [1, 2, 3, 1, 2, 3, 1]), (3, [3, 3, 3, 3, 1]), (5, [3, 4, 5, 1]), (100, [13])],
)
def test_answers_do_not_depend_on_the_batch(gpt, batch, rows):
    questions = some_questions()
    passes = []

    class Watched:
        config = CONFIG

        def forward(self, tokens):
            passes.append(len(tokens))
            return gpt.forward(tokens)

    found = list(evaluate.score_questions(Watched(), iter(questions), batch))
    for answer, question in zip(found, questions, strict=True):
        for one, row in zip(answer, question.rows, strict=True):
            alone = evaluate.score(gpt, [row])[0]
            np.testing.assert_allclose(one.nats, alone.nats, rtol=1e-12)
            assert one[1:] == alone[1:]
    assert passes == rows  # questions are taken whole


def test_a_shared_context_is_read_once(gpt):
    """The same scores as of rows; a question of another kind between keeps its place."""
    rng = np.random.default_rng(9)

    def draw(n):
        return rng.integers(0, 31, n).tolist()

    questions = [
        evaluate.Question(
            [(context, draw(n)) for n in (1, 3, 1)] if shared else [(draw(3), draw(2))]
        )
        for context, shared in ((draw(6), True), (None, False), (draw(6), True), (draw(5), True))
    ]
    read = []

    class Watched:
        config, cache = CONFIG, gpt.cache

        def forward(self, tokens, cache=None, only_last=False):
            read.append(np.size(tokens))
            return gpt.forward(tokens, cache, only_last=only_last)

    banned = np.arange(31) % 2 == 0
    found = list(evaluate.score_questions(Watched(), questions, banned=banned))
    assert read == [6, 2, 4, 6, 2, 5, 2]
    for answer, question in zip(found, questions, strict=True):
        alone = [evaluate.score(gpt, [row], banned)[0] for row in question.rows]
        np.testing.assert_allclose([x.nats for x in answer], [x.nats for x in alone], rtol=1e-12)
        assert [one[1:] for one in answer] == [one[1:] for one in alone]
    # 8 + 2 do not fit n_ctx + 1 = 9: each row loses as much of its beginning as it must
    long = evaluate.Question([(draw(8), [1, 2])] * 2)
    (answer,) = evaluate.score_questions(gpt, [long])
    np.testing.assert_allclose(answer[0].nats, evaluate.score(gpt, long.rows[:1])[0].nats)


def test_when_a_shared_context_is_worth_reading_once(gpt):
    """Where it spares more tokens than the candidates have, and all of it fits."""

    def once(context, lengths, model=gpt):
        found = evaluate._read_once(model, [([1] * context, [2] * n) for n in lengths])
        assert found in (None, [1] * context)
        return found is not None

    assert once(5, [4, 3, 2]) and not once(5, [4, 4, 2])  # 5 are spared twice
    assert not once(5, [4]) and once(5, [2, 2]) and not once(5, [3, 2])
    assert once(7, [2, 2]) and not once(7, [3, 1])  # n_ctx + 1 = 9
    assert not once(5, [2, 1, 0])
    assert not once(5, [2, 2], NextLetter())  # which has no cache
    assert evaluate._read_once(gpt, [([1] * 5, [2]), ([1] * 4 + [3], [2])]) is None


def test_batches_of_a_text_can_be_begun_in_the_middle(gpt):
    ids = np.random.default_rng(2).integers(0, 31, 50)
    whole = list(evaluate.stream(gpt, ids, 3, batch=4))
    assert len(whole) > 3
    for done in range(len(whole) + 1):
        assert list(evaluate.stream(gpt, ids, 3, batch=4, done=done)) == whole[done:]


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
    gpt, tokenizer = checkpoint.load_folder(folder), vocabulary.read(folder)
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


def test_an_evaluation_goes_on_where_it_stopped(folder, tmp_path, capsys, monkeypatch):
    lines = [json.dumps({"text": f"the fox ran {'a hen ' * (i % 3)}and {i}"}) for i in range(7)]
    path, kept = tmp_path / "l.jsonl", tmp_path / "kept.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    options = "--task", "lambada", "--batch", "2"
    assert run(folder, path, *options) == 0
    whole = json.loads(capsys.readouterr().out)

    scored, calls = evaluate.score, []

    def interrupted(*arguments):
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(evaluate, "score", interrupted)
    assert run(folder, path, *options, "--keep", str(kept)) == 130
    assert len(kept.read_text().splitlines()) == 1 + 4
    kept.write_text(kept.read_text() + "[[1.5, 2, fal", encoding="utf-8")  # killed while writing
    capsys.readouterr()
    assert run(folder, path, *options, "--keep", str(kept)) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(whole)
    assert calls[3:] == [2, 1]  # four of the seven were there already
    assert run(folder, path, *options, "--keep", str(kept)) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(whole) and len(calls) == 5
    assert run(folder, path, *options[:2], "--limit", "3", "--keep", str(kept)) == 2
    assert "another evaluation" in capsys.readouterr().err
    kept.write_text(kept.read_text().replace("[[", "[", 1), encoding="utf-8")
    assert run(folder, path, *options, "--keep", str(kept)) == 2
    assert "damaged" in capsys.readouterr().err


def test_perplexity_goes_on_where_it_stopped(folder, tmp_path, capsys):
    path, kept = tmp_path / "t.txt", tmp_path / "kept.jsonl"
    path.write_text(TEXT * 5, encoding="utf-8")
    assert run(folder, path, "--keep", str(kept), "--batch", "2") == 0
    whole = json.loads(capsys.readouterr().out)
    lines = kept.read_text().splitlines()
    kept.write_text("\n".join(lines[: len(lines) // 2]) + "\n", encoding="utf-8")
    assert run(folder, path, "--keep", str(kept), "--batch", "2") == 0
    assert json.loads(capsys.readouterr().out) == whole
    assert kept.read_text().splitlines() == lines


def tasks(tmp_path):
    """task -> the file that it reads, and options."""
    files = {
        "perplexity": TEXT,
        "wikitext": WIKI,
        "lambada": '{"text": "the fox ran"}\n',
        "hellaswag": '{"ctx": "the", "endings": ["fox", "hen", "ran", "a"], "label": 1}\n',
        "cbt": "1 The fox .\n21 The XXXXX ran .\tfox\t\tfox|hen\n",
        "preference": '{"a": "the fox ran", "b": "the hen ran"}\n{"a": "a fox", "b": "a hen"}\n',
        "memorisation": TEXT * 3,
    }
    for task, content in files.items():
        path = tmp_path / f"{task}.txt"
        path.write_text(content, encoding="utf-8")
        held_out = ["--held-out", str(path), "--prefix", "3"] if task == "memorisation" else []
        yield task, path, held_out


def test_every_task_measures_and_says_what_it_does_not_show(folder, tmp_path, capsys):
    for task, path, options in tasks(tmp_path):
        assert (
            cli.main(["evaluate", str(path), "--model", str(folder), "--task", task, *options]) == 0
        )
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) >= 2, task
        assert f"{task} of {folder}:" in captured.err
        assert ("does not show" in captured.err) == (task in ("preference", "memorisation")), task


def test_a_model_that_returns_nan_has_no_score(folder, tmp_path, capsys):
    gpt, tokenizer = checkpoint.load_folder(folder), vocabulary.read(folder)
    params = {name: p.copy() for name, p in gpt.params.items()}
    params["h.1.mlp.c_proj.bias"][3] = np.nan
    checkpoint.save(model.GPT2(gpt.config, params), tokenizer, tmp_path / "nan")
    for task, path, options in tasks(tmp_path):
        arguments = ["evaluate", str(path), "--model", str(tmp_path / "nan"), "--task", task]
        assert cli.main([*arguments, *options]) == 1, task
        captured = capsys.readouterr()
        assert captured.out == "" and "NaN or infinity" in captured.err, task
        assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--task", "memorisation"], "--held-out"),
        (["--protocol", "token"], "--protocol is for lambada, not for perplexity"),
        (["--task", "lambada", "--stride", "4"], "--stride is for perplexity"),
        (["--task", "preference"], "line 1 is not JSON"),
        (["--task", "cbt"], "without a question"),
        (["--stride", "0"], "stride must be between 1 and n_ctx = 9"),
        (["--task", "lambada", "--protocol", "last"], "invalid choice"),
    ],
)
def test_what_is_not_understood_is_refused(folder, tmp_path, capsys, options, sentence):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    try:
        status = run(folder, tmp_path / "t.txt", *options)
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1


# ---- pairs (x, y), and what one has without a model ---------------------------------------------


PAIRS = [("fox", " a"), ("the h", "en"), ("", "a"), ("a h", "en")]


def test_the_loss_on_y_and_exact_match_by_hand(folder):
    gpt, tokenizer = checkpoint.load_folder(folder), vocabulary.read(folder)
    gpt = model.GPT2(
        gpt.config, {n: p * (9 if n == "wte.weight" else 1) for n, p in gpt.params.items()}
    )
    greedy = []
    for x, _ in PAIRS:
        ids = tokenizer.encode(x) or [tokenizer.eot]
        before = len(ids)
        while len(ids) < 9 and (len(ids) == before or ids[-1] != tokenizer.eot):
            ids.append(int(gpt.forward(ids)[0][0, -1].argmax()))
        greedy.append(ids[before:])
    total = count = 0
    for x, y in PAIRS:
        before, after = (
            tokenizer.encode(x) or [tokenizer.eot],
            [*tokenizer.encode(y), tokenizer.eot],
        )
        (scored,) = evaluate.continuations(gpt, before, [after])
        total, count = total + scored.nats, count + scored.tokens
    assert evaluate.pairs_nats(gpt, tokenizer, PAIRS, batch=3)[1] == count
    assert evaluate.pairs_nats(gpt, tokenizer, PAIRS, batch=3)[0] == pytest.approx(total, rel=1e-6)
    for answer, ids, (_, y) in zip(
        evaluate.answers(gpt, tokenizer, PAIRS, batch=1), greedy, PAIRS, strict=True
    ):
        ids = ids[: len(tokenizer.encode(y)) + 2]
        assert answer.ended == (ids[-1] == tokenizer.eot)
        assert answer.text == tokenizer.decode([i for i in ids if i != tokenizer.eot])
    own = [
        (x, a.text)
        for (x, _), a in zip(PAIRS, evaluate.answers(gpt, tokenizer, PAIRS), strict=True)
    ]
    result = evaluate.pairs(gpt, tokenizer, own)
    assert result["pairs"] == 4
    assert result["exact match"] == result["ended"]  # it writes what it writes, if it ends it
    with pytest.raises(ValueError, match="no pairs"):
        evaluate.pairs(gpt, tokenizer, [])
    for measure in (evaluate.pairs, evaluate.answers):
        with pytest.raises(TypeError, match="pair 1 must be two texts"):
            measure(gpt, tokenizer, [{"x": "a", "y": "b"}])


def test_exact_and_ended_answers_by_hand():
    """It writes the alphabet on, and "e" ends a text."""

    class Ending(Letters):
        special, eot = {"e": 5}, 5

    model = Answering(["ab", "bc", "cd", "de", "fg", "gh", "hi"])
    pairs = [("a", "bcd"), ("c", "d"), ("a", "bc"), ("f", "gh"), ("f", "g")]
    for batch in (1, 16):
        written = evaluate.answers(model, Ending(), pairs, batch)
        assert written[:3] == [("bcd", True), ("d", True), ("bcd", True)]
        assert not any(answer.ended for answer in written[3:])
    for some in (pairs[3:4], pairs[:4]):  # however much longer others are
        assert evaluate.answers(model, Ending(), some)[-1].text == "ghi "
    result = evaluate.pairs(model, Ending(), pairs)
    likely, other = math.log(math.e + 30) - 1, math.log(math.e + 30)
    # each letter is likely but for the end after "bc", "gh" and "g"
    assert result["nats per token of y"] == pytest.approx((11 * likely + 3 * other) / 14)
    assert (result["exact match"], result["ended"], result["pairs"]) == (2 / 5, 3 / 5, 5)


def test_trigrams_by_hand():
    """a b a b c with V = 4, each after the ids before it were counted."""
    a, b, c = 0, 1, 2
    p = [
        (0 + 1 * 1 / 4) / (1 + 1),  # b after a: () has a once; (a) and (None, a) nothing
        (1 + 2 * 1 / 4) / (2 + 2),  # a after b: () has a and b
        None,
        None,
    ]
    unigram_b = (1 + 2 / 4) / (3 + 2)  # a, b, a
    p[2] = (1 + 1 * unigram_b) / (1 + 1)  # (a) has b once; (b, a) nothing
    unigram_c = (0 + 2 / 4) / (4 + 2)
    bigram = (0 + 1 * unigram_c) / (1 + 1)  # (b) has a
    p[3] = (0 + 1 * bigram) / (1 + 1)  # (a, b) has a
    expected = -sum(math.log(x) for x in p)
    assert evaluate.trigram_nats([a, b, a, b, c], 4) == pytest.approx(expected, rel=1e-12)


def test_trigrams_are_probabilities_and_know_what_they_have_seen():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, size=40).tolist()
    each = [
        math.exp(evaluate.trigram_nats(ids, 6) - evaluate.trigram_nats([*ids, w], 6))
        for w in range(6)
    ]
    assert sum(each) == pytest.approx(1, rel=1e-12)
    fresh, known = evaluate.trigram_nats(ids, 6), evaluate.trigram_nats(ids, 6, ids)
    assert known < fresh / 2
    whole, before = (evaluate.trigram_nats([*ids, *ids[:n]], 6) for n in (40, 1))
    assert known == pytest.approx(whole - before, rel=1e-12)  # all but the first of the second 40


def test_baselines_are_what_the_compressors_need(folder):
    tokenizer = vocabulary.read(folder)
    documents = ["the fox ran after the hen " * 30, "a hen and a fox " * 9]
    result = evaluate.baselines(tokenizer, documents)
    size = 26 * 30 + 16 * 9
    text = "\n".join(documents).encode()
    assert result["bzip2, bits per byte"] == 8 * len(bz2.compress(text)) / size
    highest = 9 | lzma.PRESET_EXTREME
    assert result["xz, bits per byte"] == 8 * len(lzma.compress(text, preset=highest)) / size
    ids = data.encode_documents(tokenizer, documents).tolist()
    nats = evaluate.trigram_nats(ids, 262)
    assert result["trigram, bits per byte"] == pytest.approx(nats / math.log(2) / size)
    known = evaluate.baselines(tokenizer, documents, documents)
    for name, value in known.items():
        assert value < result[name], name
    added = len(bz2.compress(text + text)) - len(bz2.compress(text))
    assert known["bzip2, bits per byte"] == 8 * added / size
    with pytest.raises(ValueError, match="no text to compress"):
        evaluate.baselines(tokenizer, [""])


def test_pairs_and_baselines_from_the_command(folder, tmp_path, capsys):
    lines = "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in PAIRS)
    (tmp_path / "p.jsonl").write_text(lines, encoding="utf-8")
    assert run(folder, tmp_path / "p.jsonl", "--pairs") == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == 4
    assert run(folder, tmp_path / "p.jsonl") == 2
    assert "holds JSON, not prose" in capsys.readouterr().err
    for option in (["--keep", str(tmp_path / "kept")], ["--batch", "2"]):  # they would do nothing
        assert run(folder, tmp_path / "p.jsonl", "--pairs", *option) == 2
    (tmp_path / "t.txt").write_text(TEXT * 3, encoding="utf-8")
    for options in (["--baselines"], ["--baselines", str(tmp_path / "t.txt")]):
        assert run(folder, tmp_path / "t.txt", *options) == 0
        names = json.loads(capsys.readouterr().out).keys()
        assert {"xz, bits per byte", "bzip2, bits per byte", "trigram, bits per byte"} < names
    assert run(folder, tmp_path / "t.txt", "--baselines", "--limit", "3") == 2


def test_what_is_measured_unless_said_otherwise():
    some = {"batch": 8, "banned": None}
    for function, expected in {
        evaluate.stream: {"stride": None, "batch": None, "done": 0},
        evaluate.stream_nats: {"stride": None, "batch": None},
        evaluate.position_nats: {"batch": None},
        evaluate.wikitext: {"batch": None},
        evaluate.score: {"banned": None},
        evaluate.score_after: {"banned": None},
        evaluate.score_questions: some,
        evaluate.lambada: {"protocol": "word", "batch": 8},
        evaluate.hellaswag: {"batch": 8},
        evaluate.cbt: {"batch": 8},
        evaluate.pairs_nats: {"batch": 16},
        evaluate.answers: {"batch": 16},
        evaluate.trigram_nats: {"known": ()},
    }.items():
        assert defaults(function) == expected, function


def test_ids_are_the_same_as_lists_and_as_arrays_of_any_kind(gpt):
    """Two lists side by side are one row; `+` of two arrays would add their numbers."""
    rows = [([5, 6], [7]), ([5], [9, 3])]
    ours = evaluate.score(gpt, rows)
    assert evaluate.score(gpt, [([5, 6], np.array([7])), ([5], np.array([9, 3]))]) == ours
    for kind in (np.uint8, np.int64):
        arrays = [(kind(context), kind(ids)) for context, ids in rows]
        assert evaluate.score(gpt, arrays) == ours
        assert list(evaluate.score_questions(gpt, [evaluate.Question(arrays)])) == [ours]
        assert evaluate.score_after(gpt, kind([5, 6]), [kind([7])]) == evaluate.score_after(
            gpt, [5, 6], [[7]]
        )
    assert evaluate.score(gpt, [((5, 6), (7,)), ((5,), (9, 3))]) == ours
    ids = np.random.default_rng(1).integers(0, 31, 30)
    whole = evaluate.stream_nats(gpt, ids, 3, 2)
    for kind in (np.uint8, np.int8):
        assert evaluate.stream_nats(gpt, kind(ids), kind(3), kind(2)) == whole
    assert evaluate.stream_nats(gpt, ids.tolist(), 3, 2) == whole


def test_what_is_not_one_list_of_ids_is_refused(gpt):
    for ids in ([[1, 2, 3]], [1.0, 2.0, 3.0], "abc", [True, False, True]):
        for measure in (
            lambda ids: evaluate.stream_nats(gpt, ids),
            lambda ids: evaluate.position_nats(gpt, ids),
            lambda ids: evaluate.windows_perplexity(gpt, ids, 3),
            lambda ids: evaluate.score(gpt, [([1], ids)]),
            lambda ids: evaluate.score(gpt, [(ids, [1])]),
            lambda ids: evaluate.score_after(gpt, [1], [ids]),
        ):
            with pytest.raises(TypeError, match="ids must be one list of integers"):
                measure(ids)
    for batch, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="batch must be"):
            evaluate.stream_nats(gpt, [1, 2, 3], batch=batch)
        with pytest.raises(error, match="batch must be"):
            list(evaluate.score_questions(gpt, [evaluate.Question([([1], [2])])], batch))
    with pytest.raises(ValueError, match="no token is counted"):
        evaluate.windows_perplexity(gpt, [1], 3)


def test_nats_are_of_targets_that_fit_the_logits(gpt):
    logits, _ = gpt.forward([1, 2, 3])
    for targets in ([[1, 2]], [[1]], [1, 2, 3], [[1, 2, 3], [1, 2, 3]]):
        with pytest.raises(ValueError, match=r"logits must be \(B, T, V\) and targets \(B, T\)"):
            evaluate.nats(logits, targets)
    with pytest.raises(TypeError, match="targets must be integers"):
        evaluate.nats(logits, [[1.0, 2.0, 3.0]])


def test_one_text_is_not_taken_for_a_list_of_letters(gpt):
    tokenizer = Tokenizer.gpt2()
    item = {"ctx": "a b", "endings": "cd", "label": 0}
    cloze = {"sentences": ["a"], "question": "b XXXXX", "answer": "c", "options": ["c", "d"]}
    for what, measure in (
        ("pages", lambda: list(evaluate.wikitext(gpt, tokenizer, " = A = "))),
        ("texts", lambda: evaluate.lambada(gpt, tokenizer, "a b")),
        ("endings", lambda: evaluate.hellaswag_questions(tokenizer, [item])),
        ("sentences", lambda: evaluate.cbt_questions(tokenizer, [cloze | {"sentences": "ab"}])),
        ("options", lambda: evaluate.cbt_questions(tokenizer, [cloze | {"options": "cd"}])),
        ("documents", lambda: evaluate.baselines(tokenizer, "a b")),
    ):
        with pytest.raises(TypeError, match=f"give a list of {what}"):
            measure()
    for label in (-1, 2):  # no ending could be right
        with pytest.raises(ValueError, match=f"item 1 has the label {label}, but 2 endings"):
            evaluate.hellaswag_questions(
                tokenizer, [{"ctx": "a b", "endings": ["c", "d"], "label": label}]
            )


def test_what_comes_one_by_one_is_measured_as_a_list_is():
    tokenizer = Tokenizer.gpt2()
    texts = ["a cat sat", "the dog ran"]
    assert evaluate.baselines(tokenizer, iter(texts), iter(texts)) == evaluate.baselines(
        tokenizer, texts, texts
    )
    config = model.Config(50257, 8, 4, 1, 1)
    small = model.GPT2(config, model.init(config, np.random.default_rng(0)))
    pairs = [("a", "b"), ("c", "d")]
    assert evaluate.pairs(small, tokenizer, iter(pairs)) == evaluate.pairs(small, tokenizer, pairs)


def test_a_model_that_sees_both_sides_has_no_loss_of_the_next_token():
    from numpygpt.family import bert

    config = model.Config(31, 8, 6, 2, 1)
    both_sides = bert.Bert(config, bert.init(config, np.random.default_rng(0)))
    for measure in (
        lambda: evaluate.stream_nats(both_sides, [1, 2, 3]),
        lambda: evaluate.score(both_sides, [([1], [2])]),
    ):
        with pytest.raises(TypeError, match="Bert does not predict the next token"):
            measure()


def test_texts_from_files_are_cut_at_the_models_own_end_token(tmp_path, capsys):
    """The text before is so much known that it costs next to nothing: cut elsewhere, it costs."""
    tokenizer = Tokenizer.train("the fox ran after a hen " * 9, 262, special="</s>")
    config = model.Config(262, 16, 4, 1, 1)
    small = model.GPT2(config, model.init(config, np.random.default_rng(0)))
    checkpoint.save(small, tokenizer, tmp_path / "model")
    documents = ["the fox ran", "a hen ran", "the hen"]
    (tmp_path / "t.txt").write_text("</s>".join([*documents, ""]), encoding="utf-8")
    run(tmp_path / "model", tmp_path / "t.txt", "--baselines", str(tmp_path / "t.txt"))
    found = json.loads(capsys.readouterr().out)
    for name, value in evaluate.baselines(tokenizer, documents, documents).items():
        assert found[name] == value
