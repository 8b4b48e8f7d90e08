# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine's root with kernels of a quarter of the modules: each depmod and each look at a tree takes a quarter of the time."""

from bed.kernels import find_kernels
from bed.overlay import Overlay
from bed.shell import APT_ENV


def make_small(root: Overlay) -> None:
    """Two kernels of the cloud flavour in place of the common ones; of the newest ABI's other flavours the headers stay."""
    kernels = find_kernels(root)
    small = kernels.small
    root.apt_install(small.k1.image, small.k1.headers, small.k2.image)
    purged = (kernels.k1.image, kernels.k1.headers, kernels.k1.common, kernels.k2.image)
    root.run(["apt-get", "purge", "-y", "-q", *purged], env=APT_ENV)
    root.apt_install(small.k1.headers, *(kernel.headers for kernel in small.alone))
