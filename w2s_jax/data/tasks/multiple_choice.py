"""Is the proposed answer to a question right? Label 1: yes.

A record has one candidate per answer, in the order right, wrong, wrong, ... Documents about one
question form a group. An unlabelled record has its answers in their original order, with label -1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from w2s_jax.core.errors import InputError, shown
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import UNLABELLED, index_of, one_of, part_of, text_of, texts_of
from w2s_jax.data.tasks.wordings import QUESTIONS

SCIQ_FIELDS = ("question", "correct_answer", "distractor1", "distractor2", "distractor3")
LICENCE_SCIQ = "CC BY-NC 3.0"


def question_text(question: str, answer: str, context: str = "") -> str:
    """Return the text of one item; the question for the verdict comes last."""
    lines = [context, ""] if context else []
    lines += [question, f"Proposed answer: {answer}", "Is the proposed answer right?"]
    return "\n".join(lines)


def answer_candidates(
    answers: Sequence[str], right: int, text: Callable[[str], str], group: str
) -> list[Candidate]:
    """Return the candidates of a question: the right answer, then the distinct wrong ones.

    Args:
      answers: the answers. Wrong ones that are empty, or equal to another answer but for case, are
        dropped.
      right: index of the right one; -1: unlabelled.
      text: returns the text of the item with a given answer.
      group: as in `Candidate`.

    Returns:
      The candidates; [] (the record is skipped) if the right answer is empty or no wrong one is
      left.
    """
    distinct = {answer.casefold(): answer for answer in answers if answer}
    if right == -1:
        labelled = [(answer, -1) for answer in distinct.values()]
    else:
        first = answers[right]
        distinct.pop(first.casefold(), None)
        if not first or not distinct:
            return []
        labelled = [(first, 1), *((answer, 0) for answer in distinct.values())]
    return [
        Candidate(text(answer), label, group=group, meta={"answer": answer})
        for answer, label in labelled
    ]


def key_of(record: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    """Return answers and index of the right one for `choices` (text, label) and `answerKey`.

    Raises:
      InputError: the numbers of letters and answers differ, or the key is not one of the letters.
    """
    choices = part_of(record, "choices", where, ("text", "label"))
    answers, letters = texts_of(choices, "text", where), texts_of(choices, "label", where)
    if len(answers) != len(letters):
        raise InputError(
            f"{where}: field 'choices': {len(answers)} texts, but {len(letters)} labels"
        )
    letter_index = {letter: i for i, letter in enumerate(letters)}
    return answers, one_of(record, "answerKey", where, letter_index | UNLABELLED)


def expand_openbookqa(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A question and an answer, or the beginning and the end of a sentence."""
    question = text_of(record, "question_stem", where)
    answers, right = key_of(record, where)
    return answer_candidates(answers, right, lambda a: question_text(question, a), question)


def convert_openbookqa(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert from TFDS: the stem and its choices in one record, the key as an index."""
    letters = ["A", "B", "C", "D"]
    question = record["question"]
    return {
        "question_stem": question["stem"],
        "choices": {"text": [question[f"choice_{c}"] for c in letters], "label": letters},
        "answerKey": "" if record["answerKey"] == -1 else letters[record["answerKey"]],
    }


def expand_piqa(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A goal and a way to reach it."""
    goal = text_of(record, "goal", where)
    ways = [text_of(record, name, where, may_be_empty=True) for name in ("sol1", "sol2")]

    def text(way: str) -> str:
        return f"Goal: {goal}\nProposed way: {way}\nDoes the proposed way reach the goal?"

    return answer_candidates(ways, index_of(record, "label", where, 2), text, goal)


def expand_hellaswag(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The beginning of a description and a possible continuation.

    Descriptions of one video or article continue each other, so the group is the source if it is
    known, else the beginning.
    """
    context = text_of(record, "ctx", where)
    endings = texts_of(record, "endings", where)
    right = index_of(record, "label", where, len(endings))

    def text(ending: str) -> str:
        return f"{context}\nProposed continuation: {ending}\nIs this how it goes on?"

    return answer_candidates(endings, right, text, str(record.get("source_id") or context))


def convert_hellaswag(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert from TFDS: another name for `ctx`, labels as integers."""
    label = int(record["label"])
    return {
        "ctx": record["context"],
        "endings": list(record["endings"]),
        "label": "" if label == -1 else str(label),
        "activity_label": record["activity_label"],
        "source_id": record["source_id"],
        "split_type": record["split_type"],
    }


def _expand_sciq(record: Mapping[str, Any], where: str, context: str) -> list[Candidate]:
    question, right, *distractors = (text_of(record, name, where) for name in SCIQ_FIELDS)
    # A wrong answer equal to the right one would be the same text with both labels.
    wrong = [answer for answer in distractors if answer.casefold() != right.casefold()]
    if not wrong:
        raise InputError(
            f"{where}: field 'distractor1': every distractor equals the right answer {shown(right)}"
        )
    return [
        Candidate(
            question_text(question, answer, context), label, group=question, meta={"answer": answer}
        )
        for answer, label in [(right, 1), *((answer, 0) for answer in wrong)]
    ]


def expand_sciq(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The question and an answer."""
    return _expand_sciq(record, where, "")


def expand_sciq_with_support(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The supporting paragraph, if there is one, the question and an answer."""
    return _expand_sciq(record, where, text_of(record, "support", where, may_be_empty=True))


TASKS: tuple[Task, ...] = (
    Task(
        name="sciq",
        description="Science exam questions with one right and three wrong answers (SciQ).",
        licence=LICENCE_SCIQ,
        fields=SCIQ_FIELDS,
        expand=expand_sciq,
        hub=Origin("allenai/sciq"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="sciq_with_support",
        description="SciQ with the paragraph that supports the right answer, if there is one.",
        licence=LICENCE_SCIQ,
        fields=(*SCIQ_FIELDS, "support"),
        expand=expand_sciq_with_support,
        folder="sciq",
        hub=Origin("allenai/sciq"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="openbookqa",
        description="Elementary science: a question or the beginning of a sentence, four answers.",
        licence="not stated with the data (code: Apache-2.0)",
        fields=("question_stem", "choices", "answerKey"),
        expand=expand_openbookqa,
        label_field="answerKey",
        hub=Origin("allenai/openbookqa", config="main"),
        tfds=Origin("openbookqa", convert=convert_openbookqa),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="piqa",
        description="Everyday physics: which of two ways achieves a goal?",
        licence="AFL-3.0 as stated on the hub",
        fields=("goal", "sol1", "sol2", "label"),
        expand=expand_piqa,
        hub=Origin("ybisk/piqa"),
        tfds=Origin("piqa"),
        truncate="start",
        train_split="validation",
        templates=QUESTIONS,
    ),
    Task(
        name="hellaswag",
        description="How does the description of an activity continue? Four endings.",
        licence="MIT",
        fields=("ctx", "endings", "label"),
        expand=expand_hellaswag,
        hub=Origin("Rowan/hellaswag"),
        # TFDS also has parts of these splits as separate splits.
        tfds=Origin(
            "hellaswag",
            splits={"train": "train", "validation": "validation", "test": "test"},
            convert=convert_hellaswag,
        ),
        truncate="start",
        train_split="validation",
        templates=QUESTIONS,
    ),
)
