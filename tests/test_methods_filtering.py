"""Filters of weak labels against brute force and planted structures."""

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.methods.activations import (
    drop_suspicious,
    logistic,
    neighbours,
    relabel_suspicious,
    suspicious,
)
from w2s_jax.methods.confidence_threshold import most_confident
from w2s_jax.methods.labels import kept_count, soft_labels
from w2s_jax.methods.trust_filter import drop_untrusted, trust


def planted(seed=0, num=400, dim=8, wrong_share=0.1):
    """Two blobs, one for each class, with soft labels of which some are wrong."""
    rng = np.random.default_rng(seed)
    truth_N = rng.random(num) < 0.5
    features_ND = rng.normal(size=(num, dim)) + np.where(truth_N, 2.5, -2.5)[:, None]
    wrong_N = np.zeros(num, bool)
    wrong_N[rng.choice(num, round(wrong_share * num), replace=False)] = True
    confidence_N = rng.uniform(0.7, 1, num)
    p_N = np.where(truth_N ^ wrong_N, confidence_N, 1 - confidence_N)
    return features_ND.astype(np.float32), soft_labels(p_N), truth_N, wrong_N


def test_the_number_kept_is_rounded_at_least_two_and_at_most_all():
    assert [kept_count(10, s) for s in (0, 0.1, 0.26, 0.5, 0.9, 1)] == [2, 2, 3, 5, 9, 10]
    assert (kept_count(1, 0.1), kept_count(0, 0.5), kept_count(1001, 0.9)) == (1, 0, 901)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"share: .*; allowed: from 0 to 1"):
            kept_count(10, share)


def most_confident_by_loop(p_N, kept):
    """Sorts tuples; takes from each class its share."""
    classes = {c: [i for i, p in enumerate(p_N) if (p > 0.5) == c] for c in (False, True)}
    ones = int(np.floor(kept * len(classes[True]) / len(p_N) + 0.5))
    chosen = set()
    for label, count in ((True, ones), (False, kept - ones)):
        ranked = sorted(classes[label], key=lambda i: (-max(p_N[i], 1 - p_N[i]), i))
        chosen |= set(ranked[:count])
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.05, 0.33, 0.5, 1.0])
def test_most_confident_keeps_the_top_of_each_class_in_proportion(seed, share):
    rng = np.random.default_rng(seed)
    p_N = np.round(rng.beta(1 + seed, 2, size=101) * 16) / 16  # exact, with many ties
    keep_N = most_confident(soft_labels(p_N), share)
    assert keep_N.dtype == bool and keep_N.sum() == kept_count(101, share)
    assert set(np.flatnonzero(keep_N)) == most_confident_by_loop(p_N, kept_count(101, share))


def test_most_confident_where_only_one_class_is_predicted():
    keep_N = most_confident(soft_labels([0.1, 0.4, 0.5, 0.2]), 0.5)
    assert keep_N.tolist() == [True, False, False, True]


def test_neighbours_are_those_of_brute_force():
    features_ND, soft_NC, _, _ = planted(num=60)
    features_ND[7] = features_ND[3]  # a double is a neighbour, the document itself is not
    for k in (1, 5, 59, 200):
        expected = []
        for i in range(60):
            distance = [np.sum((features_ND[i] - features_ND[j]) ** 2.0) for j in range(60)]
            others = sorted((j for j in range(60) if j != i), key=lambda j: distance[j])
            expected.append(np.mean([soft_NC[j, 1] for j in others[:k]]))
        p_N = neighbours(features_ND, soft_NC, k)
        np.testing.assert_allclose(p_N, expected, atol=1e-6)
        assert p_N.dtype == np.float32
    assert neighbours(features_ND, soft_NC, 1)[7] == soft_NC[3, 1]
    with pytest.raises(InputError, match="neighbours"):
        neighbours(features_ND[:1], soft_NC[:1])


def test_logistic_never_learns_from_a_documents_own_label():
    features_ND, soft_NC, truth_N, wrong_N = planted()
    p_N = logistic(features_ND, soft_NC, 5, seed=3)
    assert np.mean((p_N > 0.5) == truth_N) > 0.99 and wrong_N.sum() == 40
    # Another label for document 5 changes the others' predictions in other parts, not its own.
    changed_NC = soft_NC.copy()
    changed_NC[5] = changed_NC[5, ::-1]
    again_N = logistic(features_ND, changed_NC, 5, seed=3)
    assert again_N[5] == p_N[5] and np.sum(again_N != p_N) >= 300
    assert logistic(features_ND[:20], soft_NC[:20], folds=50).shape == (20,)
    with pytest.raises(InputError, match="folds: 1"):
        logistic(features_ND, soft_NC, folds=1)


def test_logistic_learns_from_soft_labels_as_from_repeated_hard_ones():
    from sklearn.linear_model import LogisticRegression

    from w2s_jax.methods.activations import regress

    rng = np.random.default_rng(0)
    features_ND = rng.normal(size=(40, 3))
    p_N = rng.integers(0, 5, 40) / 4
    # Four copies of each document, of which 4 p have label 1, with a quarter of the weight each.
    labels = np.concatenate([[1] * round(4 * p) + [0] * round(4 - 4 * p) for p in p_N])
    scaled_ND = (features_ND - features_ND.mean(0)) / features_ND.std(0)
    reference = LogisticRegression(C=0.25, tol=1e-8).fit(np.repeat(scaled_ND, 4, axis=0), labels)
    ours_N = regress(features_ND, p_N, features_ND)
    np.testing.assert_allclose(ours_N, reference.predict_proba(scaled_ND)[:, 1], atol=1e-3)


def test_labels_of_one_class_give_a_constant():
    features_ND, _, _, _ = planted(num=30)
    assert logistic(features_ND, soft_labels(np.ones(30))).tolist() == [1.0] * 30
    assert logistic(features_ND, soft_labels(np.zeros(30))).tolist() == [0.0] * 30


@pytest.mark.parametrize("kind", ["knn", "logistic", "topological"])
def test_suspicion_finds_planted_wrong_labels(kind):
    features_ND, soft_NC, truth_N, wrong_N = planted()
    score_N = suspicious(kind, features_ND, soft_NC)
    assert score_N.shape == (400,) and score_N.dtype == np.float32
    keep_N = drop_suspicious(score_N, 0.1)
    assert keep_N.sum() == 360
    assert np.mean(wrong_N[~keep_N]) >= 0.95
    p_N = neighbours(features_ND, soft_NC, 20)
    relabelled_NC = relabel_suspicious(score_N, p_N, soft_NC, 0.1)
    assert relabelled_NC.dtype == np.float32
    np.testing.assert_array_equal(relabelled_NC[keep_N], soft_NC[keep_N])
    np.testing.assert_allclose(relabelled_NC[~keep_N, 1], p_N[~keep_N])
    assert np.mean((relabelled_NC[:, 1] > 0.5) == truth_N) >= 0.99 > np.mean(~wrong_N)


def test_suspicion_is_the_distance_from_the_weak_probability():
    features_ND, soft_NC, _, _ = planted(num=50)
    for kind, p_N in (
        ("knn", neighbours(features_ND, soft_NC, 7)),
        ("logistic", logistic(features_ND, soft_NC, 3, 9)),
    ):
        options = {"k": 7} if kind == "knn" else {"folds": 3, "seed": 9}
        score_N = suspicious(kind, features_ND, soft_NC, **options)
        np.testing.assert_allclose(score_N, np.abs(soft_NC[:, 1] - p_N), atol=1e-6)


def components_by_flood(features_ND, label_N, k):
    """Mutual nearest neighbours of one label, flooded."""
    num = len(label_N)
    distance_NN = np.linalg.norm(features_ND[:, None] - features_ND[None], axis=2)
    np.fill_diagonal(distance_NN, np.inf)
    near = [set(np.argsort(distance_NN[i])[:k]) for i in range(num)]
    parts, seen = [], set()
    for i in range(num):
        if i in seen:
            continue
        part, todo = set(), [i]
        while todo:
            j = todo.pop()
            if j in part:
                continue
            part.add(j)
            todo += [m for m in near[j] if j in near[m] and label_N[m] == label_N[j]]
        parts.append(part)
        seen |= part
    return parts, near, distance_NN


def test_topology_scores_follow_their_definition():
    features_ND, soft_NC, _, wrong_N = planted(num=80, wrong_share=0.2)
    label_N = soft_NC[:, 1] > 0.5
    parts, near, distance_NN = components_by_flood(features_ND, label_N, 4)
    np.fill_diagonal(distance_NN, 0)
    score_N = suspicious("topological", features_ND, soft_NC, k=4)
    away = {}
    for label in (False, True):
        own = [part for part in parts if label_N[min(part)] == label]
        largest = max(own, key=lambda part: (len(part), -min(part)))
        for part in own:
            for i in part:
                if part is largest:
                    other = np.mean([label_N[j] != label for j in near[i]])
                    assert score_N[i] == pytest.approx(other / 2) and score_N[i] <= 0.5
                else:
                    away[i] = distance_NN[i, sorted(largest)].min(), len(part) / len(largest)
    farthest = max(distance for distance, _ in away.values())
    for i, (distance, size) in away.items():
        assert score_N[i] == pytest.approx(1 + distance / farthest * (1 - size), rel=1e-5)
    assert len(away) >= wrong_N.sum() and len(parts) > 4


def test_topology_finds_a_mislabelled_cluster_that_neighbours_miss():
    # A cluster of its own inside the other class's half of the space, all with the wrong label:
    # each one's neighbours agree with it, but it hangs together with nothing of its class.
    rng = np.random.default_rng(1)
    features_ND = np.concatenate(
        [rng.normal(size=(150, 4)) - 4, rng.normal(size=(150, 4)) + 4, rng.normal(size=(30, 4)) / 4]
    )
    features_ND[300:] += [4, 4, 12, 4]
    label_N = np.repeat([0.0, 1.0, 0.0], [150, 150, 30])
    score = {
        kind: suspicious(kind, features_ND, soft_labels(label_N), k=10)
        for kind in ("topological", "knn")
    }
    keep_N = drop_suspicious(score["topological"], 30 / 330)
    np.testing.assert_array_equal(keep_N, np.arange(330) < 300)
    assert not score["knn"].any()


def test_unknown_kinds_and_options_of_suspicion_are_refused():
    features_ND, soft_NC, _, _ = planted(num=20)
    with pytest.raises(InputError, match=r"kind: unknown value 'kn' \(did you mean 'knn'\?\)"):
        suspicious("kn", features_ND, soft_NC)
    with pytest.raises(InputError, match=r"option of 'logistic': .*'fold' .*allowed: folds, seed"):
        suspicious("logistic", features_ND, soft_NC, fold=3)


def test_of_equal_scores_the_earlier_stays():
    assert drop_suspicious(np.zeros(6), 0.5).tolist() == [True] * 3 + [False] * 3
    assert drop_suspicious(np.array([3, 1, 2, 0]), 0.5).tolist() == [False, True, False, True]
    assert drop_untrusted(np.array([0.9, 0.2, 0.9]), 0.3).tolist() == [True, False, True]
    assert drop_untrusted(np.array([0.9, 0.9, 0.9]), 0.3).tolist() == [True, True, False]


def supervision(num, seed, dim=16):
    """Hidden states, and whether the supervisor is right: in a region that is no half-space."""
    features_ND = np.random.default_rng(seed).normal(size=(num, dim))
    return features_ND.astype(np.float32), np.abs(features_ND[:, 0]) < 1.1


def test_trust_learns_where_the_supervisor_is_right():
    features_MD, correct_M = supervision(800, 0)
    features_ND, correct_N = supervision(1000, 1)
    p_N = trust(features_MD, correct_M, features_ND, seed=0)
    assert p_N.shape == (1000,) and p_N.dtype == np.float32
    kept_N = drop_untrusted(p_N, 0.3)
    assert kept_N.sum() == 700
    # No linear model could do better than the base rate here.
    assert correct_N[kept_N].mean() > correct_N.mean() + 0.1
    np.testing.assert_array_equal(p_N, trust(features_MD, correct_M, features_ND, seed=0))
    assert not np.array_equal(p_N, trust(features_MD, correct_M, features_ND, seed=1))


def test_trust_with_few_or_no_errors_to_learn_from():
    features_MD, _ = supervision(40, 0)
    correct_M = np.ones(40, bool)
    assert trust(features_MD, correct_M, features_MD[:3]).tolist() == [1, 1, 1]
    assert trust(features_MD, ~correct_M, features_MD[:3]).tolist() == [0, 0, 0]
    correct_M[:4] = False
    features_MD[:4, 0] = -9
    p_N = trust(features_MD, correct_M, features_MD)
    assert p_N[:4].max() < 0.5 < p_N[4:].min()
    with pytest.raises(InputError, match="ground truth"):
        trust(features_MD[:0], correct_M[:0], features_MD)
