"""The on-disk cache of compiled programs, and a clock for compilation."""

import contextlib
import functools
import hashlib
import logging
import threading
from pathlib import Path

import jax

from w2s_jax.core.files import cache_folder
from w2s_jax.profiling.profile import Interval, length, union

log = logging.getLogger(__name__)

#: Size limit of the cache; the least recently used programs are removed first.
CACHE_BYTES = 4 * 2**30
#: Programs that compile faster are not cached: making room takes longer the more there are.
SHORTEST_SECONDS = 0.1
#: JAX's events between a call and the first run of its program; the last includes cache look-ups.
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


def enable_cache() -> Path | None:
    """Make JAX cache compiled programs on disk, for this process and later ones.

    They are in the folder `compiled` of the user's cache (see `files.cache_folder`); programs for
    CPUs in one folder per kind of CPU, because they may use instructions that others lack. Each
    folder is limited to `CACHE_BYTES`. Unreadable programs are compiled again. The user's own
    settings (JAX_COMPILATION_CACHE_DIR, jax_compilation_cache_dir, JAX_ENABLE_COMPILATION_CACHE)
    are left alone.

    Returns:
      The folder; None if caching is off, or set up by the user.
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
    except (OSError, NotImplementedError) as error:  # the latter: the disk has no locks
        log.warning(
            "%s: compiled programs are not cached (%s); set W2S_CACHE_DIR to a writable folder, or "
            "to nothing to switch the cache off",
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
    """Return a hash of the kind of CPU, whose instruction sets decide which programs can run."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kinds = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        if kinds:
            return hashlib.sha256("\n".join(sorted(kinds)).encode()).hexdigest()[:8]
    import platform

    return hashlib.sha256(f"{platform.machine()} {platform.processor()}".encode()).hexdigest()[:8]


def _remove_unfinished(folder: Path) -> None:
    """Remove partly written programs, left by a killed process or a full disk.

    JAX writes the time of the last use after the program. A program without one is partial; JAX
    would never replace it, and could not add others.

    Raises:
      OSError: the folder is not writable.
    """
    import filelock

    # JAX's own lock, so that no other process is between the two writes.
    try:
        with filelock.FileLock(folder / ".lockfile", timeout=10):
            for program in folder.glob("*-cache"):
                if not program.with_name(program.name.removesuffix("cache") + "atime").exists():
                    program.unlink(missing_ok=True)
    except filelock.Timeout:
        log.info("%s: locked by another process", folder)


class CompileClock:
    """Wall seconds in which this process traced, lowered or compiled, or read cached programs.

    Programs are traced inside programs, and several threads may compile at once; overlapping times
    count once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Interval] = []

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        with self._lock:
            self._spans = union(self._spans)
            return length(self._spans)

    def observe(self, event: str, start_time: float, end_time: float, **_: str | int) -> None:
        """Add an event; a listener for `jax.monitoring`."""
        if event in COMPILE_EVENTS:
            with self._lock:
                self._spans.append((start_time, end_time))


@functools.cache
def compile_clock() -> CompileClock:
    """Return the clock of this process, which starts at the first call."""
    clock = CompileClock()
    jax.monitoring.register_event_time_span_listener(clock.observe)
    return clock
