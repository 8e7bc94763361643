"""Target tokens of completions: which slots predict them, as arrays of a batch, on the host.

A target is a token of positive loss weight that follows another token of its text. The token before
it predicts it, so only the hidden states of those slots reach the vocabulary's logits. Shapes in
names: S batches of one shape, M microbatches, R rows, L slots, Q targets of a row, m documents per
microbatch, K texts per document, N documents, T tokens of all documents, U targets of all of them,
k tokens of a stored distribution.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from w2s_jax import sharding
from w2s_jax.core.errors import InputError
from w2s_jax.data.packing import PackedBucket
from w2s_jax.data.tokenize import TokenizedDocuments

#: The number of targets of a row is a multiple of this, so that phases share programs.
_TARGETS_GRID = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenTargets:
    """The target tokens of a microbatch.

    Attributes:
      slots_RQ: uint16, the slots of a row that predict a target, ascending; 0 fills up.
      tokens_RQ: the targets, of an unsigned type.
      weights_RQ: float32 loss weights; 0 where there is no target.
      rows_RQ: int32 row of each target in the table of distributions (see `distributions`); None
        without them.
      texts_RQ: int32, the text of the microbatch that each target belongs to: K i + j for text j of
        its document i. None where targets are not summed by text.
    """

    slots_RQ: Any
    tokens_RQ: Any
    weights_RQ: Any
    rows_RQ: Any = None
    texts_RQ: Any = None


def target_numbers(documents: TokenizedDocuments) -> np.ndarray:
    """Return the number of each target among all tokens of positive loss weight, int32 [T].

    Other tokens have 0. It is the row of a target in the table of `distributions`, and reaches its
    slot by `packing.pack(..., numbers_T=...)`.

    Raises:
      InputError: if documents have no loss weights.
    """
    if documents.loss_weights_T is None:
        raise InputError("documents: have no loss weights, which say what the completion is")
    is_target_T = documents.loss_weights_T > 0
    return np.where(is_target_T, np.cumsum(is_target_T) - 1, 0).astype(np.int32)


def target_counts(documents: TokenizedDocuments) -> np.ndarray:
    """Return the number of target tokens of each text, int64 [N, K].

    Tokens without loss weights are all targets, except for the first one of each text.
    """
    weights_T = documents.loss_weights_T
    is_target_T = np.ones(len(documents.tokens_T), bool) if weights_T is None else weights_T > 0
    starts_P = documents.offsets[:-1][documents.piece_lengths_P > 0]
    # Nothing predicts the first token of a text.
    is_target_T[starts_P] = False
    before_T = np.concatenate([[0], np.cumsum(is_target_T)])
    return np.diff(before_T[documents.offsets]).reshape(-1, documents.num_texts)


def distributions(
    documents: TokenizedDocuments, top_ids_Uk: np.ndarray, top_logprobs_Uk: np.ndarray, mesh: Mesh
) -> dict[str, jax.Array]:
    """Place the supervisor's distributions on the mesh, as frozen parameters of the step.

    Args:
      documents: the training documents.
      top_ids_Uk: int32, for each token of positive loss weight, document by document, the k most
        probable tokens there.
      top_logprobs_Uk: float32, their log-probabilities.
      mesh: the mesh, on whose devices they are replicated.

    Raises:
      InputError: if their number is not that of the targets.
    """
    numbers_T = target_numbers(documents)
    expected = int(numbers_T.max(initial=-1)) + 1
    if top_ids_Uk.shape != top_logprobs_Uk.shape or len(top_ids_Uk) != expected:
        raise InputError(
            f"distributions: {top_ids_Uk.shape} tokens and {top_logprobs_Uk.shape} "
            f"log-probabilities; the documents have {expected} target tokens"
        )
    table = {
        "top_ids_Uk": top_ids_Uk.astype(np.int32),
        "top_logprobs_Uk": top_logprobs_Uk.astype(np.float32),
    }
    return sharding.put(table, sharding.replicated(mesh))


def target_tokens(
    bucket: PackedBucket, documents_SB: np.ndarray, *, by_text: bool, with_rows: bool
) -> TokenTargets:
    """Return the targets of the batches of a bucket, with leading axes [S, M].

    Args:
      bucket: the batches; without loss weights, every token that follows another is a target.
      documents_SB: row indices of their documents, -1 for none.
      by_text: whether targets are to be summed by text. They then weigh 1 each.
      with_rows: whether to include rows in the table of distributions; `packing.pack` was then
        given `target_numbers`.
    """
    segments = bucket.segment_ids_SMRL
    weights = np.zeros(segments.shape, np.float32)
    given = 1.0 if bucket.loss_weights_SMRL is None else bucket.loss_weights_SMRL[..., 1:]
    follows = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] > 0)
    weights[..., :-1] = follows * given
    is_target = weights > 0
    count = is_target.sum(-1)
    most = max(1, -(-int(count.max()) // _TARGETS_GRID)) * _TARGETS_GRID
    # The slots before targets first, in ascending order.
    most = min(most, segments.shape[-1])
    slots = np.argsort(~is_target, axis=-1, kind="stable")[..., :most]
    real = np.arange(most) < count[..., None]
    slots = np.where(real, slots, 0)

    def at(values_SMRL: np.ndarray, slots: np.ndarray) -> np.ndarray:
        return np.where(real, np.take_along_axis(values_SMRL, slots, -1), 0)

    following = np.minimum(slots + 1, segments.shape[-1] - 1)
    weights = at(weights, slots).astype(np.float32)
    rows = texts = None
    if with_rows:
        assert bucket.numbers_SMRL is not None
        rows = at(bucket.numbers_SMRL, following).astype(np.int32)
    if by_text:
        per_micro = int(np.prod(bucket.read_outs_SMmK.shape[2:]))
        texts = at(of_texts(bucket, documents_SB, np.arange(per_micro)), slots).astype(np.int32)
        weights = (weights > 0).astype(np.float32)
    return TokenTargets(
        slots_RQ=slots.astype(np.uint16),
        tokens_RQ=at(bucket.tokens_SMRL, following).astype(bucket.tokens_SMRL.dtype),
        weights_RQ=weights,
        rows_RQ=rows,
        texts_RQ=texts,
    )


def of_texts(bucket: PackedBucket, documents_SB: np.ndarray, values_P: np.ndarray) -> np.ndarray:
    """Return the value of each slot's text, int32 [S, M, R, L]; padding has 0.

    In names: G microbatches of all batches, P texts of all of them.

    Args:
      bucket: the batches.
      documents_SB: row indices of their documents, -1 for none.
      values_P: integers by text in the order of `read_outs_SMmK`, of all microbatches, or the same
        for each of them.
    """
    num_rows, length = bucket.segment_ids_SMRL.shape[2:]
    segments_GRL = bucket.segment_ids_SMRL.reshape(-1, num_rows, length)
    row_P, slot_P = np.divmod(bucket.read_outs_SMmK.ravel(), length)
    group_P = np.repeat(np.arange(len(segments_GRL)), len(row_P) // len(segments_GRL))
    text_P = np.resize(values_P, len(row_P))
    real_P = np.repeat(documents_SB.ravel() >= 0, bucket.read_outs_SMmK.shape[3])
    group_P, row_P, slot_P, text_P = (x[real_P] for x in (group_P, row_P, slot_P, text_P))
    of_segment = np.zeros((*segments_GRL.shape[:2], int(segments_GRL.max()) + 1), np.int32)
    of_segment[group_P, row_P, segments_GRL[group_P, row_P, slot_P]] = text_P
    found_GRL = np.take_along_axis(of_segment, segments_GRL.astype(np.int64), axis=2)
    return found_GRL.reshape(bucket.segment_ids_SMRL.shape)
