"""Anybody's arrays to GPT-2's official names, every name and shape accounted for; a model to and
from a folder.

                  weights                                sizes         the same array
    Hugging Face  model.safetensors, or the shards that    config.json   h.0.attn.c_attn.weight
                  model.safetensors.index.json lists                     transformer.h.0.attn...
    OpenAI        model.ckpt.index, model.ckpt.data-...    hparams.json  model/h0/attn/c_attn/w

`h.0.attn.c_attn.weight` is what is called official here. Weights are (in, out) in all of them, so
nothing is transposed.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
from pathlib import Path

import numpy as np

from numpygpt.bpe import Tokenizer
from numpygpt.files import text, vocabulary
from numpygpt.files.atomic import locked, writing
from numpygpt.formats import CheckpointError, safetensors, tensorflow
from numpygpt.model import GPT2, Config, parameter_shapes

WEIGHTS, SHARDS = "model.safetensors", "model.safetensors.index.json"
# Our names of the sizes -> theirs, the first that is there: config.json, then hparams.json.
SIZES = {
    "n_vocab": ("vocab_size", "n_vocab"),
    "n_ctx": ("n_positions", "n_ctx"),
    "n_embd": ("n_embd",),
    "n_head": ("n_head",),
    "n_layer": ("n_layer",),
}
# Other names by which transformers sets them as well, of GPT-1 too; `spelled_out` renames them.
OTHER_SPELLINGS = {
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
# The switches of config.json that change what is computed, and the values that mean GPT-2.
GPT2_ALONE = {
    "model_type": ("gpt2",),
    # names of the tanh GELU; the last two agree with it to 1e-12
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
# Those whose folders `numpygpt.load` reads as well: model_type -> its name. See `relatives.py`.
RELATIVES = {"bert": "BERT", "openai-gpt": "GPT-1"}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# The first bytes of torch's: a zip archive, or a pickle alone.
PICKLED = (b"PK\x03\x04", b"\x80")
FOREIGN = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx")  # other programs' weights
# Pickles of a training run that hold no weights.
BESIDE_WEIGHTS = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args).*")
# What others put before every name: of a model that torch compiled, of one in several processes.
WRAPPERS = ("_orig_mod.", "module.")
MAX_PADDING = 1024  # rows; more than that is not padding, but another vocabulary
MAX_LISTED = 10  # of a kind, in one message
# Bytes whose sha256 takes about a fifteenth of a second.
LARGE = 100_000_000  # any value is right


def load_folder(folder: str | os.PathLike, n_vocab: int | None = None) -> GPT2:
    """The model in a folder, float32 or float64 as its files are (16 bits are widened to 32).

    n_vocab: how many rows of the embedding to keep, so that padding can be cut off; by default all
    that the configuration says. Arrays that are float32 stay views of the memory-mapped file.
    Raises CheckpointError for what is damaged, incomplete or not a GPT-2, OSError for
    what is not there.
    """
    folder = Path(folder)
    config, tied = _read_config(folder)
    model = from_arrays(read_arrays(folder), config, n_vocab, tied, str(folder))
    if tied and "lm_head.weight" in model.params:
        warnings.warn(
            f"{folder} holds an lm_head.weight that differs from wte.weight, though its "
            "configuration says that they are the same (tie_word_embeddings): both are kept",
            stacklevel=2,
        )
    return model


def from_arrays(
    arrays: dict[str, np.ndarray],
    config: Config,
    n_vocab: int | None = None,
    tied: bool = True,
    source: str = "this dict",
) -> GPT2:
    """A model from arrays under Hugging Face's or OpenAI's names.

    n_vocab: as in `load_folder`. tied: False requires an `lm_head.weight`; otherwise one that is
    there and differs from `wte.weight` is kept, and one that is equal is the tied one. `source` is
    what messages call the arrays. float32 and float64 side by side become float64, which keeps
    every value. Raises CheckpointError with all that is missing, unknown or misshapen.
    """
    if n_vocab is not None and not n_vocab <= config.n_vocab < n_vocab + MAX_PADDING:
        raise CheckpointError(_other_vocabulary(source, config.n_vocab, n_vocab))
    arrays = _unwrap(arrays, source) if arrays else {}
    names, twice = {}, []
    for name in arrays:
        official = official_name(name)
        if official in names:
            twice.append(f"{names[official]!r:.99} and {name!r:.99}")
        names[official] = name
    arrays = {official: _squeeze(name, arrays[name]) for official, name in names.items()}
    arrays = _tie(arrays, tied)
    shapes = _checked_shapes(arrays, config, tied, twice, source)
    params = one_dtype({name: arrays[name] for name in shapes}, source)
    if n_vocab is not None:  # a slice is a view, so it costs nothing
        config = dataclasses.replace(config, n_vocab=n_vocab)
        rows = ("wte.weight", "lm_head.weight")
        params = {n: a[:n_vocab] if n in rows else a for n, a in params.items()}
    return GPT2(config, params)


def official_name(name: str) -> str:
    """`model/h0/attn/c_attn/b` or `transformer.h.0.attn.c_attn.bias` -> `h.0.attn.c_attn.bias`."""
    if not name.startswith("model/"):
        return name.removeprefix("transformer.")
    if name in ("model/wte", "model/wpe"):
        name += "/w"
    *path, kind = re.sub(r"^model/h(\d+)/", r"model/h.\1/", name).split("/")[1:]
    return ".".join([*path, {"w": "weight", "g": "weight", "b": "bias"}.get(kind, kind)])


def _squeeze(name, array):
    """OpenAI's matrices are those of a convolution of width 1: (1, in, out) -> (in, out)."""
    array = np.asarray(array)
    is_convolution = name.startswith("model/") and array.ndim == 3 and array.shape[0] == 1
    return array[0] if is_convolution else array


def _unwrap(arrays, source):
    """Without what stands before every name since the model was wrapped when it was saved."""
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in arrays)), None):
        arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
        warnings.warn(f"{source}: {wrapper!r} is taken off the arrays' names", stacklevel=4)
    return arrays


def _tie(arrays, tied):
    """Without an lm_head.weight that only repeats wte.weight, as some files do."""
    others = {name: array for name, array in arrays.items() if name != "lm_head.weight"}
    head, wte = arrays.get("lm_head.weight"), arrays.get("wte.weight")
    if head is None:
        return arrays
    if wte is None and tied:  # safetensors' save_model keeps the first of two names: lm_head
        return others | {"wte.weight": head}
    return others if wte is not None and np.array_equal(head, wte) else arrays


def check_vocabulary(rows: int, tokenizer: Tokenizer, source: str) -> None:
    """Raises CheckpointError where a tokenizer is not that of an embedding with that many rows.

    It may have fewer tokens, where the embedding is padded, and special tokens beyond the rows,
    where tokens were added to it alone: those are an error when they are used.
    """
    special = set(tokenizer.special.values())
    if all(i in special for i in range(rows, tokenizer.n_vocab)):
        if rows < tokenizer.n_vocab + MAX_PADDING:
            return
    raise CheckpointError(_other_vocabulary(source, rows, tokenizer.n_vocab))


def _other_vocabulary(source, rows, n_vocab):
    return (
        f"{source} is a model of {rows:,} tokens, but its tokenizer has {n_vocab:,}: they do not "
        "belong together, so find the vocabulary that the model was trained with"
    )


def _checked_shapes(arrays, config, tied, twice, source):
    """{name: shape} of the parameters, or one error with all that is wrong with the arrays."""
    if config.n_layer > len(arrays):  # nor should a wrong number be believed and counted up to
        raise CheckpointError(
            f"{source} should have {config.n_layer:,} layers, but holds {len(arrays)} arrays: its "
            "configuration and its weights do not belong together, so get both again"
        )
    shapes = parameter_shapes(config, tied and "lm_head.weight" not in arrays)
    known = shapes | mask_shapes(config)
    misshapen = [
        f"{name} is {arrays[name].shape} where {shape} is expected{_hint(arrays[name], shape)}"
        for name, shape in known.items()
        if name in arrays and arrays[name].shape != shape
    ]
    missing = [name for name in shapes if name not in arrays]
    unknown = [name for name in arrays if name not in known]
    if prefix := _prefix(missing, unknown):
        raise CheckpointError(
            f"{source}: {len(unknown)} names begin with {prefix!r:.99}, and without it they are "
            f"GPT-2's: take it off, {{name.removeprefix({prefix!r:.99}): array for name, array in "
            "arrays.items()}"
        )
    faults = {
        "missing": missing,
        "unknown": [f"{name!r:.99}" for name in unknown],
        "there twice": twice,
        "misshapen": misshapen,
    }
    raise_all(
        f"{source} is not the GPT-2 that its configuration describes (correct that, or get the "
        "weights again)",
        faults,
    )
    return shapes


def _prefix(missing, unknown):
    """What stands before all unknown names, if they are the missing ones but for that."""
    if not missing:
        return None
    for prefix in {n.removesuffix(missing[0]) for n in unknown if n.endswith(missing[0])}:
        bare = {official_name(n.removeprefix(prefix)) for n in unknown if n.startswith(prefix)}
        if prefix and len(bare) == len(unknown) and set(missing) <= bare:
            return prefix
    return None


def mask_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Buffers in older Hugging Face files, the official one too: constants, not parameters.

    `attn.bias` is the causal mask; its name is easily mistaken for `attn.c_attn.bias`.
    """
    shapes = {}
    for i in range(config.n_layer):
        shapes[f"h.{i}.attn.bias"] = (1, 1, config.n_ctx, config.n_ctx)
        shapes[f"h.{i}.attn.masked_bias"] = ()
    return shapes


def _hint(array, shape):
    if array.ndim == 2 and array.shape == shape[::-1]:
        return " (looks transposed: GPT-2 stores (in, out), torch's nn.Linear (out, in))"
    return ""


def raise_all(what, faults):
    """One CheckpointError with all faults, kind -> items; none where there are no items."""
    texts = []
    for kind, items in faults.items():
        more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
        if items:
            texts.append(f"{kind}: {', '.join(items[:MAX_LISTED])}{more}")
    if texts:
        raise CheckpointError(f"{what}; {'; '.join(texts)}")


def one_dtype(params, source):
    """All float64 if any is, all float32 otherwise; what is so already is not copied."""
    kinds = {name: array.dtype for name, array in params.items()}
    sizes = (2, 4, 8)  # bytes
    foreign = [f"{n} is {d}" for n, d in kinds.items() if d.kind != "f" or d.itemsize not in sizes]
    raise_all(f"{source} should hold floating-point numbers", {"of another kind": foreign})
    dtype = np.float64 if any(d.itemsize == 8 for d in kinds.values()) else np.float32
    return {name: np.asarray(array, dtype) for name, array in params.items()}


# ---- the files of a folder -----------------------------------------------------------------------


def read_config(folder: str | os.PathLike) -> Config:
    """The sizes in config.json or hparams.json. Raises as `load_folder`."""
    return _read_config(Path(folder))[0]


def _read_config(folder):
    """-> Config, and whether the unembedding is the embedding."""
    path = config_file(folder)
    fields = spelled_out(text.read_json(path), path)
    if kind := relative(folder):
        raise CheckpointError(not_gpt2(folder, kind))
    for key, allowed in GPT2_ALONE.items():
        if key in fields and fields[key] not in allowed:
            raise CheckpointError(
                f"{path} says {key} = {fields[key]!r:.99}, but GPT-2 has {allowed[0]!r}: this "
                "model would come out wrong"
            )
    sizes = {ours: [fields[t] for t in theirs if t in fields] for ours, theirs in SIZES.items()}
    raise_all(
        f"{path} is incomplete, get it again",
        {"missing": [SIZES[name][0] for name, found in sizes.items() if not found]},
    )
    epsilon, tied = fields.get("layer_norm_epsilon", 1e-5), fields.get("tie_word_embeddings", True)
    if type(epsilon) not in (int, float) or type(tied) is not bool:
        raise CheckpointError(
            f"{path} has layer_norm_epsilon {epsilon!r:.99} and tie_word_embeddings {tied!r:.99}: "
            "expected a number, and true or false"
        )
    sizes = {name: found[0] for name, found in sizes.items()}
    try:
        config = Config(**sizes, n_inner=fields.get("n_inner"), layer_norm_epsilon=epsilon)
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return config, tied


def spelled_out(fields: dict, path: Path) -> dict:
    """The fields of config.json with the sizes under GPT-2's names; refused are two that differ."""
    for other, name in OTHER_SPELLINGS.items():
        if other in fields and fields.setdefault(name, fields[other]) != fields[other]:
            raise CheckpointError(
                f"{path} says {name} = {fields[name]!r:.99} and {other} = {fields[other]!r:.99}, "
                "which are two names of one size: take the wrong one out"
            )
    return fields


def relative(folder: str | os.PathLike) -> str | None:
    """ "BERT" or "GPT-1" where the folder holds one of those. Raises as `load_folder`."""
    kind = text.read_json(config_file(Path(folder))).get("model_type")
    return RELATIVES.get(kind) if isinstance(kind, str) else None


def not_gpt2(source, kind):
    """What is said of a relative where only a GPT-2 will do."""
    return (
        f"{source} is a {kind}, and this works on a GPT-2 alone: in Python numpygpt.load reads it, "
        "and `numpygpt info` shows it"
    )


def config_file(folder):
    """The folder's config.json or hparams.json, or an error that says why there is none."""
    if not folder.exists():
        raise FileNotFoundError(f"there is no folder {folder}: check the path")
    if not folder.is_dir():
        raise CheckpointError(_refusal(folder, folder) or f"{folder} is a file: name its folder")
    for name in ("config.json", "hparams.json"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(
        f"{folder} has neither config.json (Hugging Face) nor hparams.json (OpenAI): it is "
        "not the folder of a model, or was not saved to the end"
    )


def read_arrays(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a folder under the names in its files. Raises as `load_folder`."""
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        _check_once(folder / WEIGHTS)
        return safetensors.read(folder / WEIGHTS)
    if (folder / SHARDS).is_file():
        return _read_shards(folder)
    names = sorted(os.listdir(folder))
    if any(name.endswith(".index") for name in names):
        return tensorflow.read(folder)
    # Pickles first, as older repositories have a .h5 and a .msgpack of the same weights beside one.
    for name in sorted(names, key=lambda name: name.endswith(FOREIGN)):
        if refusal := _refusal(folder / name, folder):
            raise CheckpointError(refusal)
    if others := [name for name in names if re.fullmatch(r"model.*\.safetensors", name)]:
        raise CheckpointError(
            f"{folder} holds {', '.join(others[:3])}, but neither {WEIGHTS} nor {SHARDS}: get the "
            f"index of the shards, or call one that holds all weights {WEIGHTS}"
        )
    raise CheckpointError(
        f"{folder} holds no weights: numpygpt reads {WEIGHTS}, {SHARDS} with its shards, or "
        "OpenAI's model.ckpt.index with its data"
    )


def _check_once(path):
    """The sha256 of a file that `save` wrote; of a large one it is noted beside it which version
    held, as computing it again would take longer than all the rest of loading."""
    status, note = path.stat(), path.with_name(f".{path.name}.checked")
    version = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}\n"
    with contextlib.suppress(OSError, ValueError):
        if note.read_text(encoding="utf-8") == version:
            return
    if safetensors.check(path) and status.st_size >= LARGE:
        with contextlib.suppress(OSError, ValueError), writing(note) as file:
            file.write(version)


def _refusal(path, folder):
    """Why a pickle is not opened, and the line that makes it a file which is; or that weights are
    of a foreign kind; None for other files."""
    is_pickle = path.suffix in PICKLES and not BESIDE_WEIGHTS.fullmatch(path.name)
    if path.suffix in FOREIGN or (is_pickle and not _begins_as_pickle(path)):
        return (
            f"{path} is not of a kind that numpygpt reads: load it with the program it is for, and "
            f"save {WEIGHTS}, as transformers' `model.save_pretrained(folder)` does"
        )
    if not is_pickle:
        return None
    folder = folder if folder.is_dir() else folder.parent
    # pytorch_model-00001-of-00002.bin is one of several, which belong together.
    start = "pytorch_model" if path.name.startswith("pytorch_model") else path.name
    files = f"[d + f for f in sorted(os.listdir(d)) if f.startswith({_literal(start)})"
    files += f" and f.endswith({_literal(path.suffix)})]"
    return (
        f"{path} is a pickle, which can run any code when opened, so numpygpt never opens one; "
        'convert it where you trust it: python -c "import os, torch, safetensors.torch as s; '
        f"d = {_literal(str(folder) + os.sep)}; w = [torch.load(f, 'cpu', weights_only=True) for f "
        f"in {files}]; w = [x.get('model', x.get('state_dict', x)) for x in w]; "
        "s.save_file({k: v.clone().contiguous() for x in w for k, v in x.items()}, "
        f"d + '{WEIGHTS}')\""
    )


def _begins_as_pickle(path):
    """False for what only has a name as torch's files, as llm.c's gpt2_124M.bin."""
    if not path.is_file():
        return True
    with open(path, "rb") as file:
        return file.read(4).startswith(PICKLED)


def _literal(string):
    """A string in Python's quotes, of which no shell expands anything in double quotes."""
    safe = (c if c.isalnum() or c in "/._- :" else f"\\U{ord(c):08x}" for c in string)
    return f"'{''.join(safe)}'"


def _read_shards(folder):
    """The union of the shards, each of which must hold exactly what the index says."""
    index = folder / SHARDS
    places = text.read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map: get it again")
    files = {}  # file -> names
    for name, file in places.items():
        # A path could lead anywhere: "../", "/etc/", "C:".
        if type(file) is not str or not re.fullmatch(r"[\w][\w.\-]*\.safetensors", file, re.ASCII):
            raise CheckpointError(
                f"{index} puts {name!r:.99} into {file!r:.99}, which is not the plain name of a "
                ".safetensors file beside it: do not use this checkpoint"
            )
        files.setdefault(file, set()).add(name)
    absent = [file for file in sorted(files) if not (folder / file).is_file()]
    raise_all(f"{folder} is incomplete, get the rest", {"missing": absent})
    arrays = {}
    for file, expected in sorted(files.items()):
        shard = safetensors.read(folder / file)
        faults = {
            "missing": [f"{name!r:.99}" for name in sorted(expected - shard.keys())],
            "not in the index": [f"{name!r:.99}" for name in sorted(shard.keys() - expected)],
        }
        raise_all(f"{folder / file} does not fit {SHARDS}, get both again", faults)
        arrays |= shard
    return arrays


# ---- saving --------------------------------------------------------------------------------------

# Files that transformers would read before, or besides, those that a save writes.
STALE = ("tokenizer.json", "added_tokens.json", "special_tokens_map.json", "generation_config.json")
LORA = "adapter_config.json"  # so would it that, where it is beside a whole model


def save(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike, dtype=None) -> None:
    """Write a folder that `load` and Hugging Face's `from_pretrained` load unchanged.

    config.json, model.safetensors and the vocabulary, with all that `load` knew of it: special
    tokens, what ends and begins, the space or token before a text. dtype: float16, float32 or
    float64; by default the model's own, which loads again bit for bit. A save that is killed leaves
    the old folder as it was or, in the moment of the renames, one without config.json, which nobody
    takes for whole.

    Raises ValueError where tokenizer, dtype or folder do not fit, BlockingIOError while another
    process writes in the folder.
    """
    contents = _contents(model, tokenizer, Path(folder), dtype)
    with locked(folder):
        _replace(Path(folder), tokenizer, *contents)


def save_in_locked(model: GPT2, tokenizer: Tokenizer, folder: str | os.PathLike, dtype=None):
    """`save`, for whoever has locked the folder, as a training run has."""
    _replace(Path(folder), tokenizer, *_contents(model, tokenizer, Path(folder), dtype))


def _contents(model, tokenizer, folder, dtype):
    """The fields of config.json, and the arrays under Hugging Face's names."""
    if not isinstance(model, GPT2):
        raise TypeError(
            f"a {type(model).__name__} cannot be saved, only a GPT-2: copy the folder it came from"
        )
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            f"a model is saved with its Tokenizer, as numpygpt.load gives it, not with a "
            f"{type(tokenizer).__name__}"
        )
    check_target(folder, tokenizer)
    tied = "lm_head.weight" not in model.params
    _checked_shapes(model.params, model.config, tied, [], "the model that is to be saved")
    check_vocabulary(model.config.n_vocab, tokenizer, "what is to be saved")
    params = _narrow(model.params, np.dtype(model.dtype if dtype is None else dtype))
    config = _config_fields(model.config, tied, tokenizer, params)
    names = {n: n if n == "lm_head.weight" else f"transformer.{n}" for n in params}
    return config, {names[n]: array for n, array in params.items()}


def _replace(folder, tokenizer, config, arrays):
    """Write all files beside those of the folder, then put them in their places."""
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)  # of a save that was killed
    staging.mkdir(parents=True)
    try:
        safetensors.write(staging / WEIGHTS, arrays, {"format": "pt"}, digest=True)
        vocabulary.write(tokenizer, staging, config["n_ctx"])
        with writing(staging / "config.json") as file:
            file.write(json.dumps(config, indent=2) + "\n")
        (folder / "config.json").unlink(missing_ok=True)
        for name in (WEIGHTS, *vocabulary.files(tokenizer), "config.json"):
            os.replace(staging / name, folder / name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_target(folder: Path, tokenizer: Tokenizer | None = None) -> None:
    """Raises ValueError, as `save` does, for a folder with files that would hide what it writes.

    tokenizer: of the model that is written, or None where only a LoRA may be.
    """
    names = STALE if tokenizer is None else (*STALE, LORA)
    written = vocabulary.files(tokenizer) if tokenizer else []
    stale = [name for name in names if name not in written and (folder / name).exists()]
    if stale:
        raise ValueError(
            f"{folder} holds {' and '.join(stale)}, which transformers would read before what is "
            "saved there: choose another folder, or remove it first"
        )


def _narrow(params, dtype):
    """The parameters in another dtype; a number too large for it is an error, not an infinity."""
    if dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"dtype must be float16, float32 or float64, not {dtype}")
    narrow = {}
    for name, array in params.items():
        with np.errstate(over="ignore"):
            narrow[name] = np.asarray(array, dtype)
        if array.dtype != dtype and np.any(np.isinf(narrow[name]) & ~np.isinf(array)):
            raise ValueError(f"{name} has numbers beyond the range of {dtype}: save a wider dtype")
    return narrow


def _config_fields(config, tied, tokenizer, params):
    """config.json as transformers writes it, without what it only needs for training."""
    ends = list(tokenizer.ends)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": int(config.n_vocab),
        "n_positions": int(config.n_ctx),
        "n_ctx": int(config.n_ctx),
        "n_embd": int(config.n_embd),
        "n_layer": int(config.n_layer),
        "n_head": int(config.n_head),
        "n_inner": int(config.n_inner),
        "layer_norm_epsilon": float(config.layer_norm_epsilon),
        "activation_function": "gelu_new",
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "torch_dtype": str(params["wte.weight"].dtype),
    }
