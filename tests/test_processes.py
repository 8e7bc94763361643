"""Several processes: joining, agreeing, ending, and the launcher for one machine."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import jax
import pytest

from w2s_jax import testing
from w2s_jax.cli.main import main
from w2s_jax.core import errors, joining, processes

ROOT = Path(__file__).parent.parent
LAUNCHER = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py")]
SLURM = dict.fromkeys(joining.SLURM, "0") | {"SLURM_NTASKS": "4"}
#: The shell of `salloc` is a step of one task.
STEP = {"SLURM_STEP_NUM_TASKS": "1"}
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:5", "OMPI_COMM_WORLD_SIZE": "2"}
EXPLICIT = dict(zip(joining.VARIABLES, ("host:1234", "4", "1"), strict=True))
JOINED = {"coordinator_address": "host:1234", "num_processes": 4, "process_id": 1}


# --- joining -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags,environment,wanted",
    [
        ((None, None, None, False), {}, None),
        (("host:1234", 4, 1, False), SLURM, JOINED),
        ((None, None, None, True), EXPLICIT, {}),
        ((None, None, None, False), EXPLICIT | SLURM, JOINED),
        ((None, None, None, False), SLURM, {"num_processes": 4}),
        ((None, None, None, False), SLURM | {"SLURM_NTASKS": "1"}, None),
        # The step's tasks count: in the shell of `salloc -n4`, or a step of another size.
        ((None, None, None, False), SLURM | STEP, None),
        ((None, None, None, False), SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, {"num_processes": 2}),
        ((None, None, None, True), SLURM | STEP, {"num_processes": 1}),
        # `mpirun` in it is nearer, as for JAX: Slurm's step is that of its daemons.
        ((None, None, None, False), SLURM | MPI, {}),
        ((None, None, None, False), SLURM | MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        # A batch script is not a task of its own job.
        ((None, None, None, False), {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),
        ((None, None, None, False), MPI, {}),
        # An address alone replaces the one that JAX would take in a cluster that it knows.
        (
            (None, None, None, False),
            SLURM | {"JAX_COORDINATOR_ADDRESS": "host:1"},
            {"num_processes": 4},
        ),
        # One of one is alone.
        (("host:1234", 1, 0, False), {}, None),
    ],
)
def test_how_processes_join(flags, environment, wanted):
    assert joining.how_to_join(*flags, environment) == wanted


@pytest.mark.parametrize(
    "flags,environment,parts",
    [
        (("host:1234", None, None, False), {}, ["--coordinator", "together"]),
        ((None, 4, 1, False), {}, ["--num_processes, --process_id", "together"]),
        (("host:1234", 4, 1, True), {}, ["--distributed"]),
        (("host", 4, 1, False), {}, ["--coordinator", "'host'", "HOST:PORT"]),
        (("host:1", 4, 4, False), {}, ["--process_id", "4", "0 to 3"]),
        (("host:1", 0, 0, False), {}, ["--num_processes", "0", "at least 1"]),
        ((None,) * 3 + (False,), EXPLICIT | {"JAX_PROCESS_ID": ""}, ["JAX_PROCESS_ID"]),
        ((None,) * 3 + (False,), EXPLICIT | {"JAX_PROCESS_ID": "x"}, ["'x'", "integers"]),
        ((None,) * 3 + (False,), SLURM | {"SLURM_NTASKS": "a"}, ["SLURM_NTASKS: 'a'", "number"]),
        ((None,) * 3 + (False,), MPI | {"OMPI_COMM_WORLD_SIZE": ""}, ["OMPI_COMM_WORLD_SIZE"]),
    ],
)
def test_half_of_an_address_is_refused(flags, environment, parts):
    with pytest.raises(errors.InputError) as refused:
        joining.how_to_join(*flags, environment)
    assert all(part in str(refused.value) for part in parts), refused.value


def test_a_coordinator_that_never_answers_is_one_line(monkeypatch):
    monkeypatch.setattr(joining, "JOIN_SECONDS", 0.3)
    # Nobody listens there: that is the port of the protocol that discards.
    with pytest.raises(errors.InputError, match=r"127.0.0.1:9: process 0 does not answer"):
        joining.join(JOINED | {"coordinator_address": "127.0.0.1:9"})


WAIT = """
import os, sys
from w2s_jax.core import joining, processes, signals

def command():
    os.environ.update(SLURM_PROCID="0", SLURM_STEP_NUM_TASKS="4")
    joining.join({"num_processes": 4, "process_id": 0, "coordinator_address": sys.argv[1]})
    return 0

signals.GRACE_SECONDS, joining.JOIN_SECONDS = 0.5, float(sys.argv[2])
sys.exit(signals.guarded(command, hint="", last=True))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_waiting_for_others_ends_with_a_signal_and_after_a_time(number):
    """JAX waits in native code, for minutes, and would end with an abort."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, address, "300" if number else "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == f"waiting for 3 other processes ({address})\n"
    if number:
        time.sleep(0.5)
        process.send_signal(number)
    _, err = process.communicate(timeout=30)
    line = "interrupted (SIGTERM)"
    if not number:
        line = f"3 other processes ({address}) did not join within 1 s"
    assert process.returncode == (75 if number else 2) and err.endswith(f"w2s: {line}\n"), err


@pytest.mark.parametrize(
    "arguments,environment,text,seconds",
    [
        (JOINED | {"process_id": 0}, {}, "3 other processes (host:1234)", 0),
        (JOINED, {}, "3 other processes (host:1234)", 10),
        ({"num_processes": 2}, SLURM | {"SLURM_STEP_NUM_TASKS": "2"},
         "1 other process (SLURM_STEP_NUM_TASKS=2)", 0),
        ({"num_processes": 4}, SLURM | {"SLURM_PROCID": "1"},
         "3 other processes (SLURM_NTASKS=4)", 10),
        ({}, MPI | {"OMPI_COMM_WORLD_RANK": "0"}, "1 other process (OMPI_COMM_WORLD_SIZE=2)", 0),
        ({}, {}, "the other processes (as JAX finds them)", 10),
    ],
)  # fmt: skip
def test_who_waits_says_for_whom(arguments, environment, text, seconds):
    """The first process at once, the others if it takes long."""
    assert joining._awaited(arguments, environment) == (text, seconds)


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
        assert joining.detected_launcher(several) is None  # no chips here
        monkeypatch.setattr(joining, "_has_tpu", lambda: True)
        assert joining.detected_launcher(several) == "gke"
        assert joining.detected_launcher({"TPU_WORKER_HOSTNAMES": "a"}) is None
        slices = {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}
        assert joining.detected_launcher(slices) == "gke"
        assert joining.detected_launcher(tpu_vm) is None
        Metadata.endpoints = "10.0.0.1,10.0.0.2"
        assert joining.detected_launcher(tpu_vm) == "gcetpu"
        assert joining.detected_launcher(tpu_vm | {"TPU_SKIP_MDS_QUERY": "1"}) is None
        server.shutdown()
    assert joining.detected_launcher(tpu_vm) is None


def test_bad_flags_are_one_line_and_a_dry_run_joins_nobody(capsys, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.py"
    data_dir = testing.write_tiny_task(tmp_path / "data")
    tiny = (
        f"from w2s_jax.testing import tiny_config as t\nget_config = lambda: t({str(data_dir)!r})"
    )
    recipe.write_text(tiny)
    run = ["run", f"--config={recipe}", f"--workdir={tmp_path / 'run'}"]
    assert main([*run, "--coordinator=host:1"]) == 2
    assert "--process_id together" in capsys.readouterr().err
    monkeypatch.setattr(joining, "join", lambda _: pytest.fail("joined"))
    flags = ["--coordinator=host:1", "--num_processes=2", "--process_id=1"]
    assert main([*run, *flags, "--dry_run"]) == 0


# --- agreeing ------------------------------------------------------------------------------------


class Store:
    """The key-value store of `jax.distributed`, for threads instead of processes."""

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
        "local_multiprocess: process 1 exited with status 3",
        "  the cause",
    ]


def test_a_kill_is_told_as_a_shell_tells_it():
    done = launch(2, ID + "i == 0 and os.kill(os.getpid(), 9); time.sleep(60)")
    assert done.returncode == 137 and "process 0 exited with signal 9" in done.stderr


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


# --- the hub -------------------------------------------------------------------------------------

COMMIT = "c" * 40
FILES = {"config.json": b"{}", "model.safetensors": b"x" * 100_000, "tokenizer.json": b"{}"}


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of a hub that a download needs, for one repository; counts the files served."""

    asked, tokens = Counter(), set()

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, headers = self.path.partition("?")[0], {}
        name = path.rpartition("/")[2]
        if "/tree/" in path:
            body = json.dumps(
                [{"type": "file", "path": n, "size": len(x), "oid": n} for n, x in FILES.items()]
            ).encode()
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": n} for n in FILES]
            body = json.dumps({"id": "org/name", "sha": COMMIT, "siblings": siblings}).encode()
            self.tokens.add(self.headers.get("Authorization"))
        elif name in FILES:
            body, headers = FILES[name], {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
            if self.command == "GET":
                self.asked[name] += 1
                time.sleep(0.5)
        else:
            return self.send_error(404)
        self.send_response(200)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_processes_of_a_host_download_once(tmp_path):
    """By the locks of the hub's own client; with its token, and not at all when offline."""
    pytest.importorskip("huggingface_hub")
    code = "from w2s_jax.models.hf_models import local_folder; print(local_folder('org/name'))"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "secret",
            "PYTHONPATH": str(ROOT),
        }

        def two(**more):
            started = [
                subprocess.Popen(
                    [sys.executable, "-c", code],
                    env=os.environ | environment | more,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                for _ in range(2)
            ]
            return {process.communicate(timeout=60)[0].strip() for process in started}

        (folder,) = two()
        assert {path.name for path in Path(folder).iterdir()} == set(FILES)
        assert Hub.asked == dict.fromkeys(FILES, 1)
        assert Hub.tokens == {"Bearer secret"}
        server.shutdown()
    assert two(HF_HUB_OFFLINE="1") == {folder}
