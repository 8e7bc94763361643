"""Embedded models of images: small convolutional networks, as configs. Imports no JAX.

`models.convolution` has their forward pass.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from w2s_jax.core import errors
from w2s_jax.data.documents import ImageSpace
from w2s_jax.models.config import ModelConfig

if TYPE_CHECKING:
    from w2s_jax.config import Role
    from w2s_jax.data.task import Task

#: Side of the kernels, of the pooled squares, and number of convolutions.
KERNEL, POOL, CONVOLUTIONS = 3, 2, 2

#: Embedded convolutional networks: name -> channels of the first convolution.
IMAGE_MODELS = {f"cnn-{channels}": channels for channels in (4, 8, 16, 32, 64)}

#: The values of `train.adapt` that they allow.
ADAPTS = ("full", "probe", "probe_then_full")

#: What `w2s models` shows them for; in a run, the task sets the shape.
SHOWN = ImageSpace((28, 28, 1))


@dataclass(frozen=True)
class ImageConfig(ModelConfig):
    """A convolutional network of images.

    Twice a 3x3 convolution, ReLU and 2x2 max-pooling (c and 2 c channels), then a dense layer with
    ReLU, whose 4 c outputs are the input of the class head. Of the fields of a `ModelConfig`, only
    `name` and `d_model` (4 c) count.

    Attributes:
      image_shape: (H, W, channels) of an image.
      first_token: id of the token of pixel value 0.
      pixel_values: number of pixel values; they are scaled to 0 to 1.
      channels: c.
    """

    image_shape: tuple[int, int, int] = (1, 1, 1)
    first_token: int = 0
    pixel_values: int = 256
    channels: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))
        super().__post_init__()

    @property
    def image_size(self) -> int:
        """Number of tokens of an image, H * W * channels."""
        height, width, channels = self.image_shape
        return height * width * channels

    @property
    def layers(self) -> list[tuple[int, int, int, int]]:
        """Each convolution: (height, width, input channels, output channels)."""
        height, width, inputs = self.image_shape
        found = []
        for number in range(CONVOLUTIONS):
            outputs = self.channels * 2**number
            found.append((height, width, inputs, outputs))
            # Incomplete squares at the edges are pooled too.
            height, width, inputs = -(-height // POOL), -(-width // POOL), outputs
        return found

    @property
    def flat_size(self) -> int:
        """Number of inputs of the dense layer."""
        height, width, _, outputs = self.layers[-1]
        return -(-height // POOL) * -(-width // POOL) * outputs

    def num_parameters(self) -> int:
        """Return the number of parameters, without heads."""
        convolutions = sum((KERNEL**2 * i + 1) * o for _, _, i, o in self.layers)
        return convolutions + (self.flat_size + 1) * self.d_model

    def image_flops(self) -> float:
        """Return the FLOPs of a forward pass over an image: 2 for each weight and position."""
        convolutions = sum(h * w * KERNEL**2 * i * o for h, w, i, o in self.layers)
        return 2.0 * (convolutions + self.flat_size * self.d_model)

    def image_activations(self) -> int:
        """Return how many numbers the backward pass keeps of an image."""
        # The shifted inputs of each convolution, its output before and after ReLU, and pooled.
        kept = sum(h * w * (KERNEL**2 * i + 2 * o) for h, w, i, o in self.layers)
        return kept + 2 * self.flat_size + 2 * self.d_model

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that count, as JSON-ready values."""
        return {
            "name": self.name,
            "architecture": "convolutional",
            "image_shape": list(self.image_shape),
            "first_token": self.first_token,
            "pixel_values": self.pixel_values,
            "channels": self.channels,
        }


def image_model(name: str, image: ImageSpace = SHOWN) -> ImageConfig:
    """Return the embedded model of images `name`.

    Raises:
      InputError: for an unknown name.
    """
    if name not in IMAGE_MODELS:
        raise errors.unknown("model", name, IMAGE_MODELS)
    channels = IMAGE_MODELS[name]
    return ImageConfig(
        name=name,
        vocab_size=image.first + image.values,
        max_positions=0,
        d_model=4 * channels,
        num_layers=1,
        num_heads=1,
        head_dim=1,
        # No part of it is split over a tensor axis, which it does not forbid either.
        d_mlp=0,
        num_kv_heads=1,
        positions="none",
        # It has no unembedding and predicts no token.
        bidirectional=True,
        image_shape=image.shape,
        first_token=image.first,
        pixel_values=image.values,
        channels=channels,
    )


def check_settings(role: str, own: "Role") -> None:
    """Refuse settings of a role that only transformers have.

    Args:
      role: for the error.
      own: the settings, whose model is in `IMAGE_MODELS`.

    Raises:
      InputError: one of them is set; says what is allowed.
    """
    train = own.train
    problems = {
        "pretrain.source": (own.pretrain.source, None, "does not predict tokens"),
        "read_out": (own.read_out, None, "reads an image as a whole"),
        "read_out_layers": (own.read_out_layers, (), "reads an image as a whole"),
        "tokenizer": (own.tokenizer, None, "reads no text"),
        "train.dropout": (train.dropout, 0.0, "has no dropout"),
        "train.remat": (train.remat, "none", "recomputes nothing"),
    }
    if train.adapt not in ADAPTS:
        raise errors.InputError(
            f"{role}.train.adapt: {train.adapt!r}, but {own.model} is a convolutional network; "
            f"allowed: {', '.join(ADAPTS)}"
        )
    for field, (value, allowed, reason) in problems.items():
        if value != allowed:
            raise errors.InputError(
                f"{role}.{field}: {value!r}, but {own.model} is a convolutional network, which "
                f"{reason}; allowed: {allowed!r}"
            )


def check_documents(role: str, name: str, task: "Task", max_length: int | None) -> None:
    """Refuse documents that are no images, and a limit that would cut them.

    Args:
      role: for the error.
      name: of the model, one of `IMAGE_MODELS`.
      task: the task.
      max_length: `task.max_length`.

    Raises:
      InputError: the task has no images, or they have more tokens.
    """
    if task.image is None:
        raise errors.InputError(
            f"{role}.model: {name!r} is a convolutional network of images, and the documents of "
            f"task {task.name!r} are no images; `w2s models` lists models of text"
        )
    if max_length is not None and max_length <= task.image.size:
        raise errors.InputError(
            f"task.max_length: {max_length} cuts the {task.image.size} pixels of an image, of "
            f"which {role}.model={name} needs all; leave it at None"
        )
