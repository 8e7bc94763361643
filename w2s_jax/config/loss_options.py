"""The losses that a config can name, their options, and how a config gets more of them. No JAX."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from w2s_jax.core import errors

#: The loss table: kind -> its options with their defaults. `losses.register` adds to it. None is
#: the default of an optional float.
LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "xent": {},
    "confidence": {"alpha_max": 0.5, "warmup_fraction": 0.2, "threshold": "half"},
    "logconf": {"aux_coef": 0.5, "warmup_fraction": 0.1},
    "product": {"alpha": 1.0, "beta": 1.0},
    "entropy": {"coef": 0.5},
    "l2_confidence": {"coef": 0.5},
    "buffered_confidence": {
        "aux_coef": 0.5,
        "warmup_fraction": 0.1,
        "buffer_size": 32,
        "balance_batch": False,
    },
    "soft_buffered_confidence": {
        "aux_coef": 0.5,
        "warmup_fraction": 0.1,
        "balance_batch": False,
    },
    "window": {"radius": None},
    "kl": {},
    "reverse_kl": {"label_smoothing": 0.0},
    "reverse_xent": {"label_smoothing": 0.0},
    "cace": {"c": 0.1},
    "adaptive_confidence": {"temperature": 1.0, "warmup_fraction": 0.25},
    "generalized_xent": {"q": 0.7},
}


def add_loss(config: config_dict.ConfigDict, label: str, kind: str, **options: Any) -> None:
    """Defines the loss `label` as `kind` with `options` and appends it to `config.losses`."""
    if kind not in LOSS_OPTIONS:
        raise errors.unknown(f"loss.{label}.kind", kind, LOSS_OPTIONS)
    with config.unlocked():
        config.loss[label] = loss_section(kind, options)
    config.losses = (*config.losses, label)


def loss_section(kind: str, options: Mapping[str, Any]) -> config_dict.ConfigDict:
    """The entry of `config.loss` with `options` and the defaults of the others."""
    section = config_dict.ConfigDict({"kind": kind})
    for option, value in (LOSS_OPTIONS[kind] | dict(options)).items():
        section[option] = config_dict.placeholder(float) if value is None else value
    return section


def with_labels(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A config whose `losses` are all labels: mappings among them become entries of `config.loss`.

    {'kind': 'confidence', 'alpha_max': 0.75} becomes the loss with the label
    'confidence(alpha_max=0.75)', or entry['label'] if it has one; options that it does not name are
    at the defaults of the kind. A mapping with nothing but a kind stands for the label of that
    name. Names and labels stay as they are, so a second call changes nothing.

    Args:
      config: with `losses` of names, labels and mappings. It is not changed.

    Raises:
      InputError: for a mapping without a kind, an unknown kind or option, or a label that is taken
        by other options or is no label. Values of options are checked by `validation.validate`.
    """
    config = config.copy_and_resolve_references()
    labels = []
    for number, entry in enumerate(config.losses):
        if isinstance(entry, Mapping | config_dict.ConfigDict):
            entry = _labelled(config, f"losses[{number}]", dict(entry))
        labels.append(entry)
    config.losses = tuple(labels)
    return config


def _labelled(config: config_dict.ConfigDict, field: str, entry: dict[str, Any]) -> str:
    """Adds the entry of `losses` to `config.loss`; its label."""
    options = {name: value for name, value in entry.items() if name not in ("kind", "label")}
    if "kind" not in entry:
        raise errors.InputError(
            f"{field}: {entry!r} has no 'kind'; allowed: {', '.join(LOSS_OPTIONS)}"
        )
    kind = entry["kind"]
    if kind not in LOSS_OPTIONS:
        raise errors.unknown(f"{field}.kind", kind, LOSS_OPTIONS)
    for option in options:
        if option not in LOSS_OPTIONS[kind]:
            raise errors.unknown(field, option, ["kind", "label", *LOSS_OPTIONS[kind]])
    named = ",".join(f"{option}={value}" for option, value in options.items())
    label = entry.get("label", f"{kind}({named})" if named else kind)
    if "label" in entry and not (isinstance(label, str) and re.fullmatch(r"[^\s,/]+", label)):
        raise errors.InputError(
            f"{field}.label: {label!r}; allowed: a name without spaces, commas and slashes"
        )
    if label == kind and not options:
        return label
    section = loss_section(kind, options)
    if label in config.loss and config.loss[label].to_dict() != section.to_dict():
        raise errors.InputError(
            f"{field}.label: {label!r} is taken by {config.loss[label].to_dict()!r}; allowed: "
            "another label"
        )
    with config.unlocked():
        config.loss[label] = section
    return label
