"""The feature function `random_convolutions`: a frozen extractor for images that learns nothing.

A head on pooled responses of random filters needs fewer images than a network that is trained from
scratch (Jarrett et al. 2009, What is the best multi-stage architecture for object recognition?).
"""

import numpy as np

from w2s_jax.data.feature_sources import register_features

FILTERS, KERNEL, CELLS = 64, 3, 4
#: Most numbers of the responses of a block of images.
_BLOCK = 2**24


def random_convolutions(images_NHWC: np.ndarray) -> np.ndarray:
    """Return pooled responses of random filters, float32 [N, CELLS * CELLS * FILTERS].

    Each image is standardised; 3x3 filters, drawn once and with mean 0 over their pixels, are
    applied with zeros around it, then ReLU, and the maximum over each cell of a 4x4 grid.

    Args:
      images_NHWC: uint8 images, of any size from 4 x 4 pixels.
    """
    _, height, width, channels = images_NHWC.shape
    rng = np.random.default_rng(0)
    filters_JF = rng.normal(size=(KERNEL**2, channels, FILTERS)).astype(np.float32)
    filters_JF -= filters_JF.mean(0)  # so that they respond to edges, not to brightness
    filters_JF = filters_JF.reshape(-1, FILTERS)
    count = max(1, _BLOCK // (height * width * FILTERS))
    blocks = [
        _responses(images_NHWC[start : start + count], filters_JF)
        for start in range(0, len(images_NHWC), count)
    ]
    return np.concatenate(blocks)


def _responses(images_NHWC: np.ndarray, filters_JF: np.ndarray) -> np.ndarray:
    count, height, width, _ = images_NHWC.shape
    x = images_NHWC.astype(np.float32)
    x -= x.mean((1, 2, 3), keepdims=True)
    x /= x.std((1, 2, 3), keepdims=True) + 1e-6
    edge = KERNEL // 2
    padded = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    shifted = [
        padded[:, dy : dy + height, dx : dx + width] for dy in range(KERNEL) for dx in range(KERNEL)
    ]
    y_NHWF = np.maximum(np.concatenate(shifted, -1) @ filters_JF, 0)
    for axis, size in ((1, height), (2, width)):
        starts = np.arange(CELLS) * size // CELLS
        y_NHWF = np.maximum.reduceat(y_NHWF, starts, axis=axis)
    return y_NHWF.reshape(count, -1)


register_features("random_convolutions", random_convolutions, version=1, images=True)
