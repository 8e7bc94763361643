"""A config's losses and methods, checked: with what students learn. Imports no JAX."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.method_options import CONTROLS, METHODS, STOPPING, STRUCTURES
from w2s_jax.config.schema import LOSS_OPTIONS, LossSettings, MethodSettings, Role
from w2s_jax.core import errors


def check_type(field: str, value: Any, expected: type, may_be_none: bool) -> None:
    """Refuses a value that is not of a type.

    Raises:
      InputError: with the field's name.
    """
    if value is None and may_be_none:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    right = number if expected is float else isinstance(value, expected)
    if expected is int and isinstance(value, bool):
        right = False
    if not right:
        kind = type(value).__name__
        raise errors.InputError(
            f"{field}: {value!r} is a {kind}; allowed: {expected.__name__}"
            + (" or None" if may_be_none else "")
        )


def choice(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuses what is not among the allowed.

    Raises:
      InputError: with the nearest match.
    """
    if value not in allowed:
        raise errors.unknown(field, value, allowed)


_SHARE = (0, 1)
#: kind of a loss -> option -> (smallest, largest) value.
_LOSS_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "confidence": {"alpha_max": _SHARE, "warmup_fraction": _SHARE},
    "logconf": {"aux_coef": _SHARE, "warmup_fraction": _SHARE},
    "product": {"alpha": (0, 100), "beta": (0, 100)},
    "entropy": {"coef": (0, 100)},
    "l2_confidence": {"coef": (0, 100)},
    "buffered_confidence": {
        "aux_coef": _SHARE,
        "warmup_fraction": _SHARE,
        "buffer_size": (1, 65536),
    },
    "soft_buffered_confidence": {"aux_coef": _SHARE, "warmup_fraction": _SHARE},
    "window": {"radius": _SHARE},
    "reverse_kl": {"label_smoothing": _SHARE},
    "reverse_xent": {"label_smoothing": _SHARE},
    "cace": {"c": (0, 0.5)},
    "adaptive_confidence": {"temperature": (0.001, 1000), "warmup_fraction": _SHARE},
    "generalized_xent": {"q": (0.001, 1)},
}
_LOSS_CHOICES = {"confidence": {"threshold": ("half", "prior")}}


#: A comma that is not within parentheses: 'confidence(alpha_max=1,warmup_fraction=0)' is one label.
_SEPARATOR = re.compile(r",(?![^()]*\))")


def split(items: Any) -> tuple[str, ...]:
    """('a', 'b') also where the command line has made ('a,b',) of it."""
    parts = tuple(part.strip() for item in items for part in _SEPARATOR.split(str(item)))
    return tuple(part for part in parts if part)


def methods(config: config_dict.ConfigDict) -> tuple[MethodSettings, ...]:
    """The methods that `method.name` names, 'naive' left out."""
    kinds = split((config.method.name,))
    methods = []
    for kind in dict.fromkeys(kinds):
        choice("method.name", kind, tuple(METHODS))
        if kind != "naive":
            methods.append(method_settings(kind, config.method.get(kind, {})))
    return tuple(methods)


def method_losses(
    config: config_dict.ConfigDict, losses: tuple[LossSettings, ...]
) -> tuple[LossSettings, ...]:
    """Those of the losses that methods' students learn with: all, unless `method.losses` says."""
    labels = split(config.method.losses)
    for label in labels:
        choice("method.losses", label, tuple(loss.label for loss in losses))
    return tuple(loss for loss in losses if loss.label in labels) if labels else losses


#: Options of methods that are lists, and what may be in them (anything: ()).
_METHOD_LISTS: dict[str, tuple[str, ...]] = {
    "structures": STRUCTURES,
    "by": STOPPING,
    "of": CONTROLS,
    "models": (),
}


def method_settings(kind: str, options: Mapping[str, Any]) -> MethodSettings:
    """A method's settings, what is listed in its options checked.

    Raises:
      InputError: for an empty list, or one that names something unknown.
    """
    options = dict(options)
    for name, allowed in _METHOD_LISTS.items():
        if name not in options:
            continue
        options[name] = split(options[name])
        if not options[name]:
            raise errors.InputError(f"method.{kind}.{name}: is empty; allowed: at least one")
        for value in options[name] if allowed else ():
            choice(f"method.{kind}.{name}", value, allowed)
    return MethodSettings(kind, tuple(sorted(options.items())))


def middle_roles(strong: Role, methods: tuple[MethodSettings, ...]) -> tuple[Role, ...]:
    """The models between weak and strong that the methods ask for."""
    models = [dict(m.options)["models"] for m in methods if m.kind == "bootstrapping"]
    return tuple(dataclasses.replace(strong, model=name) for names in models for name in names)


def losses(config: config_dict.ConfigDict) -> tuple[LossSettings, ...]:
    """The settings of the losses that a config names.

    Raises:
      InputError: for none, one twice, or an unknown one.
    """
    for entry in config.losses:
        if not isinstance(entry, str):
            raise errors.InputError(
                f"losses: {entry!r}; allowed: labels, which config.with_labels makes of mappings"
            )
    labels = split(config.losses)
    if not labels:
        raise errors.InputError(f"losses: is empty; allowed: {', '.join(config.loss)}")
    if len(set(labels)) < len(labels):
        raise errors.InputError(f"losses: {labels!r} names a label twice; allowed: each once")
    losses = []
    for label in labels:
        if label not in config.loss:
            raise errors.unknown("losses", label, config.loss)
        losses.append(loss_settings(label, config.loss[label].to_dict()))
    return tuple(losses)


def loss_settings(label: str, entry: Mapping[str, Any]) -> LossSettings:
    """The checked settings of one entry of `config.loss`: {'kind': ..., option: value, ...}.

    Raises:
      InputError: for an unknown kind or option, or an option of a wrong type or out of range.
    """
    options = dict(entry)
    kind = options.pop("kind", label)
    if kind not in LOSS_OPTIONS:
        raise errors.unknown(f"loss.{label}.kind", kind, LOSS_OPTIONS)
    for option, value in options.items():
        if option not in LOSS_OPTIONS[kind]:
            known = LOSS_OPTIONS[kind] or {"kind": None}
            raise errors.unknown(f"loss.{label}", option, known)
        _check_loss_option(f"loss.{label}.{option}", value, kind, option)
    full = LOSS_OPTIONS[kind] | options
    return LossSettings(label, kind, tuple(sorted(full.items())))


def _check_loss_option(field: str, value: Any, kind: str, option: str) -> None:
    default = LOSS_OPTIONS[kind][option]
    check_type(field, value, float if default is None else type(default), default is None)
    if isinstance(value, float) and not math.isfinite(value):
        raise errors.InputError(f"{field}: {value!r}; allowed: a finite number")
    if value is not None and option in _LOSS_RANGES.get(kind, {}):
        low, high = _LOSS_RANGES[kind][option]
        if value < low:
            raise errors.InputError(f"{field}: {value!r}; allowed: at least {low}")
        if value > high:
            raise errors.InputError(f"{field}: {value!r}; allowed: at most {high}")
    if option in _LOSS_CHOICES.get(kind, {}):
        choice(field, value, _LOSS_CHOICES[kind][option])
