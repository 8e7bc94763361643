"""Public name of `w2s_jax.config.validation`."""

from w2s_jax.config.validation import validate as validate
