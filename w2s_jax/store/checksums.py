"""Checksums: manifests of Orbax folders, and cached SHA-256 sums of large files.

Orbax does not notice a flipped byte. The manifest of a folder is the file
`<folder>.manifest.json` beside it, written last. A folder is damaged if it has none, or if a file
is missing or differs. Further files are no damage.

Object stores keep and check a checksum (CRC32C) of each object. There a manifest holds these
checksums as listed: nothing is read back, and missing, truncated or replaced objects are found.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any, cast

from w2s_jax.core.files import (
    cache_folder,
    is_remote,
    is_stray,
    move,
    remove_folder,
    set_aside,
    sha256,
    write_json,
)

_SUM = re.compile("[0-9a-f]{64}")
_LISTED_SUM = re.compile("crc32c:[A-Za-z0-9+/]{6}==")
# A file this recent may change again without a change of its time: some file systems have a
# resolution of two seconds.
_SETTLED_NS = 2_000_000_000


def manifest_path(folder: Path) -> Path:
    """Return the path of the manifest of an Orbax folder."""
    return folder.with_name(folder.name + ".manifest.json")


def write_manifest(folder: Path) -> None:
    """Record the checksum of every file under `folder` but strays (see `files.is_stray`)."""
    if is_remote(folder):
        sums = _listed(folder)
    else:
        sums = {name: sha256(folder / name) for name in _names(folder)}
    write_json(manifest_path(folder), sums)


def read_manifest(folder: Path) -> dict[str, str] | None:
    """Return the recorded checksums by file; None if there is no readable manifest."""
    try:
        record = json.loads(manifest_path(folder).read_text())
    except (OSError, ValueError):
        return None
    return record if _are_sums(record) else None


def damage(folder: Path, read: bool = True) -> str | None:
    """Return what is wrong with an Orbax folder; None if it matches its manifest.

    Args:
      folder: the folder.
      read: whether to read the files; False: only check that they exist.
    """
    if not folder.is_dir():
        return "the folder is missing"
    wanted = read_manifest(folder)
    if wanted is None:
        return "it has no readable manifest"
    remote = is_remote(folder)
    listed = _listed(folder) if remote else {}
    found = set(listed) if remote else set(_names(folder))
    for name, digest in wanted.items():
        if _is_stray(name):  # recorded by an earlier version
            continue
        if name not in found:
            return f"{name} is missing"
        if read and (listed[name] if remote else sha256(folder / name)) != digest:
            return f"{name} does not match its recorded checksum"
    return None


def drop_damaged(folder: Path) -> str:
    """Make room for a new version of a damaged Orbax folder; return what to add to the warning.

    What has a manifest was complete once, and is set aside with it: it may be of use, as when a
    disk or a checksum was read wrongly. What has none was never complete, and is removed.
    """
    manifest = manifest_path(folder)
    if not manifest.exists():
        remove_folder(folder)
        return ""
    if not folder.exists():
        manifest.unlink(missing_ok=True)
        return ""
    aside = set_aside(folder)
    move(manifest, manifest_path(aside))
    return f", set aside as {aside.name}"


def kept_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, without reading it if it is unchanged since the last call.

    The sums are in the folder `sums` of the user's cache (see `files.cache_folder`), by real path,
    size, modification time and inode. Large files of a hub snapshot need no reading: they are
    links to blobs named by their SHA-256.
    """
    real = path.resolve()
    linked = path.is_symlink() and path.parent.parent.name == "snapshots"
    if linked and real.parent.name == "blobs" and _SUM.fullmatch(real.name):
        return real.name
    before = _state(real)
    folder = cache_folder("sums")
    if folder is None:
        return sha256(real)
    key = hashlib.sha256(json.dumps(before).encode()).hexdigest()
    cached = folder / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(cached.read_text())
        if _are_sums(record) and record.keys() == {str(real)}:
            return str(record[str(real)])
    digest = sha256(real)
    settled = time.time_ns() - real.stat().st_mtime_ns > _SETTLED_NS
    if settled and _state(real) == before:
        with contextlib.suppress(OSError):  # an unwritable cache is not an error
            folder.mkdir(parents=True, exist_ok=True)
            write_json(cached, {str(real): digest})
    return digest


def _state(real: Path) -> list[Any]:
    status = os.stat(real)
    return [str(real), status.st_size, status.st_mtime_ns, status.st_ino]


def _is_stray(name: str) -> bool:
    """Return whether a file, or a folder that it is in, is a stray."""
    return any(is_stray(part) for part in name.split("/"))


def _names(folder: Path) -> list[str]:
    found = (str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if not _is_stray(name))


def _listed(folder: Path) -> dict[str, str]:
    """Return the checksums that an object store keeps, by object under `folder`."""
    root = f"{cast(Any, folder).path}/"
    found = cast(Any, folder).fs.find(root, detail=True)
    return {
        name.removeprefix(root): f"crc32c:{info['crc32c']}"
        for name, info in sorted(found.items())
        # Some clients mark a folder by an empty object.
        if not name.endswith("/") and not _is_stray(name.removeprefix(root))
    }


def _are_sums(record: Any) -> bool:
    """Return whether a record is a dict of checksums."""
    return isinstance(record, dict) and all(
        isinstance(digest, str) and (_SUM.fullmatch(digest) or _LISTED_SUM.fullmatch(digest))
        for digest in record.values()
    )
