"""Report a phase that makes no progress: a warning, and the stacks of all threads. Ends nothing.

Code that works in pieces (a block of steps, a batch of a label pass) calls `progress` before each.
The stacks are written by a thread that holds the interpreter's lock, so a hang of native code that
never releases it is not reported. The other way, `faulthandler.dump_traceback_later`, reads stacks
that running threads are changing, and so can crash the process of a phase that is only slow.
Imports no JAX.
"""

import contextlib
import faulthandler
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

#: Factor on the time allowed to work that compiles first.
PATIENCE = 3.0


class Watchdog:
    """Report when `progress` has not been called for `seconds`, and again after each such time.

    Attributes:
      title: name of the phase, for messages.
    """

    def __init__(self, title: str, seconds: float, stacks: Path):
        self.title = title
        self._seconds, self._stacks = seconds, stacks
        self._file = stacks.open("a")
        self._moved, self._closed = threading.Event(), False
        self.progress("starting", PATIENCE)
        self._moved.clear()
        self._thread = threading.Thread(target=self._warn, name="w2s-watchdog", daemon=True)
        self._thread.start()

    def progress(self, doing: str, patience: float = 1.0) -> None:
        """Restart the clock; `doing` names the work that follows, for messages."""
        self._doing, self._limit = doing, patience * self._seconds
        self._moved.set()

    def close(self) -> None:
        """Stop watching, and remove the file of stacks if it is empty."""
        self._closed = True
        self._moved.set()
        self._thread.join()
        self._file.close()
        if self._stacks.stat().st_size == 0:
            self._stacks.unlink()

    def _warn(self) -> None:
        since = time.monotonic()
        while not self._closed:
            if self._moved.wait(self._limit):
                self._moved.clear()
                since = time.monotonic()
                continue
            self._file.write(f"Timeout: {self.title}, {self._doing}\n")
            self._file.flush()
            faulthandler.dump_traceback(self._file)
            log.warning(
                "%s: no progress for %.0f s (%s); still waiting; the stacks of all threads are in "
                "%s",
                self.title,
                time.monotonic() - since,
                self._doing,
                self._stacks,
            )


#: The watchdog of the phase that runs in this process.
_watching: Watchdog | None = None


@contextlib.contextmanager
def watching(stacks: Path, title: str, minutes: float) -> Iterator[None]:
    """Watch a phase while the context lasts.

    Args:
      stacks: file to append the stacks of all threads to.
      title: name of the phase, for messages.
      minutes: time without progress before a report; 0: do not watch.
    """
    global _watching
    if minutes == 0:
        yield
        return
    _watching = Watchdog(title, 60 * minutes, stacks)
    try:
        yield
    finally:
        _watching.close()
        _watching = None


def progress(doing: str, patience: float = 1.0) -> None:
    """Report progress to the watchdog of this process, if there is one; see `Watchdog.progress`."""
    if _watching is not None:
        _watching.progress(doing, patience)
