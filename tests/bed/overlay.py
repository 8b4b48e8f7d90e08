# SPDX-License-Identifier: GPL-2.0-or-later
"""A fresh root over cached layers: what is written to it vanishes with it, however the test ends."""

import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from bed import apt
from bed.cache import BedError, cache_dir, discard, scratch, unmount_below
from bed.shell import APT_ENV, CLEAN_ENV, run

# A renamed directory stays one rename (as on any file system); nothing is synced to disk, nobody keeps it.
OVERLAY_OPTIONS = "redirect_dir=on,index=off,metacopy=off,volatile"
DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

Command = str | Sequence[str | os.PathLike[str]]


def argv_of(command: Command) -> list[str]:
    """A string is a line for Bash; a list is started as it is."""
    if isinstance(command, str):
        return ["bash", "-c", command]
    return [os.fspath(word) for word in command]


def hold_layer(layer: Path) -> IO[str]:
    """Keep a layer from being pruned for as long as the returned file is open."""
    lock_file = cache_dir() / "locks" / f"layer-{layer.name}"
    lock_file.parent.mkdir(exist_ok=True)
    handle = lock_file.open("w")
    fcntl.flock(handle, fcntl.LOCK_SH)
    return handle


class Overlay:
    """A root directory over read-only layers (topmost first). Use as a context manager.

    `root` is where it is mounted, `upper` what was written. `chroot=True` also mounts /proc, /sys, /dev for `run`.
    """

    def __init__(self, layers: Sequence[Path], *, name: str, chroot: bool = True) -> None:
        self._layers = list(layers)
        self._name = name
        self._chroot = chroot
        self._holds: list[IO[str]] = []

    def __enter__(self) -> Self:
        self._holds = [hold_layer(layer) for layer in self._layers]
        gone = [layer.name for layer in self._layers if not layer.exists()]
        if gone:
            raise BedError(f"another test run replaced {', '.join(gone)} meanwhile: start again")
        self.scratch = scratch(self._name)
        self.root = self.scratch / "root"
        self.upper = self.scratch / "upper"
        for directory in (self.root, self.upper, self.scratch / "work"):
            directory.mkdir()
        try:
            apt.lend_archives(self.upper)
            self._mount_overlay()
            if self._chroot:
                self._mount_system()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill what still runs in it, unmount it, forget it. May be called twice."""
        if self.scratch.exists():
            self.kill_processes()
            unmount_below(self.root)
            apt.harvest_archives(self.upper)
            discard(self.scratch)
        while self._holds:
            self._holds.pop().close()

    def detach(self) -> Path:
        """Unmount, keep: the directory with everything written, for use as a layer. Call `close` after taking it."""
        self.kill_processes()
        unmount_below(self.root)
        apt.harvest_archives(self.upper)
        return self.upper

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """The host's path of an absolute path inside (links are not followed)."""
        return self.root / os.fspath(inside).lstrip("/")

    def put(self, source: Path, inside: str) -> Path:
        """Copy a file or tree of the host to a path inside, links as links; returns the host's path of the copy."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        run(["cp", "-a", "--no-preserve=ownership", "--", source, target])
        return target

    def run(
        self,
        command: Command,
        *,
        check: bool = True,
        user: str | None = None,
        timeout: float = 900,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002 - named as in subprocess
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command chrooted, with a clean environment, in /. Raises CommandFailed when `check` and it fails."""
        who = [f"--userspec={user}"] if user else []
        argv = ["chroot", *who, str(self.root), *argv_of(command)]
        return run(argv, check=check, timeout=timeout, env=env, cwd="/", input=input)

    def spawn(self, command: Command, *, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
        """Start a command chrooted and return at once; stdout and stderr are pipes."""
        return subprocess.Popen(
            ["chroot", str(self.root), *argv_of(command)],
            env={**CLEAN_ENV, **(env or {})},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def apt_install(self, *packages: str, timeout: float = 1800) -> "subprocess.CompletedProcess[str]":
        """`apt-get install` of packages, non-interactively."""
        return self.run(["apt-get", "install", "-y", "-q", *packages], env=APT_ENV, timeout=timeout)

    def kill_processes(self) -> None:
        """End every process whose root directory is in here."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                where = os.readlink(process / "root")
                if where == str(self.root) or where.startswith(f"{self.root}/"):
                    os.kill(int(process.name), signal.SIGKILL)

    def _mount_overlay(self) -> None:
        lower = ":".join(str(layer) for layer in self._layers)
        options = f"lowerdir={lower},upperdir={self.upper},workdir={self.scratch / 'work'},{OVERLAY_OPTIONS}"
        run(["mount", "-t", "overlay", f"kmodhookd-{self._name}", "-o", options, self.root])

    def _mount_system(self) -> None:
        run(["mount", "-t", "proc", "proc", self.root / "proc"])
        run(["mount", "-t", "sysfs", "-o", "ro", "sysfs", self.root / "sys"])
        dev = self.root / "dev"
        run(["mount", "-t", "tmpfs", "-o", "mode=755,size=64m", "tmpfs", dev])
        for name, (major, minor) in DEVICES.items():
            os.mknod(dev / name, 0o20666, os.makedev(major, minor))
            (dev / name).chmod(0o666)
        for name, target in DEVICE_LINKS.items():
            (dev / name).symlink_to(target)
        for name, options in (("pts", "devpts"), ("shm", "tmpfs")):
            (dev / name).mkdir(mode=0o1777)
            extra = ["-o", "newinstance,ptmxmode=0666"] if name == "pts" else []
            run(["mount", "-t", options, *extra, options, dev / name])
        resolver = self.root / "etc/resolv.conf"
        if not resolver.is_symlink():
            shutil.copyfile("/etc/resolv.conf", resolver)
