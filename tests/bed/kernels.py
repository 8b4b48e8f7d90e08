# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernels the archive offers today. ABIs leave it with point releases, so no test names one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from bed import apt
from bed.cache import BedError, locked
from bed.shell import CommandFailed, run

SERIES = "6.1.0"
BACKPORTS = "6.12"
FLAVOURS = ("amd64", "rt-amd64", "cloud-amd64")


class Chroot(Protocol):
    """What can run a command in a root, and has one: an Overlay or a Machine."""

    def run(self, command: list[str], /) -> Any: ...

    def path(self, inside: str, /) -> Path: ...


@dataclass(frozen=True)
class Kernel:
    """One kernel of the archive: `abi` 56, `flavour` `amd64`, `rt-amd64` or `cloud-amd64`, `release` as uname -r."""

    abi: int
    flavour: str

    @property
    def stem(self) -> str:
        """The release without its flavour."""
        return f"{SERIES}-{self.abi}"

    @property
    def release(self) -> str:
        return f"{self.stem}-{self.flavour}"

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
        return f"linux-headers-{self.stem}-common{realtime}"


@dataclass(frozen=True)
class Backport(Kernel):
    """A kernel of a later Debian, built for this one: `abi` 117 of 6.12.117. Each has a kbuild package of its own."""

    @property
    def stem(self) -> str:
        return f"{BACKPORTS}.{self.abi}+deb12"

    @property
    def kbuild(self) -> str:
        return f"linux-kbuild-{self.stem}"


@dataclass(frozen=True)
class Kernels:
    """The kernels of Debian's series, oldest ABI first, in the three flavours."""

    abis: tuple[int, ...]
    backports: tuple[int, ...] = ()
    common: str = "amd64"  # the flavour of k0, k1 and k2

    @property
    def small(self) -> "Kernels":
        """The same with a common flavour of a quarter of the modules, for what does not ask for another."""
        return replace(self, common="cloud-amd64")

    @property
    def alone(self) -> tuple[Kernel, ...]:
        """The newest ABI's other flavours."""
        return tuple(Kernel(self.abis[-1], other) for other in FLAVOURS if other != self.common)

    def of(self, abi: int, flavour: str = "amd64") -> Kernel:
        return Kernel(abi, flavour)

    @property
    def k1(self) -> Kernel:
        """The older of the two newest ABIs, common flavour."""
        return Kernel(self.abis[-2], self.common)

    @property
    def k2(self) -> Kernel:
        """The newest ABI, common flavour."""
        return Kernel(self.abis[-1], self.common)

    @property
    def k0(self) -> Kernel:
        """The ABI before k1, common flavour."""
        return Kernel(self.abis[-3], self.common)

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

    @property
    def backport(self) -> Backport:
        """The newest of a later series."""
        if not self.backports:
            raise BedError(f"the archive offers no {BACKPORTS} kernel with image and headers")
        return Backport(self.backports[-1], "amd64")

    def kbuild_packages(self) -> list[str]:
        """What all headers of the series need besides a compiler."""
        return [f"linux-kbuild-{SERIES.rsplit('.', 1)[0]}"]


def find_kernels(root: Chroot) -> Kernels:
    """The kernels that apt in this root can install: ABIs for which image and headers of every flavour exist."""
    names = set(root.run(["apt-cache", "pkgnames", "linux-"]).stdout.split())
    abis = sorted(int(m[1]) for name in names if (m := re.fullmatch(rf"linux-image-{SERIES}-(\d+)-amd64", name)))
    complete = [a for a in abis if all({Kernel(a, f).image, Kernel(a, f).headers} <= names for f in FLAVOURS)]
    if len(complete) < 3:
        raise BedError(f"the archive offers {len(complete)} complete {SERIES} kernel ABIs, the tests need three")
    later = sorted(
        int(m[1]) for name in names if (m := re.fullmatch(rf"linux-image-{BACKPORTS}\.(\d+)\+deb12-amd64", name))
    )
    backports = [Backport(number, "amd64") for number in later]
    return Kernels(tuple(complete), tuple(k.abi for k in backports if {k.headers, k.common, k.kbuild} <= names))


@cache
def kernels() -> Kernels:
    """The kernels of today's package lists."""
    from bed.roots import overlay

    with overlay("base", label="kernels") as root:
        return find_kernels(root)


def download(*packages: str, base: str = "base") -> dict[str, Path]:
    """The .deb files of packages, in the store, downloaded where they are missing: name → file.

    `base` is the root whose release they are of. Raises BedError naming those that its archive does not have or give.
    """
    found = obtain(*packages, base=base)
    if missing := [name for name in packages if name not in found]:
        raise BedError(f"not to be had from the archive: {', '.join(missing)}")
    return found


def obtain(*packages: str, base: str = "base") -> dict[str, Path]:
    """As `download`, without those that cannot be had."""
    from bed.roots import overlay

    with locked("download"), overlay(base, label="download") as root:
        names = _file_names(root, packages)
        missing = [name for name, file in names.items() if not (apt.archives() / file).exists()]
        fetch = 'cd /var/cache/apt/archives && apt-get download "$@"'
        if missing:
            try:
                root.run(["sh", "-c", fetch, "sh", *missing])
            except CommandFailed:  # one that cannot be had keeps the others away
                for name in missing:
                    root.run(["sh", "-c", fetch, "sh", name], check=False)
            apt.harvest_archives(root.upper)
        files = {name: apt.archives() / file for name, file in names.items()}
        return {name: file for name, file in files.items() if file.exists()}


def unpacked(package: str, base: str = "base") -> Path:
    """A package of the archive, unpacked in the cache (maintainer scripts not run). Copy from it, never write."""
    return apt.unpack(download(package, base=base)[package], package)


def _file_names(root: Chroot, packages: Sequence[str]) -> dict[str, str]:
    """Package → the name apt gives its .deb in the archives directory, for those that the archive has."""
    shown = root.run(["sh", "-c", 'apt-cache show --no-all-versions "$@" || :', "sh", *packages]).stdout
    names = {}
    for stanza in shown.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version|Architecture): (\S+)$", stanza, re.M))
        if len(fields) == 3:
            version = fields["Version"].replace(":", "%3a")
            names[fields["Package"]] = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
    return names


def put(root: Chroot, kernel: Kernel) -> None:
    """A kernel and its headers in a root's trees, out of the packages, without the package manager knowing."""
    _copy(root, kernel.image)
    put_headers(root, kernel)
    root.run(["depmod", kernel.release])


def put_headers(root: Chroot, kernel: Kernel) -> None:
    """A kernel's headers alone, in the same way."""
    for package in (kernel.headers, kernel.common):
        _copy(root, package)


def _copy(root: Chroot, package: str) -> None:
    tree = unpacked(package)
    for part in ("lib/modules", "usr/lib/modules", "usr/src", "boot"):
        if (tree / part).is_dir():
            target = root.path("/usr/lib/modules" if part == "lib/modules" else f"/{part}")
            run(["cp", "-a", "--no-preserve=ownership", f"{tree / part}/.", target])
