# SPDX-License-Identifier: GPL-2.0-or-later
"""Who calls us: a package's own script, and whether it says that its package is being upgraded.

What a maintainer script is for stands in its arguments, which only its own command line has: it is looked for among our
ancestors, the nearest first. Package managers call them so:

    dpkg      /bin/sh /var/lib/dpkg/info/NAME.prerm upgrade 2.0-1     (deb-prerm(5) and its kin; debconf's frontend,
              /bin/sh /var/lib/dpkg/tmp.ci/prerm failed-upgrade 1.0-1  which starts the script again, has the same words)
    pacman    /usr/bin/bash -c '. /tmp/alpm_XXXXXX/.INSTALL; pre_upgrade 2.0-1 1.0-1'     (alpm-install-scripts(5))
              /bin/bash /usr/share/libalpm/scripts/dkms -D remove     of DKMS's 70-dkms-upgrade.hook
    rpm       /bin/sh /var/tmp/rpm-tmp.XXXXXX 1     how many of the package are left afterwards: 0 is a removal
"""

import os
import re
from collections.abc import Sequence

from kmodhookd import processes

DPKG = re.compile(r"(?:.*/info/[^/]+\.|.*/tmp\.ci/)(preinst|postinst|prerm|postrm)")
RPM = re.compile(r".*/rpm-tmp\.\w+")
PACMAN = re.compile(r"\. \S+; (pre|post)_(install|upgrade|remove)\b.*", re.DOTALL)
ALPM_SCRIPT = "/libalpm/scripts/dkms"
KERNEL_HOOK = re.compile(r".*/kernel/(?:[a-z_]+\.d/[^/]+|install\.d/[^/]+)|.*/kernel-install")

UPGRADES = frozenset(
    {("prerm", "upgrade"), ("prerm", "deconfigure"), ("prerm", "failed-upgrade"), ("preinst", "upgrade")}
    | {("postrm", "upgrade"), ("postrm", "failed-upgrade"), ("postrm", "disappear")}
)
"""Calls of a Debian package's scripts in which the package stays, or its successor is about to come."""


def upgrade() -> str:
    """What the maintainer script that called us said, when that is an upgrade; "" when it is not, or nobody called."""
    for pid in processes.ancestors(os.getpid()):
        words = processes.words(pid)
        verdict = of_upgrade(words)
        if verdict is not None:
            return " ".join(os.path.basename(word) for word in words[1:]) if verdict else ""
    return ""


def of_kernel_hook() -> bool:
    """Whether a hook of a kernel's package called us: what it takes away is nobody's decision."""
    called = (processes.words(pid) for pid in processes.ancestors(os.getpid()))
    return any(KERNEL_HOOK.fullmatch(word) for words in called for word in words[:3])


def of_upgrade(words: Sequence[str]) -> bool | None:
    """Whether this command line is a maintainer script's in an upgrade; None when it is no maintainer script's."""
    for at, word in enumerate(words):
        arguments = [*words[at + 1 :], "", ""]
        if match := DPKG.fullmatch(word):
            return _of_dpkg(match[1], arguments[0], arguments[1])
        if RPM.fullmatch(word):
            return arguments[0].isdecimal() and int(arguments[0]) > 0
        if word.endswith(ALPM_SCRIPT):
            return "remove" in arguments and "-D" in arguments
        if match := PACMAN.fullmatch(word):
            return match[2] == "upgrade"
    return None


def _of_dpkg(script: str, action: str, version: str) -> bool:
    """A `postinst configure` with a version is told the one that was configured last: it is an upgrade's."""
    return (script, action) in UPGRADES or (script == "postinst" and action == "configure" and bool(version))
