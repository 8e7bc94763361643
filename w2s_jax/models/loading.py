"""Models from disk: trained phases, converted folders, and Hugging Face's folders and ids."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.core import errors
from w2s_jax.models import adapting, network, sources
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.heads import abstract_class_head
from w2s_jax.models.hf_models import local_folder
from w2s_jax.models.importing import DTYPES, import_huggingface
from w2s_jax.models.sources import final_of, is_huggingface, read_ours
from w2s_jax.store import trees


@dataclass(frozen=True)
class Loaded:
    """A model, and what its folder says of it.

    Attributes:
      config, params: the model and its backbone.
      head: {'kernel': float32 [D, classes]} and perhaps 'bias' (float32 [classes]), or None.
      huggingface: the content of the config.json that it came from, if any.
      tokenizer: the folder that may hold its tokenizer's files, if any.
      base: what a phase that trained a part of a model calls the rest; else ''.
    """

    config: ModelConfig
    params: Any
    head: dict[str, jax.Array] | None
    huggingface: dict[str, Any] | None
    tokenizer: Path | None
    base: str = ""


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
    if not is_huggingface(folder):
        return _load_ours(folder, mesh, dtype)
    found = import_huggingface(folder, mesh, dtype or "float32")
    return Loaded(found.config, found.params, found.head, found.huggingface, folder)


def load_adapted(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> Loaded:
    """As `load_all`, but a phase's low-rank adapters stand apart (see `models.lora`).

    Raises:
      InputError: as `load`, and if the model has none.
    """
    folder = local_folder(path_or_hub_id)
    mesh = sharding.make_mesh() if mesh is None else mesh
    found = None if is_huggingface(folder) else _parts(folder, mesh, dtype)
    if found is None or not found.config.lora_rank:
        raise errors.InputError(
            f"{path_or_hub_id}: no low-rank adapters; allowed: a phase with train.adapt='lora'"
        )
    return found


def _load_ours(folder: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    found = _parts(folder, mesh, dtype)
    config, params = adapting.whole(found.config, {"backbone": found.params})
    return dataclasses.replace(found, config=config, params=params["backbone"])


def _parts(folder: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    """A model of ours, adapters and last layers still apart from the rest."""
    record, config = read_ours(folder)
    spec = record["spec"]
    adapt, own_dtype = record.get("trained", "full"), record.get("dtype", "float32")
    train = TrainSettings(
        adapt=adapt,
        last_layers=spec.get("train", {}).get("last_layers", 1),
        # A part was trained of the base in that dtype, whatever is wanted of the whole.
        param_dtype=dtype if dtype and adapt == "full" else own_dtype,
    )
    has_head = record.get("head", record["kind"] != "pretrain")
    num_texts = spec.get("texts", 1) if has_head else None
    if train.adapt == "full":
        target = adapting.abstract_params(train, config, mesh, num_texts)
        if record.get("head_bias"):
            target["head"] = abstract_class_head(config, mesh, num_texts or 1, bias=True)
        params = trees.load_tree(final_of(folder), target)
    else:
        target = adapting.abstract_trained(train, config, mesh, num_texts)
        trained = trees.load_tree(final_of(folder), target)
        base = _base(record["base"], folder, config.without_adapters(), mesh, own_dtype)
        tree = {"backbone": base, "head": trained["head"]}
        params = adapting.join(trained, adapting.split(train, config, tree)[1])
        params["backbone"] = adapting.cast(params["backbone"], dtype or own_dtype)
    tokenizer = folder / "tokenizer"
    return Loaded(
        dataclasses.replace(config, name=record.get("name", config.name)),
        params["backbone"],
        params.get("head"),
        record.get("huggingface"),
        tokenizer if tokenizer.is_dir() else None,
        _base_name(record.get("base", {})),
    )


def _base_name(record: dict[str, Any]) -> str:
    return str(record.get("model") or record.get("phase") or "")


def _base(record: dict[str, Any], folder: Path, config: ModelConfig, mesh: Mesh, dtype: str) -> Any:
    """The backbone of which a phase trained a part."""
    source = sources.base_of(folder, record)
    if source is None:
        return adapting.cast(network.init_params(config, record["seed"], mesh), dtype)
    return load(source.folder, mesh, dtype)[1]
