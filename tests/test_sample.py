"""Sampling: transformers' distributions, and rows that are as if alone."""

import collections
import math
import random
import types

import numpy as np
import pytest
from sampling import (
    N_CTX,
    PROMPTS,
    STORED,
    Fixed,
    counting,
    run,
    stored_model,
    without_cache,
)
from signatures import defaults

from numpygpt import fast, sample
from numpygpt.draft import draft_model, prompt_lookup
from numpygpt.model import GPT2, Config, init
from numpygpt.sample import (
    PREFILL,
    apply_temperature,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    probabilities,
)


@pytest.fixture(scope="module")
def model():
    return stored_model()


# ---- filters ------------------------------------------------------------------------------------


def stored_settings():
    for (temperature, k, p), expected in zip(STORED["settings"], STORED["expected"], strict=True):
        yield float(temperature), int(k) or None, float(p) or None, expected


def test_filtered_distributions_are_those_of_transformers():
    for temperature, k, p, expected in stored_settings():
        got = probabilities(STORED["logits"], temperature, k, p)
        np.testing.assert_array_equal(got == 0, expected == 0)  # forbidden is exactly 0
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=0)


def test_filtered_distributions_in_float32():
    logits = STORED["logits"].astype(np.float32)
    for temperature, k, p, expected in stored_settings():
        got = probabilities(logits, temperature, k, p)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got == 0, expected == 0)
        # relative to each probability; what is subnormal in float32 has fewer digits
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=np.finfo(np.float32).tiny)


def test_a_worked_example():
    logits = np.log(np.array([1, 8, 3, 4]) / 16)
    np.testing.assert_allclose(probabilities(logits), np.array([1, 8, 3, 4]) / 16)
    np.testing.assert_allclose(probabilities(logits, 0.5), np.array([1, 64, 9, 16]) / 90)
    roots = np.sqrt([1, 8, 3, 4])
    np.testing.assert_allclose(probabilities(logits, 2), roots / roots.sum())
    np.testing.assert_allclose(probabilities(logits, top_k=2), np.array([0, 2, 0, 1]) / 3)
    # 8 alone is not 0.6; with 4 it is 0.75: the crossing token stays
    np.testing.assert_allclose(probabilities(logits, top_p=0.6), np.array([0, 2, 0, 1]) / 3)
    # after top-k = 3 the shares are 8, 4, 3 of 15: 12 of 15 reach 0.79, but 12 of 16 would not
    np.testing.assert_allclose(
        probabilities(logits, top_k=3, top_p=0.79), np.array([0, 2, 0, 1]) / 3
    )
    np.testing.assert_array_equal(probabilities(logits, 0), [0, 1, 0, 0])
    # two of four equals hold exactly 0.5: a third is not needed
    np.testing.assert_array_equal(probabilities(np.ones(4), top_p=0.5), [0.5, 0.5, 0, 0])


def test_ties():
    logits = np.array([2.0, 7.0, 5.0, 7.0, 5.0])
    np.testing.assert_array_equal(probabilities(logits, 0), [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(keep_top_k(logits, 1) > -np.inf, [0, 1, 0, 1, 0])
    np.testing.assert_array_equal(keep_top_k(logits, 3) > -np.inf, [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(keep_top_p(logits, 0.3) > -np.inf, [0, 1, 0, 0, 0])
    np.testing.assert_array_equal(keep_top_p(logits, 0.9) > -np.inf, [0, 1, 1, 1, 0])


@pytest.mark.parametrize("spread", [0, 0.1, 2, 9])
def test_top_p_is_the_smallest_set_that_holds_p(spread):
    rng = np.random.default_rng(11)
    for p in (1e-9, 0.2, 0.77, 0.95, 0.9999, 1):
        logits = rng.standard_normal(613) * spread
        kept = np.sort(np.exp(logits[keep_top_p(logits, p) > -np.inf]))
        weights = np.sort(np.exp(logits))[::-1]
        np.testing.assert_array_equal(kept[::-1], weights[: kept.size])
        assert kept.sum() >= p * weights.sum() * (1 - 1e-12)
        assert p == 1 or kept[1:].sum() < p * weights.sum()


def test_top_p_of_one_keeps_what_the_rounded_sum_does_not_need():
    logits = np.array([0.0, -50, -60])  # 1 + exp(-50) is 1
    np.testing.assert_array_equal(keep_top_p(logits, 1), logits)
    np.testing.assert_array_equal(probabilities(logits, top_p=1), probabilities(logits))


def test_top_p_of_one_large_and_many_small():
    """900 and a thousand times 0.1: 0.99 of 1,000 are the large one and 900 of the small."""
    logits = np.log(np.append(np.full(1000, 0.1), 900))
    assert (keep_top_p(logits, 0.98995) > -np.inf).sum() == 1 + 900
    assert (keep_top_p(logits + 1000, 0.98995) > -np.inf).sum() == 1 + 900  # exp(1000) is too large


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "apply",
    [lambda x: apply_temperature(x, 0.7), lambda x: keep_top_k(x, 9), probabilities]
    + [lambda x: keep_top_p(x, 0.8), lambda x: probabilities(x, 0), lambda x: keep_top_p(x, 1)],
)
def test_filters_keep_dtype_shape_and_their_argument(apply, dtype):
    logits = np.random.default_rng(2).standard_normal((2, 3, 41)).astype(dtype)
    before = logits.copy()
    out = apply(logits)
    assert out.dtype == dtype and out.shape == logits.shape and not np.shares_memory(out, logits)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(out[1, 2], apply(logits[1, 2]))  # a row does not see the others


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e-320, 1e-38, 1e-5, 1e30])
def test_extreme_temperatures_and_logits(dtype, temperature):
    p = probabilities(np.array([3e38, -3e38, 1e3, -np.inf], dtype), temperature)
    assert p[3] == 0 and p[0] >= p[2] >= p[1] and math.isclose(p.sum(), 1, rel_tol=1e-6)


def test_what_has_been_said_becomes_less_likely():
    """Each id once, however often it occurs; a positive logit is divided, others multiplied."""
    logits = np.array([[3.0, -3.0, 0.0, 2.0], [3.0, -3.0, 0.5, 2.0]])
    found = penalise_repetition(logits, [[0, 1, 0, 2], [2, 3]], 2.0)
    np.testing.assert_array_equal(found, [[1.5, -6, 0, 2], [3, -3, 0.25, 1]])
    follow = np.array([[4, 3, 1], [3, 4, 1], [1, 1, 6]]) / 8  # each id is followed by itself
    for penalty, expected in ((1, [0, 0, 0, 0]), (0.5, [0, 0, 0, 0]), (2, [1, 1, 1, 1])):
        model = Fixed(3, follow.__getitem__)
        rows, _, _ = run(model, [0], 4, temperature=0, repetition_penalty=penalty)
        assert rows == [expected], penalty


# ---- draw ---------------------------------------------------------------------------------------


def test_draw_is_the_inverse_of_the_running_sum():
    p = np.array([0, 0, 3, 0, 1, 4, 0], np.float32) / 8
    drawn = [draw(p, (i + 0.5) / 16) for i in range(16)]
    assert collections.Counter(drawn) == {2: 6, 4: 2, 5: 8}
    assert drawn == sorted(drawn)
    assert [draw(p, u) for u in (0, 0.375, 0.5)] == [
        2,
        4,
        5,
    ]  # each has the lower border, not the upper


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draw_never_takes_what_is_forbidden(dtype):
    rng = np.random.default_rng(13)
    edges = [0.0, np.nextafter(0, 1), np.nextafter(1, 0)]
    for _ in range(200):
        p = rng.random(37).astype(dtype) * (rng.random(37) < 0.3)
        p[rng.integers(37)] = 1e-30
        p /= p.sum()
        running = np.cumsum(p, dtype=np.float64)
        ties = running[running < running[-1]] / running[-1]  # u on the very border
        for u in (*edges, *ties):
            assert p[draw(p, u)] > 0


# ---- generate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_with_the_cache_is_greedy_without(model, prompt):
    rows, reasons, steps = run(model, prompt, 5, temperature=0, at_end="slide")
    assert rows == [without_cache(model, prompt, 5, slide=True)]
    assert reasons == ["length"] and [list(map(len, step)) for step in steps] == [[1]] * 5


@pytest.mark.parametrize("at_end", ["stop", "slide"])
def test_rows_of_a_batch_are_the_rows_alone(model, at_end):
    rows, reasons, steps = run(model, PROMPTS, 26, temperature=0, at_end=at_end)
    assert rows == [without_cache(model, prompt, 26, at_end == "slide") for prompt in PROMPTS]
    if at_end == "stop":  # n_ctx ids are read, and one more is drawn from the last of them
        assert [len(row) for row in rows] == [N_CTX + 1 - len(prompt) for prompt in PROMPTS]
        assert reasons == ["context"] * 4
        assert [len(new) for new in steps[-1]] == [0, 0, 1, 0]
    else:
        assert [len(row) for row in rows] == [26] * 4 and reasons == ["length"] * 4


@pytest.mark.parametrize("length", [N_CTX - 1, N_CTX, N_CTX + 1])
def test_prompts_about_as_long_as_the_context(model, length):
    prompt = [2 + i * i % 29 for i in range(length)]
    if length > N_CTX:
        with pytest.raises(ValueError, match="prompt 1 has 18 ids, .* n_ctx = 17: shorten it"):
            generate(model, [[7], prompt], 4)
    else:
        rows, reasons, _ = run(model, prompt, 4, temperature=0)
        assert len(rows[0]) == N_CTX + 1 - length and reasons == ["context"]
    rows, reasons, _ = run(model, [[7], prompt], 40, temperature=0, at_end="slide")
    assert rows == [without_cache(model, ids, 40, slide=True) for ids in ([7], prompt)]


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_the_smallest_contexts_slide(n_ctx):
    config = Config(n_vocab=31, n_ctx=n_ctx, n_embd=6, n_head=2, n_layer=1)
    tiny = GPT2(config, init(config, np.random.default_rng(3), np.float64))
    rows, _, _ = run(tiny, [[4], [9, 6, 3, 5]], 7, temperature=0, at_end="slide")
    assert [len(row) for row in rows] == [7, 7]
    draft = draft_model(tiny)
    assert run(tiny, [4], 7, temperature=0, at_end="slide", draft=draft)[0] == rows[:1]


def test_a_vocabulary_of_one_token():
    config = Config(n_vocab=1, n_ctx=9, n_embd=6, n_head=2, n_layer=1)
    tiny = GPT2(config, init(config, np.random.default_rng(3), np.float64))
    assert run(tiny, [[0], [0, 0, 0]], 2)[0] == [[0, 0], [0, 0]]


def test_long_prompts_are_read_in_pieces():
    config = Config(n_vocab=31, n_ctx=PREFILL + 45, n_embd=6, n_head=2, n_layer=1)
    params = init(config, np.random.default_rng(8), np.float64)
    long = GPT2(config, {name: value * 9 for name, value in params.items()})
    prompts = [[7, 3], np.random.default_rng(9).integers(31, size=PREFILL + 30)]
    rows, _, _ = run(long, prompts, 4, temperature=0)
    assert rows == [without_cache(long, prompt, 4) for prompt in prompts]


def test_several_continuations_of_each_prompt(model):
    settings = {"num_return_sequences": 3, "temperature": 2.0}
    rows, _, _ = run(model, PROMPTS[:2], 7, rng=np.random.default_rng(4), **settings)
    assert len(set(map(tuple, rows))) == 6
    greedy, _, _ = run(model, PROMPTS[:2], 7, temperature=0, num_return_sequences=3)
    expected = [without_cache(model, prompt, 7) for prompt in PROMPTS[:2]]
    assert greedy == [expected[0]] * 3 + [expected[1]] * 3


def test_the_seed_and_the_row_decide_what_is_drawn(model):
    def sample(rng, **settings):
        return run(model, PROMPTS[:3], 8, rng=rng, temperature=1.5, **settings)[0]

    rng = np.random.default_rng(6)
    rows = sample(rng)
    assert rows == sample(np.random.default_rng(6))
    assert rows != sample(rng)  # the same generator goes on
    # a row that ends, and leaves the batch, changes nothing for the others
    stop = next(i for i in rows[0][:4] if i not in rows[1] + rows[2])
    stopped = sample(np.random.default_rng(6), stop=stop)
    assert stopped == [rows[0][: rows[0].index(stop) + 1], *rows[1:]]


def test_arrays_and_lists_as_prompts(model):
    expected, _, _ = run(model, [[5, 17], [2, 9]], 3, temperature=0)
    for prompts in (np.array([[5, 17], [2, 9]]), [np.array([5, 17], np.uint8), (2, 9)]):
        assert run(model, prompts, 3, temperature=0)[0] == expected
    assert run(model, np.array([5, 17]), 3, temperature=0)[0] == expected[:1]


class Spied:
    """A model that notes how many rows and tokens it reads, and how many caches it makes."""

    def __init__(self, model):
        self.model, self.config, self.read, self.caches = model, model.config, [], 0

    def cache(self, batch=1):
        self.caches += 1
        return self.model.cache(batch)

    def forward(self, tokens, cache, **settings):
        assert settings.pop("only_last")  # no other logits are asked for
        self.read.append(tokens.shape)
        return self.model.forward(tokens, cache, only_last=True, **settings)


@pytest.mark.parametrize(
    "prompts, settings, read, caches",
    [
        ([3], {}, [(1, 3)] + [(1, 1)] * 14, 1),
        ([3], {"num_return_sequences": 2}, [(1, 3)] + [(2, 1)] * 14, 2),
        ([3, 9], {}, [(2, 9)] + [(2, 1)] * 8 + [(1, 1)] * 6, 2),  # the second has no room left
        ([9, 9], {}, [(2, 9)] + [(2, 1)] * 8, 1),
        ([3], {"at_end": "slide"}, [(1, 3)] + [(1, 1)] * 14 + [(1, 7)] + [(1, 1)] * 5, 2),
    ],
)
def test_no_id_is_read_twice_but_where_the_window_slides(model, prompts, settings, read, caches):
    spied = Spied(model)
    run(spied, [[7] * n for n in prompts], 20, temperature=0, **settings)
    assert (spied.read, spied.caches) == (read, caches)


def test_a_cache_of_some_rows_loses_the_padding_that_they_have_in_common(model):
    windows = [[5, 17], [2, 9, 4, 8, 1], [3, 3, 3]]
    cache, _ = sample.prefill(model, windows)
    for rows, length, pads in (
        ([0, 1], 5, [3, 0]), ([2, 0], 3, [0, 1]), ([0, 0], 2, None), ([1], 5, None),
    ):  # fmt: skip
        chosen = sample.select(model, cache, rows)
        assert chosen.length == length
        assert (None if chosen.pads is None else chosen.pads.tolist()) == pads
        for place, row in enumerate(rows):
            alone, _ = sample.prefill(model, [windows[row]])
            for ours, theirs in zip(chosen.k + chosen.v, alone.k + alone.v, strict=True):
                ours = ours[place, :, length - len(windows[row]) : length]
                np.testing.assert_allclose(ours, theirs[0, :, : alone.length], rtol=1e-12)


def test_nothing_is_asked_for(model):
    assert run(model, PROMPTS, 0) == (None, ["length"] * 4, [])


# ---- stop ---------------------------------------------------------------------------------------


class Bytes:
    """A tokenizer whose tokens are short pieces of bytes; it counts the ids it was given."""

    pieces = (b"ab", b"c", b"\xe2\x82", b"\xac", b"", b"a", b"xyz", b"\xc3\xa9")

    def __init__(self):
        self.seen = 0

    def decode_bytes(self, ids):
        self.seen += len(ids)
        return b"".join(self.pieces[i % 8] for i in ids)


@pytest.mark.parametrize(
    "stop, last",
    [
        ("abc", 9),  # the ids 8 and 9 are "ab" and "c"
        ("bc", 9),
        ("b", 8),
        ("€", 11),  # spread over 10 and 11
        ("c€a", 13),  # over five ids, of which one is empty
        ("éab", 16),  # not at 8: the "é" before it is the prompt's
        (["nowhere", "€a", "z"], 13),  # the first that comes
        ([30, 9], 9),
        (np.int64(12), 12),
        (("zé", 12), 12),
        (("zé", 29), 15),
        ((), 27),
    ],
)
def test_a_row_ends_with_what_completes_a_stop(stop, last):
    tokenizer = Bytes()
    rows, reasons, _ = run(counting(), [1, 7], 20, temperature=0, stop=stop, tokenizer=tokenizer)
    assert rows == [list(range(8, last + 1))]
    assert reasons == ["stop" if last < 27 else "length"]
    assert tokenizer.seen in (0, len(rows[0]))  # every id is decoded once


def test_of_a_text_is_kept_what_a_stop_may_have_begun():
    """A stop of 5 bytes may have begun with the last 4."""
    ends, row = sample._stop_test(["yz\u20ac"], Bytes()), types.SimpleNamespace(tail=b"")
    for i, tail in ((0, b"ab"), (1, b"abc"), (6, b"cxyz"), (2, b"yz\xe2\x82")):
        assert not ends(row, i) and row.tail == tail
    assert ends(row, 3)


def test_rows_stop_one_by_one():
    settings = {"temperature": 0, "stop": ["xy", 11], "tokenizer": Bytes()}
    rows, reasons, steps = run(counting(), [[9], [11], [2, 2, 2]], 9, **settings)
    assert rows == [[10, 11], [12, 13, 14], [3, 4, 5, 6]] and reasons == ["stop"] * 3
    assert steps == [[[10], [12], [3]], [[11], [13], [4]], [[], [14], [5]], [[], [], [6]]]


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, words, changed",
    [
        (ValueError, "temperature must be 0 .greedy. or a positive", {"temperature": -0.1}),
        (ValueError, "temperature must be", {"temperature": math.nan}),
        (ValueError, "temperature must be", {"temperature": math.inf}),
        (ValueError, "top_k must be at least 1, not 0", {"top_k": 0}),
        (TypeError, "top_k must be an integer, not 2.0", {"top_k": 2.0}),
        (ValueError, "top_p must be greater than 0", {"top_p": 0}),
        (ValueError, "top_p must be greater than 0", {"top_p": 1.1}),
        (ValueError, "top_p must be greater than 0", {"top_p": math.nan}),
        (ValueError, "max_new_tokens must be at least 0, not -1", {"max_new_tokens": -1}),
        (TypeError, "max_new_tokens must be an integer", {"max_new_tokens": True}),
        (ValueError, "num_return_sequences must be at least 1", {"num_return_sequences": 0}),
        (ValueError, "prompt 0 is empty", {"prompts": []}),
        (ValueError, "prompt 1 is empty", {"prompts": [[5], []]}),
        (TypeError, "ids, not text", {"prompts": "Once upon a time"}),
        (TypeError, "prompt 0 must be a list of ids", {"prompts": ["Once"]}),
        (TypeError, "prompt 0 must be a list of ids, not float64", {"prompts": [1.5]}),
        (ValueError, "prompt 0 holds the id 31 at position 1: .* 0 to 30", {"prompts": [0, 31]}),
        (ValueError, "prompt 1 holds the id -1", {"prompts": [[5], [4, 6, -1]]}),
        (ValueError, "n_ctx = 17: shorten it, or slide", {"prompts": [3] * 18}),
        (ValueError, 'at_end must be "stop" or "slide"', {"at_end": "wrap"}),
        (ValueError, "give generate a tokenizer", {"stop": "end"}),
        (TypeError, "stop must hold ids and strings", {"stop": [2.5]}),
        (TypeError, "stop must hold ids and strings", {"stop": ""}),
        (TypeError, "stop must hold ids and strings", {"stop": None}),
        (TypeError, "rng must be a NumPy Generator", {"rng": 7}),
        (TypeError, "rng must be a NumPy Generator", {"rng": random.Random(7)}),
        (TypeError, "rng must be a NumPy Generator", {"rng": np.random.SeedSequence(7)}),
        (TypeError, "temperature must be a number, not '1.0'", {"temperature": "1.0"}),
        (TypeError, "temperature must be a number, not True", {"temperature": True}),
        (TypeError, "top_p must be a number, not '0.5'", {"top_p": "0.5"}),
        (TypeError, "top_p must be a number, not True", {"top_p": True}),
        (ValueError, "repetition_penalty must be a positive number", {"repetition_penalty": 0}),
        (ValueError, "repetition_penalty must be a", {"repetition_penalty": math.inf}),
        (ValueError, "serve one row, not 2", {"draft": prompt_lookup(), "num_return_sequences": 2}),
        (TypeError, "draft must be one of numpygpt.draft", {"draft": prompt_lookup}),
        (ValueError, "stop holds the id 31, which never comes: .* 0 to 30", {"stop": [3, 31]}),
        (ValueError, "stop holds the id -1, which never comes", {"stop": np.int8(-1)}),
        (ValueError, "half a character", {"stop": "a\ud800"}),
        (TypeError, "max_new_tokens must be an integer", {"max_new_tokens": np.True_}),
        (TypeError, "max_new_tokens must be an integer", {"max_new_tokens": np.float64(3)}),
        (TypeError, "temperature must be a number", {"temperature": 1j}),
        (
            TypeError,
            "a list of ids, or a list of such lists, not array.5",
            {"prompts": np.array(5)},
        ),
        (TypeError, "a list of ids, or a list of such lists, not .5}", {"prompts": {5}}),
        (TypeError, "a list of ids, or a list of such lists, not {5: 1}", {"prompts": {5: 1}}),
        (TypeError, r"prompt 0 must be a list of ids, not \[1, \[2\]\]", {"prompts": [1, [2]]}),
        (TypeError, "prompt 1 must be a list of ids", {"prompts": [[1], 2]}),
    ],
)
def test_misuse_is_refused_at_the_call(model, error, words, changed):
    settings = {"prompts": [5, 17], "max_new_tokens": 3} | changed
    with pytest.raises(error, match=words):
        generate(model, **settings)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_model_is_not_sampled_from(model, bad):
    params = model.params | {"ln_f.bias": np.full(12, bad)}
    broken = GPT2(model.config, params)
    with np.errstate(invalid="ignore"):
        for temperature in (0, 1):
            with pytest.raises(FloatingPointError, match="logits that are not numbers"):
                next(generate(broken, [5], 2, temperature=temperature))
    with pytest.raises(FloatingPointError, match="logits that are not numbers"):
        probabilities(np.full(5, -np.inf))


@pytest.mark.parametrize("wrong", [True, "1.2", None, [1.2]])
def test_a_penalty_that_is_not_a_number(model, wrong):
    with pytest.raises(TypeError, match="repetition_penalty must be a number, not"):
        generate(model, [5], 2, repetition_penalty=wrong)


def test_rows_that_do_not_fit_the_machine_are_refused(model, monkeypatch):
    """Keys and values of 3 + 4 positions, 4 bytes each, and two numbers for each logit."""
    one = 2 * 4 * (2 * 12 * 7) + 2 * 4 * 31
    monkeypatch.setattr(fast, "machine_memory", lambda: 3 * one)
    generate(model, PROMPTS[0], 4, num_return_sequences=3)
    with pytest.raises(ValueError, match="4 texts at once take"):
        generate(model, PROMPTS[0], 4, num_return_sequences=4)
    with pytest.raises(ValueError, match="3 texts at once take"):
        generate(model, PROMPTS[0], 5, num_return_sequences=3)
    whole = 2 * 4 * (2 * 12 * N_CTX) + 2 * 4 * 31  # no cache is longer
    monkeypatch.setattr(fast, "machine_memory", lambda: whole)
    generate(model, PROMPTS[0], 400)


def test_what_is_drawn_unless_said_otherwise():
    assert defaults(generate) == {
        "temperature": 1.0, "top_k": None, "top_p": None, "num_return_sequences": 1, "stop": (),
        "rng": None, "tokenizer": None, "at_end": "stop", "repetition_penalty": 1.0, "draft": None,
    }  # fmt: skip
    assert defaults(probabilities) == {"temperature": 1.0, "top_k": None, "top_p": None}


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint64, np.array])
def test_integers_of_every_kind_are_integers(model, kind):
    """NumPy's small ones overflow where they are added to: 2 * int8(70) is -116."""

    def drawn(number):
        return run(
            model, PROMPTS[:2], number(40), top_k=number(9), num_return_sequences=number(70),
            at_end="slide", rng=np.random.default_rng(1),
        )  # fmt: skip

    assert drawn(kind) == drawn(int)
    for name, value in (("an id", kind(120)), ("a count", np.int64(120))):
        assert type(sample.check_count(name, value, 0)) is int


def test_numbers_of_every_kind_draw_alike(model):
    for name, value in (("temperature", 0.5), ("top_p", 0.5), ("repetition_penalty", 1.5)):
        drawn = [
            run(model, PROMPTS[0], 6, rng=np.random.default_rng(3), **{name: kind(value)})
            for kind in (float, np.float16, np.float32, np.float64)
        ]
        assert drawn[1:] == drawn[:1] * 3
    logits = np.zeros((1, 60000), np.float32)  # a sum that float16 rounds to a multiple of 32
    for kind in (float, np.float16):
        assert np.isfinite(keep_top_p(logits, kind(0.5))).sum() in (30000, 30001)
        assert (probabilities(logits, top_p=kind(0.5)) > 0).sum() in (30000, 30001)
        assert np.isfinite(keep_top_k(np.arange(300.0), np.uint8(200))).sum() == 200


def test_logits_may_be_a_list_or_integers():
    for logits in ([3, 1, 2], np.array([3, 1, 2], np.int8), [3.0, 1.0, 2.0]):
        for settings in ({}, {"top_k": 2}, {"top_p": 0.9}, {"temperature": 0.5, "top_k": 2}):
            np.testing.assert_array_equal(
                probabilities(logits, **settings), probabilities(np.array([3.0, 1, 2]), **settings)
            )
