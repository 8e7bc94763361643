"""A Slurm cluster of this machine's own, with one node: a script.

    python tests/slurm_cluster.py FOLDER COMMAND...

Starts munge, the controller and a node in FOLDER, runs the command with SLURM_CONF, and ends them.
Exit status 77: the daemons don't come up; it says why.
"""

import getpass
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
#: Where Debian has them, whatever the user's PATH.
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"

CONF = """
ClusterName=w2s
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=3
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,requeue_delay=1
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
InactiveLimit=0
KillWait=5
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def main() -> int:
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    base = 20000 + os.getpid() % 20000
    conf = folder / "slurm.conf"
    user = getpass.getuser()
    conf.write_text(CONF.format(folder=folder, user=user, port=base, node_port=base + 1))
    env = os.environ | {"SLURM_CONF": str(conf)}
    munge = ["munged", "-F", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log"]
    munge += [f"--seed-file={folder}/munge.seed"]
    daemons = []
    try:
        for daemon in (munge, ["slurmctld", "-D", "-c"], ["slurmd", "-D"]):
            daemon[0] = str(shutil.which(daemon[0], path=PATH))
            log = (folder / f"{Path(daemon[0]).name}.out").open("w")
            daemons.append(subprocess.Popen(daemon, env=env, stdout=log, stderr=log))
            time.sleep(0.5)
        deadline = time.monotonic() + 60
        while "idle" not in _state(env):
            if time.monotonic() > deadline or any(d.poll() is not None for d in daemons):
                for log in folder.glob("*.out"):
                    print(log.name, log.read_text()[-500:])
                return 77
            time.sleep(0.2)
        return subprocess.run(command, env=env).returncode
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _state(env: dict[str, str]) -> str:
    found = subprocess.run(["sinfo", "-h", "-o", "%t"], env=env, capture_output=True, text=True)
    return found.stdout


if __name__ == "__main__":
    sys.exit(main())
