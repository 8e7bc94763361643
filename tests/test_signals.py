"""A first signal asks for a stop; a second SIGTERM ends the process immediately."""

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import hashlib, sys, time
from w2s_jax.core.signals import stop_on_signals

with stop_on_signals() as stopped:
    print("ready", flush=True)
    if sys.argv[1] == "C":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python handles no signal
    while sys.argv[1] == "never" or not stopped():
        time.sleep(0.01)
    print("stopped", flush=True)
time.sleep(0.3)
sys.exit(3)
"""


@pytest.fixture
def start():
    """Start the program; it is killed at the end of the test."""
    started = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_asks(start, number):
    process = start("soon")
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (3, "stopped\n", "")


@pytest.mark.parametrize("how", ["never", "C"])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_after_a_signal_ends_the_process_at_once(start, how, first):
    process = start(how)
    process.send_signal(first)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert err == "w2s: stopped at once by a second signal; run the same command to resume\n"


def test_a_second_sigint_is_a_keyboard_interrupt(start):
    process = start("never")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in err


def test_all_is_as_before_afterwards():
    from w2s_jax.core.signals import stop_on_signals

    def handlers():
        return [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    before = handlers()
    with stop_on_signals() as stopped:
        assert handlers() != before and not stopped()
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1
