# SPDX-License-Identifier: GPL-2.0-or-later
"""BUILD_DEPENDS: which modules must be there before another is built, and what of them is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kmodhookd.model import Cell, Placement, State
from kmodhookd.plan import cells


def there(judged: Iterable[Cell]) -> Mapping[str, frozenset[str]]:
    """Kernel → the modules on which others may build there, in any version."""
    found: dict[str, set[str]] = defaultdict(set)
    for cell in judged:
        # It is there, or dkms.conf says that it need not be.
        if cell.there or cell.state in cells.THERE or cell.state is State.EXCLUDED:
            found[cell.kernel].add(cell.module)
    return defaultdict(frozenset, {kernel: frozenset(modules) for kernel, modules in found.items()})


def missing(placement: Placement, present: frozenset[str]) -> tuple[str, ...]:
    """The modules of BUILD_DEPENDS that are not there on this kernel, given the names of those that are."""
    return tuple(name for name in placement.recipe.depends if name not in present) if placement.recipe else ()


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


def circle(module: str, depends: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The modules, from this one on, that depend on each other in a circle back to it; () when there is none."""
    paths: list[tuple[str, ...]] = [(module,)]
    seen = {module}
    for path in paths:  # grows as it goes: the shortest circle is found first
        for name in depends.get(path[-1], ()):
            if name == module:
                return path
            if name not in seen:
                seen.add(name)
                paths.append((*path, name))
    return ()
