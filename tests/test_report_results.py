"""Figures, comparisons, summaries and caveats, for results with made-up numbers and names."""

import math
from pathlib import Path

import numpy as np
import pytest
from report_runs import entry, fabricated, null_pgr

from w2s_jax.metrics import intervals
from w2s_jax.report.agreement import agreement_panels
from w2s_jax.report.caveats import result_caveats, setting_caveats
from w2s_jax.report.charts import accuracy_panels, gap_panels, ladder_panels
from w2s_jax.report.comparison import compare_students
from w2s_jax.report.curves import Curve, series, training_panels
from w2s_jax.report.drawing import figure_of
from w2s_jax.report.results import REACH, difference
from w2s_jax.report.runs import FinishedRun
from w2s_jax.report.settings import settings_of
from w2s_jax.report.summaries import overview, setting_summary, summary


def in_settings(*results):
    return settings_of([FinishedRun(Path(f"r{i}"), r) for i, r in enumerate(results)])


def axes(panels):
    return [ax for ax in figure_of(panels).axes if ax.get_visible()]


def test_accuracy_panels_show_values_errors_and_lines():
    (ax,) = axes(accuracy_panels(in_settings(fabricated())))
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.711 ± 0.021", "0.742 ± 0.021", "0.795 ± 0.021", "0.913 ± 0.021"]
    dashed = [x.get_xdata()[0] for x in ax.lines if x.get_linestyle() == "--"]
    assert dashed == [0.711, 0.913]
    assert "317 documents" in ax.get_xlabel()
    (ax,) = axes(accuracy_panels(in_settings(*(fabricated(s, s / 100) for s in range(3)))))
    # .711, .721, .731: the standard error of the mean is .01 / sqrt(3).
    assert ax.texts[0].get_text() == "0.721 ± 0.006 (n=3)"
    other = in_settings(fabricated(), fabricated(task="fabricated_other"))
    assert len(axes(accuracy_panels(other))) == 2


def test_training_series_skip_values_that_are_not_finite():
    rows = [{"step": i, "loss": 1.0, "split": "train"} for i in range(5)]
    rows += [{"step": 9, "loss": float("nan"), "split": "train"}, {"loss": 1.0, "split": "train"}]
    # A step that is logged again after a resume: the later row counts.
    rows += [{"step": 4, "loss": 3.0, "split": "train"}, {"step": 4, "split": "validation"}]
    assert series(rows, "train", "loss") == ([0, 1, 2, 3, 4], [1, 1, 1, 1, 3])
    curve = Curve("run", "0", "phase", "student", "xent", rows, kept_step=2, steps=4)
    (ax, other) = axes(
        training_panels({"a": [curve], "empty": [Curve("r", "0", "p", "weak", "", [], None, None)]})
    )
    (star,) = [line for line in ax.lines if line.get_marker() == "*"]
    assert (list(star.get_xdata()), list(star.get_ydata())) == ([2], [1.0])
    assert other.texts[0].get_text() == "no losses logged"
    last = Curve("run", "0", "phase", "student", "xent", rows, kept_step=4, steps=4)
    assert all(line.get_marker() != "*" for line in axes(training_panels({"a": [last]}))[0].lines)


def sized(seed, strong, size, shift, ceiling_phase=None):
    """Returns a result whose models have sizes."""
    result = fabricated(seed, shift)
    result["weak"] |= {"parameters": 1000, "phase": f"weak-{seed}"}
    result["ceiling"] |= {"model": strong, "parameters": size, "accuracy": 0.9 + shift,
                          "phase": ceiling_phase or f"ceiling-{strong}-{seed}"}  # fmt: skip
    for label, student in result["students"].items():
        student |= {"model": strong, "parameters": size, "phase": f"s-{label}-{strong}-{seed}"}
    return result


def test_ladder_has_means_over_seeds_and_one_line_per_supervisor():
    rungs = (("m1", 1e4, 0.0), ("m2", 1e6, 0.05))
    results = [sized(s, name, n, s / 100 + more) for s in (0, 2) for name, n, more in rungs]
    other = [dict(r) for r in results]
    for r in other:
        weak = {"model": "other-weak", "accuracy": 0.6, "phase": f"other-{r['seed']}"}
        r["weak"] = r["weak"] | weak
        # Another supervisor has the same ceilings.
        r["students"] = {"xent": r["students"]["xent"] | {"accuracy": 0.65, "phase": "x"}}
    (ax,) = axes(ladder_panels(in_settings(*results, *other)))
    lines = {c.get_label(): c.lines[0] for c in ax.containers}
    assert set(lines) == {
        "ceiling (ground truth)", "fabricated-weak, xent", "fabricated-weak, confidence",
        "other-weak, xent", "weak model fabricated-weak", "weak model other-weak",
    }  # fmt: skip
    ceiling = lines["ceiling (ground truth)"]
    assert list(ceiling.get_xdata()) == [1e4, 1e6]
    assert list(ceiling.get_ydata()) == pytest.approx([0.91, 0.96])
    assert list(lines["fabricated-weak, xent"].get_ydata()) == pytest.approx([0.752, 0.802])
    # Two seeds .02 apart: the standard error of their mean is .01.
    (bars,) = ax.containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert (low, high) == (pytest.approx(0.90), pytest.approx(0.92))
    assert ax.get_xscale() == "log" and "2 seeds per point" in ax.get_xlabel()
    single = axes(ladder_panels(in_settings(sized(0, "m1", 1e4, 0))))[0]
    low, high = single.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(0.0213)


def test_a_pgr_beyond_the_axes_is_an_arrow_with_its_value():
    result = fabricated()
    result["students"]["xent"]["pgr"] = -7.25
    (ax,) = axes(gap_panels(in_settings(result)))
    assert "-7.2" in [t.get_text() for t in ax.texts]
    inside = [
        line for line in ax.lines if line.get_marker() == "^" and line.get_linestyle() == "None"
    ]
    assert [list(line.get_xdata()) for line in inside] == [[pytest.approx(0.913 - 0.711)]]
    assert gap_panels(in_settings(null_pgr(fabricated(), "fabricated"))) == []


def test_agreement_legend_is_inside_the_figure():
    settings = in_settings(fabricated(), fabricated(task="b"))
    for panels in (agreement_panels(settings[:1]), agreement_panels(settings)):
        figure = figure_of(panels)
        for ax in figure.axes:
            box = ax.get_legend().get_window_extent()
            assert figure.bbox.y0 <= box.y0 and box.y1 <= ax.get_window_extent().y0


def test_losses_are_compared_over_common_seeds():
    results = [fabricated(s, s / 100) for s in range(4)]
    gains = (0.05, 0.06, 0.04, 0.07)
    for result, gain in zip(results, gains, strict=True):
        result["students"]["confidence"]["accuracy"] = result["students"]["xent"]["accuracy"] + gain
        result["students"]["third"] = result["students"]["xent"] | {"accuracy": 0.7 + gain**2}
    del results[3]["students"]["third"]
    (setting,) = in_settings(*results)
    comparison = compare_students(setting)
    rows = {row["label"]: row for row in comparison["rows"]}
    assert comparison["reference"] == "xent" and rows["xent"]["paired"] is None
    paired = rows["confidence"]["paired"]
    assert paired["n"] == 4 and paired["difference"] == pytest.approx(np.mean(gains))
    assert paired["cohens_d_z"] == pytest.approx(np.mean(gains) / np.std(gains, ddof=1))
    assert rows["third"]["paired"]["n"] == 3
    raw = {k: rows[k]["paired"]["t_p"] for k in ("confidence", "third")}
    assert {k: rows[k]["p_holm"] for k in raw} == pytest.approx(intervals.holm(raw))
    assert comparison["comparisons"] == 2
    means = {k: np.mean([r[k]["accuracy"] for r in results]) for k in ("weak", "ceiling")}
    student = np.mean([r["students"]["xent"]["accuracy"] for r in results])
    expected = (student - means["weak"]) / (means["ceiling"] - means["weak"])
    assert rows["xent"]["pgr"].value == pytest.approx(expected)


def test_runs_that_add_losses_to_a_seed_count_its_weak_model_once():
    results = [fabricated(s, s / 100) for s in range(3)]
    more = [dict(r, students={"third": r["students"]["xent"]}) for r in results]
    (setting,) = in_settings(*results, *more)
    counts = {label: len(found) for (_, label), found in setting.entries.items()}
    assert counts == {"weak": 3, "xent": 3, "confidence": 3, "third": 3, "ceiling": 3}


def test_a_student_may_have_its_own_ceiling():
    result = fabricated()
    result["students"]["xent+bootstrap"] = result["students"]["xent"] | {
        "method": "bootstrap", "ceiling": entry(0.95, 0.9, 0.1, "fabricated-strong"),
    }  # fmt: skip
    (setting,) = in_settings(result)
    row = next(r for r in compare_students(setting)["rows"] if r["label"] == "xent+bootstrap")
    assert row["pgr"].value == pytest.approx((0.742 - 0.711) / (0.95 - 0.711))
    assert ("ceiling", "ceiling of xent+bootstrap") in setting.entries


def caveat_names(results):
    return {name for name, _ in setting_caveats(in_settings(*results)[0])}


def test_caveats_of_a_setting():
    clear = fabricated()
    clear["students"]["xent"]["accuracy"] = 0.82
    clear["students"]["confidence"]["accuracy"] = 0.83
    assert caveat_names([clear]) == {"seeds", "comparisons"}
    assert caveat_names([fabricated()]) == {
        "indistinguishable",
        "documents",
        "seeds",
        "comparisons",
    }
    # The paired error of xent - weak is sqrt((0.128 - 0.031**2) / 317).
    error = math.sqrt((0.128 - 0.031**2) / 317)
    needed = math.ceil(317 * (REACH * error / 0.031) ** 2 / 10) * 10
    text = " ".join(t for _, t in setting_caveats(in_settings(fabricated())[0]))
    assert "Detecting a difference of 0.031 (xent and the weak model)" in text
    assert f"about {needed} test documents (317 used)" in text and needed > 317
    no_gap = fabricated()
    no_gap["ceiling"]["accuracy"] = 0.73
    assert "undefined" in caveat_names([no_gap])
    chance = fabricated()
    chance["weak"]["accuracy"] = 0.52
    assert "chance" in caveat_names([chance])
    seeds = [fabricated(s, s / 1000) for s in range(6)]
    assert "seeds" not in caveat_names(seeds) and "seeds" in caveat_names(seeds[:5])
    seeds[2] = null_pgr(seeds[2], "fabricated")
    assert "In 1 of 6 seeds the ceiling does not exceed" in " ".join(
        t for _, t in setting_caveats(in_settings(*seeds)[0])
    )


def test_seeds_that_agree_by_chance_are_as_uncertain_as_their_documents():
    # Two seeds with equal differences have no spread. Whether they share their 317 documents is
    # not known without predictions; if they do, 1.96 sqrt((0.128 - 0.03**2) / 317) = 0.039.
    results = [fabricated(0), fabricated(1)]
    for result in results:
        result["students"]["xent"]["accuracy"] = result["weak"]["accuracy"] + 0.03
        result["students"]["confidence"]["accuracy"] = 0.85
    assert "indistinguishable" in caveat_names(results)
    for result in results:
        result["students"]["xent"]["accuracy"] = result["weak"]["accuracy"] + 0.045
    assert "indistinguishable" not in caveat_names(results)


def test_overview_of_several_settings():
    found = overview(
        in_settings(fabricated(), fabricated(task="b"), null_pgr(fabricated(task="c"), "none"))
    )
    text = " ".join(found["paragraphs"])
    assert "3 runs in 3 settings on 3 tasks (fabricated_task, b and c)" in text
    assert "xent student outperforms the weak model in 3 of 3 settings" in text
    assert found["caveats"]["Few seeds"][0]["setting"] == "in all settings"
    assert found["caveats"]["No gap to recover"][0]["setting"].startswith("c, ")


def test_caveats_of_a_result():
    result = fabricated()
    result["students"]["xent"]["accuracy"] = 0.76
    lines = " ".join(result_caveats(result))
    # The paired error of xent - weak is sqrt((0.128 - 0.049**2) / 317) = 0.020: 2.4 of them.
    assert "distinguishable" not in lines and "chance" not in lines and "One seed" in lines
    result["students"]["xent"]["accuracy"] = 0.742
    assert "difference includes 0): xent." in " ".join(result_caveats(result))
    result["ceiling"]["accuracy"] = 0.73
    assert "the gap between ceiling and weak model is 0.019" in " ".join(result_caveats(result))
    result["weak"]["accuracy"] = 0.52
    assert "classes): weak." in " ".join(result_caveats(result))


def test_difference_is_paired_where_agreement_is_known():
    left, right = entry(0.80, 0, 0, "a"), entry(0.75, 0, 0, "b")
    gap, se = difference(left, right, agreement=0.9)
    assert gap == pytest.approx(0.05)
    assert se == pytest.approx(((0.1 - 0.0025) / 317) ** 0.5)
    assert difference(left, right)[1] == pytest.approx(0.0213 * 2**0.5)
    # An agreement that contradicts the accuracies is ignored.
    assert difference(left, right, agreement=0.99)[1] == pytest.approx(0.0213 * 2**0.5)
    assert difference(left, {}) == (None, None)


def test_summaries_compare_students_with_the_weak_model():
    text = summary(fabricated())
    assert "xent student reaches 0.742 ± 0.021, 0.031 above the weak model" in text
    # 0.031 ± 1.96 * 0.020
    assert "[-0.008 to 0.070], so the two are not distinguishable" in text
    assert "recovers 0.153 of the gap" in text
    assert "most accurate student is confidence" in text
    (setting,) = in_settings(*(fabricated(s, s / 100) for s in range(3)))
    text = setting_summary(setting)
    assert "median 0.752, above the weak model in 3 of 3 seeds (distinguishably in 0)" in text
    assert "undefined" in summary(null_pgr(fabricated(), "fabricated"))
