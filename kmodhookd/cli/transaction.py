# SPDX-License-Identifier: GPL-2.0-or-later
"""What hooks do: tell the daemon, wait within limits for what the package manager needs, say what came of it.

Between the calls of one transaction the little that has to be known lies in /run/kmodhookd, in a file for each backend
and root: a chroot may share /run with the system around it. With no daemon to talk to (no bus, or the bus of another
root), the pass is done here, under the same limits.
"""

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterable, Sequence

from kmodhookd import client, notes, processes, store
from kmodhookd.announce import text
from kmodhookd.cli import patience
from kmodhookd.cli.news import bus_news
from kmodhookd.errors import Fault, NotFound, Unreachable
from kmodhookd.model import NAME_PATTERN, Noun
from kmodhookd.observe import framework
from kmodhookd.protocol import Snapshot
from kmodhookd.root import Root

SHORT_WAIT = 30  # seconds for what removes: nothing is compiled then
LAST_WAIT = 5  # seconds for the summary where the waiting was given up before


class Transaction(Noun):
    """What is known of a running transaction: the kernels and sources it touched, and what /usr/src was like before."""

    id: str = ""
    kernels: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # names of directories in /usr/src
    before: dict[str, tuple[int, int]] | None = None  # name → inode and change time (ns) of its dkms.conf
    running: str = ""  # the running kernel, when its modules were there at the beginning
    gave_up: str = ""  # why the waiting was ended before everything was settled
    failed: tuple[str, ...] = ()  # builds of which that was said: they may be tried again, and it is not said again


class Hook:
    """One call of a hook."""

    def __init__(self, backend: str, root: Root) -> None:
        self.backend = backend
        self.root = root
        self._client: client.Client | None = None
        self.settings = framework.load(root)
        of_root = root.identity.replace(":", "-")
        self.path = root.resolve(f"{store.RUNTIME}/transaction-{backend}-{of_root}.json")
        self.transaction = store.load(self.path, Transaction) or Transaction()
        self._one_at_a_time = threading.Lock()
        self._waits: set[str] = set()  # what was said of them

    def remember(self, *, kernels: Iterable[str] = (), sources: Iterable[str] = (), gave_up: str = "") -> None:
        """Add to what the transaction has touched."""
        known = self.transaction
        self.transaction = known.model_copy(
            update={
                "id": known.id or package_manager(),
                "kernels": tuple(dict.fromkeys((*known.kernels, *kernels))),
                "sources": tuple(dict.fromkeys((*known.sources, *sources))),
                "gave_up": gave_up or known.gave_up,
            }
        )
        self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):  # a read-only or full /run costs the summary, not the work
            store.save(self.path, self.transaction)

    # --- the events ---

    def begin(self, targets: Sequence[str]) -> None:
        """Tell the daemon that the package manager is at work."""
        self.transaction = Transaction(id=package_manager(), before=source_stamps(self.root))
        daemon = self._daemon()
        if daemon is not None:
            daemon.send_hook("TransactionBegin", self.backend, self.transaction.id, targets)
            self.transaction = self.transaction.model_copy(update={"running": self._running(daemon)})
        self._save()

    def kernel(self, release: str) -> None:
        """A kernel or its headers came: its modules, before the initramfs is made."""
        self.remember(kernels=[release])
        self._serve([release], "kernel")

    def targets(self, paths: Iterable[str], *, removed: bool) -> None:
        """Paths of packages came or went."""
        kernels, sources = concerned(paths)
        if self.backend == "dpkg":  # its triggers name directories only
            sources = changed_sources(self.transaction.before, source_stamps(self.root))
        if removed:
            self._serve(kernels if not sources else [*kernels, *self._all_kernels()], "gone")
            return
        self.remember(kernels=kernels, sources=sources)
        self._serve([*kernels, *(self._all_kernels() if sources else ())], "targets")

    def leaving(self, release: str, event: str) -> None:
        """A kernel goes: what we put into its tree goes first."""
        self._serve([release], event)

    def end(self) -> None:
        """Tell the daemon that the package manager has done its work."""
        from kmodhookd.act import parking

        with contextlib.suppress(OSError):
            parking.end_of_transaction(self.root)
        daemon = self._daemon()
        if daemon is not None:
            daemon.send_hook("TransactionEnd", self.backend, self.transaction.id or package_manager(), ())

    def summary(self) -> None:
        """Say what there is to say about what the transaction touched, and forget it."""
        known = self.transaction
        if self.backend == "dpkg":
            changed = changed_sources(known.before, source_stamps(self.root))
            known = known.model_copy(update={"sources": tuple(dict.fromkeys((*known.sources, *changed)))})
        try:
            if known.kernels or known.sources:
                news, gave_up, alone = self._news()
                about = news.about(known.kernels, known.sources)
                for line in text.summary(about, self.backend, gave_up=gave_up, alone=alone):
                    say(line)
        finally:
            with contextlib.suppress(OSError):
                store.discard(self.path)
        self._mourn(known.running)

    # --- the daemon, or the same work here ---

    def _daemon(self) -> client.Client | None:
        """The daemon of this root; None when there is none to talk to."""
        try:
            self._client = self._client or client.connect()
            return self._client if self._client.root_id() == self.root.identity else None
        except Unreachable:
            return None

    def _serve(self, kernels: Sequence[str], event: str) -> None:
        """Have these kernels looked after, past the gate, and wait for it."""
        kernels = list(dict.fromkeys(kernels))
        daemon = self._daemon()
        if daemon is None:
            _, gave_up = self._pass_here(kernels, event)
        else:
            ticket = 0
            for kernel in kernels:
                with contextlib.suppress(NotFound):  # gone already, and never known: nothing to be done for it
                    ticket = daemon.reconcile(kernel)
            limit = SHORT_WAIT if event in ("leaving", "gone") else 0
            gave_up = self._wait(daemon, ticket or daemon.reconcile(), limit)
        if gave_up and event in ("kernel", "targets"):
            self.remember(gave_up=gave_up)

    def _wait(self, daemon: client.Client, ticket: int, limit: int = 0) -> str:
        """Wait within the limits; why that was given up, "" when it was settled. Each build's start and end is said."""
        stall, total = self.settings.hooks.stall, self.settings.hooks.total
        if limit:
            stall = min(stall, limit)
        begun = time.monotonic()
        # 0 in all: do not wait (to the client it would mean without limit).
        if daemon.wait(ticket, stall, total or 0.1, self._progress) is not None:
            return ""
        return patience.TOTAL.format(total) if time.monotonic() - begun >= total else patience.STALL.format(stall)

    def _progress(self, event: text.Job) -> None:
        """Say what there is to say of a job. May be called from any thread."""
        self._wait_for(text.waiting(event))
        line = text.progress(event, self.backend)
        if not line:
            return
        build = f"{event.module}/{event.version} {event.kernel}"
        again = build in self.transaction.failed
        with self._one_at_a_time:
            if event.result == "failed" and not again:
                update = {"failed": (*self.transaction.failed, build)}
                self.transaction = self.transaction.model_copy(update=update)
                self._save()
            if not again or event.result in ("done", "reused"):
                say(line)

    def _wait_for(self, sentence: str) -> None:
        """Say what the work waits for, once for all jobs that do. May be called from any thread."""
        with self._one_at_a_time:
            if sentence and sentence not in self._waits:
                self._waits.add(sentence)
                say(f"{text.PREFIXES.get(self.backend, text.PREFIXES[''])['note']}{sentence}")

    def _pass_here(self, kernels: Sequence[str], event: str) -> tuple[Snapshot, str]:
        """A pass in this process: how things look, and why it was ended before it was done ("" = it was not), with a note.

        As with the daemon, the gate is open for these kernels alone until the transaction is over, so that no initramfs
        is made which the package manager's own hooks make a moment later.
        """
        from kmodhookd import engine
        from kmodhookd.act.controls import Controls
        from kmodhookd.protocol import Request, WorkerEvent

        over = event == "summary"
        controls = Controls(held=not over, lifted=(*kernels, ""))  # "": what is of no kernel
        if over and self.transaction.gave_up:
            controls.wind_down.set()  # a look, and nothing that takes long
        seen = Snapshot()
        with patience.limited(controls.abandon, self.settings.hooks.total, self.settings.hooks.stall) as limits:

            def emit(event: WorkerEvent) -> None:
                nonlocal seen
                limits.progressed()
                seen = event.snapshot or seen
                self._wait_for(event.waiting or "")
                if event.job is not None:
                    self._progress(event.job)

            request = Request(number=1, prefix=str(self.root.prefix))
            engine.one_pass(self.root, self.settings, request, emit, controls)
        if controls.stop.is_set():
            notes.leave(self.root, self.backend, event, kernels)
        return seen, limits.gave_up or (self.transaction.gave_up if over else "")

    def _news(self) -> tuple[text.News, str, bool]:
        """What things look like now that the package manager is done; why not all is settled; whether all was done here."""
        daemon = self._daemon()
        if daemon is None:
            snapshot, gave_up = self._pass_here((), "summary")
            return text.from_snapshot(snapshot, gave_up=bool(gave_up)), gave_up, True
        gave_up = self._wait(daemon, daemon.reconcile(), LAST_WAIT if self.transaction.gave_up else 0)
        return bus_news(daemon, self.root), gave_up, False

    # --- small things ---

    def _all_kernels(self) -> list[str]:
        """Every release that has a directory: a changed source concerns them all."""
        try:
            names = sorted(entry.name for entry in self.root.modules.iterdir() if entry.is_dir())
        except OSError:
            return []
        return [name for name in names if is_name(name)]

    def _running(self, daemon: client.Client) -> str:
        """The running kernel, while its modules are there."""
        with contextlib.suppress(Fault):
            for kernel in daemon.kernels():
                if kernel.get("running") and self._has_modules(str(kernel["release"])):
                    return str(kernel["release"])
        return ""

    def _has_modules(self, release: str) -> bool:
        return (self.root.modules / release / "modules.order").exists()

    def _mourn(self, running: str) -> None:
        """An upgrade that took the running kernel's modules away says so."""
        if running and not self._has_modules(running):
            for line in text.running_gone(running, self.backend):
                say(line)


def run(arguments: argparse.Namespace) -> int:
    """Do what one event asks for. A `Fault` is said and noted; it does not make the hook fail."""
    root = Root("/")
    hook = Hook(arguments.backend, root)
    try:
        dispatch(hook, arguments)
    except Fault as fault:
        say(f"{text.PREFIXES.get(hook.backend, text.PREFIXES[''])['warning']}{fault}")
        if arguments.event not in ("begin", "end", "summary"):
            notes.leave(root, hook.backend, arguments.event, [getattr(arguments, "release", "")])
    return 0


def dispatch(hook: Hook, arguments: argparse.Namespace) -> None:
    """The event's method."""
    match arguments.event:
        case "begin":
            words: list[str] = arguments.targets
            hook.begin(read_lines() if words == ["-"] else words)
        case "kernel" if is_name(arguments.release):
            hook.kernel(arguments.release)
        case "targets":
            hook.targets(read_lines(), removed=arguments.removed)
        case "leaving" | "gone" if is_name(arguments.release):
            hook.leaving(arguments.release, arguments.event)
        case "end":
            hook.end()
            if arguments.summary:
                hook.summary()
        case "summary":
            hook.summary()


def concerned(paths: Iterable[str]) -> tuple[list[str], list[str]]:
    """Kernel releases and names of source directories that paths of packages (no leading slash needed) are about."""
    kernels: dict[str, None] = {}
    sources: dict[str, None] = {}
    for path in paths:
        parts = [part for part in path.split("/") if part]
        if parts[:1] == ["usr"]:
            parts = parts[1:]
        if parts[:2] == ["lib", "modules"] and len(parts) > 2 and is_name(parts[2]):
            kernels[parts[2]] = None
        elif parts[:1] == ["src"] and len(parts) > 2 and is_name(parts[1]):
            sources[parts[1]] = None
    return list(kernels), list(sources)


def source_stamps(root: Root) -> dict[str, tuple[int, int]]:
    """Inode and change time of every dkms.conf in /usr/src."""
    stamps = {}
    with contextlib.suppress(OSError):
        for entry in root.resolve("/usr/src").iterdir():
            with contextlib.suppress(OSError):
                status = root.resolve(f"/usr/src/{entry.name}/dkms.conf").stat()
                stamps[entry.name] = (status.st_ino, status.st_ctime_ns)
    return {name: stamp for name, stamp in stamps.items() if is_name(name)}


def changed_sources(before: dict[str, tuple[int, int]] | None, now: dict[str, tuple[int, int]]) -> list[str]:
    """The sources that are new or changed; none without a picture of before: better too little said than all of it."""
    return [] if before is None else [name for name, stamp in now.items() if before.get(name) != stamp]


def package_manager() -> str:
    """The process id of the package manager that called: the uppermost of our ancestors that is one."""
    return str((processes.package_managers() or [os.getppid()])[-1])


def is_name(name: str) -> bool:
    """Whether it can be a kernel's or a source's name."""
    return re.match(NAME_PATTERN, name) is not None and len(name) < 256


def read_lines() -> list[str]:
    """Targets, one in each line; bytes that are not UTF-8 become `\\xNN`."""
    lines = sys.stdin.buffer.read().decode("utf-8", "backslashreplace").split("\n")
    return [line for line in lines if line]


def say(line: str) -> None:
    """Print a line into the transaction; nobody reading it is no reason to fail."""
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)
