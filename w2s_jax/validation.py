"""From a config to `Settings`: every bad value is one `InputError`, before any work. No JAX.

The error names the field, the value and what is allowed, with the nearest match where there is one.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from w2s_jax import errors
from w2s_jax.config import (
    ADAPTS,
    DTYPES,
    LOSS_OPTIONS,
    MAX_LEARNING_RATE,
    OPTIMIZERS,
    OVERLONG,
    PROTOCOLS,
    REMATS,
    ROLE_SECTIONS,
    SCHEDULES,
    CheckpointSettings,
    LogSettings,
    LossSettings,
    MeshSettings,
    MethodSettings,
    Protocol,
    Role,
    Settings,
    TaskSettings,
    default_config,
    flatten,
)
from w2s_jax.method_options import CONTROLS, JUDGES, METHODS, STOPPING, STRUCTURES
from w2s_jax.models.config import READ_OUTS

_PROTOCOL_CHOICES = {
    "head_init": ("unembedding", "zeros"),
    "halves": ("shared", "separate"),
    "item_expansion": ("all", "one"),
    "early_stopping": STOPPING,
}


def validate(config: config_dict.ConfigDict) -> Settings:
    """Checks a config and returns it as frozen dataclasses.

    Raises:
      InputError: for an unknown field, task source, model or loss, a value of a wrong type or out
        of range, or a microbatch that does not divide its batch. One line that names the field,
        the value and what is allowed.
    """
    _check_fields(config)
    for label, entry in config.loss.items():
        if not isinstance(entry, config_dict.ConfigDict):
            raise errors.InputError(
                f"loss.{label}: {entry!r}; allowed: a kind and its options, as add_loss makes them"
            )
        loss_settings(label, entry.to_dict())
    _check_values(flatten(config))
    protocol = _protocol(config.protocol)
    roles = {role: _role(config, role) for role in ("weak", "strong")}
    _choice("task.overlong", config.task.overlong, OVERLONG)
    methods, losses = _methods(config), _losses(config)
    return Settings(
        name=config.name,
        seed=config.seed,
        task=TaskSettings(**config.task.to_dict()),
        protocol=protocol,
        weak=roles["weak"],
        strong=roles["strong"],
        losses=losses,
        methods=methods,
        method_losses=_method_losses(config, losses),
        middle=middle_roles(roles["strong"], methods),
        eval_every=config.eval.every,
        mesh=MeshSettings(**config.mesh.to_dict()),
        checkpoint=CheckpointSettings(**config.checkpoint.to_dict()),
        log=LogSettings(**config.log.to_dict()),
    )


def _check_fields(config: config_dict.ConfigDict) -> None:
    """Every field is known, present and of the type of its default."""
    if not isinstance(config, config_dict.ConfigDict):
        raise errors.InputError(
            f"config: expected an ml_collections.ConfigDict, got {type(config).__name__}"
        )
    default = default_config()
    flat, known = flatten(config), flatten(default)
    for field in flat:
        if field not in known and not field.startswith("loss."):
            raise unknown_field(field, flat[field])
    for field in known:
        if field not in flat and not field.startswith("loss."):
            raise errors.InputError(f"{field}: missing; start from config.default_config()")
    for field, value in flat.items():
        if field in known:
            _check_type(field, value, _field_type(default, field), known[field] is None)


def unknown_field(field: str, value: Any) -> errors.InputError:
    """The error for a config field that does not exist: the nearest one, and those beside it."""
    default = default_config()
    section, path = default, []
    for key in field.split(".")[:-1]:
        if not isinstance(section.get(key), config_dict.ConfigDict):
            break
        section = section[key]
        path.append(key)
    match = errors.nearest(field, flatten(default))
    hint = f" (did you mean {match!r}?)" if match else ""
    return errors.InputError(
        f"config: unknown field {field!r} with value {value!r}{hint}; allowed in "
        f"{'.'.join(path) or 'config'}: {', '.join(section)}"
    )


def _field_type(default: config_dict.ConfigDict, field: str) -> type:
    *path, leaf = field.split(".")
    for key in path:
        default = default[key]
    return default.get_type(leaf)


def _check_type(field: str, value: Any, expected: type, may_be_none: bool) -> None:
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


#: Fields (by their last name) and the smallest value each may have.
_MINIMA = {
    "steps": 1,
    "batch_size": 1,
    "microbatch_size": 1,
    "max_shapes": 1,
    "last_layers": 1,
    "rank": 1,
    "chunk_length": 8,
    "train_docs": 2,
    "test_docs": 2,
    "seed": 0,
    "split_seed": 0,
    "validation_docs": 0,
    "max_length": 3,
    "every": 1,
    "keep": 1,
    "iterations": 1,
    "members": 2,
    "neighbours": 1,
    "rounds": 1,
    "shots": 0,
    "tries": 1,
    "every_minutes": 0,
    "warmup": 0,
    "weight_decay": 0,
    "beta1": 0,
    "beta2": 0,
    "dropout": 0,
    "ema": 0,
    "label_smoothing": 0,
}
_MAXIMA = {
    "learning_rate": MAX_LEARNING_RATE,
    "warmup": 1,
    "beta1": 0.99999,
    "beta2": 0.9999999,
    # A JAX key takes 32 bits of its seed.
    "seed": 2**32 - 1,
    "split_seed": 2**32 - 1,
}
_BELOW_ONE = ("dropout", "ema", "label_smoothing")
_POSITIVE = ("epochs", "learning_rate", "clip_norm", "alpha")
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "compute_dtype": DTYPES,
    "param_dtype": DTYPES,
    "remat": REMATS,
    "adapt": ADAPTS,
    "read_out": READ_OUTS,
    "judge": JUDGES,
}
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


def _check_values(flat: dict[str, Any]) -> None:
    """Ranges and choices."""
    for field, value in flat.items():
        leaf = field.rsplit(".", 1)[-1]
        if value is None or field.startswith("loss."):
            continue
        if leaf in _MINIMA and not value >= _MINIMA[leaf]:
            raise errors.InputError(f"{field}: {value!r}; allowed: at least {_MINIMA[leaf]}")
        if leaf in _MAXIMA and not value <= _MAXIMA[leaf]:
            raise errors.InputError(f"{field}: {value!r}; allowed: at most {_MAXIMA[leaf]}")
        if leaf in _BELOW_ONE and not value < 1:
            raise errors.InputError(f"{field}: {value!r}; allowed: at least 0 and below 1")
        if leaf in _POSITIVE and not 0 < value < float("inf"):
            raise errors.InputError(f"{field}: {value!r}; allowed: a finite number above 0")
        if leaf == "share" and not 0 < value < 1:
            raise errors.InputError(f"{field}: {value!r}; allowed: above 0 and below 1")
        if leaf in _CHOICES:
            _choice(field, value, _CHOICES[leaf])
        if field.startswith("mesh.") and (value == 0 or value < -1):
            default = "where it is faster" if leaf == "population" else "fill"
            raise errors.InputError(f"{field}: {value!r}; allowed: -1 ({default}) or at least 1")


def _choice(field: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise errors.unknown(field, value, allowed)


def _protocol(section: config_dict.ConfigDict) -> Protocol:
    _choice("protocol.name", section.name, tuple(PROTOCOLS))
    switches = PROTOCOLS[section.name] | {
        key: value for key, value in section.items() if key != "name" and value is not None
    }
    for key, allowed in _PROTOCOL_CHOICES.items():
        _choice(f"protocol.{key}", switches[key], allowed)
    return Protocol(name=section.name, **switches)


def _role(config: config_dict.ConfigDict, role: str) -> Role:
    section = config[role]
    merged: dict[str, Any] = {}
    for part, settings in ROLE_SECTIONS.items():
        own = {key: value for key, value in section[part].items() if value is not None}
        values = config[part].to_dict() | own
        if "epochs" in own and "steps" not in own:
            values["steps"] = None
        if "epochs" in values:
            _check_training(f"{role}.{part}", values)
        else:
            values["targets"] = _split(values["targets"])
        merged[part] = settings(**values)
    labels = section.get("labels")
    return Role(section.model, section.tokenizer, section.read_out, labels=labels, **merged)


def _check_training(section: str, values: dict[str, Any]) -> None:
    """What the fields of one section must be together."""
    batch, microbatch = values["batch_size"], values["microbatch_size"]
    if microbatch is not None and batch % microbatch:
        divisors = [n for n in range(1, batch + 1) if batch % n == 0]
        near = min(divisors, key=lambda n: (abs(n - microbatch), n))
        raise errors.InputError(
            f"{section}.microbatch_size: {microbatch} does not divide batch_size={batch}; "
            f"nearest allowed: {near} (allowed: {', '.join(map(str, divisors))})"
        )
    if values["weight_decay"] and values["optimizer"] != "adamw":
        raise errors.InputError(
            f"{section}.weight_decay: {values['weight_decay']} with optimizer "
            f"{values['optimizer']!r}; allowed: 0, or optimizer 'adamw'"
        )
    role, part = section.split(".")
    only = {"pretrain": "full", "probe": "probe"}.get(part)
    if only is not None and values["adapt"] != only:
        raise errors.InputError(f"{section}.adapt: {values['adapt']!r}; allowed: {only!r}")
    meaningless = {}
    if part == "pretrain":
        meaningless["label_smoothing"] = "as next tokens are no soft labels"
    if values["adapt"] == "probe":
        meaningless["dropout"] = "as the features of a probe are computed once"
        if part == "train":
            for field in ("ema", "label_smoothing"):
                meaningless[field] = f"as a probe has that of {role}.probe"
    for field, why in meaningless.items():
        if values[field]:
            raise errors.InputError(f"{section}.{field}: {values[field]!r}; allowed: 0, {why}")


#: A comma that is not within parentheses: 'confidence(alpha_max=1,warmup_fraction=0)' is one label.
_SEPARATOR = re.compile(r",(?![^()]*\))")


def _split(items: Any) -> tuple[str, ...]:
    """('a', 'b') also where the command line has made ('a,b',) of it."""
    parts = tuple(part.strip() for item in items for part in _SEPARATOR.split(str(item)))
    return tuple(part for part in parts if part)


def _methods(config: config_dict.ConfigDict) -> tuple[MethodSettings, ...]:
    """The methods that `method.name` names, 'naive' left out."""
    kinds = _split((config.method.name,))
    methods = []
    for kind in dict.fromkeys(kinds):
        _choice("method.name", kind, tuple(METHODS))
        if kind != "naive":
            methods.append(method_settings(kind, config.method.get(kind, {})))
    return tuple(methods)


def _method_losses(
    config: config_dict.ConfigDict, losses: tuple[LossSettings, ...]
) -> tuple[LossSettings, ...]:
    labels = _split(config.method.losses)
    for label in labels:
        _choice("method.losses", label, tuple(loss.label for loss in losses))
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
        options[name] = _split(options[name])
        if not options[name]:
            raise errors.InputError(f"method.{kind}.{name}: is empty; allowed: at least one")
        for value in options[name] if allowed else ():
            _choice(f"method.{kind}.{name}", value, allowed)
    return MethodSettings(kind, tuple(sorted(options.items())))


def middle_roles(strong: Role, methods: tuple[MethodSettings, ...]) -> tuple[Role, ...]:
    """The models between weak and strong that the methods ask for."""
    models = [dict(m.options)["models"] for m in methods if m.kind == "bootstrapping"]
    return tuple(dataclasses.replace(strong, model=name) for names in models for name in names)


def _losses(config: config_dict.ConfigDict) -> tuple[LossSettings, ...]:
    for entry in config.losses:
        if not isinstance(entry, str):
            raise errors.InputError(
                f"losses: {entry!r}; allowed: labels, which config.with_labels makes of mappings"
            )
    labels = _split(config.losses)
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
    _check_type(field, value, float if default is None else type(default), default is None)
    if isinstance(value, float) and not math.isfinite(value):
        raise errors.InputError(f"{field}: {value!r}; allowed: a finite number")
    if value is not None and option in _LOSS_RANGES.get(kind, {}):
        low, high = _LOSS_RANGES[kind][option]
        if value < low:
            raise errors.InputError(f"{field}: {value!r}; allowed: at least {low}")
        if value > high:
            raise errors.InputError(f"{field}: {value!r}; allowed: at most {high}")
    if option in _LOSS_CHOICES.get(kind, {}):
        _choice(field, value, _LOSS_CHOICES[kind][option])
