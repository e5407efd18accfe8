"""info, download: which models there are, and what they are made of."""

import dataclasses
import sys

from numpygpt.cli.shell import MODEL, say


def info_command(args):
    """Show a model's configuration, parameters by part, bytes and FLOPs."""
    from numpygpt.files import checkpoint, download, pretrained
    from numpygpt.model import GPT2, SIZES

    if args.family:
        _family()
        return
    official = download.official_name(args.model)
    if official in SIZES and download.find(official) is None:
        say(f"{args.model} is not on this machine: this is its configuration, in float32")
        _gpt2(SIZES[official])
        return
    model, tokenizer = load(args.model, also=["GPT1", "Bert"])
    if not isinstance(model, GPT2):
        _relative(checkpoint.relative(pretrained.find(args.model)), model, tokenizer)
        return
    _gpt2(model.config, model.dtype, tied="lm_head.weight" not in model.params)


def _gpt2(config, dtype="float32", tied=True):
    """What a GPT-2 of this configuration has and costs: no weights are needed for that."""
    import numpy as np

    from numpygpt.look import analyze

    itemsize = np.dtype(dtype).itemsize
    for name, value in dataclasses.asdict(config).items():
        print(f"{name:<20}{value:>16,}" if isinstance(value, int) else f"{name:<20}{value:>16}")
    counts = analyze.parameter_counts(config, tied)
    print(f"\n{'parameters':<20}{sum(counts.values()):>16,}")
    for part, count in counts.items():
        print(f"  {part:<18}{count:>16,}")
    print(f"\n{'bytes of weights':<20}{sum(counts.values()) * itemsize:>16,}  ({dtype})")
    cache = config.n_ctx * analyze.cache_bytes_per_token(config, itemsize)
    print(f"{'bytes of KV cache':<20}{cache:>16,}  ({config.n_ctx} tokens)")
    for keys in (1, config.n_ctx):
        flops = analyze.flops_per_token(config, keys)
        print(f"\n{'FLOPs per token':<20}{sum(flops.values()):>16,}  (seeing {keys} tokens)")
        for part, count in flops.items():
            print(f"  {part:<18}{count:>16,}")


def _relative(kind, model, tokenizer):
    """A BERT or a GPT-1: its configuration and its parameters by part."""
    from numpygpt.look import analyze

    print(f"{'kind':<20}{kind:>16}")
    for field, value in dataclasses.asdict(model.config).items():
        print(f"{field:<20}{value:>16,}" if isinstance(value, int) else f"{field:<20}{value:>16}")
    print(f"{'tokenizer':<20} {tokenizer!r}")
    counts = analyze.parts({n: p.shape for n, p in model.params.items()})
    print(f"\n{'parameters':<20}{sum(counts.values()):>16,}")
    for part, count in counts.items():
        print(f"  {part:<18}{count:>16,}")
    size = sum(counts.values()) * model.dtype.itemsize
    print(f"\n{'bytes of weights':<20}{size:>16,}  ({model.dtype})")


def _family():
    """GPT-2 and its relatives, one line each, and what of their papers' figures does not agree."""
    from numpygpt.family import gpt3
    from numpygpt.look import analyze

    rows = analyze.family()
    parts = list(rows[0].parts)
    print(f"{'':<24}{'parameters':>16}  {'printed':>8}", *(f"{part:>16}" for part in parts), end="")
    print(f"{'FLOPs per token':>20}{'cache bytes':>16}{'context':>9}")
    for row in rows:
        mark = "" if row.agrees else "*"
        print(f"{row.name:<24}{row.count:>16,}{mark:<2}{row.printed or '-':>8}", end=" ")
        print(*(f"{count:>16,}" for count in row.parts.values()), end="")
        print(f"{row.flops:>20,}{row.cache:>16,}{row.config.n_ctx:>9,}")
    print(
        "\nFLOPs of the forward pass, and bytes of a float32 cache, of one token that sees a full"
    )
    print("context. BERT keeps no cache, since it writes nothing; the Transformer's is of its own")
    print("words and of a source as long, and its FLOPs are of one token read and one written.")
    print("\n*  the authors' number differs from this one, rounded:")
    for row in rows:
        if not row.agrees:
            print(f"   {row.name}: {row.printed} printed, {row.rounded} counted")
        for note in row.notes:
            print(f"   {row.name}: {note}")
    flops = analyze.training_flops(gpt3.config(gpt3.TABLE[-1]), gpt3.TRAINING_TOKENS)
    print(
        f"\ntraining GPT-3 175B on {gpt3.TRAINING_TOKENS:.0e} tokens: {flops:.3g} FLOPs without "
        f"scores and values (printed: {gpt3.FLOPS_PRINTED:.3g})"
    )


def download_command(args):
    """Fetch and check the official files of a model, or those that `verify` compares with."""
    from numpygpt.files import download

    try:
        folder = fetch(
            args.name, args.folder, args.source, args.offline, args.mirror, args.trust_mirror
        )
    except download.DownloadError as error:
        say(f"numpygpt: {error}")
        say(download.by_hand(args.name, args.folder))
        return 1
    except KeyboardInterrupt:
        say("stopped: what has arrived is kept, and the same command goes on from there")
        return 130
    say(f"{args.name} is here, {download.verdict(folder)}: {folder}")
    return 0


def fetch(name, folder=None, source="any", offline=False, mirror=None, trust_mirror=False):
    """Download with a line for each file, and on a terminal with a bar; -> the folder."""
    from tqdm import tqdm

    from numpygpt.files import download

    bar = tqdm(disable=True)

    def progress(file, here, total):
        nonlocal bar
        if bar.disable and sys.stderr.isatty():
            bar = tqdm(desc=file, total=total, initial=here, unit="B", unit_scale=True)
        bar.update(here - bar.n)

    def close_bar_and_say(text):
        nonlocal bar
        bar.close()
        bar = tqdm(disable=True)
        say(text)

    try:
        return download.download(
            name,
            folder,
            source,
            offline=offline,
            mirror=mirror,
            trust_mirror=trust_mirror,
            progress=progress,
            say=close_bar_and_say,
        )
    finally:
        bar.close()


def load(name, also=()):
    """A GPT-2 and its tokenizer. One that is not here yet is fetched if somebody is watching.

    also: the classes of relatives that will do as well, "GPT1" or "Bert". Raises CheckpointError
    for the folder of another one.
    """
    import numpygpt
    from numpygpt.files import checkpoint, pretrained

    model, tokenizer = numpygpt.load(name, fetch=fetch if sys.stderr.isatty() else None)
    if type(model).__name__ not in ("GPT2", *also):
        kind = checkpoint.relative(pretrained.find(name))
        raise checkpoint.CheckpointError(checkpoint.not_gpt2(name, kind))
    return model, tokenizer


def add(command):
    """Their options."""
    p = command(info_command)
    p.add_argument("model", nargs="?", **MODEL)
    p.add_argument(
        "--family", action="store_true", help="GPT-1, GPT-2, GPT-3, BERT and the Transformer"
    )

    p = command(download_command)
    p.add_argument("name", help="124M, 355M, 774M, 1558M, distilgpt2, gpt-nano-sort or published")
    p.add_argument("--folder", help="default: its own folder in weights/ or in the user's cache")
    p.add_argument("--source", default="any", choices=["any", "openai", "huggingface"])
    p.add_argument("--offline", action="store_true", help="check what is here, fetch nothing")
    p.add_argument("--mirror", metavar="URL", help="in place of https://HOST of every address")
    p.add_argument(
        "--trust-mirror", action="store_true", help="its files need not be the official ones"
    )
