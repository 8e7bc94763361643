"""Ten handwritten digits as images: a tiny convolutional network teaches a frozen extractor's head.

    w2s run --config=configs/image_digits.py --workdir=runs/image-digits

Takes less than half a minute on two CPU cores. `--config=configs/image_digits.py:3` runs seed 3.

The images are scikit-learn's, of 8 x 8 pixels (task `digits`). The weak model (`cnn-4`) is trained
from its pixels on 300 labelled images, and labels 300 others. The strong model is a linear head on
the features of a function, `features:random_convolutions`: random 3 x 3 filters, which learn
nothing, and yet a head on them needs fewer images than a network trained from scratch. Any function
of images [N, H, W, channels] will do in its place: docs/images.md.

The recipe was chosen on seeds 100 to 103; docs/results.md has the results of seeds 10 to 14.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the recipe, with all seeds set to `seed`."""
    config = default_config()
    config.name = f"image-digits-{seed}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = "digits"
    # Balanced thresholds of ten classes need a batch of at least four documents of each.
    config.train.batch_size = config.probe.batch_size = 50

    config.weak.model = "cnn-4"
    config.weak.train.learning_rate = 3e-3
    config.weak.train.steps = 150

    config.strong.model = "features:random_convolutions"
    config.strong.train.adapt = "probe"
    config.strong.probe.learning_rate = 2e-4
    config.strong.probe.steps = 300
    return config
