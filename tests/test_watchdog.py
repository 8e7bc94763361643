"""The watchdog: it tells of a hang, with the stacks, and of nothing else."""

import threading
import time

import pytest

from w2s_jax.core import watchdog
from w2s_jax.core.watchdog import PATIENCE, Watchdog


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def warnings(caplog):
    return [
        record.getMessage() for record in caplog.records if record.name == "w2s_jax.core.watchdog"
    ]


def test_a_hang_is_told_once_and_again_at_doubling_intervals(tmp_path, caplog):
    clock = Clock()
    dog = Watchdog("student xent", 60, tmp_path / "hang.txt", clock)
    dog.progress("steps 10 to 20 of 300")
    told = []
    for second in range(1, 1000):
        clock.now = 100.0 + second
        dog.check()
        if len(warnings(caplog)) > len(told):
            told.append(second)
    assert told == [60, 120, 240, 480, 960]
    first = warnings(caplog)[0]
    for part in ("student xent", "60 s", "steps 10 to 20 of 300", str(tmp_path / "hang.txt")):
        assert part in first
    text = (tmp_path / "hang.txt").read_text()
    assert text.count("student xent") == 5 and "test_watchdog.py" in text


def test_progress_in_time_is_silent_and_ends_an_alarm(tmp_path, caplog):
    clock = Clock()
    dog = Watchdog("weak", 60, tmp_path / "hang.txt", clock)
    for number in range(20):
        clock.now += 59
        assert dog.check() > 0
        dog.progress(f"block {number}")
    assert warnings(caplog) == [] and not (tmp_path / "hang.txt").exists()
    clock.now += 100
    dog.check()
    dog.progress("on again")
    clock.now += 59
    dog.check()
    assert len(warnings(caplog)) == 1
    clock.now += 1
    dog.check()
    assert len(warnings(caplog)) == 2 and "on again" in warnings(caplog)[1]


@pytest.mark.parametrize("told", [True, False])
def test_what_is_compiled_first_may_take_longer(tmp_path, caplog, told):
    """So may what comes before the first word."""
    clock = Clock()
    dog = Watchdog("weak", 60, tmp_path / "hang.txt", clock)
    if told:
        dog.progress("steps 0 to 10 of 300", PATIENCE)
    clock.now += 60 * PATIENCE - 1
    assert dog.check() == pytest.approx(1)
    assert warnings(caplog) == []
    clock.now += 1
    dog.check()
    assert len(warnings(caplog)) == 1


def test_a_folder_that_cannot_be_written_changes_nothing_else(tmp_path, caplog):
    clock = Clock()
    dog = Watchdog("weak", 60, tmp_path / "none" / "hang.txt", clock)
    clock.now += 1000
    dog.check()
    assert "cannot be written" in warnings(caplog)[0]


def test_a_thread_watches_a_phase_and_none_is_left(tmp_path, caplog, monkeypatch):
    """A thread that hangs is found in the stacks by its name of a function."""
    monkeypatch.setattr(watchdog, "PATIENCE", 1.0)
    before = threading.active_count()
    release = threading.Event()

    def hangs_for_ever():
        release.wait(30)

    thread = threading.Thread(target=hangs_for_ever)
    thread.start()
    with watchdog.watching(tmp_path / "hang.txt", "ceiling", 0.1 / 60):
        watchdog.progress("steps 0 to 10 of 20")
        deadline = time.monotonic() + 20
        while not warnings(caplog):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    release.set()
    thread.join()
    assert threading.active_count() == before
    assert "hangs_for_ever" in (tmp_path / "hang.txt").read_text()
    told = len(warnings(caplog))
    watchdog.progress("nobody listens")
    time.sleep(0.3)
    assert len(warnings(caplog)) == told


def test_zero_minutes_watch_nothing(tmp_path):
    before = threading.active_count()
    with watchdog.watching(tmp_path / "hang.txt", "ceiling", 0):
        assert threading.active_count() == before
