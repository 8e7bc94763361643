"""Tokens against Python's own UTF-8 encoder."""

import hashlib
import struct

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import Document
from w2s_jax.data.tokenize import tokenize
from w2s_jax.data.tokenizers import ByteTokenizer

TEXTS = [
    "",
    "a",
    "plain text",
    "naïve café",
    "日本語のテキスト",
    "mixed 🙂🙃 end",
    "line\nbreak\t",
    "\ud800 alone",
]


def documents(texts, labels=None):
    labels = labels or [None] * len(texts)
    return [
        Document(id=10 + i, text=text, label=label)
        for i, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def text_of(tokens):
    body = [int(t) - 3 for t in tokens if t > 2]
    return bytes(body).decode("utf-8", "surrogatepass")


def test_byte_tokenizer_is_utf8_between_bos_and_eos():
    tokenizer = ByteTokenizer()
    for text in TEXTS:
        data = text.encode("utf-8", "surrogatepass")
        document = Document(id=1, text=text)
        tokenized, _ = tokenize([document], tokenizer, max_length=None, overlong="error")
        assert tokenized.tokens_T.dtype == np.int32
        assert tokenized.document(0).tolist() == [1, *(3 + b for b in data), 2]
    assert tokenizer.vocab_size == 259 == 3 + 256
    for label, token in enumerate(tokenizer.label_tokens):
        assert tokenizer.encode_batch([str(label)])[0].tolist() == [token]


def test_tokenize_lengths_labels_and_counts():
    docs = [*documents(TEXTS[1:4], [1, 0, None]), Document(id=99, text="x", soft_label=0.25)]
    tokenized, counts = tokenize(docs, ByteTokenizer(), max_length=None, overlong="error")
    assert len(tokenized) == 4
    assert tokenized.lengths_N.tolist() == [len(d.text.encode()) + 2 for d in docs]
    assert tokenized.ids_N.tolist() == [10, 11, 12, 99] and tokenized.ids_N.dtype == np.uint64
    assert (tokenized.tokens_T.dtype, tokenized.offsets.dtype, tokenized.labels_N.dtype) == (
        np.int32,
        np.int64,
        np.float32,
    )
    np.testing.assert_array_equal(tokenized.labels_N, np.float32([1, 0, np.nan, 0.25]))
    assert tokenized.loss_weights_T is None
    assert [text_of(tokenized.document(i)) for i in range(4)] == [d.text for d in docs]
    assert text_of(tokenized.document(-1)) == "x"
    with pytest.raises(IndexError):
        tokenized.document(4)
    assert counts == {
        "documents": 4,
        "empty": 0,
        "overlong": 0,
        "dropped": 0,
        "truncated": 0,
        "same": 0,
        "chunks": 0,
        "tokens": sum(len(d.text.encode()) + 2 for d in docs),
    }


@pytest.mark.parametrize("max_length", range(6, 30))
def test_truncation_keeps_the_ends_and_whole_characters(max_length):
    tokenized, counts = tokenize(
        documents(TEXTS), ByteTokenizer(), max_length=max_length, overlong="truncate"
    )
    assert len(tokenized) == len(TEXTS)
    over = 0
    for i, text in enumerate(TEXTS):
        tokens, full = tokenized.document(i), text.encode("utf-8", "surrogatepass")
        assert tokens[0] == 1 and tokens[-1] == 2 and len(tokens) <= max_length
        kept = text_of(tokens)  # fails where a character was cut
        assert text.startswith(kept)
        if len(full) + 2 > max_length:
            over += 1
            # One character more would not have fitted.
            more = text[: len(kept) + 1].encode("utf-8", "surrogatepass")
            assert len(more) + 2 > max_length
        else:
            assert kept == text
    assert counts["overlong"] == counts["truncated"] == over


def test_drop_and_error():
    docs = documents(["a" * 8, "b" * 9, "c" * 30])
    tokenized, counts = tokenize(docs, ByteTokenizer(), max_length=10, overlong="drop")
    assert tokenized.ids_N.tolist() == [10]
    assert (counts["overlong"], counts["dropped"], counts["tokens"]) == (2, 2, 10)
    with pytest.raises(InputError, match=r"task\.max_length: 2 of 3 .* 10 tokens .*longest has 32"):
        tokenize(docs, ByteTokenizer(), max_length=10, overlong="error")
    with pytest.raises(InputError, match=r"task\.max_length: 3 of 3"):
        tokenize(docs, ByteTokenizer(), max_length=5, overlong="drop")


@pytest.mark.parametrize("max_length", range(6, 24))
def test_chunks_are_consecutive_and_complete(max_length):
    text = "one 🙂 two 日本 three " * 3
    tokenized, counts = tokenize(
        documents([text, "ab"]), ByteTokenizer(), max_length=max_length, overlong="chunk"
    )
    pieces = [tokenized.document(i) for i in range(len(tokenized))]
    assert pieces[-1].tolist() == [1, 3 + ord("a"), 3 + ord("b"), 2]
    pieces = pieces[:-1]
    assert "".join(text_of(piece) for piece in pieces) == text
    assert all(len(p) <= max_length and p[0] == 1 and len(text_of(p)) > 0 for p in pieces)
    assert [int(p[-1] == 2) for p in pieces] == [0] * (len(pieces) - 1) + [1]
    # At most three bytes of a piece (one character's rest), or the last character, are given away.
    assert all(len(p) >= max_length - 4 for p in pieces[:-2])
    assert counts["chunks"] == len(pieces) and counts["overlong"] == 1
    assert len(set(tokenized.ids_N.tolist())) == len(tokenized)
    assert counts["tokens"] == len(text.encode()) + 1 + len(pieces) + 4


def test_options_are_checked():
    docs = documents(["abc"], [1])
    with pytest.raises(InputError, match=r"task\.overlong: 'chunk' is for text without labels"):
        tokenize(docs, ByteTokenizer(), max_length=64, overlong="chunk")
    with pytest.raises(InputError, match=r"task\.overlong: unknown value 'trunc'.*'truncate'"):
        tokenize(docs, ByteTokenizer(), max_length=64, overlong="trunc")
    with pytest.raises(InputError, match=r"task\.max_length: 2; must be at least 3"):
        tokenize(docs, ByteTokenizer(), max_length=2, overlong="truncate")
    with pytest.raises(InputError, match=r"document 10 .*no tokenizer"):
        tokenize(docs, None, max_length=64, overlong="error")
    with pytest.raises(InputError, match="document 7 has neither"):
        tokenize([Document(id=7)], ByteTokenizer(), max_length=64, overlong="error")


def test_token_documents_pass_through_with_their_weights():
    docs = [
        Document(id=1, tokens=(1, 5, 6), loss_weights=(0.0, 0.5, 1.0)),
        Document(id=2, tokens=(1, 7)),
    ]
    tokenized, _ = tokenize(docs, None, max_length=None, overlong="error")
    assert tokenized.tokens_T.tolist() == [1, 5, 6, 1, 7]
    assert tokenized.loss_weights_T is not None
    assert tokenized.loss_weights_T.tolist() == [0, 0.5, 1, 0, 1]
    assert tokenized.loss_weights_T.dtype == np.float32
    bad = Document(id=3, tokens=(1, 2), loss_weights=(0.0,))
    with pytest.raises(InputError, match="document 3 has 1 loss weights for 2 tokens"):
        tokenize([bad], None, max_length=None, overlong="error")
    with pytest.raises(InputError, match=r"task\.overlong: 'chunk' cuts texts"):
        tokenize([Document(id=4, tokens=tuple(range(9)))], None, max_length=6, overlong="chunk")


def test_no_documents():
    tokenized, counts = tokenize([], ByteTokenizer(), max_length=8, overlong="drop")
    assert len(tokenized) == 0 and tokenized.offsets.tolist() == [0] and counts["tokens"] == 0


def test_select_and_digest():
    docs = [
        Document(id=i, tokens=(7,) * (i % 5 + 2), loss_weights=(0.5,) * (i % 5 + 2), label=i % 2)
        for i in range(20)
    ]
    tokenized, _ = tokenize(docs, ByteTokenizer(), max_length=None, overlong="error")
    order = [7, 0, 19, 7, 4]
    picked = tokenized.select(order)
    direct, _ = tokenize(
        [docs[i] for i in order], ByteTokenizer(), max_length=None, overlong="error"
    )
    for name in ("ids_N", "tokens_T", "offsets", "labels_N", "loss_weights_T"):
        a, b = getattr(picked, name), getattr(direct, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert picked.digest() == direct.digest() != tokenized.digest()
    assert len(tokenized.select([])) == 0
    assert tokenized.select(tokenized.labels_N == 1).ids_N.tolist() == list(range(1, 20, 2))


def test_digest_sees_every_array_and_is_frozen():
    base = [Document(id=1, text="ab", label=1), Document(id=2, text="c")]

    def digest(docs):
        return tokenize(docs, ByteTokenizer(), max_length=None, overlong="error")[0].digest()

    tokens = {"tokens": (1, 100, 101, 2)}, {"tokens": (1, 102, 2)}
    weighted = [
        Document(id=1, label=1, loss_weights=(0, 1, 1, 1), **tokens[0]),
        Document(id=2, **tokens[1]),
    ]
    assert digest([Document(id=1, label=1, **tokens[0]), weighted[1]]) == digest(base)
    others = [
        [Document(id=3, text="ab", label=1), base[1]],
        [Document(id=1, text="ab", label=0), base[1]],
        [Document(id=1, text="ac", label=1), base[1]],
        weighted,
        base[::-1],
        base[:1],
    ]
    assert len({digest(docs) for docs in [base, *others]}) == 7
    parts = [
        b"<u82;",
        struct.pack("<2Q", 1, 2),
        b"<i83;",
        struct.pack("<3q", 0, 4, 7),
        b"<i47;",
        struct.pack("<7i", 1, 100, 101, 2, 1, 102, 2),
        b"<f42;",
        struct.pack("<f", 1),
        bytes.fromhex("0000c07f"),
    ]
    assert digest(base) == hashlib.sha256(b"".join(parts)).hexdigest()
    assert digest(base).startswith("c18fe9882a14806c2892bbb1c9f8fa55")


@pytest.mark.parametrize("max_length", [3, 5, 8, 13])
def test_truncation_at_the_start_keeps_the_end_and_whole_characters(max_length):
    docs = documents([*TEXTS, "añ€😀b" * 4])
    tokenized, counts = tokenize(
        docs, ByteTokenizer(), max_length=max_length, overlong="truncate", truncate="start"
    )
    assert counts["truncated"] == sum(len(encoded(d.text)) + 2 > max_length for d in docs)
    for n, document in enumerate(docs):
        tokens_L = tokenized.document(n)
        assert len(tokens_L) <= max_length and tokens_L[0] == 1 and tokens_L[-1] == 2
        data = encoded(document.text)
        kept = bytes((tokens_L[1:-1] - 3).tolist())
        assert data.endswith(kept)
        # The longest end that begins with a whole character.
        longer = [data[-m:] for m in range(len(kept) + 1, max_length - 1) if m <= len(data)]
        assert all(0x80 <= end[0] < 0xC0 for end in longer)
        assert not kept or not 0x80 <= kept[0] < 0xC0


def encoded(text):
    return text.encode("utf-8", "surrogatepass")


def test_pairs_are_pieces_of_one_document():
    docs = [
        Document(id=i, texts=("a" * (i + 1), "b" * (9 - i)), label=i % 2, group="g")
        for i in range(8)
    ]
    tokenized, _ = tokenize(docs, ByteTokenizer(), max_length=None, overlong="error")
    assert len(tokenized) == 8 and tokenized.num_texts == 2
    assert tokenized.lengths_N.tolist() == [14] * 8 and tokenized.longest == 11
    for n, document in enumerate(docs):
        for k in range(2):
            wanted = [1, *(3 + b for b in document.texts[k].encode()), 2]
            assert tokenized.document(n, k).tolist() == wanted
    picked = tokenized.select([5, 2])
    assert picked.ids_N.tolist() == [5, 2]
    assert picked.document(1, 1).tolist() == tokenized.document(2, 1).tolist()
    # A pair goes as a whole, and each of its texts is cut on its own.
    dropped, counts = tokenize(docs, ByteTokenizer(), max_length=9, overlong="drop")
    assert dropped.ids_N.tolist() == [2, 3, 4, 5, 6] and counts["dropped"] == 3
    cut, counts = tokenize(docs, ByteTokenizer(), max_length=9, overlong="truncate")
    assert cut.piece_lengths_P.max() == 9 and counts["truncated"] == 3 and len(cut) == 8
    one = [Document(id=d.id, text="".join(d.texts), label=d.label) for d in docs]
    assert tokenize(one, ByteTokenizer(), max_length=None, overlong="error")[0].digest() != (
        tokenized.digest()
    )
    with pytest.raises(InputError, match="document 9 has 1 texts, but document 0 has 2"):
        tokenize(
            [docs[0], Document(id=9, text="x")], ByteTokenizer(), max_length=9, overlong="drop"
        )


def test_a_text_without_a_token_is_refused():
    bare = ByteTokenizer()
    for name in ("prefix", "suffix"):
        object.__setattr__(bare, name, ())
    docs = [Document(id=3, text="a"), Document(id=4, text="")]
    with pytest.raises(InputError, match="document 4 has no tokens"):
        tokenize(docs, bare, max_length=None, overlong="error")
