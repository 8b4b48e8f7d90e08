# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel the next boot takes, as far as files and EFI variables tell.

Looked at in this order: systemd-boot, GRUB (first where the firmware says that GRUB ran), the link that Debian keeps.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial

from kmodhookd.observe import bls, efivars, grub
from kmodhookd.observe.boot import reachable, release_key, release_of
from kmodhookd.root import Root

Finder = Callable[[Root, Mapping[str, str]], str]


def boot_default(root: Root, releases: Mapping[str, str], *, variables: str = "") -> str:
    """The release of the kernel that the next boot takes; "" when it cannot be told.

    `releases` are the kernels there are (those with an image), each with its `pkgbase`, "" for none: some
    distributions name images after that. `variables`: the directory of this machine's EFI variables; "" when the root is
    not the machine's own.
    """
    if not releases:
        return ""
    loaders: list[Finder] = [partial(bls.systemd_boot, variables=variables), grub.grub]
    if efivars.text(variables, "LoaderInfo").startswith("GRUB"):
        loaders.reverse()
    for find in (*loaders, _link):
        found = find(root, releases)
        if found in releases:
            return found
    return max(releases, key=release_key)


def _link(root: Root, releases: Mapping[str, str]) -> str:
    """`/vmlinuz` or `/boot/vmlinuz`, a link to the newest installed (linux-update-symlinks(1))."""
    for inside in ("/vmlinuz", "/boot/vmlinuz"):
        parent = reachable(root, inside.rpartition("/")[0] or "/")
        link = parent / "vmlinuz" if parent else None
        if link is not None and link.is_symlink():
            return release_of(os.readlink(link), releases)
    return ""
