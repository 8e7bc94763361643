"""Statements of a report on seeds and documents: intervals, undefined PGR, runs."""

import io
from pathlib import Path

import numpy as np
import pytest
from report_runs import evaluated_runs, fabricated
from rich.console import Console

from w2s_jax.metrics import intervals
from w2s_jax.report import print_result
from w2s_jax.report.caveats import result_caveats, setting_caveats
from w2s_jax.report.charts import accuracy_panels
from w2s_jax.report.comparison import compare_students
from w2s_jax.report.drawing import figure_of
from w2s_jax.report.html import _SECTIONS, _render_page
from w2s_jax.report.runs import FinishedRun
from w2s_jax.report.settings import settings_of
from w2s_jax.report.summaries import overview, setting_summary, summary
from w2s_jax.report.tables import table_rows

XENT = ("student", "loss_0")


def setting_of(runs):
    (setting,) = settings_of(runs)
    return setting


def test_five_seeds_on_one_test_set_are_not_five_test_sets():
    setting = setting_of(evaluated_runs(5, 1, documents=400, spread=0.0))
    found = setting.estimates.accuracy[XENT]
    one = setting.seeds['{"seed": 0}'][XENT]["accuracy_se"]
    assert setting.estimates.crossed and found.over == "seeds and documents"
    # The seeds share the documents that are easy, so that their mean is hardly more certain.
    assert 0.7 * one < found.se < 1.2 * one
    assert found.se > 2 * one / np.sqrt(5) * 0.8
    assert 0 < found.low < found.value < found.high < 1
    (ax,) = figure_of(accuracy_panels([setting])).axes
    assert f"± {found.se:.3f} (n=5)" in ax.texts[1].get_text()
    assert compare_students(setting)["over"] == "seeds and documents"


def test_seeds_with_test_documents_of_their_own_have_intervals_over_seeds():
    setting = setting_of(evaluated_runs(4, 2, shared=False))
    values = [e["accuracy"] for e in setting.entries[XENT]]
    found, wanted = setting.estimates.accuracy[XENT], intervals.mean_over_seeds(values)
    assert (found.low, found.high, found.over) == (wanted["low"], wanted["high"], "seeds")
    row = compare_students(setting)["rows"][1]
    assert row["p"] == row["paired"]["t_p"] and setting.estimates.missing == []


def test_two_losses_on_shared_documents_are_compared_over_seeds_and_documents():
    setting = setting_of(evaluated_runs(5, 3, documents=200))
    comparison = compare_students(setting)
    for row in comparison["rows"][1:]:
        assert row["p"] == setting.estimates.difference[row["label"]].p
        assert row["difference"].low < row["paired"]["difference"] < row["difference"].high
    raw = {row["label"]: row["p"] for row in comparison["rows"]}
    assert {r["label"]: r["p_holm"] for r in comparison["rows"]} == intervals.holm(raw)


@pytest.mark.parametrize("seeds", [1, 5])
def test_pgr_is_undefined_where_the_interval_of_the_gap_holds_0(seeds):
    """Weak and strong model are equally good: any PGR would be noise over noise."""
    runs = evaluated_runs(seeds, 2, levels=(0.6, 0.62), documents=200)
    for run in runs:  # the ceiling is above the weak model, by chance
        for entry in run.result["students"].values():
            entry.pop("pgr_note", None)
            entry |= {"pgr": -0.375, "pgr_low": -0.715, "pgr_high": -0.111}
    setting = setting_of(runs)
    assert setting.estimates.gap["loss_0"].holds_zero
    assert {e.value for e in setting.estimates.pgr.values()} == {None}
    assert {e.value for e in setting.estimates.median_pgr.values()} == {None}
    assert any(name == "undefined" for name, _ in setting_caveats(setting))
    text = " ".join(overview([setting])["paragraphs"])
    assert "-0.375" not in text and "undefined" in text
    stream = io.StringIO()
    print_result(runs[0].result, Console(file=stream, width=200))
    # The terminal knows one seed only; its gap's interval holds 0 too.
    assert "undefined" in stream.getvalue() and "-0.375" not in stream.getvalue()
    # Rows are of single seeds too.
    (one,) = settings_of(runs[:1])
    panels = {name: [] for name in _SECTIONS}
    page = _render_page([one], panels, table_rows([one]), [], Path())
    assert not any(value in page for value in ("-0.375", "-0.715", "-0.111"))


def test_pgr_is_printed_where_the_gap_is_clear():
    runs = evaluated_runs(5, 2, levels=(0.0, 2.0))
    setting = setting_of(runs)
    assert not setting.estimates.gap["loss_1"].holds_zero
    pgr = setting.estimates.pgr["loss_1"]
    assert pgr.low < pgr.value < pgr.high and pgr.over == "seeds and documents"
    stream = io.StringIO()
    print_result(runs[0].result, Console(file=stream, width=200))
    assert f"{runs[0].result['students']['loss_1']['pgr']:.3f}" in stream.getvalue()


@pytest.mark.parametrize("above", [0.02, 0.03, 0.0385, 0.0395, 0.06])
def test_one_threshold_in_terminal_page_and_text(above):
    # 1.96 sqrt((0.128 - above**2) / 317) is 0.0390 to 0.0392.
    result = fabricated()
    result["students"] = {"xent": result["students"]["xent"] | {"accuracy": 0.711 + above}}
    setting = setting_of([FinishedRun(Path("run"), result)])
    terminal = any("Not distinguishable" in line for line in result_caveats(result))
    page = any(name == "indistinguishable" for name, _ in setting_caveats(setting))
    assert terminal == page == ("not distinguishable" in summary(result)) == (above < 0.039)


def test_equal_models_are_noted_in_terminal_and_page():
    result = fabricated()
    assert not any("are the same" in line for line in result_caveats(result))
    result["weak"]["model"] = "fabricated-strong"
    assert any("are the same (fabricated-strong)" in line for line in result_caveats(result))
    (text,) = (
        t for n, t in setting_caveats(setting_of([FinishedRun("r", result)])) if n == "same model"
    )
    assert "are the same (fabricated-strong)" in text


def with_students(run, *labels):
    students = run.result["students"]
    return FinishedRun(
        run.folder, run.result | {"students": {k: students[k] for k in labels}}, run.config,
        predictions=run.predictions,
    )  # fmt: skip


@pytest.mark.parametrize(
    "chosen,expected",
    [
        ([(0, "ab"), (1, "ab"), (2, "ab")], "3 runs that differ only in their seeds."),
        ([(0, "a"), (0, "b")], "2 runs of 1 seed that differ only in their students;"),
        ([(0, "a"), (1, "b")], "2 runs of 2 seeds, which also differ in their students;"),
        ([(0, "ab"), (0, "ab")], "2 runs of 1 seed (1 of them repeats another run);"),
        (
            [(0, "a"), (0, "b"), (1, "a"), (1, "b")],
            "4 runs of 2 seeds, which also differ in their students;",
        ),
        ([(0, "a"), (1, "a"), (1, "a")], "3 runs of 2 seeds (1 of them repeats another run);"),
    ],
)
def test_a_summary_says_what_the_runs_are(chosen, expected):
    made = evaluated_runs(3, 2)
    names = {"a": "loss_0", "b": "loss_1"}
    runs = [with_students(made[seed], *(names[c] for c in labels)) for seed, labels in chosen]
    setting = setting_of(runs)
    assert setting_summary(setting).startswith(expected)
    # Nothing counts twice.
    assert len(setting.entries["weak", "weak"]) == len({seed for seed, _ in chosen})


def test_missing_predictions_are_said_and_widen_the_interval_of_the_gap():
    runs = evaluated_runs(5, 1)
    known = setting_of(runs)
    assert not any(name == "predictions" for name, _ in setting_caveats(known))
    for run in runs:
        run.predictions.clear()
    setting = setting_of(runs)
    (text,) = (t for name, t in setting_caveats(setting) if name == "predictions")
    assert "weak, loss_0 and ceiling" in text
    found, wanted = setting.estimates.gap["loss_0"], known.estimates.gap["loss_0"]
    assert found.high - found.low > 0.8 * (wanted.high - wanted.low)
