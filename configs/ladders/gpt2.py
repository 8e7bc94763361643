"""The GPT-2 ladder: which of its models can teach which?

    w2s run --config=configs/ladders/gpt2.py:gpt2,gpt2-xl --workdir=DIR
    w2s compile --config=configs/ladders/gpt2.py:gpt2,gpt2-xl --topology=v5e:4x4 --tokens=256

`:WEAK,STRONG`, of gpt2, gpt2-medium, gpt2-large, gpt2-xl.
Any hub id or folder will do. SST-2 by default (`--config.task.name`); a model that is not there is
downloaded by `w2s run`, not by `w2s compile`. docs/pods.md says what fits where.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config
from w2s_jax.models import ladders


def get_config(models: str = "gpt2,gpt2-xl") -> config_dict.ConfigDict:
    """The recipe for 'WEAK,STRONG'."""
    weak, strong = models.split(",")
    config = default_config()
    config.name = f"gpt2-{weak}-{strong}".replace("/", "-")
    config.task.name = "sst2"
    config.task.max_length = 256
    config.train.compute_dtype = "bfloat16"
    config.train.warmup = 0.1
    for role, model in ((config.weak, weak), (config.strong, strong)):
        known = ladders.find(model)
        role.model = model if known is None else known.name
        size = 0 if known is None else known.config().num_parameters()
        # Recomputing costs a third more time; below this, activations of 32 documents are small.
        role.train.remat = "block" if size > 1_000_000_000 else "none"
    return config
