"""Reports on tasks with more than two classes: confusions, scores, chance, runs of other tasks."""

import csv
import io
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from report_runs import evaluated_runs, write_evaluated
from test_report import Page, console
from test_report_answers import draw_only

from w2s_jax.metrics.classification import agreement_metrics
from w2s_jax.phases import prediction
from w2s_jax.report import print_result, write_report
from w2s_jax.report.caveats import result_caveats, setting_caveats
from w2s_jax.report.charts import accuracy_panels
from w2s_jax.report.confusion import MAX_PAIRS, confusion_panels, confusions, pair_table
from w2s_jax.report.curves import calibration_panels, calibration_rows
from w2s_jax.report.drawing import figure_of
from w2s_jax.report.results import class_names, student_difference
from w2s_jax.report.settings import settings_of
from w2s_jax.report.tables import TABLE_COLUMNS
from w2s_jax.store.artifacts import PhaseFolder, read_predictions

EVIL = "<script>alert('x')</script>$x"


def axes_of(panel):
    (ax,) = figure_of([panel]).axes
    return ax


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def counted(run, phase):
    """Return (true, predicted) -> documents, counted one by one."""
    found = run.predictions[phase]
    pairs = zip(found["ground_truth"].tolist(), found["p"].tolist(), strict=True)
    return Counter((truth, p.index(max(p))) for truth, p in pairs)


@pytest.fixture(scope="module")
def three():
    return evaluated_runs(2, 2, classes=3)


@pytest.fixture(scope="module")
def report(tmp_path_factory, three):
    """A page on one run each of 2, 3 and 25 classes, two of whose names are in need of escaping."""
    folder = tmp_path_factory.mktemp("classes")
    runs = [evaluated_runs(1, 2)[0], three[0], evaluated_runs(1, 2, classes=25)[0]]
    written = []
    for run in runs:
        size = len(class_names(run.result)) or 2
        names = {} if size == 2 else {"classes": [f"{EVIL}{c}" for c in range(size)]}
        result = run.result | {"task": f"task_of_{size}"} | names
        written.append(write_evaluated(folder / f"of_{size}", replace(run, result=result)))
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_only(monkeypatch)
        page = write_report(written, folder / "out")
    return page, page.read_text(encoding="utf-8"), runs


def test_a_matrix_has_the_shares_of_each_true_class(three):
    settings = settings_of(three)
    found = confusions(settings)
    assert [own.name for own in found] == ["weak model", "loss_0", "loss_1", "ceiling"]
    wanted = sum((counted(run, f"loss_1-{i}") for i, run in enumerate(three)), Counter())
    panels = confusion_panels(settings, found)
    ax = axes_of(panels[2])
    of_class = [sum(n for (t, _), n in wanted.items() if t == c) for c in range(3)]
    cells = {tuple(map(int, t.get_position())): t.get_text() for t in ax.texts}
    assert cells == {(p, t): f"{100 * n / of_class[t]:.0f}" for (t, p), n in wanted.items()}
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        f"kind {c} ({n})" for c, n in enumerate(of_class)
    ]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["kind 0", "kind 1", "kind 2"]
    assert "2 seeds" in ax.get_xlabel()
    share = wanted[0, 1] / of_class[0]
    assert f"kind 0 taken for kind 1 ({share:.0%})" in panels[2].alt_text
    # Two colours, of right and wrong predictions; pairs that do not occur are not drawn. The
    # diagonal begins at the top.
    (squares,) = ax.collections
    shades = {tuple(np.round(c[:3], 3)) for c in squares.get_facecolors()}
    assert len(shades) == 2 and len(squares.get_paths()) == len(wanted) == 6
    assert ax.get_ylim() == (2.5, -0.5)


def test_many_classes_have_a_list_of_the_most_confused_pairs(report):
    _, source, runs = report
    run = runs[2]
    wrong = {
        name: Counter({k: n for k, n in counted(run, f"{name}-0").items() if k[0] != k[1]})
        for name in ("weak", "loss_0", "loss_1", "ceiling")
    }
    total = sum(wrong.values(), Counter())
    (setting,) = settings_of([run])
    assert confusion_panels([setting], confusions([setting])) == []
    table = pair_table(setting, confusions([setting]))
    assert len(table.rows) == MAX_PAIRS < len(total)
    shown = [(int(t.split()[1]), int(p.split()[1])) for t, p, _ in table.rows]
    assert [total[pair] for pair in shown] == sorted(total.values(), reverse=True)[:MAX_PAIRS]
    of_class = Counter(run.predictions["weak-0"]["ground_truth"].tolist())
    for pair, (_, _, cells) in zip(shown, table.rows, strict=True):
        assert [n for n, _ in cells] == [own[pair] for own in wrong.values()]
        assert [s for _, s in cells] == [own[pair] / of_class[pair[0]] for own in wrong.values()]
    first = re.search(r'data-pairs="0".*?</tr>.*?(<tr>.*?</tr>)', source, re.DOTALL)[1]
    count, share = table.rows[0][2][0]
    assert f"{100 * share:.1f}%<br><small>n = {count}</small>" in first


def test_confusion_csv_has_all_predictions(report):
    page, _, runs = report
    rows = rows_of(page.parent / "confusion.csv")
    assert {r["setting"].partition(",")[0] for r in rows} == {"task_of_3", "task_of_25"}
    own = [r for r in rows if r["setting"].startswith("task_of_3") and r["label"] == "ceiling"]
    name = {f"{EVIL}{c}": c for c in range(3)}
    found = {(name[r["true"]], name[r["predicted"]]): int(r["n"]) for r in own}
    assert found == counted(runs[1], "ceiling-0")


def test_runs_of_different_tasks_share_a_page(report):
    page, source, runs = report
    parsed = Page(source)
    assert "<script>alert" not in source.replace('"use strict"', "")
    assert len(parsed.rows) == 12
    assert source.count('data-figure="confusion"') == 4 and source.count("data-pairs=") == 1
    for row in parsed.rows:
        size = int(row["data-task"].removeprefix("task_of_"))
        run = runs[[2, 3, 25].index(size)]
        entry = {**run.result["students"], "weak": run.result["weak"]}
        entry = entry.get(row["data-label"], run.result["ceiling"])
        for name in ("accuracy", "auroc", "macro_f1", "log_loss"):
            assert row["values"][name] == str(entry.get(name, ""))
    rows = rows_of(page.parent / "table.csv")
    assert [bool(r["macro_f1"]) for r in rows] == [False] * 4 + [True] * 8
    calibration = source[source.index('id="calibration"') : source.index('id="training"')]
    assert "Observed share of label 1 among" in calibration
    assert "With more than two classes: accuracy among" in calibration


def test_two_classes_have_no_section_and_no_columns(tmp_path, monkeypatch):
    draw_only(monkeypatch)
    run = write_evaluated(tmp_path / "run", evaluated_runs(1, 1)[0])
    out = tmp_path / "out"
    out.mkdir()
    # Of an earlier report on other runs.
    (out / "confusion.csv").touch()
    (out / "confusion.png").touch()
    source = write_report([run], out).read_text()
    assert not list(out.glob("confusion*"))
    assert 'id="confusion"' not in source and "acro F1" not in source
    assert "With more than two classes" not in source
    assert (out / "table.csv").read_text().split("\n")[0] == ",".join(TABLE_COLUMNS)


def test_missing_predictions_are_said(tmp_path, monkeypatch, three):
    draw_only(monkeypatch)
    run = replace(three[0], predictions={})
    source = write_report([write_evaluated(tmp_path / "run", run)], tmp_path / "out").read_text()
    section = source[source.index('id="confusion"') : source.index('id="calibration"')]
    assert "Not drawn: no predictions were found" in section and "confusion.csv" not in section


@pytest.mark.parametrize("classes", [3, 25])
def test_chance_depends_on_the_number_of_classes(classes):
    (run,) = evaluated_runs(1, 1, classes=classes)
    (setting,) = settings_of([run])
    assert "chance" not in dict(setting_caveats(setting))
    entry = {"accuracy": 1 / classes, "accuracy_se": 0.02, "n": 300}
    result = run.result | {"weak": run.result["weak"] | entry}
    text = f"includes {1 / classes:.3g} (chance for balanced classes): weak."
    assert any(text in line for line in result_caveats(result))
    (setting,) = settings_of([replace(run, result=result)])
    assert text in dict(setting_caveats(setting))["chance"]
    (panel,) = accuracy_panels([setting])
    ax = axes_of(panel)
    dotted = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert dotted == [1 / classes] and "chance" in [t.get_text() for t in ax.texts]


def test_calibration_is_that_of_the_predicted_class(three):
    settings = settings_of(three)
    rows = calibration_rows(settings)
    # All confidences are 0.8, so the only bin of a model has its accuracy over both seeds.
    accuracy = {
        "weak": np.mean([run.result["weak"]["accuracy"] for run in three]),
        "ceiling": np.mean([run.result["ceiling"]["accuracy"] for run in three]),
    }
    found = {row["label"]: row for row in rows}
    assert len(rows) == 4 and found["weak"]["n"] == 600
    for name, share in accuracy.items():
        assert found[name]["share"] == pytest.approx(share)
        assert found[name]["mean_p"] == pytest.approx(0.8)
    (panel,) = calibration_panels(settings, rows)
    ax = axes_of(panel)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("mean confidence in the bin", "accuracy")
    assert panel.alt_text.startswith("Accuracy against confidence: weak (600 predictions)")


def right_or_wrong(run):
    """Return a run with the same right and wrong predictions, of two classes."""
    predictions = {}
    for phase, own in run.predictions.items():
        right_N = own["p"].argmax(axis=1) == own["ground_truth"]
        predictions[phase] = own | {"p": right_N * 1.0, "ground_truth": np.ones(len(right_N))}
    result = {k: v for k, v in run.result.items() if k != "classes"}
    return replace(run, result=result, predictions=predictions)


def test_estimates_are_those_of_the_same_right_and_wrong_predictions(three):
    (setting,), (binary,) = settings_of(three), settings_of(map(right_or_wrong, three))
    found, wanted = setting.estimates, binary.estimates
    assert found.crossed and found.missing == []
    for name in ("accuracy", "above_weak", "gap", "pgr", "median_pgr", "difference"):
        assert getattr(found, name) == getattr(wanted, name)
    # Agreement is of classes: two different wrong ones do not agree.
    key = ("student", "loss_0")
    se = found.errors[key]["agreement"]
    same = [np.mean(run.predictions[f"loss_0-{i}"]["p"].argmax(1)
                    == run.predictions[f"weak-{i}"]["p"].argmax(1))
            for i, run in enumerate(three)]  # fmt: skip
    assert [e["agreement"] for e in setting.entries[key]] == pytest.approx(same)
    assert 0 < se < 0.5


def test_the_difference_from_the_weak_model_has_its_paired_error():
    (run,) = evaluated_runs(1, 1, classes=25)
    # A student that is wrong in ways of its own agrees with no wrong supervisor.
    p = {k: run.predictions[f"{k}-0"]["p"] for k in ("weak", "loss_0")}
    truth_N = run.predictions["weak-0"]["ground_truth"]
    right = {k: own.argmax(axis=1) == truth_N for k, own in p.items()}
    other_N = np.where(right["loss_0"], truth_N, (truth_N + 2) % 25)
    entry = run.result["students"]["loss_0"]
    entry = entry | agreement_metrics(np.eye(25)[other_N], p["weak"], truth_N)
    assert entry["agreement_when_wrong"] < 1
    found = student_difference(run.result, entry)
    wanted = np.std(right["loss_0"].astype(float) - right["weak"])
    assert found.se == pytest.approx(wanted / np.sqrt(300))


def test_the_terminal_has_both_scores_at_80_columns(three):
    result = three[0].result
    weak = result["weak"] | {"log_loss": 12.3456, "n": 12345}
    student = result["students"]["loss_0"] | {"pgr_note": "PGR is undefined: made up.", "n": 12345}
    result = result | {"weak": weak, "students": {"loss_0": student}}
    stream = io.StringIO()
    print_result(result, console(stream))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    line = next(x for x in text.splitlines() if x.startswith("weak"))
    assert f"{weak['macro_f1']:.3f} 12.346" in line and line.split()[-1] == "12345"
    assert next(x for x in text.splitlines() if x.startswith("loss_0")).split()[-1] == "12345"
    assert "undefined" in text


def test_other_classes_are_another_setting(three):
    def with_classes(run, names):
        return replace(run, result=run.result | {"classes": names})

    (setting,) = settings_of(three)
    assert setting.classes == ("kind 0", "kind 1", "kind 2")
    two = replace(three[0], result={k: v for k, v in three[0].result.items() if k != "classes"})
    found = settings_of([two, three[1]])
    assert [s.variant for s in found] == ["classes=unset", "classes=3"]
    other = with_classes(three[1], ["kind 0", "kind 1", "another"])
    assert len(settings_of([three[0], other])) == 2


@pytest.mark.parametrize("classes", [2, 3])
def test_a_phase_stores_probabilities_labels_and_ground_truth(tmp_path, monkeypatch, classes):
    rng = np.random.default_rng(0)
    p_NC, targets_NC = (rng.dirichlet(np.ones(classes), 40).astype(np.float32) for _ in range(2))
    truth_N = rng.integers(0, classes, 40).astype(np.float32)
    monkeypatch.setattr(prediction, "hard_labels", lambda labels_N: labels_N, raising=False)
    monkeypatch.setattr(prediction, "targets_of", lambda *_: targets_NC)

    class Documents(SimpleNamespace):
        def __len__(self):
            return 40

    ids_N = np.arange(40, dtype=np.uint64)
    documents = Documents(ids_N=ids_N, labels_N=truth_N, truth_N=truth_N)
    data = SimpleNamespace(splits={"test": documents})
    context = SimpleNamespace(data=lambda phase: data)
    folder = PhaseFolder(tmp_path)
    phase = SimpleNamespace(inputs={"test": "test"})
    result = prediction.store(phase, context, folder, {"test": p_NC})
    found = read_predictions(folder.predictions, "test")
    np.testing.assert_array_equal(found["ground_truth"], truth_N)
    if classes == 2:
        np.testing.assert_array_equal(found["p"], p_NC[:, 1])
        np.testing.assert_array_equal(found["label"], targets_NC[:, 1])
        assert found["ground_truth"].dtype == np.float32
    else:
        np.testing.assert_array_equal(found["p"], p_NC)
        np.testing.assert_array_equal(found["label"], [max(range(3), key=row.__getitem__)
                                                       for row in targets_NC])  # fmt: skip
        assert found["label"].dtype == found["ground_truth"].dtype == np.int32
    accuracy = np.mean(p_NC.argmax(axis=1) == truth_N)
    assert result["metrics"]["test"]["accuracy"] == pytest.approx(accuracy)
    assert ("log_loss" in result["metrics"]["test"]) == (classes > 2)
