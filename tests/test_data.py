"""Batches: who predicts whom, and which tokens the loss counts."""

import numpy as np
import pytest
from signatures import defaults

from numpygpt import data
from numpygpt.bpe import Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.gpt2()


@pytest.mark.parametrize(
    "text",
    [
        "One\n\nmore.\n{}\nTwo, three\n{}\n",
        "One\n\nmore.{}Two, three{}",
        "One\n\nmore.\n{} \t\nTwo, three\n{} ",
        "{}One\n\nmore.\n{}Two, three\n",
        "One\n\nmore.{}\n{}\n{}\nTwo, three",
    ],
)
@pytest.mark.parametrize("end", ["<|endoftext|>", "</s>", "[end.]"])
def test_the_end_token_ends_a_document_wherever_it_stands(text, end):
    assert data.documents(text.replace("{}", end), end) == ["One\n\nmore.", "Two, three"]


def test_only_what_is_next_to_the_end_token_belongs_to_no_document():
    assert data.documents("\n a \n\n</s>\n\n b \n\n", "</s>") == ["\n a \n", "\n b \n"]
    assert data.documents("a </s> b", "</s>") == ["a ", "b"]
    assert data.documents("no end <|endoftext|>", "</s>") == ["no end <|endoftext|>"]
    assert data.documents("") == data.documents("<|endoftext|>\n<|endoftext|>") == []


def test_documents_are_separated_by_the_special_token_and_begin_with_it(tokenizer):
    ids = data.encode_documents(tokenizer, ["Hello", " world"])
    assert ids.tolist() == [50256, 15496, 50256, 995, 50256]


def test_stream_targets_are_the_next_tokens():
    ids = np.arange(1000) * 3
    tokens, targets, mask = next(data.stream(ids, 5, 7, np.random.default_rng(1)))
    assert tokens.shape == targets.shape == mask.shape == (5, 7)
    assert mask.all()
    np.testing.assert_array_equal(targets, tokens + 3)
    np.testing.assert_array_equal(tokens[:, 1:], targets[:, :-1])


def test_a_pass_uses_every_window_once_and_the_next_cuts_elsewhere():
    ids, batch, length = np.arange(1000), 3, 11
    batches = data.stream(ids, batch, length, np.random.default_rng(2))
    starts = [int(row[0]) for _ in range(29) for row in next(batches)[0]]  # 87 of at most 90
    assert len(set(starts)) == len(starts)
    assert len({start % length for start in starts}) == 1
    following = [int(row[0]) for _ in range(2) for row in next(batches)[0]]
    assert {start % length for start in following} != {start % length for start in starts}


def test_a_seed_fixes_the_stream():
    one, other = (data.stream(np.arange(500), 2, 9, np.random.default_rng(5)) for _ in range(2))
    for _ in range(60):
        np.testing.assert_array_equal(next(one)[0], next(other)[0])


def test_too_short_a_stream_is_refused():
    with pytest.raises(ValueError, match="too few for batches of 4 windows of 8"):
        next(data.stream(np.arange(40), 4, 8, np.random.default_rng(0)))
    next(data.stream(np.arange(41), 4, 8, np.random.default_rng(0)))


def test_pairs_count_the_answer_and_its_end_only(tokenizer):
    pairs = [("Hello", " world"), ("Hello world", " Hello Hello")]
    batches = data.pair_batches(pairs, tokenizer, 2, 20, np.random.default_rng(0))
    tokens, targets, mask = next(batches)
    rows = {tuple(t[m].tolist()): k for k, (t, m) in enumerate(zip(targets, mask, strict=True))}
    short = rows[995, 50256]
    long = rows[18435, 18435, 50256]  # " Hello" is one token
    assert tokens[short].tolist() == [15496, 995, 50256, 50256]  # filled up at the right
    assert mask[short].tolist() == [True, True, False, False]
    assert tokens[long].tolist() == [15496, 995, 18435, 18435]
    assert mask[long].tolist() == [False, True, True, True]


def test_an_empty_question_leaves_something_to_predict_from(tokenizer):
    batches = data.pair_batches([("", "Hello")], tokenizer, 1, 9, np.random.default_rng(0))
    tokens, targets, mask = next(batches)
    assert tokens.tolist() == [[50256, 15496]]
    assert targets.tolist() == [[15496, 50256]]
    assert mask.all()


def test_pairs_that_do_not_fit_are_named(tokenizer):
    pairs = [("a", "b"), ("a b c d", "e f g h")]
    with pytest.raises(ValueError, match="pair 2, 'a b c d', has 9 tokens, more than the 8"):
        next(data.pair_batches(pairs, tokenizer, 1, 7, np.random.default_rng(0)))
    next(data.pair_batches(pairs, tokenizer, 1, 8, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="2 pairs are too few for a batch of 3"):
        data.pair_batches(pairs, tokenizer, 3, 9, np.random.default_rng(0))


@pytest.mark.parametrize("pair", [{"x": "a", "y": "b"}, "ab", ("a",), ("a", 5), ("a", "b", "c")])
def test_what_is_not_a_pair_of_texts_is_refused(tokenizer, pair):
    """A dict would be unpacked into its names, and a text into its letters."""
    with pytest.raises(TypeError, match=r"pair 2 must be two texts, \(x, y\), not "):
        data.pair_batches([["a", "b"], pair], tokenizer, 1, 9, np.random.default_rng(0))


def test_a_single_text_is_not_a_list_of_documents(tokenizer):
    for call in (data.hold_out, lambda text: data.encode_documents(tokenizer, text)):
        with pytest.raises(TypeError, match="list of documents, .*, not a single text"):
            call("The cat sat on a mat.")


def test_special_tokens_in_texts_and_pairs_are_tokens():
    bare = Tokenizer.gpt2()
    tokenizer = Tokenizer([*bare.tokens, "<user>"], bare.merges, ["<user>", "<|endoftext|>"])
    assert data.encode_documents(tokenizer, ["<user>Hello"]).tolist() == [
        50256,
        50257,
        15496,
        50256,
    ]
    pairs = [("<user>Hello", " world<user>")]
    tokens, targets, _ = next(data.pair_batches(pairs, tokenizer, 1, 9, np.random.default_rng(0)))
    assert [*tokens[0], targets[0, -1]] == [50257, 15496, 995, 50257, 50256]


def test_what_is_held_out_is_not_trained_on():
    texts = [f"document {i}" for i in range(60)]
    kept, held = data.hold_out(texts, 0.05)
    assert len(held) == 3
    assert sorted(kept + held) == sorted(texts)
    for few in (["one two three four five six seven eight nine ten " * 20], ["ab " * 50, "x" * 40]):
        kept, held = data.hold_out(few, 0.05)
        assert [a + b for a, b in zip(kept, held, strict=True)] == few
        assert len("".join(held)) == pytest.approx(0.05 * len("".join(few)), abs=12)
    assert data.hold_out(texts, 0) == (texts, [])


@pytest.mark.parametrize("held_out", [data.hold_out, data.hold_out_pairs])
def test_at_most_half_is_held_out(held_out):
    items = [(f"x{i}", f"y{i}") for i in range(40)]
    for share, count in ((0, 0), (0.5, 20)):
        kept, held = held_out(items, share)
        assert (len(kept), len(held)) == (40 - count, count)
    for share in (-0.01, 0.501, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 0.5"):
            held_out(items, share)


def test_every_20th_document_is_held_out():
    texts = [f"document {i}" for i in range(1, 46)]
    assert data.hold_out(texts)[1] == ["document 20", "document 40"]
    assert data.hold_out(texts[:20]) == (texts[:19], texts[19:20])


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("ab cd ef gh ij kl", "ab cd ", "ef gh ij kl"),  # the 9th of 17 is within "ef"
        ("ab\ncdef ghij", "ab\n", "cdef ghij"),
        ("a b\ncdefgh", "a b\n", "cdefgh"),
        (" abcdefgh", " ", "abcdefgh"),
        ("abcdefghi", "abcd", "efghi"),  # no border
        pytest.param("a\n" + "狐" * 298, "a\n" + "狐" * 148, "狐" * 150, id="a border far away"),
    ],
)
def test_few_documents_are_cut_behind_a_space_or_a_newline(text, before, after):
    assert data.hold_out([text], 0.5) == ([before], [after])


def test_a_text_without_spaces_is_cut_near_its_end():
    """A border is looked for 100 characters back, or as many as are held out, and no further."""
    for title in ("狐狸的故事\n", "a b c\n", ""):
        text = title + "从前有一只狐狸住在森林里" * 100
        ((before,), (after,)) = data.hold_out([text], 0.05)
        assert (before + after, len(after)) == (text, len(text) - int(0.95 * len(text)))
    for at, cut in ((10, 11), (9, 15)):
        text = "a" * at + " " + "a" * (19 - at)
        assert data.hold_out([text], 0.25) == ([text[:cut]], [text[cut:]])
    for at, cut in ((650, 651), (649, 750)):
        text = "a" * at + "\n" + "a" * (999 - at)
        assert data.hold_out([text], 0.25) == ([text[:cut]], [text[cut:]])


def test_a_copy_of_what_is_held_out_is_not_trained_on():
    texts = [f"document {i % 30}" for i in range(1, 61)]
    kept, held = data.hold_out(texts)
    assert held == ["document 20", "document 10", "document 0"]
    assert kept == [text for text in texts if text not in held]
    assert len(kept) == 54


def test_no_x_is_both_trained_on_and_held_out():
    pairs = [(f"x{i % 40}", f"y{i}") for i in range(100)]
    kept, held = data.hold_out_pairs(pairs, 0.25)
    assert len({x for x, _ in held}) == 10
    assert not {x for x, _ in held} & {x for x, _ in kept}
    assert sorted(kept + held) == sorted(pairs)
    assert data.hold_out_pairs(pairs, 0.25) == (kept, held)
    assert data.hold_out_pairs(pairs, 0.25, seed=1) != (kept, held)
    assert data.hold_out_pairs(pairs[:19]) == (pairs[:19], [])
    assert len(data.hold_out_pairs(pairs[:20])[1]) == 2
    assert len({x for x, _ in data.hold_out_pairs(pairs, 0.5, most=7)[1]}) == 7


def test_a_run_that_goes_on_holds_out_what_it_held_out_before():
    """Whichever version of this package began it: the 4 of 40 are those of 26 November 2026."""
    pairs = [(f"x{i}", "y") for i in range(40)]
    for seed, held in ((0, "x10 x13 x29 x39"), (1, "x16 x20 x25 x35")):
        assert [x for x, _ in data.hold_out_pairs(pairs, seed=seed)[1]] == held.split()


def test_what_is_held_out_unless_said_otherwise():
    assert defaults(data.hold_out) == {"share": 0.05}
    assert defaults(data.hold_out_pairs) == {"share": 0.1, "most": 200, "seed": 0}


@pytest.mark.parametrize("count", range(5, 9))
def test_every_batch_is_full_and_a_pass_uses_nothing_twice(count, tokenizer):
    """Of windows and of pairs: what is left for a batch of one or two is left out."""
    windows = data.stream(np.arange(4 * count + 4), 3, 4, np.random.default_rng(count))
    pairs = [(letter, "y") for letter in "abcdefgh"[:count]]
    answers = data.pair_batches(pairs, tokenizer, 3, 4, np.random.default_rng(count))
    for batches, width in ((windows, 4), (answers, 2)):
        for _ in range(20):
            first = []
            for _ in range(count // 3):
                tokens, targets, mask = next(batches)
                assert tokens.shape == targets.shape == mask.shape == (3, width)
                first += tokens[:, 0].tolist()
            assert len(set(first)) == len(first)


def test_a_text_without_an_end_token_is_one_document(tokenizer):
    bare = Tokenizer(tokenizer.tokens, tokenizer.merges, [])  # names no end token
    assert data.documents_of("One<|endoftext|>two", bare) == ["One<|endoftext|>two"]
    assert data.documents_of("", bare) == []
    assert data.documents_of("One<|endoftext|>two", tokenizer) == ["One", "two"]
    assert data.encode_documents(bare, ["Hello world"]).tolist() == [15496, 995]
    for texts in ([], ["Hello", " world"]):
        with pytest.raises(ValueError, match="names no end token"):
            data.encode_documents(bare, texts)


def test_an_answer_does_not_begin_as_a_text_does(tokenizer):
    settings = {"before": [50256], "prefix_space": True}
    begins = Tokenizer(tokenizer.tokens, tokenizer.merges, tokenizer.special, **settings)
    assert data.encode_pair(begins, "Hello", "Hello") == ([50256, 18435], [15496, 50256])


def test_batches_are_of_integers_of_every_kind():
    ids = np.arange(2000)
    for kind in (np.int8, np.uint8):
        ours = next(data.stream(ids, kind(20), kind(20), np.random.default_rng(0)))
        np.testing.assert_array_equal(
            ours, next(data.stream(ids, 20, 20, np.random.default_rng(0)))
        )


@pytest.mark.parametrize(
    "error, words, changed",
    [
        (ValueError, "batch must be at least 1", {"batch": 0}),
        (ValueError, "length must be at least 1", {"length": 0}),
        (TypeError, "batch must be an integer", {"batch": 2.0}),
        (TypeError, "rng must be a NumPy Generator", {"rng": 0}),
    ],
)
def test_batches_that_cannot_be_are_refused_at_the_call(tokenizer, error, words, changed):
    settings = {"batch": 2, "length": 4, "rng": np.random.default_rng(0)} | changed
    with pytest.raises(error, match=words):
        data.stream(np.arange(100), **settings)
    with pytest.raises(error, match=words):
        data.pair_batches([("a", "b")] * 3, tokenizer, **settings)
    for ids in (np.zeros((9, 10), int), np.zeros(90), "abc"):
        with pytest.raises(TypeError, match="ids must be one list of integers"):
            data.stream(ids, 2, 4, np.random.default_rng(0))


def test_what_comes_one_by_one_is_held_out_as_of_a_list(tokenizer):
    pairs = [(str(i), "y") for i in range(30)]
    assert data.hold_out_pairs(iter(pairs)) == data.hold_out_pairs(pairs)
    assert len(data.hold_out_pairs(pairs)[1]) == 3
    texts = [f"text {i}" for i in range(40)]
    assert data.hold_out(iter(texts)) == data.hold_out(texts)
    for ids in (data.encode_documents(tokenizer, kind(texts)) for kind in (iter, list)):
        assert len(ids) == 1 + 3 * 40
    with pytest.raises(TypeError, match="pair 1 must be two texts"):
        data.hold_out_pairs([{"x": "a", "y": "b"}])
