"""Tokenizers: bytes, and the fast ones of Hugging Face, in batches.

Text is data, never control: the spelling of a special token ("</s>", "<|endoftext|>") in a text
becomes ordinary tokens. Special tokens come only from `prefix`, `suffix` and `end_of_text`.
"""

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError, first_line, nearest, unknown
from w2s_jax.data.tokenizer_files import (
    BUILT_IN,
    OTHERS,
    begins_inside,
    ends,
    ids_of_texts,
    is_described,
    read_backend,
    refused,
    single_token,
    without_specials,
)

log = logging.getLogger(__name__)


# Raised when a change of this module changes the tokens of a text.
_VERSION = 1
# Texts passed to the tokenizer at once; its results take many times their memory.
_BATCH_TEXTS, _BATCH_CHARACTERS = 1_000, 2**22
# Spellings of the end of text, for tokenizers that do not name theirs.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")


class Tokenizer(Protocol):
    """Text to tokens. Special tokens are never part of what `encode_batch` returns."""

    @property
    def name(self) -> str:
        """Name given by the user."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of everything that decides its output."""
        ...

    @property
    def vocab_size(self) -> int:
        """Largest id + 1, including added tokens."""
        ...

    @property
    def text_vocab_size(self) -> int:
        """Largest id that a text can have + 1; unused special tokens may have larger ones."""
        ...

    @property
    def prefix(self) -> tuple[int, ...]:
        """Special tokens at the beginning of a text (GPT-2: none; Llama: BOS; BERT: CLS)."""
        ...

    @property
    def suffix(self) -> tuple[int, ...]:
        """Special tokens at the end of a text (BERT: SEP)."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """Token that separates documents in a stream: EOS, else SEP, else BOS, else None."""
        ...

    @property
    def label_tokens(self) -> tuple[int, int]:
        """Tokens of '0' and '1'.

        Raises:
          InputError: one of them is not a single token.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return concatenated tokens of the texts, int32 [T], and their lengths, int64 [N].

        Nothing is truncated or padded. A text may have no tokens.
        """
        ...

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """The largest number of tokens, at most `end`, that does not end inside a character."""
        ...

    def decode(self, tokens_L: np.ndarray) -> str:
        """For people: the text of tokens, special ones as their names."""
        ...


@dataclass(frozen=True, slots=True)
class ByteTokenizer:
    """UTF-8 bytes as tokens: 0 padding, 1 beginning, 2 end, 3 + b for byte b."""

    pad_id: int = field(default=0, init=False)
    bos_id: int = field(default=1, init=False)
    eos_id: int = field(default=2, init=False)
    vocab_size: int = field(default=259, init=False)
    text_vocab_size: int = field(default=259, init=False)
    prefix: tuple[int, ...] = field(default=(1,), init=False)
    suffix: tuple[int, ...] = field(default=(2,), init=False)
    end_of_text: int | None = field(default=2, init=False)
    label_tokens: tuple[int, int] = field(default=(3 + ord("0"), 3 + ord("1")), init=False)
    name: str = field(default="bytes", init=False)
    digest: str = field(default=hashlib.sha256(b"bytes 1").hexdigest(), init=False)

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return concatenated tokens of the texts, int32 [T], and their lengths, int64 [N].

        Lone surrogates, which JSON can represent and UTF-8 cannot, become three bytes each.
        """
        data = [text.encode("utf-8", "surrogatepass") for text in texts]
        tokens_T = np.frombuffer(b"".join(data), np.uint8).astype(np.int32) + np.int32(3)
        return tokens_T, np.fromiter(map(len, data), np.int64, len(data))

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """The largest number of tokens, at most `end`, that does not end inside a character."""
        # A byte 10xxxxxx continues a character, so none may come right after the cut.
        while 0 < end < len(tokens_L) and 0x80 <= tokens_L[end] - 3 < 0xC0:
            end -= 1
        return end

    def decode(self, tokens_L: np.ndarray) -> str:
        """For people: the text of tokens, special ones as their names."""
        names = {self.pad_id: b"[PAD]", self.bos_id: b"[BOS]", self.eos_id: b"[EOS]"}
        parts = [names.get(t) or bytes([t - 3]) for t in tokens_L.tolist()]
        return b"".join(parts).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class HuggingFaceTokenizer:
    """A fast tokenizer of Hugging Face (see `load_tokenizer`).

    It has only numbers and names, so it can be pickled: each process reads the tokenizer from
    `source` once, and refuses one with another digest.

    Lone surrogates become U+FFFD, as in other encoders of UTF-8; BPE dropout is off.

    Attributes:
      source: absolute path of a folder or file, or a hub id.
    """

    name: str
    source: str
    digest: str
    vocab_size: int
    text_vocab_size: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    end_of_text: int | None

    @property
    def label_tokens(self) -> tuple[int, int]:
        """Tokens of '0' and '1' inside a word, without a mark of a preceding space.

        Raises:
          InputError: one of them is not a single token.
        """
        encoder = _engine(self).encoder
        zero, one = (single_token(encoder, text) for text in "01")
        if zero is None or one is None:
            missing = "0" if zero is None else "1"
            raise InputError(
                f"task.tokenizer: {self.name!r} has no single token for {missing!r}; predicting "
                "labels as tokens needs a tokenizer with the tokens '0' and '1', such as 'bytes'"
            )
        return zero, one

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return concatenated tokens of the texts, int32 [T], and their lengths, int64 [N].

        Raises:
          InputError: the tokenizer cannot encode a text, or has changed on disk.
        """
        encoder = _engine(self).encoder
        tokens, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for batch in _batches(texts):
            try:
                # The fast variant does not compute offsets.
                encodings = encoder.encode_batch_fast(batch, add_special_tokens=False)
            except Exception as error:  # the library raises nothing narrower
                raise InputError(
                    f"task.tokenizer: {self.name!r} cannot encode a text ({first_line(error)})"
                ) from error
            ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
            tokens.append(np.concatenate(ids))
            lengths.append(np.fromiter(map(len, ids), np.int64, len(ids)))
        return np.concatenate(tokens), np.concatenate(lengths)

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """The largest number of tokens, at most `end`, that does not end inside a character."""
        inside_V = _engine(self).inside_V
        while 0 < end < len(tokens_L) and inside_V[tokens_L[end]]:
            end -= 1
        return end

    def decode(self, tokens_L: np.ndarray) -> str:
        """For people: the text of tokens, special ones as their names."""
        return str(_engine(self).encoder.decode(tokens_L.tolist(), skip_special_tokens=False))


def register_tokenizer(name: str, factory: Callable[[], Tokenizer]) -> None:
    """Register a tokenizer without files, as a value of `task.tokenizer`.

    Args:
      name: of letters, digits, '_' and '-'.
      factory: returns it; its `name` must be `name`, and its `digest` must change when its tokens
        do.

    Raises:
      InputError: the name is taken, or has other characters.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise InputError(f"task.tokenizer: {name!r}; allowed: letters, digits, '_' and '-'")
    if name in BUILT_IN:
        raise InputError(f"task.tokenizer: tokenizer {name!r} is already registered")
    BUILT_IN[name] = factory


register_tokenizer("bytes", ByteTokenizer)


def load_tokenizer(path_or_id: str) -> Tokenizer:
    """Load the tokenizer of `task.tokenizer`.

    Args:
      path_or_id: 'bytes', or another registered name; a folder in the layout of Hugging Face
        (tokenizer.json, optionally tokenizer_config.json, config.json, special_tokens_map.json); a
        tokenizer.json; or a hub id. Code of a tokenizer's repository is never run.

    Raises:
      InputError: there is no such tokenizer, it cannot be read, or it is not a fast one.
    """
    if path_or_id in BUILT_IN:
        built_in: Tokenizer = BUILT_IN[path_or_id]()
        return built_in
    path = Path(os.path.expanduser(path_or_id))
    if path.is_file() and path.name == "tokenizer.json" and is_described(path.parent):
        path = path.parent
    if path_or_id and path.exists():
        return _load(path_or_id, str(path.absolute()))
    misspelt = "/" not in path_or_id and nearest(path_or_id.lower(), BUILT_IN)
    if misspelt:
        raise unknown("task.tokenizer", path_or_id, [*BUILT_IN, *OTHERS])
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path_or_id) or path.suffix == ".json":
        raise refused(path_or_id, "no such file or folder")
    return _load(path_or_id, path_or_id, local_only=not hf_hub.answers("model", path_or_id))


@dataclass(frozen=True, eq=False, slots=True)
class _Engine:
    """An encoder, and whether each token begins inside a character, bool [V]."""

    encoder: Any
    inside_V: np.ndarray


# By digest; each process reads a tokenizer once.
_ENGINES: dict[str, _Engine] = {}


def _engine(tokenizer: HuggingFaceTokenizer) -> _Engine:
    if tokenizer.digest not in _ENGINES:
        # The hub's cache usually has the same tokenizer, and needs no network.
        with contextlib.suppress(InputError):
            _load(tokenizer.name, tokenizer.source, local_only=True)
    if tokenizer.digest not in _ENGINES:
        _load(tokenizer.name, tokenizer.source)
    if tokenizer.digest not in _ENGINES:
        raise InputError(f"task.tokenizer: {tokenizer.name!r} has changed since it was loaded")
    return _ENGINES[tokenizer.digest]


def _load(name: str, source: str, local_only: bool = False) -> HuggingFaceTokenizer:
    if multiprocessing.parent_process() is not None:
        # One thread per worker process, unless the user has chosen otherwise.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    backend, end_of_text = read_backend(name, source, local_only)
    spec = json.loads(backend.to_str())
    special = {t["content"] for t in spec["added_tokens"] if t["special"]}
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab.keys() - special:
        raise refused(name, "it has no vocabulary")
    prefix, suffix = ends(name, backend)
    if end_of_text is None:
        end_of_text = next((vocab[t] for t in _ENDS if t in special and t in vocab), None)
    parts = [_VERSION, spec, sorted(special), prefix, suffix, end_of_text]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    held = [*prefix, *suffix, *ids_of_texts(spec, vocab, special)]
    sizes = max(vocab.values()) + 1, max(held) + 1
    tokenizer = HuggingFaceTokenizer(name, source, digest, *sizes, prefix, suffix, end_of_text)
    if digest not in _ENGINES:
        try:
            encoder = type(backend).from_str(json.dumps(without_specials(spec, special)))
        except Exception as error:  # the library raises nothing narrower
            raise refused(name, f"cannot be read ({first_line(error)})") from error
        encoder.encode_special_tokens = True
        inside_V = begins_inside(
            spec, backend.get_vocab(with_added_tokens=False), tokenizer.vocab_size
        )
        _ENGINES[digest] = _Engine(encoder, inside_V)
    return tokenizer


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if batch and (len(batch) == _BATCH_TEXTS or characters + len(text) > _BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch
