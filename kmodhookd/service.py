# SPDX-License-Identifier: GPL-2.0-or-later
"""The object on the bus: what its methods do, and what it says of what happens.

No method waits for anything but this: a reading call that comes before the first look of a daemon that was just started
(an activating call does) is answered when there is something to answer from.
"""

import contextlib
import re
import stat
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

from kmodhookd import log
from kmodhookd.announce.announced import Announcements
from kmodhookd.announce.journal import Announcer
from kmodhookd.announce.manager import Manager
from kmodhookd.bus import DEFERRED, Call, Connection, Dispatcher, Method, interfaces
from kmodhookd.errors import Busy, Fault, InvalidArgument
from kmodhookd.events.gate import Gate
from kmodhookd.events.loop import Cancel, Loop
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH, State, Target
from kmodhookd.passes import Passes
from kmodhookd.protocol import JobEvent, Outcome, Snapshot
from kmodhookd.root import Root

NAME = "org.kmodhookd1"
PATH = "/org/kmodhookd1"
MANAGER = "org.kmodhookd1.Manager"
HOOK_PATH = "/org/kmodhookd1/hook"
HOOK = "org.kmodhookd1.Hook"
ACTION = "org.kmodhookd1.manage"
FIRST_LOOK = 20.0  # seconds that a reading call waits for the first look of all
WAITING_CALLS = 256

Reader = Callable[..., Any]


def introspection() -> dict[str, Any]:
    """The interfaces, from the file that is their source."""
    return interfaces(resources.files("kmodhookd").joinpath("org.kmodhookd1.xml").read_text("utf-8"))


class Service:
    """Methods, properties and signals; the listener of the passes."""

    def __init__(
        self,
        root: Root,
        loop: Loop,
        gate: Gate,
        manager: Manager,
        announcer: Announcer,
        on_watch: Callable[[Snapshot], None],
    ) -> None:
        self._root = root
        self._loop = loop
        self._gate = gate
        self._manager = manager
        self._announcer = announcer
        self._announcements = Announcements(root)
        self._on_watch = on_watch
        self._waiting: list[tuple[Call, Reader, tuple[Any, ...]]] = []
        self._patience: Cancel | None = None
        self._dispatcher: Dispatcher | None = None
        self._passes: Passes | None = None

    def serve(self, connection: Connection, passes: Passes) -> None:
        """Put the objects on the bus (before the name is taken)."""
        self._passes = passes
        self._manager.set("Pass", "t", passes.numbers.finished)
        self._manager.set("SettledPass", "t", passes.numbers.settled)
        self._manager.take_changed()
        known = introspection()
        self._dispatcher = connection.export(PATH, known[MANAGER], self.methods(), self._manager.properties)
        connection.export(HOOK_PATH, known[HOOK], {})

    def methods(self) -> Mapping[str, Method]:
        """Every method, and what calling it needs."""
        return {
            "GetStatus": self._reading(self._manager.status),
            "ListKernels": self._reading(self._manager.kernels),
            "ListModules": self._reading(self._manager.modules),
            "Explain": self._reading(self._explain),
            "CheckBoot": self._reading(self._check_boot),
            "WhoProvides": self._reading(self._who_provides),
            "ListJobs": Method(lambda _call: self._manager.list_jobs()),
            "Reconcile": Method(self._reconcile, ACTION),
            "Rebuild": Method(self._rebuild, ACTION),
            "Cancel": Method(self._cancel, ACTION),
        }

    # --- reading -----------------------------------------------------------------------------------------------------

    def _reading(self, reader: Reader) -> Method:
        def handle(call: Call, *arguments: Any) -> Any:
            if self._manager.known:
                return reader(*arguments)
            if len(self._waiting) >= WAITING_CALLS:
                raise Busy("the disk is still being looked at for the first time", hint="try again in a moment")
            self._waiting.append((call, reader, arguments))
            if self._patience is None:
                self._patience = self._loop.after(FIRST_LOOK, self._answer_waiting)
            return DEFERRED

        return Method(handle)

    def _answer_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        if self._patience is not None:
            self._patience()
            self._patience = None
        for call, reader, arguments in waiting:
            try:
                if not self._manager.known:
                    raise Busy("the disk is still being looked at for the first time", hint="try again in a moment")
                call.reply(reader(*arguments))
            except Fault as fault:
                call.fail(fault)

    def _explain(self, module: str, version: str, kernel: str) -> Any:
        _check_name("module", module)
        _check_name("version", version, may_be_empty=True)
        _check_name("kernel", kernel, may_be_empty=True)
        return self._manager.explain(module, version, kernel)

    def _check_boot(self, kernel: str) -> Any:
        _check_name("kernel", kernel, may_be_empty=True)
        return self._manager.check_boot(kernel)

    def _who_provides(self, path: str) -> Any:
        if len(path) > 4096:
            raise InvalidArgument("the path is too long")
        return self._manager.who_provides(path)

    # --- asking for work ---------------------------------------------------------------------------------------------

    @property
    def _at_work(self) -> Passes:
        assert self._passes is not None  # `serve` comes before any call
        return self._passes

    def _reconcile(self, _call: Call, options: dict[str, Any]) -> tuple[int]:
        _check_options(options, {"kernel": str})
        kernel = options.get("kernel", "")
        if "kernel" in options:
            self._check_kernel(kernel)
        return (self._at_work.reconcile(kernel),)

    def _rebuild(self, _call: Call, module: str, version: str, kernel: str, options: dict[str, Any]) -> tuple[int]:
        _check_options(options, {})
        _check_name("module", module)
        _check_name("version", version, may_be_empty=True)
        if kernel:
            self._check_kernel(kernel)
        self._manager.find_module(module, version)
        return (self._at_work.rebuild(Target(module=module, version=version, kernel=kernel)),)

    def _cancel(self, call: Call, job: int, options: dict[str, Any]) -> None:
        _check_options(options, {})
        self._at_work.cancel(job, f"uid {call.uid}" if call.uid else "root")

    def _check_kernel(self, release: str) -> None:
        """A kernel may be asked for that the last look has not seen yet: a hook asks while it is being unpacked."""
        _check_name("kernel", release)
        with contextlib.suppress(OSError):
            if stat.S_ISDIR(self._root.modules.joinpath(release).stat().st_mode):
                return
        self._manager.find_kernel(release)

    # --- what passes do (passes.Listener) ------------------------------------------------------------------------------

    def pass_begun(self) -> None:
        """A worker was started."""
        self.refresh()

    def snapshot(self, snapshot: Snapshot, *, authoritative: bool) -> None:
        """A look."""
        self._manager.publish(snapshot)
        self._answer_waiting()
        self._on_watch(snapshot)
        if authoritative:
            self._announce_headers(settled=False)
        self.refresh()

    def job(self, event: JobEvent) -> None:
        """A job's life, as signals."""
        self._manager.job(event)
        name = (event.module, event.version, event.kernel)
        if event.kind == "started":
            self._emit("JobStarted", event.id, *name)
        elif event.kind == "progress" and event.phase != State.QUEUED:  # a queued one shows in the status alone
            self._emit("JobProgress", event.id, event.fraction, event.phase)
        elif event.kind == "finished":
            self._emit("JobFinished", event.id, *name, event.result, event.detail)
            self._announcer.job_finished(event)
        self.refresh()

    def pass_ended(self, outcome: Outcome, *, authoritative: bool) -> None:
        """The worker is gone."""
        numbers = self._at_work.numbers
        self._manager.pass_ended()
        self._manager.set("Pass", "t", numbers.finished)
        self._manager.set("SettledPass", "t", numbers.settled)
        if authoritative:
            self._announce_headers(settled=True)
        self.refresh()
        if outcome.installed or outcome.failed or outcome.removed:
            counts = {"installed": outcome.installed, "failed": outcome.failed, "removed": outcome.removed}
            log.get().info("pass finished", pass_number=outcome.number, waiting=outcome.waiting, **counts)

    def settled(self, number: int, installed: int, failed: int, waiting: int) -> None:
        """Nothing is left that can be done now."""
        self._emit("Settled", number, installed, failed, waiting)

    # --- saying ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Bring the properties up to date and say which of them changed."""
        state = "idle"
        if self._passes is not None and self._passes.working:
            state = "working"
        elif self._gate.closed:
            state = "held"
        self._manager.set("State", "s", state)
        changed = self._manager.take_changed()
        if changed and self._dispatcher is not None:
            self._dispatcher.properties_changed(changed)

    def _announce_headers(self, *, settled: bool) -> None:
        for one in self._announcements.news(self._manager.snapshot.missing_headers, settled=settled):
            self._emit("HeadersMissing", one.kernel, one.flavour, one.package, list(one.modules))
            self._announcer.headers_missing(one)

    def _emit(self, member: str, *values: Any) -> None:
        if self._dispatcher is not None:
            self._dispatcher.emit(member, *values)


def _check_name(what: str, value: str, *, may_be_empty: bool = False) -> None:
    if may_be_empty and not value:
        return
    if len(value) > SAFE_LENGTH or not re.fullmatch(NAME_PATTERN.removesuffix("$"), value):
        raise InvalidArgument(f"{value[:80]!r} cannot be the name of a {what}")


def _check_options(options: Mapping[str, Any], known: Mapping[str, type]) -> None:
    for name, value in options.items():
        if name not in known:
            there = f"there is {', '.join(sorted(known))}" if known else "there are none"
            raise InvalidArgument(f"unknown option {name[:80]!r}", hint=there)
        if not isinstance(value, known[name]):
            raise InvalidArgument(f"option {name!r} has the wrong type")
