# SPDX-License-Identifier: GPL-2.0-or-later
"""Work that is killed, or told of an error, at every single call that changes the disk; and disks that fill up."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from kmodhookd.root import Root

Work = Callable[[], None]

CALLS = ("rename", "link", "unlink", "fsync", "mkdir", "rmdir", "symlink", "fchmod")
SYSTEM_CALLS = ("write", "sendfile", *CALLS)
MOMENTS = 500  # more than any of these have
PAGE = 4096
KILLED = 77


class Injected:
    """Wraps the calls of `os` that change a disk: at the `at`-th one, `strike` is called before it."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.at = at
        self.count = 0
        self.strike = strike
        self.real = {name: getattr(os, name) for name in CALLS}

    def __enter__(self) -> Self:
        for name in CALLS:
            setattr(os, name, self._wrap(name))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self.real.items():
            setattr(os, name, real)

    def _wrap(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            if self.count == self.at:
                self.strike()
            return self.real[name](*args, **kwargs)

        return call


class Scene:
    """A root that is made again as it was for each attempt at some work."""

    def __init__(self, root: Root, memory: Path) -> None:
        self.root = root
        self.template = memory / "template"
        subprocess.run(["cp", "-a", f"{root.prefix}/.", self.template], check=True)

    def reset(self) -> None:
        """As it was. The directory itself stays: a file system may be mounted on it."""
        for path in self.root.prefix.iterdir():
            subprocess.run(["rm", "-rf", path], check=True)
        subprocess.run(["cp", "-a", f"{self.template}/.", self.root.prefix], check=True)

    def killed(self, work: Work) -> Iterator[bool]:
        """Kill it at its first call, its second, …; each time whether it was killed. The last time it comes to its end."""
        for at in range(1, MOMENTS):
            self.reset()
            status = in_child(lambda at=at: _with(Injected(at, _die), work))  # type: ignore[misc]
            assert status in (0, KILLED), f"at call {at}"
            yield status == KILLED
            if not status:
                assert at > 10, f"only {at} moments were tried"
                return
        raise AssertionError("it never came to its end")

    def failing(self, number: int, work: Work) -> Iterator[None]:
        """Let the first call fail with this error, the second, …, until there are no more."""

        def strike() -> None:
            raise OSError(number, os.strerror(number))

        for at in range(1, MOMENTS):
            self.reset()
            injected = Injected(at, strike)
            _with(injected, work)
            yield
            if injected.count < at:
                return
        raise AssertionError("it never came to its end")

    def traced(self, call: str, fault: str, work: Work) -> Iterator[int]:
        """The same for a system call, by strace: `fault` is `error=ENOSPC` or `signal=SIGKILL`. Yields the exit status."""
        for at in range(1, MOMENTS):
            self.reset()
            status, struck = _traced(call, f"{fault}:when={at}", work)
            yield status
            if not struck:
                return
        raise AssertionError("it never came to its end")


def in_child(work: Work) -> int:
    """Run in a forked process that may be killed; its exit status."""
    pid = _fork(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Disk:
    """A file system of its own on a directory, whose free space and number of free inodes can be set."""

    def __init__(self, directory: Path, size: int = 4 << 20) -> None:
        self.directory = directory
        self.size = size

    def __enter__(self) -> Self:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.size}", "none", self.directory], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", self.directory], check=True)

    def leave(self, *, pages: int | None = None, inodes: int | None = None) -> None:
        """Fill it up but for so much."""
        if pages is not None:
            status = os.statvfs(self.directory)
            with (self.directory / "filler").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, (status.f_bavail - pages) * PAGE)
        if inodes is not None:
            status = os.statvfs(self.directory)
            self._inodes(status.f_files - status.f_ffree + inodes)

    def roomy(self) -> None:
        """Room again for what has to be done afterwards."""
        (self.directory / "filler").unlink(missing_ok=True)
        self._inodes(10_000)

    def _inodes(self, number: int) -> None:
        options = f"remount,size={self.size},nr_inodes={number}"
        subprocess.run(["mount", "-o", options, self.directory], check=True)


def _with(injected: Injected, work: Work) -> None:
    with injected:
        work()


def _die() -> None:
    os._exit(KILLED)


def _fork(work: Work, wait_for: int = -1) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        if wait_for >= 0:
            os.read(wait_for, 1)
        work()
    except BaseException:
        os._exit(99)
    os._exit(0)


def _traced(call: str, fault: str, work: Work) -> tuple[int, bool]:
    """Run it under strace; its exit status and whether the fault was injected."""
    reading, writing = os.pipe()
    pid = _fork(work, reading)
    with tempfile.NamedTemporaryFile("r", dir="/dev/shm") as log:
        command = ["strace", "-p", str(pid), "-o", log.name, "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"strace: {said}")
        os.write(writing, b"x")
        os.close(writing)
        os.close(reading)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        strace.communicate()
        return status, "(INJECTED" in log.read() or status == -signal.SIGKILL
