"""Read a part of a parameter from a checkpoint's tensor, and little else.

A `TensorView` reshapes, indexes and transposes a tensor of the file. For a part of the parameter
(the shard of a device), the smallest box of the stored tensor that covers it is read, and the part
is cut out of the box. Imports no JAX.
"""

from collections.abc import Sequence

import numpy as np

from w2s_jax.models.checkpoint_files import StoredTensor, read_box
from w2s_jax.models.families import TensorView

Range = tuple[int, int]


def read_part(tensor: StoredTensor, view: TensorView, part: Sequence[Range]) -> np.ndarray:
    """Read a part of a parameter in the file's dtype.

    Args:
      tensor: the stored tensor, of the shape `view.stored`.
      view: the parameter as a view of the tensor.
      part: (start, stop) on each axis of the parameter (of one layer, if stacked).

    Raises:
      InputError: if the file is damaged.
    """
    dims = view.shape or view.stored
    taken = view.select + (None,) * (len(dims) - len(view.select))
    kept = [axis for axis, index in enumerate(taken) if index is None]
    axes = view.axes or tuple(range(len(kept)))
    ranges = [(0, 0) if index is None else (index, index + 1) for index in taken]
    for axis, wanted in zip(axes, part, strict=True):
        ranges[kept[axis]] = wanted
    box, sizes, local = covering_box(view.stored, dims, ranges)
    index = tuple(
        slice(*where) if taken[axis] is None else where[0] for axis, where in enumerate(local)
    )
    return read_box(tensor, box).reshape(sizes)[index].transpose(axes)


def covering_box(
    stored: Sequence[int], dims: Sequence[int], ranges: Sequence[Range]
) -> tuple[list[Range], list[int], list[Range]]:
    """Return the smallest box of a tensor that covers `ranges` of the tensor reshaped to `dims`.

    Each axis of `stored` must be a product of consecutive `dims`, as when heads are split off.

    Args:
      stored: shape of the tensor.
      dims: shape to which it is reshaped.
      ranges: (start, stop) on each axis of `dims`.

    Returns:
      (box, sizes, local): (start, stop) on each axis of `stored`; the shape to which the content of
      the box is reshaped; and `ranges` within that shape.

    Raises:
      ValueError: if the shapes do not match axis by axis.
    """
    box: list[Range] = []
    sizes: list[int] = []
    local: list[Range] = []
    axis = 0
    for number, length in enumerate(stored):
        first, product = axis, 1
        last = number == len(stored) - 1
        while axis < len(dims) and (product < length or last):
            product *= dims[axis]
            axis += 1
        if product != length:
            raise ValueError(f"shape {tuple(stored)} does not match {tuple(dims)} axis by axis")
        # Axes with a single index narrow the box, until the first axis with several.
        start, step, narrow = 0, length, True
        stop = length
        for size, (low, high) in zip(dims[first:axis], ranges[first:axis], strict=True):
            if not narrow:
                sizes.append(size)
                local.append((low, high))
                continue
            step //= size
            start, stop = start + low * step, start + high * step
            sizes.append(high - low)
            local.append((0, high - low))
            narrow = high - low == 1
        box.append((start, stop))
    return box, sizes, local
