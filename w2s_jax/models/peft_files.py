"""Read a folder with PEFT's low-rank adapters as its base model with the adapters merged.

The folder has adapter_config.json, which names the base, and adapter_model.safetensors. A tensor of
the base becomes W + scale * B A when it is read; tensors that PEFT saved whole replace the base's.
Imports no JAX.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import Family, classifier_name, file_names
from w2s_jax.models.families.base import tensor_names
from w2s_jax.models.hf_models import local_folder
from w2s_jax.models.locations import split_layers

Stored = dict[str, files.StoredTensor]

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])\.(default\.)?weight")
_BLOCK = re.compile(r"\.(\d+)\.")
# Options under which B A is not simply added to the base's weight, and their only allowed values.
_OPTIONS: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "layer_replication": (None,),
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class Adapters:
    """Adapters, and where their base is.

    Attributes:
      config: content of adapter_config.json.
      base: folder of the base model.
      file: adapter_model.safetensors.
      layers: the number of first layers of the base that are the model; None: all.
    """

    config: dict[str, Any]
    base: Path
    file: Path
    layers: int | None = None


def is_adapter_folder(folder: Path) -> bool:
    """Return whether a folder has adapters and no model of its own."""
    whole = any((folder / name).is_file() for name in (files.SINGLE, files.INDEX))
    return (folder / files.ADAPTER_CONFIG).is_file() and not whole


def read_adapters(folder: Path) -> Adapters:
    """Read adapter_config.json and find the base model.

    Raises:
      InputError: if the adapters are of an unsupported kind, or the base is not found.
    """
    path = folder / files.ADAPTER_CONFIG
    config = files.read_object(path)
    for option, allowed in _OPTIONS.items():
        value = config.get(option)
        if isinstance(value, dict | list | float) or value not in allowed:
            raise InputError(
                f"{path}: {option}: {str(value)[:80]!r}; allowed: "
                f"{', '.join(str(a) for a in allowed if a is not None) or None} (merge the "
                "adapters with PEFT, and give the whole model)"
            )
    name = config.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{path}: base_model_name_or_path: {str(name)[:80]!r}; give the folder or hub id of "
            "the base model"
        )
    layers = None
    try:
        name, layers = split_layers(name)
        beside = folder / name
        base = beside if beside.is_dir() and not Path(name).is_dir() else local_folder(name)
    except (InputError, OSError, ValueError) as error:
        raise InputError(
            f"{folder}: has adapters of the base model {name[:80]!r}, which is not found ({error});"
            f" set base_model_name_or_path in {files.ADAPTER_CONFIG}"
        ) from error
    if base.resolve() == folder.resolve() or not (base / files.CONFIG).is_file():
        raise InputError(
            f"{folder}: its base model {name[:80]!r} is not a model in Hugging Face's layout; set "
            f"base_model_name_or_path in {files.ADAPTER_CONFIG}"
        )
    file = folder / files.ADAPTER
    if not file.is_file():
        raise InputError(f"{folder}: has {files.ADAPTER_CONFIG}, but no {files.ADAPTER}")
    return Adapters(config, base, file, layers)


def merged(
    adapters: Adapters,
    family: Family,
    config: ModelConfig,
    stored: Stored,
    layers: int | None = None,
) -> Stored:
    """Return the tensors of the base with the adapters merged.

    Args:
      adapters: the adapters.
      family: the family of the base.
      config: the whole base.
      stored: its tensors.
      layers: the number of its layers that are used; None: all.

    Raises:
      InputError: if the adapters do not fit the base, or adapt layers that are left out. The
        message names the file and the tensor.
    """
    names = file_names(family, config, stored.keys())
    views = {view.name: view for view in family.views(config).values()}
    spellings, embedding = _spellings(family, config), family.views(config)["embedding"].name
    result, pairs = dict(stored), dict[str, dict[str, files.StoredTensor]]()
    for tensor in files.open_file(adapters.file):
        name = tensor.name.removeprefix(_PREFIX)
        name = re.sub(r"\.(modules_to_save|base_layer)(\.default)?(?=\.)", "", name)
        block = _BLOCK.search(name)
        if layers is not None and block is not None and int(block[1]) >= layers:
            raise InputError(
                f"{tensor.location}: adapts layer {int(block[1]) + 1}, but the model is cut after "
                f"{layers} (@layers={layers}); keep all adapted layers"
            )
        found = _LORA.fullmatch(name)
        if found is not None:
            pairs.setdefault(found["module"], {})[found["part"]] = tensor
        elif name in spellings:
            if spellings[name] == embedding and config.tied_embeddings:
                raise _refused(tensor, "replaces the embedding of a tied model")
            result[names[spellings[name]]] = tensor
        elif name in (family.classifier_head, family.classifier_bias):
            result[name] = tensor
        else:
            raise _refused(tensor, "is not supported, or not of the base model")
    for module, pair in pairs.items():
        ours = spellings.get(f"{module}.weight")
        if ours is None or pair.keys() != {"A", "B"} or names[ours] not in stored:
            raise _refused(next(iter(pair.values())), "does not fit the base model")
        layer = re.sub(r"\.\d+\.", ".{layer}.", ours, count=1)
        view = views[layer if layer in views else ours]
        # A Linear is stored [outputs, inputs], and so transposed in the view; GPT-2's are not.
        delta = files.Delta(
            pair["A"], pair["B"], scale(adapters.config, module, pair["A"].shape[0]), not view.axes
        )
        target = stored[names[ours]]
        _check_shapes(delta, target)
        result[names[ours]] = dataclasses.replace(target, deltas=(*target.deltas, delta))
    return result


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Return the factor of B A of a module, by PEFT's rules.

    Raises:
      InputError: if alpha is not a number.
    """
    alpha = config.get("lora_alpha", 8)
    patterns = config.get("alpha_pattern")
    try:
        for pattern, value in (patterns if isinstance(patterns, Mapping) else {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = value
                break
    except re.error as error:
        raise InputError(f"{files.ADAPTER_CONFIG}: alpha_pattern: {error}") from error
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise InputError(f"{files.ADAPTER_CONFIG}: lora_alpha: {alpha!r}; allowed: a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def scales(adapters: Adapters, stored: Stored) -> dict[str, float]:
    """Return what of adapter_config.json matters: the scale of each adapted tensor."""
    return {
        name: delta.scale
        for name, tensor in sorted(stored.items())
        for delta in tensor.deltas
        if delta.a.file == adapters.file
    }


def _spellings(family: Family, config: ModelConfig) -> dict[str, str]:
    """Map the names of tensors in all classes of the family to those of its views."""
    ours = family.prefixes[0]
    found: dict[str, str] = {}
    for name in tensor_names(family, config):
        found.setdefault(name, name)
        found.setdefault(classifier_name(family, name), name)
        if name.startswith(ours):
            for prefix in family.prefixes:
                found.setdefault(prefix + name.removeprefix(ours), name)
    return found


def _check_shapes(delta: files.Delta, target: files.StoredTensor) -> None:
    a, b = delta.a, delta.b
    inputs_outputs = target.shape if delta.transposed else target.shape[::-1]
    for tensor, shape in (
        (a, (a.shape[0], inputs_outputs[0])),
        (b, (inputs_outputs[-1], a.shape[0])),
    ):
        if tensor.shape != shape or len(target.shape) != 2 or 0 in shape:
            raise _refused(tensor, f"has shape {list(tensor.shape)}; expected {list(shape)}")
        if tensor.dtype not in files.FLOATS:
            raise _refused(tensor, f"has type {tensor.dtype}; allowed: {', '.join(files.FLOATS)}")


def _refused(tensor: files.StoredTensor, why: str) -> InputError:
    return InputError(
        f"{tensor.location}: {why}; merge the adapters with PEFT, and give the whole model"
    )
