"""What a run does about SIGTERM and SIGINT."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from w2s_jax.core import errors


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask for a stop at the next boundary; a second one stops at once.

    A second SIGINT is a KeyboardInterrupt, as usual. A second SIGTERM ends the process where it
    stands, also in the midst of compiling or of waiting for a device, with the status of an
    interruption: the last checkpoint is what there is then, as after a kill.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGTERM and asked.is_set():
            _exit_at_once()
        asked.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    with _counting_signals():
        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield asked.is_set
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _counting_signals() -> Iterator[None]:
    """Exits at a second signal, SIGTERM, though the main thread may have no time to handle any."""
    heard, told = os.pipe()
    os.set_blocking(told, False)
    earlier = signal.set_wakeup_fd(told, warn_on_full_buffer=False)

    def listen() -> None:
        numbers: list[int] = []
        while byte := os.read(heard, 1):
            numbers += [n for n in byte if n in (signal.SIGTERM, signal.SIGINT)]
            if len(numbers) > 1 and numbers[-1] == signal.SIGTERM:
                _exit_at_once()

    thread = threading.Thread(target=listen, name="w2s-signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.close(told)
        thread.join()
        os.close(heard)


def _exit_at_once() -> None:
    """Ends the process where it stands."""
    os.write(2, b"w2s: stopped at once by a second signal; the same command resumes\n")
    os._exit(errors.Interrupted.exit_status)
