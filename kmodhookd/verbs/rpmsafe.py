# SPDX-License-Identifier: GPL-2.0-or-later
"""`--rpm_safe_upgrade`: a `remove` that does nothing after an `add` of the same version in the same rpm transaction.

In an upgrade rpm runs the old package's `%preun` after the new one's `%post`; when both are of the same version, the
removal would undo what was just added. DKMS knows the transaction by its process: the caller's caller, and when it began.
"""

import os
from pathlib import Path

from kmodhookd import processes, store
from kmodhookd.root import Root

DIRECTORY = f"{store.RUNTIME}/rpm"


def mark(root: Root, module: str, version: str) -> None:
    """An `add` of this version was said in the transaction that we are in."""
    path = _path(root, module, version)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def take(root: Root, module: str, version: str) -> bool:
    """Whether the version was added in this very transaction; asked once."""
    path = _path(root, module, version)
    if path is None or not path.exists():
        return False
    path.unlink(missing_ok=True)
    return True


def _path(root: Root, module: str, version: str) -> Path | None:
    """The marker's place; None when the transaction cannot be told."""
    rpm = next(iter(processes.ancestors(os.getppid())), 0)
    began = processes.started(rpm) if rpm else ""
    return root.resolve(f"{DIRECTORY}/{module}-{version}.{rpm}.{began}") if began else None
