"""Drop weak labels where a probe of the supervisor's last hidden state predicts an error.

    w2s run --config=configs/methods/trust_filter.py --workdir=runs/trust_filter

The probe is fitted on validation documents with ground truth: the method uses that much more ground
truth than the others.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"trust_filter-{seed}"
    config.losses = ("xent",)
    config.method.name = "trust_filter"
    config.task.validation_docs = 100
    return config
