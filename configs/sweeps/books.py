"""Which book is a passage from? Four and twenty classes, from folders of rows, seeds 0 to 4.

    w2s sweep --config=configs/sweeps/books.py --workdir=runs/books --config.task.data_dir=DIR \
        --config.task.tokenizer=DIR/tokenizer.json

The section on books in docs/results.md says how to make DIR, and has results of another seed.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config
from w2s_jax.sweep.space import Space, over, product, zip_


def get_config() -> config_dict.ConfigDict:
    """Return what all runs share."""
    config = default_config()
    config.name = "books"
    config.task.name = "books4"
    config.task.train_docs = 4000
    config.task.test_docs = 1000
    config.task.validation_docs = 0
    config.protocol.early_stopping = "none"
    # Both models read the training passages of all twenty books, without their titles.
    config.pretrain.source = "books20"
    config.pretrain.chunk_length = 128
    config.pretrain.optimizer = "adamw"
    config.pretrain.learning_rate = 4e-3
    config.pretrain.warmup = 0.05
    config.pretrain.clip_norm = 1.0
    # Balanced thresholds need a batch of at least four documents of each class.
    config.train.batch_size = 80
    config.train.epochs = 4.0
    config.train.learning_rate = 2e-3
    config.train.warmup = 0.1
    config.train.clip_norm = 1.0

    config.weak.model = "rotary-d32"
    config.weak.read_out = "mean"
    config.weak.pretrain.steps = 100
    config.strong.model = "rotary-d64"
    config.strong.read_out = "mean"
    config.strong.pretrain.steps = 600
    return config


def sweep() -> Space:
    """Return the fields that each run overrides."""
    seeds = range(5)
    return product(
        zip_(over("seed", seeds), over("task.split_seed", seeds)),
        over("task.name", ("books4", "books20")),
    )
