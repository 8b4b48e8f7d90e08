# SPDX-License-Identifier: GPL-2.0-or-later
"""The module index of a kernel, made by depmod(8) once its modules are all in.

depmod writes each file of the index beside the old one and renames it. On a full disk it renames an empty one over a good
one (measured with kmod 30: `modules.dep` of 0 bytes, and the kernel boots without modules), and a package's maintainer
script may be running another depmod in the same directory. So ours works in a directory of its own, which shows it the
kernel's modules through links, and what it made is put in place when it is whole.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from kmodhookd import store
from kmodhookd.act import journal
from kmodhookd.act.toolchain import which
from kmodhookd.act.workspace import copy_synced
from kmodhookd.errors import Fault
from kmodhookd.observe import boot, index
from kmodhookd.root import Root
from kmodhookd.run import run

TIMEOUT = 300.0
WORK = f"{store.STATE}/index"  # a directory for each kernel while its index is made
NEW = ".kmodhookd-index-"  # what a file of the new index is called until it is in place
GENERATED = re.compile(
    r"modules\.(alias|alias\.bin|builtin\.alias\.bin|builtin\.bin|dep|dep\.bin|devname|softdep|symbols|symbols\.bin|weakdep)"
)
TEMPORARY = re.compile(rf"{GENERATED.pattern}\.\d+\.\d+\.\d+|{re.escape(NEW)}.*")  # depmod's, and ours

SAID = re.compile(r"^depmod: (?:ERROR|FATAL): .*$", re.MULTILINE)
# With status 0 most of its errors are about one file or one line of its configuration: a broken module, a dangling link.
# The index is made without that, and that is right. These are about the index itself.
UNSOUND = re.compile(
    r"^depmod: (?:FATAL: .*|ERROR: .*(?:[Cc]ould not (?:create|rename)|truncated|No space left|quota).*)$", re.MULTILINE
)


def depmod(root: Root, release: str) -> None:
    """Index a kernel's modules. Does nothing for a tree without a kernel. `Fault` when it fails: the old index stays."""
    tree = root.modules / release
    if has_kernel(root, release):
        work = root.path(f"{WORK}/{release}")
        try:
            _make(root, tree, work)
        except OSError as error:
            raise _fault(release, error.strerror or str(error)) from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
        index.remember(root, release)
    journal.index_made(root, release)


def has_kernel(root: Root, release: str) -> bool:
    """Whether the tree is a kernel's: an index in a tree of headers alone would make it look like one."""
    tree = root.modules / release
    return any((tree / name).exists() for name in ("kernel", "modules.order", "modules.builtin"))


def _make(root: Root, tree: Path, work: Path) -> None:
    outside = not root.is_host and not which(root, "depmod")  # this machine's serves a root that has none
    made = _mirror(root, tree, work, outside=outside)
    complaint = _run(root, work, tree.name, outside=outside)
    if not complaint and not _sound(made):
        complaint = "depmod wrote no modules.dep"
    if complaint:
        raise _fault(tree.name, complaint)
    _put(made, tree)


def _mirror(root: Root, tree: Path, work: Path, *, outside: bool) -> Path:
    """A base directory for depmod in which the kernel's tree is one of links; that tree."""
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    mirror = work / "usr/lib/modules" / tree.name
    mirror.mkdir(parents=True)
    (work / "lib").symlink_to("usr/lib")  # each kmod has one of the two places compiled in
    for entry in os.scandir(tree):
        if not (GENERATED.fullmatch(entry.name) or TEMPORARY.fullmatch(entry.name)):
            (mirror / entry.name).symlink_to(_named(root, Path(entry.path), outside=outside))
    return mirror


def _run(root: Root, work: Path, release: str, *, outside: bool) -> str:
    """Run it, inside the root where that has one; what it complained of."""
    maps = (f"/boot/System.map-{release}", f"{root.inside(root.modules)}/{release}/System.map")
    found = (boot.reachable(root, path) for path in maps)  # /boot may be asleep
    symbols = next((path for path in found if path is not None and path.is_file()), None)
    options = ["-F", _named(root, symbols, outside=outside)] if symbols else []
    argv = ["depmod", "-b", _named(root, work, outside=outside), "-a", *options, release]
    result = run(argv, root=None if outside else root, timeout=TIMEOUT)
    said = UNSOUND.search(result.output) or (None if result.ok else SAID.search(result.output))
    if result.ok and not said:
        return ""
    return said[0].removeprefix("depmod: ") if said else result.output.strip() or result.sentence()


def _named(root: Root, path: Path, *, outside: bool) -> str:
    """A path outside, as the depmod that is run sees it."""
    return str(path) if outside else root.inside(path)


def _sound(made: Path) -> bool:
    """Whether there is an index that lists something, as every kernel with modules has one."""
    path = made / "modules.dep"
    return path.is_file() and (path.stat().st_size > 0 or not (made / "kernel").exists())


def _put(made: Path, tree: Path) -> None:
    """Copy the new index beside the old one, and take its place only when all of it is on the disk."""
    names = [entry.name for entry in os.scandir(made) if GENERATED.fullmatch(entry.name)]
    fresh = [tree / f"{NEW}{name}" for name in names]
    try:
        for name, path in zip(names, fresh, strict=True):
            path.unlink(missing_ok=True)  # of one that was killed
            copy_synced(made / name, path)
        for name, path in zip(names, fresh, strict=True):
            path.rename(tree / name)
    finally:
        for path in fresh:
            with contextlib.suppress(OSError):
                path.unlink()
    store.sync_directory(tree)


def _fault(release: str, complaint: str) -> Fault:
    return Fault(f"the module index could not be made: {complaint}", where=release, hint=f"run 'depmod {release}'")
