"""What all runs of a report say together, and what they can't say."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from w2s_jax.metrics import intervals
from w2s_jax.report.charts import point
from w2s_jax.report.groups import Group, Key, pgr_rows
from w2s_jax.report.words import (
    Entry,
    difference,
    group_summary,
    join,
    number,
    plural,
    show,
    student_difference,
)

#: Why a result may not carry a claim: name -> heading.
CAUTIONS = {
    "undefined": "No gap to recover",
    "unstable": "PGR is unstable",
    "apart": "Not told apart",
    "documents": "Too few test documents",
    "chance": "At chance",
    "seeds": "Few seeds",
    "comparisons": "Several comparisons",
}
#: A signed-rank test of fewer seeds can't be below 5%, whatever it sees.
_WILCOXON_SEEDS = 6


def overview(groups: Sequence[Group]) -> dict[str, Any]:
    """The summary that opens the page.

    Returns:
        `paragraphs`, and `cautions`: for each heading that applies, the sentences, each with the
        title of its setting where there are several settings.
    """
    found: dict[str, dict[str, list[str]]] = {name: {} for name in CAUTIONS}
    for group in groups:
        for name, sentence in group_cautions(group):
            found[name].setdefault(sentence, []).append(group.title)
    cautions = {
        CAUTIONS[name]: [
            {"setting": _where(titles, len(groups)), "text": text} for text, titles in texts.items()
        ]
        for name, texts in found.items()
        if texts
    }
    paragraphs = [group_summary([r.result for r in g.runs]) for g in groups[:1]]
    if len(groups) > 1:
        paragraphs = _over_groups(groups)
    return {"paragraphs": paragraphs, "cautions": cautions}


def _where(titles: list[str], groups: int) -> str:
    if groups == 1:
        return ""
    if len(titles) == groups:
        return "in all settings"
    return titles[0] if len(titles) == 1 else f"in {len(titles)} of {groups} settings"


def _over_groups(groups: Sequence[Group]) -> list[str]:
    runs = sum(len(g.runs) for g in groups)
    tasks = list(dict.fromkeys(g.task for g in groups))
    lines = [
        f"{plural(runs, 'run')} of {len(groups)} settings on {plural(len(tasks), 'task')}"
        f" ({join(tasks)}). The runs of a setting differ only in their seeds; what follows counts"
        " settings, each by its means over seeds."
    ]
    labels = dict.fromkeys(k[1] for g in groups for k in g.entries if k[0] == "student")
    for label in labels:
        pairs = [(g, table) for g in groups if ("student", label) in (table := g.entries)]
        scored = [(_mean(t, ("student", label)), _mean(t, ("weak", "weak"))) for _, t in pairs]
        above = sum(s is not None and w is not None and s > w for s, w in scored)
        pgr = intervals.median_pgr({g.title: _pgr_of_means(g, label) for g, _ in pairs})
        sentence = (
            f"The {label} student is above the weak model in {above} of {len(pairs)} settings"
        )
        if pgr["n"]:
            sentence += f"; the median of its PGRs is {show(pgr['median'])}"
            sentence += f" (n = {plural(pgr['n'], 'setting')})"
        if pgr["undefined"]:
            sentence += f"; in {pgr['undefined']} PGR is undefined or absent"
        lines.append(sentence + ".")
    return lines


def _mean(table: dict[Key, list[Entry]], key: Key) -> float | None:
    return point(table[key])[0] if key in table else None


def _pgr_of_means(group: Group, label: str) -> float | None:
    rows = pgr_rows(group.seeds.values(), label)
    return intervals.pgr_over_seeds(rows, resamples=1)["of_means"]["pgr"]


def group_cautions(group: Group) -> list[tuple[str, str]]:
    """(name of the caution, sentence) for one setting."""
    seeds = list(group.seeds.values())
    table = group.entries
    students = [label for role, label in table if role == "student"]
    lines = _gap_cautions(seeds, students)
    lines += _difference_cautions(seeds, students)
    chance = [label for (_, label), entries in table.items() if _at_chance(entries)]
    if chance:
        text = "Within two standard errors of 0.5, which is chance on balanced classes:"
        lines.append(("chance", f"{text} {join(chance)}."))
    if len(seeds) == 1:
        text = "One seed only: the standard errors cover the test documents, not the training."
        lines.append(("seeds", text))
    elif len(seeds) < _WILCOXON_SEEDS:
        lines.append(
            (
                "seeds",
                f"{len(seeds)} seeds: intervals over so few are wide, and a signed-rank test of"
                f" fewer than {_WILCOXON_SEEDS} seeds can't reach p < .05.",
            )
        )
    if len(students) > 1:
        lines.append(
            (
                "comparisons",
                f"{len(students)} students were compared: the best of several looks better than it"
                " is. Only the p values that are called corrected allow for this.",
            )
        )
    return lines


def _gap_cautions(seeds: list[dict[Key, Entry]], students: list[str]) -> list[tuple[str, str]]:
    lines = []
    notes = [{str(e["pgr_note"]) for e in found.values() if e.get("pgr_note")} for found in seeds]
    if len(seeds) == 1:
        lines += [("undefined", note) for note in sorted(notes[0])]
    elif any(notes):
        many = sum(map(bool, notes))
        text = f"PGR is undefined in {many} of {len(seeds)} seeds: the ceiling is not above the"
        lines.append(("undefined", f"{text} weak model there."))
    ends = [(f.get(("ceiling", "ceiling"), {}), f.get(("weak", "weak"), {})) for f in seeds]
    gap, error = _over_seeds([difference(ceiling, weak) for ceiling, weak in ends])
    if students and gap is not None and error is not None and 0 < gap < 2 * error:
        lines.append(
            (
                "unstable",
                f"The ceiling is only {gap:.3f} above the weak model (standard error {error:.3f}):"
                " PGR divides by this gap and is unstable here.",
            )
        )
    return lines


def _over_seeds(
    gaps: Sequence[tuple[float | None, float | None]],
) -> tuple[float | None, float | None]:
    """A mean difference and its standard error: over the seeds, or over the documents if larger.

    Few seeds may agree by luck; their mean is no surer than the documents allow.
    """
    values = [gap for gap, _ in gaps if gap is not None]
    errors = [error for gap, error in gaps if gap is not None and error is not None]
    if not values:
        return None, None
    summary = intervals.mean_over_seeds(values)
    sampling = float(np.mean(errors)) / math.sqrt(len(errors)) if errors else None
    known = [error for error in (summary["se"], sampling) if error is not None]
    return summary["mean"], max(known, default=None)


def _difference_cautions(
    seeds: list[dict[Key, Entry]], students: list[str]
) -> list[tuple[str, str]]:
    lines = []
    close = []
    for label in students:
        own = [
            (f["student", label], f["weak", "weak"])
            for f in seeds
            if ("student", label) in f and ("weak", "weak") in f
        ]
        gap, error = _over_seeds([student_difference({"weak": w}, s) for s, w in own])
        if gap is None or error is None or abs(gap) >= 2 * error:
            continue
        close.append(f"{label} ({gap:+.3f} ± {error:.3f})")
        n = number(own[0][0].get("n"))
        if len(own) == 1 and n and abs(gap) * n >= 1:
            # The standard error falls with the root of n.
            needed = math.ceil(n * (2 * error / gap) ** 2 / 10) * 10
            lines.append(
                (
                    "documents",
                    f"{n:.0f} test documents are too few for a difference of {abs(gap):.3f}"
                    f" ({label} against the weak model); about {needed:,} could show one of this"
                    " size.",
                )
            )
    if close:
        text = f"Less than two standard errors from the weak model: {join(close)}."
        lines.insert(0, ("apart", text))
    return lines


def _at_chance(entries: list[Entry]) -> bool:
    mean, error, _ = point(entries)
    sampling = [number(e.get("accuracy_se")) for e in entries]
    known = [s for s in sampling if s is not None]
    if not known:
        return False
    return abs(mean - 0.5) < 2 * max(error, float(np.mean(known)) / math.sqrt(len(known)))
