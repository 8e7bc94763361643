"""The watchdog: it reports a hang, with the stacks, and nothing else."""

import subprocess
import sys
import threading
import time

import pytest

from w2s_jax.core import watchdog

BUSY = """
import sys, threading, time
from pathlib import Path
from w2s_jax.core import watchdog

def suspended(depth):
    if depth:
        yield from suspended(depth - 1)
    yield depth

def work():
    until = time.monotonic() + 3
    while time.monotonic() < until:
        list(suspended(30)), [x for x in map(lambda y: (lambda z: z + 1)(y), range(50))]

watchdog.PATIENCE = 1.0
with watchdog.watching(Path(sys.argv[1]), "weak", 0.0003 / 60):
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def warnings(caplog):
    return [
        record.getMessage() for record in caplog.records if record.name == "w2s_jax.core.watchdog"
    ]


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_hang_is_reported_again_and_again_with_stacks(tmp_path, caplog, monkeypatch):
    """A thread that hangs is found in the stacks by the name of its function."""
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    path = tmp_path / "hang.txt"
    before = threading.active_count()
    release = threading.Event()

    def hangs_for_ever():
        release.wait(30)

    thread = threading.Thread(target=hangs_for_ever)
    thread.start()
    with watchdog.watching(path, "student xent", 0.2 / 60):
        watchdog.progress("steps 10 to 20 of 300")
        wait_for(lambda: len(warnings(caplog)) >= 2)
        wait_for(lambda: path.read_text().count("Timeout") >= 2)
    release.set()
    thread.join()
    assert threading.active_count() == before
    for part in ("student xent", "steps 10 to 20 of 300", str(path)):
        assert part in warnings(caplog)[0]
    assert "hangs_for_ever" in path.read_text()
    count, size = len(warnings(caplog)), path.stat().st_size
    watchdog.progress("after the end")
    time.sleep(0.5)
    assert (len(warnings(caplog)), path.stat().st_size) == (count, size)


def test_progress_in_time_is_silent_and_leaves_no_file(tmp_path, caplog):
    with watchdog.watching(tmp_path / "hang.txt", "weak", 1 / 60):
        for number in range(15):
            watchdog.progress(f"block {number}")
            time.sleep(0.1)
    assert warnings(caplog) == [] and not (tmp_path / "hang.txt").exists()


def test_an_old_report_is_kept(tmp_path):
    path = tmp_path / "hang.txt"
    path.write_text("Timeout\n")
    with watchdog.watching(path, "weak", 1):
        pass
    assert path.read_text() == "Timeout\n"


@pytest.mark.parametrize("first", [True, False])
def test_work_that_compiles_first_may_take_longer(tmp_path, caplog, monkeypatch, first):
    """So may the time before the first progress."""
    monkeypatch.setattr(watchdog, "PATIENCE", 10.0)
    with watchdog.watching(tmp_path / "hang.txt", "weak", 0.1 / 60):
        if not first:
            watchdog.progress("steps 0 to 10 of 300", watchdog.PATIENCE)
        time.sleep(0.4)
        assert warnings(caplog) == []
        watchdog.progress("steps 10 to 20 of 300")
        wait_for(lambda: warnings(caplog))


def test_reports_do_not_crash_a_process_that_is_only_slow(tmp_path):
    """Stacks are written many times while other threads call, return and suspend functions."""
    done = subprocess.run(
        [sys.executable, "-c", BUSY, str(tmp_path / "hang.txt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert (tmp_path / "hang.txt").read_text().count("Timeout") > 20


def test_zero_minutes_watch_nothing(tmp_path):
    before = threading.active_count()
    with watchdog.watching(tmp_path / "hang.txt", "ceiling", 0):
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []
