# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon: wires the bus, the events and the passes to one main loop. Nothing else lives here."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from kmodhookd import __version__, bus, log, notes, settings
from kmodhookd.announce.journal import Announcer
from kmodhookd.announce.manager import Manager
from kmodhookd.child import Child, worker_command
from kmodhookd.errors import Fault
from kmodhookd.events import hints
from kmodhookd.events.coalesce import Coalescer, Pace
from kmodhookd.events.gate import Gate
from kmodhookd.events.locks import Locks
from kmodhookd.events.loop import Cancel, Loop
from kmodhookd.events.watch import Unwatchable, Watcher
from kmodhookd.notify import notify, watchdog_seconds
from kmodhookd.observe import framework
from kmodhookd.passes import Passes, Worker
from kmodhookd.protocol import Request, Snapshot, WorkerEvent
from kmodhookd.root import Root
from kmodhookd.service import HOOK, HOOK_PATH, NAME, Service

HEARTBEAT = 300.0  # seconds: the slow timer that the watchdog and the look that no event asked for share
BLIND = 60.0  # seconds between looks where inotify is not to be had
HELD = 8  # times the quiet time while a package transaction is open: unpacking needs the processor more than we do
STORM_CEILING = 60.0  # seconds: the longest quiet time that is asked for when our own passes seem to cause the events


class Daemon:
    """One daemon, serving one root."""

    def __init__(self, root: Root, config: str, command: Sequence[str], announcer: Announcer | None = None) -> None:
        self._root = root
        self._config = config
        self._command = tuple(command)
        self._settings = framework.load(root, config)
        self._loop = Loop()
        self._exit = 0
        self._stopping = False
        self._gate = Gate(Locks(root), self._gate_turned)
        self._polling: Cancel | None = None
        self._turning: Cancel | None = None
        self._heartbeat: Cancel | None = None
        self._blind: Cancel | None = None
        self._watcher: Watcher | None = None
        self._last_look = 0.0
        self._in_pass = False  # whether the events that wait all came while a pass was at work
        self._echoes = 0  # looks in a row that only such events asked for
        self._manager = Manager(__version__, root.identity, self._settings.policy.required)
        self._service = Service(root, self._loop, self._gate, self._manager, announcer or Announcer(), self._watch)
        self._passes = Passes(root, config, self._loop, self._gate, self._worker, self._service)
        self._coalescer = Coalescer(self._loop, self._settle, self._pace)

    def run(self, address: str) -> int:
        """Serve until told to end; the exit status. Raises Fault when there is no bus or no name to be had."""
        connection = bus.connect(address, os.geteuid())
        connection.on_closed(lambda: self._stop("the bus is gone", 1))
        self._service.serve(connection, self._passes)
        # Before the name is taken: the signal that had us started is delivered the moment we have it.
        connection.subscribe(HOOK, HOOK_PATH, self._hook)
        self._watch(Snapshot())
        connection.own(NAME, lambda: self._stop("somebody else has taken our name", 1))
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.on_signal(number, lambda: self._stop("asked to end", 0))
        self._loop.on_signal(signal.SIGHUP, self._reload)
        self._beat_every()
        self._say_problems()
        for note in notes.take(self._root):
            log.get().info("a hook could not reach us", note=note)
        self._gate.look()
        self._look()
        notify("READY=1", f"STATUS=serving {self._root.prefix}")
        log.get().info("serving", root=str(self._root.prefix), bus=address, version=__version__)
        self._loop.run()
        if self._watcher is not None:
            self._watcher.close()
        connection.close()
        return self._exit

    # --- events ------------------------------------------------------------------------------------------------------

    def _hook(self, _sender: str, member: str, values: Any) -> None:
        hint = hints.parse(member, values)
        if hint is None:
            log.get().debug("an odd signal on the hook object", member=member)
        elif hint.kind == "begin":
            self._gate.begin(hint.backend, hint.transaction)
        else:
            was_closed = self._gate.closed
            self._gate.end(hint.backend, hint.transaction)
            # A gate that opens is followed by a look anyway. Where none was closed, something was changed all the same.
            if not was_closed:
                self._look()

    def _changed(self) -> None:
        """inotify saw something."""
        self._in_pass = self._passes.working and (self._in_pass or not self._coalescer.pending)
        self._coalescer.event()

    def _settle(self) -> None:
        """The events have come to rest. What came while a pass is at work waits for its end."""
        self._gate.look()
        if self._passes.working and self._in_pass:
            self._coalescer.event()
            return
        # A pass that finds only what another pass of ours did is fine once. Should passes feed each other by some
        # defect, they do so ever more slowly.
        self._echoes = self._echoes + 1 if self._in_pass else 0
        self._in_pass = False
        self._last_look = time.monotonic()
        self._passes.hint()

    def _pace(self) -> Pace:
        """How long events must have come to rest. A gate that opens, or is lifted, is followed by a look at once."""
        watch = self._settings.watch
        quiet = watch.quiet * 2 ** max(0, min(self._echoes - 1, 10))
        held = min(watch.ceiling, watch.quiet * HELD) if self._gate.closed else 0.0
        return Pace(max(held, min(STORM_CEILING, quiet)), watch.ceiling)

    def _look(self) -> None:
        """A look without waiting for anything."""
        self._coalescer.drop()
        self._echoes = 0
        self._in_pass = False
        self._last_look = time.monotonic()
        self._passes.hint()

    def _gate_turned(self) -> None:
        # Not there and then: the gate may have been looked at by the very pass that is about to begin.
        if self._turning is None:
            self._turning = self._loop.after(0, self._follow_gate)

    def _follow_gate(self) -> None:
        self._turning = None
        self._passes.gate_changed()
        if self._gate.closed and self._polling is None:
            self._polling = self._loop.every(1.0, self._poll)
        elif not self._gate.closed and self._polling is not None:
            self._polling()
            self._polling = None
            self._look()
        self._service.refresh()

    def _poll(self) -> None:
        self._gate.look()

    def _beat_every(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat()
        period = min(HEARTBEAT, float(self._settings.watch.interval), (watchdog_seconds() or 2 * HEARTBEAT) / 2)
        self._heartbeat = self._loop.every(period, lambda: self._beat(period))

    def _beat(self, period: float) -> None:
        notify("WATCHDOG=1")
        if time.monotonic() - self._last_look > self._settings.watch.interval - period / 2:
            self._look()

    # --- the world -----------------------------------------------------------------------------------------------------

    def _worker(
        self, request: Request, on_event: Callable[[WorkerEvent], None], on_end: Callable[[int], None]
    ) -> Worker:
        return Child(self._loop, self._command, request, on_event, on_end)

    def _watch(self, snapshot: Snapshot) -> None:
        """Watch what the last look found worth it; where inotify is not to be had, look more often."""
        try:
            if self._watcher is None:
                self._watcher = Watcher(self._loop, self._changed)
            self._watcher.watch(self._directories(snapshot.watch))
        except Unwatchable as error:
            if self._blind is None:
                log.get().warning("inotify is not to be had; looking once a minute", detail=str(error))
                self._blind = self._loop.every(BLIND, self._look)
        else:
            if self._blind is not None:
                self._blind()
                self._blind = None

    def _directories(self, inside: Iterable[str]) -> list[str]:
        policy = self._settings
        fixed = (policy.source_tree, policy.dkms_tree, *framework.directories(self._root))
        found = [str(self._root.modules), *self._trees()]
        for directory in (*fixed, settings.CONFIG_DIRECTORY.rpartition("/")[0], settings.CONFIG_DIRECTORY, *inside):
            try:
                found.append(str(self._root.resolve(directory)))
            except OSError:
                continue  # links that go round in circles
        return found

    def _trees(self) -> list[str]:
        """Every directory of the modules directory: what is no kernel yet becomes one by what is put into it."""
        try:
            return [entry.path for entry in os.scandir(self._root.modules) if entry.is_dir()]
        except OSError:
            return []

    def _reload(self) -> None:
        self._settings = framework.load(self._root, self._config)
        self._manager.required = frozenset(self._settings.policy.required)
        self._beat_every()
        self._say_problems()
        self._look()

    def _say_problems(self) -> None:
        for problem in self._settings.problems:
            log.get().warning(problem)

    def _stop(self, why: str, status: int) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._exit = status
        notify("STOPPING=1")
        (log.get().info if status == 0 else log.get().error)("ending", why=why)
        self._coalescer.drop()
        self._passes.stop(self._loop.quit)


def main(argv: Sequence[str] | None = None) -> int:
    """`kmodhookd`: exit status 0 after an orderly end, 1 when it could not serve, 3 for wrong usage; `--once` as documented."""
    options = _arguments(sys.argv[1:] if argv is None else argv)
    log.configure(debug=options.debug)
    try:
        root = Root(options.root)
        if options.once:
            from kmodhookd import engine  # the daemon itself never needs it

            return engine.once(root, framework.load(root, options.config))
        return Daemon(root, options.config, worker_command()).run(options.bus)
    except Fault as fault:
        print(f"kmodhookd: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        return 130


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kmodhookd",
        description="Keeps out-of-tree kernel modules built for every installed kernel.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", default="/", metavar="DIR", help="serve the system in DIR (default: /)")
    parser.add_argument("--bus", default="system", metavar="BUS", help="system, session or a D-Bus address")
    parser.add_argument("--config", default="", metavar="FILE", help="read FILE instead of /etc/kmodhookd")
    parser.add_argument("--once", action="store_true", help="no bus: one complete pass in the foreground")
    parser.add_argument("--debug", action="store_true", help="log more")
    parser.add_argument("--version", action="version", version=f"kmodhookd {__version__}")
    parser.exit_on_error = False
    try:
        options, unknown = parser.parse_known_args(argv)
        if unknown:
            raise argparse.ArgumentError(None, f"unknown argument: {unknown[0]}")
        if options.config and not Path(options.config).is_file():
            raise argparse.ArgumentError(None, f"no such file: {options.config}")
    except argparse.ArgumentError as error:
        print(f"kmodhookd: {error}", file=sys.stderr)
        sys.exit(3)
    return options


if __name__ == "__main__":
    sys.exit(main())
