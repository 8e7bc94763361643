"""The default config, and the settings that the rest of the code gets. Imports no JAX.

A config is a locked `ml_collections.ConfigDict` with the fields of `default_config()`;
`validation.validate` turns it into the frozen `Settings`. Each field is declared once: in
`sections`, with its loss or method, or in `config_options`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ml_collections import config_dict

from w2s_jax.config.declarations import METHODS, loss_kinds
from w2s_jax.config.loss_labels import loss_section
from w2s_jax.config.options import Option, options_of
from w2s_jax.config.sections import (
    MAX_SEED,
    PROTOCOLS,
    ROLE_SECTIONS,
    CheckpointSettings,
    LogSettings,
    MeshSettings,
    Protocol,
    Role,
    TaskSettings,
)


@dataclass(frozen=True)
class LossSettings:
    """One student's loss: its label in results, its kind, and all of its options."""

    label: str
    kind: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class MethodSettings:
    """A method beyond naive finetuning (see `METHODS`), and all of its options."""

    kind: str
    options: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Settings:
    """A validated config.

    Attributes:
      method_losses: those of `losses` that the students of methods are trained with.
      middle: models of bootstrapping between the weak and the strong one, in order of strength; in
        everything else as the strong one. Their roles are 'middle1', ...
      eval_every: steps between evaluations, or None.
    """

    name: str
    seed: int
    task: TaskSettings
    protocol: Protocol
    weak: Role
    strong: Role
    losses: tuple[LossSettings, ...]
    methods: tuple[MethodSettings, ...]
    method_losses: tuple[LossSettings, ...]
    middle: tuple[Role, ...]
    eval_every: int | None
    mesh: MeshSettings
    checkpoint: CheckpointSettings
    log: LogSettings

    @property
    def roles(self) -> dict[str, Role]:
        """All roles by name, in order of strength."""
        middle = {f"middle{number}": role for number, role in enumerate(self.middle, 1)}
        return {"weak": self.weak, **middle, "strong": self.strong}

    @property
    def num_slices(self) -> int:
        """The number of the last slice of the training documents: there is one for each role."""
        return 2 + len(self.middle)

    @property
    def slices(self) -> tuple[str, ...]:
        """The slices; without slice 1 where no supervisor is trained on it."""
        first = 2 if self.protocol.halves == "none" else 1
        return tuple(f"slice{number}" for number in range(first, self.num_slices + 1))


_EVERY = "Steps between evaluations; None: none, or ten in all where a step is selected"


def config_options() -> dict[str, Option]:
    """Return the fields of a config without `config.loss`: 'train.epochs' -> its `Option`."""
    return flatten(_options())


def _options() -> dict[str, Any]:
    """The `Option`s of a config, in nested dicts."""
    strong = _role_options("gpt-d32")
    del strong["labels"]
    return {
        "name": Option("run", "Name of the run in results and reports"),
        "seed": Option(0, "Seed of data order, heads and finetuning", low=0, high=MAX_SEED),
        "task": options_of(TaskSettings),
        "protocol": options_of(Protocol, inherit=True)
        | {"name": Option("paper", "Sets all switches that are None", choices=tuple(PROTOCOLS))},
        **{name: options_of(section) for name, section in ROLE_SECTIONS.items()},
        "weak": _role_options("gpt-d8"),
        "strong": strong,
        "losses": Option(("xent", "confidence"), "Labels of the students' losses"),
        "method": {
            "name": Option("naive", "Names of methods, separated by commas; 'naive': none"),
            "losses": Option((), "Losses of methods' students; empty: all of `losses`"),
            **{name: dict(spec.options) for name, spec in METHODS.items() if spec.options},
        },
        "eval": {"every": Option(None, _EVERY, low=1, value_type=int)},
        "mesh": options_of(MeshSettings),
        "checkpoint": options_of(CheckpointSettings),
        "log": options_of(LogSettings),
    }


def _role_options(model: str) -> dict[str, Any]:
    """The options of `weak` or `strong`; None in its sections: inherited."""
    own = options_of(Role, inherit=True)
    own["model"] = dataclasses.replace(own["model"], default=model)
    return own | {name: options_of(cls, inherit=True) for name, cls in ROLE_SECTIONS.items()}


def _section(options: Mapping[str, Any]) -> config_dict.ConfigDict:
    """The defaults of nested options."""
    section = config_dict.ConfigDict()
    for name, declared in options.items():
        if isinstance(declared, Mapping):
            section[name] = _section(declared)
        elif declared.default is None:
            section[name] = config_dict.placeholder(declared.expected_type)
        else:
            section[name] = declared.default
    return section


def default_config() -> config_dict.ConfigDict:
    """Return a new config with every field at its default, locked.

    `weak.train` and `strong.train` inherit `train` where they are None, and so do their sections
    `pretrain`, `probe` and `lora`. `loss` has an entry for each kind; `add_loss` adds one, and so
    does `with_labels` for each mapping among `losses`.
    """
    config = _section(_options())
    # Labels such as 'confidence(alpha_max=0.75)' have a dot.
    config.loss = config_dict.ConfigDict(
        {kind: loss_section(kind, {}) for kind in loss_kinds()}, allow_dotted_keys=True
    )
    config.lock()
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {'task.name': ..., 'train.epochs': ...}, with one entry for each leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | config_dict.ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
