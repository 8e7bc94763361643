"""Products with weights: values and gradients against einsum in float64, and what is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from w2s_jax import sharding
from w2s_jax.models import matmul
from w2s_jax.models.matmul import contract

EQUATIONS = {
    "inward": ("rld,dhe->rlhe", (3, 5, 8), (8, 2, 4)),
    "outward": ("rlhe,hed->rld", (3, 5, 2, 4), (2, 4, 6)),
    "wide": ("rld,df->rlf", (3, 5, 16), (16, 4)),
}


def drawn(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("alone", [False, True], ids=["on_8_devices", "alone"])
@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("dtype,limit", [("float32", 2e-6), ("bfloat16", 1e-2)])
def test_values_and_gradients_are_those_of_einsum(name, dtype, limit, alone):
    equation, x_shape, kernel_shape = EQUATIONS[name]
    inputs = len(set(equation.split(",")[0]) & set(equation.split(",")[1].split("->")[0]))
    x, kernel = drawn(x_shape, 0), drawn(kernel_shape, 1)
    bias = drawn(kernel_shape[inputs:], 2)
    out = np.einsum(equation, x.astype(np.float64), kernel) + bias
    weight = drawn(out.shape, 3)

    def loss(x, kernel, bias):
        return jnp.sum(contract(equation, x.astype(dtype), kernel, bias) * weight)

    with sharding.over(sharding.mesh_of((1, 1, 1) if alone else (8, 1, 1))):
        ours = jax.jit(lambda *args: contract(equation, args[0].astype(dtype), *args[1:]))(
            x, kernel, bias
        )
        grads = jax.jit(jax.grad(loss, (0, 1, 2)))(x, kernel, bias)
    assert ours.dtype == dtype
    assert [g.dtype for g in grads] == [jnp.float32] * 3
    rows, outs = equation.split("->")[1][:2], equation.split("->")[1]
    x_axes, kernel_axes = equation.split("->")[0].split(",")
    theirs = [
        np.einsum(f"{outs},{kernel_axes}->{x_axes}", weight.astype(np.float64), kernel),
        np.einsum(f"{x_axes},{outs}->{kernel_axes}", x.astype(np.float64), weight),
        np.einsum(f"{outs}->{outs[len(rows) :]}", weight.astype(np.float64)),
    ]
    for one, other in zip((ours, *grads), (out, *theirs), strict=True):
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, atol=limit * np.abs(other).max()
        )


def test_a_weight_s_gradient_is_not_rounded_to_bfloat16():
    x, kernel = jnp.asarray(drawn((1, 64, 8), 0), jnp.bfloat16), jnp.asarray(drawn((8, 4), 1))
    gradient = jax.grad(lambda kernel: jnp.sum(contract("rld,df->rlf", x, kernel)))(kernel)
    exact = np.asarray(x, np.float64).sum((0, 1))[:, None] * np.ones((1, 4))
    np.testing.assert_allclose(gradient, exact, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40, 8, 16), (40, 16, 8), (400, 64, 4)])
def test_either_operand_may_be_the_transposed_one(shape):
    rows, inputs, outputs = shape
    x = jnp.asarray(drawn((rows, inputs), 0), jnp.bfloat16)
    out = jnp.asarray(drawn((rows, outputs), 1), jnp.bfloat16)
    with sharding.over(sharding.mesh_of((1, 1, 1))):
        ours = jax.jit(lambda x, out: matmul._of_transposed(x, out) + 0)(x, out)
    theirs = np.asarray(x, np.float64).T @ np.asarray(out, np.float64)
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_on_several_devices_no_array_is_gathered_for_a_layout():
    mesh = sharding.mesh_of((8, 1, 1))
    x = jax.device_put(jnp.ones((16, 4, 8), jnp.bfloat16), sharding.rows(mesh, leading=0))

    def loss(kernel, x):
        return jnp.sum(contract("rld,df->rlf", x, kernel).astype(jnp.float32) ** 2)

    with sharding.over(mesh):
        compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((8, 4)), x).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled
