"""Files of a folder in Hugging Face's layout: config.json, safetensors and tokenizer files.

Only safetensors and JSON are read, never pickles. Imports no JAX.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import contents, read_json, write_json
from w2s_jax.models.notes import say

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: The file in which sentence-transformers configures pooling.
POOLING = "1_Pooling/config.json"
#: The list of its modules.
MODULES = "modules.json"
#: Files of PEFT's adapters.
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"

#: Tokenizer files that are downloaded and copied with a model.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)

#: Tensor types that parameters may have, in safetensors' spelling.
FLOATS = ("F32", "F16", "BF16")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, as described by the file's header.

    With `deltas` it is a matrix to which these are added. A tensor of another kind of file has a
    function `read` that returns a slice, as `read_box` does.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    deltas: tuple["Delta", ...] = ()
    read: Callable[[Sequence[tuple[int, int]]], np.ndarray] | None = None

    @property
    def location(self) -> str:
        """File and tensor name, for error messages."""
        return f"{self.file}: tensor {self.name!r}"

    @property
    def stamp(self) -> tuple[int, int]:
        """Time and size of the file, by which a change is noticed."""
        status = self.file.stat()
        return status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class Delta:
    """A low-rank matrix, scale * B A: [outputs, inputs], or its transpose."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    transposed: bool

    def read(self, box: Sequence[tuple[int, int]]) -> np.ndarray:
        """Read a slice, as float32."""
        inputs, outputs = box if self.transposed else box[::-1]
        rank = (0, self.a.shape[0])
        a = read_box(self.a, (rank, inputs)).astype(np.float32)
        b = read_box(self.b, (outputs, rank)).astype(np.float32)
        delta = np.float32(self.scale) * (b @ a)
        return delta.T if self.transposed else delta


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json.

    Raises:
      InputError: if it is missing or not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} has no {CONFIG}; give a folder in Hugging Face's layout ({CONFIG} and "
            f"{SINGLE}) or the folder of a trained phase"
        )
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
      InputError: if the file cannot be read, or holds something else.
    """
    return _read(path, dict, "object")


def read_list(path: Path) -> list[Any]:
    """Return the list in a JSON file, as `read_object` does."""
    return _read(path, list, "list")


def _read(path: Path, kind: type, name: str) -> Any:
    try:
        record = read_json(path)
    except (OSError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(record, kind):
        raise InputError(f"{path}: expected a JSON {name}, found {type(record).__name__}")
    return record


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a folder by name. Reads only the headers of the files.

    Raises:
      InputError: if there are no safetensors, or one of the files is missing or damaged.
    """
    if (folder / SINGLE).is_file():
        if (folder / INDEX).is_file():
            say(f"{folder}: has {SINGLE} and {INDEX}; the former is used, as in transformers")
        if (folder / ADAPTER_CONFIG).is_file():
            say(f"{folder}: has {SINGLE} and adapters, which are not applied")
        return {tensor.name: tensor for tensor in open_file(folder / SINGLE)}
    if (folder / INDEX).is_file():
        return _open_index(folder)
    raise _nothing(folder)


def _open_index(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(f, str) for f in files.values()):
        raise InputError(f"{index}: has no 'weight_map' from tensor names to file names")
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(files.values()):
        if Path(file).name != file or "\0" in file or len(file.encode()) > 255:
            raise InputError(f"{index}: {file[:80]!r} is not the name of a file in the same folder")
        if not (folder / file).is_file():
            tensor = next(name for name, other in files.items() if other == file)
            raise InputError(f"{index}: the file {file!r} (with tensor {tensor!r}) is missing")
        found |= {tensor.name: tensor for tensor in open_file(folder / file)}
    for name, file in files.items():
        if name not in found:
            raise InputError(f"{folder / file}: tensor {name!r} is missing, but listed in {INDEX}")
    return found


def _nothing(folder: Path) -> InputError:
    """Return the error for a folder without model.safetensors and without an index."""
    files = [path.name for path in contents(folder)] if folder.is_dir() else []
    others = [name for name in files if name.endswith(".safetensors")]
    if others:
        return InputError(
            f"{folder}: has {others[0]!r}, but neither {SINGLE} nor {INDEX}; add one of these"
        )
    return no_safetensors(str(folder), files)


def no_safetensors(location: str, files: Iterable[str]) -> InputError:
    """Return the error for a folder or repository whose `files` include no safetensors."""
    pickles = sorted(name for name in files if name.endswith(_PICKLES))
    if not pickles:
        return InputError(f"{location}: has no safetensors; {SINGLE} or {INDEX} is needed")
    return InputError(
        f"{location}: has {pickles[0]!r} but no safetensors, and pickles are never read; convert "
        'it where PyTorch is installed: python -c "import transformers as t; '
        f"t.AutoModelForCausalLM.from_pretrained('{location}').save_pretrained('NEW_FOLDER')\""
    )


def open_file(file: Path) -> list[StoredTensor]:
    """Return the tensors of a safetensors file.

    Raises:
      InputError: if it is damaged.
    """
    with _opened(file) as handle:
        tensors = []
        for name in handle.keys():  # noqa: SIM118 (not a dict)
            piece = handle.get_slice(name)
            shape = tuple(int(size) for size in piece.get_shape())
            tensors.append(StoredTensor(file, name, shape, str(piece.get_dtype())))
    return tensors


def read_box(tensor: StoredTensor, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """Read a slice of a tensor, and nothing else of the file.

    The file is mapped only during the call, so that none of it stays in memory.

    Args:
      tensor: the tensor.
      box: (start, stop) on each of its axes.

    Returns:
      The slice, in the dtype of the file; in float32 if there are deltas.

    Raises:
      InputError: if the file is damaged or has changed.
    """
    if tensor.read is not None:
        data = tensor.read(box)
    else:
        with _opened(tensor.file) as handle:
            piece = handle.get_slice(tensor.name)
            data = np.asarray(piece[tuple(slice(start, stop) for start, stop in box) or ...])
    for delta in tensor.deltas:
        data = data.astype(np.float32) + delta.read(box)
    return data


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    # Registers bfloat16 with NumPy.
    import ml_dtypes  # noqa: F401
    import safetensors

    try:
        with safetensors.safe_open(file, framework="np") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        with contextlib.suppress(OSError), file.open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(
                    f"{file}: is a Git LFS pointer, not the file itself; run git lfs pull"
                ) from error
        reason = " ".join(str(error).split())
        raise InputError(
            f"{file}: is damaged or truncated ({reason}); download it again"
        ) from error


def tokenizer_files(folder: Path) -> list[str]:
    """Return the names of the tokenizer files in a folder."""
    return [name for name in TOKENIZER_FILES if (folder / name).is_file()]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of the folder `source`."""
    for name in tokenizer_files(source):
        shutil.copyfile(source / name, target / name)


def group_shards(sizes: Iterable[tuple[str, int]], shard_bytes: int) -> list[list[str]]:
    """Group (name, bytes) in order, with at most `shard_bytes` or one tensor per group."""
    groups: list[list[str]] = []
    room = 0
    for name, size in sizes:
        if not groups or size > room:
            groups.append([])
            room = shard_bytes
        groups[-1].append(name)
        room -= size
    return groups


def shard_names(count: int) -> list[str]:
    """Return the file names of a model in `count` shards."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file and flush it to the disk.

    Raises:
      OSError: if the file cannot be written.
    """
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})  # required by transformers
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_index(folder: Path, groups: Sequence[Sequence[str]], total_bytes: int) -> None:
    """Write the index of several shards."""
    shards = zip(groups, shard_names(len(groups)), strict=True)
    files = {name: file for names, file in shards for name in names}
    metadata = {"total_size": total_bytes}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(files.items()))})
