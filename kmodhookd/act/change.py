# SPDX-License-Identifier: GPL-2.0-or-later
"""An entry of the journal, as it is put together: what is to be in a kernel's tree, and what is to go from it."""

import os
from dataclasses import dataclass, field

from kmodhookd import store
from kmodhookd.act import journal
from kmodhookd.act.journal import Archived, Entry, Item
from kmodhookd.model import InstalledFile, Kernel, Record
from kmodhookd.observe import decisions
from kmodhookd.root import Root
from kmodhookd.settings import Settings


@dataclass
class Change:
    """What is to be done for one version of a module on one kernel."""

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
    restored: list[str] = field(default_factory=list)

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

    def put(self, source: str, target: str, *, link: bool = False) -> None:
        """A copy of `source`, or a link to it, is to be at `target`."""
        self._item(target, source="" if link else source, link=source if link else "")

    def record(self, record: Record) -> None:
        """Our record is to say this."""
        self._item(self.root.inside(decisions.cell_path(self.root, "records", record.cell)), text=store.text(record))

    def activate(self) -> None:
        """DKMS's active link is to lead to this version."""
        self._item(self.link, link=self.active)

    def _item(self, target: str, **content: str) -> None:
        temporary, backup = self.marks(target)
        there = os.path.lexists(self.root.resolve(target, follow_last=False))
        names = {"temporary": temporary, "target": target, "backup": backup, "replaces": there}
        self.items.append(Item.model_validate({**names, **content}))

    def marks(self, target: str) -> tuple[str, str]:
        """The names beside `target` of the next file to put there, and of what it replaces.

        depmod takes what ends in .ko, .ko.gz, .ko.xz or .ko.zst for a module: these must not.
        """
        directory, _, name = target.rpartition("/")
        mark = f"{directory}/.kmodhookd-{self.id}-{len(self.items)}-{name}"
        return f"{mark}.new", f"{mark}.old"

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
                "restored": tuple(self.restored),
                "doomed": tuple(self.doomed),
                "made": tuple(dict.fromkeys(made)),
                "emptied": tuple(sorted(emptied, key=len, reverse=True)),
                **more,
            }
        )


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
