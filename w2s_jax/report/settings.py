"""Settings: runs that differ only in their seeds, and the comparison of their students."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from w2s_jax.config import flatten
from w2s_jax.metrics import intervals
from w2s_jax.report.results import Entry, number, roles, setting_title, strong_model
from w2s_jax.report.runs import FinishedRun, Predictions

# Fields that cannot change a result: names, paths, logging, layout.
_IGNORED = ("name", "mesh", "log", "checkpoint", "losses", "task.data_dir", "store")
#: (role, label) of an entry, as in `results.roles`.
Key = tuple[str, str]


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ only in their seeds.

    Attributes:
        title: task, protocol, models and `variant`; unique within a report.
        variant: the fields in which it differs from other settings of the same task and models.
        runs: its runs.
    """

    title: str
    variant: str
    runs: list[FinishedRun]

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.runs[0].result.get("task", "unnamed task"))

    @property
    def protocol(self) -> str:
        """The protocol's name."""
        return str(self.runs[0].result.get("protocol", "unnamed"))

    @property
    def weak(self) -> str:
        """The weak model's name."""
        return str((self.runs[0].result.get("weak") or {}).get("model", "the weak model"))

    @property
    def strong(self) -> str:
        """The strong model's name."""
        return strong_model(self.runs[0].result)

    @cached_property
    def seeds(self) -> dict[str, dict[Key, Entry]]:
        """Seeds (see `seeds_of`) -> (role, label) -> entry.

        Runs that add losses to the same seeds share a weak model and a ceiling, which appear once.
        """
        table: dict[str, dict[Key, Entry]] = {}
        for run in self.runs:
            for role, label, entry in roles(run.result):
                table.setdefault(seeds_of(run), {}).setdefault((role, label), entry)
        return table

    @cached_property
    def entries(self) -> dict[Key, list[Entry]]:
        """(role, label) -> one entry per seed, those with an accuracy; ceilings last."""
        table: dict[Key, list[Entry]] = {}
        for wanted in ("weak", "student", "ceiling"):
            for found in self.seeds.values():
                for (role, label), entry in found.items():
                    if role == wanted and number(entry.get("accuracy")) is not None:
                        table.setdefault((role, label), []).append(entry)
        return table

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Phase -> its predictions on the test documents."""
        return {phase: p for run in self.runs for phase, p in run.predictions.items()}


def student_labels(settings: Iterable[Setting]) -> list[str]:
    """Return the labels of all students in order of appearance, which determines their colours."""
    return list(dict.fromkeys(k[1] for s in settings for k in s.entries if k[0] == "student"))


def seeds_of(run: FinishedRun) -> str:
    """Return all seeds of a run as JSON."""
    seeds = {k: v for k, v in flatten(run.config).items() if _is_seed(k) and v is not None}
    return json.dumps(seeds or run.result.get("seed"), sort_keys=True)


def _is_seed(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last == "seed" or last.endswith("_seed")


def _is_compared(name: str) -> bool:
    if any(name == ignored or name.startswith(f"{ignored}.") for ignored in _IGNORED):
        return False
    return not _is_seed(name) and name.rsplit(".", 1)[-1] not in ("microbatch_size", "remat")


def settings_of(runs: Iterable[FinishedRun]) -> list[Setting]:
    """Group runs into settings: runs that differ only in fields named `seed` or `*_seed`.

    Fields that cannot change a result (name, mesh, log, checkpoint, data folder) are not compared.
    """
    members: dict[str, list[FinishedRun]] = {}
    fields: dict[str, dict[str, str]] = {}
    for run in runs:
        flat = {k: json.dumps(v, sort_keys=True) for k, v in flatten(run.config).items()}
        flat = {k: v for k, v in flat.items() if _is_compared(k)}
        key = json.dumps([setting_title(run.result), flat], sort_keys=True)
        members.setdefault(key, []).append(run)
        fields[key] = flat
    titles = {key: setting_title(found[0].result) for key, found in members.items()}
    settings: dict[str, Setting] = {}
    for key, found in members.items():
        same = [k for k in members if titles[k] == titles[key]]
        names = sorted({name for k in same for name in fields[k]})
        differing = [n for n in names if len({fields[k].get(n) for k in same}) > 1]
        variant = ", ".join(f"{n}={fields[key].get(n, 'unset')}" for n in differing[:4])
        title = "; ".join(filter(None, [titles[key], variant]))
        # Only four differing fields are listed, so titles may coincide: number them.
        unique, copies = title, 2
        while unique in settings:
            unique, copies = f"{title} ({copies})", copies + 1
        settings[unique] = Setting(unique, variant + unique[len(title) :], found)
    return list(settings.values())


def compare_students(setting: Setting) -> dict[str, Any]:
    """Compare the students of a setting with plain cross-entropy.

    Returns:
        `reference`: the label that the others are compared with (`xent`, or the first one).
        `rows`: a dict per label with `label`; `accuracy` (`intervals.mean_over_seeds`); `pgr`
        (`intervals.pgr_over_seeds`); for several seeds `paired` (`intervals.paired_over_seeds`);
        for one seed `documents` (`intervals.mcnemar`), `document_interval` (of PGR) and `n`; and
        `p_holm`, the p value (of the t test or McNemar's) after Holm's correction.
        `comparisons`: the number of p values corrected for.
    """
    seeds = list(setting.seeds.values())
    labels = list(dict.fromkeys(k[1] for s in seeds for k in s if k[0] == "student"))
    reference = "xent" if "xent" in labels else labels[0] if labels else None
    rows: list[dict[str, Any]] = []
    for label in labels:
        row: dict[str, Any] = {"label": label, "paired": None, "documents": None}
        row["accuracy"] = intervals.mean_over_seeds(_accuracies(seeds, label))
        row["pgr"] = intervals.pgr_over_seeds(pgr_rows(seeds, label))
        only = seeds[0].get(("student", label), {}) if len(seeds) == 1 else {}
        row["document_interval"] = (only.get("pgr_low"), only.get("pgr_high"))
        row["n"] = only.get("n")
        if label != reference and reference is not None:
            both = [s for s in seeds if _accuracies([s], label) and _accuracies([s], reference)]
            if len(both) > 1:
                first, second = _accuracies(both, label), _accuracies(both, reference)
                row["paired"] = intervals.paired_over_seeds(first, second)
            elif both:
                row["documents"] = _mcnemar(setting, both[0], label, reference)
        rows.append(row)
    tested = {r["label"]: _p_value(r) for r in rows}
    corrected = intervals.holm(tested)
    for row in rows:
        row["p_holm"] = corrected[row["label"]]
    comparisons = sum(p is not None for p in tested.values())
    return {"reference": reference, "rows": rows, "comparisons": comparisons}


def _p_value(row: dict[str, Any]) -> float | None:
    if row["paired"]:
        return row["paired"]["t_p"]
    return row["documents"]["p"] if row["documents"] else None


def _accuracies(seeds: Iterable[dict[Key, Entry]], label: str) -> list[float]:
    values = [number(s.get(("student", label), {}).get("accuracy")) for s in seeds]
    return [v for v in values if v is not None]


def pgr_rows(seeds: Iterable[dict[Key, Entry]], label: str) -> list[dict[str, float]]:
    """Return the accuracies of `weak`, `student` and `ceiling` of each seed that has all three."""
    rows = []
    for found in seeds:
        student = found.get(("student", label), {})
        ceiling = student.get("ceiling") or found.get(("ceiling", "ceiling"), {})
        entries = {"weak": found.get(("weak", "weak"), {}), "student": student, "ceiling": ceiling}
        row = {name: number(entry.get("accuracy")) for name, entry in entries.items()}
        known = {name: value for name, value in row.items() if value is not None}
        if len(known) == 3:
            rows.append(known)
    return rows


def _mcnemar(
    setting: Setting, found: dict[Key, Entry], label: str, reference: str
) -> dict[str, Any] | None:
    """Compare two students of one seed on the test documents; None without their predictions."""
    first, second = (
        setting.predictions.get(str(found["student", name].get("phase")))
        for name in (label, reference)
    )
    if first is None or second is None or list(first["id"]) != list(second["id"]):
        return None
    return intervals.mcnemar(first["p"], second["p"], first["ground_truth"])
