# SPDX-License-Identifier: GPL-2.0-or-later
"""inotify: the one importer of pyinotify, with every remedy for its known faults.

Flat watches on directories; a directory that is not there is waited for at its nearest ancestor that is. Every event,
and every oddity (overflow, a name that is not UTF-8, a directory that was renamed), means the same: look again.
"""

import array
import contextlib
import fcntl
import logging
import os
import stat
import termios
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it imports asyncore, for something that nobody uses
    import pyinotify

from kmodhookd import log
from kmodhookd.events.loop import Cancel, Loop

MASK = (
    pyinotify.IN_CREATE
    | pyinotify.IN_DELETE
    | pyinotify.IN_MOVED_FROM
    | pyinotify.IN_MOVED_TO
    | pyinotify.IN_CLOSE_WRITE
    | pyinotify.IN_ATTRIB
    | pyinotify.IN_DELETE_SELF
    | pyinotify.IN_MOVE_SELF
    | pyinotify.IN_UNMOUNT
    | pyinotify.IN_ONLYDIR
)
MOVED = (
    pyinotify.IN_DELETE_SELF
    | pyinotify.IN_MOVE_SELF
    | pyinotify.IN_UNMOUNT
    | pyinotify.IN_IGNORED
    | pyinotify.IN_Q_OVERFLOW
)
APPEARED = pyinotify.IN_CREATE | pyinotify.IN_MOVED_TO
FLOOD = 32 << 10  # bytes of queued events that are not worth taking apart (12 µs each): they count as an overflow

_LOGGER = logging.getLogger("pyinotify")
for _handler in list(_LOGGER.handlers):
    _LOGGER.removeHandler(_handler)  # it writes to standard error, on its own and twice
_LOGGER.setLevel(logging.CRITICAL)  # what it complains about are races that mean "look again"


class Unwatchable(Exception):
    """inotify cannot be had, or not for all directories."""


class Watcher:
    """Watches directories in the main loop. `on_event` is called for every batch that says that something changed."""

    def __init__(self, loop: Loop, on_event: Callable[[], None]) -> None:
        self._on_event = on_event
        self._wanted: tuple[str, ...] = ()
        self._watches: dict[int, set[str] | None] = {}  # watch → names that count in it; None = every name
        self._changed = False
        self._moved = False
        self._cancel: Cancel | None = None
        try:
            self._manager = pyinotify.WatchManager()
        except (OSError, pyinotify.PyinotifyError) as error:
            raise Unwatchable(str(error)) from error
        self._fd: int = self._manager.get_fd()
        # Neither is set by pyinotify: children would inherit it, and a read of nothing would block for ever.
        fcntl.fcntl(self._fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) | os.O_NONBLOCK)
        self._notifier = pyinotify.Notifier(self._manager, self._seen)
        self._cancel = loop.on_readable(self._fd, self._readable)

    @property
    def count(self) -> int:
        """How many watches there are."""
        return len(self._watches)

    def close(self) -> None:
        """Stop."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
            self._notifier.stop()

    def watch(self, directories: Iterable[str]) -> None:
        """Watch exactly these directories (paths outside). Raises Unwatchable when not all of them can be."""
        self._wanted = tuple(sorted(set(directories)))
        self._arm()

    def _arm(self) -> None:
        """Set the watches anew. Adding one that is there already changes nothing in the kernel."""
        places: dict[str, set[str] | None] = {}
        for wanted in self._wanted:
            directory, missing = nearest(wanted)
            known = places.get(directory, set())
            places[directory] = None if known is None or not missing else {*known, missing}
        armed: dict[int, set[str] | None] = {}
        failure = ""
        for directory, names in places.items():
            try:
                added = self._manager.add_watch(directory, MASK, quiet=False)
            except (pyinotify.WatchManagerError, UnicodeError) as error:
                # Gone since `nearest` looked: its parent tells. No space for watches: said below.
                failure = str(error) if "ENOSPC" in str(error) or "ENOMEM" in str(error) else failure
                continue
            armed |= dict.fromkeys((wd for wd in added.values() if wd >= 0), names)
        for stale in set(self._watches) - set(armed):
            with contextlib.suppress(pyinotify.PyinotifyError, pyinotify.WatchManagerError):
                self._manager.rm_watch(stale, quiet=True)
        # What was put into a directory before it was watched, nobody tells: it is to be looked at again.
        unseen = bool(self._watches) and bool(set(armed) - set(self._watches))
        self._watches = armed
        if unseen:
            self._on_event()
        if failure:
            raise Unwatchable(failure)

    def _readable(self) -> None:
        self._changed = self._moved = False
        try:
            if _queued(self._fd) > FLOOD:
                self._drain()
            else:
                self._notifier.read_events()
                self._notifier.process_events()
        except pyinotify.NotifierError:
            pass  # nothing to read after all
        except Exception:  # a name that is not UTF-8 and whatever else its parser does not expect: the batch is lost
            self._changed = self._moved = True
        if self._moved:
            try:
                self._arm()
            except Unwatchable as error:
                log.get().warning("some directories cannot be watched", detail=str(error))
        if self._changed:
            self._on_event()

    def _seen(self, event: Any) -> None:
        names = self._watches.get(event.wd)
        name = getattr(event, "name", "")
        if event.mask & MOVED:
            self._changed = self._moved = True
        elif names is None:
            # A directory that appears may be one that is wanted, and that was only waited for until now.
            self._changed = True
            self._moved = self._moved or bool(event.mask & APPEARED and event.mask & pyinotify.IN_ISDIR)
        elif name in names:
            self._changed = self._moved = True

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, 256 << 10):
                pass
        self._changed = self._moved = True


def nearest(directory: str) -> tuple[str, str]:
    """The directory itself with links resolved, or its nearest ancestor that exists and the name to wait for in it."""
    path = Path(os.path.realpath(directory))
    missing = ""
    while path != path.parent:
        try:
            if stat.S_ISDIR(path.stat().st_mode):
                break
        except OSError:
            pass
        missing = path.name
        path = path.parent
    return str(path), missing


def _queued(fd: int) -> int:
    size = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, size, True)
    return size[0]
