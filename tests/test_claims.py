"""Claims of phases: on local disks, on shared ones, and where file locks lock nothing."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from w2s_jax.core import errors
from w2s_jax.store import artifacts, claims, mounts
from w2s_jax.store.artifacts import PhaseFolder

NFS = "40 1 0:39 / {point} rw,relatime shared:7 - nfs4 server:/x rw,vers=4.2{options}\n"
ROOT = "1 0 254:0 / / rw,relatime - ext4 /dev/vda rw\n"


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A function that mounts the test's folder, as far as the claims know."""
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    claims._warn_of_locks.cache_clear()

    def mount(options="", line=NFS):
        point = str(tmp_path.resolve()).replace(" ", "\\040")
        table.write_text(ROOT + line.format(point=point, options=options))
        return PhaseFolder(tmp_path / "weak-0")

    return mount


@pytest.fixture
def no_locks(monkeypatch):
    """Locks that lock nothing."""
    monkeypatch.setattr(claims.fcntl, "flock", lambda *_: None)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(claims, "STALE_SECONDS", 1.5)


CHILD = """
import fcntl, os, sys, time
from pathlib import Path
from w2s_jax.store import artifacts, claims, mounts
mounts.MOUNTINFO = Path(sys.argv[1])
fcntl.flock = lambda *_: None
claims.BEAT_SECONDS, claims.STALE_SECONDS = 0.05, 1.5
if sys.argv[3] == "another machine":
    here = {**claims._here(), "host": "other", "boot_id": "other"}
    claims._here = lambda: here
with artifacts.claim(artifacts.PhaseFolder(Path(sys.argv[2]))):
    print("held", flush=True)
    sys.stdin.readline()
"""


def child(folder, tmp_path, where):
    """Start a process that claims a folder until it is told to end; return it when it has."""
    command = [sys.executable, "-c", CHILD, str(tmp_path / "mountinfo"), str(folder.path), where]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_nearest_and_latest_mount_counts(tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    monkeypatch.setattr(mounts, "MOUNTINFO", table)
    table.write_text(
        ROOT
        + "2 1 0:1 / /a rw - ext4 /dev/a rw\n"
        + "3 2 0:2 / /a/b\\040c ro,relatime master:1 - nfs s:/ rw,nolock,vers=3\n"
        + "4 1 0:3 / /a rw - fuse.sshfs s:/ rw\n"
        + "damaged line\n"
    )
    found = {path: mounts.mount_of(path) for path in map(mounts.Path, ("/x", "/a/b c/d", "/ab"))}
    assert [(m.point, m.kind, m.is_local) for m in found.values()] == [
        ("/", "ext4", True),
        ("/a/b c", "nfs", False),
        ("/", "ext4", True),
    ]
    assert [m.locks_here_only for m in found.values()] == ["", "nolock", ""]
    assert str(mounts.mount_of(mounts.Path("/a/x"))) == "/a (fuse.sshfs)"
    table.unlink()
    assert not mounts.mount_of(tmp_path).is_local


def test_a_local_disk_needs_no_claim_file(mounted):
    folder = mounted(line="")
    with artifacts.claim(folder):
        assert os.listdir(folder.path) == [".lock"] and claims.is_claimed(folder)
        with artifacts.claim_if_free(folder) as free:
            assert not free
    assert not claims.is_claimed(folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_no_lock_service_is_one_line_that_names_the_mount(mounted, monkeypatch, tmp_path, number):
    folder = mounted()
    folder.path.mkdir()
    (folder.path / ".lock").touch()

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(claims.fcntl, "flock", refuse)
    line = rf"^{tmp_path} \(nfs4\): files cannot be locked there \({os.strerror(number)}\)[^\n]*$"
    for claimed in (artifacts.claim(folder), artifacts.claim_if_free(folder)):
        with pytest.raises(errors.StorageError, match=line), claimed:
            pass
    with pytest.raises(errors.StorageError, match=line):
        claims.is_claimed(folder)


def test_on_a_shared_disk_a_claim_file_is_a_second_guard(mounted, caplog, fast):
    folder = mounted()
    path = folder.path / ".claim.json"
    with artifacts.claim(folder):
        record = json.loads(path.read_text())
        assert record["pid"] == os.getpid() and record["host"] and record["boot_id"]
        first = path.stat().st_mtime_ns
        time.sleep(0.2)
        assert path.stat().st_mtime_ns > first
    assert os.listdir(folder.path) == [".lock"] and caplog.text == ""


@pytest.mark.parametrize("options", [",nolock", ",local_lock=all", ",local_lock=flock", ""])
def test_locks_that_lock_nothing_are_found_and_told_once(mounted, no_locks, caplog, options):
    folder = mounted(options)
    for _ in range(2):
        with artifacts.claim(folder), artifacts.claim_if_free(folder) as free:
            assert not free and claims.is_claimed(folder)
    assert not claims.is_claimed(folder)
    assert caplog.text.count("file locks do not keep other machines out") == 1
    assert options.strip(",") in caplog.text and "(nfs4)" in caplog.text


def test_options_alone_tell_of_locks_within_a_machine(mounted, caplog):
    with artifacts.claim(mounted(",local_lock=flock")):
        pass
    assert "local_lock=flock" in caplog.text


def test_locks_of_a_local_disk_that_lock_nothing_are_found(mounted, no_locks, caplog):
    folder = mounted(line="")
    with artifacts.claim(folder), artifacts.claim_if_free(folder) as free:
        assert not free
    assert "file locks" in caplog.text


@pytest.mark.medium
def test_two_processes_never_hold_one_claim(mounted, no_locks, fast, tmp_path):
    """Nor do they after the first was killed: the second waits, or not if it sees that."""
    folder = mounted()
    other = child(folder, tmp_path, "another machine")
    time.sleep(2)  # longer than a silent one would be waited for
    with artifacts.claim_if_free(folder) as free:
        assert not free and claims.is_claimed(folder)
    other.communicate("\n")
    with artifacts.claim_if_free(folder) as free:
        assert free
    other = child(folder, tmp_path, "another machine")
    other.kill()
    other.communicate()
    killed = time.monotonic()
    with artifacts.claim(folder, should_stop=lambda: time.monotonic() > killed + 60):
        assert time.monotonic() - killed > 1
    other = child(folder, tmp_path, "this machine")
    other.kill()
    other.communicate()
    with artifacts.claim_if_free(folder) as free:
        assert free


def test_a_holder_elsewhere_is_gone_after_its_time_only(tmp_path):
    path = tmp_path / ".claim.json"
    record = {**claims._here(), "host": "other", "pid": 1, "token": "x"}
    for content in (json.dumps(record), ""):  # the latter: it is just being written
        path.write_text(content)
        os.utime(path, (1000, 1000))
        holder = claims._read(path)
        assert not holder.is_gone(1000 + claims.STALE_SECONDS - 1)
        assert holder.is_gone(1000 + claims.STALE_SECONDS + 1)
    assert (claims.BEAT_SECONDS, claims.STALE_SECONDS) == (10, 120)


def test_what_was_taken_over_is_not_gone_on_with(mounted, no_locks, fast):
    """A process that was suspended stops, and leaves the file of the one that goes on."""
    folder = mounted()
    path = folder.path / ".claim.json"
    with artifacts.claim(folder):
        claims.refuse_lost()
        record = json.loads(path.read_text()) | {"token": "of another", "host": "other"}
        path.write_text(json.dumps(record))
        time.sleep(0.3)
        with pytest.raises(errors.Interrupted, match="weak-0: another process has taken it over"):
            claims.or_lost(lambda: False)()
    assert json.loads(path.read_text()) == record
    assert not claims.or_lost(lambda: False)()


def test_of_two_that_take_over_one_wins(mounted, no_locks, fast):
    """The slower one has seen the old file, and displaces the new one of the faster one."""
    folder = mounted()
    folder.path.mkdir()
    path = folder.path / ".claim.json"
    path.write_text(json.dumps({**claims._here(), "host": "other", "pid": 1, "token": "old"}))
    os.utime(path, (0, 0))
    gone = claims._read(path)
    with artifacts.claim(folder):
        new = path.read_text()
        assert not claims._displace(path, gone)
        assert path.read_text() == new and sorted(os.listdir(folder.path)) == [path.name, ".lock"]
    # A file that was created, but not yet written, is waited for.
    path.touch()
    with artifacts.claim_if_free(folder) as free:
        assert not free
