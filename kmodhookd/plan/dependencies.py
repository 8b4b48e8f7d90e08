# SPDX-License-Identifier: GPL-2.0-or-later
"""BUILD_DEPENDS: which modules must be there before another is built, and what of them is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from kmodhookd.model import Cell, Placement
from kmodhookd.plan import cells


def there(judged: Iterable[Cell]) -> Mapping[str, frozenset[str]]:
    """Kernel → the modules on which others may build there, in any version."""
    found: dict[str, set[str]] = defaultdict(set)
    for cell in judged:
        if cells.satisfies(cell):
            found[cell.kernel].add(cell.module)
    return defaultdict(frozenset, {kernel: frozenset(modules) for kernel, modules in found.items()})


def missing(placement: Placement, judged: Iterable[Cell]) -> tuple[str, ...]:
    """The modules of BUILD_DEPENDS without which this one cannot be built on its kernel now."""
    return cells.missing_dependencies(placement, there(judged)[placement.kernel])


def of_taken(
    placements: Iterable[Placement], chosen: Mapping[tuple[str, str], str]
) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Kernel → module → what the version of it that is taken there depends on. `chosen`: module, kernel → version."""
    found: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for placement in placements:
        taken = chosen.get((placement.module, placement.kernel)) == placement.version
        if taken and placement.recipe is not None and placement.recipe.depends:
            found[placement.kernel][placement.module] = placement.recipe.depends
    return found
