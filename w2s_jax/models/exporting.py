"""From parameters to a folder in Hugging Face's layout, one file of it in host memory at a time."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.core.files import new_folder, refuse_existing, write_json
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import FAMILIES, Family, TensorView, classifier_name

# Of a source's config.json: what no `ModelConfig` has, and still holds of the exported model.
_KEPT = re.compile(r".*_token_id|.*dropout(_prob)?|.*_pdrop|use_cache")

# What is said to be the longest document where none is known; with rotary positions it limits none.
_LENGTH = 2048


def export_huggingface(
    config: ModelConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    head: Mapping[str, jax.Array] | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    source: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes config.json, safetensors and tokenizer files that transformers loads.

    The folder appears by a rename, when it is whole. With several processes all call this, and
    the first one writes.

    Args:
      config, params: the model and its backbone.
      folder: a new folder.
      head: {'kernel': [D, classes]} and perhaps 'bias' ([classes]): with it the model is written
        as the family's class for sequence classification, which has no language-model head unless
        embeddings are tied. A decoder's reads the last token and has no bias; an encoder's reads
        the pooler and gets zeros where there is none. Without `head` an encoder is written as the
        bare model; transformers misses a pooler there if ours has none.
      tokenizer_from: a folder whose tokenizer files are copied, if it has any.
      source: the content of the config.json that the model came from; the ids of special tokens
        and the rates of dropout are kept.
      dtype: of the tensors (None: the parameters').
      shard_bytes: a file's size, at most, unless one tensor is larger.

    Raises:
      InputError: if no family can express the model or the head, or `folder` exists.
      StorageError: if the folder cannot be written.
    """
    if config.lora_rank:
        raise InputError(f"{config.name}: has adapters apart; allowed: what `lora.merge` returns")
    family = family_for(config)
    if head is not None:
        check_head(family, config, head)
    flat = traverse_util.flatten_dict(params, sep=".")
    kind = jnp.dtype(dtype or flat["embedding"].dtype)
    tensors = file_tensors(family, config, flat, head)
    sizes = {name: math.prod(parts[0][0].stored) for name, parts in tensors.items()}
    sizes = {name: count * kind.itemsize for name, count in sizes.items()}
    groups = files.group_shards(sizes.items(), shard_bytes)
    with written_once(Path(folder)) as target:
        for names, file in zip(groups, files.shard_names(len(groups)), strict=True):
            shard = {name: gather(tensors[name], kind) for name in names}
            if target is not None:
                files.write_shard(target / file, shard)
            del shard
        if target is not None:
            if len(groups) > 1:
                files.write_index(target, groups, sum(sizes.values()))
            record = _config_json(family, config, head, source, kind.name)
            write_json(target / files.CONFIG, record)
            if tokenizer_from is not None:
                files.copy_tokenizer(Path(tokenizer_from), target)


def check_head(family: Family, config: ModelConfig, head: Mapping[str, Any]) -> None:
    """Refuses a head that the family's class for sequence classification cannot have."""
    if family.classifier is None:
        able = ", ".join(f.name for f in FAMILIES.values() if f.classifier)
        raise InputError(
            f"{config.name}: transformers has no sequence classification for the family "
            f"{family.name!r}; allowed: {able}, or an export without the head"
        )
    read_out = "pooler" if config.bidirectional else "last"
    if config.read_out != read_out:
        raise InputError(
            f"{config.name}: its head reads {config.read_out!r}, and {family.classifier} reads "
            f"{read_out!r}; allowed: a model with that read-out, or an export without the head"
        )
    if "bias" in head and family.classifier_bias is None:
        raise InputError(
            f"{config.name}: its head has a bias, and {family.classifier} has none; allowed: a "
            "head without bias, or an export without the head"
        )


def family_for(config: ModelConfig) -> Family:
    """The family that a model came from; of an embedded one the first that can express it.

    Raises:
      InputError: if there is none.
    """
    if config.family:
        return FAMILIES[config.family]
    for family in FAMILIES.values():
        named = _named(config, family)
        with contextlib.suppress(InputError):
            if _essence(family.to_config(family.to_hf(named))) == _essence(named):
                return family
    raise InputError(
        f"{config.name}: no family expresses this model; allowed: models in the form of "
        f"{', '.join(FAMILIES)}"
    )


def _named(config: ModelConfig, family: Family) -> ModelConfig:
    """The config with its family, and with a length, which every family's config.json states."""
    length = config.max_positions or _LENGTH
    return dataclasses.replace(config, family=family.name, max_positions=length)


def _essence(config: ModelConfig) -> ModelConfig:
    """A config without what does not change what is computed, or is not in a config.json."""
    length = config.max_positions if config.positions == "learned" else 0
    return dataclasses.replace(
        config, name="", init_std=0.0, max_positions=length, pooler=False, read_out="last"
    )


def _config_json(
    family: Family,
    config: ModelConfig,
    head: Mapping[str, Any] | None,
    source: Mapping[str, Any] | None,
    dtype: str,
) -> dict[str, Any]:
    kept = {name: value for name, value in (source or {}).items() if _KEPT.fullmatch(name)}
    record = kept | family.to_hf(_named(config, family))
    record |= {"architectures": [family.architectures[0]], "dtype": dtype}
    if head is not None:
        labels = [f"LABEL_{i}" for i in range(head["kernel"].shape[1])]
        record["architectures"] = [family.classifier]
        record["id2label"] = {str(i): label for i, label in enumerate(labels)}
        record["label2id"] = {label: i for i, label in enumerate(labels)}
    return record


#: How a parameter fills its part of a tensor: view, parameter, layer (None: it is not stacked).
_Part = tuple[TensorView, jax.Array | np.ndarray, int | None]


def file_tensors(
    family: Family,
    config: ModelConfig,
    flat: Mapping[str, jax.Array],
    head: Mapping[str, jax.Array] | None,
) -> dict[str, list[_Part]]:
    """For each tensor of the file the parameters that it is made of, layer by layer."""
    tensors: dict[str, list[_Part]] = {}
    views = family.views(config)
    if head is not None:
        # The class for classification has none, and transformers would complain.
        views = {path: v for path, v in views.items() if not path.startswith("unembedding")}
    for path, view in views.items():
        if "{layer}" not in view.name:
            tensors.setdefault(view.name, []).append((view, flat[path], None))
    for layer in range(config.num_layers):
        for path, view in views.items():
            if "{layer}" in view.name:
                name = view.name.format(layer=layer)
                tensors.setdefault(name, []).append((view, flat[path], layer))
    if head is None:
        return tensors
    assert family.classifier_head is not None
    tensors = {classifier_name(family, name): parts for name, parts in tensors.items()}
    kernel = head["kernel"]
    view = TensorView(family.classifier_head, kernel.shape[::-1], axes=(1, 0))
    tensors[view.name] = [(view, kernel, None)]
    if family.classifier_bias is not None:
        bias = head["bias"] if "bias" in head else np.zeros(kernel.shape[1], np.float32)
        tensors[family.classifier_bias] = [
            (TensorView(family.classifier_bias, bias.shape), bias, None)
        ]
    return tensors


def gather(parts: list[_Part], dtype: Any) -> np.ndarray:
    """A tensor of the file, in host memory."""
    tensor = np.empty(parts[0][0].stored, dtype)
    for view, parameter, layer in parts:
        view.put(sharding.on_host(parameter if layer is None else _layer(parameter, layer)), tensor)
    return tensor


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


@contextlib.contextmanager
def written_once(folder: Path) -> Iterator[Path | None]:
    """The folder to fill, in the first process only; the others wait until it is there."""
    refuse_existing(folder)
    _meet(f"exporting {folder}")
    with new_folder(folder) if jax.process_index() == 0 else contextlib.nullcontext() as new:
        yield new
    _meet(f"exported {folder}")


def _meet(where: str) -> None:
    """Waits until all processes are there."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
