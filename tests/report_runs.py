"""Finished runs with made-up numbers and names, for tests of the report."""

import json
from pathlib import Path

import numpy as np

from w2s_jax.data.documents import stable_id
from w2s_jax.metrics import classification, intervals
from w2s_jax.metrics.answers import answer_agreement, answer_metrics
from w2s_jax.metrics.classification import predicted_classes
from w2s_jax.report.runs import FinishedRun
from w2s_jax.store.artifacts import write_answers, write_predictions


def entry(accuracy, auroc, ece, model, **more):
    return {"model": model, "accuracy": accuracy, "accuracy_se": 0.0213, "auroc": auroc,
            "ece": ece, "n": 317} | more  # fmt: skip


def fabricated(seed=0, shift=0.0, **changes):
    agreement = {"agreement": 0.872, "agreement_when_correct": 0.931, "agreement_when_wrong": 0.614}
    result = {
        "name": "fabricated_run",
        "task": "fabricated_task",
        "seed": seed,
        "protocol": "paper",
        "weak": entry(0.711 + shift, 0.788, 0.0512, "fabricated-weak"),
        "ceiling": entry(0.913 + shift, 0.957, 0.0334, "fabricated-strong"),
        "students": {
            "xent": entry(
                0.742 + shift,
                0.803,
                0.0625,
                "fabricated-strong",
                pgr=0.153,
                loss="xent",
                method="naive",
                **agreement,
            ),
            "confidence": entry(
                0.795 + shift,
                0.841,
                0.0741,
                "fabricated-strong",
                pgr=0.416,
                loss="confidence",
                method="naive",
                agreement=0.833,
                agreement_when_correct=0.902,
                agreement_when_wrong=0.587,
            ),
        },
        "stages": [
            {"kind": "pretrain", "phase": "pretrain-00fab0", "model": "fabricated-strong"},
            {"kind": "weak", "phase": "weak-11fab1", "model": "fabricated-weak", "accuracy": 0.711},
            {
                "kind": "student",
                "phase": f"student-22fab{seed}",
                "model": "fabricated-strong",
                "accuracy": 0.742,
                "label": "xent",
            },
        ],
        "timing": {"seconds": 63.125},
        "versions": {"jax": "0.0.fabricated", "w2s_jax": "0.0.1"},
    }
    return result | changes


def null_pgr(result, note):
    for student in result["students"].values():
        student.update(pgr=None, pgr_note=note)
    return result


def write_run(folder, result, config=None, curves=True):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    config = config or {"seed": result["seed"], "train": {"learning_rate": 1e-4}}
    (folder / "config.json").write_text(json.dumps({"config": config, "data": {"slice1": "ab"}}))
    for stage in result["stages"] if curves else []:
        phase = folder / "phases" / stage["phase"]
        phase.mkdir(parents=True)
        rows = [{"step": i, "loss": 0.7 / (i + 1), "split": "train"} for i in range(30)]
        rows.append({"step": 29, "split": "validation", "accuracy": 0.7, "agreement": 0.8})
        # An interrupted run may leave an incomplete last line.
        incomplete = '\n{"step": 30, "lo'
        (phase / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + incomplete)
    return folder


def evaluated_runs(
    seeds, students, *, documents=300, shared=True, spread=0.15, levels=(0.4, 0.9), classes=2
):
    """Finished runs in memory, one a seed, whose numbers are those of their test predictions.

    A model is right where its level plus the document's easiness plus noise is positive; `levels`
    are those of weak model and ceiling, and students are between them. Of more than two classes,
    which are called `kind 0` and so on, a wrong prediction is the next class.
    """
    rng = np.random.default_rng(7)
    own = documents if shared else documents * seeds
    easiness, truth = rng.normal(size=own), rng.integers(0, classes, own)
    runs = []
    for seed in range(seeds):
        kept = slice(0, documents) if shared else slice(seed * documents, (seed + 1) * documents)
        truth_N = truth[kept]
        predictions, entries = {}, {}
        names = {"weak": levels[0], "ceiling": levels[1]}
        names |= {f"loss_{i}": levels[0] + (i % 4) / 4 * np.ptp(levels) for i in range(students)}
        for name, level in names.items():
            score_N = level + easiness[kept] + 0.7 * rng.normal(size=documents)
            right_N = score_N + spread * rng.normal() > 0
            p_N = np.where(right_N == (truth_N == 1), 0.8, 0.2)
            if classes > 2:
                others = np.float32(0.2 / (classes - 1))
                p_N = np.full((documents, classes), others, np.float32)
                p_N[np.arange(documents), (truth_N + ~right_N) % classes] = 0.8
            phase = f"{name}-{seed}"
            predictions[phase] = {"id": np.arange(own, dtype=np.uint64)[kept], "p": p_N,
                                  "label": p_N, "ground_truth": truth_N}  # fmt: skip
            model, parameters = ("weak", 3000) if name == "weak" else ("strong", 28_500)
            entries[name] = {"model": f"made-up-{model}", "phase": phase, "parameters": parameters}
            entries[name] |= classification.classification_metrics(p_N, truth_N)
        weak, ceiling = entries.pop("weak"), entries.pop("ceiling")
        for name, entry_of in entries.items():
            p = {k: predictions[f"{k}-{seed}"]["p"] for k in ("weak", name, "ceiling")}
            found = intervals.pgr_interval(*p.values(), truth_N)
            pgr, note = classification.performance_gap_recovered(
                weak["accuracy"], entry_of["accuracy"], ceiling["accuracy"]
            )
            entry_of |= {"pgr": pgr, "pgr_low": found["low"], "pgr_high": found["high"],
                         "gap_low": found["gap_low"], "gap_high": found["gap_high"],
                         "loss": name, "method": "naive"}  # fmt: skip
            entry_of |= {} if note is None else {"pgr_note": note}
            entry_of |= classification.agreement_metrics(p[name], p["weak"], truth_N)
        stages = [{"kind": "student", "phase": e["phase"], "model": e["model"], "label": name}
                  for name, e in entries.items()]  # fmt: skip
        rows = [{"step": i, "loss": 0.7 / (i + 1), "split": "train"} for i in range(30)]
        rows += [{"step": i, "split": "validation", "accuracy": 0.6 + i / 100, "agreement": 0.8}
                 for i in range(0, 30, 5)]  # fmt: skip
        result = {"name": "made_up", "task": "made_up_task", "seed": seed, "protocol": "paper"}
        result |= {"weak": weak, "ceiling": ceiling, "students": entries, "stages": stages}
        result |= {"classes": [f"kind {c}" for c in range(classes)]} if classes > 2 else {}
        runs.append(
            FinishedRun(
                Path(f"seed{seed}"), result, {"seed": seed},
                {stage["phase"]: rows for stage in stages}, predictions,
                {stage["phase"]: {"kept_step": 20, "steps": 30} for stage in stages},
            )
        )  # fmt: skip
    return runs


def write_evaluated(folder, run):
    """Write one of `evaluated_runs` with its predictions."""
    write_run(folder, run.result, run.config)
    for phase, columns in run.predictions.items():
        (folder / "phases" / phase).mkdir(parents=True, exist_ok=True)
        path = folder / "phases" / phase / "predictions.parquet"
        label = predicted_classes(columns["p"])
        write_predictions(path, columns | {"label": label, "split": ["test"] * len(label)})
    return folder


def answered_run(folder, answers, targets, *, seed=0, scores=None, texts=None):
    """A folder of a finished run of a generation task, with the numbers of given answers.

    Args:
        folder: the run's folder.
        answers: label -> answers; `weak`, those of students, `ceiling`.
        targets: the right answers, all different.
        seed: its seed.
        scores: label -> scores of the task.
        texts: label -> completions, where they are more than the answers.
    """
    ids = [stable_id("answered", target) for target in targets]
    entries, right = {}, {}
    for label, own in answers.items():
        phase = f"{'student' if label not in ('weak', 'ceiling') else label}-{label}{seed}"
        right[label] = np.array([a == t for a, t in zip(own, targets, strict=True)])
        columns = {"id": ids, "split": ["test"] * len(ids), "answer": own, "target": targets,
                   "text": (texts or {}).get(label, own), "correct": right[label].tolist(),
                   "logprob": [-0.5] * len(ids)}  # fmt: skip
        (folder / "phases" / phase).mkdir(parents=True)
        write_answers(folder / "phases" / phase / "predictions.parquet", columns)
        model = "made-up-weak" if label == "weak" else "made-up-strong"
        entries[label] = {"model": model, "phase": phase}
        entries[label] |= answer_metrics(right[label])
        if scores:
            entries[label]["scores"] = scores[label]
    weak, ceiling = entries.pop("weak"), entries.pop("ceiling")
    for label, entry_of in entries.items():
        pgr, note = classification.performance_gap_recovered(
            weak["accuracy"], entry_of["accuracy"], ceiling["accuracy"]
        )
        found = intervals.pgr_interval(
            right["weak"], right[label], right["ceiling"], np.ones(len(ids))
        )
        entry_of |= {"pgr": pgr, "pgr_low": found["low"], "pgr_high": found["high"],
                     "gap_low": found["gap_low"], "gap_high": found["gap_high"],
                     "loss": label, "method": "naive"}  # fmt: skip
        entry_of |= {} if note is None else {"pgr_note": note}
        entry_of |= answer_agreement(answers[label], answers["weak"], right["weak"])
    result = {"name": "answered", "task": "made_up_questions", "seed": seed, "protocol": "paper"}
    result |= {"weak": weak, "ceiling": ceiling, "students": entries, "stages": []}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    return folder
