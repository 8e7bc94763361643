"""Output into a pipe: no name or number is broken, whatever the width of a terminal would be."""

import json
import re
import sys
from pathlib import Path

import pytest
from report_runs import fabricated

import w2s_jax
from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.config.recipes import load_config
from w2s_jax.core import terminal
from w2s_jax.execution.prepare import prepare
from w2s_jax.report import print_result

PACKAGE = Path(w2s_jax.__file__).parent
LONG = "a_label_of_a_loss_with_far_more_than_sixteen_characters"


@pytest.fixture
def narrow(monkeypatch, capsys):
    """A terminal of 40 columns, and output that is none."""
    monkeypatch.setenv("COLUMNS", "40")
    assert not sys.stdout.isatty()
    return capsys


@pytest.fixture
def recipe(tmp_path):
    data = testing.write_tiny_task(tmp_path / "data")
    path = tmp_path / "recipe.py"
    path.write_text(
        "from w2s_jax.testing import tiny_config\n"
        "def get_config():\n"
        f"    return tiny_config({str(data)!r})\n"
        "def sweep():\n"
        f"    return [{{'name': {LONG!r}, 'seed': seed}} for seed in (0, 1)]\n"
    )
    return path


def words(text):
    return set(re.split(r"[ \n]+", text))


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_plan_in_a_pipe_has_whole_names(command, recipe, tmp_path, narrow):
    folder = tmp_path / "out"
    assert main([command, f"--config={recipe}", f"--workdir={folder}", "--dry_run"]) == 0
    phases = {p.name for p in prepare(load_config(str(recipe), []), folder).plan.phases}
    runs = {f"name={LONG},seed={seed}" for seed in (0, 1)}
    assert (phases if command == "run" else runs) <= words(narrow.readouterr().out)


def test_the_status_of_a_sweep_in_a_pipe_has_whole_names(tmp_path, narrow):
    phases = {f"student-{'0123456789abcdef' * 4}{i}": {
        "parents": [], "title": f"student {LONG}", "model": "someone/a-model-with-a-long-name",
        "kind": "student", "steps": 1,
    } for i in range(2)}  # fmt: skip
    record = {"store": str(tmp_path / "phases"), "runs": {}, "phases": phases}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    assert main(["sweep", "status", str(tmp_path)]) == 0
    assert {*phases, LONG, "someone/a-model-with-a-long-name"} <= words(narrow.readouterr().out)


def test_a_result_in_a_pipe_has_a_line_per_model(narrow):
    result = fabricated()
    result["students"] = {LONG: result["students"]["xent"] | {"model": "someone/" + LONG}}
    print_result(result)
    (line,) = [x for x in narrow.readouterr().out.splitlines() if LONG in x and "0.742" in x]
    assert {LONG, "someone/" + LONG, "317"} <= words(line)


def test_consoles_are_made_in_one_place():
    """A console made elsewhere would break lines at 80 columns in a pipe."""
    made = [
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if re.search(r"(?<!\w)Console\((?!quiet=True)", path.read_text())
    ]
    assert made == [Path("core/terminal.py")]


def test_a_terminal_has_its_own_width(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "57")
    assert terminal.console().width == 57 and terminal.console(columns=220).width == 220
