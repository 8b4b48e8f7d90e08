# SPDX-License-Identifier: GPL-2.0-or-later
"""Modules from the DKMS tree into a kernel's tree and out again, each time as one transaction.

Nothing is removed that is not known to be ours: recorded with the same content, or equal to what the DKMS tree holds for
that kernel. A file of somebody else's at a place that we need is archived as DKMS does, and comes back on removal. The
caller holds the engine lock and runs depmod afterwards; PRE_INSTALL and POST_INSTALL are run outside of both.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from kmodhookd.act import journal, ownership, transaction, workspace
from kmodhookd.act.depmod import depmod
from kmodhookd.act.failures import NO_SPACE, failed
from kmodhookd.act.journal import Archived, Entry, Item
from kmodhookd.act.lock import engine_lock
from kmodhookd.act.stored import sweep as sweep_tree
from kmodhookd.errors import Fault
from kmodhookd.model import FailureClass, InstalledFile, Kernel, Recipe, Record
from kmodhookd.observe import decisions
from kmodhookd.observe.elf import SUFFIXES
from kmodhookd.observe.families import Family
from kmodhookd.root import Root
from kmodhookd.settings import Settings

GONE = {
    "files": (),
    "installed_fingerprint": "",
    "installed_key": "",
    "by_hand": False,
}  # of a record, once its files are out


@dataclass
class _Change:
    """An entry of the journal, as it is put together."""

    root: Root
    settings: Settings
    kernel: Kernel
    module: str
    version: str
    arch: str
    id: str = field(default_factory=journal.new_id)
    items: list[Item] = field(default_factory=list)
    archives: list[Archived] = field(default_factory=list)
    doomed: list[InstalledFile] = field(default_factory=list)

    @property
    def cell(self) -> decisions.Cell:
        """Module, version, kernel, arch."""
        return self.module, self.version, self.kernel.release, self.arch

    @property
    def tree(self) -> str:
        """The module's directory in the DKMS tree."""
        return f"{self.settings.dkms_tree}/{self.module}"

    @property
    def link(self) -> str:
        """DKMS's active link for the kernel."""
        return f"{self.tree}/kernel-{self.kernel.release}-{self.arch}"

    @property
    def active(self) -> str:
        """What an active link of this version says."""
        return f"{self.version}/{self.kernel.release}/{self.arch}"

    @property
    def originals(self) -> str:
        """Where files of others are archived."""
        return f"{self.tree}/original_module/{self.kernel.release}/{self.arch}"

    def put(self, source: str, target: str) -> None:
        """A copy of `source` is to be at `target`."""
        directory, _, name = target.rpartition("/")
        # depmod takes what ends in .ko, .ko.gz, .ko.xz or .ko.zst for a module: these must not.
        mark = f"{directory}/.kmodhookd-{self.id}-{len(self.items)}-{name}"
        there = os.path.lexists(self.root.resolve(target, follow_last=False))
        item = Item(source=source, temporary=f"{mark}.new", target=target, backup=f"{mark}.old", replaces=there)
        self.items.append(item)

    def entry(self, **more: object) -> Entry:
        """The entry to perform."""
        made = [path for item in self.items for path in _missing(self.root, item.target.rpartition("/")[0])]
        touched = [item.target for item in self.items] + [file.path for file in self.doomed]
        emptied = {path for file in touched for path in _above(file, self.kernel.tree)}
        return Entry.model_validate(
            {
                "id": self.id,
                "module": self.module,
                "version": self.version,
                "kernel": self.kernel.release,
                "arch": self.arch,
                "items": tuple(self.items),
                "archives": tuple(self.archives),
                "doomed": tuple(self.doomed),
                "made": tuple(dict.fromkeys(made)),
                "emptied": tuple(sorted(emptied, key=len, reverse=True)),
                "link": self.link,
                **more,
            }
        )


def install(
    root: Root, settings: Settings, family: Family, kernel: Kernel, recipe: Recipe, record: Record | None
) -> Record:
    """Put what the DKMS tree holds of a recipe into its kernel's tree; the record as it is then, already saved.

    `record` is that of the build, None for one that real DKMS made. Files of other versions of the module are removed
    once the new ones are in. `BuildFailed` when it cannot be done; the tree is then as it was.
    """
    if not root.resolve(kernel.tree).is_dir():
        raise failed(recipe, FailureClass.INSTALL, f"{kernel.tree} is not there", remedy="install that kernel")
    change = _Change(root, settings, kernel, recipe.module, recipe.version, recipe.arch)
    stored = f"{change.tree}/{change.active}/module"
    others = [other for other in _records(root, change) if other.files and other.version != recipe.version]
    ours = {file.sha256 for other in (*others, *((record,) if record else ())) for file in other.files}
    ours |= ownership.stored_content(root, settings, change.cell)
    try:
        for module in recipe.modules:
            if not module.excluded:
                directory = f"{kernel.tree}/{family.module_directory(module.dest_location).strip('/')}"
                _place_module(change, stored, module.dest_name, directory, ours)
        files = tuple(InstalledFile(path=item.target, sha256=_checksum(root, item.source)) for item in change.items)
        change.doomed += _superseded(change, [*others, *((record,) if record else ())], files)
        done = _record(recipe, record).model_copy(update={"files": files})
        cleared = [other.model_copy(update=GONE) for other in others]
        entry = change.entry(link_to=change.active, records=(done, *cleared))
        transaction.perform(root, entry)
    except OSError as error:
        cause = FailureClass.SPACE if error.errno in NO_SPACE else FailureClass.INSTALL
        what = f"it could not be installed: {error.strerror or error}"
        remedy = f"make room in {kernel.tree}" if cause is FailureClass.SPACE else ""
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
    change = _Change(root, settings, kernel, module, version, arch)
    record = decisions.record(root, change.cell)
    link = root.resolve(change.link, follow_last=False)
    active = link.is_symlink() and os.readlink(link) == change.active
    change.doomed += record.files if record else ()
    if active:
        known = {file.path for file in change.doomed}
        change.doomed += [
            file for file in ownership.installed(root, settings, kernel.tree, change.cell) if file.path not in known
        ]
    left: list[str] = []
    restored = _restore(change, left) if active and restore else []
    cleared = record.model_copy(update=GONE) if record else None
    entry = change.entry(
        link=change.link if active else "", records=(cleared,) if cleared else (), restored=tuple(restored)
    )
    try:
        left += transaction.perform(root, entry)
    except OSError as error:
        what = f"it could not be taken out: {error.strerror or error}"
        raise Fault(what, where=f"{module}/{version} on {kernel.release}") from None
    return tuple(left)


def recover(root: Root, settings: Settings) -> list[str]:
    """Finish or undo what a crash left in this root: installations, builds, indexes. Says in sentences what was done."""
    workspace.sweep(root)
    said: list[str] = []
    open_ends = (journal.entries(root), journal.unfinished(root), journal.indexes_owed(root))
    if not any(open_ends) and not sweep_tree(root, settings, dry=True):
        return said
    with engine_lock(root, settings, on_wait=said.append):
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
    return said


# --- what goes where ------------------------------------------------------------------------------------------------


def _place_module(change: _Change, stored: str, name: str, directory: str, ours: set[str]) -> None:
    """One module's file, and what becomes of those that lie where it goes."""
    candidates = [f"{stored}/{name}{suffix}" for suffix in SUFFIXES]
    source = next((path for path in candidates if _is_file(change.root, path)), "")
    if not source:
        raise Fault(f"{name} is not in {stored}", where=f"{change.module}/{change.version}", hint="build it again")
    target = f"{directory}/{source.rpartition('/')[2]}"
    for suffix in SUFFIXES:
        path = f"{directory}/{name}{suffix}"
        found = change.root.resolve(path, follow_last=False)
        if not os.path.lexists(found):
            continue
        content = _content(change, path, found)
        if path != target:
            change.doomed.append(InstalledFile(path=path, sha256=content))
        if content not in ours:
            # What is replaced is archived from its backup: by then the new file is in its place.
            kept = f"{directory}/.kmodhookd-{change.id}-{len(change.items)}-{target.rpartition('/')[2]}.old"
            change.archives.append(_archived(change, path, kept if path == target else path))
    change.put(source, target)


def _content(change: _Change, path: str, found: Path) -> str:
    """The checksum of what lies at a place that we need."""
    if found.is_symlink() and not change.root.inside(change.root.resolve(path)).startswith(f"{change.tree}/"):
        raise Fault(f"{path} is a link to {os.readlink(found)}; it is left alone", hint="remove it if it is not needed")
    if not change.root.resolve(path).is_file():
        if found.is_symlink():
            return ""  # a dangling link into the DKMS tree
        raise Fault(f"{path} is not a file", hint="remove it")
    return transaction.checksum(change.root.resolve(path))


def _archived(change: _Change, origin: str, source: str) -> Archived:
    """Where a file of others is archived: DKMS keeps one of each name, further ones below `collisions`."""
    name = origin.rpartition("/")[2]
    path = f"{change.originals}/{name}"
    taken = {archived.path for archived in change.archives}
    if path in taken or os.path.lexists(change.root.resolve(path, follow_last=False)):
        below = origin.removeprefix(change.kernel.tree).strip("/")
        path = f"{change.originals}/collisions/{below}.{change.id}"
    return Archived(source=source, path=path, origin=origin)


def _restore(change: _Change, left: list[str]) -> list[str]:
    """Put archived files back where they were, unless somebody else's is there by now. What is restored."""
    doomed = {file.path: file.sha256 for file in change.doomed}
    restored: list[str] = []
    for record in sorted(change.root.resolve(change.originals).glob("*.origin")):
        archived = f"{change.originals}/{record.name.removesuffix('.origin')}"
        origin = _inside_tree(change, record.read_text("utf-8", "replace").strip())
        if not origin or not _is_file(change.root, archived):
            continue
        there = change.root.resolve(origin, follow_last=False)
        if os.path.lexists(there) and not transaction.is_file(there, doomed.get(origin, "")):
            left.append(f"{origin} is there again; what was archived of it stays in {archived}")
            continue
        change.put(archived, origin)
        restored.append(archived)
    return restored


def _inside_tree(change: _Change, origin: str) -> str:
    """An archived file's old place, by the one name of the kernel's tree; "" for one outside of it."""
    marker = f"/lib/modules/{change.kernel.release}/"
    _, found, below = origin.partition(marker)
    return f"{change.kernel.tree}/{below}" if found and ".." not in below.split("/") else ""


def _superseded(change: _Change, records: Iterable[Record], files: Iterable[InstalledFile]) -> list[InstalledFile]:
    """Files of earlier builds and other versions that the new ones do not replace."""
    new = {file.path for file in files} | {file.path for file in change.doomed}
    old = [file for record in records for file in record.files]
    old += ownership.installed(change.root, change.settings, change.kernel.tree, change.cell)
    return [file for file in dict.fromkeys(old) if file.path not in new]


def _records(root: Root, change: _Change) -> list[Record]:
    """Records of every version of this module on this kernel."""
    cells = decisions.recorded_cells(root, "records")
    mine = [cell for cell in cells if (cell[0], *cell[2:]) == (change.module, change.kernel.release, change.arch)]
    return [record for cell in mine if (record := decisions.record(root, cell)) is not None]


def _record(recipe: Recipe, record: Record | None) -> Record:
    names = {"module": recipe.module, "version": recipe.version, "kernel": recipe.kernel, "arch": recipe.arch}
    return record or Record.model_validate({**names, "fingerprint": ""})


def _is_file(root: Root, inside: str) -> bool:
    return root.resolve(inside).is_file()


def _checksum(root: Root, inside: str) -> str:
    return transaction.checksum(root.resolve(inside))


def _missing(root: Root, directory: str) -> list[str]:
    """The directories that have to be made, outermost first."""
    missing: list[str] = []
    while not root.resolve(directory).is_dir():
        missing.insert(0, directory)
        directory = directory.rpartition("/")[0]
    return missing


def _above(file: str, tree: str) -> list[str]:
    """The directories from a file up to, and without, its kernel's tree. Only those of add-on modules may be ours."""
    found = []
    directory = file.rpartition("/")[0]
    while directory.startswith(f"{tree}/") and not directory.startswith(f"{tree}/kernel"):
        found.append(directory)
        directory = directory.rpartition("/")[0]
    return found


__all__ = ["install", "recover", "uninstall"]
