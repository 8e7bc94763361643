"""Next-token training: of an embedded model, or of any model on unlabelled texts of the task."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.config import PretrainSettings
from w2s_jax.planning.build import (
    model_spec,
    num_steps,
    require_a_batch,
    train_spec,
    weights_digest,
)
from w2s_jax.planning.costs import Flops, training_flops
from w2s_jax.planning.kinds import PhaseKind, register_kind
from w2s_jax.planning.memory import training_memory
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context
    from w2s_jax.store.artifacts import PhaseFolder


def build(
    resolved: Resolved,
    role: str,
    *,
    split: str = "pretrain",
    epochs: float | None = None,
    parents: Mapping[str, str] | None = None,
) -> Phase:
    """Return the phase of next-token training of a role's model.

    Args:
      resolved: the run's input.
      role: the role.
      split: 'pretrain', or a split of the task, whose labels are not used.
      epochs: epochs over the split; None for the role's pretraining settings.
      parents: {'init': the phase to start from}, if there is one.
    """
    data = resolved.roles[role]
    train = resolved.settings.roles[role].pretrain
    label = data.model.name
    if epochs is not None:
        seed = resolved.settings.seed
        train = dataclasses.replace(
            train, source=None, streaming=False, epochs=epochs, steps=None, seed=seed
        )
        require_a_batch(f"{role}.pretrain", train, len(data.splits[split]), split)
        label = f"{label} on {split}"
    streamed = split in data.streams
    return Phase(
        kind="pretrain",
        role=role,
        label=label,
        # Next-token training has no read-outs.
        model=dataclasses.replace(data.model, read_out="last", read_out_layers=()),
        train=train,
        total_steps=num_steps(
            f"{role}.pretrain", train, 0 if streamed else len(data.splits[split])
        ),
        seed=train.seed,
        inputs={"train": split},
        parents=parents or {},
        streamed=streamed,
        data_digests={split: data.digests[split]},
        weights_digest=weights_digest(data),
    )


def spec(phase: Phase) -> dict[str, Any]:
    """Return what can change the result (see `PhaseKind.spec`)."""
    split = phase.inputs["train"]
    found = {
        **model_spec(phase),
        "train": train_spec(phase.train),
        "steps": phase.total_steps,
        "seed": phase.seed,
        "data": phase.data_digests[split],
    }
    if phase.streamed:
        assert isinstance(phase.train, PretrainSettings)
        found["row_length"] = phase.train.chunk_length
    if split != "pretrain":
        found |= {"split": split, "parents": dict(phase.parents)}
    return found


def run(phase: Phase, context: "Context", folder: "PhaseFolder") -> dict[str, Any]:
    """Train the model and keep its parameters."""
    from w2s_jax.phases import running

    return running.trained(phase, context, folder)[1]


def flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return the FLOPs of training."""
    return Flops(training=training_flops(phase, resolved))


register_kind(
    PhaseKind(
        name="pretrain",
        semantics=1,
        build=build,
        spec=spec,
        run=run,
        memory=training_memory,
        flops=flops,
        keeps_parameters=True,
        forward="none",
    )
)
