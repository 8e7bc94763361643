"""What a task's functions return is checked, and what they read is part of the data's digest."""

import csv
import json

import numpy as np
import pytest
from refusals import error

from w2s_jax.config import default_config, validation
from w2s_jax.data import judging, tokenizers
from w2s_jax.data.documents import Document
from w2s_jax.data.external_labels import read_external_texts
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.tasks import TASKS
from w2s_jax.data.word_tokenizer import word_tokenizer
from w2s_jax.execution import labels
from w2s_jax.planning.resolve import resolve

DOCUMENT = Document(id=1, text="1+1=", target="2", meta={"also": "two"})


def task_of(**more):
    fields = {"name": "judged", "description": "", "licence": "", "kind": "generation"}
    return Task(**(fields | more))


def test_answers_and_scores_are_what_the_functions_say():
    task = task_of(
        answer=lambda text: text.strip("."),
        correct=lambda answer, document: answer == document.meta["also"],
        scores={"long": lambda answer, document: len(answer) > 2, "none": lambda *_: None},
    )
    assert judging.answer_of(task, "two.") == "two"
    assert judging.is_right(task, "two", DOCUMENT) and not judging.is_right(task, "2", DOCUMENT)
    assert judging.scores_of(task, "two", DOCUMENT) == {"long": 1.0, "none": None}
    # Without functions: the whole text, of which an empty one is never right.
    assert judging.is_right(task_of(), judging.answer_of(task_of(), " 2 "), DOCUMENT)
    silent = task_of(answer=lambda text: "")
    assert not judging.is_right(silent, "", DOCUMENT)


@pytest.mark.parametrize(
    ("fields", "call", "parts"),
    [
        ({"answer": lambda text: 2}, "answer_of", ["Task.answer: returns 2", "a text"]),
        ({"answer": lambda text: None}, "answer_of", ["Task.answer: returns None"]),
        ({"answer": lambda text: 1 / 0}, "answer_of", ["Task.answer: raises ZeroDivisionError:"]),
        ({"correct": lambda a, d: 1 / 0}, "is_right", ["Task.correct: raises ZeroDivisionError"]),
        ({"scores": {"s": lambda a, d: "high"}}, "scores_of", ["scores['s']: returns", "finite"]),
        ({"scores": {"s": lambda a, d: np.nan}}, "scores_of", ["scores['s']: returns", "finite"]),
    ],
)
def test_what_a_function_does_wrong_is_one_line(fields, call, parts):
    arguments = ("2",) if call == "answer_of" else ("2", DOCUMENT)
    text = error(getattr(judging, call), task_of(**fields), *arguments)
    assert all(part in text for part in parts), text


NAME = "judged_by_meta"


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """A registered task with an accepted answer in a field; returns its config for some values."""

    def config(also="two", **more):
        task = task_of(
            name=NAME,
            fields=("prompt", "target", "also"),
            expand=lambda record, where: [
                Candidate(record["prompt"], None, target="2", meta={"also": record["also"]})
            ],
            **{"correct": lambda answer, document: answer == document.meta["also"]} | more,
        )
        monkeypatch.setitem(TASKS, NAME, task)
        folder = tmp_path / also / NAME
        folder.mkdir(parents=True, exist_ok=True)
        for split, numbers in (("train", range(64)), ("test", range(64, 80))):
            rows = [{"prompt": f"{n}=", "target": "2", "also": also} for n in numbers]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{split}.jsonl").write_text(lines)
        config = default_config()
        config.task.name, config.task.data_dir = NAME, str(folder.parent)
        config.task.validation_docs, config.protocol.early_stopping = 0, "none"
        config.losses = ("xent",)
        return config

    return config


def test_what_judges_answers_is_part_of_the_digests(judged):
    one, same, other = (
        resolve(validation.validate(judged(also))).digests for also in ("two", "two", "deux")
    )
    assert one == same and one != other


def test_functions_are_tried_before_any_work(judged):
    config = judged(answer=lambda text: "")
    assert "finds no answer in the target '2'" in error(resolve, validation.validate(config))
    config = judged(scores={"s": lambda answer, document: "high"})
    assert "scores['s']: returns" in error(resolve, validation.validate(config))


@pytest.mark.parametrize("field", ["task.max_new_tokens", "task.label_top_k"])
def test_settings_of_completions_are_refused_for_classes(field):
    config = default_config()
    config.update_from_flattened_dict({field: 5})
    text = error(resolve, validation.validate(config))
    assert text.startswith(f"{field}: 5, but task 'digits_even' asks for classes")


def test_two_classes_have_one_column_also_where_they_have_names():
    ids_N = np.array([3], np.uint64)
    two = {"test": (ids_N, np.array([0.25], np.float32))}
    assert labels._csv(two, "p", ["no", "yes"]).split() == [
        b"id,split,p",
        b"0x0000000000000003,test,0.25",
    ]
    three = {"test": (ids_N, np.array([[0.25, 0.5, 0.25]], np.float32))}
    header, row = labels._csv(three, "p", ["no", "yes", "perhaps"]).split()
    assert header == b"id,split,p.no,p.yes,p.perhaps" and row.endswith(b",0.25,0.5,0.25")


def test_any_text_is_read_back_from_every_kind_of_file(tmp_path):
    texts = ["a\rb", "a\r", "a\r\nb", "\r", "", '"', "a,b", "\n"]
    found = {"test": (np.arange(len(texts), dtype=np.uint64) + 2**60, texts)}
    for suffix in (".csv", ".jsonl"):
        path = tmp_path / f"labels{suffix}"
        write = labels._csv if suffix == ".csv" else labels._jsonl
        path.write_bytes(write(found, "text"))
        assert list(read_external_texts(str(path)).values()) == texts, suffix
    rows = list(csv.reader((tmp_path / "labels.csv").open(newline="")))
    assert [row[2] for row in rows[1:]] == texts


def test_a_label_that_a_model_cannot_spell_is_named(judged, tmp_path, monkeypatch):
    words = [*(f"{n}=" for n in range(80)), "2"]
    monkeypatch.setitem(tokenizers.BUILT_IN, "sums", lambda: word_tokenizer("sums", words))
    config = judged()
    config.task.tokenizer = "sums"
    splits = resolve(validation.validate(config)).roles["weak"].splits
    ids = [int(id_) for name in ("slice2", "test") for id_ in splits[name].ids_N]
    rows = [{"id": f"0x{id_:016x}", "text": "2"} for id_ in ids]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.weak.labels = str(path)
    assert resolve(validation.validate(config)).outside
    rows[3]["text"] = "3"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = error(resolve, validation.validate(config))
    assert text.startswith(f"weak.labels: {path}, id 0x{ids[3]:016x}: ") and "'3'" in text
