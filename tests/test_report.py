"""Files and page of the report, for results with made-up numbers and names."""

import csv
import io
import json
import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from report_runs import fabricated, null_pgr, write_run

from w2s_jax.core.errors import InputError, StorageError
from w2s_jax.metrics import classification
from w2s_jax.report import print_result, write_report
from w2s_jax.report.drawing import MAX_PANELS
from w2s_jax.report.runs import load_runs
from w2s_jax.report.settings import settings_of
from w2s_jax.store.artifacts import write_predictions

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}


class Page(HTMLParser):
    """Parses a page: checks that tags nest, and collects tags, attributes and texts."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.attributes, self.tags = [], [], [], []
        self.rows = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr" and dict(attrs).get("data-role"):
            self.rows.append(dict(attrs) | {"values": {}})
        if tag == "td" and "data-field" in dict(attrs):
            self.rows[-1]["values"][dict(attrs)["data-field"]] = dict(attrs)["data-value"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def numbers(tree):
    if isinstance(tree, dict):
        return [n for value in tree.values() for n in numbers(value)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = write_run(folder / "run", fabricated())
    page = write_report([run], folder / "out")
    return page, page.read_text(encoding="utf-8")


def test_only_the_documented_files_are_written(report):
    out = report[0].parent
    # No ladder and no calibration: these results have no sizes and no predictions.
    figures = [
        f"{n}.{k}" for n in ("accuracy", "agreement", "pgr", "training") for k in ("png", "svg")
    ]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*figures, "report.html", "table.csv", "curves.csv", "calibration.csv"]
    )
    for name in figures:
        start = b"\x89PNG" if name.endswith("png") else b"<?xml"
        assert (out / name).read_bytes().startswith(start)


def test_page_is_well_formed_and_complete(report):
    source = report[1]
    assert source.startswith('<!DOCTYPE html>\n<html lang="en">')
    page = Page(source)
    assert page.tags.count("script") == 1
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in source
    for words in ("fabricated_task", "paper protocol", "seed 0", "weak-11fab1", "0.0.fabricated",
                  "63.125", "learning_rate", "only xent correct", "confidence"):  # fmt: skip
        assert words in page.text
    figures = page.tags.count("svg")
    # Accuracies, PGR, agreement, and the training curves of three phases.
    assert figures == 3 + 3
    assert len([1 for k, v in page.attributes if k == "aria-label" and v]) >= figures
    identifiers = [v for k, v in page.attributes if k == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_missing_figures_are_explained(report):
    text = Page(report[1]).text
    assert "Not drawn: no result records the sizes of its models." in text
    assert "Not drawn: no predictions were found for these results." in text


def test_sections_are_in_reading_order(report):
    positions = [
        report[1].index(f'id="{name}"')
        for name in ("summary", "ladder", "pgr", "accuracy", "agreement", "calibration", "training",
                     "table", "configs")
    ]  # fmt: skip
    assert positions == sorted(positions)


def test_every_number_of_the_result_is_on_the_page(report):
    page, result = Page(report[1]), fabricated()
    for value in numbers({k: result[k] for k in ("weak", "ceiling", "students")}):
        assert (str(value) if isinstance(value, int) else f"{value:.3f}") in page.text
    roles = [("weak", "weak", result["weak"])]
    roles += [("student", k, v) for k, v in result["students"].items()]
    roles.append(("ceiling", "ceiling", result["ceiling"]))
    assert [(r["data-role"], r["data-label"]) for r in page.rows] == [r[:2] for r in roles]
    for row, (_, _, wanted) in zip(page.rows, roles, strict=True):
        shown = {k: float(v) for k, v in row["values"].items() if v}
        assert shown == {k: v for k, v in wanted.items() if not isinstance(v, str)}


def test_page_is_self_contained(report):
    links = []
    for name, value in Page(report[1]).attributes:
        if name in ("src", "href", "xlink:href", "data", "poster", "action") and value != "data:,":
            links += [] if value.startswith("#") else [value]
    # The only link leads to the run's config.
    assert links == ["../run/config.json"]
    assert (report[0].parent / links[0]).is_file()
    assert "@import" not in report[1]
    assert not re.search(r"url\((?!#)", report[1])


def test_colours_of_inline_figures_follow_the_theme(report):
    figures = "".join(re.findall(r"<svg.*?</svg>", report[1], flags=re.DOTALL))
    assert "var(--ink)" in figures and "var(--s0)" in figures and "var(--weak)" in figures
    assert not re.search(r"#(1f2328|0068a3|c25400|ffffff)", figures)
    # Text is text, for search and screen readers.
    assert re.search(r"<text[^>]*>confidence</text>", figures)
    file = (report[0].parent / "accuracy.svg").read_text()
    assert "prefers-color-scheme:dark" in file and "fill: #1f2328" in file


def test_table_csv_has_one_row_per_role_with_full_precision(report):
    rows = list(csv.DictReader(io.StringIO((report[0].parent / "table.csv").read_text())))
    assert [(r["role"], r["loss"]) for r in rows] == [
        ("weak", ""), ("student", "xent"), ("student", "confidence"), ("ceiling", ""),
    ]  # fmt: skip
    assert rows[0]["ece"] == "0.0512" and rows[1]["pgr"] == "0.153" and rows[1]["n"] == "317"
    assert rows[0]["run"] == "run" and rows[0]["pgr"] == ""


def test_same_runs_give_the_same_files(report, tmp_path):
    again = write_report([write_run(tmp_path / "run", fabricated())], tmp_path / "out")
    for name in (p.name for p in report[0].parent.iterdir()):
        assert (again.parent / name).read_bytes() == (report[0].parent / name).read_bytes()


def test_malicious_names_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&$x^"
    result = fabricated(name=evil, task=evil, versions={evil: evil})
    result["students"] = {evil: result["students"]["xent"] | {"model": evil}}
    result["stages"][1] |= {"model": evil, "label": evil}
    run = write_run(tmp_path / "run", result, {"seed": 0, "note": evil})
    source = write_report([run], tmp_path / "out").read_text(encoding="utf-8")
    page = Page(source)
    assert page.tags.count("script") == 1
    assert evil in page.text
    assert source.count("alert(") == source.count("&lt;script&gt;alert(")


def test_undefined_pgr_shows_its_note(tmp_path):
    result = null_pgr(fabricated(), "PGR is undefined: a fabricated reason 0.9130.")
    text = Page(
        write_report(
            [write_run(tmp_path / "a", result, curves=False)], tmp_path / "out"
        ).read_text()
    ).text
    assert "a fabricated reason 0.9130." in text
    assert "NaN" not in text and "None" not in text
    both = [tmp_path / "a", write_run(tmp_path / "b", fabricated(seed=1), curves=False)]
    text = Page(write_report(both, tmp_path / "out").read_text()).text
    assert "a fabricated reason 0.9130." in text
    assert "undefined or missing in 1 of them" in text


def test_a_setting_is_runs_that_differ_only_in_seeds(tmp_path):
    runs = [write_run(tmp_path / f"s{s}", fabricated(s, s / 100), curves=False) for s in (0, 1, 3)]
    other = {"seed": 0, "train": {"learning_rate": 3e-4}}
    runs.append(write_run(tmp_path / "other", fabricated(0, 0.05), other, curves=False))
    loaded, _ = load_runs(runs)
    settings = settings_of(loaded)
    assert [len(setting.runs) for setting in settings] == [3, 1]
    assert [s.variant for s in settings] == [
        "train.learning_rate=0.0001", "train.learning_rate=0.0003",
    ]  # fmt: skip
    page = Page(write_report(runs, tmp_path / "out").read_text())
    assert "Seeds: 0, 1, 3" in page.text
    assert "median 0.752" in page.text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert len(rows) == 16 and rows[-1]["run"] == "other"
    identifiers = [v for k, v in page.attributes if k == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_a_run_given_twice_counts_once(tmp_path):
    run = write_run(tmp_path / "run", fabricated())
    assert len(load_runs([run, run / ".." / "run"])[0]) == 1


def test_a_sweep_is_replaced_by_its_finished_runs(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"seed{seed}", fabricated(seed), curves=False)
    (tmp_path / "runs" / "unfinished_one").mkdir()
    phase = tmp_path / "phases" / "weak-11fab1"
    phase.mkdir(parents=True)
    (phase / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "split": "train"}\n')
    page = Page(write_report([tmp_path], tmp_path / "report").read_text())
    assert "2 runs" in page.text and "no result yet: unfinished_one" in page.text
    # The weak phase, which both runs share, is drawn once.
    assert page.tags.count("svg") == 3 + 1


def test_missing_or_broken_results_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"empty_folder.*w2s run"):
        write_report([tmp_path / "empty_folder"], tmp_path / "out")
    with pytest.raises(InputError, match="at least one folder"):
        write_report([], tmp_path / "out")
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="result.json"):
        write_report([tmp_path], tmp_path / "out")
    (tmp_path / "result.json").write_text("[]")
    with pytest.raises(InputError, match="JSON object"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="out"):
        write_report([write_run(tmp_path / "run", fabricated(), curves=False)], tmp_path / "out")


def test_results_may_lack_fields(tmp_path):
    sparse = {"name": "fabricated_sparse", "ceiling": {"model": "m", "accuracy": 0.9},
              "weak": {"accuracy": 0.8}, "students": {"xent": {}}}  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(sparse))
    page = Page(write_report([folder], tmp_path / "out").read_text())
    assert "no recorded accuracy" in page.text and "no training curves were found" in page.text
    assert not (tmp_path / "out" / "training.png").exists()
    print_result(sparse, console(io.StringIO()))


def console(stream, width=80, **more):
    from rich.console import Console

    return Console(file=stream, width=width, **more)


def test_terminal_table_at_80_columns_keeps_every_number():
    result = fabricated()
    long = result["students"].pop("xent") | {"model": "fabricated-owner/strong-model-1.4b-base"}
    long["pgr"] = -12.345
    result["students"]["soft_buffered_confidence"] = long
    result["weak"]["n"] = 12345
    stream = io.StringIO()
    print_result(result, console(stream))
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "\x1b" not in text
    for words in ("0.711 ± 0.021", "0.795 ± 0.021", "0.913 ± 0.021", "-12.345", "12345", "0.416",
                  "0.872", "0.833", "0.788", "0.051", "One seed only"):  # fmt: skip
        assert words in text
    line = next(x for x in text.splitlines() if "-12.345" in x)
    assert "0.742 ± 0.021" in line and "0.803" in line and "317" in line


def test_terminal_prints_names_without_markup_or_control_codes():
    stream = io.StringIO()
    result = null_pgr(fabricated(name="[red]x[/red]\x1b[2J"), "PGR is undefined: fabricated.")
    print_result(result, console(stream, width=100))
    assert "[red]x[/red]?[2J" in stream.getvalue()
    assert "note: PGR is undefined: fabricated." in stream.getvalue()


def test_terminal_without_unicode():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_result(fabricated(), console(stream))
    stream.flush()
    assert b"0.711+/-0.021" in raw.getvalue()


def write_phase(folder, stage, p_N, truth_N, **result):
    phase = folder / "phases" / stage
    phase.mkdir(parents=True, exist_ok=True)
    write_predictions(
        phase / "predictions.parquet",
        {"id": np.arange(p_N.size, dtype=np.uint64), "split": ["test"] * p_N.size, "p": p_N,
         "label": p_N, "ground_truth": truth_N},
    )  # fmt: skip
    (phase / "result.json").write_text(json.dumps(result))


def test_predictions_and_kept_steps_are_read_from_phases(tmp_path):
    rng = np.random.default_rng(0)
    truth_N = rng.integers(0, 2, 300).astype(np.float32)
    p = {k: np.clip(truth_N * 0.6 + 0.2 + rng.normal(0, s, 300), 0.01, 0.99).astype(np.float32)
         for k, s in (("weak", 0.5), ("student", 0.35), ("ceiling", 0.2))}  # fmt: skip
    result = fabricated()
    result["stages"].append({"kind": "ceiling", "phase": "ceiling-33", "model": "m"})
    for role, phase in (("weak", "weak-11fab1"), ("ceiling", "ceiling-33")):
        result[role]["phase"] = phase
    result["students"]["xent"]["phase"] = "student-22fab0"
    folder = write_run(tmp_path / "run", result)
    write_phase(folder, "weak-11fab1", p["weak"], truth_N)
    write_phase(folder, "student-22fab0", p["student"], truth_N, kept_step=20)
    write_phase(folder, "ceiling-33", p["ceiling"], truth_N)
    write_report([folder], tmp_path / "out")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "calibration.csv").read_text())))
    assert sum(int(r["n"]) for r in rows if r["label"] == "xent") == 300
    curve = classification.calibration_curve(p["student"], truth_N, 10)
    shown = [float(r["share"]) for r in rows if r["label"] == "xent"]
    assert shown == pytest.approx([b["share"] for b in curve])
    curves = list(csv.DictReader(io.StringIO((tmp_path / "out" / "curves.csv").read_text())))
    kept = {r["kept_step"] for r in curves if r["phase"] == "student-22fab0"}
    assert kept == {"20"} and len(curves) == 4 * 31
    (folder / "phases" / "ceiling-33" / "predictions.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"ceiling-33.*predictions"):
        write_report([folder], tmp_path / "out")


def test_figures_of_an_earlier_report_are_removed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("training.png", "training.svg", "mine.png"):
        (out / name).write_text("from an earlier report")
    write_report([write_run(tmp_path / "run", fabricated(), curves=False)], out)
    assert not list(out.glob("training.*")) and (out / "mine.png").exists()


@pytest.mark.slow
def test_fifty_runs_take_less_than_twenty_seconds(tmp_path):
    runs = [
        write_run(tmp_path / f"r{i}", fabricated(i % 3, i / 1000, task=f"task{i // 3}"))
        for i in range(50)
    ]
    started = time.process_time()
    page = write_report(runs, tmp_path / "out").read_text()
    assert time.process_time() - started < 20
    assert f"Only the first {MAX_PANELS} panels are drawn; 5 more are omitted" in Page(page).text
