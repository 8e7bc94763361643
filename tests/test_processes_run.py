"""Runs of several real processes: equal results, one output, signals and kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from w2s_jax import testing

ROOT = Path(__file__).parent.parent
LAUNCHER = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py")]

RECIPE = """
from w2s_jax.testing import tiny_config

def get_config():
    config = tiny_config({data_dir!r})
    config.losses = ("xent",)
    config.pretrain.streaming = True
    config.eval.every = 5
    config.checkpoint.every_minutes = 1e-6
    return config
"""

#: The same of a task that asks for completions: the first letter of each prompt, twice.
GENERATION = """
from w2s_jax.config import default_config

def get_config():
    config = default_config()
    config.task.name, config.task.data_dir = "letters", {data_dir!r}
    config.weak.model = config.strong.model = "gpt-d8"
    config.train.batch_size, config.train.learning_rate, config.train.epochs = 8, 1e-2, 4.0
    config.losses = ("xent",)
    config.task.validation_docs = 0
    config.protocol.early_stopping = "none"
    return config
"""

# `w2s`, which a signal meets at its n-th look at signals: SIGNAL is 'process:n:signal'.
W2S = """
import os, sys
from w2s_jax.cli import main
from w2s_jax.core import processes

index, look, number = map(int, os.environ.get("SIGNAL", "-1:0:0").split(":"))
any_of, looks = processes.any_of, []

def counted(name, flag):
    looks.append(name)
    if processes.index() == index and len(looks) == look:
        os.kill(os.getpid(), number)
    return any_of(name, flag)

processes.any_of = counted
sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a recipe, and programs compiled once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    data_dir = testing.write_tiny_task(folder / "data")
    (folder / "recipe.py").write_text(RECIPE.format(data_dir=str(data_dir)))
    return folder


def run(here, workdir, count, devices, *overrides, recipe=None, **environment):
    """Runs a recipe in so many processes with so many devices each."""
    recipe = recipe or here / "recipe.py"
    command = [*LAUNCHER, "-n", str(count), "--devices_per_process", str(devices), "--"]
    command += [sys.executable, "-c", W2S, "run", f"--config={recipe}"]
    environment = {"W2S_CACHE_DIR": str(here / "cache"), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [*command, f"--workdir={workdir}", *overrides],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_processes_complete_prompts_of_their_own_and_all_have_all_labels(here):
    """Two processes with two devices each write what one with four does."""
    letters = "abcdefghijkl"
    folder = here / "completions" / "letters"
    folder.mkdir(parents=True)
    rows = [{"prompt": a + b, "target": a + a} for a in letters for b in letters]
    for split, part in (("train", rows[::2]), ("test", rows[1::2])):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{split}.jsonl").write_text(lines)
    recipe = here / "generation.py"
    recipe.write_text(GENERATION.format(data_dir=str(folder.parent)))
    tables = []
    for name, count, devices in (("one", 1, 4), ("two", 2, 2)):
        workdir = here / f"completions-{name}"
        done = run(here, workdir, count, devices, recipe=recipe)
        assert done.returncode == 0, done.stderr
        stages = json.loads((workdir / "result.json").read_text())["stages"]
        phases = [workdir / "phases" / stage["phase"] for stage in stages]
        found = [pq.read_table(phase / "predictions.parquet") for phase in phases]
        found += [pq.read_table(p) for p in workdir.glob("phases/*/labels/texts.parquet")]
        tables.append(found)
    assert len(tables[0]) == 4
    for one, two in zip(*tables, strict=True):
        assert one["id"].equals(two["id"]) and len(one) > 0
        # Rounding may change a token whose two best logits are nearly equal.
        same_N = np.array(one["text"].to_pylist()) == np.array(two["text"].to_pylist())
        assert same_N.mean() > 0.95


def rows_of(phase):
    return [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]


def assert_same(workdir, other):
    """The same result, predictions and history, within float32 rounding."""
    mine, theirs = (json.loads((w / "result.json").read_text()) for w in (workdir, other))
    for role in ("weak", "ceiling"):
        assert mine[role]["accuracy"] == theirs[role]["accuracy"]
    assert mine["students"]["xent"]["accuracy"] == theirs["students"]["xent"]["accuracy"]
    assert [s["phase"] for s in mine["stages"]] == [s["phase"] for s in theirs["stages"]]
    for stage in mine["stages"]:
        phases = [w / "phases" / stage["phase"] for w in (workdir, other)]
        if (phases[0] / "predictions.parquet").exists():
            tables = [pq.read_table(p / "predictions.parquet") for p in phases]
            assert tables[0]["id"].equals(tables[1]["id"])
            for column in ("p", "label"):
                a, b = (table[column].to_numpy() for table in tables)
                np.testing.assert_allclose(a, b, atol=1e-5)
        for mine_row, row in zip(*map(rows_of, phases), strict=True):
            assert mine_row.keys() == row.keys()
            if row["split"] == "train":
                close = 1e-5 * row["gradient_norm"]
                assert mine_row["loss"] == pytest.approx(row["loss"], abs=close)
                assert mine_row["gradient_norm"] == pytest.approx(row["gradient_norm"], abs=close)


@pytest.fixture(scope="module")
def alone(here):
    """The run of one process with two devices."""
    done = run(here, here / "alone", 1, 2)
    assert done.returncode == 0, done.stderr
    return here / "alone"


@pytest.mark.slow
def test_two_processes_compute_what_one_does_and_one_of_them_tells(here, alone):
    workdir = here / "two"
    done = run(here, workdir, 2, 1)
    assert done.returncode == 0, done.stderr
    assert_same(workdir, alone)
    assert done.stdout.count("result: ") == 1
    others = [line for line in done.stderr.splitlines() if line.startswith("[1]")]
    assert all("[Gloo]" in line or line == "[1]" for line in others), others
    # Nothing is there that one process would not have written, but for the logs.
    files, wanted = (
        {
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and not {"checkpoints", "d"} & set(path.parts)
        }
        for folder in (workdir, alone)
    )
    assert files - wanted == {"logs/process-0.log", "logs/process-1.log"} and wanted <= files
    log = (workdir / "logs" / "process-1.log").read_text()
    assert "weak: begins" in log and "weak: step 20 of 20" in log and "weak: ends" in log


@pytest.mark.slow
def test_parameters_are_split_over_processes(here, alone):
    done = run(here, here / "fsdp", 2, 2, "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr
    assert_same(here / "fsdp", alone)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_another_number_resumes(here, alone):
    """The seventh look for signals is the first in the weak phase, after its fifth step."""
    workdir = here / "stopped"
    done = run(here, workdir, 2, 1, SIGNAL=f"1:8:{int(signal.SIGTERM)}")
    assert done.returncode == 75, done.stderr
    told = [
        line
        for line in done.stderr.splitlines()
        if re.search(r"weak: interrupted \(.+\) at step", line)
    ]
    assert len(told) == 2 and all("step 15 of 20, state saved" in line for line in told)
    done = run(here, workdir, 1, 2)
    assert done.returncode == 0, done.stderr
    assert_same(workdir, alone)
    steps = [row["step"] for row in rows_of(next(workdir.glob("phases/weak-*")))]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_a_kill_of_one_ends_all_and_a_rerun_resumes(here, alone):
    """Of the first, which coordinates the others and writes most of the files."""
    workdir = here / "killed"
    started = time.monotonic()
    done = run(here, workdir, 2, 1, SIGNAL=f"0:9:{int(signal.SIGKILL)}")
    assert done.returncode not in (0, 75), done.stderr
    assert "local_multiprocess: process" in done.stderr
    log = workdir / "logs" / "process-1.log"
    last = log.stat().st_mtime - time.time() + time.monotonic()
    assert time.monotonic() - last < 60 > last - started - 60
    seen = len(log.read_text())
    done = run(here, workdir, 2, 1)
    assert done.returncode == 0, done.stderr
    assert_same(workdir, alone)
    # Not from the start: the state after 5 steps had been saved.
    resumed = log.read_text()[seen:]
    assert "weak: step 20 of 20" in resumed and "weak: step 5 of 20" not in resumed
