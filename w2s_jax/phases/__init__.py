"""Phases: what each kind computes, one phase at a time or several as one program.

Importing the package imports no JAX, so that the kinds can be declared here.
"""

import importlib
from typing import TYPE_CHECKING, Any

from w2s_jax.planning.kinds import PHASE_KINDS as PHASE_KINDS
from w2s_jax.planning.kinds import PhaseKind as PhaseKind
from w2s_jax.planning.kinds import register_kind as register_kind

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context as Context
    from w2s_jax.phases.grouping import Group as Group
    from w2s_jax.phases.grouping import claimed_group as claimed_group
    from w2s_jax.phases.population_training import train_together as train_together
    from w2s_jax.phases.running import run_phase as run_phase

#: Name -> the module that defines it and imports JAX.
_LAZY = {
    "Context": "context",
    "Group": "grouping",
    "claimed_group": "grouping",
    "run_phase": "running",
    "train_together": "population_training",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


PHASE_KINDS.load()
