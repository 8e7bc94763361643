"""Is the proposed answer to a question right? Label 1: yes.

A record becomes one candidate for each of its answers, in the order right, wrong, wrong, ...
Documents about the same question form a group.
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.data.tasks import Candidate, Task, text_of
from w2s_jax.errors import InputError

SCIQ_FIELDS = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")
LICENCE_SCIQ = "CC BY-NC 3.0"


def question_text(question: str, answer: str, context: str = "") -> str:
    """The text of one item. The verdict is asked for last, after all that it depends on."""
    lines = [context, ""] if context else []
    lines += [question, f"Proposed answer: {answer}", "Is the proposed answer right?"]
    return "\n".join(lines)


def _expand_sciq(record: Mapping[str, Any], place: str, context: str) -> list[Candidate]:
    question, right, *distractors = (text_of(record, name, place) for name in SCIQ_FIELDS)
    # An answer that equals the right one would be the same text with both labels.
    wrong = [answer for answer in distractors if answer.casefold() != right.casefold()]
    if not wrong:
        raise InputError(
            f"{place}: field 'distractor1': every distractor equals the right answer {right!r}"
        )
    return [
        Candidate(
            question_text(question, answer, context), label, group=question, meta={"answer": answer}
        )
        for answer, label in [(right, 1), *((answer, 0) for answer in wrong)]
    ]


def expand_sciq(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """Question and answer only."""
    return _expand_sciq(record, place, "")


def expand_sciq_with_support(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """The supporting paragraph, where there is one, then question and answer."""
    return _expand_sciq(record, place, text_of(record, "support", place, may_be_empty=True))


TASKS: tuple[Task, ...] = (
    Task(
        name="sciq",
        description="Science exam questions with one right and three wrong answers (SciQ).",
        licence=LICENCE_SCIQ,
        fields=SCIQ_FIELDS,
        expand=expand_sciq,
    ),
    Task(
        name="sciq_with_support",
        description="SciQ with the paragraph that supports the right answer, where there is one.",
        licence=LICENCE_SCIQ,
        fields=(*SCIQ_FIELDS, "support"),
        expand=expand_sciq_with_support,
        folder="sciq",
    ),
)
