"""Caveats: why the numbers of a result, or of a setting, may not support a claim."""

import math
from collections.abc import Iterable

from w2s_jax.report.results import (
    REACH,
    Entry,
    Result,
    chance_level,
    class_names,
    gap,
    has_answers,
    join,
    number,
    plural,
    roles,
    same_model,
    show,
    show_interval,
    student_difference,
    undefined_gap,
)
from w2s_jax.report.settings import Key, Setting

#: Name of a caveat -> its heading on the page.
CAVEATS = {
    "same model": "Weak and strong model are the same",
    "features": "Sizes of models that are features",
    "undefined": "No gap to recover",
    "indistinguishable": "Not distinguishable",
    "documents": "Too few test documents",
    "chance": "Chance level",
    "seeds": "Few seeds",
    "predictions": "Predictions not found",
    "comparisons": "Multiple comparisons",
}
#: With fewer seeds, the smallest p value of Wilcoxon's signed-rank test is above .05.
_WILCOXON_SEEDS = 6
_ONE_SEED = "One seed only: standard errors cover the test documents, not the training."


def result_caveats(result: Result) -> list[str]:
    """Return the caveats of one result as sentences.

    They cover equal models, undefined PGR, students that are not distinguishable from the weak
    model, accuracies at chance, and the single seed.
    """
    students: dict[str, Entry] = result.get("students") or {}
    lines = _same_model(result)
    lines += dict.fromkeys(str(e["pgr_note"]) for e in students.values() if e.get("pgr_note"))
    gaps = [gap(result, e) for e in students.values() if not e.get("pgr_note")]
    lines += dict.fromkeys(undefined_gap(found) for found in gaps if found.holds_zero)
    close = [k for k, e in students.items() if student_difference(result, e).holds_zero]
    if close:
        lines.append(_indistinguishable(close))
    level = chance_level(class_names(result))
    chance = [label for _, label, entry in roles(result) if _at_chance(entry, level)]
    if chance:
        lines.append(_chance(chance, level))
    return [*lines, _ONE_SEED]


def setting_caveats(setting: Setting) -> list[tuple[str, str]]:
    """Return (name in `CAVEATS`, sentence) of the caveats of a setting."""
    seeds = list(setting.seeds.values())
    students = list(setting.estimates.gap)
    lines = [("same model", text) for text in _same_model(setting.runs[0].result)]
    lines += [("features", text) for text in _sizes_of_heads(setting.runs[0].result)]
    lines += _gap_caveats(setting, seeds) + _difference_caveats(setting, seeds)
    chance, level = [], chance_level(setting.classes)
    for (role, label), found in setting.estimates.accuracy.items():
        if any(map(has_answers, setting.entries.get((role, label), []))):
            continue
        if found.low is not None and found.high is not None and found.low <= level <= found.high:
            chance.append(label)
    if chance:
        lines.append(("chance", _chance(chance, level)))
    if len(seeds) == 1:
        lines.append(("seeds", _ONE_SEED))
    elif len(seeds) < _WILCOXON_SEEDS:
        text = (
            f"Only {len(seeds)} seeds: intervals over seeds are wide, and a signed-rank test needs"
            f" at least {_WILCOXON_SEEDS} seeds to reach p < .05."
        )
        lines.append(("seeds", text))
    if setting.estimates.missing:
        text = (
            f"The predictions of {plural(len(setting.estimates.missing), 'role')} were not found"
            f" ({join(setting.estimates.missing)}), so the report does not know whether the seeds"
            " share test documents: their intervals are over seeds only, except those of gaps and"
            " of differences from the weak model, which assume that they do."
        )
        lines.append(("predictions", text))
    if len(students) > 1:
        text = (
            f"{len(students)} students were compared, so the best one looks better than it is."
            " Only the corrected p values account for this."
        )
        lines.append(("comparisons", text))
    return lines


def _same_model(result: Result) -> list[str]:
    name = same_model(result)
    if name is None:
        return []
    return [
        f"The weak and the strong model are the same ({name}): a gap between them is due to"
        " their training, not to the model."
    ]


def _sizes_of_heads(result: Result) -> list[str]:
    names = dict.fromkeys(str(entry.get("model")) for _, _, entry in roles(result))
    heads = [name for name in names if name.startswith("features:")]
    if not heads:
        return []
    return [
        f"Of {join(heads)} the parameters are those of the head alone: the size of what computed"
        " the features is not known."
    ]


def _indistinguishable(students: Iterable[str]) -> str:
    return (
        "Not distinguishable from the weak model (the 95% interval of the difference includes 0):"
        f" {join(students)}."
    )


def _chance(labels: Iterable[str], level: float) -> str:
    return f"The 95% interval includes {level:.3g} (chance for balanced classes): {join(labels)}."


def _at_chance(entry: Entry, level: float) -> bool:
    if has_answers(entry):
        return False
    accuracy, se = number(entry.get("accuracy")), number(entry.get("accuracy_se"))
    return accuracy is not None and se is not None and abs(accuracy - level) <= REACH * se


def _gap_caveats(setting: Setting, seeds: list[dict[Key, Entry]]) -> list[tuple[str, str]]:
    """Return the caveats on the gap between weak model and ceiling."""
    lines = []
    notes = [{str(e["pgr_note"]) for e in found.values() if e.get("pgr_note")} for found in seeds]
    if len(seeds) == 1:
        lines += [("undefined", note) for note in sorted(notes[0])]
    elif any(notes):
        text = (
            f"In {sum(map(bool, notes))} of {len(seeds)} seeds the ceiling does not exceed the weak"
            " model."
        )
        lines.append(("undefined", text))
    gaps = [found for found in setting.estimates.gap.values() if found.holds_zero]
    if len(seeds) > 1 or not notes[0]:
        lines += [("undefined", text) for text in dict.fromkeys(map(undefined_gap, gaps))]
    return lines


def _difference_caveats(setting: Setting, seeds: list[dict[Key, Entry]]) -> list[tuple[str, str]]:
    """Return the caveats on students that are not distinguishable from the weak model."""
    lines = []
    close = []
    for label, found in setting.estimates.above_weak.items():
        if found.value is None or not found.holds_zero:
            continue
        close.append(f"{label} ({found.value:+.3f} {show_interval(found)})".replace(" )", ")"))
        n = number(seeds[0].get(("student", label), {}).get("n"))
        if len(seeds) == 1 and n and found.se and abs(found.value) * n >= 1:
            # The standard error is proportional to 1 / sqrt(n).
            needed = math.ceil(n * (REACH * found.se / found.value) ** 2 / 10) * 10
            text = (
                f"Detecting a difference of {show(abs(found.value))} ({label} and the weak model)"
                f" would need about {needed:,} test documents ({n:.0f} used)."
            )
            lines.append(("documents", text))
    if close:
        lines.insert(0, ("indistinguishable", _indistinguishable(close)))
    return lines
