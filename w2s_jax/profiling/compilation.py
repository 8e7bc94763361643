"""Compiled programs kept on disk for the next start, and the seconds that compiling takes."""

import contextlib
import functools
import hashlib
import logging
import threading
from pathlib import Path

import jax

from w2s_jax.core.files import cache_folder

log = logging.getLogger(__name__)

#: Compiled programs of at most this many bytes are kept on disk; the least lately used go first.
CACHE_BYTES = 4 * 2**30
#: What compiles faster than this is not kept: making room takes longer the more programs there are.
SHORTEST_SECONDS = 0.1
#: What JAX does between a call and the first run of its program; finding it on disk is in the last.
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def enable_cache() -> Path | None:
    """Makes JAX keep compiled programs on disk, for this process and later ones.

    They are in the folder `compiled` of the user's cache (see `files.cache_folder`); those for a
    CPU in a folder for its kind, since they may use instructions that another one lacks. Each such
    folder is bounded by `CACHE_BYTES`. Programs that cannot be read are compiled as if they were
    not there. A cache that the user has given to JAX, by JAX_COMPILATION_CACHE_DIR or
    jax_compilation_cache_dir, is left as it is; so is one that JAX_ENABLE_COMPILATION_CACHE
    switches off.

    Returns:
      The folder that is used; None if there is no cache, or it is the user's own affair.
    """
    chosen: str | None = jax.config.values["jax_compilation_cache_dir"]
    if chosen in _OURS:
        return Path(chosen)
    folder = cache_folder("compiled")
    if (
        chosen is not None
        or folder is None
        or not jax.config.values["jax_enable_compilation_cache"]
    ):
        return None
    if jax.default_backend() == "cpu":
        folder /= f"cpu-{_processor()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except OSError as error:
        log.warning(
            "%s: compiled programs are not kept (%s); set W2S_CACHE_DIR to a folder that can be "
            "written to, or to nothing",
            folder,
            error,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_SECONDS)
    _OURS.add(str(folder))
    return folder


#: Folders that `enable_cache` has given to JAX.
_OURS: set[str] = set()


def _processor() -> str:
    """A short name of the kind of CPU: its instruction sets decide which programs it can run."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        if kinds:
            return hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()[:8]
    import platform

    return hashlib.sha256(f"{platform.machine()} {platform.processor()}".encode()).hexdigest()[:8]


def _remove_unfinished(folder: Path) -> None:
    """Removes what a killed process or a full disk left half-written.

    JAX writes the time of the last use after the program. A program without one is unfinished; JAX
    would never replace it, and could store nothing more beside it.

    Raises:
      OSError: if the folder cannot be written to.
    """
    import filelock

    # JAX's own lock: no other process is between the two writes then.
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=10):
            for program in folder.glob("*-cache"):
                if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                    program.unlink(missing_ok=True)
    except filelock.Timeout:
        log.info("%s: busy; looked at by another process", folder)


class CompileClock:
    """Wall seconds in which this process traced, lowered or compiled something.

    Programs are traced inside of programs, and several threads may compile at once; no moment is
    counted twice. A program that was found on disk counts with what finding it took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Disjoint (start, stop), in order.
        self._spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        with self._lock:
            return sum(stop - start for start, stop in self._spans)

    def observe(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        """Hears of an event: a listener for `jax.monitoring`, which tells of each at its end."""
        if event not in COMPILE_EVENTS:
            return
        start, stop = start_time, end_time
        with self._lock:
            # What ended before this one began stays; the rest is joined with it.
            while self._spans and self._spans[-1][1] >= start:
                earlier = self._spans.pop()
                start, stop = min(start, earlier[0]), max(stop, earlier[1])
            self._spans.append((start, stop))


@functools.cache
def compile_clock() -> CompileClock:
    """The process's clock; it runs from the first call on."""
    clock = CompileClock()
    jax.monitoring.register_event_time_span_listener(clock.observe)
    return clock
