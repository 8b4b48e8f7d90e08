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

from kmodhookd import processes

INTERVAL = 5.0  # seconds between two looks

Activity = frozenset[tuple[int, int]]  # process, clock ticks that it has used


class Pulse:
    """Calls `beat` in a thread of its own, every `interval` seconds in which a process of one of `users()` did something."""

    def __init__(self, users: Callable[[], set[int]], beat: Callable[[], None], interval: float = INTERVAL) -> None:
        self._users = users
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
        before = activity(self._users())
        while not self._over.wait(self._interval):
            now = activity(self._users())
            if now != before:
                self._beat()
            before = now


def activity(users: set[int]) -> Activity:
    """The processes of some users, each with the processor time that it has used (proc(5): fields 14 and 15 of stat)."""
    found = set()
    for pid in processes.everybody():
        with contextlib.suppress(OSError, IndexError, ValueError):  # it has ended meanwhile
            if os.stat(f"/proc/{pid}").st_uid in users:
                fields = processes.fields(pid)
                found.add((pid, int(fields[11]) + int(fields[12])))
    return frozenset(found)
