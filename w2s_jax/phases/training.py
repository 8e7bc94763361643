"""Training of a single phase, and what a phase's training needs besides its program."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from w2s_jax import sharding
from w2s_jax.core import errors, processes
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.phases import completions, inputs, prediction
from w2s_jax.phases.context import Context
from w2s_jax.phases.logs import NoProfiler, PhaseLog, ProcessLog
from w2s_jax.phases.parameters import Parameters
from w2s_jax.planning.phase import Phase
from w2s_jax.profiling import hlo
from w2s_jax.profiling.profile import Profiler
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.training import loop
from w2s_jax.training.batch_sources import compile_for
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.interfaces import Reporter
from w2s_jax.training.nonfinite import locate
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.prediction import probabilities
from w2s_jax.training.state import init_state
from w2s_jax.training.vocabulary import Vocabulary, embedding


def train(
    phase: Phase, context: Context, folder: PhaseFolder, start: Parameters
) -> tuple[Parameters, dict[str, Any]]:
    """Train a phase from `start`; return the resulting parameters, and a `record` of training."""
    mesh, data = context.mesh, inputs.inputs_of(phase, context)
    batches, real_token_share = data.batches(mesh, start)
    params, whole = cut_and_whole(data.vocabulary, start.trained)
    state = init_state(
        params,
        make_optimizer(phase.train),
        phase.total_steps,
        mesh,
        average=phase.train.ema > 0,
        loss_state=data.loss_state(),
    )
    frozen = start.frozen | data.tables(mesh)
    program = compile_for(batches, data.spec, mesh, frozen)
    if context.dump_hlo and processes.is_first():
        program = hlo.dumping(program, folder.path / "hlo")
    evaluate = evaluators(
        [phase], context, lambda trained: Parameters(whole(trained), start.frozen)
    )
    locator = functools.partial(locate, data.spec, mesh, frozen) if debugs_nans() else None
    profiler = make_profiler(phase, context, folder)
    saved = Checkpoints(folder.steps, context.settings.checkpoint.keep)
    try:
        with phase_log(phase, context) as reporter:
            state, best, stats = loop.train(
                program,
                state,
                batches,
                schedule_of(phase, context),
                [reporter],
                checkpoints=saved,
                evaluate=(lambda trained: [evaluate[0](trained)]) if evaluate else None,
                should_stop=context.should_stop,
                profiler=profiler,
                locate=locator,
            )
    except errors.TrainingFailed as error:
        # A known operation needs no guesses.
        advice = "" if debugs_nans() else f"; {prediction.if_not_finite(phase)}"
        raise errors.TrainingFailed(f"{phase.title}: {error}{advice}") from None
    except errors.Interrupted as error:
        raise errors.Interrupted(f"{phase.title}: {error}") from None
    finally:
        saved.close()
        batches.close()
    inputs.release(phase, context)
    trained = record(phase, sharding.on_host(state.history), stats, 0, real_token_share())
    return Parameters(whole(best), start.frozen), trained


def debugs_nans() -> bool:
    """Return whether a failed step is to be repeated operation by operation (`--debug_nans`)."""
    # Several processes hold parts of the arrays each.
    return bool(jax.config.values["jax_debug_nans"]) and processes.count() == 1


def cut_and_whole(vocabulary: Vocabulary | None, trained: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the trained parameters with a reduced embedding, and a function that restores it."""
    if vocabulary is None:
        return trained, lambda params: params
    whole = functools.partial(vocabulary.whole, rows_VD=embedding(trained))
    return vocabulary.cut(trained), whole


def schedule_of(phase: Phase, context: Context) -> loop.Schedule:
    """Return when evaluations and checkpoints of a phase are due."""
    return loop.Schedule(
        total_steps=phase.total_steps,
        batch_size=phase.train.batch_size,
        eval_every=phase.eval_every,
        select=bool(phase.select),
        checkpoint_seconds=60 * context.settings.checkpoint.every_minutes,
    )


def phase_log(
    phase: Phase, context: Context, *, shows_bar: bool = True
) -> contextlib.AbstractContextManager[Reporter]:
    """Return a context manager of the reporter of a phase's training."""
    if not processes.is_first():
        return ProcessLog(phase.title, phase.total_steps)
    return PhaseLog(
        context.folder(phase.name).path,
        phase.title,
        phase.total_steps,
        context.settings.log,
        context.console,
        context.wandb_run,
        shows_bar=shows_bar,
    )


def record(
    phase: Phase,
    history_SH: np.ndarray,
    stats: loop.LoopStats,
    member: int,
    real_token_share: float,
) -> dict[str, Any]:
    """Return the part of a phase's result.json that training determines.

    `seconds` is the wall time of all attempts, and `compile_seconds`, `host_seconds` and
    `checkpoint_seconds` are parts of it (see `loop.LoopStats`). For each of P members that were
    trained together they are a P-th of the whole.

    Args:
      phase: the phase that was trained.
      history_SH: its `TrainState.history`.
      stats: of the loop.
      member: the index of the phase among the members.
      real_token_share: the share of its batches' slots that hold a token.
    """
    history_SH = history_SH[: phase.total_steps]
    tail_S = history_SH[-max(1, len(history_SH) // 10) :, 0]
    members = len(stats.members)
    return {
        "steps": phase.total_steps,
        "kept_step": stats.members[member].best_step if phase.select else phase.total_steps,
        "train_loss": float(np.mean(tail_S)),
        "real_token_share": real_token_share,
        "seconds": stats.seconds / members,
        "compile_seconds": stats.compile_seconds / members,
        "host_seconds": stats.host_seconds / members,
        "checkpoint_seconds": stats.checkpoint_seconds / members,
        "checkpoints": stats.checkpoints,
    }


def make_profiler(
    phase: Phase, context: Context, folder: PhaseFolder
) -> Profiler | NoProfiler | None:
    """Return a profiler of the requested steps; None if the phase does not have them."""
    if context.profile is None:
        return None
    start, stop = context.profile
    if start >= phase.total_steps:
        context.console.print(
            f"{phase.title}: no profile: it has {phase.total_steps} steps, and --profile starts at "
            f"step {start}",
            highlight=False,
            markup=False,
        )
        return None
    stop = min(stop, phase.total_steps)
    if not processes.is_first():
        return NoProfiler(start, stop)
    return Profiler(start, stop, folder.path / "profile", context.console)


def evaluators(
    phases: Sequence[Phase], context: Context, parameters_of: Callable[[Any], Parameters]
) -> list[Callable[[Any], dict[str, Any]]]:
    """Return functions that evaluate phases with the same model and documents; [] if none is due.

    They measure agreement with the labels that a phase learns, on validation documents. The score
    to maximise is that agreement (or, for an oracle, the accuracy), then a lower cross-entropy to
    the soft labels.

    Args:
      phases: the phases.
      context: of the run.
      parameters_of: trained parameters, as the state has them -> all parameters.
    """
    first = phases[0]
    if first.eval_every is None or first.loss is None or "validation" not in first.inputs:
        return []
    if first.completion is not None:
        return [completions.evaluator(phase, context, parameters_of) for phase in phases]
    split = first.inputs["validation"]
    documents = context.data(first).splits[split]
    truth_N = documents.truth_N
    made: list[Callable[[Any], np.ndarray]] = []

    def evaluate(phase: Phase, targets_NC: np.ndarray, trained: Any) -> dict[str, Any]:
        params = parameters_of(trained).joined()
        if not made:
            made.append(prediction.predictor(first, context, split, params))
        logits_NC = made[0](params)
        prediction.check_finite(phase, logits_NC, "logits")
        p_NC = probabilities(logits_NC).astype(np.float64)
        predicted_N = predicted_classes(p_NC)
        agreement = float(np.mean(predicted_N == predicted_classes(targets_NC)))
        log_p_NC = np.log(np.maximum(p_NC, 1e-30))
        cross_entropy = float(-np.mean(np.sum(targets_NC * log_p_NC, axis=1)))
        row = {"agreement": agreement, "cross_entropy": cross_entropy}
        if not np.isnan(truth_N).any():
            row["accuracy"] = float(np.mean(predicted_N == truth_N))
        best_by = row["accuracy"] if phase.select == "ground_truth" else agreement
        return {**row, "score": [best_by, -cross_entropy]}

    targets = [inputs.targets_of(p, context, split, documents).astype(np.float64) for p in phases]
    return [
        functools.partial(evaluate, phase, targets_NC)
        for phase, targets_NC in zip(phases, targets, strict=True)
    ]
