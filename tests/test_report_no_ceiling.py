"""Reports on runs without a ceiling: their documents have no labels."""

import csv
import io
import re

import pytest
from report_runs import evaluated_runs, fabricated, null_pgr, write_evaluated, write_run
from rich.console import Console

from w2s_jax.execution.results import NO_CEILING
from w2s_jax.report import print_result, write_report
from w2s_jax.report.results import show_pgr
from w2s_jax.report.runs import load_runs
from w2s_jax.report.settings import settings_of
from w2s_jax.report.summaries import overview, setting_summary, summary


def without_ceiling(result):
    null_pgr(result, NO_CEILING)["ceiling"] = None
    for student in result["students"].values():
        student.update(dict.fromkeys(("pgr_low", "pgr_high", "gap_low", "gap_high")))
    return result


def test_one_run():
    result = without_ceiling(fabricated())
    text = summary(result)
    assert "accuracy is 0.711 ± 0.021 on 317 test documents, and there is no ceiling" in text
    assert "for the ceiling" not in text and "undefined" not in text
    assert show_pgr(result, result["students"]["xent"]) == "–"
    output = io.StringIO()
    print_result(result, Console(file=output, width=100))
    assert output.getvalue().count("There is no ceiling") == 1
    assert "exceed" not in output.getvalue() and "undefined" not in output.getvalue()
    # A ceiling that is not above the weak model is another matter.
    result = null_pgr(fabricated(), "PGR is undefined: fabricated")
    assert "does not exceed" in summary(result)
    assert show_pgr(result, result["students"]["xent"]) == "undefined"


@pytest.fixture
def mixed(tmp_path):
    """Three seeds without a ceiling, and three with one, in folders."""
    folders = []
    for halves in ("shared", "separate"):
        for run in evaluated_runs(3, 2):
            run.config["protocol"] = {"halves": halves}
            if halves == "shared":
                without_ceiling(run.result)
            folders.append(write_evaluated(tmp_path / halves / run.folder.name, run))
    return folders


def test_several_seeds_with_and_without(mixed, tmp_path):
    settings = settings_of(load_runs(mixed)[0])
    (none,) = [s for s in settings if "shared" in s.title]
    (some,) = [s for s in settings if "separate" in s.title]
    text = setting_summary(none)
    assert "and there is no ceiling, so no PGR" in text and "undefined" not in text
    assert "median PGR" in setting_summary(some)
    assert ("ceiling", "ceiling") not in none.entries
    for label in ("loss_0", "loss_1"):
        # What does not need a ceiling is what it is with one.
        assert none.estimates.above_weak[label] == some.estimates.above_weak[label]
        assert (
            none.estimates.accuracy["student", label] == (some.estimates.accuracy["student", label])
        )
        assert none.estimates.pgr[label].value is none.estimates.gap[label].value is None
        assert some.estimates.gap[label].value > 0
    caveats = overview(settings)["caveats"]
    assert caveats["No ceiling"] == [{"setting": none.title, "text": NO_CEILING}]
    assert "No gap to recover" not in caveats
    page = write_report(mixed, tmp_path / "out").read_text()
    assert not re.search(r">\s*(nan|none)\s*<", page, re.IGNORECASE)
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["role"] for row in rows].count("ceiling") == 3
    shared = [row for row in rows if "shared" in row["setting"] and row["role"] == "student"]
    assert len(shared) == 6
    assert {(r["pgr"], r["gap_low"], r["pgr_note"]) for r in shared} == {("", "", NO_CEILING)}
    assert (tmp_path / "out" / "pgr.svg").exists() and (tmp_path / "out" / "ladder.svg").exists()


def test_all_runs_without(tmp_path):
    folders = [write_run(tmp_path / f"{s}", without_ceiling(fabricated(s))) for s in range(2)]
    page = write_report(folders, tmp_path / "out").read_text()
    assert "Not drawn: no student has a defined PGR." in page
    assert not (tmp_path / "out" / "pgr.svg").exists()
    assert "does not exceed the weak" not in page
