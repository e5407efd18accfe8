"""evaluate: measuring how good a model is, what it prefers and what it repeats."""

import json
import math
import sys

from numpygpt.cli.models import load
from numpygpt.cli.shell import MODEL, positive, say


def evaluate_command(args):
    """Measure a model on a file: perplexity, WikiText, LAMBADA, HellaSwag, CBT, and two probes."""
    from numpygpt.files import text

    _check_options(args)
    read = {
        "lambada": lambda: text.json_lines(args.file, text.LAMBADA),
        "hellaswag": lambda: text.json_lines(args.file, text.HELLASWAG),
        "preference": lambda: text.json_lines(args.file, text.SENTENCES),
        "cbt": lambda: _read_cbt(args.file),
        "pairs": lambda: text.json_lines(args.file, text.PAIR),
    }
    content = read.get(args.task, lambda: text.prose(args.file))()
    model, tokenizer = load(args.model)
    results, note = TASKS[args.task](args, model, tokenizer, content)
    say(f"{args.task} of {args.model}:")
    if args.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        if not isinstance(value, list):
            shown = f"{value:>12,}" if isinstance(value, int) else f"{value:>12.4f}"
            print(f"{name:<30}{shown}")
    if note:
        say(f"What this does not show: {note}")


def _check_options(args):
    if args.task == "memorisation" and args.held_out is None:
        raise ValueError("what is repeated is compared with held-out text: name it with --held-out")
    for option, tasks in OPTIONS.items():
        if getattr(args, option) is not None and args.task not in tasks:
            name = "--" + option.replace("_", "-")
            raise ValueError(f"{name} is for {', '.join(tasks)}, not for {args.task}")


def _read_cbt(path):
    """The published file, or lines of JSON."""
    from numpygpt import evaluate
    from numpygpt.files import text

    if text.read(path).lstrip().startswith("{"):
        return text.json_lines(path, text.CBT)
    return evaluate.cbt_items(text.read(path))


def _scored(args, model, name, questions, banned=None):
    """What the model says of each question: a bar is drawn, and with --keep results are kept."""
    from numpygpt import evaluate

    batch = args.batch or 8

    def scores(done=0):
        return evaluate.score_questions(model, questions[done:], batch, banned)

    results = _kept(args, model, name, questions, scores)
    return [
        [evaluate.Scored(*one) for one in result] for result in _bar(results, len(questions), name)
    ]


def _kept(args, model, name, questions, results):
    """Results as they come; with --keep those of an interrupted run first."""
    if args.keep is None:
        return results()
    from numpygpt.files import results as kept
    from numpygpt.files import run

    settings = {"task": args.task, "part": name, "model": kept.digest_arrays(model.params)}
    settings |= {"questions": run.digest(json.dumps(questions)), "batch": args.batch}
    return kept.resumed(args.keep, settings, results)


def _bar(results, total, name):
    from tqdm import tqdm

    return tqdm(results, total=total, disable=None, unit=name, file=sys.stderr)


# ---- texts --------------------------------------------------------------------------------------


def _perplexity(args, model, tokenizer, content):
    from numpygpt import data, evaluate
    from numpygpt.files import text

    if args.baselines is not None and args.limit is not None:
        raise ValueError("--baselines are of the whole text: leave out --limit")
    documents = data.documents_of(content, tokenizer)
    ids = data.encode_documents(tokenizer, documents)[: args.limit]
    n_ctx = model.config.n_ctx
    batch = args.batch or max(1, evaluate.TOKENS // n_ctx)
    windows = 1 + max(0, math.ceil((len(ids) - 1 - n_ctx) / (args.stride or n_ctx)))

    def parts(done=0):
        return evaluate.stream(model, ids, args.stride, batch, done)

    settings = [ids.tolist(), args.stride]
    each = list(
        _bar(_kept(args, model, "window", settings, parts), math.ceil(windows / batch), "batch")
    )
    nats, count = map(sum, zip(*each, strict=True))
    results = {"tokens": count, "nats per token": nats / count}
    results["perplexity per token"] = math.exp(nats / count)
    if args.limit is None:
        size = sum(len(document.encode("utf-8")) for document in documents)
        results["bits per byte"] = evaluate.bits_per_byte(nats, size)
    if args.baselines is not None:
        before = text.prose(args.baselines) if args.baselines else ""
        known = data.documents_of(before, tokenizer)
        results |= evaluate.baselines(tokenizer, documents, known)
    return results, None


def _wikitext(args, model, tokenizer, content):
    from numpygpt import evaluate

    pages = evaluate.wikitext_pages(content)[: args.limit]

    def parts(done=0):
        return evaluate.wikitext(model, tokenizer, pages[done:], args.batch)

    each = list(_bar(_kept(args, model, "page", pages, parts), len(pages), "page"))
    return evaluate.wikitext_result(each), None


# ---- questions ----------------------------------------------------------------------------------


def _lambada(args, model, tokenizer, content):
    from numpygpt import evaluate

    protocol = args.protocol or "word"
    texts = [item["text"] for item in content[: args.limit]]
    questions = evaluate.lambada_questions(tokenizer, texts, protocol)
    banned = None
    if protocol == "filtered":
        banned = evaluate.stop_words(tokenizer, model.config.n_vocab)
    return evaluate.lambada_result(_scored(args, model, protocol, questions, banned)), None


def _hellaswag(args, model, tokenizer, content):
    from numpygpt import evaluate

    questions = evaluate.hellaswag_questions(tokenizer, content[: args.limit])
    return evaluate.hellaswag_result(questions, _scored(args, model, "item", questions)), None


def _cbt(args, model, tokenizer, content):
    from numpygpt import evaluate

    questions = evaluate.cbt_questions(tokenizer, content[: args.limit])
    return evaluate.cbt_result(questions, _scored(args, model, "item", questions)), None


def _preference(args, model, tokenizer, content):
    import numpy as np

    from numpygpt.look import probe

    pairs = [(item["a"], item["b"]) for item in content[: args.limit]]
    questions = probe.pair_questions(tokenizer, pairs)
    scored = _scored(args, model, "pair", questions)
    result = probe.pair_result(scored, rng=np.random.default_rng(args.seed))
    return result, probe.PREFERENCE_DOES_NOT_SHOW


def _memorisation(args, model, tokenizer, content):
    import numpy as np

    from numpygpt import data
    from numpygpt.files import text
    from numpygpt.look import probe

    rng = np.random.default_rng(args.seed)
    prefix, windows = args.prefix or 32, args.limit or 200
    questions = []
    for whole in (content, text.prose(args.held_out)):
        ids = data.encode_documents(tokenizer, data.documents_of(whole, tokenizer))
        end = tokenizer.eot
        questions.append(probe.window_questions(ids, windows, prefix, prefix, rng=rng, end=end))
    scored = _scored(args, model, "window", questions[0] + questions[1])
    parts = scored[: len(questions[0])], scored[len(questions[0]) :]
    return probe.memorisation_result(*parts, rng=rng), probe.MEMORISATION_DOES_NOT_SHOW


def _pairs(args, model, tokenizer, content):
    from numpygpt import evaluate

    pairs = [(item["x"], item["y"]) for item in content[: args.limit]]
    return evaluate.pairs(model, tokenizer, pairs), None


TASKS = {
    "perplexity": _perplexity,
    "wikitext": _wikitext,
    "lambada": _lambada,
    "hellaswag": _hellaswag,
    "cbt": _cbt,
    "preference": _preference,
    "memorisation": _memorisation,
    "pairs": _pairs,
}
ALL_BUT_PAIRS = tuple(name for name in TASKS if name != "pairs")
OPTIONS = {  # which are for some tasks alone
    "stride": ("perplexity",),
    "baselines": ("perplexity",),
    "protocol": ("lambada",),
    "held_out": ("memorisation",),
    "prefix": ("memorisation",),
    "batch": ALL_BUT_PAIRS,
    "keep": ALL_BUT_PAIRS,
}
FILE = """perplexity, memorisation: a text; wikitext: wiki.test.raw; lambada: lines {"text": ...};
hellaswag: lines {"ctx": ..., "endings": ..., "label": ...}; cbt: cbtest_CN_test_2500ex.txt or lines
{"sentences": ..., "question": ..., "answer": ..., "options": ...}; preference: lines
{"a": ..., "b": ...}, two sentences that differ in who is spoken of; pairs: lines
{"x": ..., "y": ...}"""


def add(command):
    """Their options."""
    p = command(evaluate_command)
    p.add_argument("file", help=FILE)
    p.add_argument("--model", **MODEL)
    p.add_argument("--task", default="perplexity", choices=list(TASKS), metavar="TASK",
                   help=f"what is measured: {', '.join(TASKS)}")  # fmt: skip
    p.add_argument("--pairs", action="store_const", dest="task", const="pairs",
                   help="the same as --task pairs: loss on y, and y written exactly")  # fmt: skip
    p.add_argument("--baselines", nargs="?", const="", metavar="TEXT", help="beside the model: "
                   "xz, bzip2 and trigrams, which know TEXT if named (perplexity)")  # fmt: skip
    p.add_argument("--protocol", choices=["word", "token", "filtered"],
                   help="lambada: word (the last word), token (its last token), filtered (the last "
                   "word, no stop words)")  # fmt: skip
    p.add_argument("--stride", type=int, help="of perplexity's windows; none: n_ctx")
    p.add_argument("--held-out", metavar="FILE", help="text that was not trained on (memorisation)")
    p.add_argument("--prefix", type=positive, help="tokens shown, and asked for (memorisation)")
    p.add_argument("--limit", type=positive, help="only this many tokens, pages, items or windows")
    p.add_argument("--batch", type=positive, help="rows that go through the model at a time")
    p.add_argument("--keep", metavar="FILE", help="keep results here, and go on from there")
    p.add_argument("--seed", type=int, default=0, help="of intervals, and of the windows drawn")
    p.add_argument("--json", action="store_true", help="print one JSON object")
