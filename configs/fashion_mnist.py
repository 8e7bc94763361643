"""Fashion-MNIST: a tiny convolutional network teaches a frozen extractor's head.

    w2s run --config=configs/fashion_mnist.py --workdir=runs/fashion --config.task.data_dir=DIR

DIR/fashion_mnist holds the four files of github.com/zalandoresearch/fashion-mnist (data/fashion),
31 MB, as they are: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Debian's package dataset-fashion-mnist has
the same files: ln -s /usr/share/datasets/fashion-mnist DIR/fashion_mnist.
`--config=configs/fashion_mnist.py:3` runs seed 3 (of model initialisation, data order and splits).

The weak model (`cnn-4`) is trained from its pixels on 5,000 images, and labels 5,000 others. The
strong model is a linear head on the features of a function, as in configs/image_digits.py. The
settings are from that recipe, not tuned on these data; docs/results.md has the results of seeds 10
to 14, which take less than a minute each on two CPU cores.
"""

from pathlib import Path

from ml_collections import config_dict

from w2s_jax.recipes import other_recipe

DIGITS = Path(__file__).with_name("image_digits.py")


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the recipe, with all seeds set to `seed`."""
    config = other_recipe(DIGITS, seed)
    config.name = f"fashion-mnist-{seed}"
    config.task.name = "fashion_mnist"
    config.task.train_docs = 10_000
    config.task.validation_docs = 1_000
    config.train.batch_size = config.probe.batch_size = 100
    config.weak.train.steps = config.strong.probe.steps = None
    config.weak.train.epochs = 3.0
    config.strong.probe.epochs = 10.0
    return config
