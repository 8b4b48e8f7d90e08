# SPDX-License-Identifier: GPL-2.0-or-later
"""Directories and limits: our state, room on the disks, inotify, what something that was interrupted left behind."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kmodhookd.cli.doctor.finding import Finding, Level, Place
from kmodhookd.notes import NOTES
from kmodhookd.observe import initramfs, modtree
from kmodhookd.observe.boot import reachable
from kmodhookd.store import CACHE, STATE

TIDY = "systemctl restart kmodhookd tidies up; what then is still there may be removed"
MIB = 1 << 20
TOO_LITTLE, LITTLE = 32 * MIB, 256 * MIB  # one large module; a build of a large one
INODES = 1000
INOTIFY = "fs/inotify"
LIMITS = {"max_user_watches": 8192, "max_user_instances": 64}  # what other programs of root leave to us, at the least
INTERRUPTED = 3600.0  # seconds: what is younger may be at work


def state(place: Place) -> Iterator[Finding]:
    """Our own directories: there, writable, and what in them says that something went wrong."""
    root, told = place.root, False
    for inside in (STATE, CACHE):
        path = root.resolve(inside)
        if not path.is_dir():
            told = True
            yield Finding(Level.PROBLEM, "a directory is missing", inside, "/usr/lib/kmodhookd/setup directories")
        elif os.geteuid() == 0 and not os.access(path, os.W_OK):
            told = True
            yield Finding(Level.PROBLEM, "a directory cannot be written to", inside, "mount its file system writable")
    for path in _found(root.resolve(STATE), "*.corrupt-*"):
        told = True
        words = "a file could not be read and was set aside"
        yield Finding(Level.WARNING, words, root.inside(path), "look at it, then remove it")
    if notes := list(_found(root.resolve(NOTES), "*", deep=False)):
        told = True
        words = f"{len(notes)} notes of hooks that could tell nobody"
        yield Finding(Level.WARNING, words, NOTES, "systemctl start kmodhookd, or kmodhookd --once")
    if not told:
        yield Finding(Level.OK, "its directories are there", f"{STATE}, {CACHE}")


def room(place: Place) -> Iterator[Finding]:
    """Room where builds, modules and an initramfs go."""
    top = place.root.inside(modtree.top(place.root, place.settings))
    for inside in (place.settings.dkms_tree, CACHE, top):
        yield from _room(place.root.resolve(inside), inside, LITTLE)
    boot = reachable(place.root, "/boot")
    images = [
        size for kernel in place.kernels for path in initramfs.images(place.root, kernel) if (size := _size(path))
    ]
    if boot is not None:
        yield from _room(boot, "/boot", max(images, default=0))


def _room(path: Path, inside: str, wanted: int) -> Iterator[Finding]:
    """`wanted` bytes are to be free; none = nobody makes anything there."""
    if not path.is_dir() or not wanted:
        return
    found = os.statvfs(path)
    free = found.f_bavail * found.f_frsize
    words = f"{free // MIB} MiB are free"
    if found.f_flag & os.ST_RDONLY:
        yield Finding(Level.PROBLEM, "its file system is read-only", inside, f"mount -o remount,rw {inside}")
    elif free < min(TOO_LITTLE, wanted):
        yield Finding(Level.PROBLEM, words, inside, "make room")
    elif free < wanted:
        yield Finding(Level.WARNING, f"{words}, and {wanted // MIB} MiB may be needed", inside, "make room")
    elif found.f_files and found.f_favail < INODES:
        yield Finding(Level.PROBLEM, f"there is room for {found.f_favail} files only", inside, "remove files")
    else:
        yield Finding(Level.OK, words, inside)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def watches(place: Place, proc: str = "/proc/sys") -> Iterator[Finding]:
    """inotify's limits: without watches only hooks and the clock say when to look."""
    if not place.root.is_host:
        return
    for name, least in LIMITS.items():
        with contextlib.suppress(OSError, ValueError):
            there = int(Path(proc, INOTIFY, name).read_text())
            setting = f"{INOTIFY.replace('/', '.')}.{name}"
            if there < least:
                remedy = f"sysctl -w {setting}={least}, and the same in /etc/sysctl.d"
                yield Finding(Level.WARNING, f"inotify may not watch everything ({there})", setting, remedy)
            else:
                yield Finding(Level.OK, f"inotify may be used enough ({there})", setting)


def left_over(place: Place, now: float | None = None) -> Iterator[Finding]:
    """Temporary files and directories of ours that nobody can be working on any more."""
    root, settings = place.root, place.settings
    tree = root.resolve(settings.dkms_tree)
    places = [
        *_found(modtree.top(root, settings), ".kmodhookd-*"),  # act.change
        *tree.glob("*/*/*/.tmp_*"),  # act.stored, and real DKMS
        *tree.glob(".mok.making-*"),  # act.mok
        *root.resolve(settings.source_tree).glob(".incoming-*"),  # act.incoming
        *_found(root.resolve(f"{CACHE}/incoming"), "*", deep=False),
        *_found(root.resolve(f"{STATE}/journal"), ".*.json.*", deep=False),  # store
    ]
    before = (now if now is not None else time.time()) - INTERRUPTED
    for path in places:
        with contextlib.suppress(OSError):
            if path.stat(follow_symlinks=False).st_mtime < before:
                yield Finding(Level.WARNING, "left over of what was interrupted", root.inside(path), TIDY)


def _found(directory: Path, pattern: str, *, deep: bool = True) -> Iterator[Path]:
    """What matches in a directory, as far as it may be read."""
    with contextlib.suppress(OSError):
        yield from sorted(directory.rglob(pattern) if deep else directory.glob(pattern))
