"""Synthetic error structures: exact counts, and the errors where they should be."""

from types import SimpleNamespace

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.methods import ensembles, synthetic
from w2s_jax.methods.synthetic import STRUCTURES, synthetic_labels


def inputs(num=200, seed=0):
    rng = np.random.default_rng(seed)
    truth_N = rng.integers(0, 2, num)
    weak_p_N = np.clip(rng.normal(0.5 + 0.15 * (2 * truth_N - 1), 0.2), 0, 1)
    return truth_N, {
        "lengths_N": rng.integers(5, 12, num),
        "strong_soft_NC": rng.random(num),
        "weak_soft_NC": soft_labels(weak_p_N),
    }


def wrong(structure, error_rate, seed=0, **options):
    truth_N, arrays = inputs()
    soft_NC = synthetic_labels(structure, truth_N, error_rate, seed=seed, **arrays | options)
    assert soft_NC.shape == (200, 2) and soft_NC.dtype == np.float32
    return (soft_NC[:, 1] > 0.5) != truth_N


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("error_rate", [0, 0.013, 0.25, 0.4, 1])
def test_the_number_of_errors_is_exact(structure, error_rate):
    assert wrong(structure, error_rate).sum() == round(error_rate * 200)


@pytest.mark.parametrize(
    ("structure", "key"),
    [
        ("longest", lambda a: -a["lengths_N"]),
        ("shortest", lambda a: a["lengths_N"]),
        ("strong_unconfident", lambda a: np.maximum(a["strong_soft_NC"], 1 - a["strong_soft_NC"])),
        ("strong_confident", lambda a: -np.maximum(a["strong_soft_NC"], 1 - a["strong_soft_NC"])),
    ],
)
def test_errors_lie_at_the_end_of_the_order_that_the_structure_names(structure, key):
    key_N = key(inputs()[1])
    wrong_N = wrong(structure, 0.3)
    assert key_N[wrong_N].max() <= key_N[~wrong_N].min()


def test_the_seed_decides_between_documents_of_one_length():
    lengths_N = inputs()[1]["lengths_N"]
    one, other = wrong("longest", 0.2, seed=1), wrong("longest", 0.2, seed=2)
    assert not np.array_equal(one, other)
    # Only among those at the edge.
    assert len(set(lengths_N[one != other])) == 1
    np.testing.assert_array_equal(one, wrong("longest", 0.2, seed=1))


def test_random_errors_are_spread_evenly():
    counts_N = sum(wrong("random", 0.25, seed=seed).astype(int) for seed in range(200))
    assert abs(counts_N.mean() - 50) < 1e-9
    # Binomial: a standard deviation of 6.1 each.
    assert counts_N.min() > 20 and counts_N.max() < 80


def test_the_weak_models_own_errors():
    truth_N, arrays = inputs()
    p_N = arrays["weak_soft_NC"][:, 1]
    errors_N = (p_N > 0.5) != truth_N
    rate = errors_N.mean()
    assert 0.1 < rate < 0.4
    np.testing.assert_array_equal(wrong("weak", rate), errors_N)
    fewer_N, more_N = wrong("weak", rate - 0.05), wrong("weak", rate + 0.05)
    assert not np.any(fewer_N & ~errors_N) and not np.any(errors_N & ~more_N)
    sure_N = np.abs(p_N - 0.5)
    assert sure_N[fewer_N].min() >= sure_N[errors_N & ~fewer_N].max()
    assert sure_N[more_N & ~errors_N].max() <= sure_N[~more_N].min()


def test_a_tie_of_the_weak_model_predicts_label_0():
    soft_NC = soft_labels([0.5, 0.5, 0.5, 0.5])
    labels_NC = synthetic_labels("weak", [0, 1, 0, 1], 0.5, seed=0, weak_soft_NC=soft_NC)
    assert labels_NC[:, 1].tolist() == [0, 0, 0, 0]


def test_labels_are_hard_or_of_one_confidence():
    truth_N, _ = inputs()
    hard_NC = synthetic_labels("random", truth_N, 0.25, seed=3)
    assert set(hard_NC.reshape(-1).tolist()) == {0.0, 1.0}
    soft_NC = synthetic_labels("random", truth_N, 0.25, seed=3, confidence=0.8)
    np.testing.assert_allclose(soft_NC, np.where(hard_NC == 1, 0.8, 0.2), rtol=1e-6)
    np.testing.assert_allclose(soft_NC.sum(1), 1, rtol=1e-6)


def test_bad_input_is_refused():
    truth_N, arrays = inputs()
    refused = [
        (("longst", truth_N, 0.1), arrays, r"structure: .*did you mean 'longest'"),
        (("longest", truth_N, 0.1), {}, "'longest' needs lengths_N"),
        (("strong_confident", truth_N, 0.1), {}, "'strong_confident' needs strong_soft_NC"),
        (("weak", truth_N, 0.1), {}, "'weak' needs weak_soft_NC"),
        (("random", truth_N + 0.5, 0.1), {}, "must be 0 or 1"),
        (("random", truth_N, 1.5), {}, "error_rate: 1.5"),
        (("random", truth_N, 0.1), {"confidence": 0.5}, "confidence: 0.5"),
    ]
    for positional, options, message in refused:
        with pytest.raises(InputError, match=message):
            synthetic_labels(*positional, seed=0, **options)
    with pytest.raises(ValueError, match=r"expected shape \(200,\), got \(3,\)"):
        synthetic_labels("longest", truth_N, 0.1, seed=0, lengths_N=[1, 2, 3])


def test_ties_have_no_truth_to_be_wrong_about():
    """Label makers that compare labels with ground truth leave ties (NaN) out."""
    truth_N, arrays = inputs()
    tie_N = np.arange(200) % 4 == 0
    labels_N = np.where(tie_N, np.nan, truth_N).astype(np.float32)
    weak_NC = arrays["weak_soft_NC"]
    work = SimpleNamespace(
        phase=SimpleNamespace(label_splits=("slice2",), parents=("member1",), seed=0),
        truth=lambda split: labels_N,
        labels=lambda split, parent="labels": weak_NC,
        documents=lambda split: SimpleNamespace(lengths_N=arrays["lengths_N"]),
        of_all=lambda split, soft_NC: {split: soft_NC},
    )
    errors_N = (weak_NC[:, 1] > 0.5) != truth_N
    for structure in ("weak", "random", "longest"):
        soft_NC = synthetic._synthetic(work, structure=structure)["slice2"]
        assert (soft_NC[tie_N] == 0.5).all()
        wrong_N = (soft_NC[:, 1] > 0.5) != truth_N
        assert wrong_N[~tie_N].sum() == errors_N[~tie_N].sum()
        if structure == "weak":
            np.testing.assert_array_equal(wrong_N[~tie_N], errors_N[~tie_N])
    work.members, work.documents = ["member1"], lambda split: range(200)
    (alpha,), weights_N = ensembles._adaboost(work)
    error = (errors_N & ~tie_N).sum() / 200
    np.testing.assert_allclose(alpha, 0.5 * np.log((1 - error) / error))
    assert weights_N[tie_N].max() == weights_N.min()
