"""What a phase is: a unit of work, named by a hash of everything that can change its result.

The fingerprint takes in data, model, loss, optimiser, protocol switches, seeds, the semantics
version of the kind and the fingerprints of the phases it builds on, and nothing that can't change
a result (mesh, microbatch, rematerialisation, logging, paths). Imports no JAX.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from w2s_jax.config import LossSettings, TrainSettings
from w2s_jax.models.config import ModelConfig

#: Kinds of phases whose parameters other phases start from: they are kept in any case.
STARTS = ("pretrain", "features", "probe")


@dataclass(frozen=True)
class Phase:
    """One unit of work: a model trained on one set of documents, and what it then predicts.

    Attributes:
      kind: 'pretrain', 'weak', 'student' or 'ceiling'; 'features' computes what the heads of a
        frozen model see; 'probe' trains a head alone before one of the others trains everything;
        'labels' makes labels without training a model of its own (see `phases.labelling`).
      role: a key of `Settings.roles`: whose model and documents. Not part of the fingerprint, like
        label.
      label: loss label of a student, model of a pretraining, what a probe is for; else ''.
      spec: everything that can change the result, JSON-ready.
      model, train, total_steps, seed, loss, select: the same, typed. The model has adapters if
        some are trained.
      inputs: 'train', 'validation', 'test' -> name of a split.
      parents: 'init' (pretrained parameters), 'features', 'head' (probed), 'labels' (weak labels)
        -> phase name; of 'labels' phases whatever they take.
      label_splits: the splits whose class probabilities the phase stores as weak labels; of
        'features' those whose features it stores.
      select: what a student's kept step is best by, evaluated `eval_every`: 'agreement' with its
        labels, or 'ground_truth'; '' keeps the last one.
      eval_every: steps between evaluations, or None.
      method: (kind, options) of 'labels'.
      subset: it trains on just those documents that its labels are of, so many (None: on all).
      suffixed: each document is followed by the token of its weak label.
      num_texts: read-outs per document: 1, or 2 for pairs.
      head_init: how a class head starts: 'unembedding' or 'zeros'; '' without one.
      label_tokens: ids of the tokens that spell the labels 0 and 1; () if there are none.
      label_sources: split -> phase whose labels apply to its documents, for splits in `inputs`;
        others have ground truth. It follows from the parents, so the fingerprint omits it.
    """

    kind: str
    role: str
    label: str
    spec: Mapping[str, Any]
    model: ModelConfig
    train: TrainSettings
    total_steps: int
    seed: int
    loss: LossSettings | None
    inputs: Mapping[str, str]
    parents: Mapping[str, str]
    label_splits: tuple[str, ...]
    select: str
    eval_every: int | None
    method: tuple[str, tuple[tuple[str, Any], ...]] | None = None
    subset: int | None = None
    suffixed: bool = False
    num_texts: int = 1
    head_init: str = ""
    label_tokens: tuple[int, ...] = ()
    label_sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the sha256 of the canonical JSON of `spec`."""
        text = json.dumps(self.spec, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The phase's folder: <kind>-<fingerprint>."""
        return f"{self.kind}-{self.fingerprint}"

    @property
    def title(self) -> str:
        """For people: 'student xent', 'pretrain gpt-d8', 'ceiling'."""
        return f"{self.kind} {self.label}".strip()
