# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files in a kernel's tree are ours to replace or remove although no record of ours says so.

Real DKMS records nothing: a module is its own when DKMS's link for the kernel leads to a build, and the installed file
equals what that build holds.
"""

import os
from pathlib import Path

from kmodhookd.act import transaction
from kmodhookd.model import InstalledFile, Record
from kmodhookd.observe import decisions, modtree
from kmodhookd.observe.elf import module_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings


def installed(root: Root, settings: Settings, cell: decisions.Cell) -> list[InstalledFile]:
    """Files in the kernel's tree that equal what the active version (any) of the cell's module has in the DKMS tree.

    None when all that is on record for that version is there: what else equals it is a copy that somebody made. Links
    are DKMS's when they lead into its tree (`symlink_modules`); all others are somebody's own.
    """
    module, _, kernel, arch = cell
    link = f"{settings.dkms_tree}/{module}/kernel-{kernel}-{arch}"
    place = root.resolve(link, follow_last=False)
    if not place.is_symlink():
        return []
    record = decisions.record(root, (module, os.readlink(place).partition("/")[0], kernel, arch))
    if record is not None and record.files and all(transaction.is_ours(root, file) for file in record.files):
        return []
    stored = root.resolve(f"{link}/module")
    there = modtree.walk(root, f"{root.inside(modtree.top(root, settings))}/{kernel}")
    found = []
    for path in _modules(stored):
        content = transaction.checksum(path)
        for one in there.get(modtree.module_name(path.name), ()):
            is_way = not one.link or one.link.startswith(f"{root.inside(stored)}/")
            same_name = one.path.rpartition("/")[2] == path.name
            if is_way and same_name and transaction.is_file(root.resolve(one.path), content):
                found.append(InstalledFile(path=one.path, sha256=content))
    return found


def stored_content(root: Root, settings: Settings, cell: decisions.Cell) -> set[str]:
    """Checksums of every version's build of the cell's module for its kernel in the DKMS tree."""
    module, _, kernel, arch = cell
    directories = root.resolve(f"{settings.dkms_tree}/{module}").glob(f"*/{kernel}/{arch}/module")
    return {transaction.checksum(path) for directory in directories for path in _modules(directory)}


def other(root: Root, settings: Settings, cell: decisions.Cell, path: str, sha256: str) -> str:
    """Which other module, as MODULE/VERSION, has a file in the cell's kernel: by our records, or as DKMS tells; "" = none."""
    module, _, kernel, arch = cell
    for one in decisions.recorded_cells(root, "records"):
        record = decisions.record(root, one) if one[0] != module and one[2:] == (kernel, arch) else None
        if record is not None and any(file.path == path and file.sha256 == sha256 for file in record.files):
            return f"{one[0]}/{one[1]}"
    name = path.rpartition("/")[2]
    for link in sorted(root.resolve(settings.dkms_tree).glob(f"*/kernel-{kernel}-{arch}")):
        if link.parent.name != module and link.is_symlink():
            stored = root.resolve(f"{settings.dkms_tree}/{link.parent.name}/{link.name}/module/{name}")
            if transaction.is_file(stored, sha256):
                return f"{link.parent.name}/{os.readlink(link).partition('/')[0]}"
    return ""


def adopt(root: Root, settings: Settings, cell: decisions.Cell) -> None:
    """Record what real DKMS installed of a version, before its build in the DKMS tree is replaced by ours.

    Afterwards nothing would tell that the installed file is not somebody else's.
    """
    module, version, kernel, arch = cell
    link = root.resolve(f"{settings.dkms_tree}/{module}/kernel-{kernel}-{arch}", follow_last=False)
    if not (link.is_symlink() and os.readlink(link) == f"{version}/{kernel}/{arch}"):
        return
    record = decisions.record(root, cell)  # one without files is of a build of ours that real DKMS installed
    if record is not None and record.files:
        return
    files = installed(root, settings, cell)
    if files:
        names = {"module": module, "version": version, "kernel": kernel, "arch": arch, "fingerprint": ""}
        record = record or Record.model_validate(names)
        decisions.save_record(root, record.model_copy(update={"files": tuple(files)}))


def _modules(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return [path for path in sorted(directory.iterdir()) if module_name(path.name) and path.is_file()]
