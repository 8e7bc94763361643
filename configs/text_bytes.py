"""Any binary text task from local files, with byte-level models pretrained on plain text.

    w2s run --config=configs/text_bytes.py:sst2 --workdir=runs/sst2 --config.task.data_dir=DIR

DIR holds `sst2/train.jsonl[.gz]`, `validation` and `test` in the dataset's official fields, and
`corpus_imdb_unsup/train.jsonl[.gz]` with unlabelled texts (`text`); README.md describes the layout
and says how to make the latter.
The argument is the name of a known task, or of a folder of records with `text` and `label`.
`--config.pretrain.source=FOLDER_OR_FILE` chooses another text for pretraining.

About 15 to 20 minutes on two CPU cores. Models this small learn little: docs/results.md has results
on SST-2.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(task: str = "sst2") -> config_dict.ConfigDict:
    """Return the recipe for a task."""
    config = default_config()
    config.name = f"bytes-{task}"
    config.task.name = task
    config.task.max_length = 192
    config.task.validation_docs = 400

    config.pretrain.source = "corpus_imdb_unsup"
    config.pretrain.chunk_length = 128
    config.pretrain.optimizer = "adamw"
    config.pretrain.learning_rate = 4e-3
    config.pretrain.beta2 = 0.98
    config.pretrain.weight_decay = 0.1
    config.pretrain.clip_norm = 1.0
    config.pretrain.warmup = 0.05
    config.pretrain.compute_dtype = "bfloat16"

    config.train.epochs = 6.0
    config.train.learning_rate = 1e-3
    config.train.warmup = 0.1
    config.train.clip_norm = 1.0
    config.train.compute_dtype = "bfloat16"

    config.weak.model = "rotary-d32"
    config.weak.pretrain.steps = 300
    config.strong.model = "rotary-d128"
    config.strong.pretrain.steps = 1200
    return config
