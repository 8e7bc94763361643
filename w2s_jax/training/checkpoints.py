"""Mid-phase checkpoints by Orbax: asynchronous, limited in number, and verified.

Orbax commits a step by a rename, or on an object store by a file that it writes last, so a kill
leaves only complete steps. The manifest of a step (see `checksums`) is written after the commit. A
step without a manifest is incomplete and removed; one that does not match it is set aside. In both
cases the previous one is used.

The training loop waits only until the arrays are copied to the host; a thread does the rest,
including the manifest. Of several processes, all must make the same calls; the first one verifies
steps and writes manifests.
"""

import concurrent.futures
import contextlib
import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from w2s_jax.core import errors, processes
from w2s_jax.core.files import is_remote
from w2s_jax.store.checksums import damage, drop_damaged, write_manifest
from w2s_jax.store.trees import storage_errors

log = logging.getLogger(__name__)


class Checkpoints:
    """The mid-phase checkpoints of a phase, saved asynchronously; at most `keep` are kept.

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
                    # At least two, as the newest one has no manifest at first.
                    max_to_keep=max(2, keep),
                    enable_async_checkpointing=True,
                ),
            )
        self.worker = concurrent.futures.ThreadPoolExecutor(1, "w2s-manifest")
        # The save in progress, up to its manifest.
        self.saving: concurrent.futures.Future[None] | None = None

    def poll(self) -> None:
        """Check, without waiting, whether the save in progress has ended; call it now and then.

        Raises:
          StorageError: if the save failed because the disk is full.
        """
        if self.saving is not None and self.saving.done():
            self._end()

    def save(self, step: int, trees: dict[str, Any], meta: dict[str, Any]) -> None:
        """Start a save; return when the arrays are copied to the host.

        Raises:
          StorageError: if this save, or the previous one, failed because the disk is full.
        """
        with storage_errors(f"checkpoint at step {step}", self.folder):
            self.finish()
            if step in self.manager.all_steps():
                return  # Saved at the previous boundary; nothing has changed since.
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            self.manager.save(step, args=args, force=True)
            self.saving = self.worker.submit(self._complete, step)

    def newest(self) -> int | None:
        """Return the step of the newest checkpoint, which is complete; None if there is none."""
        return self.manager.latest_step()

    def restore(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return (trees, meta) of a complete checkpoint."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        restored = self.manager.restore(step, args=args)
        return {name: restored[name] for name in targets}, restored["meta"]

    def finish(self) -> None:
        """Wait until the save in progress, if any, is complete.

        Raises:
          StorageError: if the save failed because the disk is full.
        """
        self._end()
        processes.barrier("a checkpoint is saved")

    def _end(self) -> None:
        """Wait for the result of the save in progress."""
        saving, self.saving = self.saving, None
        if saving is not None:
            with storage_errors("saving a checkpoint", self.folder):
                saving.result()

    def _complete(self, step: int) -> None:
        """Write the manifest of a step once it is committed; remove those of deleted steps."""
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
        """Release the threads; `finish` or `save` has reported a failed save."""
        self.worker.shutdown()
        with contextlib.suppress(Exception):
            self.manager.close()


def _checked(folder: Path) -> None:
    """Make the folder if necessary, and put damaged checkpoints out of the way."""
    _make(folder)
    _drop_damaged(folder)


def _make(folder: Path) -> None:
    """Make the folder; on an object store, which has none, check that it can be written to."""
    if is_remote(folder):
        # Making a folder there would make the bucket if it does not exist.
        (folder / ".can-be-written").write_text("")
        (folder / ".can-be-written").unlink()
    else:
        folder.mkdir(parents=True, exist_ok=True)


def _drop_damaged(folder: Path) -> None:
    """Remove or set aside the newest checkpoints up to the first complete one.

    They would count among the newest ones that are kept.
    """
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    steps = sorted((int(name) for name in names if name.isdigit()), reverse=True)
    for step in steps:
        problem = damage(folder / str(step))
        if problem is None:
            return
        path = folder / str(step)
        where = drop_damaged(path)
        log.warning("checkpoint %s is damaged (%s)%s; using the previous one", path, problem, where)


@contextlib.contextmanager
def _reaching(folder: Path) -> Any:
    """Turn any error of an object store's client into a `StorageError`."""
    try:
        yield
    except Exception as error:
        if not is_remote(folder):
            raise
        raise errors.StorageError(
            f"checkpoint.dir: {folder} cannot be used ({type(error).__name__}: {error})"
        ) from error
