# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether builds get on. A compiler at work on one large file prints nothing for minutes; that is no standstill.

Package manager hooks stop waiting when nothing moves for a while (design.md, promise 7). What moves is told by the
processor time of the build user's processes: one that sleeps for ever uses none.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Self

INTERVAL = 5.0  # seconds between two looks

Activity = frozenset[tuple[int, int]]  # process, clock ticks that it has used


class Pulse:
    """Calls `beat` in a thread of its own, every `interval` seconds in which a process of `uid` did something."""

    def __init__(self, uid: int, beat: Callable[[], None], interval: float = INTERVAL) -> None:
        self._uid = uid
        self._beat = beat
        self._interval = interval
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        before = activity(self._uid)
        while not self._over.wait(self._interval):
            now = activity(self._uid)
            if now != before:
                self._beat()
            before = now


def activity(uid: int) -> Activity:
    """The processes of a user, each with the processor time that it has used (proc(5): fields 14 and 15 of stat)."""
    found = set()
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
            if os.stat(f"/proc/{name}").st_uid != uid:
                continue
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            found.add((int(name), int(fields[11]) + int(fields[12])))
    return frozenset(found)
