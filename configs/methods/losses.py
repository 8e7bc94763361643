"""All losses side by side.

    w2s run --config=configs/methods/losses.py --workdir=runs/losses

docs/losses.md defines them; docs/results.md has results on five seeds.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.config import LOSS_OPTIONS
from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with all losses, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"losses-{seed}"
    config.losses = tuple(LOSS_OPTIONS)
    return config
