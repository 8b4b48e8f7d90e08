# SPDX-License-Identifier: GPL-2.0-or-later
"""The main loop, as the rest of the daemon sees it: timers and descriptors whose callbacks cannot break it."""

import time
from collections.abc import Callable

from gi.repository import GLib

from kmodhookd.guard import guarded

Cancel = Callable[[], None]
BACKLOG = 4096  # sources served before the clock is looked at


class Loop:
    """GLib's default main loop."""

    def __init__(self) -> None:
        self._loop = GLib.MainLoop()

    def run(self) -> None:
        """Serve until `quit`."""
        self._loop.run()

    def quit(self) -> None:
        """Make `run` return."""
        self._loop.quit()

    def after(self, seconds: float, callback: Callable[[], None]) -> Cancel:
        """Call once, later."""
        return self._source(lambda fire: GLib.timeout_add(max(0, round(seconds * 1000)), fire), callback, again=False)

    def every(self, seconds: float, callback: Callable[[], None]) -> Cancel:
        """Call again and again, on whole seconds together with other timers."""
        period = max(1, round(seconds))
        return self._source(lambda fire: GLib.timeout_add_seconds(period, fire), callback, again=True)

    def on_readable(self, fd: int, callback: Callable[[], None], *, low: bool = False) -> Cancel:
        """Call whenever a descriptor has something to read, or its other end is gone. `low`: after everything else."""
        condition = GLib.IOCondition.IN | GLib.IOCondition.HUP | GLib.IOCondition.ERR
        return self._descriptor(fd, condition, callback, low=low)

    def on_writable(self, fd: int, callback: Callable[[], None]) -> Cancel:
        """Call whenever a descriptor takes something, or its other end is gone."""
        return self._descriptor(fd, GLib.IOCondition.OUT | GLib.IOCondition.ERR, callback, low=False)

    def on_signal(self, number: int, callback: Callable[[], None]) -> Cancel:
        """Call when the process is sent a signal."""
        priority = GLib.PRIORITY_DEFAULT
        return self._source(lambda fire: GLib.unix_signal_add(priority, number, fire), callback, again=True)

    def _descriptor(self, fd: int, condition: GLib.IOCondition, callback: Callable[[], None], *, low: bool) -> Cancel:
        priority = GLib.PRIORITY_LOW if low else GLib.PRIORITY_DEFAULT
        return self._source(lambda fire: GLib.io_add_watch(fd, priority, condition, fire), callback, again=True)

    def _source(
        self, add: Callable[[Callable[..., bool]], int], callback: Callable[[], None], *, again: bool
    ) -> Cancel:
        alive = True
        safe = guarded(callback, None)

        def fire(*_: object) -> bool:
            nonlocal alive
            if not again:
                alive = False
            safe()
            return again and alive

        source = add(fire)

        def cancel() -> None:
            nonlocal alive
            if alive:
                alive = False
                GLib.source_remove(source)

        return cancel


def iterate(done: Callable[[], bool], seconds: float) -> bool:
    """For programs without a loop of their own: serve until `done()`, or until the time is over; returns `done()`.

    What has come already is served in any case.
    """
    context = GLib.MainContext.default()
    for _ in range(BACKLOG):
        if not context.iteration(False):
            break
    deadline = time.monotonic() + seconds
    # The tick bounds each step, so that the deadline, and Ctrl-C, are seen.
    tick = GLib.timeout_add(200, lambda: True)
    try:
        while not done() and time.monotonic() < deadline:
            context.iteration(True)
    finally:
        GLib.source_remove(tick)
    return done()
