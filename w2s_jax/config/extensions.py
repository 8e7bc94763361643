"""The modules that declare what w2s_jax has built in.

`Table` imports them by name when one of its entries is first needed. This list is the only way in
which a lower package reaches a higher one. Importing such a module imports no JAX.
"""

#: Group of a `Table` -> the modules that add to it, in the order of its entries.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "loss": (),
    "method": (),
    "phase kind": (
        "w2s_jax.phases.kinds.pretrain",
        "w2s_jax.phases.kinds.features",
        "w2s_jax.phases.kinds.finetune",
        "w2s_jax.phases.kinds.labels",
    ),
}
