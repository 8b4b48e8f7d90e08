# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sources are registered in the DKMS tree, and what goes with sources and kernels that are positively gone."""

from collections.abc import Iterable

from kmodhookd.model import Action, ActionKind, Inventory
from kmodhookd.plan import cells, decisions


def additions(inventory: Inventory) -> Iterable[Action]:
    for source in inventory.sources:
        if source.registered or source.problem or source.gone or source.unpacked or not source.directory:
            continue
        if decisions.standing(inventory.decisions, source, "") is not None:
            continue
        yield Action(kind=ActionKind.ADD, module=source.module, version=source.version, reason="source is in place")


def removals(inventory: Inventory) -> Iterable[Action]:
    """What of positively gone sources and kernels belongs to no placement."""
    gone = {(source.module, source.version) for source in inventory.sources if source.gone}
    gone |= set(inventory.departed)
    for module, version, kernel, arch in inventory.orphans:
        if (module, version) in gone:
            for kind in (ActionKind.UNINSTALL, ActionKind.UNBUILD):
                reason = "its source package was removed"
                yield Action(kind=kind, module=module, version=version, kernel=kernel, arch=arch, reason=reason)
    yield from _deregistrations(inventory)
    kernels = {one.release: one for one in inventory.kernels}
    kept = {one.kernel for one in inventory.placements if cells.is_for_headers(one, kernels[one.kernel])}
    for one in inventory.kernels:
        if one.leaving and not one.running and one.release not in kept:
            yield Action(kind=ActionKind.CLEAN, kernel=one.release)


def _deregistrations(inventory: Inventory) -> Iterable[Action]:
    """A version is forgotten once its source is positively gone and nothing of it is left in any kernel."""
    busy = {
        (placement.module, placement.version)
        for placement in inventory.placements
        if placement.built or placement.active or (placement.record is not None and placement.record.files)
    } | {orphan[:2] for orphan in inventory.orphans}
    for source in inventory.sources:
        if source.gone and (source.module, source.version) not in busy:
            reason = "its source package was removed"
            yield Action(kind=ActionKind.REMOVE, module=source.module, version=source.version, reason=reason)
