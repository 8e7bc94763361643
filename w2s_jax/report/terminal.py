"""One result as a table in the terminal."""

from typing import TYPE_CHECKING, Any

from w2s_jax.report.words import DASH, caveats, roles, show, show_accuracy

if TYPE_CHECKING:
    from rich.console import Console


def _plain(value: Any) -> str:
    """`value` as printable text: a name from a file must not send control codes to the terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _broken(name: str, mark: str) -> str:
    """A long name broken after its last `mark` that leaves a short line, not just anywhere."""
    place = name.rfind(mark, 0, 16)
    return f"{name[: place + 1]}\n{name[place + 1 :]}" if len(name) > 14 and place > 0 else name


def print_result(result: dict[str, Any], console: "Console | None" = None) -> None:
    """Print the content of a result.json: a table of all models, then what to be careful about.

    Args:
        result: the content of result.json; absent fields show as a dash.
        console: a `rich` console; by default one on standard output, 80 columns without a TTY.

    Names fold over several lines where the terminal is narrow; numbers are never cut at 80 columns.
    """
    from rich.box import ASCII, SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    unicode = console.encoding.lower().startswith("utf")

    def text(value: str, style: str = "") -> Text:
        # Text, and not a string, so that brackets in a name are not read as markup.
        if not unicode:
            value = (
                value.replace("–", "-").replace(" ± ", "+/-").encode("ascii", "replace").decode()
            )
        return Text(value, style=style)

    title = (
        f"{_plain(result.get('name', 'run'))}: task {_plain(result.get('task', '?'))},"
        f" {_plain(result.get('protocol', '?'))} protocol, seed {_plain(result.get('seed', '?'))}"
    )
    table = Table(box=SIMPLE_HEAD if unicode else ASCII, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("role/loss", overflow="fold", min_width=9)
    table.add_column("model", overflow="fold", min_width=8)
    headings = [
        "accuracy ± SE" if unicode else "accuracy+/-SE",
        "AUROC",
        "ECE",
        "PGR",
        "agree",
        "n",
    ]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    styles = {"weak": "yellow", "student": "bold", "ceiling": "green"}
    for role, label, entry in roles(result):
        cells = [_broken(_plain(label), "_"), _broken(_plain(entry.get("model", DASH)), "/")]
        cells += [show_accuracy(entry)]
        cells += [show(entry.get(key)) for key in ("auroc", "ece")]
        cells += [show(entry.get("pgr")) if role == "student" else ""]
        cells += [show(entry.get("agreement")) if role == "student" else ""]
        cells += [show(entry.get("n"))]
        table.add_row(*[text(cell, styles[role] if i == 0 else "") for i, cell in enumerate(cells)])
    console.print(text(title, "bold"))
    console.print(table)
    for line in caveats(result):
        console.print(text(f"note: {_plain(line)}", "dim"))
