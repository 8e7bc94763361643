"""Controls: LoRA, weight decay, dropout, label smoothing, averaged weights, another loss.

    w2s run --config=configs/methods/controls.py --workdir=runs/controls

Burns et al. 2023 found that none of the regularisers helps. The ceiling is trained without them.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"controls-{seed}"
    config.losses = ("xent", "generalized_xent")
    config.method.name = "controls"
    return config
