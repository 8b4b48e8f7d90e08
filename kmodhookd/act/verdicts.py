# SPDX-License-Identifier: GPL-2.0-or-later
"""Will what is in the kernels' trees load: what is seen there, put before the rules of `plan.verdict`."""

from kmodhookd.act.failures import as_fault
from kmodhookd.model import Inventory, Kernel, Verdict
from kmodhookd.observe import enforcement, kernelfacts, modtree
from kmodhookd.plan.verdict import judge_all
from kmodhookd.root import Root
from kmodhookd.settings import Settings

# What a verdict is asked for again: headers, and the modules of ours that are there.
_Key = tuple[str, frozenset[tuple[str, str, str]]]


class Verdicts:
    """The verdicts of one pass. A kernel on which nothing of ours changed since the last look is not judged again.

    It takes 0.2 s for each kernel that has modules of ours, most of it for `Module.symvers` and the walk over its tree.
    """

    def __init__(self, root: Root, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self._machine = enforcement.machine(root)
        self._known: dict[str, tuple[_Key, dict[str, Verdict]]] = {}

    def added(self, inventory: Inventory) -> Inventory:
        """The inventory with the verdicts on all modules that are not the kernels' own."""
        found: dict[str, Verdict] = {}
        for kernel in inventory.kernels:
            key = _key(inventory, kernel)
            if not key[1]:
                continue
            if self._known.get(kernel.release, (None,))[0] != key:
                self._known[kernel.release] = key, self._of(kernel)
            found |= self._known[kernel.release][1]
        return inventory.model_copy(update={"verdicts": found})

    def _of(self, kernel: Kernel) -> dict[str, Verdict]:
        """By path. None when the tree cannot be looked at: a verdict is advice, and nothing else waits for it."""
        try:
            survey = modtree.survey(self.root, kernel.tree)
            facts = kernelfacts.kernel_facts(self.root, self.settings, kernel, survey=survey, machine=self._machine)
            modules = kernelfacts.foreign(self.root, kernel, survey)
            return dict(zip((one.path for one in modules), judge_all(modules, facts), strict=True))
        except Exception as error:
            as_fault(f"the verdict on the modules of {kernel.release}", error)  # a defect of ours goes to the journal
            return {}


def _key(inventory: Inventory, kernel: Kernel) -> _Key:
    here = [placement for placement in inventory.placements if placement.kernel == kernel.release]
    files = {(one.path, one.link, one.sha256) for placement in here for one in (*placement.installed, *placement.weak)}
    return kernel.headers.fingerprint, frozenset(files)
