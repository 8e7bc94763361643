"""Pretrained models that a run may start from: found, checked by their headers, and pinned.

No tensor is read but to hash its file, and JAX is not imported: what is wrong with a model is said
before any work.
"""

import dataclasses
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError, nearest
from w2s_jax.core.files import read_json
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.checking import check_folder
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig
from w2s_jax.models.families import FAMILIES, file_names
from w2s_jax.models.hf_models import local_folder, split_id
from w2s_jax.store import checksums

#: `kind` of a folder that `w2s convert` wrote; other kinds are those of phases.
CONVERTED = "converted"

# Names of folders that say nothing alone.
_BARE = ("model", "final", "checkpoint", "latest")


@dataclass(frozen=True)
class Source:
    """A pretrained model on disk, checked, and pinned.

    Attributes:
      given: what the user wrote: a path, or a hub id that may end in '@revision'.
      name: short, for tables: the last part of the id (with its revision) or of the path.
      folder: the local folder; of a hub id that of a snapshot, which holds one commit.
      config: the model.
      digest: sha256 (hexadecimal) of all that decides its parameters: the config without its name,
        and the contents of the weight files in the order in which they are read, file by file;
        paths and times have no part in it, and neither have tokenizers.
      huggingface: the content of the config.json that it came from, if any.
      tokenizer: the folder that holds its tokenizer's files, if any.
    """

    given: str
    name: str
    folder: Path
    config: ModelConfig
    digest: str
    huggingface: dict[str, Any] | None
    tokenizer: Path | None


def find(path_or_hub_id: str | os.PathLike[str]) -> Source:
    """The pretrained model that a user named; what `models.load` takes, and nothing else.

    Args:
      path_or_hub_id: a folder in Hugging Face's layout; a hub id, which may end in '@revision'
        (downloaded if need be); a folder that `w2s convert` wrote; or a phase folder.

    Raises:
      InputError: if there is no such model (says what was tried, and the nearest embedded model),
        or if it is damaged, incomplete or not supported; one line that names file and tensor.
    """
    given = os.fspath(path_or_hub_id)
    try:
        folder = local_folder(given)
    except hf_hub.NotFound as error:
        match = nearest(given, EMBEDDED_MODELS)
        if match is None or "/" in given:
            raise
        raise hf_hub.NotFound(f"{error} (did you mean {match!r}?)") from error
    weights: Any
    huggingface: dict[str, Any] | None
    if is_huggingface(folder):
        checked = check_folder(folder)
        config, huggingface = checked.config, checked.huggingface
        shards = dict.fromkeys(tensor.file for tensor in checked.stored.values())
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing leaves other threads free
            weights = list(pool.map(checksums.kept_sha256, shards))
        tokenizer = folder
    else:
        record, config = read_ours(folder)
        huggingface, tokenizer = record.get("huggingface"), folder / "tokenizer"
        weights = _check_ours(folder, config)
        if record["kind"] != CONVERTED:
            # What a phase leaves follows from what it is; Orbax names the same files differently.
            spec = record["spec"]
            weights = spec | {"model": spec["model"] | {"name": ""}}
            name = record.get("name", config.name)
            config = dataclasses.replace(config.without_adapters(), name=name)
        if record.get("trained", "full") != "full":
            base_of(folder, record["base"])
    return Source(
        given,
        _name(given, folder),
        folder.absolute(),
        config,
        _digest(config, weights),
        huggingface,
        tokenizer.absolute() if files.tokenizer_files(tokenizer) else None,
    )


def base_of(folder: Path, base: dict[str, Any]) -> Source | None:
    """Where the rest is of a model of which the phase `folder` holds what it trained.

    Args:
      folder: the phase.
      base: what its config.json says of the rest.

    Returns:
      The model; None where it is made anew from a seed.

    Raises:
      InputError: if it is not where it was, or is another one now.
    """
    if "seed" in base:
        return None
    if "phase" in base:
        place: str | Path = folder.parent / base["phase"]
    else:
        place = base["folder"] if Path(base["folder"]).is_dir() else base["model"]
    try:
        source = find(place)
    except InputError as error:
        raise InputError(
            f"{folder}: the model of which it trained a part is not there: {error}"
        ) from error
    if source.digest != base.get("digest", source.digest):
        raise InputError(
            f"{folder}: it holds what was trained of {base['model']}, and {source.folder} is "
            "another model now; allowed: the one that the phase began with"
        )
    return source


def check_fits(source: Source, tokenizer_vocab_size: int, tokenizer_place: str) -> None:
    """Sees that a model's embedding has a row for each token of a tokenizer.

    Args:
      source: the model.
      tokenizer_vocab_size: the tokens that the tokenizer can make: their ids are below it.
      tokenizer_place: the tokenizer, for the error.

    Raises:
      InputError: if the tokenizer has more; names both.
    """
    rows = source.config.vocab_size
    if tokenizer_vocab_size > rows:
        raise InputError(
            f"{tokenizer_place}: it has {tokenizer_vocab_size} tokens, "
            f"{files.too_few_rows(rows, _embedding_place(source))}"
        )


def is_huggingface(folder: Path) -> bool:
    """Whether a folder is, or was to be, in Hugging Face's layout; if not, it is one of ours."""
    if (folder / "checkpoints").exists():
        return False
    if any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return True
    config = folder / "config.json"
    record = read_json(config) if config.is_file() else {}
    return isinstance(record, dict) and ("model_type" in record or "architectures" in record)


def read_ours(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """The config.json of a phase folder, or of one that `w2s convert` wrote, and its model.

    Raises:
      InputError: if it is neither.
    """
    path = folder / "config.json"
    if not path.exists() or not final_of(folder).exists():
        raise InputError(
            f"{folder}: not the folder of a trained phase (it has no config.json and "
            "checkpoints/final), nor one in Hugging Face's layout (config.json with a model_type, "
            "and model.safetensors); allowed: DIR/phases/<kind>-<fingerprint> of a finished run, "
            "what w2s convert wrote, or a Hugging Face folder or id"
        )
    record = read_json(path)
    try:
        return record, ModelConfig(**record["spec"]["model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: it describes no model ({type(error).__name__}: {error})"
        ) from error


def final_of(folder: Path) -> Path:
    """Where the parameters (Orbax) of a folder of ours are."""
    return folder / "checkpoints" / "final"


def _check_ours(folder: Path, config: ModelConfig) -> dict[str, str] | None:
    """What the manifest of a folder's parameters says; their contents are checked on loading."""
    final = final_of(folder)
    problem = checksums.damage(final, read=False)
    if problem:
        raise InputError(f"{final}: damaged ({problem}); make it again")
    files.check_tokenizer(folder / "tokenizer", config.vocab_size, str(final))
    return checksums.read_manifest(final)


def _name(given: str, folder: Path) -> str:
    hub_id = None if Path(given).expanduser() == folder else split_id(given)
    if hub_id is None:
        place = Path(os.path.abspath(folder))
        return "/".join(place.parts[-2:]) if place.name in _BARE else place.name
    repository, revision = hub_id
    name = repository.rpartition("/")[2]
    return name if revision is None else f"{name}@{revision}"


def _digest(config: ModelConfig, weights: Any) -> str:
    model = {field: value for field, value in config.to_dict().items() if field != "name"}
    text = json.dumps({"model": model, "weights": weights}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _embedding_place(source: Source) -> str:
    """The embedding's file and tensor, or the folder of parameters that it is among."""
    if not is_huggingface(source.folder):
        return str(final_of(source.folder))
    family, stored = FAMILIES[source.config.family], files.open_tensors(source.folder)
    view = family.views(source.config)["embedding"]
    return stored[file_names(family, source.config, stored.keys())[view.name]].place
