"""The quickstart with eight seeds: how much do results vary between trainings?

    w2s sweep --config=configs/sweeps/seeds.py --workdir=runs/seeds
    w2s run --config=configs/sweeps/seeds.py --workdir=runs/one       # seed 0 alone

The seed changes the initialisation and the order of documents of supervisor, students and ceiling,
but neither the documents nor the pretraining: of 40 phases 33 are distinct. docs/pods.md uses this
sweep to compare meshes.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe
from w2s_jax.sweep.space import Space, over

QUICKSTART = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe."""
    return other_recipe(QUICKSTART, seed)


def sweep() -> Space:
    """Return the fields that each run overrides."""
    return over("seed", range(8))
