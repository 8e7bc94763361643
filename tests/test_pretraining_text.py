"""What models are pretrained on: documents that a task makes of records, and a part of a text."""

import dataclasses
import json

import pytest
from refusals import error

from w2s_jax import testing
from w2s_jax.config import PretrainSettings, TaskSettings
from w2s_jax.config.validation import validate
from w2s_jax.data import Candidate, Document, Task, register_task, tokenizers
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.tokenizers import ByteTokenizer, register_tokenizer
from w2s_jax.planning.pretraining_text import open_stream, read_chunks
from w2s_jax.planning.resolve import resolve
from w2s_jax.planning.tokenized_splits import Reader


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    monkeypatch.delenv("W2S_DATA_DIR", raising=False)
    monkeypatch.setattr(tokenizers, "BUILT_IN", dict(tokenizers.BUILT_IN))
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def expand(record, where):
    return [Candidate(record["q"], None, target=record["a"])]


def games(records, tokenizer, *, max_docs):
    """Each move of a game as a document: the move is learnt, and not what stands before it."""
    del max_docs  # the caller draws
    for where, record in records:
        for n, move in enumerate(record["moves"]):
            if move == "bad":
                raise ValueError("no such move")
            tokens, _ = tokenizer.encode_batch([move])
            yield Document(
                id=record["id"] * 100 + n,
                tokens=(1, n + 3, *tokens.tolist()),
                loss_weights=(0.0, 0.0, *[1.0] * len(tokens)),
                where=where,
            )


TASK = Task(
    "moves", "", "", ("q", "a"), expand, kind="generation", tokenizer="other",
    pretraining={
        "games": games,
        "none": lambda records, tokenizer, max_docs: [],
        "empty": lambda records, tokenizer, max_docs: [
            Document(id=1, tokens=(), where="f, line 1")
        ],
        "large": lambda records, tokenizer, max_docs: [
            Document(id=1, tokens=(1, 259), where="f, line 1")
        ],
    },
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    rows = [{"id": n, "moves": [f"m{n}", "x", "yy"]} for n in range(40)]
    write(tmp_path / "games" / "train.jsonl", rows)
    for name in ("none", "empty", "large"):
        write(tmp_path / name / "train.jsonl", rows)
    write(tmp_path / "books" / "train.jsonl", [{"text": f"book {n}"} for n in range(100)])
    return tmp_path


def read(folder, source, raw=(), notes=None, chunk_length=16, **settings):
    reader = Reader(TASK, ByteTokenizer(), None, "truncate", "start", "error")
    pretrain = dataclasses.replace(
        PretrainSettings(), source=source, chunk_length=chunk_length, **settings
    )
    task = dataclasses.replace(TaskSettings(), name="moves", data_dir=str(folder))
    notes = [] if notes is None else notes
    return read_chunks(pretrain, dict(raw), reader, task, notes)


def test_a_task_reads_its_own_records(folder):
    notes = []
    found = read(folder, "games", notes=notes)
    assert len(found) == 120 and found.ids_N.tolist()[:4] == [0, 1, 2, 100]
    assert found.document(3).tolist() == [1, 3, 3 + ord("m"), 3 + ord("1")]
    start, stop = found.offsets[3:5]
    assert found.loss_weights_T[start:stop].tolist() == [0, 0, 1, 1]
    assert notes == [
        "pretraining on games (train.jsonl): 120 documents, 120 chunks of at most 16 tokens, "
        f"{len(found.tokens_T)} tokens"
    ]


@pytest.mark.parametrize("source", ["games", "books"])
@pytest.mark.parametrize("at_once", [7, 2**16])
def test_some_documents_are_drawn_by_a_hash(folder, source, at_once, monkeypatch):
    monkeypatch.setattr("w2s_jax.planning.pretraining_text._DRAWN_AT_ONCE", at_once)
    everything = read(folder, source)
    fewer, more = (read(folder, source, max_docs=count) for count in (20, 50))
    assert (len(fewer), len(more)) == (20, 50)
    # The smaller draw is part of the larger one; both keep the order.
    order = everything.ids_N.tolist()
    small, large = fewer.ids_N.tolist(), more.ids_N.tolist()
    assert set(small) < set(large) < set(order)
    assert small == [i for i in order if i in set(small)] != order[:20]
    assert read(folder, source, max_docs=1000).digest() == everything.digest()
    assert 15 < sum(order.index(i) < len(order) // 2 for i in large) < 35
    # Frozen: the draw depends on ids alone.
    if source == "games":
        assert small[:5] == [2, 100, 202, 301, 500]


def test_pretraining_on_the_tasks_own_texts_has_their_targets(folder):
    documents = [Document(id=n, text=f"q{n}", target="a") for n in range(3)]
    found = read(folder, "task", {"pretrain": documents})
    assert ByteTokenizer().decode(found.document(1)) == "[BOS]q1a[EOS]"
    assert len(read(folder, "task", {"pretrain": documents}, max_docs=2)) == 2


def test_sources_that_are_refused(folder, tmp_path):
    assert error(read, tmp_path / "empty", "games").startswith("pretrain.source: 'games' is not a")
    assert error(read, folder, "none").endswith("task 'moves' makes no document of it")
    assert "made a document without text or tokens (f, line 1)" in error(read, folder, "empty")
    assert "f, line 1 has the token 259; allowed: 0 to 258" in error(read, folder, "large")
    message = error(read, folder, "games", chunk_length=3)
    assert message.startswith("pretrain.chunk_length: 3 is less than the 5 tokens")
    write(folder / "games" / "train.jsonl", [{"id": 1, "moves": ["bad"]}])
    message = error(read, folder, "games")
    assert message.startswith("pretrain.source: 'games': the function of task 'moves' fails")
    assert message.endswith("(ValueError: no such move)")
    (folder / "games" / "train.jsonl").write_text("{")
    assert error(read, folder, "games").startswith("pretrain.source: 'games': ")
    streamed = dataclasses.replace(PretrainSettings(), source="games", streaming=True, steps=1)
    reader = Reader(TASK, ByteTokenizer(), None, "truncate", "start", "error")
    message = error(open_stream, streamed, reader, TaskSettings(), [])
    assert message.startswith("pretrain.streaming: True, but")
    streamed = dataclasses.replace(streamed, source="books", max_docs=5)
    assert "pretrain.max_docs: 5, but a stream" in error(
        open_stream, streamed, reader, TaskSettings(), []
    )


class Shifted:
    """Bytes, under another name."""

    def __getattr__(self, name):
        values = {"name": "other", "digest": "0" * 64}
        return values[name] if name in values else getattr(ByteTokenizer(), name)

    @property
    def label_tokens(self):
        raise AssertionError("no class has a token")


def test_resolving_a_task_with_its_own_tokenizer(folder):
    register_tokenizer("other", Shifted)
    register_task(TASK)
    rows = [{"q": f"what is {n}?", "a": str(n), "n": n} for n in range(200)]
    write(folder / "moves" / "train.jsonl", rows[:150])
    write(folder / "moves" / "test.jsonl", rows[150:])
    config = testing.tiny_config(folder)
    config.task.name, config.task.max_length = "moves", 16
    config.task.validation_docs, config.task.test_docs = 10, None
    config.task.where, config.task.test_where = "n<80%", "n>=80%"
    config.pretrain.source, config.pretrain.max_docs = "games", 30
    resolved = resolve(validate(config))
    weak = resolved.roles["weak"]
    assert weak.tokenizer.name == "other" and weak.label_tokens == ()
    assert {k: len(v) for k, v in weak.splits.items()} == {
        "slice1": 55, "slice2": 55, "validation": 10, "test": 50, "pretrain": 30,
    }  # fmt: skip
    assert "task.where: n<80% (n < 120): keeps 120 of 150 of train" in resolved.notes
    assert "task.test_where: n>=80% (n >= 120): keeps 50 of 50 of test" in resolved.notes
    splits = [weak.splits[name] for name in ("slice1", "slice2", "validation", "test")]
    assert all(tokens.longest <= 16 for tokens in splits)
    answers = sorted(
        int(weak.tokenizer.decode(tokens.document(n)[tokens.prompt_lengths_P[n] : -1]))
        for tokens in splits
        for n in range(len(tokens))
    )
    assert answers == [*range(120), *range(150, 200)]
    # A tokenizer that was chosen is used.
    config.task.tokenizer = "nothing"
    assert "allowed: bytes, chess_board, other," in error(resolve, validate(config))
    config.weak.tokenizer = config.strong.tokenizer = "bytes"
    assert resolve(validate(config)).roles["weak"].tokenizer.name == "bytes"
