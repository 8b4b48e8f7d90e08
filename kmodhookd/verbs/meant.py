# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person's words mean: the source, the kernels and the cells of an inventory."""

import functools
from collections.abc import Sequence

from kmodhookd.errors import NotFound
from kmodhookd.model import Inventory, Placement, Source
from kmodhookd.plan.versions import compare


def source_of(inventory: Inventory, module: str, version: str) -> Source:
    """The source that is meant; without a version the newest there is."""
    found = [one for one in inventory.sources if one.module == module and version in ("", one.version)]
    if not found:
        name = f"{module}/{version}" if version else module
        raise NotFound("no such module", where=name, hint="kmodhookctl status lists those there are")
    usable = [one for one in found if not one.problem] or found
    return max(usable, key=lambda one: functools.cmp_to_key(compare)(one.version))


def check_kernel(inventory: Inventory, kernel: str, also: Sequence[str] = ()) -> None:
    if kernel not in {one.release for one in inventory.kernels} | set(also):
        raise NotFound("no such kernel", where=kernel, hint="kmodhookctl kernels lists those there are")


def placements_of(
    inventory: Inventory, source: Source, kernels: Sequence[str], also: Sequence[str] = ()
) -> list[Placement]:
    for kernel in kernels:
        check_kernel(inventory, kernel, also)
    return [
        one
        for one in inventory.placements
        if (one.module, one.version) == (source.module, source.version) and (not kernels or one.kernel in kernels)
    ]
