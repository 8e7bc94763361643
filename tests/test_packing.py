"""Packing: every document whole and once, in orders that nothing but ids and seeds decide."""

import itertools

import numpy as np
import pytest

from w2s_jax.data import packing, packing_shapes
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import TokenizedDocuments, tokenize
from w2s_jax.data.tokenizers import ByteTokenizer


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


def pair_documents(count, seed=0):
    rng = np.random.default_rng(seed)

    def text():
        return "".join(rng.choice(list("abcdefgh"), rng.integers(1, 30)))

    docs = [Document(id=1000 + i, texts=(text(), text())) for i in range(count)]
    return tokenize(docs, ByteTokenizer(), max_length=None, overlong="error")[0]


def unpack(packed, docs, num_micro):
    """{(step, slot, text): (tokens, weights)} as the read-outs say; checks that none overlap."""
    found, used = {}, 0
    for bucket in packed.buckets:
        length = bucket.tokens_SMRL.shape[-1]
        for s, step in enumerate(bucket.steps_S):
            order = packed.documents_SB[step].reshape(num_micro, -1)
            for (m, place), document in np.ndenumerate(order):
                if document < 0:
                    continue
                for k, read_out in enumerate(bucket.read_outs_SMmK[s, m, place]):
                    row, end = divmod(int(read_out), length)
                    segments = bucket.segment_ids_SMRL[s, m, row]
                    inside = np.flatnonzero(segments == segments[end])
                    assert segments[end] > 0 and inside[-1] == end
                    assert np.all(np.diff(inside) == 1)
                    tokens = bucket.tokens_SMRL[s, m, row, inside]
                    weights = bucket.loss_weights_SMRL
                    weights = None if weights is None else weights[s, m, row, inside]
                    found[int(step), m * order.shape[1] + place, k] = (tokens, weights)
                    used += len(inside)
        assert not bucket.tokens_SMRL[bucket.segment_ids_SMRL == 0].any()
    assert used == sum(np.count_nonzero(bucket.segment_ids_SMRL) for bucket in packed.buckets)
    return found, used


@pytest.mark.parametrize("num_micro", [1, 4])
@pytest.mark.parametrize("row_multiple", [1, 8])
@pytest.mark.parametrize("kind", ["texts", "pairs"])
def test_every_document_stands_whole_in_its_batch(num_micro, row_multiple, kind):
    pairs = kind == "pairs"
    docs = pair_documents(150) if pairs else documents(random_lengths(150), weights=True)
    order = packing.training_order(docs.ids_N, batch_size=16, num_steps=18, seed=1)
    packed = packing.pack(docs, order, num_microbatches=num_micro, row_multiple=row_multiple)
    # Microbatches may be dealt anew, batches not.
    np.testing.assert_array_equal(np.sort(packed.documents_SB), np.sort(order))
    assert num_micro > 1 or np.array_equal(packed.documents_SB, order)
    found, used = unpack(packed, docs, num_micro)
    assert len(found) == 18 * 16 * (1 + pairs)
    for (step, slot, k), (tokens, weights) in found.items():
        index = packed.documents_SB[step, slot]
        np.testing.assert_array_equal(tokens, docs.document(index, k))
        if not pairs:
            first, stop = docs.offsets[index : index + 2]
            np.testing.assert_array_equal(weights, docs.loss_weights_T[first:stop])
    slots = 0
    for bucket in packed.buckets:
        assert bucket.tokens_SMRL.shape[2] % row_multiple == 0
        slots += bucket.tokens_SMRL.size
    assert packed.real_token_share == used / slots
    for step in range(18):
        bucket, index = packed.buckets[packed.bucket_S[step]], packed.index_S[step]
        assert bucket.steps_S[index] == step


def mix(kind, count, seed=0):
    """The two length mixes that published throughput comparisons here are made on."""
    mean, sigma, least, most = {"short": (25, 0.45, 8, 120), "long": (150, 0.6, 20, 512)}[kind]
    lengths = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, count)
    return np.clip(np.round(lengths), least, most).astype(int)


@pytest.mark.parametrize(("kind", "share"), [("short", 0.92), ("long", 0.90)])
def test_few_shapes_leave_few_slots_empty(kind, share):
    lengths = mix(kind, 10_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    docs = TokenizedDocuments(
        np.arange(10_000, dtype=np.uint64),
        np.ones(offsets[-1], np.int32),
        offsets,
        np.zeros(10_000),
    )
    order = packing.training_order(docs.ids_N, batch_size=32, num_steps=312, seed=0)
    sums = lengths[order].sum(1)
    shares = {}
    for shapes in (1, 2, 6):
        packed = packing.pack(docs, order, max_shapes=shapes)
        assert len(packed.buckets) <= shapes
        shares[shapes] = packed.real_token_share
        slots = sum(bucket.tokens_SMRL.size for bucket in packed.buckets)
        assert shares[shapes] == sums.sum() / slots
        for bucket in packed.buckets:
            # Attention is quadratic in a row: none is far longer than the longest document.
            assert bucket.tokens_SMRL.shape[-1] <= 2 * lengths.max()
    assert shares[6] >= share
    assert shares[1] < shares[2] < shares[6]
    # One shape can do no better than the mean batch in the slots of the longest.
    assert 0.9 * sums.mean() / sums.max() < shares[1] <= sums.mean() / sums.max()


def test_the_lengths_chosen_are_the_best_ones():
    """Against all choices of at most three lengths."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        needed = rng.integers(5, 20, 200)

        def cost(levels, needed=needed):
            if max(levels) < needed.max():
                return np.inf, None
            rows = np.array([min(x for x in levels if x >= n) for n in needed])
            price = rows * (1 + rows / 64)
            return price.sum(), rows

        values = np.unique(needed)
        best = np.inf
        extra = packing_shapes.SHAPE_STEPS * np.mean(needed * (1 + needed / 64))
        for count in (1, 2, 3):
            for levels in itertools.combinations(values, count):
                best = min(best, cost(levels)[0] + count * extra)
        total, rows = packing_shapes.levels(needed, 3, np.arange(20) / 64)
        assert len(set(rows)) <= 3 and np.all(rows >= needed)
        again = np.sum(rows * (1 + rows / 64)) + len(set(rows)) * extra
        assert total == pytest.approx(best) == pytest.approx(again)


def test_microbatches_are_about_equally_long():
    docs = documents(random_lengths(640))
    order = packing.training_order(docs.ids_N, batch_size=32, num_steps=20, seed=0)
    packed = packing.pack(docs, order, num_microbatches=8)
    dealt = docs.lengths_N[packed.documents_SB].reshape(20, 8, 4).sum(-1)
    as_they_came = docs.lengths_N[order].reshape(20, 8, 4).sum(-1)
    assert np.mean(np.ptp(dealt, axis=1)) < 0.4 * np.mean(np.ptp(as_they_came, axis=1))


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
    (bucket,) = packed.buckets
    assert bucket.tokens_SMRL.shape == (2, 1, 32, 65) and packed.real_token_share == 1


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
    assert packing.pack(docs, order, max_shapes=1).real_token_share > 0.8


def test_evaluation_holds_every_document_once_and_fills_with_weight_zero():
    docs = documents(random_lengths(21))
    order = packing.evaluation_order(docs.lengths_N, batch_size=8)
    packed = packing.pack(docs, order, max_shapes=1)
    assert sorted(order[order >= 0].tolist()) == list(range(21))
    assert packed.weights_SB.sum() == 21 and packed.weights_SB.shape == (3, 8)
    laid_out = packed.per_document(np.arange(21, dtype=np.float32), fill=-5)
    np.testing.assert_array_equal(laid_out == -5, order < 0)


@pytest.mark.parametrize("chunk", [8, 32])
def test_first_keys_and_last_slots_are_those_of_the_segments(monkeypatch, chunk):
    """Against a look at every slot: what a chunk may see begins at the earliest of its texts."""
    monkeypatch.setattr(packing_shapes, "_KEY_GRID", 1)
    docs = documents(random_lengths(120))
    order = packing.training_order(docs.ids_N, batch_size=12, num_steps=10, seed=1)
    packed = packing.pack(docs, order, num_microbatches=2, chunk=chunk, attention_length=30)
    for bucket in packed.buckets:
        segments = bucket.segment_ids_SMRL.reshape(-1, bucket.segment_ids_SMRL.shape[-1])
        length = segments.shape[1]
        first = np.arange(0, length, chunk)
        last = np.zeros((len(segments), bucket.slots_SMRQ.shape[-1]), int)
        for row, ids in enumerate(segments):
            for slot in np.flatnonzero(ids):
                begin = np.flatnonzero(ids == ids[slot])[0]
                first[slot // chunk] = min(first[slot // chunk], begin)
                last[row, ids[slot] - 1] = slot
        np.testing.assert_array_equal(bucket.first_keys, first)
        np.testing.assert_array_equal(bucket.slots_SMRQ.reshape(last.shape), last)


def test_first_keys_are_rounded_down_and_seen_slots_counted():
    first = packing_shapes.first_keys_of(np.array([0, 70, 100]), np.array([70, 30, 50]), 160, 64)
    np.testing.assert_array_equal(first, [0, 0, 96])
    rows = packing_shapes.Rows(np.zeros((1, 3), int), np.array([[0, 70, 100]]), None, None)
    seen = packing_shapes.keys_seen(rows, np.array([[70, 30, 50]]), 160, 64)
    np.testing.assert_allclose(seen[[0, 64, 160]], [0, 64, (64 * 64 + 64 * 128 + 32 * 64) / 160])
    np.testing.assert_array_equal(
        packing_shapes.keys_seen(rows, np.array([[70, 30, 50]]), 5, None), range(6)
    )


def test_row_lengths_are_multiples_where_kernels_want_that():
    docs = documents(10 * random_lengths(150))
    order = packing.training_order(docs.ids_N, batch_size=16, num_steps=18, seed=1)
    for few in (1, 6):
        packed = packing.pack(docs, order, length_multiple=128, max_shapes=few)
        lengths = {bucket.tokens_SMRL.shape[-1] for bucket in packed.buckets}
        assert max(lengths) > 256 and {length % 128 for length in lengths} == {0}
