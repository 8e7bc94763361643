"""Which of two replies or summaries did people prefer? Label 1: the second.

The order is drawn for each record. Texts end with the part to be judged, so they are cut at the
start.
"""

from collections.abc import Mapping
from typing import Any

from w2s_jax.core.errors import InputError, shown
from w2s_jax.data.task import Candidate, Origin, Task
from w2s_jax.data.tasks.fields import index_of, part_of, text_of
from w2s_jax.data.tasks.wordings import REPLIES, comparisons

HH, HH_FIELDS, LICENCE_HH = "Anthropic/hh-rlhf", ("chosen", "rejected"), "MIT"
REPLY = "\n\nAssistant:"


def in_both_orders(rejected: str, chosen: str, group: str) -> list[Candidate]:
    """Return the two candidates of a pair; none if both texts are equal."""
    if rejected == chosen:
        return []
    return [
        Candidate((rejected, chosen), 1, group=group),
        Candidate((chosen, rejected), 0, group=group),
    ]


def _dialogues(record: Mapping[str, Any], where: str) -> tuple[str, str, str]:
    """Return chosen and rejected dialogue, and their group.

    The group is the first message, because several records may be turns of one conversation.
    """
    chosen, rejected = (text_of(record, name, where) for name in HH_FIELDS)
    return chosen, rejected, chosen.split(REPLY, 1)[0]


def expand_hh(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Two dialogues that differ in their last reply."""
    chosen, rejected, group = _dialogues(record, where)
    return in_both_orders(rejected, chosen, group)


def expand_hh_single(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """One of two dialogues: is it the chosen one?"""
    chosen, rejected, group = _dialogues(record, where)
    if chosen == rejected:
        return []
    return [Candidate(chosen, 1, group=group), Candidate(rejected, 0, group=group)]


def expand_summaries(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """A post (or news article) with each of two summaries. Group: the post.

    One pair may be in several records, judged by several people.
    """
    info = part_of(record, "info", where, ("post",))
    source = "post" if info["post"] or "article" not in info else "article"
    post = text_of(info, source, where)
    title = text_of(info, "title", where, may_be_empty=True) if info.get("title") else ""
    summaries = record["summaries"]
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise InputError(
            f"{where}: field 'summaries': not a list of two records: {shown(summaries)}"
        )
    texts = [
        text_of(part_of({"summaries": summary}, "summaries", where, ("text",)), "text", where)
        for summary in summaries
    ]
    head = f"{title}\n\n{post}" if title else post
    better = index_of(record, "choice", where, 2)
    first, second = (f"{head}\n\nSummary: {text}" for text in texts)
    if better == -1:
        return [Candidate((first, second), -1, group=post)]
    if better == 0:
        return in_both_orders(second, first, post)
    return in_both_orders(first, second, post)


TASKS: tuple[Task, ...] = (
    Task(
        name="hh_rlhf_helpful",
        description="Which of two replies of an assistant is more helpful? (HH-RLHF, base set)",
        licence=LICENCE_HH,
        fields=HH_FIELDS,
        expand=expand_hh,
        kind="preference",
        orders=True,
        hub=Origin(HH, folder="helpful-base"),
        truncate="start",
        templates=comparisons(
            "Conversation",
            "In which conversation is the last reply more helpful?",
            "The last reply is more helpful in the",
        ),
    ),
    Task(
        name="hh_rlhf_harmless",
        description="Which of two replies of an assistant is less harmful? (HH-RLHF, base set)",
        licence=LICENCE_HH,
        fields=HH_FIELDS,
        expand=expand_hh,
        kind="preference",
        orders=True,
        hub=Origin(HH, folder="harmless-base"),
        truncate="start",
        templates=comparisons(
            "Conversation",
            "In which conversation is the last reply less harmful?",
            "The last reply is less harmful in the",
        ),
    ),
    Task(
        name="summarize_from_feedback",
        description="Which of two summaries of a post did people prefer? (Stiennon et al.)",
        licence="as the publishing repository: modified MIT",
        fields=("info", "summaries", "choice"),
        expand=expand_summaries,
        label_field="choice",
        kind="preference",
        orders=True,
        hub=Origin("openai/summarize_from_feedback", config="comparisons"),
        truncate="start",
        templates=comparisons(
            "Post",
            "After which post is the summary at its end better?",
            "The summary is better in the",
        ),
    ),
    Task(
        name="anthropic_hh",
        description="One reply of an assistant: is it the one that was preferred? (HH-RLHF as in "
        "the code released with the paper; local files may be those of hh_rlhf_helpful)",
        licence=LICENCE_HH,
        fields=HH_FIELDS,
        expand=expand_hh_single,
        folder="hh_rlhf_helpful",
        hub=Origin(HH),
        truncate="start",
        warning="every model is at chance, because a reply can only be judged against the other "
        "one; hh_rlhf_helpful and hh_rlhf_harmless show both",
        templates=REPLIES,
    ),
)
