"""The report of one or several finished runs: a self-contained page, two figures, a table."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_jax.errors import StorageError
from w2s_jax.report.runs import Run, group_runs, load_runs
from w2s_jax.report.words import (
    caveats,
    group_summary,
    median,
    number,
    plural,
    roles,
    show,
    show_accuracy,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A sweep can have hundreds of phases: beyond this many panels nobody looks, and the page is slow.
MAX_PANELS = 24
_METRICS = ("accuracy", "accuracy_se", "auroc", "ece", "n", "pgr", "pgr_note")
_AGREEMENTS = ("agreement", "agreement_when_correct", "agreement_when_wrong")
TABLE_COLUMNS = (
    "run",
    "name",
    "task",
    "protocol",
    "seed",
    "role",
    "loss",
    "model",
    *_METRICS,
    *_AGREEMENTS,
)


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write `report.html`, `accuracy.png`, `training.png` and `table.csv` into the folder `out`.

    Args:
        run_dirs: folders of finished runs; a sweep's folder stands for its finished runs.
        out: the folder to write to, made if it is missing. Each file is replaced atomically.

    Returns:
        The path of the page.

    Raises:
        InputError: a folder without result.json (the message names it), or files that are not JSON.
        StorageError: `out` can't be written.
    """
    from w2s_jax.report.figures import accuracy_figure, training_figure

    out = Path(out)
    runs, unfinished = load_runs(run_dirs)
    groups = group_runs(runs)
    curves, left_out = _titled_curves(runs)
    titles = [title for title, members in groups.items() for _ in members]
    ordered = [run.result for members in groups.values() for run in members]
    page = _render_page(groups, curves, left_out, [p.name for p in unfinished])
    files = {
        "accuracy.png": _png(accuracy_figure(ordered, titles)),
        "training.png": _png(training_figure(curves)),
        "table.csv": _table_csv(runs).encode(),
        "report.html": page.encode(),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_atomically(out / name, content)
    except OSError as error:
        raise StorageError(f"{out}: the report can't be written ({error})") from error
    return out / "report.html"


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _titled_curves(runs: list[Run]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Training rows by panel title, each phase once although runs share phases, and how many
    phases beyond MAX_PANELS are left out."""
    curves: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    left_out = 0
    for run in runs:
        for stage in run.result.get("stages") or []:
            phase = str(stage.get("phase", ""))
            if phase in seen or not run.curves.get(phase):
                continue
            seen.add(phase)
            if len(curves) == MAX_PANELS:
                left_out += 1
                continue
            what = " ".join(filter(None, [str(stage.get("kind", "phase")), stage.get("label")]))
            title = f"{what}: {stage.get('model', '')}".rstrip(": ")
            if len(runs) > 1:
                title += f", {run.result.get('name', run.folder.name)}"
                title += f", seed {run.result.get('seed', '?')}"
            curves[title if title not in curves else f"{title} ({phase})"] = run.curves[phase]
    return curves, left_out


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _svg(figure: "Figure", prefix: str, description: str) -> str:
    """The figure as inline SVG whose colours follow the page's (light or dark) style sheet.

    `prefix` is put before each id, since several figures share the page's ids.
    """
    import matplotlib
    from markupsafe import escape

    from w2s_jax.report.figures import COLOURS, INK, RULE

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    # matplotlib repeats the figure's texts in comments.
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r'href="#', f'href="#{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-")
    for name, colour in {"ink": INK, "rule": RULE, **COLOURS}.items():
        svg = svg.replace(colour, f"var(--{name})")
    label = str(escape(description))
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _table_rows(runs: list[Run]) -> list[dict[str, Any]]:
    """One row a run and role, with the values as they are in result.json."""
    rows = []
    for run in runs:
        head = {k: run.result.get(k) for k in ("name", "task", "protocol", "seed")}
        # resolve() gives `.` its name.
        head["run"] = run.folder.resolve().name
        for role, label, entry in roles(run.result):
            row = head | {"role": role, "loss": label if role == "student" else None}
            rows.append(row | {k: entry.get(k) for k in ("model", *_METRICS, *_AGREEMENTS)})
    return rows


def _table_csv(runs: list[Run]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_table_rows(runs))
    return buffer.getvalue()


def _median_rows(members: list[Run]) -> list[dict[str, Any]]:
    """Medians over a group's runs, a row a role, with the range of the accuracies."""
    entries: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for wanted in ("weak", "student", "ceiling"):
        for run in members:
            for role, label, entry in roles(run.result):
                if role == wanted:
                    entries.setdefault((role, label), []).append(entry)
    rows = []
    for (role, label), found in entries.items():
        values = [v for v in (number(e.get("accuracy")) for e in found) if v is not None]
        row: dict[str, Any] = {"role": role, "label": label, "runs": len(found)}
        row["range"] = f"{show(min(values))} to {show(max(values))}" if values else show(None)
        for key in ("accuracy", "auroc", "ece", "pgr", *_AGREEMENTS):
            row[key] = median(e.get(key) for e in found)
        row["pgr_runs"] = sum(number(e.get("pgr")) is not None for e in found)
        rows.append(row)
    return rows


def _describe(members: list[Run]) -> str:
    """The accuracy figure in words, for those who can't see it."""
    rows = [f"{row['label']} {show(row['accuracy'])}" for row in _median_rows(members)]
    kind = "Median test accuracies" if len(members) > 1 else "Test accuracies"
    return f"{kind}: {', '.join(rows)}."


def _group_context(index: int, title: str, members: list[Run]) -> dict[str, Any]:
    from w2s_jax.report.figures import accuracy_figure

    results = [run.result for run in members]
    figure = accuracy_figure(results, [title] * len(results))
    # The page has the title as a heading.
    figure.axes[0].set_title("", loc="left")
    return {
        "title": title,
        "summary": group_summary(results),
        "caveats": caveats(results[0]) if len(results) == 1 else [],
        "seeds": [r.get("seed") for r in results],
        "medians": _median_rows(members) if len(results) > 1 else [],
        "figure": _svg(figure, f"accuracy{index}", _describe(members)),
    }


def _curve_figures(curves: dict[str, list[dict[str, Any]]]) -> list[dict[str, str]]:
    from w2s_jax.report.figures import training_figure

    figures = []
    for index, (title, rows) in enumerate(curves.items()):
        figure = training_figure({title: rows})
        figure.axes[0].set_title("", loc="left")
        losses = [r.get("loss") for r in rows if r.get("split") == "train"]
        finite = [v for v in map(number, losses) if v is not None]
        ends = f" from {show(finite[0])} to {show(finite[-1])}" if finite else ""
        words = f"Training loss against the step, {title}:{ends or ' no losses logged'}."
        figures.append({"title": title, "svg": _svg(figure, f"training{index}", words)})
    return figures


def _run_context(run: Run) -> dict[str, Any]:
    result = run.result
    return {
        "folder": run.folder.resolve().name,
        "result": result,
        "rows": [{**entry, "role": role, "label": label} for role, label, entry in roles(result)],
        "stages": result.get("stages") or [],
        "timing": result.get("timing") or {},
        "versions": result.get("versions") or {},
        "config": json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
    }


def _render_page(
    groups: dict[str, list[Run]],
    curves: dict[str, list[dict[str, Any]]],
    left_out: int,
    unfinished: list[str],
) -> str:
    from jinja2 import Environment, PackageLoader
    from markupsafe import Markup

    runs = [run for members in groups.values() for run in members]
    environment = Environment(
        loader=PackageLoader("w2s_jax.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(show=show, show_accuracy=show_accuracy)
    # Only what _svg made is trusted as markup; its texts are drawn as paths or escaped there.
    environment.filters["trusted_svg"] = Markup
    first = runs[0].result
    title = str(first.get("name", "run")) if len(runs) == 1 else plural(len(runs), "run")
    return environment.get_template("report.html.j2").render(
        title=title,
        groups=[_group_context(i, t, members) for i, (t, members) in enumerate(groups.items())],
        runs=[_run_context(run) for run in runs],
        curves=_curve_figures(curves),
        left_out=left_out,
        unfinished=unfinished,
        several=len(runs) > 1,
    )
