"""Low-rank adapters against merged weights, and what they cost."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refusals
from checkpoints import assert_same_bits, one, whole
from flax import nnx, traverse_util
from jax.extend.core import jaxprs_in_params

from w2s_jax import models, sharding, testing
from w2s_jax.models import layers, lora, network

TOKENS = np.random.default_rng(0).integers(0, 259, (2, 9))

#: Every kind of projection: grouped keys, a gate, biases.
BASE = testing.tiny_model(num_kv_heads=1, gated_mlp=True)
CONFIG = BASE.with_adapters(3, 5.0, ["*"])


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(config, params, tokens, dtype=None):
    return models.forward(config, params, tokens, compute_dtype=dtype)


@functools.cache
def base():
    return network.init_params(BASE, 4, one())


@functools.cache
def fresh():
    return lora.add(CONFIG, base(), 4, one())


def filled(params):
    """Return parameters with nonzero adapters and the same sharding."""
    draw = np.random.default_rng(1)

    def fill(path, x):
        value = np.float32(0.1 * draw.standard_normal(x.shape))
        return jax.device_put(value, x.sharding) if path[-1].key == "lora_b" else x

    return jax.tree_util.tree_map_with_path(fill, params)


@functools.cache
def trained():
    return filled(fresh())


def parts(params):
    """(adapters, the other parameters), each by flat path."""
    flat = traverse_util.flatten_dict(params, sep=".")
    adapters = {path: x for path, x in flat.items() if lora.is_adapter(path)}
    return adapters, {path: x for path, x in flat.items() if path not in adapters}


def nested(*flats):
    return traverse_util.unflatten_dict({k: v for f in flats for k, v in f.items()}, sep=".")


def objective(config, params):
    return jnp.sum(jnp.sin(models.forward(config, params, TOKENS)))


def test_names_follow_the_model_and_patterns():
    names = tuple(BASE.projections())
    assert CONFIG.lora_targets == names and len(names) == 7
    assert "mlp.gate" not in testing.tiny_model().projections()
    some = BASE.with_adapters(2, 1.0, ("mlp.up", "attention.[qv]*", "mlp.up"))
    assert some.lora_targets == ("attention.query", "attention.value", "mlp.up")
    kernels = {p.removesuffix(".kernel") for p in parts(trained())[1] if p.endswith(".kernel")}
    assert kernels == {f"blocks.{name}" for name in names}


@pytest.mark.parametrize(
    "rank,alpha,patterns,said",
    [
        (4, 1.0, ["attention.qery"], ["lora.targets", "'attention.qery'", "'attention.query'"]),
        (4, 1.0, ["mlp.*", "head*"], ["lora.targets", "'head*'", "mlp.down"]),
        (4, 1.0, [], ["lora.targets", "mlp.down"]),
        (0, 1.0, ["*"], ["lora.rank", "0", "at least 1"]),
        (4, 0.0, ["*"], ["lora.alpha", "0.0", "above 0"]),
    ],
)
def test_invalid_adapters_are_refused(rank, alpha, patterns, said):
    message = refusals.error(BASE.with_adapters, rank, alpha, patterns)
    assert all(part in message for part in said), message


def test_adapters_are_counted_exactly():
    for patterns in (["*"], ["attention.out", "mlp.down"]):
        config = BASE.with_adapters(3, 5.0, patterns)
        adapters, rest = parts(network.abstract_params(config, one()))
        assert sum(x.size for x in adapters.values()) == config.num_adapter_parameters()
        assert sum(x.size for x in rest.values()) == config.num_parameters()
        assert len(adapters) == 2 * len(config.lora_targets)
    assert BASE.num_adapter_parameters() == 0


def test_fresh_adapters_change_no_bit_and_copy_nothing():
    params = fresh()
    for path, x in parts(params)[1].items():
        assert x is traverse_util.flatten_dict(base(), sep=".")[path]
    np.testing.assert_array_equal(forward(CONFIG, params, TOKENS), forward(BASE, base(), TOKENS))
    for path, x in parts(params)[0].items():
        assert x.dtype == jnp.float32
        if path.endswith("lora_b"):
            assert not np.any(x)
            continue
        # As torch.nn.Linear, which PEFT uses: uniform within 1 / sqrt(inputs).
        bound = np.prod(x.shape[1:-1]) ** -0.5
        assert 0.9 * bound < np.abs(x).max() <= bound and abs(np.mean(x)) < 0.3 * bound
        assert not np.array_equal(x[0], x[1])


def test_a_model_made_with_adapters_has_the_base_and_adapters_of_its_seed():
    assert_same_bits(whole(network.init_params(CONFIG, 4, one())), whole(fresh()))
    other = lora.add(CONFIG, base(), 5, one())
    assert not np.array_equal(
        other["blocks"]["mlp"]["up"]["lora_a"], fresh()["blocks"]["mlp"]["up"]["lora_a"]
    )


@pytest.mark.parametrize(
    "equation,shape",
    [
        ("rld,dhe->rlhe", (6, 2, 4)),
        ("rlhe,hed->rld", (2, 4, 6)),
        ("rld,df->rlf", (6, 5)),
        ("rlf,fd->rld", (5, 6)),
    ],
)
def test_one_projection_is_its_closed_form(equation, shape):
    """y = x W + (alpha / rank) x A B + bias, with matrices in float64."""
    config = testing.tiny_model(lora_rank=3, lora_alpha=5.0, lora_targets=("mlp.up",))
    axes = ("embed",) * len(shape)
    with nnx.use_eager_sharding(False):
        module = layers.Projection(
            config, nnx.Rngs(0), "mlp.up", equation, shape, axes, std=1.0, bias_axes=1
        )
    _, state = nnx.split(module)
    draw = np.random.default_rng(0)
    values = {k: draw.standard_normal(v.shape) for k, v in nnx.to_pure_dict(state).items()}
    nnx.update(module, jax.tree.map(jnp.float32, values))
    inputs = len(equation.split(",")[0]) - 2
    x = draw.standard_normal((2, 7, *shape[:inputs]))
    flat = x.reshape(14, -1)
    w, a, b = values["kernel"], values["lora_a"], values["lora_b"]
    wanted = flat @ w.reshape(flat.shape[1], -1)
    wanted += 5 / 3 * (flat @ a.reshape(-1, 3)) @ b.reshape(3, -1)
    wanted = wanted.reshape(2, 7, *shape[inputs:]) + values["bias"]
    np.testing.assert_allclose(module(jnp.float32(x)), wanted, rtol=1e-5, atol=1e-5)


def test_merged_weights_compute_what_adapters_do():
    config, merged = lora.merge(CONFIG, trained())
    assert config == BASE
    rest = parts(trained())[1]
    assert parts(merged)[1].keys() == rest.keys() and not parts(merged)[0]
    ours = forward(CONFIG, trained(), TOKENS)
    np.testing.assert_allclose(ours, forward(BASE, merged, TOKENS), atol=2e-5)
    assert np.abs(ours - forward(BASE, base(), TOKENS)).max() > 0.1
    # Parameters without an adapter are not copied.
    assert merged["embedding"] is trained()["embedding"]
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base())
    _, rounded = lora.merge(CONFIG, nested(parts(trained())[0], parts(half)[1]))
    w, a, b = (
        np.asarray(x, np.float64)
        for x in (
            half["blocks"]["mlp"]["up"]["kernel"],
            *(trained()["blocks"]["mlp"]["up"][leaf] for leaf in ("lora_a", "lora_b")),
        )
    )
    kernel = rounded["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    np.testing.assert_allclose(kernel.astype(jnp.float32), w + 5 / 3 * a @ b, rtol=2**-8)


def test_gradients_are_those_of_merged_weights_by_the_chain_rule():
    """dA = s dW Bᵀ and dB = s Aᵀ dW, with W of the merged model."""
    adapters, rest = parts(trained())
    ours = jax.jit(jax.grad(lambda a: objective(CONFIG, nested(a, rest))))(adapters)
    _, merged = lora.merge(CONFIG, trained())
    dense = parts(jax.jit(jax.grad(functools.partial(objective, BASE)))(merged))[1]
    for name in CONFIG.lora_targets:
        a, b = (np.asarray(adapters[f"blocks.{name}.{leaf}"]) for leaf in ("lora_a", "lora_b"))
        for layer in range(BASE.num_layers):
            flat_a, flat_b = a[layer].reshape(-1, 3), b[layer].reshape(3, -1)
            dw = np.asarray(dense[f"blocks.{name}.kernel"][layer]).reshape(len(flat_a), -1)
            wanted = {"lora_a": 5 / 3 * dw @ flat_b.T, "lora_b": 5 / 3 * flat_a.T @ dw}
            for leaf, value in wanted.items():
                grad = ours[f"blocks.{name}.{leaf}"][layer].reshape(value.shape)
                scale = np.abs(value).max()
                np.testing.assert_allclose(grad, value, atol=2e-5 * scale + 1e-6, err_msg=name)


def _shapes(jaxpr):
    """Shapes of the results of a jaxpr's matrix multiplications, including nested ones."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.outvars[0].aval.shape
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes(inner)


@pytest.mark.parametrize("scan", [False, True])
def test_no_gradient_of_a_kernel_is_computed(scan):
    adapters, rest = parts(trained())

    def loss(adapters, rest):
        return jnp.sum(models.forward(CONFIG, nested(adapters, rest), TOKENS, scan=scan) ** 2)

    def made(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(adapters, rest)
        return {tuple(sorted(shape)) for shape in _shapes(jaxpr.jaxpr)}

    def matrix(path, shape):
        inputs = 2 if "attention.out" in path else 1
        return tuple(sorted((math.prod(shape[:inputs]), math.prod(shape[inputs:]))))

    kernels = {matrix(p, x.shape[1:]) for p, x in rest.items() if p.endswith(".kernel")}
    assert not kernels & made(0)
    assert kernels <= made((0, 1))


def test_bfloat16_stays_near_float32():
    exact = forward(CONFIG, trained(), TOKENS)
    half = forward(CONFIG, trained(), TOKENS, jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    error = np.linalg.norm(half.astype(jnp.float32) - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.02


@pytest.mark.medium
def test_shards_on_eight_devices_compute_the_same():
    plain = testing.tiny_model()
    config = plain.with_adapters(4, 8.0, ["*"])
    made = {}
    for name, mesh in (("one", one()), ("eight", sharding.mesh_of((2, 2, 2)))):
        shardings = jax.tree.map(lambda a: a.sharding, network.abstract_params(plain, mesh))
        start = made.get("one") or network.init_params(plain, 0, one())
        start = nested(parts(start)[1])
        made[name] = lora.add(config, jax.device_put(start, shardings), 1, mesh)
    assert_same_bits(whole(made["one"]), whole(made["eight"]))
    query = made["eight"]["blocks"]["attention"]["query"]
    assert query["lora_a"].sharding.shard_shape((2, 16, 4)) == (2, 8, 4)
    assert query["lora_b"].sharding.shard_shape((2, 4, 2, 8)) == (2, 4, 1, 8)

    shifted = {name: filled(params) for name, params in made.items()}
    grads = {
        name: jax.jit(jax.value_and_grad(functools.partial(objective, config)))(params)
        for name, params in shifted.items()
    }
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * (1 + np.abs(b).max())),
        *(jax.device_get(grads[name]) for name in ("eight", "one")),
    )
    merged = {name: lora.merge(config, params)[1] for name, params in shifted.items()}
    for path, x in parts(merged["eight"])[1].items():
        assert x.sharding == parts(shifted["eight"])[1][path].sharding, path
        np.testing.assert_allclose(x, parts(merged["one"])[1][path], atol=1e-5)


def test_peft_folders_are_refused_before_anything_is_written(tmp_path):
    folder = tmp_path / "new"
    message = refusals.error(lora.save_peft, BASE, base(), folder, base_model="x")
    assert "tiny" in message and "no adapters" in message
    mixed = refusals.error(lora.save_peft, CONFIG, trained(), folder, base_model="x")
    assert "tiny" in mixed and "any family" in mixed
    config = testing.tiny_model().with_adapters(3, 5.0, ["*"])
    (tmp_path / "notes.txt").touch()
    message = refusals.error(lora.save_peft, config, {}, tmp_path, base_model="x")
    assert str(tmp_path) in message
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
