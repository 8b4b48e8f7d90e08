# SPDX-License-Identifier: GPL-2.0-or-later
"""What reading callers are told: replies and properties, each built once from a snapshot and served until it changes.

Jobs that run lie over the snapshot's cells (`building`), from their first event until a newer snapshot has come.
"""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from gi.repository import GLib

from kmodhookd.errors import InvalidArgument, NotFound
from kmodhookd.model import BootVerdict, Cell, Fact, HeadersState, Kernel, Source, State
from kmodhookd.plan.versions import compare
from kmodhookd.protocol import JobEvent, Snapshot

CellKey = tuple[str, str, str]  # module, version, kernel


class Manager:
    """The data behind org.kmodhookd1.Manager."""

    def __init__(self, version: str, root_id: str, required: Iterable[str] = ()) -> None:
        self.required = frozenset(required)
        self.known = False  # whether there has been a snapshot at all
        self.snapshot = Snapshot()
        self._jobs: dict[int, JobEvent] = {}
        self._over: dict[CellKey, State] = {}  # cells whose state a job tells better than the snapshot
        self._replies: dict[str, GLib.Variant] = {}
        self._properties: dict[str, GLib.Variant] = {
            "State": GLib.Variant("s", "idle"),
            "Version": GLib.Variant("s", version),
            "Pass": GLib.Variant("t", 0),
            "SettledPass": GLib.Variant("t", 0),
            "RootId": GLib.Variant("s", root_id),
        }
        self._changed: dict[str, GLib.Variant] = {}
        self._derive()
        self._changed.clear()

    # --- what happened ---------------------------------------------------------------------------------------------

    def publish(self, snapshot: Snapshot) -> None:
        """A newer look at the disk."""
        self.snapshot = snapshot
        self.known = True
        self._over = {key: state for key, state in self._over.items() if any(_key(job) == key for job in self.jobs)}
        self._replies.clear()
        self._derive()

    def job(self, event: JobEvent) -> None:
        """A job began, got on or ended."""
        if event.kind == "finished":
            self._jobs.pop(event.id, None)
        else:
            self._jobs[event.id] = event
            state = State.QUEUED if event.phase == State.QUEUED else State.BUILDING
            if self._over.get(_key(event)) is not state:
                self._over[_key(event)] = state
                self._replies.pop("GetStatus", None)
        self._replies.pop("ListJobs", None)
        self._derive_pending()

    def pass_ended(self) -> None:
        """No job outlives its pass, whatever its last event was."""
        if self._jobs or self._over:
            self._jobs.clear()
            self._over.clear()
            self._replies.clear()
        self._derive_pending()

    def set(self, name: str, signature: str, value: object) -> None:
        """Set a property that does not come from the snapshot."""
        variant = GLib.Variant(signature, value)
        before = self._properties.get(name)
        if before is None or not before.equal(variant):
            self._properties[name] = variant
            self._changed[name] = variant

    def take_changed(self) -> dict[str, GLib.Variant]:
        """The properties that changed since the last call of this."""
        changed, self._changed = self._changed, {}
        return changed

    # --- what is told ----------------------------------------------------------------------------------------------

    @property
    def jobs(self) -> tuple[JobEvent, ...]:
        """The jobs that run, by id."""
        return tuple(self._jobs[number] for number in sorted(self._jobs))

    def properties(self) -> dict[str, GLib.Variant]:
        """All properties."""
        return self._properties

    def status(self) -> GLib.Variant:
        """Reply of GetStatus."""
        return self._built("GetStatus", self._status)

    def kernels(self) -> GLib.Variant:
        """Reply of ListKernels."""
        return self._built("ListKernels", self._kernels)

    def modules(self) -> GLib.Variant:
        """Reply of ListModules."""
        return self._built("ListModules", self._modules)

    def list_jobs(self) -> GLib.Variant:
        """Reply of ListJobs."""
        return self._built("ListJobs", self._list_jobs)

    def explain(self, module: str, version: str, kernel: str) -> GLib.Variant:
        """Reply of Explain."""
        cell = self._cell(module, version, kernel)
        facts = cell.chain or cell.facts
        state = self._state(cell)
        if state is not cell.state:
            facts = (Fact(fact=f"a job for {cell.kernel} is under way", verdict=str(state)), *facts)
        return GLib.Variant("(aa{sv})", ([self._fact(fact, cell.version) for fact in facts],))

    def check_boot(self, kernel: str) -> GLib.Variant:
        """Reply of CheckBoot."""
        release = kernel or self.snapshot.boot_default
        verdict = self._verdict(release)
        if verdict is None:
            if kernel:
                raise self._no_kernel(kernel)
            return GLib.Variant("(sa(sss))", ("unknown", []))
        return GLib.Variant("(sa(sss))", (verdict.verdict, list(verdict.reasons)))

    def who_provides(self, path: str) -> GLib.Variant:
        """Reply of WhoProvides."""
        if not path.startswith("/") or "/../" in path:
            raise InvalidArgument("not an absolute path", where=path)
        # Of merged and unmerged systems: /lib/modules and /usr/lib/modules are one.
        wanted = ("/" + "/".join(part for part in path.split("/") if part not in ("", "."))).removeprefix("/usr")
        for row in self.snapshot.provides:
            if row.get("path", "").removeprefix("/usr") == wanted:
                return GLib.Variant("(a{sv})", ({name: _text(value) for name, value in row.items()},))
        hint = "modules of the kernel's own package are not listed: kmodhookctl which, or the package manager, tells"
        raise NotFound("no module of ours is there", where=path, hint=hint)

    def find_module(self, module: str, version: str) -> None:
        """Raises NotFound unless there is such a source."""
        versions = [source.version for source in self.snapshot.sources if source.module == module]
        if not versions:
            raise NotFound(f"there is no module {module!r}", hint="kmodhookctl status lists what there is")
        if version and version not in versions:
            raise NotFound(f"there is no version {version!r} of {module}", hint=f"there is {', '.join(versions)}")

    def find_kernel(self, release: str) -> None:
        """Raises NotFound unless the last look saw such a kernel."""
        if all(kernel.release != release for kernel in self.snapshot.kernels):
            raise self._no_kernel(release)

    # --- building it -----------------------------------------------------------------------------------------------

    def _built(self, method: str, build: Callable[[], GLib.Variant]) -> GLib.Variant:
        if method not in self._replies:
            self._replies[method] = build()
        return self._replies[method]

    def _status(self) -> GLib.Variant:
        rows = [
            (cell.module, cell.version, cell.kernel, cell.arch, str(self._state(cell))) for cell in self.snapshot.cells
        ]
        shown = {(cell.module, cell.version) for cell in self.snapshot.cells}
        for source in self.snapshot.sources:
            if (source.module, source.version) not in shown:
                state = State.BROKEN if source.problem else State.ADDED
                rows.append((source.module, source.version, "", "", str(state)))
        return GLib.Variant("(a(sssss))", (sorted(rows),))

    def _fact(self, fact: Fact, version: str) -> dict[str, GLib.Variant]:
        told = {
            "fact": _text(fact.fact),
            "verdict": _text(fact.verdict),
            "remedy": _text(fact.remedy),
            "version": _text(version),
        }
        failure = fact.failure
        if failure is not None:
            told |= {
                "class": _text(failure.cause),
                "reason": _text(failure.reason),
                "line": _text(failure.line),
                "log": _text(failure.log),
                "attempts": GLib.Variant("u", failure.attempts),
                "when": _text(_time(failure.when)),
                "retry_at": _text(_time(failure.retry_at)),
                "fingerprint": _text(failure.fingerprint),
            }
        return told

    def _kernels(self) -> GLib.Variant:
        return GLib.Variant("(aa{sv})", ([self._kernel(kernel) for kernel in self.snapshot.kernels],))

    def _kernel(self, kernel: Kernel) -> dict[str, GLib.Variant]:
        verdict = self._verdict(kernel.release)
        missing = sorted({reason[0] for reason in verdict.reasons}) if verdict else []
        wanting = kernel.headers.state in (HeadersState.MISSING, HeadersState.MISMATCHED)
        return {
            "release": _text(kernel.release),
            "flavour": _text(kernel.flavour),
            "package": _text(kernel.package),
            "image": GLib.Variant("b", bool(kernel.image)),
            "headers": _text(kernel.headers.state),
            "headers_package": _text(kernel.headers.package),
            "headers_command": _text(kernel.headers.command if wanting else ""),
            "running": GLib.Variant("b", kernel.running),
            "boot_default": GLib.Variant("b", kernel.boot_default),
            "boot_ready": _text(verdict.verdict if verdict else "unknown"),
            "missing_modules": GLib.Variant("as", missing),
        }

    def _modules(self) -> GLib.Variant:
        return GLib.Variant("(aa{sv})", ([self._module(source) for source in self.snapshot.sources],))

    def _module(self, source: Source) -> dict[str, GLib.Variant]:
        automatic = self.snapshot.autoinstall.get(f"{source.module}/{source.version}", False)
        return {
            "name": _text(source.module),
            "version": _text(source.version),
            "source": _text(source.path),
            "autoinstall": GLib.Variant("b", automatic),
            "package": _text(source.package),
            "required": GLib.Variant("b", source.module in self.required),
            "problems": GLib.Variant("as", [source.problem] if source.problem else []),
        }

    def _list_jobs(self) -> GLib.Variant:
        rows = [
            (job.id, job.module, job.version, job.kernel, job.phase, _time(job.started), job.fraction)
            for job in self.jobs
        ]
        return GLib.Variant("(a(usssssd))", (rows,))

    def _derive(self) -> None:
        """The properties that come from the snapshot."""
        boot = self._verdict(self.snapshot.boot_default)
        missing = [(one.kernel, one.flavour, one.package) for one in self.snapshot.missing_headers]
        failures = [(one.module, one.version, one.kernel, one.reason) for one in self.snapshot.failures]
        reused = [(one.module, one.version, one.kernel, one.origin) for one in self.snapshot.cells if one.origin]
        self.set("BootReady", "s", boot.verdict if boot else "unknown")
        self.set("MissingHeaders", "a(sss)", missing)
        self.set("Failures", "a(ssss)", failures)
        self.set("Reused", "a(ssss)", reused)
        self.set("Problems", "as", list(self.snapshot.problems))
        self._derive_pending()

    def _derive_pending(self) -> None:
        states = {**{_key(cell): cell.state for cell in self.snapshot.cells}, **self._over}
        running = {_key(job) for job in self.jobs}
        queued = sum(1 for key, state in states.items() if state is State.QUEUED and key not in running)
        self.set("PendingJobs", "u", len(running) + queued)

    # --- finding -----------------------------------------------------------------------------------------------------

    def _state(self, cell: Cell) -> State:
        return self._over.get(_key(cell), cell.state)

    def _verdict(self, release: str) -> BootVerdict | None:
        return next((one for one in self.snapshot.boot if one.kernel == release), None)

    def _cell(self, module: str, version: str, kernel: str) -> Cell:
        self.find_module(module, version)
        release = kernel or self.snapshot.boot_default
        if kernel:
            self.find_kernel(kernel)
        best: Cell | None = None
        for cell in self.snapshot.cells:
            fits = cell.module == module and (not version or cell.version == version) and cell.kernel == release
            if fits and (best is None or _takes_over(cell, best)):
                best = cell
        if best is None:
            where = f" on {release}" if release else ""
            raise NotFound(f"nothing is known of {module}{where}", hint="name a kernel: kmodhookctl kernels lists them")
        return best

    def _no_kernel(self, release: str) -> NotFound:
        known = ", ".join(kernel.release for kernel in self.snapshot.kernels) or "none"
        return NotFound(f"there is no kernel {release!r}", hint=f"known kernels: {known}")


def _takes_over(cell: Cell, other: Cell) -> bool:
    """Whether a version is the one to tell of: one that is not passed over, and the newest of those."""
    idle = (State.EXCLUDED, State.ADDED)
    if (cell.state in idle) != (other.state in idle):
        return other.state in idle
    newer: bool = compare(cell.version, other.version) > 0
    return newer


def _key(one: Cell | JobEvent) -> CellKey:
    return one.module, one.version, one.kernel


def _text(value: object) -> GLib.Variant:
    return GLib.Variant("s", str(value))


def _time(seconds: float) -> str:
    """RFC 3339, or "" when it is not known."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else ""
