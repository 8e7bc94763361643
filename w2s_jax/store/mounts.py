"""The mount of a path: a local disk, or a file system whose locks may have no effect."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

#: The kernel's table of mounts, see proc_pid_mountinfo(5).
MOUNTINFO = Path("/proc/self/mountinfo")

# File systems that one machine has for itself. All others, and unknown ones, may be shared.
_LOCAL = {
    "apfs", "aufs", "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs",
    "fuseblk", "hfs", "hfsplus", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs",
    "reiserfs", "rootfs", "squashfs", "tmpfs", "ubifs", "udf", "ufs", "vfat", "xfs", "zfs",
}  # fmt: skip
# Options with which a network file system keeps locks within one machine.
_UNSHARED = {"nolock", "local_lock=all", "local_lock=flock", "localflock", "nobrl"}


@dataclass(frozen=True)
class Mount:
    """A mounted file system.

    Attributes:
      point: the folder where it is mounted.
      kind: its type, as 'ext4' or 'nfs4'; 'unknown' without a table of mounts.
      options: those of the mount and of the file system.
    """

    point: str
    kind: str
    options: frozenset[str] = frozenset()

    @property
    def is_local(self) -> bool:
        """True if only this machine uses it."""
        return self.kind in _LOCAL

    @property
    def locks_here_only(self) -> str:
        """The options that keep locks within this machine; '' if there are none."""
        return "" if self.is_local else ", ".join(sorted(self.options & _UNSHARED))

    def __str__(self) -> str:
        return f"{self.point} ({self.kind})"


def mount_of(path: Path) -> Mount:
    """Return the mount that a path is on."""
    real = os.path.realpath(path)
    best = Mount("/", "unknown")
    try:
        lines = MOUNTINFO.read_text(errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return Mount(real, "unknown")
    for line in lines:
        before, _, after = line.partition(" - ")
        if len(fields := before.split(" ")) < 6 or len(rest := after.split(" ")) < 3:
            continue
        # Spaces and the like are written as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two on one folder, the later one covers the earlier.
        if inside and len(point) >= len(best.point):
            options = frozenset((*fields[5].split(","), *rest[2].split(",")))
            best = Mount(point, rest[0], options)
    return best
