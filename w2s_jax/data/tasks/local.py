"""Tasks without code: folders of files with these fields.

text, label                  classification: 0 or 1, or the name or number of any class
text_a, text_b, label        which of two texts is better (1: text_b)
prompt, target               generation: the completion of a prompt, both kept as they are
... soft_label               from people or a judge, with or without label: P(label 1), or the
                             probabilities of more classes
... group                    records of one group stay on one side of every split
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from w2s_jax.core.errors import InputError
from w2s_jax.data import records, tfds
from w2s_jax.data.task import Candidate, Task
from w2s_jax.data.tasks.fields import text_of, verbatim
from w2s_jax.data.values import group_key

LABEL_FIELDS = ("label", "soft_label")
_FIELDS = ("text", "text_a", "text_b", "prompt", "target")


def local_task(name: str, data_dir: str | None, prepared: Path | None = None) -> Task:
    """Return the task of a folder; the fields of its first record decide its kind.

    Raises:
      InputError: the first record has the fields of two kinds.
    """
    if prepared is not None:
        where, first = next(next(iter(tfds.open_prepared(prepared).values()))())
    else:
        path = records.task_files(name, data_dir).first
        where, first = next(records.read_records(path, _FIELDS))
    pair = "text_a" in first or "text_b" in first
    if pair and "text" in first:
        raise InputError(
            f"{where}: the record has both 'text' and 'text_a' or 'text_b'; use text, or text_a "
            "and text_b"
        )
    asks = "prompt" in first
    if asks and (pair or "text" in first):
        if "target" in first:
            others = "'text_a' or 'text_b'" if pair else "'text'"
            raise InputError(
                f"{where}: the record has both 'prompt' and 'target' and {others}; use prompt and "
                "target, or text and label, or text_a, text_b and label"
            )
        asks = False
    if asks:
        return Task(
            name=name,
            description="A task without code: files with a prompt and its target.",
            licence="not stated",
            fields=("prompt", "target"),
            expand=expand_prompt,
            kind="generation",
            label_field="target",
            optional_fields=("group",),
        )
    texts = ("text_a", "text_b") if pair else ("text",)
    return Task(
        name=name,
        description=f"A task without code: files with {', '.join(texts)} and a label.",
        licence="not stated",
        fields=texts,
        expand=expand_pair if pair else expand_text,
        kind="preference" if pair else "classification",
        label_field=LABEL_FIELDS[0],
        optional_fields=(*LABEL_FIELDS, "group"),
    )


def expand_text(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with a text."""
    return [_candidate(text_of(record, "text", where), record, where)]


def expand_pair(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with two texts."""
    pair = text_of(record, "text_a", where), text_of(record, "text_b", where)
    return [_candidate(pair, record, where)]


def expand_prompt(record: Mapping[str, Any], where: str) -> list[Candidate]:
    """Return the candidate of a record with a prompt and a target, which are not stripped.

    Records of an unlabelled pool have no target.
    """
    prompt = verbatim(record, "prompt", where)
    target = verbatim(record, "target", where) if "target" in record else None
    group = group_key(record.get("group"), where)
    return [Candidate(prompt, None, group=group, target=target)]


def _candidate(text: str | tuple[str, str], record: Mapping[str, Any], where: str) -> Candidate:
    return Candidate(
        text,
        record.get("label"),
        group=group_key(record.get("group"), where),
        soft_label=record.get("soft_label"),
    )
