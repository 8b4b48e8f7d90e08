# SPDX-License-Identifier: GPL-2.0-or-later
"""The module files of one kernel: a single walk over its tree, no file opened."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.errors import InvalidArgument
from kmodhookd.observe import names
from kmodhookd.root import Root
from kmodhookd.settings import Settings

NOT_MODULES = ("build", "source")  # the way to the headers
# Where modules go that are not the kernel's own: what changes there says nothing about the kernel.
FOREIGN = ("updates", "extra", "weak-updates", "extramodules", "misc")
MAX_ENTRIES = 200_000
DEPMOD = "modules."  # what depmod makes: modules.dep, modules.alias.bin, …
OF_THE_KERNEL = ("modules.order", "modules.builtin", "modules.builtin.modinfo", "modules.builtin.ranges")


@dataclass(frozen=True)
class Found:
    """One .ko, as seen from inside the root."""

    path: str
    link: str = ""  # where it leads, resolved, when it is a symbolic link


@dataclass(frozen=True)
class Survey:
    """What a walk gave."""

    modules: Mapping[str, list[Found]]  # name with underscores → files of that name, the nearest to the top first
    own: str = ""  # some module of the kernel's own (below kernel/); "" when there is none
    youngest: float = 0.0  # newest change of the kernel's own directories and files at the top (POSIX seconds)


def module_name(name: str) -> str:
    """A module's name as the kernel has it: dashes are underscores (modprobe(8)). Takes names with `.ko` as well."""
    return (names.module_name(name) or name).replace("-", "_")


def top(root: Root, settings: Settings) -> Path:
    """The directory of module trees: the one that there is, unless framework.conf or a call names another."""
    default = settings.install_tree in ("/usr/lib/modules", "/lib/modules")
    return root.modules if default else root.resolve(settings.install_tree)


def is_there(root: Root, inside: str) -> bool:
    """Whether a path leads to a file; links that go round in circles lead to none."""
    try:
        return root.resolve(inside).is_file()
    except OSError:
        return False


def walk(root: Root, tree: str) -> Mapping[str, list[Found]]:
    """The module files below a kernel's tree, by name. Names that are not UTF-8 are none that we or DKMS made."""
    return survey(root, tree).modules


def survey(root: Root, tree: str) -> Survey:
    """Walk a kernel's tree (a path inside the root). A directory that cannot be read counts as empty."""
    modules: dict[str, list[Found]] = {}
    own = ""
    youngest = 0.0
    for inside, entry in _entries(root, tree):
        relative = inside.removeprefix(f"{tree}/")
        top = relative.partition("/")[0]
        is_directory = entry.is_dir(follow_symlinks=False)
        if top not in FOREIGN and (is_directory or _is_of_the_kernel(relative)):
            youngest = max(youngest, entry.stat(follow_symlinks=False).st_ctime)
        if is_directory:
            continue
        name = names.module_name(entry.name)
        if name and (entry.is_file(follow_symlinks=False) or entry.is_symlink()):
            link = _target(root, inside) if entry.is_symlink() else ""
            modules.setdefault(module_name(name), []).append(Found(inside, link))
            if not own and not link and top == "kernel":
                own = inside
    return Survey(modules, own, youngest)


def _is_of_the_kernel(relative: str) -> bool:
    """Whether something at the top of the tree came with the kernel or its headers."""
    return "/" not in relative and (not relative.startswith(DEPMOD) or relative in OF_THE_KERNEL)


def _entries(root: Root, tree: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below the tree, a directory before what is in it; links to directories are not followed."""
    pending = [tree]
    top = os.fspath(root.resolve(tree))
    left = MAX_ENTRIES
    while pending:
        inside = pending.pop(0)
        try:
            with os.scandir(top + inside.removeprefix(tree)) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            continue
        left -= len(entries)
        if left < 0:
            return
        for entry in entries:
            if not entry.name.isprintable():
                continue  # surrogate escapes, of names that are not UTF-8, are not printable
            path = f"{inside}/{entry.name}"
            try:
                if entry.is_dir(follow_symlinks=False) and not (inside == tree and entry.name in NOT_MODULES):
                    pending.append(path)
                yield path, entry
            except OSError:  # gone since it was listed
                continue


def _target(root: Root, inside: str) -> str:
    try:
        target = root.inside(root.resolve(inside))
    except (OSError, InvalidArgument):
        return "?"  # a loop of links, or a way out
    return target if target.isprintable() else "?"
