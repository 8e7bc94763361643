"""Tokenise documents inside a template.

The whole prompt is one text to the tokenizer, so that no seam shows. Only where it is too long are
the template's words and the texts tokenised apart, and the texts cut: the words are all kept.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document
from w2s_jax.data.templates import Template
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenize import check_options, kept_part, labels_of, no_tokens, too_long
from w2s_jax.data.tokenized import TokenizedDocuments, offsets_of
from w2s_jax.data.tokenizers import Tokenizer

#: Between a solved example and what follows.
SEPARATOR = "\n\n"


@dataclass(frozen=True, slots=True)
class ClassTokens:
    """The tokens of a template's words for the classes.

    All words may begin with the same tokens (with bytes a space, at least). As they are equally
    probable whatever the class, they are put at the end of each prompt, and a class is told by the
    first token after them.

    Attributes:
      lead: the tokens that all words begin with.
      label_tokens: the next token of each word; () if two are the same, or a word has no more.
      answers: the tokens of each word after `lead`.
    """

    lead: tuple[int, ...]
    label_tokens: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def class_tokens(template: Template, tokenizer: Tokenizer) -> ClassTokens:
    """Return the tokens of a template's words for the classes; without words there are none."""
    words = _encoded(tokenizer, template.words)
    if not words:
        return ClassTokens((), (), ())
    alike = (len(set(tokens)) == 1 for tokens in zip(*words, strict=False))
    lead = words[0][: sum(itertools.takewhile(bool, alike))]
    label_tokens = [word[len(lead)] for word in words if len(word) > len(lead)]
    if len(set(label_tokens)) < len(words):
        return ClassTokens((), (), ())
    answers = tuple(tuple(word[len(lead) :]) for word in words)
    return ClassTokens(tuple(lead), tuple(label_tokens), answers)


def separator(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the tokens between a solved example and what follows."""
    return tuple(_encoded(tokenizer, [SEPARATOR])[0])


def swapped(documents: Sequence[Document]) -> list[Document]:
    """Return pairs of texts in the other order, with the labels that belong to it."""
    return [
        dataclasses.replace(
            document,
            texts=(document.texts or ())[::-1],
            label=None if document.label is None else 1 - document.label,
            soft_label=None if document.soft_label is None else 1 - document.soft_label,  # type: ignore[operator]
        )
        for document in documents
    ]


def tokenize_inside(
    documents: Sequence[Document],
    tokenizer: Tokenizer | None,
    *,
    template: Template,
    max_length: int | None,
    overlong: str,
    truncate: str = "end",
    empty: str | None = None,
    num_classes: int = 2,
) -> tuple[TokenizedDocuments, dict[str, int]]:
    """Tokenise documents inside a template, in the same order: one text each, also of pairs.

    A document is `prefix + encode(text inside the template) + lead + suffix`, with the tokenizer's
    special tokens at both ends and the `lead` of `ClassTokens`. Its id and its labels are those of
    the bare document.

    If that has more than `max_length` tokens (None: no limit), 'drop' and 'error' do as in
    `tokenize`. With 'truncate' words and texts are tokenised apart, and the texts cut at the side
    `truncate`: the two of a pair to equal shares of the room that the words leave, or to what the
    shorter one leaves.

    Args:
      documents: with a text, or the two texts of a pair.
      tokenizer: of the texts.
      template: with a place for each text.
      max_length, overlong, truncate, empty: as in `tokenize`; an empty text is one that gives no
        token by itself.
      num_classes: that of the labels.

    Returns:
      The tokenized documents, and counts as of `tokenize`.

    Raises:
      InputError: as `tokenize`, or the template's words leave no room for a text.
    """
    check_options(documents, max_length, overlong, truncate)
    texts = [document.texts or (document.text or "",) for document in documents]
    if tokenizer is None or any(document.tokens is not None for document in documents):
        raise InputError("task.template: a template is for documents of text, not of tokens")
    whole = _arrays(tokenizer, [template.around(own) for own in texts])
    own = _arrays(tokenizer, [text for own in texts for text in own])
    num_texts = len(template.order)
    empty_N = np.array([len(t) == 0 for t in own], bool).reshape(-1, num_texts).any(1)
    if empty_N.any() and empty == "error":
        raise no_tokens(documents[int(empty_N.argmax())], tokenizer)
    empty_N &= empty == "skip"
    lead = class_tokens(template, tokenizer).lead
    prefix, last, suffix = (
        np.array(part, np.int32) for part in (tokenizer.prefix, lead, tokenizer.suffix)
    )
    ends = len(prefix) + len(last) + len(suffix)
    lengths_N = np.array([len(tokens) for tokens in whole], np.int64) + ends
    limit = int(lengths_N.max(initial=0)) if max_length is None else max_length
    over_N = (lengths_N > limit) & ~empty_N
    over = int(over_N.sum())
    if over and (overlong == "error" or (overlong == "drop" and over == len(documents))):
        raise too_long(documents, lengths_N, over, limit)
    kept = np.flatnonzero(~(empty_N | (over_N & (overlong == "drop")))).tolist()
    words = _arrays(tokenizer, template.parts) if over else []
    pieces, lengths = [], []
    for n in kept:
        body = [whole[n]]
        if over_N[n]:
            given = [own[n * num_texts + k] for k in template.order]
            body = _cut(given, words, limit, ends, tokenizer, truncate)
        parts = [prefix, *body, last, suffix]
        pieces += parts
        lengths.append(sum(map(len, parts)))
    labels_N, soft_N, soft_NC = labels_of([documents[n] for n in kept], num_classes)
    tokenized = TokenizedDocuments(
        ids_N=np.array([documents[n].id for n in kept], np.uint64),
        tokens_T=np.concatenate([np.zeros(0, np.int32), *pieces]),
        offsets=offsets_of(lengths),
        labels_N=labels_N,
        soft_N=soft_N,
        soft_NC=soft_NC,
    )
    return tokenized, {
        "documents": len(documents),
        "empty": int(empty_N.sum()),
        "overlong": over,
        "dropped": over if overlong == "drop" else 0,
        "truncated": over if overlong == "truncate" else 0,
        "same": 0,
        "chunks": 0,
        "tokens": len(tokenized.tokens_T),
    }


def _cut(
    texts: Sequence[np.ndarray],
    words: Sequence[np.ndarray],
    limit: int,
    ends: int,
    tokenizer: Tokenizer,
    side: str,
) -> list[np.ndarray]:
    """Return the texts, cut to what words and `ends` leave of `limit` tokens, among the words."""
    room = limit - ends - sum(map(len, words))
    if room < len(texts):
        raise NoRoom(limit, limit + len(texts) - room)
    first = len(texts[0])
    shares = [room]
    if len(texts) == 2:
        first = min(first, max(room - len(texts[1]), room // 2))
        shares = [first, room - first]
    parts = [words[0]]
    for text, share, after in zip(texts, shares, words[1:], strict=True):
        parts += [text[kept_part(text, share, tokenizer, side)], after]
    return parts


class NoRoom(InputError):
    """The words of a template leave no room for a text within `limit` tokens; `least` would do."""

    def __init__(self, limit: int, least: int):
        super().__init__(
            f"task.max_length: {limit}; the words of the template leave no room for a text; "
            f"allowed: at least {least}"
        )
        self.limit, self.least = limit, least


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [tokens.tolist() for tokens in _split(*tokenizer.encode_batch(texts))]


def _arrays(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    return _split(*encode_cached(tokenizer, texts))


def _split(tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[np.ndarray]:
    return np.split(tokens_T, np.cumsum(lengths_N)[:-1]) if len(lengths_N) else []
