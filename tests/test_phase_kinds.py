"""Kinds of phases: each is one declaration, and a new one is planned, run and cleaned up by it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from w2s_jax import phases, sharding, testing
from w2s_jax.config import validation
from w2s_jax.core import errors
from w2s_jax.planning.costs import Flops, no_flops, phase_flops
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import PlanBuilder, base
from w2s_jax.planning.resolve import resolve

EXTENDING = Path(__file__).parent.parent / "docs" / "extending.md"


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    data_dir = testing.write_tiny_task(tmp_path_factory.mktemp("data"))
    return resolve(validation.validate(testing.tiny_config(data_dir)))


@pytest.fixture
def prior():
    """The kind of the documentation, registered for one test."""
    section = EXTENDING.read_text().partition("\n## Add a phase kind\n")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)
    exec(compile(code, str(EXTENDING), "exec"), {"__name__": "documented"})
    yield PHASE_KINDS["prior"]
    PHASE_KINDS.remove("prior")


def test_the_documented_kind_is_planned_and_run(prior, resolved, tmp_path):
    builder = PlanBuilder(resolved)
    phase = builder.phases[builder.make("prior", role="strong")]
    assert phase.title == "class prior" and phase.name.startswith("prior-")
    assert phase.spec["semantics"] == prior.semantics and phase.spec["kind"] == "prior"
    assert memory_estimate(phase, resolved)["total"] == 0
    assert phase_flops(phase, resolved) == Flops()
    mesh, console = sharding.make_mesh(), Console(quiet=True)
    context = phases.Context(resolved, tmp_path, mesh, console, lambda: False)
    folder = context.folder(phase.name)
    folder.path.mkdir()
    phases.run_phase(phase, context)
    result = json.loads(folder.result.read_text())
    assert 0.4 < result["metrics"]["test"]["accuracy"] < 0.6 and result["seconds"] >= 0
    assert json.loads(folder.config.read_text())["spec"] == phase.spec


def test_the_spec_follows_from_the_fields(resolved):
    for phase in base(PlanBuilder(resolved)).phases:
        kind = PHASE_KINDS[phase.kind]
        assert phase.spec == {"semantics": kind.semantics, "kind": phase.kind, **kind.spec(phase)}
        json.dumps(phase.spec, allow_nan=False)


def test_whose_labels_a_phase_learns_is_planned(resolved):
    builder = PlanBuilder(resolved)
    plan = base(builder)
    student = plan.phase(plan.students["xent"].phase)
    assert student.label_sources == dict.fromkeys(("slice2", "validation", "test"), plan.weak)
    assert plan.phase(plan.ceiling).label_sources == {}
    # Labels of slice 2 alone: evaluated by those that they are made from.
    some = builder.labels("confident", "strong", ("slice2",), {"labels": plan.weak}, share=0.5)
    other = builder.phases[builder.trained("student", "strong", "slice2", parents={"labels": some})]
    assert other.label_sources == {"slice2": some, "validation": plan.weak, "test": plan.weak}


def test_a_bad_declaration_is_refused():
    def declared(name):
        return phases.PhaseKind(name, 1, dict, dict, dict, dict, no_flops)

    with pytest.raises(errors.InputError, match="'weak' is already registered"):
        phases.register_kind(declared("weak"))
    with pytest.raises(errors.InputError, match="'my-kind'.*lowercase letters"):
        phases.register_kind(declared("my-kind"))


def test_declarations_import_no_jax():
    code = (
        "import sys\n"
        "from w2s_jax import phases\n"
        "assert list(phases.PHASE_KINDS) == "
        "['pretrain', 'features', 'probe', 'weak', 'student', 'ceiling', 'labels']\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
