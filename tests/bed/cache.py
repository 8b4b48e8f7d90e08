# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the bed keeps what is expensive, and how two runs on one machine keep out of each other's way."""

import ctypes
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MNT_DETACH = 2


class BedError(RuntimeError):
    """The bed itself is not usable here; the text is a sentence that says what to do."""


def cache_dir() -> Path:
    """The cache of this machine: `$KMODHOOKD_TEST_CACHE` or /var/cache/kmodhookd-tests."""
    return Path(os.environ.get("KMODHOOKD_TEST_CACHE", "/var/cache/kmodhookd-tests"))


def require_root() -> None:
    """Fail with a sentence when this process cannot mount, chroot or boot anything."""
    if os.geteuid() != 0:
        raise BedError("this test needs root: run it through `sudo tests/run.sh`")


def need_space(wanted: int) -> None:
    """Fail with a sentence when the cache's file system has less than `wanted` bytes free."""
    free = shutil.disk_usage(cache_dir()).free
    if free < wanted:
        raise BedError(f"{cache_dir()} has {free >> 20} MiB free, {wanted >> 20} MiB are needed to build a root")


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock `name` of the cache, among all test runs of this machine. Not reentrant."""
    lock_file = cache_dir() / "locks" / name
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def prune(directory: Path, limit: int) -> None:
    """Empty a directory of the cache that has grown beyond `limit` bytes; what is needed comes back by itself."""
    if sum(file.lstat().st_size for file in directory.rglob("*") if file.is_file()) > limit:
        for entry in directory.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


# Scratch directories -------------------------------------------------------------------------------------------------
# Each is named OWNER-STARTTIME-NAME-N, so that whatever a killed run leaves can be told from what a living one uses.


def _start_time(pid: int) -> str | None:
    """The kernel's start time of a process (proc(5) stat field 22); None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def scratch(name: str) -> Path:
    """A new directory of this process on the cache's file system; `discard` takes it away."""
    parent = cache_dir() / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        path = parent / f"{os.getpid()}-{_start_time(os.getpid())}-{name}-{number}"
        try:
            path.mkdir(mode=0o755)
        except FileExistsError:
            number += 1
        else:
            return path


def discard(path: Path) -> None:
    """Kill what was recorded as running in a scratch directory, unmount everything under it, remove it."""
    for pid_file in path.glob("*.pid"):
        _kill_recorded(pid_file)
    unmount_below(path)
    shutil.rmtree(path, ignore_errors=True)
    if path.exists():
        raise BedError(f"{path} cannot be removed: something still uses it")


def may_sweep() -> bool:
    """Whether this process can clear up after others: root, with a cache that somebody has used before."""
    return os.geteuid() == 0 and (cache_dir() / "tmp").exists()


def sweep() -> list[str]:
    """Discard the scratch directories whose owner is gone; returns their names."""
    swept = []
    for path in sorted((cache_dir() / "tmp").glob("*-*-*")):
        owner, started, _ = path.name.split("-", 2)
        if _start_time(int(owner)) != started:
            with suppress(FileNotFoundError):  # another run sweeps too
                discard(path)
            swept.append(path.name)
    return swept


def leftovers() -> list[str]:
    """Mounts and scratch directories of this process that are still there."""
    mine = f"/{os.getpid()}-{_start_time(os.getpid())}-"
    found = [point for point in mount_points() if mine in point]
    return found + [str(path) for path in (cache_dir() / "tmp").glob(f"{mine[1:]}*")]


def record_process(pid_file: Path, pid: int) -> None:
    """Remember a process that must not outlive the scratch directory `pid_file` is in."""
    pid_file.write_text(f"{pid} {_start_time(pid)}")


def _kill_recorded(pid_file: Path) -> None:
    pid, _, started = pid_file.read_text().partition(" ")
    if pid and _start_time(int(pid)) == started:
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
        deadline = time.monotonic() + 10
        while _start_time(int(pid)) == started and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(int(pid), os.WNOHANG)
            time.sleep(0.02)
    pid_file.unlink()


# Mounts --------------------------------------------------------------------------------------------------------------


def mount_points() -> list[str]:
    """The mount points of this mount namespace, oldest first (proc(5) mountinfo, octal escapes undone)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def unmount(path: Path | str) -> None:
    """Unmount one mount point at once, lazily when it is busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    deadline = time.monotonic() + 2
    while libc.umount2(os.fsencode(str(path)), 0) != 0:
        if time.monotonic() > deadline:
            libc.umount2(os.fsencode(str(path)), MNT_DETACH)
            return
        time.sleep(0.05)


def unmount_below(path: Path) -> None:
    """Unmount everything at and under `path`, innermost first."""
    prefix = f"{path}/"
    for point in reversed(mount_points()):
        if point == str(path) or point.startswith(prefix):
            unmount(point)
