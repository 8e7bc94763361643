"""Every figure: nothing is cut or overlaps, every series is in the legend, and nothing warns."""

import itertools

import numpy as np
import pytest
from report_runs import evaluated_runs

from w2s_jax.report import agreement, charts, curves
from w2s_jax.report.drawing import figure_of, png
from w2s_jax.report.settings import settings_of

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
LONG = "xent+synthetic_strong_unconfident_number"


def panels_of(runs):
    settings = settings_of(runs)
    bins = curves.calibration_rows(settings)
    training = curves.training_panels(curves.training_curves(settings))
    return {
        "ladder": charts.ladder_panels(settings),
        "pgr": charts.gap_panels(settings),
        "accuracy": charts.accuracy_panels(settings),
        "agreement": agreement.agreement_panels(settings),
        "calibration": curves.calibration_panels(settings, bins),
        "training": training[:1],
    }


def faults(figure):
    """Return what is outside the figure, on top of something else, or cut by its axes."""
    render = figure._get_renderer()
    found = []
    titles = [(part, part._suptitle) for part in figure.subfigs if part._suptitle is not None]
    for ax in figure.axes:
        if not ax.get_visible():
            continue
        inner = ax.get_window_extent(render)
        boxes = {f"title of {id(part)}": t.get_window_extent(render) for part, t in titles}
        boxes |= {"x label": ax.xaxis.label.get_window_extent(render)}
        boxes |= {"y label": ax.yaxis.label.get_window_extent(render)}
        boxes |= {t.get_text(): t.get_window_extent(render) for t in ax.texts}
        if ax.get_legend() is not None:
            boxes["legend"] = ax.get_legend().get_window_extent(render)
        boxes = {name: box for name, box in boxes.items() if box.width and box.height}
        for name, box in boxes.items():
            if not (figure.bbox.x0 - 1 <= box.x0 and box.x1 <= figure.bbox.x1 + 1):
                found.append(f"{name} is cut at a side")
            if not (figure.bbox.y0 - 1 <= box.y0 and box.y1 <= figure.bbox.y1 + 1):
                found.append(f"{name} is cut above or below")
            if name not in [t.get_text() for t in ax.texts] and box.overlaps(inner):
                found.append(f"{name} is on the axes")
        for (name, box), (other, other_box) in itertools.combinations(boxes.items(), 2):
            if box.overlaps(other_box):
                found.append(f"{name} is on {other}")
        if inner.height < 30 or inner.width < 60:
            found.append(f"axes of {inner.width:.0f} by {inner.height:.0f} pixels")
        for line in ax.lines:
            if line.get_marker() in ("None", "", None) or not len(line.get_xdata()):
                continue
            places = line.get_transform().transform(
                np.array([line.get_xdata(), line.get_ydata()], np.float64).T
            )
            reach = line.get_markersize() / 2 * figure.dpi / 72
            if not (places[:, 0] <= inner.x1 + 1 - reach / 2).all():
                found.append(f"a marker {line.get_marker()} at the right is cut")
            if not (places[:, 1] + reach / 2 <= inner.y1 + 1).all():
                found.append(f"a marker {line.get_marker()} at the top is cut")
    return found


def check(runs):
    for name, panels in panels_of(runs).items():
        assert panels, name
        for titled in (True, False):
            figure = figure_of(panels, titled)
            assert faults(figure) == [], (name, titled)
        png(figure)
    return panels_of(runs)


@pytest.mark.parametrize("students,seeds", [(1, 1), (2, 5), (3, 1), (8, 5)])
def test_figures_are_whole(students, seeds):
    check(evaluated_runs(seeds, students, documents=100))


@pytest.mark.medium
@pytest.mark.parametrize("students,seeds", [(1, 5), (2, 1), (3, 5), (8, 1), (40, 1), (40, 5)])
def test_figures_of_more_students_and_seeds_are_whole(students, seeds):
    check(evaluated_runs(seeds, students))


def test_figures_with_long_names_are_whole():
    runs = evaluated_runs(1, 3, documents=100)
    for run in runs:
        result = run.result
        result |= {"task": "a_task_of_a_folder_with_a_long_name " * 8}
        result["weak"]["model"] = "someone/an-early-checkpoint-of-a-weak-model-160m@" + "0" * 40
        students = result["students"].values()
        result["students"] = {f"{LONG}_{i}": e for i, e in enumerate(students)}
    check(runs)


@pytest.mark.parametrize("students", [1, 2, 3])
def test_figures_of_a_ladder_are_whole(students):
    runs = evaluated_runs(2, students, documents=100)
    for run in evaluated_runs(2, students, documents=100):
        for entry in [run.result["ceiling"], *run.result["students"].values()]:
            entry |= {"model": "made-up-stronger", "parameters": 1_400_000_000}
        runs.append(run)
    panels = check(runs)
    assert len(panels["agreement"]) == students and len(panels["accuracy"]) == 2
    assert len(legend_of(panels["agreement"][0])) == 3


def legend_of(panel):
    (ax, *_) = figure_of([panel]).axes
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("students", [1, 2, 3])
def test_a_legend_names_every_series(students):
    panels = panels_of(evaluated_runs(1, students))
    assert legend_of(panels["agreement"][0]) == [
        "all documents", "supervisor correct", "supervisor wrong",
    ]  # fmt: skip
    assert len(legend_of(panels["pgr"][0])) == students
    assert len(legend_of(panels["ladder"][0])) == students + 2
    assert len(legend_of(panels["calibration"][0])) == students + 2


def test_what_a_figure_leaves_out_is_said():
    runs = evaluated_runs(1, 8)
    # The seventh student, the first of the others, has no PGR.
    runs[0].result["students"]["loss_6"] |= {"pgr": None, "pgr_note": "made up"}
    panels = panels_of(runs)
    assert panels["ladder"][0].title.endswith("first 6 of 8 students")
    assert panels["calibration"][0].title.endswith("first 6 of 8 students")
    assert "others (n=1)" in legend_of(panels["pgr"][0])


def test_students_with_the_same_gap_are_side_by_side_and_arrows_have_one_text():
    runs = evaluated_runs(1, 5)
    for i, entry in enumerate(runs[0].result["students"].values()):
        entry["pgr"] = -2.0 - i
    (panel,) = panels_of(runs)["pgr"]
    (ax,) = figure_of([panel]).axes
    arrows = [line for line in ax.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert len({tuple(line.get_xdata()) for line in arrows}) == 1
    places = [line.get_transform().transform((0.1, 0))[0] for line in arrows]
    assert len(set(np.round(places, 3))) == 5
    assert [t.get_text() for t in ax.texts] == ["-6.0 to -2.0 (n=5)"]


def test_error_bars_of_shares_end_at_0_and_1():
    runs = evaluated_runs(1, 1, levels=(3.0, 9.0))
    assert runs[0].result["ceiling"]["accuracy"] == 1.0
    runs[0].result["ceiling"]["accuracy_se"] = 0.02
    panels = panels_of(runs)
    for name, axis in (("accuracy", 0), ("ladder", 1)):
        (ax,) = figure_of(panels[name]).axes
        ends = [
            s[:, axis].max() for c in ax.containers for b in c.lines[2] for s in b.get_segments()
        ]
        assert max(ends) <= 1
