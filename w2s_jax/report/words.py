"""Numbers and sentences about results, shared by the terminal and the page.

A result is the content of result.json. Every field beyond the accuracies may be absent; what is
absent is shown as a dash. Sentences are computed from the numbers, and say so when the numbers
don't carry a claim.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from w2s_jax.metrics.classification import paired_difference_se

DASH = "–"
#: More students than this are not all told of in a summary.
MANY = 6
Result = dict[str, Any]
Entry = dict[str, Any]


def number(value: Any) -> float | None:
    """`value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def show(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, integers as they are, a dash for what is undefined."""
    finite = number(value)
    if finite is None:
        return DASH
    return str(value) if isinstance(value, int) else f"{finite:.{digits}f}"


def show_accuracy(entry: Entry, plus_minus: str = " ± ") -> str:
    """Accuracy and standard error with three decimals: `0.812 ± 0.020`."""
    if number(entry.get("accuracy_se")) is None:
        return show(entry.get("accuracy"))
    return f"{show(entry.get('accuracy'))}{plus_minus}{show(entry['accuracy_se'])}"


def roles(result: Result) -> list[tuple[str, str, Entry]]:
    """(role, label, entry) for the weak model, each student and the ceiling, in this order.

    The role is `weak`, `student` or `ceiling`; the label is the loss's for students. A student may
    have a ceiling of its own, trained as it was: `ceiling of <label>`.
    """
    rows: list[tuple[str, str, Entry]] = []
    if result.get("weak"):
        rows.append(("weak", "weak", result["weak"]))
    for label, entry in (result.get("students") or {}).items():
        rows.append(("student", str(label), entry))
    if result.get("ceiling"):
        rows.append(("ceiling", "ceiling", result["ceiling"]))
    for label, entry in (result.get("students") or {}).items():
        if entry.get("ceiling"):
            rows.append(("ceiling", f"ceiling of {label}", entry["ceiling"]))
    return rows


def join(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    items = list(names)
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def difference(
    left: Entry, right: Entry, agreement: float | None = None
) -> tuple[float | None, float | None]:
    """Accuracy of `left` minus that of `right`, and the standard error of this difference.

    With `agreement` (between the two models' predictions on the same documents) the error is the
    paired one; otherwise the two errors are added in quadrature, which is too cautious for models
    measured on the same documents. Either is None where it can't be computed.
    """
    a, b = number(left.get("accuracy")), number(right.get("accuracy"))
    if a is None or b is None:
        return None, None
    n = number(left.get("n"))
    if agreement is not None and n is not None and n == number(right.get("n")):
        paired = paired_difference_se(a - b, agreement, int(n))
        if paired is not None:
            return a - b, paired
    se_a, se_b = number(left.get("accuracy_se")), number(right.get("accuracy_se"))
    return a - b, None if se_a is None or se_b is None else math.hypot(se_a, se_b)


def student_difference(result: Result, entry: Entry) -> tuple[float | None, float | None]:
    """A student's accuracy minus the weak model's, and the standard error of this difference."""
    # Agreement is with the supervisor, which may be another than the weak model.
    agreement = None if entry.get("supervisor") else number(entry.get("agreement"))
    return difference(entry, result.get("weak") or {}, agreement)


def strong_model(result: Result) -> str:
    """The model of the students and the ceiling."""
    entries = [result.get("ceiling") or {}, *(result.get("students") or {}).values()]
    return next((str(e["model"]) for e in entries if e.get("model")), "the strong model")


def setting(result: Result) -> str:
    """One line on what a run compares: task, protocol, weak and strong model."""
    weak = (result.get("weak") or {}).get("model", "the weak model")
    return (
        f"{result.get('task', 'unnamed task')}, {result.get('protocol', 'unnamed')} protocol,"
        f" {weak} → {strong_model(result)}"
    )


def caveats(result: Result) -> list[str]:
    """What a reader must not conclude from this one result: zero or more sentences.

    Undefined PGR; students within one standard error of the weak model; a gap to the ceiling too
    small for PGR to mean much; accuracies at chance; a single seed.
    """
    lines: list[str] = []
    students: dict[str, Entry] = result.get("students") or {}
    notes = {str(e["pgr_note"]): None for e in students.values() if e.get("pgr_note")}
    lines += list(notes)
    close = []
    for label, entry in students.items():
        gap, se = student_difference(result, entry)
        if gap is not None and se is not None and (abs(gap) < se or gap == 0):
            close.append(label)
    if close:
        lines.append(
            "Less than one standard error from the weak model, so not told apart from it:"
            f" {join(close)}."
        )
    gap, se = difference(result.get("ceiling") or {}, result.get("weak") or {})
    if gap is not None and se is not None and 0 < gap < 2 * se:
        lines.append(
            f"The ceiling is only {gap:.3f} above the weak model (standard error {se:.3f}):"
            " PGR divides by this gap and is unstable here."
        )
    chance = [label for _, label, entry in roles(result) if _at_chance(entry)]
    if chance:
        lines.append(
            "Within two standard errors of 0.5, which is chance on balanced classes:"
            f" {join(chance)}."
        )
    lines.append("One seed only: the standard errors cover the test documents, not the training.")
    return lines


def _at_chance(entry: Entry) -> bool:
    accuracy, se = number(entry.get("accuracy")), number(entry.get("accuracy_se"))
    return accuracy is not None and se is not None and abs(accuracy - 0.5) < 2 * se


def _student_sentence(result: Result, label: str, entry: Entry) -> str:
    if number(entry.get("accuracy")) is None:
        return f"The {label} student has no accuracy recorded."
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
            "less than one standard error of the difference, so they can't be told apart"
            if ratio < 1
            else f"{ratio:.1f} standard errors of the difference"
            + (", which is weak evidence" if ratio < 2 else "")
        )
        sentence += f" ({verdict})"
    pgr = number(entry.get("pgr"))
    if pgr is not None:
        sentence += f"; it recovers {pgr:.3f} of the gap to the ceiling (PGR)"
    return sentence + "."


def _named(students: Iterable[str]) -> str:
    """`2 students: xent and confidence`; of many just how many."""
    names = list(students)
    count = plural(len(names), "student")
    return count if len(names) > MANY else f"{count}: {join(names) or 'none'}"


def _worth_a_sentence(accuracies: Mapping[str, Any]) -> list[str]:
    """Students that a summary says more of: all, or of many the first, the best and the worst."""
    labels = list(accuracies)
    if len(labels) <= MANY:
        return labels
    scored = {k: v for k in labels if (v := number(accuracies[k])) is not None}
    ranked = sorted(scored, key=lambda k: -scored[k])
    wanted = {labels[0], *ranked[:3], *ranked[-1:]}
    return [labels[0], *(k for k in ranked if k in wanted and k != labels[0])]


def summary(result: Result) -> str:
    """A paragraph on one run: what was trained on what, who beat whom, and what PGR says."""
    weak, ceiling = result.get("weak") or {}, result.get("ceiling") or {}
    students: dict[str, Entry] = result.get("students") or {}
    strong = strong_model(result)
    opening = (
        f"On the task {result.get('task', 'unnamed')}, the weak model"
        f" {weak.get('model', '(unnamed)')} was finetuned on ground truth and then labelled further"
        f" documents. The strong model {strong} was finetuned on those labels alone"
        f" ({_named(students)}),"
        " and on ground truth for the ceiling."
    )
    parts = [opening]
    n = f" on {show(weak['n'])} test documents" if weak.get("n") else ""
    parts.append(
        f"The weak model's accuracy is {show_accuracy(weak)}{n}, the ceiling's"
        f" {show_accuracy(ceiling)}."
    )
    chosen = _worth_a_sentence({k: e.get("accuracy") for k, e in students.items()})
    if len(chosen) < len(students):
        gaps = [student_difference(result, entry)[0] for entry in students.values()]
        above = sum(gap is not None and gap > 0 for gap in gaps)
        parts.append(
            f"{above} of {len(students)} students are above the weak model. The first one, the best"
            " and the worst of them:"
        )
    parts += [_student_sentence(result, label, students[label]) for label in chosen]
    if any(e.get("pgr_note") for e in students.values()):
        parts.append("PGR is undefined, since the ceiling does not exceed the weak model.")
    scored = {k: number(e.get("accuracy")) for k, e in students.items()}
    best = max((v for v in scored.values() if v is not None), default=None)
    if best is not None and len(students) > 1:
        leaders = [k for k, v in scored.items() if v == best]
        parts.append(f"The best student by raw accuracy is {join(leaders)}.")
    return " ".join(parts)


def median(values: Iterable[Any]) -> float | None:
    """The median of the values that are finite numbers; None when there are none."""
    finite = [v for v in map(number, values) if v is not None]
    return statistics.median(finite) if finite else None


def group_summary(results: Sequence[Result]) -> str:
    """A paragraph on runs that differ only in their seeds, with medians and counts."""
    if len(results) == 1:
        return summary(results[0])
    runs = plural(len(results), "run")
    weak = median((r.get("weak") or {}).get("accuracy") for r in results)
    ceiling = median((r.get("ceiling") or {}).get("accuracy") for r in results)
    opening = (
        f"{runs} that differ only in their seeds. The median accuracy of the weak model is"
        f" {show(weak)}, that of the ceiling {show(ceiling)}."
    )
    parts = [opening]
    labels = dict.fromkeys(k for r in results for k in (r.get("students") or {}))
    medians = {
        k: median(((r.get("students") or {}).get(k) or {}).get("accuracy") for r in results)
        for k in labels
    }
    chosen = _worth_a_sentence(medians)
    if len(chosen) < len(labels):
        parts.append(
            f"Of {len(labels)} students the first one, the best and the worst by median accuracy:"
        )
    for label in chosen:
        entries = [(r, (r.get("students") or {}).get(label)) for r in results]
        present = [(r, e) for r, e in entries if e and number(e.get("accuracy")) is not None]
        if not present:
            continue
        gaps = [student_difference(r, e) for r, e in present]
        above = sum(gap is not None and gap > 0 for gap, _ in gaps)
        clear = sum(g is not None and s is not None and g > 0 and g >= s for g, s in gaps)
        sentence = (
            f"The {label} student: median {show(median(e.get('accuracy') for _, e in present))},"
            f" above the weak model in {above} of {len(present)} runs (by at least one standard"
            f" error in {clear})"
        )
        defined = sum(number(e.get("pgr")) is not None for _, e in present)
        if defined:
            sentence += f"; median PGR {show(median(e.get('pgr') for _, e in present))}"
        if defined < len(present):
            sentence += f"; PGR is undefined or absent in {len(present) - defined} of them"
        parts.append(sentence + ".")
    if len(results) < 5:
        parts.append("A median of so few runs is uncertain itself: look at the single runs too.")
    return " ".join(parts)
