"""Exact-batch packing: every batch holds exactly B documents, in few static shapes.

A batch is split into M microbatches of m = B / M documents, and the texts of a microbatch are
packed into R rows of L slots: several texts per row, marked by segment ids 1, 2, ... (0 is
padding). Attention is masked by segment and positions restart in each segment, so packing does not
change the result. All batches of a phase have the same number of rows. The row length takes a few
values, chosen by what the batches need (`levels`), so that few slots are padding and few programs
are compiled. The batches of one row length are a bucket.

Shapes in names: S steps, M microbatches, R rows, L slots, Q segments per row, m documents per
microbatch, K texts (and read-outs) per document, B documents per batch, N documents, P pieces
(texts in packing order), G microbatches of all steps, C chunks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import hash_order
from w2s_jax.data.packing_shapes import (
    Rows,
    cover,
    first_keys_of,
    keys_seen,
    levels,
    row_candidates,
    spread,
)
from w2s_jax.data.tokenize import TokenizedDocuments

#: "No document" in an order.
FILL = -1

#: Largest number of shapes (compiled programs) of a phase.
MAX_SHAPES = 6
#: Row length at which (causal) attention costs as much as the rest of a block: 12 x width.
ATTENTION_LENGTH = 3072
#: Tokens that a further length group must save in a pass over documents.
GROUP_TOKENS = 8_000


@dataclass(frozen=True)
class PackedBucket:
    """The batches of one shape, on the host; S counts the batches of the bucket only.

    Attributes:
      steps_S: int32; the steps of the phase at which the batches are used, ascending.
      tokens_SMRL: token ids, in the smallest unsigned type that holds them.
      segment_ids_SMRL: uint16; 0 is padding.
      read_outs_SMmK: int32 index into the flattened [R * L] slots: the last token of each text.
      slots_SMRQ: uint16; the last slot of segment q + 1 of each row, 0 if there is none.
      first_keys: for each chunk of a row, the first slot of the texts in the chunk, in any of the
        batches; causal attention of the chunk needs no earlier keys. () without a `chunk`.
      loss_weights_SMRL: float32 weight of predicting the token in each slot, or None (weight 1 for
        every token that follows another of its document).
      numbers_SMRL: int32, the number that `pack` was given for the token in each slot; None if it
        was not given any.
    """

    steps_S: np.ndarray
    tokens_SMRL: np.ndarray
    segment_ids_SMRL: np.ndarray
    read_outs_SMmK: np.ndarray
    slots_SMRQ: np.ndarray
    first_keys: tuple[int, ...]
    loss_weights_SMRL: np.ndarray | None
    numbers_SMRL: np.ndarray | None = None


@dataclass(frozen=True)
class PackedBatches:
    """All batches of a phase, on the host, grouped by shape.

    Attributes:
      buckets: one per shape.
      documents_SB: int32 row index of each document; -1 fills up an incomplete last batch.
    """

    buckets: tuple[PackedBucket, ...]
    documents_SB: np.ndarray

    @cached_property
    def bucket_S(self) -> np.ndarray:
        """The bucket that holds each step's batch, int32 [S]."""
        bucket_S = np.zeros(len(self.documents_SB), np.int32)
        for number, bucket in enumerate(self.buckets):
            bucket_S[bucket.steps_S] = number
        return bucket_S

    @cached_property
    def index_S(self) -> np.ndarray:
        """The index of each step's batch within its bucket, int32 [S]."""
        index_S = np.zeros(len(self.documents_SB), np.int32)
        for bucket in self.buckets:
            index_S[bucket.steps_S] = np.arange(len(bucket.steps_S))
        return index_S

    @property
    def weights_SB(self) -> np.ndarray:
        """Document weights, float32: 1 for a document, 0 for a fill."""
        return (self.documents_SB >= 0).astype(np.float32)

    @property
    def real_token_share(self) -> float:
        """The share of all slots that hold a document's token."""
        real = sum(np.count_nonzero(bucket.segment_ids_SMRL) for bucket in self.buckets)
        return real / sum(bucket.segment_ids_SMRL.size for bucket in self.buckets)

    def per_document(self, values_N: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """Arrange `values_N` (leading axis: documents) by batch, [S, B, ...]."""
        out = values_N[np.maximum(self.documents_SB, 0)]
        out[self.documents_SB < 0] = fill
        return out


def steps_per_epoch(num_documents: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch; training drops the incomplete last one."""
    return num_documents // batch_size


def training_order(ids_N: np.ndarray, *, batch_size: int, num_steps: int, seed: int) -> np.ndarray:
    """Return the row index of each document of each training batch, int32 [S, B].

    The order of an epoch is that of a hash of (seed, epoch, id), so it does not depend on mesh,
    packing or machine.

    Args:
      ids_N: uint64 document ids.
      batch_size: B.
      num_steps: S.
      seed: seed of the data order.
    """
    per_epoch = steps_per_epoch(len(ids_N), batch_size)
    epochs = [
        hash_order(ids_N, "order", seed, epoch)[: per_epoch * batch_size]
        for epoch in range(-(-num_steps // per_epoch))
    ]
    return np.concatenate(epochs).reshape(-1, batch_size).astype(np.int32)[:num_steps]


def length_groups(
    documents: TokenizedDocuments, *, attention_length: int = ATTENTION_LENGTH
) -> list[np.ndarray]:
    """Group documents of similar length, for passes in any order; return their row indices.

    The groups keep one long text from making all rows long. A token in rows of L slots is assumed
    to cost 1 + L / `attention_length`. There are at most `MAX_SHAPES` groups; each has a fixed cost
    of `GROUP_TOKENS` tokens.
    """
    longest_N = documents.piece_lengths_P.reshape(-1, documents.num_texts).max(1)
    # A grid of 3%: more than a few hundred lengths would only take time.
    grid_N = np.ceil(np.exp(np.ceil(np.log(longest_N) / 0.03) * 0.03)).astype(np.int64)
    price_N = 1.0 + grid_N / attention_length
    weights_N = documents.lengths_N.astype(np.float64)
    _, level_N = cover(grid_N, weights_N, price_N, MAX_SHAPES, float(GROUP_TOKENS))
    return [np.flatnonzero(level_N == level) for level in np.unique(level_N)]


def evaluation_order(lengths_N: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Return batches that hold every document once, int32 [S, B], filled up with -1.

    Documents are dealt to the batches by length, longest first. All batches are then about equally
    long, and one shape fits them with little padding.
    """
    order_N = np.argsort(-lengths_N, kind="stable")
    num_steps = -(-len(order_N) // batch_size)
    filled = np.full(num_steps * batch_size, FILL, np.int32)
    filled[: len(order_N)] = order_N
    return np.ascontiguousarray(filled.reshape(batch_size, num_steps).T)


def pack(
    documents: TokenizedDocuments,
    order_SB: np.ndarray,
    *,
    num_microbatches: int = 1,
    groups: int = 1,
    row_multiple: int = 1,
    max_shapes: int = MAX_SHAPES,
    attention_length: int = ATTENTION_LENGTH,
    chunk: int | None = None,
    length_multiple: int = 1,
    numbers_T: np.ndarray | None = None,
) -> PackedBatches:
    """Pack the documents of `order_SB` into batches of at most `max_shapes` shapes.

    Within a microbatch each text, longest first, goes to the emptiest row so far (longest
    processing time first, Graham 1969), for all microbatches at once. The fullest row is the length
    that a microbatch needs. The number of rows minimises the cost of all slots, where a slot that
    may attend to k slots costs 1 + k / `attention_length`. Without a `chunk`, k is the row length.
    With one, it is what `PackedBucket.first_keys` leaves of it, which is little, since the texts of
    a row are in order of decreasing length.

    The documents of a batch are dealt to its microbatches by length, so that these are about
    equally long (`PackedBatches.documents_SB` has the resulting order).

    Args:
      documents: tokenised documents.
      order_SB: document row indices, -1 for none.
      num_microbatches: M; must divide B.
      groups: number of equal parts of a batch that share no microbatch; must divide M.
      row_multiple: R is a multiple of this (the number of row shards).
      max_shapes: largest number of different L.
      attention_length: see above.
      chunk: slots of a row for which attention is computed at a time; None: all.
      length_multiple: L is a multiple of this.
      numbers_T: int32, a number for each token of the documents to be carried to its slot, such as
        the token's row in a table.

    Raises:
      InputError: if a microbatch has more documents than segment ids can distinguish.
    """
    num_steps, batch_size = order_SB.shape
    if num_microbatches > groups:
        parts_SB = order_SB.reshape(num_steps * groups, -1)
        dealt_SB = _deal(documents.lengths_N, parts_SB, num_microbatches // groups)
        order_SB = dealt_SB.reshape(order_SB.shape)
    num_texts = documents.num_texts
    order_SBK = order_SB[..., None] * num_texts + np.arange(num_texts, dtype=order_SB.dtype)
    order_SBK[order_SB < 0] = FILL
    order_GP = order_SBK.reshape(num_steps * num_microbatches, -1)
    if order_GP.shape[1] > np.iinfo(np.uint16).max:
        raise InputError(
            f"train.microbatch_size: {order_GP.shape[1] // num_texts}; allowed: at most "
            f"{np.iinfo(np.uint16).max // num_texts} documents per microbatch"
        )
    lengths_GP = np.where(order_GP >= 0, documents.piece_lengths_P[order_GP], 0)
    best: tuple[float, Rows, np.ndarray] | None = None
    for num_rows in row_candidates(lengths_GP, row_multiple):
        rows = spread(lengths_GP, num_rows)
        needed_S = rows.used_GR.max(1).reshape(num_steps, -1).max(1)
        needed_S = -(-needed_S // length_multiple) * length_multiple
        seen_L = keys_seen(rows, lengths_GP, int(needed_S.max()), chunk)
        seen_L = seen_L / attention_length
        cost, length_S = levels(needed_S, max_shapes, seen_L, length_multiple)
        if best is None or num_rows * cost < best[0]:
            best = (num_rows * cost, rows, length_S)
    assert best is not None
    _, rows, length_S = best
    shape = (num_steps, num_microbatches, batch_size // num_microbatches, num_texts)
    buckets = tuple(
        _bucket(
            documents,
            order_GP,
            rows,
            np.flatnonzero(length_S == length),
            int(length),
            shape,
            chunk,
            numbers_T,
        )
        for length in np.unique(length_S)
    )
    return PackedBatches(buckets, order_SB)


def _deal(lengths_N: np.ndarray, order_SB: np.ndarray, num_microbatches: int) -> np.ndarray:
    """Sort each batch by length and deal it to microbatches to and fro: [S, B], M outermost."""
    lengths_SB = np.where(order_SB >= 0, lengths_N[order_SB], 0)
    sorted_SB = np.argsort(-lengths_SB, axis=1, kind="stable")
    order_SmM = np.take_along_axis(order_SB, sorted_SB, 1).reshape(
        len(order_SB), -1, num_microbatches
    )
    order_SmM[:, 1::2] = order_SmM[:, 1::2, ::-1].copy()
    return order_SmM.transpose(0, 2, 1).reshape(order_SB.shape)


def _bucket(
    documents: TokenizedDocuments,
    order_GP: np.ndarray,
    rows: Rows,
    steps_S: np.ndarray,
    length: int,
    shape: tuple[int, int, int, int],
    chunk: int | None,
    numbers_T: np.ndarray | None,
) -> PackedBucket:
    """Pack the batches of `steps_S` into rows of `length` slots; `shape` is (S, M, m, K)."""
    _, num_micro, per_micro, num_texts = shape
    micro_G = (steps_S[:, None] * num_micro + np.arange(num_micro)).reshape(-1)
    order_GP = order_GP[micro_G]
    row_GP, start_GP, segment_GP = (
        x[micro_G] for x in (rows.row_GP, rows.start_GP, rows.segment_GP)
    )
    num_rows = rows.used_GR.shape[1]
    base_GP = (np.arange(len(micro_G))[:, None] * num_rows + row_GP) * length + start_GP
    lengths_GP = np.where(order_GP >= 0, documents.piece_lengths_P[order_GP], 0)
    read_outs_GP = row_GP * length + start_GP + np.maximum(lengths_GP, 1) - 1

    real_GP = order_GP >= 0
    # Few different numbers, so that phases share programs.
    most = int(rows.segment_GP.max(initial=1))
    most = most if most <= 4 else -(-most // 4) * 4
    slots_GRQ = np.zeros((len(micro_G), num_rows, most), np.uint16)
    in_G = np.broadcast_to(np.arange(len(micro_G))[:, None], order_GP.shape)[real_GP]
    last_P = (start_GP + lengths_GP - 1)[real_GP]
    slots_GRQ[in_G, row_GP[real_GP], segment_GP[real_GP] - 1] = last_P
    first_keys: tuple[int, ...] = ()
    if chunk is not None:
        first_C = first_keys_of(start_GP[real_GP], lengths_GP[real_GP], length, chunk)
        first_keys = tuple(first_C.tolist())
    pieces_P, lengths_P = order_GP[real_GP], lengths_GP[real_GP]
    # Source and target of each token: the start of its text, plus its position in the text.
    stop_P = np.cumsum(lengths_P)
    within_T = np.arange(stop_P[-1]) - np.repeat(stop_P - lengths_P, lengths_P)
    from_T = np.repeat(documents.offsets[pieces_P], lengths_P) + within_T
    to_T = np.repeat(base_GP[real_GP], lengths_P) + within_T

    slots = len(micro_G) * num_rows * length
    full = (len(steps_S), num_micro, num_rows, length)
    tokens = np.zeros(slots, np.min_scalar_type(int(documents.tokens_T.max(initial=0))))
    tokens[to_T] = documents.tokens_T[from_T]
    segments = np.zeros(slots, np.uint16)
    segments[to_T] = np.repeat(segment_GP[real_GP], lengths_P)
    loss_weights = None
    if documents.loss_weights_T is not None:
        loss_weights = np.zeros(slots, np.float32)
        loss_weights[to_T] = documents.loss_weights_T[from_T]
        loss_weights = loss_weights.reshape(full)
    numbers = None
    if numbers_T is not None:
        numbers = np.zeros(slots, np.int32)
        numbers[to_T] = numbers_T[from_T]
        numbers = numbers.reshape(full)
    return PackedBucket(
        steps_S=steps_S.astype(np.int32),
        tokens_SMRL=tokens.reshape(full),
        segment_ids_SMRL=segments.reshape(full),
        read_outs_SMmK=read_outs_GP.reshape(-1, num_micro, per_micro, num_texts).astype(np.int32),
        slots_SMRQ=slots_GRQ.reshape(*full[:3], -1),
        first_keys=first_keys,
        loss_weights_SMRL=loss_weights,
        numbers_SMRL=numbers,
    )
