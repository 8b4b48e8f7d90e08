# SPDX-License-Identifier: GPL-2.0-or-later
"""Jobs: each build with its number, its progress and its end, as `ListJobs` and the Job signals tell them."""

import threading
import time
from collections.abc import Callable, Iterable

from kmodhookd.act.controls import Controls
from kmodhookd.act.failures import NO_SPACE, BuildFailed
from kmodhookd.errors import Fault
from kmodhookd.model import Action, DecisionKind, Failure, FailureClass, Kernel, Placement, Source, State
from kmodhookd.observe import decisions
from kmodhookd.protocol import JobEvent, WorkerEvent
from kmodhookd.root import Root

Emit = Callable[[WorkerEvent], None]


def waiter(emit: Emit) -> Callable[[str], None]:
    """What tells at once what is waited for, to whoever follows."""
    return lambda sentence: emit(WorkerEvent(waiting=sentence))


RETRY = {
    FailureClass.SPACE: 300.0,
    FailureClass.KILLED: 60.0,
    FailureClass.INSTALL: 300.0,
    FailureClass.INTERNAL: 300.0,
}
"""Classes worth a retry although no input changed, with the seconds after which the first one is due."""
RETRY_LONGEST = 6 * 3600.0
PROVISIONAL = 30.0  # seconds: a failure whose inputs changed so shortly before it is not believed yet
PROVISIONAL_RETRY = 2.0
PROVISIONAL_ATTEMPTS = 5
INSTALLING = 0.95  # of a job is done when only the installation is left
INTERVAL = 0.5  # seconds between two progress events of one job


class Jobs:
    """The jobs of one pass."""

    def __init__(self, root: Root, emit: Emit, controls: Controls, first: int) -> None:
        self.root = root
        self.emit = emit
        self.controls = controls
        self.dropped: list[Action] = []  # given up before they began
        self.unsaved: dict[tuple[str, str, str], str] = {}  # failures that the disk did not take, as sentences
        self._next = first
        self._of: dict[tuple[str, str, str], Job] = {}

    def new(self, action: Action) -> "Job":
        """A job for a build that is about to be queued."""
        job = Job(self, self._next, action)
        self._next += 1
        self._of[action.module, action.version, action.kernel] = job
        job.queue()
        return job

    def beat(self) -> None:
        """Something of what is being built moved: whoever waits goes on waiting."""
        for job in list(self._of.values()):
            job.beat()

    def failed(self, action: Action) -> bool:
        """Whether this action's build did not succeed, so that there is nothing to install."""
        job = self._of.get((action.module, action.version, action.kernel))
        return job is not None and job.result not in ("", "built")

    def cancelled(self, action: Action, source: Source) -> bool:
        """Whether somebody cancelled it after its build was done: then it does not go in."""
        job = self._of.get((action.module, action.version, action.kernel))
        if job is None or not job.cancel.is_set() or not job.remember_cancel(source):
            return False
        self.finish(action, "cancelled", "cancelled before it was installed")
        return True

    def finish(self, action: Action, result: str, detail: str) -> None:
        """Tell the end of the job that an installation belongs to; without a build it becomes one of its own."""
        job = self._job(action)
        del self._of[action.module, action.version, action.kernel]
        if job.installs_only:
            job.origin = self._origin(action)
        if job.origin and result == "done":
            result, detail = "reused", "; ".join(filter(None, (f"built for {job.origin}", detail)))
        if job.result in ("", "built"):
            job.finish(result, detail)

    def waits(self, sentence: str, actions: Iterable[Action]) -> None:
        """Tell at once what is waited for, of each of these jobs too. A mere installation is one from here on."""
        waiter(self.emit)(sentence)
        for action in actions:
            self._job(action).wait(sentence)

    def go_on(self, actions: Iterable[Action]) -> None:
        """What those of these jobs that waited have waited for is over."""
        for action in actions:
            job = self._of.get((action.module, action.version, action.kernel))
            if job is not None:
                job.go_on()

    def _job(self, action: Action) -> "Job":
        """The job that an installation belongs to, or one of its own."""
        job = self._of.get((action.module, action.version, action.kernel))
        if job is None:
            job = self.new(action)
            job.start()
            job.installs_only = True
        return job

    def _origin(self, action: Action) -> str:
        """The kernel that what is installed was built for, when that is another one (it was taken over in an earlier round)."""
        record = decisions.record(self.root, action.cell)
        provenance = record.installed_provenance if record is not None and record.files else None
        return provenance.origin if provenance is not None else ""

    def give_up(self, action: Action, detail: str) -> None:
        """Tell the end of a job that has not been told yet: something stood in the way of all of them."""
        job = self._of.get((action.module, action.version, action.kernel))
        if job is not None and job.result in ("", "built"):
            self.finish(action, "failed", detail)

    def fail_install(self, action: Action, placement: Placement, fault: Fault, cause: FailureClass) -> None:
        """Remember that what was built could not be put in."""
        failure = fault.failure if isinstance(fault, BuildFailed) else _failure(placement, fault, cause)
        self.remember(placement, failure)
        self.finish(action, "failed", failure.reason)

    def remember(self, placement: Placement, failure: Failure) -> None:
        """Save a failure with its number of attempts and the time from which another is worth it."""
        earlier = placement.failure
        same = earlier is not None and earlier.fingerprint == placement.fingerprint
        attempts = earlier.attempts + 1 if same and earlier is not None else 1
        now = time.time()
        retry_at = failure.retry_at
        if not retry_at and failure.cause in RETRY:
            retry_at = now + min(RETRY[failure.cause] * 2 ** (attempts - 1), RETRY_LONGEST)
        elif retry_at:
            retry_at = now + PROVISIONAL_RETRY * 2**attempts if attempts <= PROVISIONAL_ATTEMPTS else 0.0
        update = {"attempts": attempts, "when": now, "retry_at": retry_at, "fingerprint": placement.fingerprint}
        seen = {"tools": placement.tools, "signing": failure.signing or placement.signing}
        failure = failure.model_copy(update={**update, **seen})
        try:
            decisions.save_failure(self.root, failure)
        except OSError as error:
            cell = (placement.module, placement.version, placement.kernel)
            self.unsaved[cell] = (
                f"{cell[0]}/{cell[1]} on {cell[2]}: {failure.reason} (not remembered: {error.strerror})"
            )


class Job:
    """One build. `result` is "" while it runs, "built" when only the installation is left."""

    def __init__(self, jobs: Jobs, number: int, action: Action) -> None:
        self.jobs = jobs
        self.number = number
        self.action = action
        self.result = ""
        self.origin = ""  # the kernel that what is taken over was built for
        self.installs_only = False  # nothing had to be built
        self.cancel: threading.Event = jobs.controls.cancellation(number)
        self._started = time.time()
        self._told = 0.0
        self._phase = ""
        self._fraction = 0.0
        self._waiting = False

    def drop(self) -> None:
        """Give it up before it began: the pass that was asked for will have it. Nobody heard of it, so nothing is said."""
        self.result = "dropped"
        self.jobs.dropped.append(self.action)

    def queue(self) -> None:
        """It waits for its turn."""
        self._emit("progress", phase=State.QUEUED)

    def start(self) -> None:
        """The build begins."""
        self._started = time.time()
        self._emit("started", phase="prepare")

    def progress(self, phase: str, fraction: float) -> None:
        """A step of the build; at most a few a second are passed on."""
        now = time.monotonic()
        if phase == self._phase and now - self._told < INTERVAL:
            return
        self._phase, self._told, self._fraction, self._waiting = phase, now, fraction, False
        self._emit("progress", phase=phase, fraction=fraction)

    def beat(self) -> None:
        """It is still where it was, and at work."""
        if self._phase and not self.result and not self._waiting:
            self._emit("progress", phase=self._phase, fraction=self._fraction)

    def wait(self, sentence: str) -> None:
        """What the job waits for."""
        self._phase, self._waiting = sentence, True
        self._emit("progress", phase=sentence, fraction=self._fraction)

    def go_on(self) -> None:
        """What it waited for is over: what it has is put in place. (A build that goes on tells where it is.)"""
        if self._waiting:
            self.progress("install", INSTALLING)

    def built(self) -> None:
        """The module lies in the DKMS tree; its installation is told by `Jobs.finish`."""
        self.result = "built"
        self.progress("install", INSTALLING)

    def fail(self, placement: Placement, source: Source, kernel: Kernel, fault: Fault) -> None:
        """The build failed: remember why, unless it was cancelled, which is a person's decision."""
        failure = fault.failure if isinstance(fault, BuildFailed) else _failure(placement, fault, FailureClass.INTERNAL)
        if failure.cause is FailureClass.CANCELLED:
            self.remember_cancel(source)
            self.finish("cancelled", failure.reason)
            return
        youngest = max(kernel.headers.youngest, source.youngest)
        # What a signer refuses does not depend on trees, and a token counts wrong PINs.
        if self._started - youngest < PROVISIONAL and failure.cause is not FailureClass.SIGNING:
            failure = failure.model_copy(update={"retry_at": 1.0})
        self.jobs.remember(placement, failure)
        self.finish("failed", failure.reason)

    def remember_cancel(self, source: Source) -> bool:
        """Whether a person cancelled it (and not the end of the daemon); that is remembered."""
        by = self.jobs.controls.cancelled_by.get(self.number)
        if by is None:
            return False
        action = self.action
        kind = DecisionKind.CANCELLED
        try:
            decisions.decide(self.jobs.root, kind, action.module, action.version, action.kernel, source.fingerprint, by)
        except OSError as error:
            cell = (action.module, action.version, action.kernel)
            self.jobs.unsaved[cell] = f"{cell[0]}/{cell[1]}: that it was cancelled is not remembered: {error.strerror}"
        return True

    def finish(self, result: str, detail: str) -> None:
        """The job is over: done, reused, failed or cancelled."""
        self.result = result
        self._emit("finished", result=result, detail=detail, fraction=1.0)

    def _emit(self, kind: str, **fields: str | float) -> None:
        event = JobEvent.model_validate(
            {
                "kind": kind,
                "id": self.number,
                "module": self.action.module,
                "version": self.action.version,
                "kernel": self.action.kernel,
                "started": self._started,
                **fields,
            }
        )
        self.jobs.emit(WorkerEvent(job=event))


def _failure(placement: Placement, fault: Fault, cause: FailureClass) -> Failure:
    origin = fault.__cause__
    if isinstance(origin, OSError) and origin.errno in NO_SPACE:
        cause = FailureClass.SPACE
    return Failure(
        module=placement.module,
        version=placement.version,
        kernel=placement.kernel,
        arch=placement.arch,
        cause=cause,
        reason=f"{fault.where}: {fault.what}" if fault.where else fault.what,
        remedy=fault.hint,
    )
