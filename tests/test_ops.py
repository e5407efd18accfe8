"""Every operation: dtype, inputs left alone, gradients, layouts, tiles; then each one by hand."""

import inspect
import math

import numpy as np
import pytest
from golden.models import gap

from numpygpt import fast, ops

DTYPES = ("float32", "float64")
HIDDEN = -np.inf
# Measured: 8e-11 for central differences, 4e-7 for float32 against float64.
DIFFERENCES, NOISE = 1e-9, 1e-6


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def logits_and_targets(*extra):
    targets = np.array([[3, 0, 10], [10, 5, 7]])
    return normal(21, 2, 3, 11) * 3, targets, *extra


IGNORED = logits_and_targets(np.array([[1, 0, 1], [0, 1, 1]], bool))
IGNORED[1][~IGNORED[2]] = -100
# Name -> list of arguments. Differentiated are those named in WITH_RESPECT_TO.
CASES = {
    "embedding": [(np.array([[3, 0, 3, 6, 3], [6, 1, 0, 3, 2]]), normal(1, 7, 3))],
    "residual": [(normal(2, 2, 5, 3), normal(3, 2, 5, 3))],
    "linear": [(normal(4, 2, 5, 3), normal(5, 3, 7), normal(6, 7))],
    "layer_norm": [
        (normal(7, 2, 3, 7) + 0.4, normal(8, 7), normal(9, 7), 1e-5),
        (normal(10, 4, 7) * 0.01, normal(11, 7), normal(12, 7), 1e-3),  # eps counts
    ],
    "gelu": [(normal(13, 2, 3, 5) * 2,)],
    "softmax": [(normal(14, 2, 3, 4, 5),), (normal(15, 3, 7) * 9,)],
    "split_heads": [(normal(16, 2, 5, 6), 3)],
    "merge_heads": [(normal(17, 2, 3, 5, 4),)],
    "attention_scores": [
        (normal(18, 3, 2, 5, 4), normal(19, 3, 2, 5, 4)),
        (normal(18, 3, 2, 2, 4), normal(19, 3, 2, 5, 4)),  # with a cache: S > T
        (normal(18, 3, 2, 5, 4), normal(19, 3, 2, 5, 4), np.array([0, 3, 5])),
        (normal(18, 3, 2, 2, 4), normal(19, 3, 2, 5, 4), np.array([4, 0, 2])),
    ],
    "attention_values": [(normal(20, 3, 2, 4, 5), normal(21, 3, 2, 5, 6))],
    "unembed": [(normal(22, 2, 5, 3), normal(23, 7, 3))],
    "cross_entropy": [
        logits_and_targets(),
        logits_and_targets(None),
        IGNORED,
        logits_and_targets(np.array([[0.5, 0, 1], [2, 0, 0.25]])),
        logits_and_targets(np.array([[1, 0, 1], [1, 1, 0]])),
    ],
}
WITH_RESPECT_TO = {
    "embedding": (1,),
    "residual": (0, 1),
    "linear": (0, 1, 2),
    "layer_norm": (0, 1, 2),
    "gelu": (0,),
    "softmax": (0,),
    "split_heads": (0,),
    "merge_heads": (0,),
    "attention_scores": (0, 1),
    "attention_values": (0, 1),
    "unembed": (0, 1),
    "cross_entropy": (0,),
}
EACH = [
    pytest.param(name, args, id=f"{name}-{i}")
    for name, cases in CASES.items()
    for i, args in enumerate(cases)
]


def cast(name, args, dtype):
    """The differentiable arguments as dtype; all arrays copied and made read-only."""
    args = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
    for i in WITH_RESPECT_TO[name]:
        args[i] = args[i].astype(dtype)
    for a in args:
        if isinstance(a, np.ndarray):
            a.flags.writeable = False
    return args


def incoming(y):
    """A gradient for y: junk, but 0 where y is -inf, as the softmax above would make it."""
    dy = normal(99, *np.shape(y)).astype(np.asarray(y).dtype)[()]
    return np.where(np.isfinite(y), dy, np.zeros((), dy.dtype))[()]


def run(name, args):
    """What the operation returns, and its gradients as a tuple."""
    y = getattr(ops, name)(*args)
    grads = getattr(ops, f"{name}_backward")(incoming(y), *args)
    return y, grads if isinstance(grads, tuple) else (grads,)


def slope(f, x, h=1e-4):
    """df/dx of a number by central differences of fourth order."""
    dx = np.empty_like(x)
    for at in np.ndindex(x.shape):
        values = []
        for step in (-2, -1, 1, 2):
            moved = x.copy()
            moved[at] += step * h
            values.append(f(moved))
        dx[at] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return dx


def test_every_operation_has_a_backward_and_a_case():
    functions = {n for n, f in vars(ops).items() if inspect.isfunction(f) and not n.startswith("_")}
    backwards = {n for n in functions if n.endswith("_backward")}
    assert backwards == {f"{name}_backward" for name in CASES}
    # positions are integers: no gradient; that of split_qkv is written through views
    assert functions - backwards == {*CASES, "positions", "split_qkv", "log_softmax"}
    assert CASES.keys() == WITH_RESPECT_TO.keys()


@pytest.mark.parametrize("name, args", EACH)
def test_a_backward_takes_dy_and_the_arguments_of_its_forward(name, args):
    forward = list(inspect.signature(getattr(ops, name)).parameters)
    backward = list(inspect.signature(getattr(ops, f"{name}_backward")).parameters)
    assert backward[: 1 + len(forward)] == ["dy", *forward]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, args", EACH)
def test_dtype_is_kept_and_inputs_are_not_modified(name, args, dtype):
    given = cast(name, args, dtype)  # read-only: writing into one raises
    y, grads = run(name, given)
    assert y.dtype == dtype
    assert len(grads) == len(WITH_RESPECT_TO[name])
    for i, grad in zip(WITH_RESPECT_TO[name], grads, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == given[i].shape
    for before, after in zip(cast(name, args, dtype), given, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name, args", EACH)
def test_gradients_equal_central_differences(name, args):
    args = cast(name, args, "float64")
    y, grads = run(name, args)
    dy = incoming(y)
    for i, grad in zip(WITH_RESPECT_TO[name], grads, strict=True):

        def loss(x, i=i):
            y = getattr(ops, name)(*args[:i], x, *args[i + 1 :])
            return (np.where(np.isfinite(y), y, 0) * dy).sum()

        assert gap(grad, slope(loss, args[i])) < DIFFERENCES


@pytest.mark.parametrize("name, args", EACH)
def test_float32_differs_from_float64_by_rounding_alone(name, args):
    single = run(name, cast(name, args, "float32"))
    double = run(name, [a.astype("f8") if is_float(a) else a for a in cast(name, args, "float32")])
    assert gap(single[0], double[0]) < NOISE
    for ours, reference in zip(single[1], double[1], strict=True):
        assert gap(ours, reference) < NOISE


def is_float(a):
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


@pytest.mark.parametrize("tile", (1, 8, 20))
@pytest.mark.parametrize("name, args", EACH)
def test_the_size_of_a_tile_changes_nothing(name, args, tile, monkeypatch):
    args = cast(name, args, "float64")
    y, grads = run(name, args)
    monkeypatch.setattr(fast, "TILE", tile)
    tiled_y, tiled_grads = run(name, args)
    assert gap(tiled_y, y) < 1e-14
    for ours, reference in zip(tiled_grads, grads, strict=True):
        assert gap(ours, reference) < 1e-14


@pytest.mark.parametrize("axes", ((0, 1), (0, -1), (-2, -1)))
@pytest.mark.parametrize("name, args", EACH)
def test_how_an_array_lies_in_memory_changes_nothing(name, args, axes):
    args = cast(name, args, "float64")
    y, grads = run(name, args)
    views = [laid_out(a, axes) if isinstance(a, np.ndarray) else a for a in args]
    other_y = getattr(ops, name)(*views)
    others = getattr(ops, f"{name}_backward")(laid_out(incoming(y), axes), *views)
    assert gap(other_y, y) < 1e-14
    for ours, reference in zip(
        others if isinstance(others, tuple) else (others,), grads, strict=True
    ):
        assert gap(ours, reference) < 1e-14


def laid_out(a, axes):
    """The same array, but with two of its axes exchanged in memory."""
    if np.ndim(a) < 2:
        return a
    return np.ascontiguousarray(a.swapaxes(*axes)).swapaxes(*axes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", (1, 63, 64, 150, 1024, 2300))
def test_few_rows_are_multiplied_as_many_are(width, dtype):
    """A single new token and a whole batch take different paths through a matrix product."""
    x = normal(61, 40, 7).astype(dtype)
    w, b = normal(62, 7, width).astype(dtype), normal(63, width).astype(dtype)
    table = normal(64, width, 7).astype(dtype)
    line = {"float32": NOISE, "float64": 1e-14}[dtype]
    exact = x.astype("f8") @ w.astype("f8") + b, x.astype("f8") @ table.T.astype("f8")
    for rows in (1, 2, 3, 4, 8, 9, 40):
        for y, expected in zip(
            (ops.linear(x[:rows], w, b), ops.unembed(x[:rows], table)), exact, strict=True
        ):
            assert y.dtype == dtype
            assert gap(y, expected[:rows]) < line


# ---- by hand ------------------------------------------------------------------------------------


def test_embedding_picks_rows_and_its_gradient_adds_those_of_a_repeated_id():
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ids = np.array([[2, 0, 2]])
    np.testing.assert_array_equal(ops.embedding(ids, table), [[[5, 6], [1, 2], [5, 6]]])
    dy = np.array([[[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]]])
    expected = [[2, 20], [0, 0], [5, 50]]  # row 1 was not used
    np.testing.assert_array_equal(ops.embedding_backward(dy, ids, table), expected)


def test_positions_count_on_behind_the_cache_and_start_at_each_rows_first_token():
    np.testing.assert_array_equal(ops.positions(3, 4), [3, 4, 5, 6])
    padded = ops.positions(1, 4, np.array([0, 3]))
    np.testing.assert_array_equal(padded, [[1, 2, 3, 4], [0, 0, 0, 1]])


def test_linear_weights_stand_in_out():
    x, w, b = np.array([[1.0, 2.0]]), np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]]), np.arange(3.0)
    np.testing.assert_array_equal(ops.linear(x, w, b), [[1, 3, 13]])


def test_layer_norm_divides_by_the_biased_variance_with_eps_inside_the_root():
    x = np.array([1.0, 2.0, 6.0])  # mean 3, deviations -2 -1 3, variance 14/3 (not 14/2)
    y = ops.layer_norm(x, np.array([1.0, 10.0, 1.0]), np.array([0.0, 0.0, 5.0]), 1 / 3)
    np.testing.assert_allclose(y, np.array([-2, -10, 3]) / 5**0.5 + [0, 0, 5], rtol=1e-15)


def test_gelu_is_the_tanh_approximation():
    y = ops.gelu(np.array([-1.0, 0.0, 1.0, 3.0]))
    inner = [math.sqrt(2 / math.pi) * (x + 0.044715 * x**3) for x in (-1, 0, 1, 3)]
    expected = [x / 2 * (1 + math.tanh(t)) for x, t in zip((-1, 0, 1, 3), inner, strict=True)]
    np.testing.assert_allclose(y, expected, rtol=1e-14)
    assert y[2] == pytest.approx(0.841192, abs=5e-7)  # the erf form gives 0.841345


def test_softmax_of_odds():
    y = ops.softmax(np.log(np.array([[1.0, 3.0, 4.0]])))
    np.testing.assert_allclose(y, [[1 / 8, 3 / 8, 4 / 8]], rtol=1e-15)


def test_softmax_backward_with_and_without_the_saved_output():
    x, dy = normal(31, 3, 5), normal(32, 3, 5)
    saved = ops.softmax_backward(dy, x, ops.softmax(x))
    np.testing.assert_array_equal(ops.softmax_backward(dy, x), saved)


def test_all_of_q_comes_before_all_of_k_and_all_of_v():
    y = np.arange(12.0).reshape(1, 2, 6)
    q, k, v = ops.split_qkv(y)
    np.testing.assert_array_equal(q, [[[0, 1], [6, 7]]])
    np.testing.assert_array_equal(k, [[[2, 3], [8, 9]]])
    np.testing.assert_array_equal(v, [[[4, 5], [10, 11]]])
    v += 100  # views: `backward` collects the three gradients in one array
    assert y[0, 1, 5] == 111


def test_head_h_takes_the_columns_from_h_times_d():
    x = np.arange(12.0).reshape(1, 2, 6)
    heads = ops.split_heads(x, 3)
    np.testing.assert_array_equal(heads[0, 1], [[2, 3], [8, 9]])
    np.testing.assert_array_equal(ops.merge_heads(heads), x)


def visible(pads=None, t=4, s=4, d=4):
    rows = 1 if pads is None else len(pads)
    q, k = np.ones((rows, 1, t, d)), np.ones((rows, 1, s, d))
    scores = ops.attention_scores(q, k, pads)
    assert np.all((scores == HIDDEN) | (scores == d / d**0.5))
    return (scores[:, 0] != HIDDEN).astype(int).tolist()


def test_the_mask_counts_from_the_lower_right_corner():
    assert visible() == [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]
    assert visible(t=2, s=5) == visible(t=2, s=5, d=1) == [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]]
    assert visible(t=1, s=3) == [[[1, 1, 1]]]


def test_no_token_sees_padding_and_padding_sees_itself():
    first, second = visible(np.array([0, 2]))
    assert first == visible()[0]
    assert second == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible(np.array([3, 0]), t=1, s=4) == [[[0, 0, 0, 1]], [[1, 1, 1, 1]]]
    assert visible(np.array([3]), t=3, s=5) == [[[0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 1]]]


def test_cross_entropy_is_the_mean_over_the_mask():
    logits = np.log(np.array([[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]))
    targets = np.array([[1, 0, 1]])
    nll = -np.log([3 / 4, 1 / 2, 1 / 10])
    assert ops.cross_entropy(logits, targets) == pytest.approx(nll.mean(), rel=1e-15)
    for mask, expected in (
        ([[1, 0, 1]], (nll[0] + nll[2]) / 2),
        ([[False, True, False]], nll[1]),
        ([[0.5, 2.0, 0.0]], (0.5 * nll[0] + 2 * nll[1]) / 2.5),
    ):
        assert ops.cross_entropy(logits, targets, mask) == pytest.approx(expected, rel=1e-15)


LOSSES = ops.cross_entropy, lambda *a: ops.cross_entropy_backward(1.0, *a)


@pytest.mark.parametrize("op", LOSSES)
@pytest.mark.parametrize("targets", ([[-1, 3]], [[0, 5]]))
def test_targets_outside_the_vocabulary_are_refused(op, targets):
    low, high = min(targets[0]), max(targets[0])
    with pytest.raises(
        ValueError, match=f"between {low} and {high}, but the logits are for ids 0 to"
    ):
        op(normal(41, 1, 2, 5), np.array(targets))
    op(normal(41, 1, 2, 5), np.array([[0, 4]]))


@pytest.mark.parametrize("op", LOSSES)
def test_in_a_vocabulary_of_one_token_nothing_is_left_to_predict(op):
    assert not op(normal(41, 1, 2, 1), np.array([[0, -100]]), np.array([[1, 0]])).any()


@pytest.mark.parametrize("op", LOSSES)
def test_a_mask_of_zeros_is_refused(op):
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        op(normal(41, 1, 2, 5), np.zeros((1, 2), int), np.zeros((1, 2)))


# ---- far from zero: warnings are errors ---------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax_of_huge_and_of_hidden_values(dtype):
    x = np.array([[1e30, 0, -1e30], [-1e30, -1e30, HIDDEN], [700, 800, HIDDEN]], dtype)
    y = ops.softmax(x)
    np.testing.assert_array_equal(y[0], [1, 0, 0])
    np.testing.assert_array_equal(y[1], [0.5, 0.5, 0])
    assert y[2, 2] == 0
    assert np.isfinite(y).all()
    dx = ops.softmax_backward(np.ones_like(x), x)
    np.testing.assert_allclose(dx, 0, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_softmax_is_the_logarithm_and_stays_finite(dtype):
    x = normal(53, 2, 3, 7).astype(dtype)
    tolerance = {"float32": 1e-6, "float64": 1e-15}[dtype]
    np.testing.assert_allclose(np.exp(ops.log_softmax(x)), ops.softmax(x), rtol=9 * tolerance)
    y = ops.log_softmax(np.array([[1e4, 0, -1e4]], dtype))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, [[0, -1e4, -2e4]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_a_constant_row_is_the_bias(dtype):
    x = np.array([[3] * 8, [0] * 8, [-1e4] * 8], dtype)
    g, b = normal(51, 8).astype(dtype), normal(52, 8).astype(dtype)
    np.testing.assert_array_equal(ops.layer_norm(x, g, b, 1e-5), np.tile(b, (3, 1)))
    for grad in ops.layer_norm_backward(np.ones_like(x), x, g, b, 1e-5):
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_far_from_zero_is_the_identity_or_nothing(dtype):
    x = np.array([1e12, 1e4, 30.0, -30.0, -1e4, -1e12], dtype)
    np.testing.assert_array_equal(ops.gelu(x), np.maximum(x, 0))
    np.testing.assert_array_equal(ops.gelu_backward(np.ones_like(x), x), x > 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_of_logits_of_ten_thousand(dtype):
    logits = np.array([[[1e4, 0, -1e4], [1e4, 0, -1e4]]], dtype)
    for targets, expected in (([[0, 0]], 0), ([[2, 1]], 15_000), ([[2, 2]], 20_000)):
        assert ops.cross_entropy(logits, np.array(targets)) == expected
        dlogits = ops.cross_entropy_backward(1.0, logits, np.array(targets))
        assert np.isfinite(dlogits).all()
        assert dlogits.sum(-1) == pytest.approx(0, abs=1e-7)


def test_a_loss_takes_targets_and_a_mask_of_the_shape_of_its_logits():
    """A mask of one number would otherwise count for all rows, and the mean become a sum."""
    logits, targets = logits_and_targets(None)[:2]
    targets = np.maximum(targets, 0)
    for wrong in ((targets.T,), (targets[:, :1],), ([1],), (targets, [1]), (targets, targets.T)):
        for op in (ops.cross_entropy, lambda *a: ops.cross_entropy_backward(1.0, *a)):
            with pytest.raises(ValueError, match="do not fit (targets|mask)"):
                op(logits, *wrong)
    with pytest.raises(TypeError, match="targets must be integers, not float64"):
        ops.cross_entropy(logits, targets * 1.0)
    for mask in (np.full((2, 3), np.nan), [[1, -1, 0], [0, 0, 0]], [[1, -1, 3], [0, 0, 0]]):
        with pytest.raises(ValueError, match="negative numbers or NaN"):
            ops.cross_entropy(logits, targets, mask)
    as_lists = ops.cross_entropy(logits, targets.tolist(), [[1, 0, 1], [0, 1, 1]])
    assert as_lists == ops.cross_entropy(logits, targets, IGNORED[2])
