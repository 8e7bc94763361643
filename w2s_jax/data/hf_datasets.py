"""Datasets of the Hugging Face hub, or of a local clone of a repository.

Both are read with the package `datasets`, which never runs code of a repository.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError, first_line
from w2s_jax.core.files import is_remote
from w2s_jax.data.documents import stable_id
from w2s_jax.data.records import Reader, data_root, is_folder, reaching
from w2s_jax.data.task import Origin

PARQUET_REVISION = "refs/convert/parquet"  # the hub's own conversion to Parquet
_SCRIPT_ONLY = "scripts are no longer supported"


def clone_folder(origin: Origin, data_dir: str | None) -> Path | None:
    """Return `<data_dir>/<organisation>/<name>` if it exists, else None.

    Raises:
      InputError: it exists, but not on a local disk.
    """
    root = data_root(data_dir)
    if root is None:
        return None
    folder = root / origin.name
    with reaching(folder):
        # A name without organisation may be the folder of a task's own files.
        named = "/" in origin.name or (folder / "README.md").is_file()
        found = named and is_folder(folder) and any(folder.iterdir())
    if not found:
        return None
    if is_remote(folder):
        raise InputError(f"{folder}: clones must be on a local disk; copy the folder")
    return folder


def _cache_of(folder: Path) -> str:
    """Return a cache folder for this state of the files, whose changes `datasets` ignores."""
    import datasets

    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"clone-{stable_id(repr(state)):016x}")


def title_of(origin: Origin) -> str:
    """Return the name of the dataset for messages."""
    return f"hub {origin.name}{_variant(origin)}"


def how_to_clone(origin: Origin) -> str:
    """Return the command that makes a clone, on a machine with access to the hub."""
    return f"hf download --repo-type dataset {origin.name} --local-dir <data_dir>/{origin.name}"


def open_clone(origin: Origin, folder: Path) -> dict[str, Reader]:
    """Return a reader for each split of a local clone.

    Raises:
      InputError: `datasets` is not installed, or cannot read the folder.
    """
    datasets = _import()
    title = f"{folder}{_variant(origin)}"
    config, data_dir = origin.config, origin.folder
    # A clone of the converted revision has no README, and a folder for each configuration.
    if config is not None and not (folder / "README.md").exists() and (folder / config).is_dir():
        config, data_dir = None, config
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            str(folder.resolve()), config, data_dir=data_dir, cache_dir=_cache_of(folder)
        )
    except Exception as error:  # its readers raise errors of any type
        hint = ""
        if _SCRIPT_ONLY in str(error):
            command = f"{how_to_clone(origin)} --revision {PARQUET_REVISION}"
            hint = f"; the hub has it as Parquet: {command}"
        reason = first_line(error.__cause__ or error)
        raise InputError(f"{title}: cannot be read ({reason}){hint}") from error
    return {str(split): _reader(title, split, rows) for split, rows in found.items()}


def open_hub(origin: Origin) -> dict[str, Reader]:
    """Return a reader for each split of a dataset on the hub.

    It is downloaded into the cache of `datasets`. Respects HF_ENDPOINT, HF_TOKEN, HF_HUB_CACHE and
    HF_HUB_OFFLINE.

    Raises:
      InputError: `datasets` is not installed, or the dataset is not available; says what was tried.
    """
    datasets = _import()
    title = title_of(origin)
    tried = f"{origin.name}{_variant(origin)} at {hf_hub.endpoint()}"
    _refuse_unreachable(origin, tried)
    datasets.disable_progress_bars()
    try:
        try:
            found = datasets.load_dataset(origin.name, origin.config, data_dir=origin.folder)
        except RuntimeError as error:
            if _SCRIPT_ONLY not in str(error):
                raise
            # In this revision each configuration is a folder.
            found = datasets.load_dataset(
                origin.name,
                data_dir=origin.config or origin.folder,
                revision=PARQUET_REVISION,
            )
    except Exception as error:  # its readers, and the hub's client, raise errors of any type
        if _offline():
            raise InputError(
                f"{tried}: offline mode (HF_HUB_OFFLINE) and not in the cache ({first_line(error)})"
            ) from error
        raise InputError(f"{tried}: {first_line(error)}") from error
    return {str(split): _reader(title, split, rows) for split, rows in found.items()}


def _refuse_unreachable(origin: Origin, tried: str) -> None:
    """Ask the hub first, because `datasets` takes half a minute without a network."""
    if _offline():
        return  # the cache may have the dataset
    try:
        hf_hub.ask("dataset", origin.name, tried)
    except hf_hub.Unreachable as error:
        raise InputError(
            f"{tried}: not reachable ({error}; if it was downloaded before, set HF_HUB_OFFLINE=1)"
        ) from error


def _offline() -> bool:
    import datasets

    return bool(hf_hub.offline() or datasets.config.HF_HUB_OFFLINE)


def _reader(title: str, split: Any, rows: Any) -> Reader:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(rows, 1):
            yield f"{title}, split {split}, row {number}", dict(row)
        if not len(rows):
            raise InputError(f"{title}, split {split}: it holds no records")

    return read


def _variant(origin: Origin) -> str:
    """Return ' (config)', ' (config, folder)', or ''."""
    parts = [part for part in (origin.config, origin.folder) if part]
    return f" ({', '.join(parts)})" if parts else ""


def _import() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"task.source: the hub needs the package datasets; {hf_hub.INSTALL}"
        ) from error
    return datasets
