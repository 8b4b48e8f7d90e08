# SPDX-License-Identifier: GPL-2.0-or-later
"""Two kernels that differ in nothing but their name: a pair of the archive, or one that is made out of real files."""

import hashlib
import shutil
from pathlib import Path

from bed import kernels as archive
from bed.kernels import Kernels
from bed.overlay import Overlay

TREES = "/usr/lib/modules"
KEPT = ("modules.builtin", "modules.builtin.modinfo", "modules.order")


def pair(overlay: Overlay, kernels: Kernels) -> tuple[str, str]:
    """An older and a newer release, both in the root, whose `Module.symvers` are equal.

    The two newest of the archive if they are (they are in the root already), else any two that it offers, else a copy.
    """
    symvers = _symvers(_headers(overlay, kernels.k2.release))
    for abi in reversed(kernels.abis[:-1]):
        older = kernels.of(abi)
        if older == kernels.k1:
            there = _headers(overlay, older.release)
        else:
            there = archive.unpacked(older.headers) / f"usr/src/linux-headers-{older.release}"
        if _symvers(there) == symvers:
            if older != kernels.k1:
                archive.put(overlay, older)
            return older.release, kernels.k2.release
    return kernels.k2.release, copy(overlay, kernels.k2.release, "6.1.0-999-amd64")


def copy(overlay: Overlay, release: str, name: str) -> str:
    """A kernel of another name made of the files of one: its headers with that name in them, one module, an image."""
    headers = _headers(overlay, name)
    shutil.copytree(_headers(overlay, release), headers, symlinks=True)
    for path in [path for path in headers.rglob("*") if path.is_file() and not path.is_symlink()]:
        content = path.read_bytes()
        if release.encode() in content and b"\0" not in content:
            path.write_bytes(content.replace(release.encode(), name.encode()))
    tree, of = overlay.path(f"{TREES}/{name}"), overlay.path(f"{TREES}/{release}")
    own = next(iter(sorted((of / "kernel").rglob("*.ko*"))))
    (tree / own.relative_to(of)).parent.mkdir(parents=True)
    shutil.copyfile(own, tree / own.relative_to(of))
    for file in KEPT:
        shutil.copyfile(of / file, tree / file)
    (tree / "build").symlink_to(f"/usr/src/{headers.name}")
    overlay.path(f"/boot/vmlinuz-{name}").write_bytes(b"")
    overlay.run(["depmod", name])
    return name


def hide(overlay: Overlay, release: str) -> Path:
    """A kernel that is not installed yet: its tree is set aside; where it is now."""
    tree = overlay.path(f"{TREES}/{release}")
    aside = overlay.path(f"/root/{release}")
    tree.rename(aside)
    return aside


def show(overlay: Overlay, release: str) -> None:
    """… and is installed."""
    overlay.path(f"/root/{release}").rename(overlay.path(f"{TREES}/{release}"))


def _headers(overlay: Overlay, release: str) -> Path:
    return overlay.path(f"/usr/src/linux-headers-{release}")


def _symvers(headers: Path) -> str:
    return hashlib.sha256((headers / "Module.symvers").read_bytes()).hexdigest()
