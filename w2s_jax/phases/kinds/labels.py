"""Labels made without training a model: from a file, from other labels, by a frozen model."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.planning.build import completion_spec, model_spec, weights_digest
from w2s_jax.planning.costs import no_flops
from w2s_jax.planning.kinds import PhaseKind, register_kind
from w2s_jax.planning.memory import forward_memory
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context
    from w2s_jax.store.artifacts import PhaseFolder


#: Label makers that generate completions which students may learn with their distributions.
GENERATES = ("few_shot",)


def build(
    resolved: Resolved,
    role: str,
    method: str,
    splits: tuple[str, ...],
    parents: Mapping[str, str],
    options: Mapping[str, Any],
    *,
    label: str = "",
) -> Phase:
    """Return the phase that labels some splits.

    Args:
      resolved: the run's input.
      role: the role whose model and documents are used.
      method: the label maker (see `phases.labelling`).
      splits: the splits to label.
      parents: the phases whose results it uses.
      options: of the method; `seed` decides what is drawn. `templates` are names of those inside
        of which it reads the documents.
      label: as in `Phase`; '' for the method.
    """
    settings, data = resolved.settings, resolved.roles[role]
    read = {*splits, "slice1", "slice2"} & data.digests.keys()
    asked = options.get("templates")
    if isinstance(asked, tuple):
        read |= {f"template {name}" for name in data.prompts if name in asked}
    return Phase(
        kind="labels",
        role=role,
        label=label or method,
        model=data.model,
        train=dataclasses.replace(settings.roles[role].train, adapt="full"),
        seed=settings.seed,
        inputs={name: name for name in ("validation", "test") if name in splits},
        parents=parents,
        label_splits=splits,
        method=(method, tuple(sorted(options.items()))),
        label_tokens=data.label_tokens,
        num_classes=data.num_classes,
        data_digests={name: data.digests[name] for name in read},
        weights_digest=weights_digest(data),
        labels_digest=resolved.outside if method == "outside" else None,
        completion=data.completion,
        label_top_k=settings.task.label_top_k if method in GENERATES else 0,
        task=settings.task.name if data.completion else "",
    )


def spec(phase: Phase) -> dict[str, Any]:
    """Return what can change the result (see `PhaseKind.spec`)."""
    assert phase.method is not None
    method, options = phase.method
    found = {
        "method": method,
        "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options},
        **model_spec(phase),
        "seed": phase.seed,
        "label_tokens": list(phase.label_tokens),
        "data": dict(phase.data_digests),
        "parents": dict(phase.parents),
        "dtypes": [phase.train.compute_dtype, phase.train.param_dtype],
    }
    if phase.labels_digest is not None:
        found["file"] = phase.labels_digest
    return found | completion_spec(phase)


def run(phase: Phase, context: "Context", folder: "PhaseFolder") -> dict[str, Any]:
    """Make and store the labels."""
    from w2s_jax.phases import labelling

    return labelling.make_labels(phase, context, folder)


register_kind(
    PhaseKind(
        name="labels",
        semantics=1,
        build=build,
        spec=spec,
        run=run,
        memory=forward_memory,
        flops=no_flops,
    )
)
