"""Small image tasks for tests: upright and level bars, in each kind of file."""

import gzip
import struct

import numpy as np

KINDS = ("idx", "idx.gz", "npz", "png")


def shapes(count, side=8, channels=1, seed=0):
    """Return uint8 images [N, side, side(, channels)] of noise, and labels.

    Images of label 1 have a level bar, those of label 0 an upright one.
    """
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 90, (count, side, side, channels), dtype=np.uint8)
    labels = np.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(2, side - 2, 2)
        if label:
            image[y, x - 2 : x + 3] = 250
        else:
            image[y - 2 : y + 3, x] = 250
    return images if channels > 1 else images[..., 0], labels.astype(np.uint8)


def idx_bytes(array):
    """Return an array of uint8 in idx format."""
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def write_split(folder, split, images, labels, kind):
    """Write a split in one of `KINDS`."""
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez(folder / f"{split}.npz", images=images, labels=labels)
    elif kind == "png":
        from PIL import Image

        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / f"class{label}" / f"{number:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    else:
        prefix = "t10k" if split == "test" else split
        for part, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(array)
            name = f"{prefix}-{part}-ubyte"
            if kind == "idx.gz":
                name, content = f"{name}.gz", gzip.compress(content)
            (folder / name).write_bytes(content)


def write_task(data_dir, name="shapes", kind="npz", train=120, test=60, **how):
    """Write a task with the splits train and test; return `data_dir`."""
    images, labels = shapes(train + test, **how)
    write_split(data_dir / name, "train", images[:train], labels[:train], kind)
    write_split(data_dir / name, "test", images[train:], labels[train:], kind)
    return data_dir
