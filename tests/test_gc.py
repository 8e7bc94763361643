"""`w2s gc`: what it removes, what it never touches, and that a run is as whole as before."""

import json
import os
import shutil
import time

import fake_gcs
import pytest
from rich.console import Console

import w2s_jax
from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.core import errors
from w2s_jax.core import files as files_lib
from w2s_jax.execution import storage_gc
from w2s_jax.store import artifacts
from w2s_jax.store.artifacts import PhaseFolder

QUIET = Console(quiet=True)


def name_of(kind, digit):
    return f"{kind}-{str(digit) * 16}"


PRETRAIN, WEAK, STUDENT = name_of("pretrain", 1), name_of("weak", 2), name_of("student", 3)
ORPHAN = name_of("student", 4)


def write(path, content="0123456789"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def make_phase(store, name, parents=None, *, complete=True, steps=False):
    path = store / name
    write(path / "config.json", {"spec": {"parents": parents or {}}})
    write(path / "checkpoints" / "final" / "array")
    write(path / "tensorboard" / "events")
    if steps:
        write(path / "checkpoints" / "steps" / "5" / "array")
    if complete:
        write(path / "result.json", {})
    return path


def make_run(folder, phases, *, complete=True, store=None):
    record = {"config": {}, "data": {}, "phases": phases}
    write(folder / "config.json", record | ({} if store is None else {"store": str(store)}))
    if complete:
        write(folder / "result.json", {"stages": [{"phase": name} for name in phases]})


@pytest.fixture
def run(tmp_path):
    """A complete run: three phases in a chain, of which config.json names the last alone."""
    store = tmp_path / "run" / "phases"
    make_phase(store, PRETRAIN)
    make_phase(store, WEAK, {"init": PRETRAIN}, steps=True)
    make_phase(store, STUDENT, {"init": PRETRAIN, "labels": WEAK})
    make_run(tmp_path / "run", [STUDENT])
    return tmp_path / "run"


def files(folder):
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    return {path for path in found if not path.endswith(".lock")}


def removed(folder, **options):
    """What `collect` removes, after it has listed the same and removed nothing."""
    before = files(folder)
    assert storage_gc.collect(folder, QUIET, lambda: False, **options) == 0
    assert files(folder) == before
    sizes = {path: (folder / path).stat().st_size for path in before}
    count = storage_gc.collect(folder, QUIET, lambda: True, **options)
    gone = before - files(folder)
    assert count == sum(sizes[path] for path in gone)
    assert storage_gc.find(folder, **options)[0] == []
    return gone


def test_phases_of_no_run_and_steps_of_complete_phases_go(run):
    orphan = make_phase(run / "phases", ORPHAN, steps=True)
    write(run / "phases" / "notes" / "mine.txt")
    wanted = {str(path.relative_to(run)) for path in orphan.rglob("*") if path.is_file()}
    wanted |= {f"phases/{WEAK}/checkpoints/steps/5/array"}
    assert removed(run) == wanted
    assert not orphan.exists()


def test_what_a_run_can_resume_stays(run):
    begun = make_phase(run / "phases", ORPHAN, complete=False, steps=True)
    write(begun / "checkpoints" / "population.json")
    make_run(run, [STUDENT, ORPHAN], complete=False)
    assert removed(run) == {f"phases/{WEAK}/checkpoints/steps/5/array"}


def test_what_killed_writes_left_goes(run):
    student = f"phases/{STUDENT}"
    left = {
        f"{student}/.result.json.123.tmp",
        f"{student}/.predictions.parquet.123.tmp",
        f"{student}/labels.orbax-checkpoint-tmp-7/array",
        f"{student}/checkpoints/.trained.json.123.tmp",
        f"{student}/checkpoints/final.orbax-checkpoint-tmp/array",
    }
    for path in left:
        write(run / path)
    write(run / ".config.json.9.tmp")
    shutil.rmtree(run / "phases" / WEAK / "checkpoints" / "steps")
    # Another process may be writing in the run's folder just now.
    assert removed(run) == left
    long_ago = time.time() - 3600
    os.utime(run / ".config.json.9.tmp", (long_ago, long_ago))
    assert removed(run) == {".config.json.9.tmp"}


def test_what_complete_and_orphaned_phases_have_in_another_folder_goes(tmp_path, run):
    """`checkpoint.dir`: of phases that are not of this folder nothing is known."""
    saves = tmp_path / "saves"
    begun = make_phase(run / "phases", name_of("student", 5), complete=False)
    make_phase(run / "phases", ORPHAN, complete=False)
    make_run(run, [STUDENT, begun.name], complete=False)
    record = json.loads((run / "config.json").read_text())
    record["config"] = {"checkpoint": {"dir": str(saves)}}
    write(run / "config.json", record)
    for name in (WEAK, begun.name, ORPHAN, name_of("weak", 7)):
        write(saves / name / "steps" / "5" / "array")
    found = storage_gc.find(run)[0]
    assert {item.path for item in found if item.path.is_relative_to(saves)} == {
        saves / WEAK,
        saves / ORPHAN,
    }
    storage_gc.collect(run, QUIET, lambda: True)
    assert {path.name for path in saves.iterdir()} == {begun.name, name_of("weak", 7)}
    assert storage_gc.find(run)[0] == []


def test_what_a_complete_phase_has_in_a_bucket_goes(run, monkeypatch):
    pytest.importorskip("gcsfs", reason="needs w2s_jax[gcs]")
    record = json.loads((run / "config.json").read_text())
    record["config"] = {"checkpoint": {"dir": "gs://bucket/saves"}}
    write(run / "config.json", record)
    shutil.rmtree(run / "phases" / WEAK / "checkpoints" / "steps")
    with fake_gcs.serve() as (objects, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in (WEAK, name_of("weak", 7)):
            saves = files_lib.checkpoint_location("gs://bucket/saves")
            (saves / name / "steps" / "5").write_text("0123456789")
        assert storage_gc.collect(run, QUIET, lambda: True) == 10
        assert list(objects) == [f"saves/{name_of('weak', 7)}/steps/5"]
        assert storage_gc.find(run)[0] == []


def test_another_folder_that_cannot_be_reached_is_left_alone(run):
    record = json.loads((run / "config.json").read_text())
    record["config"] = {"checkpoint": {"dir": "s3://bucket/saves"}}
    write(run / "config.json", record)
    found, notes = storage_gc.find(run)
    assert [item.path.name for item in found] == ["steps"]
    assert any("s3://bucket/saves" in note and "left alone" in note for note in notes)


def test_a_report_that_was_being_written_leaves_nothing(run):
    path = run / "report" / ".report.html.9.tmp"
    write(path)
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    shutil.rmtree(run / "phases" / WEAK / "checkpoints" / "steps")
    assert removed(run) == {"report/.report.html.9.tmp"}


def test_a_claimed_phase_is_never_touched(run):
    orphan = make_phase(run / "phases", ORPHAN)
    with (
        artifacts.claim(PhaseFolder(orphan)),
        artifacts.claim(PhaseFolder(run / "phases" / WEAK)),
    ):
        found, notes = storage_gc.find(run, finals=True)
        assert [item.path.parent.name for item in found] == [STUDENT]
        assert sum("claimed" in note for note in notes) == 2
    assert {item.path.name for item in storage_gc.find(run)[0]} == {ORPHAN, "steps"}


def test_a_phase_that_is_claimed_or_referred_to_after_the_listing_stays(run):
    claimed = make_phase(run / "phases", ORPHAN)
    wanted = make_phase(run / "phases", name_of("student", 5))
    holding = artifacts.claim(PhaseFolder(claimed))

    def confirm():
        make_run(run, [STUDENT, wanted.name], complete=False)
        holding.__enter__()
        return True

    assert storage_gc.collect(run, QUIET, confirm) == 10
    holding.__exit__(None, None, None)
    assert claimed.exists() and wanted.exists()


def test_finals_go_when_asked_for_but_for_those_that_phases_start_from(run):
    gone = removed(run, finals=True)
    assert gone == {
        f"phases/{WEAK}/checkpoints/final/array",
        f"phases/{WEAK}/checkpoints/steps/5/array",
        f"phases/{STUDENT}/checkpoints/final/array",
    }


def test_finals_of_a_kind_that_is_not_registered_stay(run):
    custom = name_of("custom", 6)
    make_phase(run / "phases", custom)
    make_run(run, [STUDENT, custom])
    assert not any(custom in path for path in removed(run, finals=True))


def test_finals_of_a_run_that_is_not_complete_stay(run):
    (run / "result.json").unlink()
    assert removed(run, finals=True) == {f"phases/{WEAK}/checkpoints/steps/5/array"}


def test_runs_that_share_a_store_count_together(tmp_path, run):
    store = tmp_path / "sweep" / "phases"
    shutil.move(run / "phases", store)
    make_phase(store, ORPHAN)
    make_phase(store, name_of("ceiling", 6))
    make_run(tmp_path / "sweep" / "runs" / "a", [STUDENT], store=store)
    make_run(tmp_path / "sweep" / "runs" / "b", [ORPHAN], complete=False, store=store)
    found, _ = storage_gc.find(tmp_path / "sweep")
    assert {item.path.name for item in found} == {"steps", name_of("ceiling", 6)}
    # One of the runs alone: what lies outside of its folder is not its own.
    found, notes = storage_gc.find(tmp_path / "sweep" / "runs" / "a", finals=True)
    assert found == [] and len(notes) == 1 and "outside of" in notes[0]


def test_a_link_to_a_store_elsewhere_is_not_followed(tmp_path, run):
    shutil.move(run / "phases", tmp_path / "elsewhere")
    (run / "phases").symlink_to(tmp_path / "elsewhere")
    make_phase(tmp_path / "elsewhere", ORPHAN)
    assert storage_gc.find(run)[0] == []


def test_of_a_run_that_does_not_say_its_phases_no_whole_phase_goes(run):
    make_phase(run / "phases", ORPHAN)
    write(run / "config.json", {"config": {}, "data": {}})
    assert removed(run) == {f"phases/{WEAK}/checkpoints/steps/5/array"}


@pytest.mark.parametrize("content", [None, {"architectures": []}])
def test_a_folder_without_a_run_is_refused(tmp_path, content):
    make_phase(tmp_path, ORPHAN)
    if content is not None:
        write(tmp_path / "config.json", content)
    with pytest.raises(errors.InputError, match="gc: .*run"):
        storage_gc.find(tmp_path)
    assert main(["gc", str(tmp_path), "--yes"]) == 2
    assert (tmp_path / ORPHAN).exists()


def test_the_command_lists_and_removes_only_with_yes(run, capsys):
    before = files(run)
    assert main(["gc", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"phases/{WEAK}/checkpoints/steps" in out and "MiB" in out and "--yes" in out
    assert "nothing was removed" in out and files(run) == before
    assert main(["gc", str(run), "--yes"]) == 0
    assert before - files(run) == {f"phases/{WEAK}/checkpoints/steps/5/array"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_report")
def test_a_run_is_as_whole_after_as_before(tmp_path):
    """Its result is printed without training; a loss can be added, whose start is still there."""
    config = testing.tiny_config(testing.write_tiny_task(tmp_path / "data"))
    config.losses = ("xent",)
    workdir = tmp_path / "run"
    result = w2s_jax.run(config, workdir)
    orphan = shutil.copytree(
        workdir / "phases" / result["weak"]["phase"], workdir / "phases" / name_of("weak", 0)
    )
    assert main(["gc", str(workdir), "--yes", "--finals"]) == 0
    assert not orphan.exists()
    assert not (workdir / "phases" / result["weak"]["phase"] / "checkpoints").exists()
    assert w2s_jax.run(config, workdir) == result
    config.losses = ("xent", "confidence")
    more = w2s_jax.run(config, workdir)
    assert more["students"]["xent"] == result["students"]["xent"]
    assert set(more["students"]) == {"xent", "confidence"}
