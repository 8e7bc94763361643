"""The modules that declare what w2s_jax has built in.

`Table` imports them by name when one of its entries is first needed. This list is the only way in
which a lower package reaches a higher one. Importing such a module imports no JAX.
"""

#: Group of a `Table` -> the modules that add to it, in the order of its entries.
EXTENSIONS: dict[str, tuple[str, ...]] = {
    "loss": (
        "w2s_jax.losses.cross_entropy",
        "w2s_jax.losses.self_training",
        "w2s_jax.losses.buffered",
        "w2s_jax.losses.windowed",
        "w2s_jax.losses.divergences",
        "w2s_jax.losses.adaptive",
        "w2s_jax.losses.generalized",
    ),
    "preference loss": ("w2s_jax.losses.preferences",),
    "method": (
        "w2s_jax.methods.bootstrapping",
        "w2s_jax.methods.strong_to_strong",
        "w2s_jax.methods.generative",
        "w2s_jax.methods.ensembles",
        "w2s_jax.methods.confidence_threshold",
        "w2s_jax.methods.activations",
        "w2s_jax.methods.trust_filter",
        "w2s_jax.methods.early_stopping",
        "w2s_jax.methods.saliency",
        "w2s_jax.methods.prompting",
        "w2s_jax.methods.contrast_consistent_search",
        "w2s_jax.methods.em_posterior",
        "w2s_jax.methods.synthetic",
        "w2s_jax.methods.controls",
        "w2s_jax.methods.imitation",
        "w2s_jax.methods.reasoning",
    ),
    "phase kind": (
        "w2s_jax.phases.kinds.pretrain",
        "w2s_jax.phases.kinds.features",
        "w2s_jax.phases.kinds.finetune",
        "w2s_jax.phases.kinds.labels",
        "w2s_jax.phases.kinds.transfer",
    ),
    "feature function": ("w2s_jax.data.random_convolutions",),
}
