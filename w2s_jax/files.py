"""Files: JSON that is either the old or the new, whatever happens in between; sums; the cache."""

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


def cache_folder(name: str) -> Path | None:
    """The folder `name` of the user's cache, which need not be there; None if there is no cache.

    The cache is W2S_CACHE_DIR, else $XDG_CACHE_HOME/w2s_jax, else ~/.cache/w2s_jax; an empty
    W2S_CACHE_DIR switches it off.
    """
    chosen = os.environ.get("W2S_CACHE_DIR")
    if chosen == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Relative paths are to be ignored there, says the XDG base directory specification.
    default = Path(base) / "w2s_jax" if os.path.isabs(base) else Path("~/.cache/w2s_jax")
    # Without a home '~' stays as it is, and then there is nowhere to put a cache.
    folder = Path(os.path.expanduser(chosen or default))
    return None if str(folder).startswith("~") else folder / name
