# SPDX-License-Identifier: GPL-2.0-or-later
"""Will a kernel boot with its modules: the verdict from what is known of each module's cell."""

from collections.abc import Iterable

from kmodhookd.model import BootVerdict, Cell, HeadersState, Kernel, State
from kmodhookd.settings import Settings

FINE = frozenset({State.INSTALLED, State.REUSED, State.STALE, State.IN_TREE})
WRONG = frozenset({State.BROKEN, State.DAMAGED, State.FAILED})  # counts whether or not it would go there by itself


def verdict(kernel: Kernel, cells: Iterable[Cell], settings: Settings) -> BootVerdict:
    """`ready` when every module that should be there is; modules of `policy.required`, when given, decide alone.

    A kernel that is not there (headers alone) cannot be told about. A module is fine when any version of it is in place,
    even one whose source is unusable by now: it loads all the same.
    """
    if kernel.headers.state is HeadersState.ALONE:
        return BootVerdict(kernel=kernel.release, verdict="unknown")
    by_module: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.kernel == kernel.release:
            by_module.setdefault(cell.module, []).append(cell)
    reasons = []
    decisive = False
    for module, versions in sorted(by_module.items()):
        if any(cell.there or cell.state in FINE for cell in versions):
            continue
        versions = [cell for cell in versions if cell.state is not State.EXCLUDED]
        if not versions:
            continue
        worst = max(versions, key=lambda cell: (cell.wanted, cell.state in WRONG))
        if not (worst.wanted or worst.state in WRONG or worst.required):
            continue
        fact = worst.facts[0]
        reasons.append((module, f"{worst.state}: {fact.verdict}", fact.remedy))
        decisive = decisive or not settings.policy.required or worst.required
    return BootVerdict(kernel=kernel.release, verdict="not-ready" if decisive else "ready", reasons=tuple(reasons))
