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

from numpygpt.files import results, text
from numpygpt.files.atomic import writing
from numpygpt.formats import CheckpointError, safetensors
from numpygpt.lora import MATRICES, LoRA
from numpygpt.model import GPT2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.transformer."
BASE = "sha256 of the matrices it changes"
# What changes the formula, and the values with which it is the one of `lora.py`.
PLAIN = {
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


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a LoRA and no model of its own."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


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
    try:
        adapter = LoRA(model, config["r"], config["lora_alpha"], _matrices(config, folder))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    arrays = safetensors.read(folder / WEIGHTS)
    expected = {f"{PREFIX}{name}.weight": name for name in adapter.params}
    if arrays.keys() != expected.keys():
        wrong = sorted(arrays.keys() ^ expected.keys())
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit this model: {wrong[0]!r:.99} is in one of them alone"
        )
    for name, ours in expected.items():
        array = arrays[name].T
        if array.shape != adapter.params[ours].shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {name} has shape {arrays[name].shape}, but this model takes "
                f"{adapter.params[ours].shape[::-1]}"
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
            raise CheckpointError(f"{path}: {name} is {value!r:.60}, which is not read here")
    return config


def _matrices(config, folder):
    """Those of `MATRICES` that target_modules means: a name means all modules that end in it."""
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        raise CheckpointError(f"{folder / CONFIG}: target_modules must be a list of names")
    found = tuple(m for m in MATRICES if any(m == t or m.endswith(f".{t}") for t in targets))
    unknown = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in MATRICES)]
    if unknown:
        raise CheckpointError(
            f"{folder / CONFIG}: {unknown[0]!r:.60} is not changed by a LoRA here"
        )
    return found
