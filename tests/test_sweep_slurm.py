"""Sweeps on a real Slurm of this machine: dependencies, failures, requeued jobs, what is told."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cluster_runs import BROKEN_LOSS, command, completed, environment, isolated, results, sweep_file
from slurm_cluster import DAEMONS, PATH

from w2s_jax.testing import write_tiny_task

pytest.importorskip("submitit", reason="submitit is not installed")
_absent = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=PATH) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_absent), reason=f"Slurm is not installed: no {', '.join(_absent)}"),
]

HERE = Path(__file__).parent

WAIT = 'while [ -n "$(squeue -h)" ]; do sleep 0.5; done'


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_tiny_task(tmp_path_factory.mktemp("data") / "data")


def on_slurm(script):
    """What a shell script prints on a cluster of its own."""
    # A short path: munge's socket is there.
    folder = Path(tempfile.mkdtemp(prefix="w2s", dir="/tmp"))
    cluster = [*isolated(), sys.executable, str(HERE / "slurm_cluster.py"), str(folder / "slurm")]
    done = subprocess.run(
        [*cluster, "bash", "-c", script], env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=900,
    )  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    if done.returncode == 77:
        pytest.skip(f"Slurm's daemons do not come up here: {done.stdout[-300:]}")
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_sweep_is_submitted_requeued_and_ends_as_the_local_one(data_dir, tmp_path):
    points = "product(over('losses', [('xent',), ('confidence',)]), over('seed', [0, 1]))"
    recipe = sweep_file(tmp_path / "sweep.py", data_dir, points, pretrain_steps=1500)
    workdir = tmp_path / "sweep"
    submit = shlex.join(command(recipe, workdir, "--executor=slurm", "--slurm.time=30"))
    status = shlex.join([sys.executable, "-m", "w2s_jax.cli.main", "sweep", "status", str(workdir)])
    # What Slurm does when the time is nearly over: submitit's signal to a job in mid-phase.
    interrupt = f"""
until ls -d {workdir}/phases/*/checkpoints/steps/[0-9]* 2>/dev/null; do sleep 0.05; done
phase=$(ls -d {workdir}/phases/*/checkpoints/steps/[0-9]* | head -1)
phase=$(basename "${{phase%%/checkpoints*}}")
job=$(python -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" \\
    {workdir}/slurm/jobs.json "$phase")
scancel --signal=USR2 "$job" && echo "interrupted $phase $job"
# Slurm lets a requeued job wait for two minutes, by when its node is rid of what it ran before.
until squeue -h -j "$job" -t PENDING | grep -q .; do sleep 0.1; done
scontrol update JobId="$job" StartTime=now+20
"""
    out = on_slurm(f"{submit}\n{status}\n{interrupt}\n{submit}\n{WAIT}\n{status}")
    assert "10 phases submitted as 10 jobs, 0 were in the queue" in out
    logs = "\n".join(p.read_text()[-2000:] for p in (workdir / "slurm").glob("1_*_log.*"))
    assert re.search(r"0 phases submitted as 0 jobs, \d+ were in the queue", out), out + logs
    assert re.search(r"student xent +gpt-d8 +waiting +job \d+_\d", out), out
    phase, job = re.search(r"interrupted (\S+) (\S+)", out).groups()
    said = "".join(p.read_text() for p in (workdir / "slurm").glob(f"{job}_*_log.*"))
    assert "Requeued job" in said and said.count("Loading pickle") == 2, said
    assert "4 of 4 runs have all phases complete" in out
    lines = completed(list((workdir / "slurm").glob("*_log.out")))
    assert len(lines) == 10, "each phase is trained once"
    assert (workdir / "report" / "report.html").exists()
    subprocess.run(command(recipe, tmp_path / "local"), check=True, env=environment())
    assert results(workdir) == results(tmp_path / "local") and len(results(workdir)) == 4
    assert phase in {stage["phase"] for run in results(workdir).values() for stage in run["stages"]}


def test_a_failing_phase_stops_only_what_builds_on_it(data_dir, tmp_path):
    recipe = tmp_path / "broken.py"
    sweep_file(recipe, data_dir, "[{'losses': ('xent',)}, {'losses': ('broken',)}, {'seed': 1}]")
    recipe.write_text(BROKEN_LOSS + recipe.read_text())
    workdir = tmp_path / "sweep"
    submit = command(recipe, workdir, "--executor=slurm", "--slurm.cpus_per_task=1")
    # Of the two supervisors, which depend on one pretraining, the first is cancelled at once.
    cancel = f"""
scancel "$(python -c "import json; jobs = json.load(open('{workdir}/slurm/jobs.json'));
print(next(job for name, job in jobs.items() if name.startswith('weak')))")"
"""
    on_slurm(f"{shlex.join(submit)}\n{cancel}\n{WAIT}")
    # Its students, one of which is broken, are not run without it; all else is.
    assert not list(workdir.glob("phases/*/failed.json"))
    assert list(results(workdir)) == ["seed=1"] and (workdir / "report" / "report.html").exists()
    assert len(list(workdir.glob("phases/ceiling-*/result.json"))) == 2
    on_slurm(f"{shlex.join(submit)}\n{WAIT}")
    (failed,) = workdir.glob("phases/*/failed.json")
    assert "not finite" in json.loads(failed.read_text())["error"]
    assert len(results(workdir)) == 2
    jobs = json.loads((workdir / "slurm" / "jobs.json").read_text())
    last = (workdir / "slurm" / f"{jobs['results']}_0_log.err").read_text()
    assert f"1 failed ({failed.parent.name})" in last
