"""Another program's tensors beside the reference: from a dict of arrays to a diagnosis."""

import re
from dataclasses import replace

import numpy as np

from numpygpt import ops
from numpygpt.check import align as names_and_layouts
from numpygpt.check import backward, processing
from numpygpt.check.diagnose import Case, Diagnosis, diagnose, difference
from numpygpt.check.trace import HIDDEN, replay
from numpygpt.formats import widened
from numpygpt.model import GPT2, as_dtype, with_ops

TOKEN_NAMES = ("tokens", "input_ids", "inputs", "idx", "inp_tokens")
LEAST = -80.0  # the logarithm of a probability that float32 can just write
SLOW = 3e6  # parameters from which it is said that work has begun


def compare(
    theirs: dict, model: GPT2, tokens=None, *, pads=None, chunks=None, names=None, say=None
) -> Diagnosis:
    """Where another program's numbers leave GPT-2's, and why.

    theirs: name -> array, under any names and in any usual layout (see `align`). model: the GPT2
    that both programs should be. tokens: ids (B, T) or (T,), which may be left out where `theirs`
    holds them. pads (B,): padding tokens at the left of each row; a mask among theirs says it
    too, at either side: 1 or 0 for what is seen, or what is added to the scores. chunks: lengths of
    the pieces that went through a KV cache. names: their name -> ours (or None: leave out), before
    what would be found. say: called with a sentence now and then, for large models.

    Raises ValueError where tokens are unknown or do not fit, and where nothing could be compared,
    and TypeError for what is not a dict of arrays and a model, in this order.
    """
    if not hasattr(theirs, "items") or not hasattr(model, "params"):
        raise TypeError(
            "compare takes their arrays, a dict name -> array, and then our model, not a "
            f"{type(theirs).__name__} and a {type(model).__name__}"
        )
    theirs = {name: _as_array(name, array) for name, array in theirs.items()}
    if sum(a.size for a in model.params.values()) < SLOW:
        say = None
    if say:
        say("running the reference in float64")
    names = dict(names or {})
    ids, pads, valid, remarks = batch(theirs, model, tokens, pads, names)
    wide = _as_float64(model)
    learned = backward.compare_gradients(theirs, wide, ids, pads)
    theirs = {n: a for n, a in theirs.items() if n not in learned.names}
    theirs, joined = _steps_joined(theirs, ids, model.config.n_vocab, names)
    reference, theirs, more = _as_logits(theirs, wide, ids)
    remarks += joined + more

    def aligned_with(reference):
        def replayed(given):
            return replay(reference, ids, pads, chunks, given)

        right = replayed({})
        return names_and_layouts.align(theirs, right, reference, names, replayed), right

    aligned, right = aligned_with(reference)
    if not np.isfinite(right["logits"]).all():
        raise FloatingPointError(
            "our model's own logits are NaN or infinite: its weights are damaged, so there is "
            "nothing right to compare with"
        )
    rewritten = processing.detect(aligned.arrays, right, reference)
    if rewritten:
        reference = processing.processed(reference, rewritten)
        aligned, right = aligned_with(reference)
        what = "; ".join(processing.NAMES[name] for name in rewritten)
        remarks.append(f"harmless processing, as TransformerLens does by default: {what}")
    if not learned.rows and not _is_evidence(aligned, theirs, model.config.n_vocab):
        left = ", ".join(n for n in theirs if n not in aligned.matched)
        raise ValueError(
            f"nothing was compared: none of the arrays {left[:200] or '(there are none)'} could be "
            "matched to a tensor of the model; say what they are with --names"
            + "".join(f" ({remark})" for remark in remarks + aligned.remarks)
        )
    case = Case(
        reference, ids, aligned.arrays, pads, chunks, valid, tuple(aligned.copies), aligned.whose,
        right,
    )  # fmt: skip
    found = backward.with_gradients(diagnose(case, say), learned)
    remarks += aligned.remarks
    if rewritten and found.verdict == "agrees":
        found = replace(found, verdict="harmless", harmless="harmless-processing")
    if "logits" not in aligned.arrays:
        remarks.append("logits were not among what was compared")
    return replace(
        found,
        remarks=tuple(remarks),
        matched=aligned.matched,
        sure=aligned.sure,
        neighbours=aligned.neighbours,
        not_compared=tuple(n for n in aligned.unknown if n not in aligned.neighbours),
    )


def _as_array(name, array):
    """An array of theirs as numbers; bfloat16, which NumPy does not have, as float32."""
    try:
        array = np.asarray(array)
    except ValueError:
        raise ValueError(f"{name!r} is not an array: its rows have different lengths") from None
    if array.dtype.str[1:] == "V2":
        array = widened(array.view(np.uint16))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        with np.errstate(invalid="ignore"):  # signalling NaNs warn when they are converted
            array = array.astype(np.float64)
    return array


def compare_with_record(theirs: dict, ours: dict, names=None) -> Diagnosis:
    """The same beside a record of ours, without a model: where the two part, but not why."""
    aligned = names_and_layouts.align(theirs, ours, None, names)
    if set(aligned.arrays) <= {"tokens", "positions"}:
        raise ValueError(
            f"nothing was compared: none of {', '.join(theirs)[:200]} could be matched to ours"
        )
    found = difference(aligned.arrays, ours, None, aligned.whose, aligned.copies)
    return replace(
        found, note="give --model to find the cause" if found.first else "",
        remarks=tuple(aligned.remarks), matched=aligned.matched, sure=aligned.sure,
        not_compared=tuple(aligned.unknown),
    )  # fmt: skip


def _is_evidence(aligned, arrays, n_vocab):
    """Was anything but ids recognised by its name or its numbers? Guesses by order need such a
    foothold; logits have one in their shape, which nothing else has."""
    return any(
        how in ("name", "map", "value")
        or (ours == "logits" and theirs in arrays and n_vocab in arrays[theirs].shape)
        for theirs, ours in aligned.matched.items()
        for how in [aligned.sure[theirs][1]]
        if ours not in ("tokens", "positions")
    )


def _as_float64(model):
    return model if model.dtype == np.float64 else as_dtype(model, np.float64)


# ---- how the batch was computed -----------------------------------------------------------------


def batch(theirs, model, tokens=None, pads=None, names=None):
    """(ids (B, T), pads or None, valid or None, remarks) as given, or as their arrays say.

    names: the map of `compare`; an array that is taken for the tokens is added to it.
    """
    remarks, names = [], {} if names is None else names
    if tokens is None:
        tokens = _their_tokens(theirs, model, names, remarks)
        if _is_time_first(tokens, theirs):
            tokens = tokens.T
            remarks.append("their tokens were read as (T, B), as their other arrays lie")
    ids = np.atleast_2d(tokens)
    if ids.ndim != 2 or ids.size == 0 or not np.array_equal(ids, np.round(ids)):
        raise ValueError(f"tokens must be integers (B, T), not {ids.dtype} of shape {ids.shape}")
    ids = ids.astype(np.int64)
    if ids.min() < 0 or ids.max() >= model.config.n_vocab:
        raise ValueError(
            f"tokens lie between {ids.min()} and {ids.max()}, but the model has ids 0 to "
            f"{model.config.n_vocab - 1}: is it the model that was run?"
        )
    if pads is None and "pads" in theirs and theirs["pads"].shape == (len(ids),):
        pads = theirs["pads"]
        if not np.array_equal(pads, np.round(pads)):
            raise ValueError(f"their pads must be integers, not {pads.tolist()}")
        pads = pads.astype(np.int64)
    empty = np.flatnonzero(np.asarray([] if pads is None else pads) >= ids.shape[1])
    if len(empty):
        pads = np.asarray(pads).tolist()
        raise ValueError(f"pads of {pads} leave no token to compare in row {empty[0]}")
    masks = {n: _real_tokens(n, a, ids) for n, a in theirs.items()}
    hiding = [n for n, real in masks.items() if real is not None and not real.all()]
    if not hiding:
        return ids, pads, None, remarks
    name = hiding[0]
    mask = masks[name]
    if not mask.any(1).all():
        raise ValueError(
            f"{name} leaves no real token in row {int(mask.any(1).argmin())}, however it is read: "
            "leave that row out"
        )
    if (mask == np.sort(mask, 1)).all():  # 0 0 1 1 1
        if pads is None:
            pads = (~mask).sum(1)
            remarks.append(f"{name}: padded at the left by {pads.tolist()}")
        return ids, pads, mask, remarks
    if (mask == -np.sort(-mask.astype(int), 1)).all():  # 1 1 1 0 0: causality hides it
        real = mask.sum(1).tolist()
        remarks.append(f"{name}: padded at the right, {real} real tokens")
        return ids, pads, mask, remarks
    raise ValueError(
        f"{name} hides tokens in the middle of a row: only padding at the left or at the right is "
        "understood"
    )


def _real_tokens(name, array, ids):
    """Which tokens (B, T) are no padding, as a mask among theirs says it; None if it is not one.

    1 is a real token and 0 padding, but the other way round in torch's key_padding_mask. A mask
    that is added to the scores has 0 for what is seen. Of one with an axis for the queries,
    (B, 1, T, T), the last query sees what is real.
    """
    said = name.lower()
    if "mask" not in said or any(x in said for x in ("loss", "causal", "dropout", "head")):
        return None
    (b, t), mask = ids.shape, array
    if mask.ndim in (3, 4) and mask.shape[0] in (1, b) and mask.shape[-2] in (1, t):
        mask = (mask if mask.ndim == 3 else mask[:, 0])[:, -1]
    of_one_row = mask.ndim == 1 and b == 1
    if mask.dtype.kind not in "biuf" or not (of_one_row or mask.ndim == 2):
        return None
    if mask.shape[-1] != t or mask.size not in (t, b * t):
        return None
    mask = np.broadcast_to(mask, ids.shape)
    if b == t > 1 and np.array_equal(mask == mask[-1, 0], np.tri(t, dtype=bool)):
        return None  # (T, T): the mask of causality
    if set(np.unique(mask)) <= {0, 1}:
        # A row of nothing but padding makes no sense.
        padding = "key_padding" in said or (not mask.any(1).all() and (mask == 0).any(1).all())
        return mask == 0 if padding else mask != 0
    if ((mask == 0) | (mask <= HIDDEN)).all():
        return mask == 0
    return None


def _their_tokens(theirs, model, names, remarks):
    named = [n for n, ours in names.items() if ours == "tokens"]
    known = names_and_layouts.other_names(model.config.n_layer)
    named += [n for n in theirs if known.get(names_and_layouts.plain(n)) == "tokens"]
    named = [n for n in named if n in theirs and theirs[n].dtype.kind in "iuf"]
    if named:
        return theirs[named[0]]
    guesses = [n for n, a in theirs.items() if _looks_like_tokens(n, a, model)]
    if len(guesses) == 1:
        remarks.append(f"{guesses[0]} was taken for the tokens: the only ids that are there")
        names.setdefault(guesses[0], "tokens")
        return theirs[guesses[0]]
    what = f": it could be {', '.join(guesses)}" if guesses else ""
    raise ValueError(
        f"say what was computed: --tokens, a prompt, or an array `tokens` in the dump{what}"
    )


def _is_time_first(tokens, theirs):
    """Are tokens of theirs (T, B)? Their stream is (C, T, B) then, or their scores are T by T."""
    if tokens.ndim != 2:
        return False
    rows, columns = tokens.shape
    streams = [a.shape for a in theirs.values() if a.ndim == 3]
    if any(shape[1:] == tokens.shape != shape[:2] for shape in streams):
        return not any(shape[:2] == tokens.shape for shape in streams)
    scores = [a.shape for a in theirs.values() if a.ndim == 4 and a.shape[2] == a.shape[3]]
    return rows != columns and any(s[0] == columns and s[2] == rows for s in scores)


def _looks_like_tokens(name, array, model):
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        return False
    if array.min() < 0 or array.max() >= model.config.n_vocab or "mask" in name.lower():
        return False
    rows = np.atleast_2d(array)
    return rows.shape[1] == 1 or not (np.diff(rows, axis=1) == 1).all()


def _steps_joined(theirs, ids, n_vocab, names):
    """(theirs, remarks) with the logits that a loop wrote token by token, logits_0, logits_1, ...,
    joined to one array."""
    rows, series, remarks = len(ids), {}, []
    for name, array in theirs.items():
        *_, number = [None, *re.finditer(r"\d+", name)]
        if number and name not in names and array.dtype.kind == "f" and array.ndim:
            width = array.shape[-1]
            padded = "logit" in name.lower() and n_vocab < width <= 2 * n_vocab + 256
            if array.size == rows * width and (width == n_vocab or padded):
                key = f"{name[: number.start()]}#{name[number.end() :]}", width
                series.setdefault(key, {})[int(number[0])] = name
    for (stem, width), steps in series.items():
        if len(steps) < 2 or ids.shape[1] == 1:
            continue
        numbers = sorted(steps)
        said = f"{steps[numbers[0]]} to {steps[numbers[-1]]}"
        arrays = [theirs[steps[n]].reshape(rows, width) for n in numbers]
        theirs = {n: a for n, a in theirs.items() if n not in steps.values()}
        if len(numbers) == ids.shape[1] == numbers[-1] - numbers[0] + 1:
            theirs[stem] = np.stack(arrays, 1)
            names[stem] = "logits"
            remarks.append(f"{said} are the logits of one token each: compared as one, {stem}")
        else:
            remarks.append(
                f"{said} were left out: they seem to be the logits of one token each, "
                f"{len(numbers)} of them for {ids.shape[1]} tokens; write those of every token"
            )
    return theirs, remarks


# ---- probabilities in place of logits -----------------------------------------------------------


def _as_logits(theirs, model, ids):
    """(model, theirs, remarks): where theirs are probabilities, or their logarithms, and there are
    no logits, both sides become logarithms of probabilities."""
    known = names_and_layouts.other_names(model.config.n_layer)
    sizes = {ids.size * model.config.n_vocab, len(ids) * model.config.n_vocab}
    wide = {
        n: a for n, a in theirs.items()
        if a.dtype.kind == "f" and a.ndim and a.shape[-1] == model.config.n_vocab
        and a.size in sizes
    }  # fmt: skip
    kinds = {name: _kind_of_rows(np.asarray(a, np.float64)) for name, a in wide.items()}
    if not kinds or "logits" in kinds.values():
        return model, theirs, []
    name = next((n for n in kinds if known.get(names_and_layouts.plain(n)) == "logits"), None)
    name = name or next(iter(kinds))
    array = np.asarray(theirs[name], np.float64)
    if kinds[name] == "probabilities":
        with np.errstate(divide="ignore"):
            array = np.log(array)
    array = np.maximum(array, LEAST)
    unembed = model.ops.unembed

    def log_probabilities(x, table):
        return np.maximum(ops.log_softmax(unembed(x, table)), LEAST)

    rest = {n: a for n, a in theirs.items() if n == name or n not in kinds}
    remark = f"{name} holds {kinds[name]}, not logits: logarithms of probabilities are compared"
    return with_ops(model, unembed=log_probabilities), rest | {"logits": array}, [remark]


def _kind_of_rows(array):
    with np.errstate(all="ignore"):
        if (array >= 0).all() and np.allclose(array.sum(-1), 1, atol=1e-3):
            return "probabilities"
        if (array <= 1e-6).all() and np.allclose(np.exp(array).sum(-1), 1, atol=1e-3):
            return "log-probabilities"
    return "logits"
