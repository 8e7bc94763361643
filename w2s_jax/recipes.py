"""Public name of `w2s_jax.config.recipes`."""

from w2s_jax.config.recipes import load_config as load_config
from w2s_jax.config.recipes import other_recipe as other_recipe
