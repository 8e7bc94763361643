"""Write the report on finished runs: a self-contained page, figures and tables."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from w2s_jax.core.errors import StorageError
from w2s_jax.core.files import atomic_write
from w2s_jax.planning.kinds import kind_title
from w2s_jax.report import answers, confusion, tables
from w2s_jax.report.answers import AnswerSheet
from w2s_jax.report.comparison import compare_students
from w2s_jax.report.confusion import MAX_CLASSES, Confusion
from w2s_jax.report.drawing import MAX_PANELS, THEME, Panel
from w2s_jax.report.results import Estimate, plural, show, show_interval
from w2s_jax.report.runs import FinishedRun, load_runs
from w2s_jax.report.settings import Setting, settings_of
from w2s_jax.report.summaries import overview, setting_summary


@dataclass(frozen=True)
class _Section:
    """A section with a figure: its heading, caption, and why the figure may be missing."""

    heading: str
    caption: str
    no_data: str


#: Name of the figure's files -> its section, in the order of the page.
_SECTIONS = {
    "ladder": _Section(
        "The ladder",
        "Test accuracy against the size of the strong model, one line per supervisor and loss."
        " Black: ceilings. Dotted lines: the supervisors' own accuracy. Error bars: ± 1 standard"
        " error (over test documents; for several seeds over these, and over the test documents"
        " that they share).",
        "no result records the sizes of its models",
    ),
    "pgr": _Section(
        "PGR against the gap",
        "One point per student and seed, with 95% bootstrap intervals over test documents. PGR"
        " divides by the gap, so small gaps make it unstable; where the gap's interval includes 0,"
        " it is undefined and not drawn. Hollow arrows mark points outside the axes.",
        "no student has a defined PGR",
    ),
    "accuracy": _Section(
        "Losses and methods side by side",
        "Light points: individual seeds. Large points: their mean. Error bars: ± 1 standard error"
        " (over test documents; for several seeds over these, and over the test documents that they"
        " share).",
        "no accuracies are recorded",
    ),
    "agreement": _Section(
        "Agreement with the supervisor",
        "Share of test documents for which the student gives the same answer as its supervisor. A"
        " student that imitates its supervisor also agrees where the supervisor is wrong. Error"
        " bars: ± 1 standard error over seeds, and over the test documents that they share.",
        "no agreement is recorded",
    ),
    "transfer": _Section(
        "Other test sets",
        "Accuracy on the test set of another task against that on the run's own. A model on the"
        " dotted line is as accurate on both. Error bars: ± 1 standard error (over test documents;"
        " for several seeds over these, and over the test documents that they share).",
        "no accuracies are recorded",
    ),
    "confusion": _Section(
        "Confusion of classes",
        "Predicted class by true class, as percentages of the test documents of a true class. Blue:"
        " right, orange: wrong; stronger colours are larger shares. Seeds are pooled.",
        "no predictions were found for these results",
    ),
    "calibration": _Section(
        "Calibration",
        "{share} A calibrated model is on the diagonal. Seeds are pooled. Bins with fewer than 5"
        " documents are not drawn, but are included in calibration.csv.",
        "no predictions were found for these results",
    ),
    "training": _Section(
        "Training",
        "Moving average of the training loss, one line per seed (for a single seed, raw losses"
        " shown faintly). Right axis: validation scores. Star: the step that early stopping kept,"
        " if it is not the last.",
        "no training curves were found for these results",
    ),
}

#: Whether a setting has more than two classes -> what its calibration shows.
_SHARES = {
    False: "Observed share of label 1 among documents with predicted probability p.",
    True: "With more than two classes: accuracy among documents whose predicted class has"
    " probability (confidence) p.",
}
#: Why there is no confusion matrix where all settings have many classes.
_PAIRS_LISTED = f"more than {MAX_CLASSES} classes; the most confused pairs are listed"
#: Why nothing is calibrated where all tasks ask for answers.
_ANSWERS_NOT_CALIBRATED = "answers have no probabilities of being right"


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, figures as PNG and SVG, and CSV tables into a folder.

    The figures are `ladder`, `pgr`, `accuracy`, `agreement`, `transfer`, `confusion`, `calibration`
    and `training`, those that have data. The tables are `table.csv` (the metrics of every run),
    `curves.csv` and `calibration.csv`; where a task asks for answers, also `answers.csv`, some of
    them side by side; where it has more than two classes, also `confusion.csv`; with other test
    sets, also `transfer.csv`.

    Args:
        run_dirs: folders of finished runs, or of sweeps, whose finished runs are used.
        out: the output folder, created if missing. Each file is replaced atomically. Figures and
            answers of an earlier report that no longer have data are removed.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder has no result.json (the message names it), or a file cannot be read.
        StorageError: `out` cannot be written.
    """
    from w2s_jax.report import agreement, charts, curves, transfer
    from w2s_jax.report.drawing import figure_of, png, svg_file

    out = Path(out)
    runs, unfinished = load_runs(run_dirs)
    settings = settings_of(runs)
    phases = curves.training_curves(settings)
    bins = curves.calibration_rows(settings)
    rows = tables.table_rows(settings)
    confused = confusion.confusions(settings)
    panels = {
        "ladder": charts.ladder_panels(settings),
        "pgr": charts.gap_panels(settings),
        "accuracy": charts.accuracy_panels(settings),
        "agreement": agreement.agreement_panels(settings),
        "transfer": transfer.transfer_panels(settings),
        "confusion": confusion.confusion_panels(settings, confused),
        "calibration": curves.calibration_panels(settings, bins),
        "training": curves.training_panels(phases),
    }
    sheets = answers.answer_sheets(settings)
    names = [p.name for p in unfinished]
    page = _render_page(settings, panels, rows, names, out, sheets, confused)
    files = {
        "table.csv": tables.to_csv(tables.table_columns(rows), rows),
        "curves.csv": tables.to_csv(tables.CURVE_COLUMNS, tables.curve_rows(phases)),
        "calibration.csv": tables.to_csv(tables.CALIBRATION_COLUMNS, bins),
    }
    if sheets:
        shown_answers = answers.answer_rows(sheets)
        files["answers.csv"] = tables.to_csv(answers.ANSWER_COLUMNS, shown_answers)
    if confused:
        found = confusion.confusion_rows(confused)
        files["confusion.csv"] = tables.to_csv(confusion.CONFUSION_COLUMNS, found)
    transferred = transfer.transfer_rows(settings)
    if transferred:
        columns = transfer.transfer_columns(transferred)
        files["transfer.csv"] = tables.to_csv(columns, transferred)
    for name, shown in panels.items():
        if shown:
            figure = figure_of(shown[:MAX_PANELS])
            files |= {f"{name}.png": png(figure), f"{name}.svg": svg_file(figure, name)}
    # The page is written last: where it exists, so do the other files.
    files["report.html"] = page.encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(out / name) as file:
                file.write(content)
        figures = [f"{figure}.{kind}" for figure in panels for kind in ("png", "svg")]
        for name in (*figures, "answers.csv", "confusion.csv", "transfer.csv"):
            if name not in files:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot write the report ({error})") from error
    return out / "report.html"


def _figure_section(name: str, panels: list[Panel]) -> dict[str, Any]:
    from w2s_jax.report.drawing import figure_of, svg_inline

    shown = panels[:MAX_PANELS]
    figures = [
        {
            "title": panel.title,
            "svg": svg_inline(figure_of([panel], titled=False), f"{name}{index}", panel.alt_text),
        }
        for index, panel in enumerate(shown)
    ]
    return {
        "name": name,
        "text": _SECTIONS[name],
        "no_data": _SECTIONS[name].no_data,
        "figures": figures,
        "omitted": len(panels) - len(shown),
    }


def _default_fields() -> dict[str, Any]:
    from w2s_jax.config import default_config, flatten

    return flatten(json.loads(json.dumps(default_config().to_dict())))


def _changed_fields(config: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, str]]:
    """Return the fields of a config that differ from the defaults, with values as JSON."""
    from w2s_jax.config import flatten

    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    return [
        {
            "field": name,
            "value": text(value),
            "default": text(defaults[name]) if name in defaults else "",
        }
        for name, value in sorted(flatten(config).items())
        if name not in defaults or value != defaults[name]
    ]


def _run_context(
    index: int, run: FinishedRun, defaults: dict[str, Any], out: Path
) -> dict[str, Any]:
    result = run.result
    config = run.folder / "config.json"
    link = ""
    if config.is_file():
        link = quote(Path(os.path.relpath(config.resolve(), out.resolve())).as_posix())
    return {
        "index": index,
        "folder": run.name,
        "name": result.get("name") or run.name,
        "seed": result.get("seed"),
        "stages": [
            stage | {"kind": kind_title(str(stage.get("kind") or "–"))}
            for stage in result.get("stages") or []
        ],
        "timing": result.get("timing") or {},
        "versions": result.get("versions") or {},
        "link": link,
        "changed_fields": _changed_fields(run.config, defaults),
    }


def _setting_context(setting: Setting) -> dict[str, Any]:
    return {
        "title": setting.title,
        "summary": setting_summary(setting),
        "seeds": list(dict.fromkeys(run.result.get("seed") for run in setting.runs)),
        "comparison": compare_students(setting),
        "several": len(setting.seeds) > 1,
    }


def _below(found: Estimate, n: Any = None) -> str:
    """Format what is below an estimate: its interval, and its seeds or documents."""
    count = found.n if n is None else n
    return f"{show_interval(found)} n = {show(count)}".strip()


def _p_value(value: Any) -> str:
    """Format a p value with three decimals, smaller ones as a bound."""
    return "< 0.001" if isinstance(value, float) and value < 0.001 else show(value)


def _render_page(
    settings: list[Setting],
    panels: dict[str, list[Panel]],
    rows: list[dict[str, Any]],
    unfinished: list[str],
    out: Path,
    sheets: Sequence[AnswerSheet] = (),
    confused: Sequence[Confusion] = (),
) -> str:
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    from w2s_jax.report.transfer import transfer_context

    environment = Environment(
        loader=PackageLoader("w2s_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, p_value=_p_value, interval=show_interval)
    environment.filters.update(shortened=answers.shortened, printable=answers.printable)
    environment.globals.update(below=_below)
    # Only the output of svg_inline, which escapes texts, is inserted as markup.
    environment.filters["trusted_svg"] = Markup
    runs = [run for setting in settings for run in setting.runs]
    first = runs[0].result
    defaults = _default_fields()
    sections = {name: _figure_section(name, found) for name, found in panels.items()}
    shown_answers = answers.answers_context(settings, sheets)
    if shown_answers["sheets"]:
        sections["calibration"]["no_data"] = _ANSWERS_NOT_CALIBRATED
    shares = dict.fromkeys(_SHARES[bool(setting.classes)] for setting in settings)
    text = _SECTIONS["calibration"]
    caption = text.caption.format(share=" ".join(shares))
    sections["calibration"]["text"] = replace(text, caption=caption)
    classes = confusion.confusion_context(settings, confused)
    if classes["listed"] and classes["tables"]:
        sections["confusion"]["no_data"] = _PAIRS_LISTED
    return environment.get_template("report.html.j2").render(
        title=str(first.get("name", "run")) if len(runs) == 1 else plural(len(runs), "run"),
        first=first,
        overview=overview(settings),
        settings=[_setting_context(setting) for setting in settings],
        sections=sections,
        answers=shown_answers,
        confusion=classes,
        transfer=transfer_context(settings),
        multiclass=tables.any_multiclass(rows),
        rows=rows,
        runs=[_run_context(i, run, defaults, out) for i, run in enumerate(runs)],
        unfinished=unfinished,
        several=len(runs) > 1,
        theme=THEME,
    )
