"""Synthetic supervisors: six kinds of errors at the weak model's own error rate.

    w2s run --config=configs/methods/synthetic.py --workdir=runs/synthetic

Burns et al. 2023, appendix on error structures. All documents of this task are equally long, so
'longest' and 'shortest' are random here. Random flips average out; errors of the student's own kind
are imitated.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"synthetic-{seed}"
    config.losses = ("xent", "confidence")
    config.method.name = "synthetic,imitation"
    return config
