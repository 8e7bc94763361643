"""Prompts and targets of your own: a small model teaches a larger one to complete prompts.

    w2s run --config=configs/completions.py:TASK --workdir=runs/TASK --config.task.data_dir=DIR

DIR holds the folder TASK with files of records with `prompt` and `target`; docs/generation.md
describes them. Both models start from random parameters and read bytes.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(task: str = "completions") -> config_dict.ConfigDict:
    """Return the recipe for a task."""
    config = default_config()
    config.name = config.task.name = task
    config.losses = ("xent", "confidence")
    config.protocol.early_stopping = "none"

    config.train.optimizer = "adamw"
    config.train.beta2 = 0.98
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0
    config.train.warmup = 0.1
    config.train.schedule = "linear"
    config.train.epochs = 20.0
    config.train.learning_rate = 3e-3

    config.weak.model = "gpt-d32"
    config.strong.model = "gpt-d64"
    return config
