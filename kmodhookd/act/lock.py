# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine lock: one of our programs at a time changes a root's module trees.

A flock(2) on `/run/kmodhookd/lock` inside the root, held for a commit to disk only, never during a compilation, a wait or
a script that may call `dkms` again. Real DKMS takes no lock, so while one is at work in the same root we do not commit;
we wait for it without holding the lock, since what it runs may need that.
"""

import contextlib
import fcntl
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator

from kmodhookd import processes, store
from kmodhookd.errors import Busy
from kmodhookd.protocol import WAITING
from kmodhookd.root import Root
from kmodhookd.settings import Settings

LOCK = f"{store.RUNTIME}/lock"
TIMEOUT = 600.0  # seconds; nobody holds it for longer than a commit takes
POLL = 0.1
SHELLS = ("bash", "sh", "dash", "ksh")
# Hooks have that name too. The dkms that they call is seen by itself; should it be ours, it may wait for a build of ours.
HOOKS = re.compile(r".*/(?:[\w.-]+\.d|libalpm/scripts)/dkms")
READING_VERBS = frozenset({"status", "--version", "-V", "--help", "-h"})

UNKNOWN = "another kmodhookd program"

OnWait = Callable[[str], None]


@contextlib.contextmanager
def engine_lock(
    root: Root,
    settings: Settings,
    *,
    on_wait: OnWait,
    timeout: float = TIMEOUT,
    cancel: threading.Event | None = None,
) -> Iterator[None]:
    """Hold the lock. `on_wait` gets one sentence for each that is waited for; `Busy` when it takes too long."""

    def take(fd: int) -> str:
        obstacle = _try(fd)
        others = [] if obstacle else dkms_running(root)
        if others:
            fcntl.flock(fd, fcntl.LOCK_UN)
            return f"{others[0][1]} (process {others[0][0]})"
        return obstacle

    with _held(root, LOCK, take, on_wait, timeout, cancel):
        yield


@contextlib.contextmanager
def work_lock(
    root: Root, name: str, cancel: threading.Event | None = None, *, on_wait: OnWait = lambda _: None
) -> Iterator[None]:
    """Hold a piece of work (one build, one initramfs) so that two of our programs do not do it side by side.

    Not the engine lock: held for as long as the work takes, and nobody's commit waits for it. Whoever gets it after
    waiting looks whether the work has been done meanwhile. A cancellation ends the wait with `Busy`.
    """
    with _held(root, f"{store.RUNTIME}/pieces/{name}", _try, on_wait, math.inf, cancel):
        yield


@contextlib.contextmanager
def _held(
    root: Root,
    name: str,
    take: Callable[[int], str],
    on_wait: OnWait,
    timeout: float,
    cancel: threading.Event | None,
) -> Iterator[None]:
    """Hold the lock that `take` takes, or else says who is in the way."""
    started = time.monotonic()
    path = root.resolve(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    said: set[str] = set()
    try:
        while True:
            obstacle = take(fd)
            if not obstacle:
                break
            waited = time.monotonic() - started
            if obstacle not in said and (obstacle != UNKNOWN or waited > 1):  # it writes its name a moment later
                said.add(obstacle)
                on_wait(f"{WAITING} {obstacle}")
            if waited > timeout or (cancel is not None and cancel.is_set()):
                raise Busy(f"{obstacle} is at work", where=name, hint="try again when it has finished")
            time.sleep(POLL)
        with contextlib.suppress(OSError):  # only words for people: a full /run is no reason not to work
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {_command(os.getpid()) or 'kmodhookd'}\n".encode("utf-8", "replace"), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
    finally:
        os.close(fd)  # releases the lock


def _try(fd: int) -> str:
    """Take the lock; else who holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid, _, command = os.pread(fd, 512, 0).decode("utf-8", "replace").strip().partition(" ")
        return f"{command} (process {pid})" if command else UNKNOWN
    return ""


def dkms_running(root: Root) -> list[tuple[int, str]]:
    """Real dkms processes at work in this root: (pid, command).

    One that we descend from, or that we started, does not count: to wait for it would be to wait for ourselves.
    """
    identity = root.identity
    mine = {os.getpid(), *processes.ancestors(os.getpid())}
    found = []
    for pid in processes.everybody():
        words = processes.words(pid)
        if not _is_dkms(words) or pid in mine:
            continue
        with contextlib.suppress(OSError):
            status = os.stat(f"/proc/{pid}/root")
            here = f"{status.st_dev}:{status.st_ino}" == identity
            if here and os.getpid() not in processes.ancestors(pid):
                said = " ".join(["dkms", *words[2:]])  # what is no text would not get through to people
                found.append((pid, said.encode("utf-8", "backslashreplace").decode()))
    return sorted(found)


def _is_dkms(words: list[str]) -> bool:
    """Whether it is the Bash script `dkms` (ours of that name is no shell script) with a verb that changes something."""
    if len(words) < 3 or os.path.basename(words[0]) not in SHELLS or os.path.basename(words[1]) != "dkms":
        return False
    return not HOOKS.fullmatch(words[1]) and not READING_VERBS & set(words[2:])


def _command(pid: int) -> str:
    return " ".join(os.path.basename(word) if word.startswith("/") else word for word in processes.words(pid)[:4])
