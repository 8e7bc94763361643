"""The part of a model or a step to which an operation of a compiled program belongs. No JAX."""

import re

from w2s_jax.perf.aot.hlo import Module, Operation

COLLECTIVES = "collectives"
COPIES = "other copies and casts"

#: Parts of a step, in the order of the report.
PARTS = (
    "embed",
    "projections",
    "rotary",
    "attention kernel",
    "attention layout",
    "mlp",
    "norms and residuals",
    "read-out and head",
    "loss",
    "gradient norm",
    "update",
    COLLECTIVES,
    COPIES,
)

#: Passes over the model.
PASSES = ("forward", "backward", "recomputed")

_PRODUCT_CODES = ("convolution", "dot")

# The first of these scopes that occurs in the name stack decides.
_SCOPES = (
    ("update", "update"),
    ("gradient_norm", "gradient norm"),
    ("loss", "loss"),
    ("loss_state", "loss"),
    ("read_out", "read-out and head"),
    ("final_norm", "read-out and head"),
    ("class_head", "read-out and head"),
    ("language_model_head", "read-out and head"),
    ("sampling", "read-out and head"),
    ("embed", "embed"),
    ("mlp", "mlp"),
    ("norm", "norms and residuals"),
    ("rotary", "rotary"),
    ("projection", "projections"),
)

# Primitives that only move numbers or change their type.
_LAYOUT = {
    "transpose", "reshape", "copy", "convert_element_type", "broadcast_in_dim", "squeeze", "slice",
    "split", "concatenate", "pad", "select_n", "dynamic_slice", "dynamic_update_slice",
}  # fmt: skip


def origin(op: Operation, module: Module) -> str:
    """Return JAX's name stack of an operation; that of the matrix product in it, if there is one.

    XLA gives a fusion the name of its last operation.
    """
    for inner in module.within(op):
        if inner.opcode in _PRODUCT_CODES and inner.op_name:
            return inner.op_name
    if "/" in op.op_name:
        return op.op_name
    # Operations that the compiler adds are named after others of its own.
    names = [inner.op_name for inner in module.within(op) if "/" in inner.op_name]
    return names[-1] if names else op.op_name


def part_of(op: Operation, module: Module) -> str:
    """Return the part, one of `PARTS`, to which an operation that is no collective belongs."""
    name = origin(op, module)
    scopes = re.split(r"[/()]+", name)
    for scope, part in _SCOPES:
        if scope in scopes:
            return part
    primitive = scopes[-1]
    if "attention" in scopes:
        kernel = op.opcode == "custom-call" or primitive not in _LAYOUT
        return "attention kernel" if kernel else "attention layout"
    if "block" in scopes and primitive in ("add", "add_any", "sub", "mul"):
        return "norms and residuals"
    return COPIES


def pass_of(name: str) -> str:
    """Return the pass, one of `PASSES`, of an operation with a name stack."""
    if "rematted_computation" in name:
        return "recomputed"
    return "backward" if "transpose(" in name else "forward"
