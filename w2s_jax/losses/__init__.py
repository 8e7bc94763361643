"""Losses of weak-to-strong finetuning: pure functions of a batch of logits and soft targets.

Every loss has the signature

    loss(logits_BC, targets_BC, step_fraction, *, weights_B=None, state=None, **options)

and returns a float32 scalar: the weighted mean of the documents' terms. `targets_BC` are the soft
labels (column 1 is P(label 1)), `step_fraction` = step / total steps from 0, `weights_B` a
non-negative weight for each document (None: all 1; a document of weight 0 takes no part in
anything), and `state` what a loss with a memory keeps (None: nothing yet). All compute in float32,
for two classes. Values and gradients are finite for finite logits and labels in [0, 1].

Letters in names: B documents of a batch, C = 2 classes, N documents of the training set, Q entries
of a buffer. `registry` says what is stored of a loss, and `register` adds one.
"""

from w2s_jax.losses.buffered import buffered_confidence, soft_buffered_confidence
from w2s_jax.losses.common import (
    hardened_share,
    linear_warmup,
    log_probabilities,
    quantile,
    soft_cross_entropy,
    weighted_mean,
)
from w2s_jax.losses.cross_entropy import xent
from w2s_jax.losses.registry import LOSSES, Loss, LossFn, register
from w2s_jax.losses.robust import cace, generalized_xent, kl, reverse_kl, reverse_xent
from w2s_jax.losses.self_training import (
    adaptive_confidence,
    confidence,
    entropy,
    l2_confidence,
    logconf,
    product,
)
from w2s_jax.losses.windowed import window

__all__ = [
    "LOSSES",
    "Loss",
    "LossFn",
    "adaptive_confidence",
    "buffered_confidence",
    "cace",
    "confidence",
    "entropy",
    "generalized_xent",
    "hardened_share",
    "kl",
    "l2_confidence",
    "linear_warmup",
    "log_probabilities",
    "logconf",
    "product",
    "quantile",
    "register",
    "reverse_kl",
    "reverse_xent",
    "soft_buffered_confidence",
    "soft_cross_entropy",
    "weighted_mean",
    "window",
    "xent",
]
