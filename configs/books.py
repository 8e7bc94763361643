"""Which book is a passage from? Four or twenty classes, from folders of rows without code.

    w2s run --config=configs/books.py:4,0 --workdir=runs/books --config.task.data_dir=DIR \
        --config.task.tokenizer=DIR/tokenizer.json

The argument is CLASSES,SEED. The section on books in docs/results.md says how to make DIR, and has
results. The recipe was chosen on seed 100.

A small model that has read the books a little teaches one that has read them more; neither has seen
which passage is from which book. With `--store`, runs share the pretraining.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config

#: Classes -> training documents.
TRAIN_DOCS = {"4": 4000, "20": 12000}


def get_config(choice: str = "4,0") -> config_dict.ConfigDict:
    """Return the recipe for 'CLASSES,SEED'."""
    classes, seed = choice.split(",")
    config = default_config()
    config.name = f"books{classes}-{seed}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = f"books{classes}"
    config.task.train_docs = TRAIN_DOCS[classes]
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
