# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels into which modules went and whose initramfs has not been looked at since.

A file each, so that the debt outlives a crash, and the end of the transaction in which it was made.
"""

import os

from kmodhookd import store
from kmodhookd.observe.decisions import state_path
from kmodhookd.root import Root


def owe(root: Root, kernel: str) -> None:
    """The initramfs of this kernel is to be looked at."""
    store.write_atomic(state_path(root, "initramfs", kernel), b"")


def owed(root: Root) -> list[str]:
    """The kernels whose initramfs is to be looked at."""
    try:
        return sorted(name for name in os.listdir(state_path(root, "initramfs")) if not name.startswith("."))
    except FileNotFoundError:
        return []


def settle(root: Root, kernel: str) -> None:
    """It was looked at."""
    store.discard(state_path(root, "initramfs", kernel))
