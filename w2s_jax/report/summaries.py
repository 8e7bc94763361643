"""Summaries in words of one run, of one setting and of several settings."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w2s_jax.metrics import intervals
from w2s_jax.report.caveats import CAVEATS, setting_caveats
from w2s_jax.report.results import (
    MAX_STUDENTS,
    Entry,
    Estimate,
    Result,
    defined_pgr,
    gap,
    join,
    lacks_ceiling,
    median,
    number,
    plural,
    show,
    show_accuracy,
    show_interval,
    strong_model,
    student_difference,
)
from w2s_jax.report.settings import Setting, student_labels
from w2s_jax.report.uncertainty import WEAK, Seed

_NO_CEILING = "and there is no ceiling, so no PGR"


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
    paragraphs = [setting_summary(s) for s in settings[:1]]
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
        f" ({join(tasks)}). The counts below are over settings, using the mean over seeds of each."
    ]
    for label in student_labels(settings):
        found = [s.estimates for s in settings if ("student", label) in s.entries]
        above = [e.above_weak[label] for e in found]
        more = sum((a.value or 0) > 0 for a in above)
        clear = sum((a.value or 0) > 0 and not a.holds_zero for a in above)
        pgr = intervals.median_pgr({str(i): e.pgr[label].value for i, e in enumerate(found)})
        sentence = (
            f"The {label} student outperforms the weak model in {more} of"
            f" {plural(len(found), 'setting')} (distinguishably in {clear})"
        )
        if pgr["n"]:
            sentence += f"; its median PGR is {show(pgr['median'])}"
            sentence += f" (n = {plural(pgr['n'], 'setting')})"
        if pgr["undefined"]:
            sentence += f"; PGR is undefined or missing in {pgr['undefined']}"
        lines.append(sentence + ".")
    return lines


def setting_summary(setting: Setting) -> str:
    """Return a paragraph on the runs of a setting, with medians and counts over its seeds."""
    if len(setting.runs) == 1:
        return summary(setting.runs[0].result)
    seeds = list(setting.seeds.values())
    weak = median(found.get(WEAK, {}).get("accuracy") for found in seeds)
    ceiling = median(found.get(("ceiling", "ceiling"), {}).get("accuracy") for found in seeds)
    without = all(run.result.get("ceiling", {}) is None for run in setting.runs)
    of_ceiling = _NO_CEILING if without else f"that of the ceiling {show(ceiling)}"
    parts = [
        f"{setting.kind_of_runs}. The median accuracy of the weak model is {show(weak)},"
        f" {of_ceiling}."
    ]
    labels = student_labels([setting])
    medians = {
        k: median(found.get(("student", k), {}).get("accuracy") for found in seeds) for k in labels
    }
    chosen = _select_students(medians)
    if len(chosen) < len(labels):
        parts.append(
            f"Of {len(labels)} students, the first, the three best and the worst by median"
            " accuracy are:"
        )
    for label in chosen:
        present = [found for found in seeds if ("student", label) in found]
        parts.append(_seeds_sentence(label, present, setting.estimates.median_pgr[label]))
    if len(seeds) < 5:
        parts.append(
            "With so few seeds the medians are uncertain: look at the individual runs as well."
        )
    return " ".join(parts)


def _seeds_sentence(label: str, seeds: Sequence[Seed], pgr: Estimate) -> str:
    """Return a sentence on one student over the seeds that have it, and the median of its PGRs."""
    entries = [found["student", label] for found in seeds]
    results = [
        {"weak": found.get(WEAK), "ceiling": found.get(("ceiling", "ceiling"))} for found in seeds
    ]
    pairs = list(zip(results, entries, strict=True))
    above = [d for r, e in pairs if (d := student_difference(r, e)).value and d.value > 0]
    clear = sum(not d.holds_zero for d in above)
    sentence = (
        f"The {label} student: median {show(median(e.get('accuracy') for e in entries))},"
        f" above the weak model in {len(above)} of {plural(len(pairs), 'seed')} (distinguishably"
        f" in {clear})"
    )
    if pgr.value is not None:
        sentence += f"; median PGR {show(pgr.value)}"
    without = all(lacks_ceiling(r, e) for r, e in pairs)
    if pgr.n < len(pairs) and not without:
        sentence += f"; PGR is undefined or missing in {len(pairs) - pgr.n} of them"
    return sentence + "."


def summary(result: Result) -> str:
    """Return a paragraph on one run: what was trained, accuracies, differences and PGR."""
    weak, ceiling = result.get("weak") or {}, result.get("ceiling") or {}
    students: dict[str, Entry] = result.get("students") or {}
    without = result.get("ceiling", {}) is None
    also = "" if without else " and, for the ceiling, on ground truth"
    parts = [
        f"On the task {result.get('task', 'unnamed')}, the weak model"
        f" {weak.get('model', '(unnamed)')} was finetuned on ground truth and then labelled further"
        f" documents. The strong model {strong_model(result)} was finetuned on these labels only"
        f" ({_list_students(students)}){also}."
    ]
    n = f" on {show(weak['n'])} test documents" if weak.get("n") else ""
    of_ceiling = _NO_CEILING if without else f"the ceiling's {show_accuracy(ceiling)}"
    parts.append(f"The weak model's accuracy is {show_accuracy(weak)}{n}, {of_ceiling}.")
    chosen = _select_students({k: e.get("accuracy") for k, e in students.items()})
    if len(chosen) < len(students):
        gaps = [student_difference(result, entry).value for entry in students.values()]
        above = sum(value is not None and value > 0 for value in gaps)
        parts.append(
            f"{above} of {len(students)} students are above the weak model. The first, the three"
            " best and the worst are:"
        )
    parts += [_student_sentence(result, label, students[label]) for label in chosen]
    with_ceiling = [e for e in students.values() if not lacks_ceiling(result, e)]
    if any(e.get("pgr_note") for e in with_ceiling):
        parts.append("PGR is undefined because the ceiling does not exceed the weak model.")
    elif any(gap(result, e).holds_zero for e in with_ceiling):
        parts.append(
            "PGR is undefined because the ceiling is not distinguishable from the weak model."
        )
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
    found = student_difference(result, entry)
    if found.value is None:
        return sentence + "."
    if found.value == 0:
        sentence += ", the same as the weak model"
    else:
        relation = "above" if found.value > 0 else "below"
        sentence += f", {abs(found.value):.3f} {relation} the weak model"
    if found.value and found.se:
        verdict = f"95% interval of the difference {show_interval(found)}"
        verdict += ", so the two are not distinguishable" if found.holds_zero else ""
        sentence += f" ({verdict})"
    pgr = defined_pgr(result, entry)
    if pgr is not None:
        sentence += f"; it recovers {pgr:.3f} of the gap to the ceiling (PGR)"
    return sentence + "."
