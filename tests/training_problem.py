"""A tiny classification problem for tests of the training program, and what trains on it."""

import functools

import jax
import numpy as np
import optax
import pytest

from w2s_jax import sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.data import packing
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import soft_labels, tokenize
from w2s_jax.models import network
from w2s_jax.training import optimizer, population, programs
from w2s_jax.training import step as step_module
from w2s_jax.training.batch_sources import compile_for, put_batches
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state

BATCH = 8
STEPS = 4


@functools.cache
def problem():
    """(a one-layer model, 24 ragged documents, parameters with a random head), on the host."""
    rng = np.random.default_rng(0)
    config = testing.tiny_model(vocab_size=32, num_layers=1)
    docs = [
        Document(id=i, tokens=tuple(rng.integers(1, 31, n).tolist()), soft_label=float(p))
        for i, (n, p) in enumerate(zip(rng.integers(3, 20, 24), rng.uniform(size=24), strict=True))
    ]
    documents = tokenize(docs, None, max_length=None, overlong="error")[0]
    backbone = jax.device_get(network.init_params(config, 0, sharding.mesh_of((1, 1, 1))))
    backbone = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"), backbone)
    head = {"kernel": rng.normal(size=(16, 2)).astype(np.float32)}
    return config, documents, {"backbone": backbone, "head": head}


def targets():
    return soft_labels(problem()[1].labels_N)


def order(seed=0):
    """Three batches of each epoch, int32 [S, B]."""
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(24) for _ in range(-(-STEPS // 3))]
    return np.concatenate(epochs).reshape(-1, BATCH)[:STEPS].astype(np.int32)


def padded(rows):
    """Documents, each alone in a row: tokens [n, L] (zeros behind), lengths [n]."""
    documents = problem()[1]
    tokens = np.zeros((len(rows), documents.longest), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : documents.lengths_N[row]] = documents.document(row, 0)
    return tokens, documents.lengths_N[rows]


def plain_descent(monkeypatch):
    """Makes steps the learning rate times the gradient; forgets programs, now and when asked to."""
    for module in (optimizer, step_module, programs):
        monkeypatch.setattr(module, "make_optimizer", lambda _: optax.identity())
    forget_programs()


def forget_programs():
    programs.programs.cache_clear()
    population._program.cache_clear()


@pytest.fixture
def descent(monkeypatch):
    plain_descent(monkeypatch)
    yield
    forget_programs()


def make_spec(loss=("xent", ()), *, seed=0, **changes):
    settings = {"batch_size": BATCH, "learning_rate": 0.5, "schedule": "constant"} | changes
    return StepSpec(problem()[0], TrainSettings(**settings), STEPS, loss, seed=seed)


def fresh(spec, mesh, *, targets_NC=None, params=None):
    state_params = jax.device_put(params or problem()[2], sharding.replicated(mesh))
    return init_state(
        state_params,
        optimizer.make_optimizer(spec.train),
        STEPS,
        mesh,
        average=spec.train.ema > 0,
        loss_state=spec.loss_state(targets() if targets_NC is None else targets_NC),
    )


def placed(spec, mesh, *, order_SB=None, targets_NC=None, rows=None, labels=True):
    """The batches on the mesh; `rows` is what the number of their rows is a multiple of."""
    micro = spec.train.microbatch_size or BATCH
    packed = packing.pack(
        problem()[1],
        order() if order_SB is None else order_SB,
        num_microbatches=BATCH // micro,
        row_multiple=rows or sharding.row_shards(mesh),
    )
    targets_NC = targets() if targets_NC is None else targets_NC
    return put_batches(packed, targets_NC if labels else None, mesh, spec.extras)


def runner(spec, mesh, frozen, batches):
    """(state, first, last) -> the state after these steps, dispatched as the loop does."""
    return functools.partial(batches.advance, compile_for(batches, spec, mesh, frozen))


def flat(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)
