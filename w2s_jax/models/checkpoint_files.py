"""Folders in Hugging Face's layout: config.json, safetensors in one file or several, tokenizers.

Only safetensors and JSON are ever read. Imports no JAX.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import read_json, write_json

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Where sentence-transformers say how a text's token embeddings become one.
POOLING = "1_Pooling/config.json"

#: Everything of a tokenizer that such a folder may hold.
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

#: The types of tensors that can be parameters, as safetensors spells them.
FLOATS = ("F32", "F16", "BF16")

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file: where it is, and what its header says of it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def place(self) -> str:
        """File and tensor, for errors."""
        return f"{self.file}: tensor {self.name!r}"


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder.

    Raises:
      InputError: if there is none, or it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder}: it has no {CONFIG}; allowed: a folder in Hugging Face's layout "
            f"({CONFIG} and {SINGLE}), or that of a trained phase"
        )
    record = _json(path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: {type(record).__name__}; allowed: a JSON object")
    return record


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a folder by name; reads headers only.

    Raises:
      InputError: if there are no safetensors, or one of the files is missing or damaged.
    """
    if (folder / SINGLE).is_file():
        return {tensor.name: tensor for tensor in _headers(folder / SINGLE)}
    if (folder / INDEX).is_file():
        return _open_index(folder)
    raise _nothing(folder)


def _open_index(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX
    record = _json(index)
    places = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(places, dict) or not all(isinstance(f, str) for f in places.values()):
        raise InputError(f"{index}: it has no 'weight_map' of tensors to file names")
    found: dict[str, StoredTensor] = {}
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file:
            raise InputError(f"{index}: file {file!r}; allowed: the name of a file beside it")
        if not (folder / file).is_file():
            tensor = next(name for name, place in places.items() if place == file)
            raise InputError(f"{index}: names {file!r} (for tensor {tensor!r}), which is missing")
        found |= {tensor.name: tensor for tensor in _headers(folder / file)}
    for name, file in places.items():
        if name not in found:
            raise InputError(
                f"{folder / file}: tensor {name!r} is missing; {INDEX} says it holds it"
            )
    return found


def _nothing(folder: Path) -> InputError:
    """Why a folder without model.safetensors cannot be read, and what to do."""
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        return InputError(
            f"{folder}: it has {others[0]!r} but no {SINGLE} and no {INDEX}; allowed: one of these"
        )
    files = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return no_safetensors(str(folder), files)


def no_safetensors(place: str, files: Iterable[str]) -> InputError:
    """The answer to a folder or repository `place` that has `files`, none of them safetensors."""
    pickles = sorted(name for name in files if name.endswith(_PICKLES))
    if not pickles:
        return InputError(f"{place}: it has no safetensors; allowed: {SINGLE}, or {INDEX}")
    return InputError(
        f"{place}: it has {pickles[0]!r} but no safetensors, and pickles are never read; convert "
        'it where PyTorch is installed: python -c "import transformers as t; '
        f"t.AutoModelForCausalLM.from_pretrained('{place}').save_pretrained('NEW_FOLDER')\""
    )


def _headers(file: Path) -> list[StoredTensor]:
    with _opened(file) as handle:
        tensors = []
        for name in handle.keys():  # noqa: SIM118 (it is no dict)
            piece = handle.get_slice(name)
            shape = tuple(int(size) for size in piece.get_shape())
            tensors.append(StoredTensor(file, name, shape, str(piece.get_dtype())))
    return tensors


def read_box(tensor: StoredTensor, box: Sequence[tuple[int, int]]) -> np.ndarray:
    """The part of a tensor from start to stop on each axis, in the file's type; reads no more.

    The file is mapped only while this runs, so that none of it stays in memory.

    Raises:
      InputError: if the file is damaged, or has changed.
    """
    with _opened(tensor.file) as handle:
        piece = handle.get_slice(tensor.name)
        return np.asarray(piece[tuple(slice(start, stop) for start, stop in box) or ...])


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    # numpy knows bfloat16 only once this is imported.
    import ml_dtypes  # noqa: F401
    import safetensors

    try:
        with safetensors.safe_open(file, framework="np") as handle:
            yield handle
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        with contextlib.suppress(OSError), file.open("rb") as start:
            if start.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise InputError(
                    f"{file}: a pointer of git-lfs, not the file itself; run git lfs pull"
                ) from error
        reason = " ".join(str(error).split())
        raise InputError(f"{file}: damaged or cut off ({reason}); fetch it again") from error


def check_tokenizer(folder: Path, vocab_size: int, embedding: str) -> None:
    """Sees that the embedding has a row for each token of tokenizer.json, if there is one.

    Args:
      folder: what may hold a tokenizer.json.
      vocab_size: the embedding's rows.
      embedding: where they are, for the error.

    Raises:
      InputError: if a token's id is too large.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return
    record = _json(path)
    try:
        vocab = record["model"].get("vocab", {})
        ids = {token["content"]: token["id"] for token in record.get("added_tokens") or []}
        # Unigram lists pieces in the order of their ids.
        ids |= vocab if isinstance(vocab, dict) else {p[0]: i for i, p in enumerate(vocab)}
        token = max(ids, key=ids.__getitem__, default=None)
        largest = -1 if token is None else int(ids[token])
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a tokenizer ({type(error).__name__}: {error})") from error
    if largest >= vocab_size:
        raise InputError(
            f"{path}: token {token!r} has the id {largest}, {too_few_rows(vocab_size, embedding)}"
        )


def too_few_rows(vocab_size: int, embedding: str) -> str:
    """The end of an error: a tokenizer has more tokens than an embedding has rows."""
    return (
        f"but the embedding has {vocab_size} rows ({embedding}); tokenizer and model do not belong "
        "together"
    )


def tokenizer_files(folder: Path) -> list[str]:
    """The names of what a folder holds of a tokenizer."""
    return [name for name in TOKENIZER_FILES if (folder / name).is_file()]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies what the folder `source` holds of a tokenizer."""
    for name in tokenizer_files(source):
        shutil.copyfile(source / name, target / name)


def group_shards(sizes: Iterable[tuple[str, int]], shard_bytes: int) -> list[list[str]]:
    """Names in order, in groups of at most `shard_bytes` (a tensor that is larger stands alone)."""
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
    """The names of the files of a model in `count` shards."""
    if count == 1:
        return [SINGLE]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


def write_shard(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file and waits until it is on the disk.

    Raises:
      OSError: if it cannot be written.
    """
    import ml_dtypes  # noqa: F401
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(whole, path, metadata={"format": "pt"})  # without which transformers refuses it
    except SafetensorError as error:
        raise OSError(" ".join(str(error).split())) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def write_index(folder: Path, groups: Sequence[Sequence[str]], total_bytes: int) -> None:
    """Writes the index of several shards."""
    files = shard_names(len(groups))
    places = {name: file for names, file in zip(groups, files, strict=True) for name in names}
    metadata = {"total_size": total_bytes}
    write_json(folder / INDEX, {"metadata": metadata, "weight_map": dict(sorted(places.items()))})


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
