# SPDX-License-Identifier: GPL-2.0-or-later
"""Passes: their numbers, which are the tickets that callers get, and when one begins.

One worker runs at a time. Whatever wants a look while it runs gets the next pass; a ticket promises a pass that begins
after the call. Numbers never go back, over restarts too. A worker that dies counts as a pass that failed, so that no
ticket hangs, and the work is tried again after a while that grows.
"""

from collections.abc import Callable
from typing import Protocol

from kmodhookd import log, store
from kmodhookd.errors import NotFound
from kmodhookd.events.gate import Gate
from kmodhookd.events.loop import Cancel, Loop
from kmodhookd.model import Noun, Target
from kmodhookd.protocol import Control, JobEvent, Outcome, Request, Snapshot, WorkerEvent
from kmodhookd.root import Root

FILE = f"{store.STATE}/pass.json"
BACKOFF = (2.0, 10.0, 60.0, 300.0)  # seconds until a pass that could not be done is tried again
NUMBER_LIMIT = 1 << 62


class Numbers(Noun, extra="ignore"):
    """The file of pass numbers."""

    begun: int = 0
    finished: int = 0
    settled: int = 0


class Worker(Protocol):
    """What does a pass (`child.Child`)."""

    def control(self, control: Control) -> None:
        """Say something to it."""

    def stop(self) -> None:
        """Make it end soon."""


Start = Callable[[Request, Callable[[WorkerEvent], None], Callable[[int], None]], Worker]


class Listener(Protocol):
    """Who is told what passes do."""

    def pass_begun(self) -> None:
        """A worker was started."""

    def snapshot(self, snapshot: Snapshot, *, authoritative: bool) -> None:
        """A look. `authoritative`: made by a pass that found the gate open, and it has stayed open."""

    def job(self, event: JobEvent) -> None:
        """A job's life."""

    def pass_ended(self, outcome: Outcome, *, authoritative: bool) -> None:
        """The worker is gone; its numbers have been saved."""

    def settled(self, number: int, installed: int, failed: int, waiting: int) -> None:
        """Nothing is left that can be done now."""


class Passes:
    """Begins passes and follows them."""

    def __init__(self, root: Root, config: str, loop: Loop, gate: Gate, start: Start, listener: Listener) -> None:
        self._path = root.resolve(FILE)
        self._prefix = str(root.prefix)
        self._config = config
        self._loop = loop
        self._gate = gate
        self._start = start
        self._listener = listener
        self.numbers = store.load(self._path, Numbers) or Numbers()
        if not 0 <= self.numbers.begun < NUMBER_LIMIT:
            self.numbers = Numbers()
        self._worker: Worker | None = None
        self._outcome: Outcome | None = None
        self._authoritative = False
        self._wanted = False  # another pass has been asked for, by someone or something that does not wait for a timer
        self._rebuild: list[Target] = []
        self._next_job = 1
        self._running_jobs: set[int] = set()
        self._installed = 0  # since the last Settled
        self._failures_in_a_row = 0
        self._retry: Cancel | None = None
        self._look_again: Cancel | None = None
        self._stopped: Callable[[], None] | None = None

    @property
    def working(self) -> bool:
        """Whether a worker runs."""
        return self._worker is not None

    # --- what others want ------------------------------------------------------------------------------------------

    def want(self) -> int:
        """A look is due: now, or right after the pass that runs. Returns the number of the pass that will look."""
        self._wanted = True
        self._begin()
        return self.numbers.begun + (1 if self._wanted else 0)

    def hint(self) -> None:
        """Something may have changed. While passes cannot be done, the retry that is due anyway will see it."""
        if self._retry is None:
            self.want()

    def reconcile(self, kernel: str) -> int:
        """Someone waits for a look. Returns the ticket."""
        if kernel:
            self._gate.look()
            self._gate.lift(kernel)
            self._tell(Control(op="wind-down"))
        return self.want()

    def rebuild(self, target: Target) -> int:
        """Someone wants a module built again. Returns the ticket."""
        if target not in self._rebuild:
            self._rebuild.append(target)
        return self.want()

    def cancel(self, job: int, by: str) -> None:
        """Stop a job. Raises NotFound when none of that number runs."""
        if job not in self._running_jobs:
            raise NotFound(f"no job {job} is running", hint="kmodhookctl status shows what is being built")
        self._tell(Control(op="cancel", job=job, by=by))

    def gate_changed(self) -> None:
        """The gate was closed, opened or lifted: the worker must know. A gate that opened wants a pass at once."""
        if self._gate.closed:
            self._authoritative = False
        self._tell(Control(op="gate", held=self._gate.closed, lifted=self._gate.lifted))

    def stop(self, done: Callable[[], None]) -> None:
        """End the worker in order, then call `done`. No pass begins any more."""
        self._stopped = done
        for cancel in (self._retry, self._look_again):
            if cancel is not None:
                cancel()
        self._retry = self._look_again = None
        if self._worker is None:
            done()
        else:
            self._worker.stop()

    # --- a pass ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._worker is not None or not self._wanted or self._stopped is not None:
            return
        held = self._gate.look()
        self._wanted = False
        self._forget_timers()
        self._save(self.numbers.model_copy(update={"begun": self.numbers.begun + 1}))
        request = Request(
            number=self.numbers.begun,
            prefix=self._prefix,
            config=self._config,
            held=held,
            lifted=self._gate.lifted,
            rebuild=tuple(self._rebuild),
            first_job=self._next_job,
        )
        self._rebuild.clear()
        self._outcome = None
        self._authoritative = not held
        try:
            self._worker = self._start(request, self._event, self._ended)
        except OSError as error:
            log.get().error("no worker can be started", detail=str(error))
            self._finish(Outcome(number=request.number, failed=1, error=str(error)))
            return
        self._listener.pass_begun()

    def _event(self, event: WorkerEvent) -> None:
        if event.snapshot is not None:
            self._listener.snapshot(event.snapshot, authoritative=self._authoritative and not self._gate.look())
        if event.job is not None:
            self._next_job = max(self._next_job, event.job.id + 1)
            if event.job.kind == "finished":
                self._running_jobs.discard(event.job.id)
            else:
                self._running_jobs.add(event.job.id)
            self._listener.job(event.job)
        if event.waiting is not None:
            log.get().info(event.waiting, pass_number=self.numbers.begun)
        if event.outcome is not None:
            self._outcome = event.outcome

    def _ended(self, status: int) -> None:
        self._worker = None
        number = self.numbers.begun
        if self._stopped is not None:
            self._stopped()
            return
        outcome = self._outcome
        if outcome is None:
            log.get().error("the worker died in the middle of a pass", status=status, pass_number=number)
            outcome = Outcome(number=number, failed=1, error=f"the worker ended with status {status}")
        elif outcome.error:
            log.get().error("a pass could not be done", detail=outcome.error, pass_number=number)
            outcome = outcome.model_copy(update={"failed": max(1, outcome.failed)})
        self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        number = self.numbers.begun
        self._running_jobs.clear()
        self._installed += outcome.installed
        self._rebuild = [*outcome.unfinished, *(one for one in self._rebuild if one not in outcome.unfinished)]
        authoritative = self._authoritative and not outcome.error and not self._gate.look()
        settled = not self._wanted
        update = {"finished": number, "settled": number if settled else self.numbers.settled}
        self._save(self.numbers.model_copy(update=update))
        self._listener.pass_ended(outcome, authoritative=authoritative)
        if settled:
            installed, self._installed = self._installed, 0
            self._listener.settled(number, installed, outcome.failed, outcome.waiting)
        self._plan_next(outcome)
        self._begin()

    def _plan_next(self, outcome: Outcome) -> None:
        """A look that is due later: after an error, or when the plan says so."""
        if outcome.error:
            seconds = BACKOFF[min(self._failures_in_a_row, len(BACKOFF) - 1)]
            self._failures_in_a_row += 1
            self._retry = self._loop.after(seconds, self._due)
        else:
            self._failures_in_a_row = 0
            if outcome.look_again > 0:
                self._look_again = self._loop.after(max(0.5, outcome.look_again), self._due)

    def _due(self) -> None:
        self._retry = self._look_again = None
        self.want()

    def _forget_timers(self) -> None:
        """What they are due for, the pass that begins now does."""
        for cancel in (self._retry, self._look_again):
            if cancel is not None:
                cancel()
        self._retry = self._look_again = None

    def _tell(self, control: Control) -> None:
        if self._worker is not None:
            self._worker.control(control)

    def _save(self, numbers: Numbers) -> None:
        self.numbers = numbers
        try:
            store.save(self._path, numbers)
        except OSError as error:
            log.get().warning("pass numbers cannot be saved; they may go back after a restart", detail=str(error))
