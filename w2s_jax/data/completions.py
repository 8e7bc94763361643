"""Tokenise prompts and their completions.

A document is `prefix + encode(prompt) + encode(target) + (end,)`: the tokenizer's special tokens
before a text, the prompt, the target, and the token that ends a text. Prompt and target are encoded
apart and nothing is put between them, so that no token crosses the seam, whatever is generated. The
tokenizer's `suffix` is not used. Only the target and the end have a weight in the loss.
"""

import functools
import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from w2s_jax.core.errors import InputError, listed, shown, unknown
from w2s_jax.data.completion_arrays import (
    Part,
    assembled,
    completions_of,
    constant,
    paired,
    prompts_of,
    prompts_only,
    weighted_by_document,
    with_completions,
)
from w2s_jax.data.documents import Document
from w2s_jax.data.task import Task
from w2s_jax.data.token_cache import encode_cached
from w2s_jax.data.tokenize import SIDES, tokenize
from w2s_jax.data.tokenized import TokenizedDocuments, offsets_of
from w2s_jax.data.tokenizers import Tokenizer

__all__ = [
    "check_spelling",
    "completions_of",
    "paired",
    "prompts_of",
    "prompts_only",
    "tokenization",
    "tokenize_completions",
    "weighted_by_document",
    "with_completions",
]

OVERLONG = ("truncate", "drop", "error")
_COUNTS = ("documents", "empty", "overlong", "dropped", "truncated", "same", "chunks", "tokens")


def tokenization(task: Task) -> Callable[..., tuple[TokenizedDocuments, dict[str, int]]]:
    """Return the function that tokenises a task's documents: `tokenize`, or of completions."""
    if task.generates:
        return tokenize_completions
    return functools.partial(tokenize, num_classes=task.num_classes)


def tokenize_completions(
    documents: Sequence[Document],
    tokenizer: Tokenizer | None,
    *,
    max_length: int | None,
    overlong: str,
    truncate: str = "start",
    empty: str | None = None,
) -> tuple[TokenizedDocuments, dict[str, int]]:
    """Tokenise documents with a prompt (`text`) and a `target`, in the same order.

    Documents of an unlabelled pool all have the target '', and become prompts with just an end.

    `overlong` decides what happens to a document of more than `max_length` tokens (None: no limit):
      'truncate': the prompt is cut at the side `truncate` ('start' or 'end'), never inside a
        character, and never the target.
      'drop': the document is left out.
      'error': an `InputError` is raised.

    `empty` decides about a prompt that gives no token: 'skip' leaves the document out, 'error'
    raises an `InputError`, None keeps it if the tokenizer has a prefix.

    Returns:
      The tokenized documents (`labels_N` NaN, `loss_weights_T` 0 in the prompt and 1 after it,
      `prompt_lengths_P` with the prefix), and counts as of `tokenize`, and 'targets' (tokens of
      targets and ends) and 'longest_target' (the same of one document).

    Raises:
      InputError: a document without a text or a target, or with an empty one; characters of a
        target that the tokenizer cannot spell; a tokenizer without an end of text; an over-long
        document with 'error', a target that leaves no room for the prompt with 'truncate', no
        document left with 'drop'; an unknown `overlong` or `truncate`.
    """
    if overlong not in OVERLONG:
        raise unknown("task.overlong", overlong, OVERLONG)
    if truncate not in SIDES:
        raise unknown("task.truncate", truncate, SIDES)
    end = _end_of(tokenizer)
    assert tokenizer is not None
    prompts, targets = _texts_of(documents)
    prompt = _encoded(prompts, documents, tokenizer)
    target = _encoded(targets, documents, tokenizer)
    check_spelling(documents, tokenizer, target.tokens_T, target.lengths_N)
    least = 0 if empty is None and tokenizer.prefix else 1
    empty_N = prompt.lengths_N < least
    if empty_N.any() and empty != "skip":
        document = documents[int(empty_N.argmax())]
        raise InputError(
            f"{document.name} has no tokens for the tokenizer {tokenizer.name}: "
            f"{shown(document.text)}; task.empty='skip' leaves such documents out"
        )
    special = len(tokenizer.prefix) + 1
    over_N = np.zeros(len(documents), bool)
    if max_length is not None:
        own_N = prompt.lengths_N + target.lengths_N + special
        over_N = ~empty_N & (own_N > max_length)
        _check_overlong(documents, own_N, over_N, overlong, max_length)
        if overlong == "truncate":
            prompt = _fitted(documents, tokenizer, prompt, target, over_N, max_length, truncate)
    kept_N = np.flatnonzero(~(empty_N | (over_N & (overlong == "drop"))))
    result = assembled(
        np.array([documents[n].id for n in kept_N.tolist()], np.uint64),
        [constant(tokenizer.prefix, len(kept_N)), prompt.select(kept_N)],
        [target.select(kept_N), constant((end,), len(kept_N))],
    )
    over = int(over_N.sum())
    lengths_N = target.lengths_N[kept_N] + 1
    counts = dict.fromkeys(_COUNTS, 0)
    counts |= {
        "documents": len(documents),
        "empty": int(empty_N.sum()),
        "overlong": over,
        "dropped": over if overlong == "drop" else 0,
        "truncated": over if overlong == "truncate" else 0,
        "tokens": len(result.tokens_T),
        "targets": int(lengths_N.sum()),
        "longest_target": int(lengths_N.max(initial=0)),
    }
    return result, counts


def check_spelling(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    tokens_T: np.ndarray,
    lengths_N: np.ndarray,
) -> None:
    """Check that targets can be read back from their tokens, except white space.

    Raises:
      InputError: names the characters that are lost.
    """
    bounds = itertools.pairwise(offsets_of(lengths_N).tolist())
    seen: set[str] = set()
    bad: list[tuple[Document, str]] = []
    lost: Counter[str] = Counter()
    for document, (start, stop) in zip(documents, bounds, strict=True):
        target = document.target or ""
        if target in seen:
            continue
        seen.add(target)
        read = tokenizer.decode(tokens_T[start:stop])
        if read != target and _bare(read) != _bare(target):
            bad.append((document, read))
            lost += Counter(_bare(target)) - Counter(_bare(read))
    if not bad:
        return
    document, read = bad[0]
    what = f"the target {shown(document.target)}, which reads {shown(read)}"
    if lost:
        what = (
            f"{listed(map(repr, sorted(lost)), limit=160)} in the target {shown(document.target)}"
        )
    more = f" (and {len(bad) - 1:,} more)" if len(bad) > 1 else ""
    raise InputError(
        f"{document.name}: the tokenizer {tokenizer.name} cannot spell {what}{more}; use another "
        "tokenizer, such as 'bytes'"
    )


def _bare(text: str) -> str:
    """Return a text without white space; two spellings of one character become the same."""
    return "".join(unicodedata.normalize("NFC", text).split())


def _end_of(tokenizer: Tokenizer | None) -> int:
    if tokenizer is None:
        raise InputError("task.tokenizer: a task that asks for completions needs a tokenizer")
    if tokenizer.end_of_text is None:
        raise InputError(
            f"task.tokenizer: {tokenizer.name!r} has no token that ends a text, which completions "
            "need; use another, such as 'bytes'"
        )
    return tokenizer.end_of_text


def _texts_of(documents: Sequence[Document]) -> tuple[list[str], list[str]]:
    prompts, targets = [], []
    unlabelled = all(document.target == "" for document in documents)
    for document in documents:
        if document.text is None:
            what = "tokens" if document.tokens is not None else "no text"
            raise InputError(f"{document.name} has {what}; a completion needs a text as its prompt")
        if document.target is None:
            raise InputError(f"{document.name} needs a target: the completion of its prompt")
        if not document.target.strip() and not unlabelled:
            raise InputError(f"{document.name}: field 'target': empty: {shown(document.target)}")
        prompts.append(document.text)
        targets.append(document.target)
    return prompts, targets


def _encoded(texts: list[str], documents: Sequence[Document], tokenizer: Tokenizer) -> Part:
    try:
        tokens_T, lengths_N = encode_cached(tokenizer, texts)
    except InputError as error:
        for document, text in zip(documents, texts, strict=True):
            try:
                tokenizer.encode_batch([text])
            except InputError as own:
                raise InputError(f"{document.name}: {own}") from error
        raise
    return Part(tokens_T, offsets_of(lengths_N)[:-1], np.asarray(lengths_N, np.int64))


def _check_overlong(
    documents: Sequence[Document],
    lengths_N: np.ndarray,
    over_N: np.ndarray,
    overlong: str,
    max_length: int,
) -> None:
    """Refuse over-long documents with 'error', and with 'drop' if no other is left."""
    over = int(over_N.sum())
    if over and (overlong == "error" or (overlong == "drop" and over == len(documents))):
        longest = int(lengths_N.argmax())
        raise InputError(
            f"task.max_length: {over} of {len(documents)} documents have more than {max_length} "
            f"tokens with their targets (the longest has {lengths_N[longest]}: "
            f"{documents[longest].name})"
        )


def _fitted(
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    prompt: Part,
    target: Part,
    over_N: np.ndarray,
    max_length: int,
    truncate: str,
) -> Part:
    """Return the prompts, the over-long ones cut to the room that their targets leave."""
    special = len(tokenizer.prefix) + 1
    starts_N, lengths_N = prompt.starts_N.copy(), prompt.lengths_N.copy()
    for n in np.flatnonzero(over_N).tolist():
        room = max_length - special - int(target.lengths_N[n])
        start, length = int(starts_N[n]), int(lengths_N[n])
        first, stop = _cut(prompt.tokens_T[start : start + length], room, tokenizer, truncate)
        if first >= stop:
            raise InputError(
                f"{documents[n].name}: its target has {target.lengths_N[n]} tokens, which leave no "
                f"room for its prompt (task.max_length: {max_length}, of which {special} are "
                "special tokens), and targets are never cut; raise task.max_length, or set "
                "task.overlong='drop'"
            )
        starts_N[n], lengths_N[n] = start + first, stop - first
    return Part(prompt.tokens_T, starts_N, lengths_N)


def _cut(tokens_L: np.ndarray, room: int, tokenizer: Tokenizer, side: str) -> tuple[int, int]:
    """Return (first, stop) of at most `room` tokens that begin and end between characters."""
    length = len(tokens_L)
    if room < 1 or not length:
        return 0, 0
    if side == "end":
        return 0, tokenizer.cut(tokens_L, room)
    first = length - room
    while first < length and tokenizer.cut(tokens_L, first) < first:
        first += 1
    return first, length
