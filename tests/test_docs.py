"""The documentation names files and commands that exist."""

import re
import shlex
from pathlib import Path

import pytest
from test_cli import PACKAGES

from w2s_jax.cli.parser import parser

REPO = Path(__file__).parent.parent
PAGES = [
    *(REPO / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((REPO / "docs").rglob("*.md")),
]
#: A path to a module, a recipe or a page in backticks or in a link; not RECIPE.py and the like.
PATH = re.compile(r"[`(]((?:\.\./)*(?:[\w.]+/)*[a-z_]\w*\.(?:py|md))[`)#:]")
#: Folders to which paths on a page may be relative, besides the page's own.
ROOTS = (REPO, REPO / "w2s_jax", REPO / "w2s_jax" / "models", REPO / "launch")


def name_of(page):
    return str(page.relative_to(REPO))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page):
    missing = [
        name
        for name in PATH.findall(page.read_text())
        if not any((root / name).is_file() for root in (page.parent, *ROOTS))
    ]
    assert not missing


def commands(page):
    """The `w2s` commands of a page's code blocks, without comments and output."""
    for block in re.findall(
        r"^```(?:sh)?\n(.*?)^```|((?:^    .*\n)+)", page.read_text(), re.M | re.S
    ):
        text = "".join(block).replace("\\\n", " ")
        for line in text.splitlines():
            line = re.sub(r"^.*?(?:XLA_FLAGS=\S+|do) +(?=w2s )", "", line.strip())
            if line.startswith("w2s ") and "..." not in line and "|" not in line:
                yield shlex.split(line.partition(";")[0], comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_on_a_page_parse(page):
    for arguments in commands(page):
        _, rest = parser().parse_known_args(arguments)
        unknown = [a for a in rest if not a.startswith(("--config.", "--slurm."))]
        assert not unknown, f"w2s {' '.join(arguments)}"


def test_commands_are_found():
    found = [c[0] for c in commands(REPO / "README.md")]
    assert {"run", "sweep", "report", "data", "models", "convert", "bench"} <= set(found)


def test_the_readme_quotes_the_table_of_results():
    """One table of the eight seeds is the source; README.md repeats seed 0 and the median PGR."""
    page = (REPO / "docs" / "results.md").read_text()
    table = page.partition("## Digits: is it even?")[2].partition("\n## ")[0]
    rows = {
        cells[0]: cells[1:]
        for line in table.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 7
    }
    readme = (REPO / "README.md").read_text()
    printed = dict(
        re.findall(r"^(weak|xent|confidence|ceiling) +gpt-d\d+ +0(\.\d{3})", readme, re.M)
    )
    assert list(printed.values()) == rows["0"][:4]
    xent, confidence = rows["median"][4:]
    assert f"median PGR is {xent} (`xent`) and {confidence} (`confidence`)" in readme


def test_the_table_of_packages_is_in_the_order_of_imports():
    page = (REPO / "docs" / "architecture.md").read_text()
    section = page.partition("## Packages")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)`", section, re.M) == PACKAGES
