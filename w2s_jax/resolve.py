"""Public name of `w2s_jax.planning.resolve`."""

from w2s_jax.planning.resolve import Resolved as Resolved
from w2s_jax.planning.resolve import resolve as resolve
