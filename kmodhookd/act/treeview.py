# SPDX-License-Identifier: GPL-2.0-or-later
"""DKMS's tree as the scripts of one build see it: the real one, but for a version's own directory, which is private.

Packages rely on DKMS's order, in which POST_BUILD runs when the modules are in the tree: it copies symbols and configuration
headers there (`zfs`, for what builds upon it) or reads the modules. Here it runs before, in a cage, as the build user.
So the build gets a directory like TREE/MODULE/VERSION that is its own, in the place of the real one:

WORKSPACE/dkms/MODULE/VERSION/source -> the source      build -> where it is built
WORKSPACE/dkms/MODULE/VERSION/KERNEL/ARCH/module/       copies of what was accepted, once it is
WORKSPACE/dkms/OTHER -> TREE/OTHER                      and whatever else there is in the tree

What the build leaves in KERNEL/ARCH beside the modules is taken over into the real tree. Where nothing can be mounted, the
scripts are told that WORKSPACE/dkms is DKMS's tree.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmodhookd.act import product
from kmodhookd.act.workspace import Workspace, copy_content
from kmodhookd.errors import Fault
from kmodhookd.model import NAME_PATTERN, SAFE_LENGTH, Recipe, Source
from kmodhookd.root import Root
from kmodhookd.settings import Settings

MAX_FILES = 1000  # that are taken over
MAX_DEPTH = 8  # directories below KERNEL/ARCH


@dataclass(frozen=True)
class TreeView:
    """One build's view of DKMS's tree. Paths are inside the root, `cell` apart."""

    tree: str  # of DKMS, as settings have it
    inside: str  # the private one
    version: str  # MODULE/VERSION
    mounts: bool  # whether the cage can show one directory in another's place
    mounted: bool  # whether the private directory is seen at the real one's place
    cell: Path  # KERNEL/ARCH in the private one, from outside
    owner: tuple[int, int]

    @property
    def shown(self) -> str:
        """What `dkms_tree` is for the build."""
        return self.tree if self.mounted else self.inside

    @property
    def binds(self) -> dict[str, str]:
        """What to mount: target → source."""
        return {f"{self.tree}/{self.version}": f"{self.inside}/{self.version}"} if self.mounted else {}

    def translated(self, text: str) -> str:
        """A command with the paths of DKMS's tree as the build sees them."""
        if self.mounted:
            return text
        return re.sub(rf"{re.escape(self.tree)}(?![\w.+~-])", lambda _: self.inside, text)

    def show(self, files: Sequence[Path]) -> None:
        """Let the build see what was accepted, as DKMS's POST_BUILD does: copies, with which it may do what it likes.

        OSError when it has put something else in the place.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        cell = os.open(self.cell, flags)
        directory = -1
        try:
            os.mkdir("module", dir_fd=cell)
            directory = os.open("module", flags, dir_fd=cell)
            os.fchown(directory, *self.owner)
            for file in files:
                made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                with (
                    file.open("rb") as source,
                    os.fdopen(os.open(file.name, made, 0o644, dir_fd=directory), "wb") as copy,
                ):
                    copy_content(source.fileno(), copy.fileno())
                    os.fchown(copy.fileno(), *self.owner)
        finally:
            os.close(cell)
            if directory >= 0:
                os.close(directory)


def prepare(
    root: Root,
    settings: Settings,
    source: Source,
    recipe: Recipe,
    workspace: Workspace,
    *,
    mounts: bool,
    uid: int,
    gid: int,
) -> TreeView:
    """Make the private directory. `mounts`: whether the cage can show it at the real one's place. OSError on a full disk."""
    tree = settings.dkms_tree
    top = workspace.path / "dkms"
    own = top / recipe.module / recipe.version
    cell = own / recipe.kernel / recipe.arch
    cell.mkdir(parents=True)
    os.chown(cell, uid, gid)  # nothing above it: the build must not be able to put a link in its place
    (own / "source").symlink_to(source.path)
    (own / "build").symlink_to(workspace.build_inside)
    _link_others(root, tree, top, "", recipe.module)
    _link_others(root, tree, top, f"{recipe.module}/", recipe.version)
    version = f"{recipe.module}/{recipe.version}"
    there = root.resolve(f"{tree}/{version}").is_dir()
    return TreeView(tree, f"{workspace.inside}/dkms", version, mounts, mounts and there, cell, (uid, gid))


def _link_others(root: Root, tree: str, top: Path, below: str, own: str) -> None:
    """Links to everything of a directory of the real tree but what is private."""
    try:
        names = os.listdir(root.resolve(f"{tree}/{below}"))
    except OSError:
        return
    for name in names:
        if name != own:
            (top / below / name).symlink_to(f"{tree}/{below}{name}")


def take_over(
    view: TreeView, workspace: Workspace, largest: int
) -> tuple[tuple[tuple[str, Path], ...], tuple[str, ...]]:
    """What POST_BUILD put beside the modules: (name below KERNEL/ARCH, our copy) of each file; and what was left, in words.

    Regular files of the build user's, together no larger than `largest` bytes. The modules themselves were accepted
    before, and stay what they are.
    """
    taken: list[tuple[str, Path]] = []
    left: list[str] = []
    kept = workspace.path / "beside"
    kept.mkdir()
    for name in _files(view.cell):
        if name.startswith("module/") and name.endswith(product.SUFFIXES):
            continue
        if not _usable(name):
            left.append(f"{name!a} is no name for DKMS's tree")
            continue
        if len(taken) == MAX_FILES:
            left.append(f"{name} and what follows: more than {MAX_FILES} files")
            break
        target = kept / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            largest -= product.take(view.cell, name, target, view.owner[0], largest, smallest=0)
        except Fault as fault:
            left.append(fault.what)
            continue
        taken.append((name, target))
    return tuple(taken), tuple(left)


def _usable(name: str) -> bool:
    parts = name.split("/")
    if len(parts) > MAX_DEPTH or parts[0] == "log":
        return False
    return all(re.fullmatch(NAME_PATTERN, part) and len(part) <= SAFE_LENGTH for part in parts)


def _files(top: Path) -> Iterator[str]:
    """Names of everything below a directory that is no directory, in order; no link is followed."""
    for directory, directories, files in os.walk(top):
        directories.sort()
        relative = os.path.relpath(directory, top)
        for file in sorted(files):
            yield file if relative == "." else f"{relative}/{file}"
