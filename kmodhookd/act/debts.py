# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels into which modules went, or out of which, and whose initramfs has not been looked at since.

A file each, with the modules that went out (`observe.initramfs.taken_out` reads it), so that the debt outlives a crash, and
the end of the transaction in which it was made.
"""

import os
import time
from collections.abc import Iterable

from kmodhookd import store
from kmodhookd.observe.initramfs import DEBTS, taken_out
from kmodhookd.root import Root


def owe(root: Root, kernel: str, *, gone: Iterable[str] = ()) -> None:
    """The initramfs of this kernel is to be looked at, also for the modules that have `gone` from its tree."""
    known = taken_out(root, kernel) | dict.fromkeys(gone, time.time())
    lines = (f"{name} {when}\n" for name, when in known.items())
    store.write_atomic(root.resolve(f"{DEBTS}/{kernel}"), "".join(lines).encode())


def owed(root: Root) -> list[str]:
    """The kernels whose initramfs is to be looked at."""
    try:
        return sorted(name for name in os.listdir(root.resolve(DEBTS)) if not name.startswith("."))
    except FileNotFoundError:
        return []


def settle(root: Root, kernel: str) -> None:
    """It was looked at."""
    store.discard(root.resolve(f"{DEBTS}/{kernel}"))
