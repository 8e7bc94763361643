r"""The Pythia ladder: which of its models can teach which?

    w2s run --config=configs/ladders/pythia.py:pythia-160m,pythia-12b --workdir=DIR
    w2s compile --config=configs/ladders/pythia.py:pythia-160m,pythia-12b \
        --topology=v5e-256 --tokens=256 --search

`:WEAK,STRONG`, of pythia-70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b, 12b (pythia- before each).
Any hub id or folder will do. SST-2 by default (`--config.task.name`); a model that is not there is
downloaded by `w2s run`, not by `w2s compile`. docs/pods.md says what fits where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "pythia-160m,pythia-12b") -> config_dict.ConfigDict:
    """The recipe for 'WEAK,STRONG': that of gpt2.py with these models."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "pythia", 1)
    return config
