# SPDX-License-Identifier: GPL-2.0-or-later
"""The build user with resource limits, no capability, and no network where the kernel lets us take it away.

That is what is left where mounting is not possible (a container without CAP_SYS_ADMIN). What a command leaves running is
ended by its user, which no other build has; /tmp is everybody's, and what a build leaves there is removed by its owner.
"""

from functools import cache

from kmodhookd import run
from kmodhookd.confine.limits import lowered
from kmodhookd.confine.task import Task
from kmodhookd.root import Root

ISOLATION = ("--net", "--ipc")
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run/lock")  # directories that everybody may write into
TIDY_TIMEOUT = 60.0


def wrap(task: Task) -> list[str]:
    """The command that runs the task."""
    wanted = [option for option in _isolation() if not (task.network and option == "--net")]
    apart = ["unshare", *wanted, "--"] if wanted else []
    return task.lent([*apart, *lowered(task.limits), *task.dropped(), *task.begun()])


def obstacle(task: Task, timeout: float) -> str:
    """Why it does not work here; "" when it does. `task` is tried out."""
    result = run.run(wrap(task), timeout=timeout)
    return "" if result.ok else result.last_line


def cuts_network() -> bool:
    """Whether commands are without network."""
    return "--net" in _isolation()


def tidy(root: Root, uid: int, gid: int) -> None:
    """Remove what the build user left where everybody may write. It does that itself: it cannot remove more than its own."""
    there = [directory for directory in SHARED if root.resolve(directory).is_dir()]
    closed = ["-type", "d", "!", "-perm", "-700", "-exec", "chmod", "u+rwx", "{}", ";"]
    for what in (closed, ["-depth", "-delete"]):
        find = ["find", *there, "-xdev", "-uid", str(uid), *what]
        run.run([*Task(find, root, uid, gid).dropped(), *find], timeout=TIDY_TIMEOUT)


@cache  # what the kernel allows does not change while we run
def _isolation() -> tuple[str, ...]:
    """The namespaces that can be had."""
    return tuple(option for option in ISOLATION if run.run(["unshare", option, "--", "true"], timeout=20).ok)
