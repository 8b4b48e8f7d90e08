# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree as its own tools keep it: which versions are known, and what of them is built (dkms 3.x).

TREE/MODULE/VERSION/source -> /usr/src/MODULE-VERSION
TREE/MODULE/VERSION/build/
TREE/MODULE/VERSION/KERNEL/ARCH/{module,log}/
TREE/MODULE/kernel-KERNEL-ARCH -> VERSION/KERNEL/ARCH      this link means "installed"
"""

import contextlib
import os
import shutil
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import parking
from kmodhookd.errors import Fault
from kmodhookd.model import Source
from kmodhookd.observe import decisions
from kmodhookd.root import Root
from kmodhookd.settings import Settings


def version_path(root: Root, settings: Settings, module: str, version: str) -> Path:
    """The directory of one version in the DKMS tree."""
    return root.resolve(settings.dkms_tree) / module / version


def add(root: Root, settings: Settings, source: Source) -> None:
    """Register a version: its directory with the `source` link, as `dkms add` leaves it. No error when it is there."""
    parking.bring_back(root, settings, source.module, source.version)
    directory = version_path(root, settings, source.module, source.version)
    (directory / "build").mkdir(parents=True, exist_ok=True)
    link = directory / "source"
    if link.is_symlink() and os.readlink(link) == source.path:
        return
    if link.is_dir() and not link.is_symlink():
        return  # a binaries-only version brings its source along
    _link(directory, source.path)


def source_came(root: Root, settings: Settings, module: str, version: str, path: str) -> None:
    """A version of which only binaries were loaded has its source now, at a path inside: its link leads there."""
    directory = version_path(root, settings, module, version)
    conf_only = directory / "source"
    if conf_only.is_symlink() or not conf_only.is_dir() or os.listdir(conf_only) != ["dkms.conf"]:
        return
    aside = directory / ".source.old"
    shutil.rmtree(aside, ignore_errors=True)
    conf_only.rename(aside)
    try:
        _link(directory, path)
    except OSError:
        aside.rename(conf_only)
        raise
    shutil.rmtree(aside)


def _link(directory: Path, path: str) -> None:
    """The `source` link of a version."""
    temporary = directory / ".source.new"
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(path)
    temporary.rename(directory / "source")
    store.sync_directory(directory)


def found(root: Root, module: str, version: str) -> bool:
    """Whether we registered a version by ourselves because its source was there, and nobody has said `add` since."""
    return decisions.state_path(root, "found", module, version).exists()


def mark_found(root: Root, module: str, version: str, *, by_ourselves: bool) -> None:
    """Remember who registered it."""
    path = decisions.state_path(root, "found", module, version)
    if by_ourselves:
        store.write_atomic(path, b"")
    elif path.exists():
        store.discard(path)
        with contextlib.suppress(OSError):
            path.parent.rmdir()


def unbuild(root: Root, settings: Settings, cell: decisions.Cell) -> None:
    """Take what was built for one kernel out of the DKMS tree, with our record of it. The module tree is not touched.

    `Fault` while it is installed: without record and build nothing would tell that those files are ours.
    """
    module, version, kernel, arch = cell
    record = decisions.record(root, cell)
    if record is not None and record.files:
        raise Fault("it is still installed", where=f"{module}/{version} on {kernel}", hint="uninstall it first")
    directory = version_path(root, settings, module, version) / kernel / arch
    active = root.resolve(settings.dkms_tree) / module / f"kernel-{kernel}-{arch}"
    if active.is_symlink() and os.readlink(active) == f"{version}/{kernel}/{arch}":
        active.unlink()
    if directory.is_dir():
        doomed = directory.with_name(f".tmp_{arch}_doomed")  # `stored.sweep` and `dkms remove` clear such names away
        shutil.rmtree(doomed, ignore_errors=True)
        directory.rename(doomed)
        store.sync_directory(directory.parent)
        shutil.rmtree(doomed)
    with contextlib.suppress(OSError):
        for parent in directory.parents[:3]:  # the kernel's, and those of a version that is not registered
            parent.rmdir()
    if not version_path(root, settings, module, version).is_dir():
        mark_found(root, module, version, by_ourselves=False)
    decisions.forget(root, "records", cell)
    decisions.forget(root, "failures", cell)


def remove(root: Root, settings: Settings, module: str, version: str) -> None:
    """Deregister a version, parked or not. Refused while something of it is built: that is taken out first."""
    directory = version_path(root, settings, module, version)
    for entry in _entries(directory):
        if entry.name not in ("source", "build", "tarball") and _holds_builds(entry):
            raise Fault(
                f"{entry.name} is still built", where=f"{module}/{version}", hint="uninstall and unbuild it first"
            )
    if directory.is_dir():
        shutil.rmtree(directory)
    mark_found(root, module, version, by_ourselves=False)
    with contextlib.suppress(OSError):
        directory.parent.rmdir()
    parking.discard(root, module, version)


def _holds_builds(entry: os.DirEntry[str]) -> bool:
    """Whether something is built there, and not only what an interrupted removal left."""
    if entry.name.startswith(".") or not entry.is_dir(follow_symlinks=False):
        return False
    return any(not child.name.startswith(".") for child in _entries(Path(entry.path)))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
