"""Print a result as a table in the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from w2s_jax.core import terminal
from w2s_jax.report.caveats import result_caveats
from w2s_jax.report.results import (
    DASH,
    is_multiclass,
    roles,
    show,
    show_accuracy,
    show_pgr,
)
from w2s_jax.report.transfer import test_tasks, transfer_caveats, transfer_result

if TYPE_CHECKING:
    from rich.console import Console


def _printable(value: Any) -> str:
    """Return `value` as text without control codes, which names read from files may contain."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _fold(name: str, separator: str, width: int) -> str:
    """Break a long name after the last separator within its first 16 characters.

    In a console of more than 100 columns there is room for it.
    """
    if width > 100:
        return name
    split = name.rfind(separator, 0, 16) + 1
    return f"{name[:split]}\n{name[split:]}" if len(name) > 14 and split > 1 else name


def print_result(result: dict[str, Any], console: "Console | None" = None) -> None:
    """Print a table of all models, followed by the caveats; then one for each other test set.

    Numbers are never truncated at 80 columns or more; long names are folded.

    Args:
        result: the content of result.json; missing fields are shown as a dash.
        console: a `rich` console; defaults to standard output (`core.terminal.console`).
    """
    console = console or terminal.console()
    title = (
        f"{result.get('name', 'run')}: task {result.get('task', '?')},"
        f" {result.get('protocol', '?')} protocol, seed {result.get('seed', '?')}"
    )
    _print_table(result, title, result_caveats(result), console)
    for task in test_tasks(result):
        found = transfer_result(result, task)
        _print_table(found, f"the same models on {task}", transfer_caveats(result, task), console)


def _print_table(
    result: dict[str, Any], title: str, caveats: Sequence[str], console: "Console"
) -> None:
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    unicode = console.encoding.lower().startswith("utf")

    def text(value: str, style: str = "") -> Text:
        # In a plain string, brackets would be read as markup.
        if not unicode:
            value = (
                value.replace("–", "-").replace(" ± ", "+/-").encode("ascii", "replace").decode()
            )
        return Text(value, style=style)

    scores = {"auroc": "AUROC", "ece": "ECE"}
    if any(is_multiclass(entry) for _, _, entry in roles(result)):
        scores |= {"macro_f1": "macro\nF1", "log_loss": "log\nloss"}
    # Two more columns fit into 80 only without padding.
    padding = (0, 1 if len(scores) == 2 else 0, 0, 0)
    table = Table(box=SIMPLE_HEAD if unicode else ASCII, show_edge=False, padding=padding)
    table.add_column("role/loss", overflow="fold", min_width=9)
    table.add_column("model", overflow="fold", min_width=8)
    headings = [
        "accuracy ± SE" if unicode else "accuracy+/-SE",
        *scores.values(),
        "PGR",
        "agree",
        "n",
    ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    styles = {"weak": "yellow", "student": "bold", "ceiling": "green"}
    for role, label, entry in roles(result):
        names = ((label, "_"), (entry.get("model", DASH), "/"))
        cells = [_fold(_printable(name), mark, console.width) for name, mark in names]
        cells += [show_accuracy(entry)]
        cells += [show(entry.get(key)) for key in scores]
        cells += [show_pgr(result, entry) if role == "student" else ""]
        cells += [show(entry.get("agreement")) if role == "student" else ""]
        cells += [show(entry.get("n"))]
        table.add_row(*[text(cell, styles[role] if i == 0 else "") for i, cell in enumerate(cells)])
    console.print(text(_printable(title), "bold"))
    console.print(table)
    for line in caveats:
        console.print(text(f"note: {_printable(line)}", "dim"))
