from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the recipe, with all seeds set to `seed`."""
    config = default_config()
    config.name = f"image-digits-{seed}"
    config.seed = config.pretrain.seed = config.task.split_seed = int(seed)
    config.task.name = "digits"
    config.weak.model = "cnn-4"
    config.strong.model = "cnn-32"
    config.train.batch_size = 50
    config.train.steps = 300
    return config
