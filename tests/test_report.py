"""The report, from results whose numbers and names are fabricated."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from w2s_jax.errors import InputError, StorageError
from w2s_jax.report import print_result, write_report
from w2s_jax.report.figures import accuracy_figure, training_figure
from w2s_jax.report.runs import group_runs, load_runs
from w2s_jax.report.words import caveats, difference, group_summary, summary

VOID = {"meta", "br", "hr", "img", "link", "input", "col"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps texts, attributes and the tags seen."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.open, self.texts, self.attributes, self.tags = [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


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
                0.742 + shift, 0.803, 0.0625, "fabricated-strong", pgr=0.153, **agreement
            ),
            "confidence": entry(
                0.795 + shift,
                0.841,
                0.0741,
                "fabricated-strong",
                pgr=0.416,
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
        # A killed run may leave a torn last line.
        torn = '\n{"step": 30, "lo'
        (phase / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + torn)
    return folder


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


def test_files_are_written_and_nothing_else(report):
    out = report[0].parent
    assert sorted(p.name for p in out.iterdir()) == [
        "accuracy.png", "report.html", "table.csv", "training.png",
    ]  # fmt: skip
    for name in ("accuracy.png", "training.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_page_is_well_formed_and_complete(report):
    source = report[1]
    assert source.startswith('<!DOCTYPE html>\n<html lang="en">')
    page = Page(source)
    assert "script" not in page.tags
    assert ("name", "viewport") in page.attributes
    assert "prefers-color-scheme: dark" in source
    for words in ("fabricated_task", "paper protocol", "seed 0", "weak-11fab1", "0.0.fabricated",
                  "63.125", "learning_rate", "student (xent)"):  # fmt: skip
        assert words in page.text
    figures = page.tags.count("svg")
    assert figures == 1 + 3
    assert len([1 for k, v in page.attributes if k == "aria-label" and v]) >= figures
    identifiers = [v for k, v in page.attributes if k == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_every_number_of_the_result_is_on_the_page(report):
    text = Page(report[1]).text
    result = fabricated()
    for value in numbers({k: result[k] for k in ("weak", "ceiling", "students")}):
        assert (str(value) if isinstance(value, int) else f"{value:.3f}") in text


def test_page_refers_to_nothing_outside(report):
    for name, value in Page(report[1]).attributes:
        if name in ("src", "href", "xlink:href", "data", "poster", "action"):
            assert value.startswith("#")
    assert "@import" not in report[1]
    assert not re.search(r"url\((?!#)", report[1])


def test_colours_of_inline_figures_follow_the_theme(report):
    figures = "".join(re.findall(r"<svg.*?</svg>", report[1], flags=re.DOTALL))
    assert "var(--ink)" in figures and "var(--student)" in figures
    assert not re.search(r"#(1f2328|0072b2|ffffff)", figures)


def test_table_csv_has_a_row_a_role_with_full_precision(report):
    rows = list(csv.DictReader(io.StringIO((report[0].parent / "table.csv").read_text())))
    assert [(r["role"], r["loss"]) for r in rows] == [
        ("weak", ""), ("student", "xent"), ("student", "confidence"), ("ceiling", ""),
    ]  # fmt: skip
    assert rows[0]["ece"] == "0.0512" and rows[1]["pgr"] == "0.153" and rows[1]["n"] == "317"
    assert rows[0]["run"] == "run" and rows[0]["pgr"] == ""


def test_same_runs_give_the_same_files(report, tmp_path):
    again = write_report([write_run(tmp_path / "run", fabricated())], tmp_path / "out")
    for name in ("report.html", "accuracy.png", "training.png", "table.csv"):
        assert (again.parent / name).read_bytes() == (report[0].parent / name).read_bytes()


def test_malicious_names_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>\"&$x^"
    result = fabricated(name=evil, task=evil, versions={evil: evil})
    result["students"] = {evil: result["students"]["xent"] | {"model": evil}}
    result["stages"][1] |= {"model": evil, "label": evil}
    run = write_run(tmp_path / "run", result, {"seed": 0, "note": evil})
    source = write_report([run], tmp_path / "out").read_text(encoding="utf-8")
    page = Page(source)
    assert "script" not in page.tags
    assert evil in page.text


def test_undefined_pgr_shows_its_note(tmp_path):
    result = null_pgr(fabricated(), "PGR is undefined: a fabricated reason 0.9130.")
    text = Page(
        write_report([write_run(tmp_path / "a", result)], tmp_path / "out").read_text()
    ).text
    assert "a fabricated reason 0.9130." in text
    assert "NaN" not in text and "None" not in text
    both = [tmp_path / "a", write_run(tmp_path / "b", fabricated(seed=1))]
    text = Page(write_report(both, tmp_path / "out").read_text()).text
    assert "a fabricated reason 0.9130." in text
    assert "undefined or absent in 1 of them" in text


def test_several_runs_have_medians_over_seeds_only(tmp_path):
    runs = [write_run(tmp_path / f"s{s}", fabricated(s, s / 100)) for s in (0, 1, 3)]
    other = {"seed": 0, "train": {"learning_rate": 3e-4}}
    runs.append(write_run(tmp_path / "other", fabricated(0, 0.05), other))
    loaded, _ = load_runs(runs)
    groups = group_runs(loaded)
    assert [len(members) for members in groups.values()] == [3, 1]
    assert [t.rsplit("; ")[-1] for t in groups] == [
        "train.learning_rate=0.0001", "train.learning_rate=0.0003",
    ]  # fmt: skip
    page = Page(write_report(runs, tmp_path / "out").read_text())
    assert "Seeds: 0, 1, 3" in page.text
    assert "0.752" in page.text and "0.742 to 0.772" in page.text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text())))
    assert len(rows) == 16 and rows[-1]["run"] == "other"
    identifiers = [v for k, v in page.attributes if k == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_a_run_named_twice_counts_once(tmp_path):
    run = write_run(tmp_path / "run", fabricated())
    assert len(load_runs([run, run / ".." / "run"])[0]) == 1


def test_a_sweep_folder_stands_for_its_finished_runs(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / "runs" / f"seed{seed}", fabricated(seed), curves=False)
    (tmp_path / "runs" / "unfinished_one").mkdir()
    phase = tmp_path / "phases" / "weak-11fab1"
    phase.mkdir(parents=True)
    (phase / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5, "split": "train"}\n')
    page = Page(write_report([tmp_path], tmp_path / "report").read_text())
    assert "2 runs" in page.text and "no result yet: unfinished_one" in page.text
    # The shared weak phase is drawn once.
    assert page.tags.count("svg") == 2


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


def test_sparse_results_still_make_a_page(tmp_path):
    sparse = {"name": "fabricated_sparse", "ceiling": {"model": "m", "accuracy": 0.9},
              "weak": {"accuracy": 0.8}, "students": {"xent": {}}}  # fmt: skip
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(sparse))
    page = Page(write_report([folder], tmp_path / "out").read_text())
    assert "no accuracy recorded" in page.text and "No training curves were found" in page.text
    assert (tmp_path / "out" / "training.png").is_file()
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


def test_terminal_prints_names_as_they_are():
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


def test_caveats_follow_the_numbers():
    result = fabricated()
    lines = " ".join(caveats(result))
    # The paired error of xent - weak is sqrt((0.128 - 0.031**2) / 317) = 0.020 < 0.031.
    assert "told apart" not in lines and "chance" not in lines and "One seed" in lines
    result["students"]["xent"]["accuracy"] = 0.725
    assert "told apart from it: xent." in " ".join(caveats(result))
    result["ceiling"]["accuracy"] = 0.73
    assert "unstable" in " ".join(caveats(result))
    result["weak"]["accuracy"] = 0.52
    assert "classes: weak." in " ".join(caveats(result))


def test_difference_is_paired_where_agreement_is_known():
    left, right = entry(0.80, 0, 0, "a"), entry(0.75, 0, 0, "b")
    gap, se = difference(left, right, agreement=0.9)
    assert gap == pytest.approx(0.05)
    assert se == pytest.approx(((0.1 - 0.0025) / 317) ** 0.5)
    assert difference(left, right)[1] == pytest.approx(0.0213 * 2**0.5)
    # Agreement that the accuracies rule out is not used.
    assert difference(left, right, agreement=0.99)[1] == pytest.approx(0.0213 * 2**0.5)
    assert difference(left, {}) == (None, None)


def test_summaries_say_who_beat_whom():
    text = summary(fabricated())
    assert "xent student reaches 0.742 ± 0.021, 0.031 above its supervisor" in text
    assert "1.5 standard errors of the difference, which is weak evidence" in text
    assert "recovers 0.153 of the gap" in text
    assert "best student by raw accuracy is confidence" in text
    runs = [fabricated(s, s / 100) for s in range(3)]
    assert "median 0.752, above its supervisor in 3 of 3 runs" in group_summary(runs)
    assert "undefined" in summary(null_pgr(fabricated(), "fabricated"))


def test_accuracy_figure_shows_values_errors_and_lines():
    figure = accuracy_figure([fabricated()])
    (ax,) = figure.axes
    texts = [t.get_text() for t in ax.texts]
    assert texts == ["0.711 ± 0.021", "0.742 ± 0.021", "0.795 ± 0.021", "0.913 ± 0.021"]
    dashed = [x.get_xdata()[0] for x in ax.lines if x.get_linestyle() == "--"]
    assert dashed == [0.711, 0.913]
    assert "317 documents" in ax.get_xlabel() and "standard error" in ax.get_xlabel()
    several = accuracy_figure([fabricated(s, s / 100) for s in range(3)])
    assert several.axes[0].texts[0].get_text() == "0.721 (3 runs)"
    assert len(accuracy_figure([fabricated(), fabricated(task="fabricated_other")]).axes) == 2
    with pytest.raises(ValueError, match="0 results"):
        accuracy_figure([])
    with pytest.raises(ValueError, match="2 group titles"):
        accuracy_figure([fabricated()], ["a", "b"])


def test_training_figure_passes_over_what_is_not_a_number():
    rows = [{"step": i, "loss": 1.0, "split": "train"} for i in range(5)]
    rows += [{"step": 9, "loss": float("nan"), "split": "train"}, {"loss": 1.0, "split": "train"}]
    # After a resume, a step is logged again: the later row counts.
    rows += [{"step": 4, "loss": 3.0, "split": "train"}, {"step": 4, "split": "validation"}]
    ax, other = training_figure({"fabricated": rows, "empty": []}).axes
    assert list(ax.lines[0].get_xdata()) == [0, 1, 2, 3, 4]
    assert list(ax.lines[0].get_ydata()) == [1, 1, 1, 1, 3]
    assert other.texts[0].get_text() == "no losses logged"
    assert "No training curves" in training_figure({}).texts[0].get_text()
