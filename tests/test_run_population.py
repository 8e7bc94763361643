"""Runs whose phases are trained together, against the same phases alone."""

import contextlib
import dataclasses
import json
import shutil
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
from interrupting import interrupted_run
from rich.console import Console

from w2s_jax import phases, sharding, testing
from w2s_jax.config import ProbeSettings, TrainSettings, add_loss
from w2s_jax.config.validation import validate
from w2s_jax.core import errors
from w2s_jax.core.files import read_json
from w2s_jax.execution import execute
from w2s_jax.phases import grouping, inputs, running, training
from w2s_jax.planning.memory import memory_estimate
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.store import artifacts, trees
from w2s_jax.training import loop
from w2s_jax.training.population import choose_mode
from w2s_jax.training.spec import StepSpec

QUIET = Console(quiet=True)
TOGETHER = ["ceiling", "student xent", "student confidence", "student bold"]


@pytest.fixture(scope="module", autouse=True)
def no_report():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute, "write_report", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return testing.write_tiny_task(tmp_path_factory.mktemp("data"))


def config_of(data_dir, population, adapt="full"):
    """A ceiling and students with three losses; the probes keep the best of their evaluations."""
    config = testing.tiny_config(data_dir)
    config.mesh.population = population
    add_loss(config, "bold", kind="confidence", alpha_max=0.9)
    config.losses = ("xent", "confidence", "bold")
    config.strong.model, config.strong.train.adapt = "gpt-d8", adapt
    if adapt == "full":
        config.protocol.early_stopping = "none"
    config.probe.steps, config.probe.batch_size, config.probe.learning_rate = 40, 16, 0.05
    return config


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """A run of phases that are trained one after another: its folder and its result."""
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    return workdir, execute.run(config_of(data_dir, 1), workdir, console=QUIET)


def begun(finished, workdir):
    """A copy of a finished run that lacks its ceiling and students."""
    shutil.copytree(finished, workdir)
    (workdir / "result.json").unlink()
    for folder in (workdir / "phases").iterdir():
        if folder.name.startswith(("ceiling", "student")):
            shutil.rmtree(folder)
    return workdir


@pytest.fixture(scope="module")
def together(alone, data_dir, tmp_path_factory):
    """The same with four members at most."""
    workdir = begun(alone[0], tmp_path_factory.mktemp("runs") / "together")
    return workdir, execute.run(config_of(data_dir, 4), workdir, console=QUIET)


def tables(workdir, result):
    """title -> (result.json, metrics.jsonl, predictions.parquet) of what makes predictions."""
    found = {}
    for stage in result["stages"]:
        folder = workdir / "phases" / stage["phase"]
        if (folder / "predictions.parquet").exists():
            found[f"{stage['kind']} {stage.get('label', '')}".strip()] = (
                json.loads((folder / "result.json").read_text()),
                (folder / "metrics.jsonl").read_text(),
                pq.read_table(folder / "predictions.parquet").to_pandas(),
            )
    return found


def assert_same_bits(a, b):
    for role in ("weak", "ceiling", "students", "stages"):
        assert a[1][role] == b[1][role]
    mine, others = tables(*a), tables(*b)
    for title, (result, rows, table) in tables(*a).items():
        assert rows == others[title][1], title
        assert table.equals(others[title][2]), title
        same = ("kept_step", "train_loss", "real_token_share", "sha256")
        assert [result[name] for name in same] == [others[title][0][name] for name in same]
        mine, theirs = (r["execution"].get("population") for r in (result, others[title][0]))
        assert mine == theirs


@pytest.mark.medium
def test_phases_together_give_what_they_give_alone(alone, together):
    (_, result), (_, other) = alone, together
    # Names hold fingerprints.
    assert [s["phase"] for s in result["stages"]] == [s["phase"] for s in other["stages"]]
    one, several = tables(*alone), tables(*together)
    for title, (record, rows, table) in one.items():
        found, found_rows, found_table = several[title]
        assert list(found_table.id) == list(table.id)
        np.testing.assert_allclose(found_table.p, table.p, atol=2e-3)
        np.testing.assert_allclose(found_table.label, table.label, atol=2e-3)
        steps = [(json.loads(row)["step"], json.loads(row)["split"]) for row in rows.splitlines()]
        assert steps == [
            (json.loads(row)["step"], json.loads(row)["split"]) for row in found_rows.splitlines()
        ]
        assert abs(found["metrics"]["test"]["accuracy"] - table_accuracy(table)) <= 1 / 64
        assert "population" not in record["execution"]
        assert found["parameters"] == record["parameters"]
    places = {title: several[title][0]["execution"].get("population") for title in several}
    assert places.pop("weak") is None
    common = {"mode": "loop", "members": 4, "devices": 4}
    assert places == {title: common | {"index": i} for i, title in enumerate(TOGETHER)}
    students = [several[title][2].query("split == 'test'").p for title in TOGETHER[1:]]
    assert not np.allclose(students[0], students[2], atol=1e-3)


def table_accuracy(table):
    test = table.query("split == 'test'")
    return ((test.p > 0.5) == (test.ground_truth > 0.5)).mean()


def test_nothing_of_a_population_is_left_and_what_is_finished_is_not_run_again(
    together, data_dir, monkeypatch
):
    workdir, result = together
    for stage in result["stages"]:
        folder = artifacts.PhaseFolder(workdir / "phases" / stage["phase"])
        assert not folder.steps.exists() and not folder.population.exists()
        assert trees.damage(folder.final) is None
        record = json.loads(folder.config.read_text())
        done = json.loads(folder.result.read_text())
        assert record["execution"] == done["execution"] and "population" not in done
    for name in ("run_phase", "train_together"):
        monkeypatch.setattr(phases, name, lambda *_: pytest.fail("trained again"))
    assert execute.run(config_of(data_dir, 1), workdir, console=QUIET) == result


def test_an_interrupted_population_resumes_bit_for_bit_whatever_is_asked_for_now(
    alone, together, data_dir, tmp_path, monkeypatch
):
    workdir = begun(alone[0], tmp_path / "run")
    message = interrupted_run(config_of(data_dir, 4), workdir, 2)
    assert message.startswith(", ".join(TOGETHER)) and "step 10 of 20" in message
    (folder,) = [
        f for f in map(artifacts.PhaseFolder, (workdir / "phases").iterdir()) if f.steps.exists()
    ]
    assert folder.path.name.startswith("ceiling")
    record = json.loads(folder.population.read_text())
    names = [s["phase"] for s in together[1]["stages"][-4:]]
    assert record == {"mode": "loop", "members": names, "devices": 4}
    # After that once more, between the results of two members.
    monkeypatch.setattr(grouping, "choose_mode", lambda *_: "vmap")
    interrupted_run(config_of(data_dir, 1), workdir, 3)
    assert (workdir / "phases" / names[0] / "result.json").exists()
    assert not (workdir / "phases" / names[1] / "result.json").exists()
    monkeypatch.setattr(phases, "train_together", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(training, "train", lambda *_: pytest.fail("trained again"))
    again = execute.run(config_of(data_dir, 1), workdir, console=QUIET)
    assert_same_bits((workdir, again), together)


@pytest.mark.slow
def test_a_kill_while_parameters_are_stored_changes_no_bit(
    alone, together, data_dir, tmp_path, monkeypatch
):
    workdir = begun(alone[0], tmp_path / "run")
    config, original, stored = config_of(data_dir, 4), running.keep, []

    def keep(phase, *rest):
        if len(stored) == 2:
            raise KeyboardInterrupt
        stored.append(phase.title)
        original(phase, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(running, "keep", keep)
        execute.run(config, workdir, console=QUIET)
    assert stored == TOGETHER[:2]
    again = execute.run(config, workdir, console=QUIET)
    assert_same_bits((workdir, again), together)


def test_a_member_that_fails_stops_the_run_after_the_others(alone, data_dir, tmp_path, monkeypatch):
    workdir = begun(alone[0], tmp_path / "run")
    original = inputs.targets_of

    def poisoned(phase, context, split, documents):
        targets_NC = original(phase, context, split, documents)
        if phase.label == "confidence" and split == phase.inputs["train"]:
            order_SB = inputs.inputs_of(phase, context).order_SB
            seen = set(order_SB[:3].ravel().tolist())
            targets_NC = targets_NC.copy()
            targets_NC[next(i for i in order_SB[3].tolist() if i not in seen)] = np.nan
        return targets_NC

    with monkeypatch.context() as patch:
        patch.setattr(inputs, "targets_of", poisoned)
        with pytest.raises(errors.TrainingFailed, match="^student confidence: .* step 3 of 20"):
            execute.run(config_of(data_dir, 4), workdir, console=QUIET)
    missing = [
        s["label"]
        for s in alone[1]["stages"]
        if not (workdir / "phases" / s["phase"] / "result.json").exists()
    ]
    assert missing == ["confidence"]
    again = execute.run(config_of(data_dir, 4), workdir, console=QUIET)
    # It was trained alone then.
    assert again["students"]["confidence"] == alone[1]["students"]["confidence"]


@contextlib.contextmanager
def grouped(workdir, config, held=()):
    """Titles of what would be trained together with the ceiling, and the mode."""
    resolved = resolve(validate(config))
    context = phases.Context(
        resolved, workdir / "phases", sharding.make_mesh(), QUIET, lambda: False
    )
    missing = [p for p in plan(resolved).phases if not context.folder(p.name).complete]
    with contextlib.ExitStack() as claims:
        for phase in missing:
            if phase.label in held:
                claims.enter_context(artifacts.claim(context.folder(phase.name)))
        with phases.claimed_group(missing[0], missing[1:], context) as group:
            yield [phase.title for phase in group.phases], group.mode, context, missing


def test_who_is_trained_together(alone, data_dir, tmp_path, monkeypatch):
    workdir = begun(alone[0], tmp_path / "run")
    for population, held, wanted in (
        (1, (), TOGETHER[:1]),
        (-1, (), TOGETHER[:1]),  # taking turns gains nothing
        (2, (), TOGETHER[:2]),
        (9, (), TOGETHER),
        (3, ("xent",), [TOGETHER[0], *TOGETHER[2:]]),
    ):
        with grouped(workdir, config_of(data_dir, population), held) as (titles, mode, *_):
            assert titles == wanted and mode == ("loop" if len(wanted) > 1 else "")
    monkeypatch.setattr(grouping, "choose_mode", lambda *_: "vmap")
    with grouped(workdir, config_of(data_dir, -1)) as (titles, mode, context, missing):
        assert (titles, mode) == (TOGETHER, "vmap")
        # They are held, all of them, as long as the group is.
        for phase in missing[1:]:
            with artifacts.claim_if_free(context.folder(phase.name)) as free:
                assert not free
    with artifacts.claim_if_free(context.folder(missing[1].name)) as free:
        assert free
    config = config_of(data_dir, 9)
    config.losses = ("xent", "logconf", "bold")
    with grouped(workdir, config) as (titles, *_):
        assert titles == ["ceiling", "student xent", "student bold"]
    # Students that keep their best evaluation have no program in common with the ceiling.
    config = config_of(data_dir, 9)
    config.protocol.early_stopping = "agreement"
    with grouped(workdir, config) as (titles, mode, *_):
        assert (titles, mode) == (TOGETHER[:1], "")
    # What has a checkpoint of its own goes on alone.
    (context.folder(missing[2].name).steps / "5").mkdir(parents=True)
    with grouped(workdir, config_of(data_dir, 9)) as (titles, *_):
        assert titles == [*TOGETHER[:2], TOGETHER[3]]


def test_a_population_that_has_lost_a_member_is_begun_anew(alone, data_dir, tmp_path, caplog):
    workdir = begun(alone[0], tmp_path / "run")
    with grouped(workdir, config_of(data_dir, 9)) as (_, _, context, missing):
        pass
    folder = context.folder(missing[0].name)
    group = phases.Group(tuple(missing[:3]), "vmap", 3)
    (folder.steps / "5").mkdir(parents=True)
    grouping.write_record(group, context)
    with grouped(workdir, config_of(data_dir, 1)) as (titles, mode, *_):
        assert (titles, mode) == (TOGETHER[:3], "vmap")
    assert folder.population.exists()
    with grouped(workdir, config_of(data_dir, 1), held=("xent",)) as (titles, mode, *_):
        assert (titles, mode) == (TOGETHER[:1], "")
    assert "ceiling: started over, as 2 other phases and 3 devices" in caplog.text
    assert not folder.population.exists() and not folder.steps.exists()


@pytest.mark.slow
def test_phases_of_other_seeds_keep_their_own_order(alone, data_dir, tmp_path):
    """Two ceilings, the second of another seed, against each of them alone."""
    workdir = begun(alone[0], tmp_path / "run")
    with grouped(workdir, config_of(data_dir, 1)) as (_, _, context, missing):
        pass
    ceiling = missing[0]
    other = dataclasses.replace(ceiling, seed=1)
    group = phases.Group((ceiling, other), "loop", 2)
    for phase in group.phases:
        context.folder(phase.name).path.mkdir(exist_ok=True)
    assert phases.train_together(group, context) == {}
    folders = [context.folder(p.name) for p in group.phases]
    together = [(read_json(f.trained), trees.load_tree(f.final, None)) for f in folders]
    shutil.rmtree(folders[1].final.parent)
    phases.run_phase(other, context)
    folders[0] = artifacts.PhaseFolder(alone[0] / "phases" / ceiling.name)
    single = [(read_json(f.trained), trees.load_tree(f.final, None)) for f in folders]
    for (record, params), (its_record, its_params) in zip(together, single, strict=True):
        assert record["train_loss"] == pytest.approx(its_record["train_loss"], rel=1e-4)
        kernel, its_kernel = params["head"]["kernel"], its_params["head"]["kernel"]
        np.testing.assert_allclose(kernel, its_kernel, atol=2e-3)
    assert together[0][0]["train_loss"] != pytest.approx(together[1][0]["train_loss"], rel=1e-2)


def test_so_many_members_are_trained_as_the_devices_have_memory_for(data_dir):
    resolved = resolve(validate(config_of(data_dir, 4)))
    phase = plan(resolved).phases[-1]
    needed = memory_estimate(phase, resolved)["total"]
    for share, wanted in ((1.0, 0), (1.3, 2), (4.0, 6), (None, sys.maxsize)):
        stats = None if share is None else {"bytes_limit": share * needed}
        device = types.SimpleNamespace(memory_stats=lambda stats=stats: stats)
        mesh = types.SimpleNamespace(devices=np.array([device, device]))
        context = types.SimpleNamespace(mesh=mesh, resolved=resolved)
        assert grouping._room(phase, context) == wanted


def test_members_share_the_time_that_they_took_together(data_dir):
    phase = plan(resolve(validate(config_of(data_dir, 4)))).phases[-1]
    stats = loop.LoopStats(seconds=6.0, compile_seconds=3.0, members=[loop.MemberProgress()] * 3)
    history_SH = np.arange(32 * 4, dtype=np.float32).reshape(32, 4)
    record = training.record(phase, history_SH, stats, 1, 0.75)
    assert (record["seconds"], record["compile_seconds"]) == (2.0, 1.0)
    # The mean loss of the last tenth of 20 steps, of which the history has 32 rows.
    assert record["train_loss"] == history_SH[18:20, 0].mean()
    assert (record["steps"], record["kept_step"], record["real_token_share"]) == (20, 20, 0.75)


def test_where_members_are_trained_at_once():
    train = ProbeSettings()
    wide, narrow = (StepSpec(testing.tiny_model(d_model=d), train, 9, None) for d in (256, 128))
    model = StepSpec(testing.tiny_model(d_model=256), TrainSettings(), 9, None)
    assert choose_mode(wide, True, "cpu") == "vmap"
    for spec, shared_order in ((wide, False), (narrow, True), (model, True)):
        assert choose_mode(spec, shared_order, "cpu") == "loop"


@pytest.mark.slow
def test_probes_are_one_program_and_resume_in_the_recorded_mode(data_dir, tmp_path, monkeypatch):
    """Three students' heads on the same features, each of which keeps its best evaluation."""
    first = config_of(data_dir, 1, "probe")
    alone = tmp_path / "alone", execute.run(first, tmp_path / "alone", console=QUIET)
    config = config_of(data_dir, -1, "probe")
    with monkeypatch.context() as patch:
        patch.setattr(grouping, "choose_mode", lambda *_: "vmap")
        workdir = begun(alone[0], tmp_path / "together")
        together = workdir, execute.run(config, workdir, console=QUIET)
        halved = begun(alone[0], tmp_path / "halved")
        # After the ceiling with its 8 looks for a stop, and one behind it.
        message = interrupted_run(config, halved, 8 + 2 + 3)
    assert message.startswith(", ".join(TOGETHER[1:])) and "step 15 of 40" in message
    config.mesh.population = 1
    assert_same_bits((halved, execute.run(config, halved, console=QUIET)), together)
    one, several = tables(*alone), tables(*together)
    common = {"mode": "vmap", "members": 3, "devices": 3}
    for i, title in enumerate(TOGETHER[1:]):
        assert several[title][0]["execution"]["population"] == common | {"index": i}
        assert several[title][0]["kept_step"] == one[title][0]["kept_step"]
        np.testing.assert_allclose(several[title][2].p, one[title][2].p, atol=1e-4)
