"""trace, compare: the tensors of a forward pass, ours and another program's."""

import fnmatch
import json
import os

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, say


def trace_command(args):
    """Write down every tensor of a forward pass, by name."""
    import numpy as np

    from numpygpt import model as forward
    from numpygpt.check import backward, trace
    from numpygpt.formats import dump

    if args.list:
        print(trace.catalogue())
        return
    if args.tokenizer_fixtures:
        _write_fixtures(args)
        return
    model, tokenizer = _load_for(args.prompt, args.model)
    tokens, pads = _token_rows(args.prompt, args.tokens, tokenizer)
    model = forward.as_dtype(model, args.dtype)
    record = model.forward(tokens, pads=pads, keep="everything")[1]
    if args.params:
        record = record | {f"param.{name}": array for name, array in model.params.items()}
    if args.backward:
        record = record | backward.loss_and_gradients(model, tokens, pads)
    kept = {n: a for n, a in record.items() if any(fnmatch.fnmatch(n, x) for x in args.names)}
    if not kept:
        raise ValueError(f"no tensor is called {' or '.join(args.names)}: see --list")
    if args.output:
        path = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
        dump.write(args.output, {"tokens": tokens} | kept, path)
    for name, array in kept.items():
        print(f"{name:20} {array.dtype!s:8} {array.shape}")
    if not np.isfinite(record["logits"]).all():  # the record is there to find out why
        first = next(n for n in record if not _is_finite(n, record[n]))
        raise FloatingPointError(
            f"{first} and what follows hold NaN or infinity: the model's weights are damaged, or "
            "too large for their precision"
        )


def _is_finite(name, array):
    """All numbers; masked scores are -inf as they should be."""
    import numpy as np

    return not np.isnan(array).any() if name.endswith("scores") else np.isfinite(array).all()


def _write_fixtures(args):
    """Strings and their ids as JSON, with the official vocabulary or that of --model."""
    import numpygpt
    from numpygpt.check.fixtures import tokenizer_fixtures
    from numpygpt.files.atomic import writing

    official = args.model == MODEL["default"]
    tokenizer = numpygpt.Tokenizer.gpt2() if official else load(args.model)[1]
    cases = tokenizer_fixtures(tokenizer)
    lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    vocabulary = json.dumps("GPT-2's official one" if official else args.model)
    text = f'{{\n "vocabulary": {vocabulary},\n "cases": [\n{lines}\n ]\n}}\n'
    if not args.output:
        print(text, end="")
        return
    with writing(args.output) as file:
        file.write(text)


def compare_command(args):
    """Compare another program's tensors with ours, and name the mistake."""
    from numpygpt.check import diagnose
    from numpygpt.check.compare import compare, compare_with_record

    files, prompts = _files_and_prompts(args)
    theirs, ours, name = _dumps(files, args)
    names = _map(args.names) if args.names else None
    if name is None:
        found = compare_with_record(theirs, ours, names)
    else:
        model, tokenizer = _load_for(prompts, name)
        tokens, pads = _computed(prompts, args, tokenizer, theirs, ours)
        chunks = _integers(args.chunks, "--chunks") if args.chunks else None
        found = compare(theirs, model, tokens, pads=pads, chunks=chunks, names=names, say=say)
    print(json.dumps(diagnose.as_json(found), indent=1) if args.json else diagnose.report(found))
    return found.exit_status


def _files_and_prompts(args):
    """What is named first is a file; what follows is one too if it is there or is called like one,
    and otherwise a prompt."""
    from numpygpt.formats import dump

    if args.logits:
        return [args.logits], args.prompt + args.files
    files = args.files[:1]
    for argument in args.files[1:]:
        if os.path.exists(argument) or argument.endswith(dump.ENDINGS):
            files.append(argument)
    prompts = [x for x in args.files if x not in files]
    if len(files) not in (1, 2):
        raise ValueError("name their file, or our file and theirs, and then the prompt")
    return files, args.prompt + prompts


def _dumps(files, args):
    """Their arrays, ours or {}, and the name of the model, None if it is not given."""
    from numpygpt.check import trace
    from numpygpt.formats import dump

    theirs = dump.read(files[-1])
    if len(files) == 1:
        said = args.model or dump.model_of(files[0], theirs)
        if not said:
            said = MODEL["default"]
            say(f"no --model is given: comparing with the bundled model, {said}")
        return {n: a for n, a in theirs.items() if n != "model"}, {}, said
    ours = dump.read(files[0])
    name = args.model or dump.model_of(files[0], ours)
    known = {name: array for name, array in ours.items() if trace.is_entry(name)}
    if not known:
        raise ValueError(f"{files[0]} has no tensor under our names: make it with trace -o")
    return theirs, known, name or None


def _computed(prompts, args, tokenizer, theirs, ours):
    """Tokens and padding as the options say them, or as our file does; None: theirs may say it."""
    import numpy as np

    tokens, pads = None, None
    if prompts or args.tokens:
        tokens, pads = _token_rows(prompts, args.tokens, tokenizer)
    elif "tokens" in ours:
        tokens, pads = ours["tokens"], ours.get("pads")
    if args.pads:
        pads = np.array(_integers(args.pads, "--pads"))
    return tokens, pads


def _map(path):
    """--names: {their name: our entry, or null to leave it out}."""
    from numpygpt.check import trace
    from numpygpt.files import text
    from numpygpt.formats import unique

    try:
        names = json.loads(text.read(path), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(names, dict):
        raise ValueError(f"{path} should hold {{their name: our name, or null}}")
    for theirs, ours in names.items():
        if ours is not None and not (isinstance(ours, str) and trace.is_entry(ours)):
            raise ValueError(
                f"{path} says {theirs!r} is {ours!r}, which is not an entry: see trace --list"
            )
    return names


def _load_for(prompts, name):
    """A model, and the tokenizer if there are prompts: where ids are given, none is needed."""
    from numpygpt.files import adapter, checkpoint, pretrained

    if prompts:
        return load(name)
    folder = pretrained.find(name)
    return load(name) if adapter.is_adapter(folder) else (checkpoint.load_folder(folder), None)


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
    p.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=".npz, .safetensors, or a folder/ of raw float32 with index.json",
    )
    p.add_argument("--backward", action="store_true", help="the loss and all gradients, too")
    p.add_argument("--params", action="store_true", help="the parameters, too")
    p.add_argument(
        "--tokenizer-fixtures", action="store_true", help="difficult strings and their ids, as JSON"
    )
    p.add_argument("--names", nargs="+", default=["*"], help='of the tensors, "h.0.*" for instance')
    p.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    p.add_argument("--list", action="store_true", help="print names, shapes, formulas, sources")

    p = command(compare_command)
    p.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="their file, or ours and theirs; what follows is the prompt",
    )
    p.add_argument(
        "--model", help="name or folder (default: the one that made our file, or stories)"
    )
    p.add_argument("--tokens", action="append", default=[], help='what was computed: "17 310 203"')
    p.add_argument("--prompt", action="append", default=[], help="the same as text; repeatable")
    p.add_argument("--pads", help='padding tokens at the left of each row: "0 3"')
    p.add_argument("--chunks", help="lengths of the pieces that went through a KV cache: 4,1,1")
    p.add_argument("--logits", metavar="FILE", help="their logits alone; then give the prompt")
    p.add_argument("--names", metavar="MAP.json", help='what theirs are: {"layer0_out": "h.0..."}')
    p.add_argument("--json", action="store_true", help="the diagnosis as JSON")
