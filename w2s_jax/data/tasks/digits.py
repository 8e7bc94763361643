"""Handwritten digits: images as token sequences, from the data in scikit-learn.

The data are part of scikit-learn, so the tasks need no download. `digits_even` asks whether a digit
is even, `digits` which of the ten it is. Some of the images are for pretraining. For `digits_even`
each of them is followed by a token for its digit, so that a pretrained model knows digits but not
the concept "even"; for `digits` it is the image alone.
"""

import functools

import numpy as np

from w2s_jax.data.documents import Document, ImageSpace, hash_order, stable_id
from w2s_jax.data.task import Task, TokenSpace

SIDE = 8
PIXEL_VALUES = 17
PAD, BOS = 0, 1
FIRST_PIXEL = 2
FIRST_CAPTION = FIRST_PIXEL + PIXEL_VALUES
VOCAB_SIZE = FIRST_CAPTION + 10
DIGITS = tuple("0123456789")
# Initial rows of a head from the unembedding; of `digits_even` one digit of each class: 1 is odd, 0
# is even.
DIGIT_TOKENS = tuple(range(FIRST_CAPTION, FIRST_CAPTION + len(DIGITS)))
LABEL_TOKENS = (DIGIT_TOKENS[1], DIGIT_TOKENS[0])

TEST_DOCS = 400
VALIDATION_DOCS = 100
TRAIN_DOCS = 600

# Mean over the pixels plus the caption, as a sum over predicted tokens; BOS is never predicted.
PRETRAIN_LOSS_WEIGHTS = (0.0, *([1.0 / SIDE**2] * SIDE**2), 1.0)


def load_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the images of scikit-learn's `load_digits`.

    Returns:
      ids_N (uint64), images_NHW (uint8, 0 to 16) and digits_N (int64), N = 1797.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images_NHW = np.ascontiguousarray(data.images.astype(np.uint8))
    ids_N = np.array(
        [stable_id("digits", i, image.tobytes()) for i, image in enumerate(images_NHW)], np.uint64
    )
    return ids_N, images_NHW, data.target.astype(np.int64)


def partition(ids_N: np.ndarray, classes_N: np.ndarray, split_seed: int) -> dict[str, np.ndarray]:
    """Return the images of each split, as int64 indices in hash order.

    Test, validation and training images have equally many of each class, so that an exactly
    balanced test set uses all of them; the rest is for pretraining.
    """
    order_N = hash_order(ids_N, "digits", split_seed)
    of_class = [order_N[classes_N[order_N] == c] for c in np.unique(classes_N)]
    splits: dict[str, np.ndarray] = {}
    start = 0
    for name, size in (("test", TEST_DOCS), ("validation", VALIDATION_DOCS), ("train", TRAIN_DOCS)):
        chosen = np.concatenate([part[start : start + size // len(of_class)] for part in of_class])
        splits[name] = order_N[np.isin(order_N, chosen)]
        start += size // len(of_class)
    used = np.concatenate(list(splits.values()))
    splits["pretrain"] = order_N[~np.isin(order_N, used)]
    return splits


def pixel_tokens(image_HW: np.ndarray) -> tuple[int, ...]:
    """Return BOS and the pixels, row by row."""
    return (BOS, *(FIRST_PIXEL + image_HW.astype(np.int64)).ravel().tolist())


def shift(image_HW: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return the image moved down by `dy` and right by `dx` pixels (-1, 0 or 1), filled with 0."""
    padded = np.pad(image_HW, 1)
    return padded[1 - dy : 1 - dy + image_HW.shape[0], 1 - dx : 1 - dx + image_HW.shape[1]]


def _pretrain_documents(
    index: int, image_id: int, image_HW: np.ndarray, digit: int, *, caption: bool
) -> list[Document]:
    """Return one image in all nine shifts, perhaps with its caption."""
    end, weights = (FIRST_CAPTION + digit,) if caption else (), PRETRAIN_LOSS_WEIGHTS
    return [
        Document(
            id=stable_id("digits", index, image_HW.tobytes(), dy, dx),
            tokens=(*pixel_tokens(shift(image_HW, dy, dx)), *end),
            group=str(image_id),
            loss_weights=weights if caption else weights[:-1],
            meta={"digit": digit, "index": index, "shift": (dy, dx)},
        )
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    ]


def load(split_seed: int = 0, *, even: bool = True) -> dict[str, list[Document]]:
    """Return all documents by split: 600 train, 100 validation, 400 test, 697 x 9 pretrain.

    Classification documents are BOS and 64 pixels (65 tokens). Their label is the digit, or with
    `even` 1 for an even digit; pretraining documents have none, and with `even` the digit's token
    after them (66 tokens).
    """
    ids_N, images_NHW, digits_N = load_images()
    labels_N = (digits_N % 2 == 0).astype(np.int64) if even else digits_N
    splits = partition(ids_N, labels_N, split_seed)
    documents: dict[str, list[Document]] = {
        name: [
            Document(
                id=int(ids_N[i]),
                tokens=pixel_tokens(images_NHW[i]),
                label=int(labels_N[i]),
                group=str(ids_N[i]),
                meta={"digit": int(digits_N[i]), "index": int(i)},
            )
            for i in splits[name]
        ]
        for name in ("train", "validation", "test")
    }
    documents["pretrain"] = [
        document
        for i in splits["pretrain"]
        for document in _pretrain_documents(
            int(i), int(ids_N[i]), images_NHW[i], int(digits_N[i]), caption=even
        )
    ]
    return documents


_IMAGE = ImageSpace((SIDE, SIDE, 1), FIRST_PIXEL, PIXEL_VALUES)
_LICENCE = "CC BY 4.0 (UCI Optical Recognition of Handwritten Digits, in scikit-learn)"

TASKS: tuple[Task, ...] = (
    Task(
        name="digits_even",
        description="8x8 images of handwritten digits as 64 tokens: is the digit even?",
        licence=_LICENCE,
        load=load,
        token_space=TokenSpace(VOCAB_SIZE, PAD, BOS, LABEL_TOKENS),
        image=_IMAGE,
    ),
    Task(
        name="digits",
        description="8x8 images of handwritten digits as 64 tokens: which digit is it?",
        licence=_LICENCE,
        load=functools.partial(load, even=False),
        token_space=TokenSpace(VOCAB_SIZE, PAD, BOS, DIGIT_TOKENS),
        image=_IMAGE,
        classes=DIGITS,
    ),
)
