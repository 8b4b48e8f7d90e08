# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that need more rights than the daemon has: initramfs tools and the root scripts of dkms.conf.

On a machine that systemd runs they get a transient unit of their own, so that the daemon's sandbox does not apply to them
and need not be wide enough for them. In another root, or without systemd, they are started directly.
"""

import os
import re
from collections.abc import Mapping, Sequence

from kmodhookd import run
from kmodhookd.root import Root

SYSTEMD = "/run/systemd/system"  # sd_booted(3)
UNAVAILABLE = re.compile(r"^Failed to (?:connect to bus|create bus|start transient service unit)", re.MULTILINE)
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
    if root.is_host and _systemd_serves(root):
        variables = [f"--setenv={name}={value}" for name, value in run.environment(env).items()]
        limits = [f"--property=RuntimeMaxSec={timeout:.0f}", f"--working-directory={cwd}"]
        unit = ["systemd-run", "--wait", "--pipe", "--collect", "--quiet", *limits, *variables, "--", *argv]
        result = run.run(unit, timeout=timeout + 10)
        if result.status != 127 and not UNAVAILABLE.search(result.output):
            return result
    return run.run(["/bin/sh", "-c", _ENTER, "sh", cwd, *argv], root=root, env=env, timeout=timeout)


def _systemd_serves(root: Root, first: str = "/proc/1/root/") -> bool:
    """Whether a systemd runs this very root. In a chroot with the host's /run (arch-chroot) its units are the host's."""
    return os.path.isdir(SYSTEMD) and not root.is_chroot(first)
