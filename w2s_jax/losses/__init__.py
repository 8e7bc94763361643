"""Losses of weak-to-strong finetuning: pure functions of a batch of logits and soft targets.

Every loss has the signature

    loss(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None, **options)

and returns a float32 scalar: the weighted mean of the documents' terms. `targets_BC` are the soft
labels (column c is P(label c)), `step_fraction` = step / total steps from 0, `weights_B` a
non-negative weight for each document (None: all 1; a document of weight 0 takes no part in
anything), and `state` the memory of a loss that has one (None: empty). All compute in float32.
Values and gradients are finite for finite logits and labels in [0, 1]. `check_classes` refuses what
is not defined on more than two classes.

Letters in names: B documents of a batch, C classes, N documents of the training set, Q entries of
a buffer. `LOSSES` is the table of all losses, `register` adds one, and a loss is also an
attribute of this package (`losses.xent`). Importing it imports no JAX.

Of completions, a loss is a mean over target tokens (`tokens`, `token_losses`). `PREFERENCE_LOSSES`
compare two completions of a prompt (`preferences`); `register_preference` adds one.
"""

from w2s_jax.config.declarations import LOSSES, LossFn, PreferenceSpec, token_losses
from w2s_jax.config.declarations import PREFERENCES as PREFERENCE_LOSSES
from w2s_jax.config.declarations import LossSpec as Loss
from w2s_jax.losses.common import (
    hardened_share,
    linear_warmup,
    log_probabilities,
    quantile,
    soft_cross_entropy,
    weighted_mean,
)
from w2s_jax.losses.registry import check_classes, register, register_preference

__all__ = [
    "LOSSES",
    "PREFERENCE_LOSSES",
    "Loss",
    "LossFn",
    "PreferenceSpec",
    "check_classes",
    "hardened_share",
    "linear_warmup",
    "log_probabilities",
    "quantile",
    "register",
    "register_preference",
    "soft_cross_entropy",
    "token_losses",
    "weighted_mean",
]

LOSSES.load()
PREFERENCE_LOSSES.load()


def __getattr__(name: str) -> Loss | PreferenceSpec:
    if name in PREFERENCE_LOSSES:
        return PREFERENCE_LOSSES[name]
    if name in LOSSES:
        return LOSSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
