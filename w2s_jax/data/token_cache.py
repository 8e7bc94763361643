"""Tokens on disk: one .npz a list of texts, named by the hash of all that decides its content."""

import contextlib
import functools
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2s_jax.core.files import cache_folder
from w2s_jax.data.tokenizer_files import one_line
from w2s_jax.data.tokenizers import ByteTokenizer, Tokenizer

log = logging.getLogger(__name__)

#: The tokens of at most this many bytes of files are kept on disk; the least lately used go first.
CACHE_BYTES = 4 * 2**30


def encode_cached(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`tokenizer.encode_batch(texts)`, from the cache on disk if it has been done before.

    The cache is the folder `tokens` of the user's (see `files.cache_folder`). It is bounded by
    `CACHE_BYTES`. What is damaged there is made again; where nothing can be written, nothing is
    kept. Bytes are faster made than read, so they are not cached.
    """
    folder = None if isinstance(tokenizer, ByteTokenizer) else cache_folder("tokens")
    if folder is None:
        return tokenizer.encode_batch(texts)
    path = folder / f"{_key(tokenizer, texts)}.npz"
    found = _read_cache(path)
    if found is None:
        found = tokenizer.encode_batch(texts)
        _write_cache(path, *found)
    return found


def _key(tokenizer: Tokenizer, texts: Sequence[str]) -> str:
    sha = hashlib.sha256(f"{tokenizer.digest};{len(texts)};".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def _checksum(name: str, tokens_T: np.ndarray, lengths_N: np.ndarray) -> np.ndarray:
    sha = hashlib.sha256(f"{name};{tokens_T.dtype.str};{tokens_T.shape};".encode())
    sha.update(np.ascontiguousarray(tokens_T).data)
    sha.update(np.ascontiguousarray(lengths_N, "<i8").data)
    return np.frombuffer(sha.digest(), np.uint8)


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tokens_T, lengths_N = arrays["tokens_T"], arrays["lengths_N"]
            checksum = _checksum(path.name, tokens_T, lengths_N)
            if not np.array_equal(arrays["checksum"], checksum):
                raise ValueError("the checksum differs")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # A damaged file can raise nearly anything.
        _warn_once(
            f"{path}: these cached tokens cannot be used ({one_line(error)}); making them again"
        )
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return tokens_T.astype(np.int32), lengths_N.astype(np.int64)


# Folders in which writing has failed: not tried again.
_UNWRITABLE: set[Path] = set()


def _write_cache(path: Path, tokens_T: np.ndarray, lengths_N: np.ndarray) -> None:
    folder = path.parent
    if folder in _UNWRITABLE:
        return
    largest = int(tokens_T.max(initial=0))
    small_T = tokens_T.astype(np.min_scalar_type(largest))
    temporary = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                np.savez(
                    file,
                    tokens_T=small_T,
                    lengths_N=lengths_N.astype("<i8"),
                    checksum=_checksum(path.name, small_T, lengths_N),
                )
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        _UNWRITABLE.add(folder)
        _warn_once(
            f"{folder}: tokens are not cached ({one_line(error)}); set W2S_CACHE_DIR to a folder "
            "that can be written to, or to nothing"
        )
        return
    _prune(folder, keep=path)


def _prune(folder: Path, keep: Path) -> None:
    """Deletes the least lately used files above `CACHE_BYTES`, and what killed writers left."""
    total, files = 0, []
    # Other processes may delete the same files at the same time.
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                status = entry.stat()
                if entry.name.endswith(".npz"):
                    total += status.st_size
                    files.append((status.st_mtime, status.st_size, entry.path))
                elif entry.name.endswith(".tmp") and status.st_mtime < time.time() - 86_400:
                    os.unlink(entry.path)
    for _, size, path in sorted(files):
        if total <= CACHE_BYTES:
            break
        if path != str(keep):
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    log.warning(message)
