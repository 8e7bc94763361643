"""Batches as the training step takes them, and how they are made on the host.

A field's name gives its shape for one microbatch or batch: R rows, L slots, Q segments of a row,
m documents per microbatch, K texts per document, B documents per batch, C classes. Stacked arrays
have more leading axes: M microbatches, S batches of one shape. Axes of length S are padded to one
of few lengths (`state.rounded_up`), so that phases share programs.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.data.packing import PackedBatches, PackedBucket
from w2s_jax.models.dropout import Dropout, make_key, slot_keys
from w2s_jax.training.sequences import TokenTargets, of_texts, target_tokens
from w2s_jax.training.state import rounded_up

#: Folded into the dropout key in place of a step's number, which it never equals.
_DROPOUT = 2**32 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Microbatch:
    """Documents packed into rows (see `data.packing`).

    Attributes:
      tokens_RL: token ids, of an unsigned type.
      segment_ids_RL: uint16; 0 is padding.
      slots_RQ: uint16, the last slot of each segment; None for language models.
      read_outs_mK: int32 index into the [R * L] slots, the last token of each text; None for
        language models.
      loss_weights_RL: float32 weight of predicting the token in each slot; None: all 1.
      text_ids_RL: int32 ids that distinguish texts, for dropout; None without dropout.
      targets: the target tokens of completions; None of class labels and of language models.
      dropout: the dropout of each slot, which the step computes from `text_ids_RL`; or None.
      first_keys: see `attention_cpu.attention`; programs are specialised for it.
    """

    tokens_RL: Any
    segment_ids_RL: Any
    slots_RQ: Any = None
    read_outs_mK: Any = None
    loss_weights_RL: Any = None
    text_ids_RL: Any = None
    targets: TokenTargets | None = None
    dropout: Dropout | None = None
    first_keys: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def shardings(self, rows: NamedSharding, whole: NamedSharding) -> "Microbatch":
        """Return a tree of shardings for these arrays: rows are sharded, read-outs are not."""
        return dataclasses.replace(
            self,
            tokens_RL=rows,
            segment_ids_RL=rows,
            slots_RQ=rows,
            read_outs_mK=whole,
            loss_weights_RL=rows,
            text_ids_RL=rows,
            targets=jax.tree.map(lambda _: rows, self.targets),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FeatureMicrobatch:
    """Documents of a probe.

    Attributes:
      documents_m: int32 row index into the features [N, K, D], which are frozen parameters.
    """

    documents_m: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """One batch; the fields other than `microbatches` are None for language models.

    Of completions, all are None too: their targets are in the microbatches. Pairs of completions
    have `weights_B`, `preference_B`, and perhaps `reference_B2`.

    Attributes:
      microbatches: the documents, with a leading axis M.
      targets_BC: float32 soft labels; column 1 is P(label 1).
      weights_B: float32 document weights.
      update_order_B: int32, the order in which a loss's `update` sees the documents, which does
        not depend on the microbatches; None for losses without `update`.
      preference_B: float32, P(the first of the two completions is the better one). (Column 1 of
        `targets_BC`, in tasks of that kind, is P(the second is better).)
      reference_B2: float32 summed log-probabilities of the completions under the reference model;
        None for losses that need none.
    """

    microbatches: Microbatch | FeatureMicrobatch
    targets_BC: Any = None
    weights_B: Any = None
    update_order_B: Any = None
    preference_B: Any = None
    reference_B2: Any = None

    @property
    def num_microbatches(self) -> int:
        """M."""
        return jax.tree.leaves(self.microbatches)[0].shape[0]

    def with_dropout(self, rate: jax.Array, seed: jax.Array, step: jax.Array) -> "Batch":
        """Replace the text ids of the microbatches by the dropout of their slots in a step."""
        micro = self.microbatches
        if not isinstance(micro, Microbatch):
            return self
        key = jax.random.fold_in(make_key(seed), _DROPOUT)
        keys_of = functools.partial(slot_keys, jax.random.fold_in(key, step))
        keys_MRL2 = jax.vmap(keys_of)(micro.text_ids_RL, micro.segment_ids_RL)
        rate_M = jnp.broadcast_to(rate, keys_MRL2.shape[:1])
        drop = Dropout(rate_M, keys_MRL2)
        micro = dataclasses.replace(micro, text_ids_RL=None, dropout=drop)
        return dataclasses.replace(self, microbatches=micro)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bucket:
    """The batches of one shape.

    Attributes:
      batches: a `Batch` whose arrays have a leading axis S, the batches of the bucket.
      index_S: int32, for each step of the phase the index of its batch in the bucket that holds it.
      targets_NC: float32 soft labels by document, of probes whose batches have no `targets_BC`:
        these would take far more memory with many classes. Else None.
    """

    batches: Batch
    index_S: Any
    targets_NC: Any = None

    def batch_at(self, step: jax.Array) -> Batch:
        """Return the batch of a step, which must be in this bucket."""
        take = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        index = take(self.index_S, step)
        batch = jax.tree.map(lambda x: take(x, index), self.batches)
        if self.targets_NC is None:
            return batch
        assert isinstance(batch.microbatches, FeatureMicrobatch)
        documents_B = batch.microbatches.documents_m.reshape(-1)
        return dataclasses.replace(batch, targets_BC=self.targets_NC[documents_B])


class BatchExtras(NamedTuple):
    """What batches need to have for a step (see `StepSpec.extras`).

    Attributes:
      text_ids: whether they have `Microbatch.text_ids_RL`.
      update_order: whether they have `Batch.update_order_B`.
      targets: as `StepSpec.targets`: what the labels are.
      rows: whether target tokens have rows in a table of distributions.
      reference: whether pairs have log-probabilities under a reference model.
    """

    text_ids: bool = False
    update_order: bool = False
    targets: str = "class"
    rows: bool = False
    reference: bool = False


NO_EXTRAS = BatchExtras()


@dataclass(frozen=True, eq=False)
class Preferences:
    """The labels of pairs of completions.

    Attributes:
      preference_N: float32 in [0, 1], P(the first completion is the better one).
      reference_N2: float32, summed log-probabilities of the completions under the reference model
        (`answer_scores.completion_logprobs`); None for losses that need none.
    """

    preference_N: np.ndarray
    reference_N2: np.ndarray | None = None


def packed_buckets(
    packed: PackedBatches,
    targets_NC: np.ndarray | None,
    extras: BatchExtras = NO_EXTRAS,
    preferences: Preferences | None = None,
) -> tuple[Bucket, ...]:
    """Return the buckets of packed batches, as numpy arrays.

    Args:
      packed: the batches; where `extras.rows`, packed with `sequences.target_numbers`.
      targets_NC: float32 soft labels by document; None for language models and for completions,
        whose labels are their tokens.
      extras: what the batches need to have.
      preferences: the labels of pairs of completions.

    Raises:
      InputError: for completions without a target token, or pairs without labels.
    """
    index_S = padded(packed.index_S)
    buckets = []
    for bucket in packed.buckets:
        documents_SB = packed.documents_SB[bucket.steps_S]
        micro = Microbatch(
            tokens_RL=bucket.tokens_SMRL,
            segment_ids_RL=bucket.segment_ids_SMRL,
            text_ids_RL=_text_ids(bucket, documents_SB) if extras.text_ids else None,
            first_keys=bucket.first_keys,
        )
        if extras.targets != "class":
            batches = _completions(packed, bucket, micro, extras, preferences)
        elif targets_NC is None:
            batches = Batch(dataclasses.replace(micro, loss_weights_RL=bucket.loss_weights_SMRL))
        else:
            batches = Batch(
                dataclasses.replace(
                    micro, slots_RQ=bucket.slots_SMRQ, read_outs_mK=bucket.read_outs_SMmK
                ),
                targets_BC=packed.per_document(targets_NC)[bucket.steps_S],
                weights_B=packed.weights_SB[bucket.steps_S],
                update_order_B=_update_order(documents_SB) if extras.update_order else None,
            )
        buckets.append(Bucket(jax.tree.map(padded, batches), index_S))
    if extras.targets != "class" and not any(_has_targets(bucket) for bucket in buckets):
        raise InputError("documents: no token has a loss weight above 0, so there is no target")
    return tuple(buckets)


def _completions(
    packed: PackedBatches,
    bucket: PackedBucket,
    micro: Microbatch,
    extras: BatchExtras,
    preferences: Preferences | None,
) -> Batch:
    """Return the batches of a bucket of completions, or of pairs of them."""
    pairs = extras.targets == "pairs"
    documents_SB = packed.documents_SB[bucket.steps_S]
    targets = target_tokens(bucket, documents_SB, by_text=pairs, with_rows=extras.rows)
    micro = dataclasses.replace(micro, targets=targets)
    if not pairs:
        return Batch(micro)
    if preferences is None or (extras.reference and preferences.reference_N2 is None):
        raise InputError(
            "preferences: pairs of completions need a preference of each document"
            + (", and log-probabilities under the reference model" if extras.reference else "")
        )
    reference_N2 = preferences.reference_N2 if extras.reference else None

    def by_batch(values_N: np.ndarray) -> np.ndarray:
        return packed.per_document(np.asarray(values_N, np.float32))[bucket.steps_S]

    return Batch(
        micro,
        weights_B=packed.weights_SB[bucket.steps_S],
        preference_B=by_batch(preferences.preference_N),
        reference_B2=None if reference_N2 is None else by_batch(reference_N2),
    )


def _has_targets(bucket: Bucket) -> bool:
    micro = bucket.batches.microbatches
    assert isinstance(micro, Microbatch) and micro.targets is not None
    return bool(micro.targets.weights_RQ.any())


def feature_bucket(order_SB: np.ndarray, targets_NC: np.ndarray, *, table: bool = False) -> Bucket:
    """Return the batches of a probe, as numpy arrays; all have one shape.

    Args:
      order_SB: int32 row index of each document.
      targets_NC: float32 soft labels by document.
      table: whether batches look their targets up (see `Bucket.targets_NC`).
    """
    batches = Batch(
        FeatureMicrobatch(order_SB[:, None]),
        targets_BC=None if table else targets_NC[order_SB],
        weights_B=np.ones(order_SB.shape, np.float32),
    )
    index_S = np.arange(len(order_SB), dtype=np.int32)
    bucket = jax.tree.map(padded, Bucket(batches, index_S))
    return dataclasses.replace(bucket, targets_NC=targets_NC) if table else bucket


def bucket_shardings(bucket: Bucket, mesh: Mesh) -> Bucket:
    """Return a tree of shardings for a bucket: rows over the batch axes, the rest replicated."""
    rows, whole = sharding.rows(mesh, leading=2), sharding.replicated(mesh)
    micro: Any = bucket.batches.microbatches
    micro = micro.shardings(rows, whole) if isinstance(micro, Microbatch) else whole
    return Bucket(Batch(micro, whole, whole, whole, whole, whole), whole)


def padded(x_S: np.ndarray) -> np.ndarray:
    """Append zeros along the leading axis up to one of few lengths (`rounded_up`)."""
    missing = rounded_up(len(x_S)) - len(x_S)
    return np.pad(x_S, ((0, missing),) + ((0, 0),) * (x_S.ndim - 1))


def _text_ids(bucket: PackedBucket, documents_SB: np.ndarray) -> np.ndarray:
    """Return the text of each slot, int32 [S, M, R, L]: K n + k for text k of document n.

    Padding has 0.
    """
    num_texts = bucket.read_outs_SMmK.shape[3]
    text_P = (documents_SB.reshape(-1, 1) * num_texts + np.arange(num_texts)).ravel()
    return of_texts(bucket, documents_SB, text_P)


def _update_order(documents_SB: np.ndarray) -> np.ndarray:
    """Return an order of each batch's documents by a hash of their row indices, int32 [S, B]."""
    # The factor is odd, so different rows have different hashes.
    hash_SB = documents_SB.astype(np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    return np.argsort(hash_SB, axis=1, kind="stable").astype(np.int32)
