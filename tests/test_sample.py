"""Sampling: transformers' distributions and beams, rows that are as if alone, drafts."""

import collections
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from numpygpt.model import GPT2, Config, init, parameter_shapes
from numpygpt.sample import (
    PREFILL,
    acceptance,
    apply_temperature,
    beam_search,
    draft_model,
    draw,
    generate,
    keep_top_k,
    keep_top_p,
    probabilities,
    prompt_lookup,
    residual,
    verify,
)

GOLDEN = Path(__file__).parent / "golden"
STORED = np.load(GOLDEN / "sample.npz")
BEAMS = json.loads((GOLDEN / "sample_beams.json").read_text(encoding="utf-8"))
PROMPTS = [[5, 17, 2], [30, 9, 9, 28, 3, 7, 11, 12, 13], [8], list(range(2, 17))]
N_CTX = 17


@pytest.fixture(scope="module")
def model():
    """The model of the stored beams: 31 tokens, 17 positions, float64."""
    config = Config(n_vocab=31, n_ctx=N_CTX, n_embd=12, n_head=3, n_layer=2)
    return GPT2(config, {name: STORED[f"param.{name}"] for name in parameter_shapes(config)})


@pytest.fixture(scope="module")
def small():
    """Another model of the same vocabulary, with a shorter context, to draft with."""
    config = Config(n_vocab=31, n_ctx=11, n_embd=6, n_head=2, n_layer=1)
    params = init(config, np.random.default_rng(3), np.float64)
    return GPT2(config, {name: value * 9 for name, value in params.items()})


def run(*args, **settings):
    """(ids of each row, why each row ended, steps) of a whole generation."""
    steps, rows = generate(*args, **settings), None
    taken = []
    while True:
        try:
            step = next(steps)
        except StopIteration as stopped:
            return rows, stopped.value, taken
        taken.append([list(new) for new in step])
        rows = [old + new for old, new in zip(rows or [[]] * len(step), step, strict=True)]


def without_cache(model, prompt, count, slide=False):
    """Greedy ids, each from a forward over the whole window and nothing else."""
    ids, start, n_ctx = list(prompt), max(0, len(prompt) - model.config.n_ctx), model.config.n_ctx
    for _ in range(count):
        if len(ids) - start > n_ctx:
            if not slide:
                break
            start = len(ids) - n_ctx // 2
        ids.append(int(model.forward(np.array(ids[start:]))[0][0, -1].argmax()))
    return ids[len(prompt) :]


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


class Fixed:
    """A model that says what it is told, and is no GPT2: id t is followed by follow(t)."""

    def __init__(self, n_vocab, follow, n_ctx=64):
        self.config = Config(n_vocab=n_vocab, n_ctx=n_ctx, n_embd=1, n_head=1, n_layer=1)
        self.follow = follow

    def cache(self, batch=1):
        return type("Cache", (), {"k": [], "v": [], "length": 0, "pads": None})()

    def forward(self, tokens, cache, pads=None, only_last=False):
        cache.length, cache.pads = (
            cache.length + tokens.shape[1],
            cache.pads if pads is None else pads,
        )
        p = np.array([[self.follow(int(t)) for t in row] for row in tokens])
        with np.errstate(divide="ignore"):
            return np.log(p[:, -1:] if only_last else p), {}


def counting(n_vocab=31):
    return Fixed(n_vocab, lambda t: np.eye(n_vocab)[(t + 1) % n_vocab])


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


def test_rows_stop_one_by_one():
    settings = {"temperature": 0, "stop": ["xy", 11], "tokenizer": Bytes()}
    rows, reasons, steps = run(counting(), [[9], [11], [2, 2, 2]], 9, **settings)
    assert rows == [[10, 11], [12, 13, 14], [3, 4, 5, 6]] and reasons == ["stop"] * 3
    assert steps == [[[10], [12], [3]], [[11], [13], [4]], [[], [14], [5]], [[], [], [6]]]


# ---- drafts -------------------------------------------------------------------------------------


class Script:
    """In place of a random generator: plays given choices of `grid` equal parts of [0, 1)."""

    def __init__(self, grid, choices):
        self.grid, self.choices, self.used = grid, choices, 0

    def random(self):
        if self.used == len(self.choices):
            self.choices.append(0)
        self.used += 1
        return (self.choices[self.used - 1] + 0.5) / self.grid

    def spawn(self, rows):
        return [self] * rows


def exact_distribution(grid, outcome):
    """Outcome -> probability of outcome(rng), by playing every choice it can meet."""
    found, choices = collections.Counter(), []
    while True:
        script = Script(grid, choices)
        found[tuple(outcome(script))] += grid**-script.used
        choices = choices[: script.used]
        while choices and choices[-1] == grid - 1:
            choices.pop()
        if not choices:
            return found
        choices[-1] += 1


P = np.array([[2, 2, 0, 4], [1, 4, 2, 1], [4, 0, 2, 2]]) / 8
Q = np.array([[1, 4, 2, 1], [2, 2, 2, 2]]) / 8


def test_a_rejected_draft_worked_by_hand():
    assert [acceptance(P[0], Q[0], x) for x in range(4)] == [1, 0.5, 0, 1]
    np.testing.assert_array_equal(residual(P[0], Q[0]), [0.25, 0, 0, 0.75])
    np.testing.assert_array_equal(residual(P[1], Q[1]), [0, 1, 0, 0])
    np.testing.assert_array_equal(residual(P[0], P[0]), P[0])


def test_acceptance_and_residual_give_back_p():
    rng = np.random.default_rng(17)
    for _ in range(100):
        p, q = probabilities(rng.standard_normal((2, 43)) * 3, top_k=29)
        accepted = np.array([q[x] and q[x] * acceptance(p, q, x) for x in range(43)])
        np.testing.assert_allclose(accepted + (1 - accepted.sum()) * residual(p, q), p, atol=1e-12)


@pytest.mark.parametrize("q", [Q, None])
def test_verify_draws_from_the_model_whatever_was_drafted(q):
    """Its 1 to 3 ids, topped up with draws from the rows of P that are left, are draws from P."""

    def outcome(rng):
        drafted = [3, 1] if q is None else [draw(row, rng.random()) for row in q]
        return verify(P, drafted, q, rng)

    found = exact_distribution(8, outcome)
    assert {len(ids) for ids in found} == {1, 2, 3}
    for ids in itertools.product(range(4), repeat=3):
        each = P[[0, 1, 2], ids]
        topped_up = sum(found[ids[:n]] * math.prod(each[n:]) for n in (1, 2, 3))
        assert math.isclose(topped_up, math.prod(each), abs_tol=1e-12)


# Ids that follow 0, 1 and 2. The parts of every residual are multiples of 1/grid, too.
CHAIN = {
    4: np.array([[2, 1, 1], [1, 2, 1], [0, 2, 2]]) / 4,
    6: np.array([[2, 2, 2], [3, 3, 0], [0, 3, 3]]) / 6,
}
OTHER = np.array([[1, 2, 1], [2, 0, 2], [1, 1, 2]]) / 4


@pytest.mark.parametrize("kind, grid", [("none", 4), ("draft model", 4), ("prompt lookup", 6)])
def test_what_is_generated_is_distributed_as_without_a_draft(kind, grid):
    drafted = []

    def spy(draft):
        def propose(*args):
            out = draft(*args)
            drafted.extend(out[0])
            return out

        return propose

    def outcome(rng):
        draft = {
            "none": None,
            "draft model": spy(draft_model(Fixed(3, OTHER.__getitem__), 2)),
            "prompt lookup": spy(prompt_lookup(n=1, length=2)),
        }[kind]
        rows, _, _ = run(
            Fixed(3, CHAIN[grid].__getitem__), [2, 1, 0, 2, 1], 3, rng=rng, draft=draft
        )
        return rows[0]

    found = exact_distribution(grid, outcome)
    assert (len(drafted) > 100) == (kind != "none")
    for ids in itertools.product(range(3), repeat=3):
        expected = math.prod(CHAIN[grid][[1, *ids[:2]], ids])
        assert math.isclose(found[ids], expected, abs_tol=1e-12)


@pytest.mark.parametrize("at_end", ["stop", "slide"])
@pytest.mark.parametrize("kind", ["itself", "small", "lookup"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_ids_do_not_depend_on_the_draft(model, small, kind, at_end, prompt):
    draft = {
        "itself": lambda: draft_model(model, 3),
        "small": lambda: draft_model(small, 4),
        "lookup": lambda: prompt_lookup(n=1, length=5),
    }[kind]()
    rows, reasons, steps = run(model, prompt, 41, temperature=0, draft=draft, at_end=at_end)
    assert (rows, reasons) == run(model, prompt, 41, temperature=0, at_end=at_end)[:2]
    if kind == "itself" and len(prompt) == 3 and at_end == "stop":  # all is accepted
        assert [len(step[0]) for step in steps] == [1, 4, 4, 4, 2]


def test_a_draft_does_not_pass_a_stop_or_the_number_asked_for(model):
    (greedy,), _, _ = run(model, PROMPTS[2], 9, temperature=0)
    for count in range(1, 9):
        rows, reasons, _ = run(model, PROMPTS[2], count, temperature=0, draft=draft_model(model))
        assert rows == [greedy[:count]] and reasons == ["length"]
    settings = {"temperature": 0, "stop": greedy[3], "draft": draft_model(model)}
    rows, reasons, _ = run(model, PROMPTS[2], 9, **settings)
    assert rows == [greedy[: greedy.index(greedy[3]) + 1]] and reasons == ["stop"]


def test_a_draft_model_that_meets_a_new_text_reads_it(model):
    draft = draft_model(model, 3)
    for prompt in (PROMPTS[3], PROMPTS[0], [5, 17, 4]):
        _, _, steps = run(model, prompt, 41, temperature=0, draft=draft, at_end="slide")
        _, _, fresh = run(
            model, prompt, 41, temperature=0, draft=draft_model(model, 3), at_end="slide"
        )
        assert steps == fresh


def test_prompt_lookup_worked_by_hand():
    text = [1, 2, 3, 4, 5, 1, 2, 3, 9, 9, 1, 2, 3]
    assert prompt_lookup(3, 4)(text, 9, None, None) == ([9, 9, 1, 2], None)  # the latest place
    assert prompt_lookup(3, 4)(text, 2, None, None) == ([9, 9], None)
    assert prompt_lookup(4, 4)(text, 9, None, None) == ([], None)
    assert prompt_lookup(2, 6)([7, 8, 7, 8, 7], 9, None, None) == ([8, 7, 8, 7, 8, 7], None)
    assert prompt_lookup(1, 3, reach=3)([5, 6, 5, 7, 5], 9, None, None) == ([7, 5, 7], None)
    assert prompt_lookup(3, 4)([1, 2, 3], 9, None, None) == ([], None)


# ---- beams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BEAMS, ids=lambda case: f"{case['num_beams']}-{case['eos']}")
def test_beams_are_those_of_transformers(model, case):
    names = ("prompt", "max_new_tokens", "num_beams", "length_penalty", "eos")
    found = beam_search(model, *(case[name] for name in names))
    assert [ids for ids, _ in found] == case["ids"]
    if case["scores"]:  # which transformers computes in float32
        np.testing.assert_allclose([score for _, score in found], case["scores"], rtol=1e-6)


def test_enough_beams_find_the_likeliest_pair(model):
    pairs = np.array([[*PROMPTS[0], i] for i in range(31)])
    p = probabilities(model.forward(pairs)[0])
    joint = np.log(p[0, -2])[:, None] + np.log(p[:, -1])  # (first id, second id)
    (best, score), *_ = beam_search(model, PROMPTS[0], 2, 31)
    assert tuple(best) == np.unravel_index(joint.argmax(), joint.shape)
    assert math.isclose(score, joint.max() / 2, rel_tol=1e-12)


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
        (ValueError, "prompt 0 holds the id 31 at position 1: .* 0 to 30", {"prompts": [5, 31]}),
        (ValueError, "prompt 1 holds the id -1", {"prompts": [[5], [4, 6, -1]]}),
        (ValueError, "n_ctx = 17: shorten it, or slide", {"prompts": [3] * 18}),
        (ValueError, 'at_end must be "stop" or "slide"', {"at_end": "wrap"}),
        (ValueError, "give generate a tokenizer", {"stop": "end"}),
        (TypeError, "stop must hold ids and strings", {"stop": [2.5]}),
        (TypeError, "stop must hold ids and strings", {"stop": ""}),
        (TypeError, "stop must hold ids and strings", {"stop": None}),
        (TypeError, "rng must be a NumPy Generator", {"rng": 7}),
        (ValueError, "serve one row, not 2", {"draft": prompt_lookup(), "num_return_sequences": 2}),
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
            beam_search(broken, [5], 2, 2)
    with pytest.raises(FloatingPointError, match="logits that are not numbers"):
        probabilities(np.full(5, -np.inf))


def test_a_draft_of_another_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="the vocabulary has 31: draft with a model of the same"):
        run(model, [2, 5], 9, draft=draft_model(counting(29)))


def test_beams_past_the_context_are_refused(model):
    assert len(beam_search(model, [2, 5, 8], 15, 2)[0][0]) == 15
    with pytest.raises(ValueError, match="n_ctx = 17: ask for at most 15"):
        beam_search(model, [2, 5, 8], 16, 2)
    with pytest.raises(ValueError, match="num_beams must be at least 1"):
        beam_search(model, [2, 5, 8], 16, 0)
    with pytest.raises(ValueError, match="length must be at least 1"):
        draft_model(model, 0)
