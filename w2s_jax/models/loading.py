"""Models from disk: trained phases, converted folders, and Hugging Face's folders and ids."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from w2s_jax import errors, sharding, storage
from w2s_jax.files import read_json
from w2s_jax.models import network
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.heads import abstract_class_head
from w2s_jax.models.hub import local_folder
from w2s_jax.models.importing import DTYPES, import_huggingface

#: `kind` of a folder that `w2s convert` wrote; other kinds are those of phases.
CONVERTED = "converted"


@dataclass(frozen=True)
class Loaded:
    """A model, and what its folder says of it.

    Attributes:
      config, params: the model and its backbone.
      head: {'kernel': float32 [D, classes]} and perhaps 'bias' (float32 [classes]), or None.
      huggingface: the content of the config.json that it came from, if any.
      tokenizer: the folder that may hold its tokenizer's files, if any.
    """

    config: ModelConfig
    params: Any
    head: dict[str, jax.Array] | None
    huggingface: dict[str, Any] | None
    tokenizer: Path | None


def load(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[ModelConfig, Any]:
    """A model: (config, backbone parameters) for `forward`. Needs no tokenizer.

    Args:
      path_or_hub_id: a phase folder, DIR/phases/<kind>-<fingerprint>; a folder that `w2s convert`
        wrote; a folder in Hugging Face's layout; or a hub id, which may end in '@revision'.
      mesh: where the parameters go (default: all devices, each with a copy).
      dtype: of the parameters, 'float32' or 'bfloat16' (None: as in a folder of ours, float32 from
        Hugging Face).

    Raises:
      InputError: if it is none of these, or if a file of Hugging Face's is missing, damaged or does
        not fit; names the file and the tensor.
      StorageError: if a folder of ours is damaged.
    """
    loaded = load_all(path_or_hub_id, mesh, dtype)
    return loaded.config, loaded.params


def load_with_head(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """As `load`, with the class head: {'backbone', 'head'} (no 'head' if there is none)."""
    loaded = load_all(path_or_hub_id, mesh, dtype)
    head = {} if loaded.head is None else {"head": loaded.head}
    return loaded.config, {"backbone": loaded.params} | head


def load_all(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> Loaded:
    """As `load`, with everything that the folder has."""
    if dtype is not None and dtype not in DTYPES:
        raise errors.unknown("dtype", dtype, DTYPES)
    folder = local_folder(path_or_hub_id)
    mesh = sharding.make_mesh() if mesh is None else mesh
    if not _is_huggingface(folder):
        return _load_ours(folder, mesh, dtype)
    found = import_huggingface(folder, mesh, dtype or "float32")
    return Loaded(found.config, found.params, found.head, found.huggingface, folder)


def _is_huggingface(folder: Path) -> bool:
    """Whether a folder is, or was to be, in Hugging Face's layout."""
    if (folder / "checkpoints").exists():
        return False
    if any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return True
    config = folder / "config.json"
    record = read_json(config) if config.is_file() else {}
    return isinstance(record, dict) and ("model_type" in record or "architectures" in record)


def _load_ours(folder: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    final = folder / "checkpoints" / "final"
    if not (folder / "config.json").exists() or not final.exists():
        raise errors.InputError(
            f"{folder}: not the folder of a trained phase (it has no config.json and "
            "checkpoints/final), nor one in Hugging Face's layout (config.json with a model_type, "
            "and model.safetensors); allowed: DIR/phases/<kind>-<fingerprint> of a finished run, "
            "what w2s convert wrote, or a Hugging Face folder or id"
        )
    record = read_json(folder / "config.json")
    config = ModelConfig(**record["spec"]["model"])
    kind = jnp.dtype(dtype or record.get("dtype", "float32"))
    target: dict[str, Any] = {
        "backbone": jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, kind, sharding=a.sharding),
            network.abstract_params(config, mesh),
        )
    }
    if record.get("head", record["kind"] != "pretrain"):
        target["head"] = abstract_class_head(
            config, mesh, record["spec"].get("texts", 1), bias=record.get("head_bias", False)
        )
    tree = storage.load_tree(final, target)
    tokenizer = folder / "tokenizer"
    return Loaded(
        config,
        tree["backbone"],
        tree.get("head"),
        record.get("huggingface"),
        tokenizer if tokenizer.is_dir() else None,
    )
