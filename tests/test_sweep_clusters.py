"""What clusters share: the worker, units and job arrays; what would be submitted. No cluster."""

import io
import json
import types

import pytest
from cluster_runs import results, sweep_file
from rich.console import Console

from w2s_jax import phases
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import commands, on_slurm, planning, points, records, units, worker
from w2s_jax.sweep.units import Unit
from w2s_jax.testing import write_tiny_task

QUIET = Console(quiet=True)

#: Two losses and two seeds: 2 pretrainings, 2 weak models, 2 ceilings and 4 students.
POINTS = "product(over('losses', [('xent',), ('confidence',)]), over('seed', [0, 1]))"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return sweep_file(folder / "sweep.py", write_tiny_task(folder / "data"), POINTS)


def planned(recipe, workdir, *overrides):
    found = points.load_points(str(recipe), overrides)
    return planning.plan_sweep(found, workdir, workdir / "phases")


@pytest.fixture
def begun(recipe, tmp_path, monkeypatch):
    """The plan of a sweep whose record is written, but nothing else."""
    monkeypatch.chdir(tmp_path)
    plan = planned(recipe, tmp_path / "sweep")
    records.begin(
        tmp_path / "sweep", plan, points.point_source(str(recipe), []), retry_failed=False
    )
    return plan


def of_kind(plan, kind):
    return [name for name in plan.phases if name.startswith(kind)]


@pytest.mark.slow
def test_workers_that_know_only_a_folder_run_a_sweep(begun, recipe, tmp_path, monkeypatch):
    workdir, planned_runs, original = tmp_path / "sweep", [], worker.plan_sweep

    def plan_sweep(points, *more):
        planned_runs.append(len(points))
        return original(points, *more)

    def make_contexts(self, missing, original=worker.Worker.make_contexts):
        original(self, missing)
        # Also those that only other runs start from: their parameters must be kept.
        assert {context.starts for context in self.contexts.values()} == {begun.starts}

    monkeypatch.setattr(worker, "LATE_SECONDS", 0.0)
    monkeypatch.setattr(worker, "plan_sweep", plan_sweep)
    monkeypatch.setattr(worker.Worker, "make_contexts", make_contexts)
    assert len(begun.starts) == 2
    weak, students = of_kind(begun, "weak"), of_kind(begun, "student")
    assert worker.work(workdir, weak, console=QUIET) == dict.fromkeys(weak, "waiting")
    for kind in ("pretrain", "weak", "ceiling"):
        names = of_kind(begun, kind)
        assert worker.work(workdir, names, console=QUIET) == dict.fromkeys(names, "done")
    # Of a single phase, the run that has it is planned, not the whole sweep.
    assert worker.work(workdir, students[:1], console=QUIET) == {students[0]: "done"}
    assert planned_runs[-1] == 1 and len(begun.runs) == 4
    folder = PhaseFolder(workdir / "phases" / students[1])
    folder.path.mkdir()
    records.write_failure(folder, errors.TrainingFailed("out of luck"))
    assert worker.work(workdir, students[1:2], console=QUIET) == {students[1]: "failed"}
    with pytest.raises(errors.W2SError, match="1 failed"):
        commands.sweep(str(recipe), [], workdir, QUIET)
    assert len(results(workdir)) == 3


def test_a_worker_waits_for_parents_as_long_as_others_run_them(begun, tmp_path, monkeypatch):
    """Ten looks, a second apart, at a parent that others run; then its files may be late."""
    (weak, *_), now = of_kind(begun, "weak"), [0.0]

    def sleep(_):
        now[0] += 1.0

    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(worker, "time", clock)
    monkeypatch.setattr(worker, "LATE_SECONDS", 4.0)
    monkeypatch.setattr(records, "is_claimed", lambda folder: now[0] < 10)
    assert worker.work(tmp_path / "sweep", [weak], console=QUIET) == {weak: "waiting"}
    assert now[0] == 9 + 4


def test_a_worker_asked_to_stop_saves_and_says_so(begun, tmp_path):
    name = of_kind(begun, "pretrain")[0]
    asked = iter([False] * 3)
    with pytest.raises(errors.Interrupted):
        worker.work(
            tmp_path / "sweep", [name], console=QUIET, should_stop=lambda: next(asked, True)
        )
    assert not (tmp_path / "sweep" / "phases" / name / "failed.json").exists()
    assert worker.work(tmp_path / "sweep", [name], console=QUIET) == {name: "done"}


def test_a_worker_refuses_phases_that_the_sweep_no_longer_has(begun, tmp_path):
    with pytest.raises(errors.InputError, match="no longer plans phase 'weak-0'; the sweep file"):
        worker.work(tmp_path / "sweep", ["weak-0"], console=QUIET)
    path = tmp_path / "sweep" / "sweep.json"
    record = json.loads(path.read_text())
    record["source"]["folder"] = "/nowhere"
    path.write_text(json.dumps(record))
    with pytest.raises(errors.InputError, match="/nowhere: .*share"):
        worker.work(tmp_path / "sweep", of_kind(begun, "weak"), console=QUIET)


def test_relative_paths_mean_the_same_to_all_workers(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    overrides = ["--config.task.data_dir=data", "--config.pretrain.steps=11"]
    plan = planned("sweep.py", tmp_path / "sweep", *overrides)
    source = points.point_source("sweep.py:x", overrides)
    assert source.config == f"{recipe}:x"
    source = points.point_source("sweep.py", overrides)
    records.begin(tmp_path / "sweep", plan, source, retry_failed=False)
    monkeypatch.chdir("/")
    name = of_kind(plan, "pretrain")[0]
    assert worker.work(tmp_path / "sweep", [name], console=QUIET) == {name: "done"}


def test_a_unit_is_a_phase_and_waits_for_its_parents_alone(begun):
    made = units.make_units(begun, list(begun.phases))
    assert all(len(unit.phases) == 1 for unit in made) and len(made) == 10
    for number, unit in enumerate(made):
        (name,) = unit.phases
        assert {made[n].phases[0] for n in unit.after} == set(begun.parents[name])
        assert all(n < number for n in unit.after)
    # Parents that are complete are not waited for.
    left = [name for name in begun.phases if not name.startswith("pretrain")]
    (first, *_) = units.make_units(begun, left)
    assert first.after == () and not first.phases[0].startswith("student")


@pytest.mark.parametrize("population,sizes", [(8, [1, 1, 4, 4, 4]), (2, [1, 1] + 6 * [2])])
def test_a_number_of_members_makes_units_of_what_may_be_one_population(
    recipe, tmp_path, population, sizes
):
    override = f"--config.mesh.population={population}"
    points_ = "product(over('losses', [('xent',)]), over('seed', range(4)))"
    other = recipe.with_name("four.py")
    sweep_file(other, recipe.parent / "data", points_)
    plan = planned(other, tmp_path / "sweep", override)
    made = units.make_units(plan, list(plan.phases))
    assert sorted(len(unit.phases) for unit in made) == sizes
    for unit in made:
        assert len({name.partition("-")[0] for name in unit.phases}) == 1


@pytest.mark.slow
def test_units_that_may_be_packed_are_packed_by_the_worker(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    override = "--config.mesh.population=8"
    plan, workdir = planned(recipe, tmp_path / "sweep", override), tmp_path / "sweep"
    records.begin(workdir, plan, points.point_source(str(recipe), [override]), retry_failed=False)
    together, original = [], phases.train_together
    monkeypatch.setattr(
        phases, "train_together",
        lambda group, context: (together.append(len(group.phases)), original(group, context))[1],
    )  # fmt: skip
    for unit in units.make_units(plan, list(plan.phases)):
        assert set(worker.work(workdir, unit.phases, console=QUIET).values()) == {"done"}
    assert sorted(together) == [2, 2, 2, 2], "weak models, ceilings, students of either loss"


def test_job_arrays_are_of_units_that_wait_for_the_same():
    made = [Unit(("a",), ()), Unit(("b",), ()), Unit(("c",), (0,)), Unit(("d",), (0, 1)),
            Unit(("e",), (0,)), Unit(("f",), (2, 3))]  # fmt: skip
    arrays = on_slurm.make_arrays(made, 1000)
    assert [(array.units, array.after) for array in arrays] == [
        ((0, 1), ()), ((2, 4), (0,)), ((3,), (0, 1)), ((5,), (2, 3)),
    ]  # fmt: skip
    many = on_slurm.make_arrays([Unit((str(n),), ()) for n in range(2500)], 1000)
    assert [len(array.units) for array in many] == [1000, 1000, 500]


def test_a_dry_run_says_what_would_be_submitted_and_writes_nothing(recipe, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed")
    monkeypatch.setenv("PATH", "/nowhere")
    console = Console(record=True, width=200, file=io.StringIO())
    slurm = ["--slurm.partition=gpu", "--slurm.gpus_per_node=1", "--slurm.time=90"]
    slurm += ["--slurm.additional_parameters.reservation=x"]
    commands.sweep(
        str(recipe), [], tmp_path / "new", console, executor="slurm", slurm=slurm, dry_run=True
    )
    text = console.export_text()
    assert "time=90 partition=gpu gpus_per_node=1 requeue=True reservation=x" in text
    assert "array 0: 2 jobs, can start at once" in text
    assert "0[1]: pretrain gpt-d8 (pretrain-" in text
    assert "array 1: 2 jobs, after 0[0] have ended" in text
    assert text.count(" jobs, after ") == 4 and "last: 1 job, after all others" in text
    assert not (tmp_path / "new").exists()
    with pytest.raises(errors.InputError, match="needs sbatch"):
        commands.sweep(str(recipe), [], tmp_path / "new", console, executor="slurm")


@pytest.mark.parametrize(
    "flag,said",
    [
        ("--slurm.partion=x", "unknown value 'partion' (did you mean 'partition'?)"),
        ("--slurm.time=1:00:00", "--slurm.time: '1:00:00'; must be a number of minutes"),
        ("--slurm.nodes=2", "--slurm.nodes: 2; must be 1 in a sweep"),
        ("--slurm.gpus_per_node=many", "--slurm.gpus_per_node: 'many'; must be a number"),
        ("--slurm.dependency=x", "unknown value 'dependency'"),
    ],
)
def test_wrong_parameters_of_jobs_are_refused(flag, said, tmp_path, capsys, recipe):
    pytest.importorskip("submitit", reason="submitit is not installed")
    command = ["sweep", f"--config={recipe}", f"--workdir={tmp_path / 'new'}", "--executor=slurm"]
    assert main([*command, flag]) == 2
    text = capsys.readouterr().err
    assert said in text and text.count("\n") == 1 and not (tmp_path / "new").exists()


def test_parameters_become_what_submitit_takes():
    pytest.importorskip("submitit", reason="submitit is not installed")
    flags = ["--slurm.gpus_per_node=a100:2", "--slurm.setup=module load x", "--slurm.setup=y",
             "--slurm.exclusive=true", "--slurm.mem=32GB"]  # fmt: skip
    assert on_slurm.parse_parameters(flags) == {
        "time": on_slurm.MINUTES, "gpus_per_node": "a100:2", "setup": ["module load x", "y"],
        "exclusive": True, "mem": "32GB", "additional_parameters": {"requeue": True},
    }  # fmt: skip
