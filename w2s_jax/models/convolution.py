"""The convolutional network of `image_models.ImageConfig`, on pixels that are tokens.

Shapes in names: R rows, L slots, m documents, P pixels of an image (H * W * channels), K texts per
document (1), D width.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from w2s_jax.models.image_models import KERNEL, POOL, ImageConfig
from w2s_jax.models.matmul import contract

Array = jax.Array


class Convolution(nnx.Module):
    """A 3x3 convolution with zeros around the image, ReLU, and 2x2 max-pooling.

    It is computed as one product with the nine shifted images, side by side: XLA's convolutions
    are slow on CPUs within loops, and so are their gradients for several members of a population.
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.kernel = _he_normal(rngs, KERNEL**2 * inputs, outputs)
        self.bias = nnx.Param(jnp.zeros(outputs), out_sharding=("channels",))

    def __call__(self, x_mHWI: Array) -> Array:
        """Return the pooled output, [m, ceil(H / 2), ceil(W / 2), outputs]."""
        _, height, width, _ = x_mHWI.shape
        edge = KERNEL // 2
        padded = jnp.pad(x_mHWI, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
        shifted = [
            padded[:, dy : dy + height, dx : dx + width]
            for dy in range(KERNEL)
            for dx in range(KERNEL)
        ]
        patches_mHWJ = jnp.concatenate(shifted, axis=-1)
        y_mHWO = contract("mhwj,jo->mhwo", patches_mHWJ, self.kernel[...], self.bias[...])
        return _max_pool(jax.nn.relu(y_mHWO))


class ConvolutionalNetwork(nnx.Module):
    """The network of an `ImageConfig`; see there."""

    def __init__(self, config: ImageConfig, rngs: nnx.Rngs):
        self.config = config
        layers = [Convolution(i, o, rngs) for _, _, i, o in config.layers]
        self.convolution_1, self.convolution_2 = layers
        self.dense_kernel = _he_normal(rngs, config.flat_size, config.d_model)
        self.dense_bias = nnx.Param(jnp.zeros(config.d_model), out_sharding=("channels",))

    def __call__(self, pixels_mP: Array, compute_dtype: jnp.dtype) -> Array:
        """Return the features of images, [m, D].

        Args:
          pixels_mP: pixel values as tokens, of an unsigned type.
          compute_dtype: dtype of activations.
        """
        config = self.config
        scale = 1 / max(1, config.pixel_values - 1)
        x_mP = (pixels_mP.astype(jnp.float32) - config.first_token) * scale
        x = x_mP.astype(compute_dtype).reshape(-1, *config.image_shape)
        with jax.named_scope("convolutions"):
            x = self.convolution_2(self.convolution_1(x))
        with jax.named_scope("dense"):
            flat_mF = x.reshape(len(x), -1)
            kernel, bias = self.dense_kernel[...], self.dense_bias[...]
            return jax.nn.relu(contract("mf,fd->md", flat_mF, kernel, bias))


def image_features(
    config: ImageConfig,
    params: dict,
    tokens_RL: Array,
    read_outs_mK: Array,
    compute_dtype: str = "float32",
) -> Array:
    """Return the inputs of the class head, [m, 1, D].

    Args:
      config: the model.
      params: its backbone.
      tokens_RL: documents packed into rows.
      read_outs_mK: index of each document's last token in the flattened [R * L] slots: its pixels
        are the P tokens up to there. An index into padding gives finite values without meaning.
      compute_dtype: dtype of activations.
    """
    size, flat = config.image_size, tokens_RL.reshape(-1)
    start_m = read_outs_mK[:, 0] - (size - 1)
    with jax.named_scope("pixels"):
        pixels_mP = jax.vmap(lambda start: jax.lax.dynamic_slice(flat, (start,), (size,)))(start_m)
    model = nnx.merge(_graphdef(config), params)
    return model(pixels_mP, jnp.dtype(compute_dtype))[:, None]


@functools.lru_cache(maxsize=16)
def _graphdef(config: ImageConfig) -> nnx.GraphDef:
    """Return the structure of a network, without creating arrays."""
    with nnx.use_eager_sharding(False):
        return nnx.split(nnx.eval_shape(lambda: ConvolutionalNetwork(config, nnx.Rngs(0))))[0]


def _he_normal(rngs: nnx.Rngs, inputs: int, outputs: int) -> nnx.Param:
    """Return a kernel [inputs, outputs] of variance 2 / inputs (He et al. 2015)."""
    values = jax.random.normal(rngs.params(), (inputs, outputs)) * (2 / inputs) ** 0.5
    return nnx.Param(values, out_sharding=("patch", "channels"))


def _max_pool(x_mHWC: Array) -> Array:
    """Return the maxima of 2x2 squares; those at odd edges are smaller."""
    m, height, width, channels = x_mHWC.shape
    rows, columns = -height % POOL, -width % POOL
    # After ReLU, zeros change no maximum.
    x_mHWC = jnp.pad(x_mHWC, ((0, 0), (0, rows), (0, columns), (0, 0)))
    shape = (m, (height + rows) // POOL, POOL, (width + columns) // POOL, POOL, channels)
    return x_mHWC.reshape(shape).max((2, 4))
