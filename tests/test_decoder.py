"""The decoder's invariances (outputs: test_families, gradients: test_golden_gpt2)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from w2s_jax import errors, models, sharding, testing
from w2s_jax.models import heads, network
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model

SMALL = [
    embedded_model(name, vocab_size=29, max_positions=40) for name in ("gpt-d16", "rotary-d32")
]


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens, segments=None):
    """`models.forward`, compiled: dispatching operation by operation is slow."""
    return models.forward(config, params, tokens, segments)


def one_device():
    return sharding.mesh_of((1, 1, 1))


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_scanned_unrolled_and_rematerialised_layers_agree(config):
    params = network.init_params(config, 0, one_device())
    tokens = np.random.default_rng(0).integers(0, 29, (3, 17))

    def value(scan, remat):
        def loss(params):
            hidden = models.forward(config, params, tokens, scan=scan, remat=remat)
            return jnp.sum(jnp.sin(hidden))

        return jax.jit(jax.value_and_grad(loss))(params)

    reference = value(False, "none")
    for scan, remat in ((True, "block"),):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            value(scan, remat),
            reference,
        )


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_a_token_sees_its_own_past_and_nothing_else(config):
    params = network.init_params(config, 0, one_device())
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 29, (1, 20))
    segments = np.repeat([1, 2, 0], [8, 9, 3])[None]
    base = np.asarray(forward(config, params, tokens, segments))[0]
    for changed in range(17):
        other = tokens.copy()
        other[0, changed] = (other[0, changed] + 1) % 29
        moved = np.abs(np.asarray(forward(config, params, other, segments))[0] - base)
        moves = moved.max(axis=1) > 1e-6
        same_segment = segments[0] == segments[0, changed]
        expected = same_segment & (np.arange(20) >= changed)
        np.testing.assert_array_equal(moves[:17], expected[:17])


@pytest.mark.parametrize("name", sorted(EMBEDDED_MODELS))
def test_the_parameter_formula_counts_what_is_made(name):
    config = embedded_model(name, vocab_size=29, max_positions=40)
    abstract = network.abstract_params(config, one_device())
    assert sum(x.size for x in jax.tree.leaves(abstract)) == config.num_parameters()


def test_initialisation_is_sharded_and_the_same_bits_on_any_mesh():
    config = embedded_model("gpt-d32", vocab_size=32, max_positions=40)
    alone = network.init_params(config, 3, one_device())
    mesh = sharding.mesh_of((2, 2, 2))
    spread = network.init_params(config, 3, mesh)
    kernel = spread["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16, 64)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(alone), jax.device_get(spread))
    # init_std is 1 / sqrt(32); what leads back into the residual stream has it over sqrt(4).
    assert np.std(alone["blocks"]["mlp"]["up"]["kernel"]) == pytest.approx(0.1768, rel=0.05)
    assert np.std(alone["blocks"]["mlp"]["down"]["kernel"]) == pytest.approx(0.0884, rel=0.05)


def test_bfloat16_compute_stays_near_float32():
    config = SMALL[1]
    params = network.init_params(config, 0, one_device())
    tokens = np.random.default_rng(0).integers(0, 29, (2, 16))
    exact = forward(config, params, tokens)
    half = jax.jit(lambda p: models.forward(config, p, tokens, compute_dtype=jnp.bfloat16))(params)
    assert half.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    # The final norm makes entries of order 1; bfloat16 keeps 8 bits.
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.06)


def test_the_paper_head_is_two_columns_of_the_unembedding(golden):
    config, params = peers.load(golden / "llama")
    head = heads.init_class_head("unembedding", config, params, (5, 9), one_device())
    np.testing.assert_array_equal(head["kernel"], params["unembedding"][:, [5, 9]])
    tied, params = peers.load(golden / "gpt2")
    head = heads.init_class_head("unembedding", tied, params, (5, 9), one_device())
    np.testing.assert_array_equal(head["kernel"], params["embedding"][[5, 9]].T)
    assert not np.any(heads.init_class_head("zeros", tied, params, (5, 9), one_device())["kernel"])


def test_a_model_config_refuses_what_it_cannot_be():
    good = SMALL[0].to_dict()
    for field, value, hint in (
        ("norm", "layer_norm", "layernorm"),
        ("positions", "rotary", "rope"),
        ("activation", "gelu_new", "gelu"),
        ("num_kv_heads", 3, "num_heads"),
        ("shared_norm", True, "parallel_residual"),
    ):
        with pytest.raises(errors.InputError, match=f"model.{field}.*{hint}"):
            ModelConfig(**(good | {field: value}))


def test_a_reward_starts_as_the_difference_of_the_label_tokens():
    """So that the better text is the one after which "1" is likelier than "0"."""
    config = testing.tiny_model(tied_embeddings=False)
    params = network.init_params(config, 0, one_device())
    (zero, one) = (5, 9)
    head = heads.init_class_head("unembedding", config, params, (zero, one), one_device(), 2)
    wanted = params["unembedding"][:, one] - params["unembedding"][:, zero]
    np.testing.assert_array_equal(head["kernel"][:, 0], wanted)
    assert heads.init_class_head("zeros", config, params, (0, 0), one_device(), 2)[
        "kernel"
    ].shape == (config.d_model, 1)
