"""From a config to `Settings`. Every bad value is one `InputError`, before any work. No JAX.

The error names the field, the value and what is allowed, with the nearest match where there is one.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.declarations import METHODS, PREFERENCES, loss_named
from w2s_jax.config.mesh_shapes import MESH_AXES, divisors, nearest_divisor
from w2s_jax.config.options import Option, choice, options_of, split
from w2s_jax.config.schema import (
    LossSettings,
    MethodSettings,
    Settings,
    config_options,
    default_config,
    flatten,
)
from w2s_jax.config.sections import (
    PROTOCOLS,
    ROLE_SECTIONS,
    CheckpointSettings,
    LogSettings,
    MeshSettings,
    Protocol,
    Role,
    TaskSettings,
    TrainSettings,
)
from w2s_jax.core import classes, errors, files


def validate(config: config_dict.ConfigDict) -> Settings:
    """Check a config and return it as frozen dataclasses.

    Raises:
      InputError: for an unknown field, model, loss or method, a value of a wrong type or out of
        range, or values that do not go together. One line with the field, the value and what is
        allowed.
    """
    _check_fields(config)
    for label, entry in config.loss.items():
        if not isinstance(entry, config_dict.ConfigDict):
            raise errors.InputError(f"loss.{label}: {entry!r} has no options; use config.add_loss")
        loss_settings(label, entry.to_dict())
    weak, strong = _role(config, "weak"), _role(config, "strong")
    methods, losses = _methods(config), _losses(config)
    _check_pairs(losses, methods)
    return Settings(
        name=config.name,
        seed=config.seed,
        task=_task(config.task),
        protocol=_protocol(config.protocol),
        weak=weak,
        strong=strong,
        losses=losses,
        methods=methods,
        method_losses=_method_losses(config, losses),
        middle=middle_roles(strong, methods),
        eval_every=config.eval.every,
        mesh=_mesh(config.mesh),
        checkpoint=_checkpoint(config.checkpoint),
        log=LogSettings(**config.log.to_dict()),
    )


def _check_fields(config: config_dict.ConfigDict) -> None:
    """Check each field of a config but those of `config.loss` by itself."""
    if not isinstance(config, config_dict.ConfigDict):
        raise errors.InputError(
            f"config: expected an ml_collections.ConfigDict, got {type(config).__name__}"
        )
    flat, known = flatten(config), config_options()
    for field, value in flat.items():
        if field not in known and not field.startswith("loss."):
            raise unknown_field(field, value)
    for field, declaration in known.items():
        if field not in flat:
            raise errors.InputError(f"{field}: missing; start from config.default_config()")
        declaration.check(field, flat[field])


def unknown_field(
    field: str, value: Any, config: config_dict.ConfigDict | None = None
) -> errors.InputError:
    """Return the error for a field that a config does not have, with the nearest one.

    Args:
      field: its name.
      value: what it was to be set to.
      config: the config; None: the default one.
    """
    config = default_config() if config is None else config
    section, path = config, []
    for key in field.split("."):
        if not isinstance(section.get(key), config_dict.ConfigDict):
            break
        section = section[key]
        path.append(key)
    where, names = ".".join(path), ", ".join(section)
    if where == field:
        return errors.InputError(
            f"config: unknown field {field!r} with value {value!r}: it is a section; set one of "
            f"its fields: {names}"
        )
    hint = errors.did_you_mean(field, flatten(config))
    return errors.InputError(
        f"config: unknown field {field!r} with value {value!r}{hint}; allowed in "
        f"{where or 'config'}: {names}"
    )


# --- losses and methods ---------------------------------------------------------------------------


def _losses(config: config_dict.ConfigDict) -> tuple[LossSettings, ...]:
    """The settings of the losses that a config names."""
    labels = split(config.losses)
    settings = []
    for n, label in enumerate(labels):
        if label in labels[:n]:
            raise errors.InputError(f"losses: {label!r} is listed twice")
        choice("losses", label, tuple(config.loss))
        settings.append(loss_settings(label, config.loss[label].to_dict()))
    return tuple(settings)


def _check_pairs(losses: tuple[LossSettings, ...], methods: tuple[MethodSettings, ...]) -> None:
    """Refuse losses of pairs of completions where no method makes pairs."""
    if any(METHODS[method.kind].pairs for method in methods):
        return
    makers = ", ".join(name for name, spec in METHODS.items() if spec.pairs)
    for loss in losses:
        if loss.kind in PREFERENCES:
            raise errors.InputError(
                f"losses: {loss.label!r} compares two completions of a prompt, and method.name="
                f"{','.join(method.kind for method in methods) or 'naive'} makes no such pairs"
                + (f"; methods that do: {makers}" if makers else "")
            )


def loss_settings(label: str, entry: Mapping[str, Any]) -> LossSettings:
    """Check an entry of `config.loss`: {'kind': ..., option: value, ...}.

    Raises:
      InputError: for an unknown kind or option, or an option of a wrong type or out of range.
    """
    given = dict(entry)
    spec = loss_named(given.pop("kind", label), f"loss.{label}.kind")
    options = _checked(f"loss.{label}", spec.options, given)
    return LossSettings(label, spec.name, options)


def _methods(config: config_dict.ConfigDict) -> tuple[MethodSettings, ...]:
    """The settings of the methods that `method.name` names, without 'naive'."""
    names = dict.fromkeys(split((config.method.name,)))
    for name in names:
        choice("method.name", name, ("naive", *METHODS))
    return tuple(
        method_settings(name, config.method.get(name, {})) for name in names if name != "naive"
    )


def method_settings(name: str, options: Mapping[str, Any]) -> MethodSettings:
    """Check the options of a method.

    Raises:
      InputError: for an unknown method or option, or an option of a wrong type or out of range.
    """
    spec = METHODS.named(name, "method.name")
    return MethodSettings(name, _checked(f"method.{name}", spec.options, dict(options)))


def _checked(
    field: str, options: Mapping[str, Option], given: Mapping[str, Any]
) -> tuple[tuple[str, Any], ...]:
    """All options, sorted: the given values, checked, and the defaults of the others."""
    for name in given:
        if name not in options:
            raise errors.unknown(field, name, options or ["kind"])
    values = {
        name: declaration.check(f"{field}.{name}", given.get(name, declaration.default))
        for name, declaration in options.items()
    }
    return tuple(sorted(values.items()))


def _method_losses(
    config: config_dict.ConfigDict, losses: tuple[LossSettings, ...]
) -> tuple[LossSettings, ...]:
    """The losses that `method.losses` names; all, where it is empty."""
    labels = split(config.method.losses)
    for label in labels:
        choice("method.losses", label, tuple(loss.label for loss in losses))
    return tuple(loss for loss in losses if loss.label in labels) if labels else losses


def middle_roles(strong: Role, methods: tuple[MethodSettings, ...]) -> tuple[Role, ...]:
    """The models between weak and strong that the methods ask for."""
    roles = []
    for method in methods:
        option = METHODS[method.kind].middle_models
        for model in dict(method.options)[option] if option else ():
            roles.append(dataclasses.replace(strong, model=model))
    return tuple(roles)


# --- sections -------------------------------------------------------------------------------------


def _task(section: config_dict.ConfigDict) -> TaskSettings:
    """The task, whose other test sets are other tasks, each once."""
    sets = split(section.test_tasks)
    for n, name in enumerate(sets):
        if name in sets[:n]:
            raise errors.InputError(f"task.test_tasks: {name!r} is listed twice")
        if name == section.name:
            raise errors.InputError(
                f"task.test_tasks: {name!r} is the run's own task (task.name), on which its models "
                "are evaluated anyway; list other tasks"
            )
    own = {"classes": _classes(section.classes), "test_tasks": sets}
    return TaskSettings(**section.to_dict() | own)


def _classes(value: tuple[str, ...]) -> tuple[str, ...]:
    """The names in `task.classes`."""
    names = classes.class_names(value)
    classes.check_classes("task.classes", names)
    return names


def _protocol(section: config_dict.ConfigDict) -> Protocol:
    """The protocol that `name` stands for, with the switches that are set."""
    own = {key: value for key, value in section.items() if value is not None}
    return Protocol(**(PROTOCOLS[section.name] | own))


def _checkpoint(section: config_dict.ConfigDict) -> CheckpointSettings:
    """The settings, with a location that can be written, as far as is known before work starts."""
    settings = CheckpointSettings(**section.to_dict())
    if settings.dir is not None:
        with errors.of_field("checkpoint.dir"):
            files.checkpoint_location(settings.dir)
    return settings


def _mesh(section: config_dict.ConfigDict) -> MeshSettings:
    """The settings, which go together whatever devices there are."""
    mesh = MeshSettings(**section.to_dict())
    filled = [f"mesh.{axis}" for axis in MESH_AXES if getattr(mesh, axis) == -1]
    if len(filled) > 1:
        raise errors.InputError(
            f"{filled[1]}: -1, and {filled[0]} is -1 too; only one axis can fill the remaining "
            f"devices, so give {filled[0]} a number, such as 1"
        )
    if mesh.population > 1 and mesh.splits_parameters:
        raise errors.InputError(
            f"mesh.population: {mesh.population} with mesh.fsdp={mesh.fsdp} and mesh.tensor="
            f"{mesh.tensor}; allowed: -1 or 1, as a member of a population is on one device"
        )
    return mesh


def _role(config: config_dict.ConfigDict, role: str) -> Role:
    """A role's settings, with those that it inherits."""
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
            values["targets"] = split(values["targets"])
        merged[part] = settings(**values)
    if merged["train"].adapt == "probe_then_full":
        _check_same_bias(role, merged["train"], merged["probe"])
    return Role(
        model=section.model,
        tokenizer=section.tokenizer,
        read_out=section.read_out,
        read_out_layers=options_of(Role)["read_out_layers"].check(
            f"{role}.read_out_layers", section.read_out_layers
        ),
        labels=section.get("labels"),
        **merged,
    )


def _check_same_bias(role: str, train: TrainSettings, probe: TrainSettings) -> None:
    """Check that the head that is trained first is the one that is trained on.

    Raises:
      InputError: one of them has a bias.
    """
    if train.head_bias != probe.head_bias:
        raise errors.InputError(
            f"{role}.train.head_bias: {train.head_bias}; allowed with adapt='probe_then_full': "
            f"{probe.head_bias}, that of {role}.probe"
        )


def check_weight_decay(section: str, train: TrainSettings) -> None:
    """Check that no step of AdamW changes the sign of a parameter.

    Args:
      section: name of the settings, such as 'weak.train'.
      train: the settings, with a learning rate.

    Raises:
      InputError: it does.
    """
    assert train.learning_rate is not None
    if train.optimizer == "adamw" and not train.learning_rate * train.weight_decay <= 1:
        raise errors.InputError(
            f"{section}.weight_decay: {train.weight_decay!r} times learning_rate="
            f"{train.learning_rate!r}; allowed: at most 1"
        )


def _check_training(section: str, values: dict[str, Any]) -> None:
    """Refuse fields of a section that do not go together."""
    batch, microbatch = values["batch_size"], values["microbatch_size"]
    if microbatch is not None and batch % microbatch:
        raise errors.InputError(
            f"{section}.microbatch_size: {microbatch} does not divide batch_size={batch}; "
            f"nearest: {nearest_divisor(batch, microbatch)} (allowed: "
            f"{', '.join(map(str, divisors(batch)))})"
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
        meaningless["head_bias"] = "as a language model has no class head"
    if values["adapt"] == "probe":
        meaningless["dropout"] = "as the features of a probe are computed once"
        if part == "train":
            for field in ("ema", "label_smoothing", "head_bias"):
                meaningless[field] = f"as a probe has that of {role}.probe"
    for field, why in meaningless.items():
        if values[field]:
            none = "False" if isinstance(values[field], bool) else "0"
            raise errors.InputError(f"{section}.{field}: {values[field]!r}; allowed: {none}, {why}")
    if values["cosine_steps"] is not None and values["schedule"] != "cosine":
        raise errors.InputError(
            f"{section}.cosine_steps: {values['cosine_steps']}, but schedule is "
            f"{values['schedule']!r}; allowed: None, or schedule 'cosine'"
        )
