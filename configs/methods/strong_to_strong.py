"""Strong-to-strong: the student relabels its own slice for a fresh student.

    w2s run --config=configs/methods/strong_to_strong.py --workdir=runs/strong_to_strong

Burns et al. 2023. Repeated `method.strong_to_strong.iterations` times.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"strong_to_strong-{seed}"
    config.losses = ("xent", "confidence")
    config.method.name = "strong_to_strong"
    return config
