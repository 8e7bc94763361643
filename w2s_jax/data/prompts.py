"""Prompts made of tokens: a token after each document, solved examples before it.

A tokenizer may add tokens before and after each text (`Tokenizer.prefix` and `Tokenizer.suffix`,
for example BOS and EOS). The functions insert text between them, as models have seen no prompt with
BOS or EOS in the middle. Documents keep their ids, labels and soft labels; added tokens have loss
weight 0 if there are loss weights. Shapes in names: N documents, E examples, T tokens.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import hash_order
from w2s_jax.data.tokenize import TokenizedDocuments

_NO_WEIGHTS = np.zeros(0, np.float32)


def with_suffix(
    documents: TokenizedDocuments,
    token_ids_N: ArrayLike,
    max_length: int | None = None,
    *,
    suffix: Sequence[int] = (),
) -> TokenizedDocuments:
    """Return each document with one more token at the end of its text.

    This makes contrast pairs (each document completed by each label's token), and documents that
    contain their own labels (the trivial imitation of Burns et al. 2023).

    Args:
      documents: of one text each.
      token_ids_N: the token for each document, or one for all.
      max_length: longer documents lose the last tokens of their text, but not the added one.
      suffix: the tokens that end each document; they remain its end.

    Raises:
      InputError: for pairs, a document that does not end in `suffix`, or a `max_length` that leaves
        no text of a document.
    """
    _check_single(documents, "with_suffix")
    _check_ends(documents, suffix, "suffix")
    added_N = np.broadcast_to(np.asarray(token_ids_N, np.int32), len(documents))
    body_N = documents.lengths_N - len(suffix)
    if max_length is not None:
        room = max_length - len(suffix) - 1
        if room < 1:
            raise InputError(
                f"max_length: {max_length}; allowed: at least {len(suffix) + 2} (a token of the "
                f"document, the added token, and {len(suffix)} that end it)"
            )
        body_N = body_N.clip(max=room)
    end = np.asarray(suffix, np.int32)
    tokens: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    for n, (body, added) in enumerate(zip(body_N.tolist(), added_N.tolist(), strict=True)):
        tokens += [documents.document(n)[:body], np.array([added], np.int32), end]
        weights += [_weights(documents, n)[:body], np.zeros(1 + len(end), np.float32)]
    return _replaced(documents, tokens, weights, body_N + 1 + len(suffix))


def few_shot(
    documents: TokenizedDocuments,
    examples: TokenizedDocuments,
    labels_E: ArrayLike,
    answers: Sequence[Sequence[int]],
    max_length: int | None,
    seed: int,
    *,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
) -> TokenizedDocuments:
    """Return prompts: solved examples, each followed by its label's tokens, then the document.

    A prompt is `prefix`, then text and answer of each example, then the document's text. It
    does not end in `suffix`: the next token that a language model predicts is the document's label,
    as in the examples.

    The order of the examples is pseudo-random, and depends only on the seed and the document's id.
    If not all fit into `max_length`, the first are left out. A document is never cut, and is no
    example for itself.

    Args:
      documents: of one text each.
      examples: likewise, from the same tokenizer.
      labels_E: their classes.
      answers: the tokens after an example, for each class.
      max_length: largest number of tokens of a prompt, unless its document is longer; None: no
        limit.
      seed: seed of the order of the examples.
      prefix, suffix: the tokens that begin and end each document and example.

    Raises:
      InputError: for pairs, examples without labels, or a text that does not begin with `prefix` or
        does not end in `suffix`.
    """
    for texts in (documents, examples):
        _check_single(texts, "few_shot")
        _check_ends(texts, prefix, "prefix")
        _check_ends(texts, suffix, "suffix")
    labels_E = np.asarray(labels_E, np.float32)
    if labels_E.shape != (len(examples),) or np.isnan(labels_E).any():
        raise InputError(
            f"few_shot: {len(examples)} examples with {np.count_nonzero(~np.isnan(labels_E))} "
            "labels; each example needs a label"
        )
    answers_E = [np.array(answers[int(label)], np.int32) for label in labels_E.tolist()]
    start, end = len(prefix), len(suffix)
    solved = [
        np.concatenate([examples.document(e)[start : length - end], answer])
        for e, (length, answer) in enumerate(
            zip(examples.lengths_N.tolist(), answers_E, strict=True)
        )
    ]
    head = np.asarray(prefix, np.int32)
    tokens, weights, lengths = [], [], []
    for n, id_ in enumerate(documents.ids_N.tolist()):
        body = documents.document(n)[start : documents.lengths_N[n] - end]
        chosen: list[np.ndarray] = []
        total = start + len(body)
        # Backwards from the document, so that the first ones are left out.
        for e in hash_order(examples.ids_N, "few_shot", seed, id_)[::-1].tolist():
            if examples.ids_N[e] == id_:
                continue
            if max_length is not None and total + len(solved[e]) > max_length:
                break
            chosen.insert(0, solved[e])
            total += len(solved[e])
        tokens += [head, *chosen, body]
        own = _weights(documents, n)[start : start + len(body)]
        weights += [np.zeros(total - len(body), np.float32), own]
        lengths.append(total)
    return _replaced(documents, tokens, weights, np.array(lengths, np.int64))


def _check_single(documents: TokenizedDocuments, what: str) -> None:
    if documents.num_texts != 1:
        raise InputError(
            f"{what}: documents of {documents.num_texts} texts; only documents of one text work"
        )


def _check_ends(documents: TokenizedDocuments, special: Sequence[int], name: str) -> None:
    """Refuse documents that do not begin ('prefix') or end ('suffix') with the special tokens."""
    count = len(special)
    first = documents.offsets[:-1] if name == "prefix" else documents.offsets[1:] - count
    # The tokens of a document that is too short would be those of its neighbour.
    wrong_N = documents.lengths_N < count
    for i, token in enumerate(special):
        at_N = (first + i).clip(0, len(documents.tokens_T) - 1)
        wrong_N |= documents.tokens_T[at_N] != token
    if wrong_N.any():
        raise InputError(
            f"{name}: {wrong_N.sum()} of {len(documents)} documents do not have {tuple(special)} "
            f"(the first: document {documents.ids_N[np.argmax(wrong_N)]}); give the {name} of "
            "their tokenizer"
        )


def _weights(documents: TokenizedDocuments, n: int) -> np.ndarray:
    """Loss weights of document `n`; an empty array if there are none."""
    if documents.loss_weights_T is None:
        return _NO_WEIGHTS
    return documents.loss_weights_T[documents.offsets[n] : documents.offsets[n + 1]]


def _replaced(
    documents: TokenizedDocuments,
    tokens: list[np.ndarray],
    weights: list[np.ndarray],
    lengths_N: np.ndarray,
) -> TokenizedDocuments:
    """Return the documents with other tokens."""
    weighted = documents.loss_weights_T is not None
    return dataclasses.replace(
        documents,
        tokens_T=np.concatenate(tokens),
        offsets=np.concatenate([[0], np.cumsum(lengths_N)]).astype(np.int64),
        loss_weights_T=np.concatenate(weights) if weighted else None,
    )
