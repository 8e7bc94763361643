"""Import a folder in Hugging Face's layout as sharded parameters, without a full copy in memory.

Each shard is read separately, layer by layer, and moved to its device before the next one is read.
Beyond the parameters themselves, host memory holds one shard of one parameter and the part of one
tensor of the file that is being read.
"""

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
from w2s_jax.core.errors import InputError, unknown
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import network
from w2s_jax.models.checking import Stored, check_folder
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import TensorView
from w2s_jax.models.partial_reads import Range, read_part

#: The dtypes that parameters can have.
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Imported:
    """A model imported from a folder.

    Attributes:
      config: the model.
      params: backbone parameters for `network.forward`.
      head: the class head, {'kernel': float32 [D, classes]} and, if stored, 'bias'
        (float32 [classes]), replicated; None if the folder has none.
      huggingface: content of the folder's config.json.
      tokenizer: the folder that may have tokenizer files.
    """

    config: ModelConfig
    params: dict[str, Any]
    head: dict[str, jax.Array] | None
    huggingface: dict[str, Any]
    tokenizer: Path


def import_huggingface(
    folder: str | os.PathLike[str],
    mesh: Mesh | None = None,
    dtype: str = "float32",
    *,
    with_head: bool = True,
    layers: int | None = None,
) -> Imported:
    """Read a model from a folder with config.json and safetensors.

    All headers are checked before any tensor is read.

    Args:
      folder: a local folder, which may have PEFT's adapters alone, and name their base; for hub ids
        see `hf_models.local_folder`.
      mesh: where to put the parameters (default: all devices).
      dtype: dtype of the parameters, 'float32' or 'bfloat16', independent of the file's; the head
        is float32.
      with_head: whether to read the class head, if there is one.
      layers: the number of first layers to read, with the final norm and without a class head;
        None: the whole model.

    Raises:
      InputError: if anything is missing, damaged, of the wrong shape or type, or unknown. The
        message names the file and the tensor.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    found = check_folder(Path(folder), layers)
    if with_head and found.head_problem:
        raise InputError(found.head_problem)
    config, stored = found.config, found.stored
    mesh = sharding.make_mesh() if mesh is None else mesh
    abstract = traverse_util.flatten_dict(network.abstract_params(config, mesh), sep=".")
    params = {}
    for path, wanted in abstract.items():
        if path in found.absent:
            params[path] = _zeros(wanted, dtype)
        else:
            view = found.views[path]
            tensors = _tensors(view, config, found.names, stored)
            params[path] = _read(wanted, view, tensors, dtype)
    head = _head(found.head, mesh) if with_head and found.head else None
    return Imported(
        config,
        traverse_util.unflatten_dict(params, sep="."),
        head,
        found.huggingface,
        found.tokenizer_of(Path(folder)),
    )


def _head(tensors: Stored, mesh: Mesh) -> dict[str, jax.Array]:
    """Read the class head."""
    head = {}
    for part, tensor in tensors.items():
        axes = tuple(reversed(range(len(tensor.shape))))
        whole = jax.ShapeDtypeStruct(
            tensor.shape[::-1], jnp.float32, sharding=sharding.replicated(mesh)
        )
        view = TensorView(tensor.name, tensor.shape, axes=axes)
        head[part] = _read(whole, view, [tensor], "float32")
    return head


def _tensors(
    view: TensorView, config: ModelConfig, names: Mapping[str, str], stored: Stored
) -> list[files.StoredTensor]:
    """Return the tensors of which a parameter is made: one, or one per layer."""
    if "{layer}" not in view.name:
        return [stored[names[view.name]]]
    return [stored[names[view.name.format(layer=i)]] for i in range(config.num_layers)]


def _read(
    wanted: jax.ShapeDtypeStruct, view: TensorView, tensors: list[files.StoredTensor], dtype: str
) -> jax.Array:
    """Read a parameter in its sharding; replicas within this process are read once."""
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
        # Wait, so that at most one shard is in transfer.
        copies = jax.block_until_ready([jax.device_put(shard, device) for device in devices])
        pieces |= dict(zip(devices, copies, strict=True))
    return jax.make_array_from_single_device_arrays(
        wanted.shape, wanted.sharding, [pieces[d] for d in where], dtype=jnp.dtype(dtype)
    )


def _zeros(wanted: jax.ShapeDtypeStruct, dtype: str) -> jax.Array:
    return jax.jit(lambda: jnp.zeros(wanted.shape, dtype), out_shardings=wanted.sharding)()
