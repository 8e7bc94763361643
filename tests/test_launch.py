"""Launch scripts: what they would run, how they resume, and manifests against what is required."""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])

TPU = ["--name=w2s", "--zone=us-west4-a", "--type=v5litepod-16", "--source=w2s-1.tar.gz"]
RUN = ["--config=configs/quickstart.py", "--workdir=/mnt/a b"]


def ran(script, *arguments, status=0, **options):
    """What a script prints; it must end with a status."""
    command = [str(LAUNCH / script), *arguments]
    if script.endswith(".py"):
        command = [sys.executable, *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_shellcheck_finds_nothing():
    checker = shutil.which(
        "shellcheck", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin"
    )
    if checker is None:
        pytest.skip("shellcheck is not installed")
    assert len(SCRIPTS) == 4
    done = subprocess.run([checker, *map(str, SCRIPTS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_shows_a_whole_command_and_no_code(script):
    text = ran(str(script), "--help")
    assert f"launch/{script.relative_to(LAUNCH)}" in text and "--dry_run" in text
    assert "set -euo" not in text and "#SBATCH" not in text


def test_a_tpu_slice_is_asked_for_set_up_and_deleted():
    out = ran("tpu_vm.sh", *TPU, "--spot", "--setup=mount x", "--dry_run", "--", "w2s", "run", *RUN)
    lines = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    queued = ["gcloud", "compute", "tpus", "queued-resources"]
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "w2s", "--zone=us-west4-a", "--worker=all"]
    assert lines == [
        [*queued, "create", "w2s", "--node-id=w2s", "--zone=us-west4-a",
         "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot"],
        [*queued, "describe", "w2s", "--zone=us-west4-a", "--format=value(state.state)"],
        [*ssh, "--command=mount x"],
        [*ssh, "--command=python3 -m venv ~/w2s && ~/w2s/bin/pip install --quiet "
         "'w2s_jax[tpu] @ w2s-1.tar.gz'"],
        [*ssh, "--command=PATH=~/w2s/bin:$PATH w2s run --config=configs/quickstart.py "
         "--workdir=/mnt/a\\ b"],
        [*queued, "delete", "w2s", "--zone=us-west4-a", "--force", "--quiet"],
    ]  # fmt: skip


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes a program that writes its arguments to a log, and then does as it is told."""
    log, folder = tmp_path / "log", tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, body="exit 0"):
        path = folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {log}\ncd {tmp_path}\n{body}\n')
        path.chmod(0o755)
        return log

    return make


#: A slice that is taken away while the command first runs.
GCLOUD = """
case "$*" in
    *create*) echo ACTIVE > state ;;
    *describe*) cat state 2>/dev/null || exit 1 ;;
    *delete*) rm state ;;
    *ssh*run*) if [ -e ran ]; then exit STATUS; fi; touch ran; echo SUSPENDED > state; exit 255 ;;
esac
"""


@pytest.mark.parametrize("status", [0, 2])
def test_a_spot_slice_that_was_taken_away_is_made_again(fake, status):
    log = fake("gcloud", GCLOUD.replace("STATUS", str(status)))
    ran("tpu_vm.sh", *TPU, "--spot", "--poll=0", "--", "w2s", "run", *RUN, status=status)
    verbs = [next(w for w in line.split() if w in ("create", "delete", "ssh", "describe"))
             for line in log.read_text().splitlines()]  # fmt: skip
    assert [v for v in verbs if v != "describe"] == 2 * ["create", "ssh", "ssh", "delete"]


def test_a_slice_that_was_interrupted_and_is_still_there_is_used_again(fake):
    again = GCLOUD.replace("echo SUSPENDED > state; exit 255", "exit 75").replace("STATUS", "0")
    log = fake("gcloud", again)
    ran("tpu_vm.sh", *TPU, "--poll=0", "--", "w2s", "run", *RUN)
    assert log.read_text().count(" create ") == 1 and log.read_text().count("w2s\\ run") == 0
    assert log.read_text().count("w2s run") == 2


def test_bad_arguments_are_refused_in_one_line():
    assert "unknown argument '--zoone=x'" in ran("tpu_vm.sh", "--zoone=x", status=2)
    assert "are required" in ran("tpu_vm.sh", "--name=x", "--", "w2s", status=2)
    assert "has no known runtime" in ran(
        "tpu_vm.sh", "--name=x", "--zone=y", "--type=v9-8", "--", "w2s", status=2
    )
    assert "give the arguments of w2s sweep" in ran("ray/submit.sh", status=2)


def test_sbatch_scripts_start_a_process_a_node_and_queue_again_when_interrupted(fake):
    out = ran("slurm/run.sbatch", "--dry_run", *RUN)
    assert out.splitlines()[0].rstrip() == (
        "srun --kill-on-bad-exit=1 w2s run --config=configs/quickstart.py --workdir=/mnt/a\\ b "
        "--distributed"
    )
    out = ran("slurm/sweep.sbatch", "--dry_run", *RUN)
    assert out.splitlines()[0].rstrip() == (
        "srun w2s sweep --config=configs/quickstart.py --workdir=/mnt/a\\ b"
    )
    for script in ("slurm/run.sbatch", "slurm/sweep.sbatch"):
        flags = [line for line in (LAUNCH / script).read_text().splitlines() if "#SBATCH " in line]
        assert "#SBATCH --requeue" in flags and "#SBATCH --signal=TERM@90" in flags
        fake("srun", "exit 75")
        log = fake("scontrol")
        ran(script, *RUN, status=75, env={"PATH": f"{log.parent}/bin:/usr/bin:/bin",
                                          "SLURM_JOB_ID": "7"})  # fmt: skip
        assert log.read_text().endswith("scontrol requeue 7\n")
        log.unlink()
        fake("scontrol", "exit 1")
        said = ran(script, *RUN, status=75, env={"PATH": f"{log.parent}/bin:/usr/bin:/bin",
                                                 "SLURM_JOB_ID": "7"})  # fmt: skip
        assert "does not queue this job again; submit the same command to resume" in said
        log.unlink()
        fake("srun", "exit 2")
        ran(script, *RUN, status=2)
        assert "scontrol" not in log.read_text()


def test_gpus_without_a_process_are_refused():
    """JAX gives each task of Slurm one GPU."""
    for tasks, status in (("8", 0), ("1", 2)):
        environment = {"SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": tasks}
        ran("slurm/run.sbatch", "--dry_run", *RUN, status=status, env=environment)


def test_a_sweep_is_a_job_of_a_ray_cluster():
    out = ran("ray/submit.sh", "--address=http://h:8265", "--dry_run", "--", *RUN)
    assert out.rstrip() == (
        "ray job submit --address http://h:8265 --no-wait -- w2s sweep --executor=ray "
        "--config=configs/quickstart.py --workdir=/mnt/a\\ b"
    )
    cluster = yaml.safe_load((LAUNCH / "ray" / "cluster.yaml").read_text())
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types and types["head"]["resources"] == {"CPU": 0}
    for node in types.values():
        assert {"machineType", "disks"} <= node["node_config"].keys()
    assert cluster["provider"].keys() >= {"type", "region", "availability_zone", "project_id"}


GKE = ["--name=w2s", "--image=x/y:1", "--claim=share", "--topology=4x4", "--spot"]


def pod_of(jobset):
    """The only replicated job of a JobSet, and its pod; what the API requires is there."""
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "w2s"
    (job,) = jobset["spec"]["replicatedJobs"]
    assert job.keys() == {"name", "replicas", "template"}
    pod = job["template"]["spec"]["template"]["spec"]
    # A policy for pods' failures demands it.
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    assert container["image"] == "x/y:1" and container["resources"]["limits"]["google.com/tpu"] == 4
    assert container["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "share"
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-spot"] == "true"
    (toleration,) = pod["tolerations"]
    assert toleration["key"] == "cloud.google.com/gke-spot"
    return job, pod


def test_a_run_on_gke_has_a_pod_a_host():
    jobset = yaml.safe_load(ran("gke/render.py", "run", *GKE, "--", *RUN))
    job, pod = pod_of(jobset)
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (1, 4, 4)
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert pod["containers"][0]["command"] == [
        "bash", "-c",
        "exec w2s run --config=configs/quickstart.py '--workdir=/mnt/a b' --distributed",
    ]  # fmt: skip
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 20
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]


def test_a_sweep_on_gke_has_workers_that_start_again_unless_phases_failed(fake):
    options = [*GKE[:3], "--topology=2x2", "--spot", "--workers=3"]
    job, pod = pod_of(yaml.safe_load(ran("gke/render.py", "sweep", *options, "--", *RUN)))
    assert job["replicas"] == 3 and job["template"]["spec"]["parallelism"] == 1
    command = pod["containers"][0]["command"]
    for status, left in ((0, 0), (1, 0), (2, 2), (75, 75)):
        log = fake("w2s", f"exit {status}")
        assert subprocess.run(command).returncode == left
    assert log.read_text().splitlines()[0] == (
        "w2s sweep --config=configs/quickstart.py --workdir=/mnt/a b"
    )
    # The signal before a node is taken away reaches the worker, whose status counts.
    fake("w2s", "trap 'sleep 0.2; exit 75' TERM; touch up; while true; do sleep 0.05; done")
    process = subprocess.Popen(command)
    while not (log.parent / "up").exists():
        time.sleep(0.05)
    time.sleep(0.5)  # the shell around it knows its process
    process.terminate()
    assert process.wait(timeout=20) == 75


def test_queues_have_a_quota_of_the_flavor_they_name():
    documents = yaml.safe_load_all(ran("gke/render.py", "queues", "--chips=32"))
    flavor, cluster, local = documents
    assert {d["apiVersion"] for d in (flavor, cluster, local)} == {"kueue.x-k8s.io/v1beta1"}
    kinds = [d["kind"] for d in (flavor, cluster, local)]
    assert kinds == ["ResourceFlavor", "ClusterQueue", "LocalQueue"]
    (group,) = cluster["spec"]["resourceGroups"]
    (own,) = group["flavors"]
    assert own["name"] == flavor["metadata"]["name"]
    assert own["resources"] == [{"name": "google.com/tpu", "nominalQuota": 32}]
    assert group["coveredResources"] == ["google.com/tpu"]
    assert local["spec"]["clusterQueue"] == cluster["metadata"]["name"]
    assert local["metadata"]["namespace"] == "default"


@pytest.mark.parametrize(
    "arguments,said",
    [
        (["run", "--name=A", "--", "x"], "'A'; allowed: up to 40"),
        (["run", *GKE, "--topology=4by4", "--", "x"], "'4by4'; must have the form 4x4"),
        (["run", *GKE, "--topology=3x3", "--", "x"], "3x3 is not a multiple of 4"),
        (["run", *GKE], "give the arguments of w2s after --"),
        (["run", "--image=x", "--", "x"], "--name is required"),
        (["sweep", *GKE, "--", "x"], "a worker of a sweep has one host"),
    ],
)
def test_bad_manifests_are_refused(arguments, said):
    assert said in ran("gke/render.py", *arguments, status=2)
