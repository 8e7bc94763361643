"""The context of a phase: input, devices, folders, console."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from w2s_jax.config import Settings
from w2s_jax.core import watchdog
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.planning.role_inputs import RoleInput
from w2s_jax.store.artifacts import PhaseFolder, phase_folder


@dataclass(frozen=True)
class Context:
    """Objects that the phases of a run share.

    Attributes:
      resolved: the input.
      store: the folder of the phases.
      mesh: the devices.
      console: where to print.
      should_stop: returns whether to stop at the next boundary; all processes agree on it.
      wandb_run: the Weights & Biases run, or None.
      profile: (start, stop): the steps to trace, or None.
      dump_hlo: whether to write the step programs.
      starts: the phases from whose parameters others start, which are kept.
      training_inputs: inputs of phases that are not trained yet (see `phases.inputs`).
    """

    resolved: Resolved
    store: Path
    mesh: Mesh
    console: Console
    should_stop: Callable[[], bool]
    wandb_run: Any = None
    profile: tuple[int, int] | None = None
    dump_hlo: bool = False
    starts: frozenset[str] = frozenset()
    training_inputs: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self.resolved.settings

    @property
    def keeps(self) -> bool:
        """True if the final parameters of all phases are kept."""
        return self.settings.checkpoint.keep_final

    def folder(self, phase_name: str) -> PhaseFolder:
        """Return the folder of a phase."""
        return phase_folder(self.store, phase_name, self.settings.checkpoint.dir)

    def watched(self, phase: Phase) -> contextlib.AbstractContextManager[None]:
        """Report a hang while the block runs; each process writes stacks to a file of its own."""
        number = jax.process_index()
        name = f"hang-{number}.txt" if number else "hang.txt"
        minutes = self.settings.log.hang_minutes
        return watchdog.watching(self.folder(phase.name).path / name, phase.title, minutes)

    def data(self, phase: Phase) -> RoleInput:
        """Return the model and the documents of a phase's role."""
        return self.resolved.roles[phase.role]
