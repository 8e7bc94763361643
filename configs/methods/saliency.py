"""Five bars: probes with weak labels and ground truth, before and after weak finetuning.

    w2s run --config=configs/methods/saliency.py --workdir=runs/saliency

Burns et al. 2023, section 5.2: does finetuning on weak labels make the task more salient?
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """The quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"saliency-{seed}"
    config.losses = ("xent",)
    config.method.name = "saliency"
    return config
