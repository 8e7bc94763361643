"""Values of a result.json and their formatting, shared by the terminal and the page.

Every field except the accuracies may be missing; a missing value is shown as a dash.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from w2s_jax.metrics.classification import paired_difference_se

DASH = "–"
#: With more students than this, figures and summaries show only some of them.
MAX_STUDENTS = 6
#: The content of a result.json.
Result = dict[str, Any]
#: The part of a result on one model: weak model, student or ceiling.
Entry = dict[str, Any]
#: (role, label) of an entry, as in `roles`.
Key = tuple[str, str]
#: Coverage of all intervals of a report.
LEVEL = 0.95
#: Standard errors from the middle of a normal interval to its ends.
REACH = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval.

    Attributes:
        value: None if it is undefined or missing.
        low: end of the interval, None if it is unknown.
        high: end of the interval, None if it is unknown.
        se: standard error, None if it is unknown.
        n: number of seeds.
        over: what the interval is over: `documents`, `seeds` or `seeds and documents`.
        p: p value of the hypothesis that the value is 0, if tested.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    se: float | None = None
    n: int = 0
    over: str = ""
    p: float | None = None

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is within the interval.

        This is the one threshold of a report: behind differences that are "not distinguishable",
        and gaps that leave PGR undefined.
        """
        if self.low is None or self.high is None:
            return self.value == 0
        return self.low <= 0 <= self.high

    @property
    def not_above_zero(self) -> bool:
        """Whether 0 is within the interval, or above it."""
        return self.holds_zero or (self.value is not None and self.value <= 0)


def normal_estimate(value: float | None, se: float | None, **more: Any) -> Estimate:
    """Return an estimate with a normal interval; without interval if `se` is None."""
    if value is None or se is None:
        return Estimate(value, **more)
    return Estimate(value, value - REACH * se, value + REACH * se, se, **more)


def number(value: Any) -> float | None:
    """Return `value` as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def show(value: Any, digits: int = 3) -> str:
    """Format a number with `digits` decimals, an integer as it is, anything else as a dash."""
    finite = number(value)
    if finite is None:
        return DASH
    return str(value) if isinstance(value, int) else f"{finite:.{digits}f}"


def show_accuracy(entry: Entry) -> str:
    """Format accuracy and standard error: `0.812 ± 0.020`."""
    if number(entry.get("accuracy_se")) is None:
        return show(entry.get("accuracy"))
    return f"{show(entry.get('accuracy'))} ± {show(entry['accuracy_se'])}"


def join(names: Iterable[str]) -> str:
    """Join names in prose: `a`, `a and b`, `a, b and c`."""
    items = list(names)
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def plural(count: int, noun: str) -> str:
    """Format a count: `1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def first_of(labels: Sequence[str]) -> str:
    """Return `first 6 of 8 students` where a figure does not show all; else an empty string."""
    count = len(labels)
    return f"first {MAX_STUDENTS} of {count} students" if count > MAX_STUDENTS else ""


def roles(result: Result) -> list[tuple[str, str, Entry]]:
    """Return (role, label, entry) of the weak model, each student and the ceiling, in this order.

    The role is `weak`, `student` or `ceiling`. The label of a student is its key in the result. A
    student may have its own ceiling, trained with the same method: `ceiling of <label>`.
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


def has_answers(entry: Entry) -> bool:
    """Return whether an entry is of a task that asks for answers, not of one with classes.

    Answers have no probabilities: their `ece` is null, which it never is for classes.
    """
    return "ece" in entry and entry["ece"] is None


def is_multiclass(entry: Entry) -> bool:
    """Return whether an entry is of a task with more than two classes."""
    return "macro_f1" in entry


def class_names(result: Result) -> tuple[str, ...]:
    """Return the names of a task's classes if they are more than two; else an empty tuple."""
    return tuple(map(str, result.get("classes") or ()))


def chance_level(classes: Sequence[str]) -> float:
    """Return the accuracy of guessing among balanced classes (`class_names`)."""
    return 1 / (len(classes) or 2)


def strong_model(result: Result) -> str:
    """Return the model of the students and the ceiling."""
    entries = [result.get("ceiling") or {}, *(result.get("students") or {}).values()]
    return next((str(e["model"]) for e in entries if e.get("model")), "the strong model")


def setting_title(result: Result) -> str:
    """Describe a run in one line: task, protocol, weak and strong model."""
    weak = (result.get("weak") or {}).get("model", "the weak model")
    return (
        f"{result.get('task', 'unnamed task')}, {result.get('protocol', 'unnamed')} protocol,"
        f" {weak} → {strong_model(result)}"
    )


def median(values: Iterable[Any]) -> float | None:
    """Return the median of the finite numbers in `values`, or None if there are none."""
    finite = [v for v in map(number, values) if v is not None]
    return statistics.median(finite) if finite else None


def mean_and_error(entries: Sequence[Entry], field: str = "accuracy") -> tuple[float, float, int]:
    """Return mean, standard error and number of the entries' values of a field.

    Args:
        entries: one per seed; those without the field are ignored.
        field: the field's name.

    Returns:
        The mean (nan without values); its standard error; and the number of values. The error is
        that of their setting (`mean_se`), over seeds and documents; without it, over seeds; with
        fewer than two values, over documents, `<field>_se` (0 if missing).
    """
    values = [v for v in (number(e.get(field)) for e in entries) if v is not None]
    if len(values) > 1:
        known = [number((e.get("mean_se") or {}).get(field)) for e in entries]
        if None not in known:
            # Settings may share ceilings: their errors are about the same.
            return float(np.mean(values)), max(k for k in known if k is not None), len(values)
        deviation = float(np.std(values, ddof=1))
        return float(np.mean(values)), deviation / math.sqrt(len(values)), len(values)
    error = number(entries[0].get(f"{field}_se")) if entries else None
    return (values[0] if values else math.nan), error or 0.0, len(values)


def difference(
    left: Entry, right: Entry, agreement: float | None = None
) -> tuple[float | None, float | None]:
    """Return the accuracy of `left` minus that of `right`, and its standard error.

    Args:
        left: an entry of a result.
        right: another one.
        agreement: the share of documents for which both models are right or both are wrong (for
            two classes, predict the same one). If given, the standard error is the paired one.
            Otherwise the two errors are added in quadrature, which is conservative for models
            evaluated on the same documents.

    Returns:
        The difference and its standard error; each is None if it cannot be computed.
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


def student_difference(result: Result, entry: Entry) -> Estimate:
    """Return a student's accuracy minus the weak model's, with its interval over documents."""
    weak = result.get("weak") or {}
    # `agreement` refers to the supervisor, which is not always the weak model.
    agreement = None if entry.get("supervisor") else number(entry.get("agreement"))
    if agreement is not None and (has_answers(entry) or is_multiclass(entry)):
        agreement = _equally_right(entry, weak)
    return normal_estimate(*difference(entry, weak, agreement), n=1, over="documents")


def _equally_right(entry: Entry, weak: Entry) -> float | None:
    """Return the share of documents where a student is right if its supervisor is, and only then.

    Two different predictions of two classes are never both wrong, but others may be: agreement is
    too small a share. Where the supervisor is right, another class is wrong, and another answer is
    taken to be wrong; if a task accepts several answers, the share is larger than this.
    """
    own, other = number(entry.get("accuracy")), number(weak.get("accuracy"))
    if own is None or other is None:
        return None
    only_weak = other * (1 - (number(entry.get("agreement_when_correct")) or 0.0))
    return 1 - (2 * only_weak + own - other)


def gap(result: Result, entry: Entry) -> Estimate:
    """Return the gap that a student could recover, with its interval over documents.

    The interval is the paired one of `pgr_interval`. Results of earlier versions lack it: the
    standard errors of both accuracies are added in quadrature, which is conservative.
    """
    ceiling = entry.get("ceiling") or result.get("ceiling") or {}
    value, se = difference(ceiling, result.get("weak") or {})
    low, high = number(entry.get("gap_low")), number(entry.get("gap_high"))
    if value is None or low is None or high is None:
        return normal_estimate(value, se, n=1, over="documents")
    return Estimate(value, low, high, se, n=1, over="documents")


def lacks_ceiling(result: Result, entry: Entry) -> bool:
    """Return whether a student has no ceiling, because the documents for it have no labels."""
    ceiling = entry.get("ceiling") or result.get("ceiling")
    return not ceiling and bool(entry.get("pgr_note"))


def defined_pgr(result: Result, entry: Entry) -> float | None:
    """Return a student's PGR, or None where it is missing or the gap's interval holds 0."""
    return None if gap(result, entry).not_above_zero else number(entry.get("pgr"))


def show_pgr(result: Result, entry: Entry) -> str:
    """Format a student's PGR: `0.153`, `undefined`, or a dash if the result has none."""
    if lacks_ceiling(result, entry):
        return DASH
    undefined = entry.get("pgr_note") or gap(result, entry).not_above_zero
    return "undefined" if undefined else show(entry.get("pgr"))


def undefined_gap(found: Estimate) -> str:
    """Return the sentence on a gap whose interval holds 0."""
    return (
        f"PGR is undefined: the gap between ceiling and weak model is {show(found.value)}, and its"
        f" 95% interval {show_interval(found)} includes 0."
    )


def show_interval(found: Estimate) -> str:
    """Format an interval: `[0.012 to 0.034]`; an empty string if it is unknown."""
    if found.low is None or found.high is None:
        return ""
    return f"[{show(found.low)} to {show(found.high)}]"


def same_model(result: Result) -> str | None:
    """Return the name of the model that is both weak and strong, or None."""
    weak = (result.get("weak") or {}).get("model")
    return str(weak) if weak and weak == strong_model(result) else None
