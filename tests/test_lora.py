"""LoRA: the formula against central differences, and what stays as it was."""

import numpy as np
import pytest
from signatures import defaults

from numpygpt import data, lora, model, optim, train

CONFIG = model.Config(n_vocab=29, n_ctx=12, n_embd=20, n_head=2, n_layer=3)


def adapted(dtype=np.float64, **options):
    rng = np.random.default_rng(0)
    gpt = model.GPT2(CONFIG, model.init(CONFIG, rng, dtype))
    return gpt, lora.LoRA(gpt, rng=rng, **({"rank": 4} | options))


def batch():
    rng = np.random.default_rng(1)
    tokens, targets = rng.integers(CONFIG.n_vocab, size=(2, 3, 11))
    return tokens, targets, rng.random((3, 11)) < 0.6


@pytest.mark.parametrize("matrices", [("attn.c_attn",), lora.MATRICES])
def test_gradients_of_a_and_b_are_those_of_central_differences(matrices):
    _, adapter = adapted(matrices=matrices, alpha=7.0)
    rng = np.random.default_rng(2)
    for value in adapter.params.values():
        value[...] = rng.standard_normal(value.shape) * 0.1  # B as well, or dA would be 0
    loss, grads = adapter.loss_and_grads(*batch())
    assert grads.keys() == adapter.params.keys()
    assert len(grads) == 2 * CONFIG.n_layer * len(matrices)
    for name, value in adapter.params.items():
        direction = rng.standard_normal(value.shape)
        sides = []
        for sign in (1, -1):
            value += sign * 1e-5 * direction
            sides.append(float(adapter.loss_and_grads(*batch())[0]))
            value -= sign * 1e-5 * direction
        slope = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose((grads[name] * direction).sum(), slope, rtol=1e-6, err_msg=name)


def test_the_merged_model_is_base_plus_scaled_a_b_and_the_base_is_untouched():
    gpt, adapter = adapted(alpha=6.0)
    before = {name: value.copy() for name, value in gpt.params.items()}
    for name, value in adapter.merged().params.items():  # B is 0: nothing has changed yet
        np.testing.assert_array_equal(value, before[name])
    batches = iter([batch()] * 5)
    settings = train.Settings(steps=5, lr=1e-2, warmup=0)
    steps = list(train.train(adapter, batches, settings, optim.adam_state(adapter.params)))
    assert steps[-1].loss < steps[0].loss
    merged = adapter.merged()
    for name, value in gpt.params.items():
        np.testing.assert_array_equal(value, before[name])
        if not name.endswith("attn.c_attn.weight"):
            assert merged.params[name] is value
    a, b = (adapter.params[f"h.1.attn.c_attn.lora_{x}"] for x in "AB")
    changed = merged.params["h.1.attn.c_attn.weight"] - gpt.params["h.1.attn.c_attn.weight"]
    np.testing.assert_allclose(changed, 6.0 / 4 * a @ b, atol=1e-15)
    assert np.linalg.matrix_rank(changed) == 4


def test_float32_stays_float32():
    _, adapter = adapted(np.float32)
    _, grads = adapter.loss_and_grads(*batch())
    assert {g.dtype for g in grads.values()} == {np.dtype(np.float32)}
    assert adapter.merged().params["h.0.attn.c_attn.weight"].dtype == np.float32


def test_gradients_that_are_not_wanted_are_left_out():
    gpt, _ = adapted()
    loss, grads = gpt.loss_and_grads(*batch())
    wanted = ["h.2.ln_1.bias", "wpe.weight", "h.0.mlp.c_fc.weight", "wte.weight"]
    for names in (wanted, wanted[:1], wanted[3:]):
        again, some = gpt.loss_and_grads(*batch(), only=names)
        assert again == loss
        assert list(some) == [name for name in gpt.params if name in names]
        for name, gradient in some.items():
            scale = np.abs(grads[name]).max()
            np.testing.assert_allclose(gradient, grads[name], atol=1e-13 * scale)
    with pytest.raises(ValueError, match=r"no parameters h\.3"):
        gpt.loss_and_grads(*batch(), only=["h.3.ln_1.bias"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0},
        {"alpha": np.inf},
        {"alpha": np.nan},
        {"matrices": ("wte",)},
        {"matrices": ()},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        adapted(**wrong)


def test_numbers_of_another_kind_are_refused_or_made_plain():
    for wrong in ({"rank": 2.5}, {"rank": "4"}, {"rank": True}, {"rank": np.True_}):
        with pytest.raises(TypeError, match="rank must be an integer"):
            adapted(**wrong)
    for wrong in ({"alpha": "16"}, {"alpha": True}, {"alpha": None}):
        with pytest.raises(TypeError, match="alpha must be a number"):
            adapted(**wrong)
    for kind in (np.int64, np.uint8):
        _, adapter = adapted(rank=kind(3))
        assert type(adapter.rank) is int and adapter.rank == 3
    assert adapted(matrices="mlp.c_fc")[1].params.keys() == (
        adapted(matrices=["mlp.c_fc"])[1].params.keys()
    )
    _, adapter = adapted(np.float32, alpha=np.float64(16))
    merged = adapter.merged()
    assert {p.dtype for p in merged.params.values()} == {np.dtype(np.float32)}


def test_a_begins_as_random_numbers_over_the_root_of_their_count_and_b_as_zeros():
    gpt, _ = adapted()
    adapter = lora.LoRA(gpt, 1, alpha=0.5, rng=np.random.default_rng(5))
    numbers = np.random.default_rng(5).standard_normal((CONFIG.n_layer, 20, 1))
    for i in range(CONFIG.n_layer):
        name = f"h.{i}.attn.c_attn.lora_"
        np.testing.assert_allclose(adapter.params[name + "A"], numbers[i] / 20**0.5, rtol=1e-15)
        np.testing.assert_array_equal(adapter.params[name + "B"], np.zeros((1, 60)))
    assert repr(adapter) == "LoRA(rank=1, alpha=0.5, 240 parameters that learn)"


def test_what_is_adapted_unless_said_otherwise():
    assert defaults(lora.LoRA) == {"alpha": 16.0, "matrices": ("attn.c_attn",), "rng": None}


def test_it_learns_answers():
    class Letters:
        special = {"<|endoftext|>": 0}
        eot = 0

        def encode(self, text, allowed_special=(), begins=True):
            return [ord(c) - 96 for c in text]

    gpt, adapter = adapted(np.float32, matrices=lora.MATRICES)
    gpt.params["wte.weight"] *= 30  # logits of a trained size, as wte itself does not learn
    pairs = [("ab", "c"), ("ba", "d"), ("aa", "e"), ("bb", "fg")]
    batches = data.pair_batches(pairs, Letters(), 4, 12, np.random.default_rng(0))
    settings = train.Settings(steps=250, batch=4, lr=3e-2, warmup=10, weight_decay=0.0)
    steps = list(train.train(adapter, batches, settings, optim.adam_state(adapter.params)))
    assert steps[-1].loss < 0.1


def test_a_merged_model_stays_as_it_is_when_the_lora_learns_on():
    gpt, adapter = adapted()
    name = "h.1.attn.c_attn.weight"
    before = adapter.merged()
    np.testing.assert_array_equal(before.params[name], gpt.params[name])
    adapter.params["h.1.attn.c_attn.lora_B"] += 1
    after = adapter.merged()
    adapter.loss_and_grads(*batch())
    np.testing.assert_array_equal(before.params[name], gpt.params[name])
    assert np.abs(after.params[name] - before.params[name]).max() > 0.1


def test_what_has_no_such_matrices_or_gradients_is_refused():
    from numpygpt.family import bert, gpt3

    rng = np.random.default_rng(0)
    third = gpt3.GPT3(CONFIG, model.init(CONFIG, rng), 2)
    for other, name in ((bert.Bert(CONFIG, bert.init(CONFIG, rng)), "Bert"), (third, "GPT3")):
        with pytest.raises(TypeError, match=f"a LoRA is of a GPT-2, not of a {name}"):
            lora.LoRA(other, 2)
    with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
        lora.LoRA(model.GPT2(CONFIG, model.init(CONFIG, rng)), 2, rng=7)
