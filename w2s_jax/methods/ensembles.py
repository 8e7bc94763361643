"""Several supervisors as one: bagging and AdaBoost over weak models.

Shapes in names: N documents, m members.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from w2s_jax.core.errors import InputError
from w2s_jax.methods.labels import log_odds, p_of, soft_labels

# Probabilities and error rates stay this far from 0 and 1, so that logarithms are finite.
CLIP = 1e-6


def resample(num: int, seed: int) -> np.ndarray:
    """A bootstrap sample: int64 [N], `num` of the indices below `num` drawn with replacement."""
    return np.random.default_rng(seed).integers(num, size=num)


def _members(members: Sequence[ArrayLike], weights: ArrayLike | None) -> tuple[np.ndarray, ...]:
    """P(label 1) [m, N] and weights [m]."""
    if not len(members):
        raise InputError("ensemble: no members; allowed: at least one")
    p_mN = np.stack([p_of(member) for member in members])
    weights_m = np.ones(len(p_mN)) if weights is None else np.asarray(weights, np.float64)
    if weights_m.shape != (len(p_mN),):
        raise ValueError(f"weights: expected shape ({len(p_mN)},), got {weights_m.shape}")
    return p_mN, weights_m


def mean_logits(members: Sequence[ArrayLike], weights: ArrayLike | None = None) -> np.ndarray:
    """Soft labels whose log-odds are the (weighted) mean of the members'.

    Args:
      members: of each supervisor its soft labels [N, 2], or its P(label 1) [N].
      weights: of each, over the sum of their magnitudes (a weight below 0, AdaBoost's for what is
        worse than chance, turns a member round); None: all equal.

    Returns:
      float32 [N, 2].

    Raises:
      InputError: no members, or weights that are all 0.
    """
    p_mN, weights_m = _members(members, weights)
    total = np.abs(weights_m).sum()
    if not total > 0:
        raise InputError(f"weights: {weights_m.tolist()}; allowed: at least one other than 0")
    return _from_log_odds((weights_m / total) @ log_odds(p_mN, CLIP))


def adaboost_round(weights_N: ArrayLike, wrong_N: ArrayLike) -> tuple[float, np.ndarray]:
    """A round of discrete AdaBoost (Freund & Schapire 1997) for two classes.

    With e the weighted error rate (clipped to [1e-6, 1 - 1e-6]), alpha = 1/2 ln((1 - e) / e); the
    weights of wrong documents grow by e^alpha, those of the others shrink by e^-alpha.

    Args:
      weights_N: weights of the documents, none negative, of any sum.
      wrong_N: bool; where the member trained with them is wrong.

    Returns:
      alpha, and the next weights, float64 [N] of sum 1.
    """
    weights_N, wrong_N = np.asarray(weights_N, np.float64), np.asarray(wrong_N, bool)
    error = float(np.clip(weights_N[wrong_N].sum() / weights_N.sum(), CLIP, 1 - CLIP))
    alpha = 0.5 * math.log((1 - error) / error)
    weights_N = weights_N * np.exp(np.where(wrong_N, alpha, -alpha))
    return alpha, weights_N / weights_N.sum()


def vote(members: Sequence[ArrayLike], alphas: ArrayLike) -> np.ndarray:
    """The members' weighted vote as soft labels.

    With F = sum of alpha * (+1 where a member predicts 1, else -1), P(label 1) = sigmoid(2 F), what
    AdaBoost estimates (Friedman, Hastie & Tibshirani 2000).

    Args:
      members: as in `mean_logits`.
      alphas: of each, from `adaboost_round`.

    Returns:
      float32 [N, 2].

    Raises:
      InputError: no members.
    """
    p_mN, alphas_m = _members(members, alphas)
    return _from_log_odds(2 * (alphas_m @ np.where(p_mN > 0.5, 1.0, -1.0)))


def _from_log_odds(log_odds_N: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return soft_labels(expit(log_odds_N))
