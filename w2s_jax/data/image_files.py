"""Image tasks without code: idx files, .npz files, or a folder of pictures for each class.

    train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-...   MNIST's format, perhaps .gz
    train.npz, test.npz                                          arrays `images` and `labels`
    train/CLASS/*.png, test/CLASS/*.png                          PNG or JPEG, read by Pillow

Pixels are uint8, images [H, W] or [H, W, channels]. The records of a split are {'image', 'label',
'id'}; the id is 'train/CLASS/x.png', or the split and the index in its array: 'train/0'.
All failures are `InputError`s that name the file.
"""

import gzip
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line, listed
from w2s_jax.core.files import contents
from w2s_jax.data import pictures, records
from w2s_jax.data.documents import ImageSpace, stable_id
from w2s_jax.data.records import OpenedRecords, Reader
from w2s_jax.data.task import Candidate, Task, TokenSpace

LAYOUT = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k or test (also .gz), or "
    "train.npz and test.npz with arrays `images` and `labels`, or train/CLASS/*.png and "
    "test/CLASS/*.png (also .jpg)"
)
#: Tokens of images: the 256 pixel values, none of which stands for a class.
PIXELS = TokenSpace(vocab_size=256, pad_id=0, bos_id=0, label_tokens=())

_IDX = re.compile(r"(?P<split>.+)-(?P<part>images|labels)[-.]idx(?P<axes>\d)-ubyte(\.gz)?")
_T10K = {"t10k": "test"}


@dataclass(frozen=True)
class _Split:
    """Where the images of a split are.

    Attributes:
      path: the file of images, or the folder of pictures.
      labels: the file of labels in idx format; None of the other kinds.
    """

    path: Path
    labels: Path | None = None

    @property
    def is_pictures(self) -> bool:
        return self.labels is None and not self.path.name.lower().endswith(".npz")


def image_folder(name: str, data_dir: str | None) -> Path | None:
    """Return the folder of an image task in the data folder; None if there are no images."""
    found = records.task_contents(name, data_dir)
    return found[0] if found is not None and _splits(*found) else None


def image_task(name: str, folder: Path, image_size: int | None = None) -> Task:
    """Return the task of a folder of images, whose shape is that of the first one.

    Args:
      name: of the task.
      folder: the folder.
      image_size: `task.image_size`.

    Raises:
      InputError: the first image cannot be read, or `image_size` is of images that are not
        resized.
    """
    splits = _splits(folder, contents(folder))
    first = records.first_split(splits)
    where, record = next(_read(first, None))
    shape = _shape(record["image"], where)
    if image_size is not None:
        for split in splits.values():
            if not split.is_pictures:
                raise InputError(
                    f"task.image_size: {image_size}, but {split.path} is not a folder of PNG or "
                    "JPEG pictures, which alone are resized; leave it at None"
                )
        shape = (image_size, image_size, shape[2])
    return Task(
        name=name,
        description="A task without code: images and their labels.",
        licence="not stated",
        fields=("image",),
        expand=expand_image,
        token_space=PIXELS,
        image=ImageSpace(shape, resized=image_size is not None),
    )


def expand_image(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of an image; equal images are of one group."""
    del where
    pixels = record["image"].tobytes()
    return [Candidate("", record.get("label"), group=f"{stable_id(pixels):x}", pixels=pixels)]


def open_images(task: Task, data_dir: str | None) -> OpenedRecords:
    """Return the records of an image task.

    Raises:
      InputError: there are none; a file of labels is missing; two files are of one split.
    """
    found = records.task_contents(task.name, data_dir)
    splits = _splits(*found) if found is not None else {}
    if found is None or not splits:
        root = records.data_root(data_dir)
        where = (
            "neither task.data_dir nor W2S_DATA_DIR is set"
            if root is None
            else f"there are none in {root / task.name}"
        )
        raise InputError(
            f"task.data_dir: no images for task {task.name!r}: {where}; <data_dir>/{task.name} "
            f"needs {LAYOUT}. {task.description}"
        )
    folder, paths = found
    used = {path for split in splits.values() for path in (split.path, split.labels)}
    return OpenedRecords(
        "files",
        str(folder),
        {name: _reader(name, split, task) for name, split in splits.items()},
        {name: split.path.name for name, split in splits.items()},
        tuple(path.name for path in paths if path not in used),
    )


def _splits(folder: Path, paths: list[Path]) -> dict[str, _Split]:
    """Return the splits in a folder, in alphabetical order."""
    found: dict[str, _Split] = {}

    def add(name: str, split: _Split) -> None:
        name = _T10K.get(name.lower()) or records.official_split(name) or name
        if name in found:
            raise InputError(
                f"{folder}: two sources of images for split {name!r}: {found[name].path.name} and "
                f"{split.path.name}; remove one"
            )
        found[name] = split

    labels = {}
    for path in paths:
        match = _IDX.fullmatch(path.name)
        if match and match["part"] == "labels":
            labels[match["split"]] = path
    for path in paths:
        match = _IDX.fullmatch(path.name)
        if match and match["part"] == "images":
            if match["split"] not in labels:
                raise InputError(
                    f"{path}: there are no labels for these images: the folder has no file "
                    f"{match['split']}-labels-idx1-ubyte or {match['split']}-labels-idx1-ubyte.gz"
                )
            add(match["split"], _Split(path, labels[match["split"]]))
        elif path.name.lower().endswith(".npz"):
            add(path.name[: -len(".npz")], _Split(path))
        elif records.official_split(path.name) and pictures.has_pictures(path):
            add(path.name, _Split(path))
    return dict(sorted(found.items()))


def _reader(name: str, split: _Split, task: Task) -> Reader:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        with records.reaching(split.path):
            yield from _read(split, task.image, name)

    return read


def _read(
    split: _Split, image: ImageSpace | None, name: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the records of a split, after checking their shape (None: any)."""
    if split.is_pictures:
        size = image.shape[0] if image is not None and image.resized else None
        for where, array, label in pictures.read_pictures(split.path, size):
            own = f"{name}/{where.rpartition(', ')[2]}"
            yield where, _record(array, label, where, image) | {"id": own}
        return
    if split.labels is None:
        images, labels = _read_npz(split.path)
    else:
        images, labels = _read_idx(split.path, (3, 4)), _read_idx(split.labels, (1,))
    if len(images) != len(labels):
        of = "" if split.labels is None else f" ({split.labels.name})"
        raise InputError(f"{split.path}: {len(images):,} images, but {len(labels):,} labels{of}")
    if not len(images):
        raise InputError(f"{split.path}: the file holds no images")
    for number, (array, label) in enumerate(zip(images, labels, strict=True), start=1):
        where = f"{split.path}, image {number}"
        own = f"{name}/{number - 1}"
        yield where, _record(array, label.item(), where, image) | {"id": own}


def _record(array: np.ndarray, label: Any, where: str, image: ImageSpace | None) -> dict[str, Any]:
    shape = _shape(array, where)
    if image is not None and shape != image.shape:
        raise InputError(
            f"{where}: {shape_text(shape)}; all images of a task have one shape, here "
            f"{shape_text(image.shape)}{_advice(shape, image)}"
        )
    return {"image": array, "label": label}


def _advice(shape: tuple[int, int, int], image: ImageSpace) -> str:
    if shape[2] != image.shape[2]:
        return "; convert all to greyscale, or all to colour"
    return " (task.image_size resizes pictures in folders of classes)"


def _shape(array: np.ndarray, where: str) -> tuple[int, int, int]:
    """Return the shape of an image with its axis of channels."""
    shape = array.shape if array.ndim == 3 else (*array.shape, 1)
    if 0 in shape:
        raise InputError(f"{where}: an image of {shape_text(shape)} has no pixels")
    return shape[0], shape[1], shape[2]


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape in words: '28 x 28 pixels, 1 channel'."""
    height, width, channels = shape
    return f"{height} x {width} pixels, {channels} channel{'' if channels == 1 else 's'}"


# --- files ----------------------------------------------------------------------------------------


def _read_idx(path: Path, axes: tuple[int, ...]) -> np.ndarray:
    """Read a file in idx format (LeCun's MNIST), of unsigned bytes.

    Four bytes: 0, 0, 8 (the type) and the number of axes; the sizes, big-endian int32; the values.
    """
    try:
        with path.open("rb") as stored:
            content = stored.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: broken or truncated gzip data ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise InputError(
            f"{path}: is not in idx format, which begins with two zero bytes, its type and its "
            f"number of axes; found {content[:4].hex(' ') or 'an empty file'}"
        )
    kind, count = content[2], content[3]
    if kind != 8 or count not in axes:
        allowed = " or ".join(map(str, axes))
        raise InputError(
            f"{path}: values of type 0x{kind:02x} with {count} axes; allowed: 0x08 (unsigned "
            f"bytes) with {allowed}"
        )
    start = 4 + 4 * count
    shape = tuple(np.frombuffer(content[4:start], ">u4").tolist()) if len(content) >= start else ()
    expected = start + int(np.prod(shape, dtype=np.uint64)) if shape else start
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        raise InputError(
            f"{path}: {what}: {len(content):,} bytes, but its header "
            f"{f'says {list(shape)}, which takes' if shape else 'alone takes'} {expected:,}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the arrays `images` and `labels` of a .npz file; nothing is unpickled.

    Without `labels`, all are -1: unlabelled, as of records.
    """
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as found:
            names = list(found)
            if "images" not in names:
                raise InputError(f"{path}: has no array 'images'; it has: {listed(names, 'none')}")
            arrays = {name: found[name] for name in ("images", "labels") if name in names}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)})") from error
    except Exception as error:  # of zipfile, zlib and NumPy
        raise InputError(f"{path}: is not a readable .npz file ({first_line(error)})") from error
    images = arrays["images"]
    labels = arrays.get("labels", np.full(len(images) if images.ndim else 0, -1))
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise InputError(
            f"{path}: `images` is {images.dtype} {list(images.shape)}; allowed: uint8 [N, H, W] or "
            "[N, H, W, channels]"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "biuU":
        raise InputError(
            f"{path}: `labels` is {labels.dtype} {list(labels.shape)}; allowed: integers or text, "
            "[N]"
        )
    return images, labels
