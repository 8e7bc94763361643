"""Which phases are trained together, as the members of one population.

A population's record lies beside its checkpoints, in the folder of its first member, as long as it
is being trained. Whoever finds one goes on with the same members in the same mode on as many
devices, whatever the settings say by then, so that a restart ends in the same bits.
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

#: Members may take this share of a device's memory, as it is estimated.
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Group:
    """Phases that are trained together, on so many devices; of a single one `mode` is ''."""

    phases: tuple[Phase, ...]
    mode: str = ""
    devices: int = 1

    def record(self) -> dict[str, Any]:
        """What is kept while they are trained."""
        names = [phase.name for phase in self.phases]
        return {"mode": self.mode, "members": names, "devices": self.devices}


@contextlib.contextmanager
def claimed_group(phase: Phase, later: Sequence[Phase], context: Context) -> Iterator[Group]:
    """A phase that this process has claimed, and what of `later` is to be trained with it.

    The others are claimed too, until the context ends. One that another process holds is left out:
    nothing is waited for while something is held, so processes cannot wait for each other. A run of
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
                forget(folder)
        yield group or _new(phase, later, context, claimed)


def remember(group: Group, context: Context) -> None:
    """Writes a population's record."""
    folder = context.folder(group.phases[0].name)
    folder.population.parent.mkdir(parents=True, exist_ok=True)
    write_json(folder.population, group.record())


def forget(folder: PhaseFolder) -> None:
    """Removes a population's record and checkpoints; in this order, as they need it."""
    remove_folder(folder.steps)
    folder.population.unlink(missing_ok=True)


def _begin_alone(phase: Phase, context: Context) -> None:
    """Forgets the population that a run of one process has begun with the phase."""
    folder = context.folder(phase.name)
    if folder.population.exists():
        if not folder.trained.exists():
            log.warning("%s: was begun with others in one process; begun anew", phase.title)
        forget(folder)


def _recorded(
    phase: Phase, later: Sequence[Phase], context: Context, claimed: Callable[[Phase], bool]
) -> Group | None:
    """The population that was begun with the phase, or None if it cannot be gone on with."""
    record = read_json(context.folder(phase.name).population)
    if all(context.folder(name).trained.exists() for name in record["members"]):
        return None  # a kill came between the end of training and that of the record
    known = {p.name: p for p in (phase, *later)}
    members = tuple(known[name] for name in record["members"] if name in known)
    whole = len(members) == len(record["members"])
    whole = whole and all(_parents_complete(p, context) and claimed(p) for p in members)
    if whole and record["devices"] <= context.mesh.devices.size:
        return Group(members, record["mode"], record["devices"])
    log.warning(
        "%s: was begun with %d others on %d devices, not all of which are to be had; begun anew",
        phase.title,
        len(record["members"]) - 1,
        record["devices"],
    )
    return None


def _new(
    phase: Phase, later: Sequence[Phase], context: Context, claimed: Callable[[Phase], bool]
) -> Group:
    """The population that the settings ask for, or the phase alone."""
    alone, most = Group((phase,)), context.settings.mesh.population
    if most == 1 or context.settings.mesh.splits_parameters:
        return alone
    if context.dump_hlo:
        return alone
    # What was begun alone ends alone.
    key = _key(phase, context)
    if key is None or _begun(phase, context):
        return alone
    others = [p for p in later if _parents_complete(p, context) and not _begun(p, context)]
    others = [p for p in others if _key(p, context) == key]
    spec = inputs.step_spec(phase, inputs.vocabulary_of(phase, context))
    shared_order = all(p.seed == phase.seed for p in others)
    mode = choose_mode(spec, shared_order, jax.default_backend())
    if most == -1:
        # Where members take turns, nothing is gained.
        most = sys.maxsize if mode == "vmap" else 1
    members = [phase]
    for other in others:
        if len(members) < min(most, _room(phase, context)) and claimed(other):
            members.append(other)
    if len(members) == 1:
        return alone
    return Group(tuple(members), mode, min(len(members), context.mesh.devices.size))


def _key(phase: Phase, context: Context) -> Any:
    """Phases with equal keys may be trained together; None: only alone."""
    if phase.loss is None:
        return None
    train, spec = phase.train, inputs.step_spec(phase, inputs.vocabulary_of(phase, context))
    start: Any = phase.parents.get("features") or phase.parents.get("init")
    if start is None and context.data(phase).source is None:
        start = phase.seed
    return (
        spec.program_key(),
        phase.total_steps,
        phase.role,
        phase.inputs["train"],
        start,
        (train.batch_size, train.microbatch_size, train.max_shapes),
        (phase.eval_every, phase.select),
        # Whose documents their labels decide.
        phase.parents["labels"] if phase.suffixed or phase.subset is not None else None,
    )


def _parents_complete(phase: Phase, context: Context) -> bool:
    return all(context.folder(name).complete for name in phase.parents.values())


def _begun(phase: Phase, context: Context) -> bool:
    """Whether the phase has been trained, or begun alone or as the first of a population."""
    folder = context.folder(phase.name)
    steps = folder.steps.exists() and any(p.name.isdigit() for p in folder.steps.iterdir())
    return steps or folder.trained.exists() or folder.population.exists()


def _room(phase: Phase, context: Context) -> int:
    """How many members like this one the devices have memory for."""
    devices = context.mesh.devices
    limit = (devices.flat[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return sys.maxsize
    needed = memory_estimate(phase, context.resolved)["total"]
    return devices.size * int(MEMORY_SHARE * limit / needed)
