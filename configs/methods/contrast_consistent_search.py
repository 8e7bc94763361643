"""Contrast-consistent search: a direction along which opposite completions have opposite truth.

    w2s run --config=configs/methods/contrast_consistent_search.py --workdir=runs/contrast

Burns et al. 2022. Each document is completed with either label token. Labels only decide which end
of the direction means "true".
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"contrast_consistent_search-{seed}"
    config.losses = ("xent",)
    config.method.name = "contrast_consistent_search"
    return config
