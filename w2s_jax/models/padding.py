"""The padding token of exported classifiers.

transformers' class for sequence classification reads a decoder's last token that is not the padding
token. So no text may have the padding token: not an ordinary token, none that the tokenizer adds to
texts, and not the end of text, with which users may end them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2s_jax.core.files import write_json
from w2s_jax.models import tokenizer_record
from w2s_jax.models.checkpoint_files import read_object
from w2s_jax.models.config import ModelConfig
from w2s_jax.models.tokenizer_record import TOKENIZER, TokenizerRecord

_CONFIG, _MAP = "tokenizer_config.json", "special_tokens_map.json"

# Names of special tokens that may serve as padding, the best first.
_NAMES = (r"\W*pad(ding)?\W*", r".*pad.*", r".*(reserved|unused).*")
# Names for a new one.
_NEW = ("[PAD]", "<|pad|>", "<|classifier_pad|>")


@dataclass(frozen=True)
class Padding:
    """The padding token of a classifier.

    Attributes:
      id: its id.
      token: its name in the tokenizer ('': without a tokenizer).
      is_new: whether it must be added to the tokenizer.
      rows: number of zero rows to add to the embedding, so that it has one for the token.
    """

    id: int
    token: str = ""
    is_new: bool = False
    rows: int = 0

    def note(self) -> str:
        """Return what the user should know, or ''."""
        if not (self.is_new or self.rows):
            return ""
        token = f"{self.token!r}, added to the tokenizer" if self.is_new else repr(self.token)
        rows = f"; rows of zeros added to the embedding: {self.rows}" if self.rows else ""
        name = f"{self.id} ({token})" if self.token else str(self.id)
        return f"the classifier pads with token {name}, which no text has{rows}"


def choose(
    config: ModelConfig, tokenizer: Path | None, source: Mapping[str, Any] | None
) -> Padding:
    """Choose the padding token of a classifier.

    Args:
      config: the model.
      tokenizer: a folder that may contain a tokenizer.json.
      source: content of the config.json that the model came from.

    Raises:
      InputError: if a file of the tokenizer is damaged.
    """
    source = source or {}
    given = source.get("pad_token_id")
    if type(given) is not int or not 0 <= given < config.vocab_size:
        given = None
    record = None if tokenizer is None else tokenizer_record.read(tokenizer)
    spare = {} if record is None or tokenizer is None else _spare(record, tokenizer, source)
    if config.bidirectional:
        # Padding is masked; positions begin after its id (RoBERTa).
        first = config.position_offset - 1 if config.position_offset else given
        return Padding(next(iter(spare.values()), 0) if first is None else first)
    if record is None:
        others = _ids(source, "bos_token_id", "eos_token_id", "sep_token_id", "cls_token_id")
        if given is not None and given not in others:
            return Padding(given)
        return Padding(config.vocab_size, rows=1)
    if spare:
        token, id_ = next(iter(spare.items()))
        return Padding(id_, token, rows=max(0, id_ + 1 - config.vocab_size))
    id_ = max(record.ids.values(), default=-1) + 1
    token = next(name for name in (*_NEW, f"<|pad_{id_}|>") if name not in record.ids)
    return Padding(id_, token, is_new=True, rows=max(0, id_ + 1 - config.vocab_size))


def _spare(record: TokenizerRecord, folder: Path, source: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens that may serve as padding, the best first."""
    named = _named(folder)
    roles = ("bos_token", "eos_token", "sep_token", "cls_token", "unk_token", "mask_token")
    taken = {named[role] for role in roles if role in named}
    numbers = _ids(source, *(f"{role}_id" for role in roles))
    free = {
        token: record.ids[token]
        for token in sorted(record.special - record.held - taken, key=record.ids.__getitem__)
        if record.ids[token] not in numbers
    }
    best = [token for token in free if token == named.get("pad_token")]
    best += [token for token, id_ in free.items() if id_ == source.get("pad_token_id")]
    for pattern in _NAMES:
        best += [token for token in free if re.fullmatch(pattern, token, re.IGNORECASE)]
    return {token: free[token] for token in best}


def _named(folder: Path) -> dict[str, str]:
    """Return the special tokens by role ('eos_token'), as the tokenizer's files say."""
    named: dict[str, str] = {}
    for path in (folder / _MAP, folder / _CONFIG):
        for role, token in (read_object(path) if path.is_file() else {}).items():
            if role.endswith("_token") and isinstance(_content(token), str):
                named[role] = _content(token)
    return named


def _ids(source: Mapping[str, Any], *keys: str) -> set[int]:
    values = (source.get(key) for key in keys)
    lists = (value if isinstance(value, list) else [value] for value in values)
    return {id_ for ids in lists for id_ in ids if type(id_) is int}


def write(padding: Padding, folder: Path) -> None:
    """Make the tokenizer in `folder` pad with the token; files that say so are unchanged."""
    if not padding.token:
        return
    entry: dict[str, Any] = {
        "content": padding.token,
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        "special": True,
    }
    if padding.is_new:
        path = folder / TOKENIZER
        content = read_object(path)
        content["added_tokens"] = [
            *(content.get("added_tokens") or []),
            {"id": padding.id, **entry},
        ]
        path.write_text(json.dumps(content, ensure_ascii=False, indent=2))
    for path in (folder / _CONFIG, folder / _MAP):
        if path.name == _MAP and not path.is_file():
            continue
        record = read_object(path) if path.is_file() else {}
        if _content(record.get("pad_token")) != padding.token:
            record["pad_token"] = padding.token
            listed = record.get("added_tokens_decoder")
            if padding.is_new and isinstance(listed, dict):
                listed[str(padding.id)] = entry
            write_json(path, record)


def _content(token: Any) -> Any:
    """Return the spelling of a token, which some files nest."""
    return token.get("content") if isinstance(token, dict) else token
