"""sha256 sums of files: manifests of folders, and sums that are kept so as to read a file once.

Orbax does not notice a byte that flipped on disk. The manifest of a folder stands beside it
(`<folder>.manifest.json`) and is written last; what has none, or differs from it, is damaged.

An object store keeps a checksum of each object, which it checks itself. There a manifest holds
these (CRC32C), as a listing tells them: nothing is read back, and an object that is missing, was
cut off or replaced is still noticed.
"""

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from w2s_jax.core.files import cache_folder, is_remote, sha256, write_json

_SUM = re.compile("[0-9a-f]{64}")
_LISTED_SUM = re.compile("crc32c:[A-Za-z0-9+/]{6}==")
# A file that was written so recently may be written again without a change of its time: some file
# systems count in steps of two seconds.
_SETTLED_NS = 2_000_000_000


def manifest_path(folder: Path) -> Path:
    """Where the manifest of an Orbax folder stands: beside it."""
    return folder.with_name(folder.name + ".manifest.json")


def write_manifest(folder: Path) -> None:
    """Records the checksum of every file under `folder`."""
    if is_remote(folder):
        sums = _listed(folder)
    else:
        sums = {name: sha256(folder / name) for name in _names(folder)}
    write_json(manifest_path(folder), sums)


def read_manifest(folder: Path) -> dict[str, str] | None:
    """File under `folder` -> checksum as recorded; None if there is no readable manifest."""
    try:
        record = json.loads(manifest_path(folder).read_text())
    except (OSError, ValueError):
        return None
    return record if _are_sums(record) else None


def damage(folder: Path, read: bool = True) -> str | None:
    """What is wrong with an Orbax folder, in words; None if it equals its manifest.

    Args:
      folder: the folder.
      read: False: that its files are there will do; none is read.
    """
    if not folder.is_dir():
        return "the folder is missing"
    wanted = read_manifest(folder)
    if wanted is None:
        return "it has no readable manifest"
    remote = is_remote(folder)
    listed = _listed(folder) if remote else {}
    found = sorted(listed) if remote else _names(folder)
    for name, digest in wanted.items():
        if name not in found:
            return f"{name} is missing"
        if read and (listed[name] if remote else sha256(folder / name)) != digest:
            return f"{name} differs from its {'checksum' if remote else 'sha256'}"
    extra = sorted(set(found) - wanted.keys())
    return f"{extra[0]} does not belong there" if extra else None


def kept_sha256(path: Path) -> str:
    """The sha256 of a file; of one that has not changed since it was last asked for, unread.

    The sums are kept in the folder `sums` of the user's cache (see `files.cache_folder`), by real
    path, size, time of the last change and inode. A large file of a hub's snapshot needs no
    reading: it is a link to a blob whose name is its sha256.
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
    place = folder / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(place.read_text())
        if _are_sums(record) and record.keys() == {str(real)}:
            return str(record[str(real)])
    digest = sha256(real)
    settled = time.time_ns() - real.stat().st_mtime_ns > _SETTLED_NS
    if settled and _state(real) == before:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing is kept
            folder.mkdir(parents=True, exist_ok=True)
            write_json(place, {str(real): digest})
    return digest


def _state(real: Path) -> list[Any]:
    status = os.stat(real)
    return [str(real), status.st_size, status.st_mtime_ns, status.st_ino]


def _names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _listed(folder: Path) -> dict[str, str]:
    """Object under `folder` of an object store -> the checksum that the store keeps of it."""
    import fsspec

    store = fsspec.filesystem("gs")
    # What another process has written must be seen, not what was listed before.
    store.invalidate_cache()
    root = str(folder).removeprefix("gs://") + "/"
    found = store.find(root, detail=True)
    return {
        name.removeprefix(root): f"crc32c:{info['crc32c']}"
        for name, info in sorted(found.items())
        # Some clients mark a folder by an object of no bytes.
        if not name.endswith("/")
    }


def _are_sums(record: Any) -> bool:
    """Whether what was read is a dict of checksums."""
    return isinstance(record, dict) and all(
        isinstance(digest, str) and (_SUM.fullmatch(digest) or _LISTED_SUM.fullmatch(digest))
        for digest in record.values()
    )
