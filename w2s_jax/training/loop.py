"""The training loop: dispatches steps, and at block boundaries looks at the clock and the results.

Between boundaries the host only dispatches. A boundary is where something is due: an evaluation,
the end, a profile, a look at the clock. There the history is fetched, a failed step is noticed, the
model is evaluated, a checkpoint is started if its time has come, and a request to stop is honoured.

What is trained is one model, or a population of them (see `population`): then the arrays of the
state have a leading axis P of members. Either way there is a list of members here, in a run of one
model with one entry.
"""

import collections
import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from w2s_jax.core import errors, processes, watchdog
from w2s_jax.profiling.compilation import compile_clock
from w2s_jax.sharding import put
from w2s_jax.store.trees import abstract, free
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.dispatch import Runner
from w2s_jax.training.state import HISTORY, TrainState, result_of

#: A block of steps without a look at signals and the clock lasts about this long ...
BLOCK_SECONDS = 2.0
#: ... and the first ones have so many steps, before their speed is known.
FIRST_BLOCK = 10

#: Parameters (of all members) -> a row for each member.
Evaluate = Callable[[Any], Sequence[dict[str, Any]]]


class Data(Protocol):
    """Where the batches come from."""

    def at(self, step: int) -> Any:
        """What the step program takes at `step`; of a stream it is asked once each, in order."""

    def position(self) -> Any:
        """Where the data stand, as JSON; part of every checkpoint."""

    def restore(self, position: Any) -> None:
        """Goes where `position` says."""


class Reporter(Protocol):
    """What the loop tells of a member: rows of metrics.jsonl, the state of the progress bar."""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """New rows, in the order of their steps."""

    def progress(self, step: int, row: dict[str, Any], docs_per_second: float) -> None:
        """Where training is; `row` is that of the last step."""


class Profiler(Protocol):
    """What records the steps [start, stop)."""

    start: int
    stop: int

    def begin(self) -> None:
        """Called before the first of them (that a resumed run takes)."""

    def end(self) -> None:
        """Called when the last of them is done, or training ends or fails."""


@dataclass
class Standing:
    """What is known of a member: its evaluations, and the best of them."""

    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: list[float] = field(default_factory=list)


@dataclass
class Clock:
    """What a restart must remember besides arrays.

    Attributes:
      seconds: wall time in the loop.
      compile_seconds: of these, those in which something was traced, compiled or fetched from the
        cache of programs.
      host_seconds: of these, what the devices may have had to wait for: dispatching, and work at
        boundaries, but for waiting for the steps and for evaluations. The first block, in which
        programs are compiled, is left out. (A CPU runs small programs while they are dispatched.)
      checkpoint_seconds: of `seconds`, those in which training stood still for checkpoints: the
        copies to the host, and what is waited for of the save before. A restart forgets those of
        the checkpoint that it starts from.
      checkpoints: how many have been begun.
      members: their standings.
    """

    seconds: float = 0.0
    compile_seconds: float = 0.0
    host_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoints: int = 0
    members: list[Standing] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """When things are due.

    `eval_every` None: no evaluation. `select`: the parameters of the best evaluation are the
    result, instead of the last ones.
    """

    total_steps: int
    batch_size: int
    eval_every: int | None = None
    select: bool = False
    checkpoint_seconds: float = 180.0


def train(
    runner: Runner,
    state: TrainState,
    data: Data,
    schedule: Schedule,
    reporters: Sequence[Reporter],
    *,
    checkpoints: Checkpoints | None = None,
    evaluate: Evaluate | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    profiler: Profiler | None = None,
) -> tuple[TrainState, Any, Clock]:
    """Trains to `schedule.total_steps`, resuming from the newest whole checkpoint if there is one.

    Args:
      runner: advances the state.
      state: a fresh state, with an axis of members or for one model.
      data: where the runner's batches come from.
      schedule: when things are due.
      reporters: hear about progress, one for each member. Members beyond them only fill a device.
      checkpoints: where to resume from and save to.
      evaluate: parameters -> for each member a row with a 'score' (a list; the largest is best, in
        lexicographic order).
      should_stop: asked at each boundary; True saves and raises.
      profiler: records some of the steps.

    Returns:
      (final state, resulting parameters, clock). Members that failed on the way have
      `failed_step` >= 0, and all as it was before that step.

    Raises:
      TrainingFailed: when all members have met a non-finite loss or gradient; the last good state
        has been saved.
      Interrupted: when `should_stop` says so; the state has been saved.
    """
    eval_every = schedule.eval_every if evaluate is not None else None
    run = _begin(state, schedule, len(reporters), checkpoints, data)
    _tell(run, 0, reporters)
    saved_at = started = time.monotonic()
    before, laps = run.clock.seconds, _Laps()
    compiled_before = compile_clock().seconds - run.clock.compile_seconds
    block, compiled = FIRST_BLOCK, False
    with _Profile(profiler) as profile:
        while run.done < schedule.total_steps:
            profile.update(run.done)
            boundary = _next_boundary(run.done, schedule, eval_every, block, profile.due)
            watchdog.progress(
                f"steps {run.done} to {boundary} of {schedule.total_steps}",
                1.0 if compiled else watchdog.PATIENCE,
            )
            first, position = run.done, data.position()
            with jax.transfer_guard("disallow"):
                run.state = runner.run(run.state, first, boundary, annotated=profile.active)
            dispatching = laps.mark("host")
            jax.block_until_ready(run.state)
            speed = (boundary - first) / (dispatching + laps.mark("wait"))
            run.clock.seconds = before + time.monotonic() - started
            run.clock.compile_seconds = compile_clock().seconds - compiled_before
            watchdog.progress(f"the boundary at step {boundary} of {schedule.total_steps}")
            _tell(run, first, reporters, speed * schedule.batch_size)
            if run.all_failed:
                _fail(run, first, position, data, checkpoints, schedule)
            if eval_every and (run.done % eval_every == 0 or run.done == schedule.total_steps):
                laps.mark("host")
                _evaluate(run, evaluate, reporters)
                laps.mark("evaluation")
            if should_stop():
                _save(run, data, checkpoints, wait=True)
                raise errors.Interrupted(
                    f"stopped by a signal at step {run.done} of {schedule.total_steps}, state "
                    "saved; the same command resumes"
                )
            if checkpoints is not None:
                with _stalled(run.clock):
                    checkpoints.poll()
            due = time.monotonic() - saved_at >= schedule.checkpoint_seconds
            # Clocks differ between processes.
            due, speed = processes.first_says("boundary", (due, speed))
            if due and run.done < schedule.total_steps:
                _save(run, data, checkpoints)
                saved_at = time.monotonic()
            laps.mark("host")
            if compiled:
                block = max(1, int(BLOCK_SECONDS * speed))
                run.clock.host_seconds += laps.seconds["host"]
            laps.seconds.clear()
            compiled = True
    if checkpoints is not None:
        watchdog.progress("waiting for the last checkpoint")
        with _stalled(run.clock):
            checkpoints.finish()
    watchdog.progress("what follows training", watchdog.PATIENCE)
    return run.state, result_of(run.state) if run.best is None else run.best, run.clock


@dataclass
class _Run:
    """Where a training stands; `best` are the parameters of the best evaluations, or None."""

    state: TrainState
    best: Any
    clock: Clock
    done: int = 0
    all_failed: bool = False


class _Laps:
    """A stopwatch: `mark` adds the seconds since the mark before to those of a name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.last = time.monotonic()

    def mark(self, name: str) -> float:
        now = time.monotonic()
        lap, self.last = now - self.last, now
        self.seconds[name] += lap
        return lap


class _Profile:
    """Calls a profiler when its steps come; `due` is the next step at which it must be called."""

    def __init__(self, profiler: Profiler | None):
        self.profiler, self.active = profiler, False
        self.due = sys.maxsize if profiler is None else profiler.start

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.update(sys.maxsize)

    def update(self, done: int) -> None:
        """Begins or ends as the training stands at the step `done`."""
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
    """The next step at which something is due: an evaluation, a profile, a look at the clock."""
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
    """Where training begins: at the newest whole checkpoint, or afresh."""
    best = jax.tree.map(jnp.copy, result_of(state)) if schedule.select else None
    run = _Run(state, best, Clock(members=[Standing() for _ in range(num_members)]))
    step = None if checkpoints is None else checkpoints.newest()
    if checkpoints is None or step is None:
        return run
    targets = {name: abstract(tree) for name, tree in _trees(run).items()}
    # Two states may not fit beside each other; as if a step had consumed it.
    free(_trees(run))
    trees, meta = checkpoints.restore(step, targets)
    data.restore(meta["data"])
    clock = Clock(**meta["clock"])
    clock.members = [Standing(**standing) for standing in meta["clock"]["members"]]
    return _Run(replace(state, **trees["state"]), trees.get("best"), clock)


def _trees(run: _Run) -> dict[str, Any]:
    """What of it are arrays."""
    parts = {name: getattr(run.state, name) for name in TrainState.__dataclass_fields__}
    # What is empty is left out, as it is from checkpoints that were written before there was such.
    state = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
    return {"state": state} | ({} if run.best is None else {"best": run.best})


def _save(run: _Run, data: Data, checkpoints: Checkpoints | None, *, wait: bool = False) -> None:
    if checkpoints is None:
        return
    run.clock.checkpoints += 1
    with _stalled(run.clock):
        meta = {"clock": asdict(run.clock), "data": data.position()}
        checkpoints.save(run.done, _trees(run), meta)
        if wait:
            checkpoints.finish()


@contextlib.contextmanager
def _stalled(clock: Clock) -> Iterator[None]:
    """Counts what is done inside as waiting for checkpoints."""
    started = time.monotonic()
    yield
    clock.checkpoint_seconds += time.monotonic() - started


def _tell(
    run: _Run, start: int, reporters: Sequence[Reporter], docs_per_second: float | None = None
) -> None:
    """Fetches the results from the step `start` on, and reports them; all there are, from 0."""
    small = jax.device_get((run.state.step, run.state.failed_step, run.state.history))
    members = len(reporters)
    # Those of a single model are as those of a population of one.
    step_P, failed_P, history_PSH = (
        x.reshape(-1, *x.shape[np.ndim(small[0]) :])[:members] for x in small
    )
    run.done, run.all_failed = int(step_P.max()), bool((failed_P >= 0).all())
    for reporter, standing, reached, history_SH in zip(
        reporters, run.clock.members, step_P, history_PSH, strict=True
    ):
        rows = [
            {"step": start + i + 1, "split": "train", **dict(zip(HISTORY, values, strict=True))}
            for i, values in enumerate(history_SH[start:reached].tolist())
        ]
        if start == 0 and docs_per_second is None:
            # A resumed run tells all that it remembers.
            rows = sorted(
                rows + standing.evaluations, key=lambda row: (row["step"], row["split"] != "train")
            )
        if rows:
            reporter.rows(rows)
        if docs_per_second is not None and reached == run.done and rows:
            reporter.progress(run.done, rows[-1], docs_per_second)


def _fail(
    run: _Run,
    first: int,
    position: Any,
    data: Data,
    checkpoints: Checkpoints | None,
    schedule: Schedule,
) -> None:
    """Saves the last good state such that the next attempt tries the failed step again; raises."""
    # The data are ahead of the state: back to the block's start, and on to the good steps.
    data.restore(position)
    for number in range(first, run.done):
        data.at(number)
    failed_P, step_P = jax.device_get((run.state.failed_step, run.state.step))
    # Members that had failed long before have lost their place in the data.
    again_P = np.where(step_P == run.done, -1, failed_P).astype(np.int32)
    again_P = put(again_P, run.state.failed_step.sharding)
    run.state = replace(run.state, failed_step=again_P)
    _save(run, data, checkpoints, wait=True)
    raise errors.TrainingFailed(
        f"loss or gradient is not finite at step {run.done} of {schedule.total_steps}; stopped, "
        f"the state after {run.done} good steps is kept"
    )


def _evaluate(run: _Run, evaluate: Evaluate | None, reporters: Sequence[Reporter]) -> None:
    """Evaluates, records the rows, and keeps the best parameters (the earliest on a tie)."""
    assert evaluate is not None
    failed_P = np.atleast_1d(jax.device_get(run.state.failed_step))
    better_P = np.zeros(len(failed_P), bool)
    params = result_of(run.state)
    rows = processes.first_says("evaluation", evaluate(params))
    for i, (row, standing) in enumerate(zip(rows, run.clock.members, strict=True)):
        if failed_P[i] >= 0:
            continue
        score = list(row["score"])
        row = {"step": run.done, "split": "validation"} | {
            name: value for name, value in row.items() if name != "score"
        }
        standing.evaluations.append(row)
        reporters[i].rows([row])
        better_P[i] = standing.best_step is None or score > standing.best_score
        if better_P[i]:
            standing.best_step, standing.best_score = run.done, score
    if run.best is not None and better_P.any():
        better = better_P.reshape(run.state.step.shape)
        run.best = _chosen(better, params, run.best)


@functools.partial(jax.jit, donate_argnums=2)
def _chosen(better: jax.Array, new: Any, old: Any) -> Any:
    """The new parameters of the members that are better, the old ones of the others."""

    def choose(new: jax.Array, old: jax.Array) -> jax.Array:
        mask = better.reshape(better.shape + (1,) * (new.ndim - better.ndim))
        return jnp.where(mask, new, old)

    return jax.tree.map(choose, new, old)
