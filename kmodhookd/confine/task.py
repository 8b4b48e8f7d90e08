# SPDX-License-Identifier: GPL-2.0-or-later
"""What is to be run confined, and the steps that all mechanisms share: become the build user, enter the root, begin.

Everything needed comes from util-linux and coreutils of the *calling* system; the served root lends its /bin/sh only.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kmodhookd.confine.limits import OOM_SCORE, Limits
from kmodhookd.root import Root

PIPE = 9  # the descriptor at which a command finds the pipe that is lent to it
HOUR = 3600.0

# Ends with whoever started it. The kernel forgets that when a program changes its user: it counts for what stays root.
WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
# Opened anew, so that what a command sets on it (O_NONBLOCK) is not set for others, and for both directions at once.
_LEND = f'exec {PIPE}<>"/proc/self/fd/$1" && shift && exec "$@"'
_BEGIN = f'umask 022; {{ echo {OOM_SCORE} > /proc/self/oom_score_adj; }} 2>/dev/null; cd -- "$1" && shift && exec "$@"'


@dataclass(frozen=True)
class Task:
    """A command and its bounds. Paths are inside the root; directories exist."""

    argv: Sequence[str]
    root: Root
    uid: int
    gid: int
    writable: Sequence[str] = ()
    cwd: str = "/"
    binds: Mapping[str, str] = field(default_factory=dict)  # target → source, where the mechanism can mount
    network: bool = False
    limits: Limits = field(default_factory=Limits)
    environment: Mapping[str, str] = field(default_factory=dict)  # all of it; needed by units alone
    seconds: float = HOUR  # after which a unit ends by itself, should nobody be left to end it
    pipe: int | None = None  # a descriptor of ours: the command finds the pipe at PIPE, open for reading and writing

    def begun(self) -> list[str]:
        """The command, as the first thing in the root that runs as the build user."""
        return ["/bin/sh", "-c", _BEGIN, "sh", self.cwd, *self.argv]

    def lent(self, command: Sequence[str]) -> list[str]:
        """`command` with the pipe at PIPE, if there is one to lend."""
        if self.pipe is None:
            return list(command)
        return ["/bin/sh", "-c", _LEND, "sh", str(self.pipe), *command]

    def dropped(self) -> list[str]:
        """Become the build user in the root, for good.

        chroot(1) changes root and user in one program, so another root needs no setpriv of its own. The three
        capabilities that it needs stay in the bounding set only: nobody without privileges can gain them again.
        """
        if self.root.is_host:
            return self.dropped_here()
        kept = "--bounding-set=-all,+sys_chroot,+setuid,+setgid"
        return [
            *("setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", kept),
            *("chroot", f"--userspec=+{self.uid}:+{self.gid}", "--groups=", str(self.root.prefix)),
        ]

    def dropped_here(self) -> list[str]:
        """Become the build user in the root of the caller, with no capability left even in the bounding set."""
        return [
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs"),
            *("--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"),
        ]

    def mounts(self) -> list[tuple[str, str]]:
        """What can be written to: (source, target), both outside, equal for what keeps its name."""
        own = [(path, path) for path in (str(self.root.resolve(each)) for each in self.writable)]
        return own + [(str(self.root.resolve(source)), str(self.root.resolve(at))) for at, source in self.binds.items()]

    def cover(self, inside: str) -> str:
        """The directory outside to hide; "" when there is none, or something that is needed lies in it."""
        path = str(self.root.resolve(inside))
        used = [str(self.root.resolve(self.cwd)), *(path for pair in self.mounts() for path in pair)]
        needed = any(f"{use}/".startswith(f"{path}/") for use in used)
        return "" if needed or not os.path.isdir(path) else path
