"""Text that does not fit in memory: read at random through grain, shuffled, packed, restorable.

The way of a batch is corpus -> global shuffle, another one each epoch, without end -> chunks of a
few documents, tokenised -> one stream of tokens, cut into rows -> batches. All but the last two
steps are random access by an index, so a position is a few integers. With several processes each of
them reads everything: where a row begins depends on all documents before it, so the batches are the
same for any number of processes, and so is a position.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.data.corpus import Corpus
from w2s_jax.data.documents import stable_id
from w2s_jax.data.tokenizers import Tokenizer

MIN_ROW_LENGTH = 8
MAX_ROW_LENGTH = 2**16 - 1  # segment ids are uint16

# Documents that are read and tokenised together. What a stream yields does not depend on it, but
# positions count in it.
_CHUNK_DOCUMENTS = 32


def stream_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    row_length: int,
    seed: int,
    num_workers: int = 0,
    num_threads: int = 2,
    num_ahead: int = 2,
) -> "TextStream":
    """Batches of packed text without end, reshuffled each epoch.

    A document is the tokenizer's prefix, its text, and the suffix (end of text where there is no
    suffix). Documents follow one another and are cut where a row is full; the rest goes on in the
    next row as a segment of its own, behind a prefix. No token is left out or repeated but for
    those prefixes. Texts of nothing but white space are left out.

    Args:
      corpus: see `corpus.open_corpus`.
      tokenizer: needs a suffix or an end of text, to keep documents apart.
      batch_size: rows of a batch.
      row_length: slots of a row, 8 to 65535.
      seed: of the order of the documents.
      num_workers: processes that read and tokenise; 0: threads of this process.
      num_threads: threads that read and tokenise (in each worker); 0: none.
      num_ahead: batches that are made ahead, in one more thread; 0: none.

    Returns:
      An iterator; see `TextStream`. Neither workers nor threads change what it yields.

    Raises:
      InputError: an argument out of its range, a tokenizer without the tokens it needs, an empty
        corpus; later, a record without text.
    """
    if batch_size < 1:
        raise InputError(f"pretrain.batch_size: {batch_size}; allowed: 1 or more")
    check_stream(corpus, tokenizer, row_length=row_length)
    end = tuple(tokenizer.suffix) or _end_of_text(tokenizer)
    prefix = np.array(tokenizer.prefix, np.int32)

    import grain

    documents = (
        grain.MapDataset.source(corpus)
        # Grain adds the epoch to the seed, so that neighbouring seeds would share their orders.
        .shuffle(stable_id("stream", seed) % 2**32)
        .repeat()
    )
    chunks = documents.batch(
        _CHUNK_DOCUMENTS,
        drop_remainder=True,
        batch_fn=functools.partial(_tokens, tokenizer=tokenizer, end=end),
    )
    reading = grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=2 * num_threads if num_threads else 0
    )
    read = (
        _in_workers(chunks, reading, num_workers)
        if num_workers
        else chunks.to_iter_dataset(reading)
    )
    rows = grain.experimental.ConcatThenSplitIterDataset(
        read,
        length_struct={"tokens": row_length - len(prefix)},
        meta_features=(),
        split_full_length_features=True,
    )
    batches = rows.batch(
        batch_size,
        drop_remainder=True,
        batch_fn=functools.partial(_batch, prefix=prefix),
    )
    ahead = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=num_ahead)
    identity = {
        "seed": int(seed),
        "documents": len(corpus),
        "chunk_documents": _CHUNK_DOCUMENTS,
        "row_length": row_length,
    }
    return TextStream(iter(ahead), identity, corpus, batch_size)


class TextStream:
    """An endless iterator over batches whose position can be saved and restored.

    A batch is a dict of [B, L] arrays:
      tokens_BL: int32, 0 where there is none.
      segment_ids_BL: uint16: 1, 2, ... by document in each row; 0 is padding.
    """

    def __init__(self, batches: Any, identity: dict[str, int], corpus: Corpus, rows: int) -> None:
        self.rows = rows
        self._batches = batches
        self._identity = identity
        self._corpus = corpus

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            raise ValueError("the stream is closed")
        return next(self._batches)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the corpus: see `Corpus.digest`."""
        return self._corpus.digest

    def state(self) -> dict[str, int]:
        """The position behind the last batch that was taken, whatever was read ahead.

        It holds integers only, always the same ones: the document chunk to go on with, the tokens
        of it that are still to come (start, stop; -1: all), the rows to skip from there, and what
        must be equal for that to mean the same.
        """
        position = self._batches.get_state()
        start, stop = position["remainder_slices"]["tokens"]
        return {
            **self._identity,
            "chunk": int(position["parent_state"]["next_index"]),
            "start": int(start),
            "stop": int(stop),
            "rows": int(position["elements_from_buffer_after_checkpoint"]),
        }

    def restore(self, state: dict[str, int]) -> None:
        """Goes to where `state` was taken: the next batches are the same bits as there.

        Batch size, workers and threads may differ from those of the stream that was saved.

        Raises:
          InputError: the state is of another corpus, seed or row length.
        """
        for name, here in self._identity.items():
            if state.get(name) != here:
                raise InputError(
                    f"stream state: {name} {state.get(name)!r} differs from this stream's {here!r}"
                )
        self._batches.set_state(
            {
                "parent_state": {"next_index": state["chunk"]},
                # Grain compares with a tuple; a list, which JSON makes of it, would lose a chunk.
                "remainder_slices": {"tokens": (state["start"], state["stop"])},
                "elements_from_buffer_after_checkpoint": state["rows"],
            }
        )

    def close(self) -> None:
        """Ends threads and workers. The stream cannot be used afterwards."""
        if self._batches is not None:
            self._batches.close()
        # Grain's iterator must not outlive the modules that its destructor uses.
        self._batches = None


def check_stream(corpus: Corpus, tokenizer: Tokenizer, *, row_length: int) -> None:
    """Refuses what `stream_batches` could not stream, without reading more than it must.

    Raises:
      InputError: the rows are too short or too long, the tokenizer has no token to keep documents
        apart, or the corpus is empty or cannot be read to its end.
    """
    if not MIN_ROW_LENGTH <= row_length <= MAX_ROW_LENGTH:
        raise InputError(
            f"pretrain.chunk_length: {row_length}; allowed: {MIN_ROW_LENGTH} to {MAX_ROW_LENGTH}"
        )
    if not tokenizer.suffix and tokenizer.end_of_text is None:
        raise InputError(
            f"task.tokenizer: {tokenizer.name!r}: a tokenizer without a needed special token: "
            "streamed documents are kept apart by a suffix or an end of text, and it has neither"
        )
    _refuse_empty(corpus)
    _ = corpus[len(corpus) - 1]


def _end_of_text(tokenizer: Tokenizer) -> tuple[int, ...]:
    token = tokenizer.end_of_text
    return () if token is None else (token,)


def _refuse_empty(corpus: Corpus) -> None:
    """A corpus without any text would be searched for its first token without end."""
    if not len(corpus):
        raise InputError(f"{corpus.name}: the file is empty (it holds no records)")
    if not any(corpus[n].strip() for n in range(len(corpus))):
        raise InputError(f"{corpus.name}: the file is empty (no text but white space in any line)")


def _tokens(
    texts: Sequence[str], *, tokenizer: Tokenizer, end: Sequence[int]
) -> dict[str, np.ndarray]:
    """The documents one after another, int32 [T]; the first token t of each stands as ~t < 0."""
    texts = [text for text in texts if text.strip()]
    if not texts:
        return {"tokens": np.zeros(0, np.int32)}
    tokens_T, lengths_N = tokenizer.encode_batch(texts)
    offsets = [0, *itertools.accumulate(np.asarray(lengths_N).tolist())]
    first, last = np.array(tokenizer.prefix, np.int32), np.array(end, np.int32)
    parts = []
    for start, stop in itertools.pairwise(offsets):
        parts += [first, tokens_T[start:stop], last]
    out_T = np.concatenate(parts, dtype=np.int32)
    starts_N = np.array(offsets[:-1]) + np.arange(len(texts)) * (len(first) + len(last))
    out_T[starts_N] = ~out_T[starts_N]
    return {"tokens": out_T}


def _batch(rows: Sequence[dict[str, np.ndarray]], *, prefix: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of L - len(prefix) slots become rows of L, with a prefix where a document goes on.

    The few rows that begin with a document keep those slots empty, at their end.
    """
    marked_BL = np.stack([row["tokens"] for row in rows])
    begins_BL = marked_BL < 0
    goes_on_B = ~begins_BL[:, 0]
    tokens_BL = np.where(begins_BL, ~marked_BL, marked_BL)
    segments_BL = np.cumsum(begins_BL, axis=1) + goes_on_B[:, None]
    batch_size, length = marked_BL.shape
    shape, shift = (batch_size, length + len(prefix)), len(prefix)
    out = {"tokens_BL": np.zeros(shape, np.int32), "segment_ids_BL": np.zeros(shape, np.uint16)}
    for name, values_BL in (("tokens_BL", tokens_BL), ("segment_ids_BL", segments_BL)):
        out[name][goes_on_B, shift:] = values_BL[goes_on_B]
        out[name][~goes_on_B, :length] = values_BL[~goes_on_B]
    out["tokens_BL"][goes_on_B, :shift] = prefix
    out["segment_ids_BL"][goes_on_B, :shift] = 1
    return out


def _in_workers(chunks: Any, reading: Any, num_workers: int) -> Any:
    """The elements of a `grain.MapDataset`, in its order, made by processes.

    Its state is the index of the next element, as without workers: grain's own differs with their
    number. A restored position starts the workers anew from there.
    """
    import grain
    from absl import flags

    # Grain reads its settings from the program's flags, which only programs of absl parse.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()

    class Elements(grain.DatasetIterator):
        def __init__(self) -> None:
            super().__init__()
            self._next = 0
            self._workers: Any = None

        def __next__(self) -> Any:
            if self._workers is None:
                options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
                rest = chunks.slice(slice(self._next, None)).to_iter_dataset(reading)
                self._workers = iter(rest.mp_prefetch(options))
            element = next(self._workers)
            self._next += 1
            return element

        def get_state(self) -> dict[str, int]:
            return {"next_index": self._next}

        def set_state(self, state: dict[str, int]) -> None:
            self._stop()
            self._next = state["next_index"]

        def close(self) -> None:
            super().close()
            self._stop()

        def _stop(self) -> None:
            if self._workers is not None:
                self._workers.close()
                self._workers = None

    class Dataset(grain.IterDataset):
        def __iter__(self) -> Elements:
            return Elements()

    return Dataset()
