"""Which prompts are completed together: batches of similar length, of few shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_jax.models.config import ModelConfig
from w2s_jax.models.decoding import Rows

#: The row of a batch that only fills it.
FILL = -1
#: Largest number of rows per device; on CPUs, larger batches leave the cache.
CPU_BATCH_SIZE, BATCH_SIZE = 64, 256
#: Largest number of prompt slots per device and batch (but at least one row).
PROMPT_SLOTS = 16_384
#: Bytes for the cache where a device does not say how much memory it has.
UNKNOWN_MEMORY = 2 * 2**30
#: Share of a device's memory for the cache.
CACHE_SHARE = 0.25
#: Rows that do not fill a batch join longer ones, if those are at most this much longer.
_JOIN = 2.0
_SHORTEST = 8


@dataclass(frozen=True)
class Dispatch:
    """The rows of one batch on all devices.

    Attributes:
      rows_B: int64 index of each row's prompt; `FILL` for none.
      sample_B: int32 number of its sample.
      slots: P, prompt slots of each row.
    """

    rows_B: np.ndarray
    sample_B: np.ndarray
    slots: int


@dataclass(frozen=True)
class BatchLimits:
    """What bounds the rows of a batch.

    Attributes:
      most: largest number of rows of a shard.
      cache_bytes: largest size of the cache on a device.
      slot_bytes: bytes of one slot of the cache on a device.
      row_bytes: bytes that a row takes besides (logits).
      shards: the number of rows is a multiple of it.
    """

    most: int
    cache_bytes: int
    slot_bytes: int
    row_bytes: int
    shards: int

    def rows(self, slots: int, new_tokens: int) -> int:
        """Return the number of rows of a batch, on all shards."""
        by_cache = self.cache_bytes // (self.slot_bytes * (slots + new_tokens) + self.row_bytes)
        return self.shards * max(1, min(self.most, by_cache, PROMPT_SLOTS // slots))


def cache_slot_bytes(config: ModelConfig, width: int, tensor: int) -> int:
    """Return the bytes of a cache slot on a device, with heads split over `tensor` devices."""
    split = 1 if config.num_kv_heads % tensor else tensor
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * width // split


def batch_limits(
    config: ModelConfig,
    *,
    batch_size: int,
    cache_bytes: int,
    greedy: bool,
    width: int,
    tensor: int,
    shards: int,
) -> BatchLimits:
    """Return what bounds the batches of a model.

    Args:
      config: the model.
      batch_size: largest number of rows of a shard.
      cache_bytes: largest size of the cache on a device.
      greedy: whether tokens are chosen without random bits.
      width: bytes of a number of the cache.
      tensor: devices over which heads are split.
      shards: shards of the rows.
    """
    # Logits, noise and what sorting and softmax of them take.
    row_bytes = 4 * (4 if greedy else 8) * config.vocab_size
    slot_bytes = cache_slot_bytes(config, width, tensor)
    return BatchLimits(batch_size, cache_bytes, slot_bytes, row_bytes, shards)


def prompt_slots(length: int, longest: int, multiple: int = 1) -> int:
    """Return the slots for a prompt: 8, 12, 16, 24, 32, 48, ..., at most those of the longest.

    So a prompt has at most half as many slots again as tokens, and there are few shapes.
    """
    slots = _SHORTEST
    while slots < length:
        slots = slots * 3 // 2 if slots & (slots - 1) == 0 else slots * 4 // 3
    return -(-min(slots, longest) // multiple) * multiple


def plan(
    lengths_N: Sequence[int],
    ids_N: np.ndarray,
    *,
    num_samples: int,
    new_tokens: int,
    limits: BatchLimits,
    multiple: int = 1,
) -> list[Dispatch]:
    """Put every sample of every prompt into a batch.

    Args:
      lengths_N: tokens of each prompt, at least 1.
      ids_N: uint64 ids of the prompts, which order those of equal length: batches do not depend on
        the order of the prompts.
      num_samples: samples of each prompt.
      new_tokens: slots for new tokens.
      limits: what bounds a batch.
      multiple: prompt slots are a multiple of it.

    Returns:
      The batches, shortest prompts first; an incomplete one is filled.
    """
    lengths = np.asarray(lengths_N, np.int64)
    if not len(lengths):
        return []
    longest = int(lengths.max())
    rows_M = np.repeat(np.lexsort((ids_N, lengths)), num_samples).astype(np.int64)
    sample_M = np.tile(np.arange(num_samples, dtype=np.int32), len(lengths))
    lengths_U, number_M = np.unique(lengths[rows_M], return_inverse=True)
    slots_U = [prompt_slots(length, longest, multiple) for length in lengths_U.tolist()]
    # A few rows are spread over all devices, and do not fill a large batch.
    needed = -(-len(rows_M) // limits.shards) * limits.shards
    size_U = [min(limits.rows(slots, new_tokens), needed) for slots in slots_U]
    dispatches, start = [], 0
    while start < len(rows_M):
        stop, longer = start, _JOIN * slots_U[number_M[start]]
        while stop < len(rows_M) and slots_U[number_M[stop]] <= longer:
            if stop - start >= size_U[number_M[stop]]:
                break
            stop += 1
        # The longest row decides the shape.
        number = number_M[stop - 1]
        idle = (0, size_U[number] - (stop - start))
        dispatches.append(
            Dispatch(
                np.pad(rows_M[start:stop], idle, constant_values=FILL),
                np.pad(sample_M[start:stop], idle),
                slots_U[number],
            )
        )
        start = stop
    return dispatches


def rows_of(prompts: list[np.ndarray], ids_N: np.ndarray, dispatch: Dispatch) -> Rows:
    """Return the rows of a batch, as numpy arrays; one that fills it has a prompt of one token."""
    size = len(dispatch.rows_B)
    tokens_BP = np.zeros((size, dispatch.slots), np.int32)
    lengths_B, ids_B2 = np.ones(size, np.int32), np.zeros((size, 2), np.uint32)
    for i, row in enumerate(dispatch.rows_B):
        if row != FILL:
            prompt = prompts[row]
            tokens_BP[i, dispatch.slots - len(prompt) :] = prompt
            lengths_B[i] = len(prompt)
            ids_B2[i] = int(ids_N[row]) & 0xFFFFFFFF, int(ids_N[row]) >> 32
    used_B = dispatch.rows_B != FILL
    return Rows(tokens_BP, lengths_B, ids_B2, dispatch.sample_B, used_B)
