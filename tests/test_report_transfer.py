"""The report on the test sets of other tasks: figure, tables, caveats and files."""

import csv
import dataclasses
import math

import pytest
from matplotlib.figure import Figure
from report_runs import evaluated_runs, write_evaluated
from rich.console import Console

from w2s_jax.report import print_result, write_report
from w2s_jax.report.settings import settings_of
from w2s_jax.report.transfer import transfer_caveats, transfer_context, transfer_panels

WHY = "labels made without training a model are of the run's own documents only"


def transferred(seeds, students=2, *, missing=(), weak=True):
    """Runs with a second test set: `elsewhere`, where all models are worse."""
    runs = evaluated_runs(seeds, students, levels=(0.4, 1.1))
    others = evaluated_runs(seeds, students, documents=200, levels=(0.1, 0.6))
    found = []
    for run, other in zip(runs, others, strict=True):
        # Other phases than those with the predictions on the run's own test set.
        predictions = {f"far-{name}": p for name, p in other.predictions.items()}
        there = {name: other.result[name] for name in ("weak", "ceiling")}
        there = {name: e | {"phase": f"far-{e['phase']}"} for name, e in there.items()}
        own = {k: e | {"phase": f"far-{e['phase']}"} for k, e in other.result["students"].items()}
        there["students"] = {k: None if k in missing else e for k, e in own.items()}
        notes = dict.fromkeys(missing, WHY)
        if not weak:
            there["weak"], notes["weak"] = None, "labels from a file are of the run's own documents"
            for entry in there["students"].values():
                entry.update(pgr=None, pgr_low=None, pgr_high=None, gap_low=None, gap_high=None,
                             pgr_note="PGR is undefined: the weak model was not evaluated",
                             agreement=None, agreement_note=WHY)  # fmt: skip
        there |= {"notes": notes} if notes else {}
        found.append(
            dataclasses.replace(
                run,
                result=run.result | {"transfer": {"elsewhere": there}},
                predictions=run.predictions | predictions,
            )
        )
    return found


def printed(result, width=100):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_result(result, console)
    return console.export_text()


def test_a_point_has_both_accuracies():
    (run,) = transferred(1)
    (panel,) = transfer_panels(settings_of([run]))
    ax = Figure().subplots()
    panel.draw(ax)
    drawn = {
        container.get_label(): tuple(float(v[0]) for v in container.lines[0].get_data())
        for container in ax.containers
    }
    there = run.result["transfer"]["elsewhere"]
    assert drawn == {
        "weak model": (run.result["weak"]["accuracy"], there["weak"]["accuracy"]),
        "ceiling": (run.result["ceiling"]["accuracy"], there["ceiling"]["accuracy"]),
    } | {
        name: (entry["accuracy"], there["students"][name]["accuracy"])
        for name, entry in run.result["students"].items()
    }
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlabel() == "accuracy on made_up_task (300 documents)"
    assert ax.get_ylabel() == "accuracy on elsewhere\n(200 documents, 1 seed per point)"
    assert f"loss_0 {drawn['loss_0'][0]:.3f} and {drawn['loss_0'][1]:.3f}" in panel.alt_text


def test_points_of_several_seeds_are_means():
    runs = transferred(4)
    (panel,) = transfer_panels(settings_of(runs))
    ax = Figure().subplots()
    panel.draw(ax)
    weak = next(c for c in ax.containers if c.get_label() == "weak model")
    x, y = (float(v[0]) for v in weak.lines[0].get_data())
    assert x == pytest.approx(sum(r.result["weak"]["accuracy"] for r in runs) / 4)
    far = [r.result["transfer"]["elsewhere"]["weak"]["accuracy"] for r in runs]
    assert y == pytest.approx(sum(far) / 4)
    assert "4 seeds per point" in ax.get_ylabel()


def test_more_than_a_few_students_share_a_style():
    (panel,) = transfer_panels(settings_of(transferred(1, students=9)))
    ax = Figure().subplots()
    panel.draw(ax)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names.count("others") == 1 and len(names) == 2 + 6 + 1


def test_the_table_has_differences_and_pgr_there():
    (run,) = transferred(1)
    (found,) = transfer_context(settings_of([run]))
    there = run.result["transfer"]["elsewhere"]
    rows = {row["label"]: row for row in found["rows"]}
    for label, own, far in (
        ("weak", run.result["weak"], there["weak"]),
        ("loss_1", run.result["students"]["loss_1"], there["students"]["loss_1"]),
    ):
        row = rows[label]
        assert row["own"].value == own["accuracy"] and row["there"].value == far["accuracy"]
        assert row["difference"].value == pytest.approx(far["accuracy"] - own["accuracy"])
        se = math.hypot(own["accuracy_se"], far["accuracy_se"])
        assert row["difference"].low == pytest.approx(row["difference"].value - 1.959964 * se)
        assert (row["own_n"], row["n"]) == (300, 200)
    weak, ceiling = there["weak"]["accuracy"], there["ceiling"]["accuracy"]
    student = there["students"]["loss_1"]
    by_hand = (student["accuracy"] - weak) / (ceiling - weak)
    assert rows["loss_1"]["pgr"].value == pytest.approx(by_hand)
    assert rows["loss_1"]["agreement"] == student["agreement"]
    assert not found["several"] and found["task"] == "elsewhere"


def test_intervals_of_several_seeds_are_over_documents_too():
    (found,) = transfer_context(settings_of(transferred(5)))
    assert found["several"] and found["over"] == "seeds and documents"
    assert all(row["there"].n == 5 for row in found["rows"])


def test_models_that_were_not_evaluated_are_named(tmp_path):
    (run,) = transferred(1, missing=("loss_1",))
    lines = transfer_caveats(run.result, "elsewhere")
    assert lines[0] == f"Not evaluated ({WHY}): loss_1."
    assert not any(line.startswith("One seed") for line in lines)  # said above
    text = printed(run.result)
    assert "the same models on elsewhere" in text and "Not evaluated" in text
    page = write_report([write_evaluated(tmp_path / "run", run)], tmp_path / "out").read_text()
    section = page[page.index('<section id="transfer"') :]
    section = section[: section.index("</section>")]
    assert "Not evaluated" in section and "loss_0" in section
    with (tmp_path / "out" / "transfer.csv").open() as file:
        rows = {row["label"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"weak", "ceiling", "loss_0", "loss_1"}
    assert rows["loss_1"]["note"] == WHY and rows["loss_1"]["accuracy"] == ""
    far = run.result["transfer"]["elsewhere"]["students"]["loss_0"]
    assert float(rows["loss_0"]["accuracy"]) == far["accuracy"]
    assert {row["test_task"] for row in rows.values()} == {"elsewhere"}


def test_without_a_weak_model_the_students_remain(tmp_path):
    (run,) = transferred(1, weak=False)
    text = printed(run.result)
    second = text[text.index("the same models on elsewhere") :]
    assert "loss_0" in second and "undefined" in second and "weak  " not in second
    assert f"The supervisor was not evaluated ({WHY}): loss_0 and loss_1." in " ".join(
        second.split()
    )
    page = write_report([write_evaluated(tmp_path / "run", run)], tmp_path / "out").read_text()
    assert "labels from a file" in page


def test_runs_with_and_without_other_sets_are_one_setting(tmp_path):
    first, second = transferred(2)
    plain = dataclasses.replace(
        second, result={k: v for k, v in second.result.items() if k != "transfer"}
    )
    with_sets = {"seed": 0, "task": {"test_tasks": ["elsewhere"]}}
    runs = [
        dataclasses.replace(first, config=with_sets),
        dataclasses.replace(plain, config={"seed": 1, "task": {"test_tasks": []}}),
    ]
    (setting,) = settings_of(runs)
    (found,) = transfer_context([setting])
    assert not found["several"] and len(setting.seeds) == 2
    out = tmp_path / "out"
    write_report([write_evaluated(tmp_path / "first", runs[0])], out)
    assert (out / "transfer.csv").exists() and (out / "transfer.png").exists()
    page = write_report([write_evaluated(tmp_path / "plain", plain)], out).read_text()
    assert "Other test sets" not in page
    assert not any((out / f"transfer.{kind}").exists() for kind in ("csv", "png", "svg"))
