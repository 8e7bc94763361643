"""What a folder says of an encoder besides config.json: its pooler and its read-out.

Imports no JAX.
"""

import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import read_json
from w2s_jax.models.checkpoint_files import POOLING
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import Family, file_names

# Their ways -> ours; a text has one, or several whose embeddings are joined.
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}

log = logging.getLogger(__name__)


def completed(
    folder: Path, family: Family, config: ModelConfig, names: Collection[str]
) -> ModelConfig:
    """The config of the encoder in a folder; that of a decoder stays as it is.

    A classifier reads the pooler. Else there is a pooler if the folder has its tensors, and the
    read-out is as the folder's sentence-transformers file says, or the first token.

    Args:
      folder: in Hugging Face's layout.
      family, config: what its config.json says.
      names: of its tensors.

    Raises:
      InputError: if the file of sentence-transformers is damaged.
    """
    if not config.bidirectional:
        return config
    if family.classifier_head in names:
        return dataclasses.replace(config, read_out="pooler")
    wanted = file_names(family, config, names)
    views = family.views(config)
    pooler = any(
        wanted[view.name] in names for path, view in views.items() if path.startswith("pooler.")
    )
    return dataclasses.replace(config, pooler=pooler, read_out=_pooling(folder) or config.read_out)


def _pooling(folder: Path) -> str | None:
    """The read-out that sentence-transformers use, if there is one of ours that is the same."""
    path = folder / POOLING
    if not path.is_file():
        return None
    record = read_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: {type(record).__name__}; allowed: a JSON object")
    modes = [key for key, value in record.items() if key.startswith("pooling_mode") and value]
    if len(modes) == 1 and modes[0] in _MODES:
        return _MODES[modes[0]]
    log.warning(
        "%s: %s; read-outs are 'mean', 'first' and 'last': the default stands",
        path,
        ", ".join(modes) or "no pooling_mode",
    )
    return None
