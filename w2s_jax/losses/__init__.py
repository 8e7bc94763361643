"""Losses of weak-to-strong finetuning: pure functions of a batch of logits and soft targets.

Every loss has the signature

    loss(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None, **options)

and returns a float32 scalar: the weighted mean of the documents' terms. `targets_BC` are the soft
labels (column 1 is P(label 1)), `step_fraction` = step / total steps from 0, `weights_B` a
non-negative weight for each document (None: all 1; a document of weight 0 takes no part in
anything), and `state` the memory of a loss that has one (None: empty). All compute in float32, for
two classes. Values and gradients are finite for finite logits and labels in [0, 1].

Letters in names: B documents of a batch, C = 2 classes, N documents of the training set, Q entries
of a buffer. `LOSSES` is the table of all losses, `register` adds one, and a loss is also an
attribute of this package (`losses.xent`). Importing it imports no JAX.
"""

from w2s_jax.config.declarations import LOSSES, LossFn
from w2s_jax.config.declarations import LossSpec as Loss
from w2s_jax.losses.common import (
    hardened_share,
    linear_warmup,
    log_probabilities,
    quantile,
    soft_cross_entropy,
    weighted_mean,
)
from w2s_jax.losses.registry import register

__all__ = [
    "LOSSES",
    "Loss",
    "LossFn",
    "hardened_share",
    "linear_warmup",
    "log_probabilities",
    "quantile",
    "register",
    "soft_cross_entropy",
    "weighted_mean",
]

LOSSES.load()


def __getattr__(name: str) -> Loss:
    if name in LOSSES:
        return LOSSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
