"""Invariances of the decoder (for outputs see test_families, for gradients test_golden_gpt2)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from jax.extend.core import jaxprs_in_params

from w2s_jax import models, sharding, testing
from w2s_jax.core import errors
from w2s_jax.models import heads, network
from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model

SMALL = [
    embedded_model(name, vocab_size=29, max_positions=40) for name in ("gpt-d16", "rotary-d32")
]


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens, segments=None):
    """Call `models.forward` compiled, as dispatching single operations is slow."""
    return models.forward(config, params, tokens, segments)


def one_device():
    return sharding.mesh_of((1, 1, 1))


def assert_close(ours, theirs):
    """Compare to 1e-6 of each array's largest entry, and a few roundings."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * (1 + np.abs(b).max())),
        ours,
        theirs,
    )


def objective(config, params, scan, remat):
    tokens = np.random.default_rng(0).integers(0, 29, (3, 17))
    hidden = models.forward(config, params, tokens, scan=scan, remat=remat)
    return jnp.sum(jnp.sin(hidden)) / hidden.size


@pytest.mark.medium
@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_scanned_unrolled_and_rematerialised_layers_agree(config):
    params = network.init_params(config, 0, one_device())

    def value(scan, remat):
        return jax.jit(jax.value_and_grad(lambda p: objective(config, p, scan, remat)))(params)

    reference = value(False, "none")
    for scan, remat in ((False, "block"), (True, "dots")):
        assert_close(value(scan, remat), reference)


@pytest.mark.parametrize("scan", [False, True])
def test_remat_keeps_all_or_projections_or_nothing_of_a_block(scan):
    """Bytes kept from the forward for the backward pass, without parameters and inputs."""
    config = dataclasses.replace(SMALL[1], lora_rank=2, lora_alpha=1.0, lora_targets=("mlp.up",))
    params = network.abstract_params(config, one_device())
    rows, length, layers = 3, 64, config.num_layers

    def kept(remat, dtype):
        def run(params):
            tokens = np.zeros((rows, length), np.int32)
            return models.forward(
                config, params, tokens, scan=scan, remat=remat, compute_dtype=dtype
            )

        pull = jax.eval_shape(lambda p: jax.vjp(run, p)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull))

    d, f = config.d_model, config.d_mlp
    # Query, key, value and out, gate and up, and the adapter's rank; down is not needed.
    projected = rows * length * layers * (4 * d + 2 * f + config.lora_rank)
    for dtype in (jnp.float32, jnp.bfloat16):
        none, block, dots = (kept(remat, dtype) for remat in ("none", "block", "dots"))
        assert dots - block == projected * jnp.dtype(dtype).itemsize
        assert none > 2 * dots


def test_an_unknown_remat_is_refused():
    with pytest.raises(errors.InputError, match="remat.*'blocks'.*'block'.*dots"):
        objective(SMALL[0], {}, True, "blocks")


@pytest.fixture(scope="module")
def gemma(golden):
    """Three layers with different reaches."""
    config, params = peers.load(golden / "models" / "gemma3")
    assert config.local_layers and config.num_layers == 3
    return config, jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("scan", [False, True])
def test_a_separate_tail_changes_neither_values_nor_gradients(gemma, scan):
    config, params = gemma

    def value(params):
        run = jax.value_and_grad(lambda p: objective(config, p, scan, "none"))
        return jax.jit(run)(params)

    wanted, grads = value(params)
    split = network.split_tail(config, params, 1)
    assert split["tail_blocks"]["mlp"]["up"]["kernel"].shape[0] == 1
    jax.tree.map(np.testing.assert_array_equal, network.join_tail(split), params)
    ours, apart = value(split)
    assert_close((ours, network.join_tail(apart)), (wanted, grads))
    all_apart = network.split_tail(config, params, 3)
    assert "blocks" not in all_apart
    assert_close(jax.jit(lambda p: objective(config, p, scan, "none"))(all_apart), wanted)
    jax.tree.map(np.testing.assert_array_equal, network.join_tail(all_apart), params)


def test_a_separate_tail_keeps_the_sharding_of_its_layers():
    config = embedded_model("gpt-d32", vocab_size=32, max_positions=40)
    mesh = sharding.mesh_of((2, 2, 2))
    params = network.init_params(config, 3, mesh)
    abstract = network.split_tail(config, network.abstract_params(config, mesh), 1)
    split = network.split_tail(config, params, 1)
    assert jax.tree.map(lambda x: (x.shape, x.sharding), split) == jax.tree.map(
        lambda a: (a.shape, a.sharding), abstract
    )
    for k in (0, 3):
        with pytest.raises(errors.InputError, match=f"last_layers: {k}; allowed for .*: 1 to 2"):
            network.split_tail(config, params, k)


def _matmuls(jaxpr, times=1):
    """Matrix multiplications that a jaxpr runs."""
    count = 0
    for equation in jaxpr.eqns:
        turns = times * equation.params["length"] if equation.primitive.name == "scan" else times
        count += times * (equation.primitive.name == "dot_general")
        count += sum(_matmuls(inner, turns) for inner in jaxprs_in_params(equation.params))
    return count


@pytest.mark.medium
@pytest.mark.parametrize("remat", ["none", "block", "dots"])
@pytest.mark.parametrize("scan", [False, True])
def test_training_the_tail_runs_no_backward_pass_below_it(scan, remat):
    def counts(num_layers, k):
        config = testing.tiny_model(vocab_size=29, num_layers=num_layers)
        shapes = jax.eval_shape(
            lambda p: network.split_tail(config, p, k),
            network.abstract_params(config, one_device()),
        )

        def loss(tail, params):
            return objective(config, params | {"tail_blocks": tail}, scan, remat)

        forward = jax.make_jaxpr(loss)(shapes["tail_blocks"], shapes)
        both = jax.make_jaxpr(jax.grad(loss))(shapes["tail_blocks"], shapes)
        return _matmuls(forward.jaxpr), _matmuls(both.jaxpr)

    (shallow, shallow_both), (deep, deep_both) = counts(2, 1), counts(4, 1)
    assert deep == 2 * shallow
    assert deep_both - deep == shallow_both - shallow
    assert counts(4, 3)[1] > deep_both + shallow


@pytest.mark.parametrize("config", SMALL, ids=lambda c: c.name)
def test_a_token_attends_to_its_past_and_nothing_else(config):
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
def test_the_parameter_formula_counts_all_parameters(name):
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
    # init_std is 1 / sqrt(32), divided by sqrt(4) for projections into the residual stream.
    assert np.std(alone["blocks"]["mlp"]["up"]["kernel"]) == pytest.approx(0.1768, rel=0.05)
    assert np.std(alone["blocks"]["mlp"]["down"]["kernel"]) == pytest.approx(0.0884, rel=0.05)


def test_bfloat16_compute_stays_near_float32():
    config = SMALL[1]
    params = network.init_params(config, 0, one_device())
    tokens = np.random.default_rng(0).integers(0, 29, (2, 16))
    exact = forward(config, params, tokens)
    half = jax.jit(lambda p: models.forward(config, p, tokens, compute_dtype=jnp.bfloat16))(params)
    assert half.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    # The final norm gives entries of order 1; bfloat16 has 8 bits.
    np.testing.assert_allclose(half.astype(jnp.float32), exact, atol=0.06)


def test_the_paper_head_is_two_columns_of_the_unembedding(golden):
    config, params = peers.load(golden / "llama")
    head = heads.init_class_head("unembedding", config, params, (5, 9), one_device())
    np.testing.assert_array_equal(head["kernel"], params["unembedding"][:, [5, 9]])
    tied, params = peers.load(golden / "gpt2")
    head = heads.init_class_head("unembedding", tied, params, (5, 9), one_device())
    np.testing.assert_array_equal(head["kernel"], params["embedding"][[5, 9]].T)
    assert not np.any(heads.init_class_head("zeros", tied, params, (5, 9), one_device())["kernel"])


def test_invalid_model_configs_are_refused():
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
    head = heads.init_class_head("unembedding", config, params, (zero, one), one_device(), 1)
    wanted = params["unembedding"][:, one] - params["unembedding"][:, zero]
    np.testing.assert_array_equal(head["kernel"][:, 0], wanted)
    assert heads.init_class_head("zeros", config, params, (0, 0), one_device(), 1)[
        "kernel"
    ].shape == (config.d_model, 1)
