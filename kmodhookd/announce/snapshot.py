# SPDX-License-Identifier: GPL-2.0-or-later
"""Inventory and Plan → Snapshot: what reading callers are served from, the same for the bus and the command line."""

from collections.abc import Sequence

from kmodhookd.announce.origins import origins
from kmodhookd.model import Inventory, Plan
from kmodhookd.protocol import Snapshot


def snapshot(inventory: Inventory, plan: Plan, problems: Sequence[str] = ()) -> Snapshot:
    """Everything a caller can ask for, as of one look."""
    states = {(cell.module, cell.version, cell.kernel): str(cell.state) for cell in plan.cells}
    autoinstall: dict[str, bool] = {}
    for placement in inventory.placements:
        name = f"{placement.module}/{placement.version}"
        wanted = placement.recipe is not None and placement.recipe.autoinstall
        autoinstall[name] = autoinstall.get(name, False) or wanted
    failures = tuple(
        placement.failure
        for placement in inventory.placements
        if placement.failure is not None and placement.failure.fingerprint == placement.fingerprint
    )
    return Snapshot(
        kernels=inventory.kernels,
        sources=inventory.sources,
        autoinstall=autoinstall,
        cells=plan.cells,
        provides=origins(inventory, states),
        missing_headers=plan.missing_headers,
        failures=failures,
        boot=plan.boot,
        boot_default=inventory.boot_default,
        problems=(*inventory.problems, *problems),
        watch=_watch(inventory),
    )


def _watch(inventory: Inventory) -> tuple[str, ...]:
    """The directories in which something that matters to us may change, flat."""
    directories: dict[str, None] = dict.fromkeys(inventory.boot.watch)
    for kernel in inventory.kernels:
        directories[kernel.tree] = None
        for directory in ("updates/dkms", "extra", "weak-updates"):
            directories[f"{kernel.tree}/{directory}"] = None
        directories |= dict.fromkeys(kernel.headers.watch)
    for source in inventory.sources:
        if source.directory:
            directories[source.directory] = None
            directories[source.directory.rsplit("/", 1)[0] or "/"] = None
    return tuple(directories)
