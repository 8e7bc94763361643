"""Ensembles of supervisors: bagging over documents and seeds, and AdaBoost.

    w2s run --config=configs/methods/ensembles.py --workdir=runs/ensembles

The students learn from the mean of the members' logits (bagging), or from their weighted vote. With
`method.bagging.resample=False` the members differ only in their seeds.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"ensembles-{seed}"
    config.losses = ("xent",)
    config.method.name = "bagging,boosting"
    return config
