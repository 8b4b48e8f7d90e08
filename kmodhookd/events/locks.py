# SPDX-License-Identifier: GPL-2.0-or-later
"""Is a package manager at work in this root: the locks that the package managers themselves take.

dpkg and rpm hold fcntl locks, which F_GETLK finds in every process and namespace. pacman's lock is a file that exists,
and stays behind when pacman is killed: it counts only while a living process has it open (libalpm keeps it open).
"""

import fcntl
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kmodhookd import processes
from kmodhookd.root import Root

FCNTL_LOCKS: Mapping[str, tuple[str, ...]] = {
    "dpkg": ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock"),
    "rpm": ("/usr/lib/sysimage/rpm/.rpm.lock", "/var/lib/rpm/.rpm.lock"),
}
FILE_LOCKS: Mapping[str, tuple[str, ...]] = {"alpm": ("/var/lib/pacman/db.lck",)}
FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux and of Python's large-file fcntl


@dataclass(frozen=True)
class Owner:
    """Who holds a lock; equal for the same process only. Process id 0 is one in another pid namespace."""

    lock: str
    pid: int
    started: str = ""


class Locks:
    """The locks of the package managers of one root."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._last: dict[str, int] = {}  # process that was last seen to hold a lock file

    def backends(self) -> frozenset[str]:
        """The package managers whose locks are known here."""
        return frozenset(FCNTL_LOCKS) | frozenset(FILE_LOCKS)

    def owners(self) -> dict[str, frozenset[Owner]]:
        """Who holds a lock, by package manager; those that hold none are left out."""
        held = {backend: self._fcntl_owners(paths) for backend, paths in FCNTL_LOCKS.items()}
        held |= {backend: self._file_owners(paths) for backend, paths in FILE_LOCKS.items()}
        return {backend: owners for backend, owners in held.items() if owners}

    def _fcntl_owners(self, paths: tuple[str, ...]) -> frozenset[Owner]:
        owners = set()
        for inside in paths:
            pid = _lock_holder(self._root.resolve(inside))
            if pid is not None:
                owners.add(Owner(inside, pid, processes.started(pid)))
        return frozenset(owners)

    def _file_owners(self, paths: tuple[str, ...]) -> frozenset[Owner]:
        owners = set()
        for inside in paths:
            path = self._root.resolve(inside)
            try:
                status = path.stat()
            except OSError:
                continue
            identity = (status.st_dev, status.st_ino)
            pid = self._last.get(inside, 0)
            if not (pid and _has_open(pid, identity)):
                pid = next((one for one in processes.everybody() if _has_open(one, identity)), 0)
            self._last[inside] = pid
            if pid:
                owners.add(Owner(inside, pid, processes.started(pid)))
        return frozenset(owners)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    return bool(fields := processes.fields(pid)) and fields[0] not in ("Z", "X")


def _lock_holder(path: Path) -> int | None:
    """The process that holds an fcntl lock on a file; None when none does, or when that cannot be asked."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, question))
    except OSError:
        return None  # a file system without locks
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else max(0, pid)


def _has_open(pid: int, identity: tuple[int, int]) -> bool:
    try:
        with os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                try:
                    status = entry.stat()
                except OSError:
                    continue
                if (status.st_dev, status.st_ino) == identity:
                    return True
    except OSError:
        return False
    return False
