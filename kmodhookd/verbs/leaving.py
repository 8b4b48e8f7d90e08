# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel that is about to be removed leaves behind in its module tree."""

import os
import re
from collections.abc import Callable
from contextlib import suppress

from kmodhookd.act.lock import engine_lock
from kmodhookd.model import NAME_PATTERN
from kmodhookd.observe import modtree
from kmodhookd.root import Root
from kmodhookd.settings import Settings


def clear_empty(root: Root, settings: Settings, kernel: str, on_wait: Callable[[str], None]) -> None:
    """Remove the empty directories of a kernel's module tree, and the tree itself if nothing is left, as DKMS does."""
    top = modtree.top(root, settings) / kernel
    if not re.fullmatch(NAME_PATTERN, kernel) or top.is_symlink() or not top.is_dir():
        return
    with engine_lock(root, settings, on_wait=on_wait):
        for directory, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):  # something is in it
                os.rmdir(directory)
