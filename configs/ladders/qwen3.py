r"""The Qwen3 ladder: which of its models can teach which?

    w2s run --config=configs/ladders/qwen3.py:Qwen3-0.6B-Base,Qwen3-8B-Base --workdir=DIR
    w2s compile --config=configs/ladders/qwen3.py:Qwen3-0.6B-Base,Qwen3-8B-Base \
        --topology=v5e-256 --tokens=256 --search

`:WEAK,STRONG`, of Qwen3-0.6B-Base, 1.7B, 4B, 8B, 14B (-Base behind each) and Qwen3-32B.
Any hub id or folder will do. SST-2 by default (`--config.task.name`); a model that is not there is
downloaded by `w2s run`, not by `w2s compile`. docs/pods.md says what fits where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "Qwen3-0.6B-Base,Qwen3-8B-Base") -> config_dict.ConfigDict:
    """The recipe for 'WEAK,STRONG': that of gpt2.py with these models."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "qwen3", 1)
    return config
