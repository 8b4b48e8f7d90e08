# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules from the DKMS tree into a kernel's tree and out again, each time as one transaction.

Nothing is removed that is not known to be ours: recorded with the same content, or equal to what the DKMS tree holds for
that kernel. What of somebody else's would keep ours from being loaded is archived, and comes back (`originals`). The caller
holds the engine lock and runs depmod afterwards; PRE_INSTALL and POST_INSTALL are run outside of both.
"""

import errno
import os
import time
from collections.abc import Collection, Iterable

from kmodhookd.act import journal, originals, ownership, parking, transaction, workspace
from kmodhookd.act.change import Change
from kmodhookd.act.depmod import depmod
from kmodhookd.act.failures import NO_SPACE, READ_ONLY, failed
from kmodhookd.act.journal import Item
from kmodhookd.act.lock import OnWait, engine_lock
from kmodhookd.act.stored import sweep as sweep_tree
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, HeadersState, InstalledFile, Kernel, Recipe, Record
from kmodhookd.observe import decisions, depmodorder, modtree, parked
from kmodhookd.observe.elf import SUFFIXES
from kmodhookd.observe.families import Family
from kmodhookd.root import Root
from kmodhookd.settings import Settings

# Of a record, once its files are out.
GONE = {"files": (), "installed_fingerprint": "", "installed_key": "", "by_hand": False, "for_headers": False}
GONE |= {"over_in_tree": False, "installed_provenance": None}


def install(
    root: Root,
    settings: Settings,
    family: Family,
    kernel: Kernel,
    recipe: Recipe,
    record: Record | None,
    *,
    skip: Collection[str] = (),
    by_hand: bool = False,
    over_in_tree: bool = False,
) -> Record:
    """Put what the DKMS tree holds of a recipe into its kernel's tree; the record as it is then, already saved.

    `record` is that of the build, None for one that real DKMS made; `skip` are modules of which the kernel's own wins;
    `by_hand` says that a person chose this version although there is a newer one, `over_in_tree` that one wants it
    although the kernel's own is the same or newer.
    Files of other versions of the module are removed once the new ones are in, and originals come back in whose stead
    nothing is installed any more. `BuildFailed` when it cannot be done; the tree is then as it was.
    """
    if not root.resolve(kernel.tree).is_dir():
        raise failed(recipe, FailureClass.INSTALL, f"{kernel.tree} is not there", remedy="install that kernel")
    change = Change(root, settings, kernel, recipe.module, recipe.version, recipe.arch)
    others = [other for other in _records(root, change) if other.files and other.version != recipe.version]
    recorded = [file for other in (*others, *((record,) if record else ())) for file in other.files]
    content = {file.sha256 for file in recorded} | ownership.stored_content(root, settings, change.cell)
    known = originals.Known(frozenset(content), frozenset(file.path for file in recorded))
    try:
        _place_modules(change, family, recipe, known, skip)
        files = tuple(_installed_file(root, item) for item in change.items)
        change.doomed += _superseded(change, recorded, files)
        originals.restore(change, keep={modtree.module_name(file.path.rpartition("/")[2]) for file in files})
        done = _record(recipe, record)
        put: dict[str, object] = {"files": files, "installed_fingerprint": done.fingerprint, "installed": time.time()}
        put |= {"by_hand": by_hand or done.by_hand, "installed_key": done.key, "installed_provenance": done.provenance}
        put["changed"] = _changed(root, record, files)
        put["over_in_tree"] = over_in_tree or (done.over_in_tree if done.files else False)
        put["for_headers"] = kernel.headers.state is HeadersState.ALONE  # a person's word: no plan says so
        done = done.model_copy(update=put)
        change.activate()
        for one in (done, *(other.model_copy(update=GONE) for other in others)):
            change.record(one)
        transaction.perform(root, change.entry())
    except OSError as error:
        cause = FailureClass.SPACE if error.errno in NO_SPACE else FailureClass.INSTALL
        what = f"it could not be installed: {error.strerror or error}"
        remedy = f"make room in {kernel.tree}" if cause is FailureClass.SPACE else ""
        remedy = READ_ONLY if error.errno == errno.EROFS else remedy
        raise failed(recipe, cause, what, remedy=remedy) from None
    return done


def uninstall(
    root: Root, settings: Settings, kernel: Kernel, module: str, version: str, arch: str, *, restore: bool = True
) -> tuple[str, ...]:
    """Take a version's files out of a kernel's tree, and put back what was archived for it.

    What is in the DKMS tree stays. `restore=False` is for a kernel that is gone. The result says in sentences what was left
    alone because it is not ours any more.
    A `Fault` when it cannot be done; the tree is then as it was.
    """
    change = Change(root, settings, kernel, module, version, arch)
    record = decisions.record(root, change.cell)
    link = root.resolve(change.link, follow_last=False)
    active = link.is_symlink() and os.readlink(link) == change.active
    change.doomed += record.files if record else ()
    if active:
        known = {file.path for file in change.doomed}
        change.doomed += [file for file in ownership.installed(root, settings, change.cell) if file.path not in known]
    # Real DKMS that was killed between archiving and installing leaves originals behind, and no version is active.
    left = originals.restore(change) if restore and (active or not link.is_symlink()) else []
    if record is not None:
        change.record(record.model_copy(update=GONE))
    try:
        left += transaction.perform(root, change.entry(unlink=change.link if active else ""))
    except OSError as error:
        what = f"it could not be taken out: {error.strerror or error}"
        raise Fault(what, where=f"{module}/{version} on {kernel.release}") from None
    return tuple(left)


def recover(root: Root, settings: Settings, on_wait: OnWait) -> list[str]:
    """Finish or undo what a crash left in this root: installations, builds, indexes; forget what upgrades have replaced.

    Says in sentences what was done.
    """
    workspace.sweep(root)
    said: list[str] = []
    open_ends = (journal.entries(root), journal.unfinished(root), journal.indexes_owed(root), parked.notes(root))
    if not any(open_ends) and not sweep_tree(root, settings, dry=True):
        return said
    with engine_lock(root, settings, on_wait=on_wait):
        sweep_tree(root, settings)
        for path in journal.unfinished(root):
            path.unlink()
        for entry in journal.entries(root):
            try:
                said.append(transaction.recover(root, entry))
            except OSError as error:
                said.append(f"{entry.module}/{entry.version} on {entry.kernel}: not recovered yet: {error}")
        for kernel in journal.indexes_owed(root):
            try:
                depmod(root, kernel)
            except Fault as fault:
                said.append(str(fault))
        parking.settle(root, settings)
    return said


# --- what goes where ------------------------------------------------------------------------------------------------


def _place_modules(
    change: Change, family: Family, recipe: Recipe, known: originals.Known, skip: Collection[str]
) -> None:
    """Each module's file, and what becomes of those of its name that lie in the kernel's tree."""
    stored = f"{change.tree}/{change.active}/module"
    order = depmodorder.read(change.root)
    in_tree = modtree.walk(change.root, change.kernel.tree)
    for module in recipe.modules:
        name = modtree.module_name(module.dest_name)
        if module.excluded or name in skip:
            continue
        source = _stored_file(change, stored, module.dest_name)
        directory = f"{change.kernel.tree}/{family.module_directory(module.dest_location).strip('/')}"
        target = f"{directory}/{source.rpartition('/')[2]}"
        originals.make_way(change, target, known, in_tree.get(name, ()), order)
        change.put(source, target, link=change.settings.dkms.symlink_modules)


def _stored_file(change: Change, stored: str, name: str) -> str:
    candidates = [f"{stored}/{name}{suffix}" for suffix in SUFFIXES]
    source = next((path for path in candidates if change.root.resolve(path).is_file()), "")
    if not source:
        raise Fault(f"{name} is not in {stored}", where=f"{change.module}/{change.version}", hint="build it again")
    return source


def _installed_file(root: Root, item: Item) -> InstalledFile:
    return InstalledFile(
        path=item.target, sha256=transaction.checksum(root.resolve(item.source or item.link)), link=item.link
    )


def _changed(root: Root, record: Record | None, files: Iterable[InstalledFile]) -> float:
    """Since when this very content lies there: what is put in again as it is makes no initramfs old."""
    there = [root.resolve(file.path, follow_last=False) for file in files]
    same = [transaction.is_file(path, file.sha256) for path, file in zip(there, files, strict=True)]
    if not same or not all(same):
        return time.time()
    known = record is not None and set(record.files) == set(files)
    return record.since if record is not None and known else max(path.stat().st_mtime for path in there)


def _superseded(
    change: Change, recorded: Iterable[InstalledFile], files: Iterable[InstalledFile]
) -> list[InstalledFile]:
    """Files of earlier builds and other versions that the new ones do not replace."""
    new = {file.path for file in files} | {file.path for file in change.doomed}
    old = [*recorded, *ownership.installed(change.root, change.settings, change.cell)]
    return [file for file in dict.fromkeys(old) if file.path not in new]


def _records(root: Root, change: Change) -> list[Record]:
    """Records of every version of this module on this kernel."""
    cells = decisions.recorded_cells(root, "records")
    mine = [cell for cell in cells if (cell[0], *cell[2:]) == (change.module, change.kernel.release, change.arch)]
    return [record for cell in mine if (record := decisions.record(root, cell)) is not None]


def _record(recipe: Recipe, record: Record | None) -> Record:
    names = {"module": recipe.module, "version": recipe.version, "kernel": recipe.kernel, "arch": recipe.arch}
    return record or Record.model_validate({**names, "fingerprint": ""})


__all__ = ["install", "recover", "uninstall"]
