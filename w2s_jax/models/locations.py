"""How users name models: MODEL[@REVISION][@layers=K]. Imports no JAX."""

import dataclasses
import os
import re
from pathlib import Path

from w2s_jax.core.errors import InputError, unknown
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.families import FAMILIES

_LAYERS = "@layers="


def split_layers(given: str | os.PathLike[str]) -> tuple[str, int | None]:
    """Split MODEL@layers=K into (MODEL, K); K is None without '@layers='.

    An existing path of the whole name is a model of that name.

    Raises:
      InputError: if K is not a positive integer, or something else is asked for.
    """
    text = os.fspath(given)
    model, mark, number = text.rpartition(_LAYERS)
    option = re.search(r"@(\w+)=\d+$", text)
    if not mark and option and not Path(text).expanduser().exists():
        raise unknown(f"{text}: option", option[1], ["layers"])
    if not mark or Path(text).expanduser().exists():
        return text, None
    if not (number.isascii() and number.isdecimal() and int(number) > 0):
        raise InputError(
            f"{text}: layers: {number!r}; allowed: the number of layers to keep, at least 1, at "
            "the end: MODEL[@REVISION]@layers=K"
        )
    return model, int(number)


def with_layers(model: str, layers: int | None) -> str:
    """Return MODEL@layers=K: the inverse of `split_layers`."""
    return model if layers is None else f"{model}{_LAYERS}{layers}"


def truncated(config: ModelConfig, layers: int | None, location: str) -> ModelConfig:
    """Return the model of the first layers of a model.

    Args:
      config: the whole model.
      layers: their number; None: all.
      location: the whole model as the user named it, for the error message.

    Raises:
      InputError: if the model has fewer.
    """
    if layers is None:
        return config
    if layers > config.num_layers:
        raise InputError(
            f"{with_layers(location, layers)}: layers: {layers}; allowed: 1 to "
            f"{config.num_layers}, the layers of the model"
        )
    cut = dataclasses.replace(
        config,
        name=with_layers(config.name, layers),
        num_layers=layers,
        local_layers=config.local_layers[:layers],
        read_out_layers=(),
    )
    if config.local_layers and config.family in FAMILIES:
        # The family's own form of a model in which all, or none, of the layers have the window.
        family = FAMILIES[config.family]
        again = family.to_config(family.to_hf(cut))
        cut = dataclasses.replace(cut, window=again.window, local_layers=again.local_layers)
    return cut
