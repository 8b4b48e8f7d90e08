# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that need more rights than the daemon has: initramfs tools and the root scripts of dkms.conf.

On a machine that systemd runs they get a transient unit of their own, so that the daemon's sandbox does not apply to them
and need not be wide enough for them. In another root, or without systemd, they are started directly.
"""

from collections.abc import Mapping, Sequence

from kmodhookd import run, systemd
from kmodhookd.root import Root

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
        unit = systemd.transient(argv, [f"RuntimeMaxSec={timeout:.0f}"], options)
        result = run.run(unit, timeout=timeout + 10)
        if not systemd.refused(result):
            return result
    return run.run(["/bin/sh", "-c", _ENTER, "sh", cwd, *argv], root=root, env=env, timeout=timeout)
