"""Finished runs with made-up numbers and names, for tests of the report."""

import json


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
