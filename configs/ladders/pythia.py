r"""The Pythia ladder: any of its models supervises any other.

    w2s run --config=configs/ladders/pythia.py:pythia-160m,pythia-12b --workdir=DIR
    w2s compile --config=configs/ladders/pythia.py:pythia-160m,pythia-12b \
        --topology=v5e-256 --tokens=256 --search

The argument is WEAK,STRONG, out of pythia-70m, 160m, 410m, 1b, 1.4b, 2.8b, 6.9b, 12b (each prefixed
with pythia-). Any hub id or folder works too. The task is SST-2 unless `--config.task.name` is set.
`w2s run` downloads missing models; `w2s compile` does not need them. docs/pods.md shows what fits
where.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe


def get_config(models: str = "pythia-160m,pythia-12b") -> config_dict.ConfigDict:
    """Return the recipe of gpt2.py for the models 'WEAK,STRONG'."""
    config = other_recipe(Path(__file__).with_name("gpt2.py"), models)
    config.name = config.name.replace("gpt2", "pythia", 1)
    return config
