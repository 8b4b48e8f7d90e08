# SPDX-License-Identifier: GPL-2.0-or-later
"""The initramfs of a kernel whose modules came too late for it: made again, once, when it holds or should hold one.

Whether it does is read from its listing and from the lists that people give the tools that make it.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from kmodhookd.act.toolchain import which
from kmodhookd.act.unit import run_apart
from kmodhookd.errors import Fault
from kmodhookd.model import Kernel
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import module_name
from kmodhookd.observe.families import Family
from kmodhookd.root import Root
from kmodhookd.run import run

TIMEOUT = 900.0
LISTING_TIMEOUT = 120.0
LISTERS = ("lsinitramfs", "lsinitcpio", "lsinitrd")  # of initramfs-tools, mkinitcpio, dracut
CONFIGURED = (  # where people name modules, and how
    ("/etc/initramfs-tools/modules", r"^\s*([\w-]+)"),
    ("/etc/mkinitcpio.conf", r"^\s*MODULES\+?=[(\"']([^)\"']*)"),
    ("/etc/mkinitcpio.conf.d/*.conf", r"^\s*MODULES\+?=[(\"']([^)\"']*)"),
    ("/etc/dracut.conf", r"^\s*(?:add_drivers|force_drivers)\+?=[\"']?([^\"'\n]*)"),
    ("/etc/dracut.conf.d/*.conf", r"^\s*(?:add_drivers|force_drivers)\+?=[\"']?([^\"'\n]*)"),
    ("/usr/lib/dracut/dracut.conf.d/*.conf", r"^\s*(?:add_drivers|force_drivers)\+?=[\"']?([^\"'\n]*)"),
)


def due(root: Root, family: Family, kernel: Kernel) -> bool:
    """Whether a kernel's initramfs is older than a module of ours that it holds or should hold."""
    installed = _installed(root, kernel.release)
    stale = [image for image in images(root, kernel) if image.stat().st_mtime < max(installed.values(), default=0.0)]
    if not stale:
        return False
    if configured(root) & installed.keys():
        return True
    return any(not held or held & installed.keys() for held in (_held(root, image) for image in stale))


def remake(root: Root, family: Family, kernel: Kernel) -> None:
    """Make it again with the tool that makes it on this system. A `Fault` when that fails."""
    command = _command(root, kernel)
    if not command:
        raise Fault("no tool that makes an initramfs was found", where=kernel.release, hint="make it again by hand")
    before = {image: image.stat().st_mtime_ns for image in images(root, kernel)}
    result = run_apart(root, command, timeout=TIMEOUT)
    hint = f"run '{' '.join(command)}'"
    if not result.ok:
        last = (result.output.strip().splitlines() or [""])[-1]
        raise Fault(f"its initramfs could not be made: {result.sentence()}: {last}", where=kernel.release, hint=hint)
    if before and not any(path.exists() and path.stat().st_mtime_ns != was for path, was in before.items()):
        raise Fault("its initramfs is still the old one", where=kernel.release, hint=hint)


def images(root: Root, kernel: Kernel) -> list[Path]:
    """The initramfs files of a kernel, unified kernel images included, newest convention last."""
    release, base = kernel.release, _pkgbase(root, kernel)
    names = [f"/boot/initrd.img-{release}", f"/boot/initramfs-{release}.img", f"/boot/initrd-{release}"]
    names += [f"/boot/initramfs-{base}.img"] if base else []
    for esp in ("/boot", "/efi", "/boot/efi"):
        names += [f"{esp}/*/{release}/initrd*", f"{esp}/EFI/Linux/*{release}*.efi"]
        names += [f"{esp}/EFI/Linux/*-{base}.efi"] if base else []
    found = dict.fromkeys(path for name in names for path in _glob(root, name))
    return [path for path in found if path.is_file()]


def configured(root: Root) -> set[str]:
    """Modules that people want in every initramfs, by name with underscores."""
    names: set[str] = set()
    for place, pattern in CONFIGURED:
        for path in _glob(root, place):
            with contextlib.suppress(OSError):
                for match in re.finditer(pattern, path.read_text("utf-8", "replace"), re.MULTILINE):
                    names |= {_canonical(word) for word in match[1].split()}
    return names


def _installed(root: Root, release: str) -> dict[str, float]:
    """Our modules in a kernel's tree: name → when it was put there (POSIX seconds)."""
    found: dict[str, float] = {}
    for cell in decisions.recorded_cells(root, "records"):
        record = decisions.record(root, cell) if cell[2] == release else None
        for file in record.files if record else ():
            with contextlib.suppress(OSError):
                found[_canonical(module_name(file.path))] = root.resolve(file.path).stat().st_mtime
    return found


def _held(root: Root, image: Path) -> set[str]:
    """The modules in an initramfs; empty when it cannot be listed, and then it had better be made again."""
    for lister in LISTERS:
        if not which(root, lister):
            continue
        result = run([lister, root.inside(image)], root=root, timeout=LISTING_TIMEOUT)
        if result.ok:
            lines = result.output.splitlines()
            return {_canonical(name) for line in lines if (name := module_name(line.strip().rpartition(" ")[2]))}
    return set()


def _command(root: Root, kernel: Kernel) -> list[str]:
    """dracut on Debian brings its own update-initramfs, so that comes first."""
    base = _pkgbase(root, kernel)
    if which(root, "update-initramfs"):
        return ["update-initramfs", "-u", "-k", kernel.release]
    if which(root, "mkinitcpio") and base and root.resolve(f"/etc/mkinitcpio.d/{base}.preset").is_file():
        return ["mkinitcpio", "-p", base]
    if which(root, "dracut"):
        target = [root.inside(image) for image in images(root, kernel)][:1]
        return ["dracut", "-f", "--kver", kernel.release, *target]
    return []


def _pkgbase(root: Root, kernel: Kernel) -> str:
    """Arch's name of the kernel's package."""
    try:
        return root.resolve(f"{kernel.tree}/pkgbase").read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _glob(root: Root, pattern: str) -> Iterator[Path]:
    fixed = pattern[: pattern.index("*")].rpartition("/")[0] if "*" in pattern else ""
    if not fixed:
        path = root.resolve(pattern)
        yield from [path] if os.path.exists(path) else []
        return
    yield from sorted(root.resolve(fixed).glob(pattern.removeprefix(f"{fixed}/")))


def _canonical(name: str) -> str:
    return name.replace("-", "_").removesuffix(".ko")
