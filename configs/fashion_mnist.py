"""Fashion-MNIST: a small convolutional network teaches a larger one, from pixels.

    w2s run --config=configs/fashion_mnist.py --workdir=runs/fashion --config.task.data_dir=DIR

DIR/fashion_mnist holds the four files of github.com/zalandoresearch/fashion-mnist (data/fashion),
31 MB, as they are: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. Debian's package dataset-fashion-mnist
installs the same files in /usr/share/dataset-fashion-mnist. `--config=configs/fashion_mnist.py:3`
runs seed 3 (of model initialisation, data order and splits).

Each model is trained from scratch on 5,000 images of 28 x 28 pixels; the larger one is `cnn-32`.
For a frozen extractor as the strong model, as in Burns et al. (2023, appendix A), give it
`--config.strong.model=features:...` (docs/images.md). This recipe was tested on made files of the
same format, not tuned on the data.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(seed: str = "0") -> config_dict.ConfigDict:
    """Return the recipe, with all seeds set to `seed`."""
    config = default_config()
    config.name = f"fashion-mnist-{seed}"
    config.seed = config.task.split_seed = int(seed)
    config.task.name = "fashion_mnist"
    config.task.train_docs = 10_000
    config.task.validation_docs = 1_000
    # Balanced thresholds of ten classes need a batch of at least four documents of each.
    config.train.batch_size = 100
    config.train.epochs = 4.0
    config.weak.model = "cnn-4"
    config.strong.model = "cnn-32"
    return config
