"""Generative finetuning: next-token training on the task's unlabelled documents comes first.

    w2s run --config=configs/methods/generative.py --workdir=runs/generative

Burns et al. 2023, section 4.3.3. The method has its own ceiling, with the same training first.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"generative-{seed}"
    config.losses = ("xent",)
    config.method.name = "generative"
    config.method.generative.epochs = 2.0
    return config
