"""The GPT-2 ladder: any of its models supervises any other.

    w2s run --config=configs/ladders/gpt2.py:gpt2,gpt2-xl --workdir=DIR
    w2s compile --config=configs/ladders/gpt2.py:gpt2,gpt2-xl --topology=v5e:4x4 --tokens=256

The argument is WEAK,STRONG, out of gpt2, gpt2-medium, gpt2-large, gpt2-xl.
Any hub id or folder works too. The task is SST-2 unless `--config.task.name` is set. `w2s run`
downloads missing models; `w2s compile` does not need them. docs/pods.md shows what fits where.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config
from w2s_jax.models import ladders


def get_config(models: str = "gpt2,gpt2-xl") -> config_dict.ConfigDict:
    """Return the recipe for the models 'WEAK,STRONG'."""
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
        # Recomputing takes a third more time; activations of smaller models are small.
        role.train.remat = "block" if size > 1_000_000_000 else "none"
    return config
