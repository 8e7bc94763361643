"""Soft labels, probabilities and counts that several methods use."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from w2s_jax.core.errors import InputError


def p_of(soft: ArrayLike) -> NDArray[np.float64]:
    """Return P(label 1), float64 [N], from soft labels [N, 2] or from P(label 1) [N] itself.

    Raises:
      ValueError: for another shape, or a probability outside [0, 1] (or NaN).
    """
    values: NDArray[Any] = np.asarray(soft, np.float64)
    if values.ndim == 2 and values.shape[1] == 2:
        values = values[:, 1]
    if values.ndim != 1:
        raise ValueError(f"soft labels: expected shape [N, 2] or [N], got {values.shape}")
    # A float32 softmax may leave [0, 1] by a rounding error; anything more is a mistake.
    if not np.all((values >= -1e-6) & (values <= 1 + 1e-6)):
        raise ValueError("soft labels: probabilities must be finite and in [0, 1]")
    return values.clip(0.0, 1.0)


def probabilities_of(soft: ArrayLike) -> NDArray[np.float64]:
    """Return probabilities of more than two classes, float64 [N, C], and else `p_of`.

    Raises:
      ValueError: as `p_of`.
    """
    values_NC: NDArray[Any] = np.asarray(soft, np.float64)
    if values_NC.ndim != 2 or values_NC.shape[1] <= 2:
        return p_of(values_NC)
    if not np.all((values_NC >= -1e-6) & (values_NC <= 1 + 1e-6)):
        raise ValueError("soft labels: probabilities must be finite and in [0, 1]")
    return values_NC.clip(0.0, 1.0)


def confidence_of(soft: ArrayLike) -> NDArray[np.float64]:
    """Return how far the largest probability is above 1 / C, float64 [N]."""
    values = probabilities_of(soft)
    # Of two classes |p - 1/2|, which is the same for p and 1 - p after rounding.
    return np.abs(values - 0.5) if values.ndim == 1 else values.max(1) - 1 / values.shape[1]


def log_odds(p_N: ArrayLike, clip: float) -> NDArray[np.float64]:
    """Return log(p / (1 - p)), float64, of probabilities clipped to [clip, 1 - clip]."""
    values_N = np.clip(np.asarray(p_N, np.float64), clip, 1 - clip)
    return np.log(values_N) - np.log1p(-values_N)


def kept_count(num: int, share: float) -> int:
    """Return the number of documents in a share of `num`: rounded, at least 2 (or all of fewer).

    Raises:
      InputError: for a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"share: {share}; allowed: from 0 to 1")
    return min(num, max(2, round(num * share)))
