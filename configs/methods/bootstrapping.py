"""Bootstrapping: a model in between learns first, and labels a fresh slice for the strong model.

    w2s run --config=configs/methods/bootstrapping.py --workdir=runs/bootstrapping

Burns et al. 2023, section 4.3.2. `method.bootstrapping.models` is the chain between the weak and
the strong model, small models first; each is pretrained and trained like the strong model. The
training documents are cut into one more slice for each of them, so all students see fewer
documents.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"bootstrapping-{seed}"
    config.losses = ("xent",)
    config.method.name = "bootstrapping"
    config.method.bootstrapping.models = ("gpt-d16",)
    return config
