"""text"""

from w2s_jax.config import default_config


def get_config(task: str = "sst2"):
    config = default_config()
    config.name = f"bytes-{task}"
    config.task.name = task
    config.task.max_length = 256
    config.task.validation_docs = 400
    config.pretrain.source = "corpus_imdb_unsup"
    config.pretrain.chunk_length = 256
    config.pretrain.batch_size = 32
    config.pretrain.optimizer = "adamw"
    config.pretrain.beta2 = 0.98
    config.pretrain.weight_decay = 0.1
    config.pretrain.clip_norm = 1.0
    config.pretrain.warmup = 0.05
    config.pretrain.schedule = "cosine"
    config.pretrain.learning_rate = 2e-3
    config.pretrain.compute_dtype = "bfloat16"
    config.train.compute_dtype = "bfloat16"
    config.train.batch_size = 32
    config.train.epochs = 2.0
    config.train.learning_rate = 3e-4
    config.weak.model = "rotary-d32"
    config.weak.pretrain.steps = 300
    config.strong.model = "rotary-d128"
    config.strong.pretrain.steps = 1500
    return config
