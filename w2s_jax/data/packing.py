"""Exact-batch packing: every batch holds exactly B documents, in static shapes.

A batch is split into M microbatches of m = B / M documents, and the documents of a microbatch are
packed into R rows of L slots: several documents a row, marked by segment ids 1, 2, ... (0 is
padding). Attention is masked by segment and positions restart with each, so packing changes no
result. Shapes in names: S steps, M microbatches, R rows, L slots, m documents a microbatch,
K read-outs a document, B documents a batch, N documents.
"""

from dataclasses import dataclass

import numpy as np

from w2s_jax.data.documents import hash_order
from w2s_jax.data.tokenize import TokenizedDocuments

FILL = -1  # stands for "no document" in an order


@dataclass(frozen=True)
class PackedBatches:
    """Batches of one static shape, on the host.

    Attributes:
      tokens_SMRL: smallest unsigned type that holds the ids.
      segment_ids_SMRL: uint16; 0 is padding.
      read_outs_SMmK: int32 index into the flattened [R * L] slots: the last token of the document.
      documents_SB: int32 row index of each document; -1 where a last batch is filled up.
      weights_SB: float32; 1 for a document, 0 for a fill.
      loss_weights_SMRL: float32 weight of predicting the token in each slot, or None (weight 1 for
        every token that follows another of its document).
    """

    tokens_SMRL: np.ndarray
    segment_ids_SMRL: np.ndarray
    read_outs_SMmK: np.ndarray
    documents_SB: np.ndarray
    weights_SB: np.ndarray
    loss_weights_SMRL: np.ndarray | None

    @property
    def real_token_share(self) -> float:
        """Share of the slots that hold a document's token."""
        return float(np.mean(self.segment_ids_SMRL > 0))

    def per_document(self, values_N: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """`values_N` (leading axis: documents) laid out as [S, B, ...]."""
        out = values_N[np.maximum(self.documents_SB, 0)]
        out[self.documents_SB < 0] = fill
        return out


def steps_per_epoch(num_documents: int, batch_size: int) -> int:
    """Full batches in one pass; the incomplete last one is dropped in training."""
    return num_documents // batch_size


def training_order(ids_N: np.ndarray, *, batch_size: int, num_steps: int, seed: int) -> np.ndarray:
    """Which document stands where in each training batch, int32 [S, B], for `num_steps` steps.

    The order of an epoch comes from a hash of (seed, epoch, id): mesh, packing and machine can't
    change it.
    """
    per_epoch = steps_per_epoch(len(ids_N), batch_size)
    epochs = [
        hash_order(ids_N, "order", seed, epoch)[: per_epoch * batch_size]
        for epoch in range(-(-num_steps // per_epoch))
    ]
    return np.concatenate(epochs).reshape(-1, batch_size).astype(np.int32)[:num_steps]


def evaluation_order(lengths_N: np.ndarray, *, batch_size: int) -> np.ndarray:
    """Every document once, int32 [S, B], filled up with -1.

    Documents are dealt out by length, longest first, so that all batches are about equally long and
    one shape fits them without much padding.
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
    row_multiple: int = 1,
) -> PackedBatches:
    """Packs the documents that `order_SB` names into batches of one shape.

    Args:
      documents: tokenised documents.
      order_SB: document row indices, -1 for none.
      num_microbatches: M; must divide B.
      row_multiple: R becomes a multiple of this (the number of row shards).
    """
    num_steps, batch_size = order_SB.shape
    order_SMm = order_SB.reshape(num_steps, num_microbatches, -1)
    lengths_N = documents.lengths_N
    used = order_SB[order_SB >= 0]
    length = _row_length(lengths_N, order_SMm, int(lengths_N[used].max()), row_multiple)
    places = [
        [_first_fit_decreasing(lengths_N, docs_m, length) for docs_m in docs_Mm]
        for docs_Mm in order_SMm
    ]
    num_rows = max(rows for step in places for _, rows in step)
    num_rows = -(-num_rows // row_multiple) * row_multiple
    return _fill(documents, order_SMm, places, num_rows, length, batch_size)


Placement = list[tuple[int, int, int]]  # (row, first slot, segment id) of each document


def _first_fit_decreasing(
    lengths_N: np.ndarray, docs_m: np.ndarray, length: int
) -> tuple[Placement, int]:
    """Puts each document, longest first, into the first row with room; and the number of rows."""
    sizes = [int(lengths_N[i]) if i >= 0 else 0 for i in docs_m]
    used: list[int] = []
    segments: list[int] = []
    placement: Placement = [(0, 0, 0)] * len(sizes)
    for slot in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[slot]
        if size == 0:
            continue
        row = next((r for r, taken in enumerate(used) if taken + size <= length), len(used))
        if row == len(used):
            used.append(0)
            segments.append(0)
        segments[row] += 1
        placement[slot] = (row, used[row], segments[row])
        used[row] += size
    return placement, len(used)


def _row_length(
    lengths_N: np.ndarray, order_SMm: np.ndarray, longest: int, row_multiple: int
) -> int:
    """The row length with the fewest slots, judged on a sample of the microbatches.

    Attention costs grow with the row, so a longer row must save 2% of the slots to be taken.
    """
    best, best_slots = longest, float("inf")
    flat = order_SMm.reshape(-1, order_SMm.shape[-1])
    sample = flat[:: max(1, len(flat) // 64)]
    for length in (longest, -(-5 * longest // 4), -(-3 * longest // 2), 2 * longest):
        rows = max(_first_fit_decreasing(lengths_N, docs_m, length)[1] for docs_m in sample)
        slots = -(-rows // row_multiple) * row_multiple * length
        if slots < 0.98 * best_slots:
            best, best_slots = length, slots
    return best


def _fill(
    documents: TokenizedDocuments,
    order_SMm: np.ndarray,
    places: list[list[tuple[Placement, int]]],
    num_rows: int,
    length: int,
    batch_size: int,
) -> PackedBatches:
    num_steps, num_micro, per_micro = order_SMm.shape
    shape = (num_steps, num_micro, num_rows, length)
    tokens = np.zeros(shape, np.min_scalar_type(int(documents.tokens_T.max(initial=0))))
    segments = np.zeros(shape, np.uint16)
    weights_T = documents.loss_weights_T
    loss_weights = None if weights_T is None else np.zeros(shape, np.float32)
    read_outs = np.zeros((num_steps, num_micro, per_micro, 1), np.int32)
    offsets = documents.offsets.tolist()
    for s, step in enumerate(places):
        for m, (placement, _) in enumerate(step):
            for slot, (row, start, segment) in enumerate(placement):
                if not segment:
                    continue
                index = int(order_SMm[s, m, slot])
                a, b = offsets[index], offsets[index + 1]
                stop = start + b - a
                tokens[s, m, row, start:stop] = documents.tokens_T[a:b]
                segments[s, m, row, start:stop] = segment
                read_outs[s, m, slot, 0] = row * length + stop - 1
                if loss_weights is not None and weights_T is not None:
                    loss_weights[s, m, row, start:stop] = weights_T[a:b]
    order_SB = order_SMm.reshape(num_steps, batch_size)
    weights_SB = (order_SB >= 0).astype(np.float32)
    return PackedBatches(tokens, segments, read_outs, order_SB, weights_SB, loss_weights)
