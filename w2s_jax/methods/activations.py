"""Filters on activations: weak labels that the pretrained student's activations contradict.

The filters by nearest neighbours, by logistic regression and by topology are those that Burns et
al. 2023 (arXiv 2312.09390) try on a student's activations. The number of documents kept depends on
N and the share alone (`kept_count`), so that a plan knows the number of training steps before there
are any labels. In names also: K neighbours.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from w2s_jax.config.options import Option
from w2s_jax.core.errors import InputError, unknown
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods.labels import kept_count, probabilities_of
from w2s_jax.methods.registry import Students, register
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.planning.plan import MethodPlanner

if TYPE_CHECKING:
    from w2s_jax.phases.labelling import Labels, LabelWork

JUDGES = ("knn", "logistic", "topological")
_JUDGE = Option(
    "knn",
    "Judge of the labels: nearest neighbours, logistic regression, or a topological filter",
    choices=JUDGES,
)
_NEIGHBOURS = Option(50, "Neighbours of 'knn' and 'topological'", low=1)


def _filtered(work: "LabelWork", *, judge: str, share: float, neighbours: int) -> "Labels":
    """Labels without the most suspicious."""
    return work.of_some("slice2", drop_suspicious(_suspicion(work, judge, neighbours), share))


def _relabelled(work: "LabelWork", *, judge: str, share: float, neighbours: int) -> "Labels":
    """Labels of which the activations have replaced the most suspicious."""
    score_N = _suspicion(work, judge, neighbours)
    judged, soft_NC = _judged(work, judge, neighbours), work.labels("slice2")
    return work.of_all("slice2", relabel_suspicious(score_N, judged, soft_NC, share))


def _suspicion(work: "LabelWork", judge: str, k: int) -> np.ndarray:
    options: dict[str, Any] = {} if judge == "logistic" else {"k": k}
    return suspicious(judge, work.features("slice2"), work.labels("slice2"), **options)


def _judged(work: "LabelWork", judge: str, k: int) -> np.ndarray:
    """P(label 1), or probabilities of more classes, by the student's activations."""
    features_ND, soft_NC = work.features("slice2"), work.labels("slice2")
    if judge == "logistic":
        return logistic(features_ND, soft_NC, seed=work.phase.seed)
    return neighbours(features_ND, soft_NC, k=k)


@register(
    "probe_filter",
    label_makers={"filtered": _filtered},
    students="`+probe_filter`",
    summary="Without the documents whose weak labels the pretrained student's activations "
    "contradict most",
    source="Burns et al. 2023, appendix; 'topological': Wu et al. 2020",
    judge=_JUDGE,
    share=Option(0.1, "Share of the documents that is dropped", above=0, below=1),
    neighbours=_NEIGHBOURS,
)
def probe_filter(planner: MethodPlanner, **options: Any) -> Students:
    """Students on the labels that the activations do not contradict."""
    labels = with_features(planner, "filtered", **options)
    count = kept_count(planner.size("slice2"), 1 - options["share"])
    return planner.students("probe_filter", labels, supervisor=planner.naive.weak, subset=count)


@register(
    "probe_relabel",
    label_makers={"relabelled": _relabelled},
    students="`+probe_relabel`",
    summary="With the labels that the activations suggest for the documents that `probe_filter` "
    "drops",
    judge=_JUDGE,
    share=Option(0.1, "Share of the documents that is relabelled", above=0, below=1),
    neighbours=_NEIGHBOURS,
)
def probe_relabel(planner: MethodPlanner, **options: Any) -> Students:
    """Students on weak labels of which the activations have replaced some."""
    labels = with_features(planner, "relabelled", **options)
    return planner.students("probe_relabel", labels, supervisor=planner.naive.weak)


def with_features(planner: MethodPlanner, kind: str, **options: Any) -> str:
    """A 'labels' phase that has the weak labels and the strong model's features."""
    parents = {
        "labels": planner.naive.weak,
        "features": planner.builder.features("strong"),
    }
    return planner.builder.labels(kind, "strong", ("slice2",), parents, **options)


def _nearest(features_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Euclidean distances and indices [N, K] of the nearest others, nearest first."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(features_ND) - 1)
    if k < 1:
        raise InputError(
            f"k: {k} neighbours of {len(features_ND)} documents; allowed: at least 1 of 2"
        )
    finder = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features_ND)
    # Without an argument a document is not its own neighbour, even if it has a duplicate.
    distance_NK, index_NK = finder.kneighbors()
    return distance_NK, index_NK


def neighbours(features_ND: np.ndarray, soft_NC: np.ndarray, k: int = 50) -> np.ndarray:
    """Return the mean weak label of the k nearest other documents.

    Args:
      features_ND: activations; distances are Euclidean.
      soft_NC: weak labels.
      k: number of neighbours, at most N - 1.

    Returns:
      P(label 1), float32 [N]; of more than two classes float32 [N, C].
    """
    _, index_NK = _nearest(features_ND, k)
    return probabilities_of(soft_NC)[index_NK].mean(1).astype(np.float32)


def logistic(
    features_ND: np.ndarray, soft_NC: np.ndarray, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Return what logistic regressions predict that never saw the document's own weak label.

    Documents are cut into `folds` random parts. For each part a regression (L2, C = 1, on features
    standardized by its training documents) is fitted to the soft labels of the others, by
    cross-entropy. If those are all of one class, their mean label is predicted.

    Args:
      features_ND: activations.
      soft_NC: weak labels.
      folds: number of parts, at most N.
      seed: seed of the parts.

    Returns:
      P(label 1), float32 [N]; of more than two classes float32 [N, C].

    Raises:
      InputError: for fewer than two folds.
    """
    p = probabilities_of(soft_NC)
    folds = min(folds, len(p))
    if folds < 2:
        raise InputError(f"folds: {folds} for {len(p)} documents; allowed: at least 2 of 2")
    fold_N = np.random.default_rng(seed).permutation(len(p)) % folds
    out = np.zeros(p.shape, np.float32)
    fit = regress if p.ndim == 1 else regress_classes
    for fold in range(folds):
        held_N = fold_N == fold
        out[held_N] = fit(features_ND[~held_N], p[~held_N], features_ND[held_N])
    return out


def regress(features_MD: np.ndarray, p_M: np.ndarray, features_ND: np.ndarray) -> np.ndarray:
    """Return P(label 1) [N] of a regression on soft labels, with each document as a 1 and a 0."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    ones_M, zeros_M = p_M > 0, p_M < 1
    if not ones_M.any() or not zeros_M.any():
        return np.full(len(features_ND), p_M.mean())
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(
        np.concatenate([features_MD[ones_M], features_MD[zeros_M]]),
        np.repeat([1, 0], [ones_M.sum(), zeros_M.sum()]),
        standardscaler__sample_weight=np.concatenate([p_M[ones_M], 1 - p_M[zeros_M]]),
        logisticregression__sample_weight=np.concatenate([p_M[ones_M], 1 - p_M[zeros_M]]),
    )
    return np.asarray(model.predict_proba(features_ND)[:, 1])


def regress_classes(
    features_MD: np.ndarray, soft_MC: np.ndarray, features_ND: np.ndarray
) -> np.ndarray:
    """Return class probabilities [N, C] of a multinomial regression on soft labels.

    Each document counts as one of every class, weighted by the label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    document_P, class_P = np.nonzero(soft_MC)
    out_NC = np.zeros((len(features_ND), soft_MC.shape[1]))
    if len(np.unique(class_P)) < 2:
        return out_NC + soft_MC.mean(0)
    weights_P = soft_MC[document_P, class_P]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(
        features_MD[document_P],
        class_P,
        standardscaler__sample_weight=weights_P,
        logisticregression__sample_weight=weights_P,
    )
    out_NC[:, model.classes_] = model.predict_proba(features_ND)
    return out_NC


def _distance(soft_NC: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return the total variation distance of labels, [N]; |p - q| of two classes."""
    difference = np.abs(probabilities_of(soft_NC) - judged)
    return difference if difference.ndim == 1 else 0.5 * difference.sum(1)


def _by_neighbours(features_ND: np.ndarray, soft_NC: np.ndarray, k: int = 50) -> np.ndarray:
    return _distance(soft_NC, neighbours(features_ND, soft_NC, k))


def _by_logistic(
    features_ND: np.ndarray, soft_NC: np.ndarray, folds: int = 5, seed: int = 0
) -> np.ndarray:
    return _distance(soft_NC, logistic(features_ND, soft_NC, folds, seed))


def _by_topology(features_ND: np.ndarray, soft_NC: np.ndarray, k: int = 50) -> np.ndarray:
    """Wu et al. 2020, "A topological filter for learning with noisy labels"; see `suspicious`."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    label_N = predicted_classes(soft_NC)
    num = len(label_N)
    _, index_NK = _nearest(features_ND, k)
    rows, columns = np.repeat(np.arange(num), index_NK.shape[1]), index_NK.reshape(-1)
    same = label_N[rows] == label_N[columns]
    near_NN = csr_array((np.ones(same.sum()), (rows[same], columns[same])), shape=(num, num))
    _, component_N = connected_components(near_NN.multiply(near_NN.T), directed=False)
    size_N = np.bincount(component_N)[component_N]
    clean_N = np.zeros(num, bool)
    distance_N, relative_size_N = np.zeros(num), np.ones(num)
    for label in np.unique(label_N):
        members = np.flatnonzero(label_N == label)
        largest = component_N[members[np.argmax(size_N[members])]]
        clean = members[component_N[members] == largest]
        clean_N[clean] = True
        relative_size_N[members] = size_N[members] / len(clean)
        finder = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(features_ND[clean])
        distance_N[members] = finder.kneighbors(features_ND[members])[0][:, 0]
    other_N = (label_N[index_NK] != label_N[:, None]).mean(1)
    farthest = distance_N[~clean_N].max(initial=0) or 1.0
    return np.where(clean_N, other_N / 2, 1 + distance_N / farthest * (1 - relative_size_N))


#: Kind of filter -> (features, soft labels, options) -> score.
_SUSPICIONS: dict[str, Callable[..., np.ndarray]] = {
    "knn": _by_neighbours,
    "logistic": _by_logistic,
    "topological": _by_topology,
}


def suspicious(
    kind: str, features_ND: np.ndarray, soft_NC: np.ndarray, **options: Any
) -> np.ndarray:
    """Return how strongly the activations contradict each weak label; high is suspicious.

    Kinds:
      'knn' (option `k`, 50): |p - `neighbours`|; of more than two classes the total variation
        distance.
      'logistic' (options `folds`, 5, and `seed`, 0): the same with `logistic`.
      'topological' (option `k`, 50; Wu et al. 2020): documents are joined when each is among the
        other's k nearest and both have one weak class. The largest component of each class counts
        as clean: its documents score half the share of their neighbours in the other class, in
        [0, 1/2]. The others score in [1, 2]: 1 + d (1 - s), where d is the distance from the
        largest component of their class over that of the farthest document, and s the size of
        their component over that of the largest.

    Args:
      kind: see above.
      features_ND: activations.
      soft_NC: weak labels.
      **options: see above.

    Returns:
      float32 [N].

    Raises:
      InputError: for an unknown kind or option.
    """
    if kind not in _SUSPICIONS:
        raise unknown("kind", kind, _SUSPICIONS)
    score = _SUSPICIONS[kind]
    allowed = list(inspect.signature(score).parameters)[2:]
    for name in options:
        if name not in allowed:
            raise unknown(f"option of {kind!r}", name, allowed)
    return score(features_ND, soft_NC, **options).astype(np.float32)


def drop_suspicious(score_N: np.ndarray, share: float = 0.1) -> np.ndarray:
    """Return a keep mask (bool [N]) of the `kept_count(N, 1 - share)` lowest scores.

    Of equal scores the earlier is kept.
    """
    keep_N = np.zeros(len(score_N), bool)
    order_N = np.argsort(score_N, kind="stable")
    keep_N[order_N[: kept_count(len(score_N), 1 - share)]] = True
    return keep_N


def relabel_suspicious(
    score_N: np.ndarray, judged: np.ndarray, soft_NC: np.ndarray, share: float = 0.1
) -> np.ndarray:
    """Return soft labels, with `judged` for the documents that `drop_suspicious` would drop.

    Args:
      score_N: from `suspicious`.
      judged: the label by the activations, from `neighbours` or `logistic`.
      soft_NC: weak labels.
      share: share of the documents that is relabelled.
    """
    keep_N = drop_suspicious(score_N, share)
    judged = probabilities_of(judged)
    judged_NC = soft_labels(judged) if judged.ndim == 1 else judged.astype(np.float32)
    return np.where(keep_N[:, None], np.asarray(soft_NC, np.float32), judged_NC)
