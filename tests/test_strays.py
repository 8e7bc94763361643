"""Files that systems leave anywhere, and what is damaged: nothing is taken for it, or lost."""

import os
import shutil

import jax.numpy as jnp
import pytest
from rich.console import Console

from w2s_jax.core import errors, files
from w2s_jax.execution import storage_gc, workdirs
from w2s_jax.models import sources
from w2s_jax.report import runs
from w2s_jax.store import checksums, trees
from w2s_jax.store.artifacts import PhaseFolder
from w2s_jax.sweep import records
from w2s_jax.training.checkpoints import Checkpoints

STRAYS = (
    ".hidden",
    ".DS_Store",
    "._state",
    ".nfs00000000012ab",
    "lost+found/",
    "Thumbs.db",
    "@eaDir/",
)
TREE = {"a": jnp.arange(100.0)}


def leave_strays(*folders):
    for folder in folders:
        for name in STRAYS:
            if name.endswith("/"):
                (folder / name).mkdir()
            else:
                (folder / name).write_text("left by a system")


def damage(folder):
    """Flip a bit of the largest file."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_strays_make_no_folder_foreign(tmp_path):
    leave_strays(tmp_path)
    assert files.contents(tmp_path) == []
    assert workdirs.stored(tmp_path) is None
    records.check_workdir(tmp_path)
    with files.new_folder(tmp_path) as new:
        (new / "written").write_text("")
    assert files.contents(tmp_path) == [tmp_path / "written"]
    assert len(os.listdir(tmp_path)) == len(STRAYS) + 1
    for refused in (workdirs.stored, records.check_workdir, files.refuse_existing):
        with pytest.raises(errors.InputError, match=str(tmp_path)):
            refused(tmp_path)


def test_a_new_folder_takes_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "to").mkdir()
    with files.new_folder(tmp_path / "to") as new:
        (new / "written").write_text("")
        assert os.listdir(tmp_path / "to") == []
    assert os.listdir(tmp_path / "to") == ["written"]


def test_a_write_that_fails_leaves_a_folder_with_strays_as_it_was(tmp_path):
    leave_strays(tmp_path)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError), files.new_folder(tmp_path) as new:
        (new / "half").write_text("")
        raise ValueError
    assert sorted(os.listdir(tmp_path)) == before


def test_strays_and_other_files_are_no_damage(tmp_path):
    tree = tmp_path / "labels"
    trees.save_tree(tree, TREE)
    leave_strays(tree)
    (tree / "notes.txt").write_text("mine")
    assert checksums.damage(tree) is None
    assert float(trees.load_tree(tree, trees.abstract(TREE))["a"][7]) == 7
    # A manifest that is written beside strays, or by an earlier version, survives their end.
    checksums.write_manifest(tree)
    (recorded := checksums.read_manifest(tree))[".DS_Store"] = "0" * 64
    assert not {"._x", "Thumbs.db"} & set(recorded)
    files.write_json(checksums.manifest_path(tree), recorded)
    (tree / ".DS_Store").unlink()
    assert checksums.damage(tree) is None
    damage(tree)
    with pytest.raises(errors.StorageError, match=r"damaged \(.*\); move its phase folder"):
        trees.load_tree(tree, trees.abstract(TREE))


def test_checkpoints_among_strays_are_used_and_damaged_ones_set_aside(tmp_path, caplog):
    steps = tmp_path / "steps"

    def opened():
        return Checkpoints(steps, keep=2)

    checkpoints = opened()
    for step in (5, 10):
        checkpoints.save(step, {"state": TREE}, {"step": step})
        checkpoints.finish()
    checkpoints.close()
    leave_strays(steps, steps / "10", steps / "10" / "state")
    checkpoints = opened()
    assert checkpoints.newest() == 10 and caplog.text == ""
    assert checkpoints.restore(10, {"state": trees.abstract(TREE)})[1] == {"step": 10}
    checkpoints.close()
    damage(steps / "10")
    shutil.copytree(steps / "5", steps / "15")  # a kill before its manifest: never complete
    checkpoints = opened()
    assert checkpoints.newest() == 5
    aside = [p.name for p in files.contents(steps) if files.is_aside(p.name)]
    assert len(aside) == 2 and "10 is damaged" in caplog.text and aside[0] in caplog.text
    checkpoints.save(10, {"state": TREE}, {"step": 10})
    checkpoints.finish()
    checkpoints.close()
    assert checksums.damage(steps / "10") is None
    assert "does not match" in (checksums.damage(steps / aside[0]) or "")
    files.remove_folder(tmp_path, keep_aside=True)
    assert sorted(os.listdir(steps)) == sorted(aside)


def test_what_is_set_aside_can_be_in_an_object_store():
    root = files.location("memory://w2s-test-aside/steps")
    (root / "5" / "state").write_text("x")
    (root / "5.manifest.json").write_text("{}")
    assert "set aside as 5.damaged-" in checksums.drop_damaged(root / "5")
    files.remove_folder(root.parent, keep_aside=True)
    names = sorted(path.name for path in root.iterdir())
    assert len(names) == 2 and all(files.is_aside(name) for name in names)
    files.remove_folder(root.parent)
    assert not root.exists()


def test_gc_and_reports_pass_over_strays_and_gc_lists_what_is_set_aside(tmp_path, monkeypatch):
    phase = tmp_path / "phases" / f"weak-{'2' * 16}"
    final = phase / "checkpoints" / "final"
    final.mkdir(parents=True)
    (final / "array").write_text("x")
    checksums.write_manifest(final)
    checksums.drop_damaged(final)
    files.write_json(phase / "result.json", {})
    files.write_json(tmp_path / "config.json", {"config": {}, "data": {}, "phases": [phase.name]})
    (tmp_path / "runs").mkdir()
    leave_strays(tmp_path, tmp_path / "runs", tmp_path / "phases", phase, phase / "checkpoints")
    is_file = type(tmp_path).is_file

    def guarded(path):
        # Only root may look into lost+found.
        assert "lost+found" not in path.parts[:-1]
        return is_file(path)

    monkeypatch.setattr(type(tmp_path), "is_file", guarded)
    found, notes = storage_gc.find(tmp_path)
    assert notes == [] and {item.why for item in found} == {"damaged, set aside"}
    storage_gc.collect(tmp_path, Console(quiet=True), lambda: True)
    assert storage_gc.find(tmp_path)[0] == []
    assert not any(files.is_aside(name) for name in os.listdir(PhaseFolder(phase).final.parent))
    with pytest.raises(errors.InputError):
        runs.load_runs([tmp_path])


def test_a_stray_is_no_model_file(tmp_path):
    files.write_json(tmp_path / "config.json", {"kind": "w2s"})
    (tmp_path / "._model.safetensors").write_text("left by macOS")
    assert not sources.is_huggingface(tmp_path)
