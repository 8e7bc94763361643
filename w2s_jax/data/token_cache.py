"""The on-disk cache of tokens: one .npz per list of texts, named by a hash of its inputs."""

import contextlib
import functools
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from w2s_jax.core.errors import first_line
from w2s_jax.core.files import atomic_write, cache_folder
from w2s_jax.data.tokenizers import ByteTokenizer, Tokenizer

log = logging.getLogger(__name__)

#: Size limit of the cache; the least recently used files are removed first.
CACHE_BYTES = 4 * 2**30


def encode_cached(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return `tokenizer.encode_batch(texts)`, from the cache if possible.

    The cache is the folder `tokens` of the user's cache (see `files.cache_folder`), limited to
    `CACHE_BYTES`. Damaged files are replaced; an unwritable folder is not an error. Bytes are not
    cached, because encoding them is faster than reading.
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


def _read_cache(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        # Zip files have a checksum of each array.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            tokens_T, lengths_N = arrays["tokens_T"], arrays["lengths_N"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # a damaged file can raise errors of any type
        _warn_once(f"{path}: cached tokens cannot be used ({first_line(error)}); encoding again")
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return tokens_T.astype(np.int32), lengths_N.astype(np.int64)


# Folders where writing has failed, which are not tried again.
_UNWRITABLE: set[Path] = set()


def _write_cache(path: Path, tokens_T: np.ndarray, lengths_N: np.ndarray) -> None:
    folder = path.parent
    if folder in _UNWRITABLE:
        return
    largest = int(tokens_T.max(initial=0))
    small_T = tokens_T.astype(np.min_scalar_type(largest))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, tokens_T=small_T, lengths_N=lengths_N.astype("<i8"))
    except OSError as error:
        _UNWRITABLE.add(folder)
        _warn_once(
            f"{folder}: tokens are not cached ({first_line(error)}); set W2S_CACHE_DIR to a "
            "writable folder, or to nothing to switch the cache off"
        )
        return
    _prune(folder, keep=path)


def _prune(folder: Path, keep: Path) -> None:
    """Delete the least recently used files above `CACHE_BYTES`, and files of killed writers."""
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
