# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal of changes to module trees: what a crash leaves behind is finished or undone at the next start.

One file for each change, `/var/lib/kmodhookd/journal/ID.json`, written before anything else and rewritten at each phase:

    staging   temporary files are being written: nothing else has changed, they are removed
    commit    the temporary files are whole, and being renamed into place: finished if all can be, else undone
    finish    the new files are in: old ones are removed, the DKMS link and the records follow
"""

import secrets
from pathlib import Path
from typing import Literal

from kmodhookd import store
from kmodhookd.model import InstalledFile, Noun
from kmodhookd.root import Root

DIRECTORY = "journal"  # below `Root.state`
DUE = f"{store.STATE}/depmod"  # a file for each kernel whose module index is older than its modules

Phase = Literal["staging", "commit", "finish"]


class Item(Noun):
    """A file that is to be in place: a copy, a link, or a text of ours. Paths are inside the root."""

    source: str = ""  # what it is a copy of
    temporary: str
    target: str
    backup: str  # where what was at `target` is kept until all is well
    sha256: str = ""  # of the content; known from the commit phase on
    replaces: bool = False  # something was at `target`
    link: str = ""  # what it says, when it is to be a link
    text: str = ""  # what it holds, when it is of our own making


class Archived(Noun):
    """A file of somebody else's that gives way, kept in DKMS's tree to be put back one day."""

    source: str  # where its content is when it is archived
    path: str  # in DKMS's original_module directory
    origin: str  # where it was in the module tree


class Entry(Noun):
    """One change of one module on one kernel."""

    id: str
    phase: Phase = "staging"
    module: str
    version: str
    kernel: str
    arch: str
    items: tuple[Item, ...] = ()
    archives: tuple[Archived, ...] = ()  # to make
    restored: tuple[str, ...] = ()  # archived files that are back in place, to be dropped from the archive
    doomed: tuple[InstalledFile, ...] = ()  # to remove, each only if its content still is what we put there
    made: tuple[str, ...] = ()  # directories that are made for it, outermost first
    emptied: tuple[str, ...] = ()  # directories that may go when nothing is left in them, innermost first
    unlink: str = ""  # DKMS's active link, when it is to go


def new_id() -> str:
    """A name for a change; also part of the names of its temporary files."""
    return secrets.token_hex(6)


def save(root: Root, entry: Entry) -> None:
    """Make an entry durable."""
    store.save(root.resolve(f"{root.state}/{DIRECTORY}/{entry.id}.json"), entry)


def close(root: Root, entry: Entry) -> None:
    """The change is done, or undone."""
    store.discard(root.resolve(f"{root.state}/{DIRECTORY}/{entry.id}.json"))


def entries(root: Root) -> list[Entry]:
    """What is open. A damaged entry is set aside by `store.load`; its temporary files are then left over."""
    directory = root.resolve(f"{root.state}/{DIRECTORY}")
    if not directory.is_dir():
        return []
    loaded = [store.load(path, Entry) for path in sorted(directory.glob("*.json"))]
    return [entry for entry in loaded if entry is not None]


def unfinished(root: Root) -> list[Path]:
    """Halves of entries whose writing was interrupted: they count for nothing."""
    directory = root.resolve(f"{root.state}/{DIRECTORY}")
    return sorted(directory.glob(".*.json.*")) if directory.is_dir() else []


def owe_index(root: Root, kernel: str) -> None:
    """Remember that depmod is due for a kernel."""
    path = root.resolve(f"{DUE}/{kernel}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def index_made(root: Root, kernel: str) -> None:
    """depmod has run."""
    root.resolve(f"{DUE}/{kernel}").unlink(missing_ok=True)


def indexes_owed(root: Root) -> list[str]:
    """Kernels for which depmod is due."""
    directory = root.resolve(DUE)
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
