"""Word problems: is a worked answer right (label 1: yes), and the worked answers themselves."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import stable_id
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import text_of
from w2s_jax.data.tasks.wordings import QUESTIONS

FINAL = "####"
# Calculator annotations in the answers.
ANNOTATION = re.compile(r"<<[^<>]*>>")
FINAL_NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
FINAL_ANSWER = re.compile(rf"{FINAL}\s*\$?({FINAL_NUMBER.pattern})")
NUMBER = re.compile(r"\d+(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.\d+|\d+")

# The urns from which new digits are drawn: the only digit of a number, the first one, a later one.
# A first digit x becomes another one, y, with probability w(y) / (1 - w(x)), where w is the share
# of a digit in the urn. So first digits distributed as w(x) (1 - w(x)), here Benford's law, keep
# that distribution; likewise single digits, with a law that has few ones. Otherwise the number
# alone would tell right from wrong.
ONLY_DIGIT = "1223334444555566667788899"
FIRST_DIGIT = "".join(
    str(digit) * count for digit, count in enumerate((0, 388, 167, 111, 83, 67, 56, 48, 42, 38))
)
LATER_DIGIT = "0123456789"


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))


def _indices(number: str) -> dict[int, int]:
    """Return the index in `number` of the digit of each power of ten."""
    whole = number.partition(".")[0]
    power = sum(character.isdigit() for character in whole)
    indices = {}
    for index, character in enumerate(number):
        if character.isdigit():
            power -= 1
            indices[power] = index
    return indices


def _put(number: str, power: int, digit: str) -> str:
    """Return `number` with another digit at a power of ten, otherwise unchanged."""
    index = _indices(number)[power]
    return number[:index] + digit + number[index + 1 :]


def change_of(number: str, key: int) -> tuple[int, str]:
    """Choose a digit of `number` to replace so that its length and roundness do not change.

    It is the second digit of a number with three or more, unless only zeros follow the first; else
    it is the first. Leading zeros do not count.

    Args:
      number: digits, possibly with sign, commas and decimals.
      key: a hash that draws the new digit.

    Returns:
      The power of ten of the digit, and the new digit, which differs from the old one.
    """
    indices = _indices(number)
    significant = [power for power, index in indices.items() if number[index] != "0"]
    first = max(significant, default=min(0, max(indices)))
    last = min(significant, default=first)
    digits = 1 + first - min(indices)
    if digits > 2 and last < first:
        power = first - 1
        # A zero as the last digit before the zeros would make the number rounder.
        urn = LATER_DIGIT.replace("0", "") if power == last else LATER_DIGIT
    else:
        power = first
        urn = ONLY_DIGIT if digits == 1 else FIRST_DIGIT
    urn = urn.replace(number[indices[power]], "")
    return power, urn[key % len(urn)]


def corrupted(steps: str, final: str, key: int) -> tuple[str, str]:
    """Return steps and final number of a wrong answer made from a right one.

    One digit of the final number is changed, also where the number occurs in the last step.
    """
    power, digit = change_of(final, key)
    value = abs(_value(final))

    def replace(match: re.Match[str]) -> str:
        number = match.group()
        same = _value(number) == value and power in _indices(number)
        return _put(number, power, digit) if same else number

    head, newline, last = steps.rpartition("\n")
    return head + newline + NUMBER.sub(replace, last), _put(final, power, digit)


def _parts(record: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Return the question, the steps without annotations, and the final number of a record."""
    question, answer = (text_of(record, name, where) for name in ("question", "answer"))
    steps, mark, final = (part.strip() for part in answer.rpartition(FINAL))
    if not mark or not FINAL_NUMBER.fullmatch(final):
        raise InputError(
            f"{where}: field 'answer': must end with {FINAL} and a number, found {answer[-40:]!r}"
        )
    return question, ANNOTATION.sub("", steps), final


def expand_gsm8k_answers(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The question as the prompt; the steps and the final number as the target.

    Records of an unlabelled pool have no answer.
    """
    if "answer" not in record:
        return [Candidate(text_of(record, "question", where), None)]
    question, steps, final = _parts(record, where)
    target = f"{steps}\n{FINAL} {final}".lstrip()
    return [Candidate(question, None, target=target, meta={"answer": plain_number(final)})]


def plain_number(number: str) -> str:
    """Return a number without commas, leading zeros and zeros at the end of its decimals."""
    text = f"{_value(number):f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def final_number(text: str) -> str:
    """Return the number after the last #### of a completion, as `plain_number` writes it, or ''."""
    found = FINAL_ANSWER.findall(text)
    return plain_number(found[-1]) if found else ""


def expand_gsm8k(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """The right answer and a wrong one, which depends only on the question."""
    question, steps, final = _parts(record, where)
    key = stable_id("gsm8k_verification", question)
    return [
        Candidate(
            f"{question}\n\nProposed solution:\n{worked}\nFinal answer: {number}\n"
            "Is the final answer right?",
            label,
            group=question,
            meta={"answer": number},
        )
        for worked, number, label in ((steps, final, 1), (*corrupted(steps, final, key), 0))
    ]


# TFDS has a second version of each split, with a small question for each step.
SPLITS = {"train": "train", "test": "test"}

# The same records for both.
_SOURCES: dict[str, Any] = {
    "licence": "MIT",
    "fields": ("question", "answer"),
    "folder": "gsm8k",
    "hub": Origin("openai/gsm8k", config="main"),
    "tfds": Origin("gsm8k", splits=SPLITS),
    "truncate": "start",
}

TASKS: tuple[Task, ...] = (
    Task(
        name="gsm8k",
        description="Grade-school word problems, answered step by step; the answer is the number "
        "after #### (GSM8K).",
        kind="generation",
        label_field="answer",
        expand=expand_gsm8k_answers,
        answer=final_number,
        **_SOURCES,
    ),
    Task(
        name="gsm8k_verification",
        description="Grade-school word problems with a worked answer, right or with a wrong final "
        "number (GSM8K).",
        expand=expand_gsm8k,
        **_SOURCES,
        warning="the final numbers alone tell right from wrong in about 57% of cases (gradient "
        "boosting on their digits); compare with that, not with 50%",
        templates=QUESTIONS,
    ),
)
