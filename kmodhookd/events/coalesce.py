# SPDX-License-Identifier: GPL-2.0-or-later
"""Many events, one look: after a quiet moment, and after a while in any case."""

import time
from collections.abc import Callable
from typing import NamedTuple

from kmodhookd.events.loop import Cancel, Loop


class Pace(NamedTuple):
    """How long events must have come to rest, and how long a burst may go on; seconds."""

    quiet: float
    ceiling: float


class Coalescer:
    """Calls `fire` once `quiet` seconds have passed without an event, or `ceiling` seconds after the first of them.

    The pace is asked for when a timer is set and again when it has run out: it may have changed by then.
    """

    def __init__(self, loop: Loop, fire: Callable[[], None], pace: Callable[[], Pace]) -> None:
        self._loop = loop
        self._fire = fire
        self._pace = pace
        self._first = 0.0
        self._last = 0.0
        self._cancel: Cancel | None = None

    @property
    def pending(self) -> bool:
        """Whether an event waits for its look."""
        return self._cancel is not None

    def event(self) -> None:
        """Something happened. Cheap: the timer is set by the first event of a burst alone."""
        self._last = time.monotonic()
        if self._cancel is None:
            self._first = self._last
            self._arm()

    def drop(self) -> None:
        """Forget what waits: a look begins now, and it will see everything that happened so far."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _due(self) -> float:
        quiet, ceiling = self._pace()
        return min(self._last + quiet, self._first + max(quiet, ceiling))

    def _arm(self) -> None:
        # A millisecond more than asked for: a timer that fires early would only be set again.
        self._cancel = self._loop.after(max(0.0, self._due() - time.monotonic()) + 0.001, self._elapsed)

    def _elapsed(self) -> None:
        if time.monotonic() < self._due():
            self._arm()
            return
        self._cancel = None
        self._fire()
