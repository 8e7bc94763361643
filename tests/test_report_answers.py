"""Reports on generation tasks: numbers against hand-counted ones, and answers side by side."""

import csv
import io
import json
import math
import random
import re
from pathlib import Path

import pytest
from report_runs import answered_run, fabricated, write_run
from test_report import Page, console

from w2s_jax.report import agreement, answers_table, charts, print_result, write_report
from w2s_jax.report.answers import MAX_CHARACTERS, answer_sheet, shortened
from w2s_jax.report.results import student_difference
from w2s_jax.report.runs import load_runs
from w2s_jax.report.settings import settings_of

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "plotting.ipynb"
LONG = "z" * 100
#: Documents -> the answers to them; None is the right one. Of 60 documents, weak is right in 26,
#: xent in 30, confidence in 36, the ceiling in 56.
PATTERNS = [
    # count, weak, xent, confidence, ceiling
    (20, None, None, None, None),
    (10, "w", None, None, None),
    (12, "w", "w", "v", None),
    (6, None, LONG, None, None),
    (8, "", "", "w", None),
    (4, "w", "u", "w", "q"),
]
LABELS = ("weak", "xent", "confidence", "ceiling")
EVIL = "<script>alert('x')</script>"


def questions(order=None):
    """Return targets and label -> answers of the 60 documents."""
    rows = [row for count, *row in PATTERNS for _ in range(count)]
    targets = [f"<i>{n}&" for n in range(len(rows))]
    order = list(range(len(rows))) if order is None else order
    answers = {
        label: [targets[n] if rows[n][column] is None else rows[n][column] for n in order]
        for column, label in enumerate(LABELS)
    }
    return [targets[n] for n in order], answers


def write_answered(folder, seed=0, order=None, **more):
    targets, answers = questions(order)
    texts = {"weak": [f"{EVIL} so: {answer}" for answer in answers["weak"]]}
    return answered_run(folder, answers, targets, seed=seed, texts=texts, **more)


def draw_only(monkeypatch, *kept):
    """Leaves out other figures, whose drawing takes nearly all of a report's time."""
    for module, names in (
        (charts, ("ladder_panels", "gap_panels", "accuracy_panels")),
        (agreement, ("agreement_panels",)),
    ):
        for name in names:
            if name not in kept:
                monkeypatch.setattr(module, name, lambda settings: [])


@pytest.fixture
def without_figures(monkeypatch):
    draw_only(monkeypatch)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    run = write_answered(folder / "run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_only(monkeypatch, "accuracy_panels")
        page = write_report([run], folder / "out")
    return page, page.read_text(encoding="utf-8")


def test_numbers_are_those_counted_by_hand(report):
    found = {row["data-label"]: row["values"] for row in Page(report[1]).rows}
    wanted = {
        "weak": {"accuracy": 26 / 60},
        "xent": {
            "accuracy": 30 / 60,
            "pgr": 4 / 30,
            # Eight times both answer nothing, which is no agreement.
            "agreement": 32 / 60,
            "agreement_when_correct": 20 / 26,
            "agreement_when_wrong": 12 / 34,
        },
        "confidence": {
            "accuracy": 36 / 60,
            "pgr": 10 / 30,
            "agreement": 30 / 60,
            "agreement_when_correct": 1.0,
            "agreement_when_wrong": 4 / 34,
        },
        "ceiling": {"accuracy": 56 / 60},
    }
    for label, fields in wanted.items():
        for field, value in fields.items():
            assert float(found[label][field]) == pytest.approx(value), (label, field)
        assert found[label]["n"] == "60"
        assert all(found[label][name] == "" for name in ("auroc", "ece", "overconfidence"))
    text = Page(report[1]).text
    # McNemar: in 6 documents only confidence is right, in none only xent: p = 2 / 2⁶.
    assert re.search(r"confidence 0\.600 .* 0\.100 n = 60 6 0 0\.031 0\.031", text)
    assert "None" not in text and "nan" not in text.lower()


def test_the_difference_from_the_weak_model_has_its_paired_error(report):
    run = json.loads((report[0].parent.parent / "run" / "result.json").read_text())
    # Only xent is right in 10 documents, only the weak model in 6.
    for label, own, other in (("xent", 10, 6), ("confidence", 10, 0)):
        found = student_difference(run, run["students"][label])
        difference = (own - other) / 60
        assert found.value == pytest.approx(difference)
        assert found.se == pytest.approx(math.sqrt(((own + other) / 60 - difference**2) / 60))
    assert "[-0.063 to 0.196]" in Page(report[1]).text


def test_answers_have_no_chance_level_and_no_calibration(report):
    # The accuracy of xent is one half.
    assert "chance" not in report[1]
    text = Page(report[1]).text
    assert "Not drawn: answers have no probabilities of being right." in text
    assert not (report[0].parent / "calibration.png").exists()
    assert "gives the same answer as its supervisor" in text
    assert (report[0].parent / "calibration.csv").read_text().count("\n") == 1


def tables_of(source):
    """Return the rows of the tables of answers: lists of the HTML of their cells."""
    tables = re.findall(r'<table class="answers".*?</table>', source, flags=re.DOTALL)
    rows = [re.findall(r"<tr data-id=.*?</tr>", table, flags=re.DOTALL) for table in tables]
    return [[re.findall(r"<t[hd].*?</t[hd]>", r, flags=re.DOTALL) for r in own] for own in rows]


def test_ten_answers_are_side_by_side_each_marked_right_or_wrong(report):
    (rows,) = tables_of(report[1])
    assert len(rows) == 10
    targets, answers = questions()
    rights = 0
    for cells in rows:
        shown = [Page(cell).text.strip() for cell in cells]
        place = targets.index(shown[0].split()[0])
        assert len(shown) == 1 + len(LABELS)
        for label, cell, html in zip(LABELS, shown[1:], cells[1:], strict=True):
            answer = answers[label][place]
            right = answer == targets[place]
            rights += right
            # A word for screen readers and a sign, not colour alone.
            name = "right" if right else "wrong"
            assert f'role="img" aria-label="{name}">{"✓" if right else "✗"}<' in html
            assert cell.startswith(f"{'✓' if right else '✗'} {shortened(answer) or 'no answer'}")
            # The whole completion can be opened where it is more than the answer.
            assert ("<details>" in html) == (label == "weak" or answer in (LONG, ""))
            if label == "weak":
                assert f"{EVIL} so: {answer}".strip() in cell
            if answer == LONG:
                assert LONG in cell
    assert 0 < rights < 40


def test_documents_where_weak_model_and_first_student_differ_come_first(report, tmp_path):
    text = Page(report[1]).text
    assert "10 of 60 test documents, seed 0: first those where the weak model and the xent" in text
    # Different answers: 10 + 6 + 4; two that answer nothing do not differ.
    assert "answer differently (20 of 60)" in text
    targets, answers = questions()
    differs = [a != b for a, b in zip(answers["weak"], answers["xent"], strict=True)]
    (setting,) = settings_of(load_runs([report[0].parent.parent / "run"])[0])
    sheet = answer_sheet(setting, count=60)
    shown = [differs[targets.index(case.target)] for case in sheet.cases]
    assert shown == [True] * 20 + [False] * 40
    # The order is not that of the file, and does not depend on it.
    order = list(range(60))
    random.Random(0).shuffle(order)
    write_answered(tmp_path / "shuffled", order=order)
    again = answer_sheet(settings_of(load_runs([tmp_path / "shuffled"])[0])[0], count=60)
    assert again.cases == sheet.cases
    first = [targets.index(case.target) for case in sheet.cases[:20]]
    assert first != sorted(first)


def test_texts_of_models_are_escaped(report):
    source = report[1]
    assert Page(source).tags.count("script") == 1
    assert source.count("alert(") == source.count("&lt;script&gt;alert(") >= 10
    assert "<i>" not in source


def test_answers_csv_has_a_row_for_each_answer_shown(report):
    rows = list(csv.DictReader(io.StringIO((report[0].parent / "answers.csv").read_text())))
    assert len(rows) == 10 * 4
    assert [(r["role"], r["label"]) for r in rows[:4]] == [
        ("weak", "weak"), ("student", "xent"), ("student", "confidence"), ("ceiling", "ceiling"),
    ]  # fmt: skip
    targets, answers = questions()
    for row in rows:
        answer = answers[row["label"]][targets.index(row["target"])]
        assert row["answer"] == answer and row["run"] == "run" and row["seed"] == "0"
        assert row["correct"] == str(answer == row["target"]) and row["logprob"] == "-0.5"
        assert row["text"] == (f"{EVIL} so: {answer}" if row["label"] == "weak" else answer)
    ids = re.findall(r'<tr data-id="(\d+)"', report[1])
    assert [row["id"] for row in rows[::4]] == ids


def test_the_notebook_shows_the_answers_of_the_table(report):
    pandas = pytest.importorskip("pandas")
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (cell,) = [
        c for c in cells if c["cell_type"] == "code" and "answers.csv" in "".join(c["source"])
    ]
    names = {"pd": pandas, "path": report[0].parent / "table.csv"}
    exec("".join(cell["source"]), names)
    assert names["answers"].shape[0] == 10
    for (_, _, target), row in names["answers"].iterrows():
        assert list(row.index) == list(LABELS)
        for label in LABELS:
            assert row[label].startswith("✓" if row[label] == f"✓ {target}" else "✗"), label
    names = {"pd": pandas, "path": report[0].parent / "no folder" / "table.csv"}
    exec("".join(cell["source"]), names)


def test_answers_as_rows_for_a_notebook(report):
    rows = answers_table([report[0].parent.parent / "run"], count=60)
    targets, answers = questions()
    assert len(rows) == 60
    for row in rows:
        place = targets.index(row["target"])
        for label in LABELS:
            answer = answers[label][place]
            assert row[label] == f"{'✓' if answer == row['target'] else '✗'} {answer}".strip()


def test_scores_are_means_over_seeds(tmp_path, without_figures):
    def scores(legal, mates):
        return {label: {"legal": legal, "<b>mates": mates} for label in LABELS}

    runs = [write_answered(tmp_path / "a", 0, scores=scores(0.5, None))]
    runs += [write_answered(tmp_path / "b", 1, scores=scores(0.7, 0.25))]
    source = write_report(runs, tmp_path / "out").read_text()
    text = Page(source).text
    assert "Scores of the task model legal <b>mates weak model" in text
    # The standard error of .5 and .7 is .1414 / √2; one seed has no mates.
    for name in ("weak model", *LABELS[1:]):
        assert f"{name} 0.600 ± 0.100, n = 2 0.250" in text
    # Both seeds answer the same: the mean accuracy is that of either, over the same documents.
    assert "Means over n seeds, with 95% intervals over seeds and documents" in text
    assert "0.433" in text and "chance" not in source
    single = Page(write_report(runs[:1], tmp_path / "single").read_text()).text
    assert "weak model 0.500 – xent 0.500 –" in single


def test_the_terminal_shows_dashes_for_what_answers_lack(report):
    result = json.loads((report[0].parent.parent / "run" / "result.json").read_text())
    stream = io.StringIO()
    print_result(result, console(stream))
    line = next(x for x in stream.getvalue().splitlines() if x.startswith("xent"))
    assert re.split(r"\s{2,}", line.strip())[-1].endswith("60")
    assert "0.500 ± 0.065" in line and line.count("–") == 2 and "0.533" in line
    assert "chance" not in stream.getvalue()


def test_missing_predictions_are_named_and_classes_have_no_section(
    report, tmp_path, without_figures
):
    run = write_answered(tmp_path / "run")
    (run / "phases" / "student-xent0" / "predictions.parquet").unlink()
    text = Page(write_report([run], tmp_path / "out").read_text()).text
    assert "10 of 60 test documents, seed 0, in the order of a hash of their ids." in text
    assert "Predictions not found: xent." in text
    for phase in (run / "phases").glob("*/predictions.parquet"):
        phase.unlink()
    text = Page(write_report([run], tmp_path / "out").read_text()).text
    assert "Not shown: no predictions were found for these results." in text
    assert not (tmp_path / "out" / "answers.csv").exists()
    classes = write_run(tmp_path / "classes", fabricated(), curves=False)
    source = write_report([classes], tmp_path / "classes_out").read_text()
    assert 'id="answers"' not in source and "answers.csv" not in source
    assert answers_table([classes]) == []
    both = write_report([classes, report[0].parent.parent / "run"], tmp_path / "both").read_text()
    assert [len(rows) for rows in tables_of(both)] == [10]


def test_more_students_than_columns(tmp_path, without_figures):
    targets, answers = questions()
    answers |= {f"loss_{n}": answers["xent"] for n in range(6)}
    run = answered_run(tmp_path / "run", answers, targets)
    text = Page(write_report([run], tmp_path / "out").read_text()).text
    assert "2 more students not shown." in text and "ceiling" in text
    rows = answers_table([run])
    assert list(rows[0])[4:] == ["weak", "xent", "confidence", *(f"loss_{n}" for n in range(4)),
                                 "ceiling"]  # fmt: skip


def test_long_texts_are_cut_and_control_characters_shown():
    assert shortened("a  b\n c") == "a b c"
    assert shortened("x" * MAX_CHARACTERS) == "x" * MAX_CHARACTERS
    assert shortened("x" * 300) == "x" * (MAX_CHARACTERS - 1) + "…"
    assert shortened("a\x00b") == "a�b"
