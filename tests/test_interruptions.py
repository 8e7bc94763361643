"""Runs that are killed, terminated, moved to other machines: they end as if nothing had been."""

import importlib.util
import json
import shutil
import threading
import time

import fake_gcs
import fault_injection
import jax
import pytest
from fault_injection import BLOCK, COMMITTED, WRITING, Kill
from interrupting import interrupted_run
from rich.console import Console

import w2s_jax
from w2s_jax import phases, sharding, testing
from w2s_jax.cli.main import main
from w2s_jax.config import validation
from w2s_jax.core import errors, watchdog
from w2s_jax.execution import execute
from w2s_jax.planning.plan import plan
from w2s_jax.planning.resolve import resolve
from w2s_jax.training import loop, prediction
from w2s_jax.training.batch_sources import ResidentBatches

pytestmark = pytest.mark.usefixtures("no_report")

QUIET = Console(quiet=True)


def config_of(data_dir, saves=None):
    """Two phases of two kinds are enough here."""
    config = testing.tiny_config(data_dir)
    config.pretrain.source = None
    config.losses = ("xent",)
    config.checkpoint.dir = saves
    return config


def comparable(result):
    return {k: result[k] for k in ("weak", "ceiling", "students", "stages")}


@pytest.mark.slow
def test_checkpoints_in_another_folder_are_resumed_by_another_machine(tmp_path, monkeypatch):
    """One that has lost the run's folder; and the folder is no part of what the run is."""
    data_dir = testing.write_tiny_task(tmp_path / "data")
    wanted = w2s_jax.run(config_of(data_dir), tmp_path / "plain")
    saves = tmp_path / "saves"
    config = config_of(data_dir, str(saves))
    interrupted_run(config, tmp_path / "lost", 2)
    name = wanted["weak"]["phase"]
    assert sorted(p.name for p in (saves / name / "steps").iterdir()) == ["10", "10.manifest.json"]
    folder = tmp_path / "lost" / "phases" / name
    assert folder.is_dir() and not (folder / "checkpoints").exists()
    shutil.rmtree(tmp_path / "lost")
    first = []
    fetch = loop._fetch

    def noted(run, start):
        rows = fetch(run, start)
        first.append(run.done)
        return rows

    monkeypatch.setattr(loop, "_fetch", noted)
    result = execute.run(config, tmp_path / "found", console=QUIET)
    assert first[0] == 10  # the steps that the other machine took are not taken again
    assert comparable(result) == comparable(wanted)
    assert list(saves.iterdir()) == []
    stage = json.loads((tmp_path / "found" / "phases" / name / "result.json").read_text())
    assert stage["checkpoints"] == 1 and 0 < stage["checkpoint_seconds"] < stage["seconds"]


@pytest.mark.parametrize(
    "place,parts",
    [
        ("s3://bucket/x", ["checkpoint.dir", "'s3://bucket/x'", "gs://bucket/path"]),
        ("gs://", ["checkpoint.dir", "'gs://'"]),
        ("gs://bucket/x", ["checkpoint.dir", "gcsfs", "pip install 'w2s_jax[gcs]'"]),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_any_work(
    tmp_path, capsys, monkeypatch, place, parts
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from w2s_jax.config import default_config as get_config\n")
    command = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    assert main([*command, f"--config.checkpoint.dir={place}"]) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text, text
    assert not (tmp_path / "run").exists()


def test_a_negative_time_is_refused(tmp_path):
    config = testing.tiny_config(tmp_path)
    config.log.hang_minutes = -1.0
    with pytest.raises(errors.InputError, match="log.hang_minutes: -1.0; allowed: from 0"):
        validation.validate(config)


def test_a_block_and_a_label_pass_that_hang_are_told(tmp_path, monkeypatch, caplog):
    """And the phase ends as it would have; the second block is no longer one that compiles."""
    config = config_of(testing.write_tiny_task(tmp_path / "data"))
    config.log.hang_minutes, config.eval.every = 1 / 60, None
    resolved = resolve(validation.validate(config))
    phase = next(p for p in plan(resolved).phases if p.kind == "weak")
    context = phases.Context(resolved, tmp_path, sharding.make_mesh(), QUIET, lambda: False)
    context.folder(phase.name).path.mkdir()
    monkeypatch.setattr(watchdog, "PATIENCE", 100.0)
    monkeypatch.setattr(loop, "_next_boundary", lambda done, *_: done + 10)
    advance, get = ResidentBatches.advance, prediction.jax.device_get

    def hangs(self, program, state, first, last):
        time.sleep(1.5 if first == 10 else 0)
        return advance(self, program, state, first, last)

    def hangs_too(value):
        if isinstance(value, jax.Array) and value.shape[-1] == 2:
            watchdog.progress("label pass")  # the one batch there is comes after compiling
            time.sleep(1.5)
        return get(value)

    monkeypatch.setattr(ResidentBatches, "advance", hangs)
    monkeypatch.setattr(prediction.jax, "device_get", hangs_too)
    phases.run_phase(phase, context)
    told = [r.getMessage() for r in caplog.records if r.name == "w2s_jax.core.watchdog"]
    assert all(text.startswith("weak: no progress for") for text in told)
    assert "for 1 s (steps 10 to 20 of 20)" in told[0] and "(label pass)" in told[-1]
    stacks = (context.folder(phase.name).path / "hang.txt").read_text()
    assert "in hangs\n" in stacks and "in hangs_too\n" in stacks
    assert context.folder(phase.name).complete
    assert not any(thread.name == "w2s-watchdog" for thread in threading.enumerate())


# --- whole processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_kills_at_telling_moments_change_nothing(tmp_path):
    """kill -9 and SIGTERM. The script `fault_injection.py` adds kills at random moments."""
    aimed = sum(map(len, fault_injection.CHAINS))
    rows = fault_injection.inject(tmp_path, kills=aimed, seed=0)
    assert len(rows) == aimed == 15
    assert all(row["differences"] == [] for row in rows), fault_injection.table(rows)
    for row in rows:
        if row["kill"].signal == "SIGTERM" and row["kill"].point == BLOCK and not row["kill"].then:
            assert 0 < row["done"] == row["kept"]
        if row["kill"].point == COMMITTED:
            assert 0 < row["kept"] < row["done"]


@pytest.mark.slow
def test_a_run_with_checkpoints_in_a_bucket_is_resumed(tmp_path, monkeypatch):
    """Killed while a checkpoint is uploaded, before its manifest, and terminated."""
    pytest.importorskip("gcsfs", reason="needs w2s_jax[gcs]")
    bench = fault_injection.prepare(tmp_path)
    bench.finish(tmp_path / "plain")
    with fake_gcs.serve() as (objects, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        # Not at each block: an upload takes longer than that.
        more = (
            "--config.checkpoint.dir=gs://bucket/saves",
            "--config.checkpoint.every_minutes=0.005",
        )
        there = fault_injection.Bench(tmp_path, more)
        for kill in (
            Kill(WRITING, "pretrain", 2),
            Kill(COMMITTED, "pretrain"),
            Kill(BLOCK, "weak", 4, "SIGTERM"),
        ):
            row = fault_injection.strike(there, kill, tmp_path / "run", 0)
            assert row, kill
            assert any(name.startswith(f"saves/{row['phase']}-") for name in objects)
            assert not list((tmp_path / "run").glob("phases/*/checkpoints/steps"))
        there.finish(tmp_path / "run")
        assert list(objects) == []
        assert fault_injection.differences(tmp_path / "plain", tmp_path / "run") == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_one_clear_error(tmp_path, monkeypatch):
    pytest.importorskip("gcsfs", reason="needs w2s_jax[gcs]")
    bench = fault_injection.prepare(tmp_path)
    with fake_gcs.serve() as (_, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        there = fault_injection.Bench(bench.folder, ("--config.checkpoint.dir=gs://none/saves",))
        process = there.begin(None, tmp_path / "run")
        _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "checkpoint.dir" in stderr.splitlines()[-1] and "gs://none/saves" in stderr
    assert "Traceback" not in stderr
