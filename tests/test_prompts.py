"""Prompts spelt out by hand."""

import dataclasses

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document, hash_order
from w2s_jax.data.prompts import few_shot, with_suffix
from w2s_jax.data.tokenize import tokenize
from w2s_jax.data.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()
ANSWERS = [(token,) for token in BYTES.label_tokens]
ENDS = {"prefix": BYTES.prefix, "suffix": BYTES.suffix}


def texts_of(*texts, first=10):
    documents = [
        Document(id=first + i, text=text, label=i % 2, soft_label=0.25)
        for i, text in enumerate(texts)
    ]
    return tokenize(documents, BYTES, max_length=None, overlong="error")[0]


def spelt(tokenized):
    """Every document as text, with < and > for its beginning and end."""
    marks = {1: b"<", 2: b">"}
    return [
        b"".join(marks.get(t) or bytes([t - 3]) for t in tokenized.document(n).tolist()).decode()
        for n in range(len(tokenized))
    ]


def weighted():
    documents = [
        Document(id=1, tokens=(5, 6, 7), loss_weights=(0, 1, 0.5)),
        Document(id=2, tokens=(8, 9), loss_weights=(0, 2)),
    ]
    return tokenize(documents, None, max_length=None, overlong="error")[0]


def pairs():
    documents = [Document(id=1, texts=("a", "b"))]
    return tokenize(documents, BYTES, max_length=None, overlong="error")[0]


def same_but_for_tokens(one, other):
    for field in ("ids_N", "labels_N", "soft_N"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
    assert one.num_texts == other.num_texts == 1
    assert one.tokens_T.dtype == np.int32 and one.offsets.dtype == np.int64


def test_the_token_comes_before_what_ends_a_document():
    documents = texts_of("one", "two", "three")
    out = with_suffix(documents, [3 + ord(c) for c in "xyz"], suffix=BYTES.suffix)
    assert spelt(out) == ["<onex>", "<twoy>", "<threez>"]
    same_but_for_tokens(out, documents)
    assert spelt(documents) == ["<one>", "<two>", "<three>"]
    # One token for all, and nothing that ends a document.
    assert spelt(with_suffix(documents, 3 + ord("!"))) == ["<one>!", "<two>!", "<three>!"]


def test_long_documents_make_room_for_the_token():
    documents = texts_of("one", "three")
    out = with_suffix(documents, 3 + ord("!"), 6, suffix=BYTES.suffix)
    assert spelt(out) == ["<one!>", "<thr!>"] and out.longest == 6
    with pytest.raises(InputError, match="max_length: 2; allowed: at least 3"):
        with_suffix(documents, 5, 2, suffix=BYTES.suffix)


def test_added_tokens_have_no_loss_weight():
    out = with_suffix(weighted(), [3, 4], 3)
    assert out.tokens_T.tolist() == [5, 6, 3, 8, 9, 4]
    assert out.loss_weights_T.tolist() == [0, 1, 0, 0, 2, 0]
    assert out.loss_weights_T.dtype == np.float32
    out = few_shot(weighted(), texts_of("a"), [1], [(3,), (4,)], None, 0)
    assert out.loss_weights_T.tolist() == [0, 0, 0, 0, 0, 1, 0.5, 0, 0, 0, 0, 0, 2]
    begun = Document(id=1, tokens=(1, 6, 7, 2), loss_weights=(0, 3, 4, 5))
    begun = tokenize([begun], None, max_length=None, overlong="error")[0]
    out = few_shot(begun, texts_of("a"), [1], [(3,), (4,)], None, 0, **ENDS)
    assert out.tokens_T.tolist() == [1, 3 + ord("a"), 4, 6, 7]
    assert out.loss_weights_T.tolist() == [0, 0, 0, 3, 4]


def order_of(examples, id_, seed):
    return hash_order(examples.ids_N, "few_shot", seed, id_).tolist()


def test_solved_examples_stand_before_each_document():
    documents, examples = texts_of("what", "who"), texts_of("ab", "cd", "ef", first=50)
    labels_E = np.array([1, 0, 1])
    solved = ["ab1", "cd0", "ef1"]
    out = few_shot(documents, examples, labels_E, ANSWERS, None, 3, **ENDS)
    expected = [
        "<" + "".join(solved[e] for e in order_of(examples, id_, 3)) + text
        for id_, text in ((10, "what"), (11, "who"))
    ]
    assert spelt(out) == expected
    same_but_for_tokens(out, documents)


def test_the_first_examples_go_where_not_all_fit():
    documents, examples = texts_of("what", "a long one"), texts_of("ab", "cd", "ef", first=50)
    labels, solved = [1, 0, 1], ["ab1", "cd0", "ef1"]
    first = "".join(solved[e] for e in order_of(examples, 10, 0))
    for length, left in ((14, 9), (13, 6), (11, 6), (10, 3), (8, 3), (7, 0), (5, 0), (3, 0)):
        out = few_shot(documents, examples, labels, ANSWERS, length, 0, **ENDS)
        assert spelt(out)[0] == "<" + first[len(first) - left :] + "what"
        # Never cut, even if it is too long by itself.
        assert spelt(out)[1].endswith("a long one")
        assert out.lengths_N[1] <= max(length, 11)


def test_nothing_stands_before_an_example_that_does_not_fit():
    documents, examples = texts_of("what"), texts_of("a", "a long one", "b", first=50)
    solved = ["a0", "a long one0", "b1"]
    seen = set()
    for seed in range(10):
        order = order_of(examples, 10, seed)
        out = few_shot(documents, examples, [0, 0, 1], ANSWERS, 10, seed, **ENDS)
        after = order[order.index(1) + 1 :]
        assert spelt(out) == ["<" + "".join(solved[e] for e in after) + "what"]
        seen.add(len(after))
    assert seen == {0, 1, 2}


def test_the_order_of_examples_depends_on_seed_and_document_alone():
    documents = texts_of(*"abcdefghijkl")
    examples = texts_of("A", "B", "C", "D", first=50)

    def prompts(these, seed):
        return few_shot(these, examples, [0, 1, 0, 1], ANSWERS, None, seed, **ENDS)

    out = spelt(prompts(documents, 1))
    assert len({text[1:-1] for text in out}) > 3  # orders differ between documents
    assert all(sorted(text[1:-1]) == sorted("A0B1C0D1") for text in out)
    assert spelt(prompts(documents.select([7, 2]), 1)) == [out[7], out[2]]
    assert spelt(prompts(documents, 2)) != out


def test_a_document_is_no_example_for_itself():
    documents = texts_of("a", "b")
    out = few_shot(documents, documents, [0, 1], ANSWERS, None, 0, **ENDS)
    assert spelt(out) == ["<b1a", "<a0b"]


def test_pairs_and_unlabelled_examples_and_wrong_ends_are_refused():
    documents = texts_of("a", "b")
    with pytest.raises(InputError, match="with_suffix: documents of 2 texts"):
        with_suffix(pairs(), 5)
    for one, other in ((pairs(), documents), (documents, pairs())):
        with pytest.raises(InputError, match="few_shot: documents of 2 texts"):
            few_shot(one, other, [0, 1], ANSWERS, None, 0)
    for labels in ([0], [0, np.nan]):
        with pytest.raises(InputError, match="few_shot: 2 examples with 1 labels"):
            few_shot(documents, documents, labels, ANSWERS, None, 0)
    with pytest.raises(InputError, match=r"suffix: 2 of 2 documents do not have \(9,\) .*10"):
        with_suffix(documents, 5, suffix=(9,))
    with pytest.raises(InputError, match=r"prefix: .*\(9,\)"):
        few_shot(documents, documents, [0, 1], ANSWERS, None, 0, prefix=(9,))
    # The second alone is too short to end so; with the end of the first it would.
    short = [Document(id=1, tokens=(5, 6)), Document(id=2, tokens=(7,))]
    short = tokenize(short, None, max_length=None, overlong="error")[0]
    with pytest.raises(InputError, match="2 of 2 documents"):
        with_suffix(short, 5, suffix=(6, 7))
    # One that lacks its end is found among others that have it.
    cut = dataclasses.replace(
        documents, tokens_T=documents.tokens_T[:-1], offsets=np.array([0, 3, 5])
    )
    with pytest.raises(InputError, match=r"1 of 2 documents do not have .*the first: document 11"):
        with_suffix(cut, 5, suffix=BYTES.suffix)
