"""From a folder in Hugging Face's layout to sharded parameters, without a full copy anywhere.

Each shard is read on its own, layer by layer, and handed to its device before the next one is read:
beyond the parameters themselves, host memory holds one shard of one parameter and what is read of
one tensor of the file.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.errors import InputError, nearest, unknown
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import network
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.encoder_files import completed
from w2s_jax.models.families import Family, TensorView, family_of, file_names, is_ignored
from w2s_jax.models.partial_reads import Range, read_part

log = logging.getLogger(__name__)

#: The dtypes that parameters can have.
DTYPES = ("float32", "bfloat16")

Stored = dict[str, files.StoredTensor]


@dataclass(frozen=True)
class Imported:
    """A model from a folder.

    Attributes:
      config: the model.
      params: backbone parameters for `network.forward`.
      head: {'kernel': float32 [D, classes]} and, where the folder has it, 'bias' (float32
        [classes]), replicated; None where the folder has none.
      huggingface: the content of its config.json.
    """

    config: ModelConfig
    params: dict[str, Any]
    head: dict[str, jax.Array] | None
    huggingface: dict[str, Any]


def import_huggingface(
    folder: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str = "float32"
) -> Imported:
    """Reads a model from a folder that holds config.json and safetensors.

    Args:
      folder: a local folder; see `hub.local_folder` for ids.
      mesh: where the parameters go (default: all devices).
      dtype: of the parameters, 'float32' or 'bfloat16', whatever the file's; a head is float32.

    Raises:
      InputError: if anything is missing, damaged, of the wrong shape or type, or not known; names
        the file and the tensor. No tensor is read before all of them have been checked.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    folder = Path(folder)
    record = files.read_config(folder)
    family = family_of(record, str(folder / files.CONFIG))
    try:
        config = family.to_config(record)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    stored = files.open_tensors(folder)
    config = completed(folder, family, config, stored.keys())
    views, names = family.views(config), file_names(family, config, stored.keys())
    absent = _check(folder, family, config, record, stored)
    if (table := stored.get(names[views["embedding"].name])) is not None:
        files.check_tokenizer(folder, config.vocab_size, table)
    mesh = sharding.make_mesh() if mesh is None else mesh
    abstract = traverse_util.flatten_dict(network.abstract_params(config, mesh), sep=".")
    params = {}
    for path, wanted in abstract.items():
        if path in absent:
            params[path] = _zeros(wanted, dtype)
        else:
            tensors = _tensors(views[path], config, names, stored)
            params[path] = _read(wanted, views[path], tensors, dtype)
    head = _head(family, stored, mesh)
    return Imported(config, traverse_util.unflatten_dict(params, sep="."), head, record)


def _head(family: Family, stored: Stored, mesh: Mesh) -> dict[str, jax.Array] | None:
    """The class head, if the folder has one."""
    if family.classifier_head not in stored:
        return None
    head = {}
    for name, stored_name in (
        ("kernel", family.classifier_head),
        ("bias", family.classifier_bias),
    ):
        if stored_name in stored:
            tensor = stored[stored_name]
            view = TensorView(
                tensor.name, tensor.shape, axes=tuple(reversed(range(len(tensor.shape))))
            )
            whole = jax.ShapeDtypeStruct(
                tensor.shape[::-1], jnp.float32, sharding=sharding.replicated(mesh)
            )
            head[name] = _read(whole, view, [tensor], "float32")
    return head


def _tensors(
    view: TensorView, config: ModelConfig, names: Mapping[str, str], stored: Stored
) -> list[files.StoredTensor]:
    """The tensors that a parameter is made of: one, or one a layer."""
    if "{layer}" not in view.name:
        return [stored[names[view.name]]]
    return [stored[names[view.name.format(layer=i)]] for i in range(config.num_layers)]


def _read(
    wanted: jax.ShapeDtypeStruct, view: TensorView, tensors: list[files.StoredTensor], dtype: str
) -> jax.Array:
    """One parameter in its sharding; what several devices of this process hold is read once."""
    stacked = "{layer}" in view.name
    where = wanted.sharding.addressable_devices_indices_map(wanted.shape)
    holders: dict[tuple[Range, ...], list[jax.Device]] = {}
    for device, index in where.items():
        part = tuple(
            (piece.start or 0, size if piece.stop is None else piece.stop)
            for piece, size in zip(index, wanted.shape, strict=True)
        )
        holders.setdefault(part, []).append(device)
    pieces: dict[jax.Device, jax.Array] = {}
    for part, devices in holders.items():
        shard = np.empty([stop - start for start, stop in part], jnp.dtype(dtype))
        if stacked:
            for row, layer in enumerate(range(*part[0])):
                shard[row] = read_part(tensors[layer], view, part[1:])
        else:
            shard[...] = read_part(tensors[0], view, part)
        # Waiting keeps the shards that are under way to one.
        copies = jax.block_until_ready([jax.device_put(shard, device) for device in devices])
        pieces |= dict(zip(devices, copies, strict=True))
    return jax.make_array_from_single_device_arrays(
        wanted.shape, wanted.sharding, [pieces[d] for d in where], dtype=jnp.dtype(dtype)
    )


def _zeros(wanted: jax.ShapeDtypeStruct, dtype: str) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(wanted.shape, dtype), out_shardings=wanted.sharding)()


def _check(
    folder: Path,
    family: Family,
    config: ModelConfig,
    record: Mapping[str, Any],
    stored: Stored,
) -> set[str]:
    """Compares the headers with the config; returns the parameters that may be and are absent."""
    whole = str(folder / (files.SINGLE if (folder / files.SINGLE).is_file() else files.INDEX))
    views, names = family.views(config), file_names(family, config, stored.keys())
    absent = set()
    for path, view in views.items():
        layers = range(config.num_layers) if "{layer}" in view.name else [0]
        for name in (names[view.name.format(layer=i)] for i in layers):
            if name in stored:
                _check_tensor(stored[name], view.stored)
            elif path.startswith("unembedding") and _is_headless(family, record):
                absent.add(path)
                log.warning(
                    "%s: tensor %r is missing, as in a model saved without its language-model "
                    "head; zeros stand in its place",
                    whole,
                    name,
                )
            else:
                free = stored.keys() - set(names.values())
                raise InputError(f"{whole}: tensor {name!r} is missing{_hint(name, free)}")
    used = set(names.values())
    for name, tensor in stored.items():
        if name == family.classifier_head:
            _check_head(tensor, config, stored.get(family.classifier_bias or ""))
        elif name == family.classifier_bias and family.classifier_head in stored:
            continue
        elif name not in used and not is_ignored(family, name):
            missing = used - stored.keys()
            raise InputError(
                f"{tensor.place}: unexpected; the model of {folder / files.CONFIG} has no such "
                f"tensor{_hint(name, missing or used)}"
            )
    return absent


def _hint(name: str, others: Any) -> str:
    match = nearest(name, others)
    return f" (nearest: {match!r})" if match else ""


def _check_tensor(tensor: files.StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.place}: shape {list(tensor.shape)}; allowed, by the folder's {files.CONFIG}: "
            f"{list(shape)}"
        )
    if tensor.dtype not in files.FLOATS:
        raise InputError(f"{tensor.place}: type {tensor.dtype}; allowed: {', '.join(files.FLOATS)}")


def _check_head(
    tensor: files.StoredTensor, config: ModelConfig, bias: files.StoredTensor | None
) -> None:
    if list(tensor.shape) not in ([1, config.d_model], [2, config.d_model]):
        raise InputError(
            f"{tensor.place}: shape {list(tensor.shape)}; allowed: [2, {config.d_model}] (two "
            f"classes) or [1, {config.d_model}] (a reward)"
        )
    _check_tensor(tensor, tensor.shape)
    if bias is not None:
        _check_tensor(bias, tensor.shape[:1])


def _is_headless(family: Family, record: Mapping[str, Any]) -> bool:
    """Whether the folder's class has no language-model head (a classifier, a bare backbone)."""
    named: list[str] = record.get("architectures") or []
    return bool(named) and named[0] != family.architectures[0]
