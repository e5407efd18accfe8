"""info, download: which models there are, and what they are made of."""

import dataclasses
import sys

from numpygpt.cli.shell import MODEL, say


def info_command(args):
    """Show a model's configuration, parameters by part, bytes and FLOPs."""
    from numpygpt.look import analyze

    model, _ = load(args.model)
    config, itemsize = model.config, model.dtype.itemsize
    for name, value in dataclasses.asdict(config).items():
        print(f"{name:<20}{value:>16,}" if isinstance(value, int) else f"{name:<20}{value:>16}")
    counts = analyze.parameter_counts(config, tied="lm_head.weight" not in model.params)
    print(f"\n{'parameters':<20}{sum(counts.values()):>16,}")
    for part, count in counts.items():
        print(f"  {part:<18}{count:>16,}")
    print(f"\n{'bytes of weights':<20}{sum(counts.values()) * itemsize:>16,}  ({model.dtype})")
    cache = config.n_ctx * analyze.cache_bytes_per_token(config, itemsize)
    print(f"{'bytes of KV cache':<20}{cache:>16,}  ({config.n_ctx} tokens)")
    for keys in (1, config.n_ctx):
        flops = analyze.flops_per_token(config, keys)
        print(f"\n{'FLOPs per token':<20}{sum(flops.values()):>16,}  (seeing {keys} tokens)")
        for part, count in flops.items():
            print(f"  {part:<18}{count:>16,}")


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
    say(f"{args.name} is here, whole and checked: {folder}")
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


def load(name):
    """A model and its tokenizer. One that is not here yet is fetched if somebody is watching."""
    import numpygpt

    return numpygpt.load(name, fetch=fetch if sys.stderr.isatty() else None)


def add(command):
    """Their options."""
    p = command(info_command)
    p.add_argument("model", nargs="?", **MODEL)

    p = command(download_command)
    p.add_argument("name", help="124M, 355M, 774M, 1558M, distilgpt2, gpt-nano-sort or published")
    p.add_argument("--folder", help="default: its own folder in weights/ or in the user's cache")
    p.add_argument("--source", default="any", choices=["any", "openai", "huggingface"])
    p.add_argument("--offline", action="store_true", help="check what is here, fetch nothing")
    p.add_argument("--mirror", metavar="URL", help="in place of https://HOST of every address")
    p.add_argument(
        "--trust-mirror", action="store_true", help="its files need not be the official ones"
    )
