"""Markdown tables of losses, methods and config fields, written from their declarations.

    python -m w2s_jax.config.documentation docs/*.md

rewrites each table in the files that is between `<!-- table: NAME -->` and `<!-- end of table -->`.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from w2s_jax.config.declarations import LOSSES, METHODS, PREFERENCES
from w2s_jax.config.options import Option
from w2s_jax.config.schema import config_options

_TABLE = re.compile(r"(<!-- table: ([\w. ]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def losses() -> str:
    """Return the table of losses: name, definition, source."""
    rows = [(f"`{spec.name}`", spec.summary, spec.source) for spec in LOSSES.values()]
    return _table(("name", "definition", "source"), rows)


def methods() -> str:
    """Return the table of methods: name, students, what it does, source."""
    rows = []
    for spec in METHODS.values():
        summary = spec.summary + (". Two classes only" if spec.two_classes else "")
        rows.append((f"`{spec.name}`", spec.students, summary, spec.source))
    return _table(("`method.name`", "students", "what it does", "source"), rows)


def loss_options() -> str:
    """Return the table of the options of losses."""
    return _options("loss", {name: spec.options for name, spec in LOSSES.items()})


def token_losses() -> str:
    """Return the table of losses of completions: name, definition, options that apply."""
    rows = [
        (
            f"`{spec.name}`",
            (spec.on_tokens.__doc__ or "").partition("\n")[0].rstrip("."),
            ", ".join(f"`{option}`" for option in spec.token_options) or "none",
        )
        for spec in LOSSES.values()
        if spec.on_tokens is not None
    ]
    return _table(("name", "term of a target token", "options that apply"), rows)


def preference_losses() -> str:
    """Return the table of losses of pairs of completions: name, definition, source."""
    rows = [(f"`{spec.name}`", spec.summary, spec.source) for spec in PREFERENCES.values()]
    return _table(("name", "definition", "source"), rows)


def preference_options() -> str:
    """Return the table of the options of losses of pairs."""
    return _options("loss", {name: spec.options for name, spec in PREFERENCES.items()})


def method_options() -> str:
    """Return the table of the options of methods."""
    return _options("method", {name: spec.options for name, spec in METHODS.items()})


def fields() -> str:
    """Return the table of all config fields but options of losses and methods.

    `pretrain` and `probe` have the fields of `train` too, `weak` and `strong` all four sections:
    they are listed where they differ.
    """
    options = config_options()
    shown = {}
    for field, option in options.items():
        section, _, leaf = field.partition(".")
        if (section == "method" and "." in leaf) or (section in ("weak", "strong") and "." in leaf):
            continue
        inherited = options.get(f"train.{leaf}")
        if section in ("pretrain", "probe") and inherited == option:
            continue
        shown[field] = option
    rows = [(f"`{field}`", *_cells(option)) for field, option in shown.items()]
    return _table(("field", "default", "allowed", "meaning"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "losses": losses,
    "options of losses": loss_options,
    "token losses": token_losses,
    "preference losses": preference_losses,
    "options of preference losses": preference_options,
    "methods": methods,
    "options of methods": method_options,
    "config fields": fields,
}


def updated(text: str) -> str:
    """Return a Markdown text with its tables as they are declared now."""
    return _TABLE.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def _options(kind: str, table: Mapping[str, Mapping[str, Option]]) -> str:
    rows = [
        ("" if n else f"`{name}`", f"`{option}`", *_cells(declared))
        for name, options in table.items()
        for n, (option, declared) in enumerate(options.items())
    ]
    return _table((kind, "option", "default", "allowed", "meaning"), rows)


def _cells(option: Option) -> tuple[str, str, str]:
    """Default, allowed values and meaning."""
    allowed = option.allowed or option.expected_type.__name__
    return _shown(option.default), allowed, option.meaning


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(paths: Iterable[str]) -> None:
    """Rewrite the tables in files."""
    for name in paths:
        path = Path(name)
        path.write_text(updated(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
