"""Image tasks whose files have no names of classes."""

from w2s_jax.data.documents import ImageSpace
from w2s_jax.data.image_files import PIXELS, expand_image
from w2s_jax.data.task import Task

TASKS: tuple[Task, ...] = (
    Task(
        name="fashion_mnist",
        description="28x28 images of clothes: which of ten kinds is it? (Xiao et al. 2017; files "
        "in github.com/zalandoresearch/fashion-mnist, data/fashion)",
        licence="MIT",
        fields=("image",),
        expand=expand_image,
        token_space=PIXELS,
        image=ImageSpace((28, 28, 1)),
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
)
