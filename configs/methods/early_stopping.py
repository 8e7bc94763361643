"""Early stopping: at the last step, by agreement with weak labels, or by ground truth (an oracle).

    w2s run --config=configs/methods/early_stopping.py --workdir=runs/early_stopping

Burns et al. 2023, section 5.1.1 on overfitting to weak labels. The naive students already stop by
agreement (`protocol.early_stopping`).
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"early_stopping-{seed}"
    config.losses = ("xent", "confidence")
    config.method.name = "early_stopping"
    config.task.validation_docs = 100
    config.strong.train.steps = 120
    return config
