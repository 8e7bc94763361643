"""Atomic writes, locations, and the first lines of errors."""

import os
import stat

import pytest

from w2s_jax.core import errors, files


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
