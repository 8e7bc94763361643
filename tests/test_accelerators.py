"""Ray or Slurm gives a GPU and JAX sees none: refused in one line, not computed on CPUs."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest
from cluster_runs import command, sweep_file
from rich.console import Console

from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.core import accelerators
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import planning, points, records, worker

JOB = {"SLURM_JOB_ID": "7"}


@pytest.mark.parametrize(
    "environment,given",
    [
        ({"CUDA_VISIBLE_DEVICES": "0"}, None),  # of a user's own shell
        ({"SLURM_GPUS": "1"}, None),
        (JOB, None),
        (JOB | {"CUDA_VISIBLE_DEVICES": "0"}, "CUDA_VISIBLE_DEVICES=0"),
        (JOB | {"CUDA_VISIBLE_DEVICES": "GPU-8c1,GPU-9"}, "CUDA_VISIBLE_DEVICES=GPU-8c1,GPU-9"),
        (JOB | {"ROCR_VISIBLE_DEVICES": "1"}, "ROCR_VISIBLE_DEVICES=1"),
        (JOB | {"CUDA_VISIBLE_DEVICES": "", "SLURM_GPUS": "4"}, None),  # a step without GPUs
        (JOB | {"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, None),
        (JOB | {"CUDA_VISIBLE_DEVICES": "-1"}, None),
        (JOB | {"SLURM_GPUS_ON_NODE": "0"}, None),
        (JOB | {"SLURM_STEP_GPUS": "0", "SLURM_GPUS": "2"}, "SLURM_STEP_GPUS=0"),
        (JOB | {"SLURM_GPUS": "4"}, "SLURM_GPUS=4"),
        (JOB | {"SLURM_GPUS_PER_TASK": "a100:1"}, "SLURM_GPUS_PER_TASK=a100:1"),
        (JOB | {"SLURM_GPUS_ON_NODE": "8", "SLURM_GPUS": "16"}, "SLURM_GPUS_ON_NODE=8"),
    ],
)
def test_what_slurm_gives_is_in_the_environment(environment, given):
    assert accelerators.given_by_slurm(environment) == given


def test_what_ray_gives_is_in_its_ids():
    assert accelerators.given_by_ray({"GPU": [], "TPU": []}) is None
    assert accelerators.given_by_ray({"GPU": ["0", "2"], "TPU": []}) == "GPU 0, 2"
    assert accelerators.given_by_ray({"GPU": [], "TPU": ["0"]}) == "TPU 0"


@pytest.fixture
def choose():
    """Set JAX_PLATFORMS as JAX has read it."""
    before = jax.config.jax_platforms
    yield lambda chosen: jax.config.update("jax_platforms", chosen)
    jax.config.update("jax_platforms", before)


def test_a_choice_of_cpus_is_no_fault(monkeypatch, choose):
    def sees(backend, chosen):
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        choose(chosen)
        accelerators.check("Slurm", "SLURM_GPUS=1")

    for backend, chosen in (("gpu", None), ("tpu", ""), ("cpu", "cpu")):
        sees(backend, chosen)
    for chosen in (None, "", "cuda,cpu"):
        with pytest.raises(accelerators.NotSeen, match=r"gave .* \(SLURM_GPUS=1\), but on .* only"):
            sees("cpu", chosen)
    monkeypatch.setenv("JAX_PLATFORM_NAME", "cpu")
    sees("cpu", None)


@pytest.fixture
def unseen(monkeypatch, choose):
    jax.devices()
    choose(None)
    for name, value in (JOB | {"SLURM_STEP_GPUS": "0"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def recipe(tmp_path):
    data_dir = testing.write_tiny_task(tmp_path / "data")
    return sweep_file(tmp_path / "sweep.py", data_dir, "[{'losses': ('xent',)}]")


@pytest.mark.parametrize("what", ["run", "sweep"])
def test_a_command_refuses_before_any_work(unseen, recipe, tmp_path, capsys, what):
    assert main([what, f"--config={recipe}", f"--workdir={tmp_path / 'new'}"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Slurm gave this task an accelerator (SLURM_STEP_GPUS=0)" in err
    assert "JAX_PLATFORMS=cpu" in err and not (tmp_path / "new").exists()


def test_phases_of_a_worker_fail_once(unseen, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "sweep"
    found = points.load_points(str(recipe), [])
    plan = planning.plan_sweep(found, workdir, workdir / "phases")
    records.begin(workdir, plan, points.point_source(str(recipe), []), retry_failed=False)
    names = [name for name in plan.phases if name.startswith("pretrain")]
    console = Console(record=True, width=300, quiet=False)
    states = worker.work(workdir, names, console=console)
    assert states == dict.fromkeys(names, "failed")
    said = [line for line in console.export_text().splitlines() if "failed:" in line]
    assert len(said) == len(names) == 2 and said[0].startswith(f"[{len(plan.phases) - 1}/")
    why = records.read_failure(PhaseFolder(workdir / "phases" / names[0]))
    assert why.startswith("Slurm gave this task an accelerator")
    # They are not tried again, also where JAX sees devices.
    monkeypatch.delenv("SLURM_JOB_ID")
    assert worker.work(workdir, names, console=console) == dict.fromkeys(names, "failed")


@pytest.mark.slow
def test_a_sweep_on_ray_fails_once(recipe, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    from cluster_runs import environment, isolated

    # Ray accepts any number of GPUs.
    code = (
        "import sys, ray\n"
        "ray.init = lambda address, log_to_driver, init=ray.init: init(num_gpus=1, num_cpus=2)\n"
        "from w2s_jax.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    run = command(recipe, tmp_path / "sweep", "--executor=ray", "--resources=num_gpus=1")
    env = {n: v for n, v in environment().items() if n not in ("JAX_PLATFORMS", "RAY_ADDRESS")}
    # Ray's sockets need short paths.
    folder = Path(tempfile.gettempdir()) / f"w2sray{os.getpid()}"
    done = subprocess.run(
        [*isolated(), sys.executable, "-c", code, *run[3:]],
        env=env | {"RAY_TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == 2 and all("Ray gave this task an accelerator (GPU 0)" in x for x in lines)
    assert "2 failed" in done.stderr.splitlines()[-1]
