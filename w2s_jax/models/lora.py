"""Low-rank adapters (LoRA, Hu et al. 2022): a model with adapters is a `ModelConfig`.

`ModelConfig.with_adapters` gives the config, whose parameters have for each target the leaves
`lora_a` and `lora_b` beside `kernel`; all else (`forward`, shardings, stacks by layer) is as for
any model.
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
    """Whether a flat path ('blocks.attention.query.lora_a') is that of an adapter's parameter."""
    return path.rsplit(".", 1)[-1] in ("lora_a", "lora_b")


def add(config: ModelConfig, base_params: Params, seed: int, mesh: Mesh) -> Params:
    """Parameters of a model with fresh adapters, which compute what the base computes.

    Args:
      config: the model, with adapters.
      base_params: its other parameters; none is copied.
      seed: of the adapters, which are float32, made directly in their shardings, and the same bits
        on any mesh and for any base.
      mesh: where they go.
    """
    fresh = network.init_params(config, seed, mesh, keep=is_adapter)
    flat = traverse_util.flatten_dict(base_params) | traverse_util.flatten_dict(fresh)
    return traverse_util.unflatten_dict(flat)


def merge(config: ModelConfig, params: Params) -> tuple[ModelConfig, Params]:
    """The model without adapters that computes the same: each target's kernel is W + s A B.

    s is alpha / rank; the sum is computed in float32 and has the kernel's dtype and sharding. Other
    parameters are not copied.

    Returns:
      (the config, the parameters), both without adapters.
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
    """Writes the adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    Where a checkpoint keeps several of our projections as one matrix (GPT-2's query, key and
    value), their adapters become one whose rank is the sum of theirs. The folder appears by a
    rename; with several processes all call this, and the first one writes.

    Args:
      config, params: the model with adapters.
      folder: a new folder.
      base_model: what the adapters belong to, for PEFT: a folder or a hub id in Hugging Face's
        layout.
      head: {'kernel': [D, classes]} and perhaps 'bias' ([classes]): with it the adapters are those
        of the family's class for sequence classification, which gets this head.

    Raises:
      InputError: if there are no adapters, no family can express the model or the head, or
        `folder` exists.
      StorageError: if the folder cannot be written.
    """
    if not config.lora_targets:
        raise InputError(f"{config.name}: no adapters; allowed: a model of `with_adapters`")
    base = config.without_adapters()
    family = exporting.family_for(base)
    if head is not None:
        exporting.check_head(family, base, head)
    flat = traverse_util.flatten_dict(params, sep=".")
    adapters = {path: sharding.on_host(x) for path, x in flat.items() if is_adapter(path)}
    places = _places(family, base, config.lora_targets, head is not None)
    tensors = {} if head is None else _head_tensors(family, base, flat, head)
    with exporting.written_once(Path(folder)) as target:
        if target is None:
            return
        for module, parts in places.items():
            for layer in range(config.num_layers):
                name = _PREFIX + module.format(layer=layer)
                a, b = _combined(config, parts, adapters, layer)
                tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        files.write_shard(target / "adapter_model.safetensors", tensors)
        record = _adapter_config(config, family, places, base_model, head is not None)
        write_json(target / "adapter_config.json", record)


# What PEFT puts before the names of a wrapped model's modules.
_PREFIX = "base_model.model."


def _head_tensors(
    family: Family, config: ModelConfig, flat: Mapping[str, Array], head: Mapping[str, Array]
) -> dict[str, np.ndarray]:
    """All that the module of the head holds: of RoBERTa's, a dense layer too."""
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
class _Place:
    """Where a projection's kernel stands in a checkpoint's matrix.

    Attributes:
      target: the projection.
      inputs, outputs: for each input and output of the kernel, flattened, that of the matrix.
      sizes: how many of each the matrix has.
      inputs_first: whether the matrix is stored [inputs, outputs], not as PyTorch's Linear.
    """

    target: str
    inputs: np.ndarray
    outputs: np.ndarray
    sizes: tuple[int, int]
    inputs_first: bool


def _places(
    family: Family, config: ModelConfig, targets: Sequence[str], classifier: bool
) -> dict[str, list[_Place]]:
    """For each module that is adapted ('{layer}' in its name), the projections it computes."""
    views = family.views(config)
    places: dict[str, list[_Place]] = {}
    for target in targets:
        view = views[f"blocks.{target}.kernel"]
        name = classifier_name(family, view.name) if classifier else view.name
        module = name.removesuffix(".weight")
        places.setdefault(module, []).append(_place(config, target, view))
    return places


def _place(config: ModelConfig, target: str, view: TensorView) -> _Place:
    numbers = np.arange(np.prod(view.stored)).reshape(view.stored)
    numbers = view.take(numbers).reshape(config.projections()[target])
    # Row and column, in the stored matrix, of the weights of one output, and of one input.
    of_inputs, of_outputs = (np.divmod(n, view.stored[-1]) for n in (numbers[:, 0], numbers[0]))
    for first in (0, 1):
        second = 1 - first
        if np.ptp(of_inputs[second]) == np.ptp(of_outputs[first]) == 0:
            sizes = (view.stored[first], view.stored[second])
            return _Place(target, of_inputs[first], of_outputs[second], sizes, first == 0)
    raise InputError(
        f"lora.targets: {target!r} is no part of a matrix in tensor {view.name!r}; allowed: other "
        "targets, or a merged model"
    )


def _combined(
    config: ModelConfig, parts: list[_Place], adapters: Mapping[str, np.ndarray], layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a module as PEFT has them: float32 [rank, inputs] and [outputs, rank]."""
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
    places: Mapping[str, list[_Place]],
    base_model: str,
    classifier: bool,
) -> dict[str, Any]:
    """The content of adapter_config.json."""
    # Names of modules as patterns: those of a name's end alone would match others (BERT).
    patterns = {m: r"\d+".join(re.escape(p) for p in m.split("{layer}")) for m in places}
    counts = {patterns[module]: len(parts) for module, parts in places.items() if len(parts) > 1}
    record = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "rank_pattern": {name: count * config.lora_rank for name, count in counts.items()},
        "alpha_pattern": {name: count * config.lora_alpha for name, count in counts.items()},
        "target_modules": "|".join(patterns.values()),
        "fan_in_fan_out": any(part.inputs_first for parts in places.values() for part in parts),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    if classifier:
        modules = [_head_module(family)]
        return record | {"task_type": "SEQ_CLS", "modules_to_save": modules}
    return record if config.bidirectional else record | {"task_type": "CAUSAL_LM"}
