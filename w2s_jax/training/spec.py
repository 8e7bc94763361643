"""The specification of a training step: what its program is compiled for, and hyperparameters.

Phases that differ only in hyperparameters (learning rates and their schedule, length of training,
weight decay, rates of dropout and averaging, seeds, numeric options of losses) share one compiled
program, which takes them as arguments.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from w2s_jax.config import LossSpec, PreferenceSpec, TrainSettings
from w2s_jax.losses import LOSSES, PREFERENCE_LOSSES
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.batches import BatchExtras
from w2s_jax.training.optimizer import decoupled_weight_decay, learning_rates
from w2s_jax.training.state import rounded_up

#: Settings for which a program is compiled. The others are hyperparameters, determine shapes, or do
#: not concern the step.
_STATIC = (
    "optimizer",
    "beta1",
    "beta2",
    "clip_norm",
    "compute_dtype",
    "param_dtype",
    "remat",
    "adapt",
    "last_layers",
    "head_bias",
)


@dataclass(frozen=True)
class StepSpec:
    """The specification of a model's training steps.

    Attributes:
      model: the model, with the vocabulary on which it is trained.
      train: optimiser, dtypes, and what of the model is trained.
      total_steps: number of steps.
      loss: (kind, options) of the loss; None for language-model training.
      columns: of the class head (see `heads.init_class_head`).
      targets: what the loss is of: 'class' (soft labels of classes), 'tokens' (completions:
        the target tokens of documents) or 'pairs' (pairs of completions, by a loss of
        `PREFERENCE_LOSSES`).
      seed: seed of everything random within a step.
    """

    model: ModelConfig
    train: TrainSettings
    total_steps: int
    loss: tuple[str, tuple[tuple[str, Any], ...]] | None
    columns: int = 2
    seed: int = 0
    targets: str = "class"

    @property
    def head_columns(self) -> int | None:
        """Columns of the class head; None of models without one, which predict tokens."""
        return None if self.loss is None or self.targets != "class" else self.columns

    @property
    def declaration(self) -> LossSpec | PreferenceSpec | None:
        """The declaration of the loss as it is computed; None for language-model training."""
        return None if self.loss is None else self._declared(self._loss(traced=False)[0])

    def program_key(self) -> "StepSpec":
        """Return the part of the spec that a program is compiled for: equal keys, one program."""
        static = {name: getattr(self.train, name) for name in _STATIC}
        if static["optimizer"] == "adamw":
            static["optimizer"] = "adam"
        # The program depends only on whether they are on.
        static |= {name: float(getattr(self.train, name) > 0) for name in ("dropout", "ema")}
        return dataclasses.replace(
            self,
            train=TrainSettings(**static),
            total_steps=1,
            loss=None if self.loss is None else self._loss(traced=False),
            seed=0,
        )

    def hyperparameters(self) -> "Hyperparameters":
        """Return the hyperparameters that the program takes, on the host.

        Raises:
          InputError: if a learning rate or the weight decay is out of range.
        """
        train = self.train
        rate_S = learning_rates(train, self.total_steps)
        missing = rounded_up(self.total_steps) - self.total_steps
        options = {} if self.loss is None else dict(self._loss(traced=True)[1])
        average_S = average_weights(train.ema, self.total_steps)
        random = train.dropout > 0 or train.param_dtype == "bfloat16"
        return Hyperparameters(
            rate_S=np.pad(rate_S, (0, missing)),
            total_steps=np.float32(self.total_steps),
            weight_decay=np.float32(decoupled_weight_decay(train)),
            loss_options={name: np.float32(value) for name, value in options.items()},
            average_S=np.pad(average_S, (0, missing)) if train.ema > 0 else None,
            dropout=np.float32(train.dropout) if train.dropout > 0 else None,
            seed=np.uint32(self.seed) if random else None,
        )

    @property
    def extras(self) -> BatchExtras:
        """What batches need to have for the step."""
        text_ids, loss = self.train.dropout > 0, self.declaration
        if isinstance(loss, PreferenceSpec):
            return BatchExtras(text_ids, targets=self.targets, reference=loss.uses_reference)
        if loss is not None and self.targets == "tokens":
            return BatchExtras(text_ids, targets=self.targets, rows=loss.top_k_labels)
        return BatchExtras(text_ids, update_order=loss is not None and loss.update is not None)

    def loss_state(self, targets_NC: np.ndarray) -> Any:
        """Return the initial state of the loss; () if it has none.

        Args:
          targets_NC: float32 soft labels of all training documents.
        """
        if self.loss is None or self.targets != "class":
            return ()
        kind, static = self._loss(traced=False)
        init_state = LOSSES[kind].init_state
        if init_state is None:
            return ()
        return init_state(targets_NC, **dict(static), **dict(self._loss(traced=True)[1]))

    def _loss(self, *, traced: bool) -> tuple[str, tuple[tuple[str, Any], ...]]:
        """Return the kind of the loss and its traced, or its other, options.

        Where the batch is one microbatch, a special case is computed as the general loss.
        """
        assert self.loss is not None
        kind, options = self.loss[0], dict(self.loss[1])
        if self.targets == "class":
            kind, options = self._general(kind, options)
        declared = self._declared(kind)
        options = declared.defaults | options
        if isinstance(declared, LossSpec) and self.targets == "tokens":
            options = {name: options[name] for name in declared.token_options}
        chosen = {k: v for k, v in options.items() if (k in declared.traced) == traced}
        return kind, tuple(sorted(chosen.items()))

    def _general(self, kind: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the loss of classes as which a loss is computed."""
        micro = self.train.microbatch_size or self.train.batch_size
        case_of = LOSSES[kind].case_of
        # Of more classes, hard labels cost more than a program of its own.
        if case_of is not None and micro == self.train.batch_size and self.columns <= 2:
            return case_of[0], dict(case_of[1])
        return kind, options

    def _declared(self, kind: str) -> LossSpec | PreferenceSpec:
        return PREFERENCE_LOSSES[kind] if self.targets == "pairs" else LOSSES[kind]


def average_weights(decay: float, total_steps: int) -> np.ndarray:
    """Return the weight of each step's parameters in the average so far, float32 [S].

    average_t = (1 - w_t) average_(t-1) + w_t params_t with w_t = (1 - decay) / (1 - decay^t): the
    exponential moving average, debiased (as Adam's moments: Kingma and Ba 2015, section 3). The
    average after t steps weighs the parameters after step i by decay^(t - i); the initial
    parameters have weight 0.
    """
    power_S = np.float64(decay) ** np.arange(1, total_steps + 1)
    return ((1 - decay) / (1 - power_S)).astype(np.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hyperparameters:
    """The numbers that a step program takes as arguments; float32 unless noted.

    Attributes:
      rate_S: learning rate of each step; 0 after the last one.
      total_steps: number of steps, of which `step_fraction` is the share done.
      weight_decay: decoupled weight decay (AdamW); 0 for other optimisers.
      loss_options: the options of the loss that are in its `traced`.
      average_S: see `average_weights`; None without an average.
      dropout: dropout rate; None without dropout.
      seed: uint32; None if nothing is random.
    """

    rate_S: Any
    total_steps: Any
    weight_decay: Any
    loss_options: dict[str, Any]
    average_S: Any = None
    dropout: Any = None
    seed: Any = None
