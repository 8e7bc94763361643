"""Tokenised documents as flat arrays, and the labels in them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedDocuments:
    """N documents of K texts as flat arrays.

    Text k of document i is piece p = K * i + k, the tokens tokens_T[offsets[p] : offsets[p + 1]].

    Attributes:
      ids_N: uint64.
      tokens_T: int32, the texts one after another.
      offsets: int64 [N * K + 1].
      labels_N: float32: the label, else the soft label, else NaN; for evaluation. Of more than two
        classes: the class, NaN for ties and without a label.
      soft_N: float32: the soft label, else the label; for training; None if all equal `labels_N`.
      soft_NC: float32 [N, C]: the same of more than two classes; None of two.
      loss_weights_T: float32, the weight of predicting each token; None: all 1 (except the first
        token of a document, which is never predicted).
      num_texts: K; 2 for pairs to be compared.
      prompt_lengths_P: int64 [N * K], of texts that are a prompt and its completion: the number of
        tokens of the prompt, after which the completion begins. None of other texts.
    """

    ids_N: np.ndarray
    tokens_T: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray
    loss_weights_T: np.ndarray | None = None
    num_texts: int = 1
    soft_N: np.ndarray | None = None
    prompt_lengths_P: np.ndarray | None = None
    soft_NC: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def piece_lengths_P(self) -> np.ndarray:
        """Number of tokens of each text, int64 [N * K]."""
        return np.diff(self.offsets)

    @property
    def lengths_N(self) -> np.ndarray:
        """Number of tokens of each document, all texts together, int64 [N]."""
        return self.piece_lengths_P.reshape(-1, self.num_texts).sum(1)

    @property
    def targets_NC(self) -> np.ndarray:
        """Targets of training, soft labels, float32 [N, C]."""
        if self.soft_NC is not None:
            return self.soft_NC
        return soft_labels(self.labels_N if self.soft_N is None else self.soft_N)

    @property
    def truth_N(self) -> np.ndarray:
        """Ground truth, the class, float32 [N]; NaN for ties and without a label."""
        return hard_labels(self.labels_N) if self.soft_NC is None else self.labels_N

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return int(self.piece_lengths_P.max())

    def document(self, i: int, text: int = 0) -> np.ndarray:
        """Return the tokens of a text of document `i` (negative: from the end), int32 [L]."""
        piece = range(len(self))[i] * self.num_texts + text
        return self.tokens_T[self.offsets[piece] : self.offsets[piece + 1]]

    def rows_of(self, ids_N: np.ndarray) -> np.ndarray:
        """Return the row of each id, int64; `KeyError` for an id that no document has."""
        row_of = {id_: n for n, id_ in enumerate(self.ids_N.tolist())}
        return np.array([row_of[id_] for id_ in ids_N.tolist()], np.int64)

    def select(self, indices: Any) -> "TokenizedDocuments":
        """Return the documents at `indices` (integers, a slice or a mask), in that order."""
        picked_N = np.arange(len(self))[indices]
        picked_P = (picked_N[:, None] * self.num_texts + np.arange(self.num_texts)).reshape(-1)
        lengths_P = self.piece_lengths_P[picked_P]
        offsets = offsets_of(lengths_P)
        # Position of each token in the old array: the old start of its text, plus its index there.
        shift_P = self.offsets[:-1][picked_P] - offsets[:-1]
        positions_T = np.arange(offsets[-1]) + np.repeat(shift_P, lengths_P)
        weights_T = self.loss_weights_T
        return TokenizedDocuments(
            ids_N=self.ids_N[picked_N],
            tokens_T=self.tokens_T[positions_T],
            offsets=offsets,
            labels_N=self.labels_N[picked_N],
            loss_weights_T=None if weights_T is None else weights_T[positions_T],
            num_texts=self.num_texts,
            soft_N=None if self.soft_N is None else self.soft_N[picked_N],
            prompt_lengths_P=(
                None if self.prompt_lengths_P is None else self.prompt_lengths_P[picked_P]
            ),
            soft_NC=None if self.soft_NC is None else self.soft_NC[picked_N],
        )

    def digest(self) -> str:
        """Return the SHA-256 (hexadecimal) of the contents in order, the same on every machine."""
        labels_N = np.where(np.isnan(self.labels_N), np.float32(np.nan), self.labels_N)
        arrays: list[tuple[str, np.ndarray]] = [
            ("<u8", self.ids_N),
            ("<i8", self.offsets),
            ("<i4", self.tokens_T),
            ("<f4", labels_N),
        ]
        if self.loss_weights_T is not None:
            arrays.append(("<f4", self.loss_weights_T))
        if self.soft_N is not None:
            arrays.append(("<f4", self.soft_N))
        if self.prompt_lengths_P is not None:
            arrays.append(("<i8", self.prompt_lengths_P))
        if self.soft_NC is not None:
            arrays.append(("<f4", self.soft_NC))
        sha = hashlib.sha256()
        if self.num_texts > 1:
            sha.update(f"texts{self.num_texts};".encode())
        if self.soft_NC is not None:
            sha.update(f"classes{self.soft_NC.shape[1]};".encode())
        for dtype, array in arrays:
            sha.update(f"{dtype}{len(array)};".encode())
            sha.update(np.ascontiguousarray(array, dtype).tobytes())
        return sha.hexdigest()


def hard_labels(labels_N: np.ndarray) -> np.ndarray:
    """Threshold labels or P(label 1) to 0 or 1, float32 [N]; NaN for ties (1/2) and NaN."""
    undecided_N = np.isnan(labels_N) | (labels_N == 0.5)
    return np.where(undecided_N, np.nan, labels_N > 0.5).astype(np.float32)


def soft_labels(targets_N: Any) -> np.ndarray:
    """Return [P(label 0), P(label 1)], float32 [N, 2], from P(label 1)."""
    targets_N = np.asarray(targets_N, np.float32)
    return np.stack([1 - targets_N, targets_N], axis=1)


def offsets_of(lengths: Any) -> np.ndarray:
    """Return where each of consecutive pieces begins, and the end, int64 [P + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
