"""Training on the part of the vocabulary that occurs: the same result, in less time and memory.

A token that no training document holds has an embedding whose gradient is zero at every step. Adam
never moves it, as its moments stay zero; so neither it nor its gradient and moments need to be
there. For a phase's training the embedding's rows are cut down to those of the tokens that occur,
and tokens are numbered anew; afterwards the rows go back to their places. Not so where a softmax
goes over the vocabulary (language models), where weight decay moves every row, and with Adafactor,
whose statistics are of whole columns.

Shapes in names: V vocabulary, U tokens that are kept, T tokens.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from w2s_jax import sharding
from w2s_jax.config import TrainSettings
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.models.config import ModelConfig
from w2s_jax.training.state import rounded_up

#: Nothing is cut where more than this share of the vocabulary occurs ...
MOST = 0.8
#: ... or where the embedding has fewer numbers.
LEAST_NUMBERS = 2**20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Which tokens are kept, int32 [U], ascending."""

    kept_U: np.ndarray

    def config(self, model: ModelConfig) -> ModelConfig:
        """The model with this vocabulary."""
        return replace(model, vocab_size=len(self.kept_U))

    def documents(self, documents: TokenizedDocuments) -> TokenizedDocuments:
        """The documents, all of whose tokens are kept, in the new numbers."""
        numbers_T = np.searchsorted(self.kept_U, documents.tokens_T).astype(np.int32)
        return replace(documents, tokens_T=numbers_T)

    def cut(self, params: Any) -> Any:
        """Trained parameters with the kept rows of the embedding."""
        rows_VD = embedding(params)
        assert isinstance(rows_VD.sharding, NamedSharding)
        mesh, shape = rows_VD.sharding.mesh, (len(self.kept_U), rows_VD.shape[1])
        assert isinstance(mesh, Mesh)
        where = sharding.RULES.sharding(shape, ("vocab", "embed"), mesh)
        take = jax.jit(lambda rows_VD: rows_VD[self.kept_U], out_shardings=where)
        return _with_embedding(params, take(rows_VD))

    def whole(self, params: Any, rows_VD: jax.Array) -> Any:
        """What `cut` gave, after training; the embedding's other rows are those of `rows_VD`."""
        place = jax.jit(
            lambda rows_VD, rows_UD: rows_VD.at[self.kept_U].set(rows_UD),
            out_shardings=rows_VD.sharding,
        )
        return _with_embedding(params, place(rows_VD, embedding(params)))


def occurring(
    documents: TokenizedDocuments, model: ModelConfig, train: TrainSettings
) -> Vocabulary | None:
    """The vocabulary of a classifier's training documents; None where nothing is to be cut.

    Some more tokens are kept, so that phases with similar documents have programs in common.
    """
    decays = train.optimizer == "adamw" and train.weight_decay > 0
    if train.adapt != "full" or train.optimizer == "adafactor" or decays:
        return None
    if model.vocab_size * model.d_model < LEAST_NUMBERS:
        return None
    occurs_V = np.zeros(model.vocab_size, bool)
    occurs_V[documents.tokens_T] = True
    count = rounded_up(int(occurs_V.sum()))
    if count > MOST * model.vocab_size:
        return None
    others = np.flatnonzero(~occurs_V)[: count - int(occurs_V.sum())]
    occurs_V[others] = True
    return Vocabulary(np.flatnonzero(occurs_V).astype(np.int32))


def embedding(params: Any) -> jax.Array:
    """The embedding among trained parameters, [V, D] or [U, D]."""
    return params["backbone"]["embedding"]


def _with_embedding(params: Any, rows: jax.Array) -> Any:
    return params | {"backbone": params["backbone"] | {"embedding": rows}}
