"""Is a review favourable? Label 1: yes."""

from collections.abc import Mapping
from typing import Any

from w2s_jax.data.tasks import Candidate, Task, expand_text_and_label, text_of
from w2s_jax.errors import InputError


def expand_sst2(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """The sentence."""
    return [Candidate(text_of(record, "sentence", place), record["label"])]


def expand_imdb(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """The review, with HTML line breaks as line breaks."""
    text = text_of(record, "text", place).replace("<br />", "\n").strip()
    if not text:
        raise InputError(f"{place}: field 'text': empty document: {record['text']!r}")
    return [Candidate(text, record["label"])]


def expand_amazon(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """Title and content on lines of their own; one of them may be empty."""
    parts = [text_of(record, name, place, may_be_empty=True) for name in ("title", "content")]
    if not any(parts):
        raise InputError(
            f"{place}: fields 'title' and 'content': empty document: {record['content']!r}"
        )
    return [Candidate("\n".join(part for part in parts if part), record["label"])]


TASKS: tuple[Task, ...] = (
    Task(
        name="sst2",
        description="Sentences and phrases of film reviews (Stanford Sentiment Treebank, GLUE).",
        licence="not stated",
        fields=("sentence", "label"),
        expand=expand_sst2,
    ),
    Task(
        name="amazon_blitzer",
        description="Amazon reviews of books, DVDs, electronics and kitchenware (Blitzer et al.).",
        licence="not stated",
        fields=("title", "content", "label"),
        expand=expand_amazon,
    ),
    Task(
        name="imdb",
        description="Long film reviews (Maas et al.).",
        licence="not stated; released for research",
        fields=("text", "label"),
        expand=expand_imdb,
    ),
    Task(
        name="rotten_tomatoes",
        description="Sentences of film reviews (Pang and Lee); SST-2 has the same: do not mix.",
        licence="CC BY 4.0 as distributed with NLTK",
        fields=("text", "label"),
        expand=expand_text_and_label,
    ),
)
