"""JSON files that are either the old one or the new one, whatever happens in between."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from w2s_jax import errors


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one piece: a temporary file, then a rename. NaN is refused."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parses a JSON file.

    Raises:
      InputError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise errors.InputError(f"{path}: not valid JSON ({error})") from error
