"""Cross-entropy to the weak labels: naive finetuning."""

from w2s_jax.core.lazy import Array
from w2s_jax.losses import tokens
from w2s_jax.losses.common import soft_cross_entropy
from w2s_jax.losses.registry import register


@register(
    "xent",
    coupled=False,
    case_of=("confidence", {"alpha_max": 0.0}),
    summary="CE(f, w)",
    source="naive finetuning, Burns et al. 2023, section 4.1",
    on_tokens=tokens.xent,
)
def xent(
    logits_BC: Array,
    targets_BC: Array,
    step_fraction: Array | float,
    *,
    weights_B: Array | None = None,
) -> Array:
    """Cross-entropy to the soft labels."""
    del step_fraction
    return soft_cross_entropy(logits_BC, targets_BC, weights_B)
