"""A phase: a unit of work, named by a hash of everything that can change its result.

The fingerprint covers data, model, loss, optimiser, protocol switches, seeds, the semantics version
of the kind and the fingerprints of the phases it builds on. It leaves out what cannot change a
result: mesh, microbatch, rematerialisation, logging, paths. Imports no JAX.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from w2s_jax.config import LossSettings, TrainSettings
from w2s_jax.models.config import ModelConfig
from w2s_jax.planning.kinds import PHASE_KINDS, kind_title


@dataclass(frozen=True)
class Completion:
    """How a role's model completes prompts.

    Attributes:
      end: id of the token that ends a completion.
      max_new_tokens: most tokens of a completion, its end included.
    """

    end: int
    max_new_tokens: int


@dataclass(frozen=True)
class Phase:
    """One unit of work: a model, the documents it is trained on, and what it then predicts.

    Which fields are hashed is up to the kind (`PhaseKind.spec`). `role`, `label`, `task` and
    `label_sources` never are.

    Attributes:
      kind: a key of `PHASE_KINDS`.
      role: whose model and documents: a key of `Settings.roles`.
      label: distinguishes phases of a kind for people: the loss of a student, the model of a
        pretraining, the purpose of a probe; may be ''.
      model: the model's config; it has adapters if these are trained.
      train: how it is trained; of phases without steps, in which dtypes it computes.
      total_steps: training steps; 0 if nothing is trained.
      seed: of the data order, fresh parameters, dropout and draws.
      loss: what a classifier minimises; None for language models and where nothing is trained.
      inputs: 'train', 'validation', 'test' -> name of a split.
      parents: 'init' (parameters to start from), 'features', 'head' (a probed one), 'labels' (weak
        labels) -> name of a phase; phases of kind 'labels' may have others.
      label_splits: the splits whose class probabilities the phase stores as weak labels, or whose
        features.
      select: the step that a student keeps is the best one by 'agreement' with its labels or by
        'ground_truth', evaluated every `eval_every` steps; '' keeps the last step.
      eval_every: steps between evaluations, or None.
      method: (name, options) of what makes the labels of a 'labels' phase.
      subset: number of training documents, where these are just the ones that have weak labels;
        None to train on the whole split.
      suffixed: whether each document is followed by the token of its weak label.
      num_texts: read-outs per document: 1, or 2 for pairs.
      head_init: how a class head starts: 'unembedding', 'zeros' or 'uniform'; '' without one.
      label_tokens: ids of the tokens that stand for the classes; () if there are none.
      num_classes: the number of classes of the task.
      streamed: whether the training text is read while it is used.
      data_digests: split -> sha256 of its tokenised contents, of those that matter.
      weights_digest: sha256 of the pretrained weights of the role's model, or None.
      labels_digest: sha256 of the file of external labels, if the phase reads it.
      completion: how the model completes prompts; None of tasks with classes.
      label_top_k: most probable tokens that are stored with each token of its completions.
      pairs: whether it learns which of two completions is better, of labels that are pairs.
      task: name of the task, whose functions judge its completions; '' of tasks with classes.
      label_sources: split -> the phase with the weak labels that this one learns and is evaluated
        by on the split; splits that are not listed have ground truth.
    """

    kind: str
    role: str
    label: str
    model: ModelConfig
    train: TrainSettings
    total_steps: int = 0
    seed: int = 0
    loss: LossSettings | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    label_splits: tuple[str, ...] = ()
    select: str = ""
    eval_every: int | None = None
    method: tuple[str, tuple[tuple[str, Any], ...]] | None = None
    subset: int | None = None
    suffixed: bool = False
    num_texts: int = 1
    head_init: str = ""
    label_tokens: tuple[int, ...] = ()
    num_classes: int = 2
    streamed: bool = False
    data_digests: Mapping[str, str] = field(default_factory=dict)
    weights_digest: str | None = None
    labels_digest: str | None = None
    completion: Completion | None = None
    label_top_k: int = 0
    pairs: bool = False
    task: str = ""
    label_sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def classifies(self) -> bool:
        """True if it trains a classifier, which has a head."""
        return self.loss is not None and self.completion is None

    @property
    def head_columns(self) -> int:
        """Columns of its class head: one for each class, or one for the reward of a text."""
        return 1 if self.num_texts > 1 else self.num_classes

    @property
    def num_parameters(self) -> int:
        """Parameters of its model without a head; of a model that is features, those of a head."""
        if self.model.is_features:
            return (self.model.d_model + self.train.head_bias) * self.head_columns
        return self.model.num_parameters()

    @property
    def looks_up_targets(self) -> bool:
        """True if its batches look soft labels up, and do not have them (`Bucket.targets_NC`).

        Heads on the features of a network keep the program that they have always had.
        """
        return self.model.is_features and self.num_classes > 2

    @property
    def targets(self) -> Literal["class", "tokens", "pairs"]:
        """What its training documents ask for (see `training.spec.StepSpec`)."""
        if self.completion is None or self.loss is None:
            return "class"
        return "pairs" if self.pairs else "tokens"

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that can change the phase's result, JSON-ready; written to config.json."""
        kind = PHASE_KINDS[self.kind]
        return {"semantics": kind.semantics, "kind": kind.name, **kind.spec(self)}

    @functools.cached_property
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
        return f"{kind_title(self.kind)} {self.label}".strip()
