# SPDX-License-Identifier: GPL-2.0-or-later
"""The module index of a kernel, made by depmod(8) once its modules are all in.

kmod writes each index file beside the old one and renames it, but on a full disk it renames an empty one over a good one
(measured with kmod 30: `modules.dep` of 0 bytes, and the kernel boots without modules). So the old files keep a second
name while it works, and come back when it fails or is killed.
"""

import os
import re
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import journal
from kmodhookd.act.toolchain import which
from kmodhookd.errors import Fault
from kmodhookd.root import Root
from kmodhookd.run import run

TIMEOUT = 300.0
KEPT = ".kmodhookd-index-"  # what the second name of an index file begins with
GENERATED = re.compile(
    r"modules\.(alias|alias\.bin|builtin\.alias\.bin|builtin\.bin|dep|dep\.bin|devname|softdep|symbols|symbols\.bin|weakdep)"
)
TEMPORARY = re.compile(GENERATED.pattern + r"\.\d+\.\d+\.\d+")


def depmod(root: Root, release: str) -> None:
    """Index a kernel's modules. Does nothing for a tree without a kernel. `Fault` when it fails: the old index stays."""
    tree = root.modules / release
    if not has_kernel(root, release):
        journal.index_made(root, release)
        return
    _restore(tree)  # one that was killed
    try:
        _keep(tree)
        complaint = _run(root, tree, release)
    except OSError as error:
        complaint = error.strerror or str(error)
    if not complaint and not _sound(tree):
        complaint = "depmod wrote no modules.dep"
    if complaint:
        _restore(tree)
        raise Fault(f"the module index could not be made: {complaint}", where=release, hint=f"run 'depmod {release}'")
    for kept in _kept(tree):
        kept.unlink()
    store.sync_directory(tree)
    journal.index_made(root, release)


def has_kernel(root: Root, release: str) -> bool:
    """Whether the tree is a kernel's: an index in a tree of headers alone would make it look like one."""
    tree = root.modules / release
    return any((tree / name).exists() for name in ("kernel", "modules.order", "modules.builtin"))


def _run(root: Root, tree: Path, release: str) -> str:
    """Run it, inside the root where that has one; what it complained of."""
    maps = (f"/boot/System.map-{release}", f"{root.inside(tree)}/System.map")
    symbols = next((path for path in maps if root.resolve(path).is_file()), "")
    if root.is_host or which(root, "depmod"):
        options = ["-F", symbols] if symbols else []
        result = run(["depmod", "-a", *options, release], root=root, timeout=TIMEOUT)
    else:
        options = ["-F", str(root.resolve(symbols))] if symbols else []
        result = run(["depmod", "-b", str(root.prefix), "-a", *options, release], timeout=TIMEOUT)
    for entry in list(os.scandir(tree)):
        if TEMPORARY.fullmatch(entry.name):
            os.unlink(entry.path)
    # Somebody's broken module is an ERROR too, with status 0: the index is made without it, and that is right.
    said = re.search(r"^depmod: (?:ERROR: (?!failed to load symbols)|FATAL: ).*$", result.output, re.MULTILINE)
    if result.ok and not said:
        return ""
    return said[0].removeprefix("depmod: ") if said else result.output.strip() or result.sentence()


def _keep(tree: Path) -> None:
    for entry in list(os.scandir(tree)):
        if GENERATED.fullmatch(entry.name):
            os.link(entry.path, tree / f"{KEPT}{entry.name}")


def _restore(tree: Path) -> None:
    for kept in _kept(tree):
        kept.rename(tree / kept.name.removeprefix(KEPT))


def _kept(tree: Path) -> list[Path]:
    return sorted(path for path in tree.iterdir() if path.name.startswith(KEPT))


def _sound(tree: Path) -> bool:
    """Whether there is an index that lists something, as every kernel with modules has one."""
    path = tree / "modules.dep"
    return path.is_file() and (path.stat().st_size > 0 or not (tree / "kernel").exists())
