"""The comparison of a setting's students with each other."""

from collections.abc import Iterable
from typing import Any

from w2s_jax.metrics import intervals
from w2s_jax.report.results import Entry, Key, number
from w2s_jax.report.settings import Setting


def compare_students(setting: Setting) -> dict[str, Any]:
    """Compare the students of a setting with plain cross-entropy.

    Returns:
        `reference`: the label that the others are compared with (`xent`, or the first one).
        `over`: what the intervals and the corrected p values are over.
        `test`: the name of the test of these p values.
        `rows`: a dict per label with `label`; `accuracy`, `gap`, `pgr` (of the mean accuracies),
        `median_pgr` and, for several seeds, `difference`, each an `Estimate`; for several seeds
        `paired` (`intervals.paired_over_seeds`); for one seed `documents` (`intervals.mcnemar`)
        and `n`; and `p` and `p_holm`, before and after Holm's correction.
        `comparisons`: the number of p values corrected for.
    """
    seeds, found = list(setting.seeds.values()), setting.estimates
    labels = list(dict.fromkeys(k[1] for s in seeds for k in s if k[0] == "student"))
    reference = setting.reference
    rows: list[dict[str, Any]] = []
    for label in labels:
        row: dict[str, Any] = {"label": label, "paired": None, "documents": None, "p": None}
        row["accuracy"] = found.accuracy["student", label]
        row |= {"gap": found.gap[label], "pgr": found.pgr[label]}
        row |= {"median_pgr": found.median_pgr[label], "difference": found.difference.get(label)}
        row["n"] = seeds[0].get(("student", label), {}).get("n") if len(seeds) == 1 else None
        if label != reference and reference is not None:
            both = [s for s in seeds if _accuracies([s], label) and _accuracies([s], reference)]
            if len(both) > 1:
                first, second = _accuracies(both, label), _accuracies(both, reference)
                row["paired"] = intervals.paired_over_seeds(first, second)
                row["p"] = found.difference[label].p
            elif both:
                row["documents"] = _mcnemar(setting, both[0], label, reference)
                row["p"] = row["documents"] and row["documents"]["p"]
        rows.append(row)
    corrected = intervals.holm({r["label"]: r["p"] for r in rows})
    for row in rows:
        row["p_holm"] = corrected[row["label"]]
    comparisons = sum(r["p"] is not None for r in rows)
    over = "seeds and documents" if found.crossed else "seeds" if len(seeds) > 1 else "documents"
    test = {"seeds and documents": "t, crossed", "seeds": "paired t test", "documents": "McNemar"}
    return {"reference": reference, "rows": rows, "comparisons": comparisons, "over": over,
            "test": test[over]}  # fmt: skip


def _accuracies(seeds: Iterable[dict[Key, Entry]], label: str) -> list[float]:
    values = [number(s.get(("student", label), {}).get("accuracy")) for s in seeds]
    return [v for v in values if v is not None]


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
