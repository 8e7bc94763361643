"""Judgements of everyday morality (ETHICS). Label 1: reasonable, fitting, more pleasant.

The authors' test set is the split validation on the hub, and their hard test set the split test;
here they are test and test_hard.
"""

import re
from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, shown
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import empty_text, text_of
from w2s_jax.data.tasks.wordings import QUESTIONS

HUB, LICENCE = "hendrycks/ethics", "MIT"
SPLITS = {"train": "train", "test": "validation", "test_hard": "test"}
SEPARATOR = "[SEP]"


def expand_deontology(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A request with an excuse, or a role with a duty. Group: the request or role."""
    scenario, excuse = (text_of(record, name, where) for name in ("scenario", "excuse"))
    text = f"{scenario}\n{excuse}\nIs what is said last reasonable?"
    return [Candidate(text, record["label"], group=scenario)]


def expand_justice(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A statement on what is deserved, or on a change of habit, with its reason.

    Statements were written in sets that differ only in the reason, but records do not name their
    set. So the group is the text before "because", or all of it without that word. This may miss
    that two statements belong together, but never joins statements without common words.
    """
    scenario = text_of(record, "scenario", where)
    group = re.split(r",?\s+because\b", scenario.casefold(), maxsplit=1)[0]
    return [Candidate(f"{scenario}\nIs the reasoning fair?", record["label"], group=group)]


def expand_virtue(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A scenario and a trait of character. Group: the scenario."""
    scenario, separator, trait = text_of(record, "scenario", where).rpartition(SEPARATOR)
    scenario, trait = scenario.strip(), trait.strip()
    if separator and not (scenario and trait):
        raise empty_text(record, "scenario", where)
    if not separator:
        raise InputError(
            f"{where}: field 'scenario': {shown(record['scenario'])}; must be a scenario, "
            f"{SEPARATOR} and a trait"
        )
    text = f"{scenario}\nTrait: {trait}\nDoes somebody here show this trait?"
    return [Candidate(text, record["label"], group=scenario)]


def expand_utilitarianism(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Two scenarios, the more pleasant one first (label 1) or second (label 0).

    The pairs come from rankings, so a scenario may be better in one pair and worse in another.
    Scenarios of a ranking begin alike (in the training data; rarely in the tests), so the group is
    the first sentence. Pairs of equal scenarios are skipped.
    """
    better, worse = (text_of(record, name, where) for name in ("baseline", "less_pleasant"))
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
        description="Is an excuse, or an alleged duty, reasonable? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "excuse", "label"),
        expand=expand_deontology,
        hub=Origin(HUB, config="deontology", splits=SPLITS),
        truncate="start",
        templates=QUESTIONS,
    ),
    Task(
        name="ethics_justice",
        description="Is a claim about fair treatment reasonable? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "label"),
        expand=expand_justice,
        hub=Origin(HUB, config="justice", splits=SPLITS),
        truncate="start",
        templates=QUESTIONS,
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
        templates=QUESTIONS,
    ),
    Task(
        name="ethics_virtue",
        description="Does a scenario show a character trait? (ETHICS)",
        licence=LICENCE,
        fields=("scenario", "label"),
        expand=expand_virtue,
        hub=Origin(HUB, config="virtue", splits=SPLITS),
        truncate="start",
        templates=QUESTIONS,
    ),
)
