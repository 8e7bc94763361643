"""Matrix products with weights, with a backward pass that is fast on each backend.

Shapes in names: M rows (all leading axes of the activations), K inputs, N outputs.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from w2s_jax import sharding

Array = jax.Array


def rows_first(x: Array) -> Array:
    """Return `x` with its last axis contiguous, where fast bfloat16 products on CPU require it.

    These contract contiguous axes; with a transposed operand the product is 4 to 5 times slower,
    and the compiler does not copy the operand by itself. Applies only to a single device: a layout
    constraint is opaque to the partitioner, which would gather the whole array.
    """
    alone = sharding.row_and_head_shards() == (1, 1)
    if sharding.target_device().platform != "cpu" or not alone or x.dtype != jnp.bfloat16:
        return x
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def contract(equation: str, x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Return einsum(equation, x, kernel) + bias in x's dtype, accumulated in float32.

    The kernel's leading axes are the trailing ones of `x`. The gradients of kernel and bias are
    accumulated in float32; plain differentiation would round them to the dtype of `x`.
    """
    x_axes, kernel_axes, _ = equation.replace("->", ",").split(",")
    inputs = sum(axis in x_axes for axis in kernel_axes)
    rows = x.ndim - inputs
    assert x_axes[rows:] == kernel_axes[:inputs], equation
    size = math.prod(kernel.shape[:inputs])
    kernel_KN = kernel.reshape(size, -1)
    bias_N = jnp.zeros((), kernel.dtype)
    if bias is not None:
        bias_N = jnp.broadcast_to(bias, kernel.shape[inputs:]).reshape(-1)
    out_MN = _product(kernel.dtype, x.reshape(-1, size), kernel_KN, bias_N)
    return out_MN.reshape(*x.shape[:rows], *kernel.shape[inputs:])


def _dot(a: Array, b: Array, a_axis: int, b_axis: int) -> Array:
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(dtype: Any, x_MK: Array, kernel_KN: Array, bias_N: Array) -> Array:
    """x W + b in the dtype of x; `bias_N` is a scalar 0 where there is none."""
    out_MN = _dot(x_MK, kernel_KN.astype(x_MK.dtype), 1, 0)
    if bias_N.ndim:
        out_MN += bias_N.astype(jnp.float32)[None]
    return out_MN.astype(x_MK.dtype)


def _forward(dtype: Any, x: Any, kernel: Any, bias: Any) -> tuple[Array, Any]:
    # A frozen kernel needs no gradient, so its input is not kept.
    kept_x = x.value if kernel.perturbed else None
    kept_kernel = kernel.value if x.perturbed else None
    kept_bias = bias.value if bias.perturbed and bias.value.ndim else None
    out_MN = _product(dtype, x.value, kernel.value, bias.value)
    return out_MN, (kept_x, kept_kernel, kept_bias)


def _backward(dtype: Any, kept: tuple[Any, Any, Any], out_MN: Array) -> tuple[Any, Any, Any]:
    x_MK, kernel_KN, bias_N = kept
    dx_MK = dkernel_KN = dbias_N = None
    if kernel_KN is not None:
        dx_MK = _dot(out_MN, kernel_KN.astype(out_MN.dtype), 1, 1).astype(out_MN.dtype)
    if x_MK is not None:
        dkernel_KN = _of_transposed(x_MK, out_MN).astype(dtype)
    if bias_N is not None:
        dbias_N = jnp.sum(out_MN, axis=0, dtype=jnp.float32).astype(bias_N.dtype)
    return dx_MK, dkernel_KN, dbias_N


def _of_transposed(x_MK: Array, out_MN: Array) -> Array:
    """Return x^T out, float32 [K, N], transposing whichever operands are smaller."""
    (num_rows, inputs), outputs = x_MK.shape, out_MN.shape[1]
    smaller = 2 * num_rows * outputs + 4 * inputs * outputs < 2 * num_rows * inputs
    if not smaller or rows_first(x_MK) is x_MK:
        return _dot(rows_first(x_MK.T), out_MN, 1, 0)
    # Fix the result's layout: a transpose folded into the product would miss the fast path.
    product_NK = with_layout_constraint(_dot(rows_first(out_MN.T), x_MK, 1, 0), Layout((0, 1)))
    return product_NK.T


_product.defvjp(_forward, _backward, symbolic_zeros=True)
