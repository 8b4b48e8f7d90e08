# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a hook waits for work that it does itself (design.md, promise 7), and why it stopped."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

TOTAL = "the limit of {} s was over"
STALL = "nothing moved for {} s"
INTERRUPTED = "it was interrupted"


class Limits:
    """`gave_up` says why the work was ended, "" as long as it was not."""

    def __init__(self, stop: Callable[[], None], total: float, stall: float) -> None:
        self.gave_up = ""
        self._stop = stop
        self._total, self._stall = total, stall
        self._begun = self._last = time.monotonic()

    def progressed(self) -> None:
        """To be called whenever there is progress."""
        self._last = time.monotonic()

    def give_up(self, why: str) -> None:
        """End the work; the first reason counts."""
        self.gave_up = self.gave_up or why
        self._stop()

    def watch(self, over: threading.Event) -> None:
        """Give up when a limit strikes, until `over`."""
        while True:
            now = time.monotonic()
            left = self._begun + self._total - now
            moving = self._last + self._stall - now if self._stall else left
            if left <= 0:
                return self.give_up(TOTAL.format(f"{self._total:g}"))
            if moving <= 0:
                return self.give_up(STALL.format(f"{self._stall:g}"))
            if over.wait(min(left, moving)):
                return None


@contextlib.contextmanager
def limited(stop: Callable[[], None], total: float, stall: float = 0.0) -> Iterator[Limits]:
    """Call `stop` after `total` seconds, after `stall` seconds (0 = any number) without progress, or on SIGTERM."""
    over = threading.Event()
    limits = Limits(stop, total, stall)
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: limits.give_up(INTERRUPTED))
    threading.Thread(target=limits.watch, args=(over,), daemon=True).start()
    try:
        yield limits
    finally:
        over.set()
        signal.signal(signal.SIGTERM, before)
