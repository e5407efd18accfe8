"""family/transformer.py: golden against torch.nn.Transformer, caches, decoding, training."""

import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "golden"))

import family_models as models  # noqa: E402

import numpygpt  # noqa: E402
from numpygpt import ops, optim  # noqa: E402
from numpygpt.beam import beam_search  # noqa: E402
from numpygpt.family import transformer  # noqa: E402
from numpygpt.model import Config  # noqa: E402

GOLDEN = np.load(Path(__file__).parent / "golden" / "transformer.npz")
START, END = models.START, models.END


def model(dtype=np.float64):
    params = {name: value.astype(dtype) for name, value in models.transformer_params().items()}
    return transformer.Transformer(models.TRANSFORMER, params)


def gap(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(("dtype", "limit"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_outputs_and_every_gradient_are_torchs(dtype, limit):
    source, real, target, targets, mask = models.transformer_batch()
    assert not real.all() and not mask.all()
    ours = model(dtype)
    logits, _ = ours.forward(source, target, real)
    loss, grads = ours.loss_and_grads(source, real, target, targets, mask, models.SMOOTHING)
    gaps = {"logits": gap(logits, GOLDEN["logits"]), "loss": gap(loss, GOLDEN["loss"])}
    gaps |= {name: gap(grad, GOLDEN["grad " + name]) for name, grad in grads.items()}
    assert list(grads) == list(ours.params) and len(gaps) == len(GOLDEN.files)
    assert {a.dtype for a in (logits, *grads.values())} == {np.dtype(dtype)}
    assert max(gaps.values()) < limit, max(gaps, key=gaps.get)


# ---- operations ---------------------------------------------------------------------------------


def central(f, x, dy):
    """The gradient of sum(f(x) dy), by central differences."""
    grad = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += 1e-6
        down[at] -= 1e-6
        grad[at] = ((f(up) - f(down)) * dy).sum() / 2e-6
    return grad


@pytest.mark.parametrize("masked", [False, True])
def test_attention_backward_is_its_central_differences(masked):
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal((2, 3, n, 4)) for n in (5, 6, 6))
    hidden = transformer.later(5, 6, float) if masked else None
    dz = rng.standard_normal(q.shape)
    found = transformer.attention_backward(dz, q, k, v, hidden)
    for i, (grad, x) in enumerate(zip(found, (q, k, v), strict=True)):

        def f(x, i=i):
            return transformer.attention(*[x if j == i else (q, k, v)[j] for j in range(3)], hidden)

        assert gap(grad, central(f, x, dz)) < 1e-8


def test_attention_with_gpt2s_mask_is_gpt2s():
    rng = np.random.default_rng(4)
    q = rng.standard_normal((2, 3, 4, 5))
    k, v = rng.standard_normal((2, 2, 3, 7, 5))
    z = transformer.attention(q, k, v, transformer.later(4, 7, float))
    pattern = ops.softmax(ops.attention_scores(q, k))
    assert gap(z, ops.attention_values(pattern, v)) < 1e-14


def test_relu_backward():
    x = np.random.default_rng(5).standard_normal((4, 7))
    dy = x[::-1] + 0.3
    assert gap(transformer.relu_backward(dy, x), central(transformer.relu, x, dy)) < 1e-8


@pytest.mark.parametrize("width", [6, 7])
def test_sinusoids_are_the_papers(width):
    table = transformer.sinusoids(np.arange(3, 9), width, np.float64)
    for row, position in enumerate(range(3, 9)):
        for column in range(width):
            angle = position / 10000 ** ((column - column % 2) / width)
            wave = math.cos if column % 2 else math.sin
            assert table[row, column] == pytest.approx(wave(angle), abs=1e-12)


def test_a_shift_turns_every_pair_of_columns_by_one_angle():
    table = transformer.sinusoids(np.arange(40), 8, np.float64)
    pairs = table.reshape(40, 4, 2)
    a, b = pairs[:-3], pairs[3:]
    cos = (a * b).sum(-1)
    assert np.ptp(cos, axis=0).max() < 1e-12  # whatever the position
    np.testing.assert_allclose(cos[0], np.cos(3 / 10000 ** (np.arange(4) / 4)), rtol=1e-12)


def test_smoothed_cross_entropy_is_its_definition():
    rng = np.random.default_rng(6)
    logits = rng.standard_normal((2, 3, 7))
    targets, mask = rng.integers(7, size=(2, 3)), np.array([[1, 1, 0], [0, 1, 1]])
    targets[0, 2] = -100
    e, total = 0.3, 0
    for row, column in np.argwhere(mask):
        log_p = ops.log_softmax(logits[row, column])
        wanted = np.full(7, e / 7)
        wanted[targets[row, column]] += 1 - e
        total -= wanted @ log_p
    loss = transformer.smoothed_cross_entropy(logits, targets, mask, e)
    assert loss == pytest.approx(total / 4, rel=1e-14)

    def f(x):
        return transformer.smoothed_cross_entropy(x, targets, mask, e)

    grad = transformer.smoothed_cross_entropy_backward(1.0, logits, targets, mask, e)
    assert gap(grad, central(f, logits, 1.0)) < 1e-8
    assert (grad[0, 2] == 0).all()
    assert transformer.smoothed_cross_entropy(logits, targets, mask, 0) == ops.cross_entropy(
        logits, targets, mask
    )


# ---- caches and decoding ------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [(6,), (1,) * 6, (2, 1, 3)])
def test_both_caches_change_nothing(pieces):
    ours = model()
    source, real, target, *_ = models.transformer_batch()
    reader = ours.read(source, real)
    cache, logits, start = reader.cache(3), [], 0
    for length in pieces:
        logits.append(reader.forward(target[:, start : start + length], cache)[0])
        start += length
    assert gap(np.concatenate(logits, axis=1), GOLDEN["logits"]) < 1e-12


def test_padding_of_the_source_changes_nothing():
    ours = model()
    source, real, target, *_ = models.transformer_batch()
    alone, _ = ours.forward(source[1:2, :4], target[1:2])
    assert gap(GOLDEN["logits"][1:2], alone) < 1e-12
    other = np.where(real, source, 3)
    assert gap(ours.forward(other, target, real)[0], GOLDEN["logits"]) < 1e-12


def greedy_without_caches(ours, source, most, end=END):
    """The definition: everything is read again for every token."""
    ids = [START]
    while len(ids) <= most:
        logits, _ = ours.forward([source], [ids])
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == end:
            return ids[1:-1]
    return ids[1:]


def talkative():
    """Random weights that do not write one token for ever: the last gain turned round, so that a
    token is not what follows itself."""
    params = transformer.init(models.TRANSFORMER, np.random.default_rng(13), np.float64)
    params = {n: p * 1.5 if p.ndim == 2 else p for n, p in params.items()}
    params["decoder.h.1.mlp.ln.weight"] *= -1
    return transformer.Transformer(models.TRANSFORMER, params)


def test_greedy_is_the_argmax_of_the_whole_forward():
    ours, end = talkative(), 10
    source, real, *_ = models.transformer_batch()
    written = transformer.greedy(ours, source, START, end, 8, real)
    rows = [row[keep].tolist() for row, keep in zip(source, real, strict=True)]
    assert written == [greedy_without_caches(ours, row, 8, end) for row in rows]
    assert sorted(map(len, written)) == [2, 8, 8] and len(set(written[0])) > 1


def test_generate_takes_a_reader_for_a_gpt():
    ours = talkative()
    reader = ours.read([[3, 1, 4]])
    steps = numpygpt.generate(reader, [[START]], 5, temperature=0)
    ids = [new for (new,) in steps]
    assert [i for new in ids for i in new] == greedy_without_caches(ours, [3, 1, 4], 5)


def test_beams_are_the_best_of_all_targets():
    """All targets of at most 2 tokens, scored one by one; beams as many as there are ids."""
    ours, source = talkative(), [3, 1, 4]
    logits, _ = ours.forward([source] * 19, [[START, i] for i in range(19)])
    log_p = ops.log_softmax(logits)  # (19, 2, V): of the first token, and of one behind token i
    scores = {(END,): log_p[0, 0, END]}
    for i, j in itertools.product(range(19), repeat=2):
        if i != END:
            scores[i, j] = (log_p[i, 0, i] + log_p[i, 1, j]) / 2**0.6
    best = max(scores, key=scores.get)
    ids, score = transformer.beam(ours, source, START, END, 2, num_beams=19)
    assert tuple(ids) == tuple(i for i in best if i != END)
    assert score == pytest.approx(scores[best], rel=1e-12)


def test_more_beams_never_score_less_here_and_one_is_greedy():
    ours, source = talkative(), [3, 1, 4, 1, 5]
    found = [transformer.beam(ours, source, START, END, 6, n, 0.0) for n in (1, 4, 19)]
    assert found[0][0] == transformer.greedy(ours, [source], START, END, 6)[0]
    assert found[0][1] <= found[2][1]
    several = beam_search(ours.read(source), [START], 6, 4, 0.0, END)
    assert len(several) == 4 and several[0][1] == found[1][1]


# ---- training -----------------------------------------------------------------------------------


def test_the_learning_rate_is_the_papers():
    rates = [transformer.learning_rate(step, 512) for step in range(1, 20_000)]
    assert np.argmax(rates) + 1 == 4000
    assert max(rates) == pytest.approx((512 * 4000) ** -0.5, rel=1e-12)
    assert rates[999] == pytest.approx(max(rates) / 4, rel=1e-12)  # a line up
    assert rates[15_999] == pytest.approx(max(rates) / 2, rel=1e-12)  # 1 / sqrt(step) down


def test_pair_batch_shifts_and_pads():
    source, real, target, targets, mask = transformer.pair_batch(
        [([1, 2], [3]), ([4], [5, 6])], 8, 9
    )
    assert source.tolist() == [[1, 2], [4, 9]] and real.tolist() == [[1, 1], [1, 0]]
    assert target.tolist() == [[8, 3, 9], [8, 5, 6]]
    assert targets.tolist() == [[3, 9, 9], [5, 6, 9]]
    assert mask.tolist() == [[1, 1, 0], [1, 1, 1]]


def test_it_learns_to_reverse():
    """In a second: one to three of four letters, turned round. Nothing is held back of the 84, as
    this is a test of the training and not of the model. The products are so small that BLAS does
    not share them among threads, which on a busy machine takes forty times as long."""
    rng = np.random.default_rng(0)
    config = Config(6, 5, 16, 2, 1)
    ours = transformer.Transformer(config, transformer.init(config, rng))
    texts = [t for n in (1, 2, 3) for t in itertools.product(range(4), repeat=n)]

    def batches():
        while True:
            chosen = [texts[i] for i in rng.integers(len(texts), size=32)]
            yield transformer.pair_batch([(t, t[::-1]) for t in chosen], 4, 5)

    losses, snapshots = [], []
    for loss in transformer.train(ours, batches(), 300, 60):
        losses.append(loss)
        if len(losses) > 240 and len(losses) % 5 == 0:
            snapshots.append({name: p.copy() for name, p in ours.params.items()})
    ours = transformer.Transformer(config, optim.average(*snapshots))
    source, real, *_ = transformer.pair_batch([(t, ()) for t in texts], 4, 5)
    written = transformer.greedy(ours, source, 4, 5, 4, real)
    right = np.mean([tuple(y) == t[::-1] for y, t in zip(written, texts, strict=True)])
    assert losses[0] > 1.5 and right > 0.95


# ---- what is refused ----------------------------------------------------------------------------


def test_what_is_refused():
    ours = model()
    with pytest.raises(ValueError, match="source is 10 tokens long, but n_ctx = 9"):
        ours.encode([[0] * 10])
    with pytest.raises(ValueError, match="target is 10 tokens long"):
        ours.forward([[0]], [[0] * 10])
    with pytest.raises(ValueError, match="source hold the id 19 in row 0, column 1"):
        ours.encode([[0, 19]])
    with pytest.raises(ValueError, match="real must have the shape of the source"):
        ours.encode([[0, 1]], real=[[1]])
    with pytest.raises(ValueError, match="real in every row"):
        ours.encode([[0, 1]], real=[[0, 0]])
    with pytest.raises(ValueError, match="leave out pads"):
        ours.read([[0, 1]]).forward([[0]], pads=[1])
    with pytest.raises(ValueError, match="wte.weight is missing"):
        params = {n: p for n, p in ours.params.items() if n != "wte.weight"}
        transformer.Transformer(ours.config, params)


def test_a_loss_is_of_batches_that_fit():
    source, real, target, targets, mask = models.transformer_batch()
    ours = model()
    loss, _ = ours.loss_and_grads(source, real, target, targets, mask)
    lists = (source.tolist(), real.tolist(), target.tolist(), targets.tolist(), mask.tolist())
    assert ours.loss_and_grads(*lists)[0] == loss
    with pytest.raises(ValueError, match="targets have shape"):
        ours.loss_and_grads(source, real, target, targets.T, mask)
    with pytest.raises(ValueError, match="targets hold the id"):
        ours.loss_and_grads(source, real, target, np.full_like(targets, 10**6))
    with pytest.raises(ValueError, match="mask is 0 everywhere"):
        ours.loss_and_grads(source, real, target, targets, np.zeros_like(mask))
    for smoothing in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="smoothing must lie between 0 and 1"):
            ours.loss_and_grads(source, real, target, targets, mask, smoothing)


def test_what_cannot_be_written_is_refused():
    ours, source = model(), models.transformer_batch()[0]
    whole = transformer.greedy(ours, source, START, END, 4)
    assert transformer.greedy(ours, source, np.uint8(START), np.uint8(END), np.uint8(4)) == whole
    with pytest.raises(TypeError, match="max_new_tokens must be an integer"):
        transformer.greedy(ours, source, START, END, 4.5)
    with pytest.raises(ValueError, match="the id 1000, which never comes"):
        transformer.greedy(ours, source, START, 1000, 4)
    for end in ("x", [END, START]):
        with pytest.raises(TypeError, match="end must be an integer"):
            transformer.greedy(ours, source, START, end, 4)
    with pytest.raises(ValueError, match=f"for one source, not for {len(source)}"):
        transformer.beam(ours, source, START, END, 4)
    for rng in (0, None):
        with pytest.raises(TypeError, match="rng must be a NumPy Generator"):
            transformer.init(models.TRANSFORMER, rng)
