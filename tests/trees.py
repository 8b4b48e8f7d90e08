# SPDX-License-Identifier: GPL-2.0-or-later
"""Small made-up systems: a dict of what lies where becomes a directory that serves as a root."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from kmodhookd.root import Root


class Link(str):
    """A symbolic link with this target."""


# What a path holds: a text, bytes, a link, or None for an empty directory.
Content = str | bytes | Link | None


def make(base: Path, entries: Mapping[str, Content]) -> Root:
    """Make the entries (absolute paths inside) below `base`, with their parent directories. More may follow later."""
    for inside, content in entries.items():
        path = base / inside.strip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, Link):
            os.symlink(content, path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)
    return Root(base)


def kernel(release: str, *, image: bool = True, modules: str = "/usr/lib/modules") -> dict[str, Content]:
    """A kernel as Debian 12 installs it."""
    tree = f"{modules}/{release}"
    entries: dict[str, Content] = {
        f"{tree}/kernel/drivers/net/dummy.ko": b"",
        f"{tree}/modules.order": "kernel/drivers/net/dummy.ko\n",
        f"{tree}/modules.builtin": "",
    }
    return {**entries, f"/boot/vmlinuz-{release}": "image"} if image else entries


def image(version: str) -> bytes:
    """The beginning of a bzImage with this version text."""
    start = bytearray(0x4000)
    start[0x202:0x206] = b"HdrS"
    start[0x20E:0x210] = (0x3000 - 0x200).to_bytes(2, "little")
    text = version.encode() + b"\0"
    start[0x3000 : 0x3000 + len(text)] = text
    return bytes(start)


def headers(release: str, *, directory: str = "", modules: str = "/usr/lib/modules") -> dict[str, Content]:
    """A whole header tree for a release, of which `build` is a link to it."""
    place = directory or f"/usr/src/linux-headers-{release}"
    return {
        f"{modules}/{release}/build": Link(place),
        f"{place}/Makefile": "all:\n",
        f"{place}/Module.symvers": "0x12345678\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n",
        f"{place}/include/config/auto.conf": "CONFIG_X86_64=y\nCONFIG_MODVERSIONS=y\nCONFIG_MODULES=y\n",
        f"{place}/include/generated/utsrelease.h": f'#define UTS_RELEASE "{release}"\n',
    }


DEBIAN: dict[str, Content] = {"/etc/os-release": "ID=debian\n", "/var/lib/dpkg/status": "\n"}
ARCH: dict[str, Content] = {"/etc/os-release": "ID=arch\n", "/var/lib/pacman/local": None}
FEDORA: dict[str, Content] = {"/etc/os-release": "ID=fedora\n"}
SUSE: dict[str, Content] = {"/etc/os-release": 'ID="opensuse-leap"\nID_LIKE="suse opensuse"\n'}


def dpkg_package(name: str, *files: str) -> dict[str, Content]:
    """The file list of a package; its stanza comes from `dpkg_status`."""
    directories = {str(parent) for file in files for parent in Path(file).parents} - {"/"}
    listing = "".join(f"{path}\n" for path in ["/.", *sorted({*directories, *files})])
    return {f"/var/lib/dpkg/info/{name}.list": listing}


def dpkg_status(packages: Mapping[str, str]) -> dict[str, Content]:
    """The status file: package → `want flag state`."""
    return {"/var/lib/dpkg/status": "\n".join(dpkg_stanza(*pair) for pair in packages.items())}


def dpkg_stanza(name: str, status: str, arch: str = "amd64") -> str:
    return f"Package: {name}\nStatus: {status}\nPriority: optional\nArchitecture: {arch}\nVersion: 1\n"


def pacman_package(name: str, version: str, *files: str) -> dict[str, Content]:
    """A package's entry in the local database."""
    entry = f"/var/lib/pacman/local/{name}-{version}"
    relative = [file.lstrip("/") for file in files]
    directories = {f"{parent}/" for file in relative for parent in Path(file).parents} - {"./"}
    listing = "".join(f"{path}\n" for path in sorted({*directories, *relative}))
    return {f"{entry}/desc": f"%NAME%\n{name}\n\n%VERSION%\n{version}\n", f"{entry}/files": f"%FILES%\n{listing}\n"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the build user can read, in a root that has Bash: this machine."""
    path = Path(tempfile.mkdtemp(prefix="kmodhookd-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)
