"""trace, compare: the tensors of a forward pass, ours and another program's."""

import dataclasses
import fnmatch
import json
import os

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL


def trace_command(args):
    """Write down every tensor of a forward pass, by name."""

    from numpygpt import model as forward
    from numpygpt.check import trace
    from numpygpt.formats import dump

    if args.list:
        print(trace.catalogue())
        return
    model, tokenizer = _load_for(args.prompt, args.model)
    tokens, pads = _token_rows(args.prompt, args.tokens, tokenizer)
    model = forward.as_dtype(model, args.dtype)
    record = model.forward(tokens, pads=pads, keep="everything")[1]
    kept = {n: a for n, a in record.items() if any(fnmatch.fnmatch(n, x) for x in args.names)}
    if not kept:
        raise ValueError(f"no tensor is called {' or '.join(args.names)}: see --list")
    if args.output:
        path = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        dump.write(args.output, {"tokens": tokens} | kept, path)
    for name, array in kept.items():
        print(f"{name:20} {array.dtype!s:8} {array.shape}")


def compare_command(args):
    """Compare another program's tensors with ours, and name the mistake."""
    from numpygpt.check import diagnose, trace

    theirs, ours, name = _dumps(args)
    if name is None:
        aligned, unknown = trace.align(theirs, ours)
        found = diagnose.difference(aligned, ours, ours.get("pads"))
        found = dataclasses.replace(found, note="give --model to find the cause")
    else:
        case, unknown = _case(args, theirs, ours, name)
        found = diagnose.diagnose(case)
    if args.json:
        print(json.dumps(diagnose.as_json(found) | {"not_compared": unknown}, indent=1))
    else:
        print(diagnose.report(found))
        if unknown:
            print(f"not compared: {', '.join(unknown)}")
    return 0 if found.first is None else 1


def _dumps(args):
    """Their arrays, ours or {}, and the name of the model, None if nobody says it."""
    from numpygpt.check import trace
    from numpygpt.formats import dump

    if args.logits:
        return dump.read(args.logits), {}, args.model or "tales"
    if len(args.files) not in (1, 2):
        raise ValueError("name their file, or our file and theirs")
    theirs = dump.read(args.files[-1])
    if len(args.files) == 1:
        return theirs, {}, args.model or "tales"
    ours = dump.read(args.files[0])
    name = args.model or dump.model_of(args.files[0], ours)
    known = {name: array for name, array in ours.items() if trace.is_entry(name)}
    if not known:
        raise ValueError(f"{args.files[0]} has no tensor under our names: make it with trace -o")
    return theirs, known, name or None


def _case(args, theirs, ours, name):
    """What to explain, and the names nobody knows."""
    import numpy as np

    from numpygpt.check import diagnose, trace

    prompts = args.prompt + (args.files if args.logits else [])
    model, tokenizer = _load_for(prompts, name)
    given = {**theirs, **ours}
    ids = next((given[n] for n in ("tokens", "input_ids", "inputs") if n in given), None)
    if prompts or args.tokens:
        tokens, pads = _token_rows(prompts, args.tokens, tokenizer)
    elif ids is None:
        raise ValueError(
            "say what was computed: --tokens, --prompt, or an array `tokens` in the dump"
        )
    else:
        tokens, pads = _as_ids(ids), given.get("pads")
    if args.pads:
        pads = np.array(_integers(args.pads, "--pads"))
    chunks = _integers(args.chunks, "--chunks") if args.chunks else None
    right = trace.replay(model, tokens, pads, chunks)
    aligned, unknown = trace.align(theirs, right, model.params)
    return diagnose.Case(model, tokens, aligned, pads, chunks), unknown


def _load_for(prompts, name):
    """A model, and the tokenizer if there are prompts: where ids are given, none is needed."""
    from numpygpt.files import checkpoint, pretrained

    return load(name) if prompts else (checkpoint.load_folder(pretrained.find(name)), None)


def _as_ids(array):
    import numpy as np

    ids = np.atleast_2d(array)
    if not np.array_equal(ids, np.round(ids)):
        raise ValueError("the dump's tokens are no integers")
    return ids.astype(np.int64)


def _integers(text, option):
    try:
        return [int(x) for x in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"{option} takes integers, not {text!r}") from None


def _token_rows(prompts, rows, tokenizer):
    """Ids (B, T), and the padding at the left of each row, or None if all are equally long."""
    import numpy as np

    ids = [_integers(row, "--tokens") for row in rows] or [
        tokenizer.encode(p, tokenizer.special) for p in prompts
    ]
    if not ids or not all(ids):
        raise ValueError("give a prompt that is not empty, or --tokens")
    length = max(map(len, ids))
    pads = np.array([length - len(row) for row in ids])
    tokens = np.array([[0] * (length - len(row)) + row for row in ids])
    return tokens, pads if pads.any() else None


def add(command):
    """Their options."""
    p = command(trace_command)
    p.add_argument("prompt", nargs="*", help="several are padded at the left to one batch")
    p.add_argument("--tokens", action="append", default=[], help='ids instead: "17 310 203"')
    p.add_argument("--model", **MODEL)
    p.add_argument("-o", "--output", metavar="FILE", help=".npz or .safetensors")
    p.add_argument("--names", nargs="+", default=["*"], help='of the tensors, "h.0.*" for instance')
    p.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    p.add_argument("--list", action="store_true", help="print names, shapes, formulas, sources")

    p = command(compare_command)
    p.add_argument("files", nargs="*", help="our file, which may be left out, and theirs")
    p.add_argument("--model", help="name or folder (default: the one that made our file, or tales)")
    p.add_argument("--tokens", action="append", default=[], help='what was computed: "17 310 203"')
    p.add_argument("--prompt", action="append", default=[], help="the same as text; repeatable")
    p.add_argument("--pads", help='padding tokens at the left of each row: "0 3"')
    p.add_argument("--chunks", help="lengths of the pieces that went through a KV cache: 4,1,1")
    p.add_argument("--logits", metavar="FILE", help="their logits alone; then give the prompt")
    p.add_argument("--json", action="store_true")
