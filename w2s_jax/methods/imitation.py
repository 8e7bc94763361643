"""A control whose labels can be read off the documents."""

from w2s_jax.methods.registry import Students, register, require_label_tokens
from w2s_jax.planning.plan import MethodPlanner


@register(
    "imitation",
    students="`+imitation`",
    summary="Each document ends in the token of its weak label, in training and test: a student "
    "that copies it recovers nothing (PGR near 0). Decoders only",
)
def imitation(planner: MethodPlanner) -> Students:
    """Students on documents that contain their weak labels."""
    require_label_tokens(planner, "imitation")
    return planner.students("imitation", planner.naive.weak, suffixed=True)
