# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that need more rights than the daemon has: initramfs tools and the root scripts of dkms.conf.

On a machine that systemd runs they get a transient unit of their own, so that the daemon's sandbox does not apply to them
and need not be wide enough for them. In another root, or without systemd, they are started directly.
"""

from collections.abc import Mapping, Sequence

from kmodhookd import run, systemd
from kmodhookd.root import Root

RIGHTS = (
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_SETFCAP CAP_LINUX_IMMUTABLE "
    "CAP_SETUID CAP_SETGID CAP_SETPCAP CAP_KILL CAP_IPC_LOCK CAP_IPC_OWNER CAP_AUDIT_WRITE CAP_MAC_ADMIN "
    "CAP_MAC_OVERRIDE CAP_SYS_ADMIN CAP_SYS_CHROOT CAP_MKNOD CAP_SYS_MODULE CAP_SYS_RAWIO CAP_NET_ADMIN "
    "CAP_NET_RAW CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_PTRACE CAP_SYSLOG"
)
"""What such programs may do: files of any owner, mounts, devices, modules, other users; not the clock, the audit, BPF."""
_ENTER = 'cd -- "$1" && shift && exec "$@"'


def run_apart(
    root: Root,
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
) -> run.Result:
    """Run a program as root in the root, in a unit of its own where that is possible. `cwd` is inside the root."""
    if systemd.serves(root):
        options = [f"--setenv={name}={value}" for name, value in run.environment(env).items()]
        options.append(f"--working-directory={cwd}")
        properties = [
            f"RuntimeMaxSec={timeout:.0f}",
            f"CapabilityBoundingSet={RIGHTS}",
            "RestrictRealtime=yes",
        ]
        unit = systemd.transient(argv, properties, options)
        result = run.run(unit, timeout=timeout + 10)
        if not systemd.refused(result):
            return result
    return run.run(["/bin/sh", "-c", _ENTER, "sh", cwd, *argv], root=root, env=env, timeout=timeout)
