"""The quickstart under eight seeds: how much of a result is the draw of the training?

    w2s sweep --config=configs/sweeps/seeds.py --workdir=runs/seeds
    w2s run --config=configs/sweeps/seeds.py --workdir=runs/one       # seed 0 alone

The seed changes initialisation and the order of documents, for supervisor, students and ceiling; it
changes neither the documents nor the pretraining, so of 40 phases 33 are distinct. docs/pods.md
compares meshes with it.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe
from w2s_jax.sweep.space import Space, over

QUICKSTART = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """The quickstart's recipe."""
    return other_recipe(QUICKSTART, seed)


def sweep() -> Space:
    """What each run overrides."""
    return over("seed", range(8))
