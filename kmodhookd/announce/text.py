# SPDX-License-Identifier: GPL-2.0-or-later
"""The words on a terminal: progress while builds run, and one summary at the end of a transaction.

Pure but for the printers. What is said: modules that are ready, in one line for each kernel; then, set
off so that it is seen, what is missing and the command that helps. A machine with no out-of-tree module sees nothing.
"""

import contextlib
import sys
import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TextIO

from kmodhookd.model import BootVerdict, Failure, MissingHeaders, State
from kmodhookd.protocol import WAITING, Snapshot, WorkerEvent

READY = frozenset({State.INSTALLED, State.REUSED, State.STALE})
AT_WORK = frozenset({State.QUEUED, State.BUILDING})

Level = Literal["note", "warning", "detail"]

# As the package manager itself sets off what it says.
PREFIXES: dict[str, dict[Level, str]] = {
    "alpm": {"note": "==> ", "warning": "==> WARNING: ", "detail": "  -> "},
    "dpkg": {"note": "kmodhookd: ", "warning": "W: kmodhookd: ", "detail": "W:   "},
    "": {"note": "kmodhookd: ", "warning": "kmodhookd: warning: ", "detail": "kmodhookd:   "},
}


@dataclass(frozen=True)
class Row:
    """One cell of the status table, with what there is to say about it."""

    module: str
    version: str
    kernel: str
    state: State
    reason: str = ""
    line: str = ""  # the compiler's own
    remedy: str = ""

    @property
    def name(self) -> str:
        """MODULE/VERSION."""
        return f"{self.module}/{self.version}"


@dataclass(frozen=True)
class News:
    """What a summary is made of."""

    rows: tuple[Row, ...] = ()
    missing: tuple[MissingHeaders, ...] = ()
    boot: BootVerdict | None = None  # on the kernel that the next boot takes

    def about(self, kernels: Collection[str], sources: Collection[str]) -> "News":
        """Only what concerns these kernels (releases) or sources (names of directories in /usr/src)."""
        rows = tuple(row for row in self.rows if row.kernel in kernels or f"{row.module}-{row.version}" in sources)
        concerned = {row.kernel for row in rows}
        boot = self.boot if self.boot is not None and self.boot.kernel in concerned else None
        return News(rows, tuple(missing for missing in self.missing if missing.kernel in concerned), boot)


def from_snapshot(snapshot: Snapshot, *, gave_up: bool = False) -> News:
    """The news of a look at the disk. `gave_up`: what is not built yet was to be, and counts as queued."""
    failures = {(failure.module, failure.version, failure.kernel): failure for failure in snapshot.failures}
    rows = []
    for cell in snapshot.cells:
        fact = cell.facts[0] if cell.facts else None
        reason, remedy = (fact.verdict, fact.remedy) if fact else ("", "")
        failure = failures.get((cell.module, cell.version, cell.kernel))
        if cell.state is State.FAILED and failure is not None:
            rows.append(_failed_row(failure))
        else:
            state = cell.state
            if gave_up and cell.wanted and state in (State.ADDED, State.BUILT):
                state = State.QUEUED
            rows.append(Row(cell.module, cell.version, cell.kernel, state, reason, "", remedy))
    boot = next((one for one in snapshot.boot if one.kernel == snapshot.boot_default), None)
    return News(tuple(rows), snapshot.missing_headers, boot)


def _failed_row(failure: Failure) -> Row:
    return Row(
        failure.module,
        failure.version,
        failure.kernel,
        State.FAILED,
        failure.reason,
        failure.line,
        failure.remedy,
    )


# --- the summary ----------------------------------------------------------------------------------------------------


def summary(news: News, backend: str = "", *, gave_up: str = "", alone: bool = False) -> list[str]:
    """The lines to print: notes first, then an empty line and the warnings. [] when there is nothing to say.

    `gave_up`: why the waiting was ended before everything was settled; `alone`: and there is no daemon that goes on.
    """
    notes: list[tuple[Level, str]] = []
    warnings: list[tuple[Level, str]] = []
    for kernel in dict.fromkeys(row.kernel for row in news.rows if row.kernel):
        rows = [row for row in news.rows if row.kernel == kernel]
        notes += _notes(kernel, rows, bool(gave_up) and not alone)
        missing = next((one for one in news.missing if one.kernel == kernel), None)
        if missing is not None:
            warnings += _missing(missing)
        warnings += _warnings(kernel, rows)
        if gave_up and alone:
            warnings += _left_undone(kernel, rows, gave_up)
    warnings += _broken(news.rows)
    warnings += _next_boot(news)
    prefix = PREFIXES.get(backend, PREFIXES[""])
    lines = [prefix[level] + text for level, text in notes]
    if warnings:
        lines += ["", *(prefix[level] + text for level, text in warnings)]
    return lines


def _notes(kernel: str, rows: Sequence[Row], gave_up: bool) -> Iterable[tuple[Level, str]]:
    ready = _names(rows, READY)
    if ready:
        yield "note", f"{kernel}: {_modules(len(ready))} ready: {', '.join(ready)}"
    own = _names(rows, {State.IN_TREE})
    if own:
        yield "note", f"{kernel}: the kernel has its own, the same or newer: {', '.join(own)}"
    for row in rows:
        if row.state is State.EXCLUDED:
            yield "note", f"{kernel}: {row.name} does not go there: {row.reason}"
    later = _names(rows, {State.WAITING_KERNEL})
    if later:
        count = "its module follows" if len(later) == 1 else f"its {len(later)} modules follow"
        yield "note", f"{kernel}: only the headers are installed; {count} with the kernel"
    busy = _names(rows, AT_WORK)
    if busy and gave_up:
        yield "note", f"{kernel}: still being built: {', '.join(busy)}; it goes on without you (kmodhookctl wait)"
        yield "note", f"{kernel}: should its initramfs need them, it is made again once they are in"


def _missing(missing: MissingHeaders) -> Iterable[tuple[Level, str]]:
    kernel = missing.kernel
    if missing.flavour and missing.flavour not in kernel:
        kernel = f"{kernel} ({missing.flavour})"
    modules = join(missing.modules) or "its modules"
    if missing.cause and not missing.cause.startswith("missing"):
        yield "warning", f"the headers of {kernel} are not its own, so {modules} cannot be built for it"
        yield "detail", missing.cause
    else:
        yield "warning", f"{kernel} has no headers, so {modules} cannot be built for it"
    if missing.command:  # it names the package
        yield "detail", f"to install them: {missing.command}"
    elif missing.package:
        yield "detail", f"install {missing.package}"


def _warnings(kernel: str, rows: Sequence[Row]) -> Iterable[tuple[Level, str]]:
    for row in rows:
        if row.state is State.FAILED:
            yield "warning", f"{row.name} failed for {kernel}: {row.reason}"
            if row.line and row.line not in row.reason:
                yield "detail", row.line
            log = f"kmodhookctl log {row.name} -k {kernel}"
            if row.remedy and row.remedy != log:
                yield "detail", row.remedy
            yield "detail", f"the log: {log}"
        elif row.state is State.DAMAGED:
            yield "warning", f"{row.name} is damaged on {kernel}: {row.reason}"
            yield "detail", row.remedy or f"kmodhookctl rebuild {row.name} -k {kernel}"
        elif row.state is State.WAITING_DEPENDENCY:
            yield "warning", f"{row.name} is not built for {kernel} yet: {row.reason}"
            if row.remedy:
                yield "detail", row.remedy


def _left_undone(kernel: str, rows: Sequence[Row], why: str) -> Iterable[tuple[Level, str]]:
    """Nobody goes on with it where there is no daemon."""
    undone = _names(rows, AT_WORK)
    if undone:
        yield (
            "warning",
            f"{join(undone)} {'is' if len(undone) == 1 else 'are'} not built for {kernel}: {why}",
        )
        yield "detail", "it is done when kmodhookd starts next, or now: kmodhookd --once"


def _broken(rows: Iterable[Row]) -> Iterable[tuple[Level, str]]:
    """A source that cannot be used is said once, not for each kernel."""
    for row in {row.name: row for row in rows if row.state is State.BROKEN}.values():
        yield "warning", f"{row.name} cannot be built: {row.reason or 'its source is unusable'}"
        yield "detail", row.remedy or f"kmodhookctl explain {row.name}"


def _next_boot(news: News) -> Iterable[tuple[Level, str]]:
    """One line, after the causes: to restart now is no good idea."""
    if news.boot is None or news.boot.verdict != "not-ready":
        return
    kernel, modules = news.boot.kernel, list(dict.fromkeys(reason[0] for reason in news.boot.reasons))
    busy = {row.module for row in news.rows if row.kernel == kernel and row.state in AT_WORK}
    command = "kmodhookctl wait" if busy.issuperset(modules) else "kmodhookctl check"
    yield "warning", f"the next boot takes {kernel}, which is not ready because of {join(modules)}: {command}"


def _names(rows: Iterable[Row], states: Collection[State]) -> list[str]:
    return [row.name for row in rows if row.state in states]


def _modules(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"


def running_gone(kernel: str, backend: str = "") -> list[str]:
    """What to say when a transaction took the running kernel's modules away."""
    prefix = PREFIXES.get(backend, PREFIXES[""])
    return [
        "",
        f"{prefix['warning']}the modules of the running kernel {kernel} are no longer there",
        f"{prefix['detail']}what is not loaded already cannot be loaded until you reboot",
    ]


def join(names: Sequence[str]) -> str:
    """a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


# --- progress -------------------------------------------------------------------------------------------------------


class Job(Protocol):
    """What a line of progress is made of: model.JobEvent and client.Event both are."""

    @property
    def kind(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def result(self) -> str: ...
    @property
    def detail(self) -> str: ...


def progress(event: Job, backend: str = "") -> str:
    """The line for a job's start or end; "" for what is not worth one."""
    prefix = PREFIXES.get(backend, PREFIXES[""])["note"]
    what = f"{event.module}/{event.version} for {event.kernel}"
    if event.kind == "started":
        return f"{prefix}building {what}"
    if event.kind == "finished":
        detail = f": {event.detail}" if event.detail and event.result in ("failed", "reused") else ""
        return f"{prefix}{what}: {event.result}{detail}"
    return ""


def waiting(event: Job) -> str:
    """What a job waits for, as a sentence; "" when it does not."""
    return event.phase if event.kind == "progress" and event.phase.startswith(WAITING) else ""


class WaitPrinter:
    """Prints what is waited for, at once and on stderr: whoever sits there must not look at a silent terminal.

    Nothing is said twice. Nobody reading it is no reason to fail.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._said: set[str] = set()
        self._one_at_a_time = threading.Lock()

    def __call__(self, event: WorkerEvent) -> None:
        with self._one_at_a_time:
            if event.waiting is None or event.waiting in self._said:
                return
            self._said.add(event.waiting)
            with contextlib.suppress(OSError):
                print(f"{self._program}: {event.waiting} …", file=sys.stderr, flush=True)


class OncePrinter:
    """Receives the events of a pass in this process: prints progress, keeps the last snapshot for the summary."""

    def __init__(self, backend: str = "", stream: TextIO | None = None) -> None:
        self.backend = backend
        self.stream = stream or sys.stdout
        self.snapshot = Snapshot()
        self._waits = WaitPrinter("kmodhookd")

    def __call__(self, event: WorkerEvent) -> None:
        self._waits(event)
        if event.snapshot is not None:
            self.snapshot = event.snapshot
        if event.job is not None:
            line = progress(event.job, self.backend)
            if line:
                print(line, file=self.stream, flush=True)

    def finish(self) -> None:
        """Print what things look like now, for every kernel, and what could not be read."""
        for problem in self.snapshot.problems:
            print(f"kmodhookd: {problem}", file=self.stream)
        for line in summary(from_snapshot(self.snapshot), self.backend):
            print(line, file=self.stream, flush=True)
