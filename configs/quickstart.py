"""quickstart"""

from w2s_jax.config import default_config


def get_config():
    config = default_config()
    config.name = "quickstart"
    config.pretrain.source = "task"
    config.pretrain.optimizer = "adamw"
    config.pretrain.beta2 = 0.98
    config.pretrain.weight_decay = 0.01
    config.pretrain.clip_norm = 1.0
    config.pretrain.warmup = 0.1
    config.pretrain.schedule = "linear"
    config.train.optimizer = "adamw"
    config.train.beta2 = 0.98
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0
    config.train.warmup = 0.1
    config.train.schedule = "linear"
    config.weak.model = "gpt-d8"
    config.weak.pretrain.learning_rate = 1e-2
    config.weak.pretrain.steps = 400
    config.weak.train.learning_rate = 5e-3
    config.weak.train.steps = 144
    config.strong.model = "gpt-d32"
    config.strong.pretrain.learning_rate = 5e-3
    config.strong.pretrain.steps = 1000
    config.strong.train.learning_rate = 1e-3
    config.strong.train.steps = 96
    return config
