"""Formats of files with ids and an array of a row for each, such as features. Imports no JAX."""

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line, listed, unknown

_IDS = "ids"
#: Rows that are read at a time where a format does not give single ones.
_BLOCK = 4096


@dataclass(frozen=True)
class _Format:
    """A format: (path) -> ids; (path, name) -> shape; (path, name, sorted rows) -> these rows."""

    ids: Callable[[Path], np.ndarray]
    shape: Callable[[Path, str], tuple[int, ...]]
    rows: Callable[[Path, str, np.ndarray], np.ndarray]


def check_suffix(path: Path, subject: str) -> None:
    """Check that a file has a known ending.

    Raises:
      InputError: it has not.
    """
    if path.suffix not in _FORMATS:
        raise unknown(f"{subject}: its ending", path.suffix, SUFFIXES)


def has_ids_of(path: Path) -> bool:
    """Return whether a .npy file has the ids of another one."""
    return path.name.endswith(".ids.npy")


def read_ids(path: Path) -> list[int | str]:
    """Return the ids of a file, in its order.

    Raises:
      InputError: it cannot be read, or they are neither integers nor text.
    """
    with _naming(path):
        ids = _FORMATS[path.suffix].ids(path)
    if ids.ndim != 1:
        raise InputError(f"{path}: ids of shape {list(ids.shape)}; allowed: [N]")
    if ids.dtype.kind == "S":
        ids = np.char.decode(ids, "utf-8")
    if ids.dtype.kind not in "iuU":
        advice = "doubles round ids" if ids.dtype.kind == "f" else "save no Python objects"
        raise InputError(
            f"{path}: ids of dtype {ids.dtype}; allowed: integers or text ({advice}; ids as text "
            "are '0x' and 16 hexadecimal digits, as `w2s data ids` writes them)"
        )
    found: list[int | str] = ids.tolist()
    return found


def shape_of(path: Path, name: str) -> tuple[int, ...]:
    """Return the shape of the array `name` of a file.

    Raises:
      InputError: it cannot be read.
    """
    with _naming(path):
        return _FORMATS[path.suffix].shape(path, name)


def read_rows(path: Path, name: str, rows_N: np.ndarray) -> np.ndarray:
    """Return rows of the array `name` of a file, in the order of `rows_N`, in the file's dtype.

    Raises:
      InputError: it cannot be read.
    """
    wanted_M, back_N = np.unique(rows_N, return_inverse=True)
    with _naming(path):
        return _FORMATS[path.suffix].rows(path, name, wanted_M)[back_N]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever a library raises about a bad file into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        pickled = isinstance(error, ValueError) and "allow_pickle" in str(error)
        why = "it has Python objects; save ids as text: np.array(ids, str)" if pickled else None
        raise InputError(f"{path}: cannot be read: {why or first_line(error)}") from error


# --- .npz and .npy --------------------------------------------------------------------------------


def _npz_member(path: Path, name: str) -> np.ndarray:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is not an .npz file; write it with np.savez")
    with np.load(path, allow_pickle=False) as file:
        if name not in file:
            raise InputError(_lacks(path, "array", name, file.files))
        return np.asarray(file[name])


def _npz_shape(path: Path, name: str) -> tuple[int, ...]:
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            names = [found.removesuffix(".npy") for found in archive.namelist()]
            raise InputError(_lacks(path, "array", name, names))
        with archive.open(f"{name}.npy") as member:
            major, _ = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0
            read = read if major == 1 else np.lib.format.read_array_header_2_0
            return tuple(read(member)[0])


def _npy_ids(path: Path) -> np.ndarray:
    beside = path.with_name(f"{path.stem}.ids.npy")
    if not beside.exists():
        raise InputError(f"{path}: the file with its ids is missing: {beside.name}, beside it")
    with _naming(beside):
        return np.asarray(np.load(beside, allow_pickle=False))


def _npy(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


# --- .safetensors ---------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        if name not in file.keys():  # noqa: SIM118  (not a mapping)
            raise InputError(_lacks(path, "tensor", name, file.keys()))
        yield file


def _safetensors_ids(path: Path) -> np.ndarray:
    with _opened(path, _IDS) as file:
        return np.asarray(file.get_tensor(_IDS))


def _safetensors_shape(path: Path, name: str) -> tuple[int, ...]:
    with _opened(path, name) as file:
        return tuple(file.get_slice(name).get_shape())


def _safetensors_rows(path: Path, name: str, rows_M: np.ndarray) -> np.ndarray:
    with _opened(path, name) as file:
        part = file.get_slice(name)
        blocks = []
        for block in np.unique(rows_M // _BLOCK):
            here_M = rows_M[rows_M // _BLOCK == block]
            first, last = int(here_M[0]), int(here_M[-1])
            blocks.append(part[first : last + 1][here_M - first])
        return np.concatenate(blocks)


# --- .parquet -------------------------------------------------------------------------------------


def _column(path: Path, name: str) -> Any:
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    if name not in names:
        raise InputError(_lacks(path, "column", name, names))
    return pq.ParquetFile(path)


def _parquet_ids(path: Path) -> np.ndarray:
    column = _column(path, "id").read(["id"])["id"]
    if column.null_count:
        raise InputError(f"{path}: {column.null_count:,} rows have no id")
    values = column.to_pylist()
    return np.array(values, str) if values and isinstance(values[0], str) else column.to_numpy()


def _parquet_shape(path: Path, name: str) -> tuple[int, ...]:
    file = _column(path, name)
    count: int = file.metadata.num_rows
    for batch in file.iter_batches(1, columns=[name]):
        return (count, *_lists(batch.column(0), path, 0).shape[1:])
    return (0, 0)


def _parquet_rows(path: Path, name: str, rows_M: np.ndarray) -> np.ndarray:
    start, found = 0, []
    for batch in _column(path, name).iter_batches(_BLOCK, columns=[name]):
        low, high = np.searchsorted(rows_M, [start, start + len(batch)])
        if low < high:
            picked = batch.column(0).take(rows_M[low:high] - start)
            found.append(_lists(picked, path, start))
        start += len(batch)
    return np.concatenate(found)


def _lists(column: Any, path: Path, start: int) -> np.ndarray:
    """Return a column of (nested) lists of one length as an array [N, ...]."""
    import pyarrow as pa
    import pyarrow.compute as pc

    shape = [len(column)]
    while (
        pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
        or (pa.types.is_fixed_size_list(column.type))
    ):
        lengths = pc.list_value_length(column)
        sizes = pc.unique(lengths).to_pylist()
        if len(sizes) > 1 or None in sizes:
            raise InputError(
                f"{path}: rows have different lengths, or are missing (at row {start} "
                f"or after: {', '.join(map(str, sizes[:3]))})"
            )
        shape.append(sizes[0])
        column = column.flatten()
    if column.null_count:
        raise InputError(f"{path}: {column.null_count:,} numbers at row {start} or after are null")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(shape)


def _lacks(path: Path, what: str, name: str, found: Any) -> str:
    return f"{path}: has no {what} {name!r}; it has: {listed(sorted(found))}"


_FORMATS = {
    ".npz": _Format(
        lambda path: _npz_member(path, _IDS),
        _npz_shape,
        lambda path, name, rows_M: _npz_member(path, name)[rows_M],
    ),
    ".npy": _Format(
        _npy_ids,
        lambda path, name: _npy(path).shape,
        lambda path, name, rows_M: _npy(path)[rows_M],
    ),
    ".safetensors": _Format(_safetensors_ids, _safetensors_shape, _safetensors_rows),
    ".parquet": _Format(_parquet_ids, _parquet_shape, _parquet_rows),
}
#: The endings of such files.
SUFFIXES = tuple(_FORMATS)
