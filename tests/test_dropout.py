"""Dropout: masks that belong to tokens, against a document at a time; what can't change them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_problem import (
    BATCH,
    STEPS,
    descent,
    flat,
    fresh,
    make_spec,
    order,
    padded,
    placed,
    problem,
    relative,
    runner,
    targets,
)  # fmt: skip

from w2s_jax import sharding, testing
from w2s_jax.data import packing
from w2s_jax.losses import LOSSES
from w2s_jax.models import heads, network
from w2s_jax.models.dropout import Dropout, make_key, slot_keys
from w2s_jax.training.batch_sources import StreamedBatches
from w2s_jax.training.batches import BatchExtras, packed_buckets

__all__ = ["descent"]

RATE, SEED, STEP = 0.3, 5, 1


def gradient(spec, shards=1, **options):
    """Loss and gradient of the step `STEP`, by plain descent with rate 1/2."""
    mesh = sharding.mesh_of((shards, 1, 1))
    state = fresh(spec, mesh)
    start = jax.device_put(np.int32(STEP), sharding.replicated(mesh))
    state = dataclasses.replace(state, step=start)
    run = runner(spec, mesh, None, placed(spec, mesh, **options))
    state = run(state, STEP, STEP + 1)
    return float(state.history[STEP, 0]), 2 * (flat(problem()[2]) - flat(state.params))


def written_out_key(piece, position, seed=SEED, step=STEP):
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 2**32 - 1)
    for number in (step, piece, position):
        key = jax.random.fold_in(key, number)
    return jax.random.key_data(key)


def one_document_at_a_time():
    """The same, each document in a row of its own, where its keys are written out."""
    config, documents, params = problem()
    rows = order()[STEP]
    keys = np.array(
        [[written_out_key(row, slot) for slot in range(documents.longest)] for row in rows]
    )

    def loss(params):
        def logits(item):
            tokens, length, keys = item
            drop = Dropout(jnp.float32(RATE), keys[None])
            hidden = network.forward(config, params["backbone"], tokens[None], dropout=drop)
            return heads.class_logits(params["head"], hidden[:, length - 1])[0]

        logits_BC = jax.lax.map(logits, (*padded(rows), keys))
        return LOSSES["confidence"](logits_BC, targets()[rows], STEP / STEPS)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    return float(value), flat(grads)


@pytest.mark.slow
def test_what_is_dropped_is_the_same_for_any_packing_microbatch_and_mesh(descent):
    """The gradient of a coupled loss, 1e-5 of its norm; other seeds and rates give another."""
    wanted, wanted_gradient = one_document_at_a_time()
    spec = make_spec(("confidence", ()), dropout=RATE, seed=SEED)
    micro = make_spec(("confidence", ()), dropout=RATE, seed=SEED, microbatch_size=2)
    for one, options in ((spec, {}), (micro, {"shards": 8}), (spec, {"rows": 5})):
        value, found = gradient(one, **options)
        assert value == pytest.approx(wanted, rel=1e-5), options
        assert relative(found, wanted_gradient) < 1e-5, options
    for other in (
        dataclasses.replace(spec, seed=6),
        dataclasses.replace(spec, train=dataclasses.replace(spec.train, dropout=0.2)),
    ):
        assert other.program_key() == spec.program_key()
        assert relative(gradient(other)[1], wanted_gradient) > 0.05
    assert make_spec(("confidence", ())).program_key() != spec.program_key()


@pytest.mark.slow
def test_language_models_drop_the_same_in_microbatches(descent):
    """Of documents, packed anew for each number of microbatches."""
    found = []
    for size in (BATCH, 2):
        spec = make_spec(None, dropout=RATE, seed=SEED, microbatch_size=size)
        mesh = sharding.mesh_of((1, 1, 1))
        params = {"backbone": problem()[2]["backbone"]}
        state = fresh(spec, mesh, params=params)
        run = runner(spec, mesh, None, placed(spec, mesh, labels=False))
        state = run(state, 0, 1)
        found.append(flat(params) - flat(state.params))
    assert relative(found[1], found[0]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [False, True])
def test_scanning_rematerialising_and_read_outs_drop_the_same(encoder):
    """Hidden states of two layers, and at some slots alone."""
    changes = dict(bidirectional=True, norm_epsilon=1e-12) if encoder else {}
    config = testing.tiny_model(vocab_size=32, num_layers=3, **changes)
    params = network.init_params(config, 0, sharding.mesh_of((1, 1, 1)))
    rng = np.random.default_rng(0)
    tokens, segments = rng.integers(1, 31, (2, 12)), np.repeat([[1, 2, 3]], 4, axis=1).repeat(2, 0)
    segments = np.sort(segments, axis=1)
    keys = slot_keys(make_key(0), np.arange(24).reshape(2, 12) // 4, segments)
    slots = np.array([[3, 7, 11], [0, 5, 11]])
    wanted = None
    for options in (
        {"scan": False},
        {"scan": True, "remat": "block"},
        {"scan": False, "slots_RQ": slots},
        {"scan": True, "slots_RQ": slots},
    ):

        @jax.jit
        def forward(params, keys, options=options):
            drop = Dropout(jnp.float32(RATE), keys)
            return network.forward(config, params, tokens, segments, dropout=drop, **options)

        hidden = np.asarray(forward(params, keys))
        wanted = hidden if wanted is None else wanted
        at = np.take_along_axis(wanted, slots[..., None], 1) if "slots_RQ" in options else wanted
        np.testing.assert_allclose(hidden, at, rtol=1e-4, atol=1e-4)
    plain = network.forward(config, params, tokens, segments)
    assert relative(flat(plain), flat(wanted)) > 0.05


@pytest.mark.medium
def test_the_embedding_and_each_half_of_each_block_have_masks_of_their_own(monkeypatch):
    parts, within = [], Dropout.within

    def noted(self, part):
        parts.append(int(part))
        return within(self, part)

    monkeypatch.setattr(Dropout, "within", noted)
    config = testing.tiny_model(vocab_size=32, num_layers=3)
    params = network.init_params(config, 0, sharding.mesh_of((1, 1, 1)))
    drop = Dropout(jnp.float32(RATE), np.zeros((1, 4, 2), np.uint32))
    network.forward(config, params, np.ones((1, 4), np.int32), dropout=drop, scan=False)
    assert parts == [0, 1, 0, 1, 2, 0, 1, 3, 0, 1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_a_share_is_zero_and_the_mean_stays(rate, dtype):
    """In each slot and part; masks of parts, slots and features are independent of each other."""
    keys = slot_keys(make_key(0), np.arange(64).reshape(1, 64), np.ones((1, 64), np.int32))
    drop, ones = Dropout(jnp.float32(rate), keys), jnp.ones((1, 64, 512), dtype)
    parts = np.stack([np.asarray(drop.within(i)(ones)[0], np.float64) for i in range(3)])
    assert drop.within(0)(ones).dtype == dtype
    spread = 5 * np.sqrt(rate * (1 - rate) / 64 / 512)
    for part in parts:
        assert abs((part == 0).mean() - rate) < spread
        assert abs(part.mean() - 1) < spread / (1 - rate) + 2e-3
        kept = float(jnp.asarray(1 / (1 - rate), dtype))
        np.testing.assert_allclose(np.unique(part), [0.0, kept], rtol=1e-6)
    zero = (parts == 0).reshape(3 * 64, 512)
    correlation = np.corrcoef(zero) - np.eye(len(zero))
    assert np.abs(correlation).max() < 6 / np.sqrt(512)


@pytest.mark.parametrize("num_texts,micro", [(1, 1), (2, 2)])
def test_each_slot_knows_its_text(num_texts, micro):
    documents = problem()[1]
    documents = dataclasses.replace(
        documents,
        num_texts=num_texts,
        ids_N=documents.ids_N[: 24 // num_texts],
        labels_N=documents.labels_N[: 24 // num_texts],
    )
    rows = np.random.default_rng(0).permutation(24 // num_texts)[:8].reshape(2, 4).astype(np.int32)
    packed = packing.pack(documents, rows, num_microbatches=micro, max_shapes=1)
    (bucket,) = packed_buckets(packed, None, BatchExtras(text_ids=True))
    micro = bucket.batches.microbatches
    seen = set()
    for index in np.ndindex(micro.segment_ids_RL.shape[:3]):
        tokens, segments, pieces = (
            x[index] for x in (micro.tokens_RL, micro.segment_ids_RL, micro.text_ids_RL)
        )
        for segment in range(1, segments.max() + 1):
            (piece,) = set(pieces[segments == segment])
            text = documents.document(*divmod(int(piece), num_texts))
            np.testing.assert_array_equal(tokens[segments == segment], text)
            seen.add((index[0], piece))
        assert not pieces[segments == 0].any()
    wanted = {(s, n * num_texts + k) for s in range(2) for n in rows[s] for k in range(num_texts)}
    assert seen == wanted


class Stream:
    """A text stream of one batch."""

    rows = 4

    def __init__(self):
        self.segments = np.array([[1] * 6, [1, 1, 2, 2, 3, 0], [1, 2, 3, 4, 5, 6], [1] * 5 + [0]])

    def __next__(self):
        return {"tokens_BL": self.segments, "segment_ids_BL": self.segments.astype(np.uint16)}


def test_streamed_text_is_told_apart_whatever_the_microbatch_and_mesh():
    found = []
    for micro, shards in ((1, 1), (2, 1), (2, 4)):
        mesh = sharding.mesh_of((shards, 1, 1))
        batches = StreamedBatches(Stream(), micro, STEPS, mesh, BatchExtras(text_ids=True))
        pieces = np.asarray(batches.at(0).batches.microbatches.text_ids_RL)[0]
        found.append(pieces[:, : 4 // micro].reshape(4, 6))
    segments = Stream().segments
    for pieces in found:
        np.testing.assert_array_equal(pieces, found[0])
        runs = {(row, seg) for row in range(4) for seg in segments[row]}
        assert len(np.unique(pieces)) == len(runs)
    plain = StreamedBatches(Stream(), 1, STEPS, mesh).at(0)
    assert plain.batches.microbatches.text_ids_RL is None


def test_without_dropout_programs_take_nothing_more():
    spec = make_spec(dropout=0.0, ema=0.0, seed=7)
    numbers = spec.hyperparameters()
    assert numbers.dropout is numbers.average_S is numbers.seed is None
    assert spec.program_key() == make_spec().program_key()
    (bucket,) = placed(spec, sharding.mesh_of((1, 1, 1))).buckets
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(bucket)]
    assert paths == [
        ".batches.microbatches.tokens_RL", ".batches.microbatches.segment_ids_RL",
        ".batches.microbatches.slots_RQ", ".batches.microbatches.read_outs_mK",
        ".batches.targets_BC", ".batches.weights_B", ".index_S",
    ]  # fmt: skip
