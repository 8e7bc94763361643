"""Texts on disk with random access, for streams."""

import functools
import itertools
import os
from array import array
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from w2s_jax.core.errors import InputError
from w2s_jax.core.files import is_remote, location, sha256
from w2s_jax.data.formats import encoding_of, json_line
from w2s_jax.data.records import text_field
from w2s_jax.data.tfds import read_info, read_prepared, version_folder


class Corpus(Protocol):
    """Texts with random access, from any thread; pickling does not copy their content."""

    @property
    def name(self) -> str:
        """Path of the texts, for messages."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the content."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> str: ...


def open_corpus(source: str | os.PathLike[str], split: str = "train") -> Corpus:
    """Open a .jsonl or .ndjson file, or a split of a folder written by `w2s data prepare`.

    Nothing is read before a length, digest or text is asked for.

    Args:
      source: the file (records with a field `text`) or the folder (with or without its version).
      split: split of the folder.

    Raises:
      InputError: there is no such file or split, or it has no random access.
    """
    path = location(source)
    if is_remote(path):
        raise InputError(
            f"pretrain.source: {path}: streaming needs random access; copy it to a local disk"
        )
    if path.is_dir():
        return PreparedTexts(version_folder(path) or path, split)
    if not path.is_file():
        raise InputError(f"pretrain.source: {path}: no such file or folder")
    if path.suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(
            f"pretrain.source: {path}: streaming needs random access; use a plain .jsonl file, or "
            "a folder written by `w2s data prepare`"
        )
    return JsonLines(path)


class JsonLines:
    """The field `text` of each record of a plain JSON Lines file, without blank lines.

    The file is scanned once for the offsets of its lines (8 bytes of memory per line); the texts
    stay on disk. Workers get a copy of the offsets and open the file themselves.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be pickled.
        return {**self.__dict__, "_file": None}

    @property
    def name(self) -> str:
        return str(self._path)

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the file."""
        return sha256(self._path)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        """Return the text of a record.

        Raises:
          InputError: it is malformed or has no text; names the line and the field.
        """
        start, stop = self._offsets[index : index + 2].tolist()
        try:
            return _parse(self._read(start, stop), first=start == 0)
        except InputError as error:
            raise InputError(f"{self._path}, line {self._line(start)}: {error}") from error

    def _read(self, start: int, stop: int) -> bytes:
        # Two threads may both open it; each reads the one it has.
        file = self._file
        if file is None:
            file = self._file = self._path.open("rb")
        # pread does not move the file position, which threads share.
        return os.pread(file.fileno(), stop - start, start)

    @functools.cached_property
    def _offsets(self) -> np.ndarray:
        """Offsets of the lines that are not blank, and the end of the file, int64 [N + 1]."""
        offsets, position = array("q"), 0
        try:
            with self._path.open("rb") as file:
                for line in file:
                    if not line.isspace():
                        offsets.append(position)
                    position += len(line)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{self._path}: cannot be read ({reason})") from error
        # A blank line is read as the end of the record before it, which JSON allows.
        offsets.append(position)
        return np.array(offsets, np.int64)

    def _line(self, offset: int) -> int:
        """Return the number, from 1, of the line that begins at `offset`."""
        with self._path.open("rb") as file:
            ends = itertools.accumulate(map(len, file))
            return 1 + sum(1 for _ in itertools.takewhile(lambda end: end <= offset, ends))


class PreparedTexts:
    """The field `text` of the records of a split written by `w2s data prepare`."""

    def __init__(self, folder: Path, split: str) -> None:
        self._records = read_prepared(folder, split)
        info = read_info(folder) or {}
        self._digest = str(info["splits"][split]["sha256"])

    @property
    def name(self) -> str:
        return f"{self._records.folder}, split {self._records.split}"

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the split's content, as recorded when it was written."""
        return self._digest

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> str:
        """Return the text of a record.

        Raises:
          InputError: it cannot be read or has no text; names the record and the field.
        """
        return text_field(self._records[index]["record"], f"{self.name}, record {index + 1}")


def _parse(line: bytes, first: bool) -> str:
    """Return the text of a line of JSON Lines; errors do not name the line."""
    skip, encoding = encoding_of(line) if first else (0, "utf-8")
    if encoding != "utf-8":
        raise InputError(f"{encoding[:6].upper()} text; streaming needs UTF-8")
    try:
        text = line[skip:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text ({error.reason} at byte {error.start + 1} of the line)"
        ) from error
    return text_field(json_line(text, ""))
