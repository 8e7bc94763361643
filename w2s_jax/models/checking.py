"""Check that a folder in Hugging Face's layout holds a complete model.

Compares the headers of the safetensors with config.json. No tensor is read, except for the two
embeddings of a tied model that stores both, so the check is fast for models of any size. Imports no
JAX.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, nearest
from w2s_jax.models import checkpoint_files as files
from w2s_jax.models import peft_files, tokenizer_record
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.encoder_files import completed
from w2s_jax.models.families import (
    Family,
    TensorView,
    architectures_of,
    family_of,
    file_names,
    is_ignored,
)
from w2s_jax.models.families.base import accepted_architectures
from w2s_jax.models.families.reading import rope_notes
from w2s_jax.models.gguf_files import GgufModel, dequantised, is_gguf, read_gguf
from w2s_jax.models.gguf_models import config_of, tensors_of
from w2s_jax.models.gguf_tokenizer import tokenizer_folder
from w2s_jax.models.locations import truncated, with_layers
from w2s_jax.models.notes import say

Stored = dict[str, files.StoredTensor]

# Numbers read at once to compare two tensors.
_BLOCK = 2**24


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
      head: the tensors of the class head, 'kernel' and perhaps 'bias'; {} if there is none, or if
        layers are left out.
      head_problem: why the class head cannot be read, which matters only where it is used; else ''.
      adapters: PEFT's adapters, which are merged into `stored`, if the folder has only these.
      gguf: the GGUF file that the model is read from, if it is not a folder.
    """

    config: ModelConfig
    family: Family
    huggingface: dict[str, Any]
    stored: Stored
    views: dict[str, TensorView]
    names: dict[str, str]
    absent: set[str]
    head: Stored
    head_problem: str
    adapters: peft_files.Adapters | None = None
    gguf: GgufModel | None = None

    @property
    def files(self) -> list[Path]:
        """The files with tensors, in reading order."""
        if self.gguf is not None:
            return list(self.gguf.files)
        adapters = [] if self.adapters is None else [self.adapters.file]
        return list(dict.fromkeys([*(t.file for t in self.stored.values()), *adapters]))

    def tokenizer_of(self, folder: Path) -> Path:
        """Return the folder with the tokenizer: `folder`, or that of the adapters' base.

        That of a GGUF file is in the user's cache; it does not exist if it cannot be rebuilt.
        """
        if self.gguf is not None:
            return tokenizer_folder(self.gguf) or folder.with_suffix("")
        own = self.adapters is None or (folder / tokenizer_record.TOKENIZER).is_file()
        return folder if own or self.adapters is None else self.adapters.base


def read_description(folder: Path) -> tuple[dict[str, Any], Family, ModelConfig]:
    """Return a folder's config.json, its family and the model that it describes.

    For a folder with PEFT's adapters these are those of the base.

    Raises:
      InputError: if config.json is missing or damaged, or describes a model that is not supported.
    """
    if peft_files.is_adapter_folder(folder):
        adapters = peft_files.read_adapters(folder)
        record, family, config = read_description(adapters.base)
        return record, family, truncated(config, adapters.layers, str(folder))
    if is_gguf(folder):
        record, where = config_of(read_gguf(folder)), folder
    else:
        record, where = files.read_config(folder), folder / files.CONFIG
    family = family_of(record, str(where))
    try:
        config = family.to_config(record)
        notes = rope_notes(record, config)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    for note in notes:
        say(f"{where}: {note}")
    return record, family, config


def check_folder(folder: Path, layers: int | None = None) -> Checked:
    """Check a folder with config.json and safetensors, or a GGUF file.

    Args:
      folder: the folder or file.
      layers: the number of layers of the model that is wanted; None: all. What the folder holds
        beyond them is checked too.

    Raises:
      InputError: if anything is missing, damaged, of the wrong shape or type, or unknown, or if
        texts can yield tokens of the folder's tokenizer for which the embedding has no row. The
        message names the file and the tensor.
    """
    given, adapters = folder, None
    if peft_files.is_adapter_folder(folder):
        adapters = peft_files.read_adapters(folder)
        folder = adapters.base
        layers = _fewer(given, layers, adapters.layers)
    record, family, config = read_description(folder)
    gguf = read_gguf(folder) if is_gguf(folder) else None
    stored = files.open_tensors(folder) if gguf is None else tensors_of(gguf, record)
    if config.num_layers > len(stored):
        raise InputError(
            f"{folder if gguf else folder / files.CONFIG}: describes {config.num_layers} "
            f"layers, but the files have only {len(stored)} tensors"
        )
    if adapters is not None:
        stored = peft_files.merged(adapters, family, config, stored, layers)
    head = _class_head(family, record, stored)
    if gguf is None:
        config = completed(folder, family, config, stored.keys(), bool(head))
    config, names = _names(folder, family, config, stored)
    absent = _check(folder, family, config, record, stored, names, head)
    if layers is not None:
        config, head = truncated(config, layers, str(given)), {}
    if gguf is not None:
        config = dataclasses.replace(config, name=config.name + dequantised(gguf.quantisation))
    views = family.views(config)
    table = stored[names[views["embedding"].name]]
    problem = "" if layers else _head_problem(folder, family, config, record, head)
    found = Checked(
        config, family, record, stored, views, names, absent, head, problem, adapters, gguf
    )
    tokenizer_record.check(found.tokenizer_of(given), config.vocab_size, table.location)
    return found


def _fewer(folder: Path, layers: int | None, of_base: int | None) -> int | None:
    """Return the number of layers of a model of adapters, whose base may have been cut itself."""
    if layers is None or of_base is None:
        return of_base if layers is None else layers
    if layers > of_base:
        raise InputError(
            f"{with_layers(str(folder), layers)}: layers: {layers}; allowed: 1 to {of_base}, the "
            "layers of the model"
        )
    return layers


def _class_head(family: Family, record: Mapping[str, Any], stored: Stored) -> Stored:
    """Return the tensors of the head for sequence classification, if it is one."""
    named = architectures_of(record)
    if named and named[0] not in accepted_architectures(family):
        return {}  # the same names, but for the classes of tokens or the choice of an answer
    parts = {"kernel": family.classifier_head, "bias": family.classifier_bias}
    head = {part: stored[name] for part, name in parts.items() if name and name in stored}
    return head if "kernel" in head else {}


def _head_problem(
    folder: Path,
    family: Family,
    config: ModelConfig,
    record: Mapping[str, Any],
    head: Stored,
) -> str:
    if not head and family.classifier in architectures_of(record):
        return f"{folder}: tensor {family.classifier_head!r} is missing, the head of the classifier"
    for part, tensor in head.items():
        shape = (head["kernel"].shape[0], config.d_model)[: 1 if part == "bias" else 2]
        if tensor.shape != shape:
            return f"{tensor.location}: shape {list(tensor.shape)}; expected {list(shape)}"
        if tensor.dtype not in files.FLOATS:
            return f"{tensor.location}: type {tensor.dtype}; allowed: {', '.join(files.FLOATS)}"
    return ""


def _names(
    folder: Path, family: Family, config: ModelConfig, stored: Stored
) -> tuple[ModelConfig, dict[str, str]]:
    """Return the names of the model's tensors, and the config, untied if the tensors differ.

    The rules are those of transformers 5: a tied model whose file has both an embedding and an
    unembedding is tied if they are equal; one with only an unembedding has it as its embedding.
    """
    names = file_names(family, config, stored.keys())
    output = _unembedding(family, config)
    if not config.tied_embeddings or output is None:
        return config, names
    untied = dataclasses.replace(config, tied_embeddings=False)
    wider = file_names(family, untied, stored.keys())
    inner, outer = family.views(config)["embedding"].name, wider[output.name]
    if outer not in stored:
        return config, names
    if names[inner] not in stored:
        return config, names | {inner: outer}
    embedding, unembedding = stored[names[inner]], stored[outer]
    if _are_equal(embedding, unembedding, embedding.stamp, unembedding.stamp):
        return config, names
    say(
        f"{folder}: config.json ties the embeddings, but {outer!r} differs from {names[inner]!r}; "
        "they are not tied, as in transformers"
    )
    return untied, wider


def _unembedding(family: Family, config: ModelConfig) -> TensorView | None:
    """Return the view of the unembedding that a decoder has if it is not tied."""
    if config.bidirectional:
        return None
    return family.views(dataclasses.replace(config, tied_embeddings=False)).get("unembedding")


@functools.cache
def _are_equal(a: files.StoredTensor, b: files.StoredTensor, *stamps: tuple[int, int]) -> bool:
    """Compare two matrices of files whose `stamps` show whether they have changed."""
    if a.shape != b.shape or len(a.shape) != 2 or not {a.dtype, b.dtype} <= set(files.FLOATS):
        return False
    rows = max(1, _BLOCK // max(1, a.shape[1]))
    for start in range(0, a.shape[0], rows):
        box = [(start, min(start + rows, a.shape[0])), (0, a.shape[1])]
        left, right = (files.read_box(tensor, box).astype(np.float32) for tensor in (a, b))
        if not np.array_equal(left, right):
            return False
    return True


def _check(
    folder: Path,
    family: Family,
    config: ModelConfig,
    record: Mapping[str, Any],
    stored: Stored,
    names: Mapping[str, str],
    head: Stored,
) -> set[str]:
    """Compare the headers with the config; return the paths of absent parameters."""
    whole = str(folder / (files.SINGLE if (folder / files.SINGLE).is_file() else files.INDEX))
    whole = str(folder) if is_gguf(folder) else whole
    absent = set()
    for path, view in family.views(config).items():
        layers = range(config.num_layers) if "{layer}" in view.name else [0]
        for name in (names[view.name.format(layer=i)] for i in layers):
            if name in stored:
                _check_tensor(stored[name], view.stored)
            elif path.startswith("unembedding") and _is_headless(family, record):
                absent.add(path)
                say(
                    f"{whole}: tensor {name!r} is missing (the model was saved without its "
                    "language-model head); zeros are used instead"
                )
            else:
                free = stored.keys() - set(names.values())
                raise InputError(f"{whole}: tensor {name!r} is missing{_hint(name, free)}")
    _check_others(folder, family, config, stored, set(names.values()), head)
    return absent


def _check_others(
    folder: Path,
    family: Family,
    config: ModelConfig,
    stored: Stored,
    used: set[str],
    head: Stored,
) -> None:
    """Refuse unexpected tensors of the backbone; name those outside it, which are not used."""
    backbone = _first_parts(family, config, used)
    parts = {"kernel": family.classifier_head, "bias": family.classifier_bias}
    known = used | {name for part, name in parts.items() if part in head}
    others = []
    for name, tensor in stored.items():
        if name in known or is_ignored(family, name):
            continue
        if name.split(".")[0] in backbone:
            missing = used - stored.keys()
            raise InputError(
                f"{tensor.location}: unexpected; the model in {folder / files.CONFIG} has no such "
                f"tensor{_hint(name, missing or used)}"
            )
        others.append(name)
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        listed = ", ".join(map(repr, others[:3]))
        say(f"{folder}: outside the backbone, and not used: {listed}{more}")


def _first_parts(family: Family, config: ModelConfig, used: set[str]) -> set[str]:
    """Return what names of the backbone or unembedding begin with, in any file of the family."""
    names = [view.name for view in family.views(config).values()]
    names += [name.removeprefix(family.prefixes[0]) for name in names]
    output = _unembedding(family, config)
    names += [output.name] if output is not None else []
    return {name.split(".")[0] for name in (*names, *family.prefixes, *used) if name}


def _hint(name: str, others: Collection[str]) -> str:
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


def _is_headless(family: Family, record: Mapping[str, Any]) -> bool:
    """Return whether the folder's class, a classifier or bare backbone, has no unembedding."""
    named = architectures_of(record)
    return bool(named) and named[0] != family.architectures[0]
