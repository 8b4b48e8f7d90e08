# SPDX-License-Identifier: GPL-2.0-or-later
"""What `add`, `build` and `install` look at in a source before they touch anything (DKMS's strict reading of a dkms.conf)."""

from collections.abc import Iterable

from kmodhookd.errors import Fault
from kmodhookd.model import Inventory, Placement, Source
from kmodhookd.observe.inventory import recipe_without_kernel
from kmodhookd.root import Root
from kmodhookd.settings import Settings


def check(root: Root, settings: Settings, inventory: Inventory, source: Source) -> tuple[str, ...]:
    """What a person should know of its dkms.conf, as sentences. `Fault` for a source that cannot be used on any kernel."""
    name = f"{source.module}/{source.version}"
    if source.problem:
        raise Fault(source.problem, where=name, hint=source.remedy)
    placements = [one for one in inventory.placements if (one.module, one.version) == (source.module, source.version)]
    if not placements:
        return tuple(f"{name}: {notice}" for notice in recipe_without_kernel(root, settings, source).notices)
    if all(one.recipe is None for one in placements):
        raise Fault(placements[0].problem, where=name, hint=placements[0].remedy)
    return notices(placements)


def notices(placements: Iterable[Placement]) -> tuple[str, ...]:
    """What is deprecated, or taken for something else than it says, each once."""
    told = [
        f"{one.module}/{one.version}: {notice}" for one in placements if one.recipe for notice in one.recipe.notices
    ]
    return tuple(dict.fromkeys(told))
