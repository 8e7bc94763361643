"""The tokens of classes, and notes on classes without documents."""

import dataclasses

import numpy as np
import pytest

from w2s_jax.core import errors
from w2s_jax.data.task import Task
from w2s_jax.data.tokenized import TokenizedDocuments
from w2s_jax.data.tokenizers import ByteTokenizer
from w2s_jax.planning import classes

MOODS = Task("moods", "", "", classes=("bad", "good", "mixed", "neutral"))


def documents(*labels):
    """Documents of no text with labels of four classes; None: a tie."""
    truth_N = np.array([np.nan if c is None else c for c in labels], np.float32)
    return TokenizedDocuments(
        np.arange(len(labels), dtype=np.uint64),
        np.zeros(0, np.int32),
        np.zeros(len(labels) + 1, np.int64),
        truth_N,
        soft_NC=np.zeros((len(labels), 4), np.float32),
    )


def test_a_class_has_the_first_token_of_its_name():
    notes = []
    tokens = classes.label_tokens("weak", MOODS, ByteTokenizer(), notes)
    assert tokens == tuple(3 + ord(letter) for letter in "bgmn") and not notes


def test_names_that_begin_alike_have_no_tokens():
    notes = []
    task = dataclasses.replace(MOODS, classes=("negative", "neutral", "positive"))
    assert classes.label_tokens("weak", task, ByteTokenizer(), notes) == ()
    assert notes[0].startswith("weak: names of classes begin with the same token")


def test_two_classes_have_the_tokens_of_digits():
    task = dataclasses.replace(MOODS, classes=("no", "yes"))
    tokens = classes.label_tokens("weak", task, ByteTokenizer(), [])
    assert tokens == ByteTokenizer().label_tokens


def test_classes_without_documents_are_noted():
    notes = []
    splits = {"slice1": documents(0, 1, None), "slice2": documents(0, 2), "test": documents(0, 2)}
    classes.note_missing(splits, MOODS, notes)
    assert notes == [
        "slice1: no document of classes that test has: mixed",
        "no document of slices and test has the classes neutral",
    ]


@pytest.mark.parametrize(
    ("truth", "num_classes", "words"),
    [
        ([1, 1, np.nan], 2, "have label 1; labels 0 and 1 are both needed"),
        ([3, 3], 4, "have label 3; several are needed"),
        ([np.nan], 4, "are ties; several are needed"),
    ],
)
def test_one_class_is_not_enough(truth, num_classes, words):
    with pytest.raises(errors.InputError, match=words):
        classes.check_present("test", np.array(truth, np.float32), num_classes)
    classes.check_present("test", np.array([0, 1, np.nan], np.float32), num_classes)
