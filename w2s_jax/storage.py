"""Trees of arrays on disk by Orbax, each with a manifest of sha256 sums checked before it is used.

Orbax does not notice a byte that flipped on disk. The manifest of a folder stands beside it
(`<folder>.manifest.json`) and is written last; what has none, or differs from it, is damaged.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from w2s_jax import errors
from w2s_jax.files import sha256, write_json


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
    extra = sorted(found.keys() - wanted.keys())
    return f"{extra[0]} does not belong there" if extra else None


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


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
    problem = damage(folder)
    if problem:
        raise errors.StorageError(
            f"{folder}: damaged ({problem}); delete its phase folder and run again to remake it"
        )
