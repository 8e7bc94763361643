"""Prompting: label tokens after zero or five solved examples, with true and with weak labels.

    w2s run --config=configs/methods/prompting.py --workdir=runs/prompting

Nothing is trained. With documents of 65 tokens and a model that takes 400 tokens, five examples
fit. A model that was never pretrained on such prompts cannot be expected to make use of them.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).parents[1] / "quickstart.py"


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the quickstart's recipe with this method, all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"prompting-{seed}"
    config.losses = ("xent",)
    config.method.name = "prompting"
    config.task.max_length = 400
    config.pretrain.chunk_length = 400
    return config
