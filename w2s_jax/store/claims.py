"""Claims: one process at a time works in a folder.

The first guard is a `flock` on `.lock`, which the kernel releases however the process ends. On a
file system of several machines, locks may hold on one machine only, or not at all. So on any mount
that is not a local disk, and wherever a second lock on the same file succeeds, there is a second
guard: the file `.claim.json` names the process, which touches it every `BEAT_SECONDS`. A file that
was not touched for `STALE_SECONDS` is taken over, or at once if its process ran here and is gone.
Times are those of the file system's own clock.
"""

import contextlib
import fcntl
import functools
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from w2s_jax.core import errors, processes, signals
from w2s_jax.store.mounts import Mount, mount_of

if TYPE_CHECKING:
    from w2s_jax.store.artifacts import PhaseFolder

log = logging.getLogger(__name__)

#: Interval at which a process touches its claim file.
BEAT_SECONDS = 10.0
#: Age at which a claim file is taken over.
STALE_SECONDS = 120.0
_POLL_SECONDS = 0.2
_LOCK, _CLAIM = ".lock", ".claim.json"


@contextlib.contextmanager
def claim(
    folder: "PhaseFolder",
    waiting: Callable[[], None] = lambda: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold the claim on a folder; wait while another process holds it.

    In a run of several processes all call this, the first one holds the claim, and all agree on
    `should_stop`.

    Args:
      folder: the folder, which is made if necessary.
      waiting: called once if another process holds the claim.
      should_stop: whether to stop waiting.

    Raises:
      Interrupted: `should_stop` returned True while waiting.
      StorageError: the file system has no locks.
    """
    with _opened(folder.path) as own:
        notified = False
        while not processes.on_first("claim", own.take):
            if not notified:
                waiting()
                notified = True
            if should_stop():
                raise signals.interruption("while waiting for another process")
            time.sleep(_POLL_SECONDS)
        yield


@contextlib.contextmanager
def claim_if_free(folder: "PhaseFolder") -> Iterator[bool]:
    """Try to hold the claim as `claim` does, without waiting; yield whether it is held."""
    with _opened(folder.path) as own:
        yield own.take()


def is_claimed(folder: "PhaseFolder") -> bool:
    """Return whether a process has claimed a folder; changes nothing on disk."""
    try:
        with (folder.path / _LOCK).open() as lock:
            if not _locked(lock, fcntl.LOCK_SH):
                return True
    except FileNotFoundError:
        return False
    holder = _read(folder.path / _CLAIM)
    return holder is not None and not holder.is_gone(time.time())


def refuse_lost() -> None:
    """Stop work in a folder whose claim another process has taken over.

    Raises:
      Interrupted: this process was suspended, or the disk did not answer, for so long that another
        one has gone on.
    """
    for beat in list(_BEATS):
        if beat.lost:
            raise errors.Interrupted(
                f"{beat.path.parent}: another process has taken it over, as this one was silent "
                f"for more than {STALE_SECONDS:.0f} s; run the same command to resume"
            )


def or_lost(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Return a function that calls `refuse_lost`, then returns `should_stop()`."""

    def checked() -> bool:
        refuse_lost()
        return should_stop()

    return checked


# --- both guards ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator["_Claim"]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        own = _Claim(folder, lock)
        try:
            yield own
        finally:
            own.release()


class _Claim:
    """A claim of this process, held or not."""

    def __init__(self, folder: Path, lock: TextIO):
        self._path, self._lock = folder / _CLAIM, lock
        self._beat: _Beat | None = None
        self._warned = False

    def take(self) -> bool:
        """Return whether the claim could be taken."""
        if not _locked(self._lock, fcntl.LOCK_EX):
            return False
        mount, locks = mount_of(self._path.parent), _excludes_others(self._lock)
        if mount.is_local and locks:
            return True
        if mount.locks_here_only or not locks:
            _warn_of_locks(mount)
        if self._take_file():
            return True
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return False

    def release(self) -> None:
        """Give the claim back; closing the lock file releases the lock."""
        if self._beat is not None:
            self._beat.end()

    def _take_file(self) -> bool:
        os.utime(self._lock.fileno())
        now, holder = os.fstat(self._lock.fileno()).st_mtime, _read(self._path)
        if holder is not None:
            self._tell(holder, now)
            if not holder.is_gone(now) or not _displace(self._path, holder):
                return False
        token = secrets.token_hex(8)
        try:
            with self._path.open("x") as file:
                json.dump({**_here(), "pid": os.getpid(), "since": now, "token": token}, file)
        except FileExistsError:
            return False
        self._beat = _Beat(self._path, token)
        self._beat.start()
        return True

    def _tell(self, holder: "_Holder", now: float) -> None:
        """Say once that a holder is silent, which a user would wait for without knowing."""
        silent = now - holder.touched
        if self._warned or holder.is_gone(now) or silent < 2 * BEAT_SECONDS:
            return
        self._warned = True
        log.warning(
            "%s is claimed by process %s on %s, silent for %.0f s; it is taken over after %.0f s",
            self._path.parent, holder.pid, holder.here["host"], silent, STALE_SECONDS,
        )  # fmt: skip


def _locked(file: TextIO, how: int) -> bool:
    """Try to lock a file; return whether no other process has locked it.

    Raises:
      StorageError: the file system has no locks.
    """
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        mount = mount_of(Path(file.name))
        raise errors.StorageError(
            f"{mount}: files cannot be locked there ({error.strerror or error}); start the lock "
            "service of this file system or mount it with locks, or use folders elsewhere "
            "(--workdir, --store)"
        ) from error
    return True


def _excludes_others(lock: TextIO) -> bool:
    """Return whether the lock that this process holds keeps others out."""
    with open(lock.name, "a") as second:
        return not _locked(second, fcntl.LOCK_EX)


@functools.lru_cache(maxsize=64)
def _warn_of_locks(mount: Mount) -> None:
    why = f" with {mount.locks_here_only}" if mount.locks_here_only else ""
    log.warning(
        "%s%s: file locks do not keep other machines out, so claims are files there; after a kill "
        "or a crash the next start may wait up to %.0f s",
        mount, why, STALE_SECONDS,
    )  # fmt: skip


# --- claim files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Holder:
    """The process that a claim file names.

    Attributes:
      here: what `_here` returned in it; {} while the file is being written.
      pid: its process id.
      token: identifies the claim.
      touched: when it last touched the file.
    """

    here: dict[str, Any]
    pid: int | None
    token: str | None
    touched: float

    def is_gone(self, now: float) -> bool:
        """Return whether the process has ended, or has been silent for too long."""
        if self.here == _here() and self.pid is not None:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except OSError:  # another user's
                pass
        return now - self.touched > STALE_SECONDS


@functools.cache
def _here() -> dict[str, Any]:
    """Return what two processes have in common that see each other's ids.

    Containers of one machine have its boot id, and may have its name, but ids of their own.
    """
    boot_id = namespace = None
    with contextlib.suppress(OSError):  # not Linux
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": socket.gethostname(), "boot_id": boot_id, "pid_namespace": namespace}


def _read(path: Path) -> _Holder | None:
    """Return the process that a claim file names; None if there is no file."""
    try:
        with path.open() as file:
            touched, text = os.fstat(file.fileno()).st_mtime, file.read()
    except FileNotFoundError:
        return None
    try:
        record = json.loads(text)
        here = {name: record[name] for name in _here()}
        return _Holder(here, int(record["pid"]), str(record["token"]), touched)
    except (ValueError, KeyError, TypeError):
        return _Holder({"host": "an unknown host"}, None, None, touched)


def _displace(path: Path, gone: _Holder) -> bool:
    """Remove the claim file of a process that is gone; return whether it was that one."""
    old = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.rename(old)
    except FileNotFoundError:
        return False
    taken = _read(old)
    if taken is not None and taken.token != gone.token:
        # Another process was faster, and this is its file.
        old.rename(path)
        return False
    old.unlink(missing_ok=True)
    return True


#: The claim files that this process touches.
_BEATS: set["_Beat"] = set()


class _Beat(threading.Thread):
    """Touches a claim file until `end`; `lost` if another process has taken the claim over."""

    def __init__(self, path: Path, token: str):
        super().__init__(name="w2s-claim", daemon=True)
        self.path, self.lost = path, False
        self._token, self._ended = token, threading.Event()
        _BEATS.add(self)

    def run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            # A file system that does not answer may answer later.
            with contextlib.suppress(OSError):
                if not self._is_own():
                    self.lost = True
                    return
                os.utime(self.path)

    def end(self) -> None:
        """Stop, and remove the file unless another process has taken it over."""
        self._ended.set()
        self.join()
        _BEATS.discard(self)
        with contextlib.suppress(OSError):
            if self._is_own():
                self.path.unlink()

    def _is_own(self) -> bool:
        holder = _read(self.path)
        return holder is not None and holder.token == self._token
