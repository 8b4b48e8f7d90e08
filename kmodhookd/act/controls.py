# SPDX-License-Identifier: GPL-2.0-or-later
"""What a pass may be told while it runs: the gate, a job to cancel, an end to come soon."""

import threading

from kmodhookd.protocol import Control


class Controls:
    """The state that `Control` lines change; read by every thread of a pass."""

    def __init__(self, *, held: bool = False, lifted: tuple[str, ...] = ()) -> None:
        self.held = held
        self.lifted = frozenset(lifted)
        self.wind_down = threading.Event()  # start nothing more: another pass is asked for
        self.stop = threading.Event()  # the daemon is gone
        self.hurry = threading.Event()  # what can wait is to end: something else is due, or the disk is about to change
        self.cancelled_by: dict[int, str] = {}
        self._cancels: dict[int, threading.Event] = {}
        self._lock = threading.Lock()

    def obey(self, control: Control) -> None:
        """Take in one line."""
        match control.op:
            case "gate":
                self.held, self.lifted = control.held, frozenset(control.lifted)
                if self.held:
                    self.hurry.set()
            case "wind-down":
                self.wind_down.set()
                self.hurry.set()
            case "cancel":
                self.cancelled_by[control.job] = control.by
                self.cancellation(control.job).set()

    def abandon(self) -> None:
        """The daemon has gone: end what runs, start nothing."""
        self.stop.set()
        self.wind_down.set()
        self.hurry.set()
        with self._lock:
            for event in self._cancels.values():
                event.set()

    def cancellation(self, job: int) -> threading.Event:
        """The event that is set when a job is to end."""
        with self._lock:
            event = self._cancels.setdefault(job, threading.Event())
        if self.stop.is_set():
            event.set()
        return event

    def may_commit(self, kernel: str) -> bool:
        """Whether the gate lets us change this kernel's tree (design.md, "What decides", rule 3)."""
        return not self.stop.is_set() and (not self.held or kernel in self.lifted)
