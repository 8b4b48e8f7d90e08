# SPDX-License-Identifier: GPL-2.0-or-later
"""A module steps aside where an update of the kernel has removed the need for it, and comes back with the need (D3).

Only what we put there by ourselves goes, and only for a file that is there in its stead, with a version that compares:
never for the running kernel, never against a person's word.
"""

from kmodhookd.model import ActionKind, HeadersState, Kernel, Placement
from kmodhookd.plan import cells, intree
from kmodhookd.settings import Settings


def step(placement: Placement, kernel: Kernel, settings: Settings, used: intree.Users) -> tuple[ActionKind, str] | None:
    """What to do about modules that are installed and not needed, or needed and left out; None when all is as it should be.

    Where another build than the installed one lies ready, it is that one which is compared with the kernel's own.
    """
    record, recipe = placement.record, placement.recipe
    if record is None or not record.files or recipe is None or not (settings.automatic and recipe.autoinstall):
        return None
    current, ready = cells.is_current(placement), cells.is_fresh(placement) and not placement.foreign_headers
    if record.by_hand or not (current or ready) or not _is_whole(placement):
        return None
    there = intree.recorded(placement)
    winners = intree.winners(placement, settings)
    obsolete = intree.superfluous(placement, settings, kernel, used)
    needed = intree.names(placement.stored) - obsolete
    if needed == there:
        return None
    fits = kernel.headers.state is HeadersState.PRESENT or cells.needs_no_headers(placement, kernel)
    if needed and not (ready and fits):
        return None  # what is installed may be better than what lies ready
    winner = next((winners[name] for name in sorted(obsolete & there)), None)
    if winner is None:
        if not current:
            return None  # it is renewed as a whole
        return ActionKind.INSTALL, "the kernel has none of its own any more that could stand in for it"
    reason = f"the kernel has its own: {winner.path} has version {winner.version}"
    return (ActionKind.INSTALL if needed else ActionKind.UNINSTALL), reason


def _is_whole(placement: Placement) -> bool:
    """Whether the DKMS tree still has what is installed: only that tells versions, and only that can come back."""
    return bool(placement.stored) and not any(artifact.problem for artifact in placement.stored)
