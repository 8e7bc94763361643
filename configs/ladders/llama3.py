r"""The Llama 3 ladder: any of its models supervises any other.

    w2s run --config=configs/ladders/llama3.py:Llama-3.2-1B,Llama-3.1-8B --workdir=DIR
    w2s compile --config=configs/ladders/llama3.py:Llama-3.2-1B,Llama-3.1-8B \
        --topology=v5e-256 --tokens=256 --search

The argument is WEAK,STRONG, out of Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B.
Any hub id or folder works too. The task is SST-2 unless `--config.task.name` is set. `w2s run`
downloads missing models; `w2s compile` does not need them. docs/pods.md shows what fits where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "Llama-3.2-1B,Llama-3.1-8B") -> config_dict.ConfigDict:
    """Return the recipe of gpt2.py for the models 'WEAK,STRONG'."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "llama3", 1)
    return config
