# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian (or Arch look-alike) booted with systemd in a container, over an overlay that vanishes with it."""

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from bed.cache import BedError, record_process, require_root
from bed.overlay import Command, Overlay, argv_of
from bed.roots import stack
from bed.shell import APT_ENV, CLEAN_ENV, need_programs, run, tail, words

BOOT_SECONDS = 90
NSPAWN_OPTIONS = words(
    "--quiet --boot --register=no --keep-unit --hostname=bed --link-journal=no --timezone=off --console=pipe"
    " --resolv-conf=replace-host --capability=CAP_SYS_ADMIN,CAP_SYS_PTRACE,CAP_NET_ADMIN"
)
_numbers = itertools.count(1)


class Machine:
    """A booted machine; use as a context manager. The network is the host's, the root its own.

    `layers` come topmost first (default: those of the cached root `name`). `binds` are mounted read-only at the same
    path, `mounts` writable at the path given (another overlay's root, say, to chroot into within the machine).
    """

    def __init__(
        self,
        name: str = "booted",
        *,
        layers: Sequence[Path] | None = None,
        binds: Sequence[Path] = (),
        mounts: Mapping[Path, str] | None = None,
    ) -> None:
        require_root()
        need_programs("systemd-nspawn", "nsenter", "chroot")
        self.name = f"bed-{os.getpid()}-{next(_numbers)}"
        self._overlay = Overlay(stack(name) if layers is None else layers, name=name, chroot=False)
        self._binds = [f"--bind-ro={path}" for path in binds]
        self._binds += [f"--bind={path}:{inside}" for path, inside in (mounts or {}).items()]
        self.env: dict[str, str] = {}
        self._nspawn: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._overlay.__enter__()
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """The machine's root directory as the host sees it."""
        return self._overlay.root

    @property
    def overlay(self) -> Overlay:
        """The overlay under the machine."""
        return self._overlay

    @property
    def console(self) -> str:
        """What the machine printed while booting."""
        return tail((self._overlay.scratch / "console").read_text(errors="backslashreplace"), 100)

    # Power -----------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start it and wait until systemd says `running` or `degraded`. Raises BedError with the console when not."""
        console = (self._overlay.scratch / "console").open("ab")
        with console:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", f"--directory={self.root}", f"--machine={self.name}", *NSPAWN_OPTIONS, *self._binds],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env=CLEAN_ENV,
                start_new_session=True,
            )
        record_process(self._overlay.scratch / "nspawn.pid", self._nspawn.pid)
        deadline = time.monotonic() + BOOT_SECONDS
        self.leader = self._find_leader(deadline)
        # Of a run that is killed nspawn may end without what it started.
        record_process(self._overlay.scratch / "leader.pid", self.leader)
        self._wait_booted(deadline)

    def poweroff(self, timeout: float = 60) -> None:
        """Shut it down in order; the files stay, `boot` starts it again."""
        if self._nspawn is None:
            return
        os.kill(self._nspawn.pid, signal.SIGTERM)
        self._nspawn.wait(timeout)
        self._nspawn = None

    def reboot(self) -> None:
        """An orderly shutdown and a new boot, files kept."""
        self.poweroff()
        self.boot()

    def kill(self) -> None:
        """Pull the plug: every process is gone at once; the files stay, `boot` starts it again."""
        if self._nspawn is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.leader, signal.SIGKILL)
        try:
            self._nspawn.wait(20)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait(20)
        self._nspawn = None

    def close(self) -> None:
        """Pull the plug and forget everything."""
        if self._nspawn is not None:
            if hasattr(self, "leader"):
                self.kill()
            else:
                self._nspawn.kill()
                self._nspawn.wait(20)
        self._overlay.close()

    # Files -----------------------------------------------------------------------------------------------------------

    def path(self, inside: str | os.PathLike[str]) -> Path:
        """The host's path of an absolute path inside; what is written there, inotify inside the machine sees."""
        return self._overlay.path(inside)

    def put(self, source: Path, inside: str) -> Path:
        """Copy a file or tree of the host into the machine, owned by root; returns the host's path of the copy."""
        return self._overlay.put(source, inside)

    # Commands --------------------------------------------------------------------------------------------------------

    def run(
        self,
        command: Command,
        *,
        check: bool = True,
        user: str | None = None,
        timeout: float = 600,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        input: str | None = None,  # noqa: A002 - named as in subprocess
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command inside, with a clean environment: a string is a line for Bash.

        Raises CommandFailed with the output when `check` and it ends with another status than 0.
        """
        return run(self._argv(command, user, env, cwd), check=check, timeout=timeout, input=input)

    def spawn(
        self, command: Command, *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> "subprocess.Popen[str]":
        """Start a command inside and return at once; stdout and stderr are pipes. It ends with the machine."""
        return subprocess.Popen(
            self._argv(command, user, env),
            env=CLEAN_ENV,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
        )

    def apt_install(self, *packages: str, timeout: float = 1200) -> "subprocess.CompletedProcess[str]":
        """`apt-get install` of packages, non-interactively; packages seen before come from the cache."""
        return self.run(["apt-get", "install", "-y", *packages], env=APT_ENV, timeout=timeout)

    def apt_remove(self, *packages: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """`apt-get purge` of packages, non-interactively."""
        return self.run(["apt-get", "purge", "-y", *packages], env=APT_ENV, timeout=timeout)

    def wait_until(self, holds: Callable[[], object], what: str, *, timeout: float = 60, every: float = 0.2) -> float:
        """Wait until `holds()` is true; returns the seconds it took. Fails with `what` and the journal's end."""
        started = time.monotonic()
        while not holds():
            if time.monotonic() - started > timeout:
                raise AssertionError(f"after {timeout} s not yet: {what}\n{self.journal()}")
            time.sleep(every)
        return time.monotonic() - started

    def journal(self, *options: str, lines: int = 60) -> str:
        """The end of the machine's journal."""
        return self.run(["journalctl", "--no-pager", f"--lines={lines}", *options], check=False).stdout

    def _argv(self, command: Command, user: str | None, env: Mapping[str, str] | None, cwd: str = "/") -> list[str]:
        enter = ["nsenter", "--target", str(self.leader), "--all", "--root"]
        environment = {**CLEAN_ENV, **self.env, **(env or {})}
        if user is not None:
            enter += ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
            environment.update(HOME=f"/home/{user}", USER=user, LOGNAME=user)
        words = [f"{name}={value}" for name, value in environment.items()]
        return [*enter, "env", "-i", f"--chdir={cwd}", *words, *argv_of(command)]

    def _find_leader(self, deadline: float) -> int:
        """The host's number of the machine's process 1: nspawn's child that is 1 in its own namespace."""
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        while time.monotonic() < deadline and self._nspawn.poll() is None:
            with suppress(OSError):
                for child in children.read_text().split():
                    if _is_first_in_namespace(int(child)):
                        return int(child)
            time.sleep(0.02)
        raise BedError(f"the machine did not start:\n{self.console}")

    def _wait_booted(self, deadline: float) -> None:
        state = ""
        while time.monotonic() < deadline:
            shown = self.run(["systemctl", "is-system-running"], check=False)
            state = shown.stdout.strip()
            if state in ("running", "degraded"):
                return
            time.sleep(0.1)
        raise BedError(f"the machine did not come up in {BOOT_SECONDS} s ({state}):\n{self.console}")


def _is_first_in_namespace(pid: int) -> bool:
    """Whether a process is number 1 of its PID namespace and has become its init."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1" and len(line.split()) > 2
    return False
