"""Runs of several processes: agreeing on decisions. Importing this imports no JAX.

All processes run the same program. A decision that depends on a clock, a disk or a signal could
differ between them, and they would wait for each other forever; so the first process decides, or
all together. They communicate through the key-value store of `jax.distributed`, which needs no
device and no timeout. With one process these functions do nothing but call and return.
"""

import itertools
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from w2s_jax.core import errors

T = TypeVar("T")

#: Interval at which a process that waits for another one checks whether that one has exited.
_LOOK_MS = 2_000
#: Timeout of the barrier before exit.
_LEAVE_MS = 10_000
_PREFIX = "w2s_jax"

_numbers = itertools.count()
_progress = logging.getLogger(f"{__name__}.progress")


# --- who is who ----------------------------------------------------------------------------------


def _joined() -> Any:
    """Return JAX's record of the joined processes, or None."""
    if "jax" not in sys.modules:
        return None
    # The key-value store has no public name.
    from jax._src import distributed

    return None if distributed.global_state.client is None else distributed.global_state


def count() -> int:
    """Return the number of processes of this run. Initialises no devices."""
    joined = _joined()
    return 1 if joined is None else int(joined.num_processes)


def index() -> int:
    """Return the index of this process, from 0."""
    joined = _joined()
    return 0 if joined is None else int(joined.process_id)


def is_first() -> bool:
    """Return whether this is the process that writes and prints."""
    return index() == 0


# --- agreeing ------------------------------------------------------------------------------------


def gather(name: str, value: Any) -> list[Any]:
    """Return the values of all processes, in the order of their indices; all must call this.

    It is also a barrier: no process returns before all have called.

    Args:
      name: identifies the call; different names at the same time are a bug.
      value: the value of this process, as JSON.

    Raises:
      W2SError: a process has exited; `Interrupted` if a signal stopped it.
    """
    if count() == 1:
        return [value]
    client, number = _joined().client, next(_numbers)
    key = f"{_PREFIX}/gather/{number}"
    client.key_value_set(f"{key}/{index()}", json.dumps([name, value]))
    if is_first():
        values = [json.loads(_wait(client, f"{key}/{i}")) for i in range(count())]
        client.key_value_set(f"{key}/all", json.dumps(values))
        # All have taken part in this call, so all have read the result of the one before.
        client.key_value_delete(f"{_PREFIX}/gather/{number - 1}/")
    values = json.loads(_wait(client, f"{key}/all"))
    if {other for other, _ in values} != {name}:
        raise RuntimeError(f"processes are out of step: {[other for other, _ in values]}")
    return [each for _, each in values]


def _wait(client: Any, key: str) -> str:
    """Wait for a key, and return its value."""
    import jax

    while True:
        try:
            return str(client.blocking_key_value_get(key, _LOOK_MS))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        for path, status in client.key_value_dir_get(f"{_PREFIX}/left/"):
            other = f"process {path.rpartition('/')[2]}"
            if int(status) == errors.Interrupted.exit_status:
                raise errors.Interrupted(
                    f"{other} was stopped by a signal; run the same command to resume"
                )
            raise errors.W2SError(f"{other} exited with status {status}; see its output")


def barrier(name: str) -> None:
    """Wait until all processes have called this."""
    gather(name, None)


def any_of(name: str, flag: bool) -> bool:
    """Return whether `flag` is true in any process."""
    return any(gather(name, flag))


def first_says(name: str, value: T) -> T:
    """Return the value of the first process, as JSON; with one process, `value` itself."""
    return gather(name, value if is_first() else None)[0]


def on_first(name: str, work: Callable[[], T]) -> T:
    """Call `work` in the first process; return its result (as JSON) or raise its error in all.

    The others wait, and may then read files that the first has written.
    """
    if count() == 1:
        return work()
    outcome: dict[str, Any] = {}
    raised: Exception | None = None
    if is_first():
        try:
            outcome = {"value": work()}
        except Exception as error:
            raised, outcome = error, {"error": _encoded(error)}
    outcome = gather(name, outcome)[0]
    if raised is not None:
        raise raised
    if "error" in outcome:
        raise _decoded(*outcome["error"])
    return outcome["value"]


def everywhere(name: str, work: Callable[[], T]) -> T:
    """Call `work` in all processes and return its result; if it raises in one, all raise."""
    if count() == 1:
        return work()
    raised: Exception | None = None
    try:
        result = work()
    except Exception as error:
        raised = error
    others = [each for each in gather(name, raised and _encoded(raised)) if each is not None]
    if raised is not None:
        raise raised
    if others:
        raise _decoded(*others[0])
    return result


def _encoded(error: Exception) -> tuple[str, str]:
    """Return the class name and message of an error as one of this package's."""
    if isinstance(error, errors.W2SError):
        return type(error).__name__, str(error)
    return "W2SError", f"process {index()}: {type(error).__name__}: {error}"


def _decoded(kind: str, message: str) -> errors.W2SError:
    found: errors.W2SError = getattr(errors, kind)(message)
    return found


def leave(status: int) -> int:
    """Wait for the others at the end of the program, and return the exit status.

    If they do not arrive within seconds, exit immediately: JAX would make all of them wait for
    minutes. The others exit when they next wait for this one, or when JAX misses it.
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
    """With several processes, log warnings and progress to `process-<index>.log` in `folder`.

    Only the first process also prints its warnings.
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
    """Add a line to the log of this process; nothing with one process."""
    _progress.info(text)
