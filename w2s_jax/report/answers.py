"""What models answer in generation tasks: some test documents side by side, and scores of the task.

A setting has answers where the predictions of its phases have them (`store.artifacts`).
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.data.documents import hash_keys
from w2s_jax.report.results import (
    MAX_STUDENTS,
    Entry,
    Key,
    has_answers,
    join,
    mean_and_error,
    number,
    plural,
)
from w2s_jax.report.runs import Predictions, load_runs
from w2s_jax.report.settings import Setting, seeds_of, settings_of
from w2s_jax.report.uncertainty import WEAK

#: Test documents shown of each setting.
CASES = 10
#: Answers and targets are cut to this many characters; the whole text can be opened.
MAX_CHARACTERS = 60
#: Columns of answers.csv.
ANSWER_COLUMNS = (
    "setting", "run", "seed", "id", "target", "role", "label", "answer", "correct", "logprob",
    "text",
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What one model answered to one document.

    Attributes:
        answer: the answer; empty if there is none in the completion.
        correct: whether it is right.
        logprob: log-probability of the completion, None if unknown.
        text: the whole completion.
    """

    answer: str
    correct: bool
    logprob: float | None
    text: str


@dataclass(frozen=True)
class Case:
    """One test document.

    Attributes:
        id: its id.
        target: the expected answer.
        answers: one per column of the sheet; None for a model not evaluated on the document.
    """

    id: int
    target: str
    answers: list[Answer | None]


@dataclass(frozen=True)
class AnswerSheet:
    """Test documents of a setting with the answers of its models, side by side.

    Attributes:
        setting: the setting's title.
        run: name of the run that has the answers of the weak model.
        seed: its seed.
        columns: (role, label) of the models: weak model, the first students, ceiling.
        left_out: number of students without a column.
        missing: labels of models whose answers were not found.
        cases: the documents.
        n: number of test documents, of which `cases` are a part.
        first_student: the student whose differences from the weak model come first, None without.
        differing: number of documents where these two answer differently.
    """

    setting: str
    run: str
    seed: Any
    columns: list[Key]
    left_out: int
    missing: list[str]
    cases: list[Case]
    n: int
    first_student: str | None
    differing: int


def answer_sheet(setting: Setting, count: int = CASES) -> AnswerSheet | None:
    """Return the answers to `count` test documents of a setting; None if it has none.

    The models are those of the first seed with answers. Documents where the weak model and the
    first student answer differently come first, and within both groups the order is that of a hash
    of their ids: a fixed choice that does not depend on which answers are right.
    """
    sought = ((seeds, *_tables(setting, entries)) for seeds, entries in setting.seeds.items())
    chosen = next((found for found in sought if found[2]), None)
    if chosen is None:
        return None
    seeds, wanted, tables = chosen
    students = [key for key in setting.seeds[seeds] if key[0] == "student"]
    documents = next(iter(tables.values()))
    ids_N = np.array(list(documents), np.uint64)
    differs_N = np.zeros(len(ids_N), bool)
    compares = WEAK in tables and bool(students) and students[0] in tables
    if compares:
        other = tables[students[0]]
        pairs = [(own, other.get(i)) for i, own in documents.items()]
        differs_N = np.array([b is not None and a[1].answer != b[1].answer for a, b in pairs], bool)
    order_N = np.lexsort((hash_keys(ids_N, "answers in a report"), ~differs_N))
    cases = []
    for i in ids_N[order_N[:count]].tolist():
        rows = [table.get(i) for table in tables.values()]
        cases.append(Case(i, documents[i][0], [None if row is None else row[1] for row in rows]))
    run = next(run for run in setting.runs if seeds_of(run) == seeds)
    return AnswerSheet(
        setting=setting.title,
        run=run.name,
        seed=run.result.get("seed"),
        columns=list(tables),
        left_out=len(students[MAX_STUDENTS:]),
        missing=[key[1] for key in wanted if key not in tables],
        cases=cases,
        n=len(ids_N),
        first_student=students[0][1] if compares else None,
        differing=int(differs_N.sum()),
    )


def _tables(
    setting: Setting, entries: Mapping[Key, Entry]
) -> tuple[list[Key], dict[Key, dict[int, tuple[str, Answer]]]]:
    """Return the models of a seed that are shown, and the answers of those that have them."""
    students = [key for key in entries if key[0] == "student"]
    wanted = [WEAK, *students[:MAX_STUDENTS], ("ceiling", "ceiling")]
    wanted = [key for key in wanted if key in entries]
    found = {key: setting.predictions.get(str(entries[key].get("phase"))) for key in wanted}
    return wanted, {k: _by_id(p) for k, p in found.items() if p is not None and "answer" in p}


def _by_id(columns: Predictions) -> dict[int, tuple[str, Answer]]:
    """Return id -> target and answer of each document."""
    names = ("id", "target", "answer", "correct", "logprob", "text")
    rows = zip(*(columns[name].tolist() for name in names), strict=True)
    return {
        int(i): (target, Answer(answer, correct, number(logprob), text))
        for i, target, answer, correct, logprob, text in rows
    }


def answer_sheets(settings: Iterable[Setting]) -> list[AnswerSheet]:
    """Return the sheets of those settings that have answers."""
    return [sheet for sheet in map(answer_sheet, settings) if sheet is not None]


def answer_rows(sheets: Iterable[AnswerSheet]) -> list[dict[str, Any]]:
    """Return one row per document and model that is shown, with `ANSWER_COLUMNS`."""
    return [
        {"setting": sheet.setting, "run": sheet.run, "seed": sheet.seed, "id": case.id,
         "target": case.target, "role": role, "label": label, "answer": found.answer,
         "correct": found.correct, "logprob": found.logprob, "text": found.text}
        for sheet in sheets
        for case in sheet.cases
        for (role, label), found in zip(sheet.columns, case.answers, strict=True)
        if found is not None
    ]  # fmt: skip


def answers_table(run_dirs: Sequence[Path | str], count: int = CASES) -> list[dict[str, Any]]:
    """Return answers side by side as rows, for `pandas.DataFrame` in a notebook.

    Args:
        run_dirs: folders of finished runs, or of sweeps, as of `write_report`.
        count: the number of test documents of each setting; as on the page, those come first where
            the weak model and the first student answer differently.

    Returns:
        One row per setting and document: `setting`, `seed`, `id`, `target`, and by the label of
        each model (`weak`, those of students, `ceiling`) its answer behind a sign, `✓` if it is
        right and else `✗`. Settings without answers have no rows.

    Raises:
        InputError: as `write_report`.
    """
    rows = []
    runs, _ = load_runs([Path(folder) for folder in run_dirs])
    for setting in settings_of(runs):
        sheet = answer_sheet(setting, count)
        if sheet is None:
            continue
        for case in sheet.cases:
            row = {"setting": setting.title, "seed": sheet.seed, "id": case.id}
            row["target"] = case.target
            for (_, label), found in zip(sheet.columns, case.answers, strict=True):
                row[label] = "" if found is None else f"{sign(found)} {found.answer}".rstrip()
            rows.append(row)
    return rows


def sign(found: Answer) -> str:
    """Return the sign of a right or of a wrong answer."""
    return "✓" if found.correct else "✗"


def shortened(text: str, limit: int = MAX_CHARACTERS) -> str:
    """Return a text on one line, cut to `limit` characters with an ellipsis."""
    line = " ".join(printable(text).split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def printable(text: str) -> str:
    """Return a text with a sign for control characters, which models may generate."""
    return "".join(
        "�" if unicodedata.category(c) == "Cc" and c not in "\r\n\t" else c for c in text
    )


# --- scores of the task --------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreTable:
    """Scores that a task defines beside accuracy, as means over the seeds of a setting.

    Attributes:
        setting: the setting's title.
        names: the scores.
        rows: (role, label) -> for each name the mean, its standard error over seeds (0 for one
            seed) and the number of seeds; None where the score applies to no document.
    """

    setting: str
    names: list[str]
    rows: dict[Key, list[tuple[float, float, int] | None]]


def score_table(setting: Setting) -> ScoreTable | None:
    """Return the scores of a setting's models; None if its task has none."""
    found = {key: [e.get("scores") or {} for e in own] for key, own in setting.entries.items()}
    names = list(dict.fromkeys(name for own in found.values() for each in own for name in each))
    if not names:
        return None
    rows = {key: [_mean_score(own, name) for name in names] for key, own in found.items()}
    return ScoreTable(setting.title, names, rows)


def _mean_score(scores: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float, int] | None:
    mean, error, seeds = mean_and_error([{"score": found.get(name)} for found in scores], "score")
    return (mean, error, seeds) if seeds else None


# --- the section of the page ---------------------------------------------------------------------


def answers_context(settings: Sequence[Setting], sheets: Sequence[AnswerSheet]) -> dict[str, Any]:
    """Return what the page shows of answers.

    Returns:
        `expected`: whether any setting is of a task that asks for answers; `sheets`, each with its
        `caption`; `scores`.
    """
    entries = [e for s in settings for own in s.entries.values() for e in own]
    scores = [table for table in map(score_table, settings) if table is not None]
    return {
        "expected": bool(sheets) or any(map(has_answers, entries)),
        "sheets": [{"sheet": sheet, "caption": _caption(sheet)} for sheet in sheets],
        "scores": scores,
    }


def _caption(sheet: AnswerSheet) -> str:
    """Return the rule by which the documents of a sheet were chosen, and what is left out."""
    text = f"{len(sheet.cases)} of {plural(sheet.n, 'test document')}, seed {sheet.seed}"
    if sheet.first_student is None:
        text += ", in the order of a hash of their ids."
    else:
        text += (
            f": first those where the weak model and the {sheet.first_student} student answer"
            f" differently ({sheet.differing} of {sheet.n}), then others, both in the order of a"
            " hash of their ids. So these are not a sample: shares of right answers among them say"
            " nothing about accuracy."
        )
    if sheet.left_out:
        text += f" {plural(sheet.left_out, 'more student')} not shown."
    if sheet.missing:
        text += f" Predictions not found: {join(sheet.missing)}."
    return text
