# SPDX-License-Identifier: GPL-2.0-or-later
"""Transient units of the systemd that runs a root: whether there is one, and the command that starts a unit and waits."""

import os
import re
from collections.abc import Sequence

from kmodhookd.root import Root
from kmodhookd.run import Result

BOOTED = "/run/systemd/system"  # sd_booted(3)
UNAVAILABLE = re.compile(r"^Failed to (?:connect to bus|create bus|start transient service unit)", re.MULTILINE)


def serves(root: Root, first: str = "/proc/1/root/") -> bool:
    """Whether a systemd runs this very root. In a chroot with the host's /run (arch-chroot) its units are the host's."""
    return root.is_host and os.path.isdir(BOOTED) and not root.is_chroot(first)


def transient(argv: Sequence[str], properties: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command that runs `argv` in a transient unit of its own, with our descriptors 0 to 2, and waits for its end.

    `properties` are `NAME=VALUE` of systemd.exec(5) and its neighbours. systemd-run exits with the command's status.
    """
    settings = [f"--property={each}" for each in properties]
    # Within a unit's command line `$` begins a variable, also where it was given word by word (systemd.service(5)).
    words = [word.replace("$", "$$") for word in argv]
    return ["systemd-run", "--wait", "--pipe", "--collect", "--quiet", *options, *settings, "--", *words]


def refused(result: Result) -> bool:
    """Whether systemd-run could not do its part: no systemd-run, no connection, or no unit."""
    return result.status == 127 or (result.status == 1 and UNAVAILABLE.search(result.output) is not None)


def quoted(value: str) -> str:
    """A word of a property's list, whatever characters it has (systemd.syntax(7))."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'
