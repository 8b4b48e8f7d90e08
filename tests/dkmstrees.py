# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions in a made-up DKMS tree, as real DKMS leaves them."""

import trees

CONF = 'PACKAGE_NAME="{0}"\nPACKAGE_VERSION="{1}"\nBUILT_MODULE_NAME[0]="{0}"\nDEST_MODULE_LOCATION[0]="/updates"\n'
TREE = "/var/lib/dkms"


def version(module: str, number: str = "1.0", conf: str = "") -> dict[str, trees.Content]:
    """A version that is added."""
    source = f"/usr/src/{module}-{number}"
    text = CONF.format(module, number) + conf
    return {f"{source}/dkms.conf": text, f"{TREE}/{module}/{number}/source": trees.Link(source)}


def built(module: str, kernel: str, *names: str, number: str = "1.0") -> dict[str, trees.Content]:
    """… and built for a kernel."""
    place = f"{TREE}/{module}/{number}/{kernel}/x86_64"
    return {f"{place}/module/{name}.ko": f"{name} for {kernel}" for name in names or (module,)}


def installed(module: str, kernel: str, *names: str, number: str = "1.0", text: str = "") -> dict[str, trees.Content]:
    """… and installed there, as on Debian."""
    entries: dict[str, trees.Content] = {
        f"/usr/lib/modules/{kernel}/updates/dkms/{name}.ko": text or f"{name} for {kernel}"
        for name in names or (module,)
    }
    link = trees.Link(f"{number}/{kernel}/x86_64")
    return {**built(module, kernel, *names, number=number), f"{TREE}/{module}/kernel-{kernel}-x86_64": link, **entries}
