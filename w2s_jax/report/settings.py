"""Settings: runs that are compared over their seeds."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from w2s_jax.config import flatten
from w2s_jax.report.results import (
    Entry,
    Key,
    class_names,
    number,
    plural,
    roles,
    setting_title,
    strong_model,
)
from w2s_jax.report.runs import FinishedRun, Predictions
from w2s_jax.report.uncertainty import Estimates, estimate

# Fields that cannot change a result: names, paths, logging, layout.
_IGNORED = (
    "name", "mesh", "log", "checkpoint", "losses", "task.data_dir", "task.test_tasks", "store",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """Finished runs of the same task, models and protocol: several seeds, or losses, or both.

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

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes if they are more than two; else empty."""
        return class_names(self.runs[0].result)

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
        """(role, label) -> one entry per seed, those with an accuracy; ceilings last.

        `mean_se` maps fields to the standard error of their mean where `estimates` know it.
        """
        table: dict[Key, list[Entry]] = {}
        for wanted in ("weak", "student", "ceiling"):
            for found in self.seeds.values():
                for (role, label), entry in found.items():
                    if role == wanted and number(entry.get("accuracy")) is not None:
                        errors = self.estimates.errors.get((role, label), {})
                        table.setdefault((role, label), []).append(entry | {"mean_se": errors})
        return table

    @cached_property
    def predictions(self) -> dict[str, Predictions]:
        """Phase -> its predictions on the test documents."""
        return {phase: p for run in self.runs for phase, p in run.predictions.items()}

    @cached_property
    def reference(self) -> str | None:
        """The student that the others are compared with: `xent`, or the first one."""
        labels = [k[1] for found in self.seeds.values() for k in found if k[0] == "student"]
        return "xent" if "xent" in labels else labels[0] if labels else None

    @cached_property
    def estimates(self) -> Estimates:
        """Means over the seeds, with intervals."""
        return estimate(list(self.seeds.values()), self.predictions, self.reference)

    @cached_property
    def kind_of_runs(self) -> str:
        """A description of the runs with their number: `3 runs that differ only in their seeds`."""
        runs, seeds = plural(len(self.runs), "run"), plural(len(self.seeds), "seed")
        own = [(seeds_of(run), frozenset(run.result.get("students") or {})) for run in self.runs]
        repeated = len(own) - len(set(own))
        alike = len({labels for _, labels in own}) == 1
        if alike and len(self.seeds) == len(self.runs):
            return f"{runs} that differ only in their seeds"
        text = f"{runs} of {seeds}"
        if not alike:
            several = len(self.seeds) > 1
            text += ", which also differ" if several else " that differ only"
            text += " in their students"
        if repeated:
            text += f" ({repeated} of them {'repeats' if repeated == 1 else 'repeat'} another run)"
        return f"{text}; what several runs of a seed have in common counts once"


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
    """Group runs into settings: runs that differ only in their losses, and fields named `*seed`.

    Fields that cannot change a result (name, mesh, log, checkpoint, data folder) are not compared.
    Runs with other classes, as of data that have changed, are in another setting.
    """
    members: dict[str, list[FinishedRun]] = {}
    fields: dict[str, dict[str, str]] = {}
    for run in runs:
        flat = {k: json.dumps(v, sort_keys=True) for k, v in flatten(run.config).items()}
        flat = {k: v for k, v in flat.items() if _is_compared(k)}
        classes = class_names(run.result)
        if classes:
            flat["classes"] = str(len(classes))
        key = json.dumps([setting_title(run.result), flat, classes], sort_keys=True)
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
