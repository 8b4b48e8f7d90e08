# SPDX-License-Identifier: GPL-2.0-or-later
"""Where distributions differ: module directories, flavours, header packages, the command that installs a package.

One class per family. Which one a root is says os-release(5): its ID, then its ID_LIKE, in order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from kmodhookd.root import Root

PackageManager = Literal["dpkg", "pacman", "rpm", ""]

# What is before the flavour in a Debian release: an ABI number ("56", "0.deb11.7") or a pre-release ("rc2") …
ABI = re.compile(r"\d.*|rc\d+")
# … but these begin with a digit and are flavours.
NUMERIC_FLAVOURS = ("686", "4kc", "5kc")
DEBIAN_ARCHITECTURES = (
    r"(amd64|arm64|armmp|armmp-lpae|686|686-pae|powerpc64le|s390x|riscv64|loong64|rpi-v[678]l?|rpi-2712)"
)
# Releases that only a distribution gives: named even for a tree that no package owns any more.
DEBIAN_RELEASE = re.compile(rf"\d+\.\d+[\d.]*(\+(deb|rpt)[\w.~]*|-\d[\w.]*)-([a-z0-9]+-)*{DEBIAN_ARCHITECTURES}")
UBUNTU_RELEASE = re.compile(
    r"\d+\.\d+\.\d+-\d+-(generic|lowlatency|aws|azure|gcp|oracle|kvm|raspi|oem|realtime)(-64k)?"
)
RPM_RELEASE = re.compile(r"\S+-\S+\.(fc|el|amzn|azl|mga|oe)\d\S*\.[a-z]\w+(\+[\w-]+)?")
SUSE_RELEASE = re.compile(r"\d+\.\d+\.\d+-[\d.]+(\.g[0-9a-f]+)?-[a-z]\w*")


@dataclass(frozen=True)
class Family:
    """A distribution family. `addon_directory` is the administrator's own choice for all modules (dkms.8)."""

    addon_directory: str = ""

    name: ClassVar[str] = "other"
    package_manager: ClassVar[PackageManager] = ""
    directory: ClassVar[str] = ""  # below a kernel's tree; "" = as dkms.conf says

    def module_directory(self, dest_location: str) -> str:
        """Where DKMS puts modules on this family, below a kernel's tree, with a slash in front (dkms 3.4)."""
        return self.addon_directory or self.directory or "/" + dest_location.strip("/")

    def flavour(self, release: str, pkgbase: str = "", package: str = "") -> str:
        """The kind of kernel; "" when nothing tells. `package` is the one that owns the image."""
        return pkgbase.removeprefix("linux-") if pkgbase else release.partition("-")[2]

    def headers_package(self, release: str, flavour: str, pkgbase: str = "", package: str = "") -> str:
        """The package with the headers of exactly this kernel; "" for one that no package made."""
        return f"{pkgbase}-headers" if pkgbase else ""

    def install_command(self, package: str) -> str:
        """The command that installs a package; "" when there is no package manager that we know."""
        return ""

    def reinstall_command(self, package: str) -> str:
        """The command that puts a package's files in place again, or installs it."""
        return self.install_command(package)

    def package_locks(self) -> tuple[str, ...]:
        """Files that the package manager locks, or makes, while it is at work."""
        return ()

    def headers_remedy(self, release: str) -> str:
        """What to do for headers that are in no package."""
        return f"keep the tree it was built from, and point /usr/lib/modules/{release}/build at it"


class Other(Family):
    """No family that we know: dkms.conf's directories, no package names."""


class Debian(Family):
    """Debian, Ubuntu, Proxmox, Raspberry Pi OS, Armbian and their kin."""

    name = "debian"
    package_manager = "dpkg"
    directory = "/updates/dkms"

    def flavour(self, release: str, pkgbase: str = "", package: str = "") -> str:
        """`6.1.0-56-rt-amd64` → `rt-amd64`, `6.12.117+deb12-amd64` → `amd64`, `5.15.0-91-generic` → `generic`."""
        _, _, rest = release.partition("-")
        first, _, others = rest.partition("-")
        return others if ABI.fullmatch(first) and first not in NUMERIC_FLAVOURS else rest

    def headers_package(self, release: str, flavour: str, pkgbase: str = "", package: str = "") -> str:
        """After the image's package: its release is in the name everywhere but on Armbian."""
        if not package:
            known = DEBIAN_RELEASE.fullmatch(release) or UBUNTU_RELEASE.fullmatch(release)
            return f"linux-headers-{release}" if known else ""
        proxmox = re.match(r"(pve|proxmox)-kernel-", package)
        if proxmox:
            return f"{proxmox.group(1)}-headers-{release}"
        if release in package:
            return f"linux-headers-{release}"
        name = re.sub(r"^linux-image-(unsigned-)?", "linux-headers-", package)
        return name if name != package else ""

    def install_command(self, package: str) -> str:
        return f"apt install {package}"

    def reinstall_command(self, package: str) -> str:
        return f"apt install --reinstall {package}"

    def package_locks(self) -> tuple[str, ...]:
        return ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")


class Arch(Family):
    """Arch, Manjaro, CachyOS, EndeavourOS, SteamOS: the `pkgbase` file in the tree names the kernel."""

    name = "arch"
    package_manager = "pacman"
    directory = "/updates/dkms"

    def flavour(self, release: str, pkgbase: str = "", package: str = "") -> str:
        """`linux-lts` → `lts`; plain `linux` is `linux`."""
        return (pkgbase or package).removeprefix("linux-")

    def headers_package(self, release: str, flavour: str, pkgbase: str = "", package: str = "") -> str:
        base = pkgbase or package
        return f"{base}-headers" if base else ""

    def install_command(self, package: str) -> str:
        return f"pacman -S {package}"

    def package_locks(self) -> tuple[str, ...]:
        return ("/var/lib/pacman/db.lck",)


class _Rpm(Family):
    package_manager = "rpm"

    def package_locks(self) -> tuple[str, ...]:
        return ("/usr/lib/sysimage/rpm/.rpm.lock", "/var/lib/rpm/.rpm.lock")


class Fedora(_Rpm):
    """Fedora, RHEL and its kin: `kernel-core`, `kernel-debug-core`, `kernel-rt-core`, `kernel-ml`, …"""

    name = "fedora"
    directory = "/extra"

    def flavour(self, release: str, pkgbase: str = "", package: str = "") -> str:
        """`kernel-rt-core` → `rt`, a release that ends in `+debug` → `debug`; the plain kernel is `kernel`."""
        base = re.sub(r"(-(core|modules(-core|-extra|-internal)?))+$", "", package)
        variant = base.removeprefix("kernel").removeprefix("-")
        return variant or release.partition("+")[2] or "kernel"

    def headers_package(self, release: str, flavour: str, pkgbase: str = "", package: str = "") -> str:
        if not package and not RPM_RELEASE.fullmatch(release):
            return ""
        infix = "" if flavour in ("kernel", "") else f"{flavour}-"
        return f"kernel-{infix}devel-{release.partition('+')[0]}"

    def install_command(self, package: str) -> str:
        return f"dnf install {package}"


class Suse(_Rpm):
    """SLES and openSUSE: the last part of the release is the flavour."""

    name = "suse"
    directory = "/updates"

    def flavour(self, release: str, pkgbase: str = "", package: str = "") -> str:
        return release.rpartition("-")[2] if "-" in release else ""

    def headers_package(self, release: str, flavour: str, pkgbase: str = "", package: str = "") -> str:
        known = package or SUSE_RELEASE.fullmatch(release)
        return f"kernel-{flavour}-devel" if flavour and known else ""

    def install_command(self, package: str) -> str:
        return f"zypper install {package}"

    def reinstall_command(self, package: str) -> str:
        return f"zypper install --force {package}"


FAMILIES: tuple[tuple[str, type[Family]], ...] = (  # prefix of an os-release identifier → family, as DKMS has it
    ("ubuntu", Debian),
    ("debian", Debian),
    ("arch", Arch),
    ("fedora", Fedora),
    ("centos", Fedora),
    ("rhel", Fedora),
    ("sles", Suse),
    ("suse", Suse),
    ("opensuse", Suse),
)
DATABASES: tuple[tuple[str, type[Family]], ...] = (  # without an os-release, the package database says it
    ("/var/lib/dpkg/status", Debian),
    ("/var/lib/pacman/local", Arch),
)


def detect(root: Root) -> Family:
    """The family of a root."""
    addon = assignments(root, "/etc/sysconfig/module-init-tools").get("ADDON_MODULES_DIR", "").strip("/")
    addon_directory = f"/{addon}" if addon and ".." not in addon.split("/") else ""
    return _family(root)(addon_directory)


def stable_abi(root: Root) -> bool:
    """Whether the distribution promises that modules fit later kernels of a line (kABI): RHEL and its clones, SLE, Leap.

    Fedora and Tumbleweed do not, nor what is like RHEL in name and Fedora by its platform.
    """
    release = _os_release(root)
    name, like = release.get("ID", ""), release.get("ID_LIKE", "").split()
    platform = release.get("PLATFORM_ID", "platform:el")
    if name.startswith(("sle", "opensuse-leap")):
        return True
    return any(word in ("rhel", "centos") for word in (name, *like)) and platform.startswith("platform:el")


def dkms_name(root: Root) -> str:
    """What DKMS calls the distribution (dkms 3.4, `distro_version`): `ubuntu`, else ID_LIKE as it stands, else ID."""
    release = _os_release(root)
    name = release.get("ID", "")
    return name if name == "ubuntu" else release.get("ID_LIKE", "") or name


def _os_release(root: Root) -> Mapping[str, str]:
    return assignments(root, "/etc/os-release") or assignments(root, "/usr/lib/os-release")


def _family(root: Root) -> type[Family]:
    release = _os_release(root)
    for word in (release.get("ID", ""), *release.get("ID_LIKE", "").split()):
        for prefix, family in FAMILIES:
            if word.lower().startswith(prefix):
                return family
    if not release:
        for database, family in DATABASES:
            if root.resolve(database).exists():
                return family
    return Other


def assignments(root: Root, inside: str) -> Mapping[str, str]:
    """The `NAME=value` lines of a file in os-release(5)'s form; nothing when it cannot be read."""
    try:
        text = root.resolve(inside).read_bytes()[: 1 << 16].decode("utf-8", "replace")
    except OSError:
        return {}
    pairs = re.findall(r"""^\s*(\w+)=["']?([^"'\n]*?)["']?\s*$""", text, re.MULTILINE)
    return {key: value.strip() for key, value in pairs}
