"""Handwritten digits: three sizes of the strong model, two losses, three seeds.

    w2s sweep --config=configs/sweeps/digits.py --workdir=runs/digits --dry_run
    w2s sweep --config=configs/sweeps/digits.py --workdir=runs/digits
    w2s run --config=configs/sweeps/digits.py --workdir=runs/one       # the base config alone

18 runs of 4 phases each, of which 33 are distinct: the seed changes neither the documents nor the
pretraining, and all sizes and losses share the supervisor of a seed.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe
from w2s_jax.sweep.space import Space, over, product

QUICKSTART = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe."""
    return other_recipe(QUICKSTART, seed)


def sweep() -> Space:
    """Return the fields that each run overrides."""
    return product(
        over("strong.model", ("gpt-d16", "gpt-d32", "gpt-d64")),
        over("losses", (("xent",), ("confidence",))),
        over("seed", range(3)),
    )
