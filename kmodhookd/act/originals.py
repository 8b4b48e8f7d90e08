# SPDX-License-Identifier: GPL-2.0-or-later
"""Files of others that give way to a module of ours: where they are kept, and how they come back.

Only what would keep our module from being loaded gives way: what lies at its very place, and what depmod would take
instead of it, or might (depmod.d(5)). Everything else of that name stays where its package put it, shadowed. Real DKMS
moves every one that it finds on all distributions but Debian's; what it archived comes back the same way:

    TREE/MODULE/original_module/KERNEL/ARCH/NAME.ko                       and NAME.ko.origin: one line, its old path
    TREE/MODULE/original_module/KERNEL/ARCH/collisions/DIRECTORY/NAME.ko  further ones of one name
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.act import ownership, transaction
from kmodhookd.act.change import Change
from kmodhookd.act.journal import Archived
from kmodhookd.errors import Fault
from kmodhookd.model import InstalledFile
from kmodhookd.observe import depmodorder, families
from kmodhookd.observe.elf import SUFFIXES
from kmodhookd.observe.modtree import Found, module_name

WEAK = "weak-updates/"  # links of the distribution's weak-modules tools are never touched
MAX_ORIGIN = 4096  # bytes that are read of a note on where an original was


@dataclass(frozen=True)
class Known:
    """What is known to be of this module: by content, and by the place where we put it."""

    content: frozenset[str]
    places: frozenset[str]

    def is_ours(self, change: Change, path: str, content: str) -> bool:
        """Whether a file is ours to remove; one of ours that is no module any more (torn by a crash, say) is."""
        return content in self.content or (path in self.places and not transaction.is_module(change.root.resolve(path)))


def make_way(change: Change, target: str, known: Known, found: Collection[Found], order: depmodorder.Order) -> None:
    """What becomes of each file of a module's name when its new file is put at `target` next.

    `found`: every file of that name in the kernel's tree. A `Fault` when one of somebody else's is in the way.
    """
    directory, _, name = target.rpartition("/")
    plain = name[: name.index(".ko")]
    beside = {f"{directory}/{plain}{suffix}" for suffix in SUFFIXES}
    rivals = {one.path for one in found if _is_rival(change, one, target, order)}
    for path in sorted(beside | rivals):
        place = change.root.resolve(path, follow_last=False)
        if not os.path.lexists(place):
            continue
        content = _content(change, path, place)
        if path != target:
            change.doomed.append(InstalledFile(path=path, sha256=content))
        owner = ownership.other(change.root, change.settings, change.cell, path, content)
        if known.is_ours(change, path, content) and (path in known.places or not owner):
            continue
        if owner:
            raise Fault(
                f"{path} is a module of {owner}", where=f"{change.module}/{change.version}", hint=_choose(owner)
            )
        # What is replaced is archived from its backup: by then the new file is in its place.
        change.archives.append(_archived(change, path, change.marks(target)[1] if path == target else path))


def restore(change: Change, keep: Collection[str] = ()) -> list[str]:
    """Put archived files back where they were, but for modules of the names in `keep`. What is left alone, in sentences.

    One that is there again by now, put there by its package, stays; so does what cannot be told where it was.
    """
    left: list[str] = []
    doomed = {file.path: file for file in change.doomed}
    archive = _archive(change)
    if archive and not change.root.resolve(change.kernel.tree).is_dir():
        return [f"{change.kernel.tree} is not there: originals of it stay in {change.originals}"]
    origins = {archived: _origin(change, archived) for archived in archive}
    newest = {origin: archived for archived, origin in origins.items()}
    for archived, origin in origins.items():
        if module_name(archived) in keep:
            continue
        if origin and newest[origin] != archived:
            # Its package has put another in its stead since, and that gave way too: that one is its module now.
            left.append(f"{archived} is an earlier {origin}; the later one, {newest[origin]}, is what comes back")
            change.restored.append(archived)
            continue
        if not origin:
            left.append(f"{archived} is an original of which nothing tells where it was; it stays there")
            continue
        there = change.root.resolve(origin, follow_last=False)
        if os.path.lexists(there) and not _goes(change, doomed.get(origin)):
            if transaction.is_file(there, transaction.checksum(change.root.resolve(archived))):
                change.restored.append(archived)  # its package brought the same one back
            else:
                left.append(f"{origin} is there again; what was archived of it stays in {archived}")
            continue
        change.put(archived, origin)
        change.restored.append(archived)
    return left


def _is_rival(change: Change, found: Found, target: str, order: depmodorder.Order) -> bool:
    """Whether depmod might take it instead of the file at `target`."""
    tree = f"{change.kernel.tree}/"
    relative = found.path.removeprefix(tree)
    if found.path == target or found.link or relative.startswith(WEAK):
        return False
    return not order.wins(target.removeprefix(tree), relative, change.kernel.release)


def _content(change: Change, path: str, place: Path) -> str:
    """The checksum of what lies at a place that we need."""
    if place.is_symlink() and change.root.resolve(change.tree) not in change.root.resolve(path).parents:
        raise Fault(f"{path} is a link to {os.readlink(place)}; it is left alone", hint="remove it if it is not needed")
    if not change.root.resolve(path).is_file():
        if place.is_symlink():
            return ""  # a dangling link into the DKMS tree
        raise Fault(f"{path} is not a file", hint="remove it")
    return transaction.checksum(change.root.resolve(path))


def _choose(owner: str) -> str:
    name, _, version = owner.partition("/")
    return f"remove {name}/{version}, or take that module out of one of the two with a file in /etc/dkms"


def _archived(change: Change, origin: str, source: str) -> Archived:
    """Where a file of others is archived: DKMS keeps one of each name, further ones below `collisions`."""
    below = origin.removeprefix(change.kernel.tree).strip("/")
    name = origin.rpartition("/")[2]
    taken = {archived.path for archived in change.archives}
    candidates = [name, f"collisions/{below}", f"collisions/{below}.{change.id}"]
    paths = [f"{change.originals}/{candidate}" for candidate in candidates]
    free = (one for one in paths if one not in taken and not os.path.lexists(change.root.resolve(one)))
    return Archived(source=source, path=next(free), origin=f"{_dkms_tree_of_modules(change)}/{below}")


def _dkms_tree_of_modules(change: Change) -> str:
    """The kernel's tree as real DKMS calls it: it puts nothing back whose old path begins otherwise."""
    top = change.settings.install_tree
    if top == "/usr/lib/modules" and families.detect(change.root).name != "arch":
        top = "/lib/modules"
    return f"{top}/{change.kernel.release}"


def _archive(change: Change) -> list[str]:
    """Every module file in the archive, what was archived last at the end; paths inside."""
    top = change.root.resolve(change.originals)
    paths = sorted(Path(directory, name) for directory, _, names in os.walk(top) for name in names)
    files = [path for path in paths if not path.is_symlink() and path.is_file() and ".ko" in path.name]
    files.sort(key=lambda path: path.stat().st_ctime_ns)
    return [change.root.inside(path) for path in files if not path.name.startswith(".") and path.suffix != ".origin"]


def _goes(change: Change, file: InstalledFile | None) -> bool:
    """Whether what lies at a place is a file of ours that this change removes."""
    return file is not None and transaction.is_ours(change.root, file)


def _origin(change: Change, archived: str) -> str:
    """An archived file's old place, by the one name of the kernel's tree; "" when it cannot be told.

    DKMS before 3.1 kept no note of it: then the kernel's own list of its modules is asked.
    """
    note = change.root.resolve(f"{archived}.origin")
    if note.is_file():
        with note.open("r", encoding="utf-8", errors="replace") as file:
            return _inside_tree(change, file.read(MAX_ORIGIN).partition("\n")[0].strip())
    name = archived.rpartition("/")[2]
    try:
        listed = change.root.resolve(f"{change.kernel.tree}/modules.order").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    places = [line for line in listed if module_name(line.rpartition("/")[2]) == module_name(name)]
    return f"{change.kernel.tree}/{places[0].rpartition('/')[0]}/{name}" if len(places) == 1 else ""


def _inside_tree(change: Change, origin: str) -> str:
    for top in (change.settings.install_tree, "/lib/modules"):  # the second with or without /usr before it
        _, found, below = origin.partition(f"{top}/{change.kernel.release}/")
        if found and ".." not in below.split("/"):
            return f"{change.kernel.tree}/{below}"
    return ""
