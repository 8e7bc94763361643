"""Training of several phases together, as a population."""

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
from w2s_jax.phases import inputs, parameters, prediction, running, training
from w2s_jax.phases.context import Context
from w2s_jax.phases.grouping import Group, remove_record, write_record
from w2s_jax.phases.inputs import TrainingInputs
from w2s_jax.phases.parameters import Parameters
from w2s_jax.training import loop, population
from w2s_jax.training.checkpoints import Checkpoints
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.state import TrainState, init_state


def train_together(group: Group, context: Context) -> dict[str, errors.TrainingFailed]:
    """Train all members by one program, and store the final parameters of each in its folder.

    `run_phase` then only predicts. Checkpoints are in the first member's folder.

    Returns:
      phase name -> error, for members whose loss or gradient was not finite; nothing of them is
      stored.

    Raises:
      TrainingFailed: if all members failed; the last good state is saved.
      Interrupted: if a stop was requested; the state is saved.
    """
    members, first = group.phases, group.phases[0]
    folder = context.folder(first.name)
    mesh = population.make_mesh(len(members), list(context.mesh.devices.flat[: group.devices]))
    positions = [
        {"mode": group.mode, "members": len(members), "index": i, "devices": group.devices}
        for i in range(len(members))
    ]
    for phase, position in zip(members, positions, strict=True):
        running.begin(phase, context, position)
    write_record(group, context)
    data = [inputs.inputs_of(phase, context) for phase in members]
    batches, shares = _batches(data, mesh)
    start, states = _starts(data, context)
    cut, whole = training.cut_and_whole(data[0].vocabulary, start.trained)
    shardings = jax.tree.map(lambda x: x.sharding, cut)
    frozen = start.frozen | data[0].tables(mesh)
    frozen = jax.device_put(frozen, sharding.replicated(mesh))
    specs = [of_member.spec for of_member in data]

    def parameters_of(trained: Any) -> Parameters:
        return Parameters(whole(jax.device_put(trained, shardings)), start.frozen)

    evaluators = training.evaluators(members, context, parameters_of)
    profiler = training.make_profiler(first, context, folder)
    saved = Checkpoints(folder.steps, context.settings.checkpoint.keep)
    try:
        with contextlib.ExitStack() as logs, context.watched(first):
            state, best, stats = loop.train(
                population.compile_block(specs, mesh, frozen, batches, group.mode),
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
        inputs.release(phase, context)
        if failed_P[i] >= 0:
            failures[phase.name] = errors.TrainingFailed(
                f"{phase.title}: loss or gradient is not finite at step {failed_P[i]} of "
                f"{phase.total_steps}; the phases trained together with it are not affected; "
                f"{prediction.if_not_finite(phase)}"
            )
            continue
        trained = training.record(phase, history_PSH[i], stats, i, shares[i])
        kept = parameters_of(population.member(best, i))
        running.keep(
            phase, context.folder(phase.name), kept, trained | {"population": positions[i]}
        )
    remove_record(folder)
    return failures


def _batches(
    data: Sequence[TrainingInputs], mesh: Mesh
) -> tuple[population.MemberBatches, list[float]]:
    """Return the members' batches, and for each the share of its slots that hold a token."""
    first = data[0]
    # Members of one seed have the same order.
    orders = {of_member.phase.seed: of_member.order_SB for of_member in data}
    order_PSB = [orders[of_member.phase.seed] for of_member in data]
    targets_PNC = [of_member.targets_NC for of_member in data]
    if first.phase.train.adapt == "probe":
        batches = population.put_feature_batches(
            order_PSB, targets_PNC, mesh, table=first.phase.looks_up_targets
        )
        return batches, [1.0] * len(data)
    documents, extras = first.renumbered_documents(), first.spec.extras
    options: dict[str, Any] = {
        "num_microbatches": first.num_microbatches,
        "max_shapes": first.phase.train.max_shapes,
        **row_preferences(first.phase.model),
    }
    if len(orders) == 1:
        shared = packing.pack(documents, order_PSB[0], **options)
        batches = population.put_batches(shared, targets_PNC, mesh, extras)
        return batches, [shared.real_token_share] * len(data)
    packed = population.pack_members(documents, np.stack(order_PSB), **options)
    batches = population.put_batches(packed, targets_PNC, mesh, extras)
    return batches, [one.real_token_share for one in packed]


def _starts(
    data: Sequence[TrainingInputs], context: Context
) -> tuple[Parameters, list[TrainState]]:
    """Return the first member's initial parameters, and each member's initial state on the host.

    Members may differ in parameters that a seed initialises (adapters), in heads that were probed,
    and in the states of losses.
    """
    found: dict[Any, TrainState] = {}
    first: Parameters | None = None
    states = []
    for of_member in data:
        phase = of_member.phase
        key = (phase.seed, phase.parents.get("head"))
        if key not in found:
            source = context.data(phase).source
            start = parameters.initial(phase, source, context.store, context.mesh)
            first = first or start
            params, _ = training.cut_and_whole(data[0].vocabulary, start.trained)
            state = init_state(
                params,
                make_optimizer(phase.train),
                phase.total_steps,
                context.mesh,
                average=phase.train.ema > 0,
            )
            found[key] = jax.device_get(state)
        states.append(dataclasses.replace(found[key], loss_state=of_member.loss_state()))
    assert first is not None
    return first, states
