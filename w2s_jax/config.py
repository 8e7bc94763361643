"""Every default in one place, and the checks that turn a config into `Settings`.

A config is a locked `ml_collections.ConfigDict` with the fields of `default_config()`. `validate`
answers bad input with one `InputError` that names the field, the value and what is allowed, and
returns frozen dataclasses for the rest of the code. Imports no JAX.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from ml_collections import config_dict

from w2s_jax import errors
from w2s_jax.models.config import EMBEDDED_MODELS

OPTIMIZERS = ("adam", "adamw", "adafactor")
SCHEDULES = ("cosine", "linear", "constant")
DTYPES = ("float32", "bfloat16")
REMATS = ("none", "block")
OVERLONG = ("truncate", "drop", "error")

#: The loss table: kind -> its options with their defaults. `losses.register` adds to it.
LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "xent": {},
    "confidence": {"alpha_max": 0.5, "warmup_fraction": 0.2, "threshold": "half"},
    "logconf": {"aux_coef": 0.5, "warmup_fraction": 0.1},
}

#: What each protocol's name stands for (Burns et al. 2023, and the code released with it).
#: head_init: rows of the unembedding for the two label tokens, or zeros.
#: balance: rebalance classes when the majority exceeds 55%, and balance validation and test.
#: halves: the ceiling trains on the student's slice ('shared') or on slice 1 ('separate').
#: item_expansion: every question-answer pair ('all'), or one answer drawn with the seed ('one').
#: early_stopping: students keep the step with the best weak-label agreement, or the last one.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "paper": {
        "head_init": "unembedding",
        "balance": True,
        "halves": "shared",
        "item_expansion": "all",
        "early_stopping": "agreement",
    },
    "released": {
        "head_init": "zeros",
        "balance": False,
        "halves": "separate",
        "item_expansion": "one",
        "early_stopping": "none",
    },
}
_PROTOCOL_CHOICES = {
    "head_init": ("unembedding", "zeros"),
    "halves": ("shared", "separate"),
    "item_expansion": ("all", "one"),
    "early_stopping": ("agreement", "none"),
}


@dataclass(frozen=True)
class TrainSettings:
    """How one model is trained.

    `steps` overrides `epochs`. `warmup` is the share of steps over which the learning rate rises
    linearly from 0; `schedule` then leads to 0 (or stays constant). `microbatch_size` documents are
    computed at a time (None: the whole batch); it and `remat` change memory, never results.
    """

    epochs: float = 2.0
    steps: int | None = None
    batch_size: int = 32
    microbatch_size: int | None = None
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup: float = 0.0
    optimizer: str = "adam"
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float | None = None
    compute_dtype: str = "float32"
    remat: str = "none"


@dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """Pretraining of an embedded model: `TrainSettings` and where its text comes from.

    `source`: None (no pretraining), 'task' (the task's own pretraining documents), a folder of
    `task.data_dir`, or a file. Long text is cut into chunks of `chunk_length` tokens.
    """

    source: str | None = None
    seed: int = 0
    chunk_length: int = 256
    steps: int | None = 500


@dataclass(frozen=True)
class TaskSettings:
    """Which documents. `train_docs` counts documents before halving; None means all of them."""

    name: str = "digits_even"
    source: str = "auto"
    data_dir: str | None = None
    train_docs: int | None = None
    test_docs: int | None = None
    validation_docs: int | None = None
    max_length: int | None = None
    overlong: str = "truncate"
    split_seed: int = 0


@dataclass(frozen=True)
class Protocol:
    """The switches in which the paper and the released code differ (see `PROTOCOLS`)."""

    name: str
    head_init: str
    balance: bool
    halves: str
    item_expansion: str
    early_stopping: str


@dataclass(frozen=True)
class Role:
    """A model and how it is trained: the weak supervisor or the strong student."""

    model: str
    train: TrainSettings
    pretrain: PretrainSettings


@dataclass(frozen=True)
class LossSettings:
    """One student's loss: its label in results, its kind, and all of its options."""

    label: str
    kind: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class MeshSettings:
    """Devices along each mesh axis; -1 takes what is left."""

    data: int = -1


@dataclass(frozen=True)
class CheckpointSettings:
    """Mid-phase checkpoints: how often, how many, and whether finished models stay on disk."""

    every_minutes: float = 3.0
    keep: int = 2
    keep_final: bool = True


@dataclass(frozen=True)
class LogSettings:
    """Steps between log lines; TensorBoard event files; Weights & Biases."""

    every: int = 10
    tensorboard: bool = True
    wandb: bool = False


@dataclass(frozen=True)
class Settings:
    """A validated config."""

    name: str
    seed: int
    task: TaskSettings
    protocol: Protocol
    weak: Role
    strong: Role
    losses: tuple[LossSettings, ...]
    eval_every: int | None
    mesh: MeshSettings
    checkpoint: CheckpointSettings
    log: LogSettings


def _section(cls: type, *, inherit: bool = False) -> config_dict.ConfigDict:
    """The fields of a settings class; with `inherit`, all are None but typed (None: inherit)."""
    hints = get_type_hints(cls)
    section = config_dict.ConfigDict()
    for field in dataclasses.fields(cls):
        base = _base_type(hints[field.name])
        default = None if inherit else field.default
        section[field.name] = config_dict.placeholder(base) if default is None else default
    return section


def _base_type(hint: Any) -> type:
    """`int` for `int | None`."""
    args = [a for a in getattr(hint, "__args__", ()) if a is not type(None)]
    return args[0] if args else hint


def default_config() -> config_dict.ConfigDict:
    """A new config with every field at its default, locked.

    `weak.train`, `strong.train`, `weak.pretrain` and `strong.pretrain` inherit `train` and
    `pretrain` where they are None. `loss` holds an entry per label; `add_loss` adds one.
    """
    config = config_dict.ConfigDict()
    config.name = "run"
    config.seed = 0
    config.task = _section(TaskSettings)
    config.protocol = config_dict.ConfigDict(
        {
            "name": "paper",
            "head_init": config_dict.placeholder(str),
            "balance": config_dict.placeholder(bool),
            "halves": config_dict.placeholder(str),
            "item_expansion": config_dict.placeholder(str),
            "early_stopping": config_dict.placeholder(str),
        }
    )
    config.train = _section(TrainSettings)
    config.pretrain = _section(PretrainSettings)
    for role, model in (("weak", "gpt-d8"), ("strong", "gpt-d32")):
        config[role] = config_dict.ConfigDict(
            {
                "model": model,
                "train": _section(TrainSettings, inherit=True),
                "pretrain": _section(PretrainSettings, inherit=True),
            }
        )
    config.losses = ("xent", "confidence")
    config.loss = config_dict.ConfigDict(
        {kind: {"kind": kind, **options} for kind, options in LOSS_OPTIONS.items()}
    )
    config.eval = config_dict.ConfigDict({"every": config_dict.placeholder(int)})
    config.mesh = _section(MeshSettings)
    config.checkpoint = _section(CheckpointSettings)
    config.log = _section(LogSettings)
    config.lock()
    return config


def add_loss(config: config_dict.ConfigDict, label: str, kind: str, **options: Any) -> None:
    """Defines the loss `label` as `kind` with `options` and appends it to `config.losses`."""
    if kind not in LOSS_OPTIONS:
        raise errors.unknown(f"loss.{label}.kind", kind, LOSS_OPTIONS)
    with config.unlocked():
        config.loss[label] = config_dict.ConfigDict({"kind": kind, **LOSS_OPTIONS[kind], **options})
    config.losses = (*config.losses, label)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'task.name': ..., 'train.epochs': ...}: one entry a leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def validate(config: config_dict.ConfigDict) -> Settings:
    """Checks a config and returns it as frozen dataclasses.

    Raises:
      InputError: for an unknown field, task source, model or loss, a value of a wrong type or out
        of range, or a microbatch that does not divide its batch. One line that names the field,
        the value and what is allowed.
    """
    _check_fields(config)
    _check_values(flatten(config))
    protocol = _protocol(config.protocol)
    roles = {role: _role(config, role) for role in ("weak", "strong")}
    _choice("task.overlong", config.task.overlong, OVERLONG)
    return Settings(
        name=config.name,
        seed=config.seed,
        task=TaskSettings(**config.task.to_dict()),
        protocol=protocol,
        weak=roles["weak"],
        strong=roles["strong"],
        losses=_losses(config),
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
            raise errors.unknown("config", field, known)
    for field in known:
        if field not in flat and not field.startswith("loss."):
            raise errors.InputError(f"{field}: missing; start from config.default_config()")
    for field, value in flat.items():
        if field in known:
            _check_type(field, value, _field_type(default, field), known[field] is None)


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
    "chunk_length": 8,
    "train_docs": 2,
    "test_docs": 1,
    "validation_docs": 0,
    "max_length": 3,
    "every": 1,
    "keep": 1,
    "every_minutes": 0,
    "warmup": 0,
    "weight_decay": 0,
    "beta1": 0,
    "beta2": 0,
    "warmup_fraction": 0,
    "alpha_max": 0,
    "aux_coef": 0,
}
_MAXIMA = {"warmup": 1, "beta1": 1, "beta2": 1, "warmup_fraction": 1, "alpha_max": 1, "aux_coef": 1}
_POSITIVE = ("epochs", "learning_rate", "clip_norm")
_CHOICES = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "compute_dtype": DTYPES,
    "remat": REMATS,
    "threshold": ("half", "prior"),
}


def _check_values(flat: dict[str, Any]) -> None:
    """Ranges and choices."""
    for field, value in flat.items():
        leaf = field.rsplit(".", 1)[-1]
        if value is None:
            continue
        if leaf in _MINIMA and not value >= _MINIMA[leaf]:
            raise errors.InputError(f"{field}: {value!r}; allowed: at least {_MINIMA[leaf]}")
        if leaf in _MAXIMA and not value <= _MAXIMA[leaf]:
            raise errors.InputError(f"{field}: {value!r}; allowed: at most {_MAXIMA[leaf]}")
        if leaf in _POSITIVE and not 0 < value < float("inf"):
            raise errors.InputError(f"{field}: {value!r}; allowed: a finite number above 0")
        if leaf in _CHOICES:
            _choice(field, value, _CHOICES[leaf])
        if field.startswith("mesh.") and (value == 0 or value < -1):
            raise errors.InputError(f"{field}: {value!r}; allowed: -1 (fill) or at least 1")


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
    _choice(f"{role}.model", section.model, tuple(EMBEDDED_MODELS))
    merged: dict[str, dict[str, Any]] = {}
    for part in ("train", "pretrain"):
        own = {key: value for key, value in section[part].items() if value is not None}
        values = config[part].to_dict() | own
        if "epochs" in own and "steps" not in own:
            values["steps"] = None
        batch, microbatch = values["batch_size"], values["microbatch_size"]
        if microbatch is not None and batch % microbatch:
            divisors = [n for n in range(1, batch + 1) if batch % n == 0]
            near = min(divisors, key=lambda n: (abs(n - microbatch), n))
            raise errors.InputError(
                f"{role}.{part}.microbatch_size: {microbatch} does not divide batch_size={batch}; "
                f"nearest allowed: {near} (allowed: {', '.join(map(str, divisors))})"
            )
        if values["weight_decay"] and values["optimizer"] == "adam":
            raise errors.InputError(
                f"{role}.{part}.weight_decay: {values['weight_decay']} with optimizer 'adam'; "
                "allowed: 0, or optimizer 'adamw' or 'adafactor'"
            )
        merged[part] = values
    return Role(
        model=section.model,
        train=TrainSettings(**merged["train"]),
        pretrain=PretrainSettings(**merged["pretrain"]),
    )


def _losses(config: config_dict.ConfigDict) -> tuple[LossSettings, ...]:
    # The command line reads --config.losses=xent,logconf as a tuple of one string.
    labels = tuple(part.strip() for item in config.losses for part in str(item).split(","))
    labels = tuple(label for label in labels if label)
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
      InputError: for an unknown kind or option, or an option of a wrong type.
    """
    options = dict(entry)
    kind = options.pop("kind", label)
    if kind not in LOSS_OPTIONS:
        raise errors.unknown(f"loss.{label}.kind", kind, LOSS_OPTIONS)
    for option, value in options.items():
        if option not in LOSS_OPTIONS[kind]:
            known = LOSS_OPTIONS[kind] or {"kind": None}
            raise errors.unknown(f"loss.{label}", option, known)
        expected = type(LOSS_OPTIONS[kind][option])
        _check_type(f"loss.{label}.{option}", value, expected, may_be_none=False)
    full = LOSS_OPTIONS[kind] | options
    return LossSettings(label, kind, tuple(sorted(full.items())))
