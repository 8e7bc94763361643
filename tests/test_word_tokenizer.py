"""The tokenizer of words."""

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.word_tokenizer import word_tokenizer


def test_words_are_tokens():
    tokenizer = word_tokenizer("abc", ["a", "bc", "é"])
    assert (tokenizer.vocab_size, tokenizer.text_vocab_size) == (6, 6)
    assert (tokenizer.prefix, tokenizer.suffix, tokenizer.end_of_text) == ((1,), (), 2)
    texts = ["a bc", "", " é  a", "bc"] * 6000  # more than one batch
    tokens_T, lengths_N = tokenizer.encode_batch(texts)
    assert tokens_T.dtype == np.int32 and lengths_N.dtype == np.int64
    np.testing.assert_array_equal(tokens_T, [3, 4, 5, 3, 4] * 6000)
    np.testing.assert_array_equal(lengths_N, [2, 0, 2, 1] * 6000)
    assert [len(array) for array in tokenizer.encode_batch([])] == [0, 0]
    assert tokenizer.decode(np.array([1, 4, 3, 2, 0])) == "[BOS] bc a [EOS] [PAD]"
    assert tokenizer.decode(np.array([5, 6])) == "é [6]"
    assert (tokenizer.cut(np.arange(5), 3), tokenizer.cut(np.arange(5), 9)) == (3, 5)


def test_what_words_cannot_do():
    tokenizer = word_tokenizer("abc", ["a", "bc"])
    with pytest.raises(InputError, match=r"'abc' does not know the word 'b' \(did you mean 'bc'"):
        tokenizer.encode_batch(["a", "a b"])
    # No text ends itself, but a completion of a model may have the other special tokens.
    assert tokenizer.encode_batch(["[BOS] a [PAD]"])[0].tolist() == [1, 3, 0]
    with pytest.raises(InputError, match=r"the word '\[EOS\]'"):
        tokenizer.encode_batch(["a [EOS]"])
    with pytest.raises(InputError, match="'abc' has no tokens for the labels '0' and '1'"):
        tokenizer.label_tokens  # noqa: B018
    for words in (["a", "a"], ["a b"], [""], ["[PAD]"]):
        with pytest.raises(ValueError, match="must be different"):
            word_tokenizer("bad", words)
    assert word_tokenizer("x", ["a", "bc"]).digest == tokenizer.digest
    assert word_tokenizer("abc", ["bc", "a"]).digest != tokenizer.digest
