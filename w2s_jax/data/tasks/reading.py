"""Is the answer to a question about a passage right? Label 1: yes.

Questions about the same passage form a group, because one of them may give away the answer to
another. Answers become candidates as in `multiple_choice`.
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, did_you_mean, shown
from w2s_jax.data.documents import stable_id
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import UNLABELLED, index_of, one_of, text_of, texts_of
from w2s_jax.data.tasks.multiple_choice import answer_candidates, key_of, question_text
from w2s_jax.data.tasks.wordings import QUESTIONS
from w2s_jax.data.values import is_unlabelled

YES_NO = {"true": 1, "false": 0, "1": 1, "0": 0}
# An answer of Cosmos QA about the other answers, which an item does not show.
NONE_OF_THEM = "none of the above"


def expand_boolq(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Passage and question (as typed into a search engine: no capitals, no question mark)."""
    passage, question = (text_of(record, name, where) for name in ("passage", "question"))
    answer = one_of(record, "answer", where, YES_NO | UNLABELLED)
    text = f"{passage}\n\nQuestion: {question.rstrip('?')}?\nIs the answer yes?"
    return [Candidate(text, answer, group=passage)]


def expand_cosmos_qa(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Passage, question and answer, without the answer that none of the answers is right.

    That answer can only be judged together with the others, and would be recognisable when wrong. A
    record in which it is right has one wrong item, drawn by a hash of its content.
    """
    context, question = (text_of(record, name, where) for name in ("context", "question"))
    answers = [text_of(record, f"answer{i}", where, may_be_empty=True) for i in range(4)]
    right = index_of(record, "label", where, 4)
    shown = ["" if a.casefold().startswith(NONE_OF_THEM) else a for a in answers]

    def text(answer: str) -> str:
        return question_text(question, answer, context)

    if right == -1 or shown[right] or not answers[right]:
        return answer_candidates(shown, right, text, context)
    wrong = [answer for answer in shown if answer]
    if not wrong:
        return []
    answer = wrong[stable_id("cosmos_qa", context, question) % len(wrong)]
    return [Candidate(text(answer), 0, group=context, meta={"answer": answer})]


def expand_dream(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Dialogue, question and answer."""
    dialogue = "\n".join(texts_of(record, "dialogue", where))
    question = text_of(record, "question", where)
    answers = texts_of(record, "choice", where)
    right = ""
    if record["answer"] in answers or not is_unlabelled(record["answer"]):
        right = text_of(record, "answer", where)
    if right and right not in answers:
        raise InputError(
            f"{where}: field 'answer': {shown(right)} is not one of the texts in 'choice'"
            f"{did_you_mean(right, answers)}"
        )
    return answer_candidates(
        answers,
        answers.index(right) if right else -1,
        lambda answer: question_text(question, answer, dialogue),
        dialogue,
    )


def expand_quail(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Passage, question and answer."""
    context, question = (text_of(record, name, where) for name in ("context", "question"))
    answers = texts_of(record, "answers", where)
    right = index_of(record, "correct_answer_id", where, len(answers))
    return answer_candidates(answers, right, lambda a: question_text(question, a, context), context)


def expand_quartz(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A general statement, a question about a case, and an answer.

    The group is the statement: its questions come in pairs of opposites.
    """
    statement, question = (text_of(record, name, where) for name in ("para", "question"))
    answers, right = key_of(record, where)
    return answer_candidates(
        answers, right, lambda a: question_text(question, a, statement), statement
    )


def expand_social_i_qa(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A situation, a question and an answer; labels count from 1."""
    context, question = (text_of(record, name, where) for name in ("context", "question"))
    names = ("answerA", "answerB", "answerC")
    answers = [text_of(record, name, where, may_be_empty=True) for name in names]
    right = one_of(record, "label", where, {"1": 0, "2": 1, "3": 2} | UNLABELLED)
    return answer_candidates(answers, right, lambda a: question_text(question, a, context), context)


def expand_multirc(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Passage, question and answer; a record is one answer, and several may be right."""
    names = ("paragraph", "question", "answer")
    paragraph, question, answer = (text_of(record, name, where) for name in names)
    text = question_text(question, answer, paragraph)
    return [Candidate(text, record["label"], group=paragraph, meta={"answer": answer})]


def expand_mc_taco(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Sentence, question about time, answer; a record is one answer, and several may be right.

    The group is sentence and question.
    """
    names = ("sentence", "question", "answer")
    sentence, question, answer = (text_of(record, name, where) for name in names)
    text = question_text(question, answer, sentence)
    group = f"{sentence}\n{question}"
    return [Candidate(text, record["label"], group=group, meta={"answer": answer})]


TASKS: tuple[Task, ...] = (
    Task(
        name="boolq",
        description="Yes or no: questions to a search engine, with a paragraph of Wikipedia.",
        licence="CC BY-SA 3.0",
        fields=("passage", "question", "answer"),
        classes=("no", "yes"),
        expand=expand_boolq,
        label_field="answer",
        hub=Origin("google/boolq"),
        tfds=Origin("bool_q"),
        truncate="start",
        train_split="validation",
        templates=QUESTIONS,
    ),
    Task(
        name="cosmos_qa",
        description="Causes and effects between the lines of personal stories; four answers, but "
        '"none of the above" is never shown.',
        licence="CC BY 4.0",
        fields=("context", "question", "answer0", "answer1", "answer2", "answer3", "label"),
        expand=expand_cosmos_qa,
        hub=Origin("allenai/cosmos_qa"),
        tfds=Origin("cosmos_qa"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="dream",
        description="Dialogues from exams of English as a foreign language; three answers.",
        licence="non-commercial research only",
        fields=("dialogue", "question", "choice", "answer"),
        expand=expand_dream,
        label_field="answer",
        hub=Origin("dataset-org/dream"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="quail",
        description="Stories, news and blogs with questions of nine types; four answers.",
        licence="CC BY-NC-SA 4.0",
        fields=("context", "question", "answers", "correct_answer_id"),
        expand=expand_quail,
        label_field="correct_answer_id",
        hub=Origin("textmachinelab/quail"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="quartz",
        description="Qualitative relations: the more of this, the less of that; two answers.",
        licence="CC BY 4.0",
        fields=("para", "question", "choices", "answerKey"),
        expand=expand_quartz,
        label_field="answerKey",
        hub=Origin("allenai/quartz"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="social_i_qa",
        description="What people feel, want and do next in everyday situations; three answers.",
        licence="not stated",
        fields=("context", "question", "answerA", "answerB", "answerC", "label"),
        expand=expand_social_i_qa,
        hub=Origin("allenai/social_i_qa"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="multirc",
        description="Answers to questions that need several sentences of a passage (SuperGLUE).",
        licence="not stated; for research",
        fields=("paragraph", "question", "answer", "label"),
        expand=expand_multirc,
        hub=Origin("aps/super_glue", config="multirc"),
        tfds=Origin("super_glue/multirc"),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="mc_taco",
        description="Common sense about time: is an answer plausible? (MC-TACO)",
        licence="not stated",
        fields=("sentence", "question", "answer", "label"),
        expand=expand_mc_taco,
        hub=Origin("CogComp/mc_taco"),
        tfds=Origin("mctaco"),
        truncate="start",
        train_split="validation",
        templates=QUESTIONS,
    ),
)
