r"""The Qwen2.5 ladder: which of its models can teach which?

    w2s run --config=configs/ladders/qwen2_5.py:Qwen2.5-0.5B,Qwen2.5-7B --workdir=DIR
    w2s compile --config=configs/ladders/qwen2_5.py:Qwen2.5-0.5B,Qwen2.5-7B \
        --topology=v5e-256 --tokens=256 --search

`:WEAK,STRONG`, of Qwen2.5-0.5B, 1.5B, 3B, 7B, 14B, 32B and 72B.
Any hub id or folder will do. SST-2 by default (`--config.task.name`); a model that is not there is
downloaded by `w2s run`, not by `w2s compile`. docs/pods.md says what fits where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "Qwen2.5-0.5B,Qwen2.5-7B") -> config_dict.ConfigDict:
    """The recipe for 'WEAK,STRONG': that of gpt2.py with these models."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "qwen2_5", 1)
    return config
