r"""The Llama 3 ladder: which of its models can teach which?

    w2s run --config=configs/ladders/llama3.py:Llama-3.2-1B,Llama-3.1-8B --workdir=DIR
    w2s compile --config=configs/ladders/llama3.py:Llama-3.2-1B,Llama-3.1-8B \
        --topology=v5e-256 --tokens=256 --search

`:WEAK,STRONG`, of Llama-3.2-1B, Llama-3.2-3B, Llama-3.1-8B, Llama-3.1-70B.
Any hub id or folder will do. SST-2 by default (`--config.task.name`); a model that is not there is
downloaded by `w2s run`, not by `w2s compile`. docs/pods.md says what fits where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "Llama-3.2-1B,Llama-3.1-8B") -> config_dict.ConfigDict:
    """The recipe for 'WEAK,STRONG': that of gpt2.py with these models."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "llama3", 1)
    return config
