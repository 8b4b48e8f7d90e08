# SPDX-License-Identifier: GPL-2.0-or-later
"""Real module sources, out of Debian's `*-dkms` packages."""

from pathlib import Path

from bed.cache import BedError
from bed.kernels import unpacked

# The twelve that build on 6.1 and cover most of dkms.conf (2 to 24 modules each).
TWELVE = (
    "acpi-call-dkms",
    "bbswitch-dkms",
    "ddcci-dkms",
    "digimend-dkms",
    "dm-writeboost-dkms",
    "evdi-dkms",
    "iptables-netflow-dkms",
    "jool-dkms",
    "lime-forensics-dkms",
    "tp-smapi-dkms",
    "v4l2loopback-dkms",
    "xtables-addons-dkms",
)


def unpack(package: str) -> Path:
    """The directory NAME-VERSION (with dkms.conf) that a -dkms package puts into /usr/src. Never write to it."""
    found = [conf.parent for conf in (unpacked(package) / "usr/src").glob("*/dkms.conf")]
    if len(found) != 1:
        raise BedError(f"{package} has {len(found)} dkms.conf files in usr/src, one was expected")
    return found[0]
