"""Runs that differ only in their seeds, and what is compared within them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from w2s_jax.config import flatten
from w2s_jax.metrics import intervals
from w2s_jax.report.runs import Predictions, Run
from w2s_jax.report.words import Entry, number, roles, setting, strong_model

# What may differ without changing a result: where things lie, how they are logged and laid out.
_INERT = ("name", "mesh", "log", "checkpoint", "losses", "task.data_dir", "store")
Key = tuple[str, str]


@dataclass(frozen=True)
class Group:
    """Runs of one setting. `variant`: the fields that tell it from others of the same models."""

    title: str
    variant: str
    runs: list[Run]

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
        """The supervisor's model."""
        return str((self.runs[0].result.get("weak") or {}).get("model", "the weak model"))

    @property
    def strong(self) -> str:
        """The students' model."""
        return strong_model(self.runs[0].result)

    @cached_property
    def seeds(self) -> dict[str, dict[Key, Entry]]:
        """seeds -> (role, label) -> entry.

        Runs that add losses to the same seeds share their weak model and their ceiling: these
        count once.
        """
        table: dict[str, dict[Key, Entry]] = {}
        for run in self.runs:
            for role, label, entry in roles(run.result):
                table.setdefault(seed_of(run), {}).setdefault((role, label), entry)
        return table

    @cached_property
    def entries(self) -> dict[Key, list[Entry]]:
        """(role, label) -> the entries of the seeds that have an accuracy; the ceilings last."""
        table: dict[Key, list[Entry]] = {}
        for wanted in ("weak", "student", "ceiling"):
            for found in self.seeds.values():
                for (role, label), entry in found.items():
                    if role == wanted and number(entry.get("accuracy")) is not None:
                        table.setdefault((role, label), []).append(entry)
        return table

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """phase -> its predictions on the test documents."""
        return {phase: p for run in self.runs for phase, p in run.predictions.items()}


def _is_seed(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    return last == "seed" or last.endswith("_seed")


def seed_of(run: Run) -> str:
    """The seeds of a run, all of them, as one word."""
    seeds = {k: v for k, v in flatten(run.config).items() if _is_seed(k) and v is not None}
    return json.dumps(seeds or run.result.get("seed"), sort_keys=True)


def _matters(name: str) -> bool:
    if any(name == inert or name.startswith(f"{inert}.") for inert in _INERT):
        return False
    return not _is_seed(name) and name.rsplit(".", 1)[-1] not in ("microbatch_size", "remat")


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Group the runs that differ only in seeds (fields named `seed` or `*_seed`).

    Fields that can't change a result (name, mesh, log, checkpoint, data folder) are not compared.
    Titles have the task, protocol and models, and whichever fields tell the groups apart.
    """
    groups: dict[str, list[Run]] = {}
    fields: dict[str, dict[str, str]] = {}
    for run in runs:
        flat = {k: json.dumps(v, sort_keys=True) for k, v in flatten(run.config).items()}
        flat = {k: v for k, v in flat.items() if _matters(k)}
        key = json.dumps([setting(run.result), flat], sort_keys=True)
        groups.setdefault(key, []).append(run)
        fields[key] = flat
    settings = {key: setting(members[0].result) for key, members in groups.items()}
    titled: dict[str, Group] = {}
    for key, members in groups.items():
        twins = [k for k in groups if settings[k] == settings[key]]
        names = sorted({name for k in twins for name in fields[k]})
        telling = [n for n in names if len({fields[k].get(n) for k in twins}) > 1]
        variant = ", ".join(f"{n}={fields[key].get(n, 'unset')}" for n in telling[:4])
        title = "; ".join(filter(None, [settings[key], variant]))
        # Beyond four telling fields two groups could get one title: number them.
        unique, copies = title, 2
        while unique in titled:
            unique, copies = f"{title} ({copies})", copies + 1
        titled[unique] = Group(unique, variant + unique[len(title) :], members)
    return list(titled.values())


def compare_students(group: Group) -> dict[str, Any]:
    """The students of a group side by side, and each against plain cross-entropy.

    Returns:
        `reference`: the label that the others are compared with (`xent`, or the first); `rows`: for
        each label `accuracy` (`statistics.mean_over_seeds`), `pgr` (`statistics.pgr_over_seeds`),
        with several seeds `paired` (`statistics.paired_over_seeds`), with one `documents`
        (`statistics.mcnemar`), `document_interval` (of PGR) and `n`; and `p_holm`: their p (of
        the t test) corrected for the number of comparisons, `comparisons`.
    """
    seeds = list(group.seeds.values())
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
                row["documents"] = _on_documents(group, both[0], label, reference)
        rows.append(row)
    tested = {r["label"]: _p(r) for r in rows}
    corrected = intervals.holm(tested)
    for row in rows:
        row["p_holm"] = corrected[row["label"]]
    comparisons = sum(p is not None for p in tested.values())
    return {"reference": reference, "rows": rows, "comparisons": comparisons}


def _p(row: dict[str, Any]) -> float | None:
    if row["paired"]:
        return row["paired"]["t_p"]
    return row["documents"]["p"] if row["documents"] else None


def _accuracies(seeds: Iterable[dict[Key, Entry]], label: str) -> list[float]:
    values = [number(s.get(("student", label), {}).get("accuracy")) for s in seeds]
    return [v for v in values if v is not None]


def pgr_rows(seeds: Iterable[dict[Key, Entry]], label: str) -> list[dict[str, float]]:
    """The accuracies of weak model, student and its ceiling, of the seeds that have all three."""
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


def _on_documents(
    group: Group, found: dict[Key, Entry], label: str, reference: str
) -> dict[str, Any] | None:
    predictions = group.predictions
    first, second = (
        predictions.get(str(found["student", name].get("phase"))) for name in (label, reference)
    )
    if first is None or second is None or list(first["id"]) != list(second["id"]):
        return None
    return intervals.mcnemar(first["p"], second["p"], first["ground_truth"])
