"""What a sweep costs, by formula: model FLOPs of phases, and hours of devices. Imports no JAX."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from w2s_jax.config import PretrainSettings
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import budget
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved, RoleInput
from w2s_jax.profiling.devices import peak_flops

#: Model FLOP/s utilisation that is planned with where nothing else is said.
MFU = 0.4


@dataclass(frozen=True)
class Flops:
    """Model FLOPs of a phase: of training, and of forward passes for labels and evaluation."""

    training: float
    inference: float

    @property
    def total(self) -> float:
        """Both."""
        return self.training + self.inference


def phase_flops(phase: Phase, resolved: Resolved) -> Flops:
    """Model FLOPs of a phase, by the formulas of `models.budget`.

    Training: steps times documents of a batch times the mean over the documents it draws from.
    Inference: one forward pass over each split that is predicted, labelled or featurised, and over
    the validation split at each evaluation. Not counted: what trains a head on features (6 D a
    document and step), and phases of kind 'labels'.
    """
    data = resolved.roles[phase.role]
    if phase.kind == "labels" or phase.train.adapt == "probe":
        return Flops(0.0, 0.0)
    forward = {
        split: _total(phase, data.splits[split], training=False)
        for split in {*phase.label_splits, *phase.inputs.values()} - set(data.streams)
        if split in ("validation", "test") or split in phase.label_splits
    }
    inference = sum(forward.values())
    if phase.kind == "features":
        return Flops(0.0, inference)
    if phase.eval_every is not None and phase.loss is not None and "validation" in phase.inputs:
        evaluations = -(-phase.total_steps // phase.eval_every)
        inference += evaluations * forward[phase.inputs["validation"]]
    documents = phase.total_steps * phase.train.batch_size
    return Flops(documents * _mean_document(phase, data), inference)


def _mean_document(phase: Phase, data: RoleInput) -> float:
    """FLOPs of training on a document of the phase."""
    split = phase.inputs["train"]
    if split in data.streams:
        assert isinstance(phase.train, PretrainSettings)
        return phase.train.chunk_length * _per_token(phase, phase.train.chunk_length, training=True)
    documents = data.splits[split]
    return _total(phase, documents, training=True) / len(documents)


def _total(phase: Phase, documents: TokenizedDocuments, *, training: bool) -> float:
    """FLOPs of one pass over documents: a sum over lengths, as attention is not linear in them."""
    lengths_V, counts_V = np.unique(documents.piece_lengths_P, return_counts=True)
    pairs = zip(lengths_V.tolist(), counts_V.tolist(), strict=True)
    return float(sum(n * length * _per_token(phase, length, training) for length, n in pairs))


def _per_token(phase: Phase, length: int, training: bool) -> float:
    model, is_classifier = phase.model, phase.loss is not None or phase.kind == "features"
    if not training:
        return budget.flops_per_token(model, length, last_only=is_classifier)
    return budget.train_flops_per_token(
        model,
        length,
        phase.train.adapt,
        lora_rank=model.lora_rank or budget.LORA_RANK,
        lora_targets=model.lora_targets or budget.LORA_TARGETS,
        last_layers=phase.train.last_layers,
        last_only=is_classifier,
        logits=not is_classifier,
    )


@dataclass(frozen=True)
class Hours:
    """What some phases take of one kind of device.

    Attributes:
      device: its name.
      devices: how many hold the largest of the phases, sharded; None: it is too small.
      device_hours: of all phases, at the utilisation that was said.
    """

    device: str
    devices: int | None
    device_hours: float


def hours(phases: Mapping[str, Phase], resolved: Mapping[str, Resolved], mfu: float) -> list[Hours]:
    """What phases take of each kind of device whose peaks are known (`perf.devices`).

    Args:
      phases: by name.
      resolved: what each works on.
      mfu: the share of the devices' peak, in the phase's compute dtype, that is reached.
    """
    by_dtype: defaultdict[str, float] = defaultdict(float)
    largest = 0
    for name, phase in phases.items():
        by_dtype[phase.train.compute_dtype] += phase_flops(phase, resolved[name]).total
        largest = max(largest, memory_estimate(phase, resolved[name])["total"])
    found = []
    for name, device in budget.DEVICES.items():
        peaks = {dtype: peak_flops(name, dtype) for dtype in by_dtype}
        seconds = [flops / (mfu * (peaks[dtype] or np.nan)) for dtype, flops in by_dtype.items()]
        if not np.isnan(seconds).any():
            needed = budget.devices_needed(largest, device)
            found.append(Hours(name, needed, sum(seconds) / 3600))
    return found
