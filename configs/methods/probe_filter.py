"""Drop, or replace, weak labels that the student's own activations contradict.

    w2s run --config=configs/methods/probe_filter.py --workdir=runs/probe_filter

The judge is `knn`, `logistic` or `topological` (Wu et al. 2020), on features of the pretrained
strong model.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"probe_filter-{seed}"
    config.losses = ("xent",)
    config.method.name = "probe_filter,probe_relabel"
    return config
