"""How phases are trained that are trained together."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.core import errors
from w2s_jax.data import packing
from w2s_jax.models.attention import row_preferences
from w2s_jax.phases import inputs, parameters, running, training
from w2s_jax.phases.context import Context
from w2s_jax.phases.grouping import Group, forget, remember
from w2s_jax.phases.parameters import Parameters
from w2s_jax.training import loop, population
from w2s_jax.training.batches import ResidentBatches
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState, init_state
from w2s_jax.training.vocabulary import Vocabulary


def train_together(group: Group, context: Context) -> dict[str, errors.TrainingFailed]:
    """Trains all members as one program, and stores the final parameters of each in its folder.

    What is left for `run_phase` is then to predict. Checkpoints lie in the first member's folder.

    Returns:
      name -> what went wrong, of members whose loss or gradient was not finite; nothing of them is
      kept.

    Raises:
      TrainingFailed: if that befell them all; the last good state has been saved.
      Interrupted: if a stop was asked for; the state has been saved.
    """
    members, first = group.phases, group.phases[0]
    folder = context.folder(first.name)
    mesh = population.make_mesh(len(members), list(context.mesh.devices.flat[: group.devices]))
    places = [
        {"mode": group.mode, "members": len(members), "index": i, "devices": group.devices}
        for i in range(len(members))
    ]
    for phase, place in zip(members, places, strict=True):
        running.begin(phase, context, place)
    remember(group, context)
    vocabulary = inputs.vocabulary_of(first, context)
    batches, shares = _batches(group, context, vocabulary, mesh)
    specs = [inputs.step_spec(phase, vocabulary) for phase in members]
    start, states = _starts(group, context, vocabulary, specs)
    cut, whole = training.cut_and_whole(vocabulary, start.trained)
    layout = jax.tree.map(lambda x: x.sharding, cut)
    frozen = start.frozen | inputs.features_of(first, context, mesh)
    frozen = jax.device_put(frozen, sharding.replicated(mesh))

    def parameters_of(trained: Any) -> Parameters:
        return Parameters(whole(jax.device_put(trained, layout)), start.frozen)

    evaluators = training.evaluators(members, context, parameters_of)
    profiler = training.make_profiler(first, context, folder)
    saved = Checkpoints(folder.steps, context.settings.checkpoint.keep)
    try:
        with contextlib.ExitStack() as logs, context.watched(first):
            state, best, clock = loop.train(
                population.runner(specs, mesh, frozen, batches, group.mode),
                population.stack(states, mesh),
                batches,
                training.schedule_of(first, context),
                [
                    logs.enter_context(training.phase_log(p, context, shows_bar=p is first))
                    for p in members
                ],
                checkpoints=saved,
                evaluate=population.evaluate_each(evaluators) if evaluators else None,
                should_stop=context.should_stop,
                profiler=profiler,
            )
    except (errors.TrainingFailed, errors.Interrupted) as error:
        titles = ", ".join(phase.title for phase in members)
        raise type(error)(f"{titles}: {error}") from None
    finally:
        saved.close()
    failed_P, history_PSH = jax.device_get((state.failed_step, state.history))
    failures = {}
    for i, phase in enumerate(members):
        if failed_P[i] >= 0:
            failures[phase.name] = errors.TrainingFailed(
                f"{phase.title}: loss or gradient is not finite at step {failed_P[i]} of "
                f"{phase.total_steps}; stopped, what was trained together with it is complete"
            )
            continue
        trained = training.record(phase, history_PSH[i], clock, i, shares[i])
        kept = parameters_of(population.member(best, i))
        running.keep(phase, context.folder(phase.name), kept, trained | {"population": places[i]})
    forget(folder)
    return failures


def _batches(
    group: Group, context: Context, vocabulary: Vocabulary | None, mesh: Mesh
) -> tuple[ResidentBatches, list[float]]:
    """The members' batches, and of each the share of their slots that hold a token."""
    first, members = group.phases[0], group.phases
    orders = {phase.seed: inputs.order_of(phase, context) for phase in members}
    order_PSB = [orders[phase.seed] for phase in members]
    targets_PNC = [inputs.training_targets(phase, context) for phase in members]
    if first.train.adapt == "probe":
        batches = population.put_feature_batches(order_PSB, targets_PNC, mesh)
        return batches, [1.0] * len(members)
    documents = inputs.documents_of(first, context, vocabulary)
    options: dict[str, int] = {
        "num_microbatches": inputs.num_microbatches(first),
        "max_shapes": first.train.max_shapes,
        **row_preferences(first.model),
    }
    needs = inputs.step_spec(first, vocabulary).needs()
    if len(orders) == 1:
        shared = packing.pack(documents, order_PSB[0], **options)
        batches = population.put_batches(shared, targets_PNC, mesh, needs=needs)
        return batches, [shared.real_token_share] * len(members)
    packed = population.pack_members(documents, np.stack(order_PSB), **options)
    batches = population.put_batches(packed, targets_PNC, mesh, needs=needs)
    return batches, [one.real_token_share for one in packed]


def _starts(
    group: Group, context: Context, vocabulary: Vocabulary | None, specs: Sequence[StepSpec]
) -> tuple[Parameters, list[TrainState]]:
    """What the first member starts from, and the state of each, on the host.

    Members differ in what a seed makes (adapters), in heads that were probed, and in what losses
    keep.
    """
    found: dict[Any, TrainState] = {}
    first: Parameters | None = None
    keys = [(phase.seed, phase.parents.get("head")) for phase in group.phases]
    for key, phase in zip(keys, group.phases, strict=True):
        if key in found:
            continue
        source = context.data(phase).source
        start = parameters.initial(phase, source, context.store, context.mesh)
        first = first or start
        params, _ = training.cut_and_whole(vocabulary, start.trained)
        state = init_state(
            params,
            make_optimizer(phase.train),
            phase.total_steps,
            context.mesh,
            average=phase.train.ema > 0,
        )
        found[key] = jax.device_get(state)
    assert first is not None
    return first, [
        dataclasses.replace(found[key], loss_state=inputs.loss_state_of(phase, context, spec))
        for key, phase, spec in zip(keys, group.phases, specs, strict=True)
    ]
