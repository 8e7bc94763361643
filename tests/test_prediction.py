"""The label pass: the same logits by pmap, by a sharded program, and one document at a time."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest

from w2s_jax import sharding, testing
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import tokenize
from w2s_jax.models import heads, network
from w2s_jax.models.inference import fits_on_one_device
from w2s_jax.training.prediction import Predictor, probabilities


@functools.cache
def problem(num_texts):
    """A tiny model, 37 documents, and the logits of each, computed with one text a row."""
    rng = np.random.default_rng(0)
    config = testing.tiny_model(vocab_size=32)
    docs = [
        Document(id=i, tokens=tuple(rng.integers(1, 32, n).tolist()), label=i % 2)
        for i, n in enumerate(rng.integers(2, 30, 37 * num_texts))
    ]
    documents = tokenize(docs, None, max_length=None, overlong="error")[0]
    documents = dataclasses.replace(documents, num_texts=num_texts, ids_N=documents.ids_N[:37])
    params = {
        "backbone": jax.device_get(network.init_params(config, 0, sharding.mesh_of((1, 1, 1)))),
        "head": {"kernel": rng.normal(size=(16, 2 // num_texts)).astype(np.float32)},
    }
    lengths = documents.piece_lengths_P
    tokens = np.zeros((len(lengths), 1, lengths.max()), np.int32)
    for i, n in enumerate(lengths):
        tokens[i, 0, :n] = documents.document(*divmod(i, num_texts))

    @jax.jit
    def alone(params):
        def one(item):
            hidden = network.forward(config, params["backbone"], item[0])
            return heads.class_logits(params["head"], hidden[:, item[1] - 1])[0]

        return jax.lax.map(one, (tokens, lengths)).reshape(37, 2)

    return config, documents, params, np.asarray(alone(params))


@pytest.mark.parametrize("batch_size", [3, 64])
@pytest.mark.parametrize("per_device", [True, False])
@pytest.mark.parametrize("num_texts", [1, 2])
@pytest.mark.medium
def test_every_way_gives_each_document_its_own_logits(num_texts, per_device, batch_size):
    config, documents, params, wanted = problem(num_texts)
    mesh = sharding.make_mesh()
    assert mesh.devices.size == 8
    params = jax.device_put(params, sharding.replicated(mesh))
    predictor = Predictor(config, documents, mesh, batch_size=batch_size, per_device=per_device)
    np.testing.assert_allclose(predictor(params), wanted, rtol=1e-5, atol=1e-5)


def test_probabilities_are_exact_at_the_ends():
    logits = np.array([[0, 0], [1000, -1000], [-90, 10], [2, 1]], np.float32)
    p = probabilities(logits)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-7)
    assert p[0].tolist() == [0.5, 0.5] and p[1].tolist() == [1, 0]
    assert p[2, 0] == pytest.approx(np.exp(-100), abs=1e-38)
    assert p[3, 1] == pytest.approx(1 / (1 + np.e), rel=1e-6)


def test_one_long_document_does_not_make_all_rows_long():
    rng = np.random.default_rng(0)
    lengths = np.append(rng.integers(20, 60, 600), [3000, 2500, 2900])
    docs = [Document(id=i, tokens=(1,) * int(n), label=i % 2) for i, n in enumerate(lengths)]
    documents = tokenize(docs, None, max_length=None, overlong="error")[0]
    config = testing.tiny_model(max_positions=3000)
    one = sharding.mesh_of((1, 1, 1))
    predictor = Predictor(config, documents, one, per_device=False)
    assert predictor.real_token_share > 0.75
    rows = {batch.tokens_RL.shape[-1] for _, batch in predictor.dispatches}
    assert len(rows) <= 6 and min(rows) < 500 and max(rows) >= 3000
    placed = np.concatenate([order for order, _ in predictor.dispatches])
    assert sorted(placed[placed >= 0]) == list(range(603))


@pytest.mark.parametrize(
    "dtype,compute_dtype,least",
    [("f4", "bfloat16", 2 * 6000), ("f4", "float32", 2 * 8000), ("f2", "bfloat16", 2 * 4000)],
)
def test_a_device_is_alone_with_a_model_if_two_copies_take_half_of_it(
    monkeypatch, dtype, compute_dtype, least
):
    params = {"kernel": np.zeros((10, 100), dtype)}
    for limit, fits in ((least, True), (least - 1, False), (None, True)):
        stats = None if limit is None else {"bytes_limit": limit}
        device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert fits_on_one_device(params, compute_dtype) == fits
