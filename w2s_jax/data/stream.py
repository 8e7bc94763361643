"""Streams of text that does not fit in memory, through grain: shuffled, packed, restorable.

The pipeline is corpus -> endless global shuffle, new for each epoch -> chunks of documents,
tokenised -> one stream of tokens, cut into rows -> batches. All but the last two steps have random
access by index, so a position is a few integers. With several processes each reads everything,
because the start of a row depends on all documents before it; so batches and positions are the same
for any number of processes.
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

# Documents that are read and tokenised together, the unit of positions. The batches of a stream do
# not depend on it.
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
    """Return an endless stream of batches of packed text, reshuffled each epoch.

    A document is the tokenizer's prefix, its text, and the suffix (end of text without a suffix).
    Documents follow one another and are cut at the end of a row; the rest continues in the next row
    as a new segment, after a prefix. No token is dropped, and only those prefixes are repeated.
    Blank texts are skipped.

    Args:
      corpus: see `corpus.open_corpus`.
      tokenizer: must have a suffix or an end of text, to separate documents.
      batch_size: rows of a batch.
      row_length: slots of a row, 8 to 65535.
      seed: seed of the order of documents.
      num_workers: processes that read and tokenise; 0: threads of this process.
      num_threads: threads that read and tokenise (in each worker); 0: none.
      num_ahead: batches to prepare ahead, in one more thread; 0: none.

    Returns:
      An iterator; see `TextStream`. Workers and threads do not change its batches.

    Raises:
      InputError: an argument out of range, a tokenizer without the necessary tokens, an empty
        corpus; during iteration, a record without text.
    """
    if batch_size < 1:
        raise InputError(f"pretrain.batch_size: {batch_size}; must be at least 1")
    check_stream(corpus, tokenizer, row_length=row_length)
    end = tuple(tokenizer.suffix) or _end_of_text(tokenizer)
    prefix = np.array(tokenizer.prefix, np.int32)

    import grain

    documents = (
        grain.MapDataset.source(corpus)
        # Hashed because grain adds the epoch to the seed: seed 0 in epoch 1 is seed 1 in epoch 0.
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
    """An endless iterator over batches with a position that can be saved and restored.

    A batch is a dict of [B, L] arrays:
      tokens_BL: int32, 0 for padding.
      segment_ids_BL: uint16: 1, 2, ... by document in each row; 0 for padding.
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
        """SHA-256 (hexadecimal) of the corpus; see `Corpus.digest`."""
        return self._corpus.digest

    def state(self) -> dict[str, int]:
        """Return the position after the last batch taken, independent of what was read ahead.

        It is a fixed set of integers: the next chunk of documents, its remaining tokens (start,
        stop; -1: all), the rows to skip from there, and the values that must be equal for the
        position to be valid.
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
        """Continue from `state`: the next batches are equal in bits to those of the saved stream.

        Batch size, workers and threads may differ from those of the saved stream.

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
                # A tuple, because grain compares; with a list, as in JSON, it would lose a chunk.
                "remainder_slices": {"tokens": (state["start"], state["stop"])},
                "elements_from_buffer_after_checkpoint": state["rows"],
            }
        )

    def close(self) -> None:
        """Stop threads and workers. The stream cannot be used afterwards."""
        if self._batches is not None:
            self._batches.close()
        # Grain's iterator must not outlive the modules that its destructor uses.
        self._batches = None


def check_stream(corpus: Corpus, tokenizer: Tokenizer, *, row_length: int) -> None:
    """Check the arguments of `stream_batches`, reading as little as possible.

    Raises:
      InputError: the rows are too short or too long, the tokenizer has no token to separate
        documents, or the corpus is empty or its end cannot be read.
    """
    if not MIN_ROW_LENGTH <= row_length <= MAX_ROW_LENGTH:
        raise InputError(
            f"pretrain.chunk_length: {row_length}; allowed: {MIN_ROW_LENGTH} to {MAX_ROW_LENGTH}"
        )
    if not tokenizer.suffix and tokenizer.end_of_text is None:
        raise InputError(
            f"task.tokenizer: {tokenizer.name!r}: streaming needs a tokenizer with a special token "
            "to separate documents (a suffix or an end of text), and it has none"
        )
    _refuse_empty(corpus)
    _ = corpus[len(corpus) - 1]


def _end_of_text(tokenizer: Tokenizer) -> tuple[int, ...]:
    token = tokenizer.end_of_text
    return () if token is None else (token,)


def _refuse_empty(corpus: Corpus) -> None:
    """Refuse a corpus without text, whose first token would be searched forever."""
    if not len(corpus):
        raise InputError(f"{corpus.name}: the file is empty (it holds no records)")
    if not any(corpus[n].strip() for n in range(len(corpus))):
        raise InputError(f"{corpus.name}: the file is empty (all lines are blank)")


def _tokens(
    texts: Sequence[str], *, tokenizer: Tokenizer, end: Sequence[int]
) -> dict[str, np.ndarray]:
    """Return concatenated documents, int32 [T]; the first token t of each is stored as ~t < 0."""
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
    """Extend rows of L - len(prefix) slots to L, with a prefix if they continue a document.

    The few rows that begin with a document have padding at their end instead.
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
    """Return the elements of a `grain.MapDataset`, in order, computed by processes.

    The state is the index of the next element, as without workers, while grain's own depends on
    their number. Restoring a position restarts the workers from there.
    """
    import grain
    from absl import flags

    # Grain reads its settings from absl's flags, which may not be parsed.
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
