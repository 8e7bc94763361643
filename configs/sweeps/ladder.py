"""A ladder: every model supervises itself and all larger ones.

    w2s sweep --config=configs/sweeps/ladder.py --workdir=runs/ladder --dry_run
    w2s sweep --config=configs/sweeps/ladder.py --workdir=runs/ladder
    w2s run --config=configs/sweeps/ladder.py --workdir=runs/one       # the base config alone

On handwritten digits, with all models pretrained on captioned images for the same number of steps:
10 runs, each with both losses. For a ladder of your own, copy this file and change the models and
the task.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe
from w2s_jax.sweep.space import Space, pairs

QUICKSTART = Path(__file__).parents[1] / "quickstart.py"
MODELS = ("gpt-d8", "gpt-d16", "gpt-d32", "gpt-d64")


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe, with supervisors pretrained and trained like students."""
    config = other_recipe(QUICKSTART, seed)
    config.name = f"ladder-{seed}"
    for part in ("pretrain", "train"):
        config.weak[part] = config.strong[part].copy_and_resolve_references()
    return config


def sweep() -> Space:
    """Return the fields that each run overrides."""
    return pairs(MODELS)
