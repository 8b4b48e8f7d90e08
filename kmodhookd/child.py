# SPDX-License-Identifier: GPL-2.0-or-later
"""The worker process, as the daemon's main loop sees it: lines in, lines out, and its end.

Nothing here waits. The worker is a session of its own. It is asked to end by closing its standard input (it then ends its
builds, which are sessions of their own, and no signal of ours would reach them), and made to by signals to its group.
"""

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kmodhookd import log, run
from kmodhookd.events.loop import Cancel, Loop
from kmodhookd.protocol import Control, Request, WorkerEvent

CHUNK = 64 << 10  # bytes read per turn of the loop: a flood of lines must not keep callers waiting
LINE_LIMIT = 32 << 20
GRACE = 8.0  # seconds between being asked to end and SIGTERM, and again until SIGKILL

# The worker runs isolated from environment and user site (-I), with the module path of this process: kmodhookd may lie
# in a private directory that a launcher put there.
BOOT = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); del sys.argv[1]; "
    "import runpy; runpy.run_module('kmodhookd.worker', run_name='__main__', alter_sys=True)"
)


def worker_command() -> list[str]:
    """The command that runs a worker like this process."""
    own = str(Path(__file__).resolve().parent.parent)
    path = [own, *(entry for entry in sys.path if entry and entry != own)]
    return [sys.executable, "-I", "-c", BOOT, "\n".join(path)]


class Child:
    """A worker at its pass. `on_event` is called for each of its lines, `on_end(status)` once, after the last of them."""

    def __init__(
        self,
        loop: Loop,
        command: Sequence[str],
        request: Request,
        on_event: Callable[[WorkerEvent], None],
        on_end: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_event = on_event
        self._on_end = on_end
        self._line = bytearray()
        self._unsent = bytearray()
        self._process = run.start(command, env=_credentials())
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        self._out = self._process.stdout.fileno()
        self._in = self._process.stdin.fileno()
        os.set_blocking(self._out, False)
        os.set_blocking(self._in, False)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._sources: list[Cancel] = [
            loop.on_readable(self._out, self._readable),
            # Its end counts after its last words.
            loop.on_readable(self._pidfd, self._ended, low=True),
        ]
        self._writing: Cancel | None = None
        self._killing: Cancel | None = None
        self._done = False
        self._stopping = False
        self._reading = True
        self._say(request.model_dump_json())

    def control(self, control: Control) -> None:
        """Say something to it."""
        self._say(control.model_dump_json())

    def stop(self, grace: float = GRACE) -> None:
        """Ask it to end; after `grace` seconds more firmly, after twice that make it."""
        if self._done or self._stopping:
            return
        self._stopping = True
        self._unsent.clear()
        self._hang_up()
        self._killing = self._loop.after(grace, lambda: self._insist(grace))

    def _insist(self, grace: float) -> None:
        self._signal(signal.SIGTERM)
        self._killing = self._loop.after(grace, self._kill)

    def _kill(self) -> None:
        self._killing = None
        log.get().warning("the worker does not end; killed", pid=self._process.pid)
        self._signal(signal.SIGKILL)

    def _hang_up(self) -> None:
        if self._writing is not None:
            self._writing()
            self._writing = None
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _say(self, text: str) -> None:
        if self._done or self._stopping:
            return
        self._unsent += text.encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: os.write(self._in, self._unsent)]
        except BlockingIOError:
            if self._writing is None:
                self._writing = self._loop.on_writable(self._in, self._flush)
            return
        except OSError:
            self._unsent.clear()  # it is gone; its end is told by the pidfd
        if self._writing is not None:
            self._writing()
            self._writing = None

    def _readable(self) -> None:
        if self._reading and not self._read():
            # Its output is closed. Until its end has come, a closed descriptor would keep the loop busy.
            self._reading = False
            self._sources.pop(0)()

    def _read(self) -> bool:
        """Take one chunk; False at the end of the output."""
        try:
            chunk = os.read(self._out, CHUNK)
        except BlockingIOError:
            return True
        self._line += chunk
        *lines, rest = self._line.split(b"\n")
        self._line = bytearray(rest)
        if len(self._line) > LINE_LIMIT:
            log.get().error("the worker talks nonsense; killed", pid=self._process.pid)
            self._line.clear()
            self._signal(signal.SIGKILL)
        for line in lines:
            self._event(bytes(line))
        return bool(chunk)

    def _event(self, line: bytes) -> None:
        if not line.strip() or self._done:
            return
        try:
            event = WorkerEvent.model_validate_json(line)
        except ValueError as error:
            log.get().error("a line of the worker cannot be read", detail=str(error)[:500])
            return
        self._on_event(event)

    def _ended(self) -> None:
        if self._done:
            return
        # Before it is reaped, while its process id, which is its group's, can be nobody else's.
        self._signal(signal.SIGKILL)
        while self._reading and _has_more(self._out) and self._read():
            pass
        self._done = True
        status = self._process.wait()
        self._close()
        self._on_end(status)

    def _close(self) -> None:
        for cancel in (*self._sources, self._killing):
            if cancel is not None:
                cancel()
        self._sources.clear()
        os.close(self._pidfd)
        self._hang_up()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _credentials() -> dict[str, str]:
    """Where systemd put credentials, if any (systemd.exec(5)): signing may need a passphrase."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return {"CREDENTIALS_DIRECTORY": directory} if directory else {}


def _has_more(fd: int) -> bool:
    """Whether a read would give something, or the end of it; a process that inherited the pipe keeps it open for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLHUP)
    return bool(poll.poll(0))
