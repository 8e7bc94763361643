"""Packing: every document whole and once, in orders that nothing but ids and seeds decide."""

import numpy as np
import pytest

from w2s_jax.data import packing
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import tokenize


def documents(lengths, weights=False):
    rng = np.random.default_rng(0)
    docs = [
        Document(
            id=1000 + i,
            tokens=tuple(rng.integers(1, 300, n).tolist()),
            label=i % 2,
            loss_weights=tuple(rng.uniform(size=n).tolist()) if weights else None,
        )
        for i, n in enumerate(lengths)
    ]
    return tokenize(docs, None, max_length=None, overlong="error")[0]


def random_lengths(count, seed=0):
    return np.random.default_rng(seed).integers(1, 40, count)


@pytest.mark.parametrize("num_microbatches", [1, 4])
@pytest.mark.parametrize("row_multiple", [1, 8])
def test_every_document_stands_whole_in_its_batch(num_microbatches, row_multiple):
    docs = documents(random_lengths(100), weights=True)
    order = packing.training_order(docs.ids_N, batch_size=16, num_steps=13, seed=1)
    packed = packing.pack(docs, order, num_microbatches=num_microbatches, row_multiple=row_multiple)
    assert packed.tokens_SMRL.shape[2] % row_multiple == 0
    length = packed.tokens_SMRL.shape[-1]
    found_tokens = 0
    for s in range(13):
        per_micro = 16 // num_microbatches
        for slot in range(16):
            m, place = divmod(slot, per_micro)
            index = order[s, slot]
            wanted = docs.document(index)
            row, end = divmod(int(packed.read_outs_SMmK[s, m, place, 0]), length)
            start = end + 1 - len(wanted)
            np.testing.assert_array_equal(packed.tokens_SMRL[s, m, row, start : end + 1], wanted)
            weights = docs.loss_weights_T[docs.offsets[index] : docs.offsets[index + 1]]
            np.testing.assert_array_equal(
                packed.loss_weights_SMRL[s, m, row, start : end + 1], weights
            )
            segment = packed.segment_ids_SMRL[s, m, row, end]
            inside = packed.segment_ids_SMRL[s, m, row] == segment
            assert segment > 0 and inside.sum() == len(wanted) and inside[start : end + 1].all()
            found_tokens += len(wanted)
    assert (packed.segment_ids_SMRL > 0).sum() == found_tokens
    assert not packed.tokens_SMRL[packed.segment_ids_SMRL == 0].any()
    assert packed.real_token_share == found_tokens / packed.tokens_SMRL.size


def test_packing_wastes_less_than_padding():
    docs = documents(random_lengths(200))
    order = packing.training_order(docs.ids_N, batch_size=32, num_steps=6, seed=0)
    assert packing.pack(docs, order).real_token_share > 0.8
    lengths = docs.lengths_N[order]
    assert lengths.sum() / (lengths.max() * lengths.size) < 0.6


def test_documents_of_one_length_leave_no_slot_empty():
    docs = documents([65] * 64)
    order = packing.training_order(docs.ids_N, batch_size=32, num_steps=2, seed=0)
    packed = packing.pack(docs, order)
    assert packed.tokens_SMRL.shape == (2, 1, 32, 65) and packed.real_token_share == 1


def test_an_epoch_holds_each_document_at_most_once_and_drops_only_the_rest():
    ids = np.arange(50, dtype=np.uint64) * 7919
    order = packing.training_order(ids, batch_size=8, num_steps=12, seed=0)
    first, second = order[:6].reshape(-1), order[6:].reshape(-1)
    assert len(set(first)) == len(set(second)) == 48
    assert first.tolist() != second.tolist()


def test_more_steps_continue_the_same_order():
    ids = np.arange(50, dtype=np.uint64)
    whole = packing.training_order(ids, batch_size=8, num_steps=20, seed=3)
    for steps in (1, 6, 7, 17):
        part = packing.training_order(ids, batch_size=8, num_steps=steps, seed=3)
        np.testing.assert_array_equal(part, whole[:steps])
    other = packing.training_order(ids, batch_size=8, num_steps=20, seed=4)
    assert not np.array_equal(whole, other)


def test_the_order_follows_ids_not_places():
    ids = np.random.default_rng(0).integers(0, 2**63, 40).astype(np.uint64)
    shuffled = np.random.default_rng(1).permutation(40)
    order = packing.training_order(ids, batch_size=8, num_steps=5, seed=0)
    other = packing.training_order(ids[shuffled], batch_size=8, num_steps=5, seed=0)
    np.testing.assert_array_equal(ids[order], ids[shuffled][other])


def test_evaluation_batches_are_about_equally_long():
    """Sorted batches in one shape would be mostly padding: the first would set the rows of all."""
    lengths = np.clip(np.random.default_rng(0).lognormal(3.2, 0.8, 800), 5, 192).astype(int)
    docs = documents(lengths)
    order = packing.evaluation_order(docs.lengths_N, batch_size=64)
    assert packing.pack(docs, order).real_token_share > 0.8


def test_evaluation_holds_every_document_once_and_fills_with_weight_zero():
    docs = documents(random_lengths(21))
    order = packing.evaluation_order(docs.lengths_N, batch_size=8)
    packed = packing.pack(docs, order)
    assert sorted(order[order >= 0].tolist()) == list(range(21))
    assert packed.weights_SB.sum() == 21 and packed.weights_SB.shape == (3, 8)
    laid_out = packed.per_document(np.arange(21, dtype=np.float32), fill=-5)
    np.testing.assert_array_equal(laid_out == -5, order < 0)
