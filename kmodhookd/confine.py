# SPDX-License-Identifier: GPL-2.0-or-later
"""Where other people's code runs: compilers, Makefiles, dkms.conf, build scripts.

`confine` turns a command into one that runs as the build user in the strongest cage that the place offers:

- `namespaces`: own mount, process, IPC and network namespaces; everything read-only but what is listed; private /tmp,
  /dev, /run, /sys; no capability left; bounded by resource limits; nothing of it survives its first process.
- `setuid`: the build user, no capability, resource limits, and no network where the kernel lets us take it away. That
  is what is left where mounting is not possible (a chroot that is not a mount, a container without CAP_SYS_ADMIN).
- `none`: we are not root, so everything runs as the caller, within resource limits.

Everything needed comes from util-linux and coreutils of the *calling* system; the served root lends its /bin/sh only.
"""

import functools
import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kmodhookd import run
from kmodhookd.root import Root

BUILD_USER = "kmodhookd-build"  # made by systemd-sysusers from systemd/sysusers.d
FALLBACK_UID = 64937  # in the range that systemd and Debian leave to allocators; the first free one downwards is taken
FORBIDDEN_UIDS = (0, 65534)  # root, and nobody: who owns what others could not map
PROBE_TIMEOUT = 20.0

Mechanism = Literal["namespaces", "setuid", "none"]

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
while read -r _ _ _ _ at _; do
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
_ENTER = 'cd -- "$1" && shift && exec "$@"'  # chroot(1) always starts in /


@dataclass(frozen=True)
class Limits:
    """What one confined command may use; 0 = no limit of ours. A limit that already holds is never raised."""

    processes: int = 4096  # of the build user at once, over all commands (RLIMIT_NPROC counts by user)
    file_size: int = 2 << 30  # bytes of one file
    cpu: int = 0  # seconds of one process
    memory: int = 0  # bytes of address space of one process
    files: int = 4096  # open files of one process
    nice: int = 0


def build_user(root: Root) -> tuple[int, int]:
    """Who builds in `root`: (uid, gid) of `kmodhookd-build` there, else a number that nobody there has."""
    users, groups = _accounts(root, "/etc/passwd"), _accounts(root, "/etc/group")
    for name, uid, gid in users:
        if name == BUILD_USER and uid not in FORBIDDEN_UIDS and gid not in FORBIDDEN_UIDS:
            return uid, gid
    taken = {number for _, uid, gid in users for number in (uid, gid)} | {gid for _, gid, _ in groups}
    free = next(number for number in range(FALLBACK_UID, 1000, -1) if number not in taken)
    return free, free


def _accounts(root: Root, file: str) -> list[tuple[str, int, int]]:
    """(name, third field, fourth field or 0) of each line of passwd(5) or group(5)."""
    try:
        lines = root.resolve(file).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        fields = line.decode("utf-8", "replace").split(":")
        if len(fields) >= 4 and fields[2].isdecimal():
            found.append((fields[0], int(fields[2]), int(fields[3]) if fields[3].isdecimal() else 0))
    return found


def mechanism(root: Root) -> Mechanism:
    """The strongest cage that works here for `root`; tried out once per process."""
    return _probe(str(root.prefix))[0]


def confine(
    argv: Sequence[str],
    *,
    root: Root,
    uid: int,
    gid: int,
    writable: Sequence[str] = (),
    cwd: str = "/",
    binds: Mapping[str, str] | None = None,
    network: bool = False,
    limits: Limits | None = None,
) -> list[str]:
    """The command that runs `argv` confined. Give it to `run.run` without `root` and `cwd`: it enters both by itself.

    `writable` (existing directories) and `cwd` are paths inside the root. /tmp and /run are private and empty, unless
    one of these lies there. `binds` (target → source, directories inside) shows a directory in another's place, writable,
    where the mechanism can mount. Inherited file descriptors pass through. Exit status: the command's, 128+N for signal N.
    """
    kind, isolates_network = _probe(str(root.prefix))
    inner = _lowered(limits or Limits())
    if kind == "none":
        return [*inner, "/bin/sh", "-c", _ENTER, "sh", cwd, *argv]
    inner += [*_dropped(root, uid, gid), "/bin/sh", "-c", _ENTER, "sh", cwd, *argv]
    if kind == "namespaces":
        return _caged(inner, root, {**{path: path for path in writable}, **(binds or {})}, cwd, network)
    return (["unshare", "--net", "--ipc"] if isolates_network and not network else []) + inner


def _caged(command: Sequence[str], root: Root, writable: Mapping[str, str], cwd: str, network: bool) -> list[str]:
    """`command` within namespaces and mounts of its own; `writable` says what is to be seen where."""
    pairs = [(str(root.resolve(source)), str(root.resolve(target))) for target, source in writable.items()]
    used = [*(path for pair in pairs for path in pair), str(root.resolve(cwd))]

    def cover(inside: str) -> str:
        """The directory to hide, unless something that is needed lies in it."""
        path = str(root.resolve(inside))
        needed = any(f"{use}/".startswith(f"{path}/") for use in used)
        return "" if needed or not os.path.isdir(path) else path

    places = [str(root.prefix), *(str(root.resolve(inside)) for inside in ("/sys", "/dev", "/proc"))]
    return [
        *("unshare", "--mount", "--ipc", "--pid", "--fork", "--kill-child"),
        *(() if network else ("--net",)),
        *("--", "/bin/sh", "-c", _CAGE, "kmodhookd-confine", *places, cover("/run"), cover("/tmp")),
        *(path for pair in pairs for path in pair),
        *("--", *command),
    ]


def _dropped(root: Root, uid: int, gid: int) -> list[str]:
    """Become the build user in the root, for good.

    chroot(1) changes root and user in one program, so the served root needs no setpriv of its own. The three
    capabilities that it needs stay in the bounding set only: nobody without privileges can gain them again.
    """
    kept = "--bounding-set=-all,+sys_chroot,+setuid,+setgid"
    return [
        *("setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", kept),
        *("chroot", f"--userspec=+{uid}:+{gid}", "--groups=", str(root.prefix)),
    ]


def _lowered(limits: Limits) -> list[str]:
    """Resource limits, none above what holds already (raising one may not be allowed to us)."""
    wanted = (
        ("nproc", resource.RLIMIT_NPROC, limits.processes),
        ("fsize", resource.RLIMIT_FSIZE, limits.file_size),
        ("cpu", resource.RLIMIT_CPU, limits.cpu),
        ("as", resource.RLIMIT_AS, limits.memory),
        ("nofile", resource.RLIMIT_NOFILE, limits.files),
    )
    options = ["--core=0:0"]
    for name, number, value in wanted:
        hard = resource.getrlimit(number)[1]
        if value:
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            options.append(f"--{name}={bound}:{bound}")
    return ["prlimit", *options, "--", *(("nice", "-n", str(limits.nice)) if limits.nice else ())]


@functools.cache  # what the machine allows does not change while we run
def _probe(prefix: str) -> tuple[Mechanism, bool]:
    """The mechanism for a root, and whether a network namespace can be had. Tried with `true` of that root."""
    if os.geteuid() != 0:
        return "none", False
    root = Root(prefix)
    uid, gid = build_user(root)
    inner = [*_lowered(Limits()), *_dropped(root, uid, gid), "/bin/sh", "-c", ":"]
    if run.run(_caged(inner, root, {}, "/", False), timeout=PROBE_TIMEOUT).ok:
        return "namespaces", True
    return "setuid", run.run(["unshare", "--net", "--ipc", "true"], timeout=PROBE_TIMEOUT).ok
