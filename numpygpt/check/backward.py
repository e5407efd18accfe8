"""Loss and gradients beside the reference's: which backward is the first that is wrong.

Gradients flow from the logits to the embeddings, so they are looked at in that order: a layer's
gradients are right if everything behind it, towards the logits, is right and so is its own formula.
"""

from dataclasses import dataclass, replace

import numpy as np

from numpygpt.check.align import first_block, from_zero, plain
from numpygpt.check.mistakes import OTHERS
from numpygpt.check.mistakes.forward import to_bfloat16, to_float16
from numpygpt.check.relations import Relation
from numpygpt.check.trace import Row, kind
from numpygpt.model import GPT2

CLOSE = 1e-4  # gradients are sums over all tokens; ours in float32 are at most 1e-5 off
TARGETS = ("targets", "labels", "y")
# llm.c's arrays, stacked by layer, of weights (out, in)
LLM_C = {
    "ln1w": "ln_1.weight", "ln1b": "ln_1.bias", "qkvw": "attn.c_attn.weight",
    "qkvb": "attn.c_attn.bias", "attprojw": "attn.c_proj.weight", "attprojb": "attn.c_proj.bias",
    "ln2w": "ln_2.weight", "ln2b": "ln_2.bias", "fcw": "mlp.c_fc.weight", "fcb": "mlp.c_fc.bias",
    "fcprojw": "mlp.c_proj.weight", "fcprojb": "mlp.c_proj.bias",
}  # fmt: skip
ENDS = {"wte": "wte.weight", "wpe": "wpe.weight", "lnfw": "ln_f.weight", "lnfb": "ln_f.bias"}
# What a layer's gradients have come through since those of the layer before it in this direction.
THROUGH = {
    "ln_f": "cross_entropy_backward and unembed_backward",
    "mlp.c_proj": "layer_norm_backward of the norm behind it, and the sum of the residual stream",
    "mlp.c_fc": "linear_backward of mlp.c_proj (its dx) and gelu_backward",
    "ln_2": "linear_backward of mlp.c_fc (its dx)",
    "attn.c_proj": "layer_norm_backward of ln_2 (its dx), and the sum of the residual stream",
    "attn.c_attn": "linear_backward of attn.c_proj (its dx), and the backwards of attention_values,"
    " softmax and attention_scores",
    "ln_1": "linear_backward of attn.c_attn (its dx)",
    "wpe": "layer_norm_backward of h.0.ln_1 (its dx), and embedding_backward",
    "wte": "embedding_backward, and the gradient of the unembedding, which is the same table",
}


def loss_and_gradients(model: GPT2, tokens, pads=None, targets=None, mask=None) -> dict:
    """The loss of a batch, what it was asked, and "grad." + name of each parameter -> gradient.

    targets (B, T): by default the next tokens; then the last position and padding do not count.
    mask (B, T): 1 where a target counts. The loss is the mean over these, in nats.
    """
    if targets is None:
        targets = np.roll(tokens, -1, 1)
        mask = np.ones(tokens.shape) if mask is None else np.array(mask, float)
        mask[:, -1] = 0
        targets[:, -1] = 0
        if pads is not None:
            mask *= np.arange(tokens.shape[1]) >= np.asarray(pads)[:, None]
        if not mask.any():
            raise ValueError("no token is followed by one that counts: give at least two tokens")
    mask = np.ones(tokens.shape) if mask is None else mask
    logits, acts = model.forward(tokens, pads=pads, keep="backward")
    loss = model.ops.cross_entropy(logits, targets, mask)
    dlogits = model.ops.cross_entropy_backward(model.dtype.type(1), logits, targets, mask)
    grads = model.backward(dlogits, acts)
    asked = {"targets": targets, "loss_mask": np.asarray(mask, model.dtype)}
    loss = np.asarray(loss, model.dtype).reshape(1)
    return asked | {"loss": loss} | {f"grad.{name}": g for name, g in grads.items()}


def backward_order(n_layer: int) -> list[str]:
    """The modules with parameters, in the order in which their gradients are computed."""
    block = ("mlp.c_proj", "mlp.c_fc", "ln_2", "attn.c_proj", "attn.c_attn", "ln_1")
    blocks = [f"h.{i}.{name}" for i in reversed(range(n_layer)) for name in block]
    return ["lm_head", "ln_f", *blocks, "wpe", "wte"]


def their_gradients(theirs: dict, model: GPT2) -> tuple[dict, dict]:
    """(gradients, parameters): parameter's name -> (their name, array in our layout).

    A gradient has "grad" in its name, as grad.ln_f.weight or ln_f.weight.grad, or begins with d_;
    a parameter is called param.ln_f.weight, or as ours. Weights of torch.nn.Linear, (out, in), are
    turned; square ones too, where the others lie so. What fits in neither way is kept as it is.
    """
    gradients, parameters = {}, {}
    first = first_block(theirs, model.config.n_layer)
    for name, array in theirs.items():
        key = from_zero(plain(name), first)
        bare = "grad" in key.lower() or key.startswith("d_")
        own = key in model.params
        whole, key = key, key.removeprefix("param.").removeprefix("params.")
        if not (bare or own or key != whole):
            continue  # an activation, perhaps: "wte", "lnf"
        for part in ("gradients.", "grads.", "grad.", "d_"):
            key = key.removeprefix(part)
        key = plain(key.removesuffix(".grad").removesuffix("_grad"))
        for ours, part in _parts(key, np.asarray(array), model):
            (gradients if bare else parameters)[ours] = name, part
    return _turned(gradients, model), _turned(parameters, model)


def _turned(arrays, model):
    """The weights (in, out), where all those that are not square come as (out, in)."""
    linear = {n: model.params[n].shape for n in arrays if n[:2] == "h." and n.endswith(".weight")}
    shapes = [(arrays[n][1].shape, shape) for n, shape in linear.items() if len(set(shape)) == 2]
    others_turned = shapes and all(theirs == ours[::-1] for theirs, ours in shapes)
    turned = {}
    for name, (whose, array) in arrays.items():
        shape = model.params[name].shape
        square = len(shape) == 2 and shape[0] == shape[1] and name in linear
        turn = others_turned if square else array.shape != shape and array.T.shape == shape
        turned[name] = whose, array.T if turn else array
    return turned


def _parts(key, array, model):
    if key in model.params:
        yield key, array
    elif key in ENDS:
        yield ENDS[key], array
    elif key in LLM_C and len(array) == model.config.n_layer:
        yield from ((f"h.{i}.{LLM_C[key]}", part) for i, part in enumerate(array))


@dataclass(frozen=True)
class Learned:
    """What was found on loss, gradients and parameters. rows: one for each, parameters first, then
    the loss, then gradients in the order in which they are computed. names: theirs that these
    are. relation, cause, sentence: on the first that is wrong, or None and "". half: the precision
    that the parameters were rounded to, if that is all that is wrong with them, or None."""

    rows: tuple = ()
    names: frozenset = frozenset()
    relation: Relation | None = None
    cause: str | None = None
    sentence: str = ""
    half: str | None = None


def compare_gradients(theirs: dict, model: GPT2, tokens, pads=None) -> Learned:
    """The loss, the gradients and the parameters among theirs beside the reference's."""
    gradients, parameters = their_gradients(theirs, model)
    asked = {n for n in theirs if plain(n) in (*TARGETS, "loss", "loss_mask")}
    names = asked | {n for n, _ in (*gradients.values(), *parameters.values())}
    rows = [
        _row(f"param.{n}", parameters[n][1], model.params[n], parameters[n][0])
        for n in model.params
        if n in parameters
    ]
    half = _half_of(parameters, model)
    loss = next((theirs[n] for n in theirs if plain(n) == "loss"), None)
    if loss is not None and loss.size != 1 and loss.shape not in _shapes_of_losses(tokens):
        loss = None  # another one: a curve of losses, for instance
        names -= {n for n in theirs if plain(n) == "loss"}
    if not gradients and loss is None:
        return Learned(tuple(rows), frozenset(names), half=half)
    ours = loss_and_gradients(model, tokens, pads, *_targets(theirs, tokens))
    if loss is not None:
        loss = _mean(loss, ours["loss_mask"])
        rows.append(_row("loss", loss, ours["loss"], "loss"))
    for module in backward_order(model.config.n_layer):
        for name in (f"{module}.bias", f"{module}.weight"):
            if name in gradients:
                rows.append(_row(f"grad.{name}", gradients[name][1], ours[f"grad.{name}"],
                                 gradients[name][0]))  # fmt: skip
    found = Learned(tuple(rows), frozenset(names), half=half)
    wrong = [row.name for row in rows if not row.right and not row.name.startswith("param.")]
    if not wrong:
        return found
    if wrong[0] == "loss":
        relation = _relation_of_losses(float(loss[0]), ours)
        cause = _wrong_loss(float(loss[0]), model, tokens, pads, ours)
        return replace(found, relation=relation, cause=cause, sentence="the loss is wrong already")
    name = wrong[0].removeprefix("grad.")
    gradient, shape = gradients[name][1], model.params[name].shape
    if gradient.shape != shape:
        return replace(found, sentence=f"their {wrong[0]} has shape {gradient.shape}, ours {shape}")
    relation = _relation(name, gradient, ours, model, tokens, pads)
    return replace(found, relation=relation, sentence=_sentence(name, rows))


def _shapes_of_losses(tokens):
    """Of a loss for each token, or for each but the last of a row."""
    rows, length = tokens.shape
    return (rows, length), (rows, length - 1)


def _mean(loss, mask):
    """One number (1,): theirs, or the mean of theirs over the tokens that count."""
    if loss.size == 1:
        return np.ravel(loss)
    counted = mask[:, : loss.shape[1]] != 0
    return np.asarray(loss, np.float64)[counted].mean(keepdims=True)


def _half_of(parameters, model):
    """The half precision that turns the model's parameters into theirs, or None."""
    pairs = [(array, np.asarray(model.params[n])) for n, (_, array) in parameters.items()]
    for half, rounding in (("float16", to_float16), ("bfloat16", to_bfloat16)):
        if pairs and all(np.array_equal(theirs, rounding(ours)) for theirs, ours in pairs):
            return half
    return None


def with_gradients(found, learned: Learned):
    """A diagnosis of the forward pass with what was found on the backward pass behind it."""
    if not learned.rows:
        return found
    wrong = [row for row in learned.rows if not row.right]
    rows = [*found.rows, *learned.rows]
    weights = [row for row in wrong if row.name.startswith("param.")]
    other_weights = ""
    if weights:
        what = f"are this model's rounded to {learned.half}" if learned.half else (
            "are not those of this model: both programs need the same weights"
        )  # fmt: skip
        other_weights = f"their {weights[0].name} {what}"
    if not wrong or not found.agrees:
        notes = [note for note in (other_weights, found.note) if note]
        return replace(found, rows=rows, note="\n".join(notes))
    if learned.half and len(wrong) == len(weights):
        verdict = {"verdict": "precision", "precision": learned.half, "first": weights[0].name}
        return replace(found, rows=rows, note=other_weights, **verdict)
    first = (weights or wrong)[0]
    at = rows.index(first)
    note = other_weights or learned.sentence
    cause = learned.cause
    return replace(
        found, rows=rows, first=first.name, last=rows[at - 1].name if at else None,
        relations=(learned.relation,) if learned.relation else (), verdict="differs", note=note,
        unexplained=tuple(row.name for row in wrong), harmless=cause or "", precision=None,
    )  # fmt: skip


def _relation_of_losses(theirs, ours):
    if not np.isfinite(theirs):
        what = "NaN" if np.isnan(theirs) else "infinite"
        return Relation("loss", "nan", f"their loss is {what}", 0.0)
    count, ratio = ours["loss_mask"].sum(), theirs / float(ours["loss"][0])
    text = f"their loss is {ratio:.6g} times ours"
    if abs(ratio / count - 1) < 1e-4:
        text += f": summed over {count:g} targets, not their mean"
    elif abs(ratio * np.log(2) - 1) < 1e-4:
        text += ": in bits, not in nats"
    return Relation("loss", "factor", text, 0.0)


def _row(name, theirs, ours, whose):
    """A row whose gap is that of the whole tensor: gradients of rare rows are sums of few terms."""
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    if theirs.shape != ours.shape:
        return Row(name, "shape", np.inf, np.inf, theirs.shape, whose=whose)
    with np.errstate(invalid="ignore"):  # infinite less infinite
        apart = np.abs(theirs - ours)
    apart = np.where(np.isnan(apart), np.inf, apart)
    at = np.unravel_index(apart.argmax(), apart.shape)
    relative = float(apart[at] / (np.abs(ours).max() or 1.0))
    line = CLOSE if name.startswith(("grad.", "loss")) else 0.0
    status = "exact" if relative == 0 else "close" if relative <= line else "differs"
    place = tuple(int(i) for i in at)
    return Row(name, status, float(apart[at]), relative, place, theirs[at], ours[at], whose)


def _targets(theirs, tokens):
    """Their targets and mask, or None: the next tokens."""
    found = next((theirs[n] for n in theirs if plain(n) in TARGETS), None)
    if found is None or np.size(found) != tokens.size:
        return None, None
    targets = _as_rows(found, tokens).astype(np.int64)
    if np.array_equal(targets, tokens):
        return None, None  # transformers is given the tokens themselves, and shifts them
    mask = next((theirs[n] for n in theirs if plain(n) == "loss_mask"), targets >= 0)
    return np.where(targets >= 0, targets, 0), _as_rows(mask, tokens)


def _as_rows(array, tokens):
    """(B, T) of what is (B, T), (T, B) or flat."""
    if array.shape == tokens.shape[::-1] != tokens.shape:
        return array.T
    return np.reshape(array, tokens.shape)


def _wrong_loss(theirs, model, tokens, pads, ours):
    """The mistake in the catalogue that gives their loss."""
    logits = model.forward(tokens, pads=pads)[0]
    targets, mask = ours["targets"], ours["loss_mask"]
    for mistake in OTHERS:
        if mistake.place == "ops.cross_entropy":
            value = float(mistake.make(logits, targets, mask))
            if abs(value - theirs) < 1e-5 * abs(theirs):
                return mistake.name
    return None


def _relation(name, theirs, ours, model, tokens, pads):
    right = np.asarray(ours[f"grad.{name}"], np.float64)
    theirs = np.asarray(theirs, np.float64)
    lost = int((~np.isfinite(theirs)).sum())
    if lost:
        text = f"their grad.{name} are NaN or infinite at {lost} of {theirs.size} numbers"
        return Relation(f"grad.{name}", "nan", text, 0.0)
    trials = [("zero", "are all 0: nothing comes here", np.zeros_like(right))]
    s = float((theirs * right).sum() / np.square(right).sum())
    count = ours["loss_mask"].sum()
    why = f", and {count:g} targets count: the loss was summed" if abs(s / count - 1) < 1e-3 else ""
    trials.append(("factor", f"are {s:.6g} times ours{why}", s * right))
    if right.ndim == 2 and right.shape[0] == right.shape[1]:
        trials.append(("order", "are ours transposed", right.T))
    if name == "wte.weight" and "lm_head.weight" not in model.params:
        logits, acts = model.forward(tokens, pads=pads, keep="backward")
        mask = ours["loss_mask"]
        d = model.ops.cross_entropy_backward(model.dtype.type(1), logits, ours["targets"], mask)
        unembedding = model.ops.unembed_backward(d, acts["ln_f"], model.params["wte.weight"])[1]
        trials += [
            ("terms", "lack the gradient of the embedding: only the unembedding's is there",
             unembedding),
            ("terms", "lack the gradient of the unembedding: only the embedding's is there",
             right - unembedding),
        ]  # fmt: skip
    for relation_kind, text, predicted in trials:
        distance = float(np.abs(theirs - predicted).max() / (np.abs(theirs).max() or 1.0))
        if distance <= CLOSE:
            return Relation(f"grad.{name}", relation_kind, f"their grad.{name} {text}", distance)
    return None


def _sentence(name, rows):
    """Which backward it is, from what is right: the bias shows what arrives at a layer."""
    module, part = name.rsplit(".", 1)
    statuses = {row.name: row.right for row in rows}
    other = {"weight": "bias", "bias": "weight"}[part]
    if statuses.get(f"grad.{module}.{other}"):
        return (
            f"the first wrong backward is that of {name} itself: the gradient of its {other} is "
            "right, so what arrives there is"
        )
    names = [row.name for row in rows]
    before = rows[: names.index(f"grad.{name}")]
    behind = [row.name for row in before if row.right and row.name.startswith("grad.")]
    right = f", after {behind[-1]}, which is right" if behind else ""
    through = THROUGH.get(kind(module), THROUGH.get(module, "unembed_backward"))
    return f"the first wrong backward is on the way to {module}{right}: {through}"
