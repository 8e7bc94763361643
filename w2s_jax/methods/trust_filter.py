"""A trust model: where the supervisor errs, by its own last hidden state."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.core.errors import InputError
from w2s_jax.methods.activations import drop_suspicious, regress
from w2s_jax.methods.labels import kept_count
from w2s_jax.methods.registry import Students, register, require_full, require_validation
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork

# A class with fewer examples than this is too small to train a network on.
_MIN_CLASS = 5


def _trusted(work: "LabelWork", *, share: float) -> "Labels":
    """Labels without those that the trust model, fitted to validation documents, trusts least."""
    split = "validation"
    right_M = predicted_classes(work.labels(split)) == work.truth(split)
    trust_N = trust(work.features(split), right_M, work.features("slice2"), work.phase.seed)
    return work.of_some("slice2", drop_untrusted(trust_N, share))


@register(
    "trust_filter",
    label_makers={"trusted": _trusted},
    students="`+trust_filter`",
    summary="Without the documents on which a perceptron on the supervisor's last hidden state "
    "trusts it least. The perceptron learns from validation documents with ground truth: more "
    "ground truth than other methods use",
    share=Option(0.1, "Share of the documents that is dropped", above=0, below=1),
)
def trust_filter(planner: MethodPlanner, *, share: float) -> Students:
    """Students on the labels that a trust model trusts."""
    builder, weak = planner.builder, planner.naive.weak
    require_full(builder, "weak", "trust_filter")
    require_validation(builder, "trust_filter")
    parents = {"labels": weak, "features": builder.features("weak", {"init": weak})}
    labels = builder.labels("trusted", "weak", ("slice2",), parents, share=share)
    count = kept_count(planner.size("slice2"), 1 - share)
    return planner.students("trust_filter", labels, supervisor=weak, subset=count)


def trust(
    features_MD: np.ndarray, correct_M: np.ndarray, features_ND: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Return P(the supervisor is right) by a model of its last hidden state.

    The model is a network of one hidden layer (64 units, L2 of 10, as documents with ground truth
    are few) on standardized features. If the supervisor is right, or wrong, on fewer than 5
    documents, it is a logistic regression; if it is always right, or always wrong, a constant.

    Args:
      features_MD: the supervisor's hidden state at the end of documents with ground truth, which
        it was not trained on.
      correct_M: bool; whether it is right on them.
      features_ND: its hidden states for the documents to judge.
      seed: seed of the network's initialization and batches.

    Returns:
      float32 [N].

    Raises:
      InputError: for no document with ground truth.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    correct_M = np.asarray(correct_M, bool)
    if not len(correct_M):
        raise InputError("trust: at least one document needs ground truth")
    if min(correct_M.sum(), (~correct_M).sum()) < _MIN_CLASS:
        return regress(features_MD, correct_M.astype(np.float64), features_ND).astype(np.float32)
    network = MLPClassifier((64,), alpha=10.0, max_iter=100, random_state=seed)
    model = make_pipeline(StandardScaler(), network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features_MD, correct_M)
    return np.asarray(model.predict_proba(features_ND)[:, 1], np.float32)


def drop_untrusted(p_N: np.ndarray, share: float) -> np.ndarray:
    """Return a keep mask (bool [N]) without the share of the lowest `trust`."""
    return drop_suspicious(-np.asarray(p_N), share)
