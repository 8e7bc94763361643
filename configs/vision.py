"""Frozen image features: the protocol of the vision code released with Burns et al. 2023.

    w2s run --config=configs/vision.py --workdir=runs/vision --config.task.name=imagenet \
        --config.task.data_dir=DIR --config.weak.labels=DIR/alexnet.npz \
        --config.strong.model=features:DIR/dino_resnet50.npz

A linear head on the features of a frozen strong model learns the class probabilities of a weak
model; another one, the ceiling, the true classes. docs/features.md shows how to make the three
files: the records of the task, the weak model's probabilities and the strong model's features.

`run_weak_strong.py` of github.com/openai/weak-to-strong (folder vision) trains for 10 epochs by
default; its README for 20 with the ResNet and for 5 with the ViT: `--config=configs/vision.py:20`,
`--config=configs/vision.py:5`. As there, the learning rate is a cosine whose period is twice that
number of *steps*, not epochs, so that it oscillates from step to step; set
`--config.probe.cosine_steps=None` for a single decay.
"""

from ml_collections import config_dict

from w2s_jax.config import default_config


def get_config(epochs: str = "10") -> config_dict.ConfigDict:
    """Return the recipe, with heads that are trained for `epochs` epochs."""
    config = default_config()
    config.name = "vision"
    config.task.name = "imagenet"
    config.task.validation_docs = 0

    # The weak model is not trained: its probabilities are given, and all training documents are the
    # student's and the ceiling's.
    config.protocol.name = "released"
    config.protocol.halves = "none"
    config.protocol.head_init = "uniform"
    config.weak.labels = "weak.npz"
    config.strong.model = "features:strong.npz"
    config.losses = ("xent",)

    config.train.adapt = "probe"
    config.probe.epochs = float(epochs)
    config.probe.batch_size = 100
    config.probe.learning_rate = 1e-3
    config.probe.schedule = "cosine"
    config.probe.cosine_steps = int(epochs)
    config.probe.head_bias = True
    return config
