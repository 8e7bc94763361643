r"""The Qwen3 ladder: any of its models supervises any other.

    w2s run --config=configs/ladders/qwen3.py:Qwen3-0.6B-Base,Qwen3-8B-Base --workdir=DIR
    w2s compile --config=configs/ladders/qwen3.py:Qwen3-0.6B-Base,Qwen3-8B-Base \
        --topology=v5e-256 --tokens=256 --search

The argument is WEAK,STRONG, out of Qwen3-0.6B-Base, 1.7B, 4B, 8B, 14B (each with the suffix -Base)
and Qwen3-32B. Any hub id or folder works too. The task is SST-2 unless `--config.task.name` is set.
`w2s run` downloads missing models; `w2s compile` does not need them. docs/pods.md shows what fits
where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "Qwen3-0.6B-Base,Qwen3-8B-Base") -> config_dict.ConfigDict:
    """Return the recipe of gpt2.py for the models 'WEAK,STRONG'."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "qwen3", 1)
    return config
