"""Tracebacks that libraries log go to a file: the command's own line says what went wrong.

Orbax logs a traceback for every array that cannot be written, and TensorStore's threads print more.
They are written to `libraries.log` in the run's folder logs/, or in the user's cache if that is not
known or full. Errors that end the command are not affected.
"""

import contextlib
import functools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from w2s_jax.core.files import cache_folder

NAME = "libraries.log"
_OURS = "w2s_jax"


class _Log:
    """The file that tracebacks are appended to."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.written: Path | None = None
        self._lock = threading.Lock()

    def append(self, text: str) -> None:
        """Write to the first folder that takes it; none may, as when all disks are full."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        with self._lock:
            for folder in (self.folder, cache_folder("logs")):
                with contextlib.suppress(OSError):
                    if folder is not None:
                        folder.mkdir(parents=True, exist_ok=True)
                        with (folder / NAME).open("a") as file:
                            file.write(f"{stamp} {text}\n")
                        self.written = folder / NAME
                        return


_log = _Log()


def write_to(folder: Path) -> None:
    """Set the folder of the log; it is made when there is something to write."""
    _log.folder = folder


def diverts(command: Callable[..., int]) -> Callable[..., int]:
    """Return the function of a command line, which diverts tracebacks of libraries.

    If the command succeeds although a library has reported an error, one line says so.
    """

    @functools.wraps(command)
    def diverting(*args: Any) -> int:
        logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
        # We report a failed write once; asyncio would add a traceback for every array, some of them
        # when the interpreter exits.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        _log.folder = _log.written = None
        with _diverted():
            status = command(*args)
        if status == 0 and _log.written is not None:
            print(f"w2s: libraries reported errors: see {_log.written}", file=sys.stderr)
        return status

    return diverting


@contextlib.contextmanager
def _diverted() -> Iterator[None]:
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    for handler in handlers:
        handler.addFilter(_keep)
    before = sys.unraisablehook
    sys.unraisablehook = functools.partial(_unraisable, before)
    try:
        yield
    finally:
        sys.unraisablehook = before
        for handler in handlers:
            handler.removeFilter(_keep)


def _keep(record: logging.LogRecord) -> bool:
    """Return whether a record is printed; otherwise write it to the file."""
    if record.exc_info is None or record.name.partition(".")[0] == _OURS:
        return True
    _log.append(logging.Formatter("%(levelname)s %(name)s: %(message)s").format(record))
    return False


def _unraisable(before: Callable[..., Any], found: Any) -> None:
    """Divert what native threads of a library report: they have nobody to raise it to."""
    if threading.current_thread() is threading.main_thread():
        before(found)
    else:
        _log.append("".join(traceback.format_exception(found.exc_value)))
