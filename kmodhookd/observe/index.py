# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a kernel's module index (depmod(8)) is one that knows of our modules.

depmods that run at once end with the index of the one that ended last, file by file, whatever it had seen: a kernel
package's may have started before our modules were in. An index of our own making is never doubted, because what it does
not list was shadowed by another file of its name; so each index that others make costs us one look, and at most one
depmod.
"""

import contextlib
import os
from collections.abc import Collection, Iterable

from kmodhookd import store
from kmodhookd.root import Root

DEPENDENCIES = "modules.dep.bin"  # what modprobe(8) reads; its values are the lines of modules.dep
FILES = (
    DEPENDENCIES,
    "modules.alias.bin",
    "modules.symbols.bin",
    "modules.softdep",
)  # every depmod writes each of them
MADE = f"{store.STATE}/indexed"  # a file for each kernel: the identities of the index that we made last


def remember(root: Root, release: str) -> None:
    """The index that is there now is ours."""
    store.write_atomic(root.path(f"{MADE}/{release}"), "\n".join(_identities(root, release)).encode())


def forget(root: Root, release: str) -> None:
    """The kernel is gone."""
    with contextlib.suppress(FileNotFoundError):
        root.path(f"{MADE}/{release}").unlink()


def lacks(root: Root, release: str, tree: str, modules: Collection[str]) -> bool:
    """Whether others made the index, wholly or in part, and it may not know of each of these files (paths inside)."""
    here = _identities(root, release)
    if not (modules and all(here)):
        return False
    made: list[str] = []
    with contextlib.suppress(OSError):
        made = root.path(f"{MADE}/{release}").read_text(encoding="utf-8", errors="replace").split("\n")
    ours = [now in made for now in here]
    if any(ours):
        return not all(ours)  # a slower depmod's files came between
    known = content(root, release)
    return bool(known) and bool(unnamed(known, tree, modules))


def content(root: Root, release: str) -> bytes:
    """A kernel's index as it lies there; b"" when there is none."""
    try:
        return (root.modules / release / DEPENDENCIES).read_bytes()
    except OSError:
        return b""


def unnamed(index: bytes, tree: str, modules: Iterable[str]) -> tuple[str, ...]:
    """Which of these files (paths inside the root) the content of an index does not name."""
    return tuple(path for path in modules if os.fsencode(f"{path.removeprefix(f'{tree}/')}:") not in index)


def _identities(root: Root, release: str) -> list[str]:
    """Of the files as they are now; "" for one that is not there."""
    found = []
    for name in FILES:
        try:
            status = os.stat(root.modules / release / name)
            found.append(f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}")
        except OSError:
            found.append("")
    return found
