"""A signal asks for a stop or interrupts; a second one ends the process; none is ever lost."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import pytest

from w2s_jax import testing
from w2s_jax.core import signals

ROOT = Path(__file__).parent.parent
SIGNALS = [signal.SIGTERM, signal.SIGINT]
#: Longer than the time in which signals are one.
APART = signals.REPEAT_SECONDS + 0.3

STOPPING = """
import hashlib, sys, time
from w2s_jax.core.signals import stop_on_signals

with stop_on_signals() as stopped:
    print("ready", flush=True)
    if sys.argv[1] == "C":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python handles no signal
    while sys.argv[1] == "never" or not stopped():
        time.sleep(0.01)
    time.sleep(0.5 if sys.argv[1] == "saves" else 0.0)
    print("stopped", flush=True)
time.sleep(0.3)
sys.exit(3)
"""

COMMAND = """
import atexit, gc, hashlib, os, sys, time
from w2s_jax.core import signals

how = sys.argv[1]
signals.GRACE_SECONDS = {"swallowed": 0.5, "C": 0.5}.get(how, 30.0)

def spend(*_):
    until = time.monotonic() + 0.01
    while time.monotonic() < until:
        pass

def command():
    try:
        print("ready", flush=True)
        if how == "C":
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
        gc.callbacks += [spend] * (how == "lost")
        while how == "lost":
            gc.collect()
            spend()
        time.sleep(0.0 if how == "ends" else 60)
    except BaseException:
        if how in ("swallowed", "stubborn"):
            time.sleep(60)
        if how == "converted":
            raise RuntimeError("from a library")
        raise
    return 0

if how == "ends":
    atexit.register(lambda: (time.sleep(0.7), print("ended", flush=True)))
sys.exit(signals.guarded(command, hint=sys.argv[2], last=True))
"""


@pytest.fixture
def start():
    """Start a program; it is killed at the end of the test."""
    started = []

    def start(program, *arguments, before=()):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", program, *arguments],
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


# --- stopping at a boundary ----------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("times", [1, 3])
def test_one_signal_asks_and_repeats_within_a_second_are_one(start, number, times):
    process = start(STOPPING, "saves")
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.1)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (3, "stopped\n", "")


@pytest.mark.parametrize("how,first", [("never", SIGNALS[0]), ("C", SIGNALS[1])])
def test_sigterm_after_a_signal_ends_the_process_at_once(start, how, first):
    process = start(STOPPING, how)
    process.send_signal(first)
    time.sleep(APART)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    line = "w2s: stopped at once by a second signal (SIGTERM); run the same command to resume\n"
    assert err == line


def test_a_second_sigint_is_a_keyboard_interrupt(start):
    process = start(STOPPING, "never")
    process.send_signal(signal.SIGINT)
    time.sleep(APART)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in err


def test_a_run_that_is_long_in_stopping_says_so(start):
    patience = "from w2s_jax.core import signals\nsignals.PATIENCE_SECONDS = 0.2\n"
    process = start(patience + STOPPING, "saves")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (3, "stopped\n")
    assert err == "w2s: SIGINT: stopping soon; SIGTERM again stops at once\n"


def test_the_error_names_the_signal():
    """Also where a process has thousands of files open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2048)), hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    with signals.stop_on_signals() as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
        while not stopped():
            time.sleep(0.01)
        text = str(signals.interruption("at step 3"))
    for each in many:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert text == "interrupted (SIGTERM) at step 3; run the same command to resume"
    # In a run of several processes, another one was asked.
    assert str(signals.interruption()).startswith("interrupted (a signal);")


def test_all_is_as_before_afterwards():
    def handlers():
        return [signal.getsignal(n) for n in (*SIGNALS, signal.SIGURG)], sys.unraisablehook

    before = handlers()
    with signals.stop_on_signals() as stopped:
        assert handlers() != before and not stopped()
    assert handlers() == before
    assert signals.guarded(lambda: 4, hint="", last=False) == 4
    assert handlers() == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_forked_process_has_signals_of_its_own():
    with signals.stop_on_signals() as stopped:
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        time.sleep(0.2)
        assert not stopped()


# --- interrupting a command ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how,number,times",
    [
        ("sleeps", signal.SIGTERM, 1),
        ("sleeps", signal.SIGINT, 3),
        ("lost", signal.SIGINT, 1),
        ("converted", signal.SIGINT, 1),
        ("swallowed", signal.SIGTERM, 1),
        ("C", signal.SIGINT, 1),
    ],
)
def test_a_signal_ends_a_command_with_one_line(start, how, number, times):
    process = start(COMMAND, how, signals.RESUME)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.02)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert err == f"w2s: interrupted ({number.name}); run the same command to resume\n"


def test_a_second_signal_ends_a_command_that_does_not_react(start):
    process = start(COMMAND, "stubborn", "")
    process.send_signal(signal.SIGINT)
    time.sleep(APART)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert err == "w2s: stopped at once by a second signal (SIGINT)\n"


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_change_nothing_once_a_command_has_ended(start, number):
    process = start(COMMAND, "ends", signals.RESUME)
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "ended\n", "")


@pytest.mark.parametrize("command,resumes", [("run", True), ("data check", False)])
def test_commands_that_save_nothing_do_not_speak_of_resuming(tmp_path, command, resumes):
    """The recipe sends the signal: of each command it is read outside of training."""
    recipe = tmp_path / "recipe.py"
    recipe.write_text("import os, signal, time\nos.kill(os.getpid(), 15)\ntime.sleep(60)\n")
    words = [*command.split(), *([] if resumes else ["sciq"]), f"--config={recipe}"]
    words += [f"--workdir={tmp_path / 'run'}"] if resumes else []
    done = subprocess.run(
        [sys.executable, "-m", "w2s_jax.cli.main", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    hint = "; run the same command to resume" if resumes else ""
    assert (done.returncode, done.stderr) == (75, f"w2s: interrupted (SIGTERM){hint}\n")


LINE = re.compile(
    r"(w2s: SIG(INT|TERM): stopping soon.*\n)?"
    r"w2s: (.*: )?interrupted \((SIGINT|SIGTERM)\).*; run the same command to resume\n"
)


@pytest.mark.slow
def test_no_signal_is_lost_at_any_of_25_moments(tmp_path):
    """Of a run that is longer; most moments are in the seconds before it trains."""
    data_dir = testing.write_tiny_task(tmp_path / "data")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from w2s_jax.testing import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(data_dir)!r})\n"
        "    config.pretrain.steps = 4_000\n"
        "    return config\n"
    )
    rng = random.Random(0)
    # Python itself takes a moment to start: before that any program ends by the signal.
    moments = [(rng.uniform(0.0, 2.0 if i < 20 else 5.0), rng.choice(SIGNALS)) for i in range(25)]

    def strike(number):
        moment, sent = moments[number]
        command = [sys.executable, "-m", "w2s_jax.cli.main", "run", f"--config={recipe}"]
        process = subprocess.Popen(
            [*command, f"--workdir={tmp_path / threading.current_thread().name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        time.sleep(moment)
        process.send_signal(sent)
        try:
            _, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            return f"{moment:.2f} s, {sent.name}: lost"
        young = moment < 1.0 and (process.returncode == -sent or "KeyboardInterrupt" in err)
        if young or (process.returncode == 75 and LINE.fullmatch(err)):
            return None
        return f"{moment:.2f} s, {sent.name}: {process.returncode} {err}"

    with futures.ThreadPoolExecutor(2) as pool:
        wrong = [each for each in pool.map(strike, range(25)) if each]
    assert not wrong, "\n".join(wrong)
