"""The posterior of the true labels, under a model of the supervisor's errors fitted by EM.

    w2s run --config=configs/methods/em_posterior.py --workdir=runs/em_posterior

The prior is a cross-fitted probe of the strong model's activations.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"em_posterior-{seed}"
    config.losses = ("xent",)
    config.method.name = "em_posterior"
    return config
