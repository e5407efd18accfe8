"""A LoRA by itself, A and B without the model they change, in the layout of Hugging Face's PEFT.

    adapter_model.safetensors   base_model.model.transformer.h.0.attn.c_attn.lora_A.weight (r, in)
                                ...                                       .lora_B.weight (out, r)
    adapter_config.json         r, lora_alpha, target_modules, and the model it belongs to

PEFT's are the transposes of `lora.py`'s A (in, r) and B (r, out).
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np

from numpygpt.files import checkpoint, results, text
from numpygpt.files.atomic import writing
from numpygpt.formats import CheckpointError, safetensors
from numpygpt.lora import MATRICES, LoRA
from numpygpt.model import GPT2

CONFIG, WEIGHTS = checkpoint.LORA, "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # what older versions of PEFT wrote
PREFIX = "base_model.model.transformer."
BASE = "sha256 of the matrices it changes"
# What changes the formula, and the values with which it is the one of `lora.py`.
PLAIN = {
    # Others, such as "pissa", take A B off the model's own weights when the LoRA is loaded.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
    "alora_invocation_tokens": (None,),  # only what follows these would be changed
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "fan_in_fan_out": (True,),  # weights are (in, out)
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "exclude_modules": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False,),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "use_bdlora": (None, False),
    "use_qalora": (False,),
}
# What is read elsewhere, or only matters to whoever trains it.
OTHERS = {
    *("base_model_name_or_path", "r", "lora_alpha", "target_modules", "task_type", "lora_dropout"),
    *("inference_mode", "peft_version", "revision", "auto_mapping", "megatron_core"),
    *("eva_config", "loftq_config", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
INSTEAD = "merge it into its model with PEFT's merge_and_unload(), and save that"


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a LoRA and no model of its own."""
    return _is_file(folder, CONFIG) and not (
        _is_file(folder, "config.json")
        and (_is_file(folder, checkpoint.WEIGHTS) or _is_file(folder, checkpoint.SHARDS))
    )


def warn_of_one_beside(folder: str | os.PathLike) -> None:
    """Say that a LoRA stands in the folder of a model that is read without it."""
    if _is_file(folder, CONFIG):
        warnings.warn(
            f"{folder} holds a model and a LoRA ({CONFIG}): the model is read and the LoRA is not, "
            "where transformers takes the LoRA with the model it names; keep one of them there",
            stacklevel=3,
        )


def _is_file(folder, name):
    return (Path(folder) / name).is_file()


def save(adapter: LoRA, base: str, folder: str | os.PathLike) -> None:
    """Write A and B, and the name or folder of the model they belong to, with the `digest` of what
    they change; PEFT loads it too."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for name, value in adapter.params.items():
        arrays[f"{PREFIX}{name}.weight"] = np.ascontiguousarray(value.T)
    safetensors.write(folder / WEIGHTS, arrays, {"format": "pt", BASE: digest(adapter)})
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": list(adapter.matrices),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "inference_mode": True,
    }
    with writing(folder / CONFIG) as file:
        file.write(json.dumps(fields, indent=2) + "\n")


def digest(adapter: LoRA) -> str:
    """sha256 of the matrices that a LoRA changes: what it learned is for these alone."""
    return results.digest_arrays(adapter.base)


def base_of(folder: str | os.PathLike) -> str:
    """The name or folder of the model that an adapter belongs to."""
    return _read_config(Path(folder))["base_model_name_or_path"]


def load(folder: str | os.PathLike, model: GPT2) -> GPT2:
    """The model with the adapter of the folder merged into it.

    Warns where the model's weights are no longer those with which the adapter was trained. Raises
    CheckpointError for what is damaged, of another kind of adapter, or of another model.
    """
    folder = Path(folder)
    config = _read_config(folder)
    matrices = _matrices(config, folder, model.config.n_layer)
    arrays = _read_arrays(folder)
    if config["r"] > max((max(array.shape, default=0) for array in arrays.values()), default=0):
        raise CheckpointError(
            f"{folder / CONFIG} says r = {config['r']}, but no array in {WEIGHTS} is as large: get "
            "both again"
        )
    try:
        adapter = LoRA(model, config["r"], config["lora_alpha"], matrices)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    expected = {f"{PREFIX}{name}.weight": name for name in adapter.params}
    if arrays.keys() != expected.keys():
        wrong = sorted(arrays.keys() ^ expected.keys())
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit this model: {wrong[0]!r:.99} is in one of them alone"
        )
    for name, ours in expected.items():
        array = arrays[name].T
        if array.shape != adapter.params[ours].shape or array.dtype.kind != "f":
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has shape {arrays[name].shape} and dtype "
                f"{array.dtype}, but this model takes {adapter.params[ours].shape[::-1]} of "
                "floating-point numbers"
            )
        adapter.params[ours][...] = array
    trained_with = safetensors.read_metadata(folder / WEIGHTS).get(BASE)  # PEFT does not write it
    if trained_with and trained_with != digest(adapter):
        warnings.warn(
            f"{folder} is a LoRA of {config['base_model_name_or_path']} as it was before: its "
            "weights have changed since, and what was learned may not fit them",
            stacklevel=2,
        )
    return adapter.merged()


def _read_arrays(folder):
    if not _is_file(folder, WEIGHTS) and _is_file(folder, PICKLE):
        raise CheckpointError(
            f"{folder / PICKLE} is a pickle, which can run any code when opened, so numpygpt never "
            f"opens one; where you trust it, load it with PEFT and save it, which makes {WEIGHTS}"
        )
    return safetensors.read(folder / WEIGHTS)


def _read_config(folder):
    path = folder / CONFIG
    try:
        config = text.read_json(path)
        base = config["base_model_name_or_path"]
        if not isinstance(base, str) or type(config["r"]) is not int:
            raise TypeError("r or base_model_name_or_path")
        float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} does not describe a LoRA: {error}") from None
    for name, meant in PLAIN.items():
        value = config.get(name, meant[0])
        if value not in meant:
            raise _refused(path, name, value)
    for name in sorted(config.keys() - PLAIN.keys() - OTHERS):
        if config[name] not in (None, False, [], {}):
            raise _refused(path, name, config[name])
    return config


def _refused(path, name, value):
    return CheckpointError(f"{path}: {name} is {value!r:.60}, which is not read here: {INSTEAD}")


def _matrices(config, folder, n_layer):
    """Those of `MATRICES` that target_modules means: a name means all modules that end in it.

    It must mean them in every block: `LoRA` changes a matrix in all of them.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise CheckpointError(
            f"{folder / CONFIG}: target_modules must be a list of names, not {targets!r:.60}: "
            f"{INSTEAD}"
        )
    meant = {  # module -> its matrix
        f"transformer.h.{i}.{matrix}": matrix for i in range(n_layer) for matrix in MATRICES
    }
    found = {m for m in meant if any(m == t or m.endswith(f".{t}") for t in targets)}
    unknown = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in meant)]
    if unknown:
        raise CheckpointError(
            f"{folder / CONFIG}: {unknown[0]!r:.60} is not changed by a LoRA here: {INSTEAD}"
        )
    matrices = tuple(m for m in MATRICES if any(meant[module] == m for module in found))
    if partly := sorted(m for m in meant if meant[m] in matrices and m not in found):
        raise CheckpointError(
            f"{folder / CONFIG}: target_modules leaves {partly[0]} out, but not the same matrix of "
            f"other blocks: {INSTEAD}"
        )
    return matrices
