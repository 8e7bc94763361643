"""Is a sentence well formed? Label 1: yes."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import text_of
from w2s_jax.data.tasks.wordings import QUESTIONS


def expand_cola(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The sentence and the question."""
    sentence = text_of(record, "sentence", where)
    return [Candidate(f"{sentence}\nIs this sentence good English?", record["label"])]


TASKS: tuple[Task, ...] = (
    Task(
        name="cola",
        description="Sentences from the literature on linguistics: acceptable or not (GLUE).",
        licence="not stated",
        fields=("sentence", "label"),
        classes=("unacceptable", "acceptable"),
        expand=expand_cola,
        hub=Origin("nyu-mll/glue", config="cola"),
        tfds=Origin("glue/cola"),
        truncate="start",
        templates=QUESTIONS,
    ),
)
