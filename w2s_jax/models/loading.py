"""Load models: trained phases, converted folders, and Hugging Face folders and ids."""

import dataclasses
import os
from collections.abc import Mapping
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
from w2s_jax.models.hf_models import local_folder
from w2s_jax.models.importing import DTYPES, import_huggingface
from w2s_jax.models.locations import split_layers, truncated
from w2s_jax.models.sources import CONVERTED, final_of, is_huggingface, read_ours
from w2s_jax.store import trees


@dataclass(frozen=True)
class Loaded:
    """A loaded model with the contents of its folder.

    Attributes:
      config: the model.
      params: parameters of its backbone.
      head: {'kernel': float32 [D, classes]}, optionally with 'bias' (float32 [classes]), or None.
      huggingface: content of the Hugging Face config.json that the model came from, if any.
      tokenizer: folder that may contain tokenizer files, if any.
      base: name of the base model, for a phase that stored only what it trained; else ''.
      labels: names of the classes of its head; None: those in `huggingface`, if any.
    """

    config: ModelConfig
    params: Any
    head: dict[str, jax.Array] | None
    huggingface: dict[str, Any] | None
    tokenizer: Path | None
    base: str = ""
    labels: list[str] | None = None


def load(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[ModelConfig, Any]:
    """Load a model. Needs no tokenizer.

    Args:
      path_or_hub_id: a phase folder, DIR/phases/<kind>-<fingerprint>; a folder written by
        `w2s convert`; a folder in Hugging Face's layout; or a hub id, optionally with '@revision'.
        MODEL@layers=K is the model of the first K layers of one of these, with its final norm.
      mesh: where to put the parameters (default: a copy on each device).
      dtype: dtype of the parameters, 'float32' or 'bfloat16' (None: as stored in a phase or
        converted folder; float32 for Hugging Face's).

    Returns:
      (config, backbone parameters), the first two arguments of `forward`.

    Raises:
      InputError: if `path_or_hub_id` is none of these, or if a Hugging Face file is missing,
        damaged or does not fit. The message names the file and the tensor.
      StorageError: if a phase or converted folder is damaged.
    """
    loaded = load_all(path_or_hub_id, mesh, dtype, with_head=False)
    return loaded.config, loaded.params


def load_with_head(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> tuple[ModelConfig, dict[str, Any]]:
    """Load a model as `load` does, with its class head.

    Returns:
      (config, {'backbone': ..., 'head': ...}), without 'head' if there is none.
    """
    loaded = load_all(path_or_hub_id, mesh, dtype)
    head = {} if loaded.head is None else {"head": loaded.head}
    return loaded.config, {"backbone": loaded.params} | head


def load_all(
    path_or_hub_id: str | os.PathLike[str],
    mesh: Mesh | None = None,
    dtype: str | None = None,
    *,
    with_head: bool = True,
) -> Loaded:
    """Load a model as `load` does, with everything in its folder.

    `with_head=False` leaves out the class head of a folder in Hugging Face's layout.
    """
    if dtype is not None and dtype not in DTYPES:
        raise errors.unknown("dtype", dtype, DTYPES)
    name, layers = split_layers(path_or_hub_id)
    folder = local_folder(name)
    mesh = sharding.make_mesh() if mesh is None else mesh
    if not is_huggingface(folder):
        loaded = _load_ours(folder, mesh, dtype)
        return loaded if layers is None else _first_layers(loaded, layers, name)
    found = import_huggingface(folder, mesh, dtype or "float32", with_head=with_head, layers=layers)
    return Loaded(found.config, found.params, found.head, found.huggingface, found.tokenizer)


def load_adapted(
    path_or_hub_id: str | os.PathLike[str], mesh: Mesh | None = None, dtype: str | None = None
) -> Loaded:
    """Load a model as `load_all` does, without merging low-rank adapters (see `models.lora`).

    Raises:
      InputError: as for `load`, and if the model has no adapters.
    """
    folder = local_folder(path_or_hub_id)
    mesh = sharding.make_mesh() if mesh is None else mesh
    found = None if is_huggingface(folder) else _parts(folder, mesh, dtype)
    if found is None or not found.config.lora_rank:
        raise errors.InputError(
            f"{path_or_hub_id}: has no low-rank adapters; give a phase with train.adapt='lora'"
        )
    return found


def _load_ours(folder: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    found = _parts(folder, mesh, dtype)
    config, params = adapting.whole(found.config, {"backbone": found.params})
    return dataclasses.replace(found, config=config, params=params["backbone"])


def _first_layers(loaded: Loaded, layers: int, location: str) -> Loaded:
    """Return the first layers of a model, without its head."""
    config = truncated(loaded.config, layers, location)
    if layers == loaded.config.num_layers:
        return dataclasses.replace(loaded, config=config, head=None)
    params = network.split_tail(loaded.config, loaded.params, loaded.config.num_layers - layers)
    del params["tail_blocks"]
    return dataclasses.replace(loaded, config=config, params=params, head=None)


def _head_columns(record: Mapping[str, Any], spec: Mapping[str, Any]) -> int:
    """Return the columns of the head that a config.json describes."""
    if record.get("head_classes") is not None:
        return int(record["head_classes"])
    return 1 if spec.get("texts", 1) == 2 else int(spec.get("classes", 2))


def _parts(folder: Path, mesh: Mesh, dtype: str | None) -> Loaded:
    """Load a phase or converted folder, with adapters and last layers still separate."""
    record, config = read_ours(folder)
    spec = record["spec"]
    adapt, own_dtype = record.get("trained", "full"), record.get("dtype", "float32")
    train = TrainSettings(
        adapt=adapt,
        last_layers=spec.get("train", {}).get("last_layers", 1),
        # A part was trained with the base in that dtype, whatever `dtype` is requested.
        param_dtype=dtype if dtype and adapt == "full" else own_dtype,
        head_bias=record.get("head_bias", spec.get("train", {}).get("head_bias", False)),
    )
    generates = record["kind"] == "pretrain" or "completion" in spec
    has_head = record.get("head", not generates)
    columns = _head_columns(record, spec) if has_head else None
    if train.adapt == "full":
        target = adapting.abstract_params(train, config, mesh, columns)
        params = trees.load_tree(final_of(folder), target)
    else:
        target = adapting.abstract_trained(train, config, mesh, columns)
        trained = trees.load_tree(final_of(folder), target)
        base = _base(record["base"], folder, config.without_adapters(), mesh, own_dtype)
        tree = {"backbone": base} | {k: v for k, v in trained.items() if k == "head"}
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
        _labels(record, params.get("head")),
    )


def _labels(record: dict[str, Any], head: dict[str, Any] | None) -> list[str] | None:
    """Return the names of the classes; those of a pretrained model are not a trained head's."""
    named = record.get("label_names")
    if head is None or (named is None and record["kind"] == CONVERTED):
        return None
    count = head["kernel"].shape[1]
    return named if named and len(named) == count else [f"LABEL_{i}" for i in range(count)]


def _base_name(record: dict[str, Any]) -> str:
    return str(record.get("model") or record.get("phase") or "")


def _base(record: dict[str, Any], folder: Path, config: ModelConfig, mesh: Mesh, dtype: str) -> Any:
    """Load or initialise the backbone of which a phase trained a part."""
    source = sources.base_of(folder, record)
    if source is None:
        return adapting.cast(network.init_params(config, record["seed"], mesh), dtype)
    return load(source.location, mesh, dtype)[1]
