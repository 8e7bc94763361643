"""JAX, imported when it is first used.

Modules that declare losses and methods write `from w2s_jax.core.lazy import Array, jax, jnp`, so
that reading a declaration imports no JAX. Type checkers see the modules themselves.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any


class LazyModule(ModuleType):
    """A stand-in for a module, which is imported when one of its attributes is first read."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value


if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax import Array
else:
    jax, jnp = LazyModule("jax"), LazyModule("jax.numpy")
    #: The type of arrays in annotations.
    Array = Any

__all__ = ["Array", "LazyModule", "jax", "jnp"]
