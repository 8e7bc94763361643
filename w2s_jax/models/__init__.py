"""Models. `forward` and the others are imported when first used: this package imports no JAX."""

from typing import TYPE_CHECKING, Any

from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model

if TYPE_CHECKING:
    from w2s_jax.models.decoder import forward, init_params

__all__ = ["EMBEDDED_MODELS", "ModelConfig", "embedded_model", "forward", "init_params"]


def __getattr__(name: str) -> Any:
    if name in ("forward", "init_params"):
        from w2s_jax.models import decoder

        return getattr(decoder, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
