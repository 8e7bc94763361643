"""Several processes that compute one run: how they join, and how they agree. Imports no JAX itself.

All processes run the same program. What depends on a clock, a disk or a signal could differ between
them, and then they would wait for each other for ever: it is decided by the first process, or by
all together. They talk through the key-value store of `jax.distributed`, which needs no device and
has no time limit. With one process all of this costs nothing.
"""

import glob
import importlib.util
import itertools
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from w2s_jax.core import errors

T = TypeVar("T")

#: Says where a run's process is, for any launcher: all three or none.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
#: What `srun` gives each task; the first is not there in a batch script.
SLURM = (
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_ID",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
#: How long processes wait for the first one to start.
JOIN_SECONDS = 300.0
#: How long a wait for another process lasts before signals are looked at.
_LOOK_MS = 2_000
#: How long processes wait for each other at their end.
_LEAVE_MS = 10_000
_PREFIX = "w2s_jax"

_numbers = itertools.count()
_progress = logging.getLogger(f"{__name__}.progress")


# --- joining -------------------------------------------------------------------------------------


def how_to_join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    distributed: bool,
    environment: Mapping[str, str],
) -> dict[str, Any] | None:
    """The arguments of `jax.distributed.initialize`; None where there is but one process.

    In this order: the three flags; `--distributed`, which leaves everything to JAX; the three
    variables; a launcher that is evident (`evident_launcher`), whose processes JAX finds.

    Raises:
      InputError: if some of the three are given and others not, or they make no sense.
    """
    flags = dict(coordinator=coordinator, num_processes=num_processes, process_id=process_id)
    given = [f"--{name}" for name, value in flags.items() if value is not None]
    if given:
        if distributed or len(given) < len(flags):
            raise errors.InputError(
                f"{', '.join(given)}{' and --distributed' if distributed else ''}; allowed: "
                "--coordinator, --num_processes and --process_id, all three or none, or "
                "--distributed alone"
            )
        return _explicit("--coordinator", "--num_processes", "--process_id", *flags.values())
    if distributed:
        return {}
    found = [name for name in VARIABLES if environment.get(name)]
    if len(found) == len(VARIABLES):
        return _explicit(*VARIABLES, *(environment[name] for name in VARIABLES))
    if evident_launcher(environment):
        return {}
    if found:
        missing = ", ".join(name for name in VARIABLES if name not in found)
        raise errors.InputError(
            f"{found[0]}: is set, but not {missing}; allowed: all three or none of "
            f"{', '.join(VARIABLES)}, or --distributed"
        )
    return None


def _explicit(
    address_name: str, num_name: str, id_name: str, address: Any, num: Any, number: Any
) -> dict[str, Any] | None:
    if not re.fullmatch(r"\S+:\d{1,5}", str(address)):
        raise errors.InputError(f"{address_name}: {address!r}; allowed: HOST:PORT")
    try:
        num, number = int(num), int(number)
    except ValueError:
        raise errors.InputError(
            f"{num_name}, {id_name}: {num!r}, {number!r}; allowed: integers"
        ) from None
    if num < 1:
        raise errors.InputError(f"{num_name}: {num}; allowed: 1 or more")
    if not 0 <= number < num:
        raise errors.InputError(f"{id_name}: {number}; allowed: 0 to {num - 1}")
    if num == 1:
        return None
    return {"coordinator_address": address, "num_processes": num, "process_id": number}


def evident_launcher(environment: Mapping[str, str]) -> str | None:
    """What has started several processes, of which this is one, as far as JAX finds the others.

    'slurm': a task of an `srun` with several. 'ompi': a rank of an `mpirun` with several. 'gke': a
    TPU node pool with several hosts or slices. 'gcetpu': a TPU VM of a slice with several.
    """
    if all(name in environment for name in SLURM) and int(environment["SLURM_NTASKS"]) > 1:
        return "slurm"
    if "OMPI_MCA_orte_hnp_uri" in environment and int(environment["OMPI_COMM_WORLD_SIZE"]) > 1:
        return "ompi"
    if not _has_tpu():
        return None
    several_slices = int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES")
    if hosts:
        return "gke" if several_slices or "," in hosts else None
    if "TPU_SKIP_MDS_QUERY" in environment:
        return None
    return "gcetpu" if several_slices or "," in _worker_endpoints(environment) else None


def _has_tpu() -> bool:
    """Whether this machine has TPU chips, and what drives them."""
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _worker_endpoints(environment: Mapping[str, str]) -> str:
    """The hosts of this TPU VM's slice as its metadata server tells them; '' where there is none.

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
    """Joins the other processes. Call it before JAX has looked for devices.

    Args:
      arguments: what `how_to_join` returned; {}: as JAX finds them.

    Raises:
      InputError: if they cannot be joined.
    """
    import jax

    if arguments.get("process_id"):
        _wait_for_coordinator(arguments["coordinator_address"])
    try:
        jax.distributed.initialize(**arguments)
    except Exception as error:  # whatever a cluster's own interface raises
        how = "--distributed" if not arguments else arguments["coordinator_address"]
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise errors.InputError(f"{how}: cannot join the other processes ({text[0]})") from error
    if threading.current_thread() is threading.main_thread():
        # JAX has put its own handler in the place of the one that Python had.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _wait_for_coordinator(address: str) -> None:
    """Returns when process 0 listens; where it never does, JAX would abort.

    Raises:
      InputError: if it does not within `JOIN_SECONDS`.
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
                    f"{address}: process 0 does not answer there ({error.strerror or error})"
                ) from error
        time.sleep(0.2)


def refuse_unjoined() -> None:
    """Refuses devices of several processes that have not joined: a TPU slice shows them all.

    Raises:
      InputError: see above.
    """
    import jax

    if jax.process_count() > count():
        raise errors.InputError(
            f"these devices belong to {jax.process_count()} processes, which have not joined each "
            "other; allowed: --distributed in all of them"
        )


# --- who is who ----------------------------------------------------------------------------------


def _joined() -> Any:
    """JAX's record of the processes that have joined, or None."""
    if "jax" not in sys.modules:
        return None
    # The key-value store has no public name.
    from jax._src import distributed

    return None if distributed.global_state.client is None else distributed.global_state


def count() -> int:
    """How many processes compute this run. Looks for no devices."""
    joined = _joined()
    return 1 if joined is None else int(joined.num_processes)


def index() -> int:
    """Which of them this one is, from 0."""
    joined = _joined()
    return 0 if joined is None else int(joined.process_id)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return index() == 0


# --- agreeing ------------------------------------------------------------------------------------


def gather(name: str, value: Any) -> list[Any]:
    """What each process says, as JSON, in the order of their indices; all must call it.

    None returns before all have called: it is a barrier too.

    Args:
      name: what it is about; a process that asks something else is a mistake of the program.
      value: what this process says.

    Raises:
      W2SError: if a process has left instead; `Interrupted` if a signal stopped it.
    """
    if count() == 1:
        return [value]
    client, number = _joined().client, next(_numbers)
    key = f"{_PREFIX}/said/{number}"
    client.key_value_set(f"{key}/{index()}", json.dumps([name, value]))
    if is_first():
        said = [json.loads(_wait(client, f"{key}/{i}")) for i in range(count())]
        client.key_value_set(f"{key}/all", json.dumps(said))
        # All have said something new, so all have read the answer before.
        client.key_value_delete(f"{_PREFIX}/said/{number - 1}/")
    said = json.loads(_wait(client, f"{key}/all"))
    if {other for other, _ in said} != {name}:
        raise RuntimeError(f"processes are out of step: {[other for other, _ in said]}")
    return [each for _, each in said]


def _wait(client: Any, key: str) -> str:
    """The value of a key, as soon as there is one."""
    import jax

    while True:
        try:
            return str(client.blocking_key_value_get(key, _LOOK_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        for place, status in client.key_value_dir_get(f"{_PREFIX}/left/"):
            other = f"process {place.rpartition('/')[2]}"
            if int(status) == errors.Interrupted.exit_status:
                raise errors.Interrupted(
                    f"{other} was stopped by a signal; the same command resumes"
                )
            raise errors.W2SError(f"{other} has stopped with status {status}; see what it said")


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    gather(name, None)


def any_of(name: str, flag: bool) -> bool:
    """Whether any process says so."""
    return any(gather(name, flag))


def first_says(name: str, value: T) -> T:
    """What the first process says, as JSON; the value itself if it is alone."""
    return gather(name, value if is_first() else None)[0]


def on_first(name: str, work: Callable[[], T]) -> T:
    """What `work` returns (as JSON) or raises in the first process, in all of them.

    The others wait: what the first has written they may read.
    """
    if count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    raised: Exception | None = None
    if is_first():
        try:
            outcome = {"value": work()}
        except Exception as error:
            raised, outcome = error, {"error": _told(error)}
    outcome = gather(name, outcome)[0]
    if raised is not None:
        raise raised
    if "error" in outcome:
        raise _error(*outcome["error"])
    return outcome["value"]


def everywhere(name: str, work: Callable[[], T]) -> T:
    """What `work` returns here, if it raises in no process; else all raise what one has raised."""
    if count() == 1:
        return work()
    raised: Exception | None = None
    try:
        result = work()
    except Exception as error:
        raised = error
    told = [each for each in gather(name, raised and _told(raised)) if each is not None]
    if raised is not None:
        raise raised
    if told:
        raise _error(*told[0])
    return result


def _told(error: Exception) -> tuple[str, str]:
    """An error in words: its class, and what it says."""
    if isinstance(error, errors.W2SError):
        return type(error).__name__, str(error)
    return "W2SError", f"process {index()}: {type(error).__name__}: {error}"


def _error(kind: str, message: str) -> errors.W2SError:
    found: errors.W2SError = getattr(errors, kind)(message)
    return found


def leave(status: int) -> int:
    """Ends this process together with the others, and returns its exit status.

    Where they do not come within seconds, this one ends at once: JAX would let it wait for minutes,
    and the others with it. They end when they next wait for it, or when JAX misses it.
    """
    if count() == 1:
        return status
    import jax

    client = _joined().client
    try:
        client.key_value_set(f"{_PREFIX}/left/{index()}", str(status))
        client.wait_at_barrier(f"{_PREFIX}/leave", _LEAVE_MS)
    except jax.errors.JaxRuntimeError:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


# --- logs ----------------------------------------------------------------------------------------


def log_to(folder: Path) -> None:
    """With several processes: warnings and progress of this one go to `process-<i>.log` there.

    The warnings of those that are not the first go nowhere else.
    """
    if count() == 1:
        return
    folder.mkdir(exist_ok=True)
    handler = logging.FileHandler(folder / f"process-{index()}.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s: %(message)s"))
    root = logging.getLogger()
    if not is_first():
        for other in list(root.handlers):
            root.removeHandler(other)
    root.addHandler(handler)
    _progress.addHandler(handler)
    _progress.setLevel(logging.INFO)
    _progress.propagate = False


def note(text: str) -> None:
    """A line on what this process is about, for its log; nothing with one process."""
    _progress.info(text)
