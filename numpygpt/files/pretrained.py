"""From a name or a folder to a model and a tokenizer."""

import os
import re
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path

from numpygpt.bpe import Tokenizer
from numpygpt.files import adapter, checkpoint, vocabulary
from numpygpt.formats import CheckpointError
from numpygpt.model import GPT2


def load(
    name_or_folder: str | os.PathLike = "stories", fetch: Callable[[str], Path] | None = None
) -> tuple[GPT2, Tokenizer]:
    """A model and its tokenizer.

    A name: "stories", which comes with this package, or a downloaded model: "124M", "355M", "774M",
    "1558M" (also "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl") or "distilgpt2". Or a folder in
    Hugging Face's or OpenAI's layout; one that is called like a model is "./gpt2". Or
    "organisation/name", if that stands in Hugging Face's cache on this machine.
    A folder with a LoRA alone gives the model it belongs to with the LoRA merged in.
    A folder of a BERT or a GPT-1 gives that: `family.bert.Bert` or `family.gpt1.GPT1`.
    `fetch(name)` -> folder is asked for a model that is not on this machine; by default nobody is.

    Raises ValueError for an unknown name, TypeError for what is neither text nor a path,
    FileNotFoundError for what is not on this machine, and CheckpointError (a ValueError) for files
    that are damaged, incomplete, or not a GPT-2.
    """
    folder = find(name_or_folder, fetch)
    if adapter.is_adapter(folder):
        return _with_lora(folder, fetch)
    if checkpoint.relative(folder):
        from numpygpt.files import relatives  # the family is needed by nobody else

        return relatives.load(folder)
    adapter.warn_of_one_beside(folder)
    tokenizer = read_tokenizer(folder)
    return checkpoint.load_folder(folder, rows_kept(folder, tokenizer)), tokenizer


def _with_lora(folder, fetch):
    """The model that a LoRA belongs to, with the LoRA merged in, and its tokenizer.

    That model may itself be one with a LoRA.
    """
    chain = [folder.resolve()]
    while adapter.is_adapter(chain[-1]):
        base = adapter.base_of(chain[-1])
        try:
            found = find(base, fetch).resolve()
        except (ValueError, FileNotFoundError) as error:
            raise type(error)(f"{chain[-1]} is a LoRA of {base!r:.200}, and {error}") from None
        if found in chain:
            raise CheckpointError(
                f"{chain[-1]} is a LoRA of {found}, which is one of it: get it again"
            )
        chain.append(found)
    model, tokenizer = load(chain.pop())
    if not isinstance(model, GPT2):
        raise CheckpointError(f"{folder} is a LoRA of {type(model).__name__}, not of a GPT-2")
    for one in reversed(chain):
        model = adapter.load(one, model)
    return model, tokenizer


def find(name_or_folder: str | os.PathLike, fetch: Callable[[str], Path] | None = None) -> Path:
    """The folder with a model's files; `fetch` and what it raises as in `load`."""
    if not isinstance(name_or_folder, str | os.PathLike):
        raise TypeError(f"give the name of a model or a folder, not {name_or_folder!r:.200}")
    if isinstance(name_or_folder, os.PathLike):
        return _snapshot_or_folder(Path(name_or_folder))
    if name_or_folder == "stories":
        return _bundled(name_or_folder)
    # Here, because it takes as long to import as all the rest, and "stories" has no need of it.
    from numpygpt.files import download

    official = download.ALIASES.get(name_or_folder, name_or_folder)
    if official not in download.HUGGING_FACE_FILES:
        if os.path.exists(name_or_folder):
            return _snapshot_or_folder(Path(name_or_folder))
        if name_or_folder == "tales":
            raise ValueError(
                'the model "tales" is no longer bundled: "stories" took its place as the default'
            )
        repositories = {r[0]: name for name, r in download.HUGGING_FACE_FILES.items()}
        if name_or_folder not in repositories:
            return _cached(name_or_folder)
        official = repositories[name_or_folder]
    folder = download.find(official)
    if folder is None and fetch is not None:
        return fetch(official)
    if folder is None:
        # Of a repository, `download` knows our name alone.
        name = official if "/" in name_or_folder else name_or_folder
        raise FileNotFoundError(
            f"the weights of {name_or_folder} are not on this machine: run "
            f"`numpygpt download {name}`"
        )
    return folder


def _snapshot_or_folder(folder):
    """The folder, or the snapshot in it if it is a repository in Hugging Face's cache."""
    from numpygpt.files import download

    if not (folder / "snapshots").is_dir() or (folder / "config.json").exists():
        return folder
    snapshot = download.cached_snapshot(folder)
    if snapshot is None:
        raise ValueError(
            f"{folder} is a repository in Hugging Face's cache, but its refs/main names none of "
            "its snapshots: name one of the folders in its snapshots"
        )
    return snapshot


def _cached(name):
    """The snapshot of "organisation/name" in Hugging Face's cache."""
    from numpygpt.files import download

    names = ", ".join(["stories", *download.HUGGING_FACE_FILES, *download.ALIASES])
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        raise ValueError(
            f"{name!r} is neither a folder nor the name of a model; the names are {names}"
        )
    repository = download.cached_repository(name)
    if not repository.is_dir():
        raise ValueError(
            f"{name!r} is neither a folder nor the name of a model, and Hugging Face's cache has "
            f"no {repository}; the names are {names}"
        )
    return _snapshot_or_folder(repository)


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
    """The tokenizer in a model's folder, or the official one where there is none and it fits.

    Raises as `load`.
    """
    return vocabulary.read(folder, checkpoint.read_config(folder).n_vocab)


def rows_kept(folder: str | os.PathLike, tokenizer: Tokenizer) -> int:
    """How many rows of the embedding belong to tokens; the others are padding, which is said.

    Vocabularies are padded to a rounder number, 50257 to 50304, for the sake of GPUs. No text has
    those ids and no training meant their rows, yet their logits would get some probability. Rows
    are padding only if no file names their ids. Raises CheckpointError for a tokenizer that is not
    the model's.
    """
    rows = checkpoint.read_config(folder).n_vocab
    checkpoint.check_vocabulary(rows, tokenizer, str(folder))
    named = [i for i in vocabulary.named_by_configuration(folder) if tokenizer.n_vocab <= i < rows]
    if named:
        warnings.warn(
            f"{folder} names the id {named[0]}, for which its vocabulary of {tokenizer.n_vocab:,} "
            f"tokens has no text: all {rows:,} rows of the embedding are kept",
            stacklevel=3,
        )
    elif tokenizer.n_vocab < rows:
        warnings.warn(
            f"{folder} has {rows:,} rows in its embedding for {tokenizer.n_vocab:,} tokens: the "
            "others are padding that no file names, and are cut off",
            stacklevel=3,
        )
    return rows if named else min(rows, tokenizer.n_vocab)
