"""Sweeps on a real Ray cluster of this machine: a node that dies, failures, devices, a stop."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster_runs import BROKEN_LOSS, command, completed, environment, isolated, results, sweep_file

from w2s_jax.testing import write_tiny_task

pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.slow

HERE = Path(__file__).parent

#: Two losses and two seeds: 2 pretrainings, 2 weak models, 2 ceilings and 4 students.
POINTS = "product(over('losses', [('xent',), ('confidence',)]), over('seed', [0, 1]))"
DISTINCT = 10


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    data = write_tiny_task(folder / "data")
    return sweep_file(folder / "sweep.py", data, POINTS, pretrain_steps=1500)


@pytest.fixture(scope="module")
def local(recipe, tmp_path_factory):
    """The folder of the same sweep, run by the local executor."""
    workdir = tmp_path_factory.mktemp("local") / "sweep"
    subprocess.run(command(recipe, workdir), check=True, env=environment(), timeout=600)
    return workdir


@pytest.fixture
def ray_folder():
    """Where Ray keeps what is its own; its sockets need a short path."""
    folder = tempfile.mkdtemp(prefix="w2s", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def on_cluster(folder, *options, run):
    """Starts a command on a cluster of two nodes."""
    script = [*isolated(), sys.executable, str(HERE / "ray_cluster.py"), str(folder), *options]
    return subprocess.Popen(
        [*script, "--", *run], env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_a_node_dies_and_its_phase_is_resumed_on_the_other(recipe, local, tmp_path):
    workdir = tmp_path / "sweep"
    run = command(recipe, workdir, "--executor=ray", "--resources=num_cpus=1")
    process = on_cluster(tmp_path, "--kill", run=run)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out
    assert int(re.search(r"killed under \S+, which went on from step (\d+)", out)[1]) > 0, out
    assert results(workdir) == results(local) and len(results(local)) == 4
    assert (workdir / "report" / "report.html").exists()
    # A line of each phase: of the driver, and of the one worker that completed it.
    assert len(re.findall(r"^\[\d+/10\] ", out, re.MULTILINE)) == DISTINCT
    assert len(completed(list((tmp_path / "logs").glob("worker-*.out")))) == DISTINCT


def test_a_failing_phase_stops_only_what_builds_on_it(recipe, tmp_path, ray_folder):
    broken = tmp_path / "broken.py"
    points = "over('losses', [('xent',), ('broken',), ('deadly',)])"
    sweep_file(broken, recipe.parent / "data", points)
    broken.write_text(BROKEN_LOSS + broken.read_text())
    workdir = tmp_path / "sweep"
    run = command(broken, workdir, "--executor=ray", "--resources=num_cpus=1")
    code = (
        "import sys; from w2s_jax.cli import main as cli; from w2s_jax.sweep import on_ray\n"
        "on_ray.MAX_RETRIES = 1\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    # A local cluster of its own: there is none to be found.
    done = subprocess.run(
        [*isolated(), sys.executable, "-c", code, *run[3:]], text=True, capture_output=True,
        env=environment() | {"RAY_TMPDIR": ray_folder}, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed (student-" in done.stderr
    assert re.search(r"failed: student broken .*: loss or gradient is not finite", done.stdout)
    assert re.search(r"failed: student deadly .*: its worker died", done.stdout)
    assert list(results(workdir)) == ["losses=xent"]
    assert (workdir / "report" / "report.html").exists()


def test_a_stopped_sweep_has_saved_its_state_and_is_resumed(recipe, local, tmp_path, ray_folder):
    workdir = tmp_path / "sweep"
    run = command(recipe, workdir, "--executor=ray", "--resources=num_cpus=1")
    where = environment() | {"RAY_TMPDIR": ray_folder}
    process = subprocess.Popen(
        [*isolated(), *run], env=where, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not list(workdir.glob("phases/*/checkpoints/steps/[0-9]*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 75 and "run the same command to resume" in err
    assert not list(workdir.glob("phases/*/holder.json")), "workers have stopped by themselves"
    assert list(workdir.glob("phases/*/checkpoints/steps/[0-9]*")), "and saved their state"
    # Another executor goes on with it.
    subprocess.run(command(recipe, workdir), check=True, env=environment(), timeout=600)
    assert results(workdir) == results(local)


def test_tasks_have_devices_of_their_own(tmp_path):
    code = (
        "import os, ray, sys, time\n"
        "from w2s_jax.sweep.on_ray import task_options\n"
        "ray.init(log_to_driver=False)\n"
        "def devices():\n"
        "    time.sleep(2)\n"
        "    return os.environ['CUDA_VISIBLE_DEVICES'], os.getpid()\n"
        "task = ray.remote(**task_options({'num_gpus': 1.0}))(devices)\n"
        "print(*ray.get([task.remote() for _ in range(4)]))\n"
    )
    process = on_cluster(tmp_path, "--gpus", run=[sys.executable, "-c", code])
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    found = re.findall(r"\('(\d)', (\d+)\)", out)
    assert sorted(device for device, _ in found) == ["0", "0", "1", "1"], out
    assert len({pid for _, pid in found}) == 4, "JAX keeps devices as long as its process lives"
