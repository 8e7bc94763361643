"""Streams of text against plain Python: which tokens, in which shares, and from where again."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter

import numpy as np
import pytest

from w2s_jax.core.errors import InputError
from w2s_jax.data import corpus as corpus_module
from w2s_jax.data import stream
from w2s_jax.data.prepare import prepare
from w2s_jax.data.tokenizers import ByteTokenizer

TESTS = os.path.dirname(os.path.abspath(__file__))


class Bytes:
    """Byte b is token 3 + b, so that `end` marks the end of a document."""

    name = "bytes of these tests"

    def __init__(self, prefix=(1,), suffix=(2,), end_of_text=None, shift=3):
        self.prefix, self.suffix, self.end_of_text = prefix, suffix, end_of_text
        self.shift = shift

    def encode_batch(self, texts):
        data = [text.encode() for text in texts]
        tokens_T = np.frombuffer(b"".join(data), np.uint8).astype(np.int32) + self.shift
        return tokens_T, np.array([len(d) for d in data])


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def some_texts(n, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    return [f"{i} " + "é~x"[i % 3] * int(rng.integers(0, longest)) for i in range(n)]


def open_stream(path, tokenizer=None, **options):
    defaults = dict(batch_size=4, row_length=16, seed=3)
    corpus = corpus_module.open_corpus(path)
    return stream.stream_batches(corpus, tokenizer or Bytes(), **{**defaults, **options})


def take(batches, n):
    return [next(batches) for _ in range(n)]


def digest(batches):
    sha = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            sha.update(f"{name}{batch[name].dtype}{batch[name].shape}".encode())
            sha.update(batch[name].tobytes())
    return sha.hexdigest()


def read_documents(batches, prefix, end):
    """The documents that rows hold, in order, as tuples of tokens; the last one may be unfinished.

    Relies on `end` standing nowhere but at the end of a document.
    """
    documents, current = [], None
    for batch in batches:
        for tokens, segments in zip(batch["tokens_BL"], batch["segment_ids_BL"], strict=True):
            tokens, segments = tokens.tolist(), segments.tolist()
            used = [s for s in segments if s]
            assert segments == used + [0] * (len(segments) - len(used)), "padding is at the end"
            assert not any(tokens[len(used) :]), "padding holds token 0"
            assert sorted(set(used)) == list(range(1, max(used) + 1)) and used == sorted(used)
            # A row is full, but for the room of the prefix that it did not need.
            assert len(segments) - len(used) == (len(prefix) if current is None else 0)
            for segment in range(1, max(used) + 1):
                piece = [t for t, s in zip(tokens, used, strict=False) if s == segment]
                # The end of a row may cut a prefix of several tokens as well.
                assert tuple(piece[: len(prefix)]) == prefix[: len(piece)]
                current = piece if current is None else current + piece[len(prefix) :]
                if current[-1] == end:
                    documents.append(tuple(current))
                    current = None
    return documents


def reference(texts, prefix=(1,), end=2, shift=3):
    return [(*prefix, *(b + shift for b in text.encode()), end) for text in texts]


@pytest.mark.parametrize(
    ("tokenizer", "prefix", "end"),
    [
        (Bytes(), (1,), 2),
        (Bytes(prefix=(), suffix=(), end_of_text=0, shift=1), (), 0),
        # A prefix that also occurs in texts, and one of two tokens.
        (Bytes(prefix=(ord("x") + 3,)), (ord("x") + 3,), 2),
        (Bytes(prefix=(0, 1)), (0, 1), 2),
    ],
)
def test_every_epoch_holds_every_document_once(tmp_path, tokenizer, prefix, end):
    texts = some_texts(37)
    texts[5] = "long " * 50
    batches = open_stream(write(tmp_path / "a.jsonl", texts), tokenizer, row_length=16)
    found = read_documents(take(batches, 250), prefix, end)
    wanted = reference(texts, prefix, end, tokenizer.shift)
    epochs = [found[at : at + 37] for at in range(0, len(found) - 36, 37)]
    assert len(epochs) > 3
    for epoch in epochs:
        assert Counter(epoch) == Counter(wanted)
    orders = [[wanted.index(document) for document in epoch] for epoch in epochs]
    assert all(order != sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) == len(orders), "epochs have their own orders"


def test_shapes_dtypes_and_an_order_for_each_seed(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(40))
    orders = []
    for seed in (0, 1, 2, 2**40):
        batches = take(open_stream(path, seed=seed), 60)
        for batch in batches:
            assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
                "tokens_BL": ((4, 16), np.int32),
                "segment_ids_BL": ((4, 16), np.uint16),
            }
        orders.append(read_documents(batches, (1,), 2)[:80])
    for i, order in enumerate(orders):
        for j, other in enumerate(orders):
            # Neither the same order nor, as with seeds to which an epoch is added, a later one.
            assert i == j or (order[:40] != other[:40] and order[:40] != other[40:])
    assert digest(take(open_stream(path, seed=1), 5)) == digest(take(open_stream(path, seed=1), 5))


def test_a_full_row_has_no_empty_slot(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(300, longest=900))
    batches = take(open_stream(path, batch_size=8, row_length=256), 50)
    real = np.mean([np.mean(batch["segment_ids_BL"] > 0) for batch in batches])
    assert real > 0.999


def test_threads_change_nothing(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(200))
    digests = {
        digest(take(open_stream(path, num_threads=threads, num_ahead=ahead), 100))
        for threads, ahead in ((0, 0), (1, 1), (4, 0), (3, 5))
    }
    assert len(digests) == 1


@pytest.mark.medium
def test_workers_change_nothing_and_read_each_others_states(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(200))
    plain = open_stream(path)
    wanted, saved = take(plain, 30), None
    with_workers = open_stream(path, num_workers=2)
    try:
        assert digest(take(with_workers, 30)) == digest(wanted)
        saved = with_workers.state()
        assert saved == plain.state()
        later = digest(take(plain, 20))
        with_workers.restore(saved)
        assert digest(take(with_workers, 20)) == later
    finally:
        with_workers.close()
    with pytest.raises(ValueError, match="closed"):
        next(with_workers)


def test_every_position_is_restored(tmp_path):
    """Also where a chunk of documents ends with a row, which grain's own JSON states get wrong."""
    # 8 tokens per document: 32 documents are 16 rows of 16 tokens after a prefix.
    texts = [f"{i:06d}" for i in range(50)]
    path = write(tmp_path / "a.jsonl", texts)
    undisturbed = open_stream(path, batch_size=1, row_length=17)
    states, batches = [undisturbed.state()], []
    for _ in range(70):
        batches.append(next(undisturbed))
        states.append(undisturbed.state())
    assert any(state["start"] == -1 for state in states[1:])
    assert any(state["start"] > 0 for state in states)
    other = open_stream(path, batch_size=1, row_length=17)
    for position in np.random.default_rng(0).permutation(66):
        other.restore(json.loads(json.dumps(states[position])))
        assert other.state() == states[position]
        assert digest(take(other, 4)) == digest(batches[position : position + 4]), position


def test_a_fresh_process_goes_on_with_the_same_bits(tmp_path):
    # Documents shorter and longer than a row, positions within the first epoch (120 documents),
    # at its end, and in later ones; read ahead in threads all along.
    texts = some_texts(120, longest=40)
    texts[7] = "much longer than a row " * 20
    path = write(tmp_path / "a.jsonl", texts)
    batches = open_stream(path, num_threads=3, num_ahead=4)
    positions, kept, saved = (1, 7, 33, 69, 70, 71, 72, 160), [], {}
    for step in range(1, 166):
        kept.append(next(batches))
        if step in positions:
            saved[step] = batches.state()
    lengths = [len(read_documents(kept[:step], (1,), 2)) for step in positions]
    assert lengths[0] < 120 < lengths[-1] and max(lengths) > 240 > min(lengths)
    assert all(len(json.dumps(state)) < 200 for state in saved.values())
    code = f"""
        import json, sys
        sys.path.insert(0, {TESTS!r})
        import test_data_stream as t
        batches = t.open_stream({str(path)!r}, num_threads=2, num_ahead=2)
        for state in json.loads(sys.stdin.read()):
            batches.restore(state)
            print(t.digest(t.take(batches, 5)))
        batches.close()
        """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        input=json.dumps(list(saved.values())),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert found == [digest(kept[step : step + 5]) for step in positions]


def test_a_state_of_another_stream_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(40))
    state = open_stream(path).state()
    for options, name in (
        ({"seed": 4}, "seed 3"),
        ({"row_length": 32}, "row_length 16"),
    ):
        with pytest.raises(InputError, match=f"stream state: {name} differs"):
            open_stream(path, **options).restore(state)
    open_stream(path, batch_size=8).restore(state)


def test_json_lines_are_read_by_offset(tmp_path):
    """Blank lines, line ends, a byte order mark, escapes, and blocks that cut lines anywhere."""
    path = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "first", "n": 1}\n',
        b"\n",
        b"   \t \n",
        b'{"text": "na\xc3\xafve \\ud83d\\ude42"}\r\n',
        b'  {"text": "indented"}\n',
        b"\n\n",
        b'{"text": "' + b"long " * 30 + b'"}\n',
        b'{"n": 2, "text": "last, without a line end"}',
    ]
    path.write_bytes(b"".join(lines))
    wanted = ["first", "naïve 🙂", "indented", "long " * 30, "last, without a line end"]
    corpus = corpus_module.open_corpus(path)
    assert [corpus[n] for n in range(len(corpus))] == wanted
    assert corpus.digest == hashlib.sha256(b"".join(lines)).hexdigest()
    path.write_bytes(b"\n  \n" + lines[3] + b"\n")
    corpus = corpus_module.open_corpus(path)
    assert [corpus[n] for n in range(len(corpus))] == ["naïve 🙂"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"n": 1}', "line 5: field 'text' is missing"),
        ('{"text": 7}', "line 5: field 'text' is not text: 7"),
        ('{"text": "a', "line 5: malformed JSON"),
        ('["a"]', "line 5: a record must be a JSON object, found a list"),
        ("plain text", "line 5: malformed JSON"),
        (b'{"text": "\xff"}', "line 5: not UTF-8 text"),
    ],
)
def test_bad_records_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    start = b'{"text": "a"}\n\n{"text": "b"}\n \n'
    path.write_bytes(
        start + (line if isinstance(line, bytes) else line.encode()) + b'\n{"text":""}'
    )
    with pytest.raises(InputError, match=message) as caught:
        take(open_stream(path), 20)
    assert str(path) in str(caught.value)


def test_a_bad_record_is_named_by_workers_too(tmp_path):
    path = write(tmp_path / "a.jsonl", ["a"])
    path.write_text(path.read_text() + '{"n": 1}\n{"text": "b"}\n')
    batches = open_stream(path, num_workers=1)
    try:
        with pytest.raises(InputError, match="line 2: field 'text' is missing"):
            next(batches)
    finally:
        batches.close()


def test_a_prepared_folder_streams_like_the_file_it_was_made_of(tmp_path):
    texts = some_texts(50)
    (tmp_path / "books").mkdir()
    path = write(tmp_path / "books" / "train.jsonl", texts)
    folder = prepare("books", tmp_path / "out", source="files", data_dir=str(tmp_path)).folder
    corpus = corpus_module.open_corpus(folder.parent)
    assert [corpus[n] for n in range(len(corpus))] == texts
    written = json.loads((folder / "w2s.json").read_text())["splits"]["train"]
    assert corpus.digest == written["sha256"]
    wanted = digest(take(open_stream(path), 20))
    assert digest(take(open_stream(folder), 20)) == wanted
    batches = open_stream(folder, num_workers=1)
    try:
        assert digest(take(batches, 20)) == wanted
    finally:
        batches.close()
    with pytest.raises(InputError, match="split: unknown value 'tain'.*'train'"):
        corpus_module.open_corpus(folder, "tain")
    with pytest.raises(InputError, match="not written by `w2s data prepare`"):
        corpus_module.open_corpus(tmp_path / "books")


def test_records_of_a_prepared_task_without_text_are_named(tmp_path):
    (tmp_path / "sst2").mkdir()
    lines = [json.dumps({"sentence": f"text {n}", "label": n % 2, "idx": n}) for n in range(4)]
    (tmp_path / "sst2" / "train.jsonl").write_text("\n".join(lines))
    folder = prepare("sst2", tmp_path / "out", source="files", data_dir=str(tmp_path)).folder
    with pytest.raises(InputError, match=r"split train, record \d: field 'text' is missing"):
        open_stream(folder)


def test_the_byte_tokenizer_separates_documents(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(50))
    found = take(open_stream(path, ByteTokenizer()), 10)
    assert digest(found) == digest(take(open_stream(path), 10))


def test_texts_of_white_space_are_left_out(tmp_path):
    texts = ["one", " ", "two", "", "\n\t", "three"]
    batches = open_stream(write(tmp_path / "a.jsonl", texts))
    found = read_documents(take(batches, 20), (1,), 2)
    wanted = Counter(reference(["one", "two", "three"]))
    assert len(found) > 30 and all(
        Counter(found[at : at + 3]) == wanted for at in range(0, len(found) - 2, 3)
    )


def test_bad_input(tmp_path):
    path = write(tmp_path / "a.jsonl", some_texts(10))
    empty, blank = tmp_path / "empty.jsonl", write(tmp_path / "blank.jsonl", [" ", ""])
    empty.write_text("\n \n")
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(b"")
    for make, message in (
        (lambda: open_stream(path, batch_size=0), "batch_size: 0; must be at least 1"),
        (lambda: open_stream(path, row_length=7), "chunk_length: 7; allowed: 8 to 65535"),
        (lambda: open_stream(path, row_length=2**16), "chunk_length: 65536"),
        (lambda: open_stream(path, Bytes(suffix=())), "needs a tokenizer with a special token"),
        (lambda: open_stream(empty), "empty.jsonl: the file is empty"),
        (lambda: open_stream(blank), "all lines are blank"),
        (lambda: open_stream(tmp_path / "none.jsonl"), "none.jsonl: no such file"),
        (lambda: open_stream(packed), "streaming needs random access.*w2s data prepare"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads memory from /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """The peak of an epoch of 60 MB of text is at most 8 MB above that of an epoch of 1 MB."""
    code = """
        import re, sys
        sys.path.insert(0, {tests!r})
        import test_data_stream as t
        batches = t.open_stream({path!r}, batch_size=32, row_length=256)
        for _ in range({size} // (32 * 256)):
            next(batches)
        print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
        batches.close()
        """
    peaks = []
    for megabytes in (1, 60):
        path = write(tmp_path / f"{megabytes}.jsonl", ["word " * 400] * (500 * megabytes))
        size = path.stat().st_size
        assert size > megabytes * 10**6
        script = textwrap.dedent(code).format(tests=TESTS, path=str(path), size=size)
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        peaks.append(int(run.stdout))
    assert peaks[1] - peaks[0] < 8 * 1024
