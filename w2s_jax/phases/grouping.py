"""The choice of phases that are trained together, as the members of a population.

While a population is being trained, its record is beside its checkpoints, in the folder of its
first member. A process that finds a record continues with the same members in the same mode on as
many devices, whatever its settings are, so that a restart gives the same bits.
"""

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from w2s_jax.core import processes
from w2s_jax.core.files import read_json, remove_folder, write_json
from w2s_jax.phases import inputs
from w2s_jax.phases.context import Context
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.phase import Phase
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training.population import choose_mode

log = logging.getLogger(__name__)

#: The share of a device's memory that members may take, by their estimates.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Group:
    """Phases that are trained together.

    Attributes:
      phases: the members.
      mode: see `population.choose_mode`; '' for a single phase.
      devices: number of devices.
    """

    phases: tuple[Phase, ...]
    mode: str = ""
    devices: int = 1

    def record(self) -> dict[str, Any]:
        """Return the record that is stored while they are trained."""
        names = [phase.name for phase in self.phases]
        return {"mode": self.mode, "members": names, "devices": self.devices}


@contextlib.contextmanager
def claimed_group(phase: Phase, later: Sequence[Phase], context: Context) -> Iterator[Group]:
    """Return a context of the phase, which this process has claimed, and its group from `later`.

    The other members are claimed too, until the context ends. Phases that another process holds are
    left out: processes do not wait while they hold a phase, so there are no deadlocks. A run of
    several processes trains each phase alone.
    """
    if processes.count() > 1:
        processes.on_first("population", functools.partial(_begin_alone, phase, context))
        yield Group((phase,))
        return
    with contextlib.ExitStack() as claims:
        held: dict[str, bool] = {phase.name: True}

        def claimed(other: Phase) -> bool:
            if other.name not in held:
                claim = artifacts.claim_if_free(context.folder(other.name))
                held[other.name] = claims.enter_context(claim)
            return held[other.name] and not context.folder(other.name).complete

        folder, group = context.folder(phase.name), None
        if folder.population.exists():
            group = _recorded(phase, later, context, claimed)
            if group is None:
                remove_record(folder)
        yield group or _new(phase, later, context, claimed)


def write_record(group: Group, context: Context) -> None:
    """Write a population's record."""
    folder = context.folder(group.phases[0].name)
    folder.population.parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.population, group.record())


def remove_record(folder: PhaseFolder) -> None:
    """Remove a population's checkpoints, and then its record, which they need."""
    remove_folder(folder.steps, keep_aside=True)
    folder.population.unlink(missing_ok=True)


def _begin_alone(phase: Phase, context: Context) -> None:
    """Discard a population that a run of one process has started with the phase."""
    folder = context.folder(phase.name)
    if folder.population.exists():
        if not folder.trained.exists():
            log.warning(
                "%s: started over, as a run of one process trained it with other phases",
                phase.title,
            )
        remove_record(folder)


def _recorded(
    phase: Phase, later: Sequence[Phase], context: Context, claimed: Callable[[Phase], bool]
) -> Group | None:
    """Return the population that was started with the phase; None if it cannot be continued."""
    record = read_json(context.folder(phase.name).population)
    if all(context.folder(name).trained.exists() for name in record["members"]):
        return None  # Training is done, but the record was not removed.
    known = {p.name: p for p in (phase, *later)}
    members = tuple(known[name] for name in record["members"] if name in known)
    whole = len(members) == len(record["members"])
    whole = whole and all(_parents_complete(p, context) and claimed(p) for p in members)
    if whole and record["devices"] <= context.mesh.devices.size:
        return Group(members, record["mode"], record["devices"])
    log.warning(
        "%s: started over, as %d other phases and %d devices with which it was trained are not all "
        "available",
        phase.title,
        len(record["members"]) - 1,
        record["devices"],
    )
    return None


def _new(
    phase: Phase, later: Sequence[Phase], context: Context, claimed: Callable[[Phase], bool]
) -> Group:
    """Return the population for which the settings ask, or the phase alone."""
    alone, most = Group((phase,)), context.settings.mesh.population
    if most == 1 or context.settings.mesh.splits_parameters:
        return alone
    if context.dump_hlo or jax.config.values["jax_debug_nans"]:
        return alone
    # A phase that was started alone continues alone.
    data = inputs.inputs_of(phase, context)
    key = data.group_key
    if key is None or _started(phase, context):
        return alone
    others = [p for p in later if _parents_complete(p, context) and not _started(p, context)]
    others = [p for p in others if inputs.inputs_of(p, context).group_key == key]
    shared_order = all(p.seed == phase.seed for p in others)
    mode = choose_mode(data.spec, shared_order, jax.default_backend())
    if most == -1:
        # Members in turns are no faster than phases one after another.
        most = sys.maxsize if mode == "vmap" else 1
    members = [phase]
    for other in others:
        if len(members) < min(most, _room(phase, context)) and claimed(other):
            members.append(other)
    if len(members) == 1:
        return alone
    return Group(tuple(members), mode, min(len(members), context.mesh.devices.size))


def _parents_complete(phase: Phase, context: Context) -> bool:
    return all(context.folder(name).complete for name in phase.parents.values())


def _started(phase: Phase, context: Context) -> bool:
    """Return whether the phase was trained, or started alone or as a population's first member."""
    folder = context.folder(phase.name)
    steps = folder.steps.exists() and any(p.name.isdigit() for p in folder.steps.iterdir())
    return steps or folder.trained.exists() or folder.population.exists()


def _room(phase: Phase, context: Context) -> int:
    """Return the number of members like this one for which the devices have memory."""
    devices = context.mesh.devices
    limit = (devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return sys.maxsize
    needed = memory_estimate(phase, context.resolved)["total"]
    return devices.size * int(MEMORY_SHARE * limit / needed)
