"""Read GGUF files (llama.cpp) with the package `gguf`: metadata, and tensors made float32.

A tensor is read and dequantised by rows, so that no more than the rows that are wanted are in
memory. Imports no JAX.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError, first_line

SUFFIX = ".gguf"
#: Types that are not quantised.
PLAIN = ("F32", "F16", "BF16")
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a GGUF file.

    Attributes:
      file: the file.
      name: its name there.
      shape: its shape, rows first.
      type: its type in GGUF's spelling: 'F32', 'Q4_1', ...
      offset: of its first byte in the file.
      row_bytes: bytes of a row; of a vector, of all of it.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    row_bytes: int

    @property
    def location(self) -> str:
        """File and tensor name, for error messages."""
        return f"{self.file}: tensor {self.name!r}"

    def rows(self, wanted: slice | np.ndarray) -> np.ndarray:
        """Return some rows, or elements of a vector, as float32.

        The file is mapped only during the call, so that none of it stays in memory.

        Raises:
          InputError: if the file has changed.
        """
        gguf = package(self.file)
        vector = len(self.shape) == 1
        stored = (1 if vector else self.shape[0], self.row_bytes)
        try:
            mapped = np.memmap(self.file, np.uint8, "r", self.offset, stored)
        except (OSError, ValueError) as error:
            raise _damaged(self.file, error) from error
        data = np.ascontiguousarray(mapped if vector else mapped[wanted])
        kind = gguf.GGMLQuantizationType[self.type]
        values = np.asarray(gguf.dequantize(data, kind), np.float32)
        return values[0][wanted] if vector else values


@dataclass(frozen=True)
class GgufModel:
    """The metadata and the tensors of a GGUF file, or of all files into which one is split.

    Attributes:
      path: the file that was given.
      metadata: key -> value; arrays are lists.
      tensors: name -> tensor.
      files: all files, in order.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    files: tuple[Path, ...]

    @property
    def quantisation(self) -> str:
        """The type of most of the quantised numbers; '' if there are none."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            if tensor.type not in PLAIN:
                sizes[tensor.type] += math.prod(tensor.shape)
        return max(sizes, key=lambda kind: sizes[kind], default="")


def dequantised(quantisation: str) -> str:
    """Return what the name of a model says of the type of its tensors; '' for floats."""
    return f" (dequantised from {quantisation})" if quantisation else ""


def origin_of(name: str) -> str:
    """Return what `dequantised` has added to the name of a model; '' if it has not."""
    found = re.search(r" \(dequantised from \w+\)", name)
    return found[0] if found else ""


def is_gguf(path: Path) -> bool:
    """Return whether a path is that of a GGUF file."""
    return path.suffix == SUFFIX and path.is_file()


def package(path: Path) -> ModuleType:
    """Return the package `gguf`.

    Raises:
      InputError: it is not installed; names the file that needs it.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path}: GGUF files need the package gguf; install it with pip install 'w2s_jax[gguf]'"
        ) from error
    return gguf


def read_gguf(path: Path) -> GgufModel:
    """Read the metadata of a GGUF file, and where its tensors are.

    Of a file that is split, any part may be given; the others must be in the same folder.

    Raises:
      InputError: if a file is damaged or missing, or a tensor has a type that is not known.
    """
    parts = _parts(path.absolute())
    found = [_read(part, *_stamp(part)) for part in parts]
    tensors: dict[str, GgufTensor] = {}
    for part in found:
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise InputError(
                    f"{tensor.location}: is in {tensors[name].file.name} too; download both again"
                )
            tensors[name] = tensor
    wanted = found[0].metadata.get("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise InputError(f"{path}: has {len(tensors)} tensors of {wanted}; download it again")
    return GgufModel(path, found[0].metadata, tensors, tuple(parts))


def _parts(path: Path) -> list[Path]:
    """Return the files of a model, of which `path` is one."""
    named = _PART.fullmatch(path.name)
    if named is None:
        count = _read(path, *_stamp(path)).metadata.get("split.count", 0)
        if count > 1:
            raise InputError(
                f"{path}: is one of {count} parts, but not named as such; expected "
                f"NAME-00001-of-{count:05d}.gguf"
            )
        return [path]
    count = int(named["count"])
    parts = [
        path.with_name(f"{named['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of its {count} parts are missing from the folder: "
            f"{', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        )
    return parts


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=8)
def _read(path: Path, *stamp: int) -> GgufModel:
    """Read one file; `stamp` shows whether it has changed."""
    del stamp
    gguf = package(path)
    try:
        reader = _reader(gguf)(path)
        metadata = {
            name: field.contents()
            for name, field in reader.fields.items()
            if not name.startswith("GGUF.")
        }
        order = reader.byte_order
    except Exception as error:  # damaged files raise errors of many types
        unknown = re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error))
        if unknown:
            raise InputError(
                f"{path}: has tensors of an unknown type (number {unknown[1]}); known: "
                f"{', '.join(_known(gguf))}"
            ) from error
        raise _damaged(path, error) from error
    if order != "I":
        raise InputError(f"{path}: has the byte order of other machines; convert it with llama.cpp")
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        shape = tuple(int(size) for size in reversed(tensor.shape))
        name = f"{path}: tensor {tensor.name!r}"
        if not _is_known(gguf, kind):
            raise InputError(
                f"{name}: type {kind.name} is not supported; known: {', '.join(_known(gguf))}"
            )
        if not 1 <= len(shape) <= 2 or 0 in shape:
            raise InputError(f"{name}: has shape {list(shape)}; expected a vector or a matrix")
        rows = 1 if len(shape) == 1 else shape[0]
        tensors[tensor.name] = GgufTensor(
            path,
            tensor.name,
            shape,
            kind.name,
            int(tensor.data_offset),
            int(tensor.n_bytes) // rows,
        )
    return GgufModel(path, metadata, tensors, (path,))


@functools.cache
def _reader(gguf: ModuleType) -> Any:
    """Return the package's reader, made to notice the end of the file.

    It would read an array that a damaged header makes endless to its end.
    """

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined]
        def _get(self, offset: int, dtype: Any, count: int = 1, *args: Any, **kwargs: Any) -> Any:
            found = super()._get(offset, dtype, count, *args, **kwargs)
            if len(found) < count:
                raise ValueError("the file ends early")
            return found

    return Reader


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: is damaged or truncated, or not a GGUF file ({first_line(error)}); "
        "download it again"
    )


@functools.cache
def _is_known(gguf: ModuleType, kind: Any) -> bool:
    """Return whether the package dequantises tensors of a type."""
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
    try:
        return bool(gguf.dequantize(block, kind).size)
    except NotImplementedError:
        return False


def _known(gguf: ModuleType) -> list[str]:
    return [kind.name for kind in gguf.GGMLQuantizationType if _is_known(gguf, kind)]
