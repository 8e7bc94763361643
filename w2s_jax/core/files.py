"""Files: JSON that is either the old or the new, whatever happens in between; sums; the cache.

A path is a `pathlib.Path`, or for gs:// an `etils.epath.Path`, which has the same methods.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

from w2s_jax.core import errors


def place(text: str) -> Path:
    """A folder that a user names: a local one, absolute, or gs://bucket/path.

    Raises:
      InputError: for another protocol, no bucket, or if the package for gs:// is not installed.
    """
    if "://" not in text:
        return Path(text).expanduser().absolute()
    protocol, _, rest = text.partition("://")
    if protocol != "gs" or not rest.strip("/"):
        raise errors.InputError(f"{text!r}; allowed: a local folder, or gs://bucket/path")
    if importlib.util.find_spec("gcsfs") is None:
        raise errors.InputError(
            f"{text}: the package gcsfs is not installed; pip install 'w2s_jax[gcs]'"
        )
    from etils import epath

    return cast(Path, epath.Path(text.rstrip("/")))


def is_remote(path: Path) -> bool:
    """Whether a path is that of an object store: a write is whole or is not, folders are names."""
    return str(path).startswith("gs://")


def remove_folder(folder: Path) -> None:
    """Removes a folder, if it is there, with all that is in it."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        cast(Any, folder).rmtree()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one piece: a temporary file, then a rename. NaN is refused."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    if is_remote(path):
        path.write_text(text)
        return
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
