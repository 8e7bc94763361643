"""Read an encoder's pooler and read-out from its folder, as config.json does not contain them.

Imports no JAX.
"""

import dataclasses
import re
from collections.abc import Collection
from pathlib import Path

from w2s_jax.models.checkpoint_files import MODULES, POOLING, read_list, read_object
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import Family, file_names
from w2s_jax.models.notes import say

# Modules that a read-out includes, or that do nothing outside training.
_APPLIED = ("Transformer", "Pooling", "Dropout")

# Pooling modes of sentence-transformers -> read-outs. With several modes, embeddings are joined.
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}


def completed(
    folder: Path, family: Family, config: ModelConfig, names: Collection[str], classifies: bool
) -> ModelConfig:
    """Return the config with the pooler and read-out of an encoder; unchanged for a decoder.

    A classifier reads the pooler. Any other encoder has a pooler if the folder has its tensors;
    its read-out is that of the folder's sentence-transformers file, or else the first token.

    Args:
      folder: a folder in Hugging Face's layout.
      family: the family of the model.
      config: the model according to its config.json.
      names: the names of its tensors.
      classifies: whether it has a head for sequence classification.

    Raises:
      InputError: if the sentence-transformers file is damaged.
    """
    _name_modules(folder)
    if not config.bidirectional:
        pooling = _pooling(folder)
        if pooling is not None and pooling != config.read_out:
            say(f"{folder / POOLING}: {pooling!r} is not used; decoders read the last token")
        return config
    if classifies:
        return dataclasses.replace(config, read_out="pooler")
    wanted = file_names(family, config, names)
    views = family.views(config)
    pooler = any(
        wanted[view.name] in names for path, view in views.items() if path.startswith("pooler.")
    )
    return dataclasses.replace(config, pooler=pooler, read_out=_pooling(folder) or config.read_out)


def _name_modules(folder: Path) -> None:
    """Say which modules of sentence-transformers, after pooling, are not applied."""
    path = folder / MODULES
    if path.is_file():
        listed = read_list(path)
        found = [(str(m.get("path")), str(m.get("type"))) for m in listed if isinstance(m, dict)]
    else:
        inner = sorted(p.name for p in folder.iterdir() if re.match(r"\d+_\w", p.name))
        found = [(name, name.partition("_")[2]) for name in inner if (folder / name).is_dir()]
    others = [name for name, kind in found if kind.rpartition(".")[2] not in _APPLIED]
    others = [name if name.isprintable() else repr(name) for name in others]
    if others:
        say(
            f"{folder}: modules of sentence-transformers that are not applied: {', '.join(others)};"
            " heads read the pooled hidden states"
        )


def _pooling(folder: Path) -> str | None:
    """Return the read-out that matches sentence-transformers' pooling, or None."""
    path = folder / POOLING
    if not path.is_file():
        return None
    record = read_object(path)
    modes = [key for key, value in record.items() if key.startswith("pooling_mode") and value]
    if len(modes) == 1 and modes[0] in _MODES:
        return _MODES[modes[0]]
    say(
        f"{path}: unsupported pooling: {', '.join(modes) or 'no pooling_mode'}; read-outs are "
        "'mean', 'first' and 'last'; using the default"
    )
    return None
