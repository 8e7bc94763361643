"""Training on the tokens that occur: against training with the whole vocabulary."""

import dataclasses

import jax
import numpy as np
import pytest

from w2s_jax import sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models import adapting, heads, network
from w2s_jax.training import vocabulary
from w2s_jax.training.batch_sources import put_batches
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.programs import compile_step
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

VOCABULARY = 500
STEPS = 6


@pytest.fixture(autouse=True)
def small_embeddings_count(monkeypatch):
    monkeypatch.setattr(vocabulary, "LEAST_NUMBERS", 1)


def made_documents(tokens, count=24, length=9):
    rng = np.random.default_rng(0)
    return TokenizedDocuments(
        ids_N=np.arange(count, dtype=np.uint64),
        tokens_T=rng.choice(tokens, count * length).astype(np.int32),
        offsets=np.arange(0, count * length + 1, length),
        labels_N=(rng.random(count) < 0.5).astype(np.float32),
    )


def trained(mesh_shape, settings, cut):
    """(all parameters after a few steps, history)."""
    mesh = sharding.mesh_of(mesh_shape)
    config = dataclasses.replace(testing.tiny_model(), vocab_size=VOCABULARY)
    documents = made_documents([3, 77, 78, 401, 499])
    params = {"backbone": network.init_params(config, 0, mesh)}
    params["head"] = heads.init_class_head("unembedding", config, params["backbone"], (3, 4), mesh)
    start, frozen = adapting.split(settings, config, params)
    # A copy: the step takes what it starts from.
    rows = jax.jit(lambda x: x + 0)(vocabulary.embedding(start))
    kept = vocabulary.occurring(documents, config, settings) if cut else None
    if kept is not None:
        config, documents, start = kept.config(config), kept.documents(documents), kept.cut(start)
    order = packing.training_order(documents.ids_N, batch_size=8, num_steps=STEPS, seed=0)
    packed = packing.pack(documents, order, row_multiple=sharding.row_shards(mesh), max_shapes=1)
    batches = put_batches(packed, documents.targets_NC, mesh)
    state = init_state(start, make_optimizer(settings), STEPS, mesh)
    step = compile_step(StepSpec(config, settings, STEPS, ("xent", ())), mesh, frozen)
    for number in range(STEPS):
        state = step(state, batches.at(number))
    params = state.params
    if kept is not None:
        assert vocabulary.embedding(params).shape[0] == len(kept.kept_U) == 16
        params = kept.whole(params, rows)
    return jax.device_get(params), jax.device_get(state.history)[:STEPS], np.asarray(rows)


@pytest.mark.medium
@pytest.mark.parametrize("mesh_shape", [(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)])
def test_the_result_is_that_of_the_whole_vocabulary(mesh_shape):
    settings = TrainSettings(learning_rate=1e-2, batch_size=8)
    part, part_history, _ = trained(mesh_shape, settings, True)
    every, history, original = trained(mesh_shape, settings, False)
    np.testing.assert_allclose(part_history, history, rtol=1e-5, atol=1e-6)
    for one, other in zip(jax.tree.leaves(part), jax.tree.leaves(every), strict=True):
        # Adam turns gradients that are zero but for rounding (of biases of keys) into small steps.
        np.testing.assert_allclose(one, other, atol=2e-4)
    moved = np.flatnonzero((vocabulary.embedding(part) != original).any(1))
    np.testing.assert_array_equal(moved, [3, 77, 78, 401, 499])


@pytest.mark.parametrize(
    "change",
    [
        {"adapt": "lora"},
        {"optimizer": "adafactor"},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_nothing_is_cut_where_other_rows_move_or_none_does(change):
    config = dataclasses.replace(testing.tiny_model(), vocab_size=VOCABULARY)
    documents = made_documents([3, 77])
    settings = TrainSettings(learning_rate=1e-2)
    assert vocabulary.occurring(documents, config, settings) is not None
    changed = dataclasses.replace(settings, **change)
    assert vocabulary.occurring(documents, config, changed) is None


def test_nothing_is_cut_where_most_tokens_occur(monkeypatch):
    config = dataclasses.replace(testing.tiny_model(), vocab_size=VOCABULARY)
    settings = TrainSettings(learning_rate=1e-2)
    many = made_documents(np.arange(450), count=200)
    assert vocabulary.occurring(many, config, settings) is None
    monkeypatch.setattr(vocabulary, "LEAST_NUMBERS", 10**9)
    assert vocabulary.occurring(made_documents([3]), config, settings) is None
