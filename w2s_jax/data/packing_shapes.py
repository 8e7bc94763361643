"""The shape of packed batches: the row of each text, the number of rows, and their lengths.

Shapes in names as in `packing`: S steps, R rows, P pieces, G microbatches of all steps, C chunks; V
different values, L row lengths.
"""

from dataclasses import dataclass

import numpy as np

#: A further shape must save as many slots as this number of mean steps has.
SHAPE_STEPS = 3
#: Largest number of candidates for the number of rows.
_ROW_CANDIDATES = 12
#: `PackedBucket.first_keys` are multiples of this.
_KEY_GRID = 32


def row_candidates(lengths_GP: np.ndarray, row_multiple: int) -> list[int]:
    """Return candidates for R: rows about one to three times as long as the longest text."""
    total = lengths_GP.sum(1).max() / max(1, lengths_GP.max())
    most = min(int(total) + 1, lengths_GP.shape[1])
    least = -(-max(1, most // 3) // row_multiple)
    most = max(least, most // row_multiple)
    steps = -(-(most - least + 1) // _ROW_CANDIDATES)
    return [row_multiple * n for n in range(most, least - 1, -steps)]


@dataclass(frozen=True)
class Rows:
    """Positions of texts (row, first slot, segment id), and slots used per row."""

    row_GP: np.ndarray
    start_GP: np.ndarray
    segment_GP: np.ndarray
    used_GR: np.ndarray


def spread(lengths_GP: np.ndarray, num_rows: int) -> Rows:
    """Assign texts to rows, longest first, each to the (first) emptiest row."""
    num_micro, num_pieces = lengths_GP.shape
    order_GP = np.argsort(-lengths_GP, axis=1, kind="stable")
    sorted_GP = np.take_along_axis(lengths_GP, order_GP, 1)
    used_GR = np.zeros((num_micro, num_rows), np.int64)
    count_GR = np.zeros((num_micro, num_rows), np.uint16)
    row_GP, start_GP = np.zeros_like(lengths_GP), np.zeros_like(lengths_GP)
    segment_GP = np.zeros(lengths_GP.shape, np.uint16)
    micro_G = np.arange(num_micro)
    for rank in range(num_pieces):
        piece_G, size_G = order_GP[:, rank], sorted_GP[:, rank]
        row_G = used_GR.argmin(1)
        row_GP[micro_G, piece_G] = row_G
        start_GP[micro_G, piece_G] = used_GR[micro_G, row_G]
        count_GR[micro_G, row_G] += size_G > 0
        segment_GP[micro_G, piece_G] = np.where(size_G > 0, count_GR[micro_G, row_G], 0)
        used_GR[micro_G, row_G] += size_G
    return Rows(row_GP, start_GP, segment_GP, used_GR)


def first_keys_of(
    start_P: np.ndarray, lengths_P: np.ndarray, length: int, chunk: int
) -> np.ndarray:
    """Return the first slot of the texts in each chunk, int64; see `PackedBucket.first_keys`."""
    first_C = np.arange(0, length, chunk)
    own_P, last_P = start_P // chunk, (start_P + lengths_P - 1) // chunk
    for further in range(1, int((last_P - own_P).max(initial=0)) + 1):
        reach_P = own_P + further <= last_P
        np.minimum.at(first_C, own_P[reach_P] + further, start_P[reach_P])
    # On a grid: few different values, aligned for memory and matrix units.
    return first_C // _KEY_GRID * _KEY_GRID


def keys_seen(rows: Rows, lengths_GP: np.ndarray, longest: int, chunk: int | None) -> np.ndarray:
    """Return the mean number of keys per query in rows of 0, 1, ..., `longest` slots."""
    length_L = np.arange(longest + 1)
    if chunk is None:
        return length_L.astype(np.float64)
    real_GP = lengths_GP > 0
    first_C = first_keys_of(rows.start_GP[real_GP], lengths_GP[real_GP], longest, chunk)
    slot_L = np.arange(longest)
    # A chunk's keys end at the end of the chunk or of the row.
    stop_L = np.minimum((slot_L // chunk + 1) * chunk, longest)
    total_L = np.concatenate([[0], np.cumsum(stop_L - first_C[slot_L // chunk])])
    return total_L / np.maximum(length_L, 1)


def levels(
    needed_S: np.ndarray, max_shapes: int, attention_L: np.ndarray, multiple: int = 1
) -> tuple[float, np.ndarray]:
    """Return the total cost, and the row length of each step, with at most `max_shapes` lengths.

    A slot in a row of L costs 1 + attention_L[L]; each length has a fixed cost of `SHAPE_STEPS`
    mean steps.
    """
    # A grid of about 128 values: rounding up adds far less than 1%.
    grid = max(1, int(needed_S.max()) // 128 // multiple) * multiple
    needed_S = np.minimum(-(-needed_S // grid) * grid, needed_S.max())
    price_S = needed_S * (1.0 + attention_L[needed_S])
    extra = SHAPE_STEPS * float(price_S.mean())
    return cover(needed_S, np.ones(len(needed_S)), price_S, max_shapes, extra)


def cover(
    values_N: np.ndarray, weights_N: np.ndarray, prices_N: np.ndarray, most: int, extra: float
) -> tuple[float, np.ndarray]:
    """Round values up to at most `most` levels chosen among them, at the least cost.

    Dynamic programming over the sorted values: the cheapest cover of the n smallest values by g
    levels covers the k smallest by g - 1 levels, and the others by the n-th value.

    Args:
      values_N: values to be covered.
      weights_N: a value covered by a level costs its weight times the level's price.
      prices_N: price of each value as a level; increases with the value.
      most: largest number of levels.
      extra: fixed cost of each level.

    Returns:
      The total cost, and the level of each value.
    """
    values_V, first_V, inverse_N = np.unique(values_N, return_index=True, return_inverse=True)
    price_V = prices_N[first_V]
    before_V = np.concatenate([[0], np.cumsum(np.bincount(inverse_N, weights_N))])
    cost_V = price_V * before_V[1:]
    from_GV = [np.zeros(len(values_V), np.int64)]
    totals = [cost_V[-1]]
    for _ in range(min(most, len(values_V)) - 1):
        # [k, n]: the k + 1 smallest values as before, those up to the n-th by the n-th.
        split_VV = cost_V[:, None] + price_V * (before_V[1:] - before_V[1:, None])
        split_VV[np.tril_indices(len(values_V), -1)] = np.inf
        from_GV.append(split_VV.argmin(0))
        cost_V = split_VV.min(0)
        totals.append(cost_V[-1])
    number = int(np.argmin(np.array(totals) + extra * np.arange(1, len(totals) + 1)))
    total = float(totals[number] + extra * (number + 1))
    level_V = np.zeros(len(values_V), np.int64)
    stop = len(values_V)
    for g in range(number, -1, -1):
        start = int(from_GV[g][stop - 1]) + 1 if g else 0
        level_V[start:stop] = values_V[stop - 1]
        stop = start
        if not stop:
            break
    return total, level_V[inverse_N]
