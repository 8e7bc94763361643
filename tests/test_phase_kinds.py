"""Kinds of phases: what is hashed follows from typed fields; declarations are checked."""

import json
import subprocess
import sys

import pytest

from w2s_jax import phases, testing
from w2s_jax.config import validation
from w2s_jax.core import errors
from w2s_jax.planning.costs import no_flops
from w2s_jax.planning.kinds import PHASE_KINDS
from w2s_jax.planning.plan import PlanBuilder, base
from w2s_jax.planning.resolve import resolve


@pytest.fixture(scope="module")
def resolved(tmp_path_factory):
    data_dir = testing.write_tiny_task(tmp_path_factory.mktemp("data"))
    return resolve(validation.validate(testing.tiny_config(data_dir)))


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
        "['pretrain', 'features', 'probe', 'weak', 'student', 'ceiling', 'labels', 'transfer']\n"
        "assert 'jax' not in sys.modules and 'flax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
