"""The operation at which a step becomes non-finite, for `w2s run --debug_nans`.

A compiled step freezes the state where its loss or gradient is not finite, so JAX's own check of a
program's results (`jax_debug_nans`) sees nothing. Here the failed step is run once more, with the
results of all its operations checked. The operation that is named is not the first with a NaN or an
infinity, which may be harmless (masks are), but the one from which it reached loss or gradient.
"""

import linecache
import sysconfig
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

from w2s_jax import sharding
from w2s_jax.training.batches import Bucket
from w2s_jax.training.spec import StepSpec
from w2s_jax.training.state import TrainState
from w2s_jax.training.step import step_gradient

#: Options of XLA for a program that is run once, on CPUs.
_QUICK = {"xla_backend_optimization_level": 0}


def locate(
    spec: StepSpec, mesh: jax.sharding.Mesh, frozen: Any, state: TrainState, bucket: Bucket
) -> str:
    """Return which operation makes loss or gradient non-finite, and its line of source.

    Args:
      spec: the step.
      mesh: the mesh of all arguments.
      frozen: parameters that the state lacks (see `models.adapting`).
      state: the state before the step `state.step`.
      bucket: holds the batch of the step.
    """
    hyperparameters = sharding.put(spec.hyperparameters(), sharding.replicated(mesh))

    def gradient(*arguments: Any) -> Any:
        hyperparameters, frozen, state, bucket = arguments
        found = step_gradient(spec.program_key(), hyperparameters, frozen, state, state.step)(
            bucket
        )
        return found.loss, found.grads

    arguments = (hyperparameters, frozen, state, bucket)
    with sharding.over(mesh):
        try:
            # Without compilation loops and functions are unrolled into single operations.
            with jax.disable_jit():
                closed = jax.make_jaxpr(gradient)(*arguments)
        except jax.errors.ConcretizationTypeError:
            # A loop whose length depends on the data stays one operation.
            closed = jax.make_jaxpr(gradient)(*arguments)
        options = _QUICK if sharding.target_device().platform == "cpu" else None
        check = jax.jit(lambda *leaves: _flags(closed, leaves), compiler_options=options)
        flags = check(*jax.tree.leaves(arguments))
    return _origin(closed, jax.device_get(flags))


def _results(closed: ClosedJaxpr) -> list[Any]:
    """Return the variables of all results of a program's operations that can be non-finite."""
    variables = (v for operation in closed.jaxpr.eqns for v in operation.outvars)
    # Results that nothing uses have no value.
    used = {v for e in closed.jaxpr.eqns for v in e.invars if not isinstance(v, Literal)}
    used |= {v for v in closed.jaxpr.outvars if not isinstance(v, Literal)}
    return [v for v in variables if v in used and jnp.issubdtype(v.aval.dtype, jnp.inexact)]


def _flags(closed: ClosedJaxpr, leaves: Any) -> jax.Array:
    """Return for each of the `_results` of a program 2 if it has a NaN, else 1 if an infinity."""
    jaxpr = closed.jaxpr.replace(outvars=_results(closed))
    values = jaxpr_as_fun(ClosedJaxpr(jaxpr, closed.consts))(*leaves)
    return jnp.stack([jnp.max(jnp.isnan(x) * 2 + jnp.isinf(x)) for x in values])


def _origin(closed: ClosedJaxpr, flags: np.ndarray) -> str:
    """Walk from the first non-finite result of a step to the operation that it comes from."""
    jaxpr = closed.jaxpr
    made_by = {v: operation for operation in jaxpr.eqns for v in operation.outvars}
    flag_of = dict(zip(_results(closed), flags.tolist(), strict=True))

    def source(flag: int, variables: Any) -> Any:
        """Return the operation that first has the NaN (2) or infinity (1) of some variables."""
        found = None
        while True:
            variables = [
                v for v in variables if not isinstance(v, Literal) and flag_of.get(v) == flag
            ]
            if not variables:
                return found
            found = made_by[variables[0]]
            variables = found.invars

    nan = source(2, jaxpr.outvars)
    if nan is None:
        infinite = source(1, jaxpr.outvars)
        return _described("inf", infinite) if infinite else "no operation is, when run once more"
    infinite = source(1, nan.invars)
    return _described("NaN", nan) + (f", from {_described('inf', infinite)}" if infinite else "")


def _described(what: str, operation: Any) -> str:
    """Return 'NaN in log at loss.py:12: ...'."""
    installed = (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"))
    frames = operation.source_info.traceback.frames if operation.source_info.traceback else ()
    text = f"{what} in {operation.primitive.name}"
    for frame in frames:
        if not frame.file_name.startswith(installed):
            source = linecache.getline(frame.file_name, frame.line_num).strip()
            return f"{text} at {frame.file_name}:{frame.line_num}: {source}"
    return text
