"""The process behind `w2s compile`: `python -m w2s_jax.perf.aot.main` with one argument of JSON.

{"config", "overrides", "topology", "search", "documents", "tokens"}. It is a process of its own, as
JAX must be told before it starts that it compiles for a TPU that is not there.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from w2s_jax.config import Settings
from w2s_jax.config.recipes import load_config
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.perf.aot import search, topology
from w2s_jax.planning.resolve import Resolved


def run(request: dict[str, Any]) -> int:
    """Checks what can be checked quickly, and compiles in a process of its own; exit status.

    Args:
      request: see the module.

    Raises:
      InputError: the slice, the config or a name in it is unknown, or there is no compiler.
    """
    topology.find(request["topology"])
    for name in ("documents", "tokens"):
        if request[name] is not None and request[name] < 1:
            raise errors.InputError(f"--{name}: {request[name]}; allowed: at least 1")
    validate(load_config(request["config"], request["overrides"]))
    topology.check_compiler()
    command = [sys.executable, "-m", "w2s_jax.perf.aot.main", json.dumps(request)]
    status = subprocess.run(command, env=os.environ | topology.environment()).returncode
    return status if status >= 0 else 1


@dataclass(frozen=True)
class State:
    """A run on a mesh: `programs` are its programs; `shape` is the mesh's."""

    resolved: Resolved
    mesh: Any
    programs: list[Any]
    left_out: list[str]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(data, fsdp, tensor)."""
        data, fsdp, tensor = self.mesh.shape.values()
        return data, fsdp, tensor


class Session:
    """Compiles the programs of a run for one slice, each once."""

    def __init__(self, slice_: topology.Topology):
        from w2s_jax.perf.aot import compiler

        self.slice = slice_
        self.devices = compiler.devices_of(slice_)
        self.host = compiler.devices_of(topology.host_of(slice_))
        self.done: dict[Any, tuple[Any, float]] = {}

    def state(self, resolved: Resolved) -> State:
        """The programs of the run."""
        from w2s_jax.perf.aot import compiler, programs
        from w2s_jax.planning.plan import plan

        mesh = compiler.mesh_on(self.devices, resolved.settings.mesh, self.slice)
        found, left_out = programs.programs_of(
            plan(resolved), resolved, mesh, self.slice.memory, self.host
        )
        return State(resolved, mesh, found, left_out)

    def compiled(self, program: Any, state: State) -> tuple[Any, float]:
        """What the compiler says of a program."""
        from w2s_jax.perf.aot import compiler

        key = (program.key, state.shape)
        if key not in self.done:
            self.done[key] = compiler.compile_program(program, state.mesh)
        return self.done[key]

    def needed(self, program: Any, state: State) -> int:
        """Bytes on a chip, by the compiler, with what lies beside the program while it runs."""
        own, beside = self.compiled(program, state)[0], sum(program.beside.values())
        needed = own.peak + beside
        other = next((p for p in state.programs if p.key == program.evaluates), None)
        if other is None or own.refused:
            return needed
        labels = self.compiled(other, state)[0]
        # On one chip it has a copy of the parameters of its own.
        extra = labels.peak if other.chips == 1 else labels.peak - other.parts["parameters"]
        return max(needed, own.arguments + beside + extra)

    def fits(self, program: Any, state: State) -> bool:
        """Whether a chip holds it."""
        return not self.compiled(program, state)[0].refused and (
            self.needed(program, state) <= self.slice.memory
        )

    def show(self, program: Any, state: State) -> None:
        """Prints what is known of a program."""
        from w2s_jax.perf.aot import report

        compiled, seconds = self.compiled(program, state)
        needed, kind = self.needed(program, state), self.devices[0].device_kind
        for line in report.lines(
            program, compiled, seconds, needed=needed, device_kind=kind, shape=state.shape
        ):
            print(line, flush=True)

    def estimate(self, program: Any, state: State) -> int:
        """Bytes on a chip by formula."""
        from w2s_jax.perf.aot import costs

        return sum(costs.estimate(program, state.shape).values())

    def formula(self, program: Any, state: State) -> int:
        """As `needed`, but by formula."""
        own = self.estimate(program, state)
        other = next((p for p in state.programs if p.key == program.evaluates), None)
        if other is None:
            return own
        labels = self.estimate(other, state)
        extra = labels if other.chips == 1 else labels - other.parts["parameters"]
        return max(own, sum(program.parts.values()) + sum(program.beside.values()) + extra)

    def ways(self, program: Any, state: State) -> Iterator[tuple[list[str], State]]:
        """What may be tried for a program: overrides, and the run under them."""
        role = "strong" if program.role.startswith("middle") else program.role
        section = f"{role}.{'pretrain' if program.loss is None and program.trains else 'train'}"
        now = search.start(program.train, state.shape)
        for change in search.candidates(now, self.slice.chips, program.model.num_kv_heads):
            settings = search.changed(state.resolved.settings, section, change)
            resolved = dataclasses.replace(state.resolved, settings=settings)
            try:
                other = self.state(resolved)
            except errors.InputError:
                continue  # a mesh that the torus does not have
            fill = [] if state.resolved.settings.mesh.data == -1 else ["--config.mesh.data=-1"]
            yield change.overrides(section, now) + fill, other


def main(request: dict[str, Any]) -> int:
    """Compiles all programs of a run, prints what they take, and returns the exit status.

    Args:
      request: see the module.
    """
    from w2s_jax.perf.aot import inputs

    slice_ = topology.find(request["topology"])
    settings: Settings = validate(load_config(request["config"], request["overrides"]))
    resolved = inputs.find_inputs(settings, request["documents"], request["tokens"])
    session = Session(slice_)
    state = session.state(resolved)
    data, fsdp, tensor = state.shape
    print(
        f"{slice_.name} ({slice_.sold_as}): {slice_.chips} chips of "
        f"{slice_.memory / 2**30:.2f} GiB; mesh data={data} fsdp={fsdp} tensor={tensor}"
    )
    print(resolved.notes[0])
    if state.left_out:
        print(f"not compiled, labels without training: {', '.join(state.left_out)}")
    overrides: list[str] = []
    if request["search"]:
        state, overrides = _search(session, state)
    # The largest first: it decides.
    for program in sorted(state.programs, key=lambda p: -session.estimate(p, state)):
        session.show(program, state)
    fits = all(session.fits(program, state) for program in state.programs)
    worst = max(state.programs, key=lambda p: session.needed(p, state))
    if overrides:
        print(f"overrides: {' '.join(overrides)}")
    advice = () if fits or request["search"] else _advice(session, state)
    needed = session.needed(worst, state)
    if request["search"] and not fits:
        print("nothing that was tried fits")
    print(search.verdict(fits, needed, slice_.memory, advice))
    return 0 if fits else 1


def _advice(session: Session, state: State) -> list[str]:
    """The first overrides under which, by formula, everything fits of which something does not."""
    for program in state.programs:
        if not session.fits(program, state):
            for overrides, other in session.ways(program, state):
                if all(session.estimate(p, other) <= session.slice.memory for p in other.programs):
                    return overrides
            return []
    return []


def _search(session: Session, state: State) -> tuple[State, list[str]]:
    """The first run that fits, in the order of `search.candidates`, and the overrides to it.

    What by formula takes more than 1.5 times the memory that there is, is not compiled.
    """
    overrides: list[str] = []
    for title in [program.title for program in state.programs]:
        program = _named(title, state)
        if session.fits(program, state):
            continue
        print(f"{program.title}: does not fit", flush=True)
        for more, other in session.ways(program, state):
            new = _named(title, other)
            if session.estimate(new, other) > 1.5 * session.slice.memory:
                print(f"  {' '.join(more)}: too much by formula, not compiled", flush=True)
                continue
            fits, needed = session.fits(new, other), session.needed(new, other) / 2**30
            answer = "fits" if fits else "too much"
            print(f"  {' '.join(more)}: {needed:.2f} GiB, {answer}", flush=True)
            if fits:
                state, overrides = other, [*overrides, *more]
                break
    return state, overrides


def _named(title: str, state: State) -> Any:
    """The program that runs what `title` names first; programs may be shared by other phases."""
    first = title.split(", ")[0]
    return next(p for p in state.programs if first in p.title.split(", "))


if __name__ == "__main__":
    try:
        sys.exit(main(json.loads(sys.argv[1])))
    except (errors.W2SError, RuntimeError) as error:
        print(f"w2s: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))
