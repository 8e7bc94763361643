"""The console that commands print to."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of a pipe or a file: more than any line needs, so that no name or number is broken.
UNBROKEN = 100_000


def console(columns: int | None = None) -> "Console":
    """Return a console on standard output.

    Only a terminal (or a notebook) has a width. Lines into a pipe or a file are not broken, since
    programs read them; `COLUMNS` is for terminals.

    Args:
      columns: use these columns on a terminal, for tables that a narrow one should scroll or wrap
        rather than fold their cells.
    """
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(width=columns)
    found = Console()
    return found if found.is_jupyter else Console(width=UNBROKEN)
