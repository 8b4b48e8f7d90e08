# SPDX-License-Identifier: GPL-2.0-or-later
"""Namespaces of our own: mount, process, IPC and network, made by unshare(1) and mount(8) as root.

Everything is read-only but what is listed; /tmp, /dev, /run, /sys and /proc are private; no capability is left; nothing
of it survives its first process. It needs CAP_SYS_ADMIN, and works in a chroot too.
"""

from kmodhookd import run
from kmodhookd.confine.limits import lowered
from kmodhookd.confine.task import WITH_PARENT, Task

# Constant text: what differs comes in as positional parameters, so no path is ever parsed as shell code.
# sh stays process 1 of the namespace: when it ends, the kernel kills whatever the command left running.
# Read-only is set mount by mount because util-linux before 2.39 knows no recursive way. A mount that hides another
# one makes the hidden one unreachable by name, and its failure harmless: only the tree's top has to succeed.
# The devices are collected in a tmpfs on /sys, since /dev itself must stay visible until they are.
_CAGE = r"""
set -eu
root=$1 sys=$2 dev=$3 proc=$4 run=$5 tmp=$6
shift 6
[ "$root" = / ] && top= || top=$root
[ -z "$top" ] || mount --rbind "$root" "$root"
while read -r _ _ _ _ at options _; do
    case $options in ro|ro,*) continue;; esac
    case $at in *\\*) at=$(printf '%b.' "$at"); at=${at%.};; esac
    case $at in "$sys"|"$sys"/*|"$dev"|"$dev"/*|"$proc"|"$proc"/*|"$root") continue;; esac
    [ -z "$run" ] || case $at in "$run"|"$run"/*) continue;; esac
    case $at/ in "$top"/*) mount -o remount,bind,ro "$at" 2>/dev/null || :;; esac
done < /proc/self/mountinfo
mount -o remount,bind,ro "$root"
while [ "$1" != -- ]; do
    mount --bind "$1" "$2"
    mount -o remount,bind,rw "$2"
    shift 2
done
shift
mount -t tmpfs -o mode=755,size=1m,noexec,nosuid kmodhookd "$sys"
mkdir "$sys/dev" "$sys/dev/shm"
for node in null zero full random urandom; do
    : > "$sys/dev/$node"
    mount --bind "/dev/$node" "$sys/dev/$node"
done
ln -s /proc/self/fd "$sys/dev/fd"
ln -s /proc/self/fd/0 "$sys/dev/stdin"
ln -s /proc/self/fd/1 "$sys/dev/stdout"
ln -s /proc/self/fd/2 "$sys/dev/stderr"
mount -t tmpfs -o mode=1777,size=10%,nosuid,nodev kmodhookd "$sys/dev/shm"
mount --rbind "$sys/dev" "$dev"
mount -t tmpfs -o mode=555,size=4k,ro kmodhookd "$sys"
[ -z "$tmp" ] || mount -t tmpfs -o mode=1777,size=25%,nosuid,nodev kmodhookd "$tmp"
[ -z "$run" ] || mount -t tmpfs -o mode=555,size=4k,ro kmodhookd "$run"
mount -t proc -o nosuid,nodev,noexec proc "$proc"
status=0
"$@" || status=$?
exit $status
"""


def wrap(task: Task) -> list[str]:
    """The command that runs the task."""
    places = [str(task.root.prefix), *(str(task.root.resolve(inside)) for inside in ("/sys", "/dev", "/proc"))]
    writable = [path for pair in task.mounts() for path in pair]
    caged = [
        *("unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child"),
        *(() if task.network else ("--net",)),
        *("--", "/bin/sh", "-c", _CAGE, "kmodhookd-confine", *places, task.cover("/run"), task.cover("/tmp")),
        *(*writable, "--"),
        *(*lowered(task.limits), *task.dropped(), *task.begun()),
    ]
    return task.lent([*WITH_PARENT, *caged])


def obstacle(task: Task, timeout: float) -> str:
    """Why it does not work here; "" when it does. `task` is tried out."""
    result = run.run(wrap(task), timeout=timeout)
    return "" if result.ok else result.last_line
