"""Files on local disks and in object stores, atomic writes, and the cache folder.

A path is a `pathlib.Path`, or outside local disks a `upath.UPath`, which has the same methods.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from w2s_jax.core.errors import InputError, StorageError, did_you_mean, first_line

# What to install for a protocol of fsspec.
_PACKAGES = {
    "gs": "'w2s_jax[gcs]'",
    "gcs": "'w2s_jax[gcs]'",
    "s3": "s3fs",
    "s3a": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
}


# --- locations -----------------------------------------------------------------------------------


def location(text: str | os.PathLike[str]) -> Path:
    """Return the path of a local file or folder, or of 'protocol://...' as fsspec knows it.

    Args:
      text: a local path ('~' is expanded), a URL, or a path that this function returned.

    Raises:
      InputError: the protocol is unknown or needs another package; says what to install.
    """
    # A UPath is not an os.PathLike, but its text is its URL.
    text = str(text)
    protocol, separator, rest = text.partition("://")
    if not separator:
        return Path(text).expanduser()
    if protocol in ("file", "local"):
        return Path(rest)
    from upath import UPath

    try:
        path = UPath(text)
        _ = path.fs
    except Exception as error:
        raise unreachable(text, error) from error
    return cast(Path, path)


def checkpoint_location(text: str) -> Path:
    """Return the absolute path of a local folder, or of gs://bucket/path.

    Raises:
      InputError: another protocol, no bucket, or the package for gs:// is not installed.
    """
    if "://" not in text:
        return location(text).absolute()
    protocol, _, rest = text.partition("://")
    if protocol != "gs" or not rest.strip("/"):
        raise InputError(f"{text!r}; use a local folder or gs://bucket/path")
    # Opening a bucket looks for credentials on the network, so only the package is checked here.
    if importlib.util.find_spec("gcsfs") is None:
        raise InputError(f"{text}: needs the package gcsfs; pip install {_PACKAGES['gs']}")
    from upath import UPath

    # Orbax writes with a client of its own, so listings must not come from this one's cache.
    return cast(Path, UPath(text.rstrip("/"), use_listings_cache=False))


def is_remote(path: Path) -> bool:
    """Return whether a path is outside local disks: writes are atomic, folders are prefixes."""
    return not isinstance(path, Path)


def unreachable(path: str | Path, error: Exception) -> InputError:
    """Return the `InputError` for an error of a remote file system."""
    text = str(path)
    protocol = text.partition("://")[0]
    reason = first_line(error)
    if isinstance(error, ImportError):
        package = _PACKAGES.get(protocol)
        install = f"; pip install {package}" if package else ""
        return InputError(f"{text}: a package for {protocol}:// is missing ({reason}){install}")
    if isinstance(error, ValueError) and "Unsupported filesystem" in reason:
        from fsspec import available_protocols

        hint = did_you_mean(protocol, available_protocols())
        return InputError(f"{text}: unknown protocol {protocol!r}{hint}; e.g. gs://, s3://")
    return InputError(f"{text}: cannot be reached ({reason})")


# --- what is in a folder -------------------------------------------------------------------------

# What systems leave in any folder: macOS (also on shares and in archives), NFS and FUSE for files
# that are deleted while open, snapshots, fsck, Windows, Synology and QNAP.
_STRAY = re.compile(
    r"\.DS_Store|\._.*|\.nfs[0-9a-fA-F]+|\.fuse_hidden[0-9a-fA-F]+|\.snapshots?|\.zfs|lost\+found|"
    r"__MACOSX|Icon\r|[Tt]humbs\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information|"
    r"@eaDir|@Recycle|#recycle"
)
_ASIDE = re.compile(r".*\.damaged-[0-9a-f]{8}(\..+)?")


def is_stray(name: str) -> bool:
    """Return whether a file or folder is one that systems leave anywhere, as .DS_Store."""
    return _STRAY.fullmatch(name) is not None


def contents(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, sorted, without hidden ones and strays.

    Whatever asks whether a folder is empty, or whose it is, asks this.
    """
    found = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(path for path in found if not is_stray(path.name))


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to `<name>.damaged-<8 hex digits>`; return its new path."""
    aside = path.with_name(f"{path.name}.damaged-{secrets.token_hex(4)}")
    move(path, aside)
    return aside


def move(path: Path, to: Path) -> None:
    """Rename a file or a folder; on an object store copy and remove."""
    if is_remote(path):
        cast(Any, path).fs.mv(cast(Any, path).path, cast(Any, to).path, recursive=path.is_dir())
    else:
        path.rename(to)


def is_aside(name: str) -> bool:
    """Return whether `set_aside` made the name, or a name that goes on with a suffix."""
    return _ASIDE.fullmatch(name) is not None


def remove_folder(folder: Path, *, keep_aside: bool = False) -> None:
    """Remove a folder, if it exists, and everything in it.

    Args:
      folder: the folder.
      keep_aside: leave what `set_aside` has renamed, and the folders that it is in.
    """
    if keep_aside and _has_aside(folder):
        for path in list(folder.iterdir()):
            if is_aside(path.name):
                continue
            if path.is_dir():
                remove_folder(path, keep_aside=True)
            else:
                path.unlink(missing_ok=True)
    elif not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            cast(Any, folder).fs.rm(cast(Any, folder).path, recursive=True)


def _has_aside(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    return any(is_aside(path.name) or _has_aside(path) for path in folder.iterdir())


# --- writing -------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that replaces `path` when the block ends, and vanishes if it raises.

    The content is on disk before the rename, so that after a crash `path` is the old file or the
    new one. Concurrent writers do not disturb each other: the last one wins.
    """
    if is_remote(path):
        # Object stores write whole objects.
        buffer = io.BytesIO()
        yield buffer
        path.write_bytes(buffer.getvalue())
        return
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with atomic_write(path) as file:
        file.write(text.encode())


def refuse_existing(folder: Path, field: str = "") -> None:
    """Raise an `InputError` if a path exists, unless it is an empty folder (see `contents`).

    Args:
      folder: the path.
      field: the option that names it, for the message.
    """
    if folder.exists() and (not folder.is_dir() or contents(folder)):
        prefix = f"{field}: " if field else ""
        raise InputError(f"{prefix}{folder}: already exists; choose a new or empty folder")


def refuse_unwritable(folder: Path, field: str) -> None:
    """Check that a local folder, which need not exist, can be made and written; leaves nothing.

    Args:
      folder: the folder; one outside local disks is not checked.
      field: the option that names it, for the message.

    Raises:
      InputError: it cannot; with the reason.
    """
    if is_remote(folder):
        return
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{field}: {folder}: {existing} is a file; choose another folder")
    before = existing.stat()
    try:
        # Permissions do not show read-only mounts, quotas or /proc.
        with tempfile.TemporaryDirectory(prefix=".w2s-", dir=existing):
            pass
        os.utime(existing, ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError as error:
        # A full disk is reported when it matters: a finished run needs no space.
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        raise InputError(
            f"{field}: {folder}: cannot write to {existing} ({error.strerror}); choose another "
            "folder"
        ) from error


def refuse_missing(folder: Path) -> None:
    """Raise an `InputError` unless `folder` is a folder."""
    if not folder.exists():
        siblings = folder.parent.iterdir() if folder.parent.is_dir() else ()
        hint = did_you_mean(folder.name, [path.name for path in siblings if path.is_dir()])
        raise InputError(f"{folder}: no such folder{hint}")
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file, not a folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that is renamed to `folder` when the block ends, and removed if it raises.

    An empty `folder` with hidden files, or where a disk is mounted, cannot be replaced; what is in
    the new folder is then moved into it, piece by piece.

    Raises:
      InputError: `folder` exists already and is not empty; nothing is overwritten.
      StorageError: it cannot be written.
    """
    refuse_existing(folder)
    stays = folder.exists() and (any(folder.iterdir()) or os.path.ismount(folder))
    temporary = _temporary((folder / "new" if stays else folder).absolute())
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if stays:
            for path in sorted(temporary.iterdir()):
                path.rename(folder / path.name)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({first_line(error)})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


# --- reading -------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file (hexadecimal)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
      InputError: it is not valid JSON.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def cache_folder(name: str) -> Path | None:
    """Return the folder `name` of the user's cache, which may not exist; None without a cache.

    The cache is W2S_CACHE_DIR, else $XDG_CACHE_HOME/w2s_jax, else ~/.cache/w2s_jax; an empty
    W2S_CACHE_DIR switches it off.
    """
    chosen = os.environ.get("W2S_CACHE_DIR")
    if chosen == "":
        return None
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification says to ignore relative paths.
    default = Path(base) / "w2s_jax" if os.path.isabs(base) else Path("~/.cache/w2s_jax")
    # Without a home directory, '~' is not expanded.
    folder = Path(os.path.expanduser(chosen or default))
    return None if str(folder).startswith("~") else folder / name


#: Endings of the files in which tables are written.
TABLES = (".parquet", ".csv", ".jsonl", ".jsonl.gz")


def new_table(path: Path, subject: str) -> str:
    """Return the ending in `TABLES` of a file that is to be written.

    Raises:
      InputError: it has another ending or exists, or its folder does not; begins with `subject`.
    """
    suffix = next((suffix for suffix in TABLES if path.name.endswith(suffix)), None)
    if suffix is None:
        allowed = ", ".join(TABLES)
        raise InputError(f"{subject}: {path}: unknown file type; allowed: {allowed}")
    if path.exists():
        raise InputError(f"{subject}: {path} exists; remove it, or choose another name")
    if not path.parent.is_dir():
        raise InputError(f"{subject}: {path}: the folder {path.parent} does not exist")
    return suffix
