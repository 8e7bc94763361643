"""Tokenise documents into flat arrays; truncate, drop or chunk over-long ones."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_jax.core.errors import InputError, shown, unknown
from w2s_jax.data.documents import Document, stable_id
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenized import TokenizedDocuments, hard_labels, offsets_of, soft_labels
from w2s_jax.data.tokenizers import Tokenizer

__all__ = ["OVERLONG", "SIDES", "TokenizedDocuments", "hard_labels", "soft_labels", "tokenize"]

OVERLONG = ("truncate", "drop", "chunk", "error")
SIDES = ("end", "start")
_COUNTS = ("documents", "empty", "overlong", "dropped", "truncated", "same", "chunks", "tokens")


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The tokens of all texts, without the special tokens `prefix` and `suffix` of each text.

    `offsets` has N * K + 1 entries.
    """

    tokens_T: np.ndarray
    offsets: np.ndarray
    num_texts: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    weights_T: np.ndarray | None


# A piece: (document, number of the text or chunk, first token, stop, whether it has the suffix).
_Cut = tuple[int, int, int, int, bool]


def tokenize(
    documents: Sequence[Document],
    tokenizer: Tokenizer | None,
    *,
    max_length: int | None,
    overlong: str,
    truncate: str = "end",
    empty: str | None = None,
    num_classes: int = 2,
) -> tuple[TokenizedDocuments, dict[str, int]]:
    """Tokenise documents, in the same order; `num_classes` is that of their labels.

    Documents of tokens are not changed. `overlong` decides what happens to a document with a text
    of more than `max_length` tokens (None: no limit):
      'truncate': the text is cut at the side `truncate` ('end' or 'start'), never inside a
        character; the special tokens at both ends are kept.
      'drop': the document is left out.
      'error': an `InputError` is raised.
      'chunk': (documents without labels) it is cut into consecutive pieces of at most
        `max_length` tokens; each has the prefix, and the last one the suffix.

    `empty` decides about a document with a text of which the tokenizer makes no token but special
    ones: 'skip' leaves it out, 'error' raises an `InputError`, None keeps it if there are special
    ones, as language models can learn from them.

    Returns:
      The tokenized documents, and counts: 'documents' (given), 'empty' (left out), 'overlong',
      'dropped', 'truncated', 'same' (pairs of different texts that are equal when truncated),
      'chunks' (pieces of over-long documents) and 'tokens' (returned).

    Raises:
      InputError: an over-long document with 'error', no document left with 'drop', labels with
        'chunk', an unknown `overlong` or `truncate`, a `max_length` below 3 (chunk: 6), a text
        without tokens, a document with neither text nor tokens, or text without a tokenizer.
    """
    check_options(documents, max_length, overlong, truncate)
    counts = dict.fromkeys(_COUNTS, 0)
    counts["documents"] = len(documents)
    encoded = _encode(documents, tokenizer)
    special = len(encoded.prefix) + len(encoded.suffix)
    own_NK = np.diff(encoded.offsets).reshape(-1, encoded.num_texts)
    empty_N = ((own_NK + special if empty is None else own_NK) == 0).any(1)
    if empty_N.any() and empty != "skip":
        raise no_tokens(documents[int(np.flatnonzero(empty_N)[0])], tokenizer)
    lengths_NK = own_NK + special
    lengths_NK[empty_N] = 0
    counts["empty"] = int(empty_N.sum())
    limit = int(lengths_NK.max(initial=0)) if max_length is None else max_length
    over_N = np.any(lengths_NK > limit, axis=1)
    over = counts["overlong"] = int(over_N.sum())
    if over and (overlong == "error" or (overlong == "drop" and over == len(documents))):
        raise too_long(documents, lengths_NK.max(1), over, limit)
    table_P5 = _whole(encoded)
    table_P5 = table_P5[~empty_N[table_P5[:, 0]]]
    if over:
        cuts: list[_Cut] = []
        for n in np.flatnonzero(over_N).tolist():
            if overlong == "truncate":
                cuts += _truncate(encoded, n, tokenizer, limit, truncate)
            elif overlong == "chunk":
                cuts += _chunks(encoded, documents[n], n, tokenizer, limit)
        counts |= {
            "truncated": over if overlong == "truncate" else 0,
            "dropped": over if overlong == "drop" else 0,
            "chunks": len(cuts) if overlong == "chunk" else 0,
            "same": _same(encoded, cuts),
        }
        kept_P5 = table_P5[~over_N[table_P5[:, 0]]]
        table_P5 = np.concatenate([kept_P5, np.array(cuts, np.int64).reshape(-1, 5)])
        table_P5 = table_P5[np.lexsort((table_P5[:, 1], table_P5[:, 0]))]
    tokenized = _assemble(
        documents, encoded, table_P5, chunked=overlong == "chunk", num_classes=num_classes
    )
    counts["tokens"] = len(tokenized.tokens_T)
    return tokenized, counts


def too_long(
    documents: Sequence[Document], lengths_N: np.ndarray, over: int, limit: int
) -> InputError:
    """Return the error about `over` documents with a text of more than `limit` tokens."""
    longest = documents[int(lengths_N.argmax())]
    return InputError(
        f"task.max_length: {over} of {len(documents)} documents have more than "
        f"{limit} tokens (the longest has {lengths_N.max()}: {longest.name})"
    )


def no_tokens(document: Document, tokenizer: Tokenizer | None) -> InputError:
    """Return the error about a document with a text that gives no token."""
    texts = document.texts or (document.text,)
    of = "" if tokenizer is None else f" for the tokenizer {tokenizer.name}"
    return InputError(
        f"{document.name} has no tokens{of}: {', '.join(map(shown, texts))}; task.empty='skip' "
        "leaves such documents out"
    )


def _same(encoded: _Encoded, cuts: Sequence[_Cut]) -> int:
    """Return the number of pairs whose texts differ, but not what is left of them."""
    if encoded.num_texts != 2:
        return 0

    def equal(bounds: Sequence[tuple[int, int]]) -> bool:
        first, second = (encoded.tokens_T[start:stop] for start, stop in bounds)
        return np.array_equal(first, second)

    return sum(
        equal([cut[2:4] for cut in pair]) and not equal(_texts_of(encoded, pair[0][0]))
        for pair in zip(cuts[::2], cuts[1::2], strict=True)
    )


def check_options(
    documents: Sequence[Document], max_length: int | None, overlong: str, truncate: str
) -> None:
    """Check the options of `tokenize`, which describes them.

    Raises:
      InputError: one is unknown, or does not suit the documents.
    """
    if overlong not in OVERLONG:
        raise unknown("task.overlong", overlong, OVERLONG)
    if truncate not in SIDES:
        raise unknown("task.truncate", truncate, SIDES)
    # A chunk needs room for a prefix, a character of up to four bytes, and a suffix.
    least = 6 if overlong == "chunk" else 3
    if max_length is not None and max_length < least:
        raise InputError(f"task.max_length: {max_length}; must be at least {least}")
    if overlong == "chunk" and any(
        d.label is not None or d.soft_label is not None for d in documents
    ):
        raise InputError(
            "task.overlong: 'chunk' is for text without labels; allowed: truncate, drop, error"
        )


def _encode(documents: Sequence[Document], tokenizer: Tokenizer | None) -> _Encoded:
    texts: list[str] = []
    for document in documents:
        if document.tokens is not None:
            return _given_tokens(documents)
        if document.text is None and document.texts is None:
            raise InputError(f"{document.name} has neither text nor tokens")
        texts += (document.text,) if document.text is not None else document.texts or ()
    if not documents:
        return _Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), 1, (), (), None)
    num_texts = len(documents[0].texts or (None,))
    for document in documents:
        if len(document.texts or (None,)) != num_texts:
            raise InputError(
                f"{document.name} has {len(document.texts or (None,))} texts, but "
                f"{documents[0].name} has {num_texts}; all must have the same number"
            )
    if tokenizer is None:
        raise InputError(f"{documents[0].name} is text, but there is no tokenizer")
    if any(document.loss_weights is not None for document in documents):
        raise InputError("loss weights are only for documents of tokens")
    try:
        tokens_T, lengths_P = encode_cached(tokenizer, texts)
    except InputError as error:
        raise _with_place(error, documents, tokenizer) from error
    return _Encoded(
        tokens_T, offsets_of(lengths_P), num_texts, tokenizer.prefix, tokenizer.suffix, None
    )


def _with_place(
    error: InputError, documents: Sequence[Document], tokenizer: Tokenizer
) -> InputError:
    """Return the error with the place of the first document that cannot be encoded."""
    for document in documents:
        try:
            tokenizer.encode_batch([document.text or "", *(document.texts or ())])
        except InputError as own:
            return InputError(f"{document.name}: {own}")
    return error


def _given_tokens(documents: Sequence[Document]) -> _Encoded:
    """Return documents of tokens, unchanged."""
    tokens, weights = [], []
    for document in documents:
        if document.tokens is None:
            raise InputError(f"{document.name} has no tokens, but others have")
        given = document.tokens
        tokens_L = np.frombuffer(given, np.uint8) if isinstance(given, bytes) else np.asarray(given)
        tokens.append(tokens_L.astype(np.int32))
        length = len(document.tokens)
        if document.loss_weights is None:
            # The first token is never predicted.
            weights.append(np.arange(length, dtype=np.float32).clip(max=1))
            continue
        if len(document.loss_weights) != length:
            raise InputError(
                f"{document.name} has {len(document.loss_weights)} loss weights for {length} tokens"
            )
        weights.append(np.asarray(document.loss_weights, np.float32))
    weighted = any(document.loss_weights is not None for document in documents)
    offsets = offsets_of([len(tokens_L) for tokens_L in tokens])
    weights_T = np.concatenate(weights) if weighted else None
    return _Encoded(np.concatenate(tokens), offsets, 1, (), (), weights_T)


def _whole(encoded: _Encoded) -> np.ndarray:
    """Return each text as one piece (see `_Cut`), int64 [N * K, 5]."""
    pieces_P = np.arange(len(encoded.offsets) - 1)
    document_P, text_P = np.divmod(pieces_P, encoded.num_texts)
    ends_P = np.ones_like(pieces_P)
    columns = (document_P, text_P, encoded.offsets[:-1], encoded.offsets[1:], ends_P)
    return np.stack(columns, axis=1)


def _texts_of(encoded: _Encoded, n: int) -> list[tuple[int, int]]:
    """Return (first token, stop) of each text of a document."""
    first = n * encoded.num_texts
    bounds = encoded.offsets[first : first + encoded.num_texts + 1].tolist()
    return list(itertools.pairwise(bounds))


def _truncate(
    encoded: _Encoded, n: int, tokenizer: Tokenizer | None, max_length: int, side: str
) -> list[_Cut]:
    room = max_length - len(encoded.prefix) - len(encoded.suffix)
    if room < 1:
        raise InputError(
            f"task.max_length: {max_length}; must be at least {max_length - room + 1}, because the "
            f"tokenizer adds {max_length - room} tokens to each text"
        )
    cuts: list[_Cut] = []
    for k, (start, stop) in enumerate(_texts_of(encoded, n)):
        kept = kept_part(encoded.tokens_T[start:stop], room, tokenizer, side)
        cuts.append((n, k, start + kept.start, start + kept.stop, True))
    return cuts


def kept_part(tokens_L: np.ndarray, room: int, tokenizer: Tokenizer | None, side: str) -> slice:
    """Return which tokens of a text are kept where it may have `room`: those at the other side.

    It is never cut inside a character.
    """
    length = len(tokens_L)
    if length <= room:
        return slice(0, length)
    if side == "end":
        return slice(0, room if tokenizer is None else tokenizer.cut(tokens_L, room))
    first = length - room
    # Skip to a token that does not begin inside a character.
    while tokenizer is not None and first < length and tokenizer.cut(tokens_L, first) < first:
        first += 1
    return slice(first, length)


def _chunks(
    encoded: _Encoded, document: Document, n: int, tokenizer: Tokenizer | None, max_length: int
) -> list[_Cut]:
    if tokenizer is None or document.text is None:
        raise InputError(
            f"task.overlong: 'chunk' cuts texts, but {document.name} is not a single text"
        )
    ((start, stop),) = _texts_of(encoded, n)
    tokens_L, length = encoded.tokens_T[start:stop], stop - start
    room = max_length - len(encoded.prefix)
    cuts: list[_Cut] = []
    at = 0
    while length - at + len(encoded.suffix) > room:
        # Never leave only the suffix for the last piece.
        most = min(at + room, length - 1)
        end = tokenizer.cut(tokens_L, most)
        end = end if end > at else most
        cuts.append((n, len(cuts), start + at, start + end, False))
        at = end
    cuts.append((n, len(cuts), start + at, stop, True))
    return cuts


def _assemble(
    documents: Sequence[Document],
    encoded: _Encoded,
    table_P5: np.ndarray,
    *,
    chunked: bool,
    num_classes: int,
) -> TokenizedDocuments:
    """Concatenate the pieces, each with its prefix and suffix."""
    document_P, number_P, start_P, stop_P, ends_P = table_P5.T
    prefix, suffix = (np.array(x, np.int32) for x in (encoded.prefix, encoded.suffix))
    body_P = stop_P - start_P
    offsets = offsets_of(len(prefix) + body_P + len(suffix) * ends_P)
    total = int(offsets[-1])
    before_P = np.cumsum(body_P) - body_P
    within_T = np.arange(int(body_P.sum())) - np.repeat(before_P, body_P)
    from_T = np.repeat(start_P, body_P) + within_T
    to_T = np.repeat(offsets[:-1] + len(prefix), body_P) + within_T
    tokens_T = np.zeros(total, np.int32)
    tokens_T[to_T] = encoded.tokens_T[from_T]
    for i, token in enumerate(prefix):
        tokens_T[offsets[:-1] + i] = token
    for i, token in enumerate(suffix[::-1]):
        tokens_T[(offsets[1:] - 1 - i)[ends_P > 0]] = token
    weights_T = None
    if encoded.weights_T is not None:
        weights_T = np.zeros(total, np.float32)
        weights_T[to_T] = encoded.weights_T[from_T]
    firsts = document_P[:: encoded.num_texts].tolist()
    ids = [documents[n].id for n in firsts]
    if chunked:
        over = np.bincount(document_P, minlength=len(documents)) > 1
        ids = [
            stable_id(id_, "chunk", int(number)) if over[n] else id_
            for id_, n, number in zip(ids, firsts, number_P, strict=True)
        ]
    labelled = [documents[n] for n in firsts]
    labels_N, soft_N, soft_NC = labels_of(labelled, num_classes)
    return TokenizedDocuments(
        ids_N=np.array(ids, np.uint64),
        tokens_T=tokens_T,
        offsets=offsets,
        labels_N=labels_N,
        soft_N=soft_N,
        soft_NC=soft_NC,
        loss_weights_T=weights_T,
        num_texts=encoded.num_texts,
    )


def without_tokens(documents: Sequence[Document], num_classes: int = 2) -> TokenizedDocuments:
    """Return documents with ids and labels but no tokens, for models that read something else."""
    num_texts = len(documents[0].texts or (None,))
    labels_N, soft_N, soft_NC = labels_of(documents, num_classes)
    return TokenizedDocuments(
        ids_N=np.array([document.id for document in documents], np.uint64),
        tokens_T=np.zeros(0, np.int32),
        offsets=np.zeros(len(documents) * num_texts + 1, np.int64),
        labels_N=labels_N,
        soft_N=soft_N,
        soft_NC=soft_NC,
        num_texts=num_texts,
    )


def labels_of(
    documents: Sequence[Document], num_classes: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return `labels_N`, `soft_N` and `soft_NC` of `TokenizedDocuments`."""
    if num_classes == 2:
        labels_N = np.array([_label(d) for d in documents], np.float32)
        soft_N = np.array([_target(d) for d in documents], np.float32)
        return labels_N, None if np.array_equal(soft_N, labels_N, equal_nan=True) else soft_N, None
    soft_NC = np.full((len(documents), num_classes), np.nan, np.float32)
    for n, document in enumerate(documents):
        if document.soft_label is not None:
            soft_NC[n] = document.soft_label
        elif document.label is not None:
            soft_NC[n] = np.arange(num_classes) == document.label
    hard = [np.nan if d.hard_label is None else d.hard_label for d in documents]
    return np.array(hard, np.float32), None, soft_NC


def _label(document: Document) -> float:
    return _target(document) if document.label is None else float(document.label)


def _target(document: Document) -> float:
    soft_label = document.soft_label
    if soft_label is None:
        return float("nan") if document.label is None else float(document.label)
    assert not isinstance(soft_label, tuple)
    return soft_label
