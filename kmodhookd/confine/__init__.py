# SPDX-License-Identifier: GPL-2.0-or-later
"""Where other people's code runs: compilers, Makefiles, dkms.conf, build scripts.

A cage runs commands as a build user whom nobody else has meanwhile, by one of these mechanisms, best first:

- `namespaces`: made by us, see there. Needs CAP_SYS_ADMIN.
- `unit`: a transient unit of the systemd that runs the root. Bounds the memory and tasks of a build as a whole.
- `bubblewrap`: bwrap(1). Needs user namespaces for everybody.
- `setuid`: the build user with resource limits. What is left where none of these work.
- `none`: we are not root, so everything runs as the caller, within resource limits.

`auto` takes the first that works in a place, by trying it. `namespaces` comes before `unit` since it hides other processes
altogether, costs less, and depends on neither a service manager (in a chroot, an image build) nor its state in the
transaction that upgrades it. What policy names and does not work is a `Fault`, and never a weaker mechanism in its place.
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kmodhookd import run, systemd
from kmodhookd.confine import bubblewrap, namespaces, setuid, unit, users
from kmodhookd.confine.limits import Limits, lowered
from kmodhookd.confine.task import PIPE, Task
from kmodhookd.confine.users import BUILD_USER, FORBIDDEN_UIDS, build_user, is_named, memory_of, sweep
from kmodhookd.confine.users import lent as lent_users
from kmodhookd.errors import Fault
from kmodhookd.root import Root


class Mechanism(Protocol):
    """What each module here offers."""

    def wrap(self, task: Task) -> list[str]:
        """The command that runs the task."""

    def obstacle(self, task: Task, timeout: float) -> str:
        """Why it does not work here; "" when it does. `task` is tried out."""


MECHANISMS: Mapping[str, Mechanism] = {
    "namespaces": namespaces,
    "unit": unit,
    "bubblewrap": bubblewrap,
    "setuid": setuid,
}
AUTO = "auto"
NONE = "none"
PROBE_TIMEOUT = 60.0  # seconds: a machine that is busy is no reason for a weaker mechanism
TIMEOUT = 60.0  # seconds, where nobody says otherwise


@dataclass(frozen=True)
class Cage:
    """Where one build (or one look at a dkms.conf) runs its commands. Made by `cage`."""

    root: Root
    mechanism: str
    uid: int
    gid: int
    foreign: frozenset[str] = frozenset()  # whose processes are not of it, see `users.User`

    @property
    def description(self) -> str:
        """The mechanism, and what it lacks, for a log."""
        if self.mechanism == "setuid" and not setuid.cuts_network():
            return "setuid, with the network: this place does not let it be cut off"
        return self.mechanism

    def command(self, argv: Sequence[str], **bounds: Any) -> list[str]:
        """The command that runs `argv` in it; `bounds` are those of `Task`. Give it to `run.run` without `root` and `cwd`."""
        task = Task(argv, self.root, self.uid, self.gid, **bounds)
        if self.mechanism == NONE:
            return task.lent([*lowered(task.limits), *task.begun()])
        return MECHANISMS[self.mechanism].wrap(task)

    def run(
        self,
        argv: Sequence[str],
        *,
        writable: Sequence[str] = (),
        cwd: str = "/",
        binds: Mapping[str, str] | None = None,
        network: bool = False,
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
        pipe: int | None = None,
        **how: Any,
    ) -> run.Result:
        """Run `argv` to its end, and end whatever it leaves running.

        `writable` (existing directories) and `cwd` are paths inside the root. `binds` are directories (target → source,
        both inside) that are seen and written to under another name, where the mechanism can mount. /tmp and /run are
        private and empty there, unless one of these is in them. `pipe` is a descriptor of ours: the command finds that
        pipe at `PIPE`. `how` are the other arguments of `run.run`. Exit status: the command's, 128+N for signal N.
        A `Fault` when the cage itself fails.
        """
        bounds: dict[str, Any] = {
            "writable": writable,
            "cwd": cwd,
            "binds": binds or {},
            "network": network,
            "pipe": pipe,
        }
        bounds |= {"limits": limits or Limits(), "environment": run.environment(env), "seconds": timeout}
        command = self.command(argv, **bounds)
        lent = () if pipe is None else (pipe,)
        result = run.run(command, env=env, timeout=timeout, pass_fds=lent, **how)
        if self.mechanism != NONE:
            # Also where the mechanism does it: what a build hands out is looked at next, and may not change any more.
            users.end_all(self.uid, self.foreign, unseen=self.mechanism == "setuid")
        if self.mechanism == "unit" and systemd.refused(result):
            raise Fault(f"systemd did not start the unit of a build: {result.last_line}", hint="it is tried again")
        return result


@contextlib.contextmanager
def cage(root: Root, sandbox: str = AUTO) -> Iterator[Cage]:
    """A cage for what is done with `root`. At its end nothing that was started in it runs any more.

    `sandbox` is what policy says: a mechanism, or `auto`. A `Fault` when that one does not work here.
    """
    kind = mechanism(root, sandbox)
    with users.lend(root) as user:
        try:
            yield Cage(root, kind, *user)
        finally:
            if kind == "setuid":
                users.end_all(user.uid, user.foreign, unseen=True)  # a command may have been broken off
                setuid.tidy(root, user.uid, user.gid)


def mechanism(root: Root, sandbox: str = AUTO) -> str:
    """The mechanism that is used for `root`. A `Fault` when policy wants one that does not work here, or none does."""
    if os.geteuid() != 0:
        if sandbox == AUTO:
            return NONE
        raise Fault(f"the sandbox '{sandbox}' needs root", hint="run it as root, or set build.sandbox to auto")
    if sandbox == AUTO:
        found = next((kind for kind in MECHANISMS if not obstacle(root, kind)), "")
        if not found:
            reasons = "; ".join(f"{kind}: {obstacle(root, kind)}" for kind in MECHANISMS)
            raise Fault(f"nothing that confines builds works here: {reasons}", where=str(root.prefix))
        return found
    reason = obstacle(root, sandbox)
    if reason:
        hint = f"set build.sandbox in /etc/kmodhookd/config.toml to {AUTO}, or cure the cause"
        raise Fault(f"the sandbox '{sandbox}' does not work here: {reason}", hint=hint)
    return sandbox


def obstacle(root: Root, kind: str) -> str:
    """Why a mechanism does not work for a root, "" when it does; tried out once per process."""
    return _obstacle(str(root.prefix), kind)


@functools.cache  # what the machine allows does not change while we run
def _obstacle(prefix: str, kind: str) -> str:
    root = Root(prefix)
    uid, gid = build_user(root)
    proof = unit.PROOF if kind == "unit" else ("true",)
    task = Task(proof, root, uid, gid, environment=run.environment(), seconds=PROBE_TIMEOUT)
    return MECHANISMS[kind].obstacle(task, PROBE_TIMEOUT)


__all__ = [
    "AUTO",
    "BUILD_USER",
    "FORBIDDEN_UIDS",
    "MECHANISMS",
    "NONE",
    "PIPE",
    "Cage",
    "Limits",
    "build_user",
    "cage",
    "confine",
    "is_named",
    "lent_users",
    "mechanism",
    "memory_of",
    "obstacle",
    "sweep",
]
