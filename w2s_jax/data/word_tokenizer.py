"""A tokenizer for texts of known words separated by spaces.

For tasks that spell their documents in a small notation of their own, such as the squares of a
board: one word is one token, and a word outside the vocabulary is an error.
"""

import functools
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from w2s_jax.core.errors import InputError, did_you_mean, shown

PAD, BOS, EOS = range(3)
_SPECIAL = ("[PAD]", "[BOS]", "[EOS]")
# Texts split at once: the strings of their words take many times the memory of the tokens.
_BATCH_TEXTS = 10_000


@dataclass(frozen=True, slots=True)
class WordTokenizer:
    """Words as tokens: 0 padding, 1 beginning, 2 end, 3 + i for word i (see `word_tokenizer`).

    A text begins with the beginning token and has no token at its end; `end_of_text` is the end
    token, which a completion or a stream of documents adds.
    """

    name: str
    words: tuple[str, ...]
    digest: str
    pad_id: int = field(default=PAD, init=False)
    bos_id: int = field(default=BOS, init=False)
    eos_id: int = field(default=EOS, init=False)
    prefix: tuple[int, ...] = field(default=(BOS,), init=False)
    suffix: tuple[int, ...] = field(default=(), init=False)
    end_of_text: int | None = field(default=EOS, init=False)

    @property
    def vocab_size(self) -> int:
        """Number of words and special tokens."""
        return len(_SPECIAL) + len(self.words)

    @property
    def text_vocab_size(self) -> int:
        """The same, as any word may occur in a text."""
        return self.vocab_size

    @property
    def label_tokens(self) -> tuple[int, int]:
        """Not available: the words have meanings of their own.

        Raises:
          InputError: always.
        """
        raise InputError(
            f"task.tokenizer: {self.name!r} has no tokens for the labels '0' and '1'; predicting "
            "labels as tokens needs a tokenizer that has them, such as 'bytes'"
        )

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return concatenated tokens of the texts, int32 [T], and their lengths, int64 [N].

        '[PAD]' and '[BOS]', as `decode` spells those that a model has generated, are encoded as
        these tokens, so that a student can learn from any completion; '[EOS]' is refused.

        Raises:
          InputError: a word is not in the vocabulary.
        """
        ids = _ids(self.words)
        tokens, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
        for start in range(0, len(texts), _BATCH_TEXTS):
            split = [text.split() for text in texts[start : start + _BATCH_TEXTS]]
            lengths.append(np.fromiter(map(len, split), np.int64, len(split)))
            words = itertools.chain.from_iterable(split)
            try:
                # Not `ids.get`: a missing word raises an error that names it.
                found = np.fromiter(map(ids.__getitem__, words), np.int32, int(lengths[-1].sum()))
            except KeyError as error:
                raise self._unknown(error.args[0]) from None
            tokens.append(found)
        return np.concatenate(tokens), np.concatenate(lengths)

    def _unknown(self, word: str) -> InputError:
        return InputError(
            f"task.tokenizer: {self.name!r} does not know the word {shown(word)}"
            f"{did_you_mean(word, self.words)}; it has {len(self.words)} words, such as "
            f"{', '.join(map(repr, self.words[:3]))}"
        )

    def cut(self, tokens_L: np.ndarray, end: int) -> int:
        """Return `end`, at most the number of tokens: no token ends inside a character."""
        return min(end, len(tokens_L))

    def decode(self, tokens_L: np.ndarray) -> str:
        """The words of tokens joined by spaces; special ones as '[PAD]', '[BOS]' and '[EOS]'.

        The ids of an embedding's rows beyond the vocabulary, which a model may generate, are shown
        as numbers in brackets.
        """
        spellings = (*_SPECIAL, *self.words)
        return " ".join(
            spellings[token] if token < len(spellings) else f"[{token}]"
            for token in np.asarray(tokens_L).tolist()
        )


def word_tokenizer(name: str, words: Iterable[str]) -> WordTokenizer:
    """Return a tokenizer for the words of a notation, in the order of their ids.

    Args:
      name: the value of `task.tokenizer`.
      words: different from each other, and without white space.

    Raises:
      ValueError: a word is repeated, empty, has white space, or is the name of a special token.
    """
    words = tuple(words)
    repeated = len(set(words)) < len(words)
    if repeated or any(word.split() != [word] or word in _SPECIAL for word in words):
        raise ValueError(f"words of tokenizer {name!r}: must be different and without white space")
    data = json.dumps(["words 1", *words]).encode()
    return WordTokenizer(name, words, hashlib.sha256(data).hexdigest())


@functools.cache
def _ids(words: tuple[str, ...]) -> dict[str, int]:
    # A poor model may write the first two special tokens; its completions must be encodable.
    special = {_SPECIAL[PAD]: PAD, _SPECIAL[BOS]: BOS}
    return special | {word: len(_SPECIAL) + i for i, word in enumerate(words)}
