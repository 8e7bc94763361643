"""Estimated model FLOPs of a phase, by the formulas of `models.budget`. Imports no JAX."""

from dataclasses import dataclass

import numpy as np

from w2s_jax.config import PretrainSettings
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import budget
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.phase import Phase
from w2s_jax.planning.resolve import Resolved


@dataclass(frozen=True)
class Flops:
    """Model FLOPs of a phase.

    Attributes:
      training: forward and backward passes of training.
      inference: forward passes for labels, features, predictions and evaluations.
    """

    training: float = 0.0
    inference: float = 0.0

    @property
    def total(self) -> float:
        """Training and inference."""
        return self.training + self.inference


def phase_flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return the model FLOPs of a phase."""
    return PHASE_KINDS[phase.kind].flops(phase, resolved)


def no_flops(phase: Phase, resolved: Resolved) -> Flops:
    """Return no FLOPs, for phases whose cost is not counted."""
    del phase, resolved
    return Flops()


def training_flops(phase: Phase, resolved: Resolved) -> float:
    """Return steps times batch size times the mean FLOPs of a document of the training split."""
    data, split = resolved.roles[phase.role], phase.inputs["train"]
    if split in data.streams:
        assert isinstance(phase.train, PretrainSettings)
        length = phase.train.chunk_length
        per_document = length * _training_flops_per_token(phase, length)
    else:
        documents = data.splits[split]
        lengths_V, counts_V = _lengths(documents)
        per_document = sum(
            count * length * _training_flops_per_token(phase, length)
            for length, count in zip(lengths_V, counts_V, strict=True)
        ) / len(documents)
    return phase.total_steps * phase.train.batch_size * per_document


def forward_flops(phase: Phase, resolved: Resolved) -> dict[str, float]:
    """Return split -> FLOPs of one forward pass over it.

    The splits are those that the phase labels (or makes features of), and its validation and test
    documents.
    """
    splits = resolved.roles[phase.role].splits
    evaluated = {phase.inputs[name] for name in ("validation", "test") if name in phase.inputs}
    return {split: _forward(phase, splits[split]) for split in {*phase.label_splits, *evaluated}}


def _forward(phase: Phase, documents: TokenizedDocuments) -> float:
    if phase.completion is not None:
        # A prompt, and each token of a completion, once; completions count as the longest.
        assert documents.prompt_lengths_P is not None
        mean = float(documents.prompt_lengths_P.mean()) + phase.completion.max_new_tokens
        per_token = budget.flops_per_token(phase.model, int(mean), last_only=False)
        return len(documents) * mean * per_token
    lengths_V, counts_V = _lengths(documents)
    return sum(
        count * length * budget.flops_per_token(phase.model, length, last_only=True)
        for length, count in zip(lengths_V, counts_V, strict=True)
    )


def _training_flops_per_token(phase: Phase, length: int) -> float:
    model, is_classifier = phase.model, phase.classifies
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


def _lengths(documents: TokenizedDocuments) -> tuple[list[int], list[int]]:
    """Return distinct lengths and their counts, as attention is not linear in the length."""
    lengths_V, counts_V = np.unique(documents.piece_lengths_P, return_counts=True)
    return lengths_V.tolist(), counts_V.tolist()
