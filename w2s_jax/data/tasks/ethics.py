"""Judgements of everyday morality (ETHICS). Label 1: reasonable, fitting, the more pleasant.

What the authors call test is called validation on the hub, and what they call the hard test is
called test there; here they are test and test_hard.
"""

import re
from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks import text_of

HUB, LICENCE = "hendrycks/ethics", "MIT"
SPLITS = {"train": "train", "test": "validation", "test_hard": "test"}
SEPARATOR = "[SEP]"


def expand_deontology(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """A request with an excuse, or a role with a duty. Group: the request or role."""
    scenario, excuse = (text_of(record, name, place) for name in ("scenario", "excuse"))
    text = f"{scenario}\n{excuse}\nIs what is said last reasonable?"
    return [Candidate(text, record["label"], group=scenario)]


def expand_justice(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """A statement on what is deserved, or on a change of habit, with its reason.

    Statements were written in sets that differ in the reason only, but records do not say which
    belong together. So the group is what stands before "because", or all of it where there is no
    such word. It may miss that two statements belong together, but joins none that share no words.
    """
    scenario = text_of(record, "scenario", place)
    group = re.split(r",?\s+because\b", scenario.casefold(), maxsplit=1)[0]
    return [Candidate(f"{scenario}\nIs the reasoning fair?", record["label"], group=group)]


def expand_virtue(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """A scenario and a trait of character. Group: the scenario."""
    scenario, separator, trait = text_of(record, "scenario", place).rpartition(SEPARATOR)
    scenario, trait = scenario.strip(), trait.strip()
    if not separator or not scenario or not trait:
        raise InputError(
            f"{place}: field 'scenario': {record['scenario']!r}; must be a scenario, {SEPARATOR} "
            "and a trait"
        )
    text = f"{scenario}\nTrait: {trait}\nDoes somebody here show this trait?"
    return [Candidate(text, record["label"], group=scenario)]


def expand_utilitarianism(record: Mapping[str, Any], place: str) -> list[Candidate]:
    """Two scenarios, the more pleasant one first (label 1) or second (label 0).

    The pairs come from rankings, so that a scenario may be the better one here and the worse one
    there. Those of a ranking begin alike (in the training data; seldom in the tests): the group is
    the first sentence. Two equal scenarios are no item.
    """
    better, worse = (text_of(record, name, place) for name in ("baseline", "less_pleasant"))
    if better.casefold() == worse.casefold():
        return []
    group = re.split(r"[.!?](?:\s|$)", better.casefold(), maxsplit=1)[0]
    return [
        Candidate(
            f"First: {first}\nSecond: {second}\nIs the first one more pleasant?", label, group=group
        )
        for first, second, label in ((better, worse, 1), (worse, better, 0))
    ]


TASKS: tuple[Task, ...] = (
    Task(
        name="ethics_deontology",
        description="Is an excuse, or what is taken for a duty, reasonable? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "excuse", "label"),
        expand=expand_deontology,
        hub=Origin(HUB, config="deontology", splits=SPLITS),
        truncate="start",
    ),
    Task(
        name="ethics_justice",
        description="Is a claim to be treated so or otherwise fair? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "label"),
        expand=expand_justice,
        hub=Origin(HUB, config="justice", splits=SPLITS),
        truncate="start",
    ),
    Task(
        name="ethics_utilitarianism",
        description="Which of two scenarios is more pleasant? (ETHICS)",
        licence=LICENCE,
        fields=("baseline", "less_pleasant"),
        expand=expand_utilitarianism,
        orders=True,
        hub=Origin(HUB, config="utilitarianism", splits=SPLITS),
        truncate="start",
    ),
    Task(
        name="ethics_virtue",
        description="Does a scenario show a trait of character? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "label"),
        expand=expand_virtue,
        hub=Origin(HUB, config="virtue", splits=SPLITS),
        truncate="start",
    ),
)
