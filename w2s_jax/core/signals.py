"""SIGTERM and SIGINT: stop a run at the next boundary, or at once."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from w2s_jax.core import errors


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGINT has asked for a stop.

    The run stops at its next boundary. A second SIGINT raises KeyboardInterrupt, as usual. A second
    SIGTERM ends the process immediately, even while it compiles or waits for a device, with the
    exit status of an interruption; the last checkpoint is kept, as after a kill.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGTERM and asked.is_set():
            _exit_now()
        asked.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    with _exit_on_second_sigterm():
        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield asked.is_set
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _exit_on_second_sigterm() -> Iterator[None]:
    """Count signals in a thread: Python's handlers wait while the main thread runs native code."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    earlier = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def listen() -> None:
        numbers: list[int] = []
        while byte := os.read(read_end, 1):
            numbers += [n for n in byte if n in (signal.SIGTERM, signal.SIGINT)]
            if len(numbers) > 1 and numbers[-1] == signal.SIGTERM:
                _exit_now()

    thread = threading.Thread(target=listen, name="w2s-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(write_end)
        thread.join()
        os.close(read_end)


def _exit_now() -> None:
    os.write(2, b"w2s: stopped at once by a second signal; run the same command to resume\n")
    os._exit(errors.Interrupted.exit_status)
