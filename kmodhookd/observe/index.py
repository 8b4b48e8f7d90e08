# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a kernel's module index (modules.dep, depmod(8)) is one that knows of our modules.

Two depmods that run at once end with the index of the one that ended last, whatever it had seen: a kernel package's may
have started before our modules were in. An index of our own making is never doubted, because what it does not list was
shadowed by another file of its name; so each index that others make costs us one look, and at most one depmod.
"""

import contextlib
import os
from collections.abc import Collection

from kmodhookd import store
from kmodhookd.root import Root

NAME = "modules.dep"
MADE = f"{store.STATE}/indexed"  # a file for each kernel: the identity of the index that we made last


def remember(root: Root, release: str) -> None:
    """The index that is there now is ours."""
    store.write_atomic(root.path(f"{MADE}/{release}"), _identity(root, release).encode())


def forget(root: Root, release: str) -> None:
    """The kernel is gone."""
    with contextlib.suppress(FileNotFoundError):
        root.path(f"{MADE}/{release}").unlink()


def lacks(root: Root, release: str, tree: str, modules: Collection[str]) -> bool:
    """Whether somebody else made the index, and it does not list each of these files (paths inside the root)."""
    identity = _identity(root, release)
    if not (modules and identity):
        return False
    with contextlib.suppress(OSError):
        if root.path(f"{MADE}/{release}").read_text(encoding="utf-8", errors="replace") == identity:
            return False
    try:
        with (root.modules / release / NAME).open(encoding="utf-8", errors="replace") as file:
            listed = {line.partition(":")[0] for line in file}
    except OSError:
        return False
    return any(path.removeprefix(f"{tree}/") not in listed for path in modules)


def _identity(root: Root, release: str) -> str:
    """Of the file as it is now; "" when there is none."""
    try:
        status = os.stat(root.modules / release / NAME)
    except OSError:
        return ""
    return f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
