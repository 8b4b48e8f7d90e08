# SPDX-License-Identifier: GPL-2.0-or-later
"""pacman packages in Arch's layout, made from Debian's kernels and headers, and a local repository for them.

    linux           usr/lib/modules/RELEASE/{kernel/,vmlinuz,pkgbase,modules.order,modules.builtin,…}
    linux-headers   usr/lib/modules/RELEASE/build/, a real directory that needs nothing outside itself

The module tree is cut down to what the tests' modules link against (TRIMMED), so that a transaction takes seconds.
"""

import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from bed.cache import cache_dir, discard, locked, scratch
from bed.kernels import Chroot, Kernel, unpacked
from bed.roots import digest
from bed.shell import run, words

TRIMMED = words(
    "sound drivers/net drivers/infiniband drivers/scsi drivers/iio drivers/staging drivers/usb drivers/isdn drivers/ata"
    " drivers/media/usb drivers/media/pci drivers/media/tuners drivers/media/dvb-frontends drivers/media/i2c"
    " drivers/media/radio drivers/gpu/drm drivers/mfd drivers/hid drivers/target drivers/mtd drivers/misc"
    " drivers/comedi net/bluetooth net/mac80211 net/sctp net/tipc net/batman-adv net/rxrpc net/ceph fs/ceph fs/xfs"
    " fs/ocfs2 fs/gfs2 fs/btrfs fs/cifs fs/nfs fs/nfsd fs/f2fs fs/ntfs3 fs/afs fs/orangefs"
)


class PacmanRoot(Chroot, Protocol):
    """A root with pacman: an Overlay or a Machine over `pacman`."""

    def path(self, inside: str) -> Path: ...


def publish(root: PacmanRoot, *packages: Path) -> None:
    """Put packages into the root's repository and refresh pacman's view of it: then `pacman -S NAME`, `pacman -Su`."""
    names = []
    for package in packages:
        name = package.name.partition("@")[2]
        shutil.copyfile(package, root.path(f"/srv/repo/{name}"))
        names.append(name)
    root.run(["sh", "-c", 'cd /srv/repo && repo-add -q bed.db.tar "$@" && pacman -Sy', "sh", *names])


def kernel_package(pkgbase: str, kernel: Kernel, version: str = "") -> Path:
    """The package `pkgbase` (`linux`, `linux-lts`, …) that installs this kernel; version defaults to `6.1.ABI-1`."""
    return make_package(
        pkgbase, version or default_version(kernel), lambda tree: _fill_image(tree, pkgbase, kernel), key=kernel.release
    )


def headers_package(pkgbase: str, kernel: Kernel, version: str = "") -> Path:
    """The package `pkgbase-headers` of this kernel."""
    return make_package(
        f"{pkgbase}-headers",
        version or default_version(kernel),
        lambda tree: _fill_headers(tree, kernel),
        key=kernel.release,
    )


def default_version(kernel: Kernel) -> str:
    """A package version that grows with the ABI."""
    return f"6.1.{kernel.abi}-1"


def make_package(
    name: str,
    version: str,
    fill: Callable[[Path], None],
    *,
    depends: Sequence[str] = (),
    scriptlet: str = "",
    key: str = "",
) -> Path:
    """A package NAME-VERSION (with pkgrel: `6.1.56-1`) of what `fill` puts into a directory, all owned by root.

    With a `key`, made in the cache once per name, version, key and text of this module. Publish it to use it.
    """
    code = digest(inspect.getsource(sys.modules[__name__]), key, *depends, scriptlet)
    target = cache_dir() / "pacman" / f"{code}@{name}-{version}-x86_64.pkg.tar"
    with locked(f"pacman-{name}"):
        if key and target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        tree = scratch(f"pacman-{name}")
        try:
            fill(tree)
            _write_metadata(tree, name, version, depends, scriptlet)
            _pack(tree, target)
        finally:
            discard(tree)
    return target


def _write_metadata(tree: Path, name: str, version: str, depends: Sequence[str], scriptlet: str) -> None:
    size = sum(file.lstat().st_size for file in tree.rglob("*") if file.is_file())
    lines = [f"pkgname = {name}", f"pkgbase = {name}", f"pkgver = {version}", f"pkgdesc = {name}", "packager = bed"]
    lines += [f"size = {size}", "builddate = 1700000000", "arch = x86_64", "license = GPL", "url = none"]
    lines += [f"depend = {other}" for other in depends]
    (tree / ".PKGINFO").write_text("\n".join([*lines, ""]))
    if scriptlet:
        (tree / ".INSTALL").write_text(scriptlet)


def _pack(tree: Path, target: Path) -> None:
    owner = ["--uid", "0", "--gid", "0", "--uname", "root", "--gname", "root"]
    partial = target.with_suffix(".partial")
    run(["bsdtar", *owner, "-C", tree, "-cf", partial, *sorted(path.name for path in tree.iterdir())])
    partial.rename(target)


def _fill_image(tree: Path, pkgbase: str, kernel: Kernel) -> None:
    """Debian's image, moved to where Arch has it."""
    image = unpacked(kernel.image)
    modules = tree / "usr/lib/modules" / kernel.release
    modules.parent.mkdir(parents=True)
    run(["cp", "-a", image / "lib/modules" / kernel.release, modules])
    for part in TRIMMED:
        shutil.rmtree(modules / "kernel" / part, ignore_errors=True)
    order = modules / "modules.order"
    kept = [line for line in order.read_text().splitlines() if (modules / line).exists()]
    order.write_text("\n".join([*kept, ""]))
    shutil.copyfile(image / "boot" / f"vmlinuz-{kernel.release}", modules / "vmlinuz")
    (modules / "pkgbase").write_text(f"{pkgbase}\n")


def _fill_headers(tree: Path, kernel: Kernel) -> None:
    """Debian's three parts (common, flavour, kbuild) joined to one tree with a Makefile of its own."""
    build = tree / "usr/lib/modules" / kernel.release / "build"
    (build / "arch").mkdir(parents=True)
    common = unpacked(kernel.common) / "usr/src" / kernel.common
    flavour = unpacked(kernel.headers) / "usr/src" / kernel.headers
    kbuild = unpacked("linux-kbuild-6.1") / "usr/lib/linux-kbuild-6.1"
    for source in (common / "include", common / "Makefile", kbuild / "scripts", kbuild / "tools"):
        run(["cp", "-a", source, build])
    run(["cp", "-a", common / "arch/x86", build / "arch"])
    shutil.rmtree(build / "include/dt-bindings", ignore_errors=True)
    for source in (flavour / "include", flavour / "arch"):
        run(["cp", "-a", source, build])
    for name in (".config", ".kernelvariables", "Module.symvers"):
        shutil.copyfile(flavour / name, build / name)
