"""Caveats: why the numbers of a result, or of a setting, may not support a claim."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from w2s_jax.metrics import intervals
from w2s_jax.report.results import (
    Entry,
    Result,
    difference,
    join,
    mean_and_error,
    number,
    roles,
    student_difference,
)
from w2s_jax.report.settings import Key, Setting

#: Name of a caveat -> its heading on the page.
CAVEATS = {
    "undefined": "No gap to recover",
    "unstable": "Unstable PGR",
    "indistinguishable": "Not distinguishable",
    "documents": "Too few test documents",
    "chance": "Chance level",
    "seeds": "Few seeds",
    "comparisons": "Multiple comparisons",
}
#: With fewer seeds, the smallest p value of Wilcoxon's signed-rank test is above .05.
_WILCOXON_SEEDS = 6
_ONE_SEED = "One seed only: standard errors cover the test documents, not the training."


def result_caveats(result: Result) -> list[str]:
    """Return the caveats of one result as sentences.

    They cover undefined PGR, students within one standard error of the weak model, a gap too small
    for a stable PGR, accuracies at chance, and the single seed.
    """
    students: dict[str, Entry] = result.get("students") or {}
    lines = list(dict.fromkeys(str(e["pgr_note"]) for e in students.values() if e.get("pgr_note")))
    close = []
    for label, entry in students.items():
        gap, se = student_difference(result, entry)
        if gap is not None and se is not None and (abs(gap) < se or gap == 0):
            close.append(label)
    if close:
        lines.append(_indistinguishable("one standard error", close))
    gap, se = difference(result.get("ceiling") or {}, result.get("weak") or {})
    if gap is not None and se is not None and 0 < gap < 2 * se:
        lines.append(_unstable(gap, se))
    chance = [label for _, label, entry in roles(result) if _at_chance([entry])]
    if chance:
        lines.append(_chance(chance))
    return [*lines, _ONE_SEED]


def setting_caveats(setting: Setting) -> list[tuple[str, str]]:
    """Return (name in `CAVEATS`, sentence) of the caveats of a setting."""
    seeds = list(setting.seeds.values())
    table = setting.entries
    students = [label for role, label in table if role == "student"]
    lines = _gap_caveats(seeds, students) + _difference_caveats(seeds, students)
    chance = [label for (_, label), entries in table.items() if _at_chance(entries)]
    if chance:
        lines.append(("chance", _chance(chance)))
    if len(seeds) == 1:
        lines.append(("seeds", _ONE_SEED))
    elif len(seeds) < _WILCOXON_SEEDS:
        text = (
            f"Only {len(seeds)} seeds: intervals over seeds are wide, and a signed-rank test needs"
            f" at least {_WILCOXON_SEEDS} seeds to reach p < .05."
        )
        lines.append(("seeds", text))
    if len(students) > 1:
        text = (
            f"{len(students)} students were compared, so the best one looks better than it is."
            " Only the corrected p values account for this."
        )
        lines.append(("comparisons", text))
    return lines


def _indistinguishable(bound: str, students: Iterable[str]) -> str:
    return f"Not distinguishable from the weak model (difference below {bound}): {join(students)}."


def _unstable(gap: float, error: float) -> str:
    return (
        f"The ceiling is only {gap:.3f} above the weak model (standard error {error:.3f}). PGR"
        " divides by this gap, so it is unstable."
    )


def _chance(labels: Iterable[str]) -> str:
    return f"Within two standard errors of 0.5 (chance for balanced classes): {join(labels)}."


def _at_chance(entries: Sequence[Entry]) -> bool:
    mean, error, _ = mean_and_error(entries)
    sampling = [number(e.get("accuracy_se")) for e in entries]
    known = [s for s in sampling if s is not None]
    if not known:
        return False
    return abs(mean - 0.5) < 2 * max(error, float(np.mean(known)) / math.sqrt(len(known)))


def _gap_caveats(seeds: list[dict[Key, Entry]], students: list[str]) -> list[tuple[str, str]]:
    """Return the caveats on the gap between weak model and ceiling."""
    lines = []
    notes = [{str(e["pgr_note"]) for e in found.values() if e.get("pgr_note")} for found in seeds]
    if len(seeds) == 1:
        lines += [("undefined", note) for note in sorted(notes[0])]
    elif any(notes):
        text = (
            f"PGR is undefined in {sum(map(bool, notes))} of {len(seeds)} seeds, where the ceiling"
            " does not exceed the weak model."
        )
        lines.append(("undefined", text))
    ends = [(f.get(("ceiling", "ceiling"), {}), f.get(("weak", "weak"), {})) for f in seeds]
    gap, error = _mean_difference([difference(ceiling, weak) for ceiling, weak in ends])
    if students and gap is not None and error is not None and 0 < gap < 2 * error:
        lines.append(("unstable", _unstable(gap, error)))
    return lines


def _mean_difference(
    gaps: Sequence[tuple[float | None, float | None]],
) -> tuple[float | None, float | None]:
    """Return a mean difference and the larger of its standard errors over seeds and documents.

    A few seeds may agree by chance; their mean is no more certain than the documents allow.
    """
    values = [gap for gap, _ in gaps if gap is not None]
    errors = [error for gap, error in gaps if gap is not None and error is not None]
    if not values:
        return None, None
    over_seeds = intervals.mean_over_seeds(values)
    sampling = float(np.mean(errors)) / math.sqrt(len(errors)) if errors else None
    known = [error for error in (over_seeds["se"], sampling) if error is not None]
    return over_seeds["mean"], max(known, default=None)


def _difference_caveats(
    seeds: list[dict[Key, Entry]], students: list[str]
) -> list[tuple[str, str]]:
    """Return the caveats on students whose difference from the weak model is not significant."""
    lines = []
    close = []
    for label in students:
        own = [
            (f["student", label], f["weak", "weak"])
            for f in seeds
            if ("student", label) in f and ("weak", "weak") in f
        ]
        gap, error = _mean_difference([student_difference({"weak": w}, s) for s, w in own])
        if gap is None or error is None or abs(gap) >= 2 * error:
            continue
        close.append(f"{label} ({gap:+.3f} ± {error:.3f})")
        n = number(own[0][0].get("n"))
        if len(own) == 1 and n and abs(gap) * n >= 1:
            # The standard error is proportional to 1 / sqrt(n).
            needed = math.ceil(n * (2 * error / gap) ** 2 / 10) * 10
            text = (
                f"Detecting a difference of {abs(gap):.3f} ({label} and the weak model) would need"
                f" about {needed:,} test documents ({n:.0f} used)."
            )
            lines.append(("documents", text))
    if close:
        lines.insert(0, ("indistinguishable", _indistinguishable("two standard errors", close)))
    return lines
