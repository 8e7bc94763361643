"""The examples of docs/extending.md run, with their tests."""

import inspect
import re
from pathlib import Path

import pytest

from w2s_jax.config import LOSSES, METHODS
from w2s_jax.data.tasks import TASKS
from w2s_jax.models.families import FAMILIES
from w2s_jax.planning.kinds import PHASE_KINDS

DOC = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
#: Title of a section with code -> its code blocks, one after another.
SECTIONS = {
    title: "\n".join(re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL))
    for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", DOC, flags=re.DOTALL | re.M)
    if "```python" in body
}


@pytest.fixture
def registering():
    """Remove what an example registers."""
    tables = [(table, set(table)) for table in (LOSSES, METHODS, PHASE_KINDS, TASKS, FAMILIES)]
    yield
    for table, before in tables:
        for name in set(table) - before:
            table.pop(name)


@pytest.mark.medium
@pytest.mark.parametrize("title", SECTIONS)
def test_an_example_passes_its_own_tests(title, registering, tmp_path):
    names = {}
    exec(compile(SECTIONS[title], f"extending.md: {title}", "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert tests, "each example has a test"
    for number, test in enumerate(tests):
        folder = tmp_path / str(number)
        folder.mkdir()
        test(**({"tmp_path": folder} if "tmp_path" in inspect.signature(test).parameters else {}))
