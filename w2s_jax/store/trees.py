"""Trees of arrays stored by Orbax, with a manifest (see `checksums`) checked before each load."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from w2s_jax.core import errors, processes
from w2s_jax.store.checksums import damage, manifest_path, write_manifest


@contextlib.contextmanager
def storage_errors(what: str, folder: Path) -> Iterator[None]:
    """Raise a `StorageError` for a full disk, however Orbax words it."""
    try:
        yield
    except Exception as error:
        text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}"
        if "No space left" not in text and "RESOURCE_EXHAUSTED" not in text:
            raise
        raise errors.StorageError(
            f"{what}: no space left on the disk of {folder}; complete checkpoints are intact; "
            "free some space, then run the same command again"
        ) from error


def abstract(tree: Any) -> Any:
    """Return the shapes, dtypes and shardings of a tree, as Orbax restores them."""
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def free(tree: Any) -> None:
    """Free the memory of all arrays of a tree, even if they are still referenced."""
    for array in jax.tree.leaves(tree):
        if isinstance(array, jax.Array):
            array.delete()


def save_tree(folder: Path, tree: Any) -> None:
    """Save a tree of arrays as `folder`, with its manifest; replace a damaged or partial one.

    With several processes all call it, with equal host arrays or with global arrays.

    Raises:
      StorageError: the disk is full.
    """
    with storage_errors("saving", folder), ocp.StandardCheckpointer() as checkpointer:
        processes.on_first("saving", lambda: manifest_path(folder).unlink(missing_ok=True))
        checkpointer.save(folder.absolute(), tree, force=True)
        checkpointer.wait_until_finished()
        processes.on_first("manifest", lambda: write_manifest(folder))


def load_tree(folder: Path, target: Any) -> Any:
    """Restore the tree of `save_tree` with the shapes and shardings of `target`.

    Raises:
      StorageError: a file is missing or does not match the manifest.
    """
    _refuse_damage(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), target)


def load_part(folder: Path, part: Any) -> Any:
    """Restore only the leaves that `part` has; otherwise as `load_tree`."""
    _refuse_damage(folder)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(
            folder.absolute(),
            args=ocp.args.PyTreeRestore(
                item=part,
                restore_args=ocp.checkpoint_utils.construct_restore_args(part),
                partial_restore=True,
            ),
        )


def _refuse_damage(folder: Path) -> None:
    problem = processes.on_first("damage", lambda: damage(folder))
    if problem:
        raise errors.StorageError(
            f"{folder}: damaged ({problem}); move its phase folder elsewhere, then run the same "
            "command again"
        )
