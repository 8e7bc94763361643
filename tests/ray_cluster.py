"""A sweep on a Ray cluster of two nodes, one of which is killed in the middle: a script.

    python tests/ray_cluster.py FOLDER OPTION... -- COMMAND...

Starts the cluster in FOLDER/ray and the command with RAY_ADDRESS; kills a node, with `--kill`, as
soon as a phase on it has stored a checkpoint. Prints what it killed, and ends as the command does.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ray.cluster_utils import Cluster

#: A dead node is noticed after a second instead of thirteen.
HEALTH = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 2,
}


def parent(pid: int) -> int:
    """The parent of a process; 0 if there is none any more."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def running(store: Path) -> list[tuple[str, int]]:
    """(phase, process) of phases that are run and have a checkpoint, if not yet a result."""
    found = []
    for path in map(Path, glob.glob(f"{store}/*/holder.json")):
        steps = list((path.parent / "checkpoints" / "steps").glob("[0-9]*"))
        whole = any(step.name.isdigit() for step in steps)
        if whole and not (path.parent / "result.json").exists():
            try:
                found.append((path.parent.name, json.loads(path.read_text())["pid"]))
            except (OSError, ValueError):
                continue
    return found


def kill_a_node(cluster: Cluster, store: Path, process: subprocess.Popen) -> tuple[str, int]:
    """Kills the raylet under which a phase is run, and waits for it; the phase and its process."""
    raylets = {
        info.process.pid: (node, info.process)
        for node in cluster.worker_nodes
        for info in node.all_processes["raylet"]
    }
    while process.poll() is None:
        for phase, pid in running(store):
            if parent(pid) in raylets:
                _, raylet = raylets[parent(pid)]
                raylet.send_signal(signal.SIGKILL)
                raylet.wait()
                return phase, pid
        time.sleep(0.01)
    raise SystemExit("no phase was run on a node long enough to kill it")


def resumed_from(phase: str, dead: int, store: Path, process: subprocess.Popen) -> int:
    """The step from which another process goes on with a phase."""
    while process.poll() is None:
        try:
            holder = json.loads((store / phase / "holder.json").read_text())
            if holder["pid"] != dead:
                return holder["from_step"]
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    raise SystemExit("nobody went on with the phase")


def main() -> int:
    folder, *rest = sys.argv[1:]
    options, command = rest[: rest.index("--")], rest[rest.index("--") + 1 :]
    # Ray's sockets need short paths.
    temporary = Path("/tmp") / f"w2s{os.getpid()}"
    # There Ray leaves the cluster's address, in a folder that it does not make.
    (temporary / "ray").mkdir(parents=True)
    os.environ["RAY_TMPDIR"] = str(temporary)
    common = {"object_store_memory": 100 * 2**20, "node_ip_address": "127.0.0.1"}
    head = {**common, "num_cpus": 0, "include_dashboard": False, "temp_dir": str(temporary)}
    head["_system_config"] = HEALTH
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for gpus in (0, 2) if "--gpus" in options else (0, 0):
            cluster.add_node(**common, num_cpus=2 if gpus else 1, num_gpus=gpus)
        process = subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": cluster.address})
        if "--kill" in options:
            store = Path(next(c for c in command if c.startswith("--workdir=")).partition("=")[2])
            phase, dead = kill_a_node(cluster, store / "phases", process)
            step = resumed_from(phase, dead, store / "phases", process)
            print(f"killed under {phase}, which went on from step {step}", flush=True)
        status = process.wait()
    finally:
        logs = temporary / "session_latest" / "logs"
        shutil.copytree(logs.resolve(), Path(folder) / "logs", ignore_dangling_symlinks=True)
        cluster.shutdown()
        shutil.rmtree(temporary, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
