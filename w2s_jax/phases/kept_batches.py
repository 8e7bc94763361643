"""Batches of completions that a label pass has finished, kept until all are stored.

A label pass of a large model takes hours. Each finished batch is a file, so that an attempt that
was killed continues after the last one. The files of another pass over the same split, with other
batches, are not used: a name tells what a batch was made from.
"""

import hashlib
import io
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from w2s_jax.core import processes
from w2s_jax.core.files import atomic_write, remove_folder

log = logging.getLogger(__name__)


class KeptBatches:
    """The finished batches of one split.

    Args:
      folder: where they are kept; shared by the splits of a phase.
      split: the split.
      key: everything that decides what a batch of a number is.
    """

    def __init__(self, folder: Path, split: str, key: str):
        self.folder = folder
        self.prefix = f"{split}-{hashlib.sha256(key.encode()).hexdigest()[:12]}-"

    def found(self) -> dict[int, dict[str, np.ndarray]]:
        """Return number -> arrays of the batches that are kept; those that are damaged are removed.

        All of several processes read what the first one found whole.
        """
        numbers = processes.on_first("kept batches", self._whole)
        return {number: _read(self._path(number)) for number in numbers}

    def _whole(self) -> list[int]:
        numbers = []
        for path in sorted(self.folder.glob(f"{self.prefix}*.batch")):
            try:
                _read(path)
            except (OSError, ValueError):
                log.warning("%s is damaged; its documents are completed again", path)
                path.unlink()
            else:
                numbers.append(int(path.stem.rpartition("-")[2]))
        return numbers

    def _path(self, number: int) -> Path:
        return self.folder / f"{self.prefix}{number:06d}.batch"

    def keep(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep a finished batch; of several processes the first one does."""
        if not processes.is_first():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        data = buffer.getvalue()
        with atomic_write(self._path(number)) as file:
            file.write(hashlib.sha256(data).digest() + data)


def discard(folder: Path) -> None:
    """Remove all kept batches of a phase."""
    processes.on_first("discard batches", lambda: remove_folder(folder))


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file; `ValueError` if it does not match its checksum."""
    content = path.read_bytes()
    digest, data = content[:32], content[32:]
    if hashlib.sha256(data).digest() != digest:
        raise ValueError(f"{path}: damaged")
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return dict(file)
