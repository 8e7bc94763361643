"""The report of one or several finished runs: a self-contained page, figures, tables."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from w2s_jax.core.errors import StorageError
from w2s_jax.core.files import atomic_write
from w2s_jax.report import tables
from w2s_jax.report.drawing import MAX_PANELS, THEME, Panel
from w2s_jax.report.findings import overview
from w2s_jax.report.groups import Group, compare_students, group_runs
from w2s_jax.report.runs import Run, load_runs
from w2s_jax.report.words import group_summary, plural, show

#: Sections with a figure: name of its files -> heading, what one sees, and what is missing if not.
_FIGURES = {
    "ladder": (
        "The ladder",
        "Test accuracy against the size of the strong model: a line for each supervisor and loss,"
        " the ceilings in black, dotted lines at the supervisors' own accuracy. Bars are ± 1"
        " standard error: of the mean over seeds where there are several, over the test documents"
        " otherwise.",
        "no result tells the size of its models",
    ),
    "pgr": (
        "PGR against the gap",
        "Each point is one student of one seed; bars are 95% intervals over the test documents"
        " (bootstrap). Small gaps make PGR unstable: it divides by them. Hollow arrows lie outside"
        " the axes.",
        "no student has a defined PGR",
    ),
    "accuracy": (
        "Losses and methods side by side",
        "Light points are single seeds, large ones their mean with ± 1 standard error over seeds;"
        " with one seed the bar is over the test documents.",
        "no accuracies are recorded",
    ),
    "agreement": (
        "Agreement with the supervisor",
        "How often the student predicts what its supervisor predicts. A student that imitates"
        " agrees where the supervisor is wrong, too. Bars: ± 1 standard error over seeds.",
        "no agreement is recorded",
    ),
    "calibration": (
        "Calibration",
        "Of the documents to which a model gives P(label 1) = p, the share whose label is 1. On the"
        " diagonal a model is calibrated. Seeds are pooled; bins of fewer than 5 documents are left"
        " out here, and are in calibration.csv.",
        "no predictions were found beside these results",
    ),
    "training": (
        "Training",
        "Moving average of the training loss, a line a seed (with one seed the losses lightly"
        " behind it); validation scores on the right axis; a star where early stopping kept a step"
        " that is not the last.",
        "no training curves were found beside these results",
    ),
}


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, its figures as PNG and SVG, and CSV tables into the folder `out`.

    Figures: `ladder`, `pgr`, `accuracy`, `agreement`, `calibration` and `training`, those that have
    data. Tables: `table.csv` (every number of every run), `curves.csv`, `calibration.csv`.

    Args:
        run_dirs: folders of finished runs; a sweep's folder stands for its finished runs.
        out: the folder to write to, made if it is missing. Each file is replaced atomically, and
            figures of an earlier report that now have no data are removed.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder without result.json (the message names it), or files that can't be
            read.
        StorageError: `out` can't be written.
    """
    from w2s_jax.report import charts, curves
    from w2s_jax.report.drawing import figure_of, png, svg_file

    out = Path(out)
    runs, unfinished = load_runs(run_dirs)
    groups = group_runs(runs)
    phases = curves.training_curves(groups)
    bins = curves.calibration_rows(groups)
    rows = tables.table_rows(groups)
    panels = {
        "ladder": charts.ladder_panels(groups),
        "pgr": charts.gap_panels(groups),
        "accuracy": charts.accuracy_panels(groups),
        "agreement": charts.agreement_panels(groups),
        "calibration": curves.calibration_panels(groups, bins),
        "training": curves.training_panels(phases),
    }
    page = _render_page(groups, panels, rows, [p.name for p in unfinished], out)
    files = {
        "table.csv": tables.to_csv(tables.TABLE_COLUMNS, rows),
        "curves.csv": tables.to_csv(tables.CURVE_COLUMNS, tables.curve_rows(phases)),
        "calibration.csv": tables.to_csv(tables.CALIBRATION_COLUMNS, bins),
    }
    for name, shown in panels.items():
        if shown:
            figure = figure_of(shown[:MAX_PANELS])
            files |= {f"{name}.png": png(figure), f"{name}.svg": svg_file(figure, name)}
    # The page last: whoever finds it takes the others to be there.
    files["report.html"] = page.encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            with atomic_write(out / name) as file:
                file.write(content)
        for name in (f"{figure}.{kind}" for figure in panels for kind in ("png", "svg")):
            if name not in files:
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: the report can't be written ({error})") from error
    return out / "report.html"


def _figure_section(name: str, panels: list[Panel]) -> dict[str, Any]:
    from w2s_jax.report.drawing import figure_of, svg_inline

    heading, explanation, missing = _FIGURES[name]
    shown = panels[:MAX_PANELS]
    figures = [
        {
            "title": panel.title,
            "svg": svg_inline(figure_of([panel], titled=False), f"{name}{index}", panel.words),
        }
        for index, panel in enumerate(shown)
    ]
    return {
        "name": name,
        "heading": heading,
        "explanation": explanation,
        "missing": missing,
        "figures": figures,
        "left_out": len(panels) - len(shown),
    }


def _default_fields() -> dict[str, Any]:
    from w2s_jax.config import default_config, flatten

    return flatten(json.loads(json.dumps(default_config().to_dict())))


def _differences(config: dict[str, Any], defaults: dict[str, Any]) -> list[dict[str, str]]:
    """The config's fields that differ from the defaults, as JSON."""
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


def _run_context(index: int, run: Run, defaults: dict[str, Any], out: Path) -> dict[str, Any]:
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
        "stages": result.get("stages") or [],
        "timing": result.get("timing") or {},
        "versions": result.get("versions") or {},
        "link": link,
        "differences": _differences(run.config, defaults),
    }


def _group_context(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "summary": group_summary([run.result for run in group.runs]),
        "seeds": [run.result.get("seed") for run in group.runs],
        "comparison": compare_students(group),
        "several": len(group.seeds) > 1,
    }


def _interval(low: Any, high: Any) -> str:
    return "" if low is None or high is None else f"[{show(low)} to {show(high)}]"


def _p_value(value: Any) -> str:
    """Three decimals; smaller ones as a bound."""
    return "< 0.001" if isinstance(value, float) and value < 0.001 else show(value)


def _render_page(
    groups: list[Group],
    panels: dict[str, list[Panel]],
    rows: list[dict[str, Any]],
    unfinished: list[str],
    out: Path,
) -> str:
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("w2s_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, p_value=_p_value)
    environment.globals.update(interval=_interval)
    # Only what svg_inline made is trusted as markup; its texts are escaped there.
    environment.filters["trusted_svg"] = Markup
    runs = [run for group in groups for run in group.runs]
    first = runs[0].result
    defaults = _default_fields()
    return environment.get_template("report.html.j2").render(
        title=str(first.get("name", "run")) if len(runs) == 1 else plural(len(runs), "run"),
        first=first,
        overview=overview(groups),
        groups=[_group_context(group) for group in groups],
        sections={name: _figure_section(name, found) for name, found in panels.items()},
        rows=rows,
        runs=[_run_context(i, run, defaults, out) for i, run in enumerate(runs)],
        unfinished=unfinished,
        several=len(runs) > 1,
        theme=THEME,
    )
