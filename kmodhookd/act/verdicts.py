# SPDX-License-Identifier: GPL-2.0-or-later
"""Will what is in the kernels' trees load: what is seen there, put before the rules of `plan.verdict`.

Looking takes 0.2 s for each kernel that has modules of ours, and a minute where there is nothing but 4 000 compressed modules
to tell what the kernel exports. So it is done at the end of a pass; until then what the last one came to is told, as far as it
is about the same files.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Collection

from kmodhookd import store
from kmodhookd.act.failures import as_fault
from kmodhookd.model import Inventory, Kernel, Remembered, Verdict
from kmodhookd.observe import enforcement, kernelfacts, modtree
from kmodhookd.plan.verdict import judge_all
from kmodhookd.root import Root
from kmodhookd.settings import Settings

PLACE = f"{store.STATE}/verdicts"  # a file for each kernel


class _Known(Remembered):
    """What was told of a kernel's modules, and of which headers and files."""

    about: str = ""
    verdicts: dict[str, Verdict] = {}


def known(root: Root, inventory: Inventory) -> Inventory:
    """The inventory with the verdicts that still hold of those that were told last."""
    found: dict[str, Verdict] = {}
    for kernel in inventory.kernels:
        about = _about(inventory, kernel)
        told = store.load(root.resolve(f"{PLACE}/{kernel.release}"), _Known) if about else None
        if told is not None and told.about == about:
            found |= told.verdicts
    return inventory.model_copy(update={"verdicts": found})


def told(root: Root, settings: Settings, inventory: Inventory, cancel: threading.Event) -> Inventory:
    """The inventory with the verdicts on all modules that are not the kernels' own, looked at now."""
    _forget(root, {kernel.release for kernel in inventory.kernels})
    found: dict[str, Verdict] = {}
    machine = enforcement.machine(root)
    for kernel in inventory.kernels:
        about = _about(inventory, kernel)
        if not about:
            continue
        verdicts = _of(root, settings, kernel, machine, cancel)
        if cancel.is_set():
            return known(root, inventory)
        found |= verdicts
        with contextlib.suppress(OSError):
            store.save(root.resolve(f"{PLACE}/{kernel.release}"), _Known(about=about, verdicts=verdicts))
    return inventory.model_copy(update={"verdicts": found})


def _forget(root: Root, here: Collection[str]) -> None:
    """Nothing is kept of kernels that are gone."""
    with contextlib.suppress(OSError):
        for path in root.resolve(PLACE).iterdir():
            if path.name not in here:
                path.unlink()


def _of(
    root: Root, settings: Settings, kernel: Kernel, machine: enforcement.Machine, cancel: threading.Event
) -> dict[str, Verdict]:
    """By path. None when the tree cannot be looked at: a verdict is advice, and nothing else waits for it."""
    try:
        survey = modtree.survey(root, kernel.tree)
        facts = kernelfacts.kernel_facts(root, settings, kernel, survey=survey, machine=machine, cancel=cancel)
        modules = kernelfacts.foreign(root, kernel, survey)
        return dict(zip((one.path for one in modules), judge_all(modules, facts), strict=True))
    except Exception as error:
        as_fault(f"the verdict on the modules of {kernel.release}", error)  # a defect of ours goes to the journal
        return {}


def _about(inventory: Inventory, kernel: Kernel) -> str:
    """A digest of the headers and of the files of ours that are there; "" when there are none."""
    here = [placement for placement in inventory.placements if placement.kernel == kernel.release]
    files = {(one.path, one.link, one.sha256) for placement in here for one in (*placement.installed, *placement.weak)}
    if not files:
        return ""
    return hashlib.sha256(json.dumps([kernel.headers.fingerprint, sorted(files)]).encode()).hexdigest()
