"""How are two sentences related? Label 1: one follows from the other, or they mean the same."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import index_of, text_of
from w2s_jax.data.tasks.wordings import QUESTIONS


def expand_anli(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Entailment (0) against the rest: neutral (1), contradiction (2). Group: the premise."""
    premise = text_of(record, "premise", where)
    hypothesis = text_of(record, "hypothesis", where)
    relation = index_of(record, "label", where, 3)
    text = f"{premise}\n\nClaim: {hypothesis}\nDoes the claim follow from the text above it?"
    return [Candidate(text, {0: 1, 1: 0, 2: 0, -1: -1}[relation], group=premise)]


def convert_anli(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert from TFDS, which calls the premise the context."""
    return {"premise": record["context"]} | {
        name: record[name] for name in ("uid", "hypothesis", "label")
    }


def expand_paws(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Two sentences with mostly the same words.

    A source sentence is in several pairs, made by swapping words or by back-translation, so the
    group is the sorted words of the first sentence.
    """
    first, second = (text_of(record, name, where) for name in ("sentence1", "sentence2"))
    text = f"First: {first}\nSecond: {second}\nDo both sentences say the same?"
    return [
        Candidate(text, record["label"], group=" ".join(sorted(first.casefold().split()))),
    ]


def expand_wic(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A word in two sentences. Sentences recur with the same word, which is the group."""
    word, first, second = (
        text_of(record, name, where) for name in ("word", "sentence1", "sentence2")
    )
    text = (
        f'First: {first}\nSecond: {second}\nIs the meaning of "{word}" the same in both sentences?'
    )
    return [Candidate(text, record["label"], group=word.casefold())]


TASKS: tuple[Task, ...] = (
    Task(
        name="anli_r2",
        description="Adversarial inference, second round: entailed or not (ANLI; neutral and "
        "contradiction are 0).",
        licence="CC BY-NC 4.0",
        fields=("premise", "hypothesis", "label"),
        expand=expand_anli,
        hub=Origin(
            "facebook/anli",
            splits={"train": "train_r2", "validation": "dev_r2", "test": "test_r2"},
        ),
        tfds=Origin("anli/r2", convert=convert_anli),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="paws",
        description="Paraphrase or not, of sentences with mostly the same words (PAWS-Wiki).",
        licence="free for any purpose, with attribution asked for",
        fields=("sentence1", "sentence2", "label"),
        expand=expand_paws,
        hub=Origin("google-research-datasets/paws", config="labeled_final"),
        # The hub's sentences are tokenised as well.
        tfds=Origin("paws_wiki/labeled_final_tokenized"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="wic",
        description="One word in two contexts: the same sense? (SuperGLUE)",
        licence="CC BY-NC 4.0",
        fields=("word", "sentence1", "sentence2", "label"),
        expand=expand_wic,
        hub=Origin("aps/super_glue", config="wic"),
        tfds=Origin("super_glue/wic"),
        truncate="start",
        templates=QUESTIONS,
    ),
)
