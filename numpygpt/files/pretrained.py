"""From a name or a folder to a model and a tokenizer."""

import json
import os
import sysconfig
from collections.abc import Callable
from pathlib import Path

from numpygpt.bpe import Tokenizer
from numpygpt.files import adapter, checkpoint
from numpygpt.formats import CheckpointError
from numpygpt.model import GPT2

OFFICIAL_VOCABULARY = range(50257, 50304 + 1)  # tokens, without padding and with


def load(
    name_or_folder: str | os.PathLike = "tales", fetch: Callable[[str], Path] | None = None
) -> tuple[GPT2, Tokenizer]:
    """A model and its tokenizer.

    A name: "tales", which comes with this package, or a downloaded model: "124M", "355M", "774M",
    "1558M" (also "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") or "distilgpt2". Or a folder in
    Hugging Face's or OpenAI's layout; one that is called like a model is "./gpt2".
    A folder with a LoRA alone gives the model it belongs to with the LoRA merged in.
    A folder of a BERT or a GPT-1 gives that: `family.bert.Bert` or `family.gpt1.GPT1`.
    `fetch(name)` -> folder is asked for a model that is not on this machine; by default nobody is.

    Raises ValueError for an unknown name, FileNotFoundError for what is not on this machine, and
    CheckpointError (a ValueError) for files that are damaged, incomplete, or no GPT-2.
    """
    folder = find(name_or_folder, fetch)
    if adapter.is_adapter(folder):
        model, tokenizer = load(adapter.base_of(folder), fetch)
        return adapter.load(folder, model), tokenizer
    if checkpoint.relative(folder):
        from numpygpt.files import relatives  # the family is needed by nobody else

        return relatives.load(folder)
    tokenizer = read_tokenizer(folder)
    return checkpoint.load_folder(folder, tokenizer.n_vocab), tokenizer


def find(name_or_folder: str | os.PathLike, fetch: Callable[[str], Path] | None = None) -> Path:
    """The folder with a model's files; `fetch` and what it raises as in `load`."""
    if isinstance(name_or_folder, os.PathLike):
        return Path(name_or_folder)
    if name_or_folder == "tales":
        return _bundled(name_or_folder)
    # Here, because it takes as long to import as all the rest, and "tales" has no need of it.
    from numpygpt.files import download

    official = download.ALIASES.get(name_or_folder, name_or_folder)
    if official not in download.HUGGING_FACE_FILES:
        if os.path.exists(name_or_folder):
            return Path(name_or_folder)
        names = ", ".join(["tales", *download.HUGGING_FACE_FILES, *download.ALIASES])
        raise ValueError(
            f"{name_or_folder!r} is neither a folder nor the name of a model; the names are {names}"
        )
    folder = download.find(official)
    if folder is None and fetch is not None:
        return fetch(official)
    if folder is None:
        raise FileNotFoundError(
            f"the weights of {name_or_folder} are not on this machine: run "
            f"`numpygpt download {name_or_folder}`"
        )
    return folder


def _bundled(name):
    """The folder of a model that comes with this package: beside it in a clone, and in
    share/numpygpt of the place into which pip installed it."""
    beside = Path(__file__).resolve().parents[2]
    schemes = sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user")
    data = [Path(sysconfig.get_path("data", scheme)) for scheme in schemes]
    installed = [root / "share" / "numpygpt" for root in (beside, *data)]  # beside: pip --target
    places = [folder / name for folder in (beside / "weights", *installed)]
    if os.environ.get("NUMPYGPT_WEIGHTS"):
        places.insert(0, Path(os.environ["NUMPYGPT_WEIGHTS"]) / name)
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise FileNotFoundError(
        f"the bundled model is in none of {', '.join(map(str, places))}: install numpygpt again"
    )


def read_tokenizer(folder: str | os.PathLike) -> Tokenizer:
    """The vocabulary in a model's folder, or the official one where there is none and it fits.

    Read is tokenizer.json, or vocab.json and merges.txt, or encoder.json and vocab.bpe. Raises as
    `load`.
    """
    folder = Path(folder)
    n_vocab = checkpoint.read_config(folder).n_vocab
    if (folder / "tokenizer.json").is_file():
        return _read_tokenizer_json(folder / "tokenizer.json")
    if any(
        (folder / n).exists() for n in ("vocab.json", "merges.txt", "encoder.json", "vocab.bpe")
    ):
        try:
            return Tokenizer.read(folder)
        except ValueError as error:
            raise CheckpointError(str(error)) from None
    if n_vocab in OFFICIAL_VOCABULARY:
        return Tokenizer.gpt2()
    raise CheckpointError(
        f"{folder} has no vocabulary, and a model of {n_vocab:,} tokens is not trained with the "
        "official one of 50,257: put its vocab.json and merges.txt there"
    )


def _read_tokenizer_json(path):
    """The one file that transformers 5 saves: a vocabulary, its merges, and tokens added to it."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model, split = fields["model"], fields["pre_tokenizer"]
        kind = [model["type"], split["type"], split["add_prefix_space"], fields["normalizer"]]
        if kind != ["BPE", "ByteLevel", False, None] or model.get("ignore_merges"):
            raise ValueError(f"its kind is {kind}")
        added = {token["content"]: token["id"] for token in fields["added_tokens"]}
        ids = model["vocab"] | added
        tokens = sorted(ids, key=ids.get)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise ValueError("its ids are not 0, 1, 2, ...")
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        return Tokenizer(tokens, merges, added)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no GPT-2 tokenizer's ({error or type(error).__name__}): put vocab.json and "
            "merges.txt there instead"
        ) from None
