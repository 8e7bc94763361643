"""Mid-phase checkpoints by Orbax: asynchronous, bounded in number, checked before they are trusted.

Orbax commits a step by a rename, or on an object store by a file that it writes last, so a kill
leaves whole steps only. A step's manifest (see `checksums`) is written after the commit: a step
without one, or that differs from it, is passed over and the one before it is used.

The training loop waits only until the arrays are copied to the host. What follows, manifest
included, a thread does beside it. Several processes call everything alike; the
first of them decides what is whole, and writes manifests.
"""

import concurrent.futures
import contextlib
import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from w2s_jax.core import errors, processes
from w2s_jax.core.files import is_remote, remove_folder
from w2s_jax.store.checksums import damage, manifest_path, write_manifest
from w2s_jax.store.trees import storage_errors

log = logging.getLogger(__name__)


class Checkpoints:
    """The mid-phase checkpoints of one phase, saved asynchronously, `keep` of them at most.

    Raises:
      StorageError: if the folder cannot be written to.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder if is_remote(folder) else folder.absolute()
        with _reaching(self.folder):
            processes.on_first("checkpoints", lambda: _checked(self.folder))
            self.manager = ocp.CheckpointManager(
                str(self.folder),
                options=ocp.CheckpointManagerOptions(
                    # One more than the newest: it has no manifest for a moment.
                    max_to_keep=max(2, keep),
                    enable_async_checkpointing=True,
                ),
            )
        self.worker = concurrent.futures.ThreadPoolExecutor(1, "w2s-manifest")
        self.saving: concurrent.futures.Future[None] | None = None  # up to its manifest

    def poll(self) -> None:
        """Notices a save that has ended; call it now and then. Waits for nothing.

        Raises:
          StorageError: if it has failed for want of space.
        """
        if self.saving is not None and self.saving.done():
            self._end()

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Starts saving; returns when the arrays are copied to the host.

        Raises:
          StorageError: if the disk is full (of this save or of the one before it).
        """
        with storage_errors(f"checkpoint at step {step}", self.folder):
            self.finish()
            if step in self.manager.all_steps():
                return  # saved at the boundary before, and nothing has changed since
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            self.manager.save(step, args=args, force=True)
            self.saving = self.worker.submit(self._complete, step)

    def newest(self) -> int | None:
        """The step of the newest checkpoint, which is whole, or None if there is none."""
        return self.manager.latest_step()

    def restore(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trees, meta) of a checkpoint that is whole."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        restored = self.manager.restore(step, args=args)
        return {name: restored[name] for name in targets}, restored["meta"]

    def finish(self) -> None:
        """Waits for the save under way, if there is one, until it is complete.

        Raises:
          StorageError: if it failed for want of space.
        """
        self._end()
        processes.barrier("a checkpoint is saved")

    def _end(self) -> None:
        """The outcome of the save under way, when it is there."""
        saving, self.saving = self.saving, None
        if saving is not None:
            with storage_errors("saving a checkpoint", self.folder):
                saving.result()

    def _complete(self, step: int) -> None:
        """Writes the manifest of a step once it is committed; drops those of deleted steps."""
        self.manager.wait_until_finished()
        if not processes.is_first():
            return
        write_manifest(self.folder / str(step))
        kept = {path.name for path in self.folder.iterdir()}
        for name in kept:
            number = name.removesuffix(".manifest.json")
            if number != name and number not in kept:
                (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Releases the threads; a failed save has been reported by `finish` or `save`."""
        self.worker.shutdown()
        with contextlib.suppress(Exception):
            self.manager.close()


def _checked(folder: Path) -> None:
    """Makes the folder if need be, and removes what is damaged."""
    _make(folder)
    _drop_damaged(folder)


def _make(folder: Path) -> None:
    """Makes the folder; on an object store, where there are none, tries whether it can be used."""
    if is_remote(folder):
        # A folder that is made there would make a bucket, if there is none of the name.
        (folder / ".can-be-written").write_text("")
        (folder / ".can-be-written").unlink()
    else:
        folder.mkdir(parents=True, exist_ok=True)


def _drop_damaged(folder: Path) -> None:
    """Removes the newest checkpoints up to the first one that is whole.

    They would keep a place among the newest from whole ones.
    """
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for step in steps:
        problem = damage(folder / str(step))
        if problem is None:
            return
        log.warning(
            "checkpoint %s is damaged (%s); falling back to the one before it",
            folder / str(step),
            problem,
        )
        remove_folder(folder / str(step))
        manifest_path(folder / str(step)).unlink(missing_ok=True)


@contextlib.contextmanager
def _reaching(folder: Path) -> Any:
    """Turns whatever a store's client says of a bucket into a `StorageError`."""
    try:
        yield
    except Exception as error:
        if not is_remote(folder):
            raise
        raise errors.StorageError(
            f"checkpoint.dir: {folder} cannot be used ({type(error).__name__}: {error})"
        ) from error
