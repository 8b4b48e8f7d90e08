# SPDX-License-Identifier: GPL-2.0-or-later
"""What one build may take of the machine as a whole: disk and memory. No resource limit of a process bounds those.

There must be room before a build begins, and while it runs it is looked at about once a second. What it takes in that
second is what it can take too much.
"""

import os
import time
from pathlib import Path

from kmodhookd import confine
from kmodhookd.act.failures import failed
from kmodhookd.confine.limits import MEMORY_SHARE, machine_memory
from kmodhookd.model import FailureClass, Recipe
from kmodhookd.run import run

HEADROOM = 64 << 20  # bytes that a build needs beside the copy of its source
RESERVE = 32 << 20  # bytes that are left to others
RESERVE_FILES = 1000  # inodes, on file systems that count them
COUNTING = 30.0  # seconds that counting what a build has written may take
SHARE = 20  # counting takes at most one part in so many of the time
POLICY = "/etc/kmodhookd/config.toml"


def need_room(recipe: Recipe, origin: Path, directory: Path) -> None:
    """Raise `BuildFailed` unless the file system of `directory` has room for a copy of `origin` and its build."""
    size = sum(_size(Path(top, name)) for top, _, names in os.walk(origin) for name in names)
    there = os.statvfs(directory)
    free = there.f_bavail * there.f_frsize
    if free < size + HEADROOM:
        text = f"{free >> 20} MiB are free for builds, {(size + HEADROOM) >> 20} MiB are needed"
        raise failed(recipe, FailureClass.SPACE, text, remedy=f"make room in {directory}; it is tried again by itself")


class Bounds:
    """Looks at a build as it runs. After a look that found fault, `cause` and `remedy` go with the sentence."""

    def __init__(self, directory: Path, uid: int, disk: int) -> None:
        """`disk` is in MiB, 0 = no limit. Memory is looked at where the build has a user of its own."""
        self._directory = directory
        self._uid = uid
        self._disk = disk
        self._next_count = 0.0
        self.cause = FailureClass.KILLED
        self.remedy = ""

    def __call__(self) -> str:
        """What is wrong, as the end of a sentence that begins with what was done; "" when nothing is."""
        return self._room() or self._memory() or self._size()

    def _room(self) -> str:
        there = os.statvfs(self._directory)
        if there.f_bfree * there.f_frsize >= RESERVE and (not there.f_files or there.f_ffree >= RESERVE_FILES):
            return ""
        self.cause = FailureClass.SPACE
        self.remedy = f"make room in {self._directory.parent}; it is tried again by itself"
        return "was about to fill the disk"

    def _memory(self) -> str:
        if os.geteuid() != 0 or confine.memory_of(self._uid) * 100 <= machine_memory() * MEMORY_SHARE:
            return ""
        self.remedy = f"build.memory in {POLICY} limits each process"
        return f"used more than {MEMORY_SHARE} % of the memory"

    def _size(self) -> str:
        now = time.monotonic()
        if not self._disk or now < self._next_count:
            return ""
        # du(1) goes as deep as anything can be made, and follows nothing.
        counted = run(["du", "-sx", "--block-size=1M", "--", str(self._directory)], timeout=COUNTING, stdout_only=True)
        self._next_count = time.monotonic() + SHARE * counted.seconds
        words = counted.output.split()
        if not counted.timed_out and (not words or int(words[0]) <= self._disk):
            return ""
        self.remedy = f"build.disk in {POLICY} is the limit"
        return f"wrote more than {self._disk} MiB" if words else "wrote more files than can be counted"


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
