"""Prompts with completions as flat arrays: take the parts, and exchange the completions."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from w2s_jax.data.tokenized import TokenizedDocuments, offsets_of


class Part(NamedTuple):
    """A part of each document: tokens_T[starts_N : starts_N + lengths_N]."""

    tokens_T: np.ndarray
    starts_N: np.ndarray
    lengths_N: np.ndarray

    def select(self, kept_N: np.ndarray) -> "Part":
        """Return the part of the documents at `kept_N`."""
        return Part(self.tokens_T, self.starts_N[kept_N], self.lengths_N[kept_N])


def prompts_of(documents: TokenizedDocuments) -> list[np.ndarray]:
    """Return the tokens of each prompt with its prefix (of a pair: of its first text), int32."""
    starts_N = documents.offsets[: -1 : documents.num_texts]
    lengths_N = _prompt_lengths(documents)[:: documents.num_texts]
    bounds = zip(starts_N.tolist(), (starts_N + lengths_N).tolist(), strict=True)
    return [documents.tokens_T[start:stop] for start, stop in bounds]


def completions_of(documents: TokenizedDocuments, end: int | None = None) -> list[np.ndarray]:
    """Return the tokens of each completion without its end, int32; of pairs both, N * K arrays.

    Args:
      documents: with completions.
      end: the end of text, for documents of which some have none. None: all have it.
    """
    starts_P = documents.offsets[:-1] + _prompt_lengths(documents)
    stops_P = documents.offsets[1:]
    found = []
    for start, stop in zip(starts_P.tolist(), stops_P.tolist(), strict=True):
        has_end = stop > start and (end is None or documents.tokens_T[stop - 1] == end)
        found.append(documents.tokens_T[start : stop - 1 if has_end else stop])
    return found


def with_completions(
    documents: TokenizedDocuments,
    completions: Sequence[np.ndarray],
    end: int | None,
    *,
    ended_N: np.ndarray | None = None,
) -> TokenizedDocuments:
    """Return the documents with other completions of their prompts, which are not changed.

    Args:
      documents: N documents with completions.
      completions: N arrays of tokens, without end.
      end: the end of text, appended to each; None: nothing is.
      ended_N: bool; those to which it is appended. None: all.
    """
    if documents.num_texts != 1:
        raise ValueError("the documents are pairs")
    ends = _ends(end, ended_N, len(documents))
    completion = [_given(completions, len(documents)), ends]
    return assembled(documents.ids_N, [_prompts(documents)], completion)


def paired(
    documents: TokenizedDocuments,
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    end: int | None,
    *,
    ended_N2: np.ndarray | None = None,
) -> TokenizedDocuments:
    """Return pairs (K = 2) of texts: each prompt with its first, and with its second completion.

    Args:
      documents: N documents with completions, which are not used.
      first, second: N arrays of tokens each, without end.
      end: the end of text, appended to each; None: nothing is.
      ended_N2: bool; those to which it is appended. None: all.

    Returns:
      Documents with the same ids, and `prompt_lengths_P` and `loss_weights_T` for both texts.
    """
    count = len(documents)
    if documents.num_texts != 1 or len(first) != count or len(second) != count:
        raise ValueError(f"{len(first)} and {len(second)} completions of {count} documents")
    both = list(itertools.chain.from_iterable(zip(first, second, strict=True)))
    ended_P = None if ended_N2 is None else np.asarray(ended_N2, bool).reshape(-1)
    prompt = _prompts(documents)
    twice = prompt.select(np.repeat(np.arange(count), 2))
    ends = _ends(end, ended_P, 2 * count)
    return assembled(documents.ids_N, [twice], [_given(both, 2 * count), ends], num_texts=2)


def weighted_by_document(documents: TokenizedDocuments) -> TokenizedDocuments:
    """Return the documents with weights that sum to 1 in each completion that has tokens.

    Each of n tokens of a completion, its end included, has the weight 1 / n.
    """
    lengths_P = documents.piece_lengths_P
    counts_P = lengths_P - _prompt_lengths(documents)
    shares_P = 1 / np.maximum(counts_P, 1)
    weights_T = _weights(documents.offsets, _prompt_lengths(documents))
    weights_T *= np.repeat(shares_P, lengths_P).astype(np.float32)
    return dataclasses.replace(documents, loss_weights_T=weights_T)


def constant(tokens: Sequence[int], count: int) -> Part:
    """Return a part that is the same in `count` texts."""
    zeros_N = np.zeros(count, np.int64)
    return Part(np.array(tokens, np.int32), zeros_N, zeros_N + len(tokens))


def _ends(end: int | None, ended_P: np.ndarray | None, count: int) -> Part:
    part = constant(() if end is None else (end,), count)
    if ended_P is None or end is None:
        return part
    return part._replace(lengths_N=np.asarray(ended_P, np.int64))


def _given(completions: Sequence[np.ndarray], count: int) -> Part:
    if len(completions) != count:
        raise ValueError(f"{len(completions)} completions of {count} prompts")
    lengths_P = np.fromiter(map(len, completions), np.int64, count)
    tokens_T = np.concatenate([np.zeros(0, np.int32), *completions]).astype(np.int32)
    return Part(tokens_T, offsets_of(lengths_P)[:-1], lengths_P)


def _prompts(documents: TokenizedDocuments) -> Part:
    return Part(documents.tokens_T, documents.offsets[:-1], _prompt_lengths(documents))


def _prompt_lengths(documents: TokenizedDocuments) -> np.ndarray:
    if documents.prompt_lengths_P is None:
        raise ValueError("the documents are not prompts with completions")
    return documents.prompt_lengths_P


def assembled(
    ids_N: np.ndarray, prompt: Sequence[Part], completion: Sequence[Part], num_texts: int = 1
) -> TokenizedDocuments:
    """Concatenate the parts of prompt and completion of each text."""
    parts = [*prompt, *completion]
    offsets = offsets_of(np.sum([part.lengths_N for part in parts], axis=0))
    tokens_T = np.zeros(int(offsets[-1]), np.int32)
    to_P = offsets[:-1].copy()
    for part in parts:
        before_P = np.cumsum(part.lengths_N) - part.lengths_N
        within = np.arange(int(part.lengths_N.sum())) - np.repeat(before_P, part.lengths_N)
        own = part.tokens_T[np.repeat(part.starts_N, part.lengths_N) + within]
        tokens_T[np.repeat(to_P, part.lengths_N) + within] = own
        to_P += part.lengths_N
    prompt_lengths_P = np.sum([part.lengths_N for part in prompt], axis=0)
    return TokenizedDocuments(
        ids_N=ids_N,
        tokens_T=tokens_T,
        offsets=offsets,
        labels_N=np.full(len(ids_N), np.nan, np.float32),
        loss_weights_T=_weights(offsets, prompt_lengths_P),
        num_texts=num_texts,
        prompt_lengths_P=prompt_lengths_P,
    )


def _weights(offsets: np.ndarray, prompt_lengths_P: np.ndarray) -> np.ndarray:
    """Return 0 for tokens of a prompt and 1 for those after it, float32 [T]."""
    lengths_P = np.diff(offsets)
    within_T = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], lengths_P)
    return (within_T >= np.repeat(prompt_lengths_P, lengths_P)).astype(np.float32)
