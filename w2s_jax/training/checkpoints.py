"""Mid-phase checkpoints by Orbax: asynchronous, bounded in number, checked before they are trusted.

Orbax commits a step by a rename, so a kill leaves whole steps only. A step's manifest (see
`storage`) is written after the commit: a step without one, or that differs from it, is passed over
and the one before it is used.
"""

import contextlib
import functools
import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from w2s_jax import processes
from w2s_jax.storage import damage, manifest_path, storage_errors, write_manifest

log = logging.getLogger(__name__)


class Checkpoints:
    """The mid-phase checkpoints of one phase, saved asynchronously, `keep` of them at most."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                # One more than the newest: it has no manifest for a moment.
                max_to_keep=max(2, keep),
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
            if step in self.manager.all_steps():
                return  # saved at the boundary before, and nothing has changed since
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta))
            self.manager.save(step, args=args, force=True)
            self.awaited = step

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is whole, or None if there is none."""
        for step in reversed(processes.on_first("steps", self._steps)):
            folder = self.folder / str(step)
            problem = processes.on_first("damage", functools.partial(damage, folder))
            if problem:
                log.warning(
                    "checkpoint %s is damaged (%s); falling back to the one before it",
                    self.folder / str(step),
                    problem,
                )
                # Gone, or it would keep a place among the newest from a whole one.
                self.manager.delete(step)
                manifest_path(self.folder / str(step)).unlink(missing_ok=True)
                continue
            return step
        return None

    def restore(self, step: int, targets: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(trees, meta) of a checkpoint that is whole."""
        items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
        args = ocp.args.Composite(**items, meta=ocp.args.JsonRestore())
        restored = self.manager.restore(step, args=args)
        return {name: restored[name] for name in targets}, restored["meta"]

    def finish(self) -> None:
        """Waits for the save under way and completes it; drops manifests of deleted steps.

        Raises:
          StorageError: if it failed for want of space.
        """
        step, self.awaited = self.awaited, None
        with storage_errors(f"checkpoint at step {step}", self.folder):
            self.manager.wait_until_finished()
            # Orbax has waited for all processes.
            if step is not None and processes.is_first():
                write_manifest(self.folder / str(step))
                for manifest in self.folder.glob("*.manifest.json"):
                    if not (self.folder / manifest.name.split(".")[0]).exists():
                        manifest.unlink()

    def close(self) -> None:
        """Releases the manager's threads; a failed save has been reported by `finish` or `save`."""
        with contextlib.suppress(Exception):
            self.manager.close()
