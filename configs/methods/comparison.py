"""All losses, and all methods that need no additional slices or prompts, side by side.

    for seed in 10 11 12 13 14; do
        w2s run --config=configs/methods/comparison.py:$seed --workdir=runs/comparison/$seed
    done
    w2s report runs/comparison/* --out=runs/comparison/report

Methods train their students with cross-entropy. docs/results.md has the table for these five seeds,
which were not used for any choice.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.config import LOSS_OPTIONS, METHODS
from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with all losses and methods, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"comparison-{seed}"
    config.losses = tuple(LOSS_OPTIONS)
    apart = ("bootstrapping", "prompting")
    able = [name for name, spec in METHODS.items() if "classification" in spec.kinds]
    config.method.name = ",".join(name for name in able if name not in apart)
    config.method.losses = ("xent",)
    return config
