"""Tells of a phase that makes no progress: a warning, and where every thread stands. Kills nothing.

Whoever does a piece of work (a block of steps, a batch of a label pass) calls `progress` before it;
a daemon thread watches how long ago that was. Imports no JAX.
"""

import contextlib
import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

#: What has to be compiled first may take so many times as long.
PATIENCE = 3.0


class Watchdog:
    """Reports once when nothing has come for `seconds`, and again at doubling intervals.

    Args:
      title: whose progress is watched.
      seconds: how long is too long.
      stacks: the file to which the stacks of all threads are appended.
      clock: seconds from anywhere on.
    """

    def __init__(
        self,
        title: str,
        seconds: float,
        stacks: Path,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.title, self.seconds, self.stacks, self.clock = title, seconds, stacks, clock
        self._lock = threading.Lock()
        self._last, self._doing = clock(), "starting"
        self._due = self._last + PATIENCE * seconds

    def progress(self, doing: str, patience: float = 1.0) -> None:
        """Notes that all is well, and what comes next; `patience` times as long may that take."""
        with self._lock:
            self._last, self._doing = self.clock(), doing
            self._due = self._last + patience * self.seconds

    def check(self) -> float:
        """Reports if it is time to; the seconds until it will be, if nothing comes."""
        with self._lock:
            now = self.clock()
            if now >= self._due:
                self._report(now - self._last)
                self._due = now + (now - self._last)
            return self._due - now

    def _report(self, silent: float) -> None:
        where = f"the stacks of all threads are in {self.stacks}"
        try:
            with self.stacks.open("a") as file:
                file.write(f"{time.ctime()}: {self.title}, {self._doing}, {silent:.0f} s\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            where = f"{self.stacks} cannot be written ({error})"
        log.warning(
            "%s: no progress for %.0f s (%s); it goes on waiting; %s",
            self.title,
            silent,
            self._doing,
            where,
        )


#: Who hears of `progress`: that of the phase that runs in this process.
_watching: list[Watchdog] = []


@contextlib.contextmanager
def watching(stacks: Path, title: str, minutes: float) -> Iterator[None]:
    """Watches a phase as long as the context lasts.

    Args:
      stacks: the file to which the stacks of all threads are appended.
      title: the phase, for people.
      minutes: without progress, before it is told; 0: nothing is watched.
    """
    if minutes == 0:
        yield
        return
    watchdog, ended = Watchdog(title, 60 * minutes, stacks), threading.Event()

    def watch() -> None:
        # Progress may bring what is due nearer than it was when the thread went to sleep.
        while not ended.wait(min(watchdog.check(), watchdog.seconds / 10)):
            pass

    thread = threading.Thread(target=watch, name="w2s-watchdog", daemon=True)
    _watching.append(watchdog)
    thread.start()
    try:
        yield
    finally:
        _watching.remove(watchdog)
        ended.set()
        thread.join()


def progress(doing: str, patience: float = 1.0) -> None:
    """Tells the watchdogs of this process, if there are any; see `Watchdog.progress`."""
    for watchdog in _watching:
        watchdog.progress(doing, patience)
