"""Checkpoints by Orbax, each with a manifest of sha256 sums that is checked before it is trusted.

Orbax commits a step by a rename, so a kill leaves whole steps only; it does not notice a byte that
flipped later. The manifest (`<step>.manifest.json`, beside the step) is written after the commit: a
step without one, or that differs from it, is passed over and the one before it is used.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from w2s_jax import errors
from w2s_jax.files import write_json

log = logging.getLogger(__name__)


def manifest_path(folder: Path) -> Path:
    """Where the manifest of an Orbax folder stands: beside it."""
    return folder.with_name(folder.name + ".manifest.json")


def write_manifest(folder: Path) -> None:
    """Records the sha256 of every file under `folder`."""
    write_json(manifest_path(folder), _sums(folder))


def damage(folder: Path) -> str | None:
    """What is wrong with an Orbax folder, in words; None if it equals its manifest."""
    if not folder.is_dir():
        return "the folder is missing"
    try:
        wanted = json.loads(manifest_path(folder).read_text())
    except (OSError, ValueError):
        return "it has no readable manifest"
    found = _sums(folder)
    for name, digest in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} differs from its sha256"
    return None


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            sums[str(path.relative_to(folder))] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


@contextlib.contextmanager
def storage_errors(what: str, folder: Path) -> Iterator[None]:
    """Turns a full disk, however Orbax words it, into a `StorageError`."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        if "No space left" not in text and "RESOURCE_EXHAUSTED" not in text:
            raise
        raise errors.StorageError(
            f"{what}: no space left on the disk of {folder}; complete checkpoints are intact: "
            "free some space and run the same command again"
        ) from error


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree, as Orbax wants them for restoring."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def save_tree(folder: Path, tree: Any) -> None:
    """Saves a tree of arrays as `folder`, with its manifest; replaces a damaged or unfinished one.

    Raises:
      StorageError: if the disk is full.
    """
    with storage_errors("saving", folder), ocp.StandardCheckpointer() as checkpointer:
        manifest_path(folder).unlink(missing_ok=True)
        checkpointer.save(folder.absolute(), tree, force=True)
        checkpointer.wait_until_finished()
        write_manifest(folder)


def load_tree(folder: Path, target: Any) -> Any:
    """Restores what `save_tree` wrote into the shapes and shardings of `target`.

    Raises:
      StorageError: if a file is missing or differs from the manifest.
    """
    problem = damage(folder)
    if problem:
        raise errors.StorageError(
            f"{folder}: damaged ({problem}); delete its phase folder and run again to remake it"
        )
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), target)


class Checkpoints:
    """The mid-phase checkpoints of one phase, saved asynchronously, `keep` of them at most."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=True,
            ),
        )
        self.awaited: int | None = None  # the step being saved, which has no manifest yet

    def poll(self) -> None:
        """Completes a save that has reached the disk; call it now and then."""
        if self.awaited is not None and not self.manager.is_saving_in_progress():
            self.finish()

    def _steps(self) -> list[int]:
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied to the host.

        Raises:
          StorageError: if the disk is full (of this save or of the one before it).
        """
        with storage_errors(f"checkpoint at step {step}", self.folder):
            self.finish()
            stale = self.folder / str(step)
            if stale.exists():  # a damaged one that was passed over
                self.manager.delete(step)
                manifest_path(stale).unlink(missing_ok=True)
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            self.manager.save(step, args=args, force=True)
            self.awaited = step

    def restore(self, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """(trees, meta) of the newest checkpoint that is whole, or None if there is none."""
        for step in reversed(self._steps()):
            problem = damage(self.folder / str(step))
            if problem:
                log.warning(
                    "checkpoint %s is damaged (%s); falling back to the one before it",
                    self.folder / str(step),
                    problem,
                )
                continue
            items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
            args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
            restored = self.manager.restore(step, args=args)
            return {name: restored[name] for name in targets}, restored["meta"]
        return None

    def finish(self) -> None:
        """Waits for the save under way and completes it; drops manifests of deleted steps.

        Raises:
          StorageError: if it failed for want of space.
        """
        step, self.awaited = self.awaited, None
        with storage_errors(f"checkpoint at step {step}", self.folder):
            self.manager.wait_until_finished()
            if step is not None:
                write_manifest(self.folder / str(step))
                for manifest in self.folder.glob("*.manifest.json"):
                    if not (self.folder / manifest.name.split(".")[0]).exists():
                        manifest.unlink()

    def close(self) -> None:
        """Releases the manager's threads; a failed save has been reported by `finish` or `save`."""
        with contextlib.suppress(Exception):
            self.manager.close()

    def clear(self) -> None:
        """Removes all mid-phase checkpoints: the phase is complete."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
