"""The training loop: dispatches steps, and at block boundaries looks at the clock and the results.

Between boundaries the host only dispatches. A boundary is where something is due: a log row, an
evaluation, the end, a look at the clock. There the history is fetched, a failed step is noticed,
the model is evaluated, a checkpoint is started if its time has come, and a request to stop is
honoured.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from w2s_jax import errors
from w2s_jax.storage import abstract, free
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.state import HISTORY, TrainState

#: A block of steps without a look at signals and the clock lasts about this long ...
BLOCK_SECONDS = 2.0
#: ... and the first one has so many steps, before their speed is known.
FIRST_BLOCK = 20

Evaluate = Callable[[Any], dict[str, Any]]


class Data(Protocol):
    """Where the batches come from."""

    def at(self, step: int) -> Any:
        """What the step program takes at `step`; asked once for each step, in order."""

    def position(self) -> Any:
        """Where the data stand, as JSON; part of every checkpoint."""

    def restore(self, position: Any) -> None:
        """Goes where `position` says."""


class Reporter(Protocol):
    """What the loop tells: rows of metrics.jsonl, and the state of the progress bar."""

    def rows(self, rows: list[dict[str, Any]]) -> None:
        """New rows, in the order of their steps."""

    def progress(self, step: int, row: dict[str, Any], docs_per_second: float) -> None:
        """Where training is."""


@dataclass
class Clock:
    """What a restart must remember besides arrays: seconds trained, evaluations, the best step."""

    seconds: float = 0.0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best_step: int | None = None
    best_score: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """When things are due.

    `eval_every` None: no evaluation. `select`: the parameters of the best evaluation are the
    result, instead of the last ones.
    """

    total_steps: int
    batch_size: int
    log_every: int
    eval_every: int | None = None
    select: bool = False
    checkpoint_seconds: float = 180.0


def train(
    step: Callable[[TrainState, Any], TrainState],
    state: TrainState,
    data: Data,
    schedule: Schedule,
    reporter: Reporter,
    *,
    checkpoints: Checkpoints | None = None,
    evaluate: Evaluate | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[TrainState, Any, Clock]:
    """Trains to `schedule.total_steps`, resuming from the newest whole checkpoint if there is one.

    Args:
      step: the compiled step; consumes its state.
      state: a fresh state.
      data: what the step takes besides the state.
      schedule: when things are due.
      reporter: hears about progress.
      checkpoints: where to resume from and save to.
      evaluate: parameters -> a row with a 'score' (a list; the largest is best, in lexicographic
        order).
      should_stop: asked at each boundary; True saves and raises.

    Returns:
      (final state, resulting parameters, clock).

    Raises:
      TrainingFailed: at a non-finite loss or gradient; the last good state has been saved.
      Interrupted: when `should_stop` says so; the state has been saved.
    """
    clock, eval_every = Clock(), schedule.eval_every if evaluate is not None else None
    best = jax.tree.map(jnp.copy, state.params) if schedule.select else None
    if checkpoints is not None:
        state, best, clock = _restore(checkpoints, state, best, clock, data)
    done = int(jax.device_get(state.step))
    if done:
        rows = _history_rows(state, 0, done) + clock.evaluations
        reporter.rows(sorted(rows, key=lambda row: (row["step"], row["split"] != "train")))
    saved_at = started = time.monotonic()
    before = clock.seconds
    block, compiled = FIRST_BLOCK, False

    def save() -> None:
        nonlocal saved_at
        if checkpoints is not None:
            trees = {"state": _as_dict(state)} | ({} if best is None else {"best": best})
            meta = {"clock": asdict(clock), "data": data.position()}
            checkpoints.save(done, trees, meta)
        saved_at = time.monotonic()

    while done < schedule.total_steps:
        boundary = _next_boundary(done, schedule, eval_every, block)
        block_started = time.monotonic()
        block_position = data.position()
        with jax.transfer_guard("disallow"):
            for number in range(done, boundary):
                state = step(state, data.at(number))
        reached, failed = (int(x) for x in jax.device_get((state.step, state.failed_step)))
        block_start = done
        clock.seconds = before + time.monotonic() - started
        rows = _history_rows(state, done, reached)
        block_seconds = time.monotonic() - block_started
        speed = (reached - done) * schedule.batch_size / block_seconds
        if compiled:
            block = max(1, int(BLOCK_SECONDS * (reached - done) / block_seconds))
        compiled = True
        done = reached
        reporter.rows(rows)
        if failed >= 0:
            # The data are ahead of the state: back to the block's start, and on to the good steps.
            data.restore(block_position)
            for number in range(block_start, reached):
                data.at(number)
            state = _as_state(_as_dict(state) | {"failed_step": state.failed_step * 0 - 1})
            save()
            if checkpoints is not None:
                checkpoints.finish()
            raise errors.TrainingFailed(
                f"loss, gradient or update is not finite at step {failed} of "
                f"{schedule.total_steps}; stopped, the state after {failed} good steps is kept"
            )
        reporter.progress(done, rows[-1], speed)
        if evaluate and eval_every and (done % eval_every == 0 or done == schedule.total_steps):
            better = _evaluate(evaluate, state, done, clock, reporter)
            best = jax.tree.map(jnp.copy, state.params) if better and schedule.select else best
        if should_stop():
            save()
            if checkpoints is not None:
                checkpoints.finish()
            raise errors.Interrupted(
                f"stopped by a signal at step {done} of {schedule.total_steps}, state saved; the "
                "same command resumes"
            )
        if checkpoints is not None:
            checkpoints.poll()
        if (
            done < schedule.total_steps
            and time.monotonic() - saved_at >= schedule.checkpoint_seconds
        ):
            save()
    if checkpoints is not None:
        checkpoints.finish()
    return state, state.params if best is None else best, clock


def _next_boundary(done: int, schedule: Schedule, eval_every: int | None, block: int) -> int:
    """The next step at which something is due: a log row, an evaluation, a look at the clock."""
    boundary = (done // schedule.log_every + 1) * schedule.log_every
    if eval_every:
        boundary = min(boundary, (done // eval_every + 1) * eval_every)
    return min(boundary, done + block, schedule.total_steps)


def _evaluate(
    evaluate: Evaluate, state: TrainState, done: int, clock: Clock, reporter: Reporter
) -> bool:
    """Evaluates and records the row; whether it is the best so far (the earliest on a tie)."""
    row = evaluate(state.params)
    score = list(row.pop("score"))
    row = {"step": done, "split": "validation", **row}
    clock.evaluations.append(row)
    reporter.rows([row])
    better = clock.best_step is None or score > clock.best_score
    if better:
        clock.best_step, clock.best_score = done, score
    return better


def _history_rows(state: TrainState, start: int, stop: int) -> list[dict[str, Any]]:
    """metrics.jsonl rows of the steps [start, stop): row `step` n is the n-th update, from 1."""
    history = jax.device_get(state.history)[start:stop].tolist()
    return [
        {"step": start + i + 1, "split": "train", **dict(zip(HISTORY, row, strict=True))}
        for i, row in enumerate(history)
    ]


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in TrainState.__dataclass_fields__}


def _as_state(values: dict[str, Any]) -> TrainState:
    return TrainState(**values)


def _restore(
    checkpoints: Checkpoints, state: TrainState, best: Any, clock: Clock, data: Data
) -> tuple[TrainState, Any, Clock]:
    targets = {"state": abstract(_as_dict(state))}
    if best is not None:
        targets["best"] = abstract(best)
    step = checkpoints.newest()
    if step is None:
        return state, best, clock
    # Two states may not fit beside each other; as if a step had consumed it.
    free((_as_dict(state), best))
    trees, meta = checkpoints.restore(step, targets)
    data.restore(meta["data"])
    return _as_state(trees["state"]), trees.get("best"), Clock(**meta["clock"])
