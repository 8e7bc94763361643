"""Tables of declarations: loaded when first read, without JAX, and shown in the documentation."""

import subprocess
import sys
from pathlib import Path

import pytest

from w2s_jax.config import documentation
from w2s_jax.config.extensions import EXTENSIONS
from w2s_jax.config.options import Option
from w2s_jax.config.tables import Table
from w2s_jax.core import errors

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize(
    "first", ["w2s_jax.losses.windowed", "w2s_jax.methods.synthetic", "w2s_jax.config"]
)
def test_the_order_of_a_table_does_not_depend_on_what_is_imported_first(first):
    code = (
        f"import sys, {first}\n"
        "from w2s_jax import config\n"
        "print(*config.LOSSES, *config.METHODS)\n"
        "heavy = {'jax', 'flax', 'matplotlib', 'sklearn', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = done.stdout.split()
    assert names[:2] == ["xent", "confidence"] and names[-2:] == [
        "answer_agreement",
        "preference_pairs",
    ]


def test_every_listed_module_adds_to_its_table():
    from w2s_jax.config import LOSSES, METHODS

    declared = {spec.fn.__module__ for spec in LOSSES.values()}
    assert set(EXTENSIONS["loss"]) <= declared
    declared = {spec.plan.__module__ for spec in METHODS.values()}
    assert set(EXTENSIONS["method"]) <= declared
    for spec in METHODS.values():
        assert spec.summary and spec.students and all(o.meaning for o in spec.options.values())


def test_a_table_refuses_taken_and_unknown_names():
    table = Table("phase kind")
    spec = type("Spec", (), {"name": "mine"})()
    table.add(spec)
    with pytest.raises(errors.InputError, match="phase kind 'mine' is already registered"):
        table.add(spec)
    with pytest.raises(errors.InputError, match="kind: unknown value 'mien'.*'mine'"):
        table.named("mien", "kind")
    assert table.named("mine", "kind") is spec
    table.pop("mine")
    assert "mine" not in table


@pytest.mark.parametrize(
    "option,value,text",
    [
        (Option(1, low=1, also=(-1,)), -2, "at least 1, or -1"),
        (Option(0.5, above=0, below=1), 1.0, "above 0 and below 1"),
        (Option(0.5, above=0), float("inf"), "a finite number"),
        (Option(0.5, low=0, high=1), float("nan"), "a finite number"),
        (Option(None, low=0), True, "float or None"),
        (Option(1), 1.0, "int"),
        (Option(True), 1, "bool"),
        (Option(("a",), choices=("a", "b")), ("a", "c"), "unknown value 'c'"),
        (Option(("a",)), (), "is empty"),
    ],
)
def test_an_option_refuses_values_out_of_range(option, value, text):
    with pytest.raises(errors.InputError, match="f: ") as caught:
        option.check("f", value)
    assert text in str(caught.value)


def test_an_option_returns_what_it_accepts():
    assert Option(1, low=1, also=(-1,)).check("f", -1) == -1
    assert Option(3.0, low=0, high=float("inf")).check("f", float("inf")) == float("inf")
    assert Option(None).check("f", None) is None
    assert Option((), choices=("a", "b")).check("f", ("a,b",)) == ("a", "b")


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_the_tables_of_the_documentation_are_as_declared(path):
    text = path.read_text()
    assert documentation.updated(text) == text, (
        f"run: python -m w2s_jax.config.documentation docs/{path.name}"
    )


def test_every_table_is_in_the_documentation():
    text = "".join(path.read_text() for path in DOCS.glob("*.md"))
    for name in documentation.TABLES:
        assert text.count(f"<!-- table: {name} -->") == 1
