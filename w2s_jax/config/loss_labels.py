"""Losses in a config: labels, each with a kind and options. Imports no JAX."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.declarations import loss_kinds, loss_named
from w2s_jax.core import errors


def add_loss(config: config_dict.ConfigDict, label: str, kind: str, **options: Any) -> None:
    """Define the loss `label` as `kind` with `options` and append it to `config.losses`.

    Raises:
      InputError: for an unknown kind. `validation.validate` checks the options.
    """
    loss_named(kind, f"loss.{label}.kind")
    with config.unlocked():
        config.loss[label] = loss_section(kind, options)
    config.losses = (*config.losses, label)


def loss_section(kind: str, options: Mapping[str, Any]) -> config_dict.ConfigDict:
    """Return the entry of `config.loss` with `options`, the others at their defaults."""
    section = config_dict.ConfigDict({"kind": kind})
    for option, value in (loss_named(kind, "kind").defaults | dict(options)).items():
        section[option] = config_dict.placeholder(float) if value is None else value
    return section


def with_labels(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Return a config whose `losses` are all labels; mappings become entries of `config.loss`.

    {'kind': 'confidence', 'alpha_max': 0.75} becomes the loss with the label
    'confidence(alpha_max=0.75)', or entry['label'] if it has one; options that it does not name are
    at the defaults of the kind. A mapping with nothing but a kind becomes the label of that name.
    Labels stay as they are, so a second call changes nothing.

    Args:
      config: with `losses` of labels and mappings. It is not changed.

    Raises:
      InputError: for a mapping without a kind, an unknown kind or option, or a label that is not
        valid or is taken by other options. `validation.validate` checks the values of options.
    """
    config = config.copy_and_resolve_references()
    labels = []
    for number, entry in enumerate(config.losses or ()):
        if isinstance(entry, Mapping | config_dict.ConfigDict):
            entry = _add_entry(config, f"losses[{number}]", dict(entry))
        labels.append(entry)
    if config.losses is not None:
        config.losses = tuple(labels)
    return config


def _add_entry(config: config_dict.ConfigDict, field: str, entry: dict[str, Any]) -> str:
    """Add a mapping among `losses` to `config.loss`, and return its label."""
    options = {name: value for name, value in entry.items() if name not in ("kind", "label")}
    if "kind" not in entry:
        raise errors.InputError(
            f"{field}: {entry!r} has no 'kind'; allowed: {', '.join(loss_kinds())}"
        )
    kind = entry["kind"]
    known = loss_named(kind, f"{field}.kind").options
    for option in options:
        if option not in known:
            raise errors.unknown(field, option, ["kind", "label", *known])
    named = ",".join(f"{option}={value}" for option, value in options.items())
    label = entry.get("label", f"{kind}({named})" if named else kind)
    if "label" in entry and not (isinstance(label, str) and re.fullmatch(r"[^\s,/]+", label)):
        raise errors.InputError(
            f"{field}.label: {label!r} is not a name without spaces, commas and slashes"
        )
    if label == kind and not options:
        return label
    section = loss_section(kind, options)
    if label in config.loss and config.loss[label].to_dict() != section.to_dict():
        raise errors.InputError(
            f"{field}.label: {label!r} is taken by {config.loss[label].to_dict()!r}; choose "
            "another label"
        )
    with config.unlocked():
        config.loss[label] = section
    return label
