"""Estimates of a setting: what its seeds and test documents say, and how certain that is.

Where the seeds share test documents, and all predictions were found, intervals are over seeds and
documents (`metrics.crossed`). Where each seed has documents of its own, those over seeds cover both
(`metrics.intervals`). Where predictions are missing, nobody knows: the intervals of differences
from the weak model and of gaps assume that the documents are shared, all others are over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from w2s_jax.metrics import crossed, intervals
from w2s_jax.metrics.answers import same_answers
from w2s_jax.metrics.classification import class_count, predicted_classes
from w2s_jax.report.results import (
    LEVEL,
    Entry,
    Estimate,
    Key,
    defined_pgr,
    gap,
    normal_estimate,
    number,
    student_difference,
)
from w2s_jax.report.runs import Predictions

#: (role, label) -> entry of one seed.
Seed = dict[Key, Entry]

WEAK: Key = ("weak", "weak")
AGREEMENTS = ("agreement", "agreement_when_correct", "agreement_when_wrong")


@dataclass
class Estimates:
    """Estimates of a setting, by label of the student where they are about one.

    Attributes:
        crossed: whether intervals are over seeds and documents.
        missing: labels of the roles whose predictions are needed for that and were not found.
        accuracy: (role, label) -> mean accuracy.
        errors: (role, label) -> field -> standard error of its mean.
        above_weak: the student minus the weak model.
        gap: its ceiling minus the weak model.
        pgr: PGR of the mean accuracies; its value is None where the gap is not above 0.
        median_pgr: the median of the seeds' defined PGRs; as `pgr`.
        difference: the student minus the reference, with its p value.
    """

    crossed: bool = False
    missing: list[str] = field(default_factory=list)
    accuracy: dict[Key, Estimate] = field(default_factory=dict)
    errors: dict[Key, dict[str, float]] = field(default_factory=dict)
    above_weak: dict[str, Estimate] = field(default_factory=dict)
    gap: dict[str, Estimate] = field(default_factory=dict)
    pgr: dict[str, Estimate] = field(default_factory=dict)
    median_pgr: dict[str, Estimate] = field(default_factory=dict)
    difference: dict[str, Estimate] = field(default_factory=dict)


def estimate(
    seeds: Sequence[Seed], predictions: Mapping[str, Predictions], reference: str | None
) -> Estimates:
    """Return the estimates of a setting.

    Args:
        seeds: the entries of each seed.
        predictions: phase -> its predictions on the test documents.
        reference: the label of the student that others are compared with.
    """
    keys = list(dict.fromkeys(k for found in seeds for k in found))
    documents = _Documents.of(seeds, predictions) if len(seeds) > 1 else None
    out = Estimates(crossed=documents is not None and documents.shared)
    if documents is not None:
        out.missing = [label for role, label in keys if (role, label) in documents.missing]
    draws = documents if out.crossed else None
    for key in keys:
        own = [s for s in seeds if _accuracy(s.get(key)) is not None]
        out.accuracy[key] = _mean_accuracy(own, key, draws)
        if draws is not None and len(own) > 1:
            out.errors[key] = draws.errors(own, key) | {"accuracy": out.accuracy[key].se or 0.0}
    for label in (label for role, label in keys if role == "student"):
        key = ("student", label)
        ceiling = ("ceiling", f"ceiling of {label}")
        ceiling = ceiling if ceiling in keys else ("ceiling", "ceiling")
        unknown = documents is not None and bool(documents.missing & {WEAK, key, ceiling})
        both = _seeds_with(seeds, WEAK, key)
        out.above_weak[label] = _difference(both, key, WEAK, draws, unknown)
        both = _seeds_with(seeds, WEAK, key, ceiling)
        out.gap[label] = _difference(both, ceiling, WEAK, draws, unknown)
        out.pgr[label] = _pgr_of_means(both, (WEAK, key, ceiling), draws, out.gap[label])
        out.median_pgr[label] = _median_pgr(both, (WEAK, key, ceiling), draws, out.gap[label])
        if reference is not None and label != reference:
            both = _seeds_with(seeds, key, ("student", reference))
            if len(both) > 1:
                out.difference[label] = _difference(both, key, ("student", reference), draws, False)
    return out


def _accuracy(entry: Entry | None) -> float | None:
    return number((entry or {}).get("accuracy"))


def _seeds_with(seeds: Sequence[Seed], *keys: Key) -> list[Seed]:
    return [s for s in seeds if all(_accuracy(s.get(key)) is not None for key in keys)]


def _values(seeds: Sequence[Seed], *keys: Key) -> np.ndarray:
    return np.array([[_accuracy(s[key]) for key in keys] for s in seeds], np.float64)


def _of_crossed(found: dict[str, Any]) -> Estimate:
    return Estimate(
        found["value"], found["low"], found["high"], found["se"], found["n"],
        "seeds and documents", found["p"],
    )  # fmt: skip


def _mean_accuracy(seeds: Sequence[Seed], key: Key, draws: "_Documents | None") -> Estimate:
    if len(seeds) == 1:
        entry = seeds[0][key]
        accuracy, n = entry["accuracy"], number(entry.get("n"))
        low, high = intervals.wilson_interval(accuracy, n, LEVEL) if n else (None, None)
        return Estimate(accuracy, low, high, number(entry.get("accuracy_se")), 1, "documents")
    drawn = None if draws is None else draws.accuracies(seeds, key)
    if drawn is not None:
        found = crossed.crossed_interval(_values(seeds, key), drawn, crossed.mean_of_first)
        return _of_crossed(found)
    values = [float(v) for v in _values(seeds, key).ravel()]
    found = intervals.mean_over_seeds(values, LEVEL)
    low, high = found["low"], found["high"]
    if low is not None:
        low, high = max(low, 0.0), min(high, 1.0)
    return Estimate(found["mean"], low, high, found["se"], len(seeds), "seeds")


def _difference(
    seeds: Sequence[Seed], first: Key, second: Key, draws: "_Documents | None", unknown: bool
) -> Estimate:
    """Return the mean difference of two accuracies.

    Args:
        seeds: those that have both.
        first: one of the two.
        second: the other, which is subtracted.
        draws: resampled documents, None if the seeds do not share them.
        unknown: whether the seeds may share documents that were not found.
    """
    if not seeds:
        return Estimate()
    if len(seeds) == 1:
        return _over_documents(seeds[0], first, second)
    values = _values(seeds, first, second)
    drawn = None if draws is None else draws.accuracies(seeds, first, second)
    if drawn is not None:
        return _of_crossed(crossed.crossed_interval(values, drawn, crossed.mean_difference))
    paired = intervals.paired_over_seeds(values[:, 0].tolist(), values[:, 1].tolist(), LEVEL)
    mean, low, high = paired["difference"], paired["low"], paired["high"]
    se = intervals.mean_over_seeds((values[:, 0] - values[:, 1]).tolist(), LEVEL)["se"]
    if unknown:
        known = [_over_documents(s, first, second).se for s in seeds]
        document_errors = [e for e in known if e is not None]
        if document_errors:
            wider = normal_estimate(mean, math.hypot(se, float(np.mean(document_errors))))
            low, high, se = min(low, wider.low or low), max(high, wider.high or high), wider.se
    return Estimate(mean, low, high, se, len(seeds), "seeds", paired["t_p"])


def _over_documents(found: Seed, first: Key, second: Key) -> Estimate:
    """Return the difference of two accuracies of one seed."""
    result = {"weak": found.get(WEAK), "ceiling": found.get(("ceiling", "ceiling"))}
    if first[0] == "student":
        return student_difference(result | {"weak": found[second]}, found[first])
    students = [e for (role, _), e in found.items() if role == "student"]
    if first == ("ceiling", "ceiling"):
        own: Entry = next((e for e in students if not e.get("ceiling")), {})
    else:
        own = found["student", first[1].removeprefix("ceiling of ")]
    return gap(result, own)


def _pgr_of_means(
    seeds: Sequence[Seed], keys: tuple[Key, Key, Key], draws: "_Documents | None", over: Estimate
) -> Estimate:
    if not seeds or over.not_above_zero:
        return Estimate(n=len(seeds))
    if len(seeds) == 1:
        student = seeds[0][keys[1]]
        ends = number(student.get("pgr_low")), number(student.get("pgr_high"))
        rows = intervals.pgr_over_seeds(_rows(seeds, keys), resamples=1)
        return Estimate(rows["of_means"]["pgr"], *ends, n=1, over="documents")
    return _pgr(seeds, keys, draws, crossed.pgr_of_means, "of_means")


def _median_pgr(
    seeds: Sequence[Seed], keys: tuple[Key, Key, Key], draws: "_Documents | None", over: Estimate
) -> Estimate:
    """Return the median over the seeds whose own PGR is defined."""
    result = {s: {"weak": found[WEAK], "ceiling": found[keys[2]]} for s, found in enumerate(seeds)}
    defined = [
        found for s, found in enumerate(seeds) if defined_pgr(result[s], found[keys[1]]) is not None
    ]
    if over.not_above_zero or not defined:
        return Estimate()
    return _pgr(defined, keys, draws, crossed.median_of_pgrs, "per_seed")


def _pgr(
    seeds: Sequence[Seed],
    keys: tuple[Key, Key, Key],
    draws: "_Documents | None",
    statistic: crossed.Statistic,
    name: str,
) -> Estimate:
    drawn = None if draws is None or len(seeds) < 2 else draws.accuracies(seeds, *keys)
    if drawn is not None:
        return _of_crossed(crossed.crossed_interval(_values(seeds, *keys), drawn, statistic))
    found = intervals.pgr_over_seeds(_rows(seeds, keys), level=LEVEL)[name]
    return Estimate(found["pgr"], found["low"], found["high"], n=found["n"], over="seeds")


def _rows(seeds: Sequence[Seed], keys: tuple[Key, Key, Key]) -> list[dict[str, float]]:
    names = ("weak", "student", "ceiling")
    return [dict(zip(names, row, strict=True)) for row in _values(seeds, *keys).tolist()]


# --- resampled documents -------------------------------------------------------------------------


@dataclass
class _Documents:
    """Correctness and agreement on the test documents of each seed, and sums on resampled ones.

    Attributes:
        seeds: position of each seed, by identity.
        shared: whether seeds share documents.
        missing: (role, label) of those whose predictions were not found in every seed.
        columns: name -> index; (role, label), or (field, label), or `all`.
        sums: [K, R, S], of the columns over resampled documents; empty if none are shared.
    """

    seeds: dict[int, int]
    shared: bool
    missing: set[Key]
    columns: dict[Any, int]
    sums: np.ndarray

    @classmethod
    def of(cls, seeds: Sequence[Seed], predictions: Mapping[str, Predictions]) -> "_Documents":
        """Collect the documents, and resample them if seeds share any."""
        tables: list[dict[Any, np.ndarray]] = []
        ids: list[np.ndarray] = []
        missing: set[Key] = set()
        for seed in seeds:
            found = {k: predictions.get(str(e.get("phase"))) for k, e in seed.items()}
            known = {k: p for k, p in found.items() if p is not None}
            first = next(iter(known.values()), None)
            if first is not None:
                known = {k: p for k, p in known.items() if np.array_equal(p["id"], first["id"])}
            missing |= {k for k in seed if k not in known and _accuracy(seed[k]) is not None}
            tables.append(_columns(seed, known, predictions))
            ids.append(np.zeros(0, np.uint64) if first is None else np.asarray(first["id"]))
        columns = {n: i for i, n in enumerate(dict.fromkeys(n for t in tables for n in t))}
        shared = crossed.share_documents(ids)
        sums = np.zeros((0, 0, 0))
        if shared:
            arrays = [
                np.stack([t.get(n, np.zeros(i.size)) for n in columns], axis=1)
                for t, i in zip(tables, ids, strict=True)
            ]
            sums = crossed.resample_documents(ids, arrays)
            sums = np.ascontiguousarray(np.moveaxis(sums, -1, 0))
        return cls({id(s): i for i, s in enumerate(seeds)}, shared, missing, columns, sums)

    def accuracies(self, seeds: Sequence[Seed], *keys: Key) -> np.ndarray | None:
        """Return accuracies on resampled documents [R, S, K]; None if predictions are missing."""
        if self.missing & set(keys):
            return None
        return self._ratios(seeds, [(key, "all") for key in keys])

    def _ratios(self, seeds: Sequence[Seed], columns: Sequence[tuple[Any, Any]]) -> np.ndarray:
        """Return the sums of columns over those of others on resampled documents, [R, S, K]."""
        rows = [self.seeds[id(s)] for s in seeds]
        pairs = [(self.columns[a], self.columns[b]) for a, b in columns]
        with np.errstate(invalid="ignore", divide="ignore"):
            ratios = [self.sums[a][:, rows] / self.sums[b][:, rows] for a, b in pairs]
        return np.stack(ratios, axis=-1)

    def errors(self, seeds: Sequence[Seed], key: Key) -> dict[str, float]:
        """Return the standard errors of the means of a student's agreements."""
        out: dict[str, float] = {}
        for name in AGREEMENTS:
            own = [s for s in seeds if number(s[key].get(name)) is not None]
            over, under = ("over", name, key), ("under", name, key)
            if len(own) < 2 or not {over, under} <= self.columns.keys():
                continue
            values = np.array([[s[key][name]] for s in own], np.float64)
            drawn = self._ratios(own, [(over, under)])
            found = crossed.crossed_interval(values, drawn, crossed.mean_of_first)
            if found["se"] is not None:
                out[name] = found["se"]
        return out


def _columns(
    seed: Seed, known: Mapping[Key, Predictions], predictions: Mapping[str, Predictions]
) -> dict[Any, np.ndarray]:
    """Return the columns of one seed: what is counted on each of its documents."""
    out: dict[Any, np.ndarray] = {}
    for key, own in known.items():
        truth_N, predicted_N = own["ground_truth"], predicted_classes(own["p"])
        judged_N = np.isin(truth_N, np.arange(class_count(own["p"])))
        out.setdefault("all", judged_N)
        out[key] = (predicted_N == truth_N) & judged_N
        if key[0] != "student":
            continue
        supervisor = (seed[key].get("supervisor") or seed.get(WEAK, {})).get("phase")
        other = predictions.get(str(supervisor))
        if other is None or not np.array_equal(other["id"], own["id"]):
            continue
        if "answer" in own:
            same_N = same_answers(own["answer"].tolist(), other["answer"].tolist())
        else:
            same_N = predicted_N == predicted_classes(other["p"])
        right_N = predicted_classes(other["p"]) == truth_N
        subsets = (judged_N, judged_N & right_N, judged_N & ~right_N)
        for name, subset_N in zip(AGREEMENTS, subsets, strict=True):
            out["over", name, key] = same_N & subset_N
            out["under", name, key] = subset_N
    return out
