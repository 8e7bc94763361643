"""Generative finetuning before weak finetuning."""

from w2s_jax.config.options import Option
from w2s_jax.data.task import KINDS
from w2s_jax.methods.registry import Students, refused, register, require_network
from w2s_jax.planning.build import ceiling_slice
from w2s_jax.planning.plan import MethodPlanner


@register(
    "generative",
    students="`+generative`",
    kinds=KINDS,
    summary="Next-token training on the student's unlabelled documents first. The PGR is computed "
    "against a ceiling of its own with the same start",
    source="Burns et al. 2023, section 4.3.3",
    epochs=Option(1.0, "Passes over the unlabelled documents", above=0),
)
def generative(planner: MethodPlanner, *, epochs: float) -> Students:
    """Next-token training on slice 2, then students and a ceiling."""
    builder = planner.builder
    require_network(builder, "strong", "generative")
    model = builder.resolved.roles["strong"].model
    if model.bidirectional:
        raise refused("generative", "a decoder", f"{model.name} predicts no next token")
    init = builder.generative("strong", "slice2", epochs)
    split = ceiling_slice(builder.settings)
    ceiling = builder.trained("ceiling", "strong", split, init=init, label="generative")
    return planner.students("generative", planner.naive.weak, init=init, ceiling=ceiling)
