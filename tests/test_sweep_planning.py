"""Planning sweeps: counts against counts by hand, costs against sums by hand, bad input."""

import dataclasses
from pathlib import Path

import pytest
from refusals import error
from tiny_sweeps import write_sweep

from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.config import validation, with_labels
from w2s_jax.core import errors
from w2s_jax.models import budget
from w2s_jax.perf.workloads import model_flops
from w2s_jax.planning import resolve
from w2s_jax.planning.costs import Flops, phase_flops
from w2s_jax.planning.plan import plan as plan_of
from w2s_jax.sweep import costs, planning
from w2s_jax.sweep.points import NamedPoint, load_points, with_overrides
from w2s_jax.sweep.space import over, pairs, product

REPO = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def planned(path, tmp_path, *overrides):
    points = load_points(str(path), overrides)
    return planning.plan_sweep(points, tmp_path / "new", tmp_path / "new" / "phases")


def kinds(plan):
    counts = {}
    for phase in plan.phases.values():
        counts[phase.kind] = counts.get(phase.kind, 0) + 1
    return counts


def counting(monkeypatch):
    """The settings of each call of the real `resolve`."""
    calls = []
    monkeypatch.setattr(
        planning, "resolve", lambda settings: (calls.append(settings), resolve.resolve(settings))[1]
    )
    return calls


def test_the_digits_sweep_has_as_many_phases_as_counted_by_hand(tmp_path, monkeypatch):
    calls = counting(monkeypatch)
    plan = planned(REPO / "configs/sweeps/digits.py", tmp_path)
    sizes, losses, seeds = 3, 2, 3
    assert len(plan.runs) == sizes * losses * seeds
    assert kinds(plan) == {
        "pretrain": sizes,
        "weak": seeds,
        "ceiling": sizes * seeds,
        "student": sizes * losses * seeds,
    }
    by_kind = {"pretrain": losses * seeds, "weak": sizes * losses, "ceiling": losses, "student": 1}
    assert plan.uses == {name: by_kind[phase.kind] for name, phase in plan.phases.items()}
    assert len(calls) == sizes, "points that differ in seeds and losses read the data once"
    place = {name: n for n, name in enumerate(plan.phases)}
    for name, phase in plan.phases.items():
        assert all(place[parent] < place[name] for parent in phase.parents.values())
    assert not (tmp_path / "new").exists()


def test_a_ladder_pretrains_each_model_once_whatever_its_role(tmp_path):
    plan = planned(REPO / "configs/sweeps/ladder.py", tmp_path)
    models, rungs, losses = 4, 10, 2
    assert len(plan.runs) == rungs
    assert kinds(plan) == {
        "pretrain": models, "weak": models, "ceiling": models, "student": losses * rungs
    }  # fmt: skip
    shared = {phase.label for name, phase in plan.phases.items() if phase.kind == "pretrain"}
    assert shared == {"gpt-d8", "gpt-d16", "gpt-d32", "gpt-d64"}


def test_shared_reading_gives_what_reading_alone_gives(data_dir, tmp_path, monkeypatch):
    points = (
        "product(over('seed', [0, 1]), over('protocol.item_expansion', ['all', 'one']),"
        " over('losses', [('xent',), ('product',)]), over('strong.train.learning_rate', [.1, .2]))"
    )
    path = write_sweep(tmp_path / "sweep.py", data_dir, points)
    calls = counting(monkeypatch)
    plan = planned(path, tmp_path)
    # Losses share; learning rates do not; seeds do where they draw no documents.
    assert len(plan.runs) == 16 and len(calls) == 2 * (1 + 2)
    for run, point in zip(plan.runs, load_points(str(path), []), strict=True):
        alone = resolve.resolve(validation.validate(with_labels(point.config)))
        assert run.prepared.resolved.settings == alone.settings
        assert run.prepared.resolved.digests == alone.digests
        assert run.phases == tuple(p.name for p in plan_of(alone).phases)
    slices = {id(r.prepared.resolved.roles["strong"].splits["slice2"]) for r in plan.runs}
    assert len(slices) == 1, "equal documents are kept once"


def test_costs_are_sums_over_documents(data_dir, tmp_path):
    path = write_sweep(tmp_path / "sweep.py", data_dir, "pairs(['gpt-d8'])")
    plan = planned(path, tmp_path, "--config.train.steps=30", "--config.eval.every=7")
    resolved = plan.runs[0].prepared.resolved
    splits = resolved.roles["weak"].splits
    found = {phase.kind: phase_flops(phase, resolved) for phase in plan.phases.values()}
    weak = next(phase for phase in plan.phases.values() if phase.kind == "weak")

    def forward(split):
        return model_flops(weak.model, weak.train, splits[split], labels=True)

    once = model_flops(weak.model, weak.train, splits["slice1"], labels=False)
    batches_of_documents = 30 * 16 / len(splits["slice1"])
    assert found["weak"].training == pytest.approx(once * batches_of_documents)
    # Evaluated after steps 7, 14, 21, 28 and 30.
    evaluations = 5 * forward("validation")
    predicted = forward("validation") + forward("test")
    assert found["weak"].inference == pytest.approx(evaluations + predicted + forward("slice2"))
    assert found["ceiling"].inference == pytest.approx(evaluations + predicted)
    assert found["student"] == found["ceiling"]
    pretrain = next(phase for phase in plan.phases.values() if phase.kind == "pretrain")
    lengths = splits["pretrain"].piece_lengths_P.tolist()
    slow = sum(
        n * budget.train_flops_per_token(pretrain.model, n, logits=True) for n in lengths
    ) / len(lengths)
    assert found["pretrain"] == Flops(pytest.approx(slow * 10 * 16), 0.0)


def test_hours_follow_from_flops_peaks_and_utilisation(data_dir, tmp_path):
    path = write_sweep(tmp_path / "sweep.py", data_dir, "pairs(['gpt-d8'])")
    plan = planned(path, tmp_path)
    halves = {
        name: dataclasses.replace(
            phase, train=dataclasses.replace(phase.train, compute_dtype="bfloat16")
        )
        for name, phase in plan.phases.items()
        if phase.kind == "pretrain"
    }
    total, fast = (
        sum(phase_flops(phases[name], plan.resolved[name]).total for name in phases)
        for phases in (plan.phases, halves)
    )
    rows = {row.device: row for row in costs.hours(plan.phases, plan.resolved, 0.25)}
    # A TPU multiplies float32 at the rate of bfloat16, TF32 has half of it.
    assert rows["TPU v4"].device_hours == pytest.approx(total / (0.25 * 275e12) / 3600)
    assert rows["H100"].device_hours == pytest.approx(total / (0.25 * 494.7e12) / 3600)
    assert rows["H100"].devices == 1 and "laptop 16 GB" not in rows
    mixed = costs.hours({**plan.phases, **halves}, plan.resolved, 0.25)
    seconds = (total - fast) / (0.25 * 494.7e12) + fast / (0.25 * 989.4e12)
    assert {r.device: r for r in mixed}["H100"].device_hours == pytest.approx(seconds / 3600)


def test_probes_cost_their_features_once(data_dir, tmp_path):
    path = write_sweep(tmp_path / "sweep.py", data_dir, "pairs(['gpt-d8'])")
    options = ("--config.strong.train.adapt=probe", "--config.probe.batch_size=16")
    plan = planned(path, tmp_path, *options)
    resolved = plan.runs[0].prepared.resolved
    by_kind = {phase.kind: phase for phase in plan.phases.values()}
    features = phase_flops(by_kind["features"], resolved)
    splits = resolved.roles["strong"].splits
    wanted = sum(
        model_flops(by_kind["features"].model, by_kind["weak"].train, splits[name], labels=True)
        for name in ("slice2", "test", "validation")
    )
    assert features == Flops(0.0, pytest.approx(wanted))
    assert phase_flops(by_kind["ceiling"], resolved) == Flops(0.0, 0.0)


BAD = [
    ("train.learning_rat", 1.0, None),
    ("sead", 3, None),
    ("loss.confidence.alpha", 0.5, None),
    ("strong.model", "gpt-d33", None),
    ("losses", ("xent", "confidense"), "xent,confidense"),
    ("train.microbatch_size", 5, None),
    ("task.train_docs", 20, None),
    ("task.train_docs", 5000, None),
    ("task.source", "hubb", None),
    ("pretrain.source", "nowhere", None),
    ("strong.train.adapt", "lara", None),
    ("loss.confidence.alpha_max", 1.5, None),
]


@pytest.mark.parametrize("field,value,typed", BAD, ids=[f"{f}={v}" for f, v, _ in BAD])
def test_a_bad_override_gets_the_command_lines_own_error(
    field, value, typed, data_dir, tmp_path, capsys
):
    path = write_sweep(tmp_path / "sweep.py", data_dir, f"over({field!r}, [{value!r}])")
    lines = []
    for command in (["sweep"], ["run", f"--config.{field}={typed or value}"]):
        arguments = [*command, f"--config={path}", f"--workdir={tmp_path / 'new'}"]
        assert main(arguments) == 2
        # What stands on the command line is text.
        text = capsys.readouterr().err.replace(repr(str(value)), "?")
        lines.append(text.replace(repr(value), "?"))
    assert lines[0] == lines[1]
    assert lines[0].count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "field,value,said",
    [
        ("seed", "three", "seed: 'three' is of type str; allowed: int"),
        ("seed", True, "seed: True is of type bool; allowed: int"),
        ("losses", "xent", "losses: 'xent' is of type str; allowed: tuple"),
        ("train.steps", "x", "train.steps: 'x' is of type str; allowed: int or None"),
        ("train", 3, "unknown field 'train' with value 3"),
        ("train.steps.more", 3, "unknown field 'train.steps.more'"),
        ("log.wandb", True, "log.wandb: True"),
    ],
)
def test_a_value_of_a_wrong_type_is_named(field, value, said, data_dir, tmp_path):
    config = testing.tiny_config(data_dir)
    with pytest.raises(errors.InputError) as caught:
        point = {field: value}
        named = NamedPoint("x", point, with_overrides(config, point, "x"))
        planning.plan_sweep([named], tmp_path / "new", tmp_path / "phases")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_options_of_a_loss_and_names_are_overridden_in_a_copy(data_dir):
    config = testing.tiny_config(data_dir)
    point = {"loss.confidence.alpha_max": 0.7, "train.learning_rate": 1, "train.steps": None}
    changed = with_overrides(config, point, "bold")
    assert changed.loss.confidence.alpha_max == 0.7 and changed.name == "bold"
    assert changed.train.learning_rate == 1.0 and changed.train.steps is None
    assert config.loss.confidence.alpha_max == 0.5 and config.name == "tiny"
    assert with_overrides(config, {"name": "mine"}, "x").name == "mine"


@pytest.mark.parametrize(
    "points,said",
    [
        ("[]", "sweep returns no point"),
        ("[3]", "sweep returns 3; points must be dicts"),
        ("over('seed', 'abc')", "over: seed: 'abc'; must be a list of values"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_sweep_file_is_named(points, said, data_dir, tmp_path):
    path = write_sweep(tmp_path / "broken.py", data_dir, points)
    text = error(load_points, str(path), [])
    assert said in text and "broken.py" in text


def test_a_recipe_is_no_sweep_and_a_sweep_is_run_once(data_dir, tmp_path):
    assert "no function 'sweep'" in error(load_points, str(REPO / "configs/quickstart.py"), [])
    path = write_sweep(tmp_path / "sweep.py", data_dir, "over('seed', [runs])")
    log = tmp_path / "log"
    path.write_text(
        path.read_text() + f"with open({str(log)!r}, 'a') as file:\n    file.write('x')\nruns = 7\n"
    )
    assert [point.overrides for point in load_points(str(path), [])] == [{"seed": 7}]
    assert log.read_text() == "x", "tasks and losses are registered once"


@pytest.mark.parametrize(
    "options,said",
    [
        (
            ["--executor=rai"],
            "unknown value 'rai' (did you mean 'ray'?); allowed: local, ray",
        ),
        (["--resources=num_gpus=1"], "'num_gpus=1' needs --executor=ray, not --executor=local"),
        (["--executor=slurm", "--ray_address=x:1"], "--ray_address: 'x:1' needs --executor=ray"),
        (["--slurm.time=60"], "--slurm: ['--slurm.time=60'] needs --executor=slurm"),
        (["--executor=ray", "--resources=num_gpus"], "--resources: 'num_gpus'; must be NAME="),
        (["--executor=ray", "--resources=a=1,a=2"], "--resources: 'a=1,a=2'; must be NAME="),
        (["--mfu=0"], "--mfu: 0.0; allowed: above 0 and at most 1"),
        (["--mfu=nan"], "--mfu: nan"),
        (["--dry"], "unknown argument '--dry'"),
        (["status"], "sweep: unknown action 'status'; use status DIR"),
        (["status", "nowhere"], "nowhere: has no sweep.json"),
        (["status", "nowhere", "--config.seed=1"], "unknown argument '--config.seed=1'"),
    ],
)
def test_bad_options_are_one_line_and_status_2(options, said, tmp_path, capsys):
    recipe = REPO / "configs/sweeps/digits.py"
    command = ["sweep", f"--config={recipe}", f"--workdir={tmp_path / 'new'}", *options]
    assert main(command) == 2
    text = capsys.readouterr().err
    assert said in text and text.count("\n") == 1 and not (tmp_path / "new").exists()


def test_a_foreign_folder_is_refused_and_a_kill_in_the_first_write_is_not(data_dir, tmp_path):
    from w2s_jax.sweep.records import check_workdir

    (tmp_path / ".sweep.json.4711.tmp").write_text("{")
    check_workdir(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    assert "is not a sweep folder" in error(check_workdir, tmp_path)
    (tmp_path / "sweep.json").write_text("[]")
    assert "is not the record of a sweep" in error(check_workdir, tmp_path)


def test_the_two_spaces_of_the_recipes_are_what_they_say():
    points = load_points(str(REPO / "configs/sweeps/ladder.py"), ["--config.seed=5"])
    assert [point.overrides for point in points] == pairs(
        ("gpt-d8", "gpt-d16", "gpt-d32", "gpt-d64")
    )
    assert {point.config.seed for point in points} == {5}
    digits = load_points(str(REPO / "configs/sweeps/digits.py"), [])
    sizes = over("strong.model", ("gpt-d16", "gpt-d32", "gpt-d64"))
    losses = over("losses", (("xent",), ("confidence",)))
    assert [p.overrides for p in digits] == product(sizes, losses, over("seed", range(3)))
