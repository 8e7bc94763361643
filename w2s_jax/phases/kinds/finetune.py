"""Finetuning a classifier: the kinds 'weak', 'student', 'ceiling' and 'probe'.

They differ in role, labels and loss, which are arguments of `build`. A 'probe' trains a head alone,
before one of the others trains the whole model.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from w2s_jax.config import LossSettings, TrainSettings
from w2s_jax.planning import pool
from w2s_jax.planning.build import (
    completion_spec,
    model_spec,
    num_steps,
    require_a_batch,
    train_spec,
    weights_digest,
)
from w2s_jax.planning.costs import Flops, forward_flops, training_flops
from w2s_jax.planning.kinds import PhaseKind, register_kind
from w2s_jax.planning.memory import probe_memory, training_memory
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved

if TYPE_CHECKING:
    from w2s_jax.phases.context import Context
    from w2s_jax.store.artifacts import PhaseFolder

#: The loss on ground truth.
GROUND_TRUTH_LOSS = LossSettings("xent", "xent", ())


def build(
    resolved: Resolved,
    role: str,
    split: str,
    parents: Mapping[str, str],
    *,
    kind: str,
    loss: LossSettings | None = None,
    label_splits: tuple[str, ...] = (),
    probe: bool = False,
    purpose: str = "",
    label: str = "",
    subset: int | None = None,
    seed: int | None = None,
    select: str | None = None,
    suffixed: bool = False,
    pairs: bool = False,
    train: TrainSettings | None = None,
) -> Phase:
    """Return the phase that finetunes a role's model on one split.

    Args:
      resolved: the run's input.
      role: the role.
      split: the split that it is trained on.
      parents: as `Phase.parents`; it learns the labels of parent 'labels', or ground truth.
      kind: 'weak', 'student', 'ceiling' or 'probe'.
      loss: the loss; None for plain cross-entropy.
      label_splits, label, subset, suffixed, pairs: as in `Phase`.
      probe: train just a head, on the features of parent 'features'.
      purpose: of a probe that precedes another phase: the kind of that phase.
      seed: None for the run's.
      select: as in `Phase`, or 'none'; None for the protocol's, which applies to students only.
      train: None for the role's settings.

    Raises:
      InputError: if the training documents do not fill a batch, or lack the ground truth that the
        phase would learn.
    """
    settings, data = resolved.settings, resolved.roles[role]
    if "labels" not in parents:
        pool.require_truth(settings, split)
    own = settings.roles[role]
    train, model = train or (own.probe if probe else own.train), data.model
    if train.adapt == "probe_then_full":
        train = dataclasses.replace(train, adapt="full")
    if train.adapt == "lora":
        model = model.with_adapters(own.lora.rank, own.lora.alpha, own.lora.targets)
    count = subset or len(data.splits[split])
    field = f"{role}.{'probe' if probe else 'train'}"
    require_a_batch(field, train, count, split)
    total_steps, loss = num_steps(field, train, count), loss or GROUND_TRUTH_LOSS
    is_student = (purpose or kind) == "student"
    if select is None:
        select = settings.protocol.early_stopping if is_student else "none"
    select = "" if select == "none" else select
    eval_every = settings.eval_every
    if select and eval_every is None:
        eval_every = max(1, total_steps // 10)
    inputs = {"train": split, "test": "test"}
    if "validation" in data.splits:
        inputs["validation"] = "validation"
    label = label or (loss.label if is_student else "")
    return Phase(
        kind=kind,
        role=role,
        label=f"{purpose} {label}".strip(),
        model=model,
        train=train,
        total_steps=total_steps,
        seed=settings.seed if seed is None else seed,
        loss=loss,
        inputs=inputs,
        parents=parents,
        label_splits=label_splits,
        select=select,
        eval_every=eval_every,
        subset=subset,
        suffixed=suffixed,
        num_texts=2 if pairs else data.splits[split].num_texts,
        head_init=data.head_init,
        label_tokens=data.label_tokens,
        num_classes=data.num_classes,
        data_digests={name: data.digests[name] for name in {*inputs.values(), *label_splits}},
        weights_digest=weights_digest(data),
        completion=data.completion,
        task=settings.task.name if data.completion else "",
        label_top_k=settings.task.label_top_k if data.completion and label_splits else 0,
        pairs=pairs,
    )


def spec(phase: Phase) -> dict[str, Any]:
    """Return what can change the result (see `PhaseKind.spec`)."""
    assert phase.loss is not None
    stopping = {"by": phase.select, "every": phase.eval_every} if phase.select else None
    found = {
        **model_spec(phase, starts=("init", "features")),
        "train": train_spec(phase.train),
        "steps": phase.total_steps,
        "seed": phase.seed,
        "loss": {"kind": phase.loss.kind, "options": dict(phase.loss.options)},
        "head_init": phase.head_init,
        "label_tokens": list(phase.label_tokens),
        "early_stopping": stopping,
        "inputs": dict(phase.inputs),
        "data": dict(phase.data_digests),
        "parents": dict(phase.parents),
    }
    if phase.num_texts > 1:
        found["texts"] = phase.num_texts
    if phase.num_classes > 2:
        found["classes"] = phase.num_classes
    if phase.subset is not None:
        found["subset"] = True
    if phase.suffixed:
        found["suffixed"] = True
    if phase.role == "strong" and phase.label_splits:
        # Of the other roles, no phase is ever planned without its labels.
        found["labels"] = sorted(phase.label_splits)
    return found | completion_spec(phase)


def run(phase: Phase, context: "Context", folder: "PhaseFolder") -> dict[str, Any]:
    """Train the model, predict validation and test documents, and store weak labels."""
    from w2s_jax.phases import completions, prediction, running

    params, record = running.trained(phase, context, folder)
    predict = prediction.predict if phase.completion is None else completions.predict
    return record | predict(phase, context, folder, params)


def memory(phase: Phase, resolved: Resolved) -> dict[str, int]:
    """Return the memory of training the model, or of a head alone."""
    estimate = probe_memory if phase.train.adapt == "probe" else training_memory
    return estimate(phase, resolved)


def flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return the FLOPs of training and of forward passes; 0 where only a head is trained."""
    if phase.train.adapt == "probe":
        return Flops()
    forward = forward_flops(phase, resolved)
    inference = sum(forward.values())
    if phase.eval_every is not None and "validation" in phase.inputs:
        evaluations = -(-phase.total_steps // phase.eval_every)
        inference += evaluations * forward[phase.inputs["validation"]]
    return Flops(training_flops(phase, resolved), inference)


def _declare(name: str, *, keeps_parameters: bool = False) -> PhaseKind:
    return register_kind(
        PhaseKind(
            name=name,
            semantics=1,
            build=functools.partial(build, kind=name),
            spec=spec,
            run=run,
            memory=memory,
            flops=flops,
            keeps_parameters=keeps_parameters,
            forward="logits",
        )
    )


PROBE = _declare("probe", keeps_parameters=True)
WEAK = _declare("weak")
STUDENT = _declare("student")
CEILING = _declare("ceiling")
