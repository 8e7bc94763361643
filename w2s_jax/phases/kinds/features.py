"""Features of a frozen model: the final hidden states at the read-outs of all documents.

Or, where a role's model is features that were computed elsewhere, the rows of these.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.planning.build import ceiling_slice, model_spec, weights_digest
from w2s_jax.planning.costs import Flops, forward_flops
from w2s_jax.planning.kinds import PhaseKind, register_kind
from w2s_jax.planning.memory import forward_memory
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context
    from w2s_jax.store.artifacts import PhaseFolder


def build(resolved: Resolved, role: str, parents: Mapping[str, str]) -> Phase:
    """Return the phase of the features that probes of a role's model are trained on.

    It also stores a head for probes to start from.

    Args:
      resolved: the run's input.
      role: the role.
      parents: {'init': the phase that made the model's parameters}; {} for the pretrained ones, or
        fresh ones made with `seed`.
    """
    settings, data = resolved.settings, resolved.roles[role]
    splits = sorted(name for name in data.splits if name.startswith("slice"))
    # A network's features of slice 1, on which no head of it is trained, would cost a pass.
    unused = role == "strong" and ceiling_slice(settings) == "slice2"
    if unused and not data.model.is_features:
        splits = [name for name in splits if name != "slice1"]
    splits += sorted({"test", "validation"} & set(data.splits))
    return Phase(
        kind="features",
        role=role,
        label=data.model.name,
        model=data.model,
        train=dataclasses.replace(settings.roles[role].train, adapt="full"),
        seed=settings.seed,
        parents=parents,
        label_splits=tuple(splits),
        num_texts=data.splits["test"].num_texts,
        label_tokens=data.label_tokens,
        num_classes=data.num_classes,
        data_digests={name: data.digests[name] for name in sorted(splits)},
        weights_digest=weights_digest(data),
    )


def spec(phase: Phase) -> dict[str, Any]:
    """Return what can change the result (see `PhaseKind.spec`)."""
    found = {
        **model_spec(phase),
        "compute_dtype": phase.train.compute_dtype,
        "param_dtype": phase.train.param_dtype,
        "label_tokens": list(phase.label_tokens),
        "data": dict(phase.data_digests),
        "parents": dict(phase.parents),
        "texts": phase.num_texts,
    }
    if phase.model.is_features:
        del found["compute_dtype"], found["param_dtype"]
    elif not phase.parents and phase.weights_digest is None:
        found["seed"] = phase.seed
    return found


def run(phase: Phase, context: "Context", folder: "PhaseFolder") -> dict[str, Any]:
    """Compute and store the features."""
    from w2s_jax.phases import prediction

    if phase.model.is_features:
        return prediction.store_features(phase, context, folder)
    return prediction.compute_features(phase, context, folder)


def flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return the FLOPs of a forward pass over each split; 0 of features computed elsewhere."""
    if phase.model.is_features:
        return Flops()
    return Flops(inference=sum(forward_flops(phase, resolved).values()))


register_kind(
    PhaseKind(
        name="features",
        semantics=1,
        build=build,
        spec=spec,
        run=run,
        memory=forward_memory,
        flops=flops,
        keeps_parameters=True,
        forward="features",
    )
)
