"""Saliency: probes with weak labels and ground truth, before and after weak finetuning.

    w2s run --config=configs/methods/saliency.py --workdir=runs/saliency

Burns et al. 2023, section 5.2: does finetuning on weak labels make the task more salient? With the
naive student and the ceiling these are the five bars of the paper's figure.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"saliency-{seed}"
    config.losses = ("xent",)
    config.method.name = "saliency"
    return config
