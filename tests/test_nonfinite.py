"""--debug_nans: which operation of a failed step is not finite, and where it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_problem import order, problem, targets

from w2s_jax import losses, sharding, testing
from w2s_jax.config import TrainSettings
from w2s_jax.config.declarations import LOSSES
from w2s_jax.data import packing
from w2s_jax.data.tokenize import soft_labels
from w2s_jax.training.batch_sources import put_batches, put_feature_batches
from w2s_jax.training.nonfinite import locate
from w2s_jax.training.optimizer import make_optimizer
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import init_state


def one_device():
    return sharding.mesh_of((1, 1, 1))


def log_of_a_negative_number(margin_B):
    return jnp.log(margin_B - 1e3)


def log_of_zero(margin_B):
    return jnp.log(0.0 * margin_B)


def root_of_zero(margin_B):
    return 0.0 * jnp.sqrt(0.0 * margin_B)


@pytest.fixture
def loss_of():
    def register(term):
        def loss(logits_BC, targets_BC, step_fraction, *, weights_B):
            return jnp.mean(weights_B * term(logits_BC[:, 1] - logits_BC[:, 0]))

        losses.register("mine")(loss)
        return "mine", ()

    yield register
    LOSSES.pop("mine")


def probe(term_spec):
    """Spec, mesh, frozen parameters, state and batch of a probe whose features are all 1."""
    mesh, train = one_device(), TrainSettings(learning_rate=1e-3, batch_size=8, adapt="probe")
    spec = StepSpec(testing.tiny_model(), train, 4, term_spec)
    order = np.arange(32, dtype=np.int32).reshape(4, 8) % 24
    batches = put_feature_batches(order, soft_labels(np.linspace(0, 1, 24)), mesh)
    arrays = {"features_NKD": jnp.ones((24, 1, 16))}, {"head": {"kernel": jnp.ones((16, 2))}}
    frozen, params = jax.device_put(arrays, sharding.replicated(mesh))
    return spec, mesh, frozen, init_state(params, make_optimizer(train), 4, mesh), batches.at(0)


def finetuning(term_spec):
    """The same of a transformer, in two microbatches."""
    config, documents, params = problem()
    mesh, train = one_device(), TrainSettings(learning_rate=1e-3, batch_size=8, microbatch_size=4)
    packed = packing.pack(documents, order(), num_microbatches=2)
    params = jax.device_put(params, sharding.replicated(mesh))
    state = init_state(params, make_optimizer(train), 4, mesh)
    batch = put_batches(packed, targets(), mesh).at(0)
    return StepSpec(config, train, 4, term_spec), mesh, {}, state, batch


CASES = [
    (log_of_a_negative_number, "NaN in log at "),
    (log_of_zero, "from inf in div at "),
    # Only the gradient is not finite.
    (root_of_zero, "from inf in div at "),
]


@pytest.mark.parametrize("term,words", CASES)
def test_the_operation_and_its_line_are_found(loss_of, term, words):
    spec, mesh, frozen, state, batch = probe(loss_of(term))
    text = locate(spec, mesh, frozen, state, batch)
    line = term.__code__.co_firstlineno + 1
    assert words in text and f"test_nonfinite.py:{line}: return" in text
    assert np.isfinite(jax.device_get(state.params["head"]["kernel"])).all()
    finite = dataclasses.replace(spec, loss=("xent", ()))
    assert "no operation" in locate(finite, mesh, frozen, state, batch)


@pytest.mark.medium
def test_masks_with_infinities_are_not_blamed(loss_of):
    spec, *problem = finetuning(loss_of(log_of_a_negative_number))
    line = log_of_a_negative_number.__code__.co_firstlineno + 1
    assert locate(spec, *problem).startswith("NaN in log at ")
    assert f"test_nonfinite.py:{line}: return" in locate(spec, *problem)
    assert "no operation" in locate(dataclasses.replace(spec, loss=("xent", ())), *problem)
