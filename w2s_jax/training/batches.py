"""Batches on the devices: all of a phase at once, or one after another from a stream.

Both give the step program a dict of arrays whose leading axis, S, holds the batches of one shape,
and `index_S`, int32 by step: where in S the batch of each step stands. M microbatches, R rows,
L slots. Axes that count steps are `rounded_up`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.data.packing import PackedBatches, Stack
from w2s_jax.data.stream import TextStream
from w2s_jax.models.attention_cpu import FirstKeys
from w2s_jax.training.state import rounded_up


@dataclass(frozen=True)
class ResidentBatches:
    """All batches of a phase on the devices: one dict of arrays a shape, and whose turn it is.

    Attributes:
      stacks: the arrays that the step takes, leading axis: the batches of that shape.
      stack_of_S: int32; the stack of each step.
      host_stack_of_S: the same on the host.
      own: names of arrays with a leading axis of members (see `population`).
    """

    stacks: tuple[dict[str, jax.Array], ...]
    stack_of_S: jax.Array
    host_stack_of_S: np.ndarray
    own: frozenset[str] = frozenset()

    def at(self, step: int) -> dict[str, jax.Array]:
        """What the step program takes at `step`; it finds the batch within by `state.step`."""
        return self.stacks[self.host_stack_of_S[step]]

    def position(self) -> None:
        """Nothing to be checkpointed: the step is the position."""

    def restore(self, position: None) -> None:
        """Nothing to be restored."""

    def close(self) -> None:
        """Nothing to be closed."""


def put_batches(
    packed: PackedBatches,
    targets_NC: np.ndarray | None,
    mesh: Mesh,
    *,
    needs: Collection[str] = (),
) -> ResidentBatches:
    """Places all batches on the mesh, rows split over its batch axes.

    Args:
      packed: the batches.
      targets_NC: float32 soft labels by document; None for language-model training.
      mesh: the mesh.
      needs: arrays that only some steps take (`StepSpec.needs`): 'pieces_SMRL' tells texts apart,
        for dropout; 'places_SB' puts a batch's documents in an order that microbatches don't
        change, for losses with a state.
    """
    row_sharding, whole = sharding.rows(mesh, leading=2), sharding.replicated(mesh)
    stacks = [
        {
            name: sharding.put(x, row_sharding if name.endswith(("_SMRL", "_SMRQ")) else whole)
            for name, x in arrays.items()
        }
        for arrays in packed_arrays(packed, targets_NC, needs)
    ]
    stack_of_S = filled_up(packed.place_S2[:, 0])
    return ResidentBatches(tuple(stacks), sharding.put(stack_of_S, whole), stack_of_S)


def packed_arrays(
    packed: PackedBatches, targets_NC: np.ndarray | None, needs: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The arrays of each stack, on the host, named as the step program takes them.

    Beside them 'first_keys', which programs are compiled for. Arguments as for `put_batches`.
    """
    index_S = filled_up(packed.place_S2[:, 1])
    stacks: list[dict[str, Any]] = []
    for stack in packed.stacks:
        arrays = {"tokens_SMRL": stack.tokens_SMRL, "segment_ids_SMRL": stack.segment_ids_SMRL}
        static = {"first_keys": FirstKeys(stack.first_keys)} if stack.first_keys else {}
        if targets_NC is not None:
            arrays["read_outs_SMmK"] = stack.read_outs_SMmK
            arrays["slots_SMRQ"] = stack.slots_SMRQ
            arrays["weights_SB"] = packed.weights_SB[stack.steps_S]
        elif stack.loss_weights_SMRL is not None:
            arrays["loss_weights_SMRL"] = stack.loss_weights_SMRL
        if "pieces_SMRL" in needs:
            arrays["pieces_SMRL"] = _pieces(stack, packed.documents_SB[stack.steps_S])
        if "places_SB" in needs and targets_NC is not None:
            arrays["places_SB"] = _places(packed.documents_SB[stack.steps_S])
        filled = {name: filled_up(x) for name, x in arrays.items()}
        stacks.append({"index_S": index_S} | filled | static)
    if targets_NC is None:
        return stacks
    return [a | b for a, b in zip(stacks, target_arrays(packed, targets_NC), strict=True)]


def target_arrays(packed: PackedBatches, targets_NC: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Of `packed_arrays`, those that hold soft labels."""
    targets_SBC = packed.per_document(targets_NC)
    return [{"targets_SBC": filled_up(targets_SBC[stack.steps_S])} for stack in packed.stacks]


def _pieces(stack: Stack, documents_SB: np.ndarray) -> np.ndarray:
    """Which text each slot holds, int32 [S, M, R, L]: text k of document n is K n + k; 0: none.

    In names: G microbatches of all steps, P texts of all of them.
    """
    num_rows, length = stack.segment_ids_SMRL.shape[2:]
    num_texts = stack.read_outs_SMmK.shape[3]
    segments_GRL = stack.segment_ids_SMRL.reshape(-1, num_rows, length)
    row_P, slot_P = np.divmod(stack.read_outs_SMmK.ravel(), length)
    group_P = np.repeat(np.arange(len(segments_GRL)), len(row_P) // len(segments_GRL))
    piece_P = (documents_SB.reshape(-1, 1) * num_texts + np.arange(num_texts)).ravel()
    real_P = np.repeat(documents_SB.ravel() >= 0, num_texts)
    group_P, row_P, slot_P, piece_P = (x[real_P] for x in (group_P, row_P, slot_P, piece_P))
    of_segment = np.zeros((*segments_GRL.shape[:2], int(segments_GRL.max()) + 1), np.int32)
    of_segment[group_P, row_P, segments_GRL[group_P, row_P, slot_P]] = piece_P
    pieces_GRL = np.take_along_axis(of_segment, segments_GRL.astype(np.int64), axis=2)
    return pieces_GRL.reshape(stack.segment_ids_SMRL.shape)


def _places(documents_SB: np.ndarray) -> np.ndarray:
    """Where the documents of each batch stand, int32, in the order of a hash of their rows."""
    # An odd factor: no two rows have the same.
    hash_SB = documents_SB.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    return np.argsort(hash_SB, axis=1, kind="stable").astype(np.int32)


def filled_up(x_S: np.ndarray) -> np.ndarray:
    """Zeros behind the leading axis, up to one of few lengths."""
    missing = rounded_up(len(x_S)) - len(x_S)
    return np.pad(x_S, ((0, missing),) + ((0, 0),) * (x_S.ndim - 1))


def put_feature_batches(
    order_SB: np.ndarray, targets_NC: np.ndarray, mesh: Mesh
) -> ResidentBatches:
    """Batches of a probe: which documents, and their labels; the features are no part of them.

    Args:
      order_SB: int32 row index of each document.
      targets_NC: float32 soft labels by document.
      mesh: the mesh; all of it holds all batches.
    """
    stack_of_S = filled_up(np.zeros(len(order_SB), np.int32))
    placed, on_devices = sharding.put(
        (feature_arrays(order_SB, targets_NC), stack_of_S), sharding.replicated(mesh)
    )
    return ResidentBatches((placed,), on_devices, stack_of_S)


def feature_arrays(order_SB: np.ndarray, targets_NC: np.ndarray) -> dict[str, np.ndarray]:
    """A probe's arrays, on the host, named as the step program takes them."""
    arrays = {
        "index_S": np.arange(len(order_SB), dtype=np.int32),
        "documents_SMm": order_SB[:, None],
        "targets_SBC": targets_NC[order_SB],
        "weights_SB": np.ones(order_SB.shape, np.float32),
    }
    return {name: filled_up(x) for name, x in arrays.items()}


class StreamedBatches:
    """Batches of a text stream, placed as they are asked for.

    Args:
      stream: the text; all processes read all of it.
      num_microbatches: M; must divide the rows of a batch.
      total_steps: of the phase.
      mesh: the mesh.
      needs: see `put_batches`.
    """

    def __init__(
        self,
        stream: TextStream,
        num_microbatches: int,
        total_steps: int,
        mesh: Mesh,
        *,
        needs: Collection[str] = (),
    ):
        if stream.rows % num_microbatches:
            raise InputError(
                f"pretrain.microbatch_size: {num_microbatches} microbatches of {stream.rows} rows; "
                "allowed: a number that divides the rows"
            )
        self.stream = stream
        self.num_microbatches = num_microbatches
        self.needs = needs
        self.row_sharding = sharding.rows(mesh, leading=2)
        self.row_multiple = sharding.row_shards(mesh)
        whole = sharding.replicated(mesh)
        self.index_S = sharding.put(np.zeros(rounded_up(total_steps), np.int32), whole)
        self.slots = self.real = 0

    def at(self, step: int) -> dict[str, jax.Array]:
        """The next batch of the stream; `step` only counts them."""
        del step
        batch = next(self.stream)
        segments_BL = batch["segment_ids_BL"]
        self.slots += segments_BL.size
        self.real += int(np.count_nonzero(segments_BL))
        arrays = {"tokens_SMRL": batch["tokens_BL"], "segment_ids_SMRL": segments_BL}
        if "pieces_SMRL" in self.needs:
            num_rows, length = segments_BL.shape
            row_B = np.arange(num_rows, dtype=np.int32)
            # A row has at most as many segments as slots.
            arrays["pieces_SMRL"] = row_B[:, None] * (length + 1) + segments_BL.astype(np.int32)
        placed = {name: self._placed(rows_BL) for name, rows_BL in arrays.items()}
        return {"index_S": self.index_S} | placed

    def _placed(self, rows_BL: np.ndarray) -> jax.Array:
        rows_MRL = rows_BL.reshape(self.num_microbatches, -1, rows_BL.shape[-1])
        # Empty rows where there are fewer than row shards.
        missing = -rows_MRL.shape[1] % self.row_multiple
        rows_MRL = np.pad(rows_MRL, ((0, 0), (0, missing), (0, 0)))
        return sharding.put(rows_MRL[None], self.row_sharding)

    @property
    def real_token_share(self) -> float:
        """Share of the slots so far that held a token."""
        return self.real / max(1, self.slots)

    def position(self) -> Any:
        """The stream's, and the counts."""
        return {"stream": self.stream.state(), "slots": self.slots, "real": self.real}

    def restore(self, position: Any) -> None:
        """Goes where `position` says."""
        self.stream.restore(position["stream"])
        self.slots, self.real = position["slots"], position["real"]

    def close(self) -> None:
        """Ends the stream."""
        self.stream.close()
