"""Trees of arrays on disk by Orbax, each with a manifest of sha256 sums checked before it is used.

What a manifest is, and what it says of a folder, is in `checksums`.
"""

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


def free(tree: Any) -> None:
    """Gives back the memory of arrays that nothing needs any more, whoever still refers to them."""
    for array in jax.tree.leaves(tree):
        if isinstance(array, jax.Array):
            array.delete()


def save_tree(folder: Path, tree: Any) -> None:
    """Saves a tree of arrays as `folder`, with its manifest; replaces a damaged or unfinished one.

    With several processes all call it, with the same host arrays or arrays of all of them.

    Raises:
      StorageError: if the disk is full.
    """
    with storage_errors("saving", folder), ocp.StandardCheckpointer() as checkpointer:
        processes.on_first("saving", lambda: manifest_path(folder).unlink(missing_ok=True))
        checkpointer.save(folder.absolute(), tree, force=True)
        checkpointer.wait_until_finished()
        processes.on_first("manifest", lambda: write_manifest(folder))


def load_tree(folder: Path, target: Any) -> Any:
    """Restores what `save_tree` wrote into the shapes and shardings of `target`.

    Raises:
      StorageError: if a file is missing or differs from the manifest.
    """
    _refuse_damage(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), target)


def load_part(folder: Path, part: Any) -> Any:
    """As `load_tree`, of some of the tree's leaves only: `part` has those."""
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
            f"{folder}: damaged ({problem}); delete its phase folder and run again to remake it"
        )
