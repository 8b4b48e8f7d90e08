# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels the archive offers today. ABIs leave it with point releases, so no test names one."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from bed import apt
from bed.cache import BedError, locked

SERIES = "6.1.0"


class Chroot(Protocol):
    """What can run a command in a root: an Overlay or a Machine."""

    def run(self, command: list[str], /) -> Any: ...


@dataclass(frozen=True)
class Kernel:
    """One kernel of the archive: `abi` 56, `flavour` `amd64`, `rt-amd64` or `cloud-amd64`, `release` as uname -r."""

    abi: int
    flavour: str

    @property
    def release(self) -> str:
        return f"{SERIES}-{self.abi}-{self.flavour}"

    @property
    def image(self) -> str:
        return f"linux-image-{self.release}"

    @property
    def headers(self) -> str:
        return f"linux-headers-{self.release}"

    @property
    def common(self) -> str:
        """The package with the part of the headers that flavours share."""
        realtime = "-rt" if self.flavour.startswith("rt-") else ""
        return f"linux-headers-{SERIES}-{self.abi}-common{realtime}"


@dataclass(frozen=True)
class Kernels:
    """The kernels of Debian's series, oldest ABI first, in the three flavours."""

    abis: tuple[int, ...]

    def of(self, abi: int, flavour: str = "amd64") -> Kernel:
        return Kernel(abi, flavour)

    @property
    def k1(self) -> Kernel:
        """The older of the two newest ABIs, common flavour."""
        return Kernel(self.abis[-2], "amd64")

    @property
    def k2(self) -> Kernel:
        """The newest ABI, common flavour."""
        return Kernel(self.abis[-1], "amd64")

    @property
    def k0(self) -> Kernel:
        """The ABI before k1, common flavour."""
        return Kernel(self.abis[-3], "amd64")

    @property
    def rt1(self) -> Kernel:
        return Kernel(self.abis[-2], "rt-amd64")

    @property
    def rt2(self) -> Kernel:
        return Kernel(self.abis[-1], "rt-amd64")

    @property
    def cloud1(self) -> Kernel:
        return Kernel(self.abis[-2], "cloud-amd64")

    @property
    def cloud2(self) -> Kernel:
        return Kernel(self.abis[-1], "cloud-amd64")

    def kbuild_packages(self) -> list[str]:
        """What all headers of the series need besides a compiler."""
        return [f"linux-kbuild-{SERIES.rsplit('.', 1)[0]}"]


def find_kernels(root: Chroot) -> Kernels:
    """The kernels that apt in this root can install: ABIs for which image and headers of every flavour exist."""
    names = set(root.run(["apt-cache", "pkgnames", "linux-"]).stdout.split())
    abis = sorted(int(m[1]) for name in names if (m := re.fullmatch(rf"linux-image-{SERIES}-(\d+)-amd64", name)))
    flavours = ("amd64", "rt-amd64", "cloud-amd64")
    complete = [a for a in abis if all({Kernel(a, f).image, Kernel(a, f).headers} <= names for f in flavours)]
    if len(complete) < 3:
        raise BedError(f"the archive offers {len(complete)} complete {SERIES} kernel ABIs, the tests need three")
    return Kernels(tuple(complete))


@cache
def kernels() -> Kernels:
    """The kernels of today's package lists."""
    from bed.roots import overlay

    with overlay("base", label="kernels") as root:
        return find_kernels(root)


def download(*packages: str) -> dict[str, Path]:
    """The .deb files of packages, in the store, downloaded where they are missing: name → file."""
    from bed.roots import overlay

    with locked("download"), overlay("base", label="download") as root:
        names = {name: _file_name(root, name) for name in packages}
        missing = [name for name, file in names.items() if not (apt.archives() / file).exists()]
        if missing:
            root.run(["sh", "-c", 'cd /var/cache/apt/archives && apt-get download "$@"', "sh", *missing])
            apt.harvest_archives(root.upper)
        return {name: apt.archives() / file for name, file in names.items()}


def unpacked(package: str) -> Path:
    """A package of the archive, unpacked in the cache (maintainer scripts not run). Copy from it, never write."""
    return apt.unpack(download(package)[package], package)


def _file_name(root: Chroot, package: str) -> str:
    """The name apt gives the .deb in its archives directory."""
    shown = root.run(["apt-cache", "show", "--no-all-versions", package]).stdout
    version = re.search(r"^Version: (\S+)$", shown, re.M)
    architecture = re.search(r"^Architecture: (\S+)$", shown, re.M)
    if not version or not architecture:
        raise BedError(f"the archive has no package {package}")
    return f"{package}_{version[1].replace(':', '%3a')}_{architecture[1]}.deb"
