"""Documents to tokens: a tokenizer of bytes, and flat arrays of tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from w2s_jax.data.documents import Document, stable_id
from w2s_jax.errors import InputError, unknown

OVERLONG = ("truncate", "drop", "chunk", "error")


class Tokenizer(Protocol):
    """What `tokenize` needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 [L]: the text with the tokens that begin and end it."""
        ...

    @property
    def prefix_length(self) -> int:
        """How many tokens `encode` puts before the text (0 or 1)."""
        ...

    @property
    def suffix_length(self) -> int:
        """How many tokens `encode` puts after the text (0 or 1)."""
        ...

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """The largest number of tokens, at most `end`, that does not end inside a character."""
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens: 0 padding, 1 beginning, 2 end, 3 + b for byte b."""

    pad_id: int = field(default=0, init=False)
    bos_id: int = field(default=1, init=False)
    eos_id: int = field(default=2, init=False)
    vocab_size: int = field(default=259, init=False)
    # The tokens of '0' and '1'.
    label_tokens: tuple[int, int] = field(default=(3 + ord("0"), 3 + ord("1")), init=False)
    prefix_length: int = field(default=1, init=False)
    suffix_length: int = field(default=1, init=False)

    def encode(self, text: str) -> np.ndarray:
        """int32 [bytes + 2]: BOS, the text's UTF-8 bytes, EOS.

        Lone surrogates, which JSON can express and UTF-8 cannot, become three bytes each.
        """
        data = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
        tokens_L = np.empty(len(data) + 2, np.int32)
        tokens_L[0], tokens_L[-1] = self.bos_id, self.eos_id
        tokens_L[1:-1] = data
        tokens_L[1:-1] += 3
        return tokens_L

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """The largest number of tokens, at most `end`, that does not end inside a character."""
        # A byte 10xxxxxx continues a character, so none may come right after the cut.
        while 0 < end < len(tokens_L) and 0x80 <= tokens_L[end] - 3 < 0xC0:
            end -= 1
        return end


@dataclass(frozen=True, eq=False, slots=True)
class TokenizedDocuments:
    """N documents as flat arrays; document i is tokens_T[offsets[i] : offsets[i + 1]].

    Attributes:
      ids_N: uint64.
      tokens_T: int32, the documents one after another.
      offsets: int64 [N + 1].
      labels_N: float32: the label, else the soft label, else NaN.
      loss_weights_T: float32, the weight of predicting each token; None: all 1 (but for the first
        token of a document, which is never predicted).
    """

    ids_N: np.ndarray
    tokens_T: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray
    loss_weights_T: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids_N)

    @property
    def lengths_N(self) -> np.ndarray:
        """int64: tokens of each document."""
        return np.diff(self.offsets)

    def document(self, i: int) -> np.ndarray:
        """int32 [L]: the tokens of document `i` (from 0; negative: from the end)."""
        i = range(len(self))[i]
        return self.tokens_T[self.offsets[i] : self.offsets[i + 1]]

    def select(self, indices: Any) -> "TokenizedDocuments":
        """The documents at `indices` (integers, a slice or a mask), in that order."""
        picked_N = np.arange(len(self))[indices]
        lengths_N = self.lengths_N[picked_N]
        offsets = _offsets(lengths_N)
        # Position of each token in the old array: its document's old start, plus its place in it.
        shift_N = self.offsets[:-1][picked_N] - offsets[:-1]
        positions_T = np.arange(offsets[-1]) + np.repeat(shift_N, lengths_N)
        weights_T = self.loss_weights_T
        return TokenizedDocuments(
            ids_N=self.ids_N[picked_N],
            tokens_T=self.tokens_T[positions_T],
            offsets=offsets,
            labels_N=self.labels_N[picked_N],
            loss_weights_T=None if weights_T is None else weights_T[positions_T],
        )

    def digest(self) -> str:
        """SHA-256 (hexadecimal) over the contents in order, the same on every machine."""
        labels_N = np.where(np.isnan(self.labels_N), np.float32(np.nan), self.labels_N)
        arrays: list[tuple[str, np.ndarray]] = [
            ("<u8", self.ids_N),
            ("<i8", self.offsets),
            ("<i4", self.tokens_T),
            ("<f4", labels_N),
        ]
        if self.loss_weights_T is not None:
            arrays.append(("<f4", self.loss_weights_T))
        sha = hashlib.sha256()
        for dtype, array in arrays:
            sha.update(f"{dtype}{len(array)};".encode())
            sha.update(np.ascontiguousarray(array, dtype).tobytes())
        return sha.hexdigest()


def _offsets(lengths_N: Any) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths_N, dtype=np.int64)]).astype(np.int64)


# A document on its way: id, tokens, label (NaN: none), loss weights.
_Piece = tuple[int, np.ndarray, float, np.ndarray | None]


def tokenize(
    documents: Sequence[Document],
    tokenizer: Tokenizer | None,
    *,
    max_length: int | None,
    overlong: str,
) -> tuple[TokenizedDocuments, dict[str, int]]:
    """The documents as token arrays, in the same order.

    Documents that have tokens already are taken as they are. What happens to a document of more
    than `max_length` tokens (None: no limit) is up to `overlong`:
      'truncate': the end of the text is cut off, never inside a character; the tokens that begin
        and end a document stay.
      'drop': it is left out.
      'error': refused.
      'chunk': (documents without labels) it is cut into consecutive pieces of at most
        `max_length` tokens; each begins as a document does, and the last one ends as one.

    Returns:
      The tokenized documents, and counts: 'documents' (given), 'overlong', 'dropped', 'truncated',
      'chunks' (pieces that over-long documents became) and 'tokens' (returned).

    Raises:
      InputError: an over-long document with 'error', nothing left with 'drop', labels with 'chunk',
        an unknown `overlong`, a `max_length` below 3 (chunk: 6), or a document that has neither
        text nor tokens, or text without a tokenizer.
    """
    _check_options(documents, max_length, overlong)
    pieces: list[_Piece] = []
    counts = dict.fromkeys(("documents", "overlong", "dropped", "truncated", "chunks", "tokens"), 0)
    counts["documents"] = len(documents)
    longest = 0
    for document in documents:
        piece = _encode(document, tokenizer)
        length = len(piece[1])
        if max_length is None or length <= max_length:
            pieces.append(piece)
            continue
        counts["overlong"] += 1
        longest = max(longest, length)
        if overlong == "truncate":
            pieces.append(_truncate(document, piece, tokenizer, max_length))
            counts["truncated"] += 1
        elif overlong == "chunk":
            cut = _chunks(document, piece, tokenizer, max_length)
            pieces += cut
            counts["chunks"] += len(cut)
        elif overlong == "drop":
            counts["dropped"] += 1
    over = counts["overlong"]
    if over and (overlong == "error" or (overlong == "drop" and not pieces)):
        raise InputError(
            f"task.max_length: {over} of {len(documents)} documents have more than "
            f"{max_length} tokens (the longest has {longest})"
        )
    tokenized = _assemble(pieces)
    counts["tokens"] = len(tokenized.tokens_T)
    return tokenized, counts


def _check_options(documents: Sequence[Document], max_length: int | None, overlong: str) -> None:
    if overlong not in OVERLONG:
        raise unknown("task.overlong", overlong, OVERLONG)
    # A chunk must hold at least a beginning, one character of up to four bytes, and an end.
    least = 6 if overlong == "chunk" else 3
    if max_length is not None and max_length < least:
        raise InputError(f"task.max_length: {max_length}; must be at least {least}")
    if overlong == "chunk" and any(
        d.label is not None or d.soft_label is not None for d in documents
    ):
        raise InputError(
            "task.overlong: 'chunk' is for text without labels; allowed here: truncate, drop, error"
        )


def _encode(document: Document, tokenizer: Tokenizer | None) -> _Piece:
    label = document.label if document.label is not None else document.soft_label
    weights_L = None
    if document.tokens is not None:
        tokens_L = np.asarray(document.tokens, np.int32)
    elif document.text is None:
        raise InputError(f"document {document.id} has neither text nor tokens")
    elif tokenizer is None:
        raise InputError(f"document {document.id} is text, but there is no tokenizer")
    else:
        tokens_L = tokenizer.encode(document.text)
    if document.loss_weights is not None:
        weights_L = np.asarray(document.loss_weights, np.float32)
        if len(weights_L) != len(tokens_L):
            raise InputError(
                f"document {document.id} has {len(weights_L)} loss weights for "
                f"{len(tokens_L)} tokens"
            )
    return document.id, tokens_L, np.nan if label is None else float(label), weights_L


def _truncate(
    document: Document, piece: _Piece, tokenizer: Tokenizer | None, max_length: int
) -> _Piece:
    id_, tokens_L, label, weights_L = piece
    if document.tokens is not None or tokenizer is None:
        kept = np.arange(max_length)
    else:
        suffix, length = tokenizer.suffix_length, len(tokens_L)
        end = tokenizer.cut(tokens_L, max_length - suffix)
        kept = np.concatenate([np.arange(end), np.arange(length - suffix, length)])
    return id_, tokens_L[kept], label, None if weights_L is None else weights_L[kept]


def _chunks(
    document: Document, piece: _Piece, tokenizer: Tokenizer | None, max_length: int
) -> list[_Piece]:
    _, tokens_L, label, weights_L = piece
    if document.tokens is not None or tokenizer is None or weights_L is not None:
        raise InputError(
            f"task.overlong: 'chunk' cuts texts, but document {document.id} consists "
            f"of tokens or has loss weights"
        )
    prefix, suffix = tokenizer.prefix_length, tokenizer.suffix_length
    pieces: list[_Piece] = []
    start, length = prefix, len(tokens_L)
    while start < length:
        end = min(start + max_length - prefix, length)
        if end < length:
            # Never leave the ending tokens to a piece of their own.
            at = tokenizer.cut(tokens_L, min(end, length - suffix - 1))
            end = at if at > start else end
        chunk_L = np.concatenate([tokens_L[:prefix], tokens_L[start:end]])
        pieces.append((stable_id(document.id, "chunk", len(pieces)), chunk_L, label, None))
        start = end
    return pieces


def _assemble(pieces: Sequence[_Piece]) -> TokenizedDocuments:
    tokens = [tokens_L for _, tokens_L, _, _ in pieces]
    offsets = _offsets([len(tokens_L) for tokens_L in tokens])
    weights_T = None
    if any(weights_L is not None for _, _, _, weights_L in pieces):
        weights_T = np.ones(offsets[-1], np.float32)
        weights_T[offsets[:-1]] = 0
        for i, (_, _, _, weights_L) in enumerate(pieces):
            if weights_L is not None:
                weights_T[offsets[i] : offsets[i + 1]] = weights_L
    return TokenizedDocuments(
        ids_N=np.array([id_ for id_, _, _, _ in pieces], np.uint64),
        tokens_T=np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        offsets=offsets,
        labels_N=np.array([label for _, _, label, _ in pieces], np.float32),
        loss_weights_T=weights_T,
    )
