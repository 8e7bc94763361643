"""Low-rank adapters (LoRA, Hu et al. 2022).

A model with adapters is described by `ModelConfig.with_adapters`. For each target, its parameters
have the leaves `lora_a` and `lora_b` besides `kernel`. Everything else (`forward`, shardings,
stacks of layers) works as for any model.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.core.files import write_json
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import exporting, network
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import Family, TensorView
from w2s_jax.models.families.base import classifier_name

Array = jax.Array
Params = dict[str, Any]


def is_adapter(path: str) -> bool:
    """Return whether a flat path, such as 'blocks.attention.query.lora_a', is an adapter's."""
    return path.rsplit(".", 1)[-1] in ("lora_a", "lora_b")


def add(config: ModelConfig, base_params: Params, seed: int, mesh: Mesh) -> Params:
    """Add fresh adapters, with which the model computes the same as without.

    The adapters are float32 and initialised directly in their shardings, with the same bits on any
    mesh and for any base.

    Args:
      config: the model, with adapters.
      base_params: its other parameters, which are not copied.
      seed: seed of the adapters.
      mesh: where to put the adapters.
    """
    fresh = network.init_params(config, seed, mesh, keep=is_adapter)
    flat = traverse_util.flatten_dict(base_params) | traverse_util.flatten_dict(fresh)
    return traverse_util.unflatten_dict(flat)


def merge(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """Merge adapters into the kernels: W + (alpha / rank) A B.

    The sum is computed in float32 and has the kernel's dtype and sharding. Other parameters are not
    copied.

    Returns:
      (config, parameters), both without adapters.
    """
    scale = config.lora_alpha / config.lora_rank
    flat = {path: jnp.asarray(x) for path, x in traverse_util.flatten_dict(params, sep=".").items()}
    adapted = [path.removesuffix(".lora_a") for path in flat if path.endswith(".lora_a")]
    parts = {
        f"{name}.kernel": [flat[f"{name}.{leaf}"] for leaf in ("kernel", "lora_a", "lora_b")]
        for name in adapted
    }

    def merged(kernel: Array, lora_a: Array, lora_b: Array) -> Array:
        a, b = lora_a.astype(jnp.float32), lora_b.astype(jnp.float32)
        highest = jax.lax.Precision.HIGHEST
        delta = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1, precision=highest))(a, b)
        return (kernel.astype(jnp.float32) + scale * delta).astype(kernel.dtype)

    kernels = jax.jit(
        lambda parts: {path: merged(*part) for path, part in parts.items()},
        out_shardings={path: part[0].sharding for path, part in parts.items()},
    )(parts)
    rest = {path: value for path, value in flat.items() if not is_adapter(path)}
    return config.without_adapters(), traverse_util.unflatten_dict(rest | kernels, sep=".")


def save_peft(
    config: ModelConfig,
    params: Params,
    folder: str | os.PathLike[str],
    *,
    base_model: str,
    head: Mapping[str, Array] | None = None,
) -> None:
    """Write the adapters to a folder that `peft.PeftModel.from_pretrained` can load.

    Where a checkpoint stores several projections as one matrix (GPT-2's query, key and value),
    their adapters become one adapter whose rank is the sum of theirs. The folder appears by a
    rename. All processes must call this; the first one writes.

    Args:
      config: the model with adapters.
      params: its backbone.
      folder: a new folder.
      base_model: the base model for PEFT: a folder in Hugging Face's layout or a hub id.
      head: {'kernel': [D, classes]}, optionally with 'bias' ([classes]): the adapters are written
        for the family's class for sequence classification, with this head.

    Raises:
      InputError: if there are no adapters, no family can express the model or the head, or
        `folder` exists.
      StorageError: if the folder cannot be written.
    """
    if not config.lora_targets:
        raise InputError(f"{config.name}: has no adapters; see `ModelConfig.with_adapters`")
    base = config.without_adapters()
    family = exporting.family_for(base)
    if head is not None:
        exporting.check_head(family, base, head)
    flat = traverse_util.flatten_dict(params, sep=".")
    adapters = {path: sharding.on_host(x) for path, x in flat.items() if is_adapter(path)}
    modules = _modules(family, base, config.lora_targets, head is not None)
    tensors = {} if head is None else _head_tensors(family, base, flat, head)
    with exporting.written_once(Path(folder)) as target:
        if target is None:
            return
        for module, parts in modules.items():
            for layer in range(config.num_layers):
                name = _PREFIX + module.format(layer=layer)
                a, b = _combined(config, parts, adapters, layer)
                tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        files.write_shard(target / "adapter_model.safetensors", tensors)
        record = _adapter_config(config, family, modules, base_model, head is not None)
        write_json(target / "adapter_config.json", record)


# PEFT's prefix of the module names of a wrapped model.
_PREFIX = "base_model.model."


def _head_tensors(
    family: Family, config: ModelConfig, flat: Mapping[str, Array], head: Mapping[str, Array]
) -> dict[str, np.ndarray]:
    """Return the tensors of the head's module, which for RoBERTa include a dense layer."""
    tensors = exporting.file_tensors(family, config, flat, head)
    return {
        _PREFIX + name: exporting.gather(parts, np.float32)
        for name, parts in tensors.items()
        if name.startswith(_head_module(family) + ".")
    }


def _head_module(family: Family) -> str:
    assert family.classifier_head is not None
    return family.classifier_head.split(".")[0]


@dataclasses.dataclass(frozen=True)
class _Part:
    """The part of a checkpoint's matrix that is a projection's kernel.

    Attributes:
      target: the projection.
      inputs: for each input of the flattened kernel, the index of the matrix's input.
      outputs: the same for the outputs.
      sizes: number of inputs and outputs of the matrix.
      inputs_first: whether the matrix is stored [inputs, outputs], unlike PyTorch's Linear.
    """

    target: str
    inputs: np.ndarray
    outputs: np.ndarray
    sizes: tuple[int, int]
    inputs_first: bool


def _modules(
    family: Family, config: ModelConfig, targets: Sequence[str], classifier: bool
) -> dict[str, list[_Part]]:
    """Return each adapted module (with '{layer}' in its name) and the projections it computes."""
    views = family.views(config)
    modules: dict[str, list[_Part]] = {}
    for target in targets:
        view = views[f"blocks.{target}.kernel"]
        name = classifier_name(family, view.name) if classifier else view.name
        module = name.removesuffix(".weight")
        modules.setdefault(module, []).append(_part(config, target, view))
    return modules


def _part(config: ModelConfig, target: str, view: TensorView) -> _Part:
    indices = np.arange(np.prod(view.stored)).reshape(view.stored)
    indices = view.take(indices).reshape(config.projections()[target])
    # Row and column, in the stored matrix, of the weights of one output, and of one input.
    of_inputs, of_outputs = (np.divmod(i, view.stored[-1]) for i in (indices[:, 0], indices[0]))
    for first in (0, 1):
        second = 1 - first
        if np.ptp(of_inputs[second]) == np.ptp(of_outputs[first]) == 0:
            sizes = (view.stored[first], view.stored[second])
            return _Part(target, of_inputs[first], of_outputs[second], sizes, first == 0)
    raise InputError(
        f"lora.targets: {target!r} is not a submatrix of the tensor {view.name!r}; merge the "
        "adapters instead"
    )


def _combined(
    config: ModelConfig, parts: list[_Part], adapters: Mapping[str, np.ndarray], layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of a module in PEFT's layout: float32 [rank, inputs] and [outputs, rank]."""
    rank = config.lora_rank
    inputs, outputs = parts[0].sizes
    a = np.zeros((len(parts) * rank, inputs), np.float32)
    b = np.zeros((outputs, len(parts) * rank), np.float32)
    for i, part in enumerate(parts):
        own = slice(i * rank, (i + 1) * rank)
        a[own, part.inputs] = adapters[f"blocks.{part.target}.lora_a"][layer].reshape(-1, rank).T
        b[part.outputs, own] = adapters[f"blocks.{part.target}.lora_b"][layer].reshape(rank, -1).T
    return a, b


def _adapter_config(
    config: ModelConfig,
    family: Family,
    modules: Mapping[str, list[_Part]],
    base_model: str,
    classifier: bool,
) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    # Full names as patterns: the last part of a name alone would match other modules (BERT).
    patterns = {m: r"\d+".join(re.escape(p) for p in m.split("{layer}")) for m in modules}
    counts = {patterns[module]: len(parts) for module, parts in modules.items() if len(parts) > 1}
    record = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "rank_pattern": {name: count * config.lora_rank for name, count in counts.items()},
        "alpha_pattern": {name: count * config.lora_alpha for name, count in counts.items()},
        "target_modules": "|".join(patterns.values()),
        "fan_in_fan_out": any(part.inputs_first for parts in modules.values() for part in parts),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    if classifier:
        return record | {"task_type": "SEQ_CLS", "modules_to_save": [_head_module(family)]}
    return record if config.bidirectional else record | {"task_type": "CAUSAL_LM"}
