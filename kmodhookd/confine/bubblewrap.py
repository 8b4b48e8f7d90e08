# SPDX-License-Identifier: GPL-2.0-or-later
"""bwrap(1), started as the build user: user, mount, process, IPC, network, host name and control group namespaces.

It needs no capability but user namespaces that anybody may make, so it works where the kernel denies CAP_SYS_ADMIN to us,
and does not where an administrator or a chroot denies those (user_namespaces(7)).
"""

from functools import cache

from kmodhookd import run
from kmodhookd.confine.limits import lowered, machine_memory
from kmodhookd.confine.task import Task
from kmodhookd.root import Root

PROGRAM = "bwrap"


def wrap(task: Task) -> list[str]:
    """The command that runs the task."""
    return _wrap(task, _strict(str(task.root.prefix), task.uid, task.gid))


def obstacle(task: Task, timeout: float) -> str:
    """Why it does not work here; "" when it does. `task` is tried out."""
    result = run.run(wrap(task), timeout=timeout)
    if result.status == 127 and PROGRAM in result.output:
        return "there is no bwrap: install bubblewrap"
    return "" if result.ok else result.last_line


def _wrap(task: Task, strict: bool) -> list[str]:
    spaces = ("user", "pid", "ipc", "uts", "cgroup-try", *(() if task.network else ("net",)))
    return task.lent(
        [
            *lowered(task.limits),
            *task.dropped_here(),
            *(PROGRAM, "--die-with-parent", "--new-session", *(f"--unshare-{space}" for space in spaces)),
            *(("--disable-userns",) if strict else ()),  # needs a /proc/sys that can be written to
            *_mounts(task),
            *("--", *task.begun()),
        ]
    )


def _mounts(task: Task) -> list[str]:
    """The root read-only, what is private, what is writable; later ones lie on top of earlier ones."""
    memory = machine_memory()
    mounts = ["--ro-bind", str(task.root.prefix), "/"]
    for inside, options in (
        ("/dev", ["--dev", "/dev", "--size", str(memory // 10), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]),
        ("/proc", ["--proc", "/proc"]),
        ("/tmp", ["--size", str(memory // 4), "--perms", "1777", "--tmpfs", "/tmp"]),
        ("/run", ["--size", "4096", "--tmpfs", "/run", "--remount-ro", "/run"]),
        ("/sys", ["--size", "4096", "--tmpfs", "/sys", "--remount-ro", "/sys"]),
    ):
        mounts += options if task.cover(inside) else []
    for source, target in task.mounts():
        mounts += ["--bind", source, task.root.inside(target)]
    return mounts


@cache  # what the machine allows does not change while we run
def _strict(prefix: str, uid: int, gid: int) -> bool:
    """Whether further user namespaces can be forbidden inside."""
    return run.run(_wrap(Task(["true"], Root(prefix), uid, gid), True), timeout=20).ok
