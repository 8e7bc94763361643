"""Training on the tokens that occur: the same result in less time and memory.

The embedding of a token that is in no training document has a zero gradient at every step, and Adam
never changes it, since its moments stay zero. So training needs neither the embedding nor its
gradient and moments. A phase's embedding is reduced to the rows of the tokens that occur, and
tokens are renumbered; after training the rows are put back. This does not apply to language models
(the softmax is over the vocabulary), with weight decay (which changes every row), and with
Adafactor (whose statistics are of whole columns).

Shapes in names: V vocabulary, U kept tokens, T tokens.
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

#: The embedding is not reduced if more than this share of the vocabulary occurs ...
MOST = 0.8
#: ... or if it has fewer numbers than this.
LEAST_NUMBERS = 2**20


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that are kept, `kept_U`, int32, ascending."""

    kept_U: np.ndarray

    def config(self, model: ModelConfig) -> ModelConfig:
        """Return the model with this vocabulary."""
        return replace(model, vocab_size=len(self.kept_U))

    def documents(self, documents: TokenizedDocuments) -> TokenizedDocuments:
        """Renumber the tokens of documents, all of which are kept."""
        numbers_T = np.searchsorted(self.kept_U, documents.tokens_T).astype(np.int32)
        return replace(documents, tokens_T=numbers_T)

    def cut(self, params: Any) -> Any:
        """Reduce the embedding of trained parameters to the kept rows."""
        rows_VD = embedding(params)
        assert isinstance(rows_VD.sharding, NamedSharding)
        mesh, shape = rows_VD.sharding.mesh, (len(self.kept_U), rows_VD.shape[1])
        assert isinstance(mesh, Mesh)
        where = sharding.RULES.sharding(shape, ("vocab", "embed"), mesh)
        take = jax.jit(lambda rows_VD: rows_VD[self.kept_U], out_shardings=where)
        return _with_embedding(params, take(rows_VD))

    def whole(self, params: Any, rows_VD: jax.Array) -> Any:
        """Undo `cut` after training; the rows that were not kept are those of `rows_VD`."""
        put_back = jax.jit(
            lambda rows_VD, rows_UD: rows_VD.at[self.kept_U].set(rows_UD),
            out_shardings=rows_VD.sharding,
        )
        return _with_embedding(params, put_back(rows_VD, embedding(params)))


def occurring(
    documents: TokenizedDocuments, model: ModelConfig, train: TrainSettings
) -> Vocabulary | None:
    """Return the vocabulary of a classifier's training documents; None if it is not reduced.

    A few more tokens are kept, so that phases with similar documents share programs.
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
    """Return the embedding among trained parameters, [V, D] or [U, D]."""
    return params["backbone"]["embedding"]


def _with_embedding(params: Any, rows: jax.Array) -> Any:
    return params | {"backbone": params["backbone"] | {"embedding": rows}}
