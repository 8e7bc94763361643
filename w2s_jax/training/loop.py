"""The training loop: dispatches steps, and works at the boundaries between blocks of them.

Between boundaries the host only dispatches. A boundary is a step at which something is due: an
evaluation, the end, a profile, or a look at clock and signals. At a boundary the loop fetches the
history, notices a failed step, evaluates the model, starts a checkpoint if it is time for one, and
stops if asked to.

The loop trains one model, or a population (see `population`), whose arrays have a leading axis P of
members. In both cases there is a list of members, which has one entry for a single model.
"""

import collections
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.core import errors, processes, signals, watchdog
from w2s_jax.profiling.compilation import compile_clock
from w2s_jax.sharding import put
from w2s_jax.store.trees import abstract, free
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.interfaces import Data, Evaluate, Profiler, Reporter
from w2s_jax.training.state import HISTORY, TrainState, result_of

#: Target duration of a block of steps, which is the longest wait of a signal ...
BLOCK_SECONDS = 2.0
#: ... and the number of steps of the first block, before the speed is known.
FIRST_BLOCK = 10


@dataclass
class MemberProgress:
    """The evaluations of a member, and the best of them."""

    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: list[float] = field(default_factory=list)


@dataclass
class LoopStats:
    """Statistics that a restart needs besides the arrays; part of every checkpoint.

    Attributes:
      seconds: wall time in the loop.
      compile_seconds: the part of `seconds` spent tracing, compiling, or reading programs from the
        compilation cache.
      host_seconds: the part of `seconds` for which devices may have waited: dispatching, and work
        at boundaries except for waiting for the steps and for evaluations. The first block, which
        compiles, is not counted. (CPUs run small programs while they are dispatched.)
      checkpoint_seconds: the part of `seconds` in which training waited for checkpoints: copies to
        the host, and the end of the previous save. A restart loses those of its own checkpoint.
      checkpoints: number of checkpoints that were started.
      members: progress of each member.
    """

    seconds: float = 0.0
    compile_seconds: float = 0.0
    host_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoints: int = 0
    members: list[MemberProgress] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """Number and size of the steps, and the intervals of evaluations and checkpoints.

    Attributes:
      total_steps: number of steps.
      batch_size: documents per step.
      eval_every: steps between evaluations; None: no evaluation.
      select: whether the result is the parameters of the best evaluation, not the last ones.
      checkpoint_seconds: seconds between checkpoints.
    """

    total_steps: int
    batch_size: int
    eval_every: int | None = None
    select: bool = False
    checkpoint_seconds: float = 180.0


def train(
    program: Callable[..., TrainState],
    state: TrainState,
    data: Data,
    schedule: Schedule,
    reporters: Sequence[Reporter],
    *,
    checkpoints: Checkpoints | None = None,
    evaluate: Evaluate | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    profiler: Profiler | None = None,
    locate: Callable[[TrainState, Any], str] | None = None,
) -> tuple[TrainState, Any, LoopStats]:
    """Train to `schedule.total_steps`, resuming from the newest complete checkpoint if any.

    Args:
      program: the step or block with which `data` advances the state (`batch_sources.compile_for`).
      state: the initial state, of one model or with an axis of members.
      data: the batches.
      schedule: when evaluations and checkpoints are due.
      reporters: one per member. Members beyond them only fill up a device.
      checkpoints: where to resume from and to save.
      evaluate: parameters -> for each member a row with a 'score' (a list; the largest is best, in
        lexicographic order).
      should_stop: called at each boundary; if True, the loop saves and raises.
      profiler: records some of the steps.
      locate: (state, batch) -> description of what is not finite in the step that fails.

    Returns:
      (final state, resulting parameters, stats). Members that failed have `failed_step` >= 0 and
      the state before that step.

    Raises:
      TrainingFailed: if all members met a non-finite loss or gradient; the last good state is
        saved.
      Interrupted: if `should_stop` returned True; the state is saved.
    """
    eval_every = schedule.eval_every if evaluate is not None else None
    run = _begin(state, schedule, len(reporters), checkpoints, data)
    _report(_with_evaluations(_fetch(run, 0), run.stats.members), reporters)
    saved_at = started = time.monotonic()
    before, laps = run.stats.seconds, _Laps()
    compiled_before = compile_clock().seconds - run.stats.compile_seconds
    block, compiled = FIRST_BLOCK, False
    with _ProfileWindow(profiler) as profile:
        while run.done < schedule.total_steps:
            profile.update(run.done)
            boundary = _next_boundary(run.done, schedule, eval_every, block, profile.due)
            watchdog.progress(
                f"steps {run.done} to {boundary} of {schedule.total_steps}",
                1.0 if compiled else watchdog.PATIENCE,
            )
            first, position = run.done, data.position()
            with jax.transfer_guard("disallow"):
                run.state = data.advance(program, run.state, first, boundary)
            dispatching = laps.mark("host")
            jax.block_until_ready(run.state)
            speed = (boundary - first) / (dispatching + laps.mark("wait"))
            run.stats.seconds = before + time.monotonic() - started
            run.stats.compile_seconds = compile_clock().seconds - compiled_before
            watchdog.progress(f"the boundary at step {boundary} of {schedule.total_steps}")
            rows_P = _fetch(run, first)
            _report(rows_P, reporters, run.done, speed * schedule.batch_size)
            if run.all_failed:
                _fail(run, first, position, data, checkpoints, schedule, locate)
            if eval_every and (run.done % eval_every == 0 or run.done == schedule.total_steps):
                laps.mark("host")
                _evaluate(run, evaluate, reporters)
                laps.mark("evaluation")
            if should_stop():
                _save(run, data, checkpoints, wait=True)
                raise signals.interruption(
                    f"at step {run.done} of {schedule.total_steps}, state saved"
                )
            if checkpoints is not None:
                with _stalled(run.stats):
                    checkpoints.poll()
            due = time.monotonic() - saved_at >= schedule.checkpoint_seconds
            # The clocks of processes differ.
            due, speed = processes.first_says("boundary", (due, speed))
            if due and run.done < schedule.total_steps:
                _save(run, data, checkpoints)
                saved_at = time.monotonic()
            laps.mark("host")
            if compiled:
                block = max(1, int(BLOCK_SECONDS * speed))
                run.stats.host_seconds += laps.seconds["host"]
            laps.seconds.clear()
            compiled = True
    if checkpoints is not None:
        watchdog.progress("waiting for the last checkpoint")
        with _stalled(run.stats):
            checkpoints.finish()
    watchdog.progress("the end of training", watchdog.PATIENCE)
    return run.state, result_of(run.state) if run.best is None else run.best, run.stats


@dataclass
class _Run:
    """A training in progress.

    Attributes:
      state: the state.
      best: the parameters of the best evaluations; None without selection.
      stats: the statistics.
      done: steps done, of the member that has most.
      all_failed: whether all members have failed.
    """

    state: TrainState
    best: Any
    stats: LoopStats
    done: int = 0
    all_failed: bool = False


class _Laps:
    """A stopwatch: `mark` adds the seconds since the previous mark to a name, and returns them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.last = time.monotonic()

    def mark(self, name: str) -> float:
        now = time.monotonic()
        lap, self.last = now - self.last, now
        self.seconds[name] += lap
        return lap


class _ProfileWindow:
    """Starts and stops a profiler; `due` is the next step at which it must be called."""

    def __init__(self, profiler: Profiler | None):
        self.profiler, self.active = profiler, False
        self.due = sys.maxsize if profiler is None else profiler.start

    def __enter__(self) -> "_ProfileWindow":
        return self

    def __exit__(self, *_: object) -> None:
        self.update(sys.maxsize)

    def update(self, done: int) -> None:
        """Start or stop the profiler if it is due after `done` steps."""
        if self.profiler is None:
            return
        if not self.active and self.due <= done < self.profiler.stop:
            self.profiler.begin()
            self.active, self.due = True, self.profiler.stop
        elif self.active and done >= self.profiler.stop:
            self.active, self.due = False, sys.maxsize
            self.profiler.end()


def _next_boundary(
    done: int, schedule: Schedule, eval_every: int | None, block: int, profile: int
) -> int:
    """Return the next step at which an evaluation, a profile, or a look at the clock is due."""
    boundary = min(done + block, schedule.total_steps)
    if eval_every:
        boundary = min(boundary, (done // eval_every + 1) * eval_every)
    return min(boundary, profile) if profile > done else boundary


def _begin(
    state: TrainState,
    schedule: Schedule,
    num_members: int,
    checkpoints: Checkpoints | None,
    data: Data,
) -> _Run:
    """Start from the newest complete checkpoint, or from the initial state."""
    best = jax.tree.map(jnp.copy, result_of(state)) if schedule.select else None
    run = _Run(state, best, LoopStats(members=[MemberProgress() for _ in range(num_members)]))
    step = None if checkpoints is None else checkpoints.newest()
    if checkpoints is None or step is None:
        return run
    targets = {name: abstract(tree) for name, tree in _trees(run).items()}
    # Two states may not fit in memory; the initial one is freed as if a step had donated it.
    free(_trees(run))
    trees, meta = checkpoints.restore(step, targets)
    data.restore(meta["data"])
    stats = LoopStats(**meta["stats"])
    stats.members = [MemberProgress(**member) for member in meta["stats"]["members"]]
    return _Run(replace(state, **trees["state"]), trees.get("best"), stats)


def _trees(run: _Run) -> dict[str, Any]:
    """Return the arrays of a run that are checkpointed."""
    parts = {name: getattr(run.state, name) for name in TrainState.__dataclass_fields__}
    # Orbax cannot store a part without arrays.
    state = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    return {"state": state} | ({} if run.best is None else {"best": run.best})


def _save(run: _Run, data: Data, checkpoints: Checkpoints | None, *, wait: bool = False) -> None:
    if checkpoints is None:
        return
    run.stats.checkpoints += 1
    with _stalled(run.stats):
        meta = {"stats": asdict(run.stats), "data": data.position()}
        checkpoints.save(run.done, _trees(run), meta)
        if wait:
            checkpoints.finish()


@contextlib.contextmanager
def _stalled(stats: LoopStats) -> Iterator[None]:
    """Count the seconds within the context as waiting for checkpoints."""
    started = time.monotonic()
    yield
    stats.checkpoint_seconds += time.monotonic() - started


def _fetch(run: _Run, start: int) -> list[list[dict[str, Any]]]:
    """Fetch the history from step `start` on; return the new rows of each member.

    This updates `run.done` and `run.all_failed`.
    """
    members = len(run.stats.members)
    arrays = jax.device_get((run.state.step, run.state.failed_step, run.state.history))
    # A single model is treated as a population of one.
    step_P, failed_P, history_PSH = (
        x.reshape(-1, *x.shape[np.ndim(arrays[0]) :])[:members] for x in arrays
    )
    run.done, run.all_failed = int(step_P.max()), bool((failed_P >= 0).all())
    return [
        [
            {"step": start + i + 1, "split": "train", **dict(zip(HISTORY, values, strict=True))}
            for i, values in enumerate(history_SH[start:reached].tolist())
        ]
        for reached, history_SH in zip(step_P, history_PSH, strict=True)
    ]


def _with_evaluations(
    rows_P: list[list[dict[str, Any]]], members: Sequence[MemberProgress]
) -> list[list[dict[str, Any]]]:
    """Merge the rows of members with those of their earlier evaluations, in order of steps."""
    return [
        sorted(rows + member.evaluations, key=lambda row: (row["step"], row["split"] != "train"))
        for rows, member in zip(rows_P, members, strict=True)
    ]


def _report(
    rows_P: list[list[dict[str, Any]]],
    reporters: Sequence[Reporter],
    done: int = 0,
    docs_per_second: float = 0.0,
) -> None:
    """Pass new rows to the reporters, and the progress of members that have made `done` steps."""
    for reporter, rows in zip(reporters, rows_P, strict=True):
        if not rows:
            continue
        reporter.rows(rows)
        if docs_per_second and rows[-1]["step"] == done:
            reporter.progress(done, rows[-1], docs_per_second)


def _fail(
    run: _Run,
    first: int,
    position: Any,
    data: Data,
    checkpoints: Checkpoints | None,
    schedule: Schedule,
    locate: Callable[[TrainState, Any], str] | None,
) -> None:
    """Save the last good state so that a restart repeats the failed step; raise the error."""
    # The data are ahead of the state: back to the block's start, and over the good steps.
    data.restore(position)
    for number in range(first, run.done):
        data.at(number)
    failed_P, step_P = jax.device_get((run.state.failed_step, run.state.step))
    # Members that failed earlier cannot go on: the data are beyond their step.
    again_P = np.where(step_P == run.done, -1, failed_P).astype(np.int32)
    again_P = put(again_P, run.state.failed_step.sharding)
    run.state = replace(run.state, failed_step=again_P)
    _save(run, data, checkpoints, wait=True)
    place = "" if locate is None else f": {locate(run.state, data.at(run.done))}"
    raise errors.TrainingFailed(
        f"loss or gradient is not finite at step {run.done} of {schedule.total_steps}{place}; the "
        f"state after {run.done} good steps is saved"
    )


def _evaluate(run: _Run, evaluate: Evaluate | None, reporters: Sequence[Reporter]) -> None:
    """Evaluate, record the rows, and keep the best parameters (the earliest of equals)."""
    assert evaluate is not None
    failed_P = np.atleast_1d(jax.device_get(run.state.failed_step))
    better_P = np.zeros(len(failed_P), bool)
    params = result_of(run.state)
    rows = processes.first_says("evaluation", evaluate(params))
    for i, (row, member) in enumerate(zip(rows, run.stats.members, strict=True)):
        if failed_P[i] >= 0:
            continue
        score = list(row["score"])
        row = {"step": run.done, "split": "validation"} | {
            name: value for name, value in row.items() if name != "score"
        }
        member.evaluations.append(row)
        reporters[i].rows([row])
        better_P[i] = member.best_step is None or score > member.best_score
        if better_P[i]:
            member.best_step, member.best_score = run.done, score
    if run.best is not None and better_P.any():
        better = better_P.reshape(run.state.step.shape)
        run.best = _select(better, params, run.best)


@functools.partial(jax.jit, donate_argnums=2)
def _select(better: jax.Array, new: Any, old: Any) -> Any:
    """Return the new parameters of the members that are better, the old ones of the others."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        mask = better.reshape(better.shape + (1,) * (new.ndim - better.ndim))
        return jnp.where(mask, new, old)

    return jax.tree.map(choose, new, old)
