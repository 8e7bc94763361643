"""Documents with the completions that a phase learns, of its own tokens."""

import logging
from collections.abc import Sequence

import numpy as np

from w2s_jax.data.completions import paired, with_completions
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenize import TokenizedDocuments
from w2s_jax.data.tokenized import offsets_of
from w2s_jax.phases.context import Context
from w2s_jax.planning.generation import compares_distributions
from w2s_jax.planning.phase import Phase
from w2s_jax.store import token_labels
from w2s_jax.store.token_labels import TokenLabels

log = logging.getLogger(__name__)


def token_labels_of(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments
) -> TokenLabels | None:
    """Return the completions that a phase learns for documents of a split; None: their targets."""
    if split not in phase.label_sources:
        return None
    return token_labels.load(context.folder(phase.label_sources[split]), split, documents.ids_N)


def completed_documents(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments
) -> TokenizedDocuments:
    """Return documents with the completions that a phase learns in place of their targets.

    The texts of labels are tokenised anew; only a loss that compares distributions takes the
    supervisor's tokens. A completion that was cut off gets no end.
    """
    labels = token_labels_of(phase, context, split, documents)
    if labels is None:
        return documents
    ended_N = labels.ended_N
    if phase.loss is not None and compares_distributions(phase.loss):
        rows = zip(labels.tokens_NT, labels.lengths_N.tolist(), strict=True)
        completions = [tokens_T[:length] for tokens_T, length in rows]
    else:
        completions = encoded(phase, context, labels.texts)
    title = f"{phase.title}: {split}"
    completions, whole_N = _fitted(phase, documents, completions, ended_N, title)
    assert phase.completion is not None
    return with_completions(documents, completions, phase.completion.end, ended_N=ended_N & whole_N)


def paired_documents(
    phase: Phase, context: Context, split: str, documents: TokenizedDocuments
) -> tuple[TokenizedDocuments, np.ndarray]:
    """Return the pairs of completions that a phase learns, and P(the first is better), float32."""
    pairs = token_labels.load_pairs(context.folder(phase.parents["labels"]), split)
    documents = documents.select(documents.rows_of(pairs.ids_N))
    title = f"{phase.title}: {split}"
    (first, whole_N), (second, also_N) = (
        _fitted(phase, documents, encoded(phase, context, texts), ended_N, title)
        for texts, ended_N in zip((pairs.first, pairs.second), pairs.ended_N2.T, strict=True)
    )
    assert phase.completion is not None
    ended_N2 = pairs.ended_N2 & np.stack([whole_N, also_N], axis=1)
    end = phase.completion.end
    return paired(documents, first, second, end, ended_N2=ended_N2), pairs.preference_N


def encoded(phase: Phase, context: Context, texts: Sequence[str]) -> list[np.ndarray]:
    """Return the tokens of texts by a role's tokenizer, without special ones."""
    tokenizer = context.data(phase).tokenizer
    assert tokenizer is not None
    tokens_T, lengths_N = encode_cached(tokenizer, list(texts))
    return np.split(tokens_T, offsets_of(lengths_N)[1:-1])


def _fitted(
    phase: Phase,
    documents: TokenizedDocuments,
    completions: Sequence[np.ndarray],
    ended_N: np.ndarray,
    title: str,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return completions cut to the positions of the model, and which are whole, bool [N].

    Where `ended_N` is True, an end needs a position too.
    """
    model = phase.model
    if model.positions != "learned" or documents.prompt_lengths_P is None:
        return list(completions), np.ones(len(completions), bool)
    room_N = model.max_positions - documents.prompt_lengths_P - ended_N.astype(np.int64)
    cut = [tokens[:room] for tokens, room in zip(completions, room_N.tolist(), strict=True)]
    whole_N = np.array([len(a) == len(b) for a, b in zip(cut, completions, strict=True)], bool)
    if not whole_N.all():
        log.warning(
            "%s: %d of %d labels have more tokens than the %d positions of %s leave, and are cut",
            title,
            int((~whole_N).sum()),
            len(whole_N),
            model.max_positions,
            model.name,
        )
    return cut, whole_N
