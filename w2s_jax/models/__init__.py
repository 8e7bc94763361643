"""Models: configuration, loading, forward pass and export. JAX is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from w2s_jax.models.config import EMBEDDED_MODELS, ModelConfig, embedded_model

if TYPE_CHECKING:
    from w2s_jax.models.exporting import export_huggingface
    from w2s_jax.models.families import register_family
    from w2s_jax.models.generation import Completions, Generator, generate
    from w2s_jax.models.loading import load, load_with_head
    from w2s_jax.models.network import forward, init_params

__all__ = [
    "EMBEDDED_MODELS",
    "Completions",
    "Generator",
    "ModelConfig",
    "embedded_model",
    "export_huggingface",
    "forward",
    "generate",
    "init_params",
    "load",
    "load_with_head",
    "register_family",
]

_MODULES = {
    "Completions": "generation",
    "Generator": "generation",
    "export_huggingface": "exporting",
    "forward": "network",
    "generate": "generation",
    "init_params": "network",
    "load": "loading",
    "load_with_head": "loading",
    "register_family": "families",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"w2s_jax.models.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
