"""Every mistake is made, shows in the golden files, and is named from what it gives.

The mutation test: with a mistake of the forward pass switched on, the comparison with transformers'
numbers must fail, and the diagnosis must name that mistake, from the whole record and from logits
alone. The score is 100 % of FORWARD, except that float16 accumulation cannot be told from logits
alone: which small products are lost hangs on the last bits of what was computed before.
"""

import functools
import re

import numpy as np
import pytest
from golden import models

import numpygpt
from numpygpt import ops, optim, sample
from numpygpt.bpe import Tokenizer, byte_symbols, merge, pre_tokens
from numpygpt.check import mistakes
from numpygpt.check.align import align
from numpygpt.check.diagnose import Case, diagnose
from numpygpt.check.mistakes import FORWARD, MISTAKES, OTHERS, apply
from numpygpt.check.trace import CATALOGUE, CLOSE, gap, replay
from numpygpt.model import GPT2, Config, as_dtype

FORWARD_NAMES = [mistake.name for mistake in FORWARD]


def of_operation(name, model):
    """Every wrong version of one operation: mistake -> function, as `model` would call it."""
    made = {mistake.name: mistake.make(model) for mistake in mistakes.FORWARD}
    return {mistake: ops[name] for mistake, ops in made.items() if name in ops}


def test_there_are_enough_and_each_explains_itself():
    assert len(MISTAKES) == len(FORWARD) + len(OTHERS) >= 40
    entries = {entry.name.removeprefix("h.{i}.") for entry in CATALOGUE}
    for name, mistake in MISTAKES.items():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert mistake.why.endswith(".") and len(mistake.why) > 30 and mistake.seen
        assert mistake.place in entries or mistake in OTHERS
    for mistake in OTHERS:  # the place is a function that exists
        room, *path = mistake.place.split(".")
        assert callable(functools.reduce(getattr, path, getattr(numpygpt, room)))


# ---- the mutation test: the golden files notice --------------------------------------------------


def golden(name):
    with np.load(models.GOLDEN / f"{name}.npz") as file:
        return dict(file)


def loud_params():
    params = models.small()
    for i in range(models.SMALL.n_layer):
        params[f"h.{i}.attn.c_attn.weight"][:, : 2 * models.SMALL.n_embd] *= 80
    return params


def golden_gap(*made):
    """The largest gap between a model with these mistakes and the numbers of transformers."""
    small = apply(as_dtype(GPT2(models.SMALL, models.small()), np.float64), *made)
    expected = golden("model_small")
    record = replay(small, expected["tokens"])
    yield from (gap(array, record[name]) for name, array in align(expected, record).arrays.items())
    cases = golden("model_cases")
    tokens, pads = cases["padded/tokens"], cases["padded/pads"]
    real = np.arange(tokens.shape[1]) >= pads[:, None]
    for chunks in (None, [5, 1, 5]):
        logits = replay(small, tokens, pads, chunks)["logits"]
        yield gap(cases["padded/logits"], logits[real])
    ports = golden("trace_ports")
    loud = apply(as_dtype(GPT2(models.SMALL, loud_params()), np.float64), *made)
    yield gap(ports["loud/logits"], replay(loud, ports["tokens"])["logits"])


def test_without_a_mistake_the_golden_files_agree():
    assert max(golden_gap()) < 1e-10


@pytest.mark.parametrize("name", FORWARD_NAMES)
def test_golden_files_notice(name):
    assert any(not g <= CLOSE for g in golden_gap(MISTAKES[name]))


# ---- the mutation test: the diagnosis names it ---------------------------------------------------

SIZES = Config(61, 17, 24, 4, 2, n_inner=40)
SCALES = {"wte": 0.5, "wpe": 0.3, "final_gain": 1.0}
PADS, CHUNKS = {"pads": np.array([0, 3, 1])}, {"chunks": [4, 1, 4]}
# Some mistakes are only made under circumstances.
CIRCUMSTANCES = {
    "positions-ignore-padding": PADS,
    "pads-not-masked": PADS,
    "positions-restart": CHUNKS,
    "mask-corner": CHUNKS,
}


def model_and_tokens(name, config=SIZES, seed=3, shape=(3, 9)):
    """A model in which a token at a place has a variance of 1e-9, so that every eps shows."""
    params = models.weights(config, seed, SCALES)
    if name == "mask-minus-1e4":
        for i in range(config.n_layer):
            params[f"h.{i}.attn.c_attn.weight"][:, : 2 * config.n_embd] *= 80
    if name == "untied-unembedding":  # more rows than columns, or any table would do
        shape = (3, 14)
    tokens = models.token_ids(seed, shape, config.n_vocab)
    tokens[0, 5] = 7
    noise = models.uniform(np.random.PCG64(1), (config.n_embd,), 3e-5)
    params["wte.weight"][7] = noise - params["wpe.weight"][5]
    return GPT2(config, params), tokens


def case(name, keep=None):
    """What a float32 port with this mistake dumps: all of it, or the tensors of `keep`."""
    model, tokens = model_and_tokens(name)
    run = CIRCUMSTANCES.get(name, {})
    dump = replay(apply(model, MISTAKES[name]), tokens, **run)
    dump = {n: a for n, a in dump.items() if keep is None or n in keep}
    theirs = align(dump, replay(model, tokens, **run))
    assert not theirs.unknown
    return Case(model, tokens, theirs.arrays, **run)


CUT = {"padded-vocabulary"}  # superfluous columns are cut off with a remark: nothing else is wrong


@pytest.mark.parametrize("name", [n for n in FORWARD_NAMES if n not in CUT])
def test_named_from_the_whole_record(name):
    found = diagnose(case(name))
    assert [cause.mistake for cause in found.causes] == [name]
    assert found.unexplained == () and found.causes[0].ties == []
    assert found.causes[0].gap <= CLOSE and found.causes[0].times > 10


@pytest.mark.parametrize(
    "name", [n for n in FORWARD_NAMES if n not in CUT | {"float16-accumulation"}]
)
def test_named_from_logits_alone(name):
    found = diagnose(case(name, keep=["logits"]))
    assert [cause.mistake for cause in found.causes] == [name]
    assert found.causes[0].ties == []


def test_mistakes_can_be_made_together_in_any_order():
    model, tokens = model_and_tokens("")
    made = [MISTAKES[n] for n in ("no-bias", "erf-gelu", "no-final-norm", "norm-without-gain")]
    forwards, backwards = apply(model, *made), apply(model, *made[::-1])
    a, b = forwards.forward(tokens)[0], backwards.forward(tokens)[0]
    np.testing.assert_array_equal(a, b)
    for i in range(len(made)):  # none of them is lost
        fewer = apply(model, *made[:i], *made[i + 1 :])
        assert gap(fewer.forward(tokens)[0], a) > CLOSE


def test_wrong_versions_of_one_operation():
    model, _ = model_and_tokens("")
    x = np.linspace(-3, 3, 7)
    wrong = of_operation("gelu", model)
    assert set(wrong) == {"erf-gelu", "sigmoid-gelu", "relu", "no-gelu", "gelu-typo"}
    assert all(gap(gelu(x), ops.gelu(x)) > 1e-5 for gelu in wrong.values())


# ---- rounding -----------------------------------------------------------------------------------


def test_bfloat16_rounds_to_nearest_ties_to_even():
    x = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1e-3, 0, np.inf, -np.inf])
    rounded = mistakes.forward.to_bfloat16(x.astype(np.float32))
    expected = [1, 1, 1 + 2**-6, 1 + 2**-7, -0.00099945068359375, 0, np.inf, -np.inf]
    np.testing.assert_array_equal(rounded, np.float32(expected))
    assert np.isnan(mistakes.forward.to_bfloat16(np.float32([np.nan])))


def test_float16_accumulation_loses_small_terms():
    model, _ = model_and_tokens("")
    linear = of_operation("linear", model)["float16-accumulation"]
    x, w, b = np.ones((1, 3001), np.float32), np.ones((3001, 1), np.float32), np.zeros(1)
    assert linear(x, w, b)[0, 0] == 2048  # 2048 + 1 is no float16
    assert ops.linear(x, w, b.astype(np.float32))[0, 0] == 3001


# ---- the others, each where it differs from the right function -----------------------------------

LOGITS = np.log(np.array([[0.4, 0.3, 0.2, 0.07, 0.03]]))


def wrong(name):
    return MISTAKES[name].make


def probabilities(logits):
    return ops.softmax(logits)[0].round(6).tolist()


def test_temperature_multiplied():
    assert ops.softmax(sample.apply_temperature(LOGITS, 0.5))[0, 0] > 0.5  # sharper
    assert ops.softmax(wrong("temperature-multiplied")(LOGITS, 0.5))[0, 0] < 0.35


def test_top_p_drops_the_crossing_token():
    assert probabilities(sample.keep_top_p(LOGITS, 0.6)) == [0.571429, 0.428571, 0, 0, 0]
    assert probabilities(wrong("top-p-drops-crossing-token")(LOGITS, 0.6)) == [1, 0, 0, 0, 0]


def test_top_k_or_top_p():
    right = sample.probabilities(LOGITS, top_k=3, top_p=0.35)
    union = wrong("top-k-or-top-p")(LOGITS, top_k=3, top_p=0.35)
    assert (right > 0).sum() == 1 and (union > 0).sum() == 3


def test_top_p_before_temperature():
    right = sample.probabilities(LOGITS, temperature=3.0, top_p=0.6)
    early = wrong("top-p-before-temperature")(LOGITS, temperature=3.0, top_p=0.6)
    assert (right > 0).sum() == 3 and (early > 0).sum() == 2


def losses():
    """Logits, targets with padding, mask; the targets of row 1 are a third padding."""
    logits = np.random.default_rng(0).normal(size=(2, 6, 5)) * 2
    targets = np.array([[1, 4, 2, 0, 3, 3], [2, 2, 1, 4, -100, -100]])
    return logits, targets, (targets >= 0).astype(float)


@pytest.mark.parametrize("name", [m.name for m in OTHERS if m.place == "ops.cross_entropy"])
def test_wrong_losses(name):
    logits, targets, mask = losses()
    assert abs(wrong(name)(logits, targets, mask) - ops.cross_entropy(logits, targets, mask)) > 0.01


def test_a_loss_that_is_not_shifted_is_small_for_a_model_that_copies():
    tokens = np.array([[3, 1, 4, 1, 5, 2]])
    copying = 9.0 * np.eye(6)[tokens[:, :-1]]  # gives each token itself
    right, not_shifted = (
        f(copying, tokens[:, 1:]) for f in (ops.cross_entropy, wrong("loss-not-shifted"))
    )
    assert not_shifted < 0.01 < 5 < right


@pytest.mark.parametrize("name", [m.name for m in OTHERS if m.place == "optim.adamw"])
def test_wrong_optimizers_leave_the_golden_path(name):
    """model_optim.npz holds ten steps of torch's AdamW; a few of them tell."""
    file = golden("model_optim")
    names = [n.removeprefix("start/") for n in file if n.startswith("start/")]

    def parameters_after(adamw, steps=3):
        params = {n: file[f"start/{n}"].astype(np.float64) for n in names}
        state = optim.adam_state(params)
        for step in range(steps):
            grads = {n: file[f"grads/{n}"][step].astype(np.float64) for n in names}
            adamw(params, grads, state, 0.01, 0.9, 0.95, 1e-8, 0.1)
        return params

    right, mistaken = parameters_after(optim.adamw), parameters_after(wrong(name))
    same = parameters_after(mistakes.others._adam())  # the same code without a mistake
    assert max(gap(same[n], right[n]) for n in names) < 1e-12
    assert max(gap(mistaken[n], right[n]) for n in names) > CLOSE


def test_decay_everything():
    bias = np.ones(3)
    assert not optim.decays("ln_f.bias", bias) and wrong("decay-everything")("ln_f.bias", bias)


def test_clipping_per_tensor_turns_the_direction():
    grads = {"a": np.array([30.0, 0.0]), "b": np.array([0.0, 4.0])}
    whole, single = ({n: g.copy() for n, g in grads.items()} for _ in range(2))
    assert optim.clip(whole, 1.0) == wrong("clip-per-tensor")(single, 1.0)
    assert whole["a"][0] / whole["b"][1] == pytest.approx(7.5)
    assert single["a"][0] / single["b"][1] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def tokenizer():
    merges = [("b", "c"), ("a", "b"), ("s", "a")]
    return Tokenizer([*byte_symbols().values(), "bc", "ab", "sa"], merges, [])


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("merges-in-text-order", "' s ab c"),
        ("merges-across-words", "' sa bc"),
        ("longest-token-first", "' s ab c"),
    ],
)
def test_wrong_encoders_give_other_ids_for_the_same_text(name, tokens, tokenizer):
    assert [tokenizer.tokens[i] for i in tokenizer.encode("'sabc")] == ["'", "s", "a", "bc"]
    assert [tokenizer.tokens[i] for i in wrong(name)(tokenizer, "'sabc")] == tokens.split()


def test_the_encoder_of_the_mistakes_is_right_without_one(tokenizer):
    text = "abc abcabbc saab ünï 12"
    assert mistakes.others._encode(tokenizer, pre_tokens(text), merge) == tokenizer.encode(text)


TEXTS = {
    "split-on-spaces": "one, two",
    "pattern-with-word-characters": "x86_64",
    "pattern-without-lookahead": "a   b",
    "pattern-any-case": "I'LL",
    "pattern-digits-in-threes": "12345",
}


@pytest.mark.parametrize("name", [m.name for m in OTHERS if m.place == "bpe.pre_tokens"])
def test_wrong_patterns_cut_otherwise(name):
    text = TEXTS[name]
    assert "".join(wrong(name)(text)) == text
    assert wrong(name)(text) != pre_tokens(text)
    plain = "The quick brown fox jumps over the lazy dog"  # where most tests look
    assert wrong(name)(plain) == pre_tokens(plain)


def test_every_other_mistake_is_tested():
    tested = {"temperature-multiplied", "top-k-or-top-p", "top-p-before-temperature"}
    tested |= {"top-p-drops-crossing-token", "decay-everything", "clip-per-tensor"} | set(TEXTS)
    tested |= {"merges-in-text-order", "merges-across-words", "longest-token-first"}
    places = ("ops.cross_entropy", "optim.adamw")
    assert {m.name for m in OTHERS if m.place not in places} == tested
