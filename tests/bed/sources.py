# SPDX-License-Identifier: GPL-2.0-or-later
"""Real module sources, out of Debian's `*-dkms` packages."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bed import apt
from bed.cache import BedError
from bed.kernels import obtain, unpacked

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

NEEDS = {"iptables-netflow-dkms": ("libc6-dev", "libxtables-dev", "pkg-config")}  # what a package's build asks for


def needs(packages: Iterable[str]) -> list[str]:
    """What the builds of these ask for beside a compiler and headers."""
    return [name for package in packages for name in NEEDS.get(package, ())]


def unpack(package: str) -> Path:
    """The directory NAME-VERSION (with dkms.conf) that a -dkms package puts into /usr/src. Never write to it."""
    found = [conf.parent for conf in (unpacked(package) / "usr/src").glob("*/dkms.conf")]
    if len(found) != 1:
        raise BedError(f"{package} has {len(found)} dkms.conf files in usr/src, one was expected")
    return found[0]


@dataclass(frozen=True)
class Offered:
    """Today's `*-dkms` packages: the source directories (NAME-VERSION, with dkms.conf), and what could not be had."""

    directories: dict[str, Path]
    missing: tuple[str, ...]


@cache
def offered() -> Offered:
    """Every package of the roots' archive that is named as one with a module's source and contains one."""
    from bed.roots import overlay

    with overlay("base", label="offered") as root:
        listed = root.run(["apt-cache", "pkgnames"]).stdout.split()
    names = sorted(name for name in listed if name.endswith("-dkms"))
    debs = obtain(*names)
    trees = {name: apt.unpack(deb, name) for name, deb in debs.items()}
    confs = {name: sorted((tree / "usr/src").glob("*/dkms.conf")) for name, tree in trees.items()}
    directories = {conf.parent.name: conf.parent for found in confs.values() for conf in found}
    return Offered(directories, tuple(name for name in names if name not in debs))
