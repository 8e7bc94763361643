"""Several processes: how they join, agree and end; and that they compute what one computes."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from w2s_jax import cli, errors, processes, testing

ROOT = Path(__file__).parent.parent
LAUNCHER = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py")]
SLURM = dict.fromkeys(processes.SLURM, "0") | {"SLURM_NTASKS": "4"}
EXPLICIT = dict(zip(processes.VARIABLES, ("host:1234", "4", "1"), strict=True))
JOINED = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 1}


# --- joining -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags,environment,wanted",
    [
        ((None, None, None, False), {}, None),
        (("host:1234", 4, 1, False), SLURM, JOINED),
        ((None, None, None, True), EXPLICIT, {}),
        ((None, None, None, False), EXPLICIT | SLURM, JOINED),
        ((None, None, None, False), SLURM, {}),
        ((None, None, None, False), SLURM | {"SLURM_NTASKS": "1"}, None),
        # A batch script is no task of its own job.
        ((None, None, None, False), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        (
            (None, None, None, False),
            {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:5", "OMPI_COMM_WORLD_SIZE": "2"},
            {},
        ),
        # An address alone replaces the one that JAX would take in a cluster that it knows.
        ((None, None, None, False), SLURM | {"JAX_COORDINATOR_ADDRESS": "host:1"}, {}),
        # One of one is alone.
        (("host:1234", 1, 0, False), {}, None),
    ],
)
def test_how_processes_join(flags, environment, wanted):
    assert processes.how_to_join(*flags, environment) == wanted


@pytest.mark.parametrize(
    "flags,environment,parts",
    [
        (("host:1234", None, None, False), {}, ["--coordinator", "all three or none"]),
        ((None, 4, 1, False), {}, ["--num_processes, --process_id", "all three"]),
        (("host:1234", 4, 1, True), {}, ["--distributed"]),
        (("host", 4, 1, False), {}, ["--coordinator", "'host'", "HOST:PORT"]),
        (("host:1", 4, 4, False), {}, ["--process_id", "4", "0 to 3"]),
        (("host:1", 0, 0, False), {}, ["--num_processes", "0", "1 or more"]),
        ((None,) * 3 + (False,), EXPLICIT | {"JAX_PROCESS_ID": ""}, ["JAX_PROCESS_ID"]),
        ((None,) * 3 + (False,), EXPLICIT | {"JAX_PROCESS_ID": "x"}, ["'x'", "integers"]),
    ],
)
def test_half_of_an_address_is_refused(flags, environment, parts):
    with pytest.raises(errors.InputError) as refused:
        processes.how_to_join(*flags, environment)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_tpu_slices_of_several_hosts_are_evident(monkeypatch):
    """By Google's environment on GKE, by the metadata server on TPU VMs."""

    class Metadata(http.server.BaseHTTPRequestHandler):
        endpoints = "10.0.0.1"

        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            assert self.path.endswith("/instance/attributes/worker-network-endpoints")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.endpoints.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tpu_vm = {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
        several = {"TPU_WORKER_HOSTNAMES": "a,b"}
        assert processes.evident_launcher(several) is None  # no chips here
        monkeypatch.setattr(processes, "_has_tpu", lambda: True)
        assert processes.evident_launcher(several) == "gke"
        assert processes.evident_launcher({"TPU_WORKER_HOSTNAMES": "a"}) is None
        slices = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
        assert processes.evident_launcher(slices) == "gke"
        assert processes.evident_launcher(tpu_vm) is None
        Metadata.endpoints = "10.0.0.1,10.0.0.2"
        assert processes.evident_launcher(tpu_vm) == "gcetpu"
        assert processes.evident_launcher(tpu_vm | {"TPU_SKIP_MDS_QUERY": "1"}) is None
        server.shutdown()
    assert processes.evident_launcher(tpu_vm) is None


def test_bad_flags_are_one_line_and_a_dry_run_joins_nobody(capsys, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    data_dir = testing.write_tiny_task(tmp_path / "data")
    recipe.write_text(RECIPE.format(data_dir=str(data_dir)))
    run = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*run, "--coordinator=host:1"]) == 2
    assert "all three or none" in capsys.readouterr().err
    monkeypatch.setattr(processes, "join", lambda _: pytest.fail("joined"))
    flags = ["--coordinator=host:1", "--num_processes=2", "--process_id=1"]
    assert cli.main([*run, *flags, "--dry_run"]) == 0


# --- agreeing ------------------------------------------------------------------------------------


class Store:
    """The key-value store of `jax.distributed`, for threads in the place of processes."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            assert key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, timeout_in_ms / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, prefix):
        with self.changed:
            return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]

    def key_value_delete(self, prefix):
        with self.changed:
            for key in [k for k in self.values if k.startswith(prefix)]:
                del self.values[key]


@pytest.fixture
def as_processes(monkeypatch):
    """Calls a function of a process's index in three threads, which agree as processes do."""
    here, store = threading.local(), Store()

    class Joined:
        num_processes, client = 3, store

        @property
        def process_id(self):
            return here.index

    class Numbers:
        def __next__(self):
            here.number += 1
            return here.number

    monkeypatch.setattr(processes, "_joined", Joined)
    monkeypatch.setattr(processes, "_numbers", Numbers())
    monkeypatch.setattr(processes, "_LOOK_MS", 50)

    def call(function):
        found = [None] * 3

        def one(index):
            here.index, here.number = index, -1
            try:
                found[index] = function(index)
            except Exception as error:
                found[index] = error

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a process waits for ever"
        return found

    call.store = store
    return call


def test_all_hear_what_each_says_and_nothing_is_kept(as_processes):
    def work(index):
        for round_ in range(20):
            assert processes.gather("a", [round_, index]) == [[round_, i] for i in range(3)]
            assert processes.first_says("b", index + 5) == 5
            assert processes.any_of("c", index == 2) and not processes.any_of("d", False)
        return "done"

    assert as_processes(work) == ["done"] * 3
    # Of 80 questions at most the last one and its answer.
    assert len(as_processes.store.values) <= 4


def test_the_first_works_for_all_and_its_errors_are_everyones(as_processes):
    ran = []

    def work(index):
        said = processes.on_first("a", lambda: ran.append(index) or {"n": 1})
        assert said == {"n": 1}

        def fail():
            ran.append(index)
            raise errors.StorageError("the disk")

        processes.on_first("b", fail)

    found = as_processes(work)
    assert ran == [0, 0]
    assert [type(e) for e in found] == [errors.StorageError] * 3
    assert {str(e) for e in found} == {"the disk"}


def test_what_one_refuses_all_refuse(as_processes):
    def work(index):
        assert processes.everywhere("a", lambda: index * 10) == index * 10

        def read():
            if index == 1:
                raise errors.InputError("task.data_dir: not here")
            if index == 2:
                time.sleep(0.2)
            return index

        processes.everywhere("b", read)

    found = as_processes(work)
    assert [(type(e), str(e)) for e in found] == [
        (errors.InputError, "task.data_dir: not here")
    ] * 3


@pytest.mark.parametrize("status,kind", [(75, errors.Interrupted), (1, errors.W2SError)])
def test_nobody_waits_for_one_that_has_left(as_processes, status, kind):
    def work(index):
        if index == 1:
            as_processes.store.key_value_set("w2s_jax/left/1", str(status))
            return None
        processes.barrier("a")

    found = as_processes(work)
    assert found[1] is None
    for error in (found[0], found[2]):
        assert type(error) is kind and "process 1" in str(error)


def test_processes_out_of_step_are_a_mistake(as_processes):
    found = as_processes(lambda index: processes.barrier("b" if index == 2 else "a"))
    assert all("out of step" in str(error) for error in found)


def test_one_process_asks_nobody():
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    value = object()
    assert processes.first_says("a", value) is value
    assert processes.on_first("a", lambda: value) is value
    assert processes.everywhere("a", lambda: value) is value
    assert processes.any_of("a", True) and not processes.any_of("a", False)
    assert processes.leave(3) == 3


# --- the launcher --------------------------------------------------------------------------------

ID = "import os, sys, time; i = int(os.environ['JAX_PROCESS_ID']); "


def launch(count, code, *options):
    command = [*LAUNCHER, "-n", str(count), *options, "--", sys.executable, "-uc", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_each_process_is_told_who_it_is():
    names = "'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_NUM_CPU_DEVICES'"
    code = ID + f"print(i, *(os.environ[n] for n in ({names})))"
    done = launch(3, code, "--devices_per_process", "4")
    assert done.returncode == 0
    (first,) = done.stdout.splitlines()
    assert first.split()[0] == "0" and first.split()[2:] == ["3", "4"]
    lines = sorted(line for line in done.stderr.splitlines() if line.startswith("["))
    assert [line.split()[:2] for line in lines] == [["[1]", "1"], ["[2]", "2"]]
    assert {line.split()[2] for line in lines} == {first.split()[1]}


def test_one_failure_ends_all_and_is_told_last():
    code = ID + "i == 1 and (print('the cause', file=sys.stderr), sys.exit(3)); time.sleep(60)"
    started = time.monotonic()
    done = launch(3, code)
    assert done.returncode == 3 and time.monotonic() - started < 30
    assert done.stderr.splitlines()[-2:] == [
        "local_multiprocess: process 1 ended with status 3",
        "  the cause",
    ]


def test_a_kill_is_told_as_a_shell_tells_it():
    done = launch(2, ID + "i == 0 and os.kill(os.getpid(), 9); time.sleep(60)")
    assert done.returncode == 137 and "process 0 ended with signal 9" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(tmp_path, number):
    code = ID + (
        "import signal, pathlib\n"
        "def stop(*_): sys.exit(75)\n"
        f"signal.signal({int(number)}, stop)\n"
        f"pathlib.Path({str(tmp_path)!r}, str(i)).touch()\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([*LAUNCHER, "-n", "2", "--", sys.executable, "-c", code])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(30) == 75


def test_a_dry_run_prints_the_commands():
    command = ["-n", "2", "--port", "999", "--dry_run", "--", "w2s", "run", "--workdir=a b"]
    done = subprocess.run([*LAUNCHER, *command], capture_output=True, text=True, check=True)
    where = "JAX_COORDINATOR_ADDRESS=127.0.0.1:999 JAX_NUM_PROCESSES=2"
    assert done.stdout.splitlines() == [
        f"{where} JAX_PROCESS_ID={i} w2s run '--workdir=a b'" for i in range(2)
    ]
    bad = subprocess.run([*LAUNCHER, "-n", "0", "--", "w2s"], capture_output=True, text=True)
    assert bad.returncode == 2 and "-n: 0" in bad.stderr


# --- real processes ------------------------------------------------------------------------------

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

# `w2s`, which a signal meets at its n-th look at signals: SIGNAL is 'process:n:signal'.
W2S = """
import os, sys
from w2s_jax import cli, processes

index, look, number = map(int, os.environ.get("SIGNAL", "-1:0:0").split(":"))
any_of, looks = processes.any_of, []

def counted(name, flag):
    looks.append(name)
    if processes.index() == index and len(looks) == look:
        os.kill(os.getpid(), number)
    return any_of(name, flag)

processes.any_of = counted
sys.exit(cli.main())
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a recipe, and programs compiled once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    data_dir = testing.write_tiny_task(folder / "data")
    (folder / "recipe.py").write_text(RECIPE.format(data_dir=str(data_dir)))
    return folder


def run(here, workdir, count, devices, *overrides, **environment):
    """Runs the recipe in so many processes with so many devices each."""
    command = [*LAUNCHER, "-n", str(count), "--devices_per_process", str(devices), "--"]
    command += [sys.executable, "-c", W2S, "run", f"--config={here / 'recipe.py'}"]
    environment = {"W2S_CACHE_DIR": str(here / "cache"), "PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(
        [*command, f"--workdir={workdir}", *overrides],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def rows_of(phase):
    return [json.loads(line) for line in (phase / "metrics.jsonl").read_text().splitlines()]


def assert_same(workdir, other):
    """The same result, predictions and history, as far as float32 tells."""
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
    files = [
        {str(p.relative_to(w)) for p in w.rglob("*") if p.is_file() and "ocdbt" not in str(p)}
        for w in (workdir, alone)
    ]
    named = [{name for name in names if "/d/" not in name} for names in files]
    assert named[0] - named[1] == {"logs/process-0.log", "logs/process-1.log"}
    log = (workdir / "logs" / "process-1.log").read_text()
    assert "weak: begins" in log and "weak: step 20 of 20" in log and "weak: ends" in log
    # The finished run is told again.
    again = run(here, workdir, 2, 1)
    assert again.returncode == 0 and again.stdout.count("result: ") == 1


@pytest.mark.slow
def test_parameters_are_split_over_processes(here, alone):
    done = run(here, here / "fsdp", 2, 2, "--config.mesh.fsdp=2")
    assert done.returncode == 0, done.stderr
    assert_same(here / "fsdp", alone)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_any_number_resumes(here, alone):
    """The seventh look is the first in the weak phase."""
    workdir = here / "stopped"
    done = run(here, workdir, 2, 1, SIGNAL=f"1:8:{int(signal.SIGTERM)}")
    assert done.returncode == 75, done.stderr
    told = [line for line in done.stderr.splitlines() if "weak: stopped by a signal" in line]
    assert len(told) == 2 and all("step 15 of 20, state saved" in line for line in told)
    copy = shutil.copytree(workdir, here / "copy")
    for folder, count, devices in ((workdir, 2, 1), (copy, 1, 2)):
        done = run(here, folder, count, devices)
        assert done.returncode == 0, done.stderr
        assert_same(folder, alone)
        steps = [row["step"] for row in rows_of(next(folder.glob("phases/weak-*")))]
        assert steps == sorted(steps)


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_kill_of_one_ends_all_and_a_rerun_resumes(here, alone, process):
    workdir = here / f"killed{process}"
    started = time.monotonic()
    done = run(here, workdir, 2, 1, SIGNAL=f"{process}:9:{int(signal.SIGKILL)}")
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
