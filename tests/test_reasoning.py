"""Choices of methods among completions: agreement, majorities, pairs, against counts by hand."""

import numpy as np
import pytest

from w2s_jax.data.documents import distinct_ids
from w2s_jax.data.tokenized import TokenizedDocuments, offsets_of
from w2s_jax.methods.confidence_threshold import most_probable
from w2s_jax.methods.ensembles import majority
from w2s_jax.methods.reasoning import agreeing, behind_examples, preference_pair
from w2s_jax.metrics.answers import answer_agreement, answer_metrics
from w2s_jax.phases.kept_batches import KeptBatches, discard


def test_answers_agree_only_if_there_is_one():
    assert agreeing(["1", "2", "", "4"], ["1", "3", "", "4"]).tolist() == [True, False, False, True]


def test_the_majority_answer_is_represented_by_its_most_probable_completion():
    answers = [["a", "a", "x", "p"], ["b", "a", "y", "q"], ["b", "c", "y", ""]]
    logp_mN = np.log([[0.9, 0.2, 0.9, 0.1], [0.3, 0.5, 0.3, 0.6], [0.4, 0.9, 0.3, 0.2]])
    # b by 2 of 3, member 2; a by 2 of 3, member 1; y, the first of two equals; all differ: q.
    assert majority(answers, logp_mN).tolist() == [2, 1, 1, 1]
    assert majority([["a"], ["b"]], np.array([[np.nan], [-1.0]])).tolist() == [1]
    # '' is no answer.
    assert majority([[""], [""], ["b"]], np.zeros((3, 1))).tolist() == [2]
    assert majority([[""], [""]], np.zeros((2, 1))).tolist() == [0]


def test_the_most_probable_share_is_kept():
    logp_N = np.array([-1.0, -3.0, np.nan, -2.0, -1.0])
    assert most_probable(logp_N, 0.4).tolist() == [True, False, False, False, True]
    assert most_probable(logp_N, 0.6).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize(
    ("answers", "weak", "expected"),
    [
        ("aaab", "a", ("weak", "3b")),  # 3 of 4: the supervisor's, and the only other sample
        ("aaab", "b", None),  # the supervisor gives another answer, and 3/4 < 0.8
        ("aaaaab", "c", ("0a", "weak")),  # 5 of 6: a sample of the majority, key 0
        ("aabb", "a", None),  # a half is no majority of 0.6
        ("aaaa", "a", None),  # no sample has another answer
        ("---a", "a", None),  # the samples without an answer count
    ],
)
def test_preference_pairs_follow_the_paper(answers, weak, expected):
    given = ["" if letter == "-" else letter for letter in answers]
    texts = [f"{number}{letter}" for number, letter in enumerate(answers)]
    found = preference_pair(weak, "weak", given, texts, key=0, confidence=0.6, reversal=0.8)
    assert found == expected


def test_repetitions_are_spread_over_an_order_and_first_occurrences_keep_their_place():
    ids_N = np.array([7, 5, 7, 9, 7, 5], np.uint64)
    distinct_N = distinct_ids(ids_N)
    assert len(set(distinct_N.tolist())) == len(ids_N)
    assert distinct_N[[0, 1, 3]].tolist() == [7, 5, 9]
    # What replaces a repetition depends on the id and its number alone.
    again_N = distinct_ids(np.array([5, 7, 7, 5], np.uint64))
    assert again_N[2] == distinct_N[2] and again_N[3] == distinct_N[5]


def _documents(prompts, completions):
    pieces = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    return TokenizedDocuments(
        ids_N=np.arange(len(pieces), dtype=np.uint64),
        tokens_T=np.concatenate(pieces).astype(np.int32),
        offsets=offsets_of([len(piece) for piece in pieces]),
        labels_N=np.full(len(pieces), np.nan, np.float32),
        prompt_lengths_P=np.array([len(p) for p in prompts]),
    )


def test_examples_stand_before_each_prompt_and_its_completion_is_left_out():
    examples = _documents([[1, 2], [1, 3]], [[4, 9], [5, 9]])
    found = behind_examples(_documents([[1, 6], [1, 7, 8]], [[2, 9], [3, 9]]), examples)
    before = [1, 2, 4, 9, 1, 3, 5, 9]
    assert found.document(0).tolist() == [*before, 1, 6]
    assert found.document(1).tolist() == [*before, 1, 7, 8]
    assert found.prompt_lengths_P.tolist() == [10, 11]


def test_metrics_of_answers():
    found = answer_metrics([True, False, True, True], {"legal": [1, None, 0, True], "none": [None]})
    assert found["accuracy"] == 0.75 and found["n"] == 4
    assert found["accuracy_se"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert found["auroc"] is None and found["ece"] is None
    assert found["scores"] == {"legal": pytest.approx(2 / 3), "none": None}
    agreement = answer_agreement(
        ["a", "b", "", "d"], ["a", "c", "", "d"], [True, True, False, False]
    )
    assert agreement == {
        "agreement": 0.5, "agreement_when_correct": 0.5, "agreement_when_wrong": 0.5,
        "misfit": None,
    }  # fmt: skip


def test_kept_batches_come_back_but_not_those_of_other_batches_or_damaged_ones(tmp_path):
    folder = tmp_path / "completions"
    kept = KeptBatches(folder, "test", "these batches")
    assert kept.found() == {}
    for number in (0, 2, 11):
        kept.keep(number, {"rows": np.full(3, number)})
    assert {n: a["rows"].tolist() for n, a in kept.found().items()} == {
        0: [0, 0, 0], 2: [2, 2, 2], 11: [11, 11, 11]
    }  # fmt: skip
    assert KeptBatches(folder, "test", "other batches").found() == {}
    assert KeptBatches(folder, "validation", "these batches").found() == {}
    damaged = sorted(folder.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:40])
    assert set(kept.found()) == {0, 11}
    discard(folder)
    assert kept.found() == {} and not folder.exists()
