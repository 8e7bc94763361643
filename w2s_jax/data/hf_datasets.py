"""The Hugging Face hub: a local clone of a dataset's repository, or the hub itself.

Both are read with the package `datasets`, which never runs code of a repository.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2s_jax.core import hf_hub
from w2s_jax.core.errors import InputError
from w2s_jax.data.documents import stable_id
from w2s_jax.data.records import Reader, data_root, is_folder, is_local, reaching, short
from w2s_jax.data.task import Origin

PARQUET_REVISION = "refs/convert/parquet"  # where the hub keeps what it converted to Parquet
_SCRIPT_ONLY = "scripts are no longer supported"


def clone_folder(origin: Origin, data_dir: str | None) -> Path | None:
    """`<data_dir>/<organisation>/<name>`, if it is there; None otherwise.

    Raises:
      InputError: it is there, but the data folder is not on a local disk.
    """
    root = data_root(data_dir)
    if root is None:
        return None
    folder = root / origin.name
    with reaching(folder):
        # A name without organisation could be the folder of a task's own files.
        named = "/" in origin.name or (folder / "README.md").is_file()
        found = named and is_folder(folder) and any(folder.iterdir())
    if not found:
        return None
    if not is_local(folder):
        raise InputError(f"{folder}: a clone can be read from a local path only; copy the folder")
    return folder


def _cache_of(folder: Path) -> str:
    """Where `datasets` keeps what it converts: it would not notice that the files have changed."""
    import datasets

    files = sorted(path for path in folder.resolve().rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / f"clone-{stable_id(repr(state)):016x}")


def place_of(origin: Origin) -> str:
    """The dataset, for people and for errors."""
    return f"hub {origin.name}{_variant(origin)}"


def how_to_clone(origin: Origin) -> str:
    """How to get a clone, on a machine that reaches the hub."""
    return f"hf download --repo-type dataset {origin.name} --local-dir <data_dir>/{origin.name}"


def open_clone(origin: Origin, folder: Path) -> dict[str, Reader]:
    """For each split of a local clone a function that yields (place, record).

    Raises:
      InputError: `datasets` is not installed, or cannot read the folder.
    """
    datasets = _import()
    place = f"{folder}{_variant(origin)}"
    config, data_dir = origin.config, origin.folder
    # A clone of the converted revision has no README: there a configuration is a folder.
    if config is not None and not (folder / "README.md").exists() and (folder / config).is_dir():
        config, data_dir = None, config
    datasets.disable_progress_bars()
    try:
        found = datasets.load_dataset(
            str(folder.resolve()), config, data_dir=data_dir, cache_dir=_cache_of(folder)
        )
    except Exception as error:  # it raises whatever its readers do
        hint = ""
        if _SCRIPT_ONLY in str(error):
            hint = f"; the hub has it as Parquet: {how_to_clone(origin)} --revision " + (
                PARQUET_REVISION
            )
        reason = short(error.__cause__ or error)
        raise InputError(f"{place}: cannot be read ({reason}){hint}") from error
    return {str(split): _reader(place, split, rows) for split, rows in found.items()}


def open_hub(origin: Origin) -> dict[str, Reader]:
    """For each split of a dataset on the hub a function that yields (place, record).

    It is downloaded into the cache of `datasets`; the environment's HF_ENDPOINT, HF_TOKEN,
    HF_HUB_CACHE and HF_HUB_OFFLINE hold.

    Raises:
      InputError: `datasets` is not installed, or the dataset cannot be had; says what was tried.
    """
    datasets = _import()
    place = place_of(origin)
    tried = f"{origin.name}{_variant(origin)} at {hf_hub.endpoint()}"
    _knock(origin, tried)
    datasets.disable_progress_bars()
    try:
        try:
            found = datasets.load_dataset(origin.name, origin.config, data_dir=origin.folder)
        except RuntimeError as error:
            if _SCRIPT_ONLY not in str(error):
                raise
            # There each configuration is a folder of Parquet files.
            found = datasets.load_dataset(
                origin.name,
                data_dir=origin.config or origin.folder,
                revision=PARQUET_REVISION,
            )
    except Exception as error:  # it raises whatever its readers, or the hub's client, do
        if _offline():
            raise InputError(
                f"{tried}: offline mode (HF_HUB_OFFLINE) and not in the cache ({short(error)})"
            ) from error
        raise InputError(f"{tried}: {short(error)}") from error
    return {str(split): _reader(place, split, rows) for split, rows in found.items()}


def _knock(origin: Origin, tried: str) -> None:
    """Asks the hub first: `datasets` takes half a minute without a network."""
    if _offline():
        return  # the cache may have it
    try:
        hf_hub.ask("dataset", origin.name, tried)
    except hf_hub.Unreachable as error:
        raise InputError(
            f"{tried}: not reachable ({error}; if it was downloaded before, set HF_HUB_OFFLINE=1)"
        ) from error


def _offline() -> bool:
    import datasets

    return bool(hf_hub.offline() or datasets.config.HF_HUB_OFFLINE)


def _reader(place: str, split: Any, rows: Any) -> Reader:
    def read() -> Iterator[tuple[str, dict[str, Any]]]:
        for number, row in enumerate(rows, 1):
            yield f"{place}, split {split}, row {number}", dict(row)
        if not len(rows):
            raise InputError(f"{place}, split {split}: it holds no records")

    return read


def _variant(origin: Origin) -> str:
    """' (config)', ' (config, folder)', or nothing."""
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
