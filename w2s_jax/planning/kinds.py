"""Kinds of phases: declarations that planning, execution and reports read. Imports no JAX."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from w2s_jax.config.tables import Table
from w2s_jax.core import errors

if TYPE_CHECKING:
    from w2s_jax.planning.costs import Flops
    from w2s_jax.planning.phase import Phase
    from w2s_jax.planning.resolve import Resolved
    from w2s_jax.store.artifacts import PhaseFolder


@dataclass(frozen=True)
class PhaseKind:
    """A kind of phases.

    Attributes:
      name: lowercase letters; folders of its phases are called <name>-<fingerprint>.
      semantics: the version of what the kind computes, part of every fingerprint. Raise it when a
        fix changes results.
      build: (resolved, **arguments) -> a phase of the kind; `PlanBuilder.make` calls it.
      spec: (phase) -> everything that can change the phase's result, besides the kind and its
        version: JSON-ready, derived from the phase's fields.
      run: (phase, context, folder) -> fields of the phase's result.json. `context` is a
        `phases.Context`; the phase's parents are complete. Imports JAX when it is called.
      memory: (phase, resolved) -> estimated bytes on the devices by what they hold, and their
        'total' (see `planning.memory`).
      flops: (phase, resolved) -> estimated model FLOPs (see `planning.costs`).
      keeps_parameters: whether other phases start from its parameters. They are then kept also
        with `checkpoint.keep_final=False` and after `w2s gc --finals`.
      forward: what its forward passes over documents compute: 'logits' of classes (completions, in
        a generation task), 'features', or 'none' where it makes no such pass. None if that is not
        known in advance; `w2s compile` leaves its phases out.
      title: its name in the terminal and the report; '' for `name`.
    """

    name: str
    semantics: int
    build: Callable[..., "Phase"]
    spec: Callable[["Phase"], dict[str, Any]]
    run: Callable[["Phase", Any, "PhaseFolder"], dict[str, Any]]
    memory: Callable[["Phase", "Resolved"], dict[str, int]]
    flops: Callable[["Phase", "Resolved"], "Flops"]
    keeps_parameters: bool = False
    forward: Literal["logits", "features", "none"] | None = None
    title: str = ""


#: Kinds of phases by name.
PHASE_KINDS: Table[PhaseKind] = Table("phase kind")


def register_kind(kind: PhaseKind) -> PhaseKind:
    """Add a kind of phases to `PHASE_KINDS` and return it.

    Raises:
      InputError: the name is taken, or is not lowercase letters.
    """
    if not re.fullmatch(r"[a-z]+", kind.name):
        raise errors.InputError(f"phase kind {kind.name!r}: its name must be lowercase letters")
    return PHASE_KINDS.add(kind)


def kind_title(name: str) -> str:
    """Return the title of a kind; of an unregistered kind, its name."""
    return (PHASE_KINDS[name].title if name in PHASE_KINDS else "") or name
