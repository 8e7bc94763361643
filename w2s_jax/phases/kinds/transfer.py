"""The evaluation of a trained model on the test set of another task (`task.test_tasks`)."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.planning.costs import Flops, forward_flops
from w2s_jax.planning.kinds import PhaseKind, register_kind
from w2s_jax.planning.memory import forward_memory
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved
from w2s_jax.planning.transfer import not_kept

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context
    from w2s_jax.store.artifacts import PhaseFolder


def build(
    resolved: Resolved, trained: Phase, task: str, split: str, parents: Mapping[str, str]
) -> Phase:
    """Return the phase that evaluates another one's final parameters.

    Args:
      resolved: the run's input.
      trained: the phase with the parameters.
      task: the other task.
      split: its test documents.
      parents: 'model', the trained phase; 'init', what its frozen parameters are from; of a probe
        'features', those of the documents.
    """
    return dataclasses.replace(
        trained,
        kind="transfer",
        label=f"{trained.title} on {task}",
        total_steps=0,
        inputs={"test": split},
        parents=parents,
        label_splits=(),
        select="",
        eval_every=None,
        subset=None,
        # The final head replaces whatever it would start from.
        head_init="zeros" if trained.classifies else "",
        data_digests={split: resolved.roles[trained.role].digests[split]},
        task=task if trained.completion is not None else "",
        label_top_k=0,
        pairs=False,
        label_sources={},
    )


def spec(phase: Phase) -> dict[str, Any]:
    """Return what can change the result (see `PhaseKind.spec`).

    The trained phase has the rest, and the digest covers documents and labels, not their name.
    """
    return {"data": phase.data_digests[phase.inputs["test"]], "parents": dict(phase.parents)}


def run(phase: Phase, context: "Context", folder: "PhaseFolder") -> dict[str, Any]:
    """Predict the documents with the final parameters, and store the predictions.

    Raises:
      InputError: the parameters are gone.
    """
    from w2s_jax.phases import completions, parameters, prediction

    resolved = context.resolved
    source, trained = context.data(phase).source, phase.parents["model"]
    if not context.folder(trained).final.exists():
        # A run without the test set has completed it in the meantime.
        raise not_kept([trained])
    start = parameters.initial(phase, source, context.store, context.mesh)
    params = parameters.load(phase, start, context.folder(trained))
    if phase.completion is None:
        return prediction.predict(phase, context, folder, params)
    # The answers are judged by the functions of the other task.
    judged = dataclasses.replace(resolved, task=resolved.test_tasks[phase.inputs["test"]])
    return completions.predict(phase, dataclasses.replace(context, resolved=judged), folder, params)


def flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return the FLOPs of a forward pass; 0 of a probe, whose features are a phase of their own."""
    if phase.train.adapt == "probe":
        return Flops()
    return Flops(inference=sum(forward_flops(phase, resolved).values()))


register_kind(
    PhaseKind(
        name="transfer",
        semantics=1,
        build=build,
        spec=spec,
        run=run,
        memory=forward_memory,
        flops=flops,
        forward="logits",
    )
)
