# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel leaves behind that the package database says is gone: our files, builds for it, the index, its directory.

Only what is known to be ours or depmod's is removed; a directory goes when nothing is left in it.
"""

import contextlib
import os
import shutil

from kmodhookd import store
from kmodhookd.act import depmod, install, registry
from kmodhookd.errors import Busy
from kmodhookd.model import Kernel
from kmodhookd.observe import decisions, index
from kmodhookd.observe.elf import module_name
from kmodhookd.root import Root
from kmodhookd.settings import Settings

HEADERS = ("build", "source")  # of a package of its own, which may stay


def clean(root: Root, settings: Settings, kernel: Kernel) -> tuple[str, ...]:
    """Clear away after a kernel; what was left alone, in sentences. The caller holds the engine lock.

    `Busy` for the running kernel: its modules may still be asked for.
    """
    if kernel.running:
        raise Busy("it is running", where=kernel.release, hint="its leftovers go after the next boot")
    left: list[str] = []
    for cell in _cells(root, settings, kernel.release):
        left += install.uninstall(root, settings, kernel, cell[0], cell[1], cell[3], restore=False)
        registry.unbuild(root, settings, cell)
    _forget(root, settings, kernel.release)
    _clear_tree(root, kernel)
    return tuple(left)


def _cells(root: Root, settings: Settings, release: str) -> list[decisions.Cell]:
    """Every version that is recorded or built for a kernel."""
    found = {cell for cell in decisions.recorded_cells(root, "records") if cell[2] == release}
    top = root.resolve(settings.dkms_tree)
    for directory in top.glob(f"*/*/{release}/*"):
        module, version, _, arch = directory.relative_to(top).parts
        if module != "original_module" and version != "original_module" and not arch.startswith("."):
            found.add((module, version, release, arch))
    return sorted(found)


def _forget(root: Root, settings: Settings, release: str) -> None:
    """Archived originals (they were of this kernel), links, failures and logs."""
    top = root.resolve(settings.dkms_tree)
    for path in [
        *top.glob(f"*/original_module/{release}"),
        *root.resolve(f"{store.STATE}/logs").glob(f"*/*/{release}"),
    ]:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()
    for link in top.glob(f"*/kernel-{release}-*"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    index.forget(root, release)
    for cell in decisions.recorded_cells(root, "failures"):
        if cell[2] == release:
            decisions.forget(root, "failures", cell)


def _clear_tree(root: Root, kernel: Kernel) -> None:
    """The index, when there is nothing left for it to list; then empty directories; then the tree itself."""
    tree = root.resolve(kernel.tree)
    if not tree.is_dir():
        return
    names = [name for _, _, files in os.walk(tree) for name in files]
    if any(module_name(name) for name in names):
        return
    for entry in list(os.scandir(tree)):
        if depmod.GENERATED.fullmatch(entry.name) or depmod.TEMPORARY.fullmatch(entry.name):
            os.unlink(entry.path)
    for directory, _, _ in os.walk(tree, topdown=False):
        if os.path.relpath(directory, tree).partition("/")[0] in HEADERS:
            continue
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(directory)
