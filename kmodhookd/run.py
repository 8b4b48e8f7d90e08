# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way in which a program is started.

An argument list, never a shell string; standard input is /dev/null unless bytes are given; the environment is built from
nothing; every program has a time limit and a session of its own, and the whole process group is killed when the limit
or a cancellation strikes, so that nothing is left holding somebody's pipe.
"""

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from kmodhookd.errors import Fault
from kmodhookd.root import Root

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": PATH,
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "HOME": "/",
    "TERM": "dumb",
}
CAPTURE_LIMIT = 4 << 20  # bytes kept of a program's output; the rest is read and dropped
WATCH_INTERVAL = 1.0  # seconds between two looks of whoever watches a program
GRACE = 2.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Result:
    """What became of a program. `status` is its exit status, negative for the signal that killed it (as subprocess)."""

    argv: tuple[str, ...]
    status: int
    output: str  # standard output and error together; of `stdout_only` programs the former alone
    seconds: float
    timed_out: bool = False
    cancelled: bool = False
    truncated: bool = False
    stopped: str = ""  # why whoever watched it had it killed

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with status 0."""
        return self.status == 0 and not self.killed

    @property
    def killed(self) -> bool:
        """Whether it did not end by itself, but we ended it."""
        return self.timed_out or self.cancelled or bool(self.stopped)

    @property
    def last_line(self) -> str:
        """The last line that it printed and that stands at the margin; how it ended when there is none."""
        return next((line for line in reversed(self.output.splitlines()) if line[:1].strip()), self.sentence())

    def sentence(self) -> str:
        """How it ended, in words."""
        if self.cancelled:
            return "cancelled"
        if self.timed_out:
            return f"killed: it took longer than {self.seconds:.0f} s"
        if self.stopped:
            return f"killed: {self.stopped}"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        if self.status == 127:
            return "program not found"
        return f"exit status {self.status}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a program: the base and what is passed, nothing inherited."""
    return {**BASE_ENVIRONMENT, **(extra or {})}


def within(root: Root, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` with `root` as its `/`."""
    return list(argv) if root.is_host else ["chroot", str(root.prefix), *argv]


def which(root: Root, program: str) -> str:
    """Where a program is inside the root; "" when it is not."""
    for directory in PATH.split(":"):
        path = f"{directory}/{program}"
        found = root.resolve(path)
        if found.is_file() and os.access(found, os.X_OK):
            return path
    return ""


def run(
    argv: Sequence[str],
    *,
    root: Root | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdin: bytes | None = None,
    timeout: float = 60.0,
    log: IO[bytes] | None = None,
    log_limit: int = 64 << 20,
    stdout_only: bool = False,
    cancel: threading.Event | None = None,
    pass_fds: Sequence[int] = (),
    on_output: Callable[[bytes], None] | None = None,
    watch: Callable[[], str] | None = None,
    check: bool = False,
) -> Result:
    """Run a program to its end.

    `root` chroots it. `log` receives the output (at most `log_limit` bytes, more kills the program) instead of
    `Result.output`, of which then only the tail is kept. `watch` is asked about once a second while it runs: a sentence
    kills it, and is `Result.stopped`. `check` makes any end but status 0 a `Fault`.
    """
    command = within(root, argv) if root is not None else list(argv)
    started = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if stdout_only else subprocess.STDOUT,
            env=environment(env),
            cwd=cwd,
            start_new_session=True,
            close_fds=True,
            pass_fds=pass_fds,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        result = Result(tuple(argv), 127, str(error), 0.0)
    else:
        collector = _Collector(process, started + timeout, cancel, log, log_limit, on_output, watch)
        result = collector.collect(tuple(argv), stdin, started)
    if check and not result.ok:
        tail = result.output.strip().splitlines()[-1:] or [""]
        raise Fault(f"{result.sentence()}{': ' + tail[0] if tail[0] else ''}", where=shlex.join(argv))
    return result


def start(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that is talked to: pipes to its standard input and from its output, errors to our own.

    For the daemon, which cannot wait: the caller reads, and sees to the end of the program and its group.
    """
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=environment(env),
        start_new_session=True,
        close_fds=True,
    )


class _Collector:
    """Reads a program's output until it ends, is cancelled, talks too much, or its time is up."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        deadline: float,
        cancel: threading.Event | None,
        log: IO[bytes] | None,
        log_limit: int,
        on_output: Callable[[bytes], None] | None,
        watch: Callable[[], str] | None,
    ) -> None:
        self.process = process
        self.deadline = deadline
        self.cancel = cancel
        self.log = log
        self.log_limit = log_limit
        self.on_output = on_output
        self.watch = watch
        self.watched = time.monotonic()
        self.stopped = ""
        self.kept = bytearray()
        self.written = 0
        self.truncated = False

    def collect(self, argv: tuple[str, ...], stdin: bytes | None, started: float) -> Result:
        timed_out = cancelled = False
        feeder = self._feed(stdin)
        try:
            while True:
                if self.cancel is not None and self.cancel.is_set():
                    cancelled = True
                    break
                if time.monotonic() > self.deadline:
                    timed_out = True
                    break
                if self.log is not None and self.written > self.log_limit:
                    self.truncated = True
                    break
                if self._unwanted():
                    break
                if not self._read_some():
                    break
        finally:
            # Also after a normal end: a child that daemonised itself within the session must not outlive the program.
            status = self._end(kill=timed_out or cancelled or self.truncated or bool(self.stopped))
            if feeder is not None:
                feeder.join(GRACE)
        output = self.kept.decode("utf-8", "replace")
        seconds = time.monotonic() - started
        return Result(argv, status, output, seconds, timed_out, cancelled, self.truncated, self.stopped)

    def _unwanted(self) -> bool:
        """Whether whoever watches it wants it killed; asked at intervals, from the end of one look to the next."""
        if self.watch is not None and time.monotonic() - self.watched > WATCH_INTERVAL:
            self.stopped = self.watch()
            self.watched = time.monotonic()
        return bool(self.stopped)

    def _feed(self, stdin: bytes | None) -> threading.Thread | None:
        pipe = self.process.stdin
        if stdin is None or pipe is None:
            return None

        def write() -> None:
            with contextlib.suppress(BrokenPipeError):
                pipe.write(stdin)
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return thread

    def _read_some(self) -> bool:
        """Read what is there, waiting a little; False once the program has ended and said everything."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        ready, _, _ = select.select([fd], [], [], 0.2 if self.process.poll() is None else 0.0)
        if not ready:
            return self.process.returncode is None
        chunk = os.read(fd, 65536)
        if not chunk:
            # The pipe is closed but the program may still run (it closed its output): wait for its end in small steps.
            if self.process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.05)
                return True
            return False
        self._keep(chunk)
        return True

    def _keep(self, chunk: bytes) -> None:
        self.written += len(chunk)
        if self.log is not None:
            self.log.write(chunk)
        self.kept += chunk
        if len(self.kept) > CAPTURE_LIMIT:
            self.truncated = self.truncated or self.log is None
            del self.kept[: len(self.kept) - CAPTURE_LIMIT // 2]
        if self.on_output is not None:
            self.on_output(chunk)

    def _end(self, *, kill: bool) -> int:
        if kill:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
        elif self.process.poll() is None:
            self.process.wait()
        self._signal(signal.SIGKILL)
        status = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)
