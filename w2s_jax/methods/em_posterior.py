"""The posterior of the truth, given a weak label and the prediction of a base model.

The model. Each document has a base model's margin m (its log-odds of label 1 against label 0, on
any scale), and the weak model's P(label 1) = p, that is a label w = 1[p > 1/2] of certainty
s = |log(p / (1 - p))|. The truth y is hidden, and

  prior     P(y = 1 | m)          = sigmoid(a m + b)      Platt scaling of the margin
  channel   P(w = 1 | y = 1, s)   = sigmoid(c1 s + d1)    rate of true positives
            P(w = 1 | y = 0, s)   = sigmoid(c0 s + d0)    rate of false positives

with w independent of m given y and s. Expectation-maximisation alternates between fitting the six
parameters to responsibilities r = P(y = 1 | m, w, s) (three logistic regressions, of weights 1, r
and 1 - r) and computing the responsibilities,

  log odds r = a m + b + log P(w | y = 1, s) - log P(w | y = 0, s).

It starts from r = 1/2 p + 1/2 sigmoid(a m + b), the prior fitted to the weak labels: from p alone,
hard labels would be their own fixed point, and from the prior alone an uninformative margin would
drown the labels.

Numerically: certainties stay below 6 (p = .9975) and rates in [.01, .99], so no single label can
outweigh every margin; slopes are shrunk as by one observation, which makes the fits unique for
constant certainties (hard labels: one rate for each class) and separable margins.
"""

from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods.activations import logistic, with_features
from w2s_jax.methods.labels import log_odds, p_of
from w2s_jax.methods.registry import Students, register
from w2s_jax.planning.plan import MethodPlanner

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork

_MAX_CERTAINTY = 6.0
_RATE_CLIP = 0.01
#: The base model's probabilities are at least this far from 0 and 1.
_CLIP = 1e-6


def _corrected(work: "LabelWork", *, rounds: int) -> "Labels":
    """The posterior of the true labels, under a prior from the student's activations."""
    soft_NC = work.labels("slice2")
    p_N = logistic(work.features("slice2"), soft_NC, seed=work.phase.seed)
    p_N = np.clip(p_N, _CLIP, 1 - _CLIP)
    margin_N = np.log(p_N) - np.log1p(-p_N)
    return work.of_all("slice2", posterior(margin_N, soft_NC, rounds=rounds))


@register(
    "em_posterior",
    label_makers={"em_posterior": _corrected},
    two_classes=True,
    students="`+em_posterior`",
    summary="The student learns the posterior of the true labels: error rates that depend on the "
    "supervisor's confidence, a prior from a cross-fitted probe of the student's activations, EM",
    rounds=Option(2, "Rounds of EM", low=1),
)
def em_posterior(planner: MethodPlanner, *, rounds: int) -> Students:
    """Students on labels that a model of the supervisor's errors has corrected."""
    labels = with_features(planner, "em_posterior", rounds=rounds)
    return planner.students("em_posterior", labels, supervisor=planner.naive.weak)


def posterior(margin_N: np.ndarray, soft_NC: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Return soft labels float32 [N, 2]: P(y | margin, weak label) after `rounds` rounds of EM.

    Args:
      margin_N: the base model's log-odds of label 1, finite, on any scale and of either sign.
      soft_NC: weak labels.
      rounds: number of M-steps and E-steps; 0 gives the start.

    Raises:
      ValueError: for shapes that differ, or a margin that is not finite.
    """
    from scipy.special import expit

    margin_N, p_N = np.asarray(margin_N, np.float64), p_of(soft_NC)
    if margin_N.shape != p_N.shape or not np.isfinite(margin_N).all():
        raise ValueError(
            f"margin_N: expected {p_N.shape} finite numbers, got shape {margin_N.shape} with "
            f"{np.count_nonzero(~np.isfinite(margin_N))} that are not finite"
        )
    weak_N = (p_N > 0.5).astype(np.float64)
    certainty_N = np.abs(log_odds(p_N, 1e-9)).clip(max=_MAX_CERTAINTY)
    ones_N = np.ones(len(p_N))
    posterior_N = 0.5 * p_N + 0.5 * expit(_fitted(margin_N, p_N, ones_N))
    for _ in range(rounds):
        prior_N = _fitted(margin_N, posterior_N, ones_N)
        true_N, false_N = (
            expit(_fitted(certainty_N, weak_N, weights_N)).clip(_RATE_CLIP, 1 - _RATE_CLIP)
            for weights_N in (posterior_N, 1 - posterior_N)
        )
        ratio_N = np.where(weak_N > 0, true_N / false_N, (1 - true_N) / (1 - false_N))
        posterior_N = expit(prior_N + np.log(ratio_N))
    return soft_labels(posterior_N)


def _fitted(x_N: np.ndarray, target_N: np.ndarray, weights_N: np.ndarray) -> np.ndarray:
    """Return the log-odds [N] of a logistic regression on one variable, fitted to soft targets.

    It is Newton's method on the weighted cross-entropy with a penalty of half the squared slope (of
    the standardized variable) and a small one on the intercept, which bounds it where all targets
    are equal.
    """
    from scipy.special import expit

    std = x_N.std()
    z_N = (x_N - x_N.mean()) / (std if std > 1e-9 * max(1.0, np.abs(x_N).max()) else 1.0)
    design_N2 = np.stack([z_N, np.ones_like(z_N)], axis=1)
    penalty_2 = np.array([1.0, 1e-3])
    parameters_2 = np.zeros(2)
    for _ in range(100):
        p_N = expit(design_N2 @ parameters_2)
        gradient_2 = design_N2.T @ (weights_N * (p_N - target_N)) + penalty_2 * parameters_2
        curvature_N = weights_N * p_N * (1 - p_N)
        hessian_22 = (design_N2 * curvature_N[:, None]).T @ design_N2 + np.diag(penalty_2)
        step_2 = np.linalg.solve(hessian_22, gradient_2)
        parameters_2 = parameters_2 - step_2
        if np.abs(step_2).max() < 1e-9:
            break
    return design_N2 @ parameters_2
