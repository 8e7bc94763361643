"""Atomic writes, locations, first lines of errors, and full disks."""

import concurrent.futures
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
import types

import pytest

from w2s_jax.core import errors, files, library_logs


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, [1])
    with pytest.raises(ValueError), files.atomic_write(path) as file:
        file.write(b"half")
        raise ValueError
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    assert files.read_json(path) == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with files.atomic_write(path) as first, files.atomic_write(path) as second:
        first.write(b"first")
        second.write(b"second, longer")
    assert path.read_bytes() == b"first"  # its block ended last
    assert os.listdir(tmp_path) == ["a"]
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_writers_with_one_pid_and_clock_do_not_collide(tmp_path, monkeypatch):
    """As in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("time.time_ns", lambda: 0)

    def write(number):
        for _ in range(10):
            files.write_json(tmp_path / "a.json", [number] * 100)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert len(set(files.read_json(tmp_path / "a.json"))) == 1
    assert os.listdir(tmp_path) == ["a.json"]


def test_remote_writes_and_removals():
    root = files.location("memory://w2s-test-files/x")
    assert files.is_remote(root)
    with pytest.raises(ValueError), files.atomic_write(root / "b") as file:
        file.write(b"half")
        raise ValueError
    assert not (root / "b").exists()
    files.write_json(root / "a", {"b": 1})
    assert files.read_json(root / "a") == {"b": 1}
    files.remove_folder(root)
    files.remove_folder(root)
    assert not root.exists()


def test_new_folders_are_complete_or_absent(tmp_path):
    with files.new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("")
        assert not (tmp_path / "a" / "b").exists()
    assert os.listdir(tmp_path / "a" / "b") == ["file"]
    with (
        pytest.raises(errors.InputError, match="a/b: already exists"),
        files.new_folder(tmp_path / "a" / "b"),
    ):
        pass
    full = r"c: cannot be written \(OSError: \[Errno 28\]"
    with pytest.raises(errors.StorageError, match=full), files.new_folder(tmp_path / "c"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "error,line",
    [
        (errors.InputError("a: b\nc"), "a: b"),
        (OSError("\n no \nnetwork"), "OSError: no"),
        (KeyError(), "KeyError"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 300),
    ],
)
def test_first_line(error, line):
    assert errors.first_line(error) == line


def report_errors():
    """A command in which libraries report errors as they do on a full disk."""
    try:
        raise OSError(28, "No space left on device")
    except OSError:
        logging.getLogger("absl").exception("a library's traceback")
        logging.getLogger("w2s_jax.x").warning("ours", exc_info=True)
    logging.getLogger("absl").warning("a library's warning")
    native = types.SimpleNamespace(exc_value=RuntimeError("a library's thread"))
    thread = threading.Thread(target=lambda: sys.unraisablehook(native))
    thread.start()
    thread.join()
    return 0


@pytest.mark.parametrize("full", [False, True])
def test_tracebacks_of_libraries_go_to_a_file(tmp_path, monkeypatch, capsys, full):
    monkeypatch.setenv("W2S_CACHE_DIR", str(tmp_path / "cache"))
    root = logging.getLogger()
    handler, before = logging.StreamHandler(), sys.unraisablehook
    monkeypatch.setattr(root, "handlers", [handler])
    (tmp_path / "run").mkdir()

    def command():
        library_logs.write_to(tmp_path / "run" / "logs")
        return report_errors()

    if full:
        (tmp_path / "run" / "logs").write_text("")  # as a disk on which it cannot be made
    assert library_logs.diverts(command)() == 0
    err = capsys.readouterr().err
    log = tmp_path / ("cache/logs" if full else "run/logs") / "libraries.log"
    assert "a library's traceback" not in err and "a library's thread" not in err
    assert err.startswith("ours\nTraceback") and "a library's warning" in err
    assert err.endswith(f"w2s: libraries reported errors: see {log}\n")
    text = log.read_text()
    assert "ERROR absl: a library's traceback\nTraceback" in text and "No space left" in text
    assert "a library's thread" in text and "ours" not in text
    assert handler.filters == [] and sys.unraisablehook is before


FULL = """
import sys
from pathlib import Path
import jax
from w2s_jax.core import errors, library_logs
from w2s_jax.store import trees

def command(folder):
    library_logs.write_to(folder)
    try:
        key = jax.random.key(0)
        tree = {name: jax.random.normal(key, 50_000) for name in "abcdefgh"}
        trees.save_tree(folder / "final", tree)
    except errors.StorageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0

sys.exit(library_logs.diverts(command)(Path(sys.argv[1])))
"""


@pytest.mark.medium
@pytest.mark.parametrize("size", ["16k", "1m"])
def test_a_full_disk_is_one_line(tmp_path, size):
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        environment = os.environ | {"W2S_CACHE_DIR": ""}
        command = [sys.executable, "-c", FULL, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "no space left on the disk of" in done.stderr
