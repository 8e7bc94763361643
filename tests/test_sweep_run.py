"""Tiny sweeps: what is shared, what fails, what is resumed, what is told, and two processes."""

import errno
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from rich.console import Console
from tiny_sweeps import PAIR, write_sweep

from w2s_jax import phases
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.execution import execute
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import finishing, records
from w2s_jax.sweep.commands import sweep
from w2s_jax.sweep.points import load_points
from w2s_jax.sweep.status import print_status
from w2s_jax.testing import write_tiny_task

QUIET = Console(quiet=True)

#: Two losses and two seeds: 2 pretrainings, 2 weak models, 2 ceilings and 4 students.
POINTS = "product(over('losses', [('xent',), ('confidence',)]), over('seed', [0, 1]))"
DISTINCT = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return write_sweep(folder / "sweep.py", write_tiny_task(folder / "data"), POINTS, PAIR)


@pytest.fixture
def ran(monkeypatch):
    """The names of the phases that are run from now on, in order."""
    names, original = [], phases.run_phase
    monkeypatch.setattr(
        phases, "run_phase", lambda phase, ctx: (names.append(phase.name), original(phase, ctx))
    )
    return names


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    """A finished sweep: its folder, and the phases that were run. Tests must not change it."""
    workdir, names = tmp_path_factory.mktemp("sweeps") / "finished", []
    with pytest.MonkeyPatch.context() as patch:
        original = phases.run_phase
        patch.setattr(
            phases, "run_phase", lambda phase, ctx: (names.append(phase.name), original(phase, ctx))
        )
        assert main(["sweep", f"--config={recipe}", f"--workdir={workdir}"]) == 0
    return workdir, names


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished sweep, free to be changed."""
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    path = copy / "sweep.json"
    path.write_text(path.read_text().replace(str(finished[0]), str(copy)))
    for path in copy.glob("runs/*/config.json"):
        path.write_text(path.read_text().replace(str(finished[0]), str(copy)))
    return copy


@pytest.fixture
def no_report(monkeypatch):
    monkeypatch.setattr(finishing, "write_report", lambda *_: None)


def results(workdir):
    """run -> what must be equal bit for bit however it was computed."""
    parts = ("weak", "ceiling", "students", "stages")
    found = {p.parent.name: json.loads(p.read_text()) for p in workdir.glob("runs/*/result.json")}
    return {name: {part: result[part] for part in parts} for name, result in found.items()}


def remove(workdir, *kinds):
    """Removes the phases of some kinds, and all results of runs; the names of the phases."""
    removed = {p.name for kind in kinds for p in (workdir / "phases").glob(f"{kind}-*")}
    for name in removed:
        shutil.rmtree(workdir / "phases" / name)
    shutil.rmtree(workdir / "runs")
    return removed


def recording():
    """A console whose text can be exported."""
    return Console(record=True, width=200, file=io.StringIO())


def told(workdir):
    """What `w2s sweep status` prints."""
    console = recording()
    print_status(workdir, console)
    return console.export_text()


@pytest.mark.medium
def test_each_distinct_phase_is_trained_once(finished):
    workdir, names = finished
    assert len(names) == len(set(names)) == DISTINCT
    assert {p.name for p in (workdir / "phases").iterdir()} == set(names)
    kinds = [name.partition("-")[0] for name in names]
    assert [kinds.count(k) for k in ("pretrain", "weak", "ceiling", "student")] == [2, 2, 2, 4]
    found = results(workdir)
    assert sorted(found) == [
        "losses=confidence,seed=0", "losses=confidence,seed=1", "losses=xent,seed=0",
        "losses=xent,seed=1",
    ]  # fmt: skip
    stages = [stage["phase"] for result in found.values() for stage in result["stages"]]
    assert set(stages) == set(names) and len(stages) == 4 * 5
    page = (workdir / "report" / "report.html").read_text()
    assert "confidence" in page and "xent" in page
    assert not list(workdir.glob("phases/*/holder.json"))


def test_a_run_of_a_sweep_is_the_run_alone(finished, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "write_report", lambda *_: None)
    point = next(p for p in load_points(str(recipe), []) if "confidence,seed=1" in p.name)
    alone = execute.run(point.config, tmp_path / "alone", console=QUIET)
    shared = results(finished[0])[point.name]
    assert {part: alone[part] for part in shared} == shared
    assert alone["name"] == point.name


def test_a_finished_sweep_is_read_and_nothing_is_written(workdir, recipe, ran):
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    for path in (workdir / "sweep.json", workdir / ".lock"):
        before.pop(path)
    console = recording()
    sweep(str(recipe), [], workdir, console)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
    assert ran == [] and {p: after[p] for p in before} == before
    text = console.export_text()
    assert "4 runs with 20 phases, 10 of them distinct, 6 shared by several runs" in text
    assert "10 done, 0 missing" in text and "4 of 4 runs are complete" in text
    for name, result in results(workdir).items():
        weak, ceiling = (result[role]["accuracy"] for role in ("weak", "ceiling"))
        assert re.search(rf"{re.escape(name)}: weak {weak:.3f}, .*ceiling {ceiling:.3f}", text)


def test_a_dry_run_tells_what_is_missing_and_touches_nothing(workdir, recipe, finished):
    shutil.rmtree(workdir / "runs")
    shutil.rmtree(workdir / "phases" / next(n for n in finished[1] if n.startswith("student")))
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    console = recording()
    sweep(str(recipe), [], workdir, console, dry_run=True, mfu=0.25)
    text = console.export_text()
    assert (
        text.count("training: train.jsonl; validation: validation.jsonl; test: test.jsonl; ") == 1
    )
    assert "9 done, 1 missing" in text and "assuming 25% of peak FLOP/s" in text
    assert re.search(r"student +4 +3 +1\b", text) and "TPU v5e" in text
    assert text.count("losses=") == 4 and {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == (
        before
    )


@pytest.mark.slow
def test_a_sweep_with_more_points_runs_what_they_add(workdir, recipe, ran, no_report):
    points = f"chain({POINTS}, product(over('losses', [('logconf',)]), over('seed', [0, 1])))"
    more = write_sweep(recipe.with_name("more.py"), recipe.parent / "data", points, PAIR)
    sweep(str(more), [], workdir, QUIET)
    assert [name.partition("-")[0] for name in ran] == ["student", "student"]
    assert len(results(workdir)) == 6


@pytest.fixture
def poisoned(monkeypatch):
    """A set of (kind, seed): such phases learn labels that are not numbers, and so fail."""
    chosen, original = set(), phases.inputs.targets_of

    def targets_of(phase, context, split, documents):
        targets_NC = original(phase, context, split, documents)
        poisoned = split == phase.inputs["train"] and (phase.kind, phase.seed) in chosen
        return targets_NC * np.float32(np.nan if poisoned else 1)

    monkeypatch.setattr(phases.inputs, "targets_of", targets_of)
    return chosen


def test_a_failure_stops_only_what_builds_on_it_until_it_is_retried(
    workdir, recipe, ran, poisoned, capsys, monkeypatch
):
    reports = []
    monkeypatch.setattr(finishing, "write_report", lambda *given: reports.append(given))
    wanted = results(workdir)
    remove(workdir, "weak", "ceiling", "student")
    shutil.rmtree(workdir / "report")
    poisoned |= {("weak", 1), ("student", 0)}
    command = ["sweep", f"--config={recipe}", f"--workdir={workdir}"]
    assert main(command) == 1
    captured = capsys.readouterr()
    # Both students of the seed 0 fail; those of the seed 1 have no labels to learn.
    line = captured.err.strip().splitlines()[-1]
    assert line.startswith("w2s: 3 failed (student-") and "2 of 10 phases build on them" in line
    assert captured.out.count("not finite at step 0 of 20") == 2 * 3
    kinds = [name.partition("-")[0] for name in ran]
    assert [kinds.count(k) for k in ("weak", "ceiling", "student")] == [2, 2, 2]
    assert results(workdir) == {} and reports == []
    text = told(workdir)
    assert re.search(r"all +10 +5 +3 +2\b", text), text
    assert "weak: loss or gradient is not finite at step 0 of 20" in text
    assert re.search(r"blocked +by weak-", text)

    ran.clear()
    assert main(command) == 1 and ran == [], "what failed is not tried again by itself"
    poisoned.clear()
    assert main([*command, "--retry_failed"]) == 0
    assert results(workdir) == wanted and len(ran) == 5
    assert reports == [([workdir], workdir / "report")]
    assert not list(workdir.glob("phases/*/failed.json"))


def test_an_unforeseen_error_is_recorded_with_where_it_was(workdir, recipe, monkeypatch, no_report):
    remove(workdir, "student")
    original = phases.run_phase

    def run_phase(phase, context):
        if (phase.label, phase.seed) == ("xent", 0):
            raise ValueError("out of luck\nand more")
        original(phase, context)

    monkeypatch.setattr(phases, "run_phase", run_phase)
    with pytest.raises(finishing.SweepFailed, match="1 failed .student-"):
        sweep(str(recipe), [], workdir, QUIET)
    assert len(results(workdir)) == 3
    (path,) = workdir.glob("phases/*/failed.json")
    found = json.loads(path.read_text())
    assert found["error"] == "ValueError: out of luck" and "run_phase" in found["traceback"]
    assert abs(found["time"] - time.time()) < 600


def test_what_a_disk_does_wrong_stops_the_sweep_and_blames_no_phase(
    workdir, recipe, monkeypatch, no_report
):
    remove(workdir, "student")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(phases, "run_phase", full)
        with pytest.raises(errors.StorageError, match="No space left"):
            sweep(str(recipe), [], workdir, QUIET)
    assert not list(workdir.glob("phases/*/failed.json"))
    sweep(str(recipe), [], workdir, QUIET)
    assert len(results(workdir)) == 4


def test_damaged_results_are_named_and_the_other_runs_are_finished(
    workdir, finished, recipe, no_report
):
    victim = next(name for name in finished[1] if name.startswith("student"))
    (workdir / "phases" / victim / "predictions.parquet").write_bytes(b"x")
    shutil.rmtree(workdir / "runs")
    with pytest.raises(finishing.SweepFailed, match="1 failed .runs/losses=xent,seed=0"):
        sweep(str(recipe), [], workdir, QUIET)
    assert len(results(workdir)) == 3


def test_sigterm_stops_at_a_boundary_and_the_same_command_resumes(
    workdir, recipe, monkeypatch, capsys, no_report
):
    wanted = results(workdir)
    remove(workdir, "ceiling", "student")
    command = ["sweep", f"--config={recipe}", f"--workdir={workdir}"]
    original, ran = phases.run_phase, []

    def run_phase(phase, context):
        ran.append(phase.name)
        if len(ran) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(phase, context)

    monkeypatch.setattr(phases, "run_phase", run_phase)
    assert main(command) == 75
    assert "resume" in capsys.readouterr().err
    assert len(ran) == 3
    stopped = workdir / "phases" / ran[-1]
    assert list((stopped / "checkpoints" / "steps").iterdir()), "its state was saved"
    assert not (stopped / "result.json").exists() and not (stopped / "failed.json").exists()
    assert not (stopped / "holder.json").exists()
    assert main(command) == 0
    assert ran[3] == ran[2] and len(ran) == 6 + 1
    assert results(workdir) == wanted


@pytest.mark.slow
def test_phases_of_several_runs_are_trained_as_one_population(
    workdir, recipe, poisoned, no_report, ran
):
    wanted = results(workdir)
    remove(workdir, "student")
    poisoned.add(("student", 1))
    together = ["--config.mesh.population=8"]
    with pytest.raises(finishing.SweepFailed, match="2 failed"):
        sweep(str(recipe), together, workdir, QUIET)
    found = [json.loads(p.read_text()) for p in workdir.glob("phases/student-*/result.json")]
    assert sorted(result["execution"]["population"]["index"] for result in found) == [0, 2]
    assert {result["execution"]["population"]["members"] for result in found} == {4}
    poisoned.clear()
    sweep(str(recipe), together, workdir, QUIET, retry_failed=True)
    for name, result in results(workdir).items():
        for loss, student in result["students"].items():
            accuracy = wanted[name]["students"][loss]["accuracy"]
            assert abs(student["accuracy"] - accuracy) <= 2 / 64


def test_status_tells_who_runs_what_and_how_fast(workdir, finished, monkeypatch):
    names = finished[1]
    ceiling, weak = (next(n for n in names if n.startswith(kind)) for kind in ("ceiling", "weak"))
    for name in (ceiling, weak):
        (workdir / "phases" / name / "result.json").unlink()
    shutil.rmtree(workdir / "phases" / weak)
    folder = PhaseFolder(workdir / "phases" / ceiling)
    assert re.search(rf"{ceiling} +ceiling +gpt-d8 +waiting", told(workdir))
    folder.steps.joinpath("5").mkdir(parents=True)
    with artifacts.claim_if_free(folder) as claimed, records.held([folder]):
        assert claimed
        before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
        assert "step 5 of 20" in told(workdir), "rows of an earlier attempt tell nothing"
        assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before
        since = records.read_holder(folder).since
        rows = [{"step": n + 1, "split": "train", "loss": 0.1} for n in range(15)]
        folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9')
        os.utime(folder.metrics, (since + 4, since + 4))
        monkeypatch.setattr("w2s_jax.sweep.status.time.time", lambda: since + 5)
        text = told(workdir)
    # Ten steps in four seconds, and one second later: five more take two.
    who = f"{socket.gethostname()}, process {os.getpid()}"
    assert f"running  {who}: step 15 of 20, 2.5 steps/s, 1 s left" in text, text
    assert re.search(r"all +10 +8 +1 +1\b", text)
    assert "2 of 4 runs have all phases complete" in text
    assert ceiling in told(workdir) and "running" not in told(workdir)


def test_status_is_watched_until_nothing_is_left_to_run(workdir, finished, monkeypatch, capsys):
    done = next((workdir / "phases").glob("ceiling-*/result.json"))
    away = done.rename(done.with_name("away"))
    waits = []

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            away.rename(done)

    monkeypatch.setattr("w2s_jax.sweep.status.time.sleep", wait)
    assert main(["sweep", "status", str(workdir), "--watch"]) == 0
    text = capsys.readouterr().out
    assert len(waits) == 3
    # What has been shown last stays: all are done, and none of them has a line of its own.
    assert re.search(r"all +10 +10\b", text) and "4 of 4 runs have all phases complete" in text
    assert done.parent.name not in text


# --- whole processes -----------------------------------------------------------------------------


def started(recipe, workdir, store, *options):
    command = [sys.executable, "-m", "w2s_jax.cli.main", "sweep", f"--config={recipe}"]
    command += [f"--workdir={workdir}", f"--store={store}", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """A sweep of a process of its own, with as many devices as the others. Must not be changed."""
    workdir = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    process = started(recipe, workdir, workdir / "phases")
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return workdir


@pytest.mark.slow
def test_two_processes_on_one_store_share_the_work(recipe, tmp_path, undisturbed):
    """Each phase is run by one of them, and both have all results."""
    store = tmp_path / "store"
    both = [started(recipe, tmp_path / name, store) for name in "ab"]
    outputs = []
    for process in both:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        outputs.append(re.findall(r"^\[\d+/10\] (\w+ ?\S*)", out, re.MULTILINE))
    assert sum(map(len, outputs)) == DISTINCT, outputs
    assert len(list(store.glob("*/result.json"))) == DISTINCT
    assert results(tmp_path / "a") == results(tmp_path / "b")
    assert len(results(tmp_path / "a")) == 4
    assert results(tmp_path / "a") == results(undisturbed)


@pytest.mark.slow
def test_two_processes_on_one_folder_do_not_disturb_each_other(recipe, tmp_path, undisturbed):
    both = [started(recipe, tmp_path / "a", tmp_path / "a" / "phases") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    assert results(tmp_path / "a") == results(undisturbed)
    assert (tmp_path / "a" / "report" / "report.html").exists()


@pytest.mark.slow
def test_a_killed_sweep_ends_in_the_same_bits(recipe, tmp_path, undisturbed):
    store = tmp_path / "a" / "phases"
    for kind in ("weak", "student"):
        process = started(recipe, tmp_path / "a", store)
        while process.poll() is None and not list(store.glob(f"{kind}-*/metrics.jsonl")):
            time.sleep(0.005)
        process.kill()
        process.communicate()
    last = started(recipe, tmp_path / "a", store)
    _, err = last.communicate(timeout=600)
    assert last.returncode == 0, err
    assert not list(store.glob("*/holder.json"))
    assert results(tmp_path / "a") == results(undisturbed)
