"""Find the pretrained models that a run starts from, check their headers, and pin their content.

Files are hashed, but no tensor is read and JAX is not imported, so that errors are reported before
any work starts.
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
from w2s_jax.core.files import contents, read_json
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import peft_files, tokenizer_record
from w2s_jax.models.checking import check_folder
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig
from w2s_jax.models.gguf_files import is_gguf, origin_of
from w2s_jax.models.hf_models import local_folder, split_id
from w2s_jax.models.image_models import IMAGE_MODELS
from w2s_jax.models.locations import split_layers, truncated, with_layers
from w2s_jax.store import checksums

#: The `kind` of a folder written by `w2s convert`; other kinds are phase kinds.
CONVERTED = "converted"

# Folder names that are shown with their parent's name.
_BARE = ("model", "final", "checkpoint", "latest")


@dataclass(frozen=True)
class ModelSource:
    """A pretrained model on disk, checked and pinned.

    Attributes:
      given: what the user wrote: a path, or a hub id, optionally with '@revision'.
      name: short name for tables: the last part of the id (with its revision) or of the path.
      folder: the local folder; for a hub id the snapshot of one commit; or a GGUF file.
      config: the model.
      digest: SHA-256 (hexadecimal) of everything that determines the parameters: the config without
        its name, and the contents of the weight files in reading order; with '@layers=K', of that
        digest and K. Paths, times and tokenizers are not included.
      huggingface: content of the Hugging Face config.json that the model came from, if any.
      tokenizer: folder with the tokenizer files, if any.
      layers: the number of first layers of which the model consists; None: all of the folder's.
    """

    given: str
    name: str
    folder: Path
    config: ModelConfig
    digest: str
    huggingface: dict[str, Any] | None
    tokenizer: Path | None
    layers: int | None = None

    @property
    def location(self) -> str:
        """The folder, with '@layers=K' if layers are left out: what `models.load` takes."""
        return with_layers(str(self.folder), self.layers)


def find(path_or_hub_id: str | os.PathLike[str]) -> ModelSource:
    """Find a pretrained model. Accepts exactly what `models.load` accepts.

    Args:
      path_or_hub_id: a folder in Hugging Face's layout; a hub id, optionally with '@revision'
        (downloaded if needed); a folder written by `w2s convert`; or a phase folder; each
        optionally with '@layers=K'.

    Raises:
      InputError: if there is no such model (the message says what was tried, and names the nearest
        embedded model), or if it is damaged, incomplete or not supported (one line that names the
        file and the tensor).
    """
    given = os.fspath(path_or_hub_id)
    model, layers = split_layers(given)
    if model in EMBEDDED_MODELS and layers is not None:
        raise InputError(
            f"{given}: {model} is pretrained within the run; @layers=K needs a trained model: a "
            "folder, a hub id or a phase"
        )
    try:
        folder = local_folder(model)
    except hf_hub.NotFound as error:
        match = nearest(model, (*EMBEDDED_MODELS, *IMAGE_MODELS))
        if match is None or "/" in given:
            raise
        raise hf_hub.NotFound(f"{error} (did you mean {match!r}?)") from error
    weights: Any
    huggingface: dict[str, Any] | None
    if is_huggingface(folder):
        checked = check_folder(folder)
        config, huggingface = checked.config, checked.huggingface
        with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the GIL
            weights = list(pool.map(checksums.kept_sha256, checked.files))
        if checked.adapters is not None:
            weights.append(peft_files.scales(checked.adapters, checked.stored))
        tokenizer = checked.tokenizer_of(folder)
    else:
        record, config = read_ours(folder)
        huggingface, tokenizer = record.get("huggingface"), folder / "tokenizer"
        weights = _check_ours(folder, config)
        if record["kind"] != CONVERTED:
            # The spec determines the parameters; Orbax's file names differ from run to run.
            spec = record["spec"]
            weights = spec | {"model": spec["model"] | {"name": ""}}
            name = record.get("name", config.name)
            config = dataclasses.replace(config.without_adapters(), name=name)
        if record.get("trained", "full") != "full":
            base_of(folder, record["base"])
    digest = _digest(config, weights)
    if layers is not None:
        config = truncated(config, layers, model)
        digest = hashlib.sha256(f"{digest}, {layers} layers".encode()).hexdigest()
    return ModelSource(
        given,
        with_layers(_name(model, folder), layers) + origin_of(config.name),
        folder.absolute(),
        config,
        digest,
        huggingface,
        tokenizer.absolute() if files.tokenizer_files(tokenizer) else None,
        layers,
    )


def base_of(folder: Path, base: dict[str, Any]) -> ModelSource | None:
    """Find the base model of a phase that stored only the parameters it trained.

    Args:
      folder: the phase folder.
      base: the entry 'base' of its config.json.

    Returns:
      The base model; None if it is initialised from a seed.

    Raises:
      InputError: if the base model is missing or has changed.
    """
    if "seed" in base:
        return None
    if "phase" in base:
        location: str | Path = folder.parent / base["phase"]
    else:
        local = Path(split_layers(base["folder"])[0])
        location = base["folder"] if local.exists() else base["model"]
    try:
        source = find(location)
    except InputError as error:
        raise InputError(f"{folder}: its base model is missing: {error}") from error
    if source.digest != base.get("digest", source.digest):
        raise InputError(
            f"{folder}: its base model {base['model']} has changed in {source.folder}; restore the "
            "model that the phase was trained from"
        )
    return source


def check_fits(source: ModelSource, tokenizer_vocab_size: int, tokenizer: str) -> None:
    """Check that a model's embedding has a row for each token that a tokenizer gives.

    Args:
      source: the model.
      tokenizer_vocab_size: all ids of tokens that occur are below it.
      tokenizer: what the error message calls the tokenizer.

    Raises:
      InputError: if the tokenizer has too many tokens.
    """
    rows = source.config.vocab_size
    if tokenizer_vocab_size > rows:
        raise InputError(
            f"{tokenizer}: has {tokenizer_vocab_size} tokens, "
            f"{tokenizer_record.too_few_rows(rows, _embedding_location(source))}"
        )


def is_huggingface(folder: Path) -> bool:
    """Return whether a folder is in Hugging Face's layout, even if incomplete, and not in ours.

    A GGUF file counts as such a folder.
    """
    if is_gguf(folder):
        return True
    if (folder / "checkpoints").exists():
        return False
    if any(path.suffix in (".safetensors", ".bin") for path in contents(folder)):
        return True
    if (folder / files.ADAPTER_CONFIG).is_file():
        return True
    config = folder / "config.json"
    record = read_json(config) if config.is_file() else {}
    return isinstance(record, dict) and ("model_type" in record or "architectures" in record)


def read_ours(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Return config.json and the model of a phase folder or a folder written by `w2s convert`.

    Raises:
      InputError: if the folder is neither.
    """
    path = folder / "config.json"
    if not path.exists() or not final_of(folder).exists():
        raise InputError(
            f"{folder}: is not a model: it is neither the folder of a trained phase (config.json "
            "and checkpoints/final) nor in Hugging Face's layout (config.json with a model_type, "
            "and model.safetensors); give DIR/phases/<kind>-<fingerprint> of a finished run, a "
            "folder written by w2s convert, or a Hugging Face folder or id"
        )
    record = read_json(path)
    if "features" in record.get("base", {}):
        raise InputError(
            f"{folder}: is a head on {record['base']['features']}, without a network; a model is "
            "needed here"
        )
    try:
        model = record["spec"]["model"]
        if "architecture" in model:
            raise InputError(
                f"{model['name']} is a convolutional network, whose parameters are not loaded from "
                "folders; name an embedded model, such as cnn-8"
            )
        return record, ModelConfig(**model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path}: does not describe a model ({type(error).__name__}: {error})"
        ) from error


def final_of(folder: Path) -> Path:
    """Return the folder with the parameters (Orbax) of a phase or converted folder."""
    return folder / "checkpoints" / "final"


def _check_ours(folder: Path, config: ModelConfig) -> dict[str, str] | None:
    """Return the manifest of a folder's parameters, whose contents are checked on loading."""
    final = final_of(folder)
    problem = checksums.damage(final, read=False)
    if problem:
        raise InputError(f"{final}: damaged ({problem}); create it again")
    tokenizer_record.check(folder / "tokenizer", config.vocab_size, str(final))
    return checksums.read_manifest(final)


def _name(given: str, folder: Path) -> str:
    hub_id = None if Path(given).expanduser() == folder else split_id(given)
    if hub_id is None:
        path = Path(os.path.abspath(folder))
        path = path.with_suffix("") if is_gguf(folder) else path
        return "/".join(path.parts[-2:]) if path.name in _BARE else path.name
    repository, revision = hub_id
    name = repository.rpartition("/")[2]
    return name if revision is None else f"{name}@{revision}"


def _digest(config: ModelConfig, weights: Any) -> str:
    model = {field: value for field, value in config.to_dict().items() if field != "name"}
    text = json.dumps({"model": model, "weights": weights}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _embedding_location(source: ModelSource) -> str:
    """Return the file and tensor of the embedding, or the folder of the model's parameters."""
    if not is_huggingface(source.folder):
        return str(final_of(source.folder))
    found = check_folder(source.folder)
    return found.stored[found.names[found.views["embedding"].name]].location
