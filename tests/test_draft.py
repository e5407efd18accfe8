"""Speculative drafts change no distribution and no greedy id."""

import dataclasses
import itertools
import math
import types

import numpy as np
import pytest
from sampling import PROMPTS, Fixed, counting, exact_distribution, run, stored_model
from signatures import defaults

from numpygpt.draft import Draft, acceptance, draft_model, prompt_lookup, residual, verify
from numpygpt.model import GPT2, Config, init
from numpygpt.sample import draw, probabilities


@pytest.fixture(scope="module")
def model():
    return stored_model()


@pytest.fixture(scope="module")
def small():
    """Another model of the same vocabulary, with a shorter context, to draft with."""
    config = Config(n_vocab=31, n_ctx=11, n_embd=6, n_head=2, n_layer=1)
    params = init(config, np.random.default_rng(3), np.float64)
    return GPT2(config, {name: value * 9 for name, value in params.items()})


P = np.array([[2, 2, 0, 4], [1, 4, 2, 1], [4, 0, 2, 2]]) / 8
Q = np.array([[1, 4, 2, 1], [2, 2, 2, 2]]) / 8


def test_a_rejected_draft_worked_by_hand():
    assert [acceptance(P[0], Q[0], x) for x in range(4)] == [1, 0.5, 0, 1]
    np.testing.assert_array_equal(residual(P[0], Q[0]), [0.25, 0, 0, 0.75])
    np.testing.assert_array_equal(residual(P[1], Q[1]), [0, 1, 0, 0])
    np.testing.assert_array_equal(residual(P[0], P[0]), P[0])


def test_what_cannot_be_is_not_accepted_even_of_a_draw_of_zero():
    zero = types.SimpleNamespace(random=lambda: 0.0)
    assert verify(P[:2], [2], None, zero) == [0]


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
            guessed, q = draft.propose(*args)
            drafted.extend(guessed)
            return guessed, q

        return Draft(propose)

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


def test_a_draft_model_goes_on_from_what_two_texts_share(model):
    """Also where they part behind the first id: what is guessed is what a fresh draft guesses."""
    read = []

    def forward(tokens, cache, **settings):
        read.append(tokens.shape[1])
        return model.forward(tokens, cache, **settings)

    spied = types.SimpleNamespace(config=model.config, cache=model.cache, forward=forward)
    draft, rng, guessed = draft_model(spied, 3), np.random.default_rng(0), []
    for ids, expected in (
        ([5, 17, 2, 8], [4, 1, 1]),
        ([5, 17, 9, 8], [2, 1, 1]),  # two are known
        ([5, 17, 9, 8], [1, 1, 1]),  # the last is read for its logits
        ([5, 17], [1, 1, 1]),
        ([4, 17, 9, 8], [4, 1, 1]),
        (None, [1, 1, 1]),  # all that was guessed was right
        (list(range(14)), [14, 1, 1]),  # with three guesses that is its whole context
        (list(range(15)), [8, 1, 1]),  # half of it: there was no room for three
    ):
        read.clear()
        ids = [4, 17, 9, 8, *guessed] if ids is None else ids
        guessed, q = draft.propose(ids, 99, greedy, rng)
        assert read == expected
        fresh, fresh_q = draft_model(model, 3).propose(ids, 99, greedy, rng)
        assert guessed == fresh
        np.testing.assert_array_equal(q, fresh_q)


def test_a_draft_model_that_has_slid_meets_a_shorter_text(model):
    """Of 30 ids it read the last 8; of 22 others, or fewer, it reads what a fresh one reads."""
    rng = np.random.default_rng(0)
    for length in (22, 21, 15, 8, 5, 1):
        draft = draft_model(model, 3)
        draft.propose([7] * 30, 99, greedy, rng)
        ids = (np.arange(length) * 11 % 31).tolist()
        guessed, q = draft.propose(ids, 99, greedy, rng)
        fresh, fresh_q = draft_model(model, 3).propose(ids, 99, greedy, rng)
        assert guessed == fresh
        np.testing.assert_array_equal(q, fresh_q)


def greedy(logits):
    return probabilities(logits, 0)


def test_a_draft_model_guesses_as_much_as_it_may(model):
    """At most `length`, what there is room for, and half its context; none when that is nothing."""
    rng = np.random.default_rng(0)
    for length, room, count in ((3, 99, 3), (9, 5, 5), (99, 99, 17 // 2), (3, 0, 0)):
        guessed, _ = draft_model(model, length).propose([5, 17], room, greedy, rng)
        assert len(guessed) == count


def test_prompt_lookup_worked_by_hand():
    text = [1, 2, 3, 4, 5, 1, 2, 3, 9, 9, 1, 2, 3]
    # the latest place
    assert prompt_lookup(3, 4).propose(text, 9, None, None) == ([9, 9, 1, 2], None)
    assert prompt_lookup(3, 4).propose(text, 2, None, None) == ([9, 9], None)
    assert prompt_lookup(4, 4).propose(text, 9, None, None) == ([], None)
    assert prompt_lookup(2, 6).propose([7, 8, 7, 8, 7], 9, None, None) == ([8, 7, 8, 7, 8, 7], None)
    assert prompt_lookup(1, 3, reach=3).propose([5, 6, 5, 7, 5], 9, None, None) == ([7, 5, 7], None)
    assert prompt_lookup(3, 4).propose([1, 2, 3], 9, None, None) == ([], None)


def test_a_draft_of_another_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="the vocabulary has 31: draft with a model of the same"):
        run(model, [2, 5], 9, draft=draft_model(counting(29)))


def test_no_guess_of_length_zero(model):
    with pytest.raises(ValueError, match="length must be at least 1"):
        draft_model(model, 0)
    assert len(draft_model(model, 1).propose([5], 9, greedy, np.random.default_rng(0))[0]) == 1
    for name in ("n", "length", "reach"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            prompt_lookup(**{name: 0})
    assert prompt_lookup(1, 1, 2).propose([7, 7], 9, None, None) == ([7], None)


def test_what_is_guessed_unless_said_otherwise():
    assert defaults(prompt_lookup) == {"n": 3, "length": 8, "reach": 1024}
    assert defaults(draft_model) == {"length": 4}


def test_a_draft_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompt_lookup().propose = None


def test_nothing_is_asked_for(model):
    assert run(model, PROMPTS[0], 0, draft=prompt_lookup()) == (None, ["length"], [])


def test_integers_of_every_kind_are_integers(model):
    ids = PROMPTS[0] * 2
    plain, _, _ = run(model, ids, 8, temperature=0, at_end="slide")
    for kind in (np.int8, np.uint8):
        for draft in (prompt_lookup(kind(2), kind(4), kind(100)), draft_model(model, kind(3))):
            assert run(model, ids, 8, temperature=0, at_end="slide", draft=draft)[0] == plain
