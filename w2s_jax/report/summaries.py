"""Summaries in words of one run, of one setting and of several settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w2s_jax.metrics import intervals
from w2s_jax.report.caveats import CAVEATS, setting_caveats
from w2s_jax.report.results import (
    MAX_STUDENTS,
    Entry,
    Result,
    join,
    mean_and_error,
    median,
    number,
    plural,
    show,
    show_accuracy,
    strong_model,
    student_difference,
)
from w2s_jax.report.settings import Key, Setting, pgr_rows, student_labels


def overview(settings: Sequence[Setting]) -> dict[str, Any]:
    """Return the summary at the top of the page.

    Returns:
        `paragraphs`, and `caveats`: heading -> sentences, each with the settings it applies to (an
        empty string if the report has only one setting).
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in CAVEATS}
    for setting in settings:
        for name, sentence in setting_caveats(setting):
            found[name].setdefault(sentence, []).append(setting.title)
    caveats = {
        CAVEATS[name]: [
            {"setting": _scope(titles, len(settings)), "text": text}
            for text, titles in texts.items()
        ]
        for name, texts in found.items()
        if texts
    }
    paragraphs = [setting_summary([r.result for r in s.runs]) for s in settings[:1]]
    if len(settings) > 1:
        paragraphs = _settings_summary(settings)
    return {"paragraphs": paragraphs, "caveats": caveats}


def _scope(titles: list[str], total: int) -> str:
    if total == 1:
        return ""
    if len(titles) == total:
        return "in all settings"
    return titles[0] if len(titles) == 1 else f"in {len(titles)} of {total} settings"


def _settings_summary(settings: Sequence[Setting]) -> list[str]:
    """Return a sentence on the runs, then one per student with counts over settings."""
    runs = sum(len(s.runs) for s in settings)
    tasks = list(dict.fromkeys(s.task for s in settings))
    lines = [
        f"{plural(runs, 'run')} in {len(settings)} settings on {plural(len(tasks), 'task')}"
        f" ({join(tasks)}). The runs of a setting differ only in their seeds; the counts below are"
        " over settings, using the mean over seeds of each."
    ]
    for label in student_labels(settings):
        pairs = [(s, table) for s in settings if ("student", label) in (table := s.entries)]
        means = [(_mean(t, ("student", label)), _mean(t, ("weak", "weak"))) for _, t in pairs]
        above = sum(s is not None and w is not None and s > w for s, w in means)
        pgr = intervals.median_pgr({s.title: _pgr_of_means(s, label) for s, _ in pairs})
        sentence = (
            f"The {label} student outperforms the weak model in {above} of"
            f" {plural(len(pairs), 'setting')}"
        )
        if pgr["n"]:
            sentence += f"; its median PGR is {show(pgr['median'])}"
            sentence += f" (n = {plural(pgr['n'], 'setting')})"
        if pgr["undefined"]:
            sentence += f"; PGR is undefined or missing in {pgr['undefined']}"
        lines.append(sentence + ".")
    return lines


def _mean(table: dict[Key, list[Entry]], key: Key) -> float | None:
    return mean_and_error(table[key])[0] if key in table else None


def _pgr_of_means(setting: Setting, label: str) -> float | None:
    rows = pgr_rows(setting.seeds.values(), label)
    return intervals.pgr_over_seeds(rows, resamples=1)["of_means"]["pgr"]


def setting_summary(results: Sequence[Result]) -> str:
    """Return a paragraph on runs that differ only in their seeds, with medians and counts."""
    if len(results) == 1:
        return summary(results[0])
    weak = median((r.get("weak") or {}).get("accuracy") for r in results)
    ceiling = median((r.get("ceiling") or {}).get("accuracy") for r in results)
    parts = [
        f"{plural(len(results), 'run')} that differ only in their seeds. The median accuracy of the"
        f" weak model is {show(weak)}, that of the ceiling {show(ceiling)}."
    ]
    labels = dict.fromkeys(k for r in results for k in (r.get("students") or {}))
    medians = {
        k: median(((r.get("students") or {}).get(k) or {}).get("accuracy") for r in results)
        for k in labels
    }
    chosen = _select_students(medians)
    if len(chosen) < len(labels):
        parts.append(
            f"Of {len(labels)} students, the first, the three best and the worst by median"
            " accuracy are:"
        )
    for label in chosen:
        entries = [(r, (r.get("students") or {}).get(label)) for r in results]
        present = [(r, e) for r, e in entries if e and number(e.get("accuracy")) is not None]
        if present:
            parts.append(_seeds_sentence(label, present))
    if len(results) < 5:
        parts.append(
            "With so few runs the medians are uncertain: look at the individual runs as well."
        )
    return " ".join(parts)


def _seeds_sentence(label: str, pairs: Sequence[tuple[Result, Entry]]) -> str:
    """Return a sentence on one student over the seeds, given (result, entry) of each."""
    gaps = [student_difference(r, e) for r, e in pairs]
    above = sum(gap is not None and gap > 0 for gap, _ in gaps)
    clear = sum(g is not None and s is not None and g > 0 and g >= s for g, s in gaps)
    sentence = (
        f"The {label} student: median {show(median(e.get('accuracy') for _, e in pairs))},"
        f" above the weak model in {above} of {len(pairs)} runs (by at least one standard"
        f" error in {clear})"
    )
    defined = sum(number(e.get("pgr")) is not None for _, e in pairs)
    if defined:
        sentence += f"; median PGR {show(median(e.get('pgr') for _, e in pairs))}"
    if defined < len(pairs):
        sentence += f"; PGR is undefined or missing in {len(pairs) - defined} of them"
    return sentence + "."


def summary(result: Result) -> str:
    """Return a paragraph on one run: what was trained, accuracies, differences and PGR."""
    weak, ceiling = result.get("weak") or {}, result.get("ceiling") or {}
    students: dict[str, Entry] = result.get("students") or {}
    parts = [
        f"On the task {result.get('task', 'unnamed')}, the weak model"
        f" {weak.get('model', '(unnamed)')} was finetuned on ground truth and then labelled further"
        f" documents. The strong model {strong_model(result)} was finetuned on these labels only"
        f" ({_list_students(students)}) and, for the ceiling, on ground truth."
    ]
    n = f" on {show(weak['n'])} test documents" if weak.get("n") else ""
    parts.append(
        f"The weak model's accuracy is {show_accuracy(weak)}{n}, the ceiling's"
        f" {show_accuracy(ceiling)}."
    )
    chosen = _select_students({k: e.get("accuracy") for k, e in students.items()})
    if len(chosen) < len(students):
        gaps = [student_difference(result, entry)[0] for entry in students.values()]
        above = sum(gap is not None and gap > 0 for gap in gaps)
        parts.append(
            f"{above} of {len(students)} students are above the weak model. The first, the three"
            " best and the worst are:"
        )
    parts += [_student_sentence(result, label, students[label]) for label in chosen]
    if any(e.get("pgr_note") for e in students.values()):
        parts.append("PGR is undefined because the ceiling does not exceed the weak model.")
    scored = {k: number(e.get("accuracy")) for k, e in students.items()}
    best = max((v for v in scored.values() if v is not None), default=None)
    if best is not None and len(students) > 1:
        leaders = [k for k, v in scored.items() if v == best]
        verb = "student is" if len(leaders) == 1 else "students are"
        parts.append(f"The most accurate {verb} {join(leaders)}.")
    return " ".join(parts)


def _list_students(students: Iterable[str]) -> str:
    """Format `2 students: xent and confidence`; beyond `MAX_STUDENTS` only their number."""
    names = list(students)
    count = plural(len(names), "student")
    return count if len(names) > MAX_STUDENTS else f"{count}: {join(names) or 'none'}"


def _select_students(accuracies: Mapping[str, Any]) -> list[str]:
    """Return the labels to describe: all, or of many the first, the three best and the worst."""
    labels = list(accuracies)
    if len(labels) <= MAX_STUDENTS:
        return labels
    scored = {k: v for k in labels if (v := number(accuracies[k])) is not None}
    ranked = sorted(scored, key=lambda k: -scored[k])
    wanted = {labels[0], *ranked[:3], *ranked[-1:]}
    return [labels[0], *(k for k in ranked if k in wanted and k != labels[0])]


def _student_sentence(result: Result, label: str, entry: Entry) -> str:
    if number(entry.get("accuracy")) is None:
        return f"The {label} student has no recorded accuracy."
    sentence = f"The {label} student reaches {show_accuracy(entry)}"
    gap, se = student_difference(result, entry)
    if gap is None:
        return sentence + "."
    if gap == 0:
        sentence += ", the same as the weak model"
    else:
        sentence += f", {abs(gap):.3f} {'above' if gap > 0 else 'below'} the weak model"
    if gap and se:
        ratio = abs(gap) / se
        verdict = (
            "less than one standard error of the difference, so the two are not distinguishable"
            if ratio < 1
            else f"{ratio:.1f} standard errors of the difference"
            + (", which is weak evidence" if ratio < 2 else "")
        )
        sentence += f" ({verdict})"
    pgr = number(entry.get("pgr"))
    if pgr is not None:
        sentence += f"; it recovers {pgr:.3f} of the gap to the ceiling (PGR)"
    return sentence + "."
