"""Export a model to Hugging Face's layout, with one file at a time in host memory."""

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
from w2s_jax.models import padding
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import FAMILIES, Family, TensorView, classifier_name
from w2s_jax.models.notes import say

# Keys of a source's config.json that are copied, as `ModelConfig` has no fields for them.
_KEPT = re.compile(r".*_token_id|.*dropout(_prob)?|.*_pdrop|use_cache")

# Written where no maximum length is known; with rotary positions it is not a limit.
_LENGTH = 2048


def export_huggingface(
    config: ModelConfig,
    params: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    head: Mapping[str, jax.Array] | None = None,
    tokenizer_from: str | os.PathLike[str] | None = None,
    source: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write config.json, safetensors and tokenizer files that transformers can load.

    The folder appears by a rename once it is complete. All processes must call this; the first one
    writes.

    Args:
      config: the model, without adapters.
      params: its backbone.
      folder: a new folder.
      head: {'kernel': [D, classes]}, optionally with 'bias' ([classes]). With a head, the model is
        written as the family's class for sequence classification, which has no language-model head
        unless embeddings are tied. A decoder's class reads the last token and has no bias; an
        encoder's reads the pooler and gets a bias of zeros if there is none. Without a head, an
        encoder is written as the bare model; if it has no pooler, transformers initialises one.
        A classifier's `pad_token_id` is a token that no text has; where the tokenizer has none to
        spare, one is added to it, and a row of zeros to the embedding, with a note in the log.
      tokenizer_from: a folder whose tokenizer files are copied, if it has any.
      source: content of the config.json that the model came from, of which the ids of special
        tokens and the dropout rates are kept.
      labels: names of the classes (None: those of `source` if it names as many, else LABEL_0, ...).
      dtype: dtype of the tensors (None: that of the parameters).
      shard_bytes: maximum size of a file, unless a single tensor is larger.

    Raises:
      InputError: if no family can express the model or the head, or `folder` exists.
      StorageError: if the folder cannot be written.
    """
    if config.lora_rank:
        raise InputError(f"{config.name}: has adapters; merge them first with `lora.merge`")
    family = family_for(config)
    if head is not None:
        check_head(family, config, head)
    pad = None
    tokenizer = None if tokenizer_from is None else Path(tokenizer_from)
    if head is not None:
        pad = padding.choose(config, tokenizer, source)
    flat = traverse_util.flatten_dict(params, sep=".")
    kind = jnp.dtype(dtype or flat["embedding"].dtype)
    tensors = file_tensors(family, config, flat, head)
    table = tensor_name(family, family.views(config)["embedding"].name, head)
    extra = {table: 0 if pad is None else pad.rows}
    sizes = {}
    for name, parts in tensors.items():
        rows, *rest = parts[0][0].stored
        sizes[name] = math.prod([rows + extra.get(name, 0), *rest]) * kind.itemsize
    groups = files.group_shards(sizes.items(), shard_bytes)
    with written_once(Path(folder)) as target:
        for names, file in zip(groups, files.shard_names(len(groups)), strict=True):
            shard = {name: gather(tensors[name], kind, extra.get(name, 0)) for name in names}
            if target is not None:
                files.write_shard(target / file, shard)
            del shard
        if target is not None:
            if len(groups) > 1:
                files.write_index(target, groups, sum(sizes.values()))
            record = _config_json(family, config, source, kind.name)
            if head is not None and pad is not None:
                names_of = class_names(head["kernel"].shape[1], labels, source)
                record |= _classifier_json(family, names_of)
                record |= {"vocab_size": config.vocab_size + pad.rows, "pad_token_id": pad.id}
            write_json(target / files.CONFIG, record)
            if tokenizer is not None:
                files.copy_tokenizer(tokenizer, target)
            if pad is not None:
                padding.write(pad, target)
    if pad is not None and pad.note():
        say(f"{folder}: {pad.note()}")


def check_head(family: Family, config: ModelConfig, head: Mapping[str, Any]) -> None:
    """Raise an `InputError` if the family's sequence classifier cannot have this head."""
    if family.classifier is None:
        able = ", ".join(f.name for f in FAMILIES.values() if f.classifier)
        raise InputError(
            f"{config.name}: transformers has no sequence classification for the family "
            f"{family.name!r}; export without the head, or use one of {able}"
        )
    read_out = "pooler" if config.bidirectional else "last"
    if config.read_out != read_out:
        raise InputError(
            f"{config.name}: its head reads {config.read_out!r}, but {family.classifier} reads "
            f"{read_out!r}; export without the head"
        )
    if config.read_out_layers:
        layers = ", ".join(map(str, config.read_out_layers))
        raise InputError(
            f"{config.name}: its head reads the layers {layers}, but {family.classifier} "
            "reads the last; export without the head"
        )
    if "bias" in head and family.classifier_bias is None:
        raise InputError(
            f"{config.name}: its head has a bias, but {family.classifier} has none; export without "
            "the head"
        )


def family_for(config: ModelConfig) -> Family:
    """Return the family of a model; for an embedded model the first one that can express it.

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
        f"{config.name}: cannot be expressed as a model of any family ({', '.join(FAMILIES)})"
    )


def _named(config: ModelConfig, family: Family) -> ModelConfig:
    """Return the config with its family, and with a length, which config.json requires."""
    length = config.max_positions or _LENGTH
    return dataclasses.replace(config, family=family.name, max_positions=length)


def _essence(config: ModelConfig) -> ModelConfig:
    """Return the config without fields that change no result or are not in config.json."""
    length = config.max_positions if config.positions == "learned" else 0
    return dataclasses.replace(
        config,
        name="",
        init_std=0.0,
        max_positions=length,
        pooler=False,
        read_out="last",
        read_out_layers=(),
    )


def _config_json(
    family: Family, config: ModelConfig, source: Mapping[str, Any] | None, dtype: str
) -> dict[str, Any]:
    kept = {name: value for name, value in (source or {}).items() if _KEPT.fullmatch(name)}
    record = kept | family.to_hf(_named(config, family))
    return record | {"architectures": [family.architectures[0]], "dtype": dtype}


def _classifier_json(family: Family, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "architectures": [family.classifier],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def class_names(
    count: int, labels: Sequence[str] | None, source: Mapping[str, Any] | None
) -> list[str]:
    """Return `count` names of classes: `labels`, else those of a config.json, else LABEL_0, ...

    Raises:
      InputError: if `labels` has another length, or repeats a name.
    """
    if labels is not None:
        if len(set(labels)) != count or len(labels) != count:
            raise InputError(f"labels: {list(labels)}; expected {count} different names")
        return list(labels)
    found = (source or {}).get("id2label")
    named = found if isinstance(found, Mapping) else {}
    names = [str(named.get(str(i), f"LABEL_{i}")) for i in range(count)]
    if len(named) == count == len(set(names)):
        return names
    return [f"LABEL_{i}" for i in range(count)]


#: A parameter that fills a part of a tensor: (view, parameter, layer; None if not stacked).
_Part = tuple[TensorView, jax.Array | np.ndarray, int | None]


def file_tensors(
    family: Family,
    config: ModelConfig,
    flat: Mapping[str, jax.Array],
    head: Mapping[str, jax.Array] | None,
) -> dict[str, list[_Part]]:
    """Return the parameters of which each tensor of the file is made, layer by layer."""
    tensors: dict[str, list[_Part]] = {}
    views = family.views(config)
    if head is not None:
        # The classification class has no unembedding, and transformers would warn.
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
    tensors = {tensor_name(family, name, head): parts for name, parts in tensors.items()}
    kernel = head["kernel"]
    view = TensorView(family.classifier_head, kernel.shape[::-1], axes=(1, 0))
    tensors[view.name] = [(view, kernel, None)]
    if family.classifier_bias is not None:
        bias = head["bias"] if "bias" in head else np.zeros(kernel.shape[1], np.float32)
        tensors[family.classifier_bias] = [
            (TensorView(family.classifier_bias, bias.shape), bias, None)
        ]
    return tensors


def tensor_name(family: Family, name: str, head: Mapping[str, Any] | None) -> str:
    """Return the name in the file of a tensor of `family.views`."""
    return name if head is None else classifier_name(family, name)


def gather(parts: list[_Part], dtype: Any, extra_rows: int = 0) -> np.ndarray:
    """Return a tensor of the file, in host memory, with `extra_rows` rows of zeros at its end."""
    rows, *rest = parts[0][0].stored
    tensor = np.empty((rows + extra_rows, *rest), dtype)
    tensor[rows:] = 0
    for view, parameter, layer in parts:
        whole = sharding.on_host(parameter if layer is None else _layer(parameter, layer))
        view.put(whole, tensor[:rows])
    return tensor


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)


@contextlib.contextmanager
def written_once(folder: Path) -> Iterator[Path | None]:
    """Yield the folder to write in the first process, and None in the others, which wait."""
    refuse_existing(folder)
    _synchronize(f"exporting {folder}")
    with new_folder(folder) if jax.process_index() == 0 else contextlib.nullcontext() as new:
        yield new
    _synchronize(f"exported {folder}")


def _synchronize(where: str) -> None:
    """Wait for all processes."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)
