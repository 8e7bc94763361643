"""Joining the processes of a run, whatever has started them. Importing this imports no JAX."""

import glob
import importlib.util
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

from w2s_jax.core import errors, processes

#: Environment of a process of a run, for any launcher: all three or none.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
#: Environment of a task of `srun`, as JAX reads it; the first is missing in a batch script.
SLURM = (
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
#: Number of tasks of the step; SLURM_NTASKS may be that of the job, as in the shell of `salloc`.
SLURM_STEP_TASKS = "SLURM_STEP_NUM_TASKS"
#: Environment of a rank of `mpirun` (Open MPI 4), which JAX looks for before Slurm's.
OPEN_MPI, OPEN_MPI_SIZE = "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE"
#: Timeout of waiting for the first process to start.
JOIN_SECONDS = 300.0
#: Time after which processes other than the first say that they wait.
_SAY_SECONDS = 10.0


def how_to_join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: bool,
    environment: Mapping[str, str],
) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize`; None for a single process.

    The order is: the three flags; `--distributed`, which leaves everything to JAX; the three
    variables; a detected launcher (`detected_launcher`), whose processes JAX finds.

    Raises:
      InputError: only some of the three are given, or their values are invalid.
    """
    flags = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    given = [f"--{name}" for name, value in flags.items() if value is not None]
    if given:
        if distributed or len(given) < len(flags):
            raise errors.InputError(
                f"{', '.join(given)}{' and --distributed' if distributed else ''}: give "
                "--coordinator, --num_processes and --process_id together, or --distributed alone"
            )
        return _explicit("--coordinator", "--num_processes", "--process_id", *flags.values())
    if distributed:
        return _detected_arguments(environment)
    found = [name for name in VARIABLES if environment.get(name)]
    if len(found) == len(VARIABLES):
        return _explicit(*VARIABLES, *(environment[name] for name in VARIABLES))
    if detected_launcher(environment):
        return _detected_arguments(environment)
    if found:
        missing = ", ".join(name for name in VARIABLES if name not in found)
        raise errors.InputError(
            f"{found[0]} is set, but {missing} is not; set all three of {', '.join(VARIABLES)}, "
            "or use --distributed"
        )
    return None


def _explicit(
    address_name: str, num_name: str, id_name: str, address: Any, num: Any, number: Any
) -> dict[str, Any] | None:
    if not re.fullmatch(r"\S+:\d{1,5}", str(address)):
        raise errors.InputError(f"{address_name}: {address!r}; must be HOST:PORT")
    try:
        num, number = int(num), int(number)
    except ValueError:
        raise errors.InputError(
            f"{num_name}, {id_name}: {num!r}, {number!r}; must be integers"
        ) from None
    if num < 1:
        raise errors.InputError(f"{num_name}: {num}; must be at least 1")
    if not 0 <= number < num:
        raise errors.InputError(f"{id_name}: {number}; allowed: 0 to {num - 1}")
    if num == 1:
        return None
    return {"coordinator_address": address, "num_processes": num, "process_id": number}


def detected_launcher(environment: Mapping[str, str]) -> str | None:
    """Return the launcher of several processes whose members JAX can find, or None.

    'ompi': `mpirun` with several ranks. 'slurm': `srun` with several tasks. 'gke': a TPU node pool
    with several hosts or slices. 'gcetpu': TPU VMs of a slice with several hosts.

    Raises:
      InputError: a variable that counts processes is not a number.
    """
    if OPEN_MPI in environment:
        return "ompi" if _number(environment, OPEN_MPI_SIZE) > 1 else None
    if _in_slurm_step(environment):
        return "slurm" if _slurm_tasks(environment) > 1 else None
    if not _has_tpu():
        return None
    several_slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "gke" if several_slices or "," in hosts else None
    if "TPU_SKIP_MDS_QUERY" in environment:
        return None
    return "gcetpu" if several_slices or "," in _worker_endpoints(environment) else None


def _detected_arguments(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return arguments for JAX, which detects the rest of the cluster itself."""
    if OPEN_MPI not in environment and _in_slurm_step(environment):
        return {"num_processes": _slurm_tasks(environment)}
    return {}


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    return all(name in environment for name in SLURM)


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Return the number of tasks of this Slurm step."""
    name = SLURM_STEP_TASKS if environment.get(SLURM_STEP_TASKS) else "SLURM_NTASKS"
    return _number(environment, name)


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not re.fullmatch(r"\d+", text, re.ASCII):
        raise errors.InputError(f"{name}: {text!r}; must be the number of processes")
    return int(text)


def _has_tpu() -> bool:
    """Return whether this machine has TPU chips and their driver library."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _worker_endpoints(environment: Mapping[str, str]) -> str:
    """Return the hosts of this TPU VM's slice from its metadata server; '' without a server.

    https://cloud.google.com/compute/docs/metadata/querying-metadata
    """
    server = environment.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def join(arguments: Mapping[str, Any]) -> None:
    """Join the other processes. Call it before JAX initialises its devices.

    Args:
      arguments: the result of `how_to_join`; {}: JAX detects the cluster.

    Raises:
      InputError: the processes cannot be joined.
    """
    import jax

    # Its handler of SIGTERM, outside of Python, would replace `signals`'.
    jax.config.update("jax_enable_preemption_service", False)
    text, seconds = _awaited(arguments, os.environ)
    say = threading.Timer(seconds, print, [f"waiting for {text}"], {"flush": True})
    give_up = threading.Timer(JOIN_SECONDS, _give_up, [text])
    say.daemon = give_up.daemon = True
    say.start()
    try:
        if arguments.get("process_id"):
            _wait_for_coordinator(arguments["coordinator_address"])
        give_up.start()
        # At its own timeout it aborts the process.
        timeout = int(JOIN_SECONDS + 60)
        jax.distributed.initialize(**arguments, initialization_timeout=timeout)
    except errors.InputError:
        raise
    except Exception as error:  # whatever a cluster's own interface raises
        how = arguments.get("coordinator_address", "--distributed")
        reason = errors.first_line(error)
        raise errors.InputError(f"{how}: cannot join the other processes ({reason})") from error
    finally:
        say.cancel()
        give_up.cancel()


def _give_up(text: str) -> None:
    """End the process, whose main thread waits in native code."""
    os.write(2, f"w2s: {text} did not join within {JOIN_SECONDS:.0f} s\n".encode())
    os._exit(errors.InputError.exit_status)


def _awaited(arguments: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, float]:
    """Return which processes are waited for, and after how many seconds to print that."""
    index = arguments.get("process_id")
    if "coordinator_address" in arguments:
        others, why = arguments["num_processes"] - 1, arguments["coordinator_address"]
    elif arguments:
        others = arguments["num_processes"] - 1
        name = SLURM_STEP_TASKS if environment.get(SLURM_STEP_TASKS) else "SLURM_NTASKS"
        index, why = environment.get("SLURM_PROCID"), f"{name}={environment.get(name)}"
    elif OPEN_MPI in environment:
        others = _number(environment, OPEN_MPI_SIZE) - 1
        index, why = environment.get("OMPI_COMM_WORLD_RANK"), f"{OPEN_MPI_SIZE}={others + 1}"
    else:
        return "the other processes (as JAX finds them)", _SAY_SECONDS
    plural = "" if others == 1 else "es"
    text = f"{others} other process{plural} ({why})"
    return text, 0.0 if int(index or 0) == 0 and others else _SAY_SECONDS


def _wait_for_coordinator(address: str) -> None:
    """Wait until process 0 listens; if it never did, JAX would abort the process.

    Raises:
      InputError: it does not listen within `JOIN_SECONDS`.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + JOIN_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise errors.InputError(
                    f"{address}: process 0 does not answer ({error.strerror or error})"
                ) from error
        time.sleep(0.2)


def refuse_unjoined() -> None:
    """Check that the processes of all visible devices have joined.

    Raises:
      InputError: they have not; a TPU slice shows the devices of all its hosts.
    """
    import jax

    if jax.process_count() > processes.count():
        raise errors.InputError(
            f"these devices belong to {jax.process_count()} processes that have not joined each "
            "other; run all of them with --distributed"
        )
