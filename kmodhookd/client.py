# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon, as the command line and the hooks talk to it. Quick to import; everything is plain Python values.

Every call raises a class of errors.py: what the daemon said, or `Unreachable` when there is no bus or no daemon.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kmodhookd import bus
from kmodhookd.errors import Unreachable
from kmodhookd.events import hints
from kmodhookd.events.loop import iterate

NAME = "org.kmodhookd1"
PATH = "/org/kmodhookd1"
MANAGER = "org.kmodhookd1.Manager"
HOOK_PATH = "/org/kmodhookd1/hook"
HOOK = "org.kmodhookd1.Hook"
RESTART = 10.0  # seconds for which a daemon may be away (it is restarted by its own upgrade) before a wait gives up
POLKIT_PATIENCE = 150_000  # milliseconds; longer than the daemon gives polkit
STEP = 1.0  # seconds between two looks at the clock while waiting
FOREVER = 10.0 * 365 * 86400

Row = tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """A signal of the daemon. For the Job signals the fields say which job; JobProgress itself carries the id alone."""

    name: str  # HeadersMissing, JobStarted, JobProgress, JobFinished, Settled
    values: tuple[Any, ...]
    id: int = 0
    module: str = ""
    version: str = ""
    kernel: str = ""
    phase: str = ""
    fraction: float = 0.0
    result: str = ""
    detail: str = ""

    @property
    def kind(self) -> Literal["started", "progress", "finished", ""]:
        """As `model.JobEvent.kind`; "" for what is no job's."""
        kinds: Mapping[str, Literal["started", "progress", "finished"]] = {
            "JobStarted": "started",
            "JobProgress": "progress",
            "JobFinished": "finished",
        }
        return kinds.get(self.name, "")

    def sentence(self) -> str:
        """It in words."""
        cell = f"{self.module}/{self.version} for {self.kernel}" if self.module else f"job {self.id}"
        match self.name:
            case "JobStarted":
                return f"{cell}: started"
            case "JobProgress":
                return f"{cell}: {self.phase} {self.fraction:.0%}"
            case "JobFinished":
                return f"{cell}: {self.result}" + (f": {self.detail}" if self.detail else "")
            case "Settled":
                number, installed, failed, waiting = self.values
                return f"settled (pass {number}): {installed} installed, {failed} failed, {waiting} waiting"
            case "HeadersMissing":
                kernel, flavour, package, modules = self.values
                what = f"install {package}" if package else "install them"
                named = f"{kernel} ({flavour})" if flavour else kernel
                return f"headers of {named} are missing for {', '.join(modules)}: {what}"
        return f"{self.name} {self.values}"


@dataclass(frozen=True)
class Settled:
    """How a wait ended: nothing is left that can be done now."""

    number: int
    installed: int
    failed: int
    waiting: int


Tell = Callable[[Event], None]


class Client:
    """The daemon on one bus."""

    def __init__(self, connection: bus.Connection) -> None:
        self._connection = connection
        self._listening = False
        self._heard: list[Event] = []
        self._jobs: dict[int, tuple[str, str, str]] = {}
        self._gone = 0.0  # when the daemon left the bus; 0 = it is there

    # --- reading -----------------------------------------------------------------------------------------------------

    def is_there(self) -> bool:
        """Whether the daemon runs. All other questions make the bus start it."""
        return bool(self._connection.call(*bus.DBUS, "NameHasOwner", bus.Variant("(s)", (NAME,)))[0])

    def status(self) -> list[Row]:
        """Rows of module, version, kernel, architecture, state."""
        return self._rows("GetStatus")

    def kernels(self) -> list[dict[str, Any]]:
        """One mapping per kernel (`ListKernels`)."""
        return list(self._call("ListKernels")[0])

    def modules(self) -> list[dict[str, Any]]:
        """One mapping per source (`ListModules`)."""
        return list(self._call("ListModules")[0])

    def explain(self, module: str, version: str = "", kernel: str = "") -> list[dict[str, Any]]:
        """The facts behind a state, in order: `fact`, `verdict`, `remedy`, `version`; see `failure`."""
        return list(self._call("Explain", bus.Variant("(sss)", (module, version, kernel)))[0])

    def check_boot(self, kernel: str = "") -> tuple[str, list[Row]]:
        """`ready`, `not-ready` or `unknown`, and rows of module, reason, remedy."""
        verdict, reasons = self._call("CheckBoot", bus.Variant("(s)", (kernel,)))
        return verdict, reasons

    def who_provides(self, path: str) -> dict[str, str]:
        """Where a .ko file comes from."""
        return dict(self._call("WhoProvides", bus.Variant("(s)", (path,)))[0])

    def jobs(self) -> list[tuple[Any, ...]]:
        """Rows of id, module, version, kernel, phase, started, fraction."""
        return list(self._call("ListJobs")[0])

    def properties(self) -> dict[str, Any]:
        """All properties of the manager."""
        arguments = bus.Variant("(s)", (MANAGER,))
        reply = self._connection.call(NAME, PATH, bus.PROPERTIES, "GetAll", arguments)
        return dict(reply[0])

    def missing_headers(self) -> list[Row]:
        """Rows of kernel, flavour, package."""
        return list(self.properties()["MissingHeaders"])

    def failures(self) -> list[Row]:
        """Rows of module, version, kernel, reason."""
        return list(self.properties()["Failures"])

    def reused(self) -> list[Row]:
        """Rows of module, version, kernel, the kernel that it was built for."""
        return list(self.properties().get("Reused", []))

    def root_id(self) -> str:
        """Device and inode of the root that is served."""
        return str(self.properties()["RootId"])

    # --- asking for work ---------------------------------------------------------------------------------------------

    def reconcile(self, kernel: str = "") -> int:
        """Ask for a pass; returns the ticket."""
        options = {"kernel": bus.Variant("s", kernel)} if kernel else {}
        return self._ask("Reconcile", bus.Variant("(a{sv})", (options,)))

    def rebuild(self, module: str, version: str = "", kernel: str = "") -> int:
        """Ask for a module to be built again; returns the ticket."""
        return self._ask("Rebuild", bus.Variant("(sssa{sv})", (module, version, kernel, {})))

    def cancel(self, job: int) -> None:
        """Stop a job."""
        self._call("Cancel", bus.Variant("(ua{sv})", (job, {})), privileged=True)

    def send_hook(self, signal: str, backend: str, identity: str, targets: Iterable[str]) -> None:
        """Send `TransactionBegin` or `TransactionEnd`. Targets are escaped here, and as many go as fit a message."""
        values = bus.Variant("(ssas)", (backend, identity, hints.limited(targets)))
        self._connection.send_signal(NAME, HOOK_PATH, HOOK, signal, values)

    # --- following ---------------------------------------------------------------------------------------------------

    def wait(self, ticket: int, stall: float = 0.0, total: float = 0.0, progress: Tell | None = None) -> Settled | None:
        """Wait until a ticket is settled; ticket 0: until nothing is under way.

        None when `stall` seconds pass without any progress, or `total` seconds in all (0 = no limit). `progress` is
        called for every signal meanwhile. Raises Unreachable when the daemon goes and does not come back.
        """
        self._listen()
        begun = last = time.monotonic()
        while True:
            settled = self._settled(ticket)
            now = time.monotonic()
            if self._heard:
                last = now
            for event in self._take():
                if progress is not None:
                    progress(event)
            if settled is not None:
                return settled
            if (total and now - begun >= total) or (stall and now - last >= stall):
                return None
            limits = [begun + total - now] if total else []
            limits += [last + stall - now] if stall else []
            iterate(lambda: bool(self._heard), min([STEP, *limits]))
            self._check_there()

    def watch(self, tell: Tell) -> None:
        """Call `tell` for every signal, until the daemon goes (Unreachable) or KeyboardInterrupt."""
        self.properties()  # starts the daemon where it does not run yet
        self._listen()
        while True:
            iterate(lambda: bool(self._heard), STEP)
            for event in self._take():
                tell(event)
            self._check_there()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    # --- how ---------------------------------------------------------------------------------------------------------

    def _call(self, member: str, arguments: Any = None, *, privileged: bool = False) -> tuple[Any, ...]:
        timeout = POLKIT_PATIENCE if privileged else bus.CALL_TIMEOUT
        reply: tuple[Any, ...] = self._connection.call(
            NAME, PATH, MANAGER, member, arguments, timeout=timeout, interactive=privileged
        )
        return reply

    def _ask(self, member: str, arguments: Any) -> int:
        self._listen()  # before asking, so that nothing of what follows is missed
        return int(self._call(member, arguments, privileged=True)[0])

    def _rows(self, member: str) -> list[Row]:
        return [tuple(row) for row in self._call(member)[0]]

    def _listen(self) -> None:
        if self._listening:
            return
        self._listening = True
        self._connection.subscribe(MANAGER, PATH, self._signal, sender=NAME)
        self._connection.subscribe(bus.DBUS[2], bus.DBUS[1], self._owner_changed, sender=bus.DBUS[0], arg0=NAME)

    def _signal(self, _sender: str, member: str, values: tuple[Any, ...]) -> None:
        if member == "JobStarted":
            number, module, version, kernel = values
            self._jobs[number] = (module, version, kernel)
            event = Event(member, values, number, module, version, kernel)
        elif member == "JobProgress":
            module, version, kernel = self._jobs.get(values[0], ("", "", ""))
            event = Event(member, values, values[0], module, version, kernel, fraction=values[1], phase=values[2])
        elif member == "JobFinished":
            self._jobs.pop(values[0], None)
            number, module, version, kernel, result, detail = values
            event = Event(member, values, number, module, version, kernel, "", 1.0, result, detail)
        else:
            event = Event(member, values)
        self._heard.append(event)

    def _owner_changed(self, _sender: str, member: str, values: tuple[Any, ...]) -> None:
        if member == "NameOwnerChanged":
            self._gone = 0.0 if values[2] else time.monotonic()

    def _take(self) -> list[Event]:
        heard, self._heard = self._heard, []
        return heard

    def _settled(self, ticket: int) -> Settled | None:
        """From what was heard; else, in case that it had happened before we listened, from the properties."""
        heard = self._heard_settled(ticket)
        if heard is not None or self._gone:
            return heard
        now = self.properties()
        under_way = now["State"] == "working" or now["PendingJobs"]
        if now["SettledPass"] < ticket or (not ticket and under_way):
            return None
        # The signal came before that answer, but may wait to be served: it says more.
        iterate(lambda: True, 0)
        heard = self._heard_settled(ticket)
        if heard is not None:
            return heard
        waiting = sum(1 for row in self.status() if row[4].startswith("waiting-"))
        return Settled(int(now["SettledPass"]), 0, len(now["Failures"]), waiting)

    def _heard_settled(self, ticket: int) -> Settled | None:
        for event in self._heard:
            if event.name == "Settled" and event.values[0] >= ticket:
                return Settled(*event.values)
        return None

    def _check_there(self) -> None:
        if self._gone and time.monotonic() - self._gone > RESTART:
            raise Unreachable("kmodhookd has ended", hint="see: journalctl -u kmodhookd")


FAILURE = ("class", "reason", "line", "log", "attempts", "when", "retry_at", "fingerprint")


def failure(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What `explain` tells of the last attempt as data; empty when it did not fail."""
    told = next((fact for fact in facts if "class" in fact), {})
    return {name: told[name] for name in FAILURE if name in told}


def connect(address: str | None = None) -> Client:
    """The daemon on the system bus, on the session bus (`session`), or at a D-Bus address. Raises Unreachable."""
    return Client(bus.connect(address or "system", os.geteuid()))
