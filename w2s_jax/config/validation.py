"""From a config to `Settings`: every bad value is one `InputError`, before any work. No JAX.

The error names the field, the value and what is allowed, with the nearest match where there is one.
"""

from typing import Any

from ml_collections import config_dict

from w2s_jax.config import student_settings
from w2s_jax.config.mesh_shapes import MESH_AXES
from w2s_jax.config.method_options import JUDGES, STOPPING
from w2s_jax.config.schema import (
    ADAPTS,
    DTYPES,
    MAX_LEARNING_RATE,
    OPTIMIZERS,
    OVERLONG,
    PROTOCOLS,
    READ_OUTS,
    REMATS,
    ROLE_SECTIONS,
    SCHEDULES,
    CheckpointSettings,
    LogSettings,
    MeshSettings,
    Protocol,
    Role,
    Settings,
    TaskSettings,
    default_config,
    flatten,
)
from w2s_jax.core import errors, files

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
        student_settings.loss_settings(label, entry.to_dict())
    _check_values(flatten(config))
    protocol = _protocol(config.protocol)
    roles = {role: _role(config, role) for role in ("weak", "strong")}
    student_settings.choice("task.overlong", config.task.overlong, OVERLONG)
    kinds, losses = student_settings.methods(config), student_settings.losses(config)
    return Settings(
        name=config.name,
        seed=config.seed,
        task=TaskSettings(**config.task.to_dict()),
        protocol=protocol,
        weak=roles["weak"],
        strong=roles["strong"],
        losses=losses,
        methods=kinds,
        method_losses=student_settings.method_losses(config, losses),
        middle=student_settings.middle_roles(roles["strong"], kinds),
        eval_every=config.eval.every,
        mesh=_mesh(config.mesh),
        checkpoint=_checkpoint(config.checkpoint),
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
            student_settings.check_type(
                field, value, _field_type(default, field), known[field] is None
            )


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
    "hang_minutes": 0,
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
    "hang_minutes": 1e6,
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
            student_settings.choice(field, value, _CHOICES[leaf])
        if field.startswith("mesh.") and (value == 0 or value < -1):
            default = "where it is faster" if leaf == "population" else "fill"
            raise errors.InputError(f"{field}: {value!r}; allowed: -1 ({default}) or at least 1")


def _protocol(section: config_dict.ConfigDict) -> Protocol:
    student_settings.choice("protocol.name", section.name, tuple(PROTOCOLS))
    switches = PROTOCOLS[section.name] | {
        key: value for key, value in section.items() if key != "name" and value is not None
    }
    for key, allowed in _PROTOCOL_CHOICES.items():
        student_settings.choice(f"protocol.{key}", switches[key], allowed)
    return Protocol(name=section.name, **switches)


def _checkpoint(section: config_dict.ConfigDict) -> CheckpointSettings:
    """Also: checkpoints can be kept where they are to be, as far as can be seen from here."""
    settings = CheckpointSettings(**section.to_dict())
    if settings.dir is not None:
        try:
            files.checkpoint_location(settings.dir)
        except errors.InputError as error:
            raise errors.InputError(f"checkpoint.dir: {error}") from error
    return settings


def _mesh(section: config_dict.ConfigDict) -> MeshSettings:
    """What the mesh fields must be together, whatever devices there are."""
    mesh = MeshSettings(**section.to_dict())
    filled = [f"mesh.{axis}" for axis in MESH_AXES if getattr(mesh, axis) == -1]
    if len(filled) > 1:
        raise errors.InputError(
            f"{filled[1]}: -1, and {filled[0]} is -1 too; allowed: one of them fills the devices "
            f"that are left, so give {filled[0]} a number, such as 1"
        )
    if mesh.population > 1 and mesh.splits_parameters:
        raise errors.InputError(
            f"mesh.population: {mesh.population} with mesh.fsdp={mesh.fsdp} and mesh.tensor="
            f"{mesh.tensor}; allowed: -1 or 1, as a member of a population lies on one device"
        )
    return mesh


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
            values["targets"] = student_settings.split(values["targets"])
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
