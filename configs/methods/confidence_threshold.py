"""Confidence thresholding: only the most confident share of the weak labels of each class.

    w2s run --config=configs/methods/confidence_threshold.py --workdir=runs/confidence_threshold

Burns et al. 2023, appendix. The share is `method.confidence_threshold.share`.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"confidence_threshold-{seed}"
    config.losses = ("xent",)
    config.method.name = "confidence_threshold"
    return config
