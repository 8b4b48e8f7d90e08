# SPDX-License-Identifier: GPL-2.0-or-later
"""observe → plan → act, in rounds, until nothing is left that can be done now.

A library without bus or main loop: the daemon's worker, `kmodhookd --once` and the command line's verbs are this code.
Builds run side by side under one job server; what they made goes in kernel by kernel, as soon as the last build of that
kernel is done, with one depmod.
"""

import math
import threading
import time
from collections.abc import Callable

from kmodhookd.act import steps, verdicts
from kmodhookd.act.controls import Controls
from kmodhookd.announce.snapshot import snapshot
from kmodhookd.model import Inventory, Plan, State, Target
from kmodhookd.observe import bootneeds
from kmodhookd.observe.inventory import look
from kmodhookd.plan import planner
from kmodhookd.protocol import Outcome, Request, Snapshot, WorkerEvent
from kmodhookd.root import Root
from kmodhookd.settings import Settings

Emit = Callable[[WorkerEvent], None]

MAX_ROUNDS = 40  # a chain of dependencies takes one each; more is a plan that does not converge
PATIENCE = 20.0  # seconds that a pass waits for trees that are still being written before it leaves that to the next

SLOW = 15.0  # seconds for slow looks at the end of a pass: those who wait for it wait no longer; the next one goes on
RETRY = 300.0  # seconds after which what went wrong and is remembered nowhere (no room to remember it) is tried again

WAITING = frozenset({State.WAITING_HEADERS, State.WAITING_KERNEL, State.WAITING_DEPENDENCY})
FAILED = frozenset({State.FAILED, State.BROKEN, State.DAMAGED})


def one_pass(root: Root, settings: Settings, request: Request, emit: Emit, controls: Controls) -> Outcome:
    """Look, plan, do, until there is nothing more to do now; the outcome tells what came of it."""
    work = steps.Work(root, settings, controls, emit, first_job=request.first_job)
    work.begin(request.rebuild)
    deadline = time.monotonic() + PATIENCE
    inventory = verdicts.known(root, work.look(first=True))
    plan = _plan(inventory, settings, controls, request.rebuild)
    for round_ in range(MAX_ROUNDS):
        emit(WorkerEvent(snapshot=snapshot(inventory, plan, work.said)))
        if controls.stop.is_set() or (controls.wind_down.is_set() and round_):
            break
        if not work.do(inventory, plan) and not _wait_for_trees(plan, deadline, controls):
            break
        inventory = verdicts.known(root, work.look())
        plan = _plan(inventory, settings, controls, request.rebuild)
    told = (work.said, plan.boot, plan.cells)
    work.finish(inventory)
    enough = _Enough(controls.hurry, SLOW)
    if not (controls.held or controls.wind_down.is_set() or controls.hurry.is_set()):
        inventory, plan = _with_slow_looks(root, settings, inventory, plan, controls, enough)
    if (work.said, plan.boot, plan.cells) != told:
        emit(WorkerEvent(snapshot=snapshot(inventory, plan, work.said)))
    return _outcome(request, inventory, plan, work, late=enough.late)


class _Enough(threading.Event):
    """Is set when something else is due, and after some seconds; `late` tells that it was these, and something was left out."""

    def __init__(self, hurry: threading.Event, seconds: float) -> None:
        super().__init__()
        self._hurry = hurry
        self._end = time.monotonic() + seconds
        self.late = False

    def is_set(self) -> bool:
        """Whether to begin nothing more."""
        self.late = self.late or time.monotonic() >= self._end
        return self.late or self._hurry.is_set()


def _with_slow_looks(
    root: Root, settings: Settings, inventory: Inventory, plan: Plan, controls: Controls, enough: _Enough
) -> tuple[Inventory, Plan]:
    """The same with whether modules will load, and what each initramfs holds by now. Nothing else of a pass waits for it.

    What was looked at before it is `enough` is remembered, so that the next one goes on there. A listing that has begun is
    cut only when something else is due: it has its own limit.
    """
    inventory = verdicts.told(root, settings, inventory, enough)
    found = bootneeds.facts(
        root,
        settings,
        inventory.kernels,
        inventory.placements,
        look_inside=not enough.is_set(),
        cancel=controls.hurry,
    )
    inventory = inventory.model_copy(update={"boot": found})
    judged = _plan(inventory, settings, controls, ())
    return inventory, plan.model_copy(update={"boot": judged.boot, "cells": judged.cells})


def look_only(root: Root, settings: Settings) -> Snapshot:
    """How things look, told from the disk: nothing is changed but what is remembered of slow looks."""
    inventory = look(root, settings)
    controls = Controls()
    plan = _plan(inventory, settings, controls, ())
    enough = _Enough(controls.hurry, math.inf)
    return snapshot(*_with_slow_looks(root, settings, inventory, plan, controls, enough))


def _plan(inventory: Inventory, settings: Settings, controls: Controls, rebuild: tuple[Target, ...]) -> Plan:
    return planner.make(
        inventory,
        settings,
        held=controls.held,
        lifted=tuple(controls.lifted),
        rebuild=rebuild,
        now=time.time(),
    )


def _wait_for_trees(plan: Plan, deadline: float, controls: Controls) -> bool:
    """Wait for what is due in a moment, so that a ticket is not settled over a tree that is still being copied."""
    remaining = deadline - time.monotonic()
    if not 0 < plan.look_again <= min(remaining, 5.0):
        return False
    return not controls.wind_down.wait(plan.look_again + 0.05)


def _outcome(request: Request, inventory: Inventory, plan: Plan, work: steps.Work, *, late: bool) -> Outcome:
    """`failed` counts what is wrong and will not come right by itself; `waiting` what goes on once something is there."""
    waiting = sum(1 for cell in plan.cells if cell.state in WAITING and cell.wanted)
    # Of what is there, only that is wrong which does not load: a source that is unusable by now has still its modules.
    failed = sum(1 for cell in plan.cells if cell.state is State.FAILED or (cell.state in FAILED and not cell.there))
    again = [seconds for seconds in (plan.look_again, RETRY if work.failures or late else 0.0) if seconds > 0]
    return Outcome(
        number=request.number,
        installed=work.installed,
        failed=failed + len(work.failures),
        waiting=waiting,
        removed=work.removed,
        look_again=min(again, default=0.0),
        held_back=plan.held_back,
        unfinished=work.unfinished(plan),
    )


def once(root: Root, settings: Settings) -> int:
    """`kmodhookd --once`: one complete pass in the foreground. 0 all there, 1 something failed, 2 something waits."""
    from kmodhookd.announce.text import OncePrinter

    controls = Controls()
    report = OncePrinter()
    outcome = one_pass(root, settings, Request(number=1, prefix=str(root.prefix)), report, controls)
    report.finish()
    if outcome.failed:
        return 1
    return 2 if outcome.waiting else 0


__all__ = ["Controls", "look_only", "once", "one_pass"]
