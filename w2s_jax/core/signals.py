"""SIGTERM and SIGINT: stop a run at the next boundary, or at once. Imports no JAX.

Python runs signal handlers in the main thread, late (it may compile for minutes), and what they
raise can be lost: in a callback of the garbage collector, in `__del__`, in a library's bare
`except`. So the handlers here do nothing. Python also writes each signal to a pipe, immediately,
and one thread reads it and alone decides what happens. To raise KeyboardInterrupt it sends SIGURG,
which means nothing otherwise, to the main thread until it is raised, again if it was lost; and it
ends the process of a command whose main thread still does not react.
"""

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from w2s_jax.core import errors

#: Signals within this time are one: `timeout` and batch systems signal a process and its group.
REPEAT_SECONDS = 1.0
#: Time that a command has to end after KeyboardInterrupt.
GRACE_SECONDS = 3.0
#: Time after which a run that has not come to a boundary says that it will stop.
PATIENCE_SECONDS = 5.0
#: Added to messages where the same command goes on.
RESUME = "; run the same command to resume"

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_KICK = signal.SIGURG
#: Interval at which the thread looks whether KeyboardInterrupt was raised, or lost.
_LOOK_SECONDS = 0.05


class _Receiver:
    """Receives the signals of this process.

    Attributes:
      name: name of the signal received last, or None.
      asked: set when the first signal arrives where a run can stop at a boundary.
      boundaries: whether it can.
      hint: added to messages.
    """

    def __init__(self, hint: str, guard: bool) -> None:
        self.name: str | None = None
        self.asked, self.boundaries, self.hint = threading.Event(), False, hint
        self._guard = guard
        self._last: float | None = None
        self._deadline: float | None = None
        self._announce: float | None = None
        self._raise, self._lost, self._settled = False, False, False
        self._kicked = 0.0
        self._status = errors.Interrupted.exit_status
        self._lock, self._said = threading.Lock(), threading.Lock()

    def open(self) -> None:
        """Receive signals from now on."""
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._thread = threading.Thread(target=self._listen, name="w2s-signals", daemon=True)
        self._thread.start()
        self._before = {number: signal.getsignal(number) for number in (*_NUMBERS, _KICK)}
        self._hook, self._wakeup = sys.unraisablehook, self.install()
        if self._guard:
            sys.unraisablehook = self._unraisable

    def install(self) -> int:
        """Install the handlers, also where a library replaced them; return the earlier wakeup."""
        signal.signal(_KICK, self._handle_kick)
        earlier = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in _NUMBERS:
            signal.signal(number, _nothing)
        return earlier

    def close(self) -> None:
        """Restore all as it was before `open`."""
        for number, handler in self._before.items():
            # None: a handler that Python did not install.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = self._hook
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)
        self._thread.join()
        os.close(self._read)

    def leave_boundaries(self) -> None:
        """Note that the run has stopped, or is complete."""
        with self._lock:
            self.boundaries, self._announce = False, None

    def settle(self, status: int | None = None) -> None:
        """Raise nothing from now on; the process ends, at once after another signal."""
        with self._lock:
            self._settled, self._raise, self._lost, self._deadline = True, False, False, None
            if status is not None:
                self._status = status

    def say(self, text: str = "") -> None:
        """Print the last line, once: why the process ends."""
        if self._said.acquire(blocking=False):
            _write_line((text or f"interrupted ({self.name or signal.SIGINT.name})") + self.hint)

    # --- in the thread ---------------------------------------------------------------------------

    def _listen(self) -> None:
        # `select` takes no descriptors above 1023.
        pipe = select.poll()
        pipe.register(self._read, select.POLLIN)
        while True:
            waiting = self._raise or self._deadline is not None or self._announce is not None
            if pipe.poll(1000 * _LOOK_SECONDS if waiting else None):
                numbers = os.read(self._read, 512)
                if not numbers:
                    return
                for number in numbers:
                    if number in _NUMBERS:
                        self._received(signal.Signals(number))
            self._insist()

    def _received(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if self._last is not None and now - self._last < REPEAT_SECONDS:
            return
        again, self._last, self.name = self._last is not None, now, number.name
        with self._lock:
            if self._settled:
                if again:
                    os._exit(self._status)
                return
            if again and (number == signal.SIGTERM or self._deadline is not None):
                self.say(f"stopped at once by a second signal ({number.name})")
                os._exit(self._status)
            if self.boundaries and not again:
                self.asked.set()
                self._announce = now + PATIENCE_SECONDS
                return
            if self._guard:
                self._deadline = now + GRACE_SECONDS
            self._raise = True
            self._kick()

    def _insist(self) -> None:
        """Interrupt again what is not yet interrupted; end the process if nothing helps."""
        with self._lock:
            if self._deadline is not None and time.monotonic() > self._deadline:
                self.say()
                os._exit(self._status)
            if self._announce is not None and time.monotonic() > self._announce:
                self._announce = None
                _write_line(f"{self.name}: stopping soon; SIGTERM again stops at once")
            if self._lost:
                self._lost, self._raise = False, True
            if self._raise and time.monotonic() > self._kicked + _LOOK_SECONDS:
                self._kick()

    def _kick(self) -> None:
        """Have the main thread call `_handle_kick`, also where it waits for something.

        A signal just before a system call does not interrupt it, so this may have to be repeated.
        """
        self._kicked = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, _KICK)

    # --- in the main thread ----------------------------------------------------------------------

    def _handle_kick(self, _: int, frame: FrameType | None) -> None:
        if not self._raise:
            return
        self._raise = False
        if self._guard and _imports(frame):
            # An exception would abort native modules that are being loaded. Nothing is open yet.
            self.say()
            os._exit(self._status)
        raise KeyboardInterrupt

    def _unraisable(self, unraisable: Any) -> None:
        """Note that an exception was lost, which Python otherwise prints."""
        if self._deadline is not None and unraisable.exc_type is KeyboardInterrupt:
            self._lost = True
        else:
            self._hook(unraisable)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a module is being imported in a frame or in one that called it."""
    while frame is not None and frame.f_code is not guarded.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


_receiver: _Receiver | None = None


def _nothing(*_: Any) -> None:
    """Handle a signal in Python, so that it interrupts nothing; the thread gets it too."""


def _ignore() -> None:
    """Ignore signals while Python ends, as the exit status is known."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def _leave_to_parent() -> None:
    """In a forked process, handle signals as usual: the pipe is the parent's."""
    global _receiver
    if _receiver is not None:
        _receiver = None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def _receiving(hint: str, guard: bool, keep: bool = False) -> Iterator[_Receiver]:
    """Receive signals while the block runs; with `keep` until the process ends."""
    global _receiver
    _receiver = _Receiver(hint, guard)
    _receiver.open()
    try:
        yield _receiver
    finally:
        if not keep:
            _receiver.close()
            _receiver = None


def guarded(command: Callable[[], int], *, hint: str, last: bool) -> int:
    """Call `command` and return its exit status, or that of an interruption after a signal.

    A signal raises KeyboardInterrupt, except in blocks of `stop_on_signals`. It is never lost: if
    `command` does not end within `GRACE_SECONDS`, the process does.

    Args:
      command: returns an exit status.
      hint: what to add to the message of an interruption: `RESUME` or ''.
      last: whether the process ends afterwards; handlers then stay, and signals change nothing.
    """
    if threading.current_thread() is not threading.main_thread() or _receiver is not None:
        return command()
    with _receiving(hint, guard=True, keep=last) as receiver:
        if last:
            # Python itself would reset the handlers; this runs after what others register.
            atexit.register(_ignore)
        try:
            try:
                status = command()
            except KeyboardInterrupt:
                raise
            except BaseException:
                # Libraries turn KeyboardInterrupt into errors of their own.
                if receiver.name is not None and not receiver.asked.is_set():
                    raise KeyboardInterrupt from None
                receiver.settle()
                raise
            receiver.settle(status)
        except KeyboardInterrupt:
            receiver.settle()
            receiver.say()
            status = errors.Interrupted.exit_status
    return status


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGTERM or SIGINT has asked for a stop.

    The run stops at its next boundary. A second SIGINT raises KeyboardInterrupt, as usual. A second
    SIGTERM ends the process immediately, even while it compiles or waits for a device, with the
    exit status of an interruption; the last checkpoint is kept, as after a kill. Signals within
    `REPEAT_SECONDS` count as one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    with contextlib.ExitStack() as stack:
        receiver = _receiver or stack.enter_context(_receiving(RESUME, guard=False))
        receiver.install()
        outermost, receiver.boundaries = not receiver.boundaries, True
        try:
            yield receiver.asked.is_set
        finally:
            if outermost:
                receiver.leave_boundaries()


def interruption(where: str = "") -> errors.Interrupted:
    """Return the error of a run that was asked to stop; it names the signal.

    Args:
      where: what to add to "interrupted (SIGTERM)", as "after weak gpt-d8".
    """
    # In a run of several processes, another one may have received it.
    name = (_receiver.name if _receiver is not None else None) or "a signal"
    return errors.Interrupted(f"interrupted ({name}) {where}".rstrip() + RESUME)


def _write_line(text: str) -> None:
    os.write(2, f"w2s: {text}\n".encode())
