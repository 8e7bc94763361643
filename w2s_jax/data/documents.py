"""Documents, their stable ids, and orders that depend only on a seed and those ids."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Document:
    """One item of a task.

    The content is exactly one of `text`, `texts` (a pair to be compared) and `tokens`.

    Attributes:
      id: stable 64-bit hash of the task, the split and the content (see `stable_id`).
      text, texts, tokens: the content. Tokens may be bytes, as the pixels of an image are.
      label: ground truth, 0 to C - 1; None for text without labels.
      soft_label: from people or a judge: P(label 1) of two classes; the probabilities of C > 2
        classes, which sum to 1.
      target: expected output of a generative task.
      group: documents of one group are never on both sides of a split; None: a group of its own.
      loss_weights: for `tokens` in language-model training: the weight of predicting each token
        (same length as `tokens`; the first one is never predicted).
      meta: anything else, for people to read.
      where: place of the record (file and line), for errors; not compared.
    """

    id: int
    text: str | None = None
    texts: tuple[str, ...] | None = None
    tokens: tuple[int, ...] | bytes | None = None
    label: int | None = None
    soft_label: float | tuple[float, ...] | None = None
    target: str | None = None
    group: str | None = None
    loss_weights: tuple[float, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False, repr=False)

    @property
    def name(self) -> str:
        """The document in an error: its place, else its id."""
        return self.where or f"document {self.id}"

    @property
    def is_tie(self) -> bool:
        """True if people or a judge were undecided: no label, and two most probable classes."""
        return self.label is None and self.soft_label is not None and _hard(self.soft_label) is None

    @property
    def hard_label(self) -> int | None:
        """The label, else the most probable class; None for a tie or without both."""
        if self.label is not None or self.soft_label is None:
            return self.label
        return _hard(self.soft_label)


@dataclass(frozen=True, slots=True)
class ImageSpace:
    """How the documents of a task are images: the last H * W * channels tokens are the pixels.

    They are in the order of a C array [H, W, channels].

    Attributes:
      shape: (H, W, channels).
      first: id of the token of pixel value 0; the others follow.
      values: number of pixel values, at most 256.
      resized: whether pictures of other sizes are resized to `shape` (`task.image_size`).
    """

    shape: tuple[int, int, int]
    first: int = 0
    values: int = 256
    resized: bool = False

    @property
    def size(self) -> int:
        """Number of tokens of an image, H * W * channels."""
        return math.prod(self.shape)


def pixel_arrays(documents: Sequence[Document], image: ImageSpace) -> np.ndarray:
    """Return documents that are images as arrays, uint8 [N, H, W, channels]."""
    pixels = []
    for document in documents:
        tokens = document.tokens or ()
        values = np.frombuffer(tokens, np.uint8) if isinstance(tokens, bytes) else np.array(tokens)
        pixels.append((values[-image.size :] - image.first).astype(np.uint8))
    return np.stack(pixels).reshape(-1, *image.shape)


def _hard(soft_label: float | tuple[float, ...]) -> int | None:
    # Rounded as the arrays of labels are, which must not disagree.
    if isinstance(soft_label, tuple):
        p_C = np.asarray(soft_label, np.float32)
        top = np.flatnonzero(p_C == p_C.max())
        return int(top[0]) if len(top) == 1 else None
    rounded = float(np.float32(soft_label))
    return None if rounded == 0.5 else int(rounded > 0.5)


def stable_id(*parts: str | bytes | int) -> int:
    """Return a 64-bit hash of `parts`, the same on every machine and Python version.

    Each part is hashed with its length, so that ('ab', 'c') and ('a', 'bc') differ.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return int.from_bytes(digest.digest(), "little")


def hash_keys(ids_N: np.ndarray, *salt: str | int) -> np.ndarray:
    """Return a pseudo-random key for each id (SplitMix64's finaliser of id + hash of `salt`).

    Args:
      ids_N: uint64 document ids.
      *salt: further inputs of the hash (a purpose, a seed, an epoch).

    Returns:
      uint64 [N].
    """
    with np.errstate(over="ignore"):
        key_N = ids_N.astype(np.uint64) + np.uint64(stable_id(*salt))
        key_N = (key_N ^ (key_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        key_N = (key_N ^ (key_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return key_N ^ (key_N >> np.uint64(31))


def distinct_ids(ids_N: np.ndarray) -> np.ndarray:
    """Return ids, uint64 [N], of which repeated ones are replaced by hashes of id and repetition.

    In an order by hashes of ids, the repetitions of a document would stand side by side.
    """
    order_N = np.argsort(ids_N, kind="stable")
    sorted_N = ids_N[order_N]
    first_N = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])
    start_N = np.maximum.accumulate(np.where(first_N, np.arange(len(ids_N)), 0))
    repetition_N = np.zeros(len(ids_N), np.int64)
    repetition_N[order_N] = np.arange(len(ids_N)) - start_N
    distinct_N = ids_N.copy()
    for number in range(1, int(repetition_N.max(initial=0)) + 1):
        rows = repetition_N == number
        distinct_N[rows] = hash_keys(ids_N[rows], "repetition", number)
    return distinct_N


def hash_order(ids_N: np.ndarray, *salt: str | int) -> np.ndarray:
    """Return a permutation (int64 [N]) of documents that depends only on their ids and `salt`.

    Adding or removing documents does not change the order of the others. Ties keep their order.
    """
    return np.argsort(hash_keys(ids_N, *salt), kind="stable")
