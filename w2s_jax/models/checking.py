"""Check that a folder in Hugging Face's layout holds a complete model.

Compares the headers of the safetensors with config.json. No tensor is read, so the check is fast
for models of any size. Imports no JAX.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError, nearest
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.encoder_files import completed
from w2s_jax.models.families import Family, TensorView, family_of, file_names, is_ignored

log = logging.getLogger(__name__)

Stored = dict[str, files.StoredTensor]


@dataclass(frozen=True)
class Checked:
    """A folder that holds a complete model.

    Attributes:
      config: the model.
      family: its family.
      huggingface: the content of the folder's config.json.
      stored: the tensors by name.
      views: the view of each parameter, by flat path.
      names: maps the tensor names in `views` (of every layer) to those in the files.
      absent: flat paths of language-model head parameters that the folder lacks; they become zeros.
    """

    config: ModelConfig
    family: Family
    huggingface: dict[str, Any]
    stored: Stored
    views: dict[str, TensorView]
    names: dict[str, str]
    absent: set[str]


def check_folder(folder: Path) -> Checked:
    """Check a folder with config.json and safetensors.

    Raises:
      InputError: if anything is missing, damaged, of the wrong shape or type, or unknown, or if
        the folder's tokenizer has more tokens than the embedding has rows. The message names the
        file and the tensor.
    """
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
        files.check_tokenizer(folder, config.vocab_size, table.location)
    return Checked(config, family, record, stored, views, names, absent)


def _check(
    folder: Path,
    family: Family,
    config: ModelConfig,
    record: Mapping[str, Any],
    stored: Stored,
) -> set[str]:
    """Compare the headers with the config; return the paths of absent parameters."""
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
                    "%s: tensor %r is missing (the model was saved without its language-model "
                    "head); zeros are used instead",
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
                f"{tensor.location}: unexpected; the model in {folder / files.CONFIG} has no such "
                f"tensor{_hint(name, missing or used)}"
            )
    return absent


def _hint(name: str, others: Any) -> str:
    match = nearest(name, others)
    return f" (nearest: {match!r})" if match else ""


def _check_tensor(tensor: files.StoredTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise InputError(
            f"{tensor.location}: shape {list(tensor.shape)}; expected {list(shape)} according to "
            f"{files.CONFIG}"
        )
    if tensor.dtype not in files.FLOATS:
        raise InputError(
            f"{tensor.location}: type {tensor.dtype}; allowed: {', '.join(files.FLOATS)}"
        )


def _check_head(
    tensor: files.StoredTensor, config: ModelConfig, bias: files.StoredTensor | None
) -> None:
    if list(tensor.shape) not in ([1, config.d_model], [2, config.d_model]):
        raise InputError(
            f"{tensor.location}: shape {list(tensor.shape)}; allowed: [2, {config.d_model}] (two "
            f"classes) or [1, {config.d_model}] (a reward)"
        )
    _check_tensor(tensor, tensor.shape)
    if bias is not None:
        _check_tensor(bias, tensor.shape[:1])


def _is_headless(family: Family, record: Mapping[str, Any]) -> bool:
    """Return whether the folder's class, a classifier or bare backbone, has no unembedding."""
    named: list[str] = record.get("architectures") or []
    return bool(named) and named[0] != family.architectures[0]
