"""The tokens declared in a folder's tokenizer.json, read without building a tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError
from w2s_jax.models.checkpoint_files import read_object

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokens of a tokenizer.json.

    Attributes:
      content: the content of the file.
      ids: id of each token.
      special: the special tokens, which no text matches.
      held: the tokens that texts can have: ordinary ones, that of unknown characters, and special
        ones that the tokenizer itself adds.
    """

    content: dict[str, Any]
    ids: dict[str, int]
    special: frozenset[str]
    held: frozenset[str]


def read(folder: Path) -> TokenizerRecord | None:
    """Read a folder's tokenizer.json; None if there is none.

    Raises:
      InputError: if it is not a tokenizer.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    content = read_object(path)
    try:
        model, added = content["model"], content.get("added_tokens") or []
        vocab = model.get("vocab", {})
        # Unigram lists pieces in the order of their ids.
        ids = dict(vocab) if isinstance(vocab, dict) else {p[0]: i for i, p in enumerate(vocab)}
        ids |= {token["content"]: token["id"] for token in added}
        if any(type(id_) is not int or id_ < 0 for id_ in ids.values()):
            raise ValueError("a token's id is not a non-negative integer")
        special = frozenset(token["content"] for token in added if token.get("special"))
        unknown = model.get("unk_token")
        if unknown is None and model.get("unk_id") is not None:
            unknown = vocab[model["unk_id"]][0]
        # Special tokens of a single character are ordinary characters too.
        kept = {token for token in special if len(token) == 1} | {unknown}
        kept |= special.intersection(_strings(content.get("post_processor")))
        held = frozenset(ids) - (special - kept)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is not a tokenizer ({type(error).__name__}: {error})") from error
    return TokenizerRecord(content, ids, special, held)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in (*value, *value.values()):
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def check(folder: Path, vocab_size: int, embedding: str) -> None:
    """Check that the embedding has a row for each token that a folder's tokenizer gives for texts.

    Args:
      folder: a folder that may contain a tokenizer.json.
      vocab_size: number of rows of the embedding.
      embedding: location of the embedding, for the error message.

    Raises:
      InputError: if a token's id is too large, or tokenizer.json is not a tokenizer.
    """
    record = read(folder)
    largest = None if record is None else max(record.held, key=record.ids.__getitem__, default=None)
    if record is not None and largest is not None and record.ids[largest] >= vocab_size:
        raise InputError(
            f"{folder / TOKENIZER}: token {largest!r} has id {record.ids[largest]}, "
            f"{too_few_rows(vocab_size, embedding)}"
        )


def too_few_rows(vocab_size: int, embedding: str) -> str:
    """Return the end of the error for a tokenizer with more tokens than embedding rows."""
    return (
        f"but the embedding has {vocab_size} rows ({embedding}); this tokenizer does not belong to "
        "this model"
    )
